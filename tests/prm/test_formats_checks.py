"""What a tokenizer must have to carry a format, and what is said where it has not."""

import dataclasses

import pytest
from transformers import PreTrainedTokenizer

from tests.prm.format_cases import ARITHMETIC, PIECES, TOKENIZERS, ids
from tests.tokenizers import CHATML_TEMPLATE, byte_level_tokenizer, merging_tokenizer, sentencepiece_tokenizer
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.prm.formats import (
    ER_PRM,
    FORMATS,
    MATH_SHEPHERD,
    QWEN_MATH_PRM,
    RLHFLOW,
    TRL_TOKEN_CLASSIFICATION,
    PRMFormat,
)


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
