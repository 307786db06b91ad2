"""Batches of encoded solutions, padded or laid end to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin
from trl.trainer.utils import pad


@dataclass
class StepDataCollator(DataCollatorMixin):
    """
    Makes a batch of encoded solutions.

    Args:
        pad_token_id (`int`):
            Token id for padding.
        pad_to_multiple_of (`int`, *optional*):
            Pad to a multiple of this length.
        padding_free (`bool`, *optional*, defaults to `False`):
            Whether to lay the solutions end to end in one row instead of padding them.

    The rows have `input_ids` (`list[int]`), `step_ends` (`list[int]`) and `step_labels` (`list[float]`, NaN where a
    step has no label), and may have `step_weights` (`list[float]`) and `outcome` (`float`). With B solutions of at
    most K steps, the batch has

    - `input_ids`: shape `(B, T)`, padded on the right; `padding_free`: `(1, T)`, T being the sum of the lengths;
    - `attention_mask`: as `input_ids`; `padding_free`: instead of it `position_ids` of shape `(1, T)`, and
      `cu_seq_lens_q`, `cu_seq_lens_k` of shape `(B + 1,)` and `max_length_q`, `max_length_k`, under the names that
      transformers passes to attention functions;
    - `is_step_end`, `torch.BoolTensor` of the shape of `input_ids`: where a step that has a label ends;
    - `step_labels`, `torch.FloatTensor` of shape `(B, K)`: labels in [0, 1], unrounded; NaN where there is none. Those
      that are no NaN are, in row-major order, the marks of `is_step_end`;
    - `step_weights` and `outcomes`, of shapes `(B, K)` and `(B,)`, where the rows have them; NaN for none.

    Example:

    ```python
    >>> row = {"input_ids": [5, 6, 7], "step_ends": [1, 2], "step_labels": [0.9, float("nan")]}
    >>> rows = [row, {"input_ids": [8], "step_ends": [0], "step_labels": [0.25]}]
    >>> batch = StepDataCollator(pad_token_id=0)(rows)
    >>> batch["input_ids"]
    tensor([[5, 6, 7],
            [8, 0, 0]])
    >>> batch["is_step_end"]
    tensor([[False,  True, False],
            [ True, False, False]])
    >>> batch["step_labels"]
    tensor([[0.9000,    nan],
            [0.2500,    nan]])
    >>> batch = StepDataCollator(pad_token_id=0, padding_free=True)(rows)
    >>> batch["input_ids"], batch["position_ids"], batch["cu_seq_lens_q"]
    (tensor([[5, 6, 7, 8]]), tensor([[0, 1, 2, 0]]), tensor([0, 3, 4], dtype=torch.int32))

    ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    padding_free: bool = False
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids = [torch.tensor(example["input_ids"], dtype=torch.long) for example in examples]
        is_step_end = []
        for example, ids in zip(examples, input_ids, strict=True):
            mask = torch.zeros(len(ids), dtype=torch.bool)
            labels = torch.tensor(example["step_labels"], dtype=torch.float32)
            mask[torch.tensor(example["step_ends"], dtype=torch.long)] = ~labels.isnan()
            is_step_end.append(mask)
        batch = self._end_to_end(input_ids, is_step_end) if self.padding_free else self._padded(input_ids, is_step_end)
        for name in ("step_labels", "step_weights"):
            if name in examples[0]:
                values = [torch.tensor(example[name], dtype=torch.float32) for example in examples]
                batch[name] = pad(values, padding_value=float("nan"), padding_side="right")
        if "outcome" in examples[0]:
            outcomes = [float("nan") if e["outcome"] is None else float(e["outcome"]) for e in examples]
            batch["outcomes"] = torch.tensor(outcomes)
        return batch

    def _padded(self, input_ids, is_step_end):
        padding = {"padding_side": "right", "pad_to_multiple_of": self.pad_to_multiple_of}
        return {
            "input_ids": pad(input_ids, padding_value=self.pad_token_id, **padding),
            "attention_mask": pad([torch.ones_like(ids) for ids in input_ids], padding_value=0, **padding),
            "is_step_end": pad(is_step_end, padding_value=False, **padding),
        }

    def _end_to_end(self, input_ids, is_step_end):
        num_tokens = sum(len(ids) for ids in input_ids)
        if self.pad_to_multiple_of and num_tokens % self.pad_to_multiple_of:
            # The filling is a sequence of its own, so that nothing attends to it.
            missing = -num_tokens % self.pad_to_multiple_of
            input_ids = [*input_ids, torch.full((missing,), self.pad_token_id)]
            is_step_end = [*is_step_end, torch.zeros(missing, dtype=torch.bool)]
        lengths = torch.tensor([0, *map(len, input_ids)])
        cu_seq_lens = lengths.cumsum(0).to(torch.int32)
        max_length = int(lengths.max())
        return {
            "input_ids": torch.cat(input_ids)[None],
            "position_ids": torch.cat([torch.arange(len(ids)) for ids in input_ids])[None],
            "cu_seq_lens_q": cu_seq_lens,
            "cu_seq_lens_k": cu_seq_lens,
            "max_length_q": max_length,
            "max_length_k": max_length,
            "is_step_end": torch.cat(is_step_end)[None],
        }
