import math

import numpy as np
import pytest

from trl_erprm.evaluation.best_of_n import clustered_interval
from trl_erprm.evaluation.intervals import group_numbers, grouped_interval, resampled_interval


@pytest.mark.parametrize("num_groups, size", [(2, 3), (7, 4), (40, 1)])
def test_groups_of_equal_size_give_the_interval_of_their_means(num_groups, size):
    rng = np.random.default_rng(num_groups)
    values = rng.integers(0, 2, size=num_groups * size).astype(float)
    found = grouped_interval(values, np.repeat(np.arange(num_groups), size))
    wanted = clustered_interval(values.reshape(num_groups, size).mean(axis=1), num_candidates=size)
    assert found == pytest.approx(wanted, abs=1e-5)  # the two tables of Student's t agree to 1e-5


def test_groups_of_unequal_size_by_hand():
    # y = 3/5; residuals of the groups 0.4 + 0.4 + 0.4 = 1.2 and -0.6 - 0.6 = -1.2; V = 2 (1.44 + 1.44) / 25
    values, groups = np.array([1.0, 1, 1, 0, 0]), np.array([0, 0, 0, 1, 1])
    n_eff, t = 0.24 / (2 * 2.88 / 25), 12.706204736
    center, scale = 0.6 + t**2 / (2 * n_eff), 1 + t**2 / n_eff
    half = t * math.sqrt(0.24 / n_eff + t**2 / (4 * n_eff**2))
    assert grouped_interval(values, groups) == pytest.approx((0.6, (center - half) / scale, (center + half) / scale))


def test_interval_always_has_a_width_and_stays_inside():
    for values in ([0.0], [1.0] * 9, [0.5] * 3, [1.0, 0.0]):
        mean, low, high = grouped_interval(np.array(values), np.arange(len(values)))
        assert 0 <= low <= mean <= high <= 1 and high - low > 0.1
    one_group = grouped_interval(np.array([1.0, 0.0]), np.array([3, 3]))
    assert one_group == pytest.approx(grouped_interval(np.array([0.5]), np.array([0])))


def test_resampled_interval_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    sums = np.stack([values, np.ones(400)], axis=1)
    low, high = resampled_interval(lambda s: s[:, 0] / s[:, 1], sums)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert resampled_interval(lambda s: s[:, 0] / s[:, 1], sums, seed=1) != (low, high)


def test_draws_without_a_value_are_left_out():
    sums = np.array([[1.0, 1.0], [0.0, 0.0]])  # of a quarter of the draws there is nothing
    assert resampled_interval(lambda s: s[:, 0] / s[:, 1], sums) == (1.0, 1.0)
    assert all(map(math.isnan, resampled_interval(lambda s: s[:, 0] / s[:, 1], np.zeros((3, 2)))))


def test_group_numbers():
    assert group_numbers(None, 3).tolist() == [0, 1, 2]
    assert group_numbers(["b", ("a",), "b"], 3).tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="There must be one group .* got 1 for 3 items"):
        group_numbers(["a"], 3)
