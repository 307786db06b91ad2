"""Intervals of step labels, and when they are narrow enough to stop sampling.

c of n rollouts right, under Jeffreys' prior Beta(1/2, 1/2), leave for the success probability p of the prefix the
posterior Beta(c + 1/2, n - c + 1/2). Its central interval, mapped through V_eta, is the interval of the label: the map
rises with p, so the interval keeps its probability, whatever eta is.

As is usual for this interval (Brown, Cai and DasGupta, 2001, "Interval Estimation for a Binomial Proportion"), it
reaches 0 where no rollout is right and 1 where all are: else it would miss p = 0 and p = 1 always. At level 0.95, and
with 4 to 64 rollouts, it holds the exact value in 95 to 96 % of cases on average over all p, and in at least 86 % for
each p.

Adaptive rollouts stop where the interval is narrow enough. A stop that depends on what was seen biases the estimate:
a prefix that began well by chance stops early and keeps its luck. The posterior does not depend on why sampling
stopped, so the interval still holds on average over p, but not for each p; the label itself is not corrected for it.

Pure functions on numpy arrays; the beta quantile is scipy's.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from .estimators import (
    check_eta,
    entropy_regularized_value_from_counts,
    entropy_regularized_value_from_probability,
)

__all__ = ["check_level", "is_narrow_enough", "label_interval"]


def label_interval(
    num_correct: ArrayLike, num_rollouts: ArrayLike, eta: float, level: float = 0.95
) -> tuple[Any, Any]:
    """The interval of a label: the central posterior interval of the success probability, mapped through V_eta.

    Args:
        num_correct (`ArrayLike` of `int`):
            Rollouts with a right answer, of any shape.
        num_rollouts (`ArrayLike` of `int`):
            All rollouts, of a shape that broadcasts with `num_correct`.
        eta (`float`):
            As for [`~labeling.estimators.entropy_regularized_value`]. At `inf` one right rollout settles the label:
            the interval is [1, 1] then, and [0, 1] before.
        level (`float`, *optional*, defaults to `0.95`):
            Posterior probability of the interval, in (0, 1). Default: convention.

    Returns:
        `tuple` of two `float` or two `np.ndarray`: lower and upper ends in [0, 1]; `nan` where there is no rollout.

    Raises:
        ValueError: if a count is negative or not whole, if more rollouts are right than there are, if `eta` is nan, or
            if `level` lies outside (0, 1).

    Example: the same 8 of 16 leave more or less open, depending on where eta stretches the scale.

    ```python
    >>> low, high = label_interval(8, 16, eta=0)
    >>> round(low, 3), round(high, 3)
    (0.272, 0.728)
    >>> low, high = label_interval(8, 16, eta=10)
    >>> round(low, 3), round(high, 3)
    (0.87, 0.968)
    >>> label_interval([0, 3], 4, eta=float("inf"))
    (array([0., 1.]), array([1., 1.]))

    ```
    """
    eta, level = check_eta(eta), check_level(level)
    entropy_regularized_value_from_counts(num_correct, num_rollouts, eta)  # its checks of the counts
    c, n = np.broadcast_arrays(np.asarray(num_correct, dtype=np.float64), np.asarray(num_rollouts, dtype=np.float64))
    tail = (1.0 - level) / 2.0
    low = np.where(c == 0, 0.0, betaincinv(c + 0.5, n - c + 0.5, tail))
    high = np.where(c == n, 1.0, betaincinv(c + 0.5, n - c + 0.5, 1.0 - tail))
    low, high = (np.where(n == 0, math.nan, entropy_regularized_value_from_probability(p, eta)) for p in (low, high))
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


def is_narrow_enough(
    num_correct: ArrayLike, num_rollouts: ArrayLike, eta: float, label_tolerance: float, level: float = 0.95
) -> Any:
    """Whether the interval of a label is at most `label_tolerance` wide; never without a rollout.

    Args:
        num_correct, num_rollouts, eta, level:
            As for [`label_interval`].
        label_tolerance (`float`):
            Greatest width, on the scale of the labels, where all of it is 1.

    Returns:
        `bool` or `np.ndarray` of `bool`.

    Example: at eta = 10 a prefix with some success is settled long before one without.

    ```python
    >>> is_narrow_enough([3, 0], 4, eta=10, label_tolerance=0.5)
    array([ True, False])

    ```
    """
    low, high = label_interval(num_correct, num_rollouts, eta, level)
    narrow = np.asarray(high) - np.asarray(low) <= label_tolerance  # nan: False
    return bool(narrow) if narrow.ndim == 0 else narrow


def check_level(level: float) -> float:
    """Returns `level`, or raises `ValueError` unless it lies strictly between 0 and 1."""
    if isinstance(level, bool | str) or not 0 < level < 1:
        raise ValueError(f"`interval_level` must lie between 0 and 1, got {level!r}. Pass 0.95.")
    return float(level)
