"""The controlled study: what it draws, measures, compares and writes; a run of all its parts on a tiny task."""

import doctest
import importlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.study import __main__ as command
from benchmarks.study import measures, prms, runner
from benchmarks.study.config import PARTS, StudyConfig, read_config
from benchmarks.study.paired import compare_with, paired_difference
from benchmarks.study.pool import Pool, expected_labels
from benchmarks.study.prms import counted_rows, share_error
from benchmarks.study.units import Unit, list_units, requirements, write_result
from trl_erprm.arithmetic import ArithmeticTask
from trl_erprm.labeling.estimators import entropy_regularized_value_from_probability

STUDY = Path(__file__).resolve().parents[2] / "benchmarks" / "study"
TASK = ArithmeticTask(seed=3)
AGGREGATIONS = ["min", "product", "mean", "last", "max", "softmin"]


@pytest.fixture
def config(tmp_path) -> StudyConfig:
    """The small study with 16 and 4 rollouts, elsewhere."""
    return read_config(STUDY / "small.yaml", output_dir=str(tmp_path / "study"), num_rollouts=[16, 4])


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Candidates of the ideal policy, a malformed one for each problem."""
    rng = np.random.default_rng(0)
    problems = TASK.problems("test")[:20]
    texts = [["\n".join(TASK.sample_solution(problem, rng)) for _ in range(15)] + ["#1"] for problem in problems]
    return Pool.of_texts(TASK, problems, texts)


def in_threads(monkeypatch) -> None:
    """Units in threads of this process, whose number of torch threads stays as it is."""
    monkeypatch.setattr(runner, "ProcessPoolExecutor", lambda num_jobs, *_: ThreadPoolExecutor(num_jobs))


@pytest.mark.parametrize("name", ["checks", "config", "paired", "pool", "published", "results"])
def test_examples(name):
    module = importlib.import_module(f"benchmarks.study.{name}")
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.testmod(module, optionflags=flags)
    assert outcome.attempted > 0
    assert outcome.failed == 0


# The config


def test_both_configs_have_the_same_settings():
    full, small = (yaml.safe_load((STUDY / name).read_text()) for name in ("config.yaml", "small.yaml"))
    assert full.keys() - small.keys() == {"longer_training"}
    for name in ("labeling", "prm", "best_of_n", "rft", "grpo"):
        assert full[name].keys() == small[name].keys(), name
    config = read_config(STUDY / "config.yaml")
    assert len(config.seeds) >= 10
    assert len(config.difficulties) == 2
    assert {"soft", "hard", "er-0.5", "er-1", "er-2", "er-5", "er-10", "outcome"} <= set(config.policy_labels)
    assert set(config.num_rollouts) == {4, 8, 16}


# Units


def test_seeds_are_innermost():
    config = read_config(STUDY / "config.yaml")
    units = [unit for unit in list_units(config, PARTS) if unit.kind == "prm"]
    counts: dict[tuple, int] = {}
    for unit in units:
        key = (unit.difficulty, unit.label, unit.num_rollouts, unit.num_epochs)
        started = [n for n in counts.values() if n < len(config.seeds)]
        assert len(started) <= len(config.difficulties)  # a setting is done for all seeds before the next one begins
        counts[key] = counts.get(key, 0) + 1
    assert set(counts.values()) == {10}
    assert [key for key in counts if key[1] == "outcome"] == [
        ("default", "outcome", 16, 0),
        ("long", "outcome", 16, 0),
    ]
    longer = [key for key in counts if key[3]]
    assert longer == [("default", label, 16, 15) for label in config.longer_training["labels"]]
    assert len(counts) == 2 * (8 * 3 + 1) + len(longer)
    assert list(counts)[-len(longer) :] == longer  # behind all others


def test_longer_training_has_files_of_its_own_and_its_own_baseline():
    task = {"difficulty": "long", "seed": 0}
    unit = Unit("scores", **task, label="er-2", num_rollouts=16, num_epochs=15)
    assert unit.path("root").name == "scores-er-2-16-15-epochs.json"
    assert requirements(unit) == [
        Unit("prm", **task, label="er-2", num_rollouts=16, num_epochs=15),
        Unit("pool", **task),
        Unit("scores", **task, label="soft", num_rollouts=16, num_epochs=15),
    ]
    config = read_config(STUDY / "config.yaml")
    assert prms.prm_config(config, unit).num_train_epochs == 15
    assert prms.prm_config(config, replace(unit, num_epochs=0)).num_train_epochs == 5


def test_requirements_come_first(config):
    for parts in (PARTS, ["grpo"], ["best_of_n"]):
        units = list_units(config, parts)
        assert len(set(units)) == len(units)
        for index, unit in enumerate(units):
            assert set(requirements(unit)) <= set(units[:index]), unit
    assert {unit.kind for unit in list_units(config, ["grpo"])} == {"labels", "prm", "grpo"}
    assert {unit.label for unit in list_units(config, ["rft"]) if unit.kind == "rft"} == set(config.policy_labels)


def test_a_stopped_run_goes_on_and_a_failure_holds_up_only_what_needs_it(config, monkeypatch, capsys):
    in_threads(monkeypatch)
    config = replace(config, seeds=[0, 1], labels=["soft", "hard"], policy_labels=["soft"])
    units, calls, broken = list_units(config, PARTS), [], Unit("prm", "default", 1, "hard", 16)

    def run_unit(config, unit):
        assert all(needed.path(config.output_dir).exists() for needed in requirements(unit)), unit
        calls.append(unit)
        if unit == broken:
            return "no luck"
        write_result(unit.path(config.output_dir), {"seconds": 0.0})
        return ""

    monkeypatch.setattr(runner, "run_unit", run_unit)
    left = runner.run_units(config, units, num_jobs=2)
    assert left == [broken, Unit("scores", "default", 1, "hard", 16)]
    assert set(calls) == set(units) - {left[1]}
    assert "failed: default seed 1 prm hard-16\nno luck" in capsys.readouterr().out

    broken = None
    calls.clear()
    assert runner.run_units(config, units, num_jobs=2) == []
    assert calls == left
    calls.clear()
    runner.run_units(config, units, num_jobs=2)
    assert calls == []


# Labels from fewer rollouts


def rows_of_counts(num_rows: int = 300) -> list[dict]:
    row = {"prompt": "p", "outcome": 1.0, "num_rollouts": [16, 16, 1]}
    return [{**row, "completions": [f"a{i}", "b", "c"], "num_correct": [4, i % 17, 1]} for i in range(num_rows)]


def test_fewer_rollouts_are_a_part_of_more():
    rows = rows_of_counts()
    sixteen, eight, four = (counted_rows(rows, n, seed=0) for n in (16, 8, 4))
    assert [row["num_correct"] for row in sixteen] == [row["num_correct"] for row in rows]
    for more, fewer, n in ((sixteen, eight, 8), (eight, four, 4)):
        for of_more, of_fewer in zip(more, fewer, strict=True):
            assert of_fewer["num_rollouts"] == [n, n, 1]
            assert of_fewer["num_correct"][2] == 1  # the outcome
            for k in (0, 1):
                dropped = of_more["num_rollouts"][k] - n
                assert 0 <= of_more["num_correct"][k] - of_fewer["num_correct"][k] <= dropped
    # hypergeometric: mean 4 * 4 / 16 = 1, variance 4 * 1/4 * 3/4 * 12/15 = 0.6
    first = np.array([row["num_correct"][0] for row in four])
    assert abs(first.mean() - 1) < 4 * math.sqrt(0.6 / len(first))
    assert abs(first.var() - 0.6) < 0.15
    assert counted_rows(rows, 4, seed=0) == four != counted_rows(rows, 4, seed=1)


def test_equal_prefixes_keep_equal_counts():
    row = {"prompt": "p", "outcome": 1.0, "num_rollouts": [16, 16, 1], "num_correct": [8, 8, 1]}
    rows = [{**row, "completions": ["a", f"b{i}", "c"]} for i in range(50)]
    counted = counted_rows(rows, 4, seed=0)
    assert len({row["num_correct"][0] for row in counted}) == 1
    assert len({row["num_correct"][1] for row in counted}) > 1


def test_error_of_the_share_of_right_rollouts():
    problem, other = TASK.problems("train")[:2]
    errors = {}
    rows = []
    for of_row, share in ((problem, 0.5), (other, 1.0)):
        steps = TASK.solve(of_row)
        errors[of_row] = [share - TASK.exact_value(of_row, steps[: k + 1]) for k in range(5)]
        counts = {"num_rollouts": [2] * 5 + [1], "num_correct": [round(2 * share)] * 5 + [1]}
        rows.append({"prompt": f"{of_row}\n", "completions": steps, **counts})
    right = TASK.solve(problem)
    no_value = [f"{right[0][:-1]}9", *right[1:]]  # the policy may write any digit; modulo 5 there is no 9
    malformed = {"prompt": f"{problem}\n", "completions": no_value, "num_correct": [0] * 6, "num_rollouts": [1] * 6}
    expected = math.sqrt(np.mean(np.square([*errors[problem], *errors[other]])))
    # equal prefixes count once
    assert share_error(TASK, [rows[0], rows[0], rows[1], malformed]) == pytest.approx(expected)


@pytest.mark.parametrize("eta", [0.0, 2.0, 10.0, math.inf])
def test_the_mean_label_rises_with_p_and_is_below_the_value(eta):
    p = np.linspace(0, 1, 201)
    labels = expected_labels(p, 16, eta)
    assert (np.diff(labels[p <= 0.8]) > 0).all()
    assert (np.diff(labels) >= -1e-12).all()
    if eta == 0:
        assert labels == pytest.approx(p)
    else:
        assert (labels < entropy_regularized_value_from_probability(p, eta))[1:160].all()  # then both round to 1
    by_hand = sum(
        math.comb(2, k) * 0.3**k * 0.7 ** (2 - k) * entropy_regularized_value_from_probability(k / 2, eta)
        for k in range(3)
    )
    assert expected_labels(np.array([[0.3]]), 2, eta) == pytest.approx(np.array([[by_hand]]))


# Candidates and measures


def test_pool_holds_equal_candidates_once_and_malformed_ones_never_win(tmp_path):
    problem = TASK.problems("test")[0]
    right = TASK.solve(problem)
    wrong = [*right[:-1], f"#{(int(right[-1][1]) + 1) % 5}"]
    no_value = "\n".join([f"{right[0][:-1]}9", *right[1:]])  # well formed, but modulo 5 there is no 9
    texts = ["\n".join(right) + "\n", no_value, "\n".join(wrong), "\n".join(right), "x"]
    Pool.of_texts(TASK, [problem], [texts]).save(tmp_path / "pool.json")
    pool = Pool.load(tmp_path / "pool.json", TASK)
    assert pool.steps == [right, wrong]
    assert pool.candidates == [[0, None, 1, 0, None]]
    assert pool.answers == [[right[-1][1], right[-1][1], wrong[-1][1], right[-1][1], None]]
    assert pool.is_correct.tolist() == [[True, False, False, True, False]]  # the second is malformed
    assert pool.num_copies.tolist() == [2, 1]
    assert pool.is_right_step.tolist() == [[True] * 6, [True] * 5 + [False]]
    assert pool.probabilities[:, -1].tolist() == [1.0, 0.0]
    assert pool.probabilities[0, 0] == TASK.exact_value(problem, right[:1])
    # of two candidates the wrong one wins wherever it is drawn (4 of 10 pairs); one of the other pairs is malformed
    assert pool.best_of_n([0.1, 0.9], [1, 2])["1"] == pytest.approx(2 / 5)
    assert pool.best_of_n([0.1, 0.9], [2])["2"] == pytest.approx(5 / 10)


def test_exact_values_choose_alike_where_only_the_order_counts(pool):
    etas = {"soft": 0.0, "er-2": 2.0, "er-10": 10.0, "hard": math.inf}
    choices = measures.exact_choices(pool, etas, 16, [1, 4, 16], AGGREGATIONS)
    for scores in ("values", "labels"):
        assert ("hard" in choices[scores]["all"]) is (scores == "labels")
        for steps in ("all", "open"):
            of_labels = choices[scores][steps]
            for name, of_label in of_labels.items():
                for how in measures.ORDER_ONLY:
                    assert of_label[how]["inverted_pairs"] == 0, (scores, steps, name, how)
                    if (name, how) == ("hard", "max"):
                        continue  # 1 - (1 - p)^16 of a large p rounds to 1: ties
                    assert of_label[how]["accuracy"] == pytest.approx(of_labels["soft"][how]["accuracy"])
            assert of_labels["soft"]["softmin"]["inverted_pairs"] == 0
            assert of_labels["er-10"]["softmin"]["inverted_pairs"] > 0  # the check can fail
            assert of_labels["er-10"]["softmin"]["pairs"] == of_labels["soft"]["min"]["pairs"] > 100
    # behind the last operation p is 0 or 1: who knows it chooses a right candidate wherever there is one
    oracle = pool.is_correct.any(axis=1).mean()
    assert choices["values"]["all"]["soft"]["min"]["accuracy"]["16"] == pytest.approx(oracle)
    assert choices["values"]["open"]["soft"]["max"]["accuracy"]["16"] < oracle


def test_order_is_compared_within_problems():
    problems = TASK.problems("test")[:2]
    pool = Pool(TASK, list(problems), [0, 0, 0, 1], [[]] * 4, [], [])
    first, second = np.array([0.1, 0.2, 0.3, 0.9]), np.array([0.3, 0.2, 0.2, 0.0])
    # pairs of the first problem: (0, 1) and (0, 2) are inverted, (1, 2) is a tie in the second
    assert measures.compare_order(pool, first, second) == (3, 2, 0.5)
    assert measures.compare_order(pool, first, first * 2) == (3, 0, 1.0)


def test_steps_are_judged_up_to_the_first_wrong_one():
    problem = TASK.problems("test")[0]
    right = TASK.solve(problem)
    value = (int(right[1][4]) + 1) % 5
    wrong = [right[0], f"{right[1][:4]}{value}"]  # an error in the second step, carried on rightly
    for operator, b in TASK.parse(problem)[1][2:]:
        wrong.append(f"{value}{operator}{b}={TASK.result(value, operator, b)}")
        value = TASK.result(value, operator, b)
    pool = Pool.of_texts(TASK, [problem], [["\n".join(right), "\n".join([*wrong, f"#{value}"])]])
    scores = np.full((2, 6), 0.5)
    scores[0] = 0.9
    scores[1, :2] = 0.9, 0.7
    scores[1, 2:] = 1.0  # behind the error: not judged by the AUROC, wrong prefixes in the pairs
    found = measures.step_measures(pool, scores)
    assert found["step_auroc"] == 1.0
    assert found["step_pair_accuracy"] == pytest.approx(1 / 5)


def test_probabilities_of_perfect_scores(pool):
    for eta in (0.0, 2.0):
        found = measures.probability_measures(
            pool, np.asarray(entropy_regularized_value_from_probability(pool.probabilities, eta)), eta, 16
        )
        assert found["p_error"] == pytest.approx(0, abs=1e-9)
        assert found["p_correlation"] == pytest.approx(1, abs=1e-2)  # but for ties that rounding breaks
    perfect = measures.probability_measures(pool, expected_labels(pool.probabilities, 4, 10.0), 10.0, 4)
    assert perfect["p_error"] == pytest.approx(perfect["p_error_if_perfect"])
    assert perfect["p_bias"] == pytest.approx(perfect["p_bias_if_perfect"])
    assert perfect["p_bias"] < -0.02
    assert sum(b[3] for b in perfect["bins"]) == 20 * 15 * 5  # a candidate counts as often as it was sampled
    hard = measures.probability_measures(pool, expected_labels(pool.probabilities, 4, math.inf), math.inf, 4)
    assert hard["p_error"] is None
    assert hard["p_correlation"] == pytest.approx(1, abs=1e-2)


# Comparisons


def test_paired_difference_takes_the_seeds_that_both_have():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    single = paired_difference({0: 3.0}, {0: 1.0})
    assert (single.mean, single.n) == (2.0, 1)
    assert math.isnan(single.low)
    assert math.isnan(single.p_value)
    same = paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert (same.mean, same.p_value) == (0.0, 1.0)
    # a spread over seeds far wider than the difference does not hide it
    spread = {seed: 10.0 * seed for seed in range(10)}
    found = paired_difference({seed: value + 1 + 0.1 * (seed % 2) for seed, value in spread.items()}, spread)
    assert found.low > 1
    assert found.p_value < 1e-6


def test_p_values_are_corrected_for_their_number():
    soft = dict.fromkeys(range(6), 0.0)
    one = {0: 1.0, 1: 2.0, 2: 0.5, 3: 1.5, 4: 0.2, 5: 1.0}
    alone = compare_with("soft", {"soft": soft, "a": one})["a"].p_value
    both = compare_with("soft", {"soft": soft, "a": one, "b": one})
    assert both["a"].p_value == both["b"].p_value == pytest.approx(2 * alone)


# All of it, tiny


def test_a_tiny_study(tmp_path, monkeypatch, capsys):
    values = yaml.safe_load((STUDY / "small.yaml").read_text())
    values |= {"output_dir": str(tmp_path / "study"), "seeds": [0], "num_rollouts": [4, 2]}
    values |= {"labels": ["soft", "er-10", "outcome"], "policy_labels": ["er-10", "outcome"]}
    tiny = {"modulus": 3, "num_operations": 3, "num_train": 40, "num_validation": 1, "num_test": 20}
    values["difficulties"] = {"tiny": {**tiny, "policy_steps": 120}}
    values["labeling"] |= {"num_prompts": 16, "solutions_per_prompt": 2}
    values["prm"] |= {"num_train_epochs": 1, "warmup_steps": 1, "per_device_train_batch_size": 8}
    values["best_of_n"] |= {"num_problems": 8, "num_candidates": 8, "sizes": [4, 8]}
    values["rft"] |= {"num_eval_problems": 8, "num_iterations": 1, "prompts_per_iteration": 8, "num_samples": 2}
    values["grpo"] |= {"num_eval_problems": 8, "num_generations": 2, "max_steps": 2, "eval_steps": 1}
    values["grpo"] |= {"per_device_train_batch_size": 4, "num_generations_eval": 1}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    in_threads(monkeypatch)
    for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")  # set back at the end: the command changes them

    assert command.main(["--config", str(path)]) == 0, capsys.readouterr().out
    task = tmp_path / "study" / "tiny" / "seed-0"
    units = {file.stem: json.loads(file.read_text()) for file in (task / "units").glob("*.json")}
    prms = ["soft-4", "er-10-4", "outcome", "soft-2", "er-10-2"]
    assert set(units) == {
        *("labels", "pool"),
        *(f"{kind}-{name}" for kind in ("prm", "scores") for name in prms),
        *(f"{kind}-{name}" for kind in ("rft", "grpo") for name in ("er-10-4", "outcome")),
    }
    # one budget: the same weights at the start, as many steps
    assert len({(units[f"prm-{name}"]["start"], units[f"prm-{name}"]["num_steps"]) for name in prms}) == 1
    assert len({units[f"prm-{name}"]["loss"] for name in prms}) == len(prms)  # but other labels
    assert units["prm-soft-4"]["mean_label"] < units["prm-er-10-4"]["mean_label"]
    scores = {name: np.load(task / "scores" / f"{name}.npy") for name in prms}
    for name in prms:
        assert scores[name].shape == (len(json.loads((task / "pool.json").read_text())["steps"]), 4)
        assert not np.array_equal(scores[name], scores["soft-4"]) or name == "soft-4"
    assert [row["iteration"] for row in units["rft-er-10-4"]["history"]] == [0, 1]
    assert [row["step"] for row in units["grpo-er-10-4"]["history"]] == [0, 1, 2]
    assert units["grpo-er-10-4"] != units["grpo-outcome"]
    assert not list((task / "rft").iterdir())  # what is no result is removed
    text = (tmp_path / "study" / "report.md").read_text()
    assert "holds: 0 inverted pairs" in text
    for name in ("best_of_n", "scores", "policies"):
        assert f"({name}_tiny.png)" in text
        assert (tmp_path / "study" / f"{name}_tiny.png").stat().st_size > 5_000

    capsys.readouterr()
    assert command.main(["--config", str(path), "--parts", "labels,prms"]) == 0
    assert "6 of 6 units are finished" in capsys.readouterr().out
    values["prm"]["learning_rate"] = 1.0
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit, match="2"):
        command.main(["--config", str(path)])
    error = capsys.readouterr().err
    assert "holds another run: " in error and "prm.learning_rate" in error
