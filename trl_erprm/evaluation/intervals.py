"""95 % intervals of a mean over items that belong to groups, as the steps of a problem do.

    grouped_interval      Wilson's interval with the effective number of observations: for shares, never of width 0
    resampled_interval    percentile bootstrap over groups: for any statistic of sums

Pure functions on numpy arrays.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.special import stdtrit

from .best_of_n import Estimate

__all__ = ["NUM_RESAMPLES", "group_numbers", "grouped_interval", "resampled_interval"]

NUM_RESAMPLES = 1_000
"""Draws behind a bootstrap interval. Our choice: its ends then move by a tenth of its width from seed to seed."""


def grouped_interval(values: np.ndarray, groups: np.ndarray) -> Estimate:
    r"""Mean of values in [0, 1] with its 95 % interval, for groups of unequal size.

    Wilson's interval as in [`~evaluation.best_of_n.clustered_interval`], whose variance is here that of a ratio:

        V = G / (G - 1) * sum_g (sum_{i in g} (y_i - y))^2 / n^2,        n_eff = min(y (1 - y) / V, n)

    with y the mean of the n values, which are of G groups, and the 97.5 % quantile of Student's t with G - 1 degrees
    of freedom. Where the values do not differ each group counts as one observation; of one group, n_eff = 1 and the
    normal quantile are taken.

    Args:
        values (`np.ndarray` of shape `(num_items,)`):
            Values in [0, 1], at least one.
        groups (`np.ndarray` of shape `(num_items,)`):
            Number of each item's group ([`group_numbers`]).

    Returns:
        [`Estimate`]: `(mean, low, high)`, each in [0, 1].

    Example: two items that repeat each other are one observation.

    ```python
    >>> apart = grouped_interval(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 1, 2, 3]))
    >>> alike = grouped_interval(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1]))
    >>> round(apart.low, 2), round(alike.low, 2)
    (0.06, 0.0)

    ```
    """
    n, mean = values.size, min(float(values.mean()), 1.0)
    _, numbers = np.unique(groups, return_inverse=True)
    residuals = np.bincount(numbers, weights=values - mean)
    num_groups = residuals.size
    if num_groups == 1:
        effective, quantile = 1.0, 1.959963984540054
    else:
        variance = num_groups / (num_groups - 1) * float((residuals**2).sum()) / n**2
        # Below it is a rounding error: the values do not differ, or cancel within each group.
        effective = min(mean * (1 - mean) / variance, n) if variance > 1e-18 else float(num_groups)
        quantile = float(stdtrit(num_groups - 1, 0.975))
    squared = quantile**2 / effective
    center = (mean + squared / 2) / (1 + squared)
    half = np.sqrt(squared * mean * (1 - mean) + squared**2 / 4) / (1 + squared)
    # At 0 and 1 the end is the mean itself but for a rounding error.
    return Estimate(mean, float(min(max(center - half, 0.0), mean)), float(max(min(center + half, 1.0), mean)))


def resampled_interval(
    statistic: Callable[[np.ndarray], np.ndarray], sums: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """Ends of the 95 % percentile bootstrap interval of a statistic that depends on sums over groups only.

    Whole groups are drawn with replacement, as many as there are. Draws of which the statistic is NaN (no item of a
    kind was drawn) are left out.

    Args:
        statistic (`Callable`):
            From sums over drawn groups, of shape `(num_draws, num_sums)`, to values of shape `(num_draws,)`.
        sums (`np.ndarray` of shape `(num_groups, num_sums)`):
            What each group adds.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `tuple[float, float]`: the 2.5 % and the 97.5 % quantile; two NaN where every draw is NaN.

    Example: the mean of 100 values 0 and 1; their interval is about 0.5 -+ 2 * 0.05.

    ```python
    >>> low, high = resampled_interval(lambda s: s[:, 0] / s[:, 1], np.array([[0, 1], [1, 1]] * 50))
    >>> round(low, 1), round(high, 1)
    (0.4, 0.6)

    ```

    Source: Efron, 1979, "Bootstrap methods: another look at the jackknife".
    """
    rng = np.random.default_rng(seed)
    num_groups = len(sums)
    drawn = []
    for start in range(0, NUM_RESAMPLES, 100):  # in parts, for memory
        size = (min(100, NUM_RESAMPLES - start), num_groups)
        picks = rng.integers(num_groups, size=size) + num_groups * np.arange(size[0])[:, None]
        times = np.bincount(picks.ravel(), minlength=size[0] * num_groups).reshape(size)
        drawn.append(times @ np.asarray(sums, dtype=np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0: nothing of a kind was drawn
        values = statistic(np.concatenate(drawn))
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def group_numbers(groups: Sequence[Hashable] | None, num_items: int) -> np.ndarray:
    """Numbers from 0 in place of the names of groups; `None` is a group for each item.

    Example:

    ```python
    >>> group_numbers(["b", "a", "b"], 3)
    array([0, 1, 0])

    ```
    """
    if groups is None:
        return np.arange(num_items)
    if len(groups) != num_items:
        raise ValueError(
            f"There must be one group (problem) an item, got {len(groups)} for {num_items} items. Pass one for each."
        )
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
