r"""Measures a process reward model on steps that people have judged: ProcessBench, PRMBench, PRM800K and the like.

    python -m trl_erprm.evaluation.processbench --prm outputs/prm --dataset Qwen/ProcessBench \
        --split gsm8k math olympiadbench omnimath --threshold_on gsm8k
    python -m trl_erprm.evaluation.processbench --scores scores.jsonl --dataset rows.jsonl --threshold 0.5

The layout is recognized by its columns:

- **ProcessBench** (`problem`, `steps`, `label`; Qwen/ProcessBench on the Hub): `label` is the index of the first wrong
  step, or -1. The subset is read from `id` ("gsm8k-17").
- **PRMBench** (`modified_question`, `modified_process`, `error_steps`, `classification`; on the Hub
  hitsmy/PRMBench_Preview): solutions into which errors were put; `error_steps` are numbers from 1. Each original
  solution is read once, as the group "original", which does not count in "all" (as in PRMBench's own code).
- every stepwise layout that [`to_stepwise_rows`] reads, PRM800K's human ratings among them. The groups are the column
  `subset`, where there is one.

It prints, for each group and for all rows, ProcessBench's F1 with both accuracies, PRMScore and AUROC, with 95 %
intervals, and says which threshold was used and where it is from: `--threshold`, or the best one on the group
`--threshold_on`, whose own F1 is then flattered and marked. "best" is the highest F1 of the group at any threshold of
its own: an upper bound, no result. `--output_dir` gets `metrics.json` (with the F1-threshold curve of each group) and
`step_scores.jsonl`, which `--scores` takes back.

A model that was trained on chats reads each problem as one user message, behind `--system_prompt` where it was trained
with one.

Exit code: 0, or 2 for a wrong argument or row, with the number of the row. Then nothing is printed and written.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from datasets.exceptions import DatasetsError
from rich.console import Console
from rich.table import Table

from ..arguments import check_path_or_id, process_state
from ..data import load_rows, to_stepwise_rows
from ..manifest import write_atomically
from ..parsing import StrictParser
from ..prm.formats import Prompt
from ..prm.prompts import check_prompt_reading
from ..prm.scorer import ProcessRewardModel
from .best_of_n import Estimate
from .step_metrics import (
    FirstErrors,
    StepJudgement,
    best_threshold,
    check_step_rows,
    first_error_curve,
    labels_of_first_error,
    measure_first_errors,
    measure_steps,
)

__all__ = ["GroupMetrics", "JudgedRow", "measure_judged_rows", "read_judged_rows", "read_step_scores", "results_table"]

PROCESSBENCH_COLUMNS = ("problem", "steps", "label")
PRMBENCH_COLUMNS = ("modified_question", "modified_process", "error_steps", "classification")

ALL = "all"
ORIGINAL = "original"
"""Groups that [`measure_judged_rows`] and the reader of PRMBench make."""

CURVE_POINTS = 200
"""Points of a curve in `metrics.json` at most: more cannot be seen in a plot."""


@dataclass(frozen=True)
class JudgedRow:
    """A solution whose steps people have judged.

    Attributes:
        id (`str`): the row's `id` where it has one, else its number.
        prompt (`str` or messages): the problem.
        steps (`list[str]`): the steps, at least one.
        labels (`list[float | None]`): of each step 1 right, 0 wrong, between where it was judged so, None unknown.
        group (`str`): subset, kind of error, or `"all"`.
    """

    id: str
    prompt: str | list[dict]
    steps: list[str]
    labels: list[float | None]
    group: str = ALL


@dataclass(frozen=True)
class GroupMetrics:
    """What was measured on a group of rows.

    Attributes:
        first_errors ([`FirstErrors`]): ProcessBench's measures.
        steps ([`StepJudgement`]): PRMScore and what it is made of.
        curve (`list[dict]`): F1 and accuracies by threshold, [`CURVE_POINTS`] at most; empty where there are no
            solutions with, or none without an error.
        best (`dict` or `None`): the group's own best `threshold` and its `f1`: an upper bound.
        num_rows (`int`): solutions.
        is_threshold_from_here (`bool`): whether the threshold was chosen on rows of this group, which flatters its F1.
    """

    first_errors: FirstErrors
    steps: StepJudgement
    curve: list[dict[str, float]]
    best: dict[str, float] | None
    num_rows: int
    is_threshold_from_here: bool

    def as_json(self) -> dict[str, Any]:
        """For `metrics.json`; NaN is None."""
        return {
            "num_rows": self.num_rows,
            "is_threshold_from_here": self.is_threshold_from_here,
            "first_errors": _as_json(self.first_errors),
            "steps": _as_json(self.steps),
            "best": self.best,
            "curve": self.curve,
        }


def read_judged_rows(dataset: Dataset) -> list[JudgedRow]:
    """Reads rows of ProcessBench, PRMBench or a stepwise layout, which is recognized by the columns.

    Args:
        dataset (`Dataset`):
            Rows as they were published.

    Returns:
        `list[JudgedRow]`: in order; of PRMBench, each original solution stands before the first one made from it.

    Raises:
        ValueError: at the first row that cannot be read, with its number: no steps, an empty step, a label that is no
            index of a step, error steps that do not exist; or if the columns are of no layout.

    Example:

    ```python
    >>> row = {"id": "gsm8k-0", "problem": "1+1+1?", "steps": ["1+1=2", "2+1=4"], "label": 1}
    >>> read_judged_rows(Dataset.from_list([row]))
    [JudgedRow(id='gsm8k-0', prompt='1+1+1?', steps=['1+1=2', '2+1=4'], labels=[1.0, 0.0], group='gsm8k')]

    ```
    """
    columns = set(dataset.column_names)
    if columns.issuperset(PROCESSBENCH_COLUMNS):
        read = _read_processbench
    elif columns.issuperset(PRMBENCH_COLUMNS):
        read = _read_prmbench
    else:
        numbered = dataset.add_column("_row", range(len(dataset)))
        return [
            JudgedRow(
                id=str(row["_row"] if row.get("id") is None else row["id"]),
                prompt=row["prompt"],
                steps=row["completions"],
                labels=row["labels"],
                group=str(row["subset"]) if row.get("subset") is not None else ALL,
            )
            for row in to_stepwise_rows(numbered)
        ]
    rows: list[JudgedRow] = []
    for number, row in enumerate(dataset):
        try:
            rows += read(row, number)
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}.") from None
    known: dict[JudgedRow, None] = {}  # an original of PRMBench stands in many rows
    return [row for row in rows if row.group != ORIGINAL or _is_new(known, row.id)]


def _is_new(known: dict[Any, None], key: Any) -> bool:
    is_new = key not in known
    known[key] = None
    return is_new


def _read_processbench(row: Mapping[str, Any], number: int) -> list[JudgedRow]:
    steps = _steps(row["steps"], "steps")
    id = str(number if row.get("id") is None else row["id"])
    group, dash, index = id.rpartition("-")
    return [
        JudgedRow(
            id=id,
            prompt=_text(row["problem"], "problem"),
            steps=steps,
            labels=labels_of_first_error(row["label"], len(steps)),
            group=group if dash and index.isdecimal() else ALL,
        )
    ]


def _read_prmbench(row: Mapping[str, Any], number: int) -> list[JudgedRow]:
    steps = _steps(row["modified_process"], "modified_process")
    errors = row["error_steps"] or []
    for error in errors:
        if isinstance(error, bool) or not isinstance(error, int) or not 1 <= error <= len(steps):
            raise ValueError(f"`error_steps` must be numbers of the {len(steps)} steps, from 1, got {error!r}")
    id = str(number if row.get("idx") is None else row["idx"])
    labels = [0.0 if k in errors else 1.0 for k in range(1, len(steps) + 1)]
    prompt = _text(row["modified_question"], "modified_question")
    rows = [JudgedRow(id, prompt, steps, labels, _text(row["classification"], "classification"))]
    if row.get("original_question") and row.get("original_process"):
        original = _steps(row["original_process"], "original_process")
        # One original solution is the source of rows of several kinds, by whose names their `idx` differ.
        key = "\n".join([row["original_question"], *original])
        rows.insert(0, JudgedRow(key, row["original_question"], original, [1.0] * len(original), ORIGINAL))
    return rows


def _steps(steps: Any, name: str) -> list[str]:
    if not isinstance(steps, list) or not steps:
        raise ValueError(f"`{name}` must be a list of at least one step, got {steps!r}")
    for k, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            raise ValueError(f"step {k} of `{name}` must be a str that is not empty, got {step!r}")
    return steps


def _text(text: Any, name: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`{name}` must be a str that is not empty, got {text!r}")
    return text


def read_step_scores(path: str | Path, rows: Sequence[JudgedRow]) -> list[list[float]]:
    """Reads precomputed step scores, in the order of the rows.

    Args:
        path (`str` or `Path`):
            JSONL, one line a row with `step_scores` and, to make sure that they belong together, `id`.
        rows (`Sequence[JudgedRow]`):
            The rows that were scored.

    Returns:
        `list[list[float]]`: scores, as many a row as it has steps.

    Raises:
        ValueError: if a line is no JSON or has no `step_scores`, or the number of lines, an `id`, or the number of
            scores differs from the rows (with the number of the row).
    """
    scores = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(line for line in lines if line.strip()):
            try:
                found = json.loads(line)
                of_row = found["step_scores"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"Line {number} of {path} must be an object with `step_scores`, got {line.strip()[:80]!r}."
                ) from None
            if number < len(rows):
                row = rows[number]
                if found.get("id") is not None and str(found["id"]) != row.id:
                    raise ValueError(
                        f"Row {number} is {row.id!r}, but its scores in {path} are of {found['id']!r}. Give the "
                        "scores of these rows, in their order."
                    )
                if not isinstance(of_row, list) or len(of_row) != len(row.steps):
                    got = f"{len(of_row)} scores" if isinstance(of_row, list) else repr(of_row)
                    raise ValueError(f"Row {number} has {len(row.steps)} steps, but {got} in {path}.")
            scores.append(of_row)
    if len(scores) != len(rows):
        raise ValueError(f"{path} must have a line for each of the {len(rows)} rows, got {len(scores)}.")
    return scores


def measure_judged_rows(
    rows: Sequence[JudgedRow],
    step_scores: Sequence[Sequence[float]],
    threshold: float | None = None,
    threshold_on: str | None = None,
    seed: int = 0,
) -> dict[str, GroupMetrics]:
    """Measures each group, and all rows together (`"all"`; of PRMBench, those with an error put in).

    Args:
        rows (`Sequence[JudgedRow]`):
            The rows.
        step_scores (`Sequence[Sequence[float]]` of shape `(num_rows, num_steps)`, each with its `num_steps`):
            The scores of their steps.
        threshold (`float`, *optional*):
            At or below it a step is an error. `None`: that of `threshold_on`, or else 0.5.
        threshold_on (`str`, *optional*):
            The group whose best threshold (highest first-error F1) is used for all. Not with `threshold`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the intervals.

    Returns:
        `dict[str, GroupMetrics]`: by group, in the order of their first rows, `"all"` last.

    Raises:
        ValueError: if rows and scores differ, a score is not finite (naming the row), or the threshold is not finite,
            is given twice, or is to be chosen on a group that is not there or has solutions of one kind only.

    Example:

    ```python
    >>> rows = [JudgedRow("a", "1+1?", ["1+1=2"], [1.0]), JudgedRow("b", "1+1?", ["1+1=3"], [0.0])]
    >>> metrics = measure_judged_rows(rows, [[0.4], [0.1]], threshold_on="all")
    >>> metrics["all"].first_errors.threshold, metrics["all"].first_errors.f1.mean
    (0.25, 1.0)

    ```
    """
    if len(rows) != len(step_scores):
        raise ValueError(f"There must be scores for each of the {len(rows)} rows, got {len(step_scores)}.")
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.group, []).append(i)
    of_all = [i for i, row in enumerate(rows) if row.group != ORIGINAL]
    groups.pop(ALL, None)
    groups[ALL] = of_all or list(range(len(rows)))
    # All rows are checked at once, so that the message has the number of the row in the file.
    check_step_rows(step_scores, [row.labels for row in rows])

    def select(indices: Sequence[int]) -> tuple[list, list]:
        return [step_scores[i] for i in indices], [rows[i].labels for i in indices]

    curves = {}
    for name, indices in groups.items():
        try:
            curves[name] = first_error_curve(*select(indices))
        except ValueError:  # solutions of one kind only, or nothing labelled
            curves[name] = None
    if threshold_on is not None:
        if threshold is not None:
            raise ValueError("Give `threshold` or `threshold_on`, not both.")
        if curves.get(threshold_on) is None:
            usable = [name for name, curve in curves.items() if curve is not None]
            raise ValueError(
                f"`threshold_on` must be a group with and without errors: {', '.join(map(repr, usable)) or 'none'}; "
                f"got {threshold_on!r}."
            )
        threshold, _ = best_threshold(curves[threshold_on])
    threshold = 0.5 if threshold is None else threshold
    metrics = {}
    for name, indices in groups.items():
        scores, labels = select(indices)
        if all(label is None or math.isnan(label) for of_row in labels for label in of_row):
            continue
        prompts = [json.dumps(rows[i].prompt) for i in indices]
        curve = curves[name]
        own_threshold, own_f1 = best_threshold(curve) if curve is not None else (math.nan, math.nan)
        metrics[name] = GroupMetrics(
            first_errors=measure_first_errors(scores, labels, threshold, prompts, seed),
            steps=measure_steps(scores, labels, threshold, prompts, seed),
            curve=[] if curve is None else _thinned(curve),
            best=None if curve is None else {"threshold": own_threshold, "f1": own_f1},
            num_rows=len(indices),
            is_threshold_from_here=threshold_on is not None and (name == threshold_on or ALL in (name, threshold_on)),
        )
    return metrics


def _thinned(curve) -> list[dict[str, float]]:
    keep = np.unique(np.linspace(0, curve.thresholds.size - 1, CURVE_POINTS).round().astype(int))
    keep = np.union1d(keep, [int(np.argmax(curve.f1))])  # the peak stays
    names = ("threshold", "f1", "accuracy_erroneous", "accuracy_correct")
    return [
        dict(zip(names, map(float, point), strict=True)) for point in zip(*(of[keep] for of in curve), strict=True)
    ]


def _as_json(values: FirstErrors | StepJudgement) -> dict[str, Any]:
    def plain(value):
        if isinstance(value, Estimate):
            return {name: plain(part) for name, part in value._asdict().items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: plain(value) for name, value in values._asdict().items()}


def results_table(metrics: Mapping[str, GroupMetrics], title: str = "") -> Table:
    """The table of the command: a row a group, shares in per cent with their 95 % intervals."""
    threshold = next(iter(metrics.values())).first_errors.threshold
    is_chosen = any(of_group.is_threshold_from_here for of_group in metrics.values())
    source = "; *: chosen on these rows or some of them, so F1 is flattered" if is_chosen else ""
    table = Table(title=title, caption=f"Threshold {threshold:.4g}{source}. In brackets: 95 % interval over problems.")
    table.add_column("group", overflow="fold")
    for name in ("rows", "F1", "erroneous", "correct", "best F1", "PRMScore", "AUROC"):
        table.add_column(name, justify="right")
    for name, of_group in metrics.items():
        first, steps = of_group.first_errors, of_group.steps
        table.add_row(
            name + "*" * of_group.is_threshold_from_here,
            f"{of_group.num_rows:,}",
            _percent(first.f1),
            _percent(first.accuracy_erroneous),
            _percent(first.accuracy_correct),
            "-" if of_group.best is None else f"{100 * of_group.best['f1']:.1f}",
            _percent(steps.prm_score),
            "-" if math.isnan(steps.auroc) else f"{steps.auroc:.3f}",
        )
    return table


def _percent(estimate: Estimate) -> str:
    if math.isnan(estimate.mean):
        return "-"
    interval = "" if math.isnan(estimate.low) else f"\n\\[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"{100 * estimate.mean:.1f}{interval}"


# ---------------------------------------------------------------------------------------------------------------------
# Command line


@dataclass
class ProcessBenchArguments:
    """What to measure."""

    dataset: str = field(metadata={"help": "File, directory or id of the dataset."})
    prm: str | None = field(default=None, metadata={"help": "Directory or id of the process reward model."})
    scores: str | None = field(default=None, metadata={"help": "Instead: step scores, a line a row, as JSONL."})
    split: list[str] = field(default_factory=lambda: ["train"], metadata={"help": "Splits; a file has only one."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    format: str | None = field(default=None, metadata={"help": "Format of a PRM that was not trained here."})
    prompt_as: str = field(
        default="auto",
        metadata={"help": "What the PRM reads: chat, a problem as one user message; problem; auto: as trained."},
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message before each problem, for a PRM that was trained on chats."}
    )
    threshold: float | None = field(default=None, metadata={"help": "A step is an error at or below it; 0.5."})
    threshold_on: str | None = field(default=None, metadata={"help": "Instead: the best threshold of this group."})
    num_rows: int | None = field(default=None, metadata={"help": "Only the first so many rows of each split."})
    batch_size: int = field(default=32, metadata={"help": "Solutions that the PRM scores at once."})
    output_dir: str | None = field(default=None, metadata={"help": "Where metrics.json and step_scores.jsonl go."})
    seed: int = field(default=0, metadata={"help": "Seed of the intervals."})

    def __post_init__(self):
        if (self.prm is None) == (self.scores is None):
            raise ValueError("Give either `prm`, a model that scores the rows, or `scores`, a file with their scores.")
        if self.prm is not None:
            check_path_or_id(self.prm, "prm")
        check_prompt_reading(self.prompt_as)
        if self.num_rows is not None and self.num_rows < 1:
            raise ValueError(f"`num_rows` must be at least 1, got {self.num_rows}. Leave it out for all rows.")


def _load(args: ProcessBenchArguments) -> list[JudgedRow]:
    rows: list[JudgedRow] = []
    for split in args.split:
        dataset = load_rows(args.dataset, split=split, config=args.dataset_config)
        dataset = dataset.select(range(min(len(dataset), args.num_rows or len(dataset))))
        try:
            rows += read_judged_rows(dataset)
        except ValueError as error:
            raise ValueError(f"{args.dataset}, split {split!r}: {error}") from None
    return rows


def _prompts(rows: Sequence[JudgedRow], args: ProcessBenchArguments, prm: ProcessRewardModel) -> list[Prompt]:
    """What the model is asked about each row, behind the system prompt where one was given."""
    if args.system_prompt is None:
        return [row.prompt for row in rows]
    if prm.prompt_reader.reading(args.prompt_as) == "problem":
        raise ValueError(
            f"`system_prompt` was given, but {args.prm!r} reads the problem alone (`prompt_as={args.prompt_as!r}`). "
            "Leave it out, or set `prompt_as='chat'` if the model was trained on chats."
        )
    system = {"role": "system", "content": args.system_prompt}
    asked = ([{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt for row in rows)
    return [[system, *messages] for messages in asked]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    disable_progress_bars()
    how = {"prog": "python -m trl_erprm.evaluation.processbench", "description": __doc__}
    try:
        [args] = StrictParser(ProcessBenchArguments, **how).parse_args_and_config(argv)
        rows = _load(args)
        if args.scores is not None:
            step_scores = read_step_scores(args.scores, rows)
        else:
            prm = ProcessRewardModel.from_pretrained(args.prm, format=args.format)
            step_scores = prm.score(
                _prompts(rows, args, prm),
                [row.steps for row in rows],
                batch_size=args.batch_size,
                show_progress=True,
                split_between_processes=True,
                prompt_as=args.prompt_as,
            )
        metrics = measure_judged_rows(rows, step_scores, args.threshold, args.threshold_on, args.seed)
    except (ValueError, OSError, DatasetsError) as error:
        print(f"processbench: {error}", file=sys.stderr)
        return 2
    if not process_state().is_main_process:
        return 0
    if args.output_dir is not None:
        directory = Path(args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"id": row.id, "group": row.group, "step_scores": of_row})
            for row, of_row in zip(rows, step_scores, strict=True)
        ]
        write_atomically(directory / "step_scores.jsonl", "\n".join(lines) + "\n")
        groups = {name: of_group.as_json() for name, of_group in metrics.items()}
        source = {"prm": args.prm, "scores": args.scores, "dataset": args.dataset, "split": args.split}
        write_atomically(
            directory / "metrics.json",
            json.dumps({**source, "threshold_on": args.threshold_on, "groups": groups}, indent=2) + "\n",
        )
    Console(highlight=False).print(results_table(metrics, f"{args.prm or args.scores} on {args.dataset}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
