import random
import sys
import time

import pytest

from trl_erprm.steps import (
    SPLIT_MODES,
    Step,
    join_steps,
    split_steps,
    step_end_tokens,
    step_index_per_token,
    step_texts,
)


def spans(text: str, how: str) -> list[str]:
    return [text[step.start : step.end] for step in split_steps(text, how)]


# Pieces that meet every rule: line ends of all kinds, markers, LaTeX open and closed, multi-byte characters.
PIECES = (
    ["\n", "\n\n", "\r\n", "\r", " ", "\t", "\u2028", "Step 1:", "Step 2:", "**Step 3:**", "1. ", "a) ", "x", "3.14"]
    + ["e.g. ", "So it is. ", "Done! ", "Why? ", "$x = 1. Y$", "$", "$$", "\\[", "\\]", "\\(", "\\)", "\\$5. "]
    + [
        "\\begin{align}",
        "\\end{align}",
        "é",
        "e\u0301",
        "数。",
        "😀",
        "👩‍👩‍👧. ",
        "#### 72",
        "#3",
        "\\",
        "{",
        "}",
        "\x00",
        ".",
    ]
)


@pytest.mark.parametrize("how", SPLIT_MODES)
def test_spans_tile_any_text_and_no_step_is_empty(how):
    generator = random.Random(0)
    for _ in range(1_000):
        text = "".join(generator.choices(PIECES, k=generator.randrange(0, 25)))
        steps = split_steps(text, how)
        assert "".join(text[step.start : step.end] for step in steps) == (text if text.strip() else ""), repr(text)
        position = 0
        for step in steps:
            assert step.start == position and step.end > step.start, repr(text)
            assert step.text == text[step.start : step.end].strip() != "", repr(text)
            position = step.end


@pytest.mark.parametrize("how", SPLIT_MODES)
@pytest.mark.parametrize("text", ["", " ", "\n", " \n\r\n\t"])
def test_text_without_a_step_gives_no_steps(text, how):
    assert split_steps(text, how) == []


def test_newline_mode_by_hand():
    assert split_steps("4*3=2\n2+1=3\n\n#3\n") == [
        Step("4*3=2", 0, 6),
        Step("2+1=3", 6, 13),  # the blank line is of the step before it
        Step("#3", 13, 16),
    ]


def test_white_space_in_front_is_of_the_first_step():
    assert split_steps("\n \n a\nb") == [Step("a", 0, 6), Step("b", 6, 7)]


def test_newline_mode_knows_all_line_ends():
    assert spans("a\r\nb\rc\nd", "newline") == ["a\r\n", "b\r", "c\n", "d"]


def test_newline_mode_does_not_split_at_other_separators():
    assert step_texts("a\u2028b\x0bc\x1cd") == ["a\u2028b\x0bc\x1cd"]  # str.splitlines would


def test_blank_line_mode_by_hand():
    assert spans("a\nb\n\nc\n \t\n\nd", "blank_line") == ["a\nb\n\n", "c\n \t\n\n", "d"]


def test_blank_line_mode_takes_one_windows_line_end_for_one():
    assert step_texts("a\r\nb\r\n\r\nc", "blank_line") == ["a\r\nb", "c"]


def test_step_marker_mode_by_hand():
    text = "Let us see.\nStep 1: add.\n**Step 2:** subtract,\nsee above.\n### Step 3: done"
    assert spans(text, "step_marker") == [
        "Let us see.\n",
        "Step 1: add.\n",
        "**Step 2:** subtract,\nsee above.\n",
        "### Step 3: done",
    ]


def test_step_marker_within_a_line_counts_only_in_turn():
    text = "Step 1: add. Step 2: by Step 1: it is 4. Step 3: by Step 9: too."
    assert step_texts(text, "step_marker") == [
        "Step 1: add.",
        "Step 2: by Step 1: it is 4.",
        "Step 3: by Step 9: too.",
    ]


def test_step_marker_at_the_start_of_a_line_counts_with_any_number():
    assert step_texts("Step 4: a\nStep 4: b", "step_marker") == ["Step 4: a", "Step 4: b"]


def test_text_without_a_marker_is_one_step():
    assert step_texts("The next Step is hard.\nFootstep 1: no", "step_marker") == [
        "The next Step is hard.\nFootstep 1: no"
    ]


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("We take 3.14 here. It is near.", ["We take 3.14 here.", "It is near."]),
        ("Take a prime, e.g. 7 or so. Square it.", ["Take a prime, e.g. 7 or so.", "Square it."]),
        ("We use $f. G$ now. Then go.", ["We use $f. G$ now.", "Then go."]),
        ("We use $ f. G $ now. Then go.", ["We use $ f. G $ now.", "Then go."]),
        ("We use $$f. G$$ now. Then go.", ["We use $$f. G$$ now.", "Then go."]),
        ("We use \\(f. G\\) now. Then go.", ["We use \\(f. G\\) now.", "Then go."]),
        ("We use \\[f. G\n\nH! I\\] now. Then go.", ["We use \\[f. G\n\nH! I\\] now.", "Then go."]),
        (
            "We use \\begin{align*} f. G \\\\[2pt] H. I \\end{align*} now. Then go.",
            ["We use \\begin{align*} f. G \\\\[2pt] H. I \\end{align*} now.", "Then go."],
        ),
        ("It follows that $x = 1.$ Then we go.", ["It follows that $x = 1.$", "Then we go."]),
        ("It is four. $x$ is five.", ["It is four.", "$x$ is five."]),
        ("He earns $5. She earns $6. They share.", ["He earns $5.", "She earns $6.", "They share."]),
        ("He earns $5. Later she earns 6$. They share.", ["He earns $5.", "Later she earns 6$.", "They share."]),
        ("It costs $5. A$6 stamp is more.", ["It costs $5.", "A$6 stamp is more."]),
        ("She earns $5. Then all of 6$ of $f. G$ now.", ["She earns $5.", "Then all of 6$ of $f. G$ now."]),
        ("It costs \\$5. It is cheap. He pays \\$6.", ["It costs \\$5.", "It is cheap.", "He pays \\$6."]),
        ("Never closed: \\[ go on. Then stop.", ["Never closed: \\[ go on.", "Then stop."]),
        ("One thing here\n\nAnother thing there", ["One thing here", "Another thing there"]),
        ("1. We add the numbers. \n2. We divide them.", ["1. We add the numbers.", "2. We divide them."]),
        ("1. We add it. Then go.\n\n2. We divide.", ["1. We add it.", "Then go.", "2. We divide."]),
    ],
)
def test_sentence_mode(text, sentences):
    assert step_texts(text, "sentence") == sentences


@pytest.mark.parametrize("opening", ["\\[", "\\(", "\\begin{a}", "$", "$$", "$a", "Step 1: ", "\n ", "a. "])
@pytest.mark.parametrize("how", SPLIT_MODES)
def test_degenerate_text_is_split_in_time(opening, how):
    # 100,000 characters: a quadratic search would take minutes here.
    started = time.perf_counter()
    split_steps(opening * (100_000 // len(opening)), how)
    assert time.perf_counter() - started < 5


def test_sentence_mode_without_its_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(ImportError, match="pip install sentencex"):
        split_steps("a. b.", "sentence")
    assert step_texts("a\nb") == ["a", "b"]  # no other mode needs it


def test_sentences_that_do_not_tile_the_text_are_an_error(monkeypatch):
    import sentencex

    monkeypatch.setattr(sentencex, "segment", lambda language, text: [text.strip()])
    with pytest.raises(RuntimeError, match="sentences of 2 characters for a text of 3"):
        split_steps("a. ", "sentence")


@pytest.mark.parametrize(
    "how, message",
    [
        ("newlines", r"`how` must be one of 'newline', .*, got 'newlines'. Did you mean 'newline'\?"),
        ("sentences", r"Did you mean 'sentence'\?"),
        ("zzz", "got 'zzz'. Choose one of them."),
        (None, "got None"),
    ],
)
def test_unknown_mode(how, message):
    with pytest.raises(ValueError, match=message):
        split_steps("a", how)


def test_messages_instead_of_text():
    with pytest.raises(TypeError, match="`text` must be a str, got list.*pass the content"):
        split_steps([{"role": "assistant", "content": "a"}])


def test_join_steps_is_the_inverse():
    steps = ["4*3=2", "2+1=3", "#3"]
    assert join_steps(steps) == "4*3=2\n2+1=3\n#3"
    assert step_texts(join_steps(steps)) == steps
    assert step_texts(join_steps(steps, "\n\n"), "blank_line") == steps
    assert join_steps([]) == ""


def test_join_steps_refuses_one_string():
    with pytest.raises(TypeError, match=r"got one str. Pass `\[text\]`"):
        join_steps("4*3=2")


# Token positions


def test_tokens_and_steps_by_hand():
    text = "ab c\n\nde"  # steps: [0, 6) and [6, 8)
    steps = split_steps(text)
    offsets = [(0, 2), (2, 4), (4, 6), (6, 8), (0, 0)]  # the last one is an end-of-text token
    assert step_index_per_token(offsets, steps) == [0, 0, 0, 1, 1]
    assert step_end_tokens(offsets, steps) == [2, 3]


def test_token_over_a_step_end_belongs_to_the_next_step():
    steps = split_steps("a\nb")
    assert step_index_per_token([(0, 1), (1, 3)], steps) == [0, 1]
    assert step_end_tokens([(0, 1), (1, 3)], steps) == [0, 1]


def test_step_within_one_token_of_another_step_has_no_end_token():
    steps = split_steps("a\nb\nc")
    assert step_index_per_token([(0, 5)], steps) == [2]
    assert step_end_tokens([(0, 5)], steps) == [None, None, 0]


def test_truncated_tokens_leave_steps_without_an_end_token():
    assert step_end_tokens([(0, 2)], split_steps("ab\ncd")) == [0, None]


def test_tokens_without_characters_at_the_beginning_take_the_following_step():
    steps = [Step("b", 3, 5), Step("c", 5, 6)]
    assert step_index_per_token([(0, 0), (3, 3), (5, 6), (6, 6)], steps) == [1, 1, 1, 1]


def test_tokens_outside_all_spans_have_no_step():
    steps = [Step("b", 3, 5)]  # as when the offsets cover a prompt, too
    assert step_index_per_token([(0, 0), (0, 3), (3, 5), (5, 7), (7, 7)], steps) == [None, None, 0, None, None]


@pytest.mark.parametrize("offsets", [[], [(0, 0)], [(0, 0), (1, 1)]])
def test_nothing_to_go_by(offsets):
    assert step_index_per_token(offsets, split_steps("a\nb")) == [None] * len(offsets)
    assert step_end_tokens(offsets, split_steps("a\nb")) == [None, None]
    assert step_index_per_token([(0, 1)], []) == [None]
    assert step_end_tokens([(0, 1)], []) == []


def test_offsets_that_end_before_they_start():
    with pytest.raises(ValueError, match=r"start <= end, got \(2, 1\) for token 1"):
        step_index_per_token([(0, 1), (2, 1)], split_steps("abc"))


@pytest.mark.parametrize("how", SPLIT_MODES)
def test_every_character_token_gets_the_step_of_its_character(how):
    generator = random.Random(1)
    for _ in range(200):
        text = "".join(generator.choices(PIECES, k=12))
        steps = split_steps(text, how)
        indices = step_index_per_token([(i, i + 1) for i in range(len(text))], steps)
        if steps:
            expected = [i for i, step in enumerate(steps) for _ in range(step.start, step.end)]
            assert indices == expected
            assert step_end_tokens([(i, i + 1) for i in range(len(text))], steps) == [step.end - 1 for step in steps]


def test_random_tokens_go_forward_through_the_steps():
    generator = random.Random(2)
    for _ in range(300):
        text = "".join(generator.choices(PIECES, k=15))
        cuts = sorted({0, len(text), *(generator.randrange(len(text) + 1) for _ in range(8))})
        offsets = list(zip(cuts, cuts[1:], strict=False))
        steps = split_steps(text)
        indices = step_index_per_token(offsets, steps)
        if steps:
            assert indices == sorted(indices) and indices[-1] == len(steps) - 1
            ends = [end for end in step_end_tokens(offsets, steps) if end is not None]
            assert ends == sorted(set(ends)) and ends[-1] == len(offsets) - 1


def test_offsets_of_a_byte_level_tokenizer():
    """One character over several tokens: a fast tokenizer gives each of them the span of the character."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = ByteLevel.alphabet()
    tokenizer = Tokenizer(BPE({character: i for i, character in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    text = "é数=😀\n#3"
    encoding = tokenizer.encode(text)
    steps = split_steps(text)
    assert len(encoding.ids) == len(text.encode())  # one token a byte
    # Bytes: é 2, 数 3, = 1, 😀 4, line end 1; then #3.
    assert step_index_per_token(encoding.offsets, steps) == [0] * 11 + [1, 1]
    assert step_end_tokens(encoding.offsets, steps) == [10, 12]
