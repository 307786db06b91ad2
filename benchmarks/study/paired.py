"""Differences between settings that share their seeds: intervals over seeds, and effect sizes. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from trl_erprm.evaluation.paired import holm


class Mean(NamedTuple):
    """
    A mean over seeds with its 95 % interval, by Student's t with n - 1 degrees of freedom.

    Attributes:
        mean, low, high (`float`): in the unit of the values; the ends are NaN of fewer than two seeds.
        n (`int`): seeds.
    """

    mean: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """
    A mean difference over seeds: its interval is that of the differences, not of the two means.

    Attributes:
        mean, low, high (`float`), n (`int`): as in [`Mean`].
        effect_size (`float`): mean over standard deviation of the differences (Cohen's d of paired samples, d_z); NaN
            of fewer than two seeds or where no difference differs from another.
        p_value (`float`): of the paired t test, two-sided.
    """

    mean: float
    low: float
    high: float
    n: int
    effect_size: float
    p_value: float


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """
    Mean and interval of one value a seed.

    Example: t with 2 degrees of freedom is 4.303.

    ```python
    >>> mean, low, high, n = mean_over_seeds([1.0, 2.0, 3.0])
    >>> mean, round(low, 3), round(high, 3), n
    (2.0, -0.484, 4.484, 3)

    ```
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Mean(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Mean(mean, mean - half, mean + half, n)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """
    `first` minus `second`, over the seeds that both have; `None` without such a seed.

    Args:
        first, second (`Mapping[int, float]`): a value for each seed.

    Example: differences of 1, 2 and 3; t = 2 / (1 / sqrt(3)) = 3.46.

    ```python
    >>> difference = paired_difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0, 3: 9.0})
    >>> difference.mean, difference.effect_size, round(difference.p_value, 3), difference.n
    (2.0, 2.0, 0.074, 3)

    ```
    """
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    values = [first[seed] - second[seed] for seed in seeds]
    mean, low, high, n = mean_over_seeds(values)
    deviation = float(np.std(values, ddof=1)) if n > 1 else math.nan
    if not deviation > 1e-12:  # no two differ, but for rounding, or there are no two
        is_nothing = n > 1 and abs(mean) < 1e-12
        return Difference(mean, low, high, n, math.nan, 1.0 if is_nothing else math.nan)
    p_value = 2 * float(stdtr(n - 1, -abs(mean) / deviation * math.sqrt(n)))
    return Difference(mean, low, high, n, mean / deviation, p_value)


def compare_with(baseline: str, values: Mapping[str, Mapping[int, float]]) -> dict[str, Difference]:
    """
    Differences of all settings but the baseline from it, with p-values after Holm's correction for their number.

    Args:
        baseline (`str`): name of the setting that is subtracted.
        values (`Mapping`): by setting, a value for each seed.
    """
    found = {
        name: difference
        for name, of_seeds in values.items()
        if name != baseline and (difference := paired_difference(of_seeds, values.get(baseline, {}))) is not None
    }
    tested = [name for name, difference in found.items() if not math.isnan(difference.p_value)]
    corrected = holm([found[name].p_value for name in tested])
    return found | {name: found[name]._replace(p_value=p) for name, p in zip(tested, corrected, strict=True)}
