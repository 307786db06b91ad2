"""Guards against reward hacking: what the text of a completion's steps gives away, without any model.

A policy that is trained on the scores of a process reward model learns to write for the score. What was seen to pay
in published runs (PURE, arXiv 2504.15275, and its issues 2 and 20; prm800k, issue 8; arXiv 2410.15115), and what stops
it:

    steps that say nothing, steps said twice      `credit_fillers=False`, `max_share_of_fillers`, `max_steps`
    one good step split into many                 `min_characters_per_step`, `max_steps`
    many steps merged into one, steps skipped     `max_step_characters`, `min_steps`
    a step that never ends                        `max_step_characters`
    an end without a marked answer                `require_answer` of [`ProcessReward`]

Lines with nothing but white space are no steps at all ([`split_steps`]), so they neither raise nor lower a score;
[`share_of_white_space`] shows whether a policy has taken to them.

Under the aggregations `min` and `product` a step added at the end cannot raise a score: the scores of the steps before
it stay as they are, and none is above 1. What pays there is to have fewer steps. Under `mean`, `last` and `max` added
steps pay by their own scores. A step put in between pays under any aggregation if the model then scores the steps
behind it higher. `python -m trl_erprm.policy.hacking_report` measures all of this on a given model.

The functions here are pure, and know steps as texts without white space around them.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from trl_erprm.prm.aggregation import aggregate
from trl_erprm.steps import Step

__all__ = [
    "StepGuards",
    "are_fillers",
    "are_repeats",
    "characters_per_step",
    "is_empty_step",
    "normalized_step",
    "share_of_empty_steps",
    "share_of_repeated_steps",
    "share_of_white_space",
]

# "Step 3:", "**Step 3:**", "3.", "3)", "(3)", "-", "*", "#": what numbers a step or makes it an item of a list.
_MARKER = re.compile(r"^(?:[\s#>*_-]*step\s*\d{1,4}\s*[:.)]*[\s*_]*|\(?\d{1,3}[.)]\s+|[#>*-]+\s+)+", re.IGNORECASE)
_WHITE_SPACE = re.compile(r"\s+")
_AROUND = ".,;:!?\"'`*_~ "


def is_empty_step(step: str) -> bool:
    """
    Whether a step says nothing: it holds no letter and no digit, of any script.

    Example:

    ```python
    >>> [is_empty_step(step) for step in ["...", "---", "$$", "2+1=3", "да", "Step 2:"]]
    [True, True, True, False, False, True]

    ```
    """
    return not any(character.isalnum() for character in _MARKER.sub("", step.strip()))


def normalized_step(step: str) -> str:
    """
    A step as it is compared with others: without its number or list marker, white space, upper case, and punctuation
    at its ends. Operators stay, so that `2+1` and `2-1` differ.

    Example:

    ```python
    >>> normalized_step("**Step 3:** So 2 + 1 = 3.") == normalized_step("- so 2+1=3")
    True
    >>> normalized_step("2+1=3") == normalized_step("2-1=3")
    False

    ```
    """
    text = _MARKER.sub("", step.strip())
    return _WHITE_SPACE.sub("", text).casefold().strip(_AROUND)


def are_repeats(steps: Sequence[str]) -> list[bool]:
    """
    For each step whether an earlier one says the same ([`normalized_step`]), next to it or not. The first never is.

    A right solution can hold repeats: `1+1+0+0` has the step `2+0=2` twice. So a repeat is a reason to give no credit
    for it, and many of them one to reject a completion, but a single one is not.

    Example:

    ```python
    >>> are_repeats(["2+0=2", "So 2.", "2 + 0 = 2", "so 2"])
    [False, False, True, True]

    ```
    """
    seen: set[str] = set()
    repeats = []
    for step in steps:
        text = normalized_step(step)
        repeats.append(text in seen)
        seen.add(text)
    return repeats


def are_fillers(steps: Sequence[str]) -> list[bool]:
    """
    For each step whether it adds nothing to those before it: it is empty ([`is_empty_step`]) or a repeat
    ([`are_repeats`]).

    Example:

    ```python
    >>> are_fillers(["2+1=3", "...", "2+1=3", "#3"])
    [False, True, True, False]

    ```
    """
    return [is_empty_step(step) or repeat for step, repeat in zip(steps, are_repeats(steps), strict=True)]


def share_of_empty_steps(steps: Sequence[str]) -> float:
    """
    Share of the steps that are empty ([`is_empty_step`]), 0 to 1; 0 for no steps.

    Example:

    ```python
    >>> share_of_empty_steps(["2+1=3", "...", "---", "#3"])
    0.5

    ```
    """
    return sum(map(is_empty_step, steps)) / len(steps) if steps else 0.0


def share_of_repeated_steps(steps: Sequence[str]) -> float:
    """
    Share of the steps that repeat an earlier one ([`are_repeats`]), 0 to 1; 0 for no steps.

    Example:

    ```python
    >>> share_of_repeated_steps(["2+1=3", "2+1=3", "2 + 1 = 3", "#3"])
    0.5

    ```
    """
    return sum(are_repeats(steps)) / len(steps) if steps else 0.0


def share_of_white_space(steps: Sequence[Step]) -> float:
    """
    Share of a text's characters that is white space around its steps, 0 to 1; 0 for no steps.

    Line ends between steps are a few per cent of a text. Blank lines are no steps and have no score, but they take the
    advantage of the step that they stand behind, and a policy can drift into writing them.

    Example:

    ```python
    >>> from trl_erprm.steps import split_steps
    >>> share_of_white_space(split_steps("2+1=3\\n#3"))
    0.125

    ```
    """
    length = sum(step.end - step.start for step in steps)
    return 1 - sum(len(step.text) for step in steps) / length if length else 0.0


def characters_per_step(steps: Sequence[str]) -> float:
    """
    Mean number of characters in a step, without white space; 0 for no steps. Splitting every step in two halves it.

    Example:

    ```python
    >>> characters_per_step(["2 + 1 = 3", "#3"])
    3.5

    ```
    """
    return sum(len(_WHITE_SPACE.sub("", step)) for step in steps) / len(steps) if steps else 0.0


@dataclass(frozen=True)
class StepGuards:
    """
    What a completion's steps must be like to be judged, and which steps can raise its score. Without arguments nothing
    is guarded.

    A completion that breaks a bound is *malformed*: [`ProcessReward`] does not score it. Bounds suit a task, so there
    are no defaults; [`suggested_guards`] reads them off solutions that are known to be good.

    Args:
        min_steps (`int`, *optional*):
            Fewest steps. Stops the merging of all steps into one and the skipping of steps: under `min` and `product`
            a solution with fewer steps has fewer chances to score low. With 2 an answer alone is rejected.
        max_steps (`int`, *optional*):
            Most steps. Bounds what added, repeated and split steps can gain, whatever their text is.
        min_characters_per_step (`float`, *optional*):
            Least mean number of characters in a step, white space aside. Stops the splitting of one step into many,
            by which under `mean` a good step counts many times. A mean, so that a short last line with the answer is
            no offence.
        max_step_characters (`int`, *optional*):
            Most characters of any step. Stops steps that never end and merged steps: one score for everything, which
            a bad part of it hardly lowers.
        max_share_of_fillers (`float`, *optional*):
            Largest share of the steps, 0 to below 1, that are empty or repeat an earlier step ([`are_fillers`]). Stops
            loops and padding. A right solution may repeat a step, so 0 suits few tasks.
        credit_fillers (`bool`, *optional*, defaults to `True`):
            Whether the scores of empty and repeated steps can raise the aggregated score. `False`: it is at most the
            aggregate of the other steps' scores ([`aggregate`][StepGuards.aggregate]), and a completion of nothing
            else is malformed. Changes nothing under `min` and `product`, which no further score can raise.

    Raises:
        `ValueError`: for a bound that nothing or everything meets, or a lower bound above the upper one.

    Example:

    ```python
    >>> guards = StepGuards(min_steps=2, max_share_of_fillers=0.5)
    >>> guards.violation(["2+1=3", "#3"]) is None
    True
    >>> guards.violation(["2+1=3", "2+1=3", "2+1=3", "#3", "#3"])
    'fillers'

    ```
    """

    min_steps: int | None = field(default=None, metadata={"help": "Fewest steps of a completion."})
    max_steps: int | None = field(default=None, metadata={"help": "Most steps of a completion."})
    min_characters_per_step: float | None = field(
        default=None, metadata={"help": "Least mean number of characters in a step, white space aside."}
    )
    max_step_characters: int | None = field(default=None, metadata={"help": "Most characters of any step."})
    max_share_of_fillers: float | None = field(
        default=None, metadata={"help": "Largest share of the steps, 0 to below 1, that are empty or repeated."}
    )
    credit_fillers: bool = field(
        default=True, metadata={"help": "Whether empty and repeated steps can raise the aggregated score."}
    )

    def __post_init__(self):
        for name in ("min_steps", "max_steps", "min_characters_per_step", "max_step_characters"):
            value = getattr(self, name)
            if value is not None and not (value >= 1 and math.isfinite(value)):
                raise ValueError(f"`{name}` must be at least 1, or None for no bound, got {value!r}.")
        if self.max_share_of_fillers is not None and not 0 <= self.max_share_of_fillers < 1:
            raise ValueError(
                f"`max_share_of_fillers` must be at least 0 and below 1, or None for no bound, got "
                f"{self.max_share_of_fillers!r}. It is a share of the steps: 0.2 admits one in five."
            )
        for low, high in (("min_steps", "max_steps"), ("min_characters_per_step", "max_step_characters")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"`{low}` must not be above `{high}`, got {least!r} and {most!r}, which no completion meets. "
                    "Lower the one or raise the other."
                )

    @property
    def settings(self) -> dict:
        """What differs from guarding nothing, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @property
    def reasons(self) -> list[str]:
        """What [`violation`][StepGuards.violation] can return with these settings."""
        reasons = [reason for reason, option in _REASONS.items() if getattr(self, option) is not None]
        return reasons if self.credit_fillers or "fillers" in reasons else [*reasons, "fillers"]

    def violation(self, steps: Sequence[str]) -> str | None:
        """
        Why these steps are malformed: `"few_steps"`, `"many_steps"`, `"short_steps"`, `"long_step"`, `"fillers"`; or
        `None` if they are not.
        """
        if self.min_steps is not None and len(steps) < self.min_steps:
            return "few_steps"
        if self.max_steps is not None and len(steps) > self.max_steps:
            return "many_steps"
        if self.min_characters_per_step is not None and characters_per_step(steps) < self.min_characters_per_step:
            return "short_steps"
        if self.max_step_characters is not None and max(map(len, steps), default=0) > self.max_step_characters:
            return "long_step"
        if self.max_share_of_fillers is None and self.credit_fillers:
            return None
        fillers = are_fillers(steps)
        too_many = self.max_share_of_fillers is not None and sum(fillers) > self.max_share_of_fillers * len(steps)
        return "fillers" if too_many or (not self.credit_fillers and all(fillers)) else None

    def aggregate(self, steps: Sequence[str], step_scores: Sequence[float], how: str = "min") -> float:
        """
        The score of a completion from the scores of its steps ([`aggregate`]): with `credit_fillers=False`, the least
        of that over all steps and that over the steps that are no fillers.

        The least of the two, because fillers left out altogether would be a way to hide from `min` a step that the
        model scores low because it is a repeat.

        Example:

        ```python
        >>> steps, step_scores = ["1+1=3", "...", "...", "#3"], [0.25, 1.0, 1.0, 0.25]
        >>> StepGuards().aggregate(steps, step_scores, "mean")
        0.625
        >>> StepGuards(credit_fillers=False).aggregate(steps, step_scores, "mean")
        0.25

        ```
        """
        score = aggregate(step_scores, how)
        if self.credit_fillers:
            return score
        counted = [s for s, filler in zip(step_scores, are_fillers(steps), strict=True) if not filler]
        return min(score, aggregate(counted, how))


# In the order in which `violation` looks.
_REASONS = {
    "few_steps": "min_steps",
    "many_steps": "max_steps",
    "short_steps": "min_characters_per_step",
    "long_step": "max_step_characters",
    "fillers": "max_share_of_fillers",
}
