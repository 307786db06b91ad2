import math

import numpy as np
import pytest

from trl_erprm.evaluation.step_metrics import (
    best_threshold,
    first_error_curve,
    labels_of_first_error,
    measure_first_errors,
    measure_steps,
)
from trl_erprm.prm.metrics import auroc, first_error_f1


def draw(num_rows=200, seed=0, num_levels=40):
    """Scores with many ties, and labels of first errors that they tell something about."""
    rng = np.random.default_rng(seed)
    scores, labels = [], []
    for _ in range(num_rows):
        num_steps = int(rng.integers(1, 7))
        error = int(rng.integers(-1, num_steps))
        of_row = rng.integers(num_levels // 3, num_levels, size=num_steps)
        if error >= 0:
            of_row[error] = rng.integers(0, num_levels // 2)
        scores.append((of_row / num_levels).tolist())
        labels.append(labels_of_first_error(error, num_steps))
    return scores, labels


def by_loop(scores, labels, threshold):
    """ProcessBench's measures as its paper says them."""
    matches = {True: [], False: []}
    for of_scores, of_labels in zip(scores, labels, strict=True):
        wanted = of_labels.index(0.0) if 0.0 in of_labels else -1
        found = next((k for k, s in enumerate(of_scores) if of_labels[k] is not None and s <= threshold), -1)
        matches[wanted >= 0].append(found == wanted)
    erroneous, correct = np.mean(matches[True]), np.mean(matches[False])
    return (2 * erroneous * correct / (erroneous + correct) if erroneous + correct else 0.0), erroneous, correct


def test_labels_of_first_error():
    assert labels_of_first_error(0, 3) == [0.0, None, None]
    assert labels_of_first_error(2, 3) == [1.0, 1.0, 0.0]
    assert labels_of_first_error(np.int64(-1), 1) == [1.0]


@pytest.mark.parametrize("label", [3, -2, 1.0, True, None, "1"])
def test_label_that_is_no_step(label):
    with pytest.raises(
        ValueError, match=r"the label must be -1 \(no error\) or the index of one of the 3 steps, from 0 to 2"
    ):
        labels_of_first_error(label, 3)


def test_no_steps():
    with pytest.raises(ValueError, match="a solution must have at least one step"):
        labels_of_first_error(-1, 0)


def test_curve_agrees_with_a_naive_loop_at_every_threshold():
    scores, labels = draw()
    curve = first_error_curve(scores, labels)
    assert curve.thresholds[1:].tolist() == sorted(
        {s for row in scores for s in row if s is not None}
        & {
            s
            for row, of_labels in zip(scores, labels, strict=True)
            for s, y in zip(row, of_labels, strict=True)
            if y is not None
        }
    )
    for i, threshold in enumerate(curve.thresholds):
        wanted = by_loop(scores, labels, threshold)
        assert (curve.f1[i], curve.accuracy_erroneous[i], curve.accuracy_correct[i]) == pytest.approx(wanted)
    # between two thresholds nothing changes
    for i in range(1, len(curve.thresholds) - 1):
        middle = (curve.thresholds[i] + curve.thresholds[i + 1]) / 2
        assert by_loop(scores, labels, middle)[0] == pytest.approx(curve.f1[i])


def test_ends_of_the_curve():
    curve = first_error_curve(*draw())
    assert (curve.accuracy_erroneous[0], curve.accuracy_correct[0], curve.f1[0]) == (0, 1, 0)  # nothing is an error
    assert (curve.accuracy_correct[-1], curve.f1[-1]) == (0, 0)  # every step is
    assert curve.accuracy_erroneous[-1] > 0  # errors at the first step are found


def test_curve_agrees_with_the_measures_at_one_threshold():
    scores, labels = draw(seed=1)
    curve = first_error_curve(scores, labels)
    for i in range(0, len(curve.thresholds), 5):
        found = measure_first_errors(scores, labels, float(curve.thresholds[i]))
        assert found.f1.mean == pytest.approx(curve.f1[i])
        assert found.accuracy_erroneous.mean == pytest.approx(curve.accuracy_erroneous[i])
        assert found.accuracy_correct.mean == pytest.approx(curve.accuracy_correct[i])
    assert found.num_erroneous + found.num_correct == len(scores)


def test_measures_agree_with_the_metric_of_training():
    scores, labels = draw(seed=2)
    found, wanted = measure_first_errors(scores, labels, 0.4), first_error_f1(scores, labels, 0.4)
    means = (found.f1.mean, found.accuracy_erroneous.mean, found.accuracy_correct.mean)
    assert (*means, found.num_erroneous, found.num_correct) == pytest.approx(tuple(wanted))


def test_scores_and_thresholds_on_any_scale():
    scores, labels = draw(seed=3)
    logits = [[20 * s - 7 for s in row] for row in scores]
    plain, scaled = first_error_curve(scores, labels), first_error_curve(logits, labels)
    assert scaled.f1 == pytest.approx(plain.f1)
    assert best_threshold(scaled)[0] == pytest.approx(20 * best_threshold(plain)[0] - 7)
    assert measure_first_errors(logits, labels, 1.5).f1.mean == measure_first_errors(scores, labels, 0.425).f1.mean


def test_best_threshold():
    scores, labels = draw(seed=4)
    threshold, f1 = best_threshold(first_error_curve(scores, labels))
    assert f1 == pytest.approx(max(by_loop(scores, labels, t)[0] for t in np.linspace(-0.1, 1.1, 999)))
    assert measure_first_errors(scores, labels, threshold).f1.mean == pytest.approx(f1)
    neighbours = [0.5, float(np.nextafter(0.5, 1))]  # no number lies between
    threshold, f1 = best_threshold(first_error_curve([[neighbours[0]], [neighbours[1]]], [[0], [1]]))
    assert (threshold, f1) == (0.5, 1.0)


def test_steps_without_label_are_passed_over_and_keep_their_place():
    labels = [[1.0, None, 0.0], [None, 1.0], [None, None]]
    scores = [[0.9, 0.1, 0.2], [float("nan"), 0.8], [0.5, 0.5]]
    found = measure_first_errors(scores, labels)
    assert (found.f1.mean, found.num_erroneous, found.num_correct) == (1.0, 1, 1)
    curve = first_error_curve(scores, labels)
    assert curve.thresholds[1:].tolist() == [0.2, 0.8, 0.9]


def test_solutions_of_one_kind():
    found = measure_first_errors([[0.9, 0.8]], [[1, 1]])
    assert found.accuracy_correct.mean == 1 and math.isnan(found.accuracy_erroneous.mean) and math.isnan(found.f1.mean)
    with pytest.raises(ValueError, match="There must be solutions with an error and solutions without, got 0 and 1"):
        first_error_curve([[0.9, 0.8]], [[1, 1]])


def test_interval_holds_the_truth_and_is_over_problems():
    held = 0
    truth = measure_first_errors(*draw(20_000, seed=9), threshold=0.4).f1.mean
    for seed in range(60):
        found = measure_first_errors(*draw(150, seed=seed), threshold=0.4, seed=seed)
        held += found.f1.low <= truth <= found.f1.high
    assert 0.88 <= held / 60 <= 1.0
    scores, labels = draw(50)
    once = measure_first_errors(scores, labels).f1
    copied = measure_first_errors(scores * 4, labels * 4, problems=list(range(50)) * 4).f1
    naive = measure_first_errors(scores * 4, labels * 4).f1
    assert copied.mean == pytest.approx(once.mean) == pytest.approx(naive.mean)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.05)
    assert naive.high - naive.low < 0.7 * (once.high - once.low)


def test_seed_moves_the_interval_only():
    scores, labels = draw()
    first, second = (measure_first_errors(scores, labels, seed=seed).f1 for seed in (0, 1))
    assert first.mean == second.mean and first.low != second.low
    assert measure_first_errors(scores, labels).f1 == first


def test_judgement_of_steps_by_a_naive_loop():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 2, size=4).tolist() for _ in range(60)]
    scores = [[0.3 * y + 0.7 * rng.random() for y in row] for row in labels]
    found = measure_steps(scores, labels, threshold=0.45)
    tp = fp = tn = fn = 0
    for of_scores, of_labels in zip(scores, labels, strict=True):
        for s, y in zip(of_scores, of_labels, strict=True):
            tp, fn = tp + (y and s > 0.45), fn + (y and s <= 0.45)
            fp, tn = fp + (not y and s > 0.45), tn + (not y and s <= 0.45)
    precision, recall, negative_precision, negative_recall = (
        tp / (tp + fp),
        tp / (tp + fn),
        tn / (tn + fn),
        tn / (tn + fp),
    )
    f1 = 2 * precision * recall / (precision + recall)
    negative_f1 = 2 * negative_precision * negative_recall / (negative_precision + negative_recall)
    assert found.f1.mean == pytest.approx(f1)
    assert found.f1_negative.mean == pytest.approx(negative_f1)
    assert found.prm_score.mean == pytest.approx(0.5 * f1 + 0.5 * negative_f1)
    assert (found.accuracy_correct.mean, found.accuracy_erroneous.mean) == pytest.approx((recall, negative_recall))
    assert (found.num_correct, found.num_erroneous) == (tp + fn, fp + tn)
    assert found.auroc == auroc(np.ravel(scores), np.ravel(labels))
    for estimate in found[1:6]:
        assert estimate.low < estimate.mean < estimate.high


def test_judgement_of_right_steps_only():
    found = measure_steps([[0.9, 0.1]], [[1, 1]])
    assert found.f1.mean == pytest.approx(2 / 3)
    assert math.isnan(found.f1_negative.mean) and math.isnan(found.prm_score.mean) and math.isnan(found.auroc)


@pytest.mark.parametrize("measure", [first_error_curve, measure_first_errors, measure_steps])
@pytest.mark.parametrize(
    "scores, labels, message",
    [
        ([[0.5]], [[1], [0]], "must have equally many solutions, got 1 and 2"),
        ([[0.5], [0.5]], [[1], [1, 0]], r"Row 1 has 2 steps, but 1 scores\."),
        ([[0.5], None], [[1], [1, 0]], "Row 1 has 2 steps, but no scores. Give one score a step"),
        ([[0.5], [0.5, float("nan")]], [[1], [1, 0]], "Row 1: the score of step 1 must be finite .* got nan"),
        ([[0.5], [float("inf"), 1]], [[1], [1, 0]], "Row 1: the score of step 0 must be finite .* got inf"),
        ([[0.5], [None, 1]], [[1], [1, 0]], "Row 1: the score of step 0 must be finite"),
        ([[0.5], ["x", 1]], [[1], [1, 0]], "Row 1: the scores must be numbers, one a step"),
        ([[0.5], [0.5, 1]], [[1], [1, -1]], r"Row 1: the label of step 1 must lie in \[0, 1\], or be None .* got -1"),
        ([[0.5]], [[None]], "None of the 1 rows has a labelled step"),
        ([], [], "None of the 0 rows has a labelled step"),
    ],
)
def test_bad_rows_are_named(measure, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        measure(scores, labels)


@pytest.mark.parametrize("measure", [measure_first_errors, measure_steps])
@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_threshold_that_is_not_finite(measure, threshold):
    with pytest.raises(ValueError, match="`threshold` must be finite"):
        measure([[0.5], [0.5]], [[1], [0]], threshold)


def test_problems_of_another_length():
    with pytest.raises(ValueError, match="There must be one group .* got 1 for 2 items"):
        measure_steps([[0.5], [0.5]], [[1], [0]], problems=["a"])
