"""What selection from a pool of completions is worth: best-of-n, majority vote, pass@n and plain sampling.

All functions take one pool of M candidates a problem, as lists `[problems][candidates]`, and answer for n <= M of them
drawn at random without replacement (`curves.py`: for all n at once, and with votes weighted by scores). They average
over ALL C(M, n) subsets, not over some draws:

    best of n    sum_r C(M - 1 - r, n - 1) / C(M, n) * is_correct[r],   r = 0 .. M - 1 the rank by score (0 is best):
                 the candidate of rank r is chosen if it is drawn and the r better ones are not
    pass@n       1 - C(M - c, n) / C(M, n),   c correct candidates      Chen et al. 2021, arXiv 2107.03374, eq. 1
    majority     by enumeration: which answer wins has no closed form under the tie rule below

Ties. A subset keeps the order of the pool. Of candidates with the same highest score the first is chosen; of answers
with the same number of votes the one seen first is chosen. So the order of the pool must not depend on correctness.

What is missing counts against the method, never for it: a candidate without a score (`None` or NaN: malformed) is
chosen only where no candidate of the subset has one, and then counts as wrong, whatever its answer; an answer `None`
(none could be read) casts no vote, and a subset without a vote counts as wrong; `is_correct=None` is wrong.
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "Estimate",
    "best_of_n_accuracy",
    "best_of_n_per_problem",
    "clustered_interval",
    "majority_accuracy",
    "majority_per_problem",
    "pass_at_n",
    "pass_at_n_per_problem",
    "sampled_accuracy",
]

MAX_SUBSETS = 20_000
"""Most subsets of a pool that a majority vote enumerates: a few milliseconds a problem. All n of all M <= 16 are below
it (C(16, 8) = 12,870)."""


class Estimate(NamedTuple):
    """A share with its 95 % interval, each in [0, 1].

    Attributes:
        mean (`float`): the estimate.
        low (`float`): lower end of the interval.
        high (`float`): upper end of the interval.
    """

    mean: float
    low: float
    high: float


def best_of_n_accuracy(
    scores: Sequence[Sequence[float | None]], is_correct: Sequence[Sequence[bool | None]], n: int
) -> float:
    r"""Accuracy when the candidate with the highest score is chosen among n, averaged over all subsets of size n.

    Args:
        scores (`Sequence[Sequence[float | None]]` of shape `(num_problems, num_candidates)`):
            One score a candidate, higher is better (`aggregate` of its step scores). `None` or NaN: no score, never
            chosen before one that has a score.
        is_correct (`Sequence[Sequence[bool | None]]` of shape `(num_problems, num_candidates)`):
            Whether the candidate's final answer is right. `None` counts as wrong.
        n (`int`):
            Number of candidates to choose from, 1 to `num_candidates`.

    Returns:
        `float`: mean over problems, in [0, 1]. Among equal scores the first of the pool is chosen.

    Raises:
        ValueError: if the rows are ragged or empty, the two shapes differ, `is_correct` holds anything but true, false
            and `None`, or n is not in its range. The message names the row.

    Example:

    ```python
    >>> scores = [[0.9, 0.1, 0.5], [0.2, None, 0.1]]
    >>> is_correct = [[True, False, False], [False, True, True]]
    >>> best_of_n_accuracy(scores, is_correct, n=3)
    0.5
    >>> best_of_n_accuracy(scores, is_correct, n=2)  # first problem 2 of 3 pairs, second 1 of 3
    0.5
    >>> best_of_n_accuracy(scores, is_correct, n=1)  # without a choice: right and with a score
    0.3333333333333333

    ```
    """
    return _mean(best_of_n_per_problem(scores, is_correct, n))


def best_of_n_per_problem(
    scores: Sequence[Sequence[float | None]], is_correct: Sequence[Sequence[bool | None]], n: int
) -> np.ndarray:
    """[`best_of_n_accuracy`] of each problem, for intervals and paired comparisons.

    Args:
        scores, is_correct, n: as in [`best_of_n_accuracy`].

    Returns:
        `np.ndarray` of shape `(num_problems,)`, float64 in [0, 1].

    Raises:
        ValueError: as [`best_of_n_accuracy`].

    Example:

    ```python
    >>> best_of_n_per_problem([[0.9, 0.1, 0.5], [0.3, 0.3, 0.3]], [[1, 0, 0], [0, 1, 0]], n=2).round(3).tolist()
    [0.667, 0.333]

    ```
    """
    correct = _read_is_correct(is_correct)
    values = _read_scores(scores)
    _check_same_shape("scores", values, correct)
    num_candidates = correct.shape[1]
    _check_n(n, num_candidates)
    # NaN has no order of its own; the stable sort of the negated scores keeps the order of the pool among equals and
    # puts NaN behind everything, -inf included
    ranked = np.argsort(-values, axis=1, kind="stable")
    is_right = np.take_along_axis(correct & ~np.isnan(values), ranked, axis=1)
    total = math.comb(num_candidates, n)
    # division of exact integers: C(M, n) exceeds a float's range from M of about 1,030
    chosen_share = np.array([_ratio(math.comb(num_candidates - 1 - r, n - 1), total) for r in range(num_candidates)])
    return np.clip(is_right @ chosen_share, 0.0, 1.0)  # a sum of shares can pass 1 by a rounding error


def majority_accuracy(
    answers: Sequence[Sequence[Hashable | None]],
    is_correct: Sequence[Sequence[bool | None]],
    n: int | None = None,
    seed: int = 0,
) -> float:
    r"""Accuracy when the most frequent answer is chosen among n candidates, averaged over subsets of size n.

    Args:
        answers (`Sequence[Sequence[Hashable | None]]` of shape `(num_problems, num_candidates)`):
            Final answers. Two candidates vote for the same answer if these are equal (`==`), so give equal values one
            form first. `None`: no answer could be read, no vote.
        is_correct (`Sequence[Sequence[bool | None]]` of shape `(num_problems, num_candidates)`):
            Whether the candidate's final answer is right. `None` counts as wrong.
        n (`int`, *optional*):
            Number of candidates that vote, 1 to `num_candidates`; all of them if `None`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the subsets where there are more than [`MAX_SUBSETS`] of them. Then that many are drawn at random,
            the same for all problems; otherwise the result is exact and `seed` does nothing.

    Returns:
        `float`: mean over problems, in [0, 1]. Among answers with equally many votes the one seen first is chosen; it
        is right if the first candidate that gave it is.

    Raises:
        ValueError: if the rows are ragged or empty, the two shapes differ, `is_correct` holds anything but true, false
            and `None`, or n is not in its range. The message names the row.
        TypeError: if an answer cannot be compared by its hash (a list, a dict).

    Example:

    ```python
    >>> majority_accuracy([["5", "7", "7", None]], [[True, False, False, False]])
    0.0
    >>> majority_accuracy([["5", "7", "7", None]], [[True, False, False, False]], n=2)  # {5 7} {5 7} {5 None} of 6
    0.5

    ```
    """
    return _mean(majority_per_problem(answers, is_correct, n, seed))


def majority_per_problem(
    answers: Sequence[Sequence[Hashable | None]],
    is_correct: Sequence[Sequence[bool | None]],
    n: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """[`majority_accuracy`] of each problem, for intervals and paired comparisons.

    Args:
        answers, is_correct, n, seed: as in [`majority_accuracy`].

    Returns:
        `np.ndarray` of shape `(num_problems,)`, float64 in [0, 1].

    Raises:
        ValueError, TypeError: as [`majority_accuracy`].

    Example:

    ```python
    >>> majority_per_problem([["5", "7", "7"], [None, None, "1"]], [[1, 0, 0], [0, 0, 1]]).tolist()
    [0.0, 1.0]

    ```
    """
    correct = _read_is_correct(is_correct)
    _check_rows("answers", answers)
    _check_same_shape("answers", np.empty((len(answers), len(answers[0]))), correct)
    num_candidates = correct.shape[1]
    n = num_candidates if n is None else n
    _check_n(n, num_candidates)
    is_member = _subsets(num_candidates, n, seed, MAX_SUBSETS)
    accuracies = np.empty(len(correct))
    for row, (problem_answers, problem_correct) in enumerate(zip(answers, correct, strict=True)):
        is_vote_for = _one_hot(problem_answers, row)  # (num_candidates, num_answers)
        # votes[s, j]: votes in subset s for the answer of candidate j, 0 where j is not in s or has no answer.
        # float32 counts exactly up to 2**24, and only floats take the fast matrix product.
        votes = (is_member @ is_vote_for) @ is_vote_for.T * is_member
        first_of_winner = votes.argmax(axis=1)  # the first maximum: the tie rule
        accuracies[row] = np.mean(problem_correct[first_of_winner] & (votes.max(axis=1) > 0))
    return accuracies


def pass_at_n(is_correct: Sequence[Sequence[bool | None]], n: int) -> float:
    r"""Probability that at least one of n candidates is right: what a perfect selector (an oracle) would reach.

    Args:
        is_correct (`Sequence[Sequence[bool | None]]` of shape `(num_problems, num_candidates)`):
            Whether the candidate's final answer is right. `None` counts as wrong.
        n (`int`):
            Number of candidates to choose from, 1 to `num_candidates`.

    Returns:
        `float`: mean over problems, in [0, 1]; the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, eq. 1).

    Raises:
        ValueError: if the rows are ragged or empty, or hold anything but true, false and `None`, or n is not in its
            range. The message names the row.

    Example:

    ```python
    >>> pass_at_n([[True, False, False, False]], n=2)
    0.5

    ```
    """
    return _mean(pass_at_n_per_problem(is_correct, n))


def pass_at_n_per_problem(is_correct: Sequence[Sequence[bool | None]], n: int) -> np.ndarray:
    """[`pass_at_n`] of each problem, for intervals and paired comparisons.

    Args:
        is_correct, n: as in [`pass_at_n`].

    Returns:
        `np.ndarray` of shape `(num_problems,)`, float64 in [0, 1].

    Raises:
        ValueError: as [`pass_at_n`].

    Example:

    ```python
    >>> pass_at_n_per_problem([[1, 0, 0, 0], [0, 0, 0, 0]], n=2).tolist()
    [0.5, 0.0]

    ```
    """
    correct = _read_is_correct(is_correct)
    num_candidates = correct.shape[1]
    _check_n(n, num_candidates)
    total = math.comb(num_candidates, n)
    pass_rates = np.array([1.0 - _ratio(math.comb(num_candidates - c, n), total) for c in range(num_candidates + 1)])
    return pass_rates[correct.sum(axis=1)]


def sampled_accuracy(is_correct: Sequence[Sequence[bool | None]]) -> Estimate:
    r"""Accuracy of one candidate drawn at random, with a 95 % interval over problems.

    Candidates of one problem are alike, so the problem is the unit that counts: 8 candidates for each of 100 problems
    are not 800 observations. See [`clustered_interval`] for the formula.

    Args:
        is_correct (`Sequence[Sequence[bool | None]]` of shape `(num_problems, num_candidates)`):
            Whether the candidate's final answer is right. `None` counts as wrong.

    Returns:
        [`Estimate`]: `(mean, low, high)`, each in [0, 1].

    Raises:
        ValueError: if the rows are ragged or empty, or hold anything but true, false and `None`.

    Example:

    ```python
    >>> mean, low, high = sampled_accuracy([[True, True], [True, False], [False, False], [True, True]])
    >>> mean, round(low, 3), round(high, 3)
    (0.625, 0.118, 0.954)

    ```
    """
    correct = _read_is_correct(is_correct)
    return clustered_interval(correct.mean(axis=1), num_candidates=correct.shape[1])


def clustered_interval(per_problem: Sequence[float], num_candidates: int = 1) -> Estimate:
    r"""95 % interval of a mean over problems of values in [0, 1].

    Wilson's interval with the effective number of observations of the clustered sample:

        p = mean of per_problem,   V = sum_i (p_i - p)^2 / (P (P - 1)),   n_eff = min(p (1 - p) / V, P num_candidates)
        (p + t^2 / (2 n_eff) -+ t sqrt(p (1 - p) / n_eff + t^2 / (4 n_eff^2))) / (1 + t^2 / n_eff)

    with P problems and t the 97.5 % quantile of Student's t with P - 1 degrees of freedom. V is the cluster-robust
    variance of the mean (Miller 2024, arXiv 2411.00640; clusters of equal size); Wilson's form with n_eff is
    that of Korn and Graubard 1998 and Dean and Pagano 2015. It stays inside [0, 1] and has no width 0. Where the
    problems do not differ (V = 0) each counts as one observation, n_eff = P; with one problem n_eff = 1 and t is the
    normal quantile 1.96, so that the interval is wide but says something.

    Args:
        per_problem (`Sequence[float]` of shape `(num_problems,)`):
            Value of each problem, in [0, 1], at least one.
        num_candidates (`int`, *optional*, defaults to `1`):
            Candidates behind each value: a problem can never count as more observations than it has.

    Returns:
        [`Estimate`]: `(mean, low, high)`, each in [0, 1].

    Raises:
        ValueError: if there is no problem, or a value is not in [0, 1].

    Example:

    ```python
    >>> mean, low, high = clustered_interval([1.0] * 20)
    >>> mean, round(low, 3), high
    (1.0, 0.82, 1.0)

    ```
    """
    values = np.asarray(per_problem, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"`per_problem` must be a list with one value a problem, got shape {values.shape}. Average the candidates "
            "of a problem first."
        )
    outside = np.flatnonzero(~((values >= 0) & (values <= 1)))  # NaN is outside, too
    if outside.size:
        raise ValueError(
            f"`per_problem` must lie in [0, 1], got {values[outside[0]]} at row {outside[0]}. Pass shares, not "
            "per cent."
        )
    num_problems = values.size
    p = min(float(values.mean()), 1.0)
    if num_problems == 1:
        effective, quantile = 1.0, 1.959963984540054
    else:
        variance = float(values.var(ddof=1)) / num_problems
        largest = num_problems * num_candidates
        # equal values give a variance of rounding errors rather than 0
        differ = bool(np.ptp(values) > 1e-12)
        effective = min(p * (1 - p) / variance, largest) if differ else float(num_problems)
        quantile = _student_t_quantile(num_problems - 1)
    squared = quantile**2 / effective
    center = (p + squared / 2) / (1 + squared)
    half = math.sqrt(squared * p * (1 - p) + squared**2 / 4) / (1 + squared)
    # at p = 0 and p = 1 the end is p itself but for a rounding error
    return Estimate(p, min(max(center - half, 0.0), p), max(min(center + half, 1.0), p))


# 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom (any statistical table).
_STUDENT_T = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)


def _student_t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t: table, then the expansion of Abramowitz and Stegun 26.7.5 (error below 1e-5)."""
    if freedom <= len(_STUDENT_T):
        return _STUDENT_T[freedom - 1]
    z = 1.959963984540054
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )


def _subsets(num_candidates: int, n: int, seed: int, max_subsets: int) -> np.ndarray:
    """Subsets of size n as rows of 0 and 1: float32 of shape `(num_subsets, num_candidates)`."""
    num_subsets = math.comb(num_candidates, n)
    if num_subsets <= max_subsets:
        members = np.array(list(itertools.combinations(range(num_candidates), n)))
    else:
        num_subsets = max_subsets
        order = np.random.default_rng(seed).random((num_subsets, num_candidates))
        members = np.argpartition(order, n - 1, axis=1)[:, :n]
    is_member = np.zeros((num_subsets, num_candidates), dtype=np.float32)
    np.put_along_axis(is_member, members, 1.0, axis=1)
    return is_member


def _one_hot(answers: Sequence[Hashable | None], row: int) -> np.ndarray:
    """Float32 of shape `(num_candidates, num_answers)`; the row of a candidate without an answer is zero."""
    columns: dict[Hashable, int] = {}
    is_vote_for = np.zeros((len(answers), len(answers)), dtype=np.float32)
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        try:
            is_vote_for[index, columns.setdefault(answer, len(columns))] = 1.0
        except TypeError:
            raise TypeError(
                f"`answers` must be strings or numbers, got {answer!r} in row {row}, candidate {index}. Write it as a "
                "string; equal values must give equal strings."
            ) from None
    return is_vote_for[:, : max(len(columns), 1)]


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator  # of integers: correctly rounded, also where neither fits a float


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _check_rows(name: str, rows: Sequence[Sequence[object]]) -> None:
    """Raises `ValueError` unless `rows` is a list of lists of one length, at least one by one."""
    if not hasattr(rows, "__len__") or isinstance(rows, str | dict):
        raise ValueError(f"`{name}` must be a list with one list a problem, got {type(rows).__name__}.")
    if len(rows) == 0:
        raise ValueError(f"`{name}` must hold at least one problem, got none. Check the input it was read from.")
    for index, row in enumerate(rows):
        if not hasattr(row, "__len__") or isinstance(row, str | dict):
            raise ValueError(
                f"`{name}` must be a list with one list of candidates a problem, got {row!r} at row {index}. For a "
                f"single problem, pass [{name}]."
            )
        if len(row) == 0:
            raise ValueError(f"`{name}` must hold at least one candidate a problem, got none at row {index}.")
        if len(row) != len(rows[0]):
            raise ValueError(
                f"`{name}` must hold equally many candidates a problem, got {len(rows[0])} at row 0 and {len(row)} at "
                f"row {index}. Cut or drop rows so that all have the same number."
            )


def _check_same_shape(name: str, values: np.ndarray, correct: np.ndarray) -> None:
    if values.shape != correct.shape:
        raise ValueError(
            f"`{name}` and `is_correct` must have the same shape, got {values.shape[0]} problems x {values.shape[1]} "
            f"candidates and {correct.shape[0]} x {correct.shape[1]}. They must describe the same candidates."
        )


def _read_is_correct(is_correct: Sequence[Sequence[bool | None]]) -> np.ndarray:
    """Bool of shape `(num_problems, num_candidates)`; `None` is False."""
    _check_rows("is_correct", is_correct)
    array = np.asarray(is_correct)
    if array.dtype == bool:  # the usual case, and much faster
        return array
    accepted = {True: True, False: False, None: False}  # 1, 0, 1.0 and NumPy's scalars are equal to these keys
    correct = np.zeros((len(is_correct), len(is_correct[0])), dtype=bool)
    for row, values in enumerate(is_correct):
        for index, value in enumerate(values):
            try:
                correct[row, index] = accepted[value]
            except (KeyError, TypeError):
                raise ValueError(
                    f"`is_correct` must be true, false or None, got {value!r} in row {row}, candidate {index}. "
                    "Compare an outcome between 0 and 1 with a threshold first."
                ) from None
    return correct


def _read_scores(scores: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Float64 of shape `(num_problems, num_candidates)`; `None` is NaN."""
    _check_rows("scores", scores)
    values = np.empty((len(scores), len(scores[0])))
    for row, row_scores in enumerate(scores):
        try:
            values[row] = row_scores  # NumPy reads None as NaN here
        except (TypeError, ValueError):
            raise ValueError(
                f"`scores` must be numbers or None, one a candidate, got {row_scores!r} at row {row}. Aggregate the "
                "step scores of a candidate first."
            ) from None
    return values


def _check_n(n: int, num_candidates: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= num_candidates:
        raise ValueError(
            f"`n` must be an integer from 1 to {num_candidates}, the candidates a problem, got {n!r}. Sample more "
            "candidates, or lower n."
        )
