"""`trl_erprm.prm.formats`: the one path from text to token ids and step ends."""

import dataclasses
import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.prm.formats import (
    ER_PRM,
    FORMATS,
    TRL_TOKEN_CLASSIFICATION,
    EncodedSolution,
    PRMFormat,
    load_format,
)

ARITHMETIC = dataclasses.replace(ER_PRM, step_tag="ки", prompt_separator="\n")


def merging_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Characters, and two pairs that merge across what a format puts together: ". ки" would be one token."""
    tokens = ["<pad>", "<s>", "<unk>", *"abc.+-\n кикn", ". ", ". ки", "\n\n", "ab"]
    vocabulary = {}
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # longest match first, over the whole text given
    pieces = sorted((t for t in vocabulary if not t.startswith("<")), key=len, reverse=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in pieces if len(t) > 1])
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **({"bos_token": "<s>"} if bos else {}))


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class TestRender:
    def test_by_hand(self):
        assert TRL_TOKEN_CLASSIFICATION.render("1+1?", ["1+1=2", "So 2."]) == "1+1?1+1=2\nSo 2.\n"
        assert ER_PRM.render("1+1?", ["1+1=2", "So 2."]) == "1+1? 1+1=2 ки\nSo 2. ки"
        assert ER_PRM.render("1+1?", ["1+1=2"]) == "1+1? 1+1=2 ки"

    def test_each_field_moves_the_text(self):
        changed = PRMFormat("x", "token_classification", step_tag="T", step_joiner="J", prompt_separator="S")
        assert changed.render("p", ["a", "b"]) == "pSaTJbT"


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

    @pytest.mark.parametrize("format", [TRL_TOKEN_CLASSIFICATION, ARITHMETIC])
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
        encoded = ER_PRM.encode(tokenizer, "a", ["b."])
        pieces = [ids(tokenizer, text) for text in ("a ", "b.", " ки")]
        assert encoded.input_ids == [i for piece in pieces for i in piece]
        assert ids(tokenizer, "a b. ки") != encoded.input_ids
        assert encoded.step_ends == [len(encoded.input_ids) - 1]

    def test_a_tag_of_several_tokens_is_read_at_its_last(self):
        tokenizer = build_tokenizer()
        format = dataclasses.replace(TRL_TOKEN_CLASSIFICATION, step_tag="\n#\n")
        encoded = format.encode(tokenizer, "3\n", ["3+4=2", "2"])
        assert encoded.step_ends == [2 + 3 + 2, 2 + 6 + 3]

    @pytest.mark.parametrize("format", [TRL_TOKEN_CLASSIFICATION, ER_PRM])
    def test_a_further_step_changes_nothing_before_it(self, format):
        tokenizer = merging_tokenizer()
        steps = ["a.", "b. ", "\nab", "c\n", "."]
        whole = format.encode(tokenizer, "ab\n", steps)
        for k in range(1, 6):
            prefix = format.encode(tokenizer, "ab\n", steps[:k])
            assert whole.input_ids[: len(prefix.input_ids)] == prefix.input_ids
            assert whole.step_ends[:k] == prefix.step_ends

    def test_beginning_of_sequence(self):
        with_bos, without = merging_tokenizer(bos=True), merging_tokenizer()
        first, second = (ER_PRM.encode(t, "ab", ["c"]) for t in (with_bos, without))
        assert first.input_ids == [with_bos.bos_token_id, *second.input_ids]
        assert first.step_ends == [end + 1 for end in second.step_ends]

    def test_messages(self):
        """The template brings its own beginning-of-sequence token; the separator is its business, too."""
        tokenizer = merging_tokenizer(bos=True)
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}c{% endif %}"
        )
        encoded = ER_PRM.encode(tokenizer, [{"role": "user", "content": "ab"}], ["b"])
        expected = [tokenizer.bos_token_id, *ids(tokenizer, "ab\nc"), *ids(tokenizer, "b"), *ids(tokenizer, " ки")]
        assert encoded.input_ids == expected
        assert ER_PRM.render([{"role": "user", "content": "ab"}], ["b"], tokenizer) == "<s>ab\ncb ки"

    def test_messages_without_a_template(self):
        message = "The prompt is a list of chat messages, but the tokenizer has no chat template."
        with pytest.raises(ValueError, match=message):
            ER_PRM.encode(merging_tokenizer(), [{"role": "user", "content": "ab"}], ["b"])
        with pytest.raises(ValueError, match=message):
            ER_PRM.render([{"role": "user", "content": "ab"}], ["b"])

    @pytest.mark.parametrize("max_length, kept", [(4, 0), (7, 0), (8, 1), (11, 1), (12, 2), (14, 2), (15, 3), (99, 3)])
    def test_max_length_drops_whole_steps_and_counts(self, max_length, kept):
        tokenizer = build_tokenizer()
        steps = ["3+4=2", "2*2=4", "#4"]
        encoded = TRL_TOKEN_CLASSIFICATION.encode(tokenizer, "3+4*2\n", steps, max_length)
        assert len(encoded.step_ends) == kept and encoded.num_dropped_steps == 3 - kept
        assert len(encoded.input_ids) <= max(max_length, 4)  # the prompt is never cut
        if kept:
            assert encoded.input_ids == TRL_TOKEN_CLASSIFICATION.encode(tokenizer, "3+4*2\n", steps[:kept]).input_ids

    def test_a_short_step_behind_a_long_one_is_dropped_too(self):
        """Else it would be scored behind a prefix that was never written."""
        tokenizer = build_tokenizer()
        encoded = TRL_TOKEN_CLASSIFICATION.encode(tokenizer, "3\n", ["1", "1+1+1+1+1+1+1+1", "1"], max_length=8)
        assert encoded == EncodedSolution(encoded.input_ids, [3], num_dropped_steps=2)

    @pytest.mark.parametrize(
        "prompt, steps, message",
        [
            ("", ["a"], "The prompt is empty."),
            ([], ["a"], "The prompt is empty."),
            ("p", [], "The list of steps is empty"),
            ("p", ["a", " \n"], r"Step 1 of 2 is empty \(' \\n'\)"),
        ],
    )
    def test_what_cannot_be_encoded(self, prompt, steps, message):
        with pytest.raises(ValueError, match=message):
            TRL_TOKEN_CLASSIFICATION.encode(build_tokenizer(), prompt, steps)


class TestTokenizerChecks:
    def test_fitting(self):
        TRL_TOKEN_CLASSIFICATION.check_tokenizer(build_tokenizer())
        ARITHMETIC.check_tokenizer(build_tokenizer())
        tokenizer = build_tokenizer()
        assert ARITHMETIC.label_token_ids(tokenizer) == (ids(tokenizer, "+")[0], ids(tokenizer, "-")[0])

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"step_tag": "@"}, "The step tag '@' is not in the tokenizer's vocabulary"),
            ({"positive_token": "+-"}, "`positive_token` '[+]-' must be exactly one known token, but .* gives .*,"),
            ({"negative_token": "@"}, "`negative_token` '@' must be exactly one known token"),
            ({"positive_token": "-"}, "The label tokens '-' and '-' are one and the same token"),
        ],
    )
    def test_unfitting(self, changes, message):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(ARITHMETIC, **changes).check_tokenizer(build_tokenizer())

    def test_a_tag_with_an_unknown_token(self):
        with pytest.raises(ValueError, match="The step tag '.z' is not in the tokenizer's vocabulary"):
            dataclasses.replace(ER_PRM, step_tag=".z").check_tokenizer(merging_tokenizer())

    def test_a_word_boundary_before_a_label_token_is_left_aside(self):
        """SentencePiece gives " +" as a mark and "+"."""
        tokenizer = merging_tokenizer()
        format = dataclasses.replace(ER_PRM, positive_token=" +", negative_token=" -")
        assert format.label_token_ids(tokenizer) == (ids(tokenizer, "+")[0], ids(tokenizer, "-")[0])

    def test_construction(self):
        with pytest.raises(ValueError, match="`head` must be one of 'token_classification', 'causal_lm', got 'lm'"):
            PRMFormat("x", "lm")
        with pytest.raises(ValueError, match="`step_tag` must not be empty"):
            PRMFormat("x", "token_classification", step_tag="")
        with pytest.raises(ValueError, match="must both be given, got '[+]' and None"):
            PRMFormat("x", "causal_lm", positive_token="+")


class TestFiles:
    @pytest.mark.parametrize("format", list(FORMATS.values()))
    def test_round_trip(self, format, tmp_path):
        format.save(tmp_path, eta=2.0, num_labels=1)
        content = json.loads((tmp_path / "prm_format.json").read_text("utf-8"))
        assert content["eta"] == 2.0 and content["format_version"] == 1
        assert PRMFormat.from_dict(content) == format

    def test_another_version(self, tmp_path):
        ER_PRM.save(tmp_path)
        content = json.loads((tmp_path / "prm_format.json").read_text("utf-8"))
        with pytest.raises(ValueError, match="reads format version 1, got 2. Update"):
            PRMFormat.from_dict({**content, "format_version": 2})
        with pytest.raises(ValueError, match="reads format version 1, got None"):
            PRMFormat.from_dict({"name": "er-prm", "head": "causal_lm"})

    def test_load_format(self):
        assert load_format("er-prm") is ER_PRM and load_format(ER_PRM) is ER_PRM
        assert load_format(None, "causal_lm") is ER_PRM
        assert load_format(None, "token_classification") is TRL_TOKEN_CLASSIFICATION
        with pytest.raises(
            ValueError, match="`format` must be one of 'trl', 'er-prm', got 'er_prm'. Did you mean 'er-prm'"
        ):
            load_format("er_prm")
        with pytest.raises(
            ValueError, match="`format` must be one of 'trl', 'er-prm', got 'zzz'. Choose one of them.$"
        ):
            load_format("zzz")
