"""`trl_erprm.prm.prompts`: what a process reward model reads of chats and of texts."""

import json
import logging

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import prm_trainer, save_base
from tests.tokenizers import CHATML_TEMPLATE, LLAMA_TEMPLATE, byte_level_tokenizer
from trl_erprm import ProcessRewardModel
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.prm import formats
from trl_erprm.prm.prompts import PromptReader, TrainedPrompts, problem_text, prompts_of_dataset, trained_prompts

SYSTEM = {"role": "system", "content": "You are a pirate."}
CHAT = [SYSTEM, {"role": "user", "content": "What is 3 + 4?"}]
LONG_CHAT = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}, CHAT[1]]
STEPS = ["So 3 + 4 = 7.", "The answer is 7."]
ROWS = [{"completions": ["1+1=2", "#2"], "labels": [1.0, 0.0]}]


def model_of(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes))


def make_prm(format="er-prm", kind=None, template=LLAMA_TEMPLATE):
    tokenizer = byte_level_tokenizer(template=template)
    return ProcessRewardModel(model_of(tokenizer), tokenizer, format, prompt_kind=kind)


class TestRead:
    @pytest.mark.parametrize(
        ("kind", "prompt_as", "read"),
        [
            ("text", "auto", "What is 3 + 4?"),
            ("text", "problem", "What is 3 + 4?"),
            ("text", "chat", CHAT),
            ("chat", "auto", CHAT),
            ("chat", "chat", CHAT),
            ("chat", "problem", CHAT[1:]),  # the problem as such a model reads one: as a message
            (None, "auto", CHAT),  # as releases that did not write the kind down
            (None, "problem", "What is 3 + 4?"),
        ],
    )
    def test_chats(self, kind, prompt_as, read):
        reader = make_prm(kind=kind).prompt_reader
        assert reader.read([CHAT], prompt_as) == [read]
        assert reader.read([LONG_CHAT], prompt_as) == [LONG_CHAT if read is CHAT else read]

    @pytest.mark.parametrize(
        ("kind", "prompt_as", "is_message"),
        [
            ("text", "auto", False),
            (None, "auto", False),
            ("chat", "auto", True),
            ("chat", "problem", True),
            (None, "chat", True),
            ("text", "chat", True),
        ],
    )
    def test_texts(self, kind, prompt_as, is_message):
        expected = [{"role": "user", "content": "3 + 4?"}] if is_message else "3 + 4?"
        assert make_prm(kind=kind).prompt_reader.read(["3 + 4?"], prompt_as) == [expected]

    @pytest.mark.parametrize("format", ["qwen2.5-math-prm", "rlhflow"])
    @pytest.mark.parametrize("kind", ["text", "chat"])
    def test_chat_layouts_make_a_message_of_a_text_themselves(self, format, kind):
        assert make_reader(format, kind).read(["3 + 4?"]) == ["3 + 4?"]

    def test_scores_are_those_of_the_problem(self):
        """With the chat template's tokens around the problem, a model trained on text scores something else."""
        prm = make_prm(kind="text")
        expected = prm.score(["What is 3 + 4?"], [STEPS])
        assert prm.score([CHAT], [STEPS]) == expected
        assert prm.score([CHAT], [STEPS], prompt_as="chat")[0] != pytest.approx(expected[0], abs=1e-4)
        of_chats = make_prm(kind="chat")
        assert of_chats.score(["What is 3 + 4?"], [STEPS]) == of_chats.score([CHAT[1:]], [STEPS])
        assert of_chats.score([CHAT], [STEPS])[0] != pytest.approx(expected[0], abs=1e-4)

    def test_the_ending_that_it_was_trained_with(self):
        """A chat has no line break before the solution, and neither has a text from elsewhere."""
        tokenizer = byte_level_tokenizer(template=LLAMA_TEMPLATE)
        reader = PromptReader(formats.FORMATS["trl"], tokenizer, "text", prompt_ending="\n")
        with_break = [{"role": "user", "content": "3 + 4?\n"}]
        for prompt_as in ("auto", "problem"):
            read = reader.read([CHAT, with_break, "3 + 4?", "3 + 4?\n", "3 + 4? "], prompt_as)
            assert read == ["What is 3 + 4?\n", "3 + 4?\n", "3 + 4?\n", "3 + 4?\n", "3 + 4? "]
            assert reader.read(read, prompt_as) == read
        assert reader.read([CHAT], "chat") == [CHAT]
        assert reader.read(["3 + 4?"], "chat") == [[{"role": "user", "content": "3 + 4?"}]]

    def test_a_problem_has_one_score(self):
        tokenizer = byte_level_tokenizer()
        prm = ProcessRewardModel(model_of(tokenizer), tokenizer, "er-prm", prompt_kind="text", prompt_ending="\n")
        text, line, chat, glued = prm.score(
            ["What is 3 + 4?", "What is 3 + 4?\n", CHAT, "What is 3 + 4? "], [STEPS] * 4
        )
        assert text == pytest.approx(line, abs=1e-5) and chat == pytest.approx(line, abs=1e-5)
        assert glued != pytest.approx(line, abs=1e-4)  # the ending does move the scores of this model
        with pytest.raises(ValueError, match="empty"):
            prm.score([""], [STEPS])

    def test_content_blocks(self):
        blocks = [{"type": "image"}, {"type": "text", "text": "3 + "}, {"type": "text", "text": "4?"}]
        assert problem_text([{"role": "user", "content": blocks}]) == "3 + 4?"

    @pytest.mark.parametrize(
        ("chat", "message"),
        [
            (
                [SYSTEM, {"role": "assistant", "content": "7"}],
                "Prompt 1: .*roles 'system', 'assistant' none is the us",
            ),
            ([{"role": "user", "content": ""}], "the user's last message has no text. Give `prompt_as='chat'` if"),
            (["What?"], "must be a text or a list of messages with `role` and `content`, got 'What\\?'"),
        ],
    )
    def test_a_chat_without_a_problem(self, chat, message):
        with pytest.raises(ValueError, match=message):
            make_prm(kind="text").score([CHAT, chat], [STEPS, STEPS])

    def test_misspelt(self):
        with pytest.raises(ValueError, match="`prompt_as` must be one of 'auto', 'chat', 'problem', got 'problems'"):
            make_prm().score([CHAT], [STEPS], prompt_as="problems")
        with pytest.raises(ValueError, match="`prompt_kind` must be one of 'text', 'chat', got 'message'"):
            make_prm(kind="message")


def make_reader(format, kind, template=LLAMA_TEMPLATE):
    return PromptReader(formats.FORMATS[format], byte_level_tokenizer(template=template), kind)


class TestWithoutTemplate:
    def test_of_an_unknown_kind_it_reads_the_problem(self):
        prm = make_prm(template=None)
        assert prm.score([CHAT], [STEPS]) == prm.score(["What is 3 + 4?"], [STEPS])

    def test_chats_cannot_be_read(self):
        with pytest.raises(ValueError, match="it was trained on chat messages\\), but its tokenizer has no chat temp"):
            make_prm(kind="chat", template=None).score(["3 + 4?"], [STEPS])
        with pytest.raises(
            ValueError, match="`prompt_as='chat'` was given\\), but its tokenizer has no chat template"
        ):
            make_prm(template=None).score([CHAT], [STEPS], prompt_as="chat")
        prm = make_prm(kind="chat", template=None)
        assert prm.score([CHAT], [STEPS], prompt_as="problem") == make_prm().score(["What is 3 + 4?"], [STEPS])


class TestLog:
    @pytest.mark.parametrize(
        ("kind", "prompts", "prompt_as", "message", "level"),
        [
            (
                "text",
                [CHAT, "3 + 4?"],
                "auto",
                "was trained on problems as text. Of chats it reads the text",
                "WARNING",
            ),
            ("text", [CHAT], "problem", "Of chats it reads the text of the user's last message", "INFO"),
            ("text", [CHAT], "chat", "It reads chats as they are", "INFO"),
            ("chat", [CHAT], "auto", "was trained on chat messages. It reads chats as they are", "INFO"),
            ("chat", ["3 + 4?"], "auto", "It reads a text as one user message", "WARNING"),
            (
                None,
                [CHAT],
                "auto",
                "does not say whether it was trained on text or on chats. It reads chats",
                "WARNING",
            ),
        ],
    )
    def test_says_once_what_is_read(self, kind, prompts, prompt_as, message, level, caplog):
        reader = make_reader("er-prm", kind)
        with caplog.at_level(logging.INFO):
            for _ in range(3):
                reader.read(prompts, prompt_as)
        [record] = caplog.records
        assert message in record.message and record.levelname == level

    def test_says_nothing_where_texts_are_read_as_texts(self, caplog):
        with caplog.at_level(logging.INFO):
            make_reader("er-prm", "text").read(["3 + 4?"])
            make_reader("er-prm", None).read(["3 + 4?"])
        assert not caplog.records


class TestPublishedFormats:
    """Each was trained on problems as text; a policy's system prompt is nothing that it has seen."""

    @pytest.mark.parametrize("name", list(formats.FORMATS))
    def test_a_chat_is_laid_out_as_the_card_shows_a_problem(self, name):
        template = CHATML_TEMPLATE if name.startswith("qwen") else LLAMA_TEMPLATE
        kinds = {trained_prompts(None, model_id).kind for model_id, of in formats.PUBLIC_MODELS.items() if of == name}
        assert kinds == ({"text"} if name != "er-prm" else set())  # no id of a model in that layout is known
        reader = make_reader(name, "text", template)
        [read] = reader.read([CHAT])
        text = reader.format.render(read, STEPS, reader.tokenizer)
        assert "pirate" not in text
        assert text == reader.format.render("What is 3 + 4?", STEPS, reader.tokenizer)
        if name.startswith("qwen"):  # its own system prompt stands there instead
            assert text.startswith("<|im_start|>system\nPlease reason step by step, and put your final answer within")

    def test_other_models_say_nothing(self, tmp_path):
        assert trained_prompts(None, tmp_path) == trained_prompts(None, None) == TrainedPrompts()
        assert trained_prompts({"format_version": 2}, tmp_path) == TrainedPrompts()  # ours, but older

    def test_ones_own_model_in_a_published_format(self, tmp_path, caplog):
        """The format says how it is laid out, not what it was trained on; a copy of the published model does."""
        for name, kind in (("mine", None), ("math-shepherd-mistral-7b-prm", "text")):
            tokenizer = byte_level_tokenizer()
            model_of(tokenizer).save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)
            prm = ProcessRewardModel.from_pretrained(tmp_path / name, format="math-shepherd")
            assert prm.prompt_kind == kind
            assert not caplog.records  # its format was named: there is nothing to recognize
            assert prm.prompt_reader.read([CHAT]) == ["What is 3 + 4?" if kind == "text" else CHAT]
            [record] = caplog.records
            expected = "problems as text" if kind == "text" else "does not say whether it was trained on text or on"
            assert expected in record.message and record.levelname == "WARNING"
            caplog.clear()

    def test_a_kind_that_is_none(self):
        with pytest.raises(ValueError, match="`prompt_kind` must be one of 'text', 'chat', got 'texts'. Did you mean"):
            trained_prompts({"prompt_kind": "texts"}, "outputs/prm")


class TestSaved:
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls, tmp_path_factory):
        path = save_base(tmp_path_factory.mktemp("base"))
        tokenizer = build_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}={{ m['content'] }}={% endfor %}"
        tokenizer.save_pretrained(path)
        return path

    @pytest.mark.parametrize(
        ("prompt", "kind"), [("1+1\n", "text"), ([{"role": "user", "content": "1+1"}], "chat")], ids=["text", "chat"]
    )
    def test_the_trainer_saves_what_it_was_trained_on(self, base, prompt, kind, tmp_path):
        rows = [{"prompt": prompt, **ROWS[0]}]
        prm_trainer(base, tmp_path / "prm", rows).save_model()
        saved = json.loads((tmp_path / "prm" / "prm_format.json").read_text())
        assert (saved["prompt_kind"], saved["prompt_ending"]) == (kind, "\n" if kind == "text" else "")
        prm = ProcessRewardModel.from_pretrained(tmp_path / "prm")
        assert prm.prompt_kind == kind
        as_trained = prm.format.encode(prm.tokenizer, prompt, ROWS[0]["completions"])
        other = [{"role": "user", "content": "1+1"}] if kind == "text" else "1+1\n"
        [read] = prm.prompt_reader.read([other])
        assert prm.format.encode(prm.tokenizer, read, ROWS[0]["completions"]) == as_trained

    def test_further_training_on_the_other_kind(self, base, tmp_path):
        prm_trainer(base, tmp_path / "first", [{"prompt": "1+1\n", **ROWS[0]}]).save_model()
        chats = [{"prompt": [{"role": "user", "content": "1+1"}], **ROWS[0]}]
        trainer = prm_trainer(str(tmp_path / "first"), tmp_path / "second", chats)
        assert trainer.trained_prompts == TrainedPrompts("chat")
        encoded = prm_trainer(str(tmp_path / "first"), tmp_path / "third", trainer.train_dataset)
        # Token ids do not say it: that of what was loaded.
        assert encoded.trained_prompts == TrainedPrompts("text", "\n")

    def test_of_datasets(self):
        text, chat = {"prompt": "1+1"}, {"prompt": [{"role": "user", "content": "1+1"}]}
        line, lines = {"prompt": "1+1 \n"}, {"prompt": "1\n+1\n\n"}
        for rows, expected in (
            ([text], TrainedPrompts("text")),
            ([line] * 2, TrainedPrompts("text", " \n")),
            ([line, lines], TrainedPrompts("text")),
            ([chat], TrainedPrompts("chat")),
            ([{"input_ids": [1]}], TrainedPrompts()),
        ):
            assert prompts_of_dataset(Dataset.from_list(rows)) == expected
            assert prompts_of_dataset(IterableDataset.from_generator(lambda rows=rows: iter(rows))) == expected
        assert prompts_of_dataset(Dataset.from_dict({"prompt": []})) == TrainedPrompts()
