"""Tokens of completions and their steps, with tokenizers of every kind and with text that they cut oddly."""

import random

import pytest

from tests.tokenizers import byte_level_tokenizer, merging_tokenizer, sentencepiece_tokenizer
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.policy import step_tokens
from trl_erprm.policy.step_tokens import completion_step_ends, completion_step_indices, decode_with_spans
from trl_erprm.steps import split_steps

TOKENIZERS = {
    "byte_level": lambda: byte_level_tokenizer(),
    "byte_level_unknown_tag": lambda: byte_level_tokenizer(knows_tag=False, bos=False),
    "sentencepiece": sentencepiece_tokenizer,
    "characters": lambda: merging_tokenizer(),
    "embedded_task": build_tokenizer,
}
PIECES = [
    "She has 3 apples",
    " 4 + 5 = 9",
    "\n",
    "\n\n",
    "é",
    "日本",
    "😀",
    " ки",
    "  ",
    "So x is 7.",
    "\t",
    "½",
    "a",
    ".",
]


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request):
    return TOKENIZERS[request.param]()


def random_ids(tokenizer, rng):
    """Token ids as a policy samples them: of a text, of its pieces one by one, or any ids at all; then an end."""
    text = "".join(rng.choices(PIECES, k=rng.randint(1, 12)))
    kind = rng.randrange(4)
    if kind == 0:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    elif kind == 1:
        ids = [i for piece in text for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    elif kind == 2:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = ids[: rng.randint(0, len(ids))]  # cut off, perhaps within a character
    else:
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(0, 20))]
    if rng.random() < 0.5:
        ids = [*ids, tokenizer.eos_token_id or tokenizer.pad_token_id]
    return ids


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


class TestSpans:
    @pytest.mark.parametrize("seed", range(40))
    def test_spans_lie_in_order_and_cover_the_text(self, tokenizer, seed):
        rng = random.Random(seed)
        batch = [random_ids(tokenizer, rng) for _ in range(4)]
        special = set(tokenizer.all_special_ids)
        for ids, (text, spans) in zip(batch, decode_with_spans(tokenizer, batch), strict=True):
            assert text == text_of(tokenizer, ids) and len(spans) == len(ids)
            covered = set()
            for i, (start, end), following in zip(ids, spans, [*spans[1:], (len(text), 0)], strict=False):
                assert 0 <= start <= end <= len(text) and start <= following[0]
                assert i not in special or start == end
                covered.update(range(start, end))
            # white space may belong to no token where an offset leaves it out
            assert all(text[k].isspace() for k in set(range(len(text))) - covered), (text, spans)

    @pytest.mark.parametrize("seed", range(40))
    def test_the_three_ways_agree_on_what_ends_where(self, tokenizer, seed, monkeypatch):
        """Encoding the text anew, decoding token by token, decoding every beginning."""
        rng = random.Random(seed)
        ids = tokenizer("".join(rng.choices(PIECES, k=8)), add_special_tokens=False)["input_ids"]
        text = text_of(tokenizer, ids)
        plain = [i for i in ids if i not in set(tokenizer.all_special_ids)]
        by_prefixes = step_tokens._spans_by_prefixes(tokenizer, plain, text)
        by_stream = step_tokens._spans_by_stream(tokenizer, plain, text)
        assert by_stream is None or [b for _, b in by_stream] == [b for _, b in by_prefixes]
        steps = split_steps(text)
        found = completion_step_indices(tokenizer, [ids], [text], [steps])
        monkeypatch.setattr(step_tokens, "_spans_by_stream", lambda *_: None)
        monkeypatch.setattr(type(tokenizer), "is_fast", False)
        assert completion_step_indices(tokenizer, [ids], [text], [steps]) == found

    def test_bytes_of_a_character_share_it(self):
        tokenizer = byte_level_tokenizer(bos=False)
        ids = [i for byte in "\n日" for i in tokenizer(byte, add_special_tokens=False)["input_ids"]]
        assert len(ids) == 4  # a line end and three bytes
        ((text, spans),) = decode_with_spans(tokenizer, [ids])
        assert text == "\n日" and spans == [(0, 1), (1, 2), (1, 2), (1, 2)]

    def test_a_character_that_was_cut_off(self):
        tokenizer = byte_level_tokenizer(bos=False)
        ids = tokenizer("a日", add_special_tokens=False)["input_ids"][:-1]
        ((text, spans),) = decode_with_spans(tokenizer, [ids])
        assert text[0] == "a" and spans[0] == (0, 1) and set(text[1:]) == {"\ufffd"}
        assert all(1 <= start < end <= len(text) for start, end in spans[1:])

    def test_ids_that_the_tokenizer_would_have_merged(self):
        """Sampled "a", "b" is not "ab": encoded anew, every later token would be one place off."""
        tokenizer = merging_tokenizer()
        a, b, c = (tokenizer.convert_tokens_to_ids(t) for t in "abc")
        assert tokenizer("abc", add_special_tokens=False)["input_ids"] != [a, b, c]
        assert decode_with_spans(tokenizer, [[a, b, c]]) == [("abc", [(0, 1), (1, 2), (2, 3)])]


class TestStepIndices:
    @pytest.mark.parametrize("seed", range(40))
    def test_each_token_has_the_step_of_its_last_character(self, tokenizer, seed):
        rng = random.Random(1000 + seed)
        ids = random_ids(tokenizer, rng)
        ((text, spans),) = decode_with_spans(tokenizer, [ids])
        steps = split_steps(text)
        (found,) = completion_step_indices(tokenizer, [ids], [text], [steps])
        assert len(found) == len(ids)
        if not steps:
            assert found == [None] * len(ids)
            return
        for index, (start, end) in zip(found, spans, strict=True):
            if end > start:
                assert steps[index].start <= end - 1 < steps[index].end
        assert found == sorted(found)

    def test_by_hand(self):
        tokenizer = build_tokenizer()
        text = "4*3=2\n2+1=3\n#3"
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        (found,) = completion_step_indices(tokenizer, [ids], [text], [split_steps(text)])
        tokens = tokenizer.convert_ids_to_tokens(ids)
        # "4" "*3=" "2" "\n" | "2" "+1=" "3" "\n" | "#" "3" and the end
        assert len(tokens) == 11 and found == [0] * 4 + [1] * 4 + [2] * 3

    def test_a_part_of_what_the_tokens_say(self):
        """The last message behind a tool's answer: the tokens before it are no step's."""
        tokenizer = build_tokenizer()
        whole, text = "1+1=2\n1+1=2\n#2\n", "1+1=2\n#2"
        ids = tokenizer(whole)["input_ids"]
        (found,) = completion_step_indices(tokenizer, [ids], [text], [split_steps(text)])
        # the last place where the text occurs is meant; the line end behind it is the last step's
        assert found == [None] * 4 + [0] * 4 + [1] * 3

    def test_a_text_that_the_tokens_do_not_say(self):
        tokenizer = build_tokenizer()
        ids = tokenizer("1+1=2")["input_ids"]
        assert completion_step_indices(tokenizer, [ids], ["1+1=3"], [split_steps("1+1=3")]) == [None]
        assert completion_step_ends(tokenizer, [ids], ["1+1=3"], [split_steps("1+1=3")]) == [None]

    def test_no_token(self):
        tokenizer = build_tokenizer()
        assert completion_step_indices(tokenizer, [[]], [""], [[]]) == [[]]


class TestStepEnds:
    @pytest.mark.parametrize("seed", range(40))
    def test_every_step_ends_at_a_token_that_holds_its_end(self, tokenizer, seed):
        rng = random.Random(2000 + seed)
        ids = random_ids(tokenizer, rng)
        ((text, spans),) = decode_with_spans(tokenizer, [ids])
        steps = split_steps(text)
        (ends,) = completion_step_ends(tokenizer, [ids], [text], [steps])
        assert len(ends) == len(steps) and ends == sorted(ends)
        for step, end in zip(steps, ends, strict=True):
            last = step.start + len(text[step.start : step.end].rstrip())
            assert spans[end][1] >= last > 0 and spans[end][0] < step.end

    def test_a_token_over_two_steps(self):
        """ "\\n\\n" between two characters is one token, and ". " holds the end of a sentence."""
        tokenizer = merging_tokenizer()
        text = "a. b"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [tokenizer.decode([i]) for i in ids] == ["a", ". ", "b"]
        steps = split_steps(text, "sentence")
        found = completion_step_ends(tokenizer, [ids], [text], [steps])
        assert found == [[2]] if len(steps) == 1 else [[1, 2]]

    def test_a_step_without_a_token_of_its_own(self):
        """The token that holds the step and more: the reward must not be lost."""
        from trl_erprm.steps import Step

        tokenizer = merging_tokenizer()
        ids = tokenizer("ab", add_special_tokens=False)["input_ids"]
        assert len(ids) == 1
        steps = [Step("a", 0, 1), Step("b", 1, 2)]
        assert completion_step_ends(tokenizer, [ids], ["ab"], [steps]) == [[0, 0]]
