"""What every engine promises, as one suite: a test class inherits [`EngineContract`] and brings an engine.

All engines run the same tiny policy ([`save_policy`]), in float32: its greedy text is the same everywhere.
"""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_erprm.rollout import Completion, Prefix, PrefixTooLongError, RolloutEngine, SamplingOptions

SPECIAL = ["<pad>", "<bos>", "<eos>", "<end>", "<user>", "<assistant>"]
CHARACTERS = list("0123456789+-*=#abcdefghijklmnopqrstuvwxyz \n")
VOCABULARY = {token: i for i, token in enumerate(SPECIAL + CHARACTERS)}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WINDOW = 128  # tokens


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each character, and a begin-of-sequence token that tokenizer and template both write."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=CHAT_TEMPLATE,
    )


def save_policy(path: Path) -> str:
    """Saves a policy of random weights that every server can load (vLLM wants heads of 64), and its tokenizer.

    It ships sampling defaults, as checkpoints do, which no engine may apply.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=WINDOW,
        initializer_range=0.2,  # wide, so that the distributions over tokens are far from uniform
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=True, top_k=2, repetition_penalty=1.5)
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


USER = {"role": "user", "content": "1+1"}
PREFIXES = [
    Prefix("4*3=", "2\n"),
    Prefix("1+1="),
    Prefix("a much longer prompt 12345\n", "x"),
    Prefix("7"),
    Prefix("1+1="),
    Prefix(""),
    Prefix([USER]),
    Prefix([USER], "2\n"),  # in the middle of an answer, behind a line end
    Prefix([USER, {"role": "assistant", "content": "so"}], " 2"),  # an assistant's message that is continued
]
# The texts that a model reads for them.
TEXTS = [
    "<bos>4*3=2\n",
    "<bos>1+1=",
    "<bos>a much longer prompt 12345\nx",
    "<bos>7",
    "<bos>1+1=",
    "<bos>",
    "<bos><user>1+1<end><assistant>",
    "<bos><user>1+1<end><assistant>2\n",
    "<bos><user>1+1<end><assistant>so 2",
]


def options(max_new_tokens: int = 12, **changes) -> SamplingOptions:
    return SamplingOptions(max_new_tokens, **changes)


def flat(rows: list[list[Completion]]) -> list[Completion]:
    return [completion for row in rows for completion in row]


class EngineContract:
    """Needs the fixtures `engine` and `policy` (the directory that [`save_policy`] wrote)."""

    def test_it_is_an_engine(self, engine):
        assert isinstance(engine, RolloutEngine)

    def test_no_prefixes_no_completions(self, engine):
        assert engine.generate([], 4, options()) == []

    def test_shape_types_and_lengths(self, engine):
        result = engine.generate(PREFIXES, 3, options())
        assert [len(of_prefix) for of_prefix in result] == [3] * len(PREFIXES)
        for completion in flat(result):
            assert isinstance(completion, Completion)
            assert 1 <= completion.num_tokens <= 12 and len(completion.text) <= completion.num_tokens
            assert completion.finish_reason in ("stop", "length")
            assert completion.num_tokens == 12 or completion.finish_reason == "stop"

    def test_greedy_text_is_that_of_transformers(self, engine, policy):
        """Of the right prefix, to the token: rendering, special tokens and order are all in it."""
        model = LlamaForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
        result = engine.generate(PREFIXES, 2, options(temperature=0))
        for text, completions in zip(TEXTS, result, strict=True):
            ids = make_tokenizer()(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            written: list[int] = []
            with torch.no_grad():
                while len(written) < 12 and (not written or written[-1] != 2):
                    whole = torch.cat([ids, torch.tensor([written], dtype=torch.long)], dim=1)
                    written.append(int(model(input_ids=whole).logits[0, -1].argmax()))
            is_ended = written[-1] == 2
            expected = make_tokenizer().decode(written, skip_special_tokens=True)
            assert completions == [Completion(expected, len(written), "stop" if is_ended else "length")] * 2

    def test_equal_prefixes_equal_samples(self, engine):
        result = engine.generate(PREFIXES, 3, options())
        assert result[1] == result[4]

    def test_samples_seeds_and_prefixes_differ(self, engine):
        samples = engine.generate([Prefix("1+1=")], 8, options())[0]
        assert len({completion.text for completion in samples}) > 4
        assert engine.generate([Prefix("1+1=")], 8, options(seed=1))[0] != samples
        assert engine.generate([Prefix("1+1", "=")], 8, options())[0] != samples  # the same text, divided otherwise

    def test_a_sample_does_not_depend_on_the_others(self, engine):
        together = engine.generate(PREFIXES, 3, options())
        assert engine.generate(PREFIXES[::-1], 3, options()) == together[::-1]
        assert engine.generate([PREFIXES[2]], 3, options()) == [together[2]]
        assert engine.generate(PREFIXES, 3, options()) == together

    def test_further_samples_continue_the_first(self, engine):
        prefixes = PREFIXES[:3]
        first = engine.generate(prefixes, 2, options())
        rest = engine.generate(prefixes, 3, options(), first_sample=2)
        assert [a + b for a, b in zip(first, rest, strict=True)] == engine.generate(prefixes, 5, options())

    def test_the_options_alone_decide(self, engine):
        """The checkpoint asks for top-k 2 and a repetition penalty."""
        drawn = {c.text for c in engine.generate([Prefix("1+1=")], 24, options(1))[0]}
        assert len(drawn) > 4
        assert len({c.text for c in engine.generate([Prefix("1+1=")], 12, options(1, temperature=0.01))[0]}) == 1

    def test_top_p(self, engine):
        assert len({c.text for c in engine.generate([Prefix("1+1=")], 12, options(1, top_p=0.01))[0]}) == 1

    def test_stop_text(self, engine):
        [long] = engine.generate([Prefix("1+1=")], 1, options(temperature=0))
        text = long[0].text
        assert len(text) >= 8
        stop = (text[5:7], "no such text")
        [[cut]] = engine.generate([Prefix("1+1=")], 1, options(temperature=0, stop=stop))
        assert (cut.text, cut.num_tokens, cut.finish_reason) == (text[: text.index(stop[0])], 7, "stop")
        assert cut.stop_text in (stop[0], None)  # not every server says what it stopped at
        assert long[0].stop_text is None
        # the first one in the text wins, whatever the order
        several = (text[7], *"ABCDEFG", text[3:5])
        [[cut]] = engine.generate([Prefix("1+1=")], 1, options(temperature=0, stop=several))
        assert cut.text == text[: min(text.index(text[7]), text.index(text[3:5]))] and cut.finish_reason == "stop"

    def test_white_space_is_kept(self, engine, policy):
        for completion in flat(engine.generate(PREFIXES, 6, options(3))):
            if completion.finish_reason == "length" and completion.text[:1] in (" ", "\n"):
                return
        raise AssertionError("no completion begins with white space; ask for more")

    def test_a_prefix_that_does_not_fit(self, engine):
        long = Prefix("1" * (WINDOW - 12))  # and a begin-of-sequence token
        assert len(engine.generate([Prefix("1" * (WINDOW - 13))], 1, options())[0]) == 1
        message = rf"Prefix 1 has {WINDOW - 11} tokens, and at most {WINDOW - 12} fit: .* \(1 other prefixes do not"
        with pytest.raises(PrefixTooLongError, match=message) as caught:
            engine.generate([Prefix("1"), long, Prefix("2"), long], 1, options())
        assert caught.value.indices == [1, 3]

    def test_bad_requests(self, engine):
        with pytest.raises(ValueError, match="`num_samples` must be a whole number from 1 up, got 0"):
            engine.generate([Prefix("1")], 0, options())
        with pytest.raises(TypeError, match="`prefixes` must be a list of Prefix, got one str"):
            engine.generate("1", 1, options())

    def test_no_chat_template(self, engine, monkeypatch):
        monkeypatch.setattr(engine.tokenizer, "chat_template", None)
        with pytest.raises(ValueError, match="Prefix 1 holds messages, and the tokenizer has no chat template. Set"):
            engine.generate([Prefix("1"), Prefix([USER])], 1, options())
