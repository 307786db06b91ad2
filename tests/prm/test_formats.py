"""`trl_erprm.prm.formats`: the one path from text to token ids and step ends, and formats on disk."""

import dataclasses
import json

import pytest

from tests.prm.format_cases import ARITHMETIC, PIECES, PROBLEMS, ids, question
from tests.tokenizers import CHATML_TEMPLATE, byte_level_tokenizer, merging_tokenizer
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.prm.formats import (
    ER_PRM,
    FORMATS,
    MATH_SHEPHERD,
    QWEN_MATH_PRM,
    RLHFLOW,
    SKYWORK_O1,
    TRL_TOKEN_CLASSIFICATION,
    EncodedSolution,
    PRMFormat,
    load_format,
)


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
