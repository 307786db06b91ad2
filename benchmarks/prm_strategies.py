"""Losses of one PRM under every file of accelerate_configs/: the same rows in one process and in two.

    python benchmarks/prm_strategies.py

Trains the tiny model of tests/test_distributed.py for four optimizer steps, each of four solutions: as one batch in
one process, and as two times one solution in each of two gloo processes on the CPU, with the strategy's own wrapper
around the model (the tests assert that it is). Prints the loss of every step and the largest difference to one
process, over losses and over the scores of the saved checkpoints. ZeRO compiles an extension at its first run.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from _measurements import Measurement, write_measurements

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tests.test_distributed import STRATEGIES, load_and_score, save_model, train  # noqa: E402

HEADS = ("token_classification", "causal_lm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/prm_strategies.json"))
    args = parser.parse_args()

    started, rows, results = time.time(), {"a loss": [], "a score of the checkpoint": []}, {}
    table = Table(title="Loss of each optimizer step")
    for column in ("head", "strategy", "processes", "1", "2", "3", "4", "largest difference of losses", "of scores"):
        table.add_column(column, justify="left" if column in ("head", "strategy") else "right")
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "model")
        for head in args.heads:
            for name in ("cpu", *STRATEGIES):
                output = Path(folder) / f"{head}-{name}"
                result = train(name, head, model, output, {})
                scores = load_and_score(output)
                results[f"{head} {name}"] = result["loss"]
                if name == "cpu":
                    expected, expected_scores = result["loss"], scores
                off = max(abs(a - b) for a, b in zip(result["loss"], expected, strict=True))
                scores_off = (scores - expected_scores).abs().max().item()
                row = [head, name, str(result["num_processes"]), *(f"{loss:.6f}" for loss in result["loss"])]
                table.add_row(*row, f"{off:.1e}", f"{scores_off:.1e}")
                for of_what, value in zip(rows, (off, scores_off), strict=True):
                    measured = f"largest difference of {of_what}, {result['num_processes']} processes"
                    found = measured, "one process", f"{name}, `{head}`", value, ""
                    rows[of_what] += [Measurement("PRM on several processes", *found)] * (name != "cpu")
    Console(width=150).print(table)
    write_measurements(args.output, sum(rows.values(), []), started, num_threads=1, details={"losses": results})


if __name__ == "__main__":
    main()
