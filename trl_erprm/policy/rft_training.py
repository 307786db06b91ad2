"""What makes the fine-tuning of an iteration the same with any number of processes, interrupted or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState


class LossMeter(TrainerCallback, ExportableState):
    """The sum of an iteration's losses. A checkpoint carries it along, so that the mean is over all steps."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Begins a sum anew."""
        self.total = torch.zeros((), dtype=torch.float64)

    def add(self, loss: torch.Tensor) -> None:
        """Adds the loss of a micro-batch, on its device, so that nothing waits for it."""
        self.total = self.total.to(loss.device) + loss

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"total": float(self.total)}}

    def read(self, checkpoint: str) -> None:
        """Takes over the sum of a checkpoint."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        total = state.stateful_callbacks[type(self).__name__]["attributes"]["total"]
        self.total = torch.tensor(total, dtype=torch.float64)


def with_fillers(rows: Dataset, num_fillers: int) -> Dataset:
    """
    Adds copies of the first row without a token to learn, behind the others.

    Several processes take equal shares of a step. Where the last rows of an epoch do not give each of them a full
    batch, accelerate fills up with rows from the beginning, which are then learned twice: another result than that of
    one process. A row without a label adds nothing to loss and gradient, which are means over labels.

    Args:
        rows ([`~datasets.Dataset`]):
            Tokenized rows, with `labels`.
        num_fillers (`int`):
            How many to add.
    """
    if num_fillers == 0:
        return rows
    filler = rows.select([0]).map(lambda row: {"labels": [-100] * len(row["labels"])}, desc=None)
    return concatenate_datasets([rows, *[filler.cast(rows.features)] * num_fillers])


class FilledRandomSampler(Sampler[int]):
    """
    The order in which one process would see the rows of an epoch, and behind them the rows that only fill up.

    Args:
        num_rows (`int`):
            Rows to learn, the first ones of the data set.
        num_fillers (`int`):
            Rows behind these.
        data_seed (`int`, *optional*):
            Of the order; torch's own where it is not given.
    """

    def __init__(self, num_rows: int, num_fillers: int, data_seed: int | None = None):
        self.num_rows, self.num_fillers = num_rows, num_fillers
        self.order = SeedableRandomSampler(range(num_rows), data_seed=data_seed)

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from range(self.num_rows, len(self))

    def __len__(self) -> int:
        return self.num_rows + self.num_fillers

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order, as accelerate does it for its own sampler."""
        self.order.set_epoch(epoch)
