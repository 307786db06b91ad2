"""The report of a comparison: one HTML file that needs nothing else, PNGs, and the numbers as JSON.

    output_dir/
      report.html        tables with intervals and the plots; no network, no scripts; light and dark; reads on a phone
      metrics.json       every number of it, and those for all n and aggregations
      *.png              the plots alone

The files are made under other names and moved when all are whole, `report.html` last: where it is, it is complete and
belongs to the `metrics.json` beside it. A run that fails leaves none.
"""

import base64
import html
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..wording import counted
from .comparison import MAJORITY, headline_pairs
from .paired import holm
from .plots import plot_accuracy_curves, plot_reliability, plot_search

__all__ = ["html_report", "write_report"]

PAGE = "report.html"
METRICS = "metrics.json"


def write_report(metrics: Mapping[str, Any], output_dir: str | os.PathLike[str], title: str = "Best of n") -> Path:
    """Writes `report.html`, `metrics.json` and the plots.

    Args:
        metrics (`Mapping[str, Any]`):
            What [`~evaluation.comparison.compare_scorers`] gives; and, where they are known, these sections:

            - `calibration`: by scorer, what [`~evaluation.comparison.calibrate_scorers`] gives.
            - `steps`: by scorer, a dictionary of step-level measures: name and number, or its mean and interval.
            - `search`: points for [`~evaluation.plots.plot_search`], each with its `n` (candidates or beams).
            - `settings`: name and value of what the run was given.
        output_dir (`str` or `os.PathLike`):
            Directory; made where it is missing. Other files in it stay.
        title (`str`, *optional*, defaults to `"Best of n"`):
            Heading of the page.

    Returns:
        `Path`: the page.

    Raises:
        ImportError: if Matplotlib is not installed, before anything is written.
    """
    directory = Path(output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".report-") as made:
        plots = _draw(metrics, Path(made))
        images = {name: path.read_bytes() for name, path in plots.items()}
        (Path(made) / METRICS).write_text(_readable_json(metrics), encoding="utf-8")
        (Path(made) / PAGE).write_text(html_report(metrics, images, title), encoding="utf-8")
        (directory / PAGE).unlink(missing_ok=True)  # until all is there, there is no report
        for path in [*plots.values(), Path(made) / METRICS, Path(made) / PAGE]:
            os.replace(path, directory / path.name)
    return directory / PAGE


def html_report(metrics: Mapping[str, Any], images: Mapping[str, bytes], title: str = "Best of n") -> str:
    """The page as text.

    Args:
        metrics (`Mapping[str, Any]`):
            As for [`write_report`].
        images (`Mapping[str, bytes]`):
            PNGs by name: `best_of_n`, `weighted_vote`, `best_of_n_<aggregation>`, `reliability`, `search`. One that is
            missing is left out.
        title (`str`, *optional*, defaults to `"Best of n"`):
            Heading of the page.

    Returns:
        `str`: HTML, with the images inside. Equal input gives an equal page.
    """
    n, aggregation = metrics["num_candidates"], metrics["aggregation"]
    owns = {name: scorer["aggregation"] for name, scorer in metrics["scorers"].items()}
    exceptions = "".join(f" {_text(name)}: by {how}." for name, how in owns.items() if how != aggregation)
    body = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{counted(metrics['num_problems'], 'problem')}, {counted(n, 'candidate')} each, "
        f"{counted(len(metrics['scorers']), 'scorer')}. Intervals are 95 %, over problems.</p>",
        *(f'<p class="note">{_text(note)}</p>' for note in metrics["notes"]),
        _section(
            f"Best of {n}",
            f"Accuracy when one of {counted(n, 'candidate')} is chosen, by {aggregation} of its step "
            f"scores.{exceptions}",
            _method_table(metrics),
            _image(images, "best_of_n", "Accuracy against the number of candidates, for each scorer"),
        ),
        _section(
            "Which is better?",
            "Differences on the same candidates, in points. The interval is a paired bootstrap over problems; p is "
            "the exact McNemar test, raised (Holm) for the number of tests in its table. Where the interval holds 0, "
            "these problems do not tell the two apart.",
            *_pair_tables(headline_pairs(metrics)),
        ),
        _section(
            "Every aggregation",
            f"Accuracy at n = {n}. A choice of the best cell of many is a choice by luck, too.",
            _aggregation_table(metrics, "best_of_n", "Best of n"),
            _details(
                "Best of n by the other aggregations",
                *(_image(images, f"best_of_n_{how}", f"Accuracy by {how}") for how in _aggregations(metrics)),
            ),
        ),
        _section(
            "Votes weighted by scores",
            "Each answer gets the sum of the scores of its candidates; answers that are equal in value share it. "
            f"Majority vote without weights: {_percent(metrics['majority']['accuracy'][-1])}.",
            _aggregation_table(metrics, "weighted_majority", "Weighted vote"),
            _image(images, "weighted_vote", "Accuracy of weighted votes"),
        ),
        _size_tables(metrics),
        *_optional_sections(metrics, images),
        _methods(metrics),
    ]
    return _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(part for part in body if part))


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _draw(metrics: Mapping[str, Any], directory: Path) -> dict[str, Path]:
    plots = {"best_of_n": plot_accuracy_curves(metrics, directory / "best_of_n.png")}
    if any(
        "weighted_majority" in of_how for s in metrics["scorers"].values() for of_how in s["aggregations"].values()
    ):
        plots["weighted_vote"] = plot_accuracy_curves(metrics, directory / "weighted_vote.png", votes=True)
    own = {scorer["aggregation"] for scorer in metrics["scorers"].values()}
    for how in _aggregations(metrics):
        if own != {how}:  # else it is the first plot
            file_name = f"best_of_n_{re.sub(r'[^A-Za-z0-9.]+', '_', how).strip('_')}.png"  # softmin(0.5)
            plots[f"best_of_n_{how}"] = plot_accuracy_curves(metrics, directory / file_name, how)
    if metrics.get("calibration"):
        plots["reliability"] = plot_reliability(metrics["calibration"], directory / "reliability.png")
    if metrics.get("search"):
        plots["search"] = plot_search(metrics["search"], directory / "search.png")
    return plots


def _readable_json(metrics: Mapping[str, Any]) -> str:
    """JSON with a list of numbers on one line."""
    text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def _method_table(metrics: Mapping[str, Any]) -> str:
    """Scorers by accuracy, then what they are held against, with interval and bar."""
    scorers = []
    for name, scorer in metrics["scorers"].items():
        curve = scorer["aggregations"][scorer["aggregation"]]["best_of_n"]
        scorers.append((name, [curve[key][-1] for key in ("accuracy", "low", "high")]))
    scorers.sort(key=lambda entry: -entry[1][0])
    baselines = [
        (name, [metrics[key][end][-1] for end in ("accuracy", "low", "high")])
        for name, key in ((MAJORITY, "majority"), ("oracle (pass@n)", "oracle"))
    ]
    baselines.append(("one at random", [metrics["random"][key] for key in ("accuracy", "low", "high")]))
    everything = [values for _, values in scorers + baselines]
    low, high = min(values[1] for values in everything), max(values[2] for values in everything)
    rows = []
    for kind, entries in (("", scorers), ("baseline", baselines)):
        for name, (value, start, end) in entries:
            found = f"<b>{_percent(value)}</b> <small>{_percent(start, unit='')} – {_percent(end, unit='')}</small>"
            rows.append(_row([_name(name), found, _bar(value, start, end, low, high)], kind))
    return _table(["", "right", ""], rows, "bars")


def _pair_tables(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    groups: dict[str, list[Mapping[str, Any]]] = {"Against majority vote": [], "Weighted vote against majority": []}
    groups["Against each other"] = []
    for pair in pairs:
        if pair["second"] != MAJORITY:
            groups["Against each other"].append(pair)
        elif pair["first"].endswith(", weighted vote"):
            groups["Weighted vote against majority"].append(pair)
        else:
            groups["Against majority vote"].append(pair)
    tables = []
    for heading, members in groups.items():
        if not members:
            continue
        reach = max(max(abs(pair[key]) for pair in members for key in ("low", "high")), 1e-9)
        corrected = holm([pair["p_value"] for pair in members])
        rows = []
        for pair, p_value in zip(members, corrected, strict=True):
            first = pair["first"].removesuffix(", weighted vote")
            name = _name(first) if pair["second"] == MAJORITY else f"{_name(first)}<br>− {_name(pair['second'])}"
            found = (
                f"<b>{_points(pair['difference'])}</b> <small>{_points(pair['low'])} … {_points(pair['high'])}</small>"
            )
            counts = f"{_p(p_value)} <small>{pair['only_first']} : {pair['only_second']}</small>"
            excludes = pair["low"] > 0 or pair["high"] < 0
            bar = _bar(pair["difference"], pair["low"], pair["high"], -reach, reach, zero=True)
            rows.append(_row([name, found, counts, bar], "tells" if excludes else ""))
        tables += [f"<h3>{heading}</h3>", _table(["", "points", "p", ""], rows, "bars pairs")]
    tables.append(
        '<p class="small">Beside p: on how many problems the first alone, and the second alone, is right. Shaded: the '
        "interval excludes 0.</p>"
    )
    return tables


def _aggregation_table(metrics: Mapping[str, Any], key: str, what: str) -> str:
    hows = _aggregations(metrics)
    rows = []
    for name, scorer in metrics["scorers"].items():
        cells = []
        for how in hows:
            curve = scorer["aggregations"][how].get(key)
            spread = "" if curve is None else f' title="{_percent(curve["low"][-1])} – {_percent(curve["high"][-1])}"'
            cells.append("–" if curve is None else f"<span{spread}>{_percent(curve['accuracy'][-1], unit='')}</span>")
        rows.append(_row([_name(name), *cells]))
    return _table([f"{what}, %", *map(_text, hows)], rows, "grid")


def _size_tables(metrics: Mapping[str, Any]) -> str:
    """Accuracy at several n, over all subsets and of the first n candidates."""
    most = metrics["num_candidates"]
    sizes = [n for n in range(1, most + 1) if n & (n - 1) == 0 or n == most]
    curves = {
        name: scorer["aggregations"][scorer["aggregation"]]["best_of_n"] for name, scorer in metrics["scorers"].items()
    } | {MAJORITY: metrics["majority"], "oracle (pass@n)": metrics["oracle"]}
    tables = []
    for key, what in (("accuracy", "All subsets, %; n ="), ("first_n", "First n, %; n =")):
        rows = [
            _row([_name(name), *(_percent(curve[key][n - 1], unit="") for n in sizes)])
            for name, curve in curves.items()
        ]
        tables.append(_table([what, *map(str, sizes)], rows, "grid"))
    note = "The first n candidates are one draw: what a single run shows. All subsets are the mean of every such draw."
    return _details("Every power of two, and the first n candidates alone", f"<p>{note}</p>", *tables)


def _optional_sections(metrics: Mapping[str, Any], images: Mapping[str, bytes]) -> list[str]:
    sections = []
    if metrics.get("steps"):
        measures = dict.fromkeys(key for of_scorer in metrics["steps"].values() for key in of_scorer)
        measures = [key for key in measures if not key.startswith("num_")]  # counts stand in metrics.json
        rows = [
            _row([_name(name), *(_number(of_scorer.get(key)) for key in measures)])
            for name, of_scorer in metrics["steps"].items()
        ]
        heads = ["", *(_text(key.removesuffix("_accuracy").replace("_", " ")) for key in measures)]
        sections.append(
            _section(
                "Step by step",
                "What the scores say of single steps, against verdicts on these steps. Step pair: of a right and a "
                "wrong prefix of one problem and length, how often the right one scores higher. First-error F1 is "
                "ProcessBench's, with a threshold chosen on other problems.",
                _table(heads, rows, "grid"),
            )
        )
    if metrics.get("calibration"):
        rows = []
        for name, of_scorer in metrics["calibration"].items():
            brier, on_last = of_scorer["outcome_brier"], of_scorer["min_on_last"]
            rows.append(
                _row(
                    [
                        _name(name)
                        + (f" <small>eta {of_scorer['eta']:g} taken back</small>" if of_scorer["eta"] else ""),
                        f"{of_scorer['calibration_error']:.3f} "
                        f"<small>noise {of_scorer['calibration_error_if_perfect']:.3f}</small>",
                        f"{brier[0]:.3f} <small>{brier[1]:.3f} – {brier[2]:.3f}</small>",
                        f"{_percent(on_last['share'][0])} <small>chance {_percent(on_last['chance'], unit='')}</small>"
                        if on_last
                        else "–",
                    ]
                )
            )
        sections.append(
            _section(
                "Calibration",
                "Each candidate is one rollout from each of its own steps, so a step score that is a success "
                "probability should equal the share of right answers among candidates with such a score. That holds "
                "for the policy that wrote the candidates: a PRM that was trained on rollouts of another may be right "
                "about that one. Where a PRM is known to have learnt labels of some eta, its scores are taken back to "
                "probabilities first, which magnifies their errors where eta is large. Lower is better for both "
                "errors, and noise is what perfect scores would show. Where the lowest score is the last step's far "
                "more often than by chance, the model judges the answer rather than the steps.",
                _table(["", "calibration error", "Brier score", "last step lowest"], rows, "grid wide"),
                _image(images, "reliability", "Share of right outcomes against the step score"),
            )
        )
    if metrics.get("search"):
        rows = [
            _row(
                [
                    _name(point["method"]),
                    f"{point['n']:,}",
                    f"{point['num_tokens']:,.0f}",
                    f"<b>{_percent(point['accuracy'])}</b> <small>{_percent(point['low'])} – {_percent(point['high'])}"
                    "</small>",
                ]
            )
            for point in metrics["search"]
        ]
        sections.append(
            _section(
                "Search against best of n",
                "Tokens are all that the policy generated for a problem, with what was thrown away.",
                _image(images, "search", "Accuracy against generated tokens"),
                _table(["", "n", "tokens", "right"], rows, "grid"),
            )
        )
    return sections


def _methods(metrics: Mapping[str, Any]) -> str:
    unscored = {name: scorer["num_unscored"] for name, scorer in metrics["scorers"].items() if scorer["num_unscored"]}
    items = [
        "Accuracy at n is the mean over all subsets of n candidates: exact for best of n and the oracle (order "
        "statistics); for votes over all subsets where there are few, else over draws with a fixed seed.",
        "Ties: a subset keeps the order of the pool; of equal scores, or equal votes, the first is chosen.",
        "A candidate without score is never chosen before one that has one, and counts as wrong. An answer that "
        "cannot be read casts no vote.",
        "Intervals of one accuracy are Wilson's, for problems as clusters; of a difference, percentile bootstrap. "
        f"Where two never differ, its width is 0, which is not certainty: up to {min(3, metrics['num_problems'])} in "
        f"{counted(metrics['num_problems'], 'problem')} of this kind may still tell them apart (95 %).",
        "p is McNemar's test on the first n candidates, one outcome a problem.",
    ]
    items += [f"{_text(name)}: {counted(number, 'candidate')} without a score." for name, number in unscored.items()]
    items += [f"{_text(key)}: {_text(value)}" for key, value in metrics.get("settings", {}).items()]
    entries = "".join(f"<li>{item}</li>" for item in items)
    return _details("How these numbers are made", f"<ul>{entries}</ul>")


# ---------------------------------------------------------------------------------------------------------------------
# Pieces


def _section(heading: str, explanation: str, *parts: str) -> str:
    parts = [part for part in parts if part]
    return "\n".join([f"<section><h2>{_text(heading)}</h2>", f"<p>{explanation}</p>", *parts, "</section>"])


def _details(summary: str, *parts: str) -> str:
    parts = [part for part in parts if part]
    return "\n".join(["<details>", f"<summary>{_text(summary)}</summary>", *parts, "</details>"]) if parts else ""


def _table(heads: Sequence[str], rows: Sequence[str], kind: str) -> str:
    head = "".join(f"<th>{text}</th>" for text in heads)
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>\n' + "\n".join(rows) + "</table></div>"


def _row(cells: Sequence[str], kind: str = "") -> str:
    first, *rest = cells
    opening = f'<tr class="{kind}">' if kind else "<tr>"
    return f"{opening}<th>{first}</th>" + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"


def _bar(value: float, start: float, end: float, low: float, high: float, zero: bool = False) -> str:
    """An interval and its middle on a scale from `low` to `high`."""

    def place(x: float) -> float:  # per cent from the left, with room for half a dot at both ends
        return 4 + 92 * (x - low) / (high - low) if high > low else 50.0

    line = '<i class="zero"></i>' if zero else ""
    width = max(place(end) - place(start), 0.5)
    return (
        f'<div class="bar">{line}<i class="span" style="left:{place(start):.1f}%;width:{width:.1f}%"></i>'
        f'<i class="dot" style="left:{place(value):.1f}%"></i></div>'
    )


def _image(images: Mapping[str, bytes], name: str, description: str) -> str:
    if name not in images:
        return ""
    data = base64.b64encode(images[name]).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{_text(description)}">'


def _aggregations(metrics: Mapping[str, Any]) -> list[str]:
    return list(next(iter(metrics["scorers"].values()))["aggregations"])


def _text(value: object) -> str:
    return html.escape(str(value))


def _name(value: object) -> str:
    """The name of a scorer, which may be broken behind an underscore, a hyphen or a slash."""
    return re.sub(r"([_/-])", r"\1<wbr>", _text(value))


def _percent(share: float, unit: str = " %") -> str:
    return f"{100 * share:.1f}{unit}"


def _points(share: float) -> str:
    rounded = round(100 * share, 1) or 0.0  # no "-0.0"
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def _p(value: float) -> str:
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _number(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, list):
        mean, low, high = value
        return f"{mean:.3f} <small>{low:.3f} – {high:.3f}</small>"
    return f"{value:.3f}"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { --text: #1d1d1f; --muted: #63636b; --line: #dcdce0; --back: #ffffff; --soft: #f4f4f6; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ececf0; --muted: #a2a2ab; --line: #3c3c42; --back: #17171a; --soft: #222226; --mark: #5db3ea; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 46rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .4rem 0 .8rem; }
.note { padding: .6rem .8rem; border-left: 3px solid var(--mark); background: var(--soft); font-size: .9rem; }
.small, small { color: var(--muted); font-size: .8rem; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .35rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr > th { text-align: left; font-weight: 500; }
tr > th:first-child { padding-left: 0; overflow-wrap: anywhere; min-width: 6.5rem; }
tr:first-child > th { color: var(--muted); font-weight: 400; font-size: .8rem; }
td { text-align: right; }
tr:first-child > th:not(:first-child) { text-align: right; }
td small, th small { display: block; }
td small { white-space: nowrap; }
.grid td, .bars td { white-space: nowrap; }
.bars td:last-child { width: 42%; min-width: 6rem; padding-right: 0; }
.pairs td:last-child { width: 27%; min-width: 4.5rem; }
.baseline > th, .baseline > td, .baseline b { color: var(--muted); font-weight: 400; }
.tells > * { background: var(--soft); }
.bar { position: relative; height: 1rem; }
.bar i { position: absolute; top: 0; bottom: 0; }
.bar .span { top: .42rem; bottom: .42rem; background: var(--mark); opacity: .45; border-radius: 2px; }
.bar .dot { top: .26rem; bottom: .26rem; width: .48rem; margin-left: -.24rem; border-radius: 50%;
  background: var(--mark); }
.bar .zero { left: 50%; border-left: 1px solid var(--muted); }
.baseline .span, .baseline .dot { background: var(--muted); }
img { display: block; width: 100%; max-width: 480px; height: auto; margin: 1rem auto; background: #fff;
  border-radius: 6px; }
details { margin: 1.6rem 0; border-top: 1px solid var(--line); padding-top: .6rem; }
summary { cursor: pointer; font-weight: 500; padding: .3rem 0; }
ul { padding-left: 1.2rem; }
li { margin: .3rem 0; font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 480px) {
  .grid th, .grid td { padding-left: .2rem; padding-right: .2rem; font-size: .8rem; }
  .grid tr > th:first-child { min-width: 4rem; }
}
"""
