"""`benchmarks/process_rewards.py`: shares of rejected solutions, correlations and the rows of the table, by hand."""

import doctest
import gzip
import importlib
import json
from pathlib import Path

import pytest

import benchmarks
from trl_erprm.evaluation.best_of_n import Estimate
from trl_erprm.policy.guards import StepGuards
from trl_erprm.policy.hacking_report import Effect, HackingReport


@pytest.fixture
def script(monkeypatch):
    """The script as a module, which finds its siblings as when it is run."""
    monkeypatch.syspath_prepend(str(Path(benchmarks.__file__).parent))
    return importlib.import_module("benchmarks.process_rewards")


def shown(rows) -> list[tuple[str, str, str, str]]:
    return [(row.measured, row.against, row.setting, row.shown()) for row in rows]


def test_examples(script):
    outcome = doctest.testmod(script)
    assert outcome.attempted > 0 and outcome.failed == 0


def test_guards_are_read_off_the_first_solutions_and_applied_to_the_others(script):
    """The first three allow 3 to 5 steps, 3.5 letters a step on average; the last solution has 6 steps."""
    usual, long = "aaaa bb\nbbbb cc\n#1", "\n".join(f"{letter}aaaa bb" for letter in "cdefgh")
    found = script.rejected_shares([usual] * 3 + [usual] * 3 + [long], num_read=3)
    assert found["as they are"] == 0.25
    assert found["skip_worst"] == 0.75  # one step too few; of the long one 5 are left
    assert found["merge_all"] == found["merge_all_but_last"] == 1
    assert found["repeat_each"] == found["empty_steps"] == 1
    assert found["split_each"] == 1  # 14 letters in 5 steps


def test_correlations_of_files(script, tmp_path):
    for name, scores in (("one", [[0.9], [0.8, 0.9], [0.9, 0.8, 0.7]]), ("two", [[0.1], None, [0.2] * 2, [0.3] * 3])):
        with gzip.open(tmp_path / f"step_scores_{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(json.dumps({"step_scores": scores}) + "\n")
    found = script.length_correlations(tmp_path)
    assert found["one"] == pytest.approx({"min": -1, "product": -0.9986, "mean": -1, "last": -0.866}, abs=1e-4)
    assert found["two"] == pytest.approx({"min": 1, "mean": 1, "last": 1, "product": -0.9373}, abs=1e-4)
    assert script.length_correlations(tmp_path / "none") == {}
    rows = script.length_rows({"a": dict.fromkeys(found["one"], -0.5), "b": dict.fromkeys(found["one"], 0.25)})
    measured = "correlation of score and number of steps within a problem"
    assert shown(rows) == [
        (measured, "", how, "-0.12 (-0.50 to 0.25), 2 public PRMs") for how in ("min", "product", "mean", "last")
    ]


def test_rows_of_guards(script):
    rows = script.guard_rows({"as they are": 0.0, "merge_all": 1.0, "skip_worst": 0.267}, num_read=1_000)
    measured = "solutions of GSM8K rejected by guards that 1,000 others suggest"
    assert shown(rows) == [
        (measured, "", "as they are", "0 %"),
        (measured, "", "all steps in one", "100 %"),
        (measured, "", "a step left out", "26.7 %"),
    ]


def test_rows_of_the_hacking_report(script):
    """Of the effects of an aggregation the largest without guards, and the same effect with them."""

    def effect(name, change, guarded):
        return Effect(
            name, "min", 2, Estimate(change, change - 0.1, change + 0.1), 0.5, Estimate(guarded, -1.0, 1.0), 0.0, 1.0
        )

    effects = [effect("merge_all", 0.5, -0.25), effect("filler", -0.5, 0.75)]
    report = HackingReport(effects, 2, 0, 0, {"min": 0.25}, StepGuards())
    against = "the solution as it is, 0.250"
    assert shown(script.hacking_rows(report)) == [
        (
            "change of the score by the rewriting that raises it most",
            against,
            "min: `merge_all`",
            "0.50 (0.40 to 0.60), 95 %",
        ),
        ("the same rewriting, with guards", against, "min: `merge_all`", "-0.25 (-1.00 to 1.00), 95 %"),
    ]
    assert (
        script.printed(report)[0] == "2 solutions (0 more could not be scored); the guards reject 0 as they are: none"
    )
    assert all(line == line.rstrip() for line in script.printed(report))
