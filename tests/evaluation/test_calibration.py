import gzip
import json
import math

import numpy as np
import pytest
from datasets import Dataset

from trl_erprm.data import to_stepwise_rows
from trl_erprm.evaluation.calibration import (
    binned_calibration_error,
    calibration_error_if_perfect,
    measure_calibration,
    min_on_last_share,
    outcome_brier_score,
    probability_brier_score,
    reliability_diagram,
)
from trl_erprm.labeling.estimators import entropy_regularized_value_from_probability
from trl_erprm.prm.metrics import brier_score, calibration_error


def draw(num_items=3_000, num_rollouts=8, seed=0):
    """Probabilities, and right rollouts drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.beta(0.5, 0.5, size=num_items)
    return p, rng.binomial(num_rollouts, p), np.full(num_items, num_rollouts)


# Reliability diagram and calibration error


def test_bins_of_equal_width_by_hand():
    bins = reliability_diagram([0.0, 0.29, 0.3, 0.5, 1.0], [0, 1, 0, 0.5, 1], num_bins=10)
    assert [b.low for b in bins] == [0, 0.2, 0.3, 0.5, 0.9]
    assert [b.high for b in bins] == [0.1, 0.3, 0.4, 0.6, 1]
    assert [b.num_items for b in bins] == [1] * 5
    assert [b.mean_outcome for b in bins] == [0, 1, 0, 0.5, 1]


def test_bins_of_equal_mass_by_hand():
    scores = [0.9, 0.1, 0.2, 0.3, 0.4, 0.95]
    bins = reliability_diagram(scores, [1, 0, 0, 1, 1, 0], num_bins=3, binning="equal_mass")
    assert [(b.low, b.high, b.num_items, b.mean_outcome) for b in bins] == [
        (0.1, 0.2, 2, 0.0),
        (0.3, 0.4, 2, 1.0),
        (0.9, 0.95, 2, 0.5),
    ]


def test_equal_scores_stay_in_one_bin_of_equal_mass():
    bins = reliability_diagram([0.2] * 7 + [0.8] * 3, [0, 1] * 5, num_bins=5, binning="equal_mass")
    assert [(b.low, b.high, b.num_items) for b in bins] == [(0.2, 0.2, 7), (0.8, 0.8, 3)]


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
@pytest.mark.parametrize("num_bins", [1, 7, 100])
def test_diagram_and_error_agree_with_a_naive_loop(binning, num_bins):
    rng = np.random.default_rng(1)
    scores, outcomes = rng.random(211), rng.integers(0, 2, size=211).astype(float)
    bins = reliability_diagram(scores, outcomes, num_bins, binning)
    members: dict[int, list[int]] = {}
    for rank, i in enumerate(np.argsort(scores)):
        if binning == "equal_width":
            b = next(b for b in range(num_bins) if scores[i] < (b + 1) / num_bins or b == num_bins - 1)
        else:
            b = next(b for b in range(num_bins) if rank < round((b + 1) * 211 / num_bins))
        members.setdefault(b, []).append(i)
    naive = [members[b] for b in sorted(members)]
    assert [b.num_items for b in bins] == [len(inside) for inside in naive]
    assert [b.mean_score for b in bins] == pytest.approx([np.mean(scores[inside]) for inside in naive])
    assert [b.mean_outcome for b in bins] == pytest.approx([np.mean(outcomes[inside]) for inside in naive])
    error = sum(len(m) / 211 * abs(np.mean(scores[m]) - np.mean(outcomes[m])) for m in naive)
    assert binned_calibration_error(bins) == pytest.approx(error)
    if binning == "equal_width":
        assert binned_calibration_error(bins) == pytest.approx(calibration_error(scores, outcomes, num_bins))


def test_interval_of_a_bin_takes_items_of_one_problem_for_less():
    scores, outcomes = [0.5] * 40, [1, 0] * 20
    [apart] = reliability_diagram(scores, outcomes, num_bins=1)
    [alike] = reliability_diagram(scores, sorted(outcomes), num_bins=1, groups=[i // 10 for i in range(40)])
    assert apart.mean_outcome == alike.mean_outcome == 0.5
    assert apart.outcome_high - apart.outcome_low == pytest.approx(0.30, abs=0.02)  # Wilson's, 20 of 40
    assert alike.outcome_high - alike.outcome_low > 2 * (apart.outcome_high - apart.outcome_low)


def test_intervals_hold_the_probability():
    held = total = 0
    for seed in range(30):
        p, correct, rollouts = draw(num_items=400, num_rollouts=1, seed=seed)
        for b in reliability_diagram(p, correct / rollouts, num_bins=5):
            held += b.outcome_low <= b.mean_score <= b.outcome_high
            total += 1
    assert 0.9 <= held / total <= 0.99


def test_error_if_perfect_is_what_perfect_scores_show():
    p, correct, rollouts = draw(num_items=500, num_rollouts=4)
    shown = [calibration_error(p, np.random.default_rng(seed).binomial(4, p) / 4) for seed in range(20)]
    assert calibration_error_if_perfect(p, rollouts) == pytest.approx(np.mean(shown), rel=0.1)
    assert calibration_error_if_perfect(p, rollouts * 100) < 0.3 * calibration_error_if_perfect(p, rollouts)
    assert calibration_error_if_perfect([0.0, 1.0]) == 0
    assert math.isnan(calibration_error_if_perfect([]))


# Brier scores


@pytest.mark.parametrize("num_rollouts", [2, 4, 16, 64])
def test_brier_scores_do_not_depend_on_the_number_of_rollouts(num_rollouts):
    p, correct, rollouts = draw(num_items=20_000, num_rollouts=num_rollouts)
    scores = np.clip(p + 0.2, 0, 1)
    wanted = np.mean((scores - p) ** 2)
    assert probability_brier_score(scores, correct, rollouts) == pytest.approx(wanted, abs=2e-3)
    assert outcome_brier_score(scores, correct, rollouts) == pytest.approx(wanted + np.mean(p * (1 - p)), abs=4e-3)
    # ... which the plain score against frequencies does
    excess = brier_score(scores, correct / rollouts) - wanted
    assert excess == pytest.approx(np.mean(p * (1 - p)) / num_rollouts, abs=4e-3)


def test_brier_scores_by_a_naive_loop():
    scores, correct, rollouts = [0.9, 0.4, 0.0], [3, 1, 0], [4, 2, 5]
    squares, unbiased = [], []
    for s, c, n in zip(scores, correct, rollouts, strict=True):
        outcomes = [1] * c + [0] * (n - c)
        squares.append(np.mean([(s - r) ** 2 for r in outcomes]))
        unbiased.append((s - c / n) ** 2 - np.var(outcomes, ddof=1) / n)
    assert outcome_brier_score(scores, correct, rollouts) == pytest.approx(np.mean(squares))
    assert probability_brier_score(scores, correct, rollouts) == pytest.approx(np.mean(unbiased))


def test_brier_scores_of_single_and_of_no_rollouts():
    assert outcome_brier_score([0.9, 0.4, 0.7], [1, 0, 0], [1, 1, 0]) == pytest.approx(brier_score([0.9, 0.4], [1, 0]))
    assert math.isnan(probability_brier_score([0.9, 0.4], [1, 2], [1, 2]))
    assert math.isnan(outcome_brier_score([0.9], [0], [0]))
    assert math.isnan(probability_brier_score([], [], []))


# The lowest score on the last step


def test_min_on_last_by_hand():
    found = min_on_last_share([[0.5, 0.1], [0.1, 0.5], [0.2, 0.2, 0.9], [0.3, 0.1, 0.1], [0.4], [], None])
    assert found.share.mean == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert found.chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 3 + 1 / 3) / 4)
    assert found.num_solutions == 4
    assert math.isnan(min_on_last_share([[0.4], []]).share.mean)


def test_min_on_last_of_random_scores_is_chance():
    rng = np.random.default_rng(0)
    # few different scores, so that there are many ties
    scores = [rng.integers(0, 3, size=rng.integers(2, 9)) / 2 for _ in range(4_000)]
    found = min_on_last_share(scores)
    assert found.share.low < found.chance < found.share.high
    assert found.share.mean == pytest.approx(found.chance, abs=0.02)


def test_min_on_last_interval_is_over_problems():
    scores = ([[0.5, 0.1]] * 10 + [[0.1, 0.5]] * 10) * 5
    apart = min_on_last_share(scores).share
    alike = min_on_last_share(scores, [i // 10 for i in range(100)]).share
    assert apart.mean == alike.mean == 0.5
    assert alike.high - alike.low > 2 * (apart.high - apart.low)


# All together


def test_scores_of_an_er_prm_are_calibrated_through_the_inverse_of_its_value():
    p, correct, rollouts = draw(num_items=4_000)
    scores = entropy_regularized_value_from_probability(p, eta=5)
    nested = [[x.tolist()] for x in np.stack([scores, correct, rollouts], axis=1)]
    step_scores, counts, totals = zip(*[([s], [c], [n]) for [[s, c, n]] in nested], strict=True)
    exact = measure_calibration(step_scores, counts, totals, eta=5)
    assert exact.calibration_error < 2.5 * exact.calibration_error_if_perfect
    assert abs(exact.probability_brier) < 2e-3
    assert exact.outcome_brier.low < np.mean(p * (1 - p)) < exact.outcome_brier.high
    plain = measure_calibration(step_scores, counts, totals)
    assert plain.calibration_error > 0.2
    assert plain.mean_score > plain.mean_outcome + 0.2  # too hopeful: V lies above p for eta > 0
    for bins in (exact.equal_width, exact.equal_mass):
        assert sum(b.num_items for b in bins) == 4_000
    assert len(exact.equal_mass) == 10


def test_ratings_and_missing_steps():
    found = measure_calibration([[0.9, 0.4, 0.8], None, [0.2]], [[1, None, float("nan")], [1, 1], [False]])
    assert (found.num_steps, found.num_solutions) == (2, 2)
    assert found.outcome_brier.mean == pytest.approx((0.1**2 + 0.2**2) / 2)
    assert math.isnan(found.probability_brier)
    assert found.min_on_last.num_solutions == 1
    # a step without rollouts is no step
    assert measure_calibration([[0.5, 0.5]], [[0, 1]], [[0, 2]]).num_steps == 1


def test_problems_widen_the_interval_of_the_brier_score():
    rng = np.random.default_rng(0)
    p = np.repeat(rng.random(20), 10)
    step_scores, outcomes = [[0.5]] * 200, [[float(x)] for x in p]
    apart = measure_calibration(step_scores, outcomes).outcome_brier
    alike = measure_calibration(step_scores, outcomes, problems=[i // 10 for i in range(200)]).outcome_brier
    assert apart.mean == alike.mean
    assert alike.high - alike.low > 2 * (apart.high - apart.low)


def test_seed_and_num_bins_change_the_result():
    p, correct, rollouts = draw(num_items=50)
    arguments = ([[s] for s in p], [[int(c)] for c in correct], [[int(n)] for n in rollouts])
    first, second = measure_calibration(*arguments), measure_calibration(*arguments, seed=1, num_bins=3)
    assert first.outcome_brier.mean == second.outcome_brier.mean
    assert first.outcome_brier.low != second.outcome_brier.low
    assert (len(first.equal_mass), len(second.equal_mass)) == (10, 3)
    assert measure_calibration(*arguments) == first


# Real step scores


def read_gz(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_real_step_scores_of_public_models(shared_data):
    """Scores of the last step against the outcome of the solution, and where the lowest score lies."""
    problems = read_gz(shared_data / "bon_gsm8k" / "candidates.jsonl.gz")
    correct = [float(c["is_correct"]) for problem in problems for c in problem["candidates"]]
    of_problem = [i for i in range(len(problems)) for _ in range(32)]
    lowest_on_last = {}
    for path in sorted((shared_data / "bon_gsm8k").glob("step_scores_*.jsonl.gz")):
        scores = [of_one for problem in read_gz(path) for of_one in problem["step_scores"]]
        last = [[s[-1]] for s in scores]
        found = measure_calibration(last, [[c] for c in correct], problems=of_problem)
        assert found.num_steps == 3_200
        assert found.outcome_brier.mean == pytest.approx(
            sum((s - c) ** 2 for [s], c in zip(last, correct, strict=True)) / 3_200
        )
        naive = 0.0
        for b in range(10):
            inside = [i for i, [s] in enumerate(last) if b / 10 <= s < (b + 1) / 10 or (b == 9 and s == 1)]
            if inside:
                naive += abs(sum(last[i][0] - correct[i] for i in inside)) / 3_200
        assert found.calibration_error == pytest.approx(naive)
        assert found.outcome_brier.low < found.outcome_brier.mean < found.outcome_brier.high
        lowest_on_last[path.name] = min_on_last_share(scores, of_problem)
    assert len(lowest_on_last) == 7
    longer = [s for s in scores if len(s) > 1]
    naive = sum((s[-1] == min(s)) / s.count(min(s)) for s in longer) / len(longer)
    assert lowest_on_last[path.name].share.mean == pytest.approx(naive)


def test_real_monte_carlo_values_judged_by_their_own_rollouts_look_better_than_exact(shared_data):
    path = shared_data / "omegaprm_trees" / "samples_math-aps.jsonl"
    rows = to_stepwise_rows(Dataset.from_json(str(path)))
    counts = [[None if label is None else label * 32 for label in row["labels"]] for row in rows]
    values = [[0.5 if label is None else label for label in row["labels"]] for row in rows]
    totals = [[32] * len(of_row) for of_row in values]
    found = measure_calibration(values, counts, totals, problems=rows["prompt"])
    shares = np.array([label for row in rows for label in row["labels"] if label is not None])
    assert found.num_steps == len(shares) > 50
    assert found.calibration_error == pytest.approx(0, abs=1e-12)
    assert found.probability_brier == pytest.approx(-np.mean(shares * (1 - shares) / 31))


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([[0.5]], [[1], [0]]), "`outcomes` must hold one entry a solution, got 2 for 1 solutions"),
        (([[0.5]], [[1]], [[4], [4]]), "`num_rollouts` must hold one entry a solution, got 2"),
        (([[0.5]], [[1]], None, None, ["a", "b"]), "`problems` must hold one entry a solution, got 2"),
        (([[0.5], [0.5, 0.1]], [[1], [1]]), r"Solution 1 has 2 step scores, 1 outcomes\. Give one"),
        (([[0.5]], [[1]], [[4, 4]]), "Solution 0 has 1 step scores, 1 outcomes and 2 numbers of rollouts"),
        (([[0.5], [0.5, 1.5]], [[1], [1, 1]]), r"`step_scores` must lie in \[0, 1\], got 1.5 in solution 1, step 1"),
        (([[float("nan")]], [[1]]), r"`step_scores` must lie in \[0, 1\], got nan in solution 0, step 0"),
        (([[None]], [[1]]), r"`step_scores` must lie in \[0, 1\], got None in solution 0, step 0"),
        (([[0.5]], [[5]], [[4]]), "`outcomes` must be a count from 0 to the 4 rollouts, got 5 in solution 0, step 0"),
        (([[0.5]], [[0.5]], [[4]]), "`outcomes` must be a count from 0 to the 4 rollouts, got 0.5"),
        (([[0.5]], [[2]]), r"`outcomes` must be in \[0, 1\], got 2 in solution 0, step 0"),
        (([[0.5]], [[None]]), "There is no step with a score and an outcome in the 1 solutions"),
        (([], []), "There is no step with a score and an outcome in the 0 solutions"),
        (([[0.5]], [[1]], None, math.inf), "`eta` must be finite"),
        (([[0.5]], [[1]], None, None, None, 0), "`num_bins` must be a whole number from 1 up, got 0"),
    ],
)
def test_bad_input_names_the_solution(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure_calibration(*arguments)


def test_bad_items():
    with pytest.raises(ValueError, match=r"`scores` must lie in \[0, 1\] to be probabilities, got 1.2"):
        reliability_diagram([1.2], [1])
    with pytest.raises(ValueError, match="`scores` must be finite wherever there is a label"):
        reliability_diagram([float("nan")], [1])
    with pytest.raises(ValueError, match="`binning` must be one of .* got 'equal_with'. Did you mean 'equal_width'"):
        reliability_diagram([0.5], [1], binning="equal_with")
    with pytest.raises(ValueError, match="There must be one group .* got 1 for 2 items"):
        reliability_diagram([0.5, 0.5], [1, 0], groups=["a"])
    with pytest.raises(ValueError, match="`num_correct` must be whole numbers from 0 to `num_rollouts`, got 3 of 2"):
        outcome_brier_score([0.5], [3], [2])
    with pytest.raises(ValueError, match="`num_correct` must be whole .* got 0.5 of 2"):
        probability_brier_score([0.5], [0.5], [2])
    with pytest.raises(ValueError, match="`num_rollouts` must be one number, or one an item, got 3 for 2 items"):
        probability_brier_score([0.5, 0.5], [1, 1], [2, 2, 2])
    with pytest.raises(ValueError, match="`num_rollouts` must be whole numbers from 1 up"):
        calibration_error_if_perfect([0.5], 0)
    with pytest.raises(ValueError, match="scores of solution 1 must be finite"):
        min_on_last_share([[0.5, 0.4], [0.5, float("nan")]])
    with pytest.raises(ValueError, match="There must be one group .* got 1 for 2 items"):
        min_on_last_share([[0.5, 0.4], [0.5, 0.2]], ["a"])
