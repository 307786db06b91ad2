"""The quickstart's figures over several seeds, and the step ranking of both heads: the numbers of the README.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2 --output_dir outputs/quickstart_seeds

Each seed has problems, misconceptions, a policy, labels and models of its own. What is there already is reused, so an
interrupted run continues. Writes `results.json` and prints two tables. About 7 minutes a seed on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "recipes" / "configs" / "arithmetic"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart_seeds"))
    args = parser.parse_args()

    results = []
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


if __name__ == "__main__":
    main()
