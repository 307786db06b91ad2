"""Is one selector better than another on the same problems? Paired intervals and McNemar's test.

Two selectors that read the same candidates of the same problems share most of their luck: which problems are hard,
and which candidates were drawn. The difference within each problem is free of it, so its interval is narrower than
the two intervals of the accuracies suggest; overlapping intervals of two accuracies say little about their difference.

- [`bootstrap_interval`]: problems are drawn with replacement, as they were drawn from all problems of their kind
  (Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"; Miller 2024, arXiv 2411.00640, on
  pairing). Percentile interval. It holds for differences between 0 and 1 as well, such as accuracies over all subsets.
- [`mcnemar`]: of the problems that exactly one of two selectors answers right, is either one's share more than half?
  The exact (binomial) test; needs one yes or no a problem and selector.
- [`holm`]: p-values of several comparisons, raised so that the chance of any false finding among them stays bounded.

Pure functions on numpy arrays; the binomial distribution is scipy's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr

from .best_of_n import Estimate

__all__ = ["McNemar", "bootstrap_interval", "bootstrap_intervals", "holm", "mcnemar"]

NUM_RESAMPLES = 2_000
"""Resamples of a bootstrap: the ends of a 95 % interval then stand on 50 resamples each, and move by about 3 % of its
width from seed to seed. Our choice."""

_MOST_MEANS = 4_000_000  # float64 means held at once: 32 MB


class McNemar(NamedTuple):
    """Exact McNemar test.

    Attributes:
        only_first (`int`): problems that the first selector alone answers right.
        only_second (`int`): problems that the second selector alone answers right.
        p_value (`float`): two-sided, in (0, 1]; 1.0 where the two never differ.
    """

    only_first: int
    only_second: int
    p_value: float


def bootstrap_interval(
    per_problem: ArrayLike, level: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean over problems with its percentile bootstrap interval over problems.

    Args:
        per_problem (`ArrayLike` of shape `(num_problems,)`):
            One finite value a problem, such as the difference of two accuracies in [-1, 1].
        level (`float`, *optional*, defaults to `0.95`):
            Coverage in (0, 1). Default: convention.
        num_resamples (`int`, *optional*, defaults to `2000`):
            Resamples, at least 1. Default: [`NUM_RESAMPLES`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples: equal seeds draw the same problems, so that results do not change from run to run.

    Returns:
        [`Estimate`]: `(mean, low, high)`, in the unit of the values. With few problems (below about 20) or a
        difference on few of them, the interval is too narrow; McNemar's test is exact there.

    Raises:
        ValueError: if there is no problem, a value is not finite (with its row), or an option is out of its range.

    Example: A is right on 3 problems of 10 on which B is wrong, never the other way round.

    ```python
    >>> mean, low, high = bootstrap_interval([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
    >>> mean, round(low, 2), round(high, 2)
    (0.3, 0.1, 0.6)

    ```
    """
    values = np.asarray(per_problem, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(
            f"`per_problem` must be a list with one value a problem, got shape {values.shape}. For several columns "
            "use `bootstrap_intervals`."
        )
    mean, low, high = bootstrap_intervals(values[:, None], level, num_resamples, seed)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]))


def bootstrap_intervals(
    per_problem: ArrayLike, level: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[`bootstrap_interval`] of many columns, for which the same problems are drawn.

    Args:
        per_problem (`ArrayLike` of shape `(num_problems, num_columns)`):
            One finite value a problem and column.
        level, num_resamples, seed: as in [`bootstrap_interval`].

    Returns:
        `tuple` of three `np.ndarray` of shape `(num_columns,)`: means, lower and upper ends. A column's interval does
        not depend on the others.

    Raises:
        ValueError: as [`bootstrap_interval`].

    Example:

    ```python
    >>> mean, low, high = bootstrap_intervals([[1.0, 0.5], [0.0, 0.5]])
    >>> mean.tolist(), low.tolist(), high.tolist()
    ([0.5, 0.5], [0.0, 0.5], [1.0, 0.5])

    ```
    """
    values = np.asarray(per_problem, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"`per_problem` must hold one row a problem and at least one column, got shape {values.shape}. Check the "
            "input it was made from."
        )
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"`per_problem` must be finite, got {values[row, column]} at row {row}, column {column}. Leave the "
            "problem out of both sides, or give it a value."
        )
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}. Pass 0.95 for a 95 % interval.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1, got {num_resamples}. The default is {NUM_RESAMPLES}.")
    num_problems, num_columns = values.shape
    mean = values.mean(axis=0)
    # How often each problem is drawn in each resample; the means are then one matrix product.
    draws = np.random.default_rng(seed).multinomial(
        num_problems, np.full(num_problems, 1 / num_problems), size=num_resamples
    )
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.empty(num_columns), np.empty(num_columns)
    size = max(1, _MOST_MEANS // num_resamples)
    for begin in range(0, num_columns, size):
        part = slice(begin, begin + size)
        low[part], high[part] = np.quantile(draws @ values[:, part] / num_problems, tails, axis=0)
    constant = np.ptp(values, axis=0) == 0  # whose sums may differ by a rounding error
    low[constant], high[constant] = values[0, constant], values[0, constant]
    return mean, low, high


def mcnemar(first_is_right: Sequence[bool], second_is_right: Sequence[bool]) -> McNemar:
    """Exact two-sided McNemar test of two selectors on the same problems.

    With b problems that only the first answers right, and c that only the second does, the p-value is that of b heads
    in b + c throws of a fair coin: min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2) (McNemar 1947, Psychometrika
    12, in its exact form).

    Args:
        first_is_right (`Sequence[bool]` of shape `(num_problems,)`):
            Whether the first selector's choice is right.
        second_is_right (`Sequence[bool]` of shape `(num_problems,)`):
            Whether the second selector's choice is right, for the same problems.

    Returns:
        [`McNemar`]: `(only_first, only_second, p_value)`.

    Raises:
        ValueError: if the lengths differ, or a value is neither true nor false: accuracies over subsets are no single
            outcome, use [`bootstrap_interval`] for them.

    Example:

    ```python
    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])  # 2 / 2**5
    McNemar(only_first=5, only_second=0, p_value=0.0625)

    ```
    """
    first, second = (np.asarray(values) for values in (first_is_right, second_is_right))
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"Both selectors need one outcome for each of the same problems, got shapes {first.shape} and "
            f"{second.shape}."
        )
    for values in (first, second):
        outside = np.flatnonzero((values != 0) & (values != 1))
        if outside.size:
            raise ValueError(
                f"McNemar's test takes true or false, got {values[outside[0]]} at row {outside[0]}. For shares, such "
                "as accuracies over all subsets, use `bootstrap_interval`."
            )
    only_first = int(((first == 1) & (second == 0)).sum())
    only_second = int(((first == 0) & (second == 1)).sum())
    fewer, both = min(only_first, only_second), only_first + only_second
    return McNemar(only_first, only_second, min(1.0, 2 * float(bdtr(fewer, both, 0.5))))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of tests after Holm's correction (Holm 1979, Scandinavian Journal of Statistics 6).

    Rejecting those at most alpha makes any false rejection in the family at most alpha likely, whatever the tests
    depend on.

    Args:
        p_values (`Sequence[float]`):
            p-values in [0, 1].

    Returns:
        `list[float]`: corrected ones, in the same order; never below the given ones.

    Raises:
        ValueError: if a value is not in [0, 1].

    Example:

    ```python
    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]

    ```
    """
    values = np.asarray(p_values, dtype=np.float64)
    outside = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if outside.size:
        raise ValueError(f"`p_values` must lie in [0, 1], got {values[outside[0]]} at index {outside[0]}.")
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    return np.minimum(corrected, 1.0).tolist()
