"""What step labels cost: adaptive rollouts against a fixed number, equal prefixes once, and the labeler's memory.

    python benchmarks/labels.py

Adaptive rollouts: prefixes of the embedded task's ideal policy, whose exact values are known, through the labeler
itself. The tolerance is chosen on validation problems and judged on test problems. Tokens are compared at equal
root-mean-square error of the labels: with the number of fixed rollouts, interpolated, that would reach the error of
the adaptive run. `bound` is the same ratio for the best allocation that could be had if every success probability were
known beforehand (rollouts in proportion to the label's standard deviation over the root of the cost): no rule that
looks at one prefix at a time can go below it, other than by luck or bias. About a minute on one core.

Equal prefixes: counted on samples of the same policy, and on 32 real solutions each of 100 GSM8K problems
(`--data`, bon_gsm8k/candidates.jsonl.gz; left out where it is missing). Memory: peak of a process, stub engine.
"""

import argparse
import gzip
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from _measurements import Measurement, write_measurements
from rich.console import Console
from rich.table import Table

from trl_erprm import LabelingConfig, MonteCarloLabeler
from trl_erprm.arithmetic import ArithmeticTask, build_tokenizer
from trl_erprm.labeling.estimators import (
    entropy_regularized_value_from_counts,
    entropy_regularized_value_from_probability,
)
from trl_erprm.labeling.intervals import is_narrow_enough
from trl_erprm.labeling.rows import prefix_key, solution_of_steps
from trl_erprm.rollout import Completion
from trl_erprm.rollout.engine import sample_keys

ROOT = Path(__file__).resolve().parents[1]
ETAS = (0.0, 1.0, 2.0, 5.0, 10.0)
MOST, ROUND, FIXED = 64, 4, 16
NUMBERS = (4, 8, 12, 16, 20, 24, 32, 48, 64)
TOLERANCES = np.round(np.arange(0.2, 0.85, 0.02), 2)


class IdealPolicy:
    """An engine: rollouts of the ideal policy, right with the exact probability of the prefix.

    A rollout is the right or a wrong answer line behind the steps that are left; what is between does not change
    whether it is right, and counts by its tokens only.
    """

    def __init__(self, task: ArithmeticTask):
        self.task = task
        self.tokenizer = build_tokenizer()
        self.values: dict[tuple[str, str], float] = {}
        self.num_tokens: dict[int, int] = {}

    def probability(self, prompt: str, completion: str) -> float:
        key = (prompt, completion)
        if key not in self.values:
            self.values[key] = self.task.exact_value(prompt, completion.split())
        return self.values[key]

    def tokens(self, prompt: str, completion: str) -> int:
        """Tokens of a rollout with its end token: of this task all rollouts of a prefix have the same length."""
        left = self.task.num_operations - len(completion.split())
        if left not in self.num_tokens:
            steps = self.task.solve(prompt)[-left - 1 :]
            self.num_tokens[left] = len(self.tokenizer("\n".join(steps))["input_ids"]) + 1
        return self.num_tokens[left]

    def generate(self, prefixes, num_samples, options, first_sample=0):
        result = []
        for prefix in prefixes:
            p, n = self.probability(prefix.prompt, prefix.completion), self.tokens(prefix.prompt, prefix.completion)
            truth = int(self.task.solve(prefix.prompt)[-1][1:])
            texts = [f"#{truth}", f"#{(truth + 1) % self.task.modulus}"]
            keys = sample_keys(prefix, options.seed, num_samples, first_sample)
            result.append([Completion(texts[(key >> 11) * 2.0**-53 >= p], n, "stop") for key in keys])
        return result


def solutions(task: ArithmeticTask, split: str, num_problems: int, per_problem: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {"prompt": f"{p}\n", "answer": task.solve(p)[-1][1:], "completions": task.sample_solution(p, rng)}
        for p in task.problems(split)[:num_problems]
        for _ in range(per_problem)
    ]


def prefixes_of(rows: list[dict], engine: IdealPolicy) -> tuple[np.ndarray, np.ndarray]:
    """Success probability, and tokens of a rollout, of each different prefix."""
    found = {}
    for row in rows:
        for k in range(1, len(row["completions"])):
            text = "\n".join(row["completions"][:k]) + "\n"
            found[row["prompt"], text] = (
                engine.probability(row["prompt"], text),
                engine.tokens(row["prompt"], text),
            )
    return np.array(list(found.values())).T


def error(labels: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.mean((labels - exact) ** 2)))


def choose_tolerance(p: np.ndarray, tokens: np.ndarray, eta: float, rng: np.random.Generator) -> float:
    """The tolerance with the fewest tokens among those with at most the error of the fixed number, by simulation."""
    right = np.cumsum(rng.random((len(p), MOST)) < p[:, None], axis=1)
    exact = entropy_regularized_value_from_probability(p, eta)
    allowed = error(entropy_regularized_value_from_counts(right[:, FIXED - 1], FIXED, eta), exact)
    best = (math.inf, float(TOLERANCES[0]))
    for tolerance in TOLERANCES.tolist():
        n, c = np.zeros(len(p), dtype=int), np.zeros(len(p), dtype=int)
        for stop in range(ROUND, MOST + 1, ROUND):
            is_open = n == 0
            is_done = np.full(stop + 1, True)
            if stop < MOST:
                is_done = is_narrow_enough(np.arange(stop + 1), stop, eta, tolerance)
            done = is_open & is_done[right[:, stop - 1]]
            n[done], c[done] = stop, right[done, stop - 1]
        if error(entropy_regularized_value_from_counts(c, n, eta), exact) <= allowed:
            best = min(best, (float(np.sum(n * tokens)), tolerance))
    return best[1]


def adaptive(task: ArithmeticTask, num_problems: int, seeds: int, console: Console) -> list[dict]:
    engine = IdealPolicy(task)
    validation = prefixes_of(solutions(task, "validation", num_problems, 4), engine)
    rows = solutions(task, "test", num_problems, 4)
    p, tokens = prefixes_of(rows, engine)
    results = []
    for eta in ETAS:
        tolerance = choose_tolerance(*validation, eta, np.random.default_rng(0))
        exact = entropy_regularized_value_from_probability(p, eta)
        runs = []
        for seed in range(seeds):
            config = LabelingConfig(
                num_rollouts=MOST, rollouts_per_round=ROUND, label_tolerance=tolerance, eta=eta, seed=seed,
                verify_how="arithmetic", max_new_tokens=32, prefixes_per_chunk=4096,
            )  # fmt: skip
            labeler = MonteCarloLabeler(engine, config)
            labelled = labeler.label(rows)
            found = {}
            for row in labelled:
                for k in range(1, len(row["completions"])):
                    found[row["prompt"], "\n".join(row["completions"][:k]) + "\n"] = row["labels"][k - 1]
            labels = np.array(list(found.values()))  # in the order of `prefixes_of`
            right = np.cumsum(np.random.default_rng(seed + 1).random((len(p), MOST)) < p[:, None], axis=1)
            by_number = [error(entropy_regularized_value_from_counts(right[:, n - 1], n, eta), exact) for n in NUMBERS]
            reached = error(labels, exact)
            # errors fall with N: interpolated on log-log axes, where the law is a line
            equal = math.exp(np.interp(-math.log(reached), -np.log(by_number), np.log(NUMBERS)))
            spent = labeler.summary["num_tokens"]
            runs.append(
                {
                    "error": reached,
                    "error_of_fixed": by_number[NUMBERS.index(FIXED)],
                    "rollouts": labeler.summary["num_rollouts"] / len(p),
                    "tokens_per_label": spent / len(p),
                    "fixed_rollouts_at_equal_error": equal,
                    "ratio": spent / (equal * float(tokens.sum())),
                    "ratio_to_fixed_16": spent / (FIXED * float(tokens.sum())),
                }
            )
        slope = np.expm1(eta) / eta / (1 + p * np.expm1(eta)) if eta else np.ones_like(p)
        deviation = slope * np.sqrt(p * (1 - p))
        bound = np.mean(np.sqrt(tokens) * deviation) ** 2 / (np.mean(tokens) * np.mean(deviation**2))
        ratios = [run["ratio"] for run in runs]
        results.append(
            {
                "eta": eta,
                "label_tolerance": tolerance,
                "num_prefixes": len(p),
                **{name: float(np.mean([run[name] for run in runs])) for name in runs[0]},
                "ratio_range": [min(ratios), max(ratios)],
                "bound": float(bound),
            }
        )
    table = Table(title=f"Adaptive rollouts, {len(p):,} prefixes of the embedded task, mean of {seeds} seeds")
    for column in (
        "eta", "tolerance", "rollouts", "RMS error", "fixed 16", "tokens / label", "tokens, ratio", "range", "bound",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for r in results:
        low, high = r["ratio_range"]
        table.add_row(
            f"{r['eta']:g}", f"{r['label_tolerance']:g}", f"{r['rollouts']:.1f}", f"{r['error']:.3f}",
            f"{r['error_of_fixed']:.3f}", f"{r['tokens_per_label']:.0f}", f"{r['ratio']:.2f}",
            f"{low:.2f} - {high:.2f}", f"{r['bound']:.2f}",
        )  # fmt: skip
    console.print(table)
    return results


def equal_prefixes(task: ArithmeticTask, data: Path, console: Console) -> list[dict]:
    groups = [(f"embedded task, {n} solutions a problem", solutions(task, "test", 500, n)) for n in (4, 16, 32)]
    path = data / "bon_gsm8k" / "candidates.jsonl.gz"
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            problems = [json.loads(line) for line in file]
        for n in (4, 16, 32):
            rows = [
                {"prompt": q["prompt"], "answer": q["answer"], "completions": c["steps"]}
                for q in problems
                for c in q["candidates"][:n]
            ]
            groups.append((f"GSM8K, {n} solutions of Qwen2.5-7B a problem", rows))
    results = []
    table = Table(title="Equal prefixes and equal solutions")
    for column in ("what", "solutions", "distinct", "prefixes", "distinct", "rollouts saved"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, rows in groups:
        of_rows = [(row, solution_of_steps(i, row["completions"], "\n")) for i, row in enumerate(rows)]
        keys = [prefix_key(row, text) for row, solution in of_rows for text in solution.prefix_texts]
        distinct = len({prefix_key(row, solution.text) for row, solution in of_rows})
        saved = 1 - len(set(keys)) / len(keys)
        results.append(
            {
                "what": name,
                "num_solutions": len(rows),
                "num_distinct_solutions": distinct,
                "num_prefixes": len(keys),
                "num_unique_prefixes": len(set(keys)),
                "saved": saved,
            }
        )
        table.add_row(name, f"{len(rows):,}", f"{distinct:,}", f"{len(keys):,}", f"{len(set(keys)):,}", f"{saved:.1%}")
    console.print(table)
    return results


MEMORY_SCRIPT = """
import sys, tempfile
from benchmarks._devices import peak_memory
from trl_erprm import LabelingConfig, MonteCarloLabeler
from trl_erprm.rollout import Completion

class Stub:
    def generate(self, prefixes, num_samples, options, first_sample=0):
        return [[Completion("#1", 2, "stop")] * num_samples for _ in prefixes]

def label(number):
    words = "so the price of all of the apples that she bought on that day is then "
    rows = [
        {"prompt": f"{i} " + 3 * words, "answer": "1", "completions": [*(f"{i} {k} " + words for k in range(4)), "#1"]}
        for i in range(number // 4)
    ]
    with tempfile.TemporaryDirectory() as directory:
        MonteCarloLabeler(Stub(), LabelingConfig(verify_how="arithmetic")).label(rows, directory)

label(40)
before = peak_memory("cpu")
label(int(sys.argv[1]))
print(before, peak_memory("cpu"))
"""


def memory(console: Console) -> list[dict]:
    results = []
    table = Table(title="Memory of the labeler, four prefixes a solution, stub engine")
    for column in ("prefixes", "peak, MiB", "more than at 40, MiB"):
        table.add_column(column, justify="right")
    for number in (1_000, 5_000, 20_000):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY_SCRIPT, str(number)], cwd=ROOT, check=True, capture_output=True, text=True
        )
        before, after = map(int, done.stdout.split())
        results.append({"num_prefixes": number, "peak_bytes": after, "grown_bytes": after - before})
        table.add_row(f"{number:,}", f"{after / 2**20:,.0f}", f"{(after - before) / 2**20:,.1f}")
    console.print(table)
    return results


def measurements(results: dict[str, list[dict]], num_seeds: int) -> list[Measurement]:
    ratios, bounds, errors = [], [], []
    for r in results["adaptive"]:
        setting = f"eta {r['eta']:g}, tolerance {r['label_tolerance']:g}"
        fixed, (low, high) = "a fixed number, equal RMS error", r["ratio_range"]
        measured, note = f"tokens of adaptive rollouts, {r['num_prefixes']:,} prefixes", f"{num_seeds} seeds"
        ratios.append(Measurement("Labels", measured, fixed, setting, r["ratio"], "x", low, high, note))
        measured = "the same, if every probability were known"
        bounds.append(Measurement("Labels", measured, fixed, setting, r["bound"], "x"))
        errors.append(Measurement("Labels", "RMS error of adaptive labels", "", setting, r["error"], ""))
    rows = ratios + bounds + errors
    for r in results["equal_prefixes"]:
        measured, against = "rollouts saved, equal prefixes once", "every prefix"
        rows.append(Measurement("Labels", measured, against, r["what"], 100 * r["saved"], "%"))
    for r in results["memory"]:
        setting, peak = f"{r['num_prefixes']:,} prefixes", r["peak_bytes"] / 2**20
        rows.append(Measurement("Labels", "peak memory of the labeler, stub engine", "", setting, peak, "MiB"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=300, help="validation and test problems, four solutions each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/labels.json"))
    args = parser.parse_args()
    started = time.time()
    console = Console(width=120)
    task = ArithmeticTask()
    results = {
        "adaptive": adaptive(task, args.problems, args.seeds, console),
        "equal_prefixes": equal_prefixes(task, args.data, console),
        "memory": memory(console),
    }
    write_measurements(args.output, measurements(results, args.seeds), started, num_threads=1, details=results)


if __name__ == "__main__":
    main()
