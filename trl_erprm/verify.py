"""Final answers: reading one from a completion, and comparing it with the reference.

`None` is an outcome of its own here: no answer could be read. It is never folded into False, so that callers can count
it.

Two paths, for speed. `how="arithmetic"` and `how="gsm8k"` compare numbers in microseconds and never import
math-verify. The other conventions compare text and numbers first and ask math-verify (LaTeX to SymPy, milliseconds)
only where these do not decide. This module is the only importer of `math_verify`.

Departures from plain math-verify 0.9.0, each for a case where it errs or cannot be used:

- Both sides are put into `\\boxed{}`, after `\\$`, `\\!` and a stray backslash at the end are removed: bare LaTeX and
  these leftovers are not parsed otherwise.
- `2516_8` does not equal `2516`: math-verify drops the base.
- Its time limits use `signal.alarm`, so it fails outside the main thread, and an operation in C code, a stack overflow
  or `9^{9^9}` pass them. It runs in a process of its own that is killed at [`TIME_LIMIT_SECONDS`]
  ([`~worker.KillableWorker`]; about 100 MB), and limits on length, nesting and powers, decided beforehand, keep
  degenerate answers from taking that long.
- A list of boxes (`\\boxed{1} and \\boxed{2}`) is one answer, `1, 2`, so that a completion cannot hedge.
"""

import logging
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from trl_erprm.choices import check_choice
from trl_erprm.worker import KillableWorker, WorkerDiedError

__all__ = ["ANSWER_CONVENTIONS", "extract_answer", "marked_answer", "readable_reference", "verify_answer"]

logger = logging.getLogger(__name__)

ANSWER_CONVENTIONS = ("auto", "gsm8k", "boxed", "math", "arithmetic")

MAX_ANSWER_CHARS = 1_000
"""Longest answer that math-verify is given, in characters. A longer one is compared as text only."""

MAX_BOX_CHARS = 10_000
"""Longest content of a box, in characters. What is longer is no answer."""

MAX_NESTING = 12
"""Deepest brackets that math-verify is given. Answers of the MATH data set have 6 at most; its parser takes half a
second for 12 brackets around one another, and seconds for 20."""

MAX_SEARCHED_CHARS = 2_000
"""Length of the end of a completion, in characters, that math-verify searches. Answers stand at the end."""

MAX_BOXES = 100
"""Number of boxes, from the last one backwards, among which an answer is searched."""

TIME_LIMIT_SECONDS = 5.0
"""Limit for one extraction or one comparison by math-verify, in seconds (math-verify's own default for each)."""


class _Number(NamedTuple):
    value: int | Fraction
    unit: str  # lower case, "%" for per cent, "" for none


_NUMBER = re.compile(
    r"""
    \s*(?:\\?[$£€])?\s*(?P<sign>[-+\u2212])?\s*(?:\\?[$£€])?\s*
    (?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?P<decimals>\.[0-9]+)?
    (?:\s*/\s*(?P<denominator>[0-9]+))?
    \s*(?P<unit>\\?%|[A-Za-z][A-Za-z '-]*)?\s*\.?\s*
    """,
    re.VERBOSE,
)
_FRACTION = re.compile(r"\A(-?)\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}\Z")
# "5 million" must not be read as 5 with the unit "million".
_SCALING_UNIT = re.compile(r"\b(?:hundred|thousand|[mbtr]+illion|dozen|score|k|m|bn|half|and|or)\b")

_GSM8K_LINE = re.compile(r"[^\S\n]*####(?!#)(?P<answer>[^\n]*)")
# A letter is a value of the embedded task above 9.
_ARITHMETIC_LINE = re.compile(r"#(?P<answer>-?[0-9]{1,18}|[a-z])")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # what follows a backslash is no brace that opens or closes
_BRACKET = re.compile(r"[()\[\]{}]")
_ANSWER_IS = re.compile(r"\banswer\s*(?:is\s*[:=]?|[:=])\s*", re.IGNORECASE)
_END_OF_ANSWER = re.compile(r"\.(?=\s|$)|<\|")
_LATEX_COMMAND = re.compile(
    r"\\(?:text|mbox|mathrm|textbf|operatorname)\s*\{[^{}]*\}|\\(?:begin|end)\{[^{}]*\}|\\[A-Za-z]+"
)
# Powers, factorials and binomials with more digits than fit into memory: "9^{9^9}", "7^{123456789}", "(10^7)!".
_EXPLOSIVE = re.compile(
    r"\^[\s{(]*-?[0-9]+\s*\^[\s{(]*-?[0-9]|\^[\s{(]*-?[0-9]{6}|\*\*[\s(]*-?[0-9]+\s*\*\*\s*[0-9]|\*\*[\s(]*-?[0-9]{6}|[0-9]{5}[\s)}]*!|\^[\s{(]*[0-9]+[\s})]*[)}]\s*!|!\s*\)*\s*!|"
    r"\\[dt]?binom\s*\{[^{}]*[0-9]{5}"
)
# Nesting without brackets: "x^x^x^x^x^x^x^x^x", "|||||x|||||".
_BARE_NESTING = re.compile(r"(?:\^[^\s^+*/=,(){}\[\]-]{0,9}){8}|\|{5}")
_WORD = re.compile(r"[A-Za-z]{2,}")
_BASE_NUMBER = re.compile(
    r"(?=[A-F.]*[0-9])(?P<digits>[0-9A-F]+(?:\.[0-9A-F]+)?)_(?:(?P<base>[0-9])|\{(?P<long_base>[0-9]{1,2})\})"
)

# What may stand between two boxes of one list, after LaTeX markup and "y_1 =" are taken away.
_BETWEEN_BOXES = re.compile(r"[^.!?=:\n]{0,30}(?:,|;|\band|\bor)")
_MARKUP_BETWEEN_BOXES = re.compile(r"\$|\\[()\[\]]|\\q?quad|\\[,;!: ]|\\text|[{}]|\b[A-Za-z](?:_\w+)?\s*=\s*$")


def check_answer_convention(how: str, argument: str = "how") -> None:
    """Raises `ValueError` unless `how`, given as `argument`, is one of [`ANSWER_CONVENTIONS`].

    Example:

    ```python
    >>> check_answer_convention("gsm8")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: `how` must be one of 'auto', ..., got 'gsm8'. Did you mean 'gsm8k'?

    ```
    """
    check_choice(argument, how, ANSWER_CONVENTIONS)


def extract_answer(text: str, how: str = "auto") -> str | None:
    """Reads the final answer of a completion.

    Args:
        text (`str`):
            Completion.
        how (`str`, *optional*, defaults to `"auto"`):
            Where the answer stands:

            - `"gsm8k"`: on the last line that starts with `####`. It must be a number: currency signs, thousands
              separators and a unit may stand around it.
            - `"boxed"`: in the last closed `\\boxed{...}`. Boxes joined by commas, "and" or "or" are one answer.
            - `"math"`: wherever math-verify finds it. It takes almost any number or formula, so it finds an "answer"
              in a completion that was cut off, too.
            - `"arithmetic"`: on the last line, which is exactly `#` and an integer, or one letter from a to z, a value
              of the embedded task above 9 (one line end may follow).
            - `"auto"`: the first of: a `####` line that holds an expression; a box; "answer is X" or "answer: X" where
              X is an expression (the last such); the whole text if it is one expression; what `"math"` finds.

    Returns:
        `str` or `None`: the answer as it is written, without white space around it; `None` if there is none.

    Raises:
        ValueError: if `how` is not one of these.
        TypeError: if `text` is not a string.

    Example:

    ```python
    >>> extract_answer("48/2 = 24\\n#### 72", how="gsm8k")
    '72'
    >>> extract_answer("so $x = \\\\boxed{\\\\frac{1}{2}}$.")
    '\\\\frac{1}{2}'
    >>> extract_answer("4*3=2\\n#2", how="arithmetic")
    '2'
    >>> extract_answer("I do not know", how="boxed") is None
    True

    ```
    """
    check_answer_convention(how)
    _check_text("text", text)
    if how == "arithmetic":
        return _arithmetic_answer(text)
    if how == "gsm8k":
        answer = _gsm8k_answer(text)
        return answer if answer is not None and _number(answer) is not None else None
    if how == "boxed":
        return _boxed_answer(text)
    if how == "math":
        return _math_verify_answer(text[-MAX_SEARCHED_CHARS:])
    for read in (marked_answer, _lone_expression):
        answer = read(text)
        if answer is not None:
            return answer
    return _math_verify_answer(text[-MAX_SEARCHED_CHARS:])


def marked_answer(text: str, how: str = "auto") -> str | None:
    """Reads the final answer of a completion only where the completion says that it is one.

    `"auto"` and `"math"` of [`extract_answer`] go on to the last number or formula of the text, so that they find an
    "answer" in nearly every text, one that was cut off or commits itself to nothing included. Here they want a mark: a
    `####` line, a closed box, "answer is X" or "answer: X". The other conventions are as they are.

    Args:
        text (`str`), how (`str`, *optional*, defaults to `"auto"`):
            As for [`extract_answer`].

    Returns:
        `str` or `None`: the answer as it is written; `None` if none is marked.

    Raises:
        ValueError, TypeError: as [`extract_answer`].

    Example:

    ```python
    >>> [marked_answer(text) for text in ("16 - 7 = 9 eggs are left", "So the answer is 9.", "#### 9")]
    [None, '9', '9']

    ```
    """
    check_answer_convention(how)
    if how not in ("auto", "math"):
        return extract_answer(text, how)
    _check_text("text", text)
    answer = _gsm8k_answer(text)
    if answer is not None and re.search(r"[0-9\\]", answer) and _is_expression(answer):
        return answer
    answer = _boxed_answer(text)
    return _stated_answer(text) if answer is None else answer


def verify_answer(completion: str, answer: str, how: str = "auto") -> bool | None:
    """Compares the final answer of a completion with the reference answer.

    Numbers are equal by value: `1,000`, `$1000` and `1000.0` are one number. With `how="gsm8k"` every unit is ignored,
    `%` included. The other conventions, `"arithmetic"` apart (integers and letters), further count as equal what
    math-verify finds equal: `0.5` and `\\frac{1}{2}`, `x^2+2x+1` and `(x+1)^2`, numbers that agree to 6 decimals. A
    number in a stated base equals only the same digits in the same base.

    Args:
        completion (`str`):
            Completion to judge.
        answer (`str`):
            Reference. The answer alone, or a worked solution with the answer on a `####` line or in a box.
        how (`str`, *optional*, defaults to `"auto"`):
            Where the answer stands in the completion, as for [`extract_answer`].

    Returns:
        `bool` or `None`: whether the two are equal; `None` if no answer can be read in the completion. That includes
        an answer that math-verify cannot parse and, logged as a warning, one that it cannot compare within
        [`TIME_LIMIT_SECONDS`] or that is too large or too deeply nested to be evaluated.

    Raises:
        ValueError: if `how` is unknown, if the reference is empty, or if it is not a number where `how` is `"gsm8k"`
            or no integer or letter where it is `"arithmetic"`: a reference that cannot be read would count every
            completion as wrong.
        TypeError: if `completion` or `answer` is not a string.

    Example:

    ```python
    >>> verify_answer("She has 18 left.\\n#### $18.00", "18", how="gsm8k")
    True
    >>> verify_answer("I am not sure.", "18", how="gsm8k") is None
    True
    >>> verify_answer("Thus \\\\boxed{\\\\frac{2}{4}}", "1/2")
    True

    ```
    """
    _check_text("completion", completion)
    # Of the reference, everything is cached: one reference is compared with many completions.
    if how == "arithmetic":
        expected = _arithmetic_reference(answer)
        found = _arithmetic_answer(completion)
        return None if found is None else arithmetic_value(found) == expected
    if how == "gsm8k":
        expected_number = _gsm8k_reference(answer)
        found = _gsm8k_answer(completion)
        number = None if found is None else _number(found)
        return None if number is None else number.value == expected_number
    reference = _reference(answer)
    found = extract_answer(completion, how)
    return None if found is None else _equal(found, reference)


def readable_reference(answer: Any, how: str = "auto") -> str | None:
    """A reference answer as text, if [`verify_answer`] can compare with it.

    Args:
        answer (`Any`):
            What a data set has for an answer. A number is taken for its text.
        how (`str`, *optional*, defaults to `"auto"`):
            Where the answer stands in completions, as for [`extract_answer`].

    Returns:
        `str` or `None`: the reference; `None` where `verify_answer` would raise: it is empty, no text and no number,
        not a number where `how` is `"gsm8k"`, or no integer or letter where it is `"arithmetic"`.

    Raises:
        ValueError: if `how` is unknown.

    Example:

    ```python
    >>> [readable_reference(answer, how="gsm8k") for answer in ("1,000", 18, "three", "", None)]
    ['1,000', '18', None, None, None]

    ```
    """
    check_answer_convention(how)
    answer = str(answer) if isinstance(answer, int | float) else answer
    if not isinstance(answer, str):
        return None
    try:
        {"arithmetic": _arithmetic_reference, "gsm8k": _gsm8k_reference}.get(how, _reference)(answer)
    except ValueError:
        return None
    return answer


# ---------------------------------------------------------------------------------------------------------------------
# Reading an answer


def _arithmetic_answer(text: str) -> str | None:
    if text.endswith("\n"):
        text = text[:-1]
    match = _ARITHMETIC_LINE.fullmatch(text, text.rfind("\n") + 1)
    return None if match is None else match["answer"]


def arithmetic_value(answer: str) -> int | str:
    """What an answer of `how="arithmetic"` is compared by: its number, or its letter, which is equal to no number.

    Raises:
        ValueError: if it is neither an integer nor a letter from a to z.
    """
    return answer if len(answer) == 1 and "a" <= answer <= "z" else int(answer)


def _gsm8k_answer(text: str) -> str | None:
    position = text.rfind("####")
    while position >= 0:
        start = text.rfind("\n", 0, position) + 1
        match = _GSM8K_LINE.match(text, start)
        if match is not None:
            return match["answer"].strip() or None
        position = text.rfind("####", 0, start)  # a line is looked at once, however often it has the mark
    return None


def _boxed_answer(text: str) -> str | None:
    """The last closed box, or the list of boxes that ends with it."""
    contents: list[str] = []
    next_start: int | None = None  # of the box after the one that is looked at, when both may be of one list
    for match in list(_BOX.finditer(text))[: -MAX_BOXES - 1 : -1]:
        closed = _box_content(text, match.end())
        if closed is None:
            if contents:
                break
            continue
        content, end = closed
        if next_start is not None:
            between = _MARKUP_BETWEEN_BOXES.sub("", text[end:next_start]).strip() if end <= next_start else ""
            if not _BETWEEN_BOXES.fullmatch(between):
                break
        contents.append(content)
        next_start = match.start()
    contents = [content.strip() for content in reversed(contents)]
    return ", ".join(contents) or None


def _box_content(text: str, start: int) -> tuple[str, int] | None:
    """Content of a box whose `\\boxed` ends at `start`, and the position after it. `None` if it does not close."""
    if text[start : start + 1] != "{":  # "\boxed 5", as in some MATH solutions
        match = re.compile(r"[^\s$\\.,]+").match(text, start)
        return None if match is None else (match[0], match.end())
    depth = 0
    # A box is not searched further than an answer can be long: many open boxes would take quadratic time.
    for match in _BRACE.finditer(text, start, min(len(text), start + MAX_BOX_CHARS + 2)):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : match.start()], match.end()
    return None


def _stated_answer(text: str) -> str | None:
    """The X of the last "the answer is X" or "Final answer: X", where X is an expression or a few words."""
    matches = list(_ANSWER_IS.finditer(text))
    if not matches:
        return None
    line = text[matches[-1].end() :].partition("\n")[0]
    answer = _END_OF_ANSWER.split(line, maxsplit=1)[0].strip().strip("*").strip()
    if _is_expression(answer):
        return answer
    # "The answer is Evelyn Smith": words without a number are read as they are.
    return answer if answer and not re.search(r"[0-9\\$]", answer) and len(answer.split()) <= 4 else None


def _lone_expression(text: str) -> str | None:
    answer = text.strip()
    return answer if "\n" not in answer and _is_expression(answer) else None


def _is_expression(text: str) -> bool:
    """Whether the text is a number, a formula or one word, with no prose around it."""
    if not text or len(text) > MAX_ANSWER_CHARS:
        return False
    if _number(text) is not None:
        return True
    return len(text.split()) == 1 or _WORD.search(_LATEX_COMMAND.sub("", text)) is None


# ---------------------------------------------------------------------------------------------------------------------
# Reading the reference


@lru_cache(maxsize=65_536)
def _reference(answer: str) -> str:
    _check_reference(answer)
    found = _gsm8k_answer(answer)
    if found is None and "\\boxed" in answer:
        found = _boxed_answer(answer)
    return answer.strip() if found is None else found


@lru_cache(maxsize=65_536)
def _gsm8k_reference(answer: str) -> int | Fraction:
    number = _number(_reference(answer))
    if number is None:
        raise ValueError(
            f'`answer` must be a number, or end with a line "#### number", where `how` is "gsm8k", got {answer!r}. '
            'For other answers pass how="auto" or how="boxed".'
        )
    return number.value


@lru_cache(maxsize=65_536)
def _arithmetic_reference(answer: str) -> int | str:
    _check_reference(answer)
    try:
        return arithmetic_value(_arithmetic_answer(answer) or answer)
    except ValueError:
        raise ValueError(
            '`answer` must be an integer such as "3" or "#3", or one letter from a to z, where `how` is "arithmetic", '
            f'got {answer!r}. For other answers pass how="auto".'
        ) from None


def _check_reference(answer: str) -> None:
    _check_text("answer", answer)
    if not answer.strip():
        raise ValueError(
            f"`answer` must hold a reference answer, got {answer!r}. Drop the rows without one, or do not verify them."
        )


def _check_text(name: str, text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"`{name}` must be a str, got {text!r} ({type(text).__name__}). Convert it with str().")


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


@lru_cache(maxsize=65_536)
def _number(text: str) -> _Number | None:
    """Reads a number with at most a currency sign and a unit around it, exactly. `None` if it is anything else."""
    if len(text) > 100:  # Python refuses to convert thousands of digits, and no answer has so many
        return None
    match = _NUMBER.fullmatch(text)
    if match is None or not (match["whole"] or match["decimals"]):
        return None
    unit = (match["unit"] or "").strip().lower()
    if _SCALING_UNIT.search(unit):
        return None
    value: int | Fraction = int(match["whole"].replace(",", "") or "0")
    if match["decimals"]:
        value = Fraction(f"{value}{match['decimals']}")
    if match["denominator"]:
        if int(match["denominator"]) == 0:
            return None
        value = Fraction(value, int(match["denominator"]))
    if match["sign"] not in (None, "+"):
        value = -value
    return _Number(value, "%" if unit in ("%", "\\%", "percent") else unit)


def _equal(found: str, reference: str) -> bool | None:
    """Whether two answers are equal, `None` if `found` cannot be read as one."""
    found, reference = _clean(found), _clean(reference)
    if _compact(found) == _compact(reference):
        return True
    left, right = _number(_FRACTION.sub(r"\1\2/\3", found)), _number(_FRACTION.sub(r"\1\2/\3", reference))
    if left is not None and right is not None and (left.unit == "%") == (right.unit == "%"):
        if left.value == right.value:
            return left.unit == right.unit or not left.unit or not right.unit
        if isinstance(left.value, int) and isinstance(right.value, int):
            return False
        # Fractions and decimals may still agree to 6 decimals, which is math-verify's to say.
    left_base, right_base = _BASE_NUMBER.fullmatch(_compact(found)), _BASE_NUMBER.fullmatch(_compact(reference))
    if left_base is not None or right_base is not None:
        return left_base is not None and right_base is not None and _in_base(left_base) == _in_base(right_base)
    if max(len(found), len(reference)) > MAX_ANSWER_CHARS:
        logger.warning("An answer of %d characters is compared as text only: not equal.", len(found))
        return False
    for answer in (found, reference):
        if reason := _why_not_evaluated(answer):
            logger.warning(
                "The answer %.80r is too %s to be evaluated, and is not the same text: None.", answer, reason
            )
            return None
    return _math_verify_equal(found, reference)


def _why_not_evaluated(text: str) -> str | None:
    """`"large"` or `"deeply nested"` where math-verify would take very long, else `None`."""
    if _EXPLOSIVE.search(text):
        return "large"
    if _BARE_NESTING.search(text):
        return "deeply nested"
    depth = 0
    for match in _BRACKET.finditer(text):
        depth = depth + 1 if match[0] in "([{" else max(0, depth - 1)
        if depth > MAX_NESTING:
            return "deeply nested"
    return None


def _in_base(match: re.Match[str]) -> tuple[str, str]:
    return match["digits"], match["base"] or match["long_base"]


def _clean(answer: str) -> str:
    """Takes away what carries no meaning and what math-verify stumbles over."""
    answer = re.sub(r",\s*\\!\s*", "", answer)  # 12,\!000 is one number
    answer = answer.replace("\\!", "").replace("\\$", "").strip()
    while answer:
        before = answer
        for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            if len(answer) > len(opening + closing) and answer.startswith(opening) and answer.endswith(closing):
                inner = answer[len(opening) : -len(closing)]
                if opening not in inner and closing not in inner:
                    answer = inner
        answer = answer.strip().removesuffix(".").strip()
        if answer.endswith("\\") and not answer.endswith("\\\\"):
            answer = answer[:-1].strip()
        if answer == before:
            break
    return answer


def _compact(answer: str) -> str:
    answer = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[,;: ]|~|\s+", "", answer)
    answer = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", answer)
    return re.sub(r"\\(?:text|mbox|mathrm)\{([^{}]*)\}", r"\1", answer)


# ---------------------------------------------------------------------------------------------------------------------
# math-verify


_worker = KillableWorker("trl_erprm.verify:_load_math_verify")


@lru_cache(maxsize=8_192)  # a completion is often asked twice: for its verdict, and for its vote
def _math_verify_answer(text: str) -> str | None:
    if reason := _why_not_evaluated(text):
        logger.warning("No answer is searched in a text with something too %s to be evaluated: %.80r.", reason, text)
        return None
    answer = _within_time_limit("No answer could be found in %.80r", "find", text)
    return answer.strip(" \t\r\n.*") or None if answer else None  # with Markdown around it


@lru_cache(maxsize=65_536)
def _math_verify_equal(found: str, reference: str) -> bool | None:
    return _within_time_limit("The answer %.80r could not be compared with %.80r", "compare", found, reference)


def _within_time_limit(failure: str, operation: str, *texts: str) -> Any:
    """What [`_load_math_verify`]'s function returns, or `None`, with a warning that begins with `failure`."""
    try:
        return _worker.call(TIME_LIMIT_SECONDS, operation, *texts)
    except TimeoutError:
        logger.warning(f"{failure} within %g s; it counts as None.", *texts, TIME_LIMIT_SECONDS)
    except (WorkerDiedError, RuntimeError) as error:
        logger.warning(f"{failure}: %s; it counts as None.", *texts, error)
    return None


def _load_math_verify() -> Callable[..., Any]:
    """What runs in the process of its own: `("find", text)` and `("compare", found, reference)`."""
    import math_verify

    @lru_cache(maxsize=16_384)
    def parse(answer: str) -> list[Any]:
        return math_verify.parse(f"\\boxed{{{answer}}}", parsing_timeout=None)

    def find(text: str) -> str | None:
        # It returns the parsed expression and, last, the text that it was parsed from.
        found = math_verify.parse(text, parsing_timeout=None)
        return found[-1] if found and isinstance(found[-1], str) else None

    def compare(found: str, reference: str) -> bool | None:
        left, right = parse(found), parse(reference)
        if all(isinstance(part, str) for part in left):
            return None  # only text, which did not match: math-verify could not parse it
        return bool(math_verify.verify(right, left, timeout_seconds=None))

    return lambda operation, *texts: {"find": find, "compare": compare}[operation](*texts)
