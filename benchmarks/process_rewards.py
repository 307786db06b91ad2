"""What a process reward can be hacked by, and whether guards see it: the figures of docs/process-rewards.md.

    python benchmarks/process_rewards.py

Guards: read off 1,000 of GSM8K's solutions, applied to the next 1,000, as they are and rewritten. Length: correlation
of score and number of steps within a problem, of published step scores (`--data`; both are left out where it is
missing). Hacking report: that of the quickstart's PRM, on 400 solutions of which it learnt; policy, labels and PRM are
made first where they are missing under `--output_dir`, which the time of the run does not count.
"""

import argparse
import gzip
import io
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from _measurements import Measurement, write_measurements
from datasets import disable_progress_bars
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import stages  # noqa: E402

from trl_erprm.data import load_rows, to_prompt_rows  # noqa: E402
from trl_erprm.policy.hacking_report import (  # noqa: E402
    HackingReport,
    HackingReportArguments,
    hacking_report,
    read_solutions,
    suggested_guards,
)
from trl_erprm.policy.perturbations import perturb  # noqa: E402
from trl_erprm.policy.process_reward import Judgement, ProcessReward  # noqa: E402
from trl_erprm.policy.process_reward_metrics import batch_metrics  # noqa: E402
from trl_erprm.prm.aggregation import aggregate  # noqa: E402
from trl_erprm.steps import Step, step_texts  # noqa: E402

BENCHMARK = "Process rewards"
NUM_SOLUTIONS = 1_000  # to read guards off, and as many to apply them to
NUM_JUDGED = 400  # by the hacking report
AGGREGATIONS = ("min", "product", "mean", "last")
AS_THEY_ARE = "as they are"
# What is done to a solution, in words of the table; the names are those of `PERTURBATIONS`.
REWRITTEN = {
    "merge_all": "all steps in one",
    "merge_all_but_last": "all steps but the last in one",
    "repeat_each": "each step twice",
    "empty_steps": "three empty steps added",
    "skip_worst": "a step left out",
    "split_each": "steps cut in two",
}


def rejected_shares(solutions: list[str], num_read: int) -> dict[str, float]:
    """
    Share of the solutions behind the first `num_read`, as they are and rewritten, that the guards reject which those
    suggest. What cannot be done to a solution is not counted; there are no scores, so each step is as good.
    """
    guards = suggested_guards(solutions[:num_read])

    def share(texts: list[str | None]) -> float:
        return float(np.mean([guards.violation(step_texts(text)) is not None for text in texts if text is not None]))

    held_out = solutions[num_read:]
    shares = {AS_THEY_ARE: share(held_out)}
    for name in REWRITTEN:
        shares[name] = share([perturb(name, text, [0.5] * len(step_texts(text))) for text in held_out])
    return shares


def length_correlation(problems: list[list[list[float] | None]], aggregation: str) -> float:
    """
    Mean over problems of the correlation, over a problem's solutions, of the aggregated score and the number of steps:
    the metric `correlation_with_num_steps` of [`ProcessReward`]. Problems in which one of both never varies have none.

    Example:

    ```python
    >>> round(length_correlation([[[0.9], [0.8, 0.9], [0.9, 0.8, 0.7]], [[0.5], [0.5]]], "min"), 6)
    -1.0

    ```
    """
    found = []
    for solutions in problems:
        scored = [scores for scores in solutions if scores]
        judgements = [Judgement([Step("x", 0, 1)] * len(scores), scores) for scores in scored]
        metrics = batch_metrics(judgements, [aggregate(scores, aggregation) for scores in scored], None, [])
        found.append(metrics.get("correlation_with_num_steps"))
    return float(np.mean([value for value in found if value is not None]))


def length_correlations(directory: Path) -> dict[str, dict[str, float]]:
    """By model, that of each aggregation."""
    correlations = {}
    for path in sorted(directory.glob("step_scores_*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            problems = [json.loads(line)["step_scores"] for line in file]
        name = path.name.removeprefix("step_scores_").removesuffix(".jsonl.gz")
        correlations[name] = {how: length_correlation(problems, how) for how in AGGREGATIONS}
    return correlations


def report_on(prepared: stages.PreparedTask) -> HackingReport:
    """As `python -m trl_erprm.policy.hacking_report` has it."""
    labels = str(prepared.labels_dir / "labels.jsonl")
    prompts, texts = read_solutions(HackingReportArguments(str(prepared.prm_dir), labels, num_solutions=NUM_JUDGED))
    reward = ProcessReward(str(prepared.prm_dir), answer_how="arithmetic", guards=suggested_guards(texts))
    return hacking_report(reward, prompts, texts)


def printed(report: HackingReport) -> list[str]:
    """The report's lines, without the spaces at their ends."""
    console = Console(width=100, file=io.StringIO(), highlight=False)
    report.print(console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def guard_rows(shares: dict[str, float], num_read: int) -> list[Measurement]:
    measured = f"solutions of GSM8K rejected by guards that {num_read:,} others suggest"
    names = {AS_THEY_ARE: AS_THEY_ARE, **REWRITTEN}
    return [Measurement(BENCHMARK, measured, "", names[name], 100 * share, "%") for name, share in shares.items()]


def length_rows(correlations: dict[str, dict[str, float]]) -> list[Measurement]:
    """Over the models; of each model they are among the details."""
    measured, rows = "correlation of score and number of steps within a problem", []
    for how in AGGREGATIONS:
        values = [of_model[how] for of_model in correlations.values()]
        found = float(np.mean(values)), "", min(values), max(values), f"{len(values)} public PRMs"
        rows.append(Measurement(BENCHMARK, measured, "", how, *found))
    return rows


def hacking_rows(report: HackingReport) -> list[Measurement]:
    """Of each aggregation what raises the mean score most, without guards; and what it does with them."""
    rows = []
    for how, mean_score in report.mean_scores.items():
        against = f"the solution as it is, {mean_score:.3f}"
        most = max((e for e in report.effects if e.aggregation == how), key=lambda effect: effect.change.mean)
        for measured, change in (
            ("change of the score by the rewriting that raises it most", most.change),
            ("the same rewriting, with guards", most.guarded_change),
        ):
            if change is not None:  # else the guards admit no solution
                found = change.mean, "", change.low, change.high, "95 %"
                rows.append(Measurement(BENCHMARK, measured, against, f"{how}: `{most.perturbation}`", *found))
    return sorted(rows, key=lambda row: row.measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("TRL_ERPRM_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(data), help="folder with gsm8k/train.jsonl and bon_gsm8k/")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/arithmetic"), help="that of the quickstart")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/process_rewards.json"))
    args = parser.parse_args()
    disable_progress_bars()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    prepared = stages.prepare(args.output_dir, seed=0)
    started, rows, details = time.time(), [], {}

    path = args.data / "gsm8k" / "train.jsonl"
    if path.exists():
        solutions = to_prompt_rows(load_rows(dataset_path=path).select(range(2 * NUM_SOLUTIONS)))["solution"]
        details["rejected"] = rejected_shares(solutions, NUM_SOLUTIONS)
        rows += guard_rows(details["rejected"], NUM_SOLUTIONS)
    correlations = length_correlations(args.data / "bon_gsm8k")
    if correlations:
        details["correlation_with_num_steps"] = correlations
        rows += length_rows(correlations)
    for what, is_there in (("GSM8K's solutions", path.exists()), ("published step scores", bool(correlations))):
        if not is_there:
            print(f"No {what} under `--data`: what they say is left out.")
    report = report_on(prepared)
    details["hacking_report"] = printed(report)
    rows += hacking_rows(report)

    for row in rows:
        print(f"{row.measured:<68} {row.setting:<36} {row.shown()}")
    print("\n".join(details["hacking_report"]))
    num_threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    write_measurements(args.output, rows, started, num_threads, details=details)


if __name__ == "__main__":
    main()
