"""What the readers share: a layout is recognized by its columns, and no row is lost in silence."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from datasets import Dataset, DatasetDict, Features

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


def column_names(dataset: Dataset) -> set[str]:
    """Names of the columns; `TypeError`, with what to do, for anything but a `Dataset`."""
    if not isinstance(dataset, Dataset):
        is_split = isinstance(dataset, DatasetDict)
        hint = f"Choose one of its splits: {listed(dataset)}." if is_split else "Make one by Dataset.from_list(rows)."
        raise TypeError(f"`dataset` must be a datasets.Dataset, got {type(dataset).__name__}. {hint}")
    return set(dataset.column_names)


def recognize_layout(columns: set[str], layouts: Mapping[str, tuple[str, ...]], kind: str) -> str:
    """The first of `layouts` whose columns are all there."""
    for layout, needed in layouts.items():
        if columns.issuperset(needed):
            return layout
    accepted = "; ".join(f"{layout}: {listed(needed)}" for layout, needed in layouts.items())
    raise ValueError(
        f"The columns are of no {kind} layout: found {listed(sorted(columns))}. Accepted: {accepted}. Rename the "
        "columns with `dataset.rename_columns({...})`."
    )


def convert_rows(
    dataset: Dataset,
    read: Callable[[Row], list[Row]],
    features: Mapping[str, Any],
    consumed: set[str],
    layout: str,
    skip_unreadable: bool,
) -> Dataset:
    """The rows that `read` makes of each row, in order; the columns that it does not consume are kept."""
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


def required_text(row: Row, name: str) -> str:
    """The text of a column; `ValueError` where there is none."""
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the column `{name}` must be a str that is not empty, got {text!r}")
    return text


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(f"`{name}`" for name in names)
