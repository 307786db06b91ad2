"""What the scripts of benchmarks/ make of their results: the rows of the table, by hand."""

import doctest
import importlib
import io
from pathlib import Path

import pytest
from rich.console import Console

import benchmarks
from trl_erprm.evaluation.reinforcement import reinforcement_table


@pytest.fixture
def script(monkeypatch):
    """A script of benchmarks/ as a module, which finds its siblings as when it is run."""
    monkeypatch.syspath_prepend(str(Path(benchmarks.__file__).parent))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def cells(rows) -> list[tuple[str, str, str]]:
    return [(row.measured, row.setting, row.shown()) for row in rows]


def test_labels(script):
    adaptive = {"eta": 2.0, "label_tolerance": 0.4, "num_prefixes": 2788, "ratio": 0.87, "ratio_range": [0.75, 1.03]}
    rows = script("labels").measurements(
        {
            "adaptive": [{**adaptive, "bound": 0.77, "error": 0.0726}],
            "equal_prefixes": [{"what": "GSM8K", "saved": 0.0424}],
            "memory": [{"num_prefixes": 1000, "peak_bytes": 583 * 2**20, "grown_bytes": 0}],
        },
        num_seeds=3,
    )
    assert cells(rows) == [
        ("tokens of adaptive rollouts, 2,788 prefixes", "eta 2, tolerance 0.4", "0.87 x (0.75 to 1.03), 3 seeds"),
        ("the same, if every probability were known", "eta 2, tolerance 0.4", "0.77 x"),
        ("RMS error of adaptive labels", "eta 2, tolerance 0.4", "0.073"),
        ("rollouts saved, equal prefixes once", "GSM8K", "4.24 %"),
        ("peak memory of the labeler, stub engine", "1,000 prefixes", "583 MiB"),
    ]


def test_evaluation(script):
    sizes = {"num_candidates": 64, "seconds": 9.0}
    rows = script("evaluation").measurements(
        [
            {
                "rows": "real",
                "num_problems": 100,
                "num_scorers": 7,
                "processor_seconds": 9.0,
                "memory_mib": 75,
                "min_on_last": {"qwen_prm": {"share": [0.25, 0.2, 0.3], "chance": 0.267}},
                **sizes,
            },
            {"rows": "synthetic", "num_problems": 500, "num_scorers": 1, "processor_seconds": 16.0, "memory_mib": 107}
            | sizes,
        ]
    )
    real, synthetic = "GSM8K: 100 problems x 64 candidates x 7 PRMs", "synthetic: 500 problems x 64 candidates x 1 PRM"
    assert cells(rows) == [
        ("processor time of the report", real, "9.00 s"),
        ("processor time of the report", synthetic, "16.0 s"),
        ("processor time a problem", real, "90.0 ms"),
        ("processor time a problem", synthetic, "32.0 ms"),
        ("memory above what is loaded before", real, "75.0 MiB"),
        ("memory above what is loaded before", synthetic, "107 MiB"),
        (
            "solutions with the lowest score on the last step",
            "GSM8K: scores of `qwen_prm`",
            "25.0 % (20.0 to 30.0), 95 %",
        ),
    ]
    assert rows[-1].against == "chance, 26.7 %"


def test_step_grpo(script):
    """The baseline ends at 3/4 after 20 samples; the other is there after 10 on one seed, and never on the other."""
    step_grpo = script("step_grpo")
    samples = [0, 10, 20, 30, 40]
    baseline = {"samples": samples, "accuracy": [0.25, 0.5, 0.75, 0.75, 0.75]}
    fast, slow = ({"samples": samples, "accuracy": curve} for curve in ([0.25, 0.75, 0.875, 0.875, 0.875], [0.5] * 5))

    def rows(*curves):
        return cells(
            step_grpo.measurements(
                {seed: {step_grpo.BASELINE: baseline, "min_form": curve} for seed, curve in enumerate(curves)}
            )
        )

    end = "accuracy at the end, mean of the last three evaluations"
    share = "samples to the accuracy that the baseline ends with"
    assert rows(fast, fast) == [
        (end, f"`{step_grpo.BASELINE}`", "75.0 % (75.0 to 75.0), 2 seeds"),
        (end, "`min_form`", "87.5 % (87.5 to 87.5), 2 seeds"),
        (share, "`min_form`", "0.50 x (0.50 to 0.50), 2 seeds"),
    ]
    assert rows(fast, slow)[1:] == [
        (end, "`min_form`", "68.8 % (50.0 to 87.5), 2 seeds"),
        (share, "`min_form`", "not reached on 1 of 2 seeds"),
    ]


def test_rollouts(script):
    rollouts = script("rollouts")
    memory = [{"num_prefixes": 1000, "prefixes_per_call": n, "peak_mb": mb} for n, mb in ((64, 428.0), (1000, 505.0))]
    measured = "peak memory of a process; `tiny`, prefixes of 48 tokens, 2 rollouts each"
    assert cells(rollouts.memory_rows(memory)) == [
        (measured, "1,000 prefixes, calls of 64", "428 MiB"),
        (measured, "1,000 prefixes, one call", "505 MiB"),
    ]


# The quickstart


def test_table_of_reinforcement_learning_is_read_back(script):
    """From the table as the recipes print it, whatever it looks like."""
    quickstart_seeds = script("quickstart_seeds")
    history = [
        {"step": step, "eval_rewards/answer_reward/mean": accuracy, "eval_completions/mean_length": 23.0}
        for step, accuracy in ((0, 0.485), (20, 0.9), (60, 0.945))
    ]
    console = Console(width=100, file=io.StringIO())
    console.print(reinforcement_table(history, num_problems=400))
    found = quickstart_seeds.evaluations(console.file.getvalue())
    assert [(row["step"], row["accuracy"]) for row in found] == [(0, 48.5), (20, 90.0), (60, 94.5)]
    assert all(row["low"] < row["accuracy"] < row["high"] for row in found)
    assert quickstart_seeds.evaluations("a run that was killed") == []
    assert doctest.testmod(quickstart_seeds).failed == 0


def test_quickstart(script):
    iteration = {"greedy": 0.5, "sampled_low": 0.4, "sampled_high": 0.6, "best_of_n": 0.9, "majority": 0.6}
    iteration |= {"oracle": 0.95, "length": 23.0}
    end = {"step": 60, "accuracy": 94.5, "low": 91.8, "high": 96.3}
    result = {
        "seed": 1,
        "seconds": 240.0,
        "history": [{"iteration": i, "sampled": sampled, **iteration} for i, sampled in enumerate((0.51, 0.55))],
        "heads": {
            "steps": {"causal_lm": {"num_step_pairs": 4739, "step_pair_accuracy": 0.997}},
            "scorers": {"causal_lm": {"aggregations": {"min": {"best_of_n": {"accuracy": [0.5, 0.9]}}}}},
            "majority": {"accuracy": [0.5, 0.64]},
        },
        "grpo": [{**end, "step": 0, "accuracy": 48.5}, end],
        "ppo": [{**end, "step": 0, "accuracy": 48.5}, {**end, "accuracy": 92.0}],
    }
    quickstart_seeds = script("quickstart_seeds")
    rows = quickstart_seeds.measurements([result])
    assert [(row.setting, row.against, row.shown()) for row in rows] == [
        ("seed 1, after iteration 1", "at the start, 51.0 %", "55.0 % (40.0 to 60.0), 95 %"),
        ("seed 1, recipes/grpo.py, after step 60", "at the start, 48.5 %", "94.5 % (91.8 to 96.3), 95 %"),
        ("seed 1, recipes/ppo.py, after step 60", "at the start, 48.5 %", "92.0 % (91.8 to 96.3), 95 %"),
        ("seed 1, `causal_lm`, 500 problems", "majority of 8, 64.0 %", "90.0 %"),
        ("seed 1, `causal_lm`, 4,739 pairs", "chance, 50 %", "99.7 %"),
        ("recipes/rft.py, seed 1", "", "240 s"),
    ]
    details = quickstart_seeds.shown_history([result])
    assert details[0]["history"][1] == {name: value for name, value in iteration.items() if name != "length"} | {
        "sampled": 0.55
    }
    assert details[0]["ppo"][-1]["accuracy"] == 92.0
