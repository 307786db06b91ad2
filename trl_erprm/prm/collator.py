"""Batches of encoded solutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin
from trl.trainer.utils import pad


@dataclass
class StepDataCollator(DataCollatorMixin):
    """
    Pads encoded solutions on the right to the longest of the batch.

    Args:
        pad_token_id (`int`):
            Token id for padding.
        pad_to_multiple_of (`int`, *optional*):
            Pad to a multiple of this length.

    The rows have `input_ids` (`list[int]`), `step_ends` (`list[int]`) and `step_labels` (`list[float]`, NaN where a
    step has no label). The batch has

    - `input_ids` and `attention_mask`, of shape `(B, T)`;
    - `per_token_labels`, `torch.FloatTensor` of shape `(B, T)`: the label at each step end that has one, in [0, 1],
      unrounded; NaN everywhere else.

    Example:

    ```python
    >>> row = {"input_ids": [5, 6, 7], "step_ends": [1, 2], "step_labels": [0.9, float("nan")]}
    >>> batch = StepDataCollator(pad_token_id=0)([row, {"input_ids": [8], "step_ends": [0], "step_labels": [0.25]}])
    >>> batch["input_ids"]
    tensor([[5, 6, 7],
            [8, 0, 0]])
    >>> batch["per_token_labels"]
    tensor([[   nan, 0.9000,    nan],
            [0.2500,    nan,    nan]])

    ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids = [torch.tensor(example["input_ids"]) for example in examples]
        per_token_labels = []
        for example in examples:
            labels = torch.full((len(example["input_ids"]),), torch.nan)
            labels[example["step_ends"]] = torch.tensor(example["step_labels"], dtype=torch.float32)
            per_token_labels.append(labels)
        padding = {"padding_side": "right", "pad_to_multiple_of": self.pad_to_multiple_of}
        return {
            "input_ids": pad(input_ids, padding_value=self.pad_token_id, **padding),
            "attention_mask": pad([torch.ones_like(ids) for ids in input_ids], padding_value=0, **padding),
            "per_token_labels": pad(per_token_labels, padding_value=float("nan"), **padding),
        }
