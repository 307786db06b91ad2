"""What a report costs: time and memory against the number of problems, and of the seven public models on real data.

    python benchmarks/evaluation.py --num_threads 1

Synthetic rows: 64 candidates a problem with 5 steps and up to 6 answers, one scorer, everything that
`recipes/evaluate.py` does with given files, reading included, and the report. Each size runs in a process of its own,
so that peak memory is its own. `ms/problem` constant from row to row is linear time. Real rows (`--data`, bon_gsm8k;
left out where it is missing): 100 problems x 32 candidates x 7 models; of these also what the report says of the place
of the lowest score.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _devices import peak_memory
from _measurements import Measurement, write_measurements

ROOT = Path(__file__).resolve().parents[1]
SIZES = (500, 1_000, 2_500, 5_000)
NUM_CANDIDATES, NUM_STEPS, NUM_ANSWERS = 64, 5, 6


def write_synthetic(directory: Path, num_problems: int) -> tuple[Path, list[Path]]:
    """Candidates, and the scores of a model that ranks them better than chance."""
    import numpy as np

    generator = np.random.default_rng(0)
    candidates, scores = directory / "candidates.jsonl", directory / "step_scores_synthetic.jsonl"
    with open(candidates, "w") as pool, open(scores, "w") as scored:
        for i in range(num_problems):
            difficulty = generator.random()
            is_right = generator.random(NUM_CANDIDATES) < difficulty
            wrong = generator.integers(1, NUM_ANSWERS, NUM_CANDIDATES)
            steps = [f"step {k}" for k in range(NUM_STEPS)]
            row = {
                "problem_id": f"p{i}",
                "prompt": f"problem {i}",
                "answer": "0",
                "candidates": [
                    {"steps": steps, "extracted_answer": "0" if right else str(other), "is_correct": bool(right)}
                    for right, other in zip(is_right, wrong, strict=True)
                ],
            }
            noise = generator.random((NUM_CANDIDATES, NUM_STEPS))
            of_row = {"problem_id": f"p{i}", "step_scores": (0.3 * is_right[:, None] + 0.7 * noise).round(6).tolist()}
            pool.write(json.dumps(row) + "\n")
            scored.write(json.dumps(of_row) + "\n")
    return candidates, [scores]


def measure(candidates: Path, scores: list[Path]) -> dict[str, Any]:
    """
    Seconds and peak memory of the recipe on these files, in this process; and by model how often the lowest score is
    the last step's, as the report says it.
    """
    sys.path.insert(0, str(ROOT / "recipes"))
    import evaluate

    loaded = peak_memory("cpu")
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        metrics = evaluate.main(
            ["--candidates", str(candidates), "--step_scores", *map(str, scores), "--output_dir", f"{directory}/out"]
        )
    return {
        "num_problems": metrics["num_problems"],
        "num_candidates": metrics["num_candidates"],
        "num_scorers": len(metrics["scorers"]),
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - cpu,
        "memory_mib": (peak_memory("cpu") - loaded) / 2**20,
        "min_on_last": {name: found["min_on_last"] for name, found in metrics["calibration"].items()},
    }


def in_own_process(arguments: list[str], num_threads: int) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measurements(results: list[dict[str, Any]]) -> list[Measurement]:
    times, times_a_problem, memory, places = [], [], [], []
    for row in results:
        kind = "GSM8K" if row["rows"] == "real" else row["rows"]
        setting = f"{kind}: {row['num_problems']:,} problems x {row['num_candidates']} candidates"
        setting += f" x {row['num_scorers']} PRM" + "s" * (row["num_scorers"] > 1)
        per_problem = 1000 * row["processor_seconds"] / row["num_problems"]
        for rows, measured, value, unit in (
            (times, "processor time of the report", row["processor_seconds"], "s"),
            (times_a_problem, "processor time a problem", per_problem, "ms"),
            (memory, "memory above what is loaded before", row["memory_mib"], "MiB"),
        ):
            rows.append(Measurement("Evaluation", measured, "", setting, value, unit))
        if row["rows"] == "real":
            for name, found in row["min_on_last"].items():
                measured, setting = "solutions with the lowest score on the last step", f"GSM8K: scores of `{name}`"
                against = f"chance, {100 * found['chance']:.1f} %"
                share, low, high = (100 * value for value in found["share"])
                places.append(Measurement("Evaluation", measured, against, setting, share, "%", low, high, "95 %"))
    return times + times_a_problem + memory + places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "bon_gsm8k")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/evaluation.json"))
    parser.add_argument("--measure", type=Path, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], args.measure[1:])))
        return

    started, results = time.time(), []
    if args.data.is_dir():
        files = [args.data / "candidates.jsonl.gz", *sorted(args.data.glob("step_scores_*"))]
        results.append({"rows": "real"} | in_own_process(["--measure", *map(str, files)], args.num_threads))
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as directory:
            candidates, scores = write_synthetic(Path(directory), size)
            arguments = ["--measure", str(candidates), *map(str, scores)]
            results.append({"rows": "synthetic"} | in_own_process(arguments, args.num_threads))
    print("rows        problems x candidates x scorers   seconds   processor s   ms/problem   MiB")
    for row in results:
        shape = f"{row['num_problems']:,} x {row['num_candidates']} x {row['num_scorers']}"
        per_problem = 1000 * row["processor_seconds"] / row["num_problems"]
        print(
            f"{row['rows']:<12}{shape:>29}{row['seconds']:>12.1f}{row['processor_seconds']:>14.1f}"
            f"{per_problem:>13.1f}{row['memory_mib']:>6.0f}"
        )
    write_measurements(args.output, measurements(results), started, args.num_threads)


if __name__ == "__main__":
    main()
