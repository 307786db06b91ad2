"""The quality report of a labelled data set: what the labels look like, what they cost, and what to worry about.

    labels/
      report.md           the tables below
      labels.png          histogram of the labels (needs matplotlib: the extra `plots`)

Made at the end of [`~labeling.monte_carlo.MonteCarloLabeler.label`], and anew by `recipes/label.py --report true`.
The last step of a solution is left out of the shares: its label is its own outcome.
"""

import importlib.util
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_erprm.manifest import JsonlStore, write_atomically

from .eta_choice import chosen_eta
from .rows import INTERVAL_COLUMNS, intervals_of_counts, labels_of_counts

__all__ = ["format_report", "plot_labels", "quality_report", "relabel_run", "warnings_of", "write_report"]

# Above this share of rollouts without a readable answer, or of rollouts or solutions cut off at the length limit, a
# warning is logged: the labels then measure the settings as much as the steps. Our own choice.
WARNING_SHARE = 0.05


def quality_report(rows: Iterable[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the labels look like.

    Args:
        rows (iterable of rows):
            Labelled rows, with `labels`, `label_low`, `label_high`, `num_correct` and `num_rollouts`.
        summary (`Mapping`):
            [`~labeling.monte_carlo.MonteCarloLabeler.summary`] of the run.

    Returns:
        `dict`:

        - `summary`: as given.
        - `steps`: a dictionary for each position (from 1; the last step of a solution is in none), and `all`:
          `num_steps`; `num_labels`, those with a label; `mean_label`; `share_0`, `share_between`, `share_1`: shares of
          the labels that are 0, between, and 1; `mean_rollouts`; `mean_width` of the intervals. nan without a label.
        - `histogram`: numbers of labels in 20 bins of equal width from 0 to 1.
        - `warnings`: texts, see [`warnings_of`].

    Example:

    ```python
    >>> row = {"labels": [0.5, 1.0, 1.0], "label_low": [0.3, 0.8, 1.0], "label_high": [0.7, 1.0, 1.0],
    ...        "num_correct": [2, 4, 1], "num_rollouts": [4, 4, 1]}
    >>> report = quality_report([row], {})
    >>> [(step["num_labels"], step["share_1"]) for step in report["steps"].values()]
    [(1, 0.0), (1, 1.0), (2, 0.5)]

    ```
    """
    by_position: dict[int, list[tuple[float, float, int]]] = {}
    for row in rows:
        columns = (row["labels"], *(row[name] for name in INTERVAL_COLUMNS), row["num_rollouts"])
        for position, (label, low, high, n) in enumerate(list(zip(*columns, strict=True))[:-1], start=1):
            found = (math.nan, math.nan, 0) if label is None else (label, high - low, n)
            by_position.setdefault(position, []).append(found)
    every = [found for of_position in by_position.values() for found in of_position]
    labels = [label for label, _, _ in every if not math.isnan(label)]
    return {
        "summary": dict(summary),
        "steps": {
            **{str(position): _figures(by_position[position]) for position in sorted(by_position)},
            "all": _figures(every),
        },
        "histogram": np.histogram(labels, bins=20, range=(0, 1))[0].tolist(),
        "warnings": warnings_of(summary),
    }


def _figures(found: Sequence[tuple[float, float, int]]) -> dict[str, float]:
    labels, widths, numbers = np.array(found, dtype=np.float64).reshape(-1, 3).T
    is_labelled = ~np.isnan(labels)
    labels = labels[is_labelled]

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if values.size else math.nan

    return {
        "num_steps": len(found),
        "num_labels": int(labels.size),
        "mean_label": mean(labels),
        "share_0": mean(labels == 0),
        "share_between": mean((labels > 0) & (labels < 1)),
        "share_1": mean(labels == 1),
        "mean_rollouts": mean(numbers[is_labelled]),
        "mean_width": mean(widths[is_labelled]),
    }


def warnings_of(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of the labels should know, from the summary of a run."""
    found = []
    if summary.get("unparsed_share", 0) > WARNING_SHARE:
        found.append(
            f"{100 * summary['unparsed_share']:.1f} % of the rollouts have no readable answer and count as not right, "
            "which lowers all labels. Check `verify_how`, `max_new_tokens` and the prompt."
        )
    if summary.get("truncated_share", 0) > WARNING_SHARE:
        found.append(
            f"{100 * summary['truncated_share']:.1f} % of the rollouts are cut off at "
            f"`max_new_tokens`={summary['max_new_tokens']} and count as not right unless they mark an answer. Raise "
            "it, or set `stop` if the policy goes on after its answer."
        )
    num_truncated, num_solutions = summary.get("num_truncated_solutions", 0), summary.get("num_solutions", 0)
    if num_truncated > WARNING_SHARE * num_solutions:
        found.append(
            f"{num_truncated} of the {num_solutions} solutions are cut off at "
            f"`max_new_tokens`={summary['max_new_tokens']}: unless they mark an answer they have no outcome, and the "
            "label 0 at their last step. Raise it, or set `stop` if the policy goes on after its answer."
        )
    if summary.get("num_empty_solutions"):
        found.append(
            f"{summary['num_empty_solutions']} of the sampled solutions are empty and were left out, "
            f"{summary['num_solutions']} remain."
        )
    if summary.get("num_skipped_prefixes") or summary.get("num_skipped_prompts"):
        found.append(
            f"{summary['num_skipped_prefixes']} prefixes and {summary['num_skipped_prompts']} prompts are too long "
            f"for the context window with `max_new_tokens`={summary['max_new_tokens']}: they have no label. Lower it, "
            "or leave the rows out."
        )
    return found


_SUMMARY_LINES = (
    ("solutions", "num_solutions", "{:,}"),
    ("distinct solutions", "num_distinct_solutions", "{:,}"),
    ("solutions without a readable answer", "num_unanswered_solutions", "{:,}"),
    ("solutions cut off at the length limit", "num_truncated_solutions", "{:,}"),
    ("prefixes", "num_prefixes", "{:,}"),
    ("prefixes, equal ones once", "num_unique_prefixes", "{:,}"),
    ("rollouts", "num_rollouts", "{:,}"),
    ("tokens of rollouts", "num_tokens", "{:,}"),
    ("tokens of sampled solutions", "num_solution_tokens", "{:,}"),
    ("rollouts without a readable answer", "unparsed_share", "{:.1%}"),
    ("rollouts cut off at the length limit", "truncated_share", "{:.1%}"),
    ("seconds of sampling and verifying", "seconds", "{:,.0f}"),
    ("eta", "eta", "{:g}"),
)


def format_report(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = ["# Step labels", ""]
    if report["warnings"]:
        lines += [*(f"- **Warning:** {text}" for text in report["warnings"]), ""]
    lines += ["| What | Figure |", "|---|---|"]
    for name, key, how in _SUMMARY_LINES:
        if key in report["summary"]:
            lines.append(f"| {name} | {how.format(report['summary'][key])} |")
    columns = ("step", "steps", "labels", "mean", "at 0", "between", "at 1", "rollouts", "interval width")
    lines += ["", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for position, f in report["steps"].items():
        cells = [position, f"{f['num_steps']:,}", f"{f['num_labels']:,}", f"{f['mean_label']:.3f}"]
        cells += [f"{f[name]:.1%}" for name in ("share_0", "share_between", "share_1")]
        cells += [f"{f['mean_rollouts']:.1f}", f"{f['mean_width']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |".replace("nan%", "").replace("nan", ""))
    lines += ["", "The last step of a solution is in no row: its label is its own outcome."]
    return "\n".join(lines) + "\n"


def plot_labels(report: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draws the histogram of the labels into a PNG.

    Raises:
        ImportError: if Matplotlib is not installed (`pip install "trl-erprm[plots]"`).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8.0, 4.0), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, len(report["histogram"]) + 1)
    axes.stairs(report["histogram"], edges, fill=True, color="#0072B2")
    axes.set(xlabel="label (the last step of each solution left out)", ylabel="steps", xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    all_steps = report["steps"]["all"]
    if all_steps["num_labels"]:
        axes.set_title(
            f"{all_steps['num_labels']:,} labels: {all_steps['share_0']:.0%} at 0, {all_steps['share_1']:.0%} at 1",
            loc="left",
        )
    figure.savefig(path)
    return path


def write_report(
    output_dir: str | os.PathLike[str],
    rows: Iterable[Mapping[str, Any]] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `report.md` and, where Matplotlib is installed, `labels.png` into the directory of a run.

    Args:
        output_dir (`str` or `os.PathLike`):
            Directory of a finished run.
        rows, summary (*optional*):
            What the directory holds, if it is at hand; else `labels.jsonl` and `summary.json` are read.

    Returns:
        `dict`: the report, see [`quality_report`].

    Raises:
        FileNotFoundError: if the run is not finished.
    """
    directory = Path(output_dir)
    if rows is None or summary is None:
        rows, summary = _finished_run(directory)
    report = quality_report(rows, summary)
    write_atomically(directory / "report.md", format_report(report))
    if importlib.util.find_spec("matplotlib") is not None:
        plot_labels(report, directory / "labels.png")
    return report


def relabel_run(
    output_dir: str | os.PathLike[str],
    eta: float | str,
    interval_level: float = 0.95,
    eta_criterion: str = "reliability",
    eta_validation_share: float = 0.2,
) -> dict[str, Any]:
    """Makes the labels in the directory of a finished run anew, for another eta and without a rollout.

    Replaces `labels.jsonl` (and `labels.parquet`, if it is there), each whole or not at all, notes eta in the rows and
    in `summary.json`, and writes the report anew. Counts stay as they are.

    Args:
        output_dir (`str` or `os.PathLike`):
            Directory of a finished run.
        eta (`float` or `"auto"`):
            The new eta; `"auto"` chooses it, see [`~labeling.eta_choice.choose_eta`].
        interval_level (`float`, *optional*, defaults to `0.95`):
            Level of the intervals.
        eta_criterion, eta_validation_share (*optional*):
            How `"auto"` chooses; see [`LabelingConfig`].

    Returns:
        `dict`: the report, see [`quality_report`].

    Raises:
        FileNotFoundError: if the run is not finished.
    """
    directory = Path(output_dir)
    rows, summary = _finished_run(directory)
    eta = chosen_eta(rows, eta, eta_criterion, eta_validation_share)
    counts = [(row["num_correct"], row["num_rollouts"]) for row in rows]
    made = zip(labels_of_counts(counts, eta), *intervals_of_counts(counts, eta, interval_level), strict=True)
    for row, (labels, low, high) in zip(rows, made, strict=True):
        row.update(labels=labels, **dict(zip(INTERVAL_COLUMNS, (low, high), strict=True)), eta=eta)
    write_rows(directory, rows)
    summary = {**summary, "eta": eta}
    if (directory / "labels.parquet").exists():
        from datasets import Dataset

        write_parquet(directory, Dataset.from_parquet(str(directory / "labels.parquet")), rows)
    write_summary(directory, summary)
    return write_report(directory, rows, summary)


def write_rows(directory: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`labels.jsonl`, whole or not at all."""
    written = ({**row, "eta": _json_number(row["eta"])} for row in rows)
    write_atomically(
        directory / "labels.jsonl",
        "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in written),
    )


def write_summary(directory: Path, summary: Mapping[str, Any]) -> None:
    """`summary.json`, whole or not at all."""
    values = {**summary, "eta": _json_number(summary["eta"])} if "eta" in summary else summary
    write_atomically(directory / "summary.json", json.dumps(values, indent=2) + "\n")


def _json_number(eta: float) -> float | str:
    """Text where eta is infinite, which JSON has no number for."""
    return eta if math.isfinite(eta) else str(eta)


def write_parquet(directory: Path, like: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """`labels.parquet` with the features of the data set `like`, whole or not at all."""
    from datasets import Dataset, Features, Value

    temporary = directory / ".labels.parquet.tmp"
    try:
        features = Features({**like.features, "eta": Value("float64")})  # rows of an earlier version have none
        Dataset.from_list([dict(row) for row in rows], features=features).to_parquet(str(temporary))
        os.replace(temporary, directory / "labels.parquet")
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _finished_run(directory: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    for name in ("labels.jsonl", "summary.json"):
        if not (directory / name).exists():
            raise FileNotFoundError(
                f"`output_dir` must be the directory of a finished labelling run, got {str(directory)!r}, which has "
                f"no {name}. Start the labelling command again: it continues where it stopped."
            )
    summary = json.loads((directory / "summary.json").read_text())
    if "eta" in summary:  # of an earlier version without
        summary["eta"] = float(summary["eta"])
    return JsonlStore(directory / "labels.jsonl").read(), summary
