"""`trl_erprm.prm.metrics`: hand values, naive loops, properties, and each error by its message."""

import math
import re
import warnings

import numpy as np
import pytest
import torch

from trl_erprm.prm.metrics import (
    FirstErrorF1,
    auroc,
    brier_score,
    calibration_error,
    first_error,
    first_error_f1,
    step_accuracy,
)

NAN = math.nan
FLAT = [auroc, brier_score, calibration_error, step_accuracy]


@pytest.fixture(autouse=True)
def no_warning():
    """Not only those at our own lines: numpy's would be shown to the user, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def naive_auroc(scores, labels, weights):
    """Every pair, also of an item with itself."""
    in_order = pairs = 0.0
    for score, label, weight in zip(scores, labels, weights, strict=True):
        for other, other_label, other_weight in zip(scores, labels, weights, strict=True):
            mass = weight * label * other_weight * (1 - other_label)
            in_order += mass * (1.0 if score > other else 0.5 if score == other else 0.0)
            pairs += mass
    return in_order / pairs


def draw_items(seed, num_items=60):
    """Scores with ties, soft labels, weights of which some are 0."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 12, num_items) / 12
    return scores, generator.random(num_items), generator.integers(0, 4, num_items)


# AUROC


@pytest.mark.parametrize(
    ("scores", "labels", "weights", "expected"),
    [
        # pairs (positive, negative): .35 > .1, .35 < .4, .8 > .1, .8 > .4
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], None, 3 / 4),
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], None, 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], None, 0.0),
        # .5 ties with .5, and is above .2
        ([0.5, 0.5, 0.2], [1, 0, 0], None, 1.5 / 2),
        ([0.3, 0.3, 0.3], [1, 0, 0], None, 0.5),
        ([0.0, -0.0], [1, 0], None, 0.5),
        # any scale of scores
        ([-1e300, 1e300, 7.0], [0, 1, 0], None, 1.0),
        # positives .25 and .75, negatives .75 and .25: .25 * (.75 / 2) + .75 * (.75 + .25 / 2)
        ([0.2, 0.8], [0.25, 0.75], None, 0.75),
        # one item against itself
        ([0.2], [0.5], None, 0.5),
        # the pair in order weighs 3, the other 1
        ([0.5, 0.2, 0.8], [1, 0, 0], [1, 3, 1], 3 / 4),
        # the item out of order has weight 0
        ([0.5, 0.2, 0.8], [1, 0, 0], [2, 1, 0], 1.0),
    ],
)  # fmt: skip
def test_auroc_worked_by_hand(scores, labels, weights, expected):
    assert auroc(scores, labels, weights) == expected


@pytest.mark.parametrize("seed", range(10))
def test_auroc_equals_the_loop_over_pairs(seed):
    scores, labels, weights = draw_items(seed)
    ones = np.ones_like(scores)
    hard = labels > 0.4
    assert auroc(scores, labels, weights) == pytest.approx(naive_auroc(scores, labels, weights), rel=1e-12)
    assert auroc(scores, labels) == pytest.approx(naive_auroc(scores, labels, ones), rel=1e-12)
    assert auroc(scores, hard) == pytest.approx(naive_auroc(scores, hard.astype(float), ones), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_of_soft_labels_is_that_of_copies_with_hard_ones(seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, 20) / 6
    num_right = generator.integers(0, 5, 20)  # of 4 rollouts
    copies = np.repeat(scores, 4)
    hard = np.concatenate([[1] * k + [0] * (4 - k) for k in num_right])
    assert auroc(scores, num_right / 4) == pytest.approx(auroc(copies, hard), rel=1e-12)


def test_auroc_of_a_half_label_of_weight_2_is_one_positive_and_one_negative():
    soft = auroc([0.3, 0.6, 0.6], [0.5, 1, 0], weights=[2, 1, 1])
    assert soft == auroc([0.3, 0.3, 0.6, 0.6], [1, 0, 1, 0])
    assert soft == (0.5 + 0 + 1 + 0.5) / 4  # .3 = .3, .3 < .6, .6 > .3, .6 = .6


@pytest.mark.parametrize("seed", range(5))
def test_auroc_knows_only_the_order_of_the_scores(seed):
    scores, labels, weights = draw_items(seed)
    expected = auroc(scores, labels, weights)
    for transformed in (np.exp(5 * scores), scores**3 - 7, np.arctan(scores) * 1e-200):
        assert auroc(transformed, labels, weights) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_mirrored(seed):
    scores, labels, weights = draw_items(seed)
    expected = auroc(scores, labels, weights)
    assert auroc(1 - scores, 1 - labels, weights) == pytest.approx(expected, rel=1e-12)
    assert auroc(-scores, labels, weights) == pytest.approx(1 - expected, rel=1e-12)
    assert auroc(scores, 1 - labels, weights) == pytest.approx(1 - expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-3, 7.0, 1e308])
def test_auroc_does_not_depend_on_the_scale_of_the_weights(scale):
    scores, labels, weights = draw_items(0)
    weights = weights / weights.max()
    assert auroc(scores, labels, weights * scale) == pytest.approx(auroc(scores, labels, weights), rel=1e-12)


def test_auroc_of_very_unequal_masses():
    # Negatives of mass 1 at each score, positives of the least mass there is. The upper is above 2 of 3 and ties with
    # itself, the lower only ties with itself: (2.5 + 0.5) / (2 * 3)
    assert auroc([0.9, 0.5, 0.1], [5e-324, 0.0, 5e-324]) == 0.5
    assert auroc([0.9, 0.5], [5e-324, 0.0]) == (1 + 0.5) / 2


def test_auroc_is_at_most_1_though_the_sums_are_rounded():
    generator = np.random.default_rng(5)
    scores = np.arange(1000)
    for _ in range(50):
        assert 1 - 1e-12 < auroc(scores, scores >= 500, generator.random(1000)) <= 1


@pytest.mark.parametrize(
    ("labels", "weights"), [([1, 1], None), ([0, 0], None), ([0, 1], [0, 1]), ([0, 1], [1, 0]), ([0, 1], [0, 0])]
)
def test_auroc_without_a_positive_or_a_negative_is_nan(labels, weights):
    assert math.isnan(auroc([0.2, 0.8], labels, weights))


def test_auroc_of_a_million_items():
    generator = np.random.default_rng(0)
    labels = generator.random(1_000_000)
    scores = generator.random(1_000_000) < labels
    # P(score 1) is E[V^2] / E[V] = 2/3 for a positive and 1/3 for a negative: (2/3)(2/3) + (1/2)(2/9 + 2/9)
    assert auroc(scores, labels) == pytest.approx(2 / 3, abs=2e-3)


# Brier score


def test_brier_score_worked_by_hand():
    assert brier_score([0.5, 1.0], [1.0, 1.0]) == 0.125  # (.25 + 0) / 2
    assert brier_score([0.0, 1.0], [1, 0]) == 1.0
    assert brier_score([0.25, 0.75, 0.5], [0.5, 0.5, 0.5]) == pytest.approx(0.125 / 3, rel=1e-12)
    assert brier_score([-2.0], [1.0]) == 9.0  # a head without bounds
    assert brier_score([1e200], [1.0]) == math.inf


# Calibration error


@pytest.mark.parametrize(
    ("scores", "labels", "num_bins", "expected"),
    [
        # both in [.7, .8): mean score .75, mean label .5
        ([0.75, 0.75], [1, 0], 10, 0.25),
        # one bin: the errors of the two cancel; two bins: they do not
        ([0.25, 0.75], [0.5, 0.5], 1, 0.0),
        ([0.25, 0.75], [0.5, 0.5], 2, 0.25),
        # an edge belongs to the bin above it: .5 stands with .75, apart from .25
        ([0.25, 0.5, 0.75], [0.25, 0.25, 1.0], 2, 0.0),
        # 1 falls in the last bin, with .95
        ([1.0, 0.95], [0.95, 1.0], 10, 0.0),
        # shares 1/4 and 3/4: (1/4) * |.1 - 0| + (3/4) * |.9 - 2/3|
        ([0.1, 0.9, 0.9, 0.9], [0, 1, 1, 0], 2, 0.25 * 0.1 + 0.75 * (0.9 - 2 / 3)),
        # soft labels that agree
        ([0.3, 0.3, 0.8], [0.1, 0.5, 0.8], 10, 0.0),
        # .29 * 100 is 28.999...96, but .29 is the edge of the bin of .295, and not in that of .285
        ([0.29, 0.285], [0.0, 0.57], 100, (0.29 + 0.285) / 2),
        ([0.29, 0.295], [0.0, 0.585], 100, 0.0),
    ],
)  # fmt: skip
def test_calibration_error_worked_by_hand(scores, labels, num_bins, expected):
    assert calibration_error(scores, labels, num_bins) == pytest.approx(expected, abs=1e-15)


def test_calibration_error_takes_10_bins_if_not_told():
    # .61 and .69 share a tenth, .69 and .71 do not
    assert calibration_error([0.61, 0.69], [0.69, 0.61]) == pytest.approx(0.0, abs=1e-15)
    assert calibration_error([0.69, 0.71], [0.71, 0.69]) == pytest.approx(0.02, abs=1e-15)


@pytest.mark.parametrize("num_bins", [1, 2, 7, 10, np.int64(33), 1000])
def test_calibration_error_equals_the_loop_over_bins(num_bins):
    generator = np.random.default_rng(1)
    scores = np.concatenate([generator.random(200), np.arange(11) / 10, np.arange(8) / 7])
    labels = generator.random(scores.size)
    expected = 0.0
    for index in range(num_bins):
        is_last = index == num_bins - 1
        inside = [i for i, s in enumerate(scores) if s >= index / num_bins and (s < (index + 1) / num_bins or is_last)]
        if inside:
            difference = sum(scores[i] for i in inside) / len(inside) - sum(labels[i] for i in inside) / len(inside)
            expected += len(inside) / scores.size * abs(difference)
    assert calibration_error(scores, labels, num_bins) == pytest.approx(expected, rel=1e-12)


# Step accuracy


def test_step_accuracy_worked_by_hand():
    scores, labels = [0.9, 0.5, 0.51, 0.2], [1, 0, 0.5, 0.6]
    # right: .9 and 1 above; .5 and 0 not above; wrong: .51 above, .5 not; .2 not, .6 above
    assert step_accuracy(scores, labels) == 0.5
    # only 1 and .9 lie above
    assert step_accuracy(scores, labels, threshold=0.6) == 1.0
    # above .2: .9, .5, .51 and 1, .5, .6
    assert step_accuracy(scores, labels, threshold=0.2) == 0.5


@pytest.mark.parametrize("threshold", [0.3, 0.5, np.float32(0.75)])
def test_step_accuracy_equals_the_loop(threshold):
    generator = np.random.default_rng(2)
    scores, labels = generator.integers(0, 21, 200) / 20, generator.integers(0, 5, 200) / 4  # some on the threshold
    expected = sum((s > threshold) == (v > threshold) for s, v in zip(scores.tolist(), labels.tolist(), strict=True))
    assert step_accuracy(scores, labels, threshold) == expected / 200


# First error


def test_first_error_worked_by_hand():
    values = [
        [0.9, 0.4, 0.9, 0.3],
        [0.9, 0.8],
        [0.5],  # on the threshold: an error
        [],
        [NAN, None, 0.1],  # passed over, but counted
        [NAN],
        [-3.0, 5.0],
    ]
    assert first_error(values).tolist() == [1, -1, 0, -1, 2, -1, 0]
    assert first_error(values, threshold=0.3).tolist() == [3, -1, -1, -1, 2, -1, 0]
    assert first_error(values, threshold=0.85).tolist() == [1, 1, 0, -1, 2, -1, 0]


def test_first_error_equals_the_loop():
    generator = np.random.default_rng(3)
    values = [generator.random(generator.integers(0, 6)) for _ in range(300)]
    for array in values:
        array[generator.random(array.size) < 0.2] = NAN
    expected = [next((i for i, v in enumerate(array) if v <= 0.3), -1) for array in values]
    assert len(set(expected)) == 6
    assert first_error(values, threshold=0.3).tolist() == expected
    # a rectangle filled up with NaN, and tensors
    padded = np.full((300, 5), NAN)
    for row, array in zip(padded, values, strict=True):
        row[: array.size] = array
    assert first_error(padded, threshold=0.3).tolist() == expected
    assert first_error([torch.tensor(array) for array in values], threshold=0.3).tolist() == expected


def test_first_error_of_no_solution_is_an_empty_array_of_indices():
    result = first_error([])
    assert result.tolist() == [] and result.dtype == np.int64
    assert [10, 20, 30][first_error([[0.9, 0.1]])[0]] == 20


SIX_SOLUTIONS = [
    # scores, labels: expected first error, predicted first error
    ([0.9, 0.2, 0.1], [1, 0, 0]),  # 1, 1: found
    ([0.4, 0.2, 0.9], [1, 0, 1]),  # 1, 0: too early
    ([0.9, 0.9, 0.5], [0.8, 0.6, 0.5]),  # 2, 2: found, on the threshold
    ([0.1, NAN, 0.8, 0.3], [NAN, NAN, 1, 0]),  # 3, 3: found, the first two steps are left out
    ([0.9, 0.8], [1, 0.7]),  # none, none: left in peace
    ([0.9, 0.3], [1, 1]),  # none, 1: not left in peace
]


def test_first_error_f1_of_six_solutions():
    step_scores, step_labels = zip(*SIX_SOLUTIONS, strict=True)
    # 2 * (3/4) * (1/2) / (3/4 + 1/2) = 3/5
    assert first_error_f1(step_scores, step_labels) == FirstErrorF1(
        f1=0.6, accuracy_erroneous=0.75, accuracy_correct=0.5, num_erroneous=4, num_correct=2
    )
    # Threshold .65: the labels of the third have their first error at 1, its scores at 2; the others are as before.
    # 2 * (1/2) * (1/2) / (1/2 + 1/2) = 1/2
    assert first_error_f1(step_scores, step_labels, threshold=0.65) == (0.5, 0.5, 0.5, 4, 2)
    # Threshold .3: the scores of the second have their first error at 1, so it is found; the third has no error by its
    # labels, and none by its scores. Found are 3 of 3, left in peace 2 of 3: 2 * 1 * (2/3) / (1 + 2/3) = 4/5
    assert first_error_f1(step_scores, step_labels, threshold=0.3) == pytest.approx((0.8, 1.0, 2 / 3, 3, 3))


def test_first_error_f1_leaves_out_solutions_without_a_label():
    step_scores, step_labels = zip(*SIX_SOLUTIONS, ([0.9, 0.2], [NAN, None]), ([NAN], [NAN]), ([], []), strict=True)
    assert first_error_f1(step_scores, step_labels) == (0.6, 0.75, 0.5, 4, 2)


def test_first_error_f1_does_not_depend_on_the_order_of_the_solutions():
    for order in np.random.default_rng(4).permuted(np.tile(np.arange(6), (5, 1)), axis=1):
        step_scores, step_labels = zip(*(SIX_SOLUTIONS[i] for i in order), strict=True)
        assert first_error_f1(step_scores, step_labels) == (0.6, 0.75, 0.5, 4, 2)


def test_first_error_f1_punishes_both_extremes():
    labels = [[1, 0], [0, 0], [1, 1]]
    assert first_error_f1(labels, labels) == (1.0, 1.0, 1.0, 2, 1)
    assert first_error_f1([[0, 0]] * 3, labels) == (0.0, 0.5, 0.0, 2, 1)
    assert first_error_f1([[1, 1]] * 3, labels) == (0.0, 0.0, 1.0, 2, 1)
    assert first_error_f1([[0, 1], [1, 0], [0, 0]], labels) == (0.0, 0.0, 0.0, 2, 1)


def test_first_error_f1_of_one_group_is_nan():
    result = first_error_f1([[0.9, 0.2], [0.1, 0.2]], [[1, 0], [1, 0]])
    assert result[1] == 0.5 and result[3:] == (2, 0)
    assert math.isnan(result.accuracy_correct) and math.isnan(result.f1)
    result = first_error_f1([[0.9, 0.2]], [[1, 1]])
    assert result[2] == 0.0 and result[3:] == (0, 1)
    assert math.isnan(result.accuracy_erroneous) and math.isnan(result.f1)


@pytest.mark.parametrize("empty", [[], [[]], [[NAN, NAN], []]])
def test_first_error_f1_of_nothing_is_nan(empty):
    result = first_error_f1(empty, empty)
    assert all(math.isnan(value) for value in result[:3]) and result[3:] == (0, 0)


# Inputs


@pytest.mark.parametrize("metric", FLAT)
@pytest.mark.parametrize("empty", [[], (), np.array([]), [NAN], [None, NAN], np.full(3, NAN)])
def test_a_metric_of_nothing_is_nan(metric, empty):
    assert math.isnan(metric([0.5] * len(empty), empty))


@pytest.mark.parametrize("metric", FLAT)
def test_items_without_a_label_are_left_out_whatever_their_score(metric):
    scores, labels = [0.9, 0.2, 0.6, 0.7], [1.0, 0.0, 0.3, 0.8]
    with_missing = [0.9, NAN, 0.2, 0.6, math.inf, -7.0, 0.7], [1.0, NAN, 0.0, 0.3, None, NAN, 0.8]
    assert metric(*with_missing) == metric(scores, labels)


def test_weights_of_items_without_a_label_are_left_out():
    assert auroc([0.5, 0.1, 0.2, 0.8], [1, NAN, 0, 0], [1, NAN, 3, 1]) == 3 / 4


@pytest.mark.parametrize("metric", FLAT)
def test_lists_arrays_and_tensors_give_the_same_float(metric):
    scores, labels = [0.75, 0.25, 0.5], [1, 0, 1]
    expected = metric(scores, labels)
    for read in (tuple, np.array, np.float32, torch.tensor):
        value = metric(read(scores), read(labels))
        assert type(value) is float and value == expected
    assert metric(scores, [True, False, True]) == expected


@pytest.mark.parametrize("metric", FLAT)
def test_inputs_are_left_as_they_are(metric):
    scores, labels = np.array([0.9, 0.2, 0.6]), np.array([1.0, NAN, 0.0])
    metric(scores, labels)
    assert scores.tolist() == [0.9, 0.2, 0.6]
    assert labels[[0, 2]].tolist() == [1.0, 0.0] and math.isnan(labels[1])


# Errors


def raises(error, message):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize("metric", FLAT)
def test_lengths_that_differ(metric):
    with raises(
        ValueError, "`scores` and `labels` must be equally long, got 3 and 2. Pass one of each for every item."
    ):
        metric([0.1, 0.2, 0.3], [0, 1])
    with raises(ValueError, "must be equally long, got 0 and 1."):
        metric([], [NAN])


@pytest.mark.parametrize("metric", FLAT)
@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf, None])
def test_a_score_that_is_not_finite(metric, bad):
    shown = "nan" if bad is None else bad
    with raises(ValueError, f"`scores` must be finite wherever there is a label, got {shown}. Find out where"):
        metric([0.5, bad, 0.2], [1, 0, NAN])


@pytest.mark.parametrize("metric", FLAT)
@pytest.mark.parametrize("bad", [-0.1, 1.5, -100, math.inf])
def test_a_label_outside_0_and_1(metric, bad):
    with raises(ValueError, f"`labels` must lie in [0, 1], or be NaN for no label, got {bad:g}. Map rewards to"):
        metric([0.5, 0.6, 0.7], [1, bad, NAN])


@pytest.mark.parametrize("metric", FLAT)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("0.5", "must hold numbers only, in lists or arrays of one axis: values of type <U3. Pass tensors as"),
        (["0.5", "0.6"], "must hold numbers only, in lists or arrays of one axis: values of type <U3."),
        ([None, "0.6"], "must hold numbers only, in lists or arrays of one axis: values of type object."),
        ([0.5j, 0.6], "must hold numbers only, in lists or arrays of one axis: values of type complex128."),
        ([[0.5], [0.5, 0.6]], "must hold numbers only, in lists or arrays of one axis: setting an array element"),
        (torch.zeros(2, dtype=torch.bfloat16), "Pass tensors as `tensor.float().cpu().numpy()`."),
        ([[0.5, 0.6]], "must be a flat list of numbers, got an array of shape (1, 2). Pass the items of all rows as"),
        (0.5, "must be a flat list of numbers, got an array of shape ()."),
    ],
)  # fmt: skip
def test_what_is_not_a_flat_list_of_numbers(metric, bad, message):
    with raises(TypeError, message) as error:
        metric(bad, [0, 1])
    assert str(error.value).startswith("`scores`")
    with raises(TypeError, message) as error:
        metric([0.1, 0.2], bad)
    assert str(error.value).startswith("`labels`")


@pytest.mark.parametrize("bad", [-1.0, NAN, math.inf])
def test_weights_that_are_none(bad):
    with raises(ValueError, f"`weights` must be finite and 0 or more, got {bad:g}. Pass 0 for an item that does not"):
        auroc([0.1, 0.2], [0, 1], weights=[1.0, bad])


def test_weights_of_another_length_or_kind():
    with raises(ValueError, "`scores` and `weights` must be equally long, got 2 and 1. Pass one of each"):
        auroc([0.1, 0.2], [0, 1], weights=[1.0])
    with raises(TypeError, "`weights` must hold numbers only"):
        auroc([0.1, 0.2], [0, 1], weights=["a", "b"])


@pytest.mark.parametrize("bad", [-0.01, 1.01, 5.0])
def test_scores_that_cannot_be_put_in_bins(bad):
    with raises(ValueError, f"`scores` must lie in [0, 1] to be put in bins, got {bad:g}. Pass probabilities, not"):
        calibration_error([0.5, bad], [0, 1])


@pytest.mark.parametrize("bad", [0, -1, 2.5, 10.0, True, "10", None])
def test_num_bins_that_is_no_count(bad):
    with raises(ValueError, f"`num_bins` must be a whole number from 1 up, got {bad!r}. Pass 10 for tenths."):
        calibration_error([0.5], [1], num_bins=bad)
    with raises(ValueError, "`num_bins` must be"):  # also where there is nothing to put in them
        calibration_error([], [], num_bins=bad)


THRESHOLDED = [
    lambda threshold: step_accuracy([], [], threshold),
    lambda threshold: first_error([], threshold),
    lambda threshold: first_error_f1([], [], threshold),
]


@pytest.mark.parametrize("metric", THRESHOLDED)
def test_threshold_that_is_no_finite_number(metric):
    for bad in (NAN, math.inf, -math.inf):
        with raises(ValueError, f"`threshold` must be finite, got {bad}. Pass 0.5 for probabilities."):
            metric(bad)
    for bad in ("0.5", None, True, [0.5]):
        with raises(TypeError, f"`threshold` must be a number, got {bad!r}. Pass 0.5 for probabilities."):
            metric(bad)


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_first_error_of_an_infinite_value(bad):
    with raises(ValueError, f"`values` must be finite, or NaN for a step without a value, got {bad}. Find out where"):
        first_error([[0.5], [0.6, bad]])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (0.5, "must be a list of lists of numbers, got float. Pass a list of values for each solution."),
        ("0.5", "must be a list of lists of numbers, got str."),
        (None, "must be a list of lists of numbers, got NoneType."),
        ([0.5, 0.6], "must be a list of lists of numbers, got one of shape () at index 0. Pass a flat list of values"),
        ([[0.5], [[0.5]]], "must be a list of lists of numbers, got one of shape (1, 1) at index 1."),
        ([[0.5], ["0.5"]], "must hold numbers only, in lists or arrays of one axis: values of type <U3."),
        ([[0.5], [[0.5], 0.6]], "must hold numbers only, in lists or arrays of one axis: setting an array element"),
    ],
)
def test_what_is_not_a_list_of_lists_of_numbers(bad, message):
    with raises(TypeError, f"`values` {message}"):
        first_error(bad)
    with raises(TypeError, f"`step_scores` {message}"):
        first_error_f1(bad, [[1], [1]])
    with raises(TypeError, f"`step_labels` {message}"):
        first_error_f1([[1], [1]], bad)


def test_first_error_f1_of_lists_that_do_not_match():
    with raises(
        ValueError, "must have equally many solutions, got 1 and 2. Pass one list of each for every solution."
    ):
        first_error_f1([[0.5]], [[1], [1]])
    # as many steps in all
    with raises(
        ValueError, "must have equally many steps in each solution, got 2 and 1 at index 1. Give a step without"
    ):
        first_error_f1([[0.5], [0.5, 0.6], [0.7]], [[1], [1], [1, 0]])


def test_first_error_f1_of_values_out_of_range():
    with raises(
        ValueError, "`step_scores` must be finite wherever there is a label, got nan. Find out where it arose"
    ):
        first_error_f1([[0.5, NAN]], [[1, 0]])
    with raises(ValueError, "`step_labels` must lie in [0, 1], or be NaN for no label, got -100. Map rewards to"):
        first_error_f1([[0.5, 0.6]], [[1, -100]])
