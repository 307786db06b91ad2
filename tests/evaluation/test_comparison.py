"""`trl_erprm.evaluation.comparison` and the table of it: against the pure functions, by hand, on real scores."""

import gzip
import io
import json

import numpy as np
import pytest
from rich.console import Console

from trl_erprm import aggregate
from trl_erprm.evaluation.best_of_n import (
    Estimate,
    best_of_n_accuracy,
    clustered_interval,
    majority_accuracy,
    pass_at_n,
)
from trl_erprm.evaluation.candidates import make_pool, read_candidates, read_step_scores
from trl_erprm.evaluation.comparison import (
    MAJORITY,
    aggregated_scores,
    calibrate_scorers,
    calibration_notes,
    compare_scorers,
    compare_search,
    headline_pairs,
    judge_scorers,
)
from trl_erprm.evaluation.curves import best_of_n_curves
from trl_erprm.evaluation.paired import bootstrap_interval, holm, mcnemar
from trl_erprm.evaluation.report import comparison_table
from trl_erprm.evaluation.search import CurvePoint
from trl_erprm.prm.aggregation import AGGREGATIONS


def make_rows(num_problems=20, num_candidates=5, seed=0):
    """A pool and the step scores of a good and of a random scorer."""
    generator = np.random.default_rng(seed)
    rows, good, chance = [], [], []
    for _ in range(num_problems):
        candidates, of_good, of_chance = [], [], []
        for _ in range(num_candidates):
            is_right = bool(generator.random() < 0.5)
            num_steps = int(generator.integers(1, 4))
            candidates.append(
                {"steps": ["s"] * num_steps, "extracted_answer": "1" if is_right else "2", "is_correct": is_right}
            )
            of_good.append((0.3 * is_right + 0.7 * generator.random(num_steps)).tolist())
            of_chance.append(generator.random(num_steps).tolist())
        rows.append({"candidates": candidates})
        good.append(of_good)
        chance.append(of_chance)
    return make_pool(rows), {"good": good, "chance": chance}


@pytest.fixture(scope="module")
def compared():
    pool, step_scores = make_rows()
    return pool, step_scores, compare_scorers(pool, step_scores, num_resamples=200)


def test_every_curve_is_that_of_the_pure_functions(compared):
    pool, step_scores, metrics = compared
    assert (metrics["num_problems"], metrics["num_candidates"]) == (20, 5)
    for name, of_scorer in step_scores.items():
        assert list(metrics["scorers"][name]["aggregations"]) == list(AGGREGATIONS)
        for how in AGGREGATIONS:
            scores = [[aggregate(steps, how) for steps in problem] for problem in of_scorer]
            curve = metrics["scorers"][name]["aggregations"][how]["best_of_n"]
            for n in range(1, 6):
                assert curve["accuracy"][n - 1] == pytest.approx(best_of_n_accuracy(scores, pool.is_correct, n))
                first = best_of_n_accuracy([row[:n] for row in scores], pool.is_correct[:, :n], n)
                assert curve["first_n"][n - 1] == pytest.approx(first)
    for n in range(1, 6):
        assert metrics["majority"]["accuracy"][n - 1] == pytest.approx(
            majority_accuracy(pool.classes, pool.is_correct, n)
        )
        assert metrics["oracle"]["accuracy"][n - 1] == pytest.approx(pass_at_n(pool.is_correct, n))
    assert metrics["random"]["accuracy"] == pytest.approx(pool.is_correct.mean())


def test_intervals_are_over_problems(compared):
    pool, step_scores, metrics = compared
    curve = metrics["scorers"]["good"]["aggregations"]["min"]["best_of_n"]
    per_problem = best_of_n_curves(aggregated_scores(step_scores["good"], "min"), pool.is_correct)
    for n, num_disjoint in ((1, 5), (2, 2), (5, 1)):
        expected = clustered_interval(per_problem[:, n - 1], num_disjoint)
        found = [curve[key][n - 1] for key in ("accuracy", "low", "high")]
        assert found == pytest.approx(list(expected))


def test_pairs(compared):
    pool, step_scores, metrics = compared
    assert {(pair["first"], pair["second"]) for pair in metrics["pairs"]} == {
        ("good", "chance"),
        ("good", MAJORITY),
        ("chance", MAJORITY),
        ("good, weighted vote", MAJORITY),
        ("chance, weighted vote", MAJORITY),
    }
    assert len(metrics["pairs"]) == 5 * len(AGGREGATIONS)
    scores = {name: aggregated_scores(of_scorer, "mean") for name, of_scorer in step_scores.items()}
    for n in (2, 5):
        pair = headline_pairs(metrics | {"aggregation": "mean"}, n)[0]
        every, first = (
            {name: best_of_n_curves(s, pool.is_correct, rule)[:, n - 1] for name, s in scores.items()}
            for rule in ("all_subsets", "first_n")
        )
        expected = bootstrap_interval(every["good"] - every["chance"], num_resamples=200)
        assert [pair[key] for key in ("difference", "low", "high")] == pytest.approx(list(expected))
        test = mcnemar(first["good"], first["chance"])
        assert [pair[key] for key in test._fields] == list(test)
    at_most = headline_pairs(metrics)[0]
    good, chance = (metrics["scorers"][name]["aggregations"]["min"]["best_of_n"] for name in ("good", "chance"))
    assert at_most["difference"] == pytest.approx(good["accuracy"][-1] - chance["accuracy"][-1])
    assert at_most["difference"] > 0


def test_options_reach_the_numbers():
    pool, step_scores = make_rows(num_candidates=10)
    base = compare_scorers(pool, step_scores, num_resamples=50, max_subsets=20)
    assert compare_scorers(pool, step_scores, num_resamples=50, max_subsets=20) == base
    for changes in ({"num_resamples": 51}, {"max_subsets": 21}, {"seed": 1}):
        changed = compare_scorers(pool, step_scores, **{"num_resamples": 50, "max_subsets": 20, **changes})
        assert changed["pairs"] != base["pairs"], changes
    other = compare_scorers(pool, step_scores, "softmin(0.5)", aggregations=["softmin(0.5)", "last"], num_resamples=50)
    assert list(other["scorers"]["good"]["aggregations"]) == ["softmin(0.5)", "last"]
    assert other["aggregation"] == "softmin(0.5)"


def test_a_scorer_with_an_aggregation_of_its_own(compared):
    pool, step_scores, _ = compared
    metrics = compare_scorers(pool, step_scores, own_aggregations={"chance": "last"}, num_resamples=50)
    assert [metrics["scorers"][name]["aggregation"] for name in ("good", "chance")] == ["min", "last"]
    curves = {
        "good": metrics["scorers"]["good"]["aggregations"]["min"]["best_of_n"],
        "chance": metrics["scorers"]["chance"]["aggregations"]["last"]["best_of_n"],
        MAJORITY: metrics["majority"],
    }
    pairs = headline_pairs(metrics)
    assert {pair["aggregation"] for pair in pairs} == {"own"} and len(pairs) == 5
    for pair in pairs[:3]:
        first, second = (curves[pair[side]]["accuracy"][-1] for side in ("first", "second"))
        assert pair["difference"] == pytest.approx(first - second)
    plain = compare_scorers(pool, step_scores, own_aggregations={"chance": "min"}, num_resamples=50)
    assert {pair["aggregation"] for pair in plain["pairs"]} == set(AGGREGATIONS)


def test_metrics_are_plain_json(compared):
    metrics = compared[2]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_candidates_without_score_are_counted():
    pool, step_scores = make_rows()
    step_scores["good"][0] = [None] * 5
    step_scores["good"][3][2] = None
    metrics = compare_scorers(pool, step_scores, num_resamples=10)
    assert (metrics["scorers"]["good"]["num_unscored"], metrics["scorers"]["chance"]["num_unscored"]) == (6, 0)


def test_scores_below_zero_choose_but_do_not_vote():
    pool, step_scores = make_rows()
    step_scores["logits"] = [[[s - 0.5 for s in steps] for steps in problem] for problem in step_scores["good"]]
    metrics = compare_scorers(pool, step_scores, num_resamples=10)
    assert metrics["notes"][-1] == "'logits' has scores below 0: it has no weighted vote."
    logits, good = (metrics["scorers"][name]["aggregations"]["min"] for name in ("logits", "good"))
    assert "weighted_majority" not in logits and logits["best_of_n"] == good["best_of_n"]
    assert not any(pair["first"] == "logits, weighted vote" for pair in metrics["pairs"])


def test_calibration_of_a_perfect_and_of_a_hopeful_scorer():
    """Candidates are right with the probability of their only score; the other scorer says 0.3 more."""
    generator = np.random.default_rng(0)
    rows, perfect, hopeful, entropic = [], [], [], []
    for _ in range(150):
        p = generator.choice([0.2, 0.4, 0.6], size=8)
        right = generator.random(8) < p
        rows.append(
            {
                "candidates": [
                    {"steps": ["a"], "extracted_answer": "1", "is_correct": bool(verdict)} for verdict in right
                ]
            }
        )
        perfect.append([[float(x)] for x in p])
        hopeful.append([[float(x) + 0.3] for x in p])
        entropic.append([[float(np.log1p(x * np.expm1(2.0)) / 2.0)] for x in p])
    step_scores = {"perfect": perfect, "hopeful": hopeful, "entropic": entropic, "hard": perfect}
    found = calibrate_scorers(make_pool(rows), step_scores, {"entropic": 2.0, "hard": float("inf")})
    assert found["perfect"]["calibration_error"] < 0.05
    assert found["hopeful"]["calibration_error"] == pytest.approx(0.3, abs=0.05)
    assert found["entropic"]["calibration_error"] == pytest.approx(found["perfect"]["calibration_error"])
    assert [found[name]["eta"] for name in ("perfect", "entropic", "hard")] == [None, 2.0, None]
    assert found["hard"] == found["perfect"]  # no other probability is known of a hard label
    assert found["perfect"]["min_on_last"] is None  # a solution of one step says nothing about it
    assert sum(of_bin["num_items"] for of_bin in found["perfect"]["bins"]) == 150 * 8
    json.dumps(found, allow_nan=False)


def test_unbounded_scores_have_no_calibration():
    pool, step_scores = make_rows()
    step_scores["logits"] = [[[2 * s for s in steps] for steps in problem] for problem in step_scores["good"]]
    step_scores["nothing"] = [[None] * 5 for _ in range(20)]
    assert list(calibrate_scorers(pool, step_scores)) == ["good", "chance"]


def test_scorers_without_calibration_are_named():
    """Each scorer is either calibrated or in a note, which gives the range of its scores."""
    pool, step_scores = make_rows()
    assert calibration_notes(step_scores) == []
    shifted = [[[2 * score - 0.5 for score in steps] for steps in problem] for problem in step_scores["good"]]
    values = [score for problem in shifted for steps in problem for score in steps]
    step_scores["logits"] = shifted
    step_scores["above"] = [[[1.5 for _ in steps] for steps in problem] for problem in step_scores["good"]]
    step_scores["nothing"] = [[None] * 5 for _ in range(20)]
    assert list(calibrate_scorers(pool, step_scores)) == ["good", "chance"]
    notes = calibration_notes(step_scores)
    assert [note.split("'")[1] for note in notes] == ["logits", "above", "nothing"]
    assert f"from {min(values):.3g} to {max(values):.3g}, outside [0, 1]" in notes[0] and "sigmoid" in notes[0]
    assert "from 1.5 to 1.5" in notes[1] and "no score of any candidate" in notes[2]
    assert calibration_notes({"edge": [[[0.0, 1.0]]]}) == []


class TestJudgeScorers:
    """A step is right unless it says "wrong"; each problem has a right and a wrong candidate of two steps."""

    @staticmethod
    def pool(num_problems=4):
        right = {"steps": ["a", "b"], "extracted_answer": "1", "is_correct": True}
        wrong = {"steps": ["a", "wrong"], "extracted_answer": "2", "is_correct": False}
        return make_pool([{"prompt": f"p{i}", "candidates": [right, wrong]} for i in range(num_problems)])

    @staticmethod
    def check_steps(prompt, steps):
        return [step != "wrong" for step in steps]

    def test_by_hand(self):
        scores = {
            "knows": [[[0.9, 0.8], [0.9, 0.1]]] * 4,
            "blind": [[[0.9, 0.8], [0.9, 0.8]]] * 4,
            "inverted": [[[0.9, 0.1], [0.9, 0.8]]] * 4,
        }
        found = judge_scorers(self.pool(), scores, self.check_steps)
        assert list(found) == ["knows", "blind", "inverted"]
        assert [of_one["step_pair_accuracy"] for of_one in found.values()] == [1.0, 0.5, 0.0]
        assert {of_one["num_step_pairs"] for of_one in found.values()} == {4}  # a pair a problem, of second steps
        knows = found["knows"]
        assert knows["first_error_f1"][0] == knows["error_found"] == knows["no_error_seen"] == 1.0
        assert 0.1 <= knows["threshold"] < 0.8
        assert found["inverted"]["error_found"] == 0.0

    def test_the_threshold_comes_from_the_first_half(self):
        """There 0.5 tells right from wrong; in the second half every score is above it."""
        scores = [[[0.99, 0.8], [0.99, 0.2]]] * 2 + [[[0.99, 0.98], [0.99, 0.9]]] * 2
        found = judge_scorers(self.pool(), {"a": scores}, self.check_steps)["a"]
        assert (found["error_found"], found["no_error_seen"]) == (0.0, 1.0)
        found = judge_scorers(self.pool(), {"a": scores[::-1]}, self.check_steps)["a"]
        assert 0.9 <= found["threshold"] < 0.98 and (found["error_found"], found["no_error_seen"]) == (1.0, 0.0)

    @pytest.mark.parametrize("of_wrong, num_pairs, accuracy", [([0.9, 0.1], 1, 1.0), (None, 0, None)])
    def test_too_little_to_tell(self, of_wrong, num_pairs, accuracy):
        """One problem gives no threshold: `None`, which JSON can hold and the report shows as a dash."""
        found = judge_scorers(self.pool(1), {"a": [[[0.9, 0.8], of_wrong]]}, self.check_steps)["a"]
        assert (found["num_step_pairs"], found["step_pair_accuracy"]) == (num_pairs, accuracy)
        assert [found[key] for key in ("first_error_f1", "error_found", "no_error_seen", "threshold")] == [None] * 4
        json.dumps(found, allow_nan=False)

    def test_a_second_half_of_one_kind(self):
        """The threshold could be chosen, but there is nothing to measure F1 on."""
        scores = [[[0.9, 0.8], [0.9, 0.1]]] * 2 + [[[0.9, 0.8], None]] * 2
        found = judge_scorers(self.pool(), {"a": scores}, self.check_steps)["a"]
        assert found["num_step_pairs"] == 2 and found["first_error_f1"] is None
        json.dumps(found, allow_nan=False)

    def test_scores_that_do_not_fit(self):
        with pytest.raises(ValueError, match="a, row 0, candidate 0, has 1 scores for 2 steps"):
            judge_scorers(self.pool(1), {"a": [[[0.9], None]]}, self.check_steps)


class TestCompareSearch:
    CANDIDATES = [
        {"steps": ["s"], "extracted_answer": str(k), "is_correct": k == 2, "num_tokens": 10 + k} for k in range(5)
    ]

    def test_points(self):
        pool = make_pool([{"candidates": self.CANDIDATES}])
        found = [CurvePoint("dvts", 4, Estimate(0.5, 0.25, 0.75), 80.0, 20.0)]
        points = compare_search(found, pool, [[[0.1], [0.2], [0.9], None, [0.3]]], "last")
        assert [(p["method"], p["n"], p["num_tokens"]) for p in points] == [
            ("best of n", 1, 12.0), ("best of n", 2, 24.0), ("best of n", 4, 48.0), ("dvts", 4, 80.0)
        ]  # fmt: skip
        assert points[0]["accuracy"] == 0.2 and points[2]["accuracy"] == pytest.approx(0.8)  # 4 of 5 draws hold it
        assert points[-1] | {"accuracy": 0.5, "low": 0.25, "high": 0.75} == points[-1]

    def test_the_aggregation_that_pruned_chooses(self):
        pool = make_pool([{"candidates": [{**c, "steps": ["s", "t"]} for c in self.CANDIDATES[1:3]]}])
        scores = [[[0.9, 0.1], [0.05, 0.5]]]  # the second is right, and better by its last score only
        assert compare_search([], pool, scores, "last")[-1]["accuracy"] == 1.0
        assert compare_search([], pool, scores, "min")[-1]["accuracy"] == 0.0

    def test_candidates_that_do_not_say_what_they_took(self):
        pool = make_pool([{"candidates": [{**self.CANDIDATES[2], "num_tokens": None}]}])
        with pytest.raises(ValueError, match="must say how many tokens each took"):
            compare_search([], pool, [[[0.5]]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_scores": {}}, "`step_scores` must hold at least one scorer, got none"),
        ({"aggregation": "mean", "aggregations": ["min"]}, "`aggregation` must be one of those compared, 'min', got"),
        ({"own_aggregations": {"good": "best"}}, "must be one of those compared, 'min', .*got 'best'"),
        ({"own_aggregations": {"god": "last"}}, "`own_aggregations` must be one of 'good', 'chance', got 'god'"),
        ({"aggregations": ["minimum"]}, "`aggregations` must be one of 'min'.*got 'minimum'"),
        ({"step_scores": {"x": [[[0.1]] * 5]}}, "x must hold one row for each of 20 problems, got 1"),
    ],
)
def test_bad_input(compared, arguments, message):
    pool, step_scores, _ = compared
    with pytest.raises(ValueError, match=message):
        compare_scorers(pool, **{"step_scores": step_scores, **arguments})


def test_table(compared):
    metrics = compared[2]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table(metrics))
    text = console.export_text()
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    rows = [cells for cells in lines if len(cells) == 4 and cells[0]]
    assert [cells[0] for cells in rows] == ["good", "chance", MAJORITY, "oracle (pass@n)", "one at random"]
    good = metrics["scorers"]["good"]["aggregations"]["min"]["best_of_n"]
    assert (
        rows[0][1] == f"{100 * good['accuracy'][-1]:.1f} [{100 * good['low'][-1]:.1f}, {100 * good['high'][-1]:.1f}]"
    )
    pair = next(p for p in headline_pairs(metrics) if (p["first"], p["second"]) == ("good", MAJORITY))
    assert rows[0][2].startswith(f"{100 * pair['difference']:+.1f} [")
    tested = {p["first"]: p["p_value"] for p in headline_pairs(metrics) if p["second"] == MAJORITY}
    corrected = holm([tested["good"], tested["chance"]])  # of the scorers, without their votes; as the report has it
    assert [cells[3] for cells in rows[:2]] == [f"{p_value:.3f}" for p_value in corrected]
    assert corrected != [tested["good"], tested["chance"]]
    assert "Best of 5 by min" in text and "20 problems" in text and "…" not in text


def test_table_of_one_problem():
    pool = make_pool([{"answer": "4", "candidates": ["5", "4"]}])
    table = comparison_table(compare_scorers(pool, {"a": [[[0.1], [0.9]]]}, num_resamples=10))
    assert table.caption == "1 problem; in brackets: 95 % interval"


def test_real_scores_of_one_model(shared_data):
    """N = 32 of the recipe's numbers against a loop over the files, every aggregation, exactly."""
    directory = shared_data / "bon_gsm8k"
    if not directory.is_dir():
        pytest.skip(f"no {directory}")
    pool = read_candidates(directory / "candidates.jsonl.gz")
    path = directory / "step_scores_math_shepherd.jsonl.gz"
    metrics = compare_scorers(pool, {"math_shepherd": read_step_scores(path, pool)}, num_resamples=10, max_subsets=1)
    with gzip.open(directory / "candidates.jsonl.gz", "rt", encoding="utf-8") as file:
        problems = [json.loads(line)["candidates"] for line in file]
    with gzip.open(path, "rt", encoding="utf-8") as file:
        step_scores = [json.loads(line)["step_scores"] for line in file]
    for how in AGGREGATIONS:
        for n in (1, 8, 32):
            right = 0
            for candidates, of_problem in zip(problems, step_scores, strict=True):
                scores = [aggregate(steps, how) for steps in of_problem[:n]]
                right += candidates[scores.index(max(scores))]["is_correct"]
            curve = metrics["scorers"]["math_shepherd"]["aggregations"][how]["best_of_n"]
            assert curve["first_n"][n - 1] == right / 100
        assert curve["accuracy"][31] == right / 100
