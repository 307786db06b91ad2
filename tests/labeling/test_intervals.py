import math

import numpy as np
import pytest
from scipy.stats import beta, binom

from trl_erprm.labeling.estimators import (
    entropy_regularized_value_from_counts,
    entropy_regularized_value_from_probability,
)
from trl_erprm.labeling.intervals import is_narrow_enough, label_interval

INF = math.inf
ETAS = (-5.0, 0.0, 1.0, 10.0)


def test_by_hand():
    """1 of 1: Beta(3/2, 1/2), whose distribution function is (2 / pi) (asin(sqrt(x)) - sqrt(x (1 - x)))."""
    low, high = label_interval(1, 1, eta=0)
    assert 2 / math.pi * (math.asin(math.sqrt(low)) - math.sqrt(low * (1 - low))) == pytest.approx(0.025, abs=1e-12)
    assert low == pytest.approx(0.146747, abs=1e-6) and high == 1.0
    low, high = label_interval(1, 1, eta=2)
    assert low == pytest.approx(math.log(1 + 0.146747 * (math.e**2 - 1)) / 2, abs=1e-5)
    low, high = label_interval(5, 16, eta=0)
    assert (low, high) == pytest.approx(tuple(beta(5.5, 11.5).ppf([0.025, 0.975])), abs=1e-12)


@pytest.mark.parametrize("eta", [*ETAS, INF, -INF])
def test_holds_the_label_narrows_and_is_mirrored(eta):
    for n in (1, 4, 16, 256):
        counts = np.arange(n + 1)
        low, high = label_interval(counts, n, eta)
        label = entropy_regularized_value_from_counts(counts, n, eta)
        assert np.all((low <= label) & (label <= high))
        assert np.all(np.diff(low) >= 0) and np.all(np.diff(high) >= 0)
        assert low[0] == 0.0 and high[-1] == 1.0
        mirrored = label_interval(n - counts, n, -eta)
        np.testing.assert_allclose(1 - low, mirrored[1], atol=1e-12)
    if math.isfinite(eta):
        widths = [np.subtract(*label_interval(n // 4, n, eta)[::-1]) for n in (4, 16, 64, 256)]
        assert np.all(np.diff(widths) < 0)


def test_best_rollout():
    """At eta = inf one right rollout settles the label, and none leaves it open."""
    low, high = label_interval([0, 1, 16], [16, 16, 16], INF)
    assert low.tolist() == [0.0, 1.0, 1.0] and high.tolist() == [1.0, 1.0, 1.0]
    assert is_narrow_enough([0, 1], 16, INF, 0.01).tolist() == [False, True]


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_coverage_by_simulation(level):
    """Of prefixes with p spread evenly, a share `level` has its exact value inside; and of each p, nearly that."""
    rng = np.random.default_rng(0)
    for n in (4, 16, 64):
        p = rng.random(200_000)
        correct = rng.binomial(n, p)
        inside = []
        for eta in ETAS:
            low, high = label_interval(np.arange(n + 1), n, eta, level)
            value = entropy_regularized_value_from_probability(p, eta)
            # To rounding only: where V saturates, different p have the same value.
            inside.append((low[correct] <= value + 1e-12) & (value <= high[correct] + 1e-12))
            assert inside[-1].mean() == pytest.approx(level, abs=0.03)
        assert all(np.mean(one == inside[1]) > 0.999 for one in inside)  # the map keeps what is inside
    # Exactly, of each p: sums of the binomial distribution.
    n, p = 16, np.linspace(0, 1, 201)
    low, high = label_interval(np.arange(n + 1), n, 0.0, level)
    covers = (low[:, None] <= p) & (p <= high[:, None])
    coverage = (covers * binom.pmf(np.arange(n + 1)[:, None], n, p)).sum(axis=0)
    assert coverage.mean() == pytest.approx(level, abs=0.02)
    assert coverage.min() > (0.83 if level == 0.95 else 0.59)
    assert coverage[0] == coverage[-1] == 1.0  # not 0, as with Jeffreys' interval as it is


@pytest.mark.parametrize("eta", [0.0, 10.0])
def test_coverage_survives_adaptive_stopping_on_average(eta):
    """The rule of adaptive rollouts, on p from the prior of the interval."""
    rng = np.random.default_rng(1)
    p = rng.beta(0.5, 0.5, 50_000)
    right = np.cumsum(rng.random((len(p), 64)) < p[:, None], axis=1)
    total = np.zeros(len(p), dtype=int)
    correct = np.zeros(len(p), dtype=int)
    for n in range(4, 65, 4):
        done = (total == 0) & (is_narrow_enough(np.arange(n + 1), n, eta, 0.4)[right[:, n - 1]] | (n == 64))
        total[done], correct[done] = n, right[done, n - 1]
    low, high = label_interval(correct, total, eta)
    value = entropy_regularized_value_from_probability(p, eta)
    assert np.mean((low <= value + 1e-12) & (value <= high + 1e-12)) == pytest.approx(0.95, abs=0.02)
    assert len(set(total.tolist())) > 3


def test_narrow_enough():
    low, high = label_interval(2, 8, 1.0)
    assert is_narrow_enough(2, 8, 1.0, high - low) is True
    assert is_narrow_enough(2, 8, 1.0, high - low - 1e-9) is False
    assert is_narrow_enough(2, 8, 1.0, high - low - 1e-9, level=0.9) is True
    assert is_narrow_enough(0, 0, 1.0, 0.99) is False


def test_shapes_and_no_rollouts():
    assert all(type(end) is float for end in label_interval(1, 2, 1.0))
    assert all(math.isnan(end) for end in label_interval(0, 0, 1.0))
    low, high = label_interval([[1], [2]], [2, 4], 1.0)
    assert low.shape == high.shape == (2, 2)
    assert label_interval([], [], 1.0)[0].shape == (0,)


def test_errors():
    for level in (0, 1, 1.5, -0.1, math.nan, "0.95", True):
        with pytest.raises(ValueError, match="`interval_level` must lie between 0 and 1, got .*. Pass 0.95"):
            label_interval(1, 2, 1.0, level)
    with pytest.raises(ValueError, match="`num_correct` must not exceed `num_rollouts`, got 3 of 2"):
        label_interval(3, 2, 1.0)
    with pytest.raises(ValueError, match="`eta` must be finite"):
        label_interval(1, 2, math.nan)
