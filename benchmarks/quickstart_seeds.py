"""The quickstart over several seeds, the step ranking of both heads, GRPO and PPO: the numbers of the README.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2 --output_dir outputs/quickstart_seeds

Each seed has problems, misconceptions, a policy, labels and models of its own. What is there already is reused, so an
interrupted run continues. Writes `results.json` and, to `--output`, the measurements, and prints three tables. About 8
minutes a seed on two cores.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from _measurements import Measurement, day_of, write_measurements
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "recipes" / "configs" / "arithmetic"
REINFORCEMENT = ("grpo", "ppo")  # recipes


def run(recipe: str, log: Path, *arguments: str) -> float:
    """Runs a recipe as a user would and returns the seconds it took."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / "cpu.yaml"), str(ROOT / "recipes" / recipe), *arguments]
    with open(log, "w") as file:
        subprocess.run(
            command, check=True, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "100"}
        )
    return time.perf_counter() - start


def evaluations(log: str) -> list[dict[str, float]]:
    """
    The table that a recipe of reinforcement learning prints: step, and accuracy in per cent with its 95 % interval.

    Example:

    ```python
    >>> evaluations("│   60 │ 91.5 [88.3, 93.9] │          0.746 │     23 │")
    [{'step': 60, 'accuracy': 91.5, 'low': 88.3, 'high': 93.9}]

    ```
    """
    found = re.findall(r"│ +(\d+) │ +([\d.]+) \[([\d.]+), ([\d.]+)\] │", log)
    return [
        {"step": int(step), "accuracy": float(mean), "low": float(low), "high": float(high)}
        for step, mean, low, high in found
    ]


def measurements(results: list[dict]) -> list[Measurement]:
    rows = []
    for result in results:
        if result["seconds"] is not None:
            setting = f"recipes/rft.py, seed {result['seed']}"
            rows.append(Measurement("Quickstart", "wall time of all stages", "", setting, result["seconds"], "s"))
        start, end = result["history"][0], result["history"][-1]
        against = f"at the start, {100 * start['sampled']:.1f} %"
        setting = f"seed {result['seed']}, after iteration {end['iteration']}"
        found = [100 * end["sampled"], "%", 100 * end["sampled_low"], 100 * end["sampled_high"], "95 %"]
        rows.append(Measurement("Quickstart", "accuracy of a sample", against, setting, *found))
        for head, steps in result["heads"]["steps"].items():
            setting = f"seed {result['seed']}, `{head}`, {steps['num_step_pairs']:,} pairs"
            value = 100 * steps["step_pair_accuracy"]
            rows.append(Measurement("Quickstart", "right prefix above wrong one", "chance, 50 %", setting, value, "%"))
            setting = f"seed {result['seed']}, `{head}`, 500 problems"
            best = result["heads"]["scorers"][head]["aggregations"]["min"]["best_of_n"]["accuracy"][-1]
            majority = result["heads"]["majority"]["accuracy"][-1]
            against = f"majority of 8, {100 * majority:.1f} %"
            rows.append(Measurement("Quickstart", "accuracy, best of 8 (min)", against, setting, 100 * best, "%"))
        for recipe in REINFORCEMENT:
            start, end = result[recipe][0], result[recipe][-1]
            setting = f"seed {result['seed']}, recipes/{recipe}.py, after step {end['step']}"
            against = f"at the start, {start['accuracy']:.1f} %"
            found = [end["accuracy"], "%", end["low"], end["high"], "95 %"]
            rows.append(Measurement("Quickstart", "accuracy of a sample", against, setting, *found))
    return sorted(rows, key=lambda row: row.measured)


def shown_history(results: list[dict]) -> list[dict]:
    """Of each iteration, and of reinforcement learning, the accuracies that the README shows."""
    names = ("greedy", "sampled", "sampled_low", "sampled_high", "best_of_n", "majority", "oracle")
    return [
        {
            "seed": result["seed"],
            "history": [{name: row[name] for name in names} for row in result["history"]],
            **{recipe: result[recipe] for recipe in REINFORCEMENT},
        }
        for result in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart_seeds"))
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/quickstart_seeds.json"))
    args = parser.parse_args()

    started, results = time.time(), []
    if any(args.output_dir.glob("seed-*/policy")):
        started = None
    for seed in args.seeds:
        root = args.output_dir / f"seed-{seed}"
        root.mkdir(parents=True, exist_ok=True)
        at_seed = ["--seed", str(seed)]
        rft = ["--config", str(CONFIGS / "rft.yaml"), *at_seed, "--output_dir", str(root / "rft")]
        # Timed only where nothing was there before; the file keeps the figure for a run that continues.
        is_new, clock = not (root / "policy").exists(), root / "seconds.json"
        seconds = run("rft.py", root / "rft.log", *rft)
        if is_new:
            clock.write_text(json.dumps(seconds))
        seconds = json.loads(clock.read_text()) if clock.exists() else None
        history = [
            json.loads((root / "rft" / f"iteration-{i}" / "metrics.json").read_text())
            for i in range(len(list((root / "rft").glob("iteration-*"))))
        ]
        causal = ["--config", str(CONFIGS / "prm-causal.yaml"), *at_seed, "--model_name_or_path", str(root / "base")]
        causal += ["--dataset_path", str(root / "labels" / "labels.jsonl"), "--output_dir", str(root / "prm-causal")]
        run("prm.py", root / "prm-causal.log", *causal)
        evaluate = ["--config", str(CONFIGS / "evaluate.yaml"), *at_seed, "--num_rows", "500", "--num_samples", "8"]
        evaluate += ["--prm_path", f"token_classification={root / 'prm'}", f"causal_lm={root / 'prm-causal'}"]
        run("evaluate.py", root / "evaluation.log", *evaluate, "--output_dir", str(root / "evaluation"))
        heads = json.loads((root / "evaluation" / "metrics.json").read_text())
        results.append({"seed": seed, "seconds": seconds, "history": history, "heads": heads})
        for recipe in REINFORCEMENT:
            log = root / f"{recipe}.log"
            if not log.exists() or not evaluations(log.read_text()):  # the table is printed at the end
                options = ["--config", str(CONFIGS / f"{recipe}.yaml"), *at_seed]
                run(f"{recipe}.py", log, *options, "--output_dir", str(root / recipe))
            results[-1][recipe] = evaluations(log.read_text())
        (args.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")

    console = Console(width=110)  # the tables, whole, also in a file
    table = Table(title="recipes/rft.py, accuracy in per cent on held-out problems")
    for column in ("seed", "seconds", "iteration", "greedy", "sampled [95 %]", "best of 8", "majority", "oracle"):
        table.add_column(column, justify="right")
    for result in results:
        for row in result["history"]:
            is_first = row["iteration"] == 0
            table.add_row(
                str(result["seed"]) if is_first else "",
                ("unknown" if result["seconds"] is None else f"{result['seconds']:.0f}") if is_first else "",
                str(row["iteration"]),
                f"{100 * row['greedy']:.1f}",
                f"{100 * row['sampled']:.1f} [{100 * row['sampled_low']:.1f}, {100 * row['sampled_high']:.1f}]",
                *(f"{100 * row[name]:.1f}" for name in ("best_of_n", "majority", "oracle")),
            )
    console.print(table)
    table = Table(title="recipes/evaluate.py, 500 held-out problems, 8 candidates each")
    for column in ("seed", "head", "right prefix above wrong one", "pairs", "best of 8 (min)", "majority"):
        table.add_column(column, justify="right")
    for result in results:
        for head, steps in result["heads"]["steps"].items():
            best = result["heads"]["scorers"][head]["aggregations"]["min"]["best_of_n"]["accuracy"][-1]
            table.add_row(
                str(result["seed"]),
                head,
                f"{100 * steps['step_pair_accuracy']:.1f} %",
                str(steps["num_step_pairs"]),
                f"{100 * best:.1f}",
                f"{100 * result['heads']['majority']['accuracy'][-1]:.1f}",
            )
    console.print(table)
    table = Table(title="recipes/grpo.py and ppo.py, accuracy of a sample in per cent on held-out problems [95 %]")
    for column in ("seed", "start", *(f"recipes/{recipe}.py" for recipe in REINFORCEMENT)):
        table.add_column(column, justify="right")
    for result in results:
        shown = [result[REINFORCEMENT[0]][0], *(result[recipe][-1] for recipe in REINFORCEMENT)]
        cells = (f"{row['accuracy']:.1f} \\[{row['low']:.1f}, {row['high']:.1f}]" for row in shown)
        table.add_row(str(result["seed"]), *cells)
    console.print(table)
    num_threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    day = day_of(args.output_dir.glob("seed-*/evaluation/metrics.json"))
    rows, details = measurements(results), shown_history(results)
    write_measurements(args.output, rows, started, num_threads, details=details, date=day)


if __name__ == "__main__":
    main()
