import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from trl_erprm.labeling.estimators import (
    check_eta,
    entropy_regularized_value,
    entropy_regularized_value_from_counts,
    entropy_regularized_value_from_probability,
    success_probability,
)

INF = math.inf
# From the worst rollout to the best, through the mean and the places where formulas change or overflow.
ETAS = [
    -INF,
    -1e308,
    -1000.0,
    -10.0,
    -1.0,
    -1e-7,
    -1e-9,
    -5e-324,
    0.0,
    1e-300,
    1e-9,
    1e-7,
    0.1,
    1.0,
    10.0,
    1000.0,
    1e308,
    INF,
]


def test_values_by_hand():
    # (1/2) log((e^2 + 3) / 4): one of four right at eta = 2
    assert entropy_regularized_value([0, 1, 0, 0], eta=2) == pytest.approx(
        math.log((math.e**2 + 3) / 4) / 2, abs=1e-15
    )
    assert entropy_regularized_value_from_counts(1, 4, eta=2) == pytest.approx(0.477229296, abs=1e-9)
    # negative eta: -log((e^-1 + 3) / 4)
    assert entropy_regularized_value_from_counts(1, 4, eta=-1) == pytest.approx(
        -math.log((math.exp(-1) + 3) / 4), abs=1e-15
    )
    # outcomes between 0 and 1: log((e^0.5 + e^0.25) / 2)
    expected = math.log((math.exp(0.5) + math.exp(0.25)) / 2)
    assert entropy_regularized_value([0.5, 0.25], eta=1) == pytest.approx(expected, abs=1e-15)


def test_the_reference_code_gives_the_same():
    """`calculate_score.py` of the ER-PRM repository: log of the mean of exp(coefficient * label), over coefficient."""
    for eta in (1, 2, 5, 10):
        for right in range(17):
            mean = (16 - right) / 16 * math.exp(0) + right / 16 * math.exp(eta)
            assert entropy_regularized_value_from_counts(right, 16, eta) == pytest.approx(
                math.log(mean) / eta, abs=1e-14
            )


@pytest.mark.parametrize(("eta", "of_outcomes"), [(0, np.mean), (INF, np.max), (-INF, np.min)])
def test_limits(eta, of_outcomes):
    outcomes = np.random.default_rng(0).random((50, 7))
    np.testing.assert_allclose(entropy_regularized_value(outcomes, eta), of_outcomes(outcomes, axis=-1), rtol=1e-15)
    counts = np.arange(17)
    expected = [of_outcomes([1] * c + [0] * (16 - c)) for c in counts]
    np.testing.assert_allclose(entropy_regularized_value_from_counts(counts, 16, eta), expected, rtol=1e-15)


@pytest.mark.parametrize("sign", [1, -1])
def test_large_eta_comes_near_the_limit_as_log_n_over_eta(sign):
    outcomes = [0.2, 0.9, 0.4, 0.4]
    limit = max(outcomes) if sign > 0 else min(outcomes)
    for eta in (1e3, 1e6, 1e300):
        value = entropy_regularized_value(outcomes, sign * eta)
        assert value == pytest.approx(limit - sign * math.log(4) / eta, abs=1e-15)
    assert entropy_regularized_value_from_counts(1, 16, 1000.0) == pytest.approx(1 - math.log(16) / 1000, abs=1e-15)
    assert entropy_regularized_value_from_counts(15, 16, -1000.0) == pytest.approx(math.log(16) / 1000, abs=1e-15)


def test_continuous_around_zero():
    """mean + (eta / 2) * variance, to full precision: no digit is lost to eta in the denominator."""
    outcomes = np.array([0.1, 0.7, 0.7, 1.0, 0.0])
    mean, variance = outcomes.mean(), outcomes.var()
    for eta in (1e-3, 1e-5, 1.1e-8, 1e-8, 0.9e-8, 1e-9, 1e-12, 1e-300, 5e-324):
        for signed in (eta, -eta):
            tolerance = 1e-15 + eta**2
            assert entropy_regularized_value(outcomes, signed) == pytest.approx(
                mean + signed / 2 * variance, abs=tolerance
            )
            assert entropy_regularized_value_from_counts(5, 16, signed) == pytest.approx(
                5 / 16 + signed / 2 * 5 / 16 * 11 / 16, abs=tolerance
            )


def test_exact_to_the_last_digit_for_small_eta():
    """Against the definition in 60 decimal digits, where float64 evaluated as written would lose up to all of them."""
    outcomes = [Decimal("0.125"), Decimal("0.75"), Decimal(1), Decimal(0)]
    with localcontext() as context:
        context.prec = 60
        for eta in (1.0, 1e-2, 1e-3, 1e-4, 1e-6, 3e-8, 0.7e-8, 1e-9):
            for signed in (eta, -eta):
                exact = (sum((Decimal(signed) * r).exp() for r in outcomes) / 4).ln() / Decimal(signed)
                value = entropy_regularized_value([float(r) for r in outcomes], signed)
                assert abs(Decimal(value) - exact) < Decimal("4e-16")
                exact = (1 + Decimal(5) / 16 * (Decimal(signed).exp() - 1)).ln() / Decimal(signed)
                assert abs(Decimal(entropy_regularized_value_from_counts(5, 16, signed)) - exact) < Decimal("4e-16")
                value = Decimal("0.3125")
                exact = ((Decimal(signed) * value).exp() - 1) / (Decimal(signed).exp() - 1)
                assert abs(Decimal(success_probability(0.3125, signed)) - exact) < Decimal("4e-16")


def test_monotone_in_eta_and_soft_below_er_below_hard():
    rng = np.random.default_rng(1)
    for outcomes in [rng.random((40, 16)), (rng.random((40, 16)) < rng.random((40, 1))).astype(float)]:
        values = np.array([entropy_regularized_value(outcomes, eta) for eta in ETAS])
        assert np.all(np.diff(values, axis=0) >= -1e-15)
        assert np.all((values >= 0) & (values <= 1))
    counts = np.arange(17)
    by_eta = {eta: entropy_regularized_value_from_counts(counts, 16, eta) for eta in ETAS}
    assert np.all(np.diff(list(by_eta.values()), axis=0) >= -1e-15)
    inner = slice(1, 16)  # strictly between, where rollouts differ
    for eta in (0.1, 1.0, 10.0, 1000.0):
        assert np.all(by_eta[0.0][inner] < by_eta[eta][inner])
        assert np.all(by_eta[eta][inner] < by_eta[INF][inner])
        assert np.all(by_eta[-INF][inner] < by_eta[-10.0][inner])


@pytest.mark.parametrize("eta", ETAS)
def test_counts_equal_outcomes_rise_and_are_exact_at_the_ends(eta):
    counts = np.arange(17)
    values = entropy_regularized_value_from_counts(counts, 16, eta)
    from_outcomes = [entropy_regularized_value([1] * c + [0] * (16 - c), eta) for c in counts]
    np.testing.assert_allclose(values, from_outcomes, atol=2e-15)
    np.testing.assert_array_equal(values, entropy_regularized_value_from_probability(counts / 16, eta))
    assert values[0] == 0.0 and values[16] == 1.0
    assert np.all(np.diff(values) >= 0)
    if math.isfinite(eta) and abs(eta) < 1e300:
        assert np.all(np.diff(values) > 0)


@pytest.mark.parametrize("eta", [eta for eta in ETAS if math.isfinite(eta) and abs(eta) < 1e300])
def test_success_probability_is_the_inverse(eta):
    counts = np.arange(65)
    values = entropy_regularized_value_from_counts(counts, 64, eta)
    np.testing.assert_allclose(success_probability(values, eta), counts / 64, atol=1e-12)
    p = np.random.default_rng(3).random(100)
    np.testing.assert_allclose(
        success_probability(entropy_regularized_value_from_probability(p, eta), eta), p, atol=1e-12
    )
    values = np.linspace(0, 1, 101)
    p = success_probability(values, eta)
    assert p[0] == 0 and p[-1] == pytest.approx(1, abs=1e-15) and np.all(np.diff(p) >= 0)


def test_bellman_identity():
    """exp(eta V(s)) is the mean of exp(eta V(s + a)): values of prefixes fit together like those of rollouts."""
    rng = np.random.default_rng(2)
    outcomes = rng.random((4, 6))  # 4 next steps, 6 rollouts of each
    for eta in (-3.0, 0.0, 0.5, 20.0):
        of_steps = entropy_regularized_value(outcomes, eta)
        assert entropy_regularized_value(of_steps, eta) == pytest.approx(
            entropy_regularized_value(outcomes.ravel(), eta)
        )


def test_shapes_and_types():
    assert type(entropy_regularized_value([1, 0], 1)) is float
    assert type(entropy_regularized_value_from_counts(1, 2, 1)) is float
    assert type(entropy_regularized_value_from_counts(np.int64(1), np.int64(2), np.float32(1))) is float
    assert type(entropy_regularized_value_from_probability(0.5, 1)) is float
    assert type(success_probability(0.5, 1)) is float
    assert entropy_regularized_value(np.zeros((2, 3, 4)), 1).shape == (2, 3)
    assert entropy_regularized_value_from_counts([[1], [2]], [2, 4], 1).shape == (2, 2)
    assert success_probability([[0.1, 0.2]], 1).shape == (1, 2)
    assert entropy_regularized_value_from_counts([], [], 1).shape == (0,)


@pytest.mark.parametrize("eta", ETAS)
def test_no_rollouts_no_label(eta):
    assert math.isnan(entropy_regularized_value([], eta))
    assert math.isnan(entropy_regularized_value_from_counts(0, 0, eta))
    values = entropy_regularized_value_from_counts([0, 1], [0, 1], eta)
    assert math.isnan(values[0]) and values[1] == 1.0
    assert math.isnan(entropy_regularized_value_from_probability(math.nan, eta))
    if math.isfinite(eta):
        assert math.isnan(success_probability(math.nan, eta))


@pytest.mark.parametrize(
    "function",
    [
        lambda eta: entropy_regularized_value([1, 0], eta),
        lambda eta: entropy_regularized_value_from_counts(1, 2, eta),
        lambda eta: success_probability(0.5, eta),
        check_eta,
    ],
)
def test_eta_is_checked(function):
    with pytest.raises(ValueError, match="`eta` must be finite or one of inf, -inf, got nan. Pass 0 for the mean"):
        function(math.nan)
    for wrong in ("inf", None, True, [1.0], 1j):
        with pytest.raises(TypeError, match="`eta` must be a number"):
            function(wrong)


@pytest.mark.parametrize(
    ("correct", "total", "message"),
    [
        (3, 2, "`num_correct` must not exceed `num_rollouts`, got 3 of 2"),
        ([1, 5], [4, 4], "got 5 of 4"),
        (-1, 2, "`num_correct` must be whole numbers from 0 up, got -1"),
        (0, -2, "`num_rollouts` must be whole numbers from 0 up, got -2"),
        (0.5, 2, "`num_correct` must be whole numbers from 0 up, got 0.5. Pass counts, not shares"),
        (math.nan, 2, "got nan"),
        (1, math.inf, "got inf"),
    ],
)
def test_counts_are_checked(correct, total, message):
    with pytest.raises(ValueError, match=message):
        entropy_regularized_value_from_counts(correct, total, 1)


def test_outcomes_and_values_are_checked():
    for wrong, shown in (([0, 1.5], "1.5"), ([[-0.1, 0]], "-0.1"), ([0, math.nan], "nan")):
        with pytest.raises(ValueError, match=rf"`outcomes` must lie in \[0, 1\], got {shown}"):
            entropy_regularized_value(wrong, 1)
    with pytest.raises(ValueError, match="`outcomes` must have an axis of rollouts, got the number 1"):
        entropy_regularized_value(1, 1)
    with pytest.raises(ValueError, match=r"`value` must lie in \[0, 1\], got 1.25"):
        success_probability([math.nan, 1.25], 1)
    with pytest.raises(ValueError, match=r"`probability` must lie in \[0, 1\], got -0.5. Pass shares"):
        entropy_regularized_value_from_probability([0.5, -0.5], 1)
    for eta in (INF, -INF):
        with pytest.raises(ValueError, match="`eta` must be finite, got -?inf: .* Use the counts"):
            success_probability(1.0, eta)


@pytest.mark.parametrize("eta", ETAS)
def test_no_floating_point_warning(eta):
    with np.errstate(all="raise", under="ignore"):
        entropy_regularized_value([[0, 1, 0.5]], eta)
        entropy_regularized_value_from_counts([0, 0, 1, 2], [0, 2, 2, 2], eta)
        if math.isfinite(eta):
            success_probability([0, 0.5, 1, math.nan], eta)
