"""Rows of the labeler: what is accepted, how a solution becomes prefixes, and how counts become labelled rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from trl_erprm.manifest import content_hash
from trl_erprm.rollout.engine import Prefix
from trl_erprm.steps import join_steps, split_steps

from .estimators import check_eta, entropy_regularized_value_from_counts
from .intervals import check_level, label_interval

__all__ = ["Solution", "relabel"]

COUNT_COLUMNS = ("num_correct", "num_rollouts", "num_unparsed")
INTERVAL_COLUMNS = ("label_low", "label_high")
WRITTEN_COLUMNS = ("prompt", "completions", "labels", *INTERVAL_COLUMNS, *COUNT_COLUMNS, "answer", "outcome", "eta")

PrefixKey = str


@dataclass(frozen=True)
class Solution:
    row: int  # of the data set
    steps: list[str]
    prefix_texts: list[str]  # the answer up to and with step 1 .. n-1: what is rolled out
    text: str  # the whole answer
    num_duplicates: int = 1  # how often it was sampled
    is_truncated: bool = False  # sampled, and cut off at `max_new_tokens`


def relabel(dataset: Dataset, eta: float, interval_level: float = 0.95) -> Dataset:
    """Makes the labels anew from the stored counts, for another `eta` and without a rollout.

    Args:
        dataset (`Dataset`):
            Rows labelled by rollouts, with `num_correct` and `num_rollouts` (one item a step).
        eta (`float`):
            The new eta; see [`~labeling.estimators.entropy_regularized_value_from_counts`].
        interval_level (`float`, *optional*, defaults to `0.95`):
            Level of `label_low` and `label_high`, which are made anew where the rows have them; see
            [`~labeling.intervals.label_interval`].

    Returns:
        `Dataset`: the same rows with new `labels`, and `eta` beside them. A step with 0 rollouts has the label None.

    Raises:
        ValueError: if the counts are missing, or differ in length within a row (with the row), or if `eta` is nan.

    Example:

    ```python
    >>> rows = Dataset.from_list([{"completions": ["a", "b"], "num_correct": [8, 1], "num_rollouts": [16, 1]}])
    >>> relabel(rows, eta=0)["labels"][0]
    [0.5, 1.0]
    >>> relabel(rows, eta=float("inf"))["labels"][0]
    [1.0, 1.0]

    ```
    """
    eta, interval_level = check_eta(eta), check_level(interval_level)
    missing = [name for name in ("num_correct", "num_rollouts") if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"`dataset` must have the columns num_correct and num_rollouts, got {', '.join(dataset.column_names)}. "
            "Labels without counts cannot be changed to another eta: label the rows with MonteCarloLabeler."
        )
    counts = list(zip(dataset["num_correct"], dataset["num_rollouts"], strict=True))
    for index, (correct, total) in enumerate(counts):
        if correct is None or total is None or len(correct) != len(total):
            raise ValueError(
                f"Row {index}: `num_correct` and `num_rollouts` must have one item a step, got {correct} and {total}. "
                "Correct the row, or leave it out."
            )
    columns = dataset.column_names
    made = {"labels": labels_of_counts(counts, eta)}
    if all(name in columns for name in INTERVAL_COLUMNS):
        made |= dict(zip(INTERVAL_COLUMNS, intervals_of_counts(counts, eta, interval_level), strict=True))
    columns = [*columns, *(name for name in ("labels", "eta") if name not in columns)]
    dataset = dataset.remove_columns([name for name in (*made, "eta") if name in dataset.column_names])
    for name, values in made.items():
        dataset = dataset.add_column(name, values, feature=List(Value("float64")))
    dataset = dataset.add_column("eta", [eta] * len(dataset), feature=Value("float64"))
    return dataset.select_columns(columns)  # in the order that they had


Counts = Sequence[tuple[Sequence[int], Sequence[int]]]  # (num_correct, num_rollouts) of each row, one item a step


def labels_of_counts(counts: Counts, eta: float) -> list[list[float | None]]:
    """Labels of many rows, with one call of the estimator."""
    return _by_row(entropy_regularized_value_from_counts(*_flat(counts), eta), counts)


def intervals_of_counts(counts: Counts, eta: float, level: float) -> tuple[list[list[float | None]], ...]:
    """Lower and upper ends of the labels' intervals. The label of a last step is its own outcome, and is exact."""
    ends = label_interval(*_flat(counts), eta, level)
    low, high = (_by_row(end, counts) for end in ends)
    for of_row, *both in zip(labels_of_counts(counts, eta), low, high, strict=True):
        for end in both:
            end[-1:] = of_row[-1:]
    return low, high


def _flat(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    correct = np.array([c for of_row, _ in counts for c in of_row], dtype=np.int64)
    total = np.array([n for _, of_row in counts for n in of_row], dtype=np.int64)
    return correct, total


def _by_row(values: np.ndarray, counts: Counts) -> list[list[float | None]]:
    rest = iter(values.tolist())
    return [[None if math.isnan(v) else v for v in islice(rest, len(of_row))] for of_row, _ in counts]


# ---------------------------------------------------------------------------------------------------------------------
# What is given


def as_dataset(dataset: Any) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, Sequence) and all(isinstance(row, Mapping) for row in dataset) and dataset:
        return Dataset.from_list([dict(row) for row in dataset])
    raise TypeError(
        f"`dataset` must be a datasets.Dataset or a list of rows, got {type(dataset).__name__}. Choose a split of a "
        "DatasetDict; load a streamed data set with streaming=False."
    )


def check_columns(dataset: Dataset) -> str:
    """The column that holds the solutions: "completions", "completion", or "prompt" if they have to be sampled."""
    columns = dataset.column_names
    missing = [name for name in ("prompt", "answer") if name not in columns]
    if missing:
        raise ValueError(
            "`dataset` must have the columns prompt, answer and, for solutions that are there already, completions "
            f"(steps) or completion (text), got {', '.join(columns)}; {' and '.join(missing)} "
            "missing. Rename the columns."
        )
    found = [name for name in ("completions", "completion") if name in columns]
    if len(found) == 2:
        raise ValueError(
            "`dataset` must have one of the columns completions and completion, got both. Remove the one that shall "
            "not be labelled."
        )
    return found[0] if found else "prompt"


def check_row(index: int, row: Mapping[str, Any], source: str) -> None:
    """Raises `ValueError` or `TypeError`, with the row, unless it can be labelled."""
    try:
        Prefix(row["prompt"])
    except (TypeError, ValueError) as error:
        raise type(error)(f"Row {index}: {error}") from None
    if isinstance(row["prompt"], str) and not row["prompt"].strip():
        raise ValueError(f"Row {index}: `prompt` must not be empty, got {row['prompt']!r}. Leave the row out.")
    answer = row["answer"]
    if not isinstance(answer, str):
        raise (ValueError if answer is None else TypeError)(
            f"Row {index}: `answer` must be the text of the reference answer, got {answer!r}. Leave the row "
            "out, or convert the answer with str()."
        )
    if not answer.strip():
        raise ValueError(f"Row {index}: `answer` must not be empty, got {answer!r}. Leave the row out.")
    if source == "completions":
        _check_steps(index, row["completions"])
    elif source == "completion":
        if not isinstance(row["completion"], str):
            raise TypeError(
                f"Row {index}: `completion` must be a str, got {type(row['completion']).__name__}. For "
                "messages, pass the content of the assistant's message."
            )
        if not row["completion"].strip():
            raise ValueError(
                f"Row {index}: `completion` must not be empty, got {row['completion']!r}. Leave the row out."
            )


def _check_steps(row: int, steps: Any) -> None:
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise TypeError(
            f"Row {row}: `completions` must be a list of step texts, got {steps!r}. For text that has to be split, "
            "name the column `completion`."
        )
    if not steps:
        raise ValueError(f"Row {row}: `completions` must have at least one step, got []. Leave the row out.")
    for number, step in enumerate(steps):
        if not step.strip():
            raise ValueError(
                f"Row {row}: no step of `completions` may be empty, got {step!r} as step {number}. Remove the step."
            )


def solution_of_steps(row: int, steps: list[str], separator: str) -> Solution:
    prefix_texts = [_continuable(join_steps(steps[:k], separator) + separator) for k in range(1, len(steps))]
    return Solution(row, list(steps), prefix_texts, join_steps(steps, separator))


def solution_of_text(row: int, text: str, split_how: str) -> Solution:
    steps = split_steps(text, split_how)
    # Cut from the text itself: the policy continues what was written, with its white space.
    prefix_texts = [_continuable(text[: step.end]) for step in steps[:-1]]
    return Solution(row, [step.text for step in steps], prefix_texts, text)


def _continuable(text: str) -> str:
    """Without spaces at the end: a tokenizer puts them in front of the next word, where the policy expects them."""
    return text.rstrip(" \t")


def prefix_key(row: Mapping[str, Any], text: str) -> PrefixKey:
    # With the answer: the same rollouts are right for one answer and wrong for another.
    return content_hash(row["prompt"], text, row["answer"])


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def further_columns(columns: Iterable[str], optional_columns: Sequence[str]) -> list[str]:
    """Columns that are carried along."""
    return [name for name in columns if name not in (*WRITTEN_COLUMNS, *optional_columns, "completion")]


def features_of_labelled_rows(features: Features, optional_columns: Sequence[str]) -> Features:
    """Features of the labelled rows, from those of the rows that were given."""
    optional = {"num_duplicates": Value("int64"), "rollouts": List(List(Value("string")))}
    return Features(
        {
            "prompt": features["prompt"],
            "completions": List(Value("string")),
            "labels": List(Value("float64")),
            **{name: List(Value("float64")) for name in INTERVAL_COLUMNS},
            **{name: List(Value("int64")) for name in COUNT_COLUMNS},
            "answer": Value("string"),
            "outcome": Value("float64"),
            "eta": Value("float64"),
            **{name: optional[name] for name in optional_columns},
            **{name: features[name] for name in further_columns(features, optional_columns)},
        }
    )
