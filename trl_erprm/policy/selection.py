r"""Which of the completions of a prompt are kept for fine-tuning. Pure functions: scores in, indices or reasons out.

    best            argmax_i s_i                        RAFT, arXiv 2304.06767, Algorithm 1; ER-PRM, arXiv 2412.11006
    threshold       { i : s_i >= tau }                  ReST, arXiv 2308.08998, section 3 (there s_i > tau)
    correct         { i : r_i = 1 }                     RFT, arXiv 2308.01825, section 3.3; STaR, arXiv 2203.14465
    best_correct    argmax_{i : r_i = 1} s_i            both: the answer is right, and the steps are the best
    top_k           the k highest s_i                   RAFT with more than one a prompt
    softmax         k draws without replacement, p_i proportional to exp(s_i / T), by the Gumbel top-k trick
                    (arXiv 1903.06059): between top_k (T -> 0) and a random choice (T -> inf)

s_i is the score of completion i (a process reward model's, or several combined), r_i whether its final answer is
right. A completion that is cut off or has no score is never kept, by any rule. Of equal scores the first counts.

[`select`] goes through a prompt's completions in this order and gives each the first reason that holds: cut off, no
score, prompt solved always or never, wrong answer, below the threshold, duplicate, not chosen, over the cap.
"""

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ..choices import check_choice

__all__ = [
    "DUPLICATE_KEYS",
    "REASONS",
    "RULES",
    "Candidates",
    "SelectionRule",
    "above_threshold",
    "best",
    "combine_scores",
    "distinct",
    "equation_list",
    "normalized_text",
    "select",
    "softmax_sample",
    "top_k",
]

RULES = ("best", "threshold", "correct", "best_correct", "top_k", "softmax")
"""The rules, as in the table above."""

NEEDS_ANSWERS = ("correct", "best_correct")
"""Rules that compare final answers."""

REASONS = (
    "kept",
    "truncated",
    "no_score",
    "prompt_always_solved",
    "prompt_never_solved",
    "incorrect",
    "below_threshold",
    "duplicate",
    "not_chosen",
    "over_cap",
)
"""What [`select`] says of a completion."""


# ---------------------------------------------------------------------------------------------------------------------
# Rules: which indices


def best(scores: Sequence[float | None]) -> list[int]:
    """The highest score, the first of equals: RAFT (arXiv 2304.06767, Algorithm 1).

    Args:
        scores (`Sequence[float | None]`):
            A score for each completion; `None`: never kept.

    Returns:
        `list[int]`: one index, or none where no completion has a score.

    Example:

    ```python
    >>> best([0.2, 0.7, None, 0.7])
    [1]

    ```
    """
    return top_k(scores, 1)


def top_k(scores: Sequence[float | None], k: int) -> list[int]:
    """The k highest scores, the first of equals.

    Args:
        scores (`Sequence[float | None]`):
            A score for each completion; `None`: never kept.
        k (`int`):
            How many, at least 1.

    Returns:
        `list[int]`: at most k indices, rising.

    Example:

    ```python
    >>> top_k([0.2, 0.7, None, 0.5], 2)
    [1, 3]

    ```
    """
    scored = [i for i, score in enumerate(scores) if score is not None]
    return sorted(sorted(scored, key=lambda i: -scores[i])[:k])


def above_threshold(scores: Sequence[float | None], threshold: float) -> list[int]:
    """All scores from a threshold up: ReST's filter (arXiv 2308.08998, section 3).

    Departure from ReST, which asks for more than the threshold: equal is enough, so that a threshold of 1 keeps what a
    reward of 0 or 1 calls right.

    Args:
        scores (`Sequence[float | None]`):
            A score for each completion; `None`: never kept.
        threshold (`float`):
            The lowest score that is kept.

    Returns:
        `list[int]`: indices, rising.

    Example:

    ```python
    >>> above_threshold([0.2, 0.7, None, 0.5], 0.5)
    [1, 3]

    ```
    """
    return [i for i, score in enumerate(scores) if score is not None and score >= threshold]


def softmax_sample(scores: Sequence[float | None], k: int, temperature: float, seed: int) -> list[int]:
    r"""Draws k completions without replacement, each next one with probability proportional to exp(score / T).

    The Gumbel top-k trick (arXiv 1903.06059): the k highest of score / T + g, with g = -log(-log(u)).

    Args:
        scores (`Sequence[float | None]`):
            A score for each completion; `None`: never kept.
        k (`int`):
            How many, at least 1.
        temperature (`float`):
            T, above 0. To 0: [`top_k`]. To infinity: a random choice.
        seed (`int`):
            Of the draw, from 0 up. Give each prompt another.

    Returns:
        `list[int]`: at most k indices, rising.

    Example:

    ```python
    >>> softmax_sample([0.2, 0.7, None, 0.5], k=2, temperature=1e-6, seed=0)  # the best two
    [1, 3]

    ```
    """
    uniforms = np.random.default_rng(seed).uniform(np.finfo(float).tiny, 1.0, size=len(scores))
    noisy = [
        None if score is None else score / temperature - math.log(-math.log(u))
        for score, u in zip(scores, uniforms, strict=True)
    ]
    return top_k(noisy, k)


def distinct(keys: Sequence[Hashable], scores: Sequence[float | None]) -> list[int]:
    """Of completions with equal keys, the one with the highest score (the first of equals).

    Args:
        keys (`Sequence[Hashable]`):
            What makes two completions the same: [`normalized_text`] or [`equation_list`] of them.
        scores (`Sequence[float | None]`):
            A score for each completion; one without comes last.

    Returns:
        `list[int]`: one index a key, rising.

    Example:

    ```python
    >>> distinct(["a", "b", "a"], [0.1, 0.5, 0.4])
    [1, 2]

    ```
    """
    chosen: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        if key not in chosen or _or_least(scores[i]) > _or_least(scores[chosen[key]]):
            chosen[key] = i
    return sorted(chosen.values())


# ---------------------------------------------------------------------------------------------------------------------
# Scores of several functions, and what makes two solutions equal


def combine_scores(scores: Sequence[Sequence[float | None]], weights: Sequence[float] | None = None) -> list:
    """One score a completion from those of several functions: their weighted sum, as TRL combines rewards.

    Args:
        scores (`Sequence[Sequence[float | None]]` of shape `(num_functions, num_completions)`):
            Scores, by function.
        weights (`Sequence[float]`, *optional*):
            A weight for each function; all 1 where it is not given.

    Returns:
        `list[float | None]`: one a completion; `None` where one of the functions gives none.

    Example:

    ```python
    >>> combine_scores([[0.5, None], [1.0, 1.0]], weights=[1.0, 0.5])
    [1.0, None]

    ```
    """
    weights = [1.0] * len(scores) if weights is None else weights
    return [
        None if None in of_completion else float(sum(w * s for w, s in zip(weights, of_completion, strict=True)))
        for of_completion in zip(*scores, strict=True)
    ]


def normalized_text(text: str) -> str:
    r"""Text without the white space that makes no difference: two solutions with equal ones are the same solution.

    Example:

    ```python
    >>> normalized_text(" 1 + 1 = 2 \n\n#2\n")
    '1 + 1 = 2\n#2'

    ```
    """
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


# An expression with at least one digit, "=", and a number: 2*3=6, (1 + 4) / 5 = $1.
_EQUATION = re.compile(r"(?P<left>[-+*/×÷%().,$\d\s]*\d[-+*/×÷%().,$\d\s]*)=\s*(?P<right>-?\s*\$?\s*\d[\d.,]*)")


def equation_list(text: str) -> tuple[str, ...]:
    r"""The equations of a solution in their order: what RFT calls two paths different by (arXiv 2308.01825, sec. 3.3).

    Wording, spaces and currency signs make no difference, the order of equations does. A solution without an equation
    is told by its text.

    Returns:
        `tuple[str, ...]`: equations without spaces, or the [`normalized_text`] where there is none.

    Example:

    ```python
    >>> equation_list("She has 2 * 3 = 6 eggs, and sells <<6-1=5>>5.")
    ('2*3=6', '6-1=5')
    >>> equation_list("Five, clearly.")
    ('Five, clearly.',)

    ```
    """
    found = []
    for match in _EQUATION.finditer(text):
        left = re.sub(r"[\s$,]", "", match["left"]).strip(".")
        right = re.sub(r"[\s$,]", "", match["right"]).rstrip(".")
        found.append(f"{left}={right}")
    return tuple(found) or (normalized_text(text),)


DUPLICATE_KEYS = {"text": normalized_text, "equations": equation_list}
"""What makes two completions of a prompt the same, by name."""


# ---------------------------------------------------------------------------------------------------------------------
# A prompt's completions, whole


@dataclass(frozen=True)
class Candidates:
    """The completions of one prompt, in the order they were sampled.

    Attributes:
        texts (`Sequence[str]`): the completions.
        scores (`Sequence[float | None]`): a score for each; `None` where it could not be judged.
        is_truncated (`Sequence[bool]`): whether it was cut off.
        is_correct (`Sequence[bool | None]`, *optional*): whether its final answer is right; `None`: there is none.
    """

    texts: Sequence[str]
    scores: Sequence[float | None]
    is_truncated: Sequence[bool]
    is_correct: Sequence[bool | None] | None = None


@dataclass(frozen=True)
class SelectionRule:
    """Which completions are kept: see the module for the rules and their sources.

    Attributes:
        how (`str`, *optional*, defaults to `"best"`):
            One of [`RULES`]. Default: the paper's.
        threshold (`float`, *optional*):
            Lowest score that is kept. Needed for `"threshold"`; narrows every other rule where it is given.
        k (`int`, *optional*, defaults to `1`):
            How many `"top_k"` and `"softmax"` keep.
        temperature (`float`, *optional*, defaults to `1.0`):
            T of `"softmax"`. Default: exp of the score itself.
        deduplicate (`str`, *optional*):
            One of [`DUPLICATE_KEYS`]: of equal solutions of a prompt, only the one with the highest score competes.
        max_per_prompt (`int`, *optional*):
            Most completions kept of a prompt: those with the highest scores.
        skip_always_solved (`bool`, *optional*, defaults to `False`):
            Leave out prompts of which every completion is right: there is nothing to learn.
        skip_never_solved (`bool`, *optional*, defaults to `False`):
            Leave out prompts of which no completion is right: the best of them is still wrong.

    Raises:
        ValueError: for an option that is not one of these, or out of its range.
    """

    how: str = "best"
    threshold: float | None = None
    k: int = 1
    temperature: float = 1.0
    deduplicate: str | None = None
    max_per_prompt: int | None = None
    skip_always_solved: bool = False
    skip_never_solved: bool = False

    def __post_init__(self) -> None:
        check_choice("selection", self.how, RULES)
        if self.deduplicate is not None:
            check_choice("deduplicate", self.deduplicate, tuple(DUPLICATE_KEYS))
        if self.how == "threshold" and self.threshold is None:
            raise ValueError('`selection="threshold"` needs `selection_threshold`, got None. Give the lowest score.')
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"`selection_threshold` must be a finite number, got {self.threshold}.")
        if self.k < 1:
            raise ValueError(f"`selection_k` must be at least 1, got {self.k}.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(
                f"`selection_temperature` must be a finite number above 0, got {self.temperature}. For the best ones "
                'alone, set `selection="top_k"`.'
            )
        if self.max_per_prompt is not None and self.max_per_prompt < 1:
            raise ValueError(f"`max_per_prompt` must be at least 1, or None for no cap, got {self.max_per_prompt}.")

    @property
    def needs_answers(self) -> bool:
        """Whether final answers have to be compared."""
        return self.how in NEEDS_ANSWERS or self.skip_always_solved or self.skip_never_solved


def select(candidates: Candidates, rule: SelectionRule, seed: int = 0) -> list[str]:
    """
    What becomes of each completion of a prompt, and why.

    Args:
        candidates ([`Candidates`]):
            The completions of one prompt.
        rule ([`SelectionRule`]):
            Which to keep.
        seed (`int`, *optional*, defaults to `0`):
            Of the draw in `"softmax"`: another for each prompt.

    Returns:
        `list[str]`: one of [`REASONS`] for each completion: `"kept"`, or why it was not.

    Raises:
        ValueError: where the rule compares answers and `candidates.is_correct` is missing.

    Example:

    ```python
    >>> pool = Candidates(["1+1=2", "1+1=3", "1+1=2", "1+"], [0.8, 0.9, 0.7, 0.9], [False, False, False, True],
    ...                   is_correct=[True, False, True, None])
    >>> select(pool, SelectionRule())
    ['not_chosen', 'kept', 'not_chosen', 'truncated']
    >>> select(pool, SelectionRule("correct", deduplicate="text"))
    ['kept', 'incorrect', 'duplicate', 'truncated']

    ```
    """
    if rule.needs_answers and candidates.is_correct is None:
        raise ValueError(f"The rule {rule.how!r} compares answers, but `is_correct` is missing. Give the verdicts.")
    reasons: list[str | None] = [
        "truncated" if is_truncated else "no_score" if score is None else None
        for score, is_truncated in zip(candidates.scores, candidates.is_truncated, strict=True)
    ]

    def rest() -> list[int]:
        return [i for i, reason in enumerate(reasons) if reason is None]

    def leave_out(indices: Sequence[int], reason: str) -> None:
        for i in indices:
            reasons[i] = reason

    def keep_only(kept: Sequence[int], reason: str) -> None:
        """`kept`: positions among the rest."""
        remaining = rest()
        kept = {remaining[position] for position in kept}
        leave_out([i for i in remaining if i not in kept], reason)

    def scores() -> list[float]:
        return [candidates.scores[i] for i in rest()]

    if rule.skip_always_solved and all(v is True for v in candidates.is_correct):
        leave_out(rest(), "prompt_always_solved")
    if rule.skip_never_solved and not any(v is True for v in candidates.is_correct):
        leave_out(rest(), "prompt_never_solved")
    if rule.how in NEEDS_ANSWERS:
        leave_out([i for i in rest() if candidates.is_correct[i] is not True], "incorrect")
    if rule.threshold is not None:
        keep_only(above_threshold(scores(), rule.threshold), "below_threshold")
    if rule.deduplicate is not None:
        key_of = DUPLICATE_KEYS[rule.deduplicate]
        keep_only(distinct([key_of(candidates.texts[i]) for i in rest()], scores()), "duplicate")
    if rule.how in ("best", "best_correct"):
        keep_only(best(scores()), "not_chosen")
    elif rule.how == "top_k":
        keep_only(top_k(scores(), rule.k), "not_chosen")
    elif rule.how == "softmax":
        keep_only(softmax_sample(scores(), rule.k, rule.temperature, seed), "not_chosen")
    if rule.max_per_prompt is not None:
        keep_only(top_k(scores(), rule.max_per_prompt), "over_cap")
    return ["kept" if reason is None else reason for reason in reasons]


def _or_least(score: float | None) -> float:
    return -math.inf if score is None else score
