"""The tables of the README and the docs hold what the published measurements say."""

import importlib
import re
from pathlib import Path

import pytest

import benchmarks
from benchmarks._measurements import read_measurements

BENCHMARKS_DIR = Path(benchmarks.__file__).parent
ROOT = BENCHMARKS_DIR.parent


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8").replace("**", "")


def prose(name: str) -> str:
    """The page without its line breaks."""
    return re.sub(r"\s+", " ", page(name))


def published(name: str):
    return read_measurements(BENCHMARKS_DIR / "results" / f"{name}.json")


def details(name: str):
    return published(name).details


def found(name: str, measured: str) -> dict:
    """Rows of a file by setting."""
    rows = {row.setting: row for row in published(name).rows if row.measured == measured}
    assert rows, f"no row {measured!r} in {name}.json"
    return rows


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def test_readme_shows_every_run_of_the_rft_study():
    text, runs = page("README.md"), details("rft_study")
    assert {(run["arm"], run["seed"]) for run in runs} >= {("ER-PRM", 0), ("outcome model", 1), ("random", 2)}
    for run in runs:
        sampled = [row["sampled"] if isinstance(row, dict) else row for row in run["history"]]
        assert f"| {' → '.join(map(percent, sampled))} |" in text, (run["arm"], run["seed"])


def test_readme_shows_the_quickstart_as_the_study_ran_it():
    text = page("README.md")
    history = next(run["history"] for run in details("rft_study") if (run["arm"], run["seed"]) == ("ER-PRM", 0))
    for number, row in enumerate(history):
        sampled = f"{percent(row['sampled'])} [{percent(row['sampled_low'])}, {percent(row['sampled_high'])}]"
        best, majority, oracle = (percent(row[name]) for name in ("best_of_n", "majority", "oracle"))
        assert f"| {number} | {percent(row['greedy'])} | {sampled} | {best} | {majority} | {oracle} |" in text


def test_all_intervals_of_the_rft_study_are_in_the_readme():
    text, rows = page("README.md"), read_measurements(BENCHMARKS_DIR / "results" / "rft_study.json").rows
    assert len(rows) == 5
    for row in rows:
        assert f"| {row.value:.1f} [{row.low:.1f}, {row.high:.1f}] |" in text, row.setting


def test_docs_show_what_fine_tuning_was_paid_with():
    history = next(run["history"] for run in details("rft_study") if (run["arm"], run["seed"]) == ("ER-PRM", 0))
    first, last = history[0], history[-1]
    assert (
        f"entropy falls from {first['entropy']:.3f} to {last['entropy']:.3f} nats a token and distinct solutions from "
        f"{first['distinct_share']:.0%} to {last['distinct_share']:.0%}"
    ).replace("%", " %") in prose("docs/rft.md")


def test_docs_show_what_fine_tuning_costs():
    text, shares = prose("docs/rft.md"), found("rft_overhead", "share of processor time")
    for part, setting in (
        ("generation", "generation"),
        ("scoring by the ER-PRM", "scoring"),
        ("selection, files, bookkeeping", "the same without the PRM's passes"),
        ("fine-tuning", "fine-tuning"),
    ):
        assert f"| {part} | {shares[setting].value:.1f} % |" in text
    beside = shares["sampling, scoring, selection, without generation"].value
    assert f"sampling, scoring and selection cost {beside:.1f} % of an iteration" in text
    [total] = found("rft_overhead", "processor time").values()
    assert f"{total.value:.1f} s without evaluation" in text
    memory = found("rft_memory", "peak memory of an iteration")
    few, many = (row.value for _, row in sorted(memory.items(), key=lambda item: item[1].value))
    assert f"peaks at {many:.0f} MiB, one of 1,000 at {few:.0f} MiB" in text


@pytest.fixture
def step_grpo(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS_DIR))
    return importlib.import_module("benchmarks.step_grpo")


def test_docs_show_every_run_of_grpo(step_grpo):
    """Ends, shares of the samples and their means: all that the script prints of the published curves."""
    text, curves = page("docs/step-grpo.md"), details("step_grpo")
    assert list(curves) == ["seed 0", "seed 1", "seed 2"]
    results = {
        seed: {
            method: {"accuracy": [value / 100 for value in curve], "samples": list(range(len(curve)))}
            for method, curve in runs.items()
        }
        for seed, runs in curves.items()
    }
    rows = step_grpo.markdown(results).splitlines()[2:]
    assert len(rows) == len(curves["seed 0"]) == 11
    assert [row for row in rows if row not in text] == []


def test_docs_show_how_a_prm_was_exploited():
    curves = [runs["outcome (PRM, min)"] for runs in details("step_grpo").values()]
    fallen = max(curves, key=lambda curve: max(curve) - curve[-1])
    fall = f"one seed fell from {max(fallen):.0f} to {fallen[-1]:.0f} per cent"
    assert f"{fall}, and another never passed {max(min(curves, key=max)):.0f}:" in prose("docs/step-grpo.md")


def test_docs_show_what_a_critic_may_begin_as():
    text, runs = prose("docs/ppo.md"), details("ppo")
    assert list(runs) == ["seed 0", "seed 1", "seed 2"]

    def span(critic: str, number: int) -> str:
        values = [100 * of_seed[critic]["explained_variance"][number] for of_seed in runs.values()]
        return f"{min(values):.1f} to {max(values):.1f} %"

    assert f"foresees {span('prm', 0)} of the variance of the first returns" in text
    assert f"a critic with a new head {span('policy', 0)}, and of the last returns" in text
    assert f"without value warm-up, {span('policy', -1)}." in text
    for number in range(4):
        ends = (
            " / ".join(f"{of_seed[critic]['accuracy'][number]:.1f}" for of_seed in runs.values())
            for critic in ("prm", "policy")
        )
        step = 20 * number
        assert f"| {step} | {64 * step:,} | {' | '.join(ends)} |" in text


def test_docs_show_what_guards_reject():
    shares = details("process_rewards")["rejected"]
    names = ("as they are", "merge_all", "repeat_each", "empty_steps", "skip_worst", "split_each")
    row = " | ".join(f"{percent(shares[name])} %" for name in names)
    assert f"| {row} |" in page("docs/process-rewards.md")


def test_docs_show_which_models_reward_length():
    text, models = page("docs/process-rewards.md"), details("process_rewards")["correlation_with_num_steps"]
    assert len(models) == 7
    for model, correlations in models.items():
        row = " | ".join(f"{correlations[how]:.2f}" for how in ("min", "product", "mean", "last"))
        assert f"| `{model}` | {row} |" in text
    assert sum(of_model["product"] < -0.4 for of_model in models.values()) == 5
    assert "with `product` on the upper five" in text


def test_docs_show_the_hacking_report():
    """Lines of it, in order; dots stand for those that are left out."""
    shown = page("docs/process-rewards.md").split("```text\n")[1].split("```")[0].splitlines()
    lines = iter(details("process_rewards")["hacking_report"])
    assert len(shown) > 10
    assert [line for line in shown if line != "..." and line not in lines] == []  # `in` takes up all before it


def test_docs_show_where_the_lowest_score_lies():
    places = found("evaluation", "solutions with the lowest score on the last step")
    shares = [row.value for row in places.values()]
    assert len(shares) == 7
    text = f"in {min(shares):.1f} % to {max(shares):.1f} % of the solutions, where chance is "
    assert text + places.popitem()[1].against.removeprefix("chance, ") in prose("docs/step-metrics.md")


@pytest.mark.parametrize("number", range(5))
def test_docs_show_the_adaptive_rollouts(number):
    found = details("labels")["adaptive"][number]
    low, high = found["ratio_range"]
    row = f"| {found['eta']:g} | {found['label_tolerance']:.2f} | {found['error']:.3f} | {found['ratio']:.2f} "
    assert f"{row}({low:.2f} - {high:.2f}) | {found['bound']:.2f} |" in page("docs/labels.md")


def test_docs_show_what_labels_save():
    text = prose("docs/labels.md")
    saved = {of_one["what"]: f"{100 * of_one['saved']:.0f} %" for of_one in details("labels")["equal_prefixes"]}
    task, few, some, many = (
        saved[name]
        for name in (
            "embedded task, 4 solutions a problem",
            *(f"GSM8K, {number} solutions of Qwen2.5-7B a problem" for number in (4, 16, 32)),
        )
    )
    assert f"save {task} of the rollouts with 4 solutions a problem of the embedded task" in text
    assert f"{few} with 4 solutions a problem, {some} with 16 and {many} with 32" in text
    memory = {row["num_prefixes"]: f"{row['peak_bytes'] / 2**20:.0f}" for row in details("labels")["memory"]}
    assert f"peak memory grows from {memory[1_000]} to {memory[20_000]} MiB" in text


# The quickstart over seeds, which takes longer than the others and may not be published yet


@pytest.fixture
def quickstart():
    if not (BENCHMARKS_DIR / "results" / "quickstart_seeds.json").exists():
        pytest.skip("no benchmarks/results/quickstart_seeds.json: benchmarks/quickstart_seeds.py writes it")
    return published("quickstart_seeds")


def test_readme_shows_every_run_of_reinforcement_learning(quickstart):
    text = page("README.md")
    assert len(quickstart.details) == 3
    for run in quickstart.details:
        shown = (run["grpo"][0], run["grpo"][-1], run["ppo"][-1])
        cells = (f"{row['accuracy']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" for row in shown)
        assert f"| {run['seed']} | {' | '.join(cells)} |" in text


def test_readme_shows_how_prms_rank_steps(quickstart):
    text = page("README.md")
    ranked = [row for row in quickstart.rows if row.measured == "right prefix above wrong one"]
    best = {row.setting: row for row in quickstart.rows if row.measured == "accuracy, best of 8 (min)"}
    assert len(ranked) == len(best) == 6
    for row in ranked:
        seed, head, pairs = re.fullmatch(r"seed (\d+), (`\w+`), ([\d,]+) pairs", row.setting).groups()
        of_eight = best[f"seed {seed}, {head}, 500 problems"]
        majority = re.fullmatch(r"majority of 8, ([\d.]+) %", of_eight.against)[1]
        cells = seed, head, f"{row.value:.1f}", pairs, f"{of_eight.value:.1f}", majority
        assert f"| {' | '.join(cells)} |" in text


def test_docs_show_the_runs_of_the_recipe(quickstart):
    """benchmarks/ppo.py trains as the recipe does, so both say the same."""
    runs = details("ppo")
    for run in quickstart.details:
        accuracy = runs[f"seed {run['seed']}"]["prm"]["accuracy"]
        assert [row["accuracy"] for row in run["ppo"]] == pytest.approx(accuracy, abs=0.06)  # one decimal


def test_docs_show_how_long_the_small_study_takes():
    [time] = found("study_small", "wall time with 2 processes").values()
    assert time.unit == "min" and time.value < 15
    assert f"takes {time.value:.0f} minutes to run in two processes" in prose("docs/study.md")


def test_docs_tell_what_the_study_measured():
    """The differences that the text names, beside the tables, which are written from the same units."""
    text = prose("docs/study.md")
    by_min = found("study", "best of 64, min: difference")
    assert f"its gain of {by_min['`er-2`, default'].value:.1f} points cannot be told from none" in text
    [moved] = re.findall(r"moves best of 64 by ([\d.]+) points by `min`", text)
    assert float(moved) == pytest.approx(by_min["`soft-again`, default"].value, abs=0.0501)
    costs = [-by_min[f"`er-{eta}`, long"].value for eta in ("0.5", "1", "2", "5")]
    assert (
        "costs: {:.0f} points of best of 64 at eta = 0.5, {:.0f} at 1, {:.0f} at 2, {:.0f} at 5".format(*costs) in text
    )
