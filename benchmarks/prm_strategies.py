"""Losses of one PRM under every file of accelerate_configs/: the same rows in one process and in two.

    python benchmarks/prm_strategies.py

Trains the tiny model of tests/test_distributed.py for four optimizer steps, each of four solutions: as one batch in
one process, and as two times one solution in each of two gloo processes on the CPU, with the strategy's own wrapper
around the model (the tests assert that it is). Prints the loss of every step and the largest difference to one
process, over losses and over the scores of the saved checkpoints. ZeRO compiles an extension at its first run.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

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

    results = {}
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
                results[f"{head} {name}"] = {"losses": result["loss"], "scores": scores.tolist()}
                if name == "cpu":
                    expected, expected_scores = result["loss"], scores
                off = max(abs(a - b) for a, b in zip(result["loss"], expected, strict=True))
                row = [head, name, str(result["num_processes"]), *(f"{loss:.6f}" for loss in result["loss"])]
                table.add_row(*row, f"{off:.1e}", f"{(scores - expected_scores).abs().max():.1e}")
    Console(width=150).print(table)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
