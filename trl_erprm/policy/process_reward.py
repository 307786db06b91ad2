"""[`ProcessReward`]: a process reward model as a reward function in TRL's protocol."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence

from ..manifest import weights_fingerprint
from ..prm.aggregation import aggregate, check_aggregation
from ..prm.formats import Prompt
from ..prm.scorer import ProcessRewardModel
from ..steps import check_split_mode, step_texts
from ..verify import check_answer_convention, extract_answer


class ProcessReward:
    """
    One number a completion: its step scores, aggregated. `None` where a completion cannot be judged.

    It follows TRL's reward-function protocol, so `GRPOTrainer(reward_funcs=[ProcessReward(prm)])` works as it stands,
    and [`RFTTrainer`] takes it likewise.

    A completion gets `None`, never a high score, if it has no step, if no answer can be read from it, if it is longer
    than the process reward model reads, or if `is_well_formed` says no. Under `min` aggregation a solution with fewer
    steps has fewer chances to score low, so malformed solutions win if they compete: selecting by such scores made a
    policy worse with each iteration in our runs.

    Args:
        prm ([`ProcessRewardModel`], `str` or `os.PathLike`):
            The process reward model, or the directory it is loaded from.
        aggregation (`str`, *optional*, defaults to `"min"`):
            How step scores become one number ([`aggregate`]); the default is the paper's.
        split_how (`str`, *optional*, defaults to `"newline"`):
            How a completion is split into steps ([`split_steps`]).
        answer_how (`str`, *optional*, defaults to `"auto"`):
            How an answer is looked for ([`extract_answer`]).
        require_answer (`bool`, *optional*, defaults to `True`):
            Whether a completion without an answer gets `None`.
        is_well_formed (`Callable`, *optional*):
            `is_well_formed(prompt, steps) -> bool`, a further check that the task allows.
        batch_size (`int`, *optional*, defaults to `32`):
            Completions a forward pass of the process reward model.
    """

    __name__ = "process_reward"  # TRL names the logged metric after it

    def __init__(
        self,
        prm: ProcessRewardModel | str | os.PathLike,
        aggregation: str = "min",
        split_how: str = "newline",
        answer_how: str = "auto",
        require_answer: bool = True,
        is_well_formed: Callable[[Prompt, list[str]], bool] | None = None,
        batch_size: int = 32,
    ):
        # A misspelt option is an error now, not after an hour of sampling.
        check_aggregation(aggregation)
        check_split_mode(split_how)
        check_answer_convention(answer_how)
        self.prm = ProcessRewardModel.from_pretrained(prm) if isinstance(prm, str | os.PathLike) else prm
        self.aggregation = aggregation
        self.split_how = split_how
        self.answer_how = answer_how
        self.require_answer = require_answer
        self.is_well_formed = is_well_formed
        self.batch_size = batch_size

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str | list[dict]], **kwargs
    ) -> list[float | None]:
        """
        Args:
            prompts (`Sequence` of `str` or messages):
                A prompt for each completion.
            completions (`Sequence` of `str` or messages):
                The completions; of messages, the content of the last is judged.
            **kwargs:
                What else TRL hands to reward functions; not used.

        Returns:
            `list[float | None]`: a reward in [0, 1] for each completion (under every aggregation that does not add
            up steps), or `None`.
        """
        return [
            None if step_scores is None else aggregate(step_scores, self.aggregation)
            for step_scores in self.step_scores(prompts, completions)
        ]

    @property
    def identity(self) -> dict:
        """What the rewards depend on, by which [`RFTTrainer`] recognizes a run of its own."""
        names = ("aggregation", "split_how", "answer_how", "require_answer")
        return {
            "name": self.__name__,
            "prm": weights_fingerprint(self.prm.model),
            "format": dataclasses.asdict(self.prm.format),
            "is_well_formed": getattr(self.is_well_formed, "__qualname__", None),
            **{name: getattr(self, name) for name in names},
        }

    def step_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[str | list[dict]]
    ) -> list[list[float] | None]:
        """The scores of each completion's steps, or `None` where the completion cannot be judged."""
        steps = [self._steps(prompt, c) for prompt, c in zip(prompts, completions, strict=True)]
        judged = [i for i, s in enumerate(steps) if s is not None]
        scores: list[list[float] | None] = [None] * len(steps)
        scored = self.prm.score(
            [prompts[i] for i in judged],
            [steps[i] for i in judged],
            batch_size=self.batch_size,
            none_if_too_long=True,
        )
        for i, step_scores in zip(judged, scored, strict=True):
            scores[i] = step_scores
        return scores

    def _steps(self, prompt: Prompt, completion: str | list[dict]) -> list[str] | None:
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        steps = step_texts(text, self.split_how)
        if not steps or (self.require_answer and extract_answer(text, self.answer_how) is None):
            return None
        if self.is_well_formed is not None and not self.is_well_formed(prompt, steps):
            return None
        return steps
