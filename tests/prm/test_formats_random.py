"""What holds for every solution, on random ones: each format with each kind of tokenizer."""

import dataclasses
import random
import unicodedata

import pytest

from tests.prm.format_cases import PIECES, TOKENIZERS, ids
from tests.tokenizers import CHATML_TEMPLATE, LLAMA_TEMPLATE, byte_level_tokenizer, merging_tokenizer
from trl_erprm.prm.formats import (
    ER_PRM,
    MATH_SHEPHERD,
    QWEN_MATH_PRM,
    RLHFLOW,
    SKYWORK_O1,
    TRL_TOKEN_CLASSIFICATION,
    EncodedSolution,
)

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
