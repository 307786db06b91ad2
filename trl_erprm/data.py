"""Row types, and readers that turn public data into them.

**Prompt row**, the input of rollouts and of RL: `prompt` (str or messages), `answer` (str, the reference for
[`verify_answer`]) and, where the data holds a worked solution, `solution` (str) and `completions` (list[str], its
steps as `split_steps(solution)` gives them).

**Stepwise row**, TRL's stepwise-supervision type extended: `prompt` (str or messages), `completions` (list[str], the
steps), `labels` (list of bool or float in [0, 1]; None or NaN = no label for that step). Rows labelled by rollouts
further hold `num_correct` and `num_rollouts` (list[int]), `answer` and `outcome`.

The readers recognize a layout by its columns ([`PROMPT_LAYOUTS`], [`STEPWISE_LAYOUTS`]), keep the columns that they do
not read, and never lose a row in silence: a row that cannot be read is an error with its number or, on request,
counted and logged. Rows are numbered from 0, as in `dataset[17]`.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk

from trl_erprm.steps import check_split_mode, step_texts
from trl_erprm.verify import extract_answer

__all__ = [
    "PROMPT_LAYOUTS",
    "STEPWISE_LAYOUTS",
    "load_rows",
    "strip_calculator_marks",
    "to_prompt_rows",
    "to_stepwise_rows",
    "validate_stepwise_rows",
]

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

STEP_TAG = "ки"
"""Math-Shepherd's step tag, a token of its own in LLaMA's vocabulary, which ER-PRM's released data took over."""

PROMPT_LAYOUTS: dict[str, tuple[str, ...]] = {
    "TRL": ("prompt",),
    "GSM8K": ("question", "answer"),
    "MATH": ("problem", "solution"),
    "MATH, answers only": ("problem", "answer"),
}
"""Columns by which [`to_prompt_rows`] recognizes each layout, in the order of preference."""

STEPWISE_LAYOUTS: dict[str, tuple[str, ...]] = {
    "TRL stepwise": ("prompt", "completions", "labels"),
    "PRM800K, flat": ("prompt", "completions", "ratings"),
    "PRM800K": ("question", "label"),
    "Math-Shepherd": ("input", "label"),
    "ER-PRM": ("text", "value"),
    "OpenRLHF": ("input", "value"),
    "OmegaPRM (math-aps)": ("question", "reasoning_steps"),
}
"""Columns by which [`to_stepwise_rows`] recognizes each layout, in the order of preference."""

_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")
_FIRST_STEP = re.compile(r"(?<!\S)Step 1 ?:")


# ---------------------------------------------------------------------------------------------------------------------
# Prompt rows


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
    check_split_mode(split_how)
    columns = _columns(dataset)
    layout = _recognize(columns, PROMPT_LAYOUTS, "prompt")
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
    return _convert(dataset, read, features, consumed, layout, skip_unreadable)


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
    prompt, answer = _required_text(row, "question"), _required_text(row, "answer")
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
    prompt = _required_text(row, "problem")
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
    _check_prompt(row["prompt"])
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


# ---------------------------------------------------------------------------------------------------------------------
# Stepwise rows


def to_stepwise_rows(dataset: Dataset, neutral_label: float = 1.0, skip_unreadable: bool = False) -> Dataset:
    """Turns step-labelled data into stepwise rows: `prompt`, `completions`, `labels`, validated.

    Layouts, recognized by their columns:

    - **TRL stepwise** (`prompt`, `completions`, `labels`): True is 1.0, False 0.0, NaN None.
    - **Math-Shepherd** (`input`, `label`): the prompt ends where `Step 1:` begins; a step ends at the tag ` ки`, for
      which `label` has `+` (1.0) or `-` (0.0). Steps keep their `Step k:` and their calculator marks.
    - **ER-PRM** (`text`, `value`, the format that its repository trains on): the text as in Math-Shepherd, and one
      value in [0, 1] for each tag. The last step may lack its tag, as its conversion script writes it.
    - **OpenRLHF** (`input`, `value`, what its `train_prm` reads with `--placeholder_token ки`): the text as in
      Math-Shepherd, and for each tag `"+"` (1.0), `"-"` (0.0) or a number in [0, 1].
    - **PRM800K** (raw: `question`, `label`): one row along the chosen completions (or the human's, which have no
      rating: None), and one row for each further rated completion, in which only that last step has a label. So no
      rating is lost, and none counts twice.
    - **PRM800K, flat** (`prompt`, `completions`, `ratings`).
    - **OmegaPRM (math-aps)** (`question`, `reasoning_steps` with `solution_prefix` and `mc_value`): one row for each
      leaf of the tree of prefixes. A value shared by several leaves is the label in the first row only, else None.

    Args:
        dataset (`Dataset`):
            Rows of one of these layouts.
        neutral_label (`float`, *optional*, defaults to `1.0`):
            Label of PRM800K's rating 0, in [0, 1]. Ratings 1 and -1 are 1.0 and 0.0. Default: "Let's Verify Step by
            Step" (arXiv 2305.20050), whose scores count neutral steps as positive.
        skip_unreadable (`bool`, *optional*, defaults to `False`):
            Leave out rows that cannot be read, and log how many and why as a warning, instead of raising.

    Returns:
        `Dataset`: rows in order; `labels` are float64, so 0.9 stays 0.9. The other columns are kept. Where the data
        holds a reference answer, it is in `answer`.

    Raises:
        ValueError: if the columns are of no layout, or at the first row that cannot be read (with its number).
        TypeError: if `dataset` is not a `Dataset`.

    Example:

    ```python
    >>> text = "2+3+4? Step 1: 2+3=5 ки\\nStep 2: 5+4=9 ки"
    >>> to_stepwise_rows(Dataset.from_list([{"text": text, "value": [0.9, 1.0]}]))[0]
    {'prompt': '2+3+4?', 'completions': ['Step 1: 2+3=5', 'Step 2: 5+4=9'], 'labels': [0.9, 1.0]}

    ```
    """
    if not 0.0 <= neutral_label <= 1.0:
        raise ValueError(
            f"`neutral_label` must be in [0, 1], got {neutral_label!r}. Pass 1.0 to count neutral steps as good, "
            "0.0 as bad."
        )
    columns = _columns(dataset)
    layout = _recognize(columns, STEPWISE_LAYOUTS, "stepwise")
    readers: dict[str, Callable[[Row], list[Row]]] = {
        "TRL stepwise": _read_trl_stepwise,
        "PRM800K, flat": partial(_read_prm800k_flat, neutral_label=neutral_label),
        "PRM800K": partial(_read_prm800k, neutral_label=neutral_label),
        "Math-Shepherd": _read_math_shepherd,
        "ER-PRM": partial(_read_values, text_column="text"),
        "OpenRLHF": partial(_read_values, text_column="input"),
        "OmegaPRM (math-aps)": _read_math_aps,
    }
    # Where each layout holds a reference answer under another name than `answer`.
    answer_columns = {"PRM800K, flat": "gold_answer", "PRM800K": "question", "OmegaPRM (math-aps)": "final_answer"}
    features: dict[str, Any] = {
        "prompt": dataset.features["prompt"] if "prompt" in columns else Value("string"),
        "completions": [Value("string")],
        "labels": [Value("float64")],
    }
    consumed = set(STEPWISE_LAYOUTS[layout])
    if answer_columns.get(layout) in columns and "answer" not in columns:
        features["answer"] = Value("string")

    def read_and_check(row: Row) -> list[Row]:
        rows = readers[layout](row)
        for stepwise_row in rows:
            _check_stepwise_row(stepwise_row)
        return rows

    return _convert(dataset, read_and_check, features, consumed, layout, skip_unreadable)


def _read_trl_stepwise(row: Row) -> list[Row]:
    _check_stepwise_row(row)
    labels = [None if _is_no_label(label) else float(label) for label in row["labels"]]
    return [{"prompt": row["prompt"], "completions": row["completions"], "labels": labels}]


def _read_math_shepherd(row: Row) -> list[Row]:
    text, labelled = _required_text(row, "input"), _required_text(row, "label")
    prompt, steps, is_tagged = _split_tagged(text)
    # `label` is `input` with + or - in place of each tag: walk along both.
    labels: list[float | None] = []
    position = 0
    for piece in text.split(STEP_TAG)[:-1]:
        position += len(piece)
        mark = labelled[position : position + 1]
        if labelled[position - len(piece) : position] != piece or mark not in ("+", "-"):
            raise ValueError(
                "the column `label` does not follow the column `input`: expected the same text with + or - in place "
                f"of the tag number {len(labels) + 1}, got {labelled[max(position - 30, 0) : position + 10]!r}"
            )
        labels.append(1.0 if mark == "+" else 0.0)
        position += 1
    return [{"prompt": prompt, "completions": steps, "labels": labels if is_tagged else [*labels, None]}]


def _read_values(row: Row, text_column: str) -> list[Row]:
    text, values = _required_text(row, text_column), row["value"]
    if not isinstance(values, list):
        raise ValueError(f"the column `value` must be a list with one number for each step, got {values!r}")
    prompt, steps, is_tagged = _split_tagged(text)
    labels = [_label_of_mark(value, i) if isinstance(value, str) else value for i, value in enumerate(values)]
    if not is_tagged and text_column == "input" and len(labels) == len(steps) - 1:
        labels.append(None)  # OpenRLHF labels tags: what follows the last one has no label
    if len(labels) != len(steps):
        raise ValueError(
            f"the column `value` must have one number for each step, got {len(values)} for {len(steps)} steps (text "
            f"with {text.count(STEP_TAG)} tags {STEP_TAG!r})"
        )
    return [{"prompt": prompt, "completions": steps, "labels": labels}]


def _label_of_mark(mark: str, i: int) -> float:
    if mark not in ("+", "-"):
        raise ValueError(f"value {i} must be '+', '-' or a number in [0, 1], got {mark!r}")
    return 1.0 if mark == "+" else 0.0


def _split_tagged(text: str) -> tuple[str, list[str], bool]:
    """Prompt, steps, and whether the last step has its tag."""
    pieces = text.split(STEP_TAG)
    is_tagged = not pieces[-1].strip()
    if is_tagged:
        pieces.pop()
    if not pieces:
        raise ValueError(f"the text has no step, got {text[:80]!r}")
    # The last "Step 1:" before the first tag: the problem itself may speak of a "Step 1:".
    starts = [match.start() for match in _FIRST_STEP.finditer(pieces[0])]
    if not starts:
        raise ValueError(
            f"no `Step 1:` stands before the first tag {STEP_TAG!r}, so the prompt's end is unknown, got {text[:80]!r}"
        )
    prompt, pieces[0] = pieces[0][: starts[-1]].strip(), pieces[0][starts[-1] :]
    return prompt, [piece.strip() for piece in pieces], is_tagged


def _read_prm800k_flat(row: Row, neutral_label: float) -> list[Row]:
    ratings = row["ratings"]
    if not isinstance(ratings, list):
        raise ValueError(f"the column `ratings` must be a list with one rating for each step, got {ratings!r}")
    labels = [_label_of_rating(rating, neutral_label) for rating in ratings]
    new_row = {"prompt": row["prompt"], "completions": row["completions"], "labels": labels}
    return [{**new_row, "answer": row.get("gold_answer")}]


def _read_prm800k(row: Row, neutral_label: float) -> list[Row]:
    question, label = row["question"], row["label"]
    if not isinstance(question, Mapping) or "problem" not in question:
        raise ValueError(f"the column `question` must hold `problem`, got {question!r}")
    if not isinstance(label, Mapping) or not label.get("steps"):
        raise ValueError("the column `label` holds no `steps`, as for a problem that the labeler rejected")
    steps: list[str] = []
    labels: list[float | None] = []
    alternatives: list[tuple[list[str], list[float | None]]] = []
    for step in label["steps"]:
        completions = step.get("completions") or []
        chosen, human = step.get("chosen_completion"), step.get("human_completion")
        rated = [(str(c["text"]).strip(), _label_of_rating(c["rating"], neutral_label)) for c in completions]
        if chosen is not None:
            if not 0 <= chosen < len(rated):
                raise ValueError(f"`chosen_completion` must be an index into {len(rated)} completions, got {chosen}")
            following = rated.pop(chosen)
        elif human:
            following = (str(human["text"]).strip(), None)
        else:  # the solution ends here, at an error or given up
            following = rated.pop(0) if rated else None
        alternatives += [([*steps, t], [*[None] * len(steps), value]) for t, value in rated if value is not None]
        if following is None:
            break
        steps.append(following[0])
        labels.append(following[1])
        if chosen is None and not human:
            break
    problem, answer = question["problem"], question.get("ground_truth_answer")
    return [
        {"prompt": problem, "completions": completions, "labels": values, "answer": answer}
        for completions, values in [(steps, labels), *alternatives]
    ]


def _label_of_rating(rating: Any, neutral_label: float) -> float | None:
    if rating is None:
        return None
    if rating not in (-1, 0, 1):
        raise ValueError(f"a rating must be 1, 0, -1 or None, got {rating!r}")
    return {1: 1.0, 0: neutral_label, -1: 0.0}[int(rating)]


def _read_math_aps(row: Row) -> list[Row]:
    question, nodes = _required_text(row, "question"), row["reasoning_steps"]
    if not isinstance(nodes, list) or not all(isinstance(node, Mapping) and "mc_value" in node for node in nodes):
        raise ValueError("the column `reasoning_steps` must be a list of `solution_prefix` and `mc_value`")
    values: dict[str, float] = {}  # of each prefix of a solution, the question taken away
    for node in nodes:
        prefix = node["solution_prefix"]
        if not prefix.startswith(question):
            raise ValueError(f"a `solution_prefix` does not begin with the question, got {prefix[:80]!r}")
        if prefix[len(question) :].strip():  # else it is the root: the question without a step
            values.setdefault(prefix[len(question) :], node["mc_value"])
    prefixes = sorted(values, key=len)
    parents: dict[str, str] = {}
    for i, prefix in enumerate(prefixes):
        parents[prefix] = next((p for p in reversed(prefixes[:i]) if prefix.startswith(p)), "")
    inner = set(parents.values())
    is_labelled: set[str] = set()
    rows: list[Row] = []
    for leaf in (prefix for prefix in values if prefix not in inner):
        path = [leaf]
        while parents[path[0]]:
            path.insert(0, parents[path[0]])
        rows.append(
            {
                "prompt": question,
                "completions": [prefix[len(parents[prefix]) :].strip() for prefix in path],
                "labels": [None if prefix in is_labelled else values[prefix] for prefix in path],
                "answer": row.get("final_answer"),
            }
        )
        is_labelled.update(path)
    if not rows:
        raise ValueError("the column `reasoning_steps` holds no step after the question")
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Validation


def validate_stepwise_rows(rows: Dataset | Iterable[Row] | Row, row_number: int | None = None) -> None:
    """Raises `ValueError` unless every row is a stepwise row. Labels of None and NaN are legal.

    Args:
        rows (`Dataset`, `Iterable[Mapping]` or `Mapping`):
            Rows, or one row.
        row_number (`int`, *optional*):
            Number for the message where `rows` is one row.

    Raises:
        ValueError: at a missing column (naming those found and those needed) or, with the number of the row, at an
            empty prompt, no steps, an empty step, steps and labels of different lengths, or a label outside [0, 1].

    Example:

    ```python
    >>> validate_stepwise_rows({"prompt": "2+3?", "completions": ["2+3=5"], "labels": [1.5]}, row_number=17)
    Traceback (most recent call last):
        ...
    ValueError: Row 17: label 0 must be in [0, 1], a bool, or None for no label, got 1.5.

    ```
    """
    if isinstance(rows, Dataset):
        try:
            _check_columns(rows.column_names)
        except ValueError as error:
            raise ValueError(f"The dataset is not stepwise: {error}.") from None
        rows = rows.select_columns(
            list(STEPWISE_LAYOUTS["TRL stepwise"])
        )  # of wide rows, only what is checked is decoded
    numbered = [(row_number, rows)] if isinstance(rows, Mapping) else enumerate(rows)
    for number, row in numbered:
        try:
            _check_columns(row)
            _check_stepwise_row(row)
        except ValueError as error:
            raise ValueError(f"{error}." if number is None else f"Row {number}: {error}.") from None


def _check_columns(found: Iterable[str]) -> None:
    needed = STEPWISE_LAYOUTS["TRL stepwise"]
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"stepwise rows need the columns {_listed(needed)}, found {_listed(sorted(found))}: {_listed(missing)} "
            "missing. Convert other layouts with `to_stepwise_rows`"
        )


def _check_stepwise_row(row: Row) -> None:
    _check_prompt(row["prompt"])
    steps, labels = row["completions"], row["labels"]
    if not isinstance(steps, list) or not steps:
        raise ValueError(f"`completions` must be a list of at least one step, got {steps!r}")
    for i, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            raise ValueError(f"step {i} of `completions` must be a str that is not empty, got {step!r}")
    if not isinstance(labels, list) or len(labels) != len(steps):
        got = f"{len(labels)} labels" if isinstance(labels, list) else repr(labels)
        raise ValueError(f"`labels` must be a list with one label for each of the {len(steps)} steps, got {got}")
    for i, label in enumerate(labels):
        if not _is_no_label(label) and not (isinstance(label, int | float) and 0.0 <= label <= 1.0):
            raise ValueError(f"label {i} must be in [0, 1], a bool, or None for no label, got {label!r}")


def _check_prompt(prompt: Any) -> None:
    if isinstance(prompt, str):
        is_empty = not prompt.strip()
    elif isinstance(prompt, list) and all(isinstance(message, Mapping) for message in prompt):
        is_empty = not any(message.get("content") for message in prompt)
    else:
        raise ValueError(f"`prompt` must be a str or a list of messages, got {prompt!r}")
    if is_empty:
        raise ValueError(f"`prompt` must not be empty, got {prompt!r}")


def _is_no_label(label: Any) -> bool:
    return label is None or (isinstance(label, float) and math.isnan(label))


# ---------------------------------------------------------------------------------------------------------------------
# Loading

_BUILDER_OF_SUFFIX = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_COMPRESSION_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")


def load_rows(
    dataset_name: str | None = None,
    dataset_path: str | Path | None = None,
    split: str = "train",
    config: str | None = None,
    cache_dir: str | None = None,
) -> Dataset:
    """Loads one split from a file, a local directory or the Hugging Face Hub.

    Only a name that is neither a local path nor a file format is looked up on the Hub: nothing is downloaded unless
    the user names a dataset there.

    Args:
        dataset_name (`str`, *optional*):
            A file format (`"json"`, `"parquet"`, `"csv"`) for the file at `dataset_path`, a local path, or a dataset
            on the Hub.
        dataset_path (`str` or `Path`, *optional*):
            File (`.json`, `.jsonl`, `.parquet`, `.csv`, also compressed, as `.jsonl.gz`), directory written by
            `save_to_disk`, or directory of data files.
        split (`str`, *optional*, defaults to `"train"`):
            Split, with a slice if wanted (`"train[:20]"`). A file or a saved `Dataset` is one split, whose name is
            ignored.
        config (`str`, *optional*):
            Configuration of a dataset on the Hub (`"main"` for `openai/gsm8k`).
        cache_dir (`str`, *optional*):
            Where `datasets` keeps its Arrow files.

    Returns:
        `Dataset`: the rows, at least one.

    Raises:
        FileNotFoundError: if `dataset_path` does not exist.
        ValueError: if neither a name nor a path is given, if the format of the file is unknown, or if there are no
            rows.
    """
    if dataset_path is None and dataset_name is not None and Path(dataset_name).exists():
        dataset_name, dataset_path = None, dataset_name
    if dataset_path is None:
        if dataset_name is None or dataset_name in _BUILDER_OF_SUFFIX.values():
            raise ValueError(
                f"`dataset_path` must name a file or a directory where `dataset_name` is {dataset_name!r}, got None. "
                "Pass `--dataset_name json --dataset_path rows.jsonl`, or the name of a dataset on the Hub."
            )
        dataset = _load_dataset(dataset_name, config, split=split, cache_dir=cache_dir)
    else:
        dataset = _load_local(Path(dataset_path), dataset_name, split, cache_dir)
    if dataset is None or len(dataset) == 0:
        raise ValueError(f"`{dataset_path or dataset_name}` holds no row in the split {split!r}. Choose another.")
    return dataset


def _load_local(path: Path, dataset_name: str | None, split: str, cache_dir: str | None) -> Dataset | None:
    if not path.exists():
        raise FileNotFoundError(
            f"`dataset_path` must be an existing file or directory, got {str(path)!r}. Check the path, which is "
            f"relative to {Path.cwd()}."
        )
    split_name, _, sliced = split.partition("[")
    if path.is_dir():
        if not (path / "state.json").exists() and not (path / "dataset_dict.json").exists():
            return _load_dataset(str(path), split=split, cache_dir=cache_dir)
        if sliced:
            raise ValueError(
                f"`split` must be without a slice for a directory written by save_to_disk, got {split!r}. Save the "
                "rows that are wanted, or pass a file."
            )
        saved = load_from_disk(str(path))
        if not isinstance(saved, DatasetDict):
            return saved
        if split_name not in saved:
            raise ValueError(f"`split` must be one of {_listed(sorted(saved))}, which {path} holds, got {split!r}.")
        return saved[split_name]
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSION_SUFFIXES]
    builder = dataset_name or _BUILDER_OF_SUFFIX.get(suffixes[-1] if suffixes else "")
    if builder not in _BUILDER_OF_SUFFIX.values():
        raise ValueError(
            f"the format of `dataset_path` must be one of {_listed(_BUILDER_OF_SUFFIX)} (or compressed, as "
            f".jsonl.gz), got {path.name!r} with `dataset_name` {dataset_name!r}. Name the format: `--dataset_name "
            "json`."
        )
    return _load_dataset(builder, data_files={split_name: str(path)}, split=split, cache_dir=cache_dir)


def _load_dataset(*args: Any, **kwargs: Any) -> Dataset | None:
    """`datasets.load_dataset`, with `None` for no rows, of which it makes various errors."""
    try:
        return load_dataset(*args, **kwargs)
    except StopIteration:
        return None
    except ValueError as error:
        if "corresponds to no data" in str(error):
            return None
        raise


# ---------------------------------------------------------------------------------------------------------------------
# Shared by the readers


def _columns(dataset: Dataset) -> set[str]:
    if not isinstance(dataset, Dataset):
        is_split = isinstance(dataset, DatasetDict)
        hint = f"Choose one of its splits: {_listed(dataset)}." if is_split else "Make one by Dataset.from_list(rows)."
        raise TypeError(f"`dataset` must be a datasets.Dataset, got {type(dataset).__name__}. {hint}")
    return set(dataset.column_names)


def _recognize(columns: set[str], layouts: Mapping[str, tuple[str, ...]], kind: str) -> str:
    for layout, needed in layouts.items():
        if columns.issuperset(needed):
            return layout
    accepted = "; ".join(f"{layout}: {_listed(needed)}" for layout, needed in layouts.items())
    raise ValueError(
        f"The columns are of no {kind} layout: found {_listed(sorted(columns))}. Accepted: {accepted}. Rename the "
        "columns with `dataset.rename_columns({...})`."
    )


def _convert(
    dataset: Dataset,
    read: Callable[[Row], list[Row]],
    features: Mapping[str, Any],
    consumed: set[str],
    layout: str,
    skip_unreadable: bool,
) -> Dataset:
    kept = {name: f for name, f in dataset.features.items() if name not in consumed and name not in features}
    skipped: list[str] = []

    def convert(batch: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        converted: dict[str, list[Any]] = {name: [] for name in (*features, *kept)}
        for i, number in enumerate(numbers):
            row = {name: values[i] for name, values in batch.items()}
            try:
                new_rows = read(row)
            except ValueError as error:
                reason = f"Row {number}: {error}."
                if not skip_unreadable:
                    raise ValueError(
                        f"{reason} The rows were read in the layout {layout}. Mend the row, or pass "
                        "skip_unreadable=True to leave such rows out."
                    ) from None
                skipped.append(reason)
                continue
            for new_row in new_rows:
                for name in features:
                    converted[name].append(new_row.get(name))
                for name in kept:
                    converted[name].append(row[name])
        return converted

    rows = dataset.map(
        convert,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features({**features, **kept}),
        keep_in_memory=True,  # a dataset loaded from a read-only directory has no room for a cache file
        load_from_cache_file=False,  # else skipped rows would go uncounted the second time
        desc=f"Reading rows ({layout})",
    )
    if skipped:
        logger.warning(
            "%d of %d rows could not be read and are left out. The first: %s",
            len(skipped),
            len(dataset),
            " ".join(skipped[:3]),
        )
    return rows


def _required_text(row: Row, name: str) -> str:
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the column `{name}` must be a str that is not empty, got {text!r}")
    return text


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
