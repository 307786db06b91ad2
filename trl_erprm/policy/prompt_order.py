"""[`EpochSampler`]: the order of prompts in an epoch, also for a run that was resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """
    A sampler that draws a new order in each epoch, in the order of the epoch at which a run is.

    TRL's sampler draws the order of each epoch from one generator. A resumed run has a new one, which would begin with
    the order of the first epoch again: prompts would be met twice, and others not at all.

    Args:
        sampler (`Sampler`):
            TRL's. Where it does not shuffle, it has no `generator`, and nothing changes.
        epoch (`Callable[[], float]`):
            Epochs that are complete, with a fraction of the one under way; asked when an epoch begins, or goes on.
    """

    def __init__(self, sampler: Sampler, epoch: Callable[[], float]):
        self.sampler, self.epoch = sampler, epoch
        if hasattr(sampler, "generator"):
            self.generator = sampler.generator  # accelerate makes it equal on all processes
            self._first_state = self.generator.get_state()

    def __iter__(self) -> Iterator[int]:
        if hasattr(self, "generator"):
            self.generator.set_state(self._first_state)
            for _ in range(int(self.epoch() or 0)):
                torch.randperm(self.sampler.num_samples, generator=self.generator)
        yield from self.sampler

    def __len__(self) -> int:
        return len(self.sampler)
