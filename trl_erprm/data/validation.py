"""The check that rows are stepwise rows, and that their labels were made with one eta."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset, IterableDataset

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


def eta_of_labels(dataset: Dataset | IterableDataset, name: str = "train") -> float | None:
    """The eta that the labels of a dataset were made with, as its column `eta` says, which the labeler writes.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows. Of a streaming dataset only the first is looked at; [`check_eta_of_labels`] checks the others.
        name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset, for messages.

    Returns:
        `float` or `None`: `None` where there is no such column, or where no row has a value in it.

    Raises:
        ValueError: if the rows have several values, or one that is no number.

    Example:

    ```python
    >>> eta_of_labels(Dataset.from_list([{"labels": [0.7], "eta": 2.0}, {"labels": [0.1], "eta": 2.0}]))
    2.0
    >>> eta_of_labels(Dataset.from_list([{"labels": [0.7]}]))

    ```
    """
    if not isinstance(dataset, Dataset):
        return _eta_of_row(next(iter(dataset), {}), name)
    if "eta" not in dataset.column_names or len(dataset) == 0:
        return None
    values = list(dict.fromkeys(dataset["eta"]))  # `unique` cannot take numbers beside text, as for 2 and infinity
    eta = _eta_of_row({"eta": values[0]}, name)
    for value in values[1:]:
        check_eta_of_labels({"eta": value}, eta, name)
    return eta


def check_eta_of_labels(row: Row, eta: float | None, name: str = "train") -> None:
    """Raises `ValueError`, naming both, unless the row's labels were made with this eta."""
    other = _eta_of_row(row, name)
    if other != eta:
        shown = ["none" if value is None else f"{value:g}" for value in (eta, other)]
        raise ValueError(
            f"The labels of the {name} dataset must be made with one eta, got rows with {shown[0]} and with "
            f"{shown[1]} in the column `eta`: their labels have two meanings. Set `eta`, so that all rows are "
            "labelled anew from their counts, leave the rows of one of the two out, or remove the column `eta`: the "
            "labels are then used as they are."
        )


def _eta_of_row(row: Row, name: str) -> float | None:
    value = row.get("eta")
    try:
        eta = None if value is None else float(value)  # JSON holds an infinite one as text
    except (TypeError, ValueError):
        eta = math.nan
    if isinstance(value, bool) or eta is not None and math.isnan(eta):
        raise ValueError(
            f"The column `eta` of the {name} dataset must hold the eta that the labels were made with, a number, got "
            f"{value!r}. Rename the column if it means something else."
        )
    return eta
