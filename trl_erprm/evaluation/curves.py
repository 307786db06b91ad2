"""Accuracy of a selection rule at every n from 1 to M, for every problem: the curves of a best-of-n report.

The same quantities as in `best_of_n.py`, for all n at once, under one of two rules:

    all_subsets   the mean over all C(M, n) subsets of the pool: by order statistics for best of n and pass@n (exact);
                  for votes, which have no closed form under the tie rule, over the subsets themselves where there are
                  at most `max_subsets` of them (exact), else over that many drawn with a seed
    first_n       the first n candidates of the pool, one yes or no a problem: what the literature usually reports,
                  and what McNemar's test needs. At n = M both rules are the same.

Ties and what is missing: as in `best_of_n.py`. The first maximum in the order of the pool is chosen; a candidate
without score is never chosen before one that has a score and then counts as wrong; an answer `None` casts no vote.

A PRM-weighted vote gives each answer the sum of its candidates' scores (Li et al. 2023, arXiv 2206.02336,
there with a verifier of whole solutions). Scores must not be negative: with an unbounded head, take them through a
sigmoid first. A candidate without score casts no vote. Sums that agree to a relative 1e-9 are equal, so that the order
of summation does not decide.
"""

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np

from ..choices import check_choice
from .best_of_n import _check_rows, _check_same_shape, _read_is_correct, _read_scores, _subsets

__all__ = ["RULES", "best_of_n_curves", "majority_curves", "pass_at_n_curves"]

RULES = ("all_subsets", "first_n")

MAX_SUBSETS = 512
"""Subsets of one size that a vote is averaged over. All pairs of M = 32 (496) are below it, and all n of M <= 11. At
512 draws a problem adds at most 0.022 of standard error, 100 problems 0.0022: a tenth of what the problems themselves
leave open."""

_TIE = 1e-9
_MOST_TOTALS = 250_000  # float64 totals held at once: 2 MB, which stay in a processor's cache (4 times as fast)


def best_of_n_curves(
    scores: Sequence[Sequence[float | None]], is_correct: Sequence[Sequence[bool | None]], rule: str = "all_subsets"
) -> np.ndarray:
    r"""Accuracy of the candidate with the highest score among n, for every problem and every n.

    Args:
        scores (`Sequence[Sequence[float | None]]` of shape `(num_problems, num_candidates)`):
            One score a candidate, higher is better. `None` or NaN: no score.
        is_correct (`Sequence[Sequence[bool | None]]` of shape `(num_problems, num_candidates)`):
            Whether the candidate's final answer is right. `None` counts as wrong.
        rule (`str`, *optional*, defaults to `"all_subsets"`):
            One of [`RULES`].

    Returns:
        `np.ndarray` of shape `(num_problems, num_candidates)`, float64 in [0, 1]: column n - 1 is the accuracy with n
        candidates. Exact for both rules; with `"first_n"` each value is 0 or 1.

    Raises:
        ValueError: as [`best_of_n_accuracy`], or if `rule` is not known.

    Example:

    ```python
    >>> best_of_n_curves([[0.1, 0.9, 0.5]], [[True, False, True]]).round(3).tolist()
    [[0.667, 0.333, 0.0]]
    >>> best_of_n_curves([[0.1, 0.9, 0.5]], [[True, False, True]], rule="first_n").tolist()
    [[1.0, 0.0, 0.0]]

    ```
    """
    check_choice("rule", rule, RULES)
    correct, values = _read_is_correct(is_correct), _read_scores(scores)
    _check_same_shape("scores", values, correct)
    # NaN behind everything, -inf included; the stable sort keeps the order of the pool among equals
    order = np.argsort(-values, axis=1, kind="stable")
    is_right = np.take_along_axis(correct & ~np.isnan(values), order, axis=1)
    if rule == "first_n":
        rank = np.argsort(order, axis=1)
        best_rank = np.minimum.accumulate(rank, axis=1)  # of the first n
        return np.take_along_axis(is_right, best_rank, axis=1).astype(np.float64)
    return np.clip(is_right @ _chosen_shares(correct.shape[1]).T, 0.0, 1.0)


def pass_at_n_curves(is_correct: Sequence[Sequence[bool | None]], rule: str = "all_subsets") -> np.ndarray:
    r"""Whether one of n candidates is right (an oracle's choice), for every problem and every n.

    Args:
        is_correct, rule: as in [`best_of_n_curves`].

    Returns:
        `np.ndarray` of shape `(num_problems, num_candidates)`, float64 in [0, 1].

    Raises:
        ValueError: as [`best_of_n_curves`].

    Example:

    ```python
    >>> pass_at_n_curves([[False, True, False]]).round(3).tolist()
    [[0.333, 0.667, 1.0]]

    ```
    """
    check_choice("rule", rule, RULES)
    correct = _read_is_correct(is_correct)
    return best_of_n_curves(correct.astype(np.float64), correct, rule)  # the oracle scores by correctness


def majority_curves(
    answers: Sequence[Sequence[Hashable | None]],
    is_correct: Sequence[Sequence[bool | None]],
    weights: Sequence[Sequence[Sequence[float | None]]] | None = None,
    rule: str = "all_subsets",
    max_subsets: int = MAX_SUBSETS,
    seed: int = 0,
) -> np.ndarray:
    r"""Accuracy of the answer with the most votes among n candidates, or the largest sum of weights, for every n.

    Several weightings of one pool share the draws and most of the work, hence the plural.

    Args:
        answers (`Sequence[Sequence[Hashable | None]]` of shape `(num_problems, num_candidates)`):
            Final answers; two candidates vote for the same if these are equal (`==`), so give equal values one form
            first. `None`: no answer could be read, no vote.
        is_correct (`Sequence[Sequence[bool | None]]` of shape `(num_problems, num_candidates)`):
            Whether the candidate's final answer is right. `None` counts as wrong.
        weights (of shape `(num_weightings, num_problems, num_candidates)`, *optional*):
            Weight of each candidate's vote, at least 0 (its aggregated score). `None` or NaN: no vote. Without any,
            every vote counts 1, and there is one curve.
        rule (`str`, *optional*, defaults to `"all_subsets"`):
            One of [`RULES`].
        max_subsets (`int`, *optional*, defaults to `512`):
            Subsets of one size to average over; all of them where there are no more. Default: [`MAX_SUBSETS`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the subsets that are drawn, the same ones for all problems and weightings.

    Returns:
        `np.ndarray` of shape `(num_weightings, num_problems, num_candidates)`, float64 in [0, 1]. A subset without a
        vote counts as wrong; the winning answer is right if the first voter for it is.

    Raises:
        ValueError: as [`majority_accuracy`]; if a weight is negative or infinite, with its place; if `max_subsets` is
            below 1, or `rule` is not known.
        TypeError: if an answer cannot be compared by its hash.

    Example: two unsure votes for 7 against a sure one for 5.

    ```python
    >>> answers, is_correct = [["7", "5", "7"]], [[False, True, False]]
    >>> majority_curves(answers, is_correct).round(3).tolist()
    [[[0.333, 0.333, 0.0]]]
    >>> majority_curves(answers, is_correct, weights=[[[0.2, 0.9, 0.3]]]).round(3).tolist()
    [[[0.333, 0.667, 1.0]]]

    ```
    """
    check_choice("rule", rule, RULES)
    if max_subsets < 1:
        raise ValueError(f"`max_subsets` must be at least 1, got {max_subsets}. The default is {MAX_SUBSETS}.")
    correct = _read_is_correct(is_correct)
    _check_rows("answers", answers)
    _check_same_shape("answers", np.empty((len(answers), len(answers[0]))), correct)
    num_problems, num_candidates = correct.shape
    if weights is None:
        values = np.ones((1, num_problems, num_candidates))
    else:
        values = np.stack([_read_weights(of_weighting, correct) for of_weighting in weights])
    is_member, num_subsets = (
        _all_subsets(num_candidates, max_subsets, seed) if rule == "all_subsets" else _first_n(num_candidates)
    )
    curves = np.empty((len(values), num_problems, num_candidates))
    for row, problem_answers in enumerate(answers):
        groups = _groups(problem_answers, row)
        voters, inverse = np.unique(~np.isnan(values[:, row]), axis=0, return_inverse=True)
        for pattern, has_weight in enumerate(voters):  # weightings in which the same candidates vote
            chosen = np.flatnonzero(inverse.reshape(-1) == pattern)
            columns = [group[has_weight[group]] for group in groups]
            curves[chosen, row] = _vote(
                is_member, num_subsets, [c for c in columns if len(c)], values[chosen, row], correct[row]
            )
    return curves


def _vote(
    is_member: np.ndarray, num_subsets: np.ndarray, groups: list[np.ndarray], weights: np.ndarray, correct: np.ndarray
) -> np.ndarray:
    """Accuracy of shape `(num_weightings, M)` of one problem, whose answers are `groups` of candidates."""
    num_weightings, num_candidates = weights.shape
    starts = np.concatenate([[0], np.cumsum(num_subsets)[:-1]])
    if not groups:
        return np.zeros(weights.shape)
    if len(groups) == 1:  # one answer wins whatever the weights are
        weights = np.ones((1, num_candidates))
    is_right = np.append(correct, False).astype(np.float32)  # index M: a subset without a vote
    right = np.empty((len(weights), is_member.shape[1]), dtype=np.float32)
    size = max(1, _MOST_TOTALS // (len(weights) * len(groups)))
    for begin in range(0, is_member.shape[1], size):
        part = slice(begin, begin + size)
        totals, firsts = [], []  # by answer: (num_weightings, size), and its first voter in each subset, M for none
        for group in groups:
            members = is_member[group, part]
            firsts.append(np.where(members.any(axis=0), group[members.argmax(axis=0)], num_candidates))
            totals.append(weights[:, group] @ members)  # 0 where no one gave the answer: no more than any other
        least = np.maximum.reduce(totals) * (1 - _TIE)
        winner = np.full(least.shape, num_candidates)
        for total, first in zip(totals, firsts, strict=True):  # of equal sums the one seen first
            np.minimum(winner, np.where(total >= least, first, num_candidates), out=winner)
        right[:, part] = is_right[winner]
    shares = np.add.reduceat(right, starts, axis=1, dtype=np.float64) / num_subsets
    return np.broadcast_to(shares, (num_weightings, num_candidates))


@lru_cache(maxsize=8)
def _chosen_shares(num_candidates: int) -> np.ndarray:
    """`[n - 1, r]`: share of the subsets of size n whose best candidate has rank r in the pool (0 is best)."""
    shares = np.zeros((num_candidates, num_candidates))
    for n in range(1, num_candidates + 1):
        total = math.comb(num_candidates, n)
        for r in range(num_candidates - n + 1):
            shares[n - 1, r] = math.comb(num_candidates - 1 - r, n - 1) / total  # of integers: correctly rounded
    return shares


@lru_cache(maxsize=2)
def _all_subsets(num_candidates: int, max_subsets: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Subsets of all sizes as columns of 0 and 1, float64 of shape `(M, all)`; how many there are of each size."""
    of_size = [_subsets(num_candidates, n, seed, max_subsets) for n in range(1, num_candidates + 1)]
    columns = np.ascontiguousarray(np.concatenate(of_size).T, dtype=np.float64)
    return columns, np.array([len(subsets) for subsets in of_size])


def _first_n(num_candidates: int) -> tuple[np.ndarray, np.ndarray]:
    return np.tri(num_candidates).T, np.ones(num_candidates, dtype=int)


def _groups(answers: Sequence[Hashable | None], row: int) -> list[np.ndarray]:
    """The candidates of each answer, in the order of the pool."""
    groups: dict[Hashable, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        try:
            groups.setdefault(answer, []).append(index)
        except TypeError:
            raise TypeError(
                f"`answers` must be strings or numbers, got {answer!r} in row {row}, candidate {index}. Write it as a "
                "string; equal values must give equal strings."
            ) from None
    return [np.array(group) for group in groups.values()]


def _read_weights(weights: Sequence[Sequence[float | None]], correct: np.ndarray) -> np.ndarray:
    values = _read_scores(weights)
    _check_same_shape("weights", values, correct)
    bad = np.argwhere((values < 0) | np.isinf(values))
    if len(bad):
        row, index = bad[0]
        raise ValueError(
            f"`weights` must be finite and at least 0, got {values[row, index]} in row {row}, candidate {index}: a "
            "negative weight would vote against its own answer. Take unbounded scores through a sigmoid first."
        )
    return values
