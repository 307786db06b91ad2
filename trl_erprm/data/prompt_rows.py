"""Prompt rows: the readers of GSM8K's, MATH's and TRL's layouts."""

import re
from functools import partial
from typing import Any

from datasets import Dataset, Value

from ..steps import check_split_mode, step_texts
from ..verify import extract_answer
from .layouts import Row, column_names, convert_rows, recognize_layout, required_text
from .validation import check_prompt

PROMPT_LAYOUTS: dict[str, tuple[str, ...]] = {
    "TRL": ("prompt",),
    "GSM8K": ("question", "answer"),
    "MATH": ("problem", "solution"),
    "MATH, answers only": ("problem", "answer"),
}
"""Columns by which [`to_prompt_rows`] recognizes each layout, in the order of preference."""

_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")


def to_prompt_rows(dataset: Dataset, split_how: str = "newline", skip_unreadable: bool = False) -> Dataset:
    """Turns prompt data into prompt rows: `prompt`, `answer` and, for worked solutions, `solution` and `completions`.

    Layouts, recognized by their columns:

    - **GSM8K** (`question`, `answer`): the answer is what follows `####`; the solution is the whole `answer` without
      the calculator marks (`<<48/2=24>>`). Its last line, `#### 72`, stays in `solution` and is the last step, as it
      is when a policy trained on such solutions writes one: `verify_answer(solution, answer, how="gsm8k")` is True. An
      `answer` of a single line without `####` is the answer itself, without a solution.
    - **MATH** (`problem` with `solution`, `answer` or both): the answer is the column of that name, else what the last
      box of the solution holds.
    - **TRL** (`prompt`, optionally `answer`, `solution`, `completions`): the prompt stays as it is, a str or messages.
      Where `answer` is absent or empty, it is read from `solution`: its `####` line, its last box, or all of it if it
      is no worked solution (one line of at most two words). A prompt without any answer is legal: `answer` is None,
      and there is no such column if the data has neither of the two.

    Args:
        dataset (`Dataset`):
            Rows of one of these layouts.
        split_how (`str`, *optional*, defaults to `"newline"`):
            How a solution is split into steps, as for [`split_steps`]. GSM8K writes one step a line; for MATH, whose
            formulas go over several lines, `"sentence"` keeps them whole.
        skip_unreadable (`bool`, *optional*, defaults to `False`):
            Leave out rows that cannot be read, and log how many and why as a warning, instead of raising.

    Returns:
        `Dataset`: one row for each row, in order. The other columns are kept.

    Raises:
        ValueError: if the columns are of no layout, or at the first row that cannot be read (with its number).
        TypeError: if `dataset` is not a `Dataset`, for example a `DatasetDict` with several splits.

    Example:

    ```python
    >>> rows = to_prompt_rows(Dataset.from_list([{"question": "3+4?", "answer": "3+4=<<3+4=7>>7\\n#### 7"}]))
    >>> rows[0]
    {'prompt': '3+4?', 'answer': '7', 'solution': '3+4=7\\n#### 7', 'completions': ['3+4=7', '#### 7']}

    ```
    """
    check_split_mode(split_how, "split_how")
    columns = column_names(dataset)
    layout = recognize_layout(columns, PROMPT_LAYOUTS, "prompt")
    if layout == "TRL":
        has_answer = bool({"answer", "solution"} & columns)
        has_solution = "solution" in columns
        read = partial(_read_trl_prompt, split_how=split_how, has_completions="completions" in columns)
        consumed = {"prompt", "answer", "solution", "completions"}
    elif layout == "GSM8K":
        has_answer = has_solution = True
        read = partial(_read_gsm8k, split_how=split_how)
        consumed = {"question", "answer"}
    else:
        has_answer, has_solution = True, "solution" in columns
        read = partial(_read_math, split_how=split_how)
        consumed = {"problem", "solution", "answer"}
    features: dict[str, Any] = {"prompt": dataset.features["prompt"] if layout == "TRL" else Value("string")}
    if has_answer:
        features["answer"] = Value("string")
    if has_solution:
        features["solution"] = Value("string")
    if has_solution or "completions" in columns and layout == "TRL":
        features["completions"] = [Value("string")]
    return convert_rows(dataset, read, features, consumed, layout, skip_unreadable)


def strip_calculator_marks(text: str) -> str:
    """Takes away GSM8K's calculator marks, which tell a tool what to compute and are no part of the solution.

    Example:

    ```python
    >>> strip_calculator_marks("He sold 48/2 = <<48/2=24>>24 clips.")
    'He sold 48/2 = 24 clips.'

    ```
    """
    return _CALCULATOR_MARK.sub("", text)


def _read_gsm8k(row: Row, split_how: str) -> list[Row]:
    prompt, answer = required_text(row, "question"), required_text(row, "answer")
    if "####" not in answer:
        if "\n" in answer.strip():
            raise ValueError(
                "the column `answer` is a solution of several lines without a line `#### answer`. Add that line, or "
                "put the solution into a column `solution` and the answer alone into `answer`"
            )
        return [{"prompt": prompt, "answer": answer.strip(), "solution": None, "completions": None}]
    solution = strip_calculator_marks(answer).strip()
    final = extract_answer(solution, how="gsm8k")
    if final is None:
        raise ValueError(f"the column `answer` has no number after `####`, got {answer[-80:]!r}. Write `#### 72`")
    return [{"prompt": prompt, "answer": final, **_worked(solution, split_how)}]


def _read_math(row: Row, split_how: str) -> list[Row]:
    prompt = required_text(row, "problem")
    solution = row.get("solution")
    answer = _optional_answer(row)
    if answer is None and isinstance(solution, str):
        answer = extract_answer(solution, how="boxed")
    if answer is None:
        raise ValueError(
            "there is no answer: the column `answer` is empty or absent, and the column `solution` has no "
            "\\boxed{...}. Add one of them"
        )
    if not isinstance(solution, str) or not solution.strip():
        return [{"prompt": prompt, "answer": answer, "solution": None, "completions": None}]
    return [{"prompt": prompt, "answer": answer, **_worked(solution, split_how)}]


def _read_trl_prompt(row: Row, split_how: str, has_completions: bool) -> list[Row]:
    check_prompt(row["prompt"])
    answer = _optional_answer(row)
    solution = row.get("solution")
    worked: Row = {"solution": None, "completions": None}
    if isinstance(solution, str) and solution.strip():
        if answer is None:
            answer = extract_answer(solution, how="gsm8k") or extract_answer(solution, how="boxed")
        is_worked = "\n" in solution.strip() or len(re.findall(r"[^\W\d_]{2,}", solution)) > 2
        if answer is None and not is_worked:
            answer = solution.strip()
        worked = _worked(solution, split_how) if is_worked else {"solution": solution, "completions": None}
    if has_completions:
        worked = {**worked, "completions": row["completions"]}
    return [{"prompt": row["prompt"], "answer": answer, **worked}]


def _worked(solution: str, split_how: str) -> Row:
    return {"solution": solution, "completions": step_texts(solution, split_how)}


def _optional_answer(row: Row) -> str | None:
    answer = row.get("answer")
    text = "" if answer is None else str(answer).strip()  # JSON files often hold numbers
    return text or None
