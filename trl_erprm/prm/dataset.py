"""From stepwise rows to what a batch is made of: labels from rollout counts, weights, token ids and step ends.

[`ERPRMTrainer`] prepares its datasets with [`encode_rows`]; `trl_erprm.prm.doctor` calls the same function, so that
what it shows is what is trained on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..data import validate_stepwise_rows
from ..labeling.estimators import entropy_regularized_value_from_counts
from .formats import PRMFormat

logger = logging.getLogger(__name__)

ENCODED_COLUMNS = ("input_ids", "step_ends", "step_labels")
"""Columns of an encoded row that are always there."""
OPTIONAL_COLUMNS = ("step_weights", "outcome", "length")
"""Columns of an encoded row that may be there."""


def label_rows(dataset: Dataset | IterableDataset, eta: float, name: str = "train", **map_kwargs: Any):
    """
    Labels rows from their rollout counts: V_eta of each step; `None` where a step has no rollout.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows with `completions`, `num_correct` and `num_rollouts`.
        eta (`float`):
            Entropy parameter.
        name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset, for messages.
        **map_kwargs:
            For `dataset.map`.

    Returns:
        The dataset with `labels`, whatever they were before.
    """

    def label(row: dict, index: int) -> dict:
        counts = row["num_correct"], row["num_rollouts"]
        if not len(row["completions"]) == len(counts[0]) == len(counts[1]):
            raise ValueError(
                f"Row {index} of the {name} dataset has {len(row['completions'])} steps, but {len(counts[0])} "
                f"`num_correct` and {len(counts[1])} `num_rollouts`. Give one of each a step."
            )
        try:
            values = entropy_regularized_value_from_counts(*counts, eta)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Row {index} of the {name} dataset: {error}") from error
        return {"labels": [float(value) for value in values]}

    return dataset.map(label, with_indices=True, **map_kwargs)


def step_weighting(
    dataset: Dataset | IterableDataset,
    weight_by_rollouts: bool,
    balance_classes: bool,
    last_step_only: bool = False,
    name: str = "train",
) -> Callable[[Mapping], list[float]] | None:
    """
    The weights of a row's steps, as [`ERPRMConfig`] defines them; `None` where nothing is weighted.

    Args:
        dataset ([`~datasets.Dataset`]):
            Stepwise rows, with `num_rollouts` for `weight_by_rollouts`.
        weight_by_rollouts (`bool`), balance_classes (`bool`):
            As in [`ERPRMConfig`].
        last_step_only (`bool`, *optional*, defaults to `False`):
            Whether only the last step of a solution keeps its label, so that good and bad ones are balanced among
            these.
        name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset, for messages.

    Raises:
        `ValueError`: for a streaming dataset, whose labels cannot be looked at in advance; rows that are not stepwise;
        rows without `num_rollouts`, or not one for each step; and labels that are all 0 or all 1, which cannot be
        balanced.
    """
    if not (weight_by_rollouts or balance_classes):
        return None
    options = [o for o, on in (("weight_by_rollouts", weight_by_rollouts), ("balance_classes", balance_classes)) if on]
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"`{options[0]}` looks at all labels before training, which a streaming {name} dataset does not allow. "
            f"Load it as a `datasets.Dataset`, or set `{options[0]}=False`."
        )
    validate_stepwise_rows(dataset)
    most = mean = None
    if weight_by_rollouts:
        if "num_rollouts" not in dataset.column_names:
            raise ValueError(
                f"`weight_by_rollouts` needs the column `num_rollouts`, but the {name} dataset has "
                f"{', '.join(dataset.column_names)}. Add it, or set `weight_by_rollouts=False`."
            )
        columns = dataset.select_columns(["completions", "num_rollouts"])
        for index, row in enumerate(columns):
            counts = row["num_rollouts"]
            if counts is None or len(counts) != len(row["completions"]) or any(n is None or n < 0 for n in counts):
                raise ValueError(
                    f"Row {index} of the {name} dataset: `weight_by_rollouts` needs `num_rollouts` for each of the "
                    f"{len(row['completions'])} steps, 0 or more, got {counts}."
                )
        most = max((n for counts in columns["num_rollouts"] for n in counts), default=0)

    def weights(row: Mapping) -> list[float]:
        labels = _as_floats(row["labels"])
        weights = np.where(np.isnan(labels), 0.0, 1.0)  # no label, no weight
        if last_step_only:
            weights[:-1] = 0.0
        if most is not None:
            counts = np.asarray(row["num_rollouts"], dtype=np.float64)
            if not math.isnan(_as_floats([row.get("outcome")])[0]):
                counts[-1] = most  # the last step of a solution is its own outcome, and no estimate
            weights *= counts
        if mean is not None:
            weights *= np.nan_to_num(labels / (2 * mean) + (1 - labels) / (2 * (1 - mean)))
        return weights.tolist()

    if balance_classes:
        rows = dataset.select_columns([c for c in ("labels", "num_rollouts", "outcome") if c in dataset.column_names])
        of_steps = np.array([pair for row in rows for pair in zip(weights(row), row["labels"], strict=True)], float)
        is_weighted = of_steps[:, 0] > 0
        if is_weighted.any():
            mean = float(np.average(of_steps[is_weighted, 1], weights=of_steps[is_weighted, 0]))
        if mean is None or not 0 < mean < 1:
            raise ValueError(
                f"`balance_classes` weighs good steps against bad ones, but the mean label of the {name} dataset is "
                f"{mean}. Set `balance_classes=False`."
            )
    return weights


def encode_rows(
    rows: Mapping[str, Sequence],
    format: PRMFormat,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    last_step_only: bool = False,
    weights_of: Callable[[Mapping], list[float]] | None = None,
    name_row: Callable[[int], str] = lambda i: f"Row {i}: ",
) -> dict[str, list]:
    """
    A batch of stepwise rows as encoded rows.

    Args:
        rows (`Mapping[str, Sequence]`):
            Columns: `prompt`, `completions`, `labels`, and `outcome` where known.
        format ([`PRMFormat`]), tokenizer, max_length:
            As for [`PRMFormat.encode_batch`]. A step that does not fit is dropped together with its label.
        last_step_only (`bool`, *optional*, defaults to `False`):
            Whether only the last step of a solution keeps its label.
        weights_of (`Callable`, *optional*):
            From a row to the weights of its steps ([`step_weighting`]).
        name_row (`Callable[[int], str]`, *optional*):
            What to put before a message about the row of this index in the batch.

    Returns:
        `dict[str, list]`: `input_ids`, `step_ends`, `step_labels` (NaN for none), `length`, `num_dropped_steps`, and
        `outcome` and `step_weights` where known.
    """
    encoded = format.encode_batch(tokenizer, rows["prompt"], rows["completions"], max_length, name_row)
    columns: dict[str, list] = {
        "input_ids": [one.input_ids for one in encoded],
        "step_ends": [one.step_ends for one in encoded],
        "step_labels": [],
        "length": [len(one.input_ids) for one in encoded],
        "num_dropped_steps": [one.num_dropped_steps for one in encoded],
    }
    for one, labels in zip(encoded, rows["labels"], strict=True):
        labels = _as_floats(labels)
        if last_step_only:
            labels[:-1] = np.nan
        columns["step_labels"].append(labels[: len(one.step_ends)].tolist())
    if "outcome" in rows:
        columns["outcome"] = [None if outcome is None else float(outcome) for outcome in rows["outcome"]]
    if weights_of is not None:
        weights = [weights_of({name: rows[name][i] for name in rows}) for i in range(len(encoded))]
        columns["step_weights"] = [w[: len(one.step_ends)] for w, one in zip(weights, encoded, strict=True)]
    return columns


def encode_dataset(
    dataset: Dataset | IterableDataset,
    format: PRMFormat,
    tokenizer: PreTrainedTokenizerBase,
    name: str = "train",
    columns: Sequence[str] = (),
    num_proc: int | None = None,
    **options: Any,
) -> Dataset | IterableDataset:
    """
    [`encode_rows`] for a whole dataset. Of a map-style dataset, rows of which no labelled step remains are left out,
    and what `max_length` cut off is reported; a streaming one says so when it comes to such rows.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Stepwise rows.
        name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset, for messages.
        columns (`Sequence[str]`):
            Its columns, which the encoded rows replace.
        num_proc (`int`, *optional*):
            Processes to encode a map-style dataset with.
        **options:
            Further arguments of [`encode_rows`].

    Raises:
        `ValueError`: at the first row that is no stepwise row, by its number; and where no labelled step is left.
    """
    max_length = options.get("max_length")
    is_map_style = isinstance(dataset, Dataset)

    def encode(rows: Mapping[str, Sequence], indices: Sequence[int]) -> dict[str, list]:
        if not is_map_style:
            for i, index in enumerate(indices):
                validate_stepwise_rows({column: rows[column][i] for column in rows}, row_number=index)
        encoded = encode_rows(
            rows, format, tokenizer, name_row=lambda i: f"Row {indices[i]} of the {name} dataset: ", **options
        )
        num_dropped_steps = encoded.pop("num_dropped_steps") if not is_map_style else []
        if any(num_dropped_steps):
            _warn(
                f"Rows {indices[0]} to {indices[-1]} of the {name} dataset: {sum(num_dropped_steps)} steps lie beyond "
                f"`max_length` ({max_length} tokens) and were dropped together with their labels."
            )
        return encoded

    map_kwargs: dict[str, Any] = {"batched": True, "with_indices": True, "remove_columns": list(columns)}
    if not is_map_style:
        return dataset.map(encode, **map_kwargs)
    validate_stepwise_rows(dataset)
    dataset = dataset.map(encode, num_proc=num_proc, desc=f"Tokenizing {name} dataset", **map_kwargs)
    return _without_empty_rows(dataset, max_length, name)


def _without_empty_rows(dataset: Dataset, max_length: int | None, name: str) -> Dataset:
    num_dropped = sum(dataset["num_dropped_steps"])
    kept = [i for i, labels in enumerate(dataset["step_labels"]) if not np.isnan(labels).all()]
    if num_dropped:
        _warn(
            f"{num_dropped} steps of the {name} dataset lie beyond `max_length` ({max_length} tokens) and were "
            "dropped together with their labels."
        )
    if not kept:
        raise ValueError(
            f"No row of the {name} dataset has a labelled step"
            + (
                f" within `max_length` ({max_length} tokens); {num_dropped} steps were cut off. Raise `max_length`, "
                "or check the labels."
                if num_dropped
                else ". Check the labels: None and NaN mean that a step has none."
            )
        )
    if len(kept) < len(dataset):
        _warn(
            f"{len(dataset) - len(kept)} of {len(dataset)} rows of the {name} dataset have no labelled step within "
            f"`max_length` ({max_length} tokens) and were left out."
        )
        dataset = dataset.select(kept)
    return dataset.remove_columns("num_dropped_steps")


def _as_floats(labels: Sequence) -> np.ndarray:
    return np.array([math.nan if label is None else float(label) for label in labels], dtype=np.float64)


def _warn(message: str) -> None:
    """From the main process of a launch; a data loader's worker, which encodes streamed rows, knows of no other."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not is_distributed or torch.distributed.get_rank() == 0:
        logger.warning(message)
