"""Text <-> steps with character spans, and steps <-> token positions.

A *step* is the text between two step ends. Splitting keeps character spans that tile the text, so that a score per
step can be handed to the tokens of any tokenizer: the policy and the PRM need not share one.

    text    "4*3=2\\n2+1=3\\n\\n#3"
    steps    [----) [--------) [)          spans: text[start:end], together the whole text
             4*3=2   2+1=3     #3          Step.text: the span without the white space around it

This module imports nothing of the package, and nothing outside the standard library except, in "sentence" mode only,
`sentencex` (Wikimedia's rule-based splitter, no data to download).
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trl_erprm.choices import check_choice

__all__ = ["SPLIT_MODES", "Step", "join_steps", "split_steps", "step_end_tokens", "step_index_per_token", "step_texts"]

SPLIT_MODES = ("newline", "blank_line", "step_marker", "sentence")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a text.

    Attributes:
        text (`str`):
            The step without the white space around it, never empty: `full_text[start:end].strip()`.
        start (`int`):
            Index of the first character of the span, inclusive.
        end (`int`):
            Index after the last character of the span. It equals the `start` of the next step, or the length of the
            text.
    """

    text: str
    start: int
    end: int


# A line end is one of \n, \r\n, \r. `\r(?!\n)` keeps backtracking from reading one \r\n as two line ends.
_LINE_END = r"(?:\r\n|\n|\r(?!\n))"
_NEWLINE = re.compile(_LINE_END)
_BLANK_LINE = re.compile(rf"{_LINE_END}(?:[^\S\r\n]*{_LINE_END})+")

# "Step 3:", "**Step 3:**", "### Step 3:", "- Step 3:". The white space or Markdown in front goes with the marker.
_STEP_MARKER = re.compile(
    r"(?P<line_start>(?:(?<=[\r\n])|\A)[^\S\r\n]*[#>*_-]*[^\S\r\n]*\**)?\bStep (?P<number>\d{1,4}) ?:"
)

# A line that starts with "1.", "2)" or "a." is an item of a list; a splitter takes the marker for a sentence.
_LIST_MARKER = re.compile(r"\s*(?:\d{1,3}|[A-Za-z])[.)]\s*")

# No span holds its own opening again (`(?!...)`): a degenerate text of openings only must not take quadratic time.
_MATH_SPAN = re.compile(
    r"""
      (?<!\\)\$\$(?P<display>.+?)(?<!\\)\$\$
    | (?<!\\)\\\[(?P<brackets>(?:(?!\\\[).)+?)(?<!\\)\\\]
    | (?<!\\)\\\((?P<parentheses>(?:(?!\\\().)+?)(?<!\\)\\\)
    | (?<!\\)\\begin\{(?P<name>[A-Za-z]+\*?)\}(?P<environment>(?:(?!\\begin\{(?P=name)\}).)+?)\\end\{(?P=name)\}
    # Pandoc's rule (extension tex_math_dollars), so that "$5 and $6" stays money: no white space just inside the two
    # dollars, and no digit after the closing one. Models also write "$ x $", with white space on both sides.
    | (?<![\\$])\$(?=(?P<blank>\s)?)(?P<inline>(?:\\.|[^$\\\n]|\n(?!\s*\n))+?)(?(blank)(?<=\s)|(?<=\S))\$(?![\d$])
    """,
    re.DOTALL | re.VERBOSE,
)
_TEXT_IN_MATH = re.compile(r"\\(?:text|mbox|textbf|textit|mathrm|operatorname)\s*\{[^{}]*\}")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}[,;:]?\s+[A-Za-z]{2,}")


def check_split_mode(how: str, argument: str = "how") -> None:
    """Raises `ValueError` unless `how`, given as `argument`, is one of [`SPLIT_MODES`].

    Example:

    ```python
    >>> check_split_mode("newlines")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: `how` must be one of 'newline', ..., got 'newlines'. Did you mean 'newline'?

    ```
    """
    check_choice(argument, how, SPLIT_MODES)


def split_steps(text: str, how: str = "newline") -> list[Step]:
    """Splits a text into steps.

    The spans tile the text: `"".join(text[s.start:s.end] for s in steps) == text` whenever there is a step. White
    space between two steps, blank lines included, belongs to the span of the step before it; white space in front of
    the first step belongs to the first. **No step is ever empty**: a piece of white space is not a step, so a guard
    against empty steps (reward hacking by line ends) must look at the text, for example at the length of
    `text[step.start:step.end]` against that of `step.text`. A text without any step gives `[]`.

    Args:
        text (`str`):
            Text to split, usually one completion.
        how (`str`, *optional*, defaults to `"newline"`):
            Where a step ends:

            - `"newline"`: at each line end (`\\n`, `\\r\\n` or `\\r`). LaTeX displayed over several lines is cut too:
              use `"blank_line"` for it.
            - `"blank_line"`: at one or more lines with nothing but white space.
            - `"step_marker"`: before each `Step k:`. At the start of a line any number counts, Markdown in front
              (`**`, `###`, `-`) included; inside a line only the number that is next in turn does, so that a mention
              ("by Step 1: ...") ends nothing. The marker stays in the step. Text before the first marker is a step of
              its own.
            - `"sentence"`: at the sentence ends that `sentencex` finds (English rules). Numbers (`3.14`) and
              LaTeX (`$...$`, `$$...$$`, `\\(...\\)`, `\\[...\\]`, `\\begin{...}...\\end{...}`) are never cut, nor is a
              sentence after an abbreviation within it (`e.g. this`); a list marker (`1.`) stays with its item, and a
              blank line ends a sentence. LaTeX that is opened and never closed protects nothing.

    Returns:
        `list[Step]`: the steps in order.

    Raises:
        ValueError: if `how` is not one of these.
        TypeError: if `text` is not a string.

    Example:

    ```python
    >>> split_steps("4*3=2\\n2+1=3\\n\\n#3")
    [Step(text='4*3=2', start=0, end=6), Step(text='2+1=3', start=6, end=13), Step(text='#3', start=13, end=15)]
    >>> [step.text for step in split_steps("Take e.g. 3.14. So $x = 1. Y$ holds. Done.", how="sentence")]
    ['Take e.g. 3.14.', 'So $x = 1. Y$ holds.', 'Done.']
    >>> split_steps(" \\n ")
    []

    ```
    """
    check_split_mode(how)
    if not isinstance(text, str):
        raise TypeError(
            f"`text` must be a str, got {type(text).__name__}. For chat messages, pass the content of the assistant's "
            "message."
        )
    steps: list[Step] = []
    start = 0  # of the step that is being collected: it takes in blank pieces in front of it
    for piece_start, piece_end in _pieces(text, how):
        piece = text[piece_start:piece_end].strip()
        if piece:
            steps.append(Step(piece, start, piece_end))
        elif steps:  # white space after a step goes to that step
            last = steps[-1]
            steps[-1] = Step(last.text, last.start, piece_end)
        else:
            continue
        start = piece_end
    return steps


def step_texts(text: str, how: str = "newline") -> list[str]:
    """The texts of [`split_steps`], for callers that need no spans.

    Example:

    ```python
    >>> step_texts("Step 1: add. Step 2: as in Step 1: add.", how="step_marker")
    ['Step 1: add.', 'Step 2: as in Step 1: add.']

    ```
    """
    return [step.text for step in split_steps(text, how)]


def join_steps(steps: Sequence[str], separator: str = "\n") -> str:
    """Joins step texts into one text, the inverse of [`step_texts`].

    `step_texts(join_steps(steps)) == steps` for steps without white space around them or line ends within them. The
    separators of the other modes: `"\\n\\n"` for `"blank_line"`, `"\\n"` for `"step_marker"`, `" "` for `"sentence"`.

    Args:
        steps (`Sequence[str]`):
            Step texts in order.
        separator (`str`, *optional*, defaults to `"\\n"`):
            What stands between two steps. Nothing is put after the last.

    Returns:
        `str`: the text, `""` for no steps.

    Raises:
        TypeError: if `steps` is one string, which would be joined letter by letter.

    Example:

    ```python
    >>> join_steps(["4*3=2", "#2"])
    '4*3=2\\n#2'

    ```
    """
    if isinstance(steps, str):
        raise TypeError("`steps` must be a list of step texts, got one str. Pass `[text]`, or split it first.")
    return separator.join(steps)


def step_index_per_token(offsets: Sequence[tuple[int, int]], steps: Sequence[Step]) -> list[int | None]:
    """Maps tokens to steps by their characters.

    A token belongs to the step that holds its *last* character. A token over a step end is mostly white space and the
    beginning of the next step (`"\\n2"`), and what it says is said by that next step. A token without characters (a
    special token, or one byte of a character that a neighbour carries) takes the step of the token before it or, when
    it is among the first, of the token after it.

    Args:
        offsets (`Sequence[tuple[int, int]]`):
            Of each token the first character and the one after its last, in the text that was split: `offset_mapping`
            of a fast tokenizer.
        steps (`Sequence[Step]`):
            Steps of the text, as from [`split_steps`].

    Returns:
        `list[int | None]`: of length `len(offsets)`, the index of each token's step; `None` for a token whose
        characters lie outside all spans, and for all tokens when there are no steps.

    Raises:
        ValueError: if an offset ends before it starts.

    Example:

    ```python
    >>> steps = split_steps("ab\\ncd")
    >>> step_index_per_token([(0, 2), (2, 3), (3, 5), (0, 0)], steps)  # the last one is an end-of-text token
    [0, 0, 1, 1]

    ```
    """
    starts = [step.start for step in steps]
    indices: list[int | None] = []
    for position, (start, end) in enumerate(offsets):
        if end < start:
            raise ValueError(
                f"`offsets` must be pairs (start, end) with start <= end, got {(start, end)} for token {position}. "
                "Pass the tokenizer's `offset_mapping` (return_offsets_mapping=True)."
            )
        if end == start:
            indices.append(indices[-1] if indices else None)
            continue
        index = bisect_right(starts, end - 1) - 1
        indices.append(index if index >= 0 and end <= steps[index].end else None)
    first = next((i for i, (start, end) in enumerate(offsets) if end > start), None)
    if first:
        indices[:first] = [indices[first]] * first
    return indices


def step_end_tokens(offsets: Sequence[tuple[int, int]], steps: Sequence[Step]) -> list[int | None]:
    """Position of the last token of each step, where a reward for the step is placed.

    Tokens without characters are no step's last: the end-of-text token after a completion does not move the end.

    Args:
        offsets (`Sequence[tuple[int, int]]`):
            As for [`step_index_per_token`].
        steps (`Sequence[Step]`):
            Steps of the same text.

    Returns:
        `list[int | None]`: of length `len(steps)`; `None` for a step to which no token belongs, because the tokens
        were truncated before it or because one token holds the step and the beginning of the next.

    Example:

    ```python
    >>> step_end_tokens([(0, 2), (2, 3), (3, 5), (0, 0)], split_steps("ab\\ncd"))
    [1, 2]

    ```
    """
    ends: list[int | None] = [None] * len(steps)
    for position, index in enumerate(step_index_per_token(offsets, steps)):
        if index is not None and offsets[position][0] < offsets[position][1]:
            ends[index] = position
    return ends


def _pieces(text: str, how: str) -> Iterator[tuple[int, int]]:
    """Spans that tile the text, blank ones among them."""
    start = 0
    for cut in _cuts(text, how):
        if cut > start:
            yield start, cut
            start = cut
    if start < len(text):
        yield start, len(text)


def _cuts(text: str, how: str) -> Iterator[int]:
    if how == "newline":
        return (match.end() for match in _NEWLINE.finditer(text))
    if how == "blank_line":
        return (match.end() for match in _BLANK_LINE.finditer(text))
    if how == "step_marker":
        return _step_marker_cuts(text)
    return _sentence_cuts(text)


def _step_marker_cuts(text: str) -> Iterator[int]:
    last = 0
    for match in _STEP_MARKER.finditer(text):
        number = int(match["number"])
        if match["line_start"] is not None or number == last + 1:
            last = number
            yield match.start()


def _sentence_cuts(text: str) -> Iterator[int]:
    if not text:
        return
    try:
        import sentencex
    except ImportError as error:
        raise ImportError(
            'Splitting by "sentence" needs the package sentencex, which is not installed. Run '
            '`pip install sentencex`, or split by "newline", "blank_line" or "step_marker".'
        ) from error
    # The mask is as long as the text, so the lengths of its sentences are positions in the text.
    sentences = sentencex.segment("en", _mask_math(text))
    end = 0
    at_line_start = True
    for sentence in sentences:
        is_list_marker = at_line_start and _LIST_MARKER.fullmatch(sentence) is not None
        end += len(sentence)
        at_line_start = text[end - 1] in "\r\n" or (at_line_start and not sentence.strip())
        if not is_list_marker:
            yield end
    if end != len(text):
        raise RuntimeError(
            f"sentencex returned sentences of {end} characters for a text of {len(text)}: its sentences no longer "
            "tile the text, so spans cannot be computed. Install sentencex 1.0.32, which this was tested with."
        )


def _mask_math(text: str) -> str:
    """Replaces each LaTeX span by a capitalized word of the same length, which no sentence splitter can cut.

    A full stop at the end of the LaTeX ("$x = 1.$ Then ...") ends the sentence and stays visible.
    """
    parts: list[str] = []
    position = 0
    search_from = 0
    while match := _MATH_SPAN.search(text, search_from):
        content = match[match.lastgroup]  # the group that closed last holds what is between the delimiters
        if match.lastgroup == "inline" and _PROSE.search(_TEXT_IN_MATH.sub("", content)):
            # Two words in a row between two dollars: "earned $5. Later he paid 3$" is money, not mathematics.
            search_from = match.end()
            continue
        last = content.rstrip()[-1:]
        length = match.end() - match.start()
        parts.append(text[position : match.start()])
        parts.append("Q" * (length - 1) + last if last in (".", "!", "?") else "Q" * length)
        position = search_from = match.end()
    parts.append(text[position:])
    return "".join(parts)
