"""Scores of sampled completions from functions in TRL's reward-function protocol: a process reward, or any other.

The protocol: `reward_func(prompts, completions, **columns) -> list[float | None]`, one reward a completion, `None`
where it cannot be judged. Columns of the dataset are handed on, a value for each completion. `completion_ids`,
`trainer_state`, `log_extra` and `log_metric`, which TRL also offers, are given to a function that names them. A
function with an `identity`, as a process reward has, is taken to depend on prompt and completion alone.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..verify import verify_answer
from .rft_run import as_completion
from .selection import combine_scores

RewardFunction = Callable[..., list[float | None]]
"""TRL's reward-function protocol: `(prompts, completions, **columns) -> list[float | None]`."""

# What TRL's protocol hands to reward functions itself; a column of such a name (the steps of a worked solution, say)
# is not handed on.
_RESERVED_COLUMNS = {"prompt", "prompts", "completion", "completions", "completion_ids"}


class Scorers:
    """
    One or more reward functions, as one.

    Args:
        reward_funcs (`Callable` or `list[Callable]`):
            The functions.
        weights (`list[float]`, *optional*):
            A weight for each; all 1 where it is not given.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Of the policy, for functions that look at `completion_ids`.
        verify_how (`str`, *optional*):
            How answers are compared ([`verify_answer`]), where the selection needs to know which are right.

    Raises:
        `ValueError`: for no function, or another number of weights.
        `TypeError`: for something that cannot be called.
    """

    def __init__(
        self,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        verify_how: str | None = None,
    ):
        self.functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        if not self.functions:
            raise ValueError("`reward_funcs` is empty: there is nothing to select completions by. Give at least one.")
        for function in self.functions:
            if not callable(function):
                raise TypeError(
                    f"`reward_funcs` must hold functions in TRL's reward-function protocol, got {function!r}. For a "
                    "process reward model, give `ProcessReward(path)`."
                )
        if weights is not None and len(weights) != len(self.functions):
            raise ValueError(
                f"`reward_weights` must hold a weight for each of {len(self.functions)} reward functions, got "
                f"{len(weights)}."
            )
        self.weights, self.tokenizer, self.verify_how = weights, tokenizer, verify_how

    @property
    def names(self) -> list[str]:
        """A name for each function; of equal ones, the second is `name_2`."""
        names: list[str] = []
        for function in self.functions:
            name, number = name_of(function), 1
            while name in names:
                number += 1
                name = f"{name_of(function)}_{number}"
            names.append(name)
        return names

    @property
    def identity(self) -> list:
        """What the scores depend on, by which a run is recognized."""
        return [getattr(function, "identity", name_of(function)) for function in self.functions]

    def score(self, rows: Sequence[dict], records: Sequence[dict], trainer_state: Any = None) -> Iterator[dict]:
        """
        Scores the completions of prompts.

        Args:
            rows (`Sequence[dict]`):
                The prompts, with all their columns.
            records (`Sequence[dict]`):
                Their `completions`, and which are `truncated`.
            trainer_state ([`~transformers.TrainerState`], *optional*):
                Handed to functions that name it.

        Yields:
            `dict`: for each prompt `index`, `scores` (one a completion, `None` where it was cut off or not judged),
            `by_scorer` (the same of each function alone), and `is_correct` where that is asked for.

        Raises:
            `ValueError`: for another number of rewards than of completions, and for nan.
        """
        flat = [
            (row, text, is_cut)
            for row, record in zip(rows, records, strict=True)
            for text, is_cut in zip(record["completions"], record["truncated"], strict=True)
        ]
        # Where the same text was sampled again for a prompt, a function that says what it depends on is asked once.
        number_of: dict[tuple, int] = {}
        repeated = [number_of.setdefault((id(row), text, is_cut), len(number_of)) for row, text, is_cut in flat]
        once = list(dict(zip(repeated, flat, strict=True)).values())
        by_function = []
        for function in self.functions:
            if hasattr(function, "identity"):
                values = self._call(function, once, trainer_state)
                values = [values[number] for number in repeated]
            else:
                values = self._call(function, flat, trainer_state)
            by_function.append(values)
        combined = combine_scores(by_function, self.weights)
        start = 0
        for row, record in zip(rows, records, strict=True):
            end = start + len(record["completions"])
            # A completion that was cut off never competes: where its last step broke off, nothing was judged.
            judged = [None if cut else s for s, cut in zip(combined[start:end], record["truncated"], strict=True)]
            scored = {"index": record["index"], "scores": judged, "by_scorer": [v[start:end] for v in by_function]}
            if self.verify_how is not None:
                answer = row["answer"]
                scored["is_correct"] = [verify_answer(t, answer, self.verify_how) for t in record["completions"]]
            start = end
            yield scored

    def _call(
        self, function: RewardFunction, completions: Sequence[tuple[dict, str, bool]], trainer_state: Any
    ) -> list[float | None]:
        """The rewards of one function, checked, for completions given as row, text, and whether it was cut off."""
        rows, texts, cuts = zip(*completions, strict=True)
        offered = {
            "completion_ids": lambda: self._token_ids(texts, cuts),
            "trainer_state": lambda: trainer_state,
            "log_extra": lambda: _ignore,
            "log_metric": lambda: _ignore,
        }
        named = inspect.signature(function).parameters
        values = function(
            prompts=[row["prompt"] for row in rows],
            completions=[as_completion(row["prompt"], text) for row, text in zip(rows, texts, strict=True)],
            **{name: [row[name] for row in rows] for name in rows[0] if name not in _RESERVED_COLUMNS},
            **{name: value() for name, value in offered.items() if name in named},
        )
        if inspect.isawaitable(values):
            values = asyncio.run(_awaited(values))
        if len(values) != len(texts):
            raise ValueError(
                f"The reward function {name_of(function)!r} returned {len(values)} rewards for {len(texts)} "
                "completions. It must return one for each, in their order."
            )
        return [_checked(value, function) for value in values]

    def _token_ids(self, texts: Sequence[str], cuts: Sequence[bool]) -> list[list[int]]:
        """Tokens of the completions: of their texts, with the end token of those that ended."""
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [i if is_cut else [*i, self.tokenizer.eos_token_id] for i, is_cut in zip(ids, cuts, strict=True)]


def name_of(function: RewardFunction) -> str:
    """A name for a reward function."""
    return getattr(function, "__name__", type(function).__name__)


async def _awaited(values: Any) -> Any:
    return await values


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands for TRL's logging of extra columns and metrics, of which a table a step is made there."""


def _checked(value: float | None, function: RewardFunction) -> float | None:
    if value is not None and math.isnan(value):
        raise ValueError(
            f"The reward function {name_of(function)!r} returned nan. A completion that cannot be judged gets "
            "None; nan points to a fault in the function or the model behind it."
        )
    return None if value is None else float(value)
