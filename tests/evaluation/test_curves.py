"""`trl_erprm.evaluation.curves`: against naive loops over subsets and over the first n, by hand, on real scores."""

import gzip
import itertools
import json
import math

import numpy as np
import pytest

from trl_erprm.evaluation import curves
from trl_erprm.evaluation.best_of_n import best_of_n_per_problem, majority_per_problem, pass_at_n_per_problem
from trl_erprm.evaluation.curves import best_of_n_curves, majority_curves, pass_at_n_curves


def naive_choice(scores, subset):
    """The first candidate with the highest score; `None` where none has a score."""
    chosen = None
    for index in subset:
        if scores[index] is None or math.isnan(scores[index]):
            continue
        if chosen is None or scores[index] > scores[chosen]:
            chosen = index
    return chosen


def naive_vote(answers, weights, subset):
    """The first voter of the answer with the largest sum; of equal sums the answer that is seen first."""
    sums, first = {}, {}
    for index in subset:
        if answers[index] is None or weights[index] is None or math.isnan(weights[index]):
            continue
        sums.setdefault(answers[index], []).append(weights[index])
        first.setdefault(answers[index], index)
    best = None
    for answer in sums:  # in the order in which they are seen
        if best is None or math.fsum(sums[answer]) > math.fsum(sums[best]):
            best = answer
    return None if best is None else first[best]


def naive_curve(choose, is_correct, rule):
    """Accuracy of one problem at every n."""
    curve = []
    for n in range(1, len(is_correct) + 1):
        subsets = itertools.combinations(range(len(is_correct)), n) if rule == "all_subsets" else [range(n)]
        right = [chosen is not None and bool(is_correct[chosen]) for chosen in map(choose, subsets)]
        curve.append(sum(right) / len(right))
    return curve


def random_pool(seed, num_problems=10, num_candidates=6):
    generator = np.random.default_rng(seed)
    shape = (num_problems, num_candidates)
    scores = (generator.integers(0, 5, shape) / 8).astype(object)  # eighths: sums are exact
    scores[generator.random(shape) < 0.15] = None
    scores[generator.random(shape) < 0.05] = math.nan
    scores[0] = None
    answers = generator.integers(0, 3, shape).astype(str).astype(object)
    answers[generator.random(shape) < 0.15] = None
    answers[1] = None
    return scores.tolist(), answers.tolist(), (answers == "0").tolist()


@pytest.mark.parametrize("rule", curves.RULES)
@pytest.mark.parametrize("seed", range(4))
def test_equal_naive_loops(seed, rule):
    scores, answers, is_correct = random_pool(seed)
    ones = [[1.0] * len(row) for row in answers]
    best = [naive_curve(lambda s, r=r: naive_choice(r, s), c, rule) for r, c in zip(scores, is_correct, strict=True)]
    np.testing.assert_allclose(best_of_n_curves(scores, is_correct, rule), best, rtol=0, atol=1e-14)
    for weights, found in (
        (ones, majority_curves(answers, is_correct, rule=rule)[0]),
        (scores, majority_curves(answers, is_correct, [ones, scores], rule)[1]),
    ):
        expected = [
            naive_curve(lambda s, a=a, w=w: naive_vote(a, w, s), c, rule)
            for a, w, c in zip(answers, weights, is_correct, strict=True)
        ]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    oracle = [naive_curve(lambda s, c=c: next((i for i in s if c[i]), None), c, rule) for c in is_correct]
    np.testing.assert_allclose(pass_at_n_curves(is_correct, rule), oracle, rtol=0, atol=1e-14)


def test_columns_are_the_functions_of_one_n():
    scores, answers, is_correct = random_pool(9, num_candidates=9)
    for n in (1, 4, 9):
        column = (slice(None), n - 1)
        assert best_of_n_curves(scores, is_correct)[column] == pytest.approx(
            best_of_n_per_problem(scores, is_correct, n)
        )
        assert pass_at_n_curves(is_correct)[column] == pytest.approx(pass_at_n_per_problem(is_correct, n))
        assert majority_curves(answers, is_correct)[0][column] == pytest.approx(
            majority_per_problem(answers, is_correct, n)
        )


def test_real_scores_equal_a_naive_loop(shared_data):
    """N = 32 and the first n, seven public reward models: exactly."""
    directory = shared_data / "bon_gsm8k"
    if not directory.is_dir():
        pytest.skip(f"no {directory}")

    def read(name):
        with gzip.open(directory / name, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    problems = read("candidates.jsonl.gz")
    is_correct = [[c["is_correct"] for c in problem["candidates"]] for problem in problems]
    answers = [[c["extracted_answer"] for c in problem["candidates"]] for problem in problems]
    files = sorted(path.name for path in directory.glob("step_scores_*"))
    assert len(files) == 7
    for name in files:
        for aggregate in (min, math.prod, max, lambda scores: scores[-1]):
            scores = [[aggregate(steps) for steps in problem["step_scores"]] for problem in read(name)]
            expected = [
                naive_curve(lambda s, r=r: naive_choice(r, s), c, "first_n")
                for r, c in zip(scores, is_correct, strict=True)
            ]
            assert best_of_n_curves(scores, is_correct, "first_n").tolist() == expected
            # with all 32 candidates both rules are one
            assert best_of_n_curves(scores, is_correct)[:, -1].tolist() == [curve[-1] for curve in expected]
            votes = [
                float(c[naive_vote(a, w, range(32))]) for a, w, c in zip(answers, scores, is_correct, strict=True)
            ]
            assert majority_curves(answers, is_correct, [scores], max_subsets=1)[0][:, -1].tolist() == votes


def test_worked_by_hand():
    # ranks 0.9 right, 0.5 wrong, 0.1 right: of two, the best is among {0.9 x} in 2 of 3 subsets, else 0.5
    assert best_of_n_curves([[0.1, 0.9, 0.5]], [[1, 1, 0]])[0] == pytest.approx([2 / 3, 2 / 3, 1.0])
    # 0.2 + 0.2 for "7" against 0.3 for "5": only all three together outvote it
    found = majority_curves([["7", "5", "7"]], [[0, 1, 0]], weights=[[[0.2, 0.3, 0.2]], [[0.2, 0.5, 0.2]]])
    assert found[:, 0] == pytest.approx(np.array([[1 / 3, 2 / 3, 0.0], [1 / 3, 2 / 3, 1.0]]))


def test_ties_go_to_the_first_of_the_pool_whatever_the_order_of_summation():
    thirds = [0.1, 0.2, 0.3]  # 0.1 + 0.2 is not 0.3 in floats
    answers = ["a", "a", "b"]
    assert majority_curves([answers], [[True, True, False]], [[thirds]])[0, 0, -1] == 1.0
    assert majority_curves([answers[::-1]], [[False, True, True]], [[thirds[::-1]]])[0, 0, -1] == 0.0


def test_a_candidate_without_score_does_not_vote():
    answers, is_correct = [["5", "5", "7"]], [[True, True, False]]
    weights = [[[None, math.nan, 0.1]], [[None, None, None]], [[0.0, None, 0.0]]]
    found = majority_curves(answers, is_correct, weights)
    assert found[0, 0].tolist() == pytest.approx([0.0, 0.0, 0.0])
    assert found[1, 0].tolist() == [0.0, 0.0, 0.0]
    # a vote of weight 0 is a vote: "5" is seen first
    assert found[2, 0].tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_many_weightings_do_not_depend_on_each_other(monkeypatch):
    generator = np.random.default_rng(0)
    answers = generator.integers(0, 4, (5, 12)).tolist()
    is_correct = (np.array(answers) == 0).tolist()
    weights = generator.random((7, 5, 12))
    together = majority_curves(answers, is_correct, weights)
    monkeypatch.setattr(curves, "_MOST_TOTALS", 1)  # one weighting at a time
    np.testing.assert_array_equal(majority_curves(answers, is_correct, weights), together)
    for index in (0, 6):
        np.testing.assert_array_equal(
            majority_curves(answers, is_correct, weights[index : index + 1])[0], together[index]
        )


def test_drawn_subsets_are_near_all_of_them_and_keep_to_their_seed():
    scores, answers, is_correct = random_pool(3, num_problems=30, num_candidates=10)
    exact = majority_curves(answers, is_correct, [scores], max_subsets=math.comb(10, 5))
    drawn = [majority_curves(answers, is_correct, [scores], max_subsets=60, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    # 60 draws: a standard error of 0.5 / sqrt(60) = 0.065 for one problem, a fifth of it for the mean of 30
    assert drawn[0].mean(axis=1) == pytest.approx(exact.mean(axis=1), abs=0.05)
    # of sizes with at most 60 subsets (1, 2, 8, 9, 10 has 10, 45, 45, 10, 1) nothing is drawn
    few = [n - 1 for n in range(1, 11) if math.comb(10, n) <= 60]
    np.testing.assert_array_equal(drawn[0][..., few], exact[..., few])


@pytest.mark.parametrize("seed", range(3))
def test_more_of_a_good_scorer_is_better_and_the_oracle_is_never_beaten(seed):
    generator = np.random.default_rng(seed)
    is_correct = generator.random((40, 16)) < 0.4
    scores = is_correct + generator.normal(0, 0.5, is_correct.shape)
    curve, oracle = best_of_n_curves(scores, is_correct), pass_at_n_curves(is_correct)
    assert (curve <= oracle + 1e-12).all()
    assert (np.diff(oracle, axis=1) >= -1e-12).all()
    assert curve[:, -1].mean() > curve[:, 0].mean() + 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of_n_curves([[0.1]], [[True]], rule="first"), "`rule` must be one of 'all_subsets', 'first_n'"),
        (lambda: pass_at_n_curves([[True]], rule="all"), "`rule` must be one of"),
        (lambda: majority_curves([["1"]], [[True]], rule="all"), "`rule` must be one of"),
        (lambda: majority_curves([["1"]], [[True]], max_subsets=0), "`max_subsets` must be at least 1, got 0"),
        (lambda: best_of_n_curves([[0.1, 0.2]], [[True]]), "same shape, got 1 problems x 2 candidates and 1 x 1"),
        (lambda: majority_curves([["1", "2"]], [[True]]), "`answers` and `is_correct` must have the same shape"),
        (lambda: majority_curves([["1"]], [[True]], [[[0.1, 0.2]]]), "`weights` and `is_correct` must have the same"),
        (
            lambda: majority_curves([["1", "2"]] * 2, [[True, False]] * 2, [[[0.1, 0.2], [0.1, -0.2]]]),
            "`weights` must be finite and at least 0, got -0.2 in row 1, candidate 1",
        ),
        (lambda: majority_curves([["1"]], [[True]], [[[math.inf]]]), "got inf in row 0, candidate 0"),
        (lambda: best_of_n_curves([[0.1], [0.1, 0.2]], [[True], [True]]), "got 1 at row 0 and 2 at row 1"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_answer_without_hash():
    with pytest.raises(TypeError, match=r"got \['3'\] in row 1, candidate 0"):
        majority_curves([["1"], [["3"]]], [[True], [True]])
