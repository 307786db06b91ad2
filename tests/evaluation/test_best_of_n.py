"""`trl_erprm.evaluation.best_of_n`: against naive enumeration of all subsets, by hand, each error by its message."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from trl_erprm.evaluation import best_of_n
from trl_erprm.evaluation.best_of_n import (
    best_of_n_accuracy,
    best_of_n_per_problem,
    clustered_interval,
    majority_accuracy,
    majority_per_problem,
    pass_at_n,
    pass_at_n_per_problem,
    sampled_accuracy,
)


def naive_best_of_n(scores, is_correct, n):
    """One problem, every subset: the first candidate with the highest score; without any score, wrong."""
    hits = []
    for subset in itertools.combinations(range(len(scores)), n):
        chosen = None
        for index in subset:
            score = scores[index]
            if score is None or math.isnan(score):
                continue
            if chosen is None or score > scores[chosen]:
                chosen = index
        hits.append(chosen is not None and bool(is_correct[chosen]))
    return sum(hits) / len(hits)


def naive_majority(answers, is_correct, n):
    """One problem, every subset: the most frequent answer, of several the one seen first; without any vote, wrong."""
    hits = []
    for subset in itertools.combinations(range(len(answers)), n):
        votes = Counter(answers[index] for index in subset if answers[index] is not None)
        if not votes:
            hits.append(False)
            continue
        winner = next(i for i in subset if answers[i] is not None and votes[answers[i]] == max(votes.values()))
        hits.append(bool(is_correct[winner]))
    return sum(hits) / len(hits)


def random_pool(seed, num_problems=12, num_candidates=7):
    """Pool with many ties, candidates without score or answer, and unreadable answers."""
    generator = np.random.default_rng(seed)
    shape = (num_problems, num_candidates)
    scores = generator.integers(0, 4, shape).astype(object)
    scores[generator.random(shape) < 0.2] = None
    scores[generator.random(shape) < 0.1] = math.nan
    scores[generator.random(shape) < 0.05] = -math.inf
    scores[0] = None
    answers = generator.integers(0, 3, shape).astype(str).astype(object)
    answers[generator.random(shape) < 0.2] = None
    answers[1] = None
    is_correct = (answers == "0").astype(object)
    is_correct[answers == None] = None  # noqa: E711  elementwise
    return scores.tolist(), answers.tolist(), is_correct.tolist()


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("seed", range(5))
def test_equals_naive_enumeration(seed, n):
    scores, answers, is_correct = random_pool(seed)
    expected = [naive_best_of_n(s, c, n) for s, c in zip(scores, is_correct, strict=True)]
    np.testing.assert_allclose(best_of_n_per_problem(scores, is_correct, n), expected, rtol=0, atol=1e-14)
    assert best_of_n_accuracy(scores, is_correct, n) == pytest.approx(np.mean(expected), abs=1e-14)

    expected = [naive_majority(a, c, n) for a, c in zip(answers, is_correct, strict=True)]
    np.testing.assert_allclose(majority_per_problem(answers, is_correct, n), expected, rtol=0, atol=1e-14)
    assert majority_accuracy(answers, is_correct, n) == pytest.approx(np.mean(expected), abs=1e-14)

    expected = [np.mean([any(subset) for subset in itertools.combinations(c, n)]) for c in is_correct]
    np.testing.assert_allclose(pass_at_n_per_problem(is_correct, n), expected, rtol=0, atol=1e-14)
    assert pass_at_n(is_correct, n) == pytest.approx(np.mean(expected), abs=1e-14)


def test_values_worked_by_hand():
    # pairs of (0.9 right, 0.1, 0.5): the right one is in two of three, and then chosen
    assert best_of_n_accuracy([[0.9, 0.1, 0.5]], [[True, False, False]], 2) == pytest.approx(2 / 3)
    assert pass_at_n([[True, True, False, False]], 2) == pytest.approx(5 / 6)
    assert majority_accuracy([["7", "5", "5", "7", "5"]], [[True, False, False, True, False]]) == 0.0


def test_whole_pool_is_exact():
    scores = [[0.1, 0.7, 0.7], [0.3, 0.2, 0.1], [0.5, 0.6, 0.4]]
    is_correct = [[False, True, False], [True, False, False], [False, False, True]]
    assert best_of_n_per_problem(scores, is_correct, 3).tolist() == [1.0, 1.0, 0.0]


def test_among_equal_scores_the_first_is_chosen():
    assert best_of_n_accuracy([[0.5, 0.5]], [[True, False]], 2) == 1.0
    assert best_of_n_accuracy([[0.5, 0.5]], [[False, True]], 2) == 0.0
    # more than 16 candidates, where an unstable sort would show
    assert best_of_n_accuracy([[0.5] * 100], [[True] + [False] * 99], 100) == 1.0


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_candidate_without_score_is_chosen_last_and_counts_as_wrong(missing):
    assert best_of_n_accuracy([[missing, -math.inf]], [[True, False]], 2) == 0.0
    assert best_of_n_accuracy([[missing, -math.inf]], [[False, True]], 2) == 1.0
    assert best_of_n_accuracy([[missing, missing]], [[True, True]], 2) == 0.0
    assert best_of_n_accuracy([[missing, missing, 0.1]], [[True, True, True]], 2) == pytest.approx(2 / 3)


def test_votes_without_answer_do_not_count():
    assert majority_accuracy([[None, None, "3"]], [[None, None, True]]) == 1.0
    assert majority_accuracy([[None, None]], [[True, True]]) == 0.0


def test_among_equal_votes_the_answer_seen_first_in_the_subset_wins():
    assert majority_accuracy([["5", "7"]], [[True, False]]) == 1.0
    assert majority_accuracy([["5", "7"]], [[False, True]]) == 0.0
    # In the pool "5" is seen first, but in the subset of the last two "7" is.
    answers, is_correct = ["5", "7", "5"], [True, False, True]
    assert majority_accuracy([answers], [is_correct], 2) == pytest.approx(2 / 3)


def test_perfect_scores_reach_the_oracle_and_grow_with_n():
    generator = np.random.default_rng(0)
    is_correct = generator.random((30, 9)) < 0.3
    by_n = [best_of_n_accuracy(is_correct.astype(float), is_correct, n) for n in range(1, 10)]
    assert by_n == pytest.approx([pass_at_n(is_correct, n) for n in range(1, 10)])
    assert by_n == sorted(by_n)
    assert by_n[0] == pytest.approx(is_correct.mean())


def test_large_pools_do_not_overflow():
    num_candidates = 2_000
    is_correct = [[True] + [False] * (num_candidates - 1)]
    assert pass_at_n(is_correct, 1_000) == pytest.approx(0.5)
    assert best_of_n_accuracy([list(range(num_candidates))], is_correct, 1_000) < 1e-9
    assert best_of_n_accuracy([list(range(num_candidates, 0, -1))], is_correct, 1_000) == pytest.approx(0.5)


def test_majority_of_too_many_subsets_is_sampled_with_a_seed(monkeypatch):
    scores, answers, is_correct = random_pool(0, num_problems=20, num_candidates=10)
    exact = majority_accuracy(answers, is_correct, 5)
    assert majority_accuracy(answers, is_correct, 5, seed=1) == exact
    monkeypatch.setattr(best_of_n, "MAX_SUBSETS", 200)  # of C(10, 5) = 252
    sampled = [majority_accuracy(answers, is_correct, 5, seed=seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled == pytest.approx([exact] * 3, abs=0.03)


def test_sampled_accuracy_worked_by_hand():
    # problem means 1, 0.5, 0, 1: V = (0.140625 + 0.015625 + 0.390625 + 0.140625) / 12, n_eff = 0.234375 / V = 45/11,
    # t with 3 degrees of freedom = 3.182446
    mean, low, high = sampled_accuracy([[True, True], [True, False], [False, False], [True, True]])
    effective, squared = 45 / 11, 3.182446**2
    center = 0.625 + squared / (2 * effective)
    half = math.sqrt(squared * 0.234375 / effective + squared**2 / (4 * effective**2))
    assert mean == 0.625
    assert low == pytest.approx((center - half) / (1 + squared / effective), abs=1e-9)
    assert high == pytest.approx((center + half) / (1 + squared / effective), abs=1e-9)


def test_copies_of_a_candidate_do_not_narrow_the_interval():
    generator = np.random.default_rng(0)
    column = generator.random((40, 1)) < 0.6
    once, copied = sampled_accuracy(column), sampled_accuracy(np.repeat(column, 16, axis=1))
    assert once == pytest.approx(copied)
    independent = sampled_accuracy(generator.random((40, 16)) < 0.6)
    assert independent.high - independent.low < 0.5 * (once.high - once.low)


def test_one_candidate_a_problem_is_near_wilson():
    is_correct = [[True]] * 180 + [[False]] * 20
    mean, low, high = sampled_accuracy(is_correct)
    # Wilson's interval of 180 of 200, from a table; ours has t and 199 in place of 1.96 and 200
    assert (mean, low, high) == pytest.approx((0.9, 0.8506, 0.9343), abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_problems", [1, 2, 3, 50])
def test_interval_is_sensible_where_problems_do_not_differ(value, num_problems):
    mean, low, high = clustered_interval([value] * num_problems, num_candidates=2)
    assert mean == value and 0 <= low <= mean <= high <= 1
    assert high - low > 0.05
    if 1 < num_problems:  # more problems, less doubt
        narrower = clustered_interval([value] * (2 * num_problems), num_candidates=2)
        assert narrower.high - narrower.low < high - low


def test_interval_of_one_problem_is_wilson_with_one_observation():
    squared = 1.959963984540054**2
    assert clustered_interval([1.0]) == pytest.approx((1.0, 1 / (1 + squared), 1.0))


def test_a_problem_never_counts_more_than_its_candidates():
    # the variance between problems alone would claim 0.2499 / 0.0001 = 2,499 observations; there are 10 x 10
    values = [0.5] * 9 + [0.6]
    capped = clustered_interval(values, num_candidates=10)
    loose = clustered_interval(values, num_candidates=10_000)
    assert capped.low < loose.low < loose.high < capped.high


def test_equal_shares_that_are_no_binary_fractions_do_not_differ():
    unequal_by_rounding = clustered_interval([0.1 + 0.2, 0.3] * 10, num_candidates=8)
    assert unequal_by_rounding == pytest.approx(clustered_interval([0.3] * 20, num_candidates=8))


@pytest.mark.parametrize(
    ("num_problems", "num_candidates", "a", "b"),
    [(5, 8, 2.0, 1.0), (30, 1, 3.0, 3.0), (30, 8, 20.0, 1.0), (100, 4, 0.3, 0.3)],
)
def test_interval_covers_the_truth_95_times_in_100(num_problems, num_candidates, a, b):
    generator = np.random.default_rng(0)
    num_covered, trials = 0, 600
    for _ in range(trials):
        difficulty = generator.beta(a, b, size=(num_problems, 1))
        _, low, high = sampled_accuracy(generator.random((num_problems, num_candidates)) < difficulty)
        num_covered += low <= a / (a + b) <= high
    # 600 trials: a standard error of 0.009; small samples may be covered more often, never much less
    assert 0.925 <= num_covered / trials <= 0.99


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706205), (4, 2.776445), (9, 2.262157), (10, 2.228139), (30, 2.042272), (120, 1.979930), (10**9, 1.959964)],
)
def test_student_t_quantile_equals_the_tables(freedom, expected):
    assert best_of_n._student_t_quantile(freedom) == pytest.approx(expected, abs=1e-5)


SCORES, ANSWERS, IS_CORRECT = [[0.1, 0.2], [0.3, 0.4]], [["1", "2"], ["3", "4"]], [[True, False], [False, True]]
CALLS = {
    "best_of_n": lambda is_correct, n: best_of_n_accuracy(SCORES, is_correct, n),
    "majority": lambda is_correct, n: majority_accuracy(ANSWERS, is_correct, n),
    "pass_at_n": lambda is_correct, n: pass_at_n(is_correct, n),
    "sampled": lambda is_correct, n: sampled_accuracy(is_correct),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("is_correct", "message"),
    [
        ([[True, False], [True]], "equally many candidates a problem, got 2 at row 0 and 1 at row 1"),
        ([], "at least one problem, got none"),
        ([[], []], "at least one candidate a problem, got none at row 0"),
        ([True, False], r"got True at row 0. For a single problem, pass \[is_correct\]"),
        (True, "one list a problem, got bool"),
        ([[True, False], [True, 0.5]], "must be true, false or None, got 0.5 in row 1, candidate 1"),
        ([[True, False], ["yes", True]], "must be true, false or None, got 'yes' in row 1, candidate 0"),
    ],
)
def test_bad_is_correct(call, is_correct, message):
    with pytest.raises(ValueError, match=message):
        call(is_correct, 1)


@pytest.mark.parametrize("call", [CALLS["best_of_n"], CALLS["majority"], CALLS["pass_at_n"]])
@pytest.mark.parametrize("n", [0, 3, -1, 1.0, True, "2"])
def test_n_outside_the_pool(call, n):
    with pytest.raises(ValueError, match=rf"`n` must be an integer from 1 to 2, the candidates a problem, got {n!r}"):
        call(IS_CORRECT, n)


def test_bad_scores_and_answers():
    with pytest.raises(ValueError, match="`scores` must hold equally many candidates .* 2 at row 0 and 1 at row 1"):
        best_of_n_accuracy([[0.1, 0.2], [0.3]], IS_CORRECT, 1)
    with pytest.raises(ValueError, match="same shape, got 1 problems x 2 candidates and 2 x 2"):
        best_of_n_accuracy(SCORES[:1], IS_CORRECT, 1)
    with pytest.raises(ValueError, match="same shape, got 2 problems x 1 candidates and 2 x 2"):
        majority_accuracy([["1"], ["2"]], IS_CORRECT)
    with pytest.raises(ValueError, match=r"`scores` must be numbers or None, .* at row 1. Aggregate the step scores"):
        best_of_n_accuracy([[0.1, 0.2], [[0.3, 0.1], 0.4]], IS_CORRECT, 1)
    with pytest.raises(ValueError, match=r"`scores` must be numbers or None, .* at row 0"):
        best_of_n_accuracy([["high", 0.2], [0.3, 0.4]], IS_CORRECT, 1)
    with pytest.raises(TypeError, match=r"`answers` must be strings or numbers, got \['3'\] in row 1, candidate 0"):
        majority_accuracy([["1", "2"], [["3"], "4"]], IS_CORRECT)


@pytest.mark.parametrize(
    ("values", "message"),
    [([0.5, 1.2], "got 1.2 at row 1"), ([math.nan], "got nan at row 0"), ([-1], "got -1.0 at row 0")],
)
def test_interval_of_what_is_no_share(values, message):
    with pytest.raises(ValueError, match=rf"`per_problem` must lie in \[0, 1\], .*{message}"):
        clustered_interval(values)


@pytest.mark.parametrize("values", [[], [[0.5, 0.6]], 0.5])
def test_interval_of_what_is_no_list(values):
    with pytest.raises(ValueError, match="one value a problem, got shape"):
        clustered_interval(values)
