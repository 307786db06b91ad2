"""`trl_erprm.prm.aggregation`: hand values, limits, and each error by its message."""

import itertools
import math
import random

import numpy as np
import pytest
import torch

from trl_erprm.prm.aggregation import AGGREGATIONS, DEFAULT_TEMPERATURE, aggregate, check_aggregation

SCORES = [0.9, 0.2, 0.6]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("min", 0.2),
        ("product", 0.108),
        ("mean", 1.7 / 3),
        ("last", 0.6),
        ("max", 0.9),
        # weights exp(-7), 1, exp(-4) for T = 0.1
        ("softmin", (0.9 * math.exp(-7) + 0.2 + 0.6 * math.exp(-4)) / (math.exp(-7) + 1 + math.exp(-4))),
        ("softmin(0.1)", (0.9 * math.exp(-7) + 0.2 + 0.6 * math.exp(-4)) / (math.exp(-7) + 1 + math.exp(-4))),
        ("softmin( 1 )", (0.9 * math.exp(-0.7) + 0.2 + 0.6 * math.exp(-0.4)) / (math.exp(-0.7) + 1 + math.exp(-0.4))),
    ],
)  # fmt: skip
def test_values_worked_by_hand(how, expected):
    assert aggregate(SCORES, how) == pytest.approx(expected, rel=1e-12)


def test_default_is_min():
    assert aggregate(SCORES) == 0.2
    assert DEFAULT_TEMPERATURE == 0.1


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_one_step_is_its_own_score(how):
    assert aggregate([0.3], how) == pytest.approx(0.3, abs=1e-15)


@pytest.mark.parametrize("how", ["min", "mean", "max", "softmin(0.1)"])
def test_order_of_the_steps_does_not_matter_even_in_the_last_bit(how):
    scores = [0.1, 0.2, 0.3, 0.7, 1e-17]
    assert len({aggregate(list(permutation), how) for permutation in itertools.permutations(scores)}) == 1


def test_order_of_values():
    generator = random.Random(0)
    for _ in range(200):
        scores = [generator.random() for _ in range(generator.randint(1, 8))]
        values = {how: aggregate(scores, how) for how in AGGREGATIONS}
        # a rounding error apart: softmin of equal scores is a quotient
        assert values["product"] <= values["min"] <= values["softmin"] + 1e-12
        assert values["softmin"] <= values["mean"] + 1e-12
        assert values["mean"] <= values["max"] + 1e-12


def test_softmin_grows_with_the_temperature_from_min_to_mean():
    values = [aggregate(SCORES, "softmin", temperature=t) for t in (1e-300, 0.05, 0.1, 1.0, 10.0, math.inf)]
    assert values == sorted(values) and len(set(values)) == len(values)
    assert values[0] == 0.2
    assert values[-1] == pytest.approx(1.7 / 3)


def test_softmin_of_large_scores_does_not_overflow():
    assert aggregate([-5000.0, 5000.0], "softmin(0.1)") == -5000.0


def test_product_handles_zero_and_underflow():
    assert aggregate([0.5, 0.0, 1.0], "product") == 0.0
    assert aggregate([1e-200, 1e-200], "product") == 0.0


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_arrays_and_tensors_give_a_float(how):
    expected = aggregate([0.5, 0.25], how)
    for scores in (np.array([0.5, 0.25]), torch.tensor([0.5, 0.25]), (0.5, 0.25)):
        value = aggregate(scores, how)
        assert type(value) is float and value == expected


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("empty", [[], (), np.array([])])
def test_a_completion_without_steps_is_an_error(how, empty):
    with pytest.raises(ValueError, match="at least one score, got none.*the score `None`"):
        aggregate(empty, how)


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_an_error(how, bad):
    with pytest.raises(ValueError, match=rf"must be finite, got {bad} at index 1"):
        aggregate([0.5, bad, 0.7], how)


@pytest.mark.parametrize("bad", [[0.5, None], [[0.5], [0.7, 0.6]], ["high"], ["0.5"]])
def test_what_is_not_a_flat_list_of_numbers_is_an_error(bad):
    with pytest.raises(TypeError, match="flat list of numbers, got .* at index"):
        aggregate(bad)


@pytest.mark.parametrize("bad", [0.5, "0.5", None])
def test_what_is_not_a_list_is_an_error(bad):
    with pytest.raises(TypeError, match=rf"must be a list of numbers, got {type(bad).__name__}"):
        aggregate(bad)


@pytest.mark.parametrize(
    ("how", "hint"),
    [
        ("minn", "Did you mean 'min'?"),
        ("minimum", "Did you mean 'min'?"),
        ("prod", "Did you mean 'product'?"),
        ("Mean", "Did you mean 'mean'?"),
        ("soft_min", "Did you mean 'softmin'?"),
        ("softmn(0.1)", "Did you mean 'softmin'?"),
        ("max(2)", "Did you mean 'max'?"),
        ("zzz", "Choose one of them."),
        (None, "Choose one of them."),
        (3, "Choose one of them."),
    ],
)
def test_unknown_how_names_the_nearest_and_all(how, hint):
    for check in (check_aggregation, lambda how: aggregate([0.5], how)):
        with pytest.raises(ValueError) as error:
            check(how)
        accepted = "'min', 'product', 'mean', 'last', 'max', 'softmin', 'softmin(T)'"
        assert str(error.value) == f"`how` must be one of {accepted}, got {how!r}. {hint}"


@pytest.mark.parametrize("how", [*AGGREGATIONS, "softmin(0.1)", "softmin(1e-3)", "softmin(inf)"])
def test_check_accepts_what_aggregate_accepts(how):
    check_aggregation(how)
    aggregate([0.5, 0.6], how)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_temperature_must_be_above_0(temperature):
    with pytest.raises(ValueError, match="`temperature` must be above 0, got"):
        aggregate(SCORES, "softmin", temperature=temperature)
    with pytest.raises(ValueError, match="`temperature` must be above 0, got"):
        aggregate(SCORES, f"softmin({temperature})")


def test_temperature_that_is_no_number():
    with pytest.raises(ValueError, match=r"temperature in `how` must be a number, got 'softmin\(low\)'"):
        aggregate(SCORES, "softmin(low)")
    with pytest.raises(ValueError, match=r"temperature in `how` must be a number, got 'softmin\(\)'"):
        aggregate(SCORES, "softmin()")


def test_temperature_given_twice_or_to_another_aggregation():
    with pytest.raises(ValueError, match="must be given once"):
        aggregate(SCORES, "softmin(0.1)", temperature=0.1)
    with pytest.raises(
        ValueError, match="`temperature` goes with 'softmin' only, got `temperature=0.1` with `how='min'`"
    ):
        aggregate(SCORES, "min", temperature=0.1)
