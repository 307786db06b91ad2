"""The check that rows are stepwise rows."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset

from .layouts import Row, listed

STEPWISE_COLUMNS = ("prompt", "completions", "labels")
"""Columns of a stepwise row: those of TRL's stepwise-supervision type."""


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
        rows = rows.select_columns(list(STEPWISE_COLUMNS))  # of wide rows, only what is checked is decoded
    numbered = [(row_number, rows)] if isinstance(rows, Mapping) else enumerate(rows)
    for number, row in numbered:
        try:
            _check_columns(row)
            check_stepwise_row(row)
        except ValueError as error:
            raise ValueError(f"{error}." if number is None else f"Row {number}: {error}.") from None


def _check_columns(found: Iterable[str]) -> None:
    missing = [name for name in STEPWISE_COLUMNS if name not in found]
    if missing:
        raise ValueError(
            f"stepwise rows need the columns {listed(STEPWISE_COLUMNS)}, found {listed(sorted(found))}: "
            f"{listed(missing)} missing. Convert other layouts with `to_stepwise_rows`"
        )


def check_stepwise_row(row: Row) -> None:
    """`ValueError`, without the number of the row, unless its steps and labels fit each other."""
    check_prompt(row["prompt"])
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
        if not is_no_label(label) and not (isinstance(label, int | float) and 0.0 <= label <= 1.0):
            raise ValueError(f"label {i} must be in [0, 1], a bool, or None for no label, got {label!r}")


def check_prompt(prompt: Any) -> None:
    """`ValueError` unless it is text or messages, and not empty."""
    if isinstance(prompt, str):
        is_empty = not prompt.strip()
    elif isinstance(prompt, list) and all(isinstance(message, Mapping) for message in prompt):
        is_empty = not any(message.get("content") for message in prompt)
    else:
        raise ValueError(f"`prompt` must be a str or a list of messages, got {prompt!r}")
    if is_empty:
        raise ValueError(f"`prompt` must not be empty, got {prompt!r}")


def is_no_label(label: Any) -> bool:
    """Whether a step has no label: None, or NaN as Arrow may hold it."""
    return label is None or (isinstance(label, float) and math.isnan(label))
