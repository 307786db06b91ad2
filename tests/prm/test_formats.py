"""`trl_erprm.prm.formats`: the one path from text to token ids and step ends."""

import dataclasses
import json
import random
import unicodedata

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizer, Qwen3Config, Qwen3ForCausalLM

from tests.tokenizers import (
    CHATML_TEMPLATE,
    LLAMA_TEMPLATE,
    byte_level_tokenizer,
    merging_tokenizer,
    sentencepiece_tokenizer,
)
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.prm.formats import (
    ER_PRM,
    FORMATS,
    MATH_SHEPHERD,
    PUBLIC_MODELS,
    QWEN_MATH_PRM,
    RLHFLOW,
    SKYWORK_O1,
    TRL_TOKEN_CLASSIFICATION,
    EncodedSolution,
    PRMFormat,
    load_format,
)
from trl_erprm.prm.heads import step_log_odds

PIECES = dataclasses.replace(MATH_SHEPHERD, tokenization="pieces")
ARITHMETIC = dataclasses.replace(PIECES, step_tag="ки", prompt_separator="\n")

TOKENIZERS = {
    "byte_level": byte_level_tokenizer,
    "byte_level_split_tag": lambda: byte_level_tokenizer(knows_tag=False),
    "sentencepiece": sentencepiece_tokenizer,
}

PROBLEMS = [
    ("How many apples has Janet?", ["Step 1: She has 3 + 4 = 7 apples.", "Step 2: So 7 - 2 = 5.", "The answer is: 5"]),
    ("Is $x$ 12?", ["x + y = 12", "- so x is 3,\nand y is 9", "(then) no."]),
    ("1+1?", ["2"]),
]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def question(content):
    return [{"role": "user", "content": content}]


class TestRender:
    def test_by_hand(self):
        assert TRL_TOKEN_CLASSIFICATION.render("1+1?", ["1+1=2", "So 2."]) == "1+1?1+1=2\nSo 2.\n"
        assert MATH_SHEPHERD.render("1+1?", ["1+1=2", "So 2."]) == "1+1? 1+1=2 ки\nSo 2. ки"
        assert ER_PRM.render("1+1?", ["1+1=2", "So 2."]) == "1+1? 1+1=2 киSo 2. ки"
        assert ER_PRM.render("1+1?", ["1+1=2"]) == "1+1? 1+1=2 ки"
        assert SKYWORK_O1.render("1+1?", ["1+1=2", "So 2."]) == "1+1?\n1+1=2\nSo 2.\n"

    def test_chat_layouts_by_hand(self):
        tokenizer = byte_level_tokenizer(template=CHATML_TEMPLATE)
        assert QWEN_MATH_PRM.render("1+1?", ["1+1=2", "So 2."], tokenizer) == (
            "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
            "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n1+1=2<extra_0>So 2.<extra_0>"
        )
        assert RLHFLOW.render("1+1?", ["1+1=2", "So 2."], tokenizer) == (
            "<|im_start|>user\n1+1? 1+1=2<|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n"
            "<|im_start|>user\nSo 2.<|im_end|>\n<|im_start|>assistant\n+"
        )

    def test_each_field_moves_the_text(self):
        changed = PRMFormat("x", "token_classification", step_tag="T", step_joiner="J", prompt_separator="S")
        assert changed.render("p", ["a", "b"]) == "pSaTJbT"
        tokenizer = byte_level_tokenizer(
            template="{% for m in messages %}[{{ m['role'] }}:{{ m['content'] }}]{% endfor %}"
        )
        assistant = dataclasses.replace(changed, layout="assistant_message", tokenization="joint", system_prompt="Y")
        assert assistant.render("p", ["a", "b"], tokenizer) == "[system:Y][user:p][assistant:SaTJbT"
        labels = {"positive_token": "P", "negative_token": "N"}
        turns = dataclasses.replace(assistant, layout="turns", head="causal_lm", **labels)
        assert turns.render("p", ["a", "b"], tokenizer) == "[system:Y][user:pSa][assistant:P][user:b][assistant:P"

    @pytest.mark.parametrize("format", [QWEN_MATH_PRM, dataclasses.replace(RLHFLOW, system_prompt="Judge.")])
    def test_a_text_prompt_is_a_user_message(self, format):
        tokenizer = byte_level_tokenizer(template=CHATML_TEMPLATE)
        text = format.render("1+1?", ["2"], tokenizer)
        assert text.startswith(f"<|im_start|>system\n{format.system_prompt}<|im_end|>")
        messages = question("1+1?")
        assert format.render(messages, ["2"], tokenizer) == text and messages == question("1+1?")
        own = [{"role": "system", "content": "Mine."}, *question("1+1?")]
        assert format.render(own, ["2"], tokenizer) == text.replace(format.system_prompt, "Mine.")
        assert own == [{"role": "system", "content": "Mine."}, *question("1+1?")]


class TestEncode:
    def test_by_hand(self):
        tokenizer = build_tokenizer()
        encoded = TRL_TOKEN_CLASSIFICATION.encode(tokenizer, "3+4*2\n", ["3+4=2", "#2"])
        # 3 +4 *2 \n | 3 +4= 2 \n | # 2 \n
        assert tokenizer.convert_ids_to_tokens(encoded.input_ids) == [
            "3", "+4", "*2", "\u010a", "3", "+4=", "2", "\u010a", "#", "2", "\u010a"
        ]  # fmt: skip
        assert encoded.step_ends == [7, 10]
        assert encoded.num_dropped_steps == 0

    @pytest.mark.parametrize(
        "format", [TRL_TOKEN_CLASSIFICATION, ARITHMETIC, dataclasses.replace(ARITHMETIC, tokenization="joint")]
    )
    def test_text_comes_back_and_steps_are_tags(self, format):
        tokenizer = build_tokenizer()
        steps = ["3+4=2", "2*2=4", "#4"]
        encoded = format.encode(tokenizer, "3+4*2\n", steps)
        assert tokenizer.decode(encoded.input_ids) == format.render("3+4*2\n", steps)
        [tag_id] = ids(tokenizer, format.step_tag)
        assert [encoded.input_ids[end] for end in encoded.step_ends] == [tag_id] * 3
        assert encoded.step_ends[-1] == len(encoded.input_ids) - 1

    def test_pieces_are_tokenized_alone(self):
        """Jointly, the tag would merge with the full stop before it, and its token with it."""
        tokenizer = merging_tokenizer()
        assert len(ids(tokenizer, "a. ки")) == 2
        encoded = PIECES.encode(tokenizer, "a", ["b."])
        pieces = [ids(tokenizer, text) for text in ("a ", "b.", " ки")]
        assert encoded.input_ids == [i for piece in pieces for i in piece]
        assert ids(tokenizer, "a b. ки") != encoded.input_ids
        assert encoded.step_ends == [len(encoded.input_ids) - 1]

    def test_joint_is_the_whole_text_at_once(self):
        """Here the end of the prompt merges with the step; on their own they would be two tokens."""
        tokenizer = merging_tokenizer()
        format = dataclasses.replace(MATH_SHEPHERD, prompt_separator="")
        encoded = format.encode(tokenizer, "a", ["b", "c"])
        assert encoded.input_ids == ids(tokenizer, "ab ки\nc ки")
        assert tokenizer.convert_ids_to_tokens(encoded.input_ids) == ["ab", *" ки", "\n", "c", *" ки"]
        assert encoded.step_ends == [3, 8]

    def test_a_tag_of_several_tokens_is_read_at_its_last(self):
        tokenizer = build_tokenizer()
        format = dataclasses.replace(TRL_TOKEN_CLASSIFICATION, step_tag="\n#\n")
        for tokenization in ("pieces", "joint"):
            encoded = dataclasses.replace(format, tokenization=tokenization).encode(tokenizer, "3\n", ["3+4=2", "2"])
            assert encoded.step_ends == [2 + 3 + 2, 2 + 6 + 3]

    @pytest.mark.parametrize("format", [TRL_TOKEN_CLASSIFICATION, PIECES])
    def test_a_further_step_changes_nothing_before_it(self, format):
        tokenizer = merging_tokenizer()
        steps = ["a.", "b. ", "\nab", "c\n", "."]
        whole = format.encode(tokenizer, "ab\n", steps)
        for k in range(1, 6):
            prefix = format.encode(tokenizer, "ab\n", steps[:k])
            assert whole.input_ids[: len(prefix.input_ids)] == prefix.input_ids
            assert whole.step_ends[:k] == prefix.step_ends

    @pytest.mark.parametrize("format", [PIECES, ER_PRM])
    def test_beginning_of_sequence(self, format):
        with_bos, without = merging_tokenizer(bos=True), merging_tokenizer()
        first, second = (format.encode(t, "ab", ["c"]) for t in (with_bos, without))
        assert first.input_ids == [with_bos.bos_token_id, *second.input_ids]
        assert first.step_ends == [end + 1 for end in second.step_ends]

    def test_a_chat_template_brings_its_own_beginning_of_sequence(self):
        tokenizer = byte_level_tokenizer()
        for format in (QWEN_MATH_PRM, RLHFLOW):
            input_ids = format.encode(tokenizer, "ab", ["c", "d"]).input_ids
            assert input_ids[0] == tokenizer.bos_token_id and input_ids.count(tokenizer.bos_token_id) == 1

    @pytest.mark.parametrize("format", [PIECES, ER_PRM])
    def test_messages(self, format):
        """The template brings its own beginning-of-sequence token; the separator is its business, too."""
        tokenizer = merging_tokenizer(bos=True)
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}c{% endif %}"
        )
        encoded = format.encode(tokenizer, question("ab"), ["b"])
        expected = [tokenizer.bos_token_id, *ids(tokenizer, "ab\nc"), *ids(tokenizer, "b"), *ids(tokenizer, " ки")]
        assert encoded.input_ids == expected
        assert encoded.step_ends == [len(expected) - 1]
        assert format.render(question("ab"), ["b"], tokenizer) == "<s>ab\ncb ки"

    @pytest.mark.parametrize(
        "format, prompt", [(ER_PRM, question("ab")), (PIECES, question("ab")), (QWEN_MATH_PRM, "ab"), (RLHFLOW, "ab")]
    )
    def test_messages_without_a_template(self, format, prompt):
        message = "The solution is laid out as chat messages, but the tokenizer has no chat template."
        with pytest.raises(ValueError, match=message):
            format.encode(merging_tokenizer(), prompt, ["b"])
        with pytest.raises(ValueError, match=message):
            format.render(prompt, ["b"])

    def test_turns_that_cannot_be(self):
        tokenizer = byte_level_tokenizer()
        prompt = [*question("ab"), {"role": "assistant", "content": "c"}]
        with pytest.raises(
            ValueError, match="the prompt ends with one of 'assistant'. End it with the problem as a user"
        ):
            RLHFLOW.encode(tokenizer, prompt, ["b"])
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
        )
        with pytest.raises(ValueError, match="The chat template writes 0 answers for 2 steps."):
            RLHFLOW.encode(tokenizer, "ab", ["b", "c"])

    @pytest.mark.parametrize("max_length, kept", [(4, 0), (7, 0), (8, 1), (10, 1), (11, 1), (12, 2), (15, 3), (99, 3)])
    @pytest.mark.parametrize("tokenization", ["pieces", "joint"])
    def test_max_length_drops_whole_steps_and_counts(self, tokenization, max_length, kept):
        format = dataclasses.replace(TRL_TOKEN_CLASSIFICATION, tokenization=tokenization)
        tokenizer = build_tokenizer()
        steps = ["3+4=2", "2*2=4", "#4"]
        encoded = format.encode(tokenizer, "3+4*2\n", steps, max_length)
        assert len(encoded.step_ends) == kept and encoded.num_dropped_steps == 3 - kept
        if kept:
            assert encoded.input_ids == format.encode(tokenizer, "3+4*2\n", steps[:kept]).input_ids
        else:
            assert encoded.input_ids == format.encode(tokenizer, "3+4*2\n", steps).input_ids[:max_length]

    @pytest.mark.parametrize("format", [QWEN_MATH_PRM, RLHFLOW, MATH_SHEPHERD])
    def test_every_max_length(self, format):
        """A step is kept exactly where the position it is read at is; nothing behind the last of them is."""
        tokenizer = byte_level_tokenizer(knows_tag=False)
        prompt, steps = PROBLEMS[0]
        whole = format.encode(tokenizer, prompt, steps)
        assert whole.step_ends[-1] == len(whole.input_ids) - 1
        for max_length in range(1, len(whole.input_ids) + 1):
            kept = [end for end in whole.step_ends if end + 1 <= max_length]
            length = kept[-1] + 1 if kept else max_length
            expected = EncodedSolution(whole.input_ids[:length], kept, num_dropped_steps=3 - len(kept))
            assert format.encode(tokenizer, prompt, steps, max_length) == expected

    def test_a_short_step_behind_a_long_one_is_dropped_too(self):
        """Else it would be scored behind a prefix that was never written."""
        tokenizer = build_tokenizer()
        encoded = TRL_TOKEN_CLASSIFICATION.encode(tokenizer, "3\n", ["1", "1+1+1+1+1+1+1+1", "1"], max_length=8)
        assert encoded == EncodedSolution(ids(tokenizer, "3\n1\n"), [3], num_dropped_steps=2)

    @pytest.mark.parametrize(
        "prompt, steps, message",
        [
            ("", ["a"], "^The prompt is empty."),
            ([], ["a"], "^The prompt is empty."),
            ("p", [], "^The list of steps is empty"),
            ("p", ["a", " \n"], r"^Step 1 of 2 is empty \(' \\n'\)"),
        ],
    )
    @pytest.mark.parametrize("format", list(FORMATS.values()), ids=list(FORMATS))
    def test_what_cannot_be_encoded(self, format, prompt, steps, message):
        with pytest.raises(ValueError, match=message):
            format.encode(byte_level_tokenizer(), prompt, steps)

    @pytest.mark.parametrize("format", list(FORMATS.values()), ids=list(FORMATS))
    def test_a_batch_is_its_solutions(self, format):
        """Of text and messages side by side, with and without a limit; and an empty one."""
        tokenizer = byte_level_tokenizer()
        prompts = [*(prompt for prompt, _ in PROBLEMS), question("Is $x$ 12?"), PROBLEMS[0][0]]
        solutions = [*(steps for _, steps in PROBLEMS), PROBLEMS[1][1], ["ок", "Step 2"]]
        for max_length in (None, 20):
            batch = format.encode_batch(tokenizer, prompts, solutions, max_length)
            assert batch == [
                format.encode(tokenizer, *pair, max_length) for pair in zip(prompts, solutions, strict=True)
            ]
        assert format.encode_batch(tokenizer, [], []) == []

    def test_errors_in_a_batch_name_the_solution(self):
        with pytest.raises(ValueError, match="^Solution 1: Step 0 of 1 is empty"):
            PIECES.encode_batch(merging_tokenizer(), ["a", "b"], [["a"], [" "]])
        with pytest.raises(ValueError, match="^Row 1, the tag ' ки' of step 1 merges"):
            MATH_SHEPHERD.encode_batch(
                merging_tokenizer(), ["a", "b"], [["a"], ["c", "b."]], name_solution=lambda i: f"Row {i}, "
            )
        with pytest.raises(ValueError, match="shorter"):
            PIECES.encode_batch(merging_tokenizer(), ["a", "b"], [["a"]])


class TestAsPublished:
    """
    Ids and positions against the published way of each model, written here anew; and scores, through random weights.
    """

    @pytest.mark.parametrize("prompt, steps", PROBLEMS)
    @pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
    def test_trl(self, make, prompt, steps):
        tokenizer = make()
        input_ids, positions = [tokenizer.bos_token_id, *ids(tokenizer, prompt)], []
        for step in steps:
            input_ids += ids(tokenizer, step) + tokenizer.encode("\n", add_special_tokens=False)
            positions.append(len(input_ids) - 1)
        assert TRL_TOKEN_CLASSIFICATION.encode(tokenizer, prompt, steps) == EncodedSolution(input_ids, positions)

    @pytest.mark.parametrize("prompt, steps", PROBLEMS)
    @pytest.mark.parametrize("bos", [True, False])
    def test_skywork(self, bos, prompt, steps):
        tokenizer = byte_level_tokenizer(bos=bos)
        input_ids, flags = ids(tokenizer, (tokenizer.bos_token or "") + prompt + "\n"), []
        flags += [0] * len(input_ids)
        for step in steps:
            step_ids = ids(tokenizer, step) + [ids(tokenizer, "\n")[-1]]
            input_ids += step_ids
            flags += [0] * (len(step_ids) - 1) + [1]
        encoded = SKYWORK_O1.encode(tokenizer, prompt, steps)
        assert encoded == EncodedSolution(input_ids, [i for i, flag in enumerate(flags) if flag])

    @pytest.mark.parametrize("prompt, steps", PROBLEMS)
    def test_qwen_math_prm(self, prompt, steps):
        tokenizer = byte_level_tokenizer(bos=False, template=CHATML_TEMPLATE)
        messages = [
            {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ]
        input_ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
        [tag_id] = tokenizer.encode("<extra_0>")
        positions = [i for i, token in enumerate(input_ids) if token == tag_id]
        encoded = QWEN_MATH_PRM.encode(tokenizer, prompt, steps)
        assert encoded == EncodedSolution(input_ids[: positions[-1] + 1], positions)  # what follows is never read

    @pytest.mark.parametrize("make", [sentencepiece_tokenizer, lambda: byte_level_tokenizer(knows_tag=False)])
    @pytest.mark.parametrize(
        "format, between, labels", [(MATH_SHEPHERD, " ки\n", ("+", "-")), (ER_PRM, " ки", (" +", " -"))]
    )
    def test_math_shepherd_and_er_prm(self, format, between, labels, make):
        tokenizer = make()
        model = llama(tokenizer)
        candidates = [tokenizer.encode(label)[-1] for label in labels]
        tag_id = tokenizer.encode("ки")[-1]
        for prompt, steps in PROBLEMS:
            output = between.join(steps) + " ки"
            input_ids = tokenizer(f"{prompt} {output}")["input_ids"]
            positions = [i for i, token in enumerate(input_ids) if token == tag_id]
            encoded = format.encode(tokenizer, prompt, steps)
            assert encoded == EncodedSolution(input_ids, positions)
            with torch.no_grad():
                logits = model(torch.tensor([input_ids])).logits[0][:, candidates]
            expected = logits.softmax(-1)[positions, 0]
            torch.testing.assert_close(our_scores(model, tokenizer, format, encoded), expected, rtol=0, atol=1e-5)
        assert format.label_token_ids(tokenizer) == tuple(candidates)

    def test_the_label_tokens_of_math_shepherd_are_read_from_one_text(self):
        """Its model card encodes "+ -" and leaves out the beginning of the sequence; in SentencePiece that is both."""
        tokenizer = sentencepiece_tokenizer()
        assert MATH_SHEPHERD.label_token_ids(tokenizer) == tuple(tokenizer.encode("+ -")[1:])

    @pytest.mark.parametrize("make_model", ["llama", "qwen3"])
    @pytest.mark.parametrize("knows_tag", [True, False])
    def test_rlhflow(self, make_model, knows_tag):
        """One forward pass a step there, one for all here."""
        tokenizer = byte_level_tokenizer(knows_tag=knows_tag, template=LLAMA_TEMPLATE)
        model = {"llama": llama, "qwen3": qwen3}[make_model](tokenizer)
        candidates = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]
        for prompt, steps in [*PROBLEMS, ("A + B? ", [" It is + ", "\n+", "+\n\n"])]:
            encoded = RLHFLOW.encode(tokenizer, prompt, steps)
            conversation, expected = [], []
            for k, step in enumerate(steps):
                text = prompt + " " + step if k == 0 else step
                conversation += [{"role": "user", "content": text}, {"role": "assistant", "content": "+"}]
                input_ids = ids(tokenizer, tokenizer.apply_chat_template(conversation, tokenize=False))
                assert tokenizer.convert_ids_to_tokens(input_ids[-2:]) == ["+", "<|eot_id|>"]
                assert encoded.input_ids[: encoded.step_ends[k] + 1] == input_ids[:-2]
                with torch.no_grad():
                    logits = model(torch.tensor([input_ids])).logits[0, -3, candidates]
                expected.append(logits.softmax(-1)[0])
            scores = our_scores(model, tokenizer, RLHFLOW, encoded)
            torch.testing.assert_close(scores, torch.stack(expected), rtol=0, atol=1e-5)
            assert scores.unique().numel() == len(steps)  # else the comparison would show little
            assert RLHFLOW.encode(tokenizer, question(prompt), steps) == encoded

    def test_public_models_name_known_formats(self):
        assert set(PUBLIC_MODELS.values()) <= set(FORMATS)
        assert PUBLIC_MODELS["peiyi9979/math-shepherd-mistral-7b-prm"] == "math-shepherd"


def llama(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(**_sizes(tokenizer))
    return LlamaForCausalLM(config).eval()


def qwen3(tokenizer):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**_sizes(tokenizer), head_dim=8)).eval()


def _sizes(tokenizer):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }


def our_scores(model, tokenizer, format, encoded):
    input_ids = torch.tensor([encoded.input_ids])
    is_step_end = torch.zeros_like(input_ids, dtype=torch.bool)
    is_step_end[0, encoded.step_ends] = True
    with torch.no_grad():
        inputs = {"input_ids": input_ids}
        return step_log_odds(model, inputs, is_step_end, format.label_token_ids(tokenizer)).sigmoid()


FRAGMENTS = [
    *"abS012.=()$+-\n ", "ки", " ки", "ки\n", "кии", "к", "и", "Ш", "é", "e\u0301", "\u0306", "数", "🙂", "ﬁ", " + ",
    "\n\n", "  ", "Step 2", "So", " x", "\\[", "answer", "\t", "\u00a0b",
]  # fmt: skip
SPECIAL_FRAGMENTS = ["<extra_0>", "<|eot_id|>", "<s>", "<|im_end|>"]


def random_solutions(seed, fragments, num_solutions=60):
    generator = random.Random(seed)

    def text():
        while True:
            written = "".join(generator.choices(fragments, k=generator.randint(1, 8)))
            if written.strip():
                return written

    return [(text(), [text() for _ in range(generator.randint(1, 5))]) for _ in range(num_solutions)]


class TestRandomSolutions:
    """Whatever the text: as many step ends as steps, each at the right place, or an error that says why not."""

    @pytest.mark.parametrize("tokenizer", list(TOKENIZERS))
    @pytest.mark.parametrize("format", [TRL_TOKEN_CLASSIFICATION, SKYWORK_O1, PIECES], ids=lambda format: format.name)
    def test_pieces(self, format, tokenizer):
        tokenizer = TOKENIZERS[tokenizer]()
        tag_ids = ids(tokenizer, format.step_tag)
        for prompt, steps in random_solutions(1, FRAGMENTS + SPECIAL_FRAGMENTS):
            encoded = format.encode(tokenizer, prompt, steps)
            assert len(encoded.step_ends) == len(steps) and encoded.num_dropped_steps == 0
            starts = [
                len(ids(tokenizer, prompt + format.prompt_separator)) + 1,
                *(end + 1 for end in encoded.step_ends),
            ]
            for k, (start, end) in enumerate(zip(starts, encoded.step_ends, strict=False)):
                written = (format.step_joiner if k else "") + steps[k]
                assert encoded.input_ids[start : end + 1] == ids(tokenizer, written) + tag_ids
                prefix = format.encode(tokenizer, prompt, steps[: k + 1])
                assert prefix == EncodedSolution(encoded.input_ids[: end + 1], encoded.step_ends[: k + 1])
            assert starts[-1] == len(encoded.input_ids)

    @pytest.mark.parametrize("tokenizer", list(TOKENIZERS))
    @pytest.mark.parametrize(
        "format",
        [
            MATH_SHEPHERD,
            ER_PRM,
            dataclasses.replace(PIECES, name="newline", tokenization="joint", step_tag="\n", step_joiner=""),
        ],
        ids=lambda format: format.name,
    )
    def test_joint(self, format, tokenizer):
        """The tokens as far as a step end are the text as far as its tag, and no more."""
        tokenizer = TOKENIZERS[tokenizer]()
        num_errors = 0
        solutions = random_solutions(2, FRAGMENTS)
        for prompt, steps in solutions:
            try:
                encoded = format.encode(tokenizer, prompt, steps)
            except ValueError as error:
                assert "merges with its neighbours in this tokenizer" in str(error)
                num_errors += 1
                continue
            assert len(encoded.step_ends) == len(steps)
            for k, end in enumerate(encoded.step_ends):
                read = decode(tokenizer, encoded.input_ids[1 : end + 1])
                assert read == written(tokenizer, format.render(prompt, steps[: k + 1]))
        assert num_errors < len(solutions) / 2
        if format is MATH_SHEPHERD:
            assert num_errors == 0  # its newline shields the tag from what follows in all of these

    @pytest.mark.parametrize("knows_tag", [True, False])
    @pytest.mark.parametrize("template", [LLAMA_TEMPLATE, CHATML_TEMPLATE])
    def test_turns(self, template, knows_tag):
        """The tokens as far as a step end are the conversation as far as the answer begins, and the answer is next."""
        tokenizer = byte_level_tokenizer(knows_tag=knows_tag, template=template)
        positive, _ = RLHFLOW.label_token_ids(tokenizer)
        for prompt, steps in random_solutions(3, FRAGMENTS + SPECIAL_FRAGMENTS):
            encoded = RLHFLOW.encode(tokenizer, prompt, steps)
            assert len(encoded.step_ends) == len(steps)
            conversation = []
            for k, end in enumerate(encoded.step_ends):
                conversation.append({"role": "user", "content": (prompt + " " if k == 0 else "") + steps[k]})
                text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
                assert decode(tokenizer, encoded.input_ids[: end + 1]) == written(tokenizer, text)
                assert encoded.input_ids[end + 1 : end + 2] == [positive] * (k + 1 < len(steps))
                conversation.append({"role": "assistant", "content": "+"})

    @pytest.mark.parametrize("tokenizer", list(TOKENIZERS))
    def test_assistant_message(self, tokenizer):
        """Also where a step holds the tag's text: that one is not the step's end."""
        tokenizer = TOKENIZERS[tokenizer]()
        tokenizer.chat_template = CHATML_TEMPLATE
        [tag_id] = ids(tokenizer, "<extra_0>")
        for prompt, steps in random_solutions(4, FRAGMENTS + SPECIAL_FRAGMENTS):
            encoded = QWEN_MATH_PRM.encode(tokenizer, prompt, steps)
            assert len(encoded.step_ends) == len(steps)
            for k, end in enumerate(encoded.step_ends):
                assert encoded.input_ids[end] == tag_id
                written_so_far = QWEN_MATH_PRM.render(prompt, steps[: k + 1], tokenizer)
                assert encoded.input_ids[: end + 1] == ids(tokenizer, written_so_far)

    def test_a_tag_that_merges_is_always_an_error(self):
        """In this tokenizer ". ки" is one token, and that alone makes a tag merge."""
        tokenizer = merging_tokenizer()
        solutions = random_solutions(5, [*"abc.+- \n", "ки", " ки", ". ", ".."], num_solutions=200)
        num_errors = 0
        for prompt, steps in solutions:
            merged = [k for k, step in enumerate(steps) if step.endswith(".")]
            if merged:
                with pytest.raises(ValueError, match=f"^the tag ' ки' of step {merged[0]} merges with its neighbours"):
                    MATH_SHEPHERD.encode(tokenizer, prompt, steps)
                num_errors += 1
            else:
                encoded = MATH_SHEPHERD.encode(tokenizer, prompt, steps)
                for k, end in enumerate(encoded.step_ends):
                    assert decode(tokenizer, encoded.input_ids[: end + 1]) == MATH_SHEPHERD.render(
                        prompt, steps[: k + 1]
                    )
                assert len(encoded.step_ends) == len(steps)
        assert 50 < num_errors < 150


def decode(tokenizer, input_ids):
    return tokenizer.decode(input_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def written(tokenizer, text):
    """A text as the tokenizer reads it."""
    is_byte_level = tokenizer.convert_tokens_to_ids("▁") in (None, tokenizer.unk_token_id)
    return unicodedata.normalize("NFC", text) if is_byte_level else text


class TestTokenizerChecks:
    def test_fitting(self):
        TRL_TOKEN_CLASSIFICATION.check_tokenizer(build_tokenizer())
        ARITHMETIC.check_tokenizer(build_tokenizer())
        tokenizer = build_tokenizer()
        assert ARITHMETIC.label_token_ids(tokenizer) == (ids(tokenizer, "+")[0], ids(tokenizer, "-")[0])

    @pytest.mark.parametrize("tokenizer", list(TOKENIZERS))
    @pytest.mark.parametrize("format", list(FORMATS.values()), ids=list(FORMATS))
    def test_the_known_formats_fit_the_common_kinds(self, format, tokenizer):
        """So does every pair of probes, one by one, in the format that is tokenized jointly."""
        tokenizer = TOKENIZERS[tokenizer]()
        format.check_tokenizer(tokenizer)
        if format.head == "causal_lm":
            labels = [tokenizer.decode([i]).strip() for i in format.label_token_ids(tokenizer)]
            assert labels == ["+", "-"]

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"step_tag": "@"}, "The step tag '@' is not in the tokenizer's vocabulary"),
            ({"positive_token": "+-"}, "`positive_token` '[+]-' must be exactly one known token, but .* gives .*,"),
            ({"negative_token": "@"}, "`negative_token` '@' must be exactly one known token"),
            ({"positive_token": "-"}, "The label tokens '-' and '-' are one and the same token"),
        ],
    )
    @pytest.mark.parametrize("tokenization", ["pieces", "joint"])
    def test_unfitting(self, tokenization, changes, message):
        format = dataclasses.replace(ARITHMETIC, tokenization=tokenization, **changes)
        with pytest.raises(ValueError, match=message):
            format.check_tokenizer(build_tokenizer())

    def test_a_tag_with_an_unknown_token(self):
        with pytest.raises(ValueError, match="The step tag '.z' is not in the tokenizer's vocabulary"):
            dataclasses.replace(ER_PRM, step_tag=".z").check_tokenizer(merging_tokenizer())
        with pytest.raises(ValueError, match="The step tag '<extra_0>' is not in the tokenizer's vocabulary"):
            QWEN_MATH_PRM.check_tokenizer(merging_tokenizer())

    def test_a_tag_that_merges(self):
        """Found before any data: a step that ends with a full stop, and where it is."""
        tokenizer = merging_tokenizer()
        message = (
            "^Between steps that end with '[.]' and begin with 'Step 2', the tag ' ки' of step 0 merges with its "
            r"neighbours in this tokenizer \(around '1 [+] 1[?] [.] ки\\nStep 2 ки'\), so the step would have no "
            "place for its score. Choose another `step_tag` or `step_joiner`, or set `tokenization='pieces'`."
        )
        with pytest.raises(ValueError, match=message):
            MATH_SHEPHERD.check_tokenizer(tokenizer)
        PIECES.check_tokenizer(tokenizer)

    def test_a_tag_that_merges_with_the_step_behind_it(self):
        """The probes' beginnings, too; a newline between the two keeps them apart."""
        tokenizer = _with_token(byte_level_tokenizer(), "иSt")
        message = "^Between steps that end with 'so' and begin with 'Step 2', the tag ' ки' of step 0 merges"
        with pytest.raises(ValueError, match=message):
            ER_PRM.check_tokenizer(tokenizer)
        MATH_SHEPHERD.check_tokenizer(tokenizer)

    def test_an_accent_behind_a_tag(self):
        """A tokenizer that composes letters with their accents makes another letter of the tag's last."""
        tokenizer = byte_level_tokenizer()
        assert ids(tokenizer, "a ки\u0306b") == ids(tokenizer, "a кйb")
        with pytest.raises(ValueError, match="^the tag ' ки' of step 0 merges with its neighbours"):
            ER_PRM.encode(tokenizer, "p", ["a", "\u0306b"])
        encoded = ER_PRM.encode(sentencepiece_tokenizer(), "p", ["a", "\u0306b"])  # it composes nothing
        assert len(encoded.step_ends) == 2

    def test_a_label_token_that_merges_with_the_turn(self):
        """As in a template that writes the answer right behind another sign."""
        tokenizer = _with_token(byte_level_tokenizer(template=CHATML_TEMPLATE), "\n+")
        message = r"Between steps that end with 'so' and begin with 'Step 2', the tag '[+]' of step 0 merges"
        with pytest.raises(ValueError, match=message):
            RLHFLOW.check_tokenizer(tokenizer)
        with pytest.raises(ValueError, match="^the tag '[+]' of step 0 merges with its neighbours"):
            RLHFLOW.encode(tokenizer, "a", ["b", "c"])
        template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
        tokenizer = _with_token(byte_level_tokenizer(template=template), "+\n")
        with pytest.raises(ValueError, match="^the tag '[+]' of step 0 merges with its neighbours"):
            RLHFLOW.encode(tokenizer, "a", ["b", "c"])

    def test_joint_needs_character_offsets(self):
        class Slow(PreTrainedTokenizer):
            vocab_size = 3

            def get_vocab(self):
                return {}

        message = (
            "The format 'er-prm' is tokenized as a whole and needs a tokenizer that knows .* got Slow. Give a fast"
        )
        with pytest.raises(ValueError, match=message):
            ER_PRM.encode(Slow(), "a", ["b"])

    def test_a_word_boundary_before_a_label_token_is_left_aside(self):
        """SentencePiece gives " +" as a mark and "+"."""
        tokenizer = merging_tokenizer()
        assert ER_PRM.label_token_ids(tokenizer) == (ids(tokenizer, "+")[0], ids(tokenizer, "-")[0])

    def test_construction(self):
        with pytest.raises(ValueError, match="`head` must be one of 'token_classification', 'causal_lm', got 'lm'"):
            PRMFormat("x", "lm")
        with pytest.raises(
            ValueError, match="`layout` must be one of 'text', 'assistant_message', 'turns', got 'turn'"
        ):
            PRMFormat("x", "token_classification", layout="turn")
        with pytest.raises(ValueError, match="`tokenization` must be one of 'pieces', 'joint', got 'whole'"):
            PRMFormat("x", "token_classification", tokenization="whole")
        with pytest.raises(ValueError, match="`head_module` must be one of 'linear', 'mlp', got 'MLP'"):
            PRMFormat("x", "token_classification", head_module="MLP")
        for layout in ("text", "assistant_message"):
            with pytest.raises(ValueError, match="`step_tag` must not be empty"):
                PRMFormat("x", "token_classification", layout, "joint", step_tag="")
        with pytest.raises(ValueError, match="must both be given, got '[+]' and None"):
            PRMFormat("x", "causal_lm", positive_token="+")
        labels = {"positive_token": "+", "negative_token": "-"}
        with pytest.raises(ValueError, match="The layout 'turns' is read with the head 'causal_lm', got 'token_class"):
            PRMFormat("x", "token_classification", "turns", "joint", **labels)
        for layout in ("assistant_message", "turns"):
            with pytest.raises(
                ValueError, match=f"The layout '{layout}' .* is tokenized as a whole, got `tokenization='p"
            ):
                PRMFormat("x", "causal_lm", layout, **labels)


def _with_token(tokenizer, token):
    tokenizer.add_tokens([token])
    return tokenizer


class TestFiles:
    @pytest.mark.parametrize("format", list(FORMATS.values()), ids=list(FORMATS))
    def test_round_trip(self, format, tmp_path):
        format.save(tmp_path, eta=2.0)
        content = json.loads((tmp_path / "prm_format.json").read_text("utf-8"))
        assert content["eta"] == 2.0 and content["format_version"] == 2
        loaded = PRMFormat.from_dict(content)
        assert loaded == format and hash(loaded) == hash(format)

    def test_every_field_is_saved(self, tmp_path):
        format = PRMFormat(
            "x",
            "causal_lm",
            "turns",
            "joint",
            "T",
            "J",
            "S",
            "Y",
            "p",
            "n",
            3,
            "mlp",
            key_mapping=(("a", "b"), ("c", "d")),
        )
        defaults = {f.name: f.default for f in dataclasses.fields(PRMFormat)}
        assert all(value != defaults[name] for name, value in vars(format).items())
        format.save(tmp_path)
        assert PRMFormat.from_dict(json.loads((tmp_path / "prm_format.json").read_text("utf-8"))) == format

    def test_a_file_of_version_1(self):
        """As it was written then, when every format was text in pieces; `num_labels` stood beside the format."""
        content = {
            "format_version": 1,
            "name": "er-prm",
            "head": "causal_lm",
            "step_tag": " ки",
            "step_joiner": "\n",
            "prompt_separator": " ",
            "positive_token": "+",
            "negative_token": "-",
            "eta": 2.0,
        }
        assert PRMFormat.from_dict(content) == dataclasses.replace(PIECES, name="er-prm")
        two_labels = {"format_version": 1, "name": "trl", "head": "token_classification", "num_labels": 2}
        assert PRMFormat.from_dict(two_labels) == dataclasses.replace(TRL_TOKEN_CLASSIFICATION, num_labels=2)

    def test_another_version(self, tmp_path):
        ER_PRM.save(tmp_path)
        content = json.loads((tmp_path / "prm_format.json").read_text("utf-8"))
        for version in (0, 3, "2", None):
            with pytest.raises(ValueError, match=f"reads format versions 1 to 2, got {version!r}. Update"):
                PRMFormat.from_dict({**content, "format_version": version})
        with pytest.raises(ValueError, match="reads format versions 1 to 2, got None"):
            PRMFormat.from_dict({"name": "er-prm", "head": "causal_lm"})

    def test_load_format(self):
        assert load_format("er-prm") is ER_PRM and load_format(ER_PRM) is ER_PRM
        assert load_format(None, "causal_lm") is MATH_SHEPHERD
        assert load_format(None, "token_classification") is TRL_TOKEN_CLASSIFICATION
        for name, format in FORMATS.items():
            assert load_format(name) is format and format.name == name
        names = "'trl', 'math-shepherd', 'er-prm', 'rlhflow', 'qwen2.5-math-prm', 'skywork-o1'"
        with pytest.raises(ValueError, match=f"`format` must be one of {names}, got 'er_prm'. Did you mean 'er-prm'"):
            load_format("er_prm")
        with pytest.raises(ValueError, match=f"`format` must be one of {names}, got 'zzz'. Choose one of them.$"):
            load_format("zzz")
