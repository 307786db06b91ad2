"""`trl_erprm.evaluation.paired`: by hand, coverage by simulation, each error by its message."""

import math

import numpy as np
import pytest

from trl_erprm.evaluation import paired
from trl_erprm.evaluation.paired import bootstrap_interval, bootstrap_intervals, holm, mcnemar


def naive_interval(values, num_resamples, seed):
    """The resamples as lists of problems, from the counts of each problem that numpy draws."""
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=num_resamples)
    means = [sum(v * c for v, c in zip(values, row, strict=True)) / n for row in counts.tolist()]
    return np.quantile(means, [0.025, 0.975])


def test_equals_a_loop_over_resamples():
    values = [0.5, -1.0, 0.25, 0.0, 0.125, 1.0]
    mean, low, high = bootstrap_interval(values, num_resamples=300, seed=4)
    assert mean == np.mean(values)
    assert (low, high) == pytest.approx(naive_interval(values, 300, 4), abs=1e-12)


def test_width_is_that_of_the_normal_interval():
    """For many problems: mean -+ 1.96 s / sqrt(P)."""
    values = np.random.default_rng(0).normal(0.02, 0.3, 2_000)
    mean, low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(2_000)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_covers_the_truth_95_times_in_100():
    generator, covered, trials = np.random.default_rng(0), 0, 400
    for trial in range(trials):
        # differences of two selectors on 80 problems: mostly 0, 0.15 - 0.08 = 0.07 on average
        differences = generator.choice([1, 0, -1], size=80, p=[0.15, 0.77, 0.08])
        _, low, high = bootstrap_interval(differences, num_resamples=400, seed=trial)
        covered += low <= 0.07 <= high
    assert 0.92 <= covered / trials <= 0.98  # standard error 0.011


def test_columns_have_the_intervals_that_they_have_alone(monkeypatch):
    values = np.random.default_rng(0).normal(size=(30, 5))
    together = np.array(bootstrap_intervals(values))
    monkeypatch.setattr(paired, "_MOST_MEANS", 1)  # a column at a time
    np.testing.assert_allclose(np.array(bootstrap_intervals(values)), together, rtol=0, atol=1e-12)
    assert bootstrap_interval(values[:, 3]) == pytest.approx(tuple(together[:, 3]), abs=1e-12)


def test_pairing_narrows_the_interval():
    """Two selectors that fail on the same hard problems: the difference is known better than either accuracy."""
    generator = np.random.default_rng(0)
    difficulty = generator.random(300)
    first = (difficulty < 0.6).astype(float)
    second = np.where(generator.random(300) < 0.05, 1 - first, first)
    width = {name: np.ptp(bootstrap_interval(v)[1:]) for name, v in (("one", first), ("both", first - second))}
    assert width["both"] < 0.6 * width["one"]


def test_equal_values_have_no_width_and_options_move_the_ends():
    assert bootstrap_interval([0.3] * 7) == (pytest.approx(0.3), 0.3, 0.3)
    values = np.random.default_rng(1).normal(size=50)
    wide, narrow = bootstrap_interval(values, level=0.99), bootstrap_interval(values, level=0.5)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert bootstrap_interval(values, seed=0) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, num_resamples=50) != bootstrap_interval(values, num_resamples=51)


def test_whole_outcomes_give_exact_ends():
    """So that "the interval holds 0" is not decided by a rounding error."""
    values = np.zeros(100)
    values[:3] = 1
    _, low, _ = bootstrap_interval(values)
    assert low == 0.0


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    # 2 P(X <= min) with X ~ Binomial(both, 1/2), from the binomial coefficients
    [(5, 0, 2 / 32), (0, 5, 2 / 32), (6, 1, 16 / 128), (3, 3, 1.0), (0, 0, 1.0), (1, 0, 1.0), (9, 1, 22 / 1024)],
)
def test_mcnemar(only_first, only_second, expected):
    first = [True] * only_first + [False] * only_second + [True, False]
    second = [False] * only_first + [True] * only_second + [True, False]
    assert mcnemar(first, second) == (only_first, only_second, pytest.approx(expected, abs=1e-12))


def test_mcnemar_keeps_its_level():
    """Selectors of equal accuracy: at most 5 % of the tests say otherwise."""
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(500):
        first, second = generator.random((2, 60)) < 0.7
        rejected += mcnemar(first, second).p_value <= 0.05
    assert rejected / 500 <= 0.05


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), r"one row a problem and at least one column, got shape \(0, 1\)"),
        (lambda: bootstrap_interval([[0.1]]), r"one value a problem, got shape \(1, 1\)"),
        (lambda: bootstrap_intervals([0.1]), r"one row a problem and at least one column, got shape \(1,\)"),
        (lambda: bootstrap_intervals([[0.1, 0.2], [0.1, math.nan]]), "must be finite, got nan at row 1, column 1"),
        (lambda: bootstrap_interval([1.0], level=95), r"`level` must be in \(0, 1\), got 95"),
        (lambda: bootstrap_interval([1.0], num_resamples=0), "`num_resamples` must be at least 1, got 0"),
        (lambda: mcnemar([1, 0], [1]), r"each of the same problems, got shapes \(2,\) and \(1,\)"),
        (lambda: mcnemar([1, 0], [1, 0.5]), "takes true or false, got 0.5 at row 1"),
        (lambda: holm([0.1, 1.2]), r"`p_values` must lie in \[0, 1\], got 1.2 at index 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
