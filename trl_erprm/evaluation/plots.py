"""Plots, as PNG files. Matplotlib is imported when a plot is drawn: `pip install "trl-erprm[plots]"`.

Figures are made without pyplot, so the caller's backend, open figures and styles stay as they are. Those of a report
are narrow (480 pixels at the size of their text), so that they read on a phone.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..wording import counted
from .report import RFT_METRICS, check_rft_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_accuracy_curves", "plot_reliability", "plot_rft_iterations", "plot_search"]


class _LineStyle(NamedTuple):
    color: str
    marker: str
    dash: str
    width: float


# Colours of Okabe and Ito (told apart with every form of colour blindness), darkened so that a label in them reads on
# white. Marker and dash tell the lines apart without colour. Later ones are drawn on top.
_STYLES = {
    "oracle": _LineStyle("#666666", "s", ":", 1.8),
    "majority": _LineStyle("#00805C", "^", "--", 1.8),
    "greedy": _LineStyle("#A8457F", "v", "-.", 1.8),
    "best_of_n": _LineStyle("#C04A00", "D", "-", 2.6),
    "sampled": _LineStyle("#0072B2", "o", "-", 2.6),
}
_EMPHASIZED = ("sampled", "best_of_n")  # what a run is judged by
_TEXT, _MUTED, _GRID = "#222222", "#666666", "#E4E4E4"

_DPI = 160
_SIZE = (8.0, 5.0)  # inches: 1280 x 800 pixels; the text still reads where the file is shown 800 pixels wide
_LABEL_SIZE = 10.5  # points
_LABEL_GAP = 1.45 * _LABEL_SIZE  # points between the centres of two labels


def plot_rft_iterations(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    r"""Draws the accuracies of a rejection-sampling run over its iterations into one PNG.

    The same numbers as [`rft_table`] prints: a line for each metric, named at its end, and a band for the 95 %
    interval of the sampled accuracy.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            One row an iteration, the starting policy first, with the keys that [`rft_table`] describes. Metrics are
            shares in [0, 1], higher is better; a metric that is `None` in a row leaves a gap, one that is `None` in
            all of them is left out.
        path (`str` or `os.PathLike`):
            File to write; folders are made, an existing file is replaced.

    Returns:
        `Path`: the file.

    Raises:
        ImportError: if Matplotlib is not installed.
        ValueError: if the rows are not what [`rft_table`] accepts.

    Example:

    ```python
    >>> row = {"iteration": 0, "greedy": 0.46, "sampled": 0.47, "sampled_low": 0.44, "sampled_high": 0.50}
    >>> row |= {"best_of_n": 0.62, "majority": 0.56, "oracle": 0.93, "n": 8, "num_problems": 200}
    >>> plot_rft_iterations([row, row | {"iteration": 1, "greedy": 0.6}], "outputs/rft.png")  # doctest: +SKIP
    PosixPath('outputs/rft.png')

    ```
    """
    rows = check_rft_rows(rows)
    with _default_style():
        figure = _draw_rft_iterations(rows)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    return path


def _draw_rft_iterations(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.125, 0.575, 0.715))

    iterations = [row["iteration"] for row in rows]
    ends: dict[str, tuple[float, float]] = {}
    shown: list[float] = []
    for z_order, (metric, style) in enumerate(_STYLES.items(), start=3):
        values = [None if row[metric] is None else 100 * row[metric] for row in rows]
        known = [(i, value) for i, value in zip(iterations, values, strict=True) if value is not None]
        if not known:
            continue
        ends[metric] = known[-1]
        shown += [value for _, value in known]
        axes.plot(
            iterations,
            [float("nan") if value is None else value for value in values],
            color=style.color,
            linestyle=style.dash,
            linewidth=style.width,
            marker=style.marker,
            markersize=6.5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            clip_on=False,  # a marker at 0 % or 100 % must not be cut in half
            zorder=z_order,
            label=metric,
        )

    band = [row for row in rows if row["sampled_low"] is not None and row["sampled_high"] is not None]
    low, high = ([100 * row[key] for row in band] for key in ("sampled_low", "sampled_high"))
    shown += low + high
    color, band_iterations = _STYLES["sampled"].color, [row["iteration"] for row in band]
    if len(band) > 1:
        axes.fill_between(band_iterations, low, high, color=color, alpha=0.16, linewidth=0, label="interval")
    elif band:  # a band has no width at one iteration
        axes.vlines(band_iterations, low, high, color=color, alpha=0.35, linewidth=6, label="interval")

    margin = 0.04 * (max(iterations) - min(iterations)) or 0.5
    axes.set_xlim(min(iterations) - margin, max(iterations) + margin)
    if shown:
        padding = max(0.07 * (max(shown) - min(shown)), 2.0)
        axes.set_ylim(max(0.0, min(shown) - padding), min(100.0, max(shown) + padding))

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(rows) == 1:  # the locator would take the margins for iterations
        axes.set_xticks(iterations)
    axes.yaxis.set_major_formatter(PercentFormatter(symbol=" %"))
    axes.set_xlabel("Iteration (0: the starting policy)", fontsize=10.5, color=_TEXT, labelpad=8)
    axes.tick_params(length=0, labelsize=10, labelcolor=_MUTED, pad=6)
    axes.grid(axis="y", color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")

    title = "Accuracy by iteration of rejection-sampling fine-tuning"
    figure.text(0.03, 0.945, title, fontsize=13.5, weight="bold", color=_TEXT, va="center")
    note = f"{counted(rows[-1]['num_problems'], 'held-out problem')}, n = {counted(rows[-1]['n'], 'completion')} each"
    if band:
        note += "; shaded: 95 % interval of the sampled accuracy"
    figure.text(0.03, 0.893, note, fontsize=10, color=_MUTED, va="center")
    _label_line_ends(axes, ends, rows[-1]["n"])
    return figure


def _label_line_ends(axes: "Axes", ends: Mapping[str, tuple[float, float]], n: int) -> None:
    """Writes name and last value of each line to its right, with a leader; labels too near are moved apart."""
    points_per_pixel = 72 / _DPI
    frame = axes.get_window_extent()
    bottom, right, top = (points_per_pixel * edge for edge in (frame.y0, frame.x1, frame.y1))
    order = sorted(ends, key=lambda metric: ends[metric][1])
    points = {metric: points_per_pixel * axes.transData.transform(ends[metric]) for metric in order}
    heights = _spread([points[metric][1] for metric in order], _LABEL_GAP, bottom, top)
    for metric, height in zip(order, heights, strict=True):
        x, y = points[metric]
        color = _STYLES[metric].color
        axes.annotate(
            f"{RFT_METRICS[metric].format(n=n)}  {ends[metric][1]:.1f} %",
            xy=(x + 5, y),  # beside the marker
            xytext=(right + 14, height),
            xycoords="figure points",
            textcoords="figure points",
            fontsize=_LABEL_SIZE,
            weight="bold" if metric in _EMPHASIZED else "normal",
            color=color,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8, "alpha": 0.7, "relpos": (0, 0.5)}
            | {"shrinkA": 2, "shrinkB": 0},
        )


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights at least `gap` apart, as near to `wanted` (ascending) as can be, within `low` and `high` if they fit.

    Neighbours that are too near form a block around the mean of what they want (pool adjacent violators).

    Example:

    ```python
    >>> _spread([10, 11, 50], gap=10, low=0, high=100)
    [5.5, 15.5, 50.0]

    ```
    """
    # In shifted heights, wanted[i] - i * gap, "at least gap apart" reads "not descending".
    blocks: list[tuple[float, int]] = []  # sum of the shifted wishes, number of labels
    for index, height in enumerate(wanted):
        total, number = height - index * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / number:
            previous_total, previous_number = blocks.pop()
            total, number = total + previous_total, number + previous_number
        blocks.append((total, number))
    shifted = [total / number for total, number in blocks for _ in range(number)]
    highest = high - (len(shifted) - 1) * gap  # in shifted heights each end of the frame is one bound for all labels
    return [float(max(min(value, highest), low) + index * gap) for index, value in enumerate(shifted)]


# ---------------------------------------------------------------------------------------------------------------------
# Of a report


# The colours of Okabe and Ito, darkened as above; markers and, behind the eighth, dashes tell lines apart as well.
_COLORS = ("#0072B2", "#C04A00", "#00805C", "#A8457F", "#8A6D00", "#2F8FC4", "#222222", "#8B5A2B")
_MARKERS = "oD^vsPX*"
_NARROW = 4.8  # inches, 960 pixels: shown 480 pixels wide, 9 points are 12 pixels
_NARROW_DPI = 200
_SMALL = 9  # points
_LONGEST_NAME = 26  # characters of a name in a legend of two columns


def plot_accuracy_curves(
    metrics: Mapping[str, Any],
    path: str | os.PathLike[str],
    aggregation: str | None = None,
    votes: bool = False,
) -> Path:
    r"""Draws accuracy against n, the number of candidates, with a line for each scorer, into one PNG.

    Majority vote, one candidate at random and the oracle (pass@n) are drawn beside.

    Args:
        metrics (`Mapping[str, Any]`):
            What [`~evaluation.comparison.compare_scorers`] gives.
        path (`str` or `os.PathLike`):
            File to write; folders are made, an existing file is replaced.
        aggregation (`str`, *optional*):
            Aggregation of the step scores; if `None`, each scorer's own.
        votes (`bool`, *optional*, defaults to `False`):
            Draw votes weighted by scores in place of best of n.

    Returns:
        `Path`: the file.

    Raises:
        ImportError: if Matplotlib is not installed.
        KeyError: if `metrics` hold no such aggregation.
    """
    key = "weighted_majority" if votes else "best_of_n"
    sizes = list(range(1, metrics["num_candidates"] + 1))
    curves = {}
    for name, scorer in metrics["scorers"].items():
        how = aggregation or scorer["aggregation"]
        name = name if how == (aggregation or metrics["aggregation"]) else f"{name} ({how})"
        if key in scorer["aggregations"][how]:
            curves[name] = scorer["aggregations"][how][key]["accuracy"]
    baselines = {
        "oracle (pass@n)": (metrics["oracle"]["accuracy"], ":"),
        "majority vote": (metrics["majority"]["accuracy"], "--"),
        "one at random": ([metrics["random"]["accuracy"]] * len(sizes), "-."),
    }
    title = f"{'Weighted vote' if votes else 'Best of n'}, {aggregation or metrics['aggregation']} of the step scores"
    with _default_style():
        figure, axes = _narrow_figure(title, num_entries=len(curves) + len(baselines))
        marked = [i for i, n in enumerate(sizes) if n & (n - 1) == 0 or n == sizes[-1]]  # powers of two, and the end
        for name, (values, dash) in baselines.items():
            axes.plot(sizes, [100 * v for v in values], color=_MUTED, linestyle=dash, linewidth=1.5, label=name)
        for index, (name, values) in enumerate(curves.items()):
            axes.plot(
                sizes,
                [100 * v for v in values],
                markevery=marked,
                label=_short(name),
                **_scorer_style(index),
                zorder=3,
            )
        if len(sizes) > 1:
            axes.set_xscale("log", base=2)
        axes.set_xticks([sizes[i] for i in marked], [str(sizes[i]) for i in marked])
        axes.minorticks_off()
        return _finish(figure, axes, path, "candidates n", "right answers")


def plot_reliability(calibration: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    r"""Draws reliability diagrams: the share of right outcomes against the score, a line for each scorer.

    Args:
        calibration (`Mapping[str, Mapping]`):
            By scorer `bins`, each with `mean_score`, `mean_outcome`, `outcome_low` and `outcome_high` in [0, 1], as
            [`~evaluation.comparison.calibrate_scorers`] gives them.
        path (`str` or `os.PathLike`):
            File to write; folders are made, an existing file is replaced.

    Returns:
        `Path`: the file.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    with _default_style():
        figure, axes = _narrow_figure("Step score against outcome", num_entries=len(calibration) + 1, square=True)
        axes.plot([0, 100], [0, 100], color=_MUTED, linestyle=":", linewidth=1.5, label="score = share of right")
        for index, (name, of_scorer) in enumerate(calibration.items()):
            style, bins = _scorer_style(index), of_scorer["bins"]
            x, y, low, high = (
                [100 * of_bin[key] for of_bin in bins]
                for key in ("mean_score", "mean_outcome", "outcome_low", "outcome_high")
            )
            axes.plot(x, y, label=_short(name), **style, zorder=3)
            axes.vlines(x, low, high, color=style["color"], alpha=0.3, linewidth=1.2)
        axes.set_xlim(-2, 102)
        axes.set_ylim(-2, 102)
        return _finish(figure, axes, path, "mean score of the bin", "right outcomes", percent_x=True)


def plot_search(points: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    r"""Draws accuracy against generated tokens a problem: test-time search and best of n at one budget.

    Args:
        points (`Sequence[Mapping]`):
            `method`, `num_tokens` (mean of a problem, with all that was thrown away), `accuracy`, and `low` and `high`
            of its interval, shares in [0, 1]. Points of one method are joined by tokens.
        path (`str` or `os.PathLike`):
            File to write; folders are made, an existing file is replaced.

    Returns:
        `Path`: the file.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    methods = list(dict.fromkeys(point["method"] for point in points))
    with _default_style():
        figure, axes = _narrow_figure("Accuracy against what it costs", num_entries=len(methods))
        for index, method in enumerate(methods):
            own = sorted((p for p in points if p["method"] == method), key=lambda point: point["num_tokens"])
            x, style = [point["num_tokens"] for point in own], _scorer_style(index)
            axes.plot(x, [100 * point["accuracy"] for point in own], label=_short(method), **style, zorder=3)
            ends = [[100 * point[key] for point in own] for key in ("low", "high")]
            axes.vlines(x, *ends, color=style["color"], alpha=0.3, linewidth=1.2)
        axes.set_xscale("log", base=2)
        ticks = sorted({2 ** round(math.log2(point["num_tokens"])) for point in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        return _finish(figure, axes, path, "generated tokens a problem", "right answers")


def _narrow_figure(title: str, num_entries: int, square: bool = False) -> "tuple[Figure, Axes]":
    """A figure whose legend of two columns, with so many entries, stands below the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot, legend = (4.1 if square else 3.1), 0.2 * math.ceil(num_entries / 2) + 0.1
    height = 0.6 + plot + 0.5 + legend  # inches: titles, axes, labels of the x axis, legend
    figure = Figure(figsize=(_NARROW, height), dpi=_NARROW_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.14, (legend + 0.5) / height, 0.83, plot / height))
    figure.text(0.03, 1 - 0.2 / height, title, fontsize=10.5, weight="bold", color=_TEXT, va="center")
    return figure, axes


def _scorer_style(index: int) -> dict[str, Any]:
    return {
        "color": _COLORS[index % len(_COLORS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": ("-", (0, (4, 1.5)), (0, (1, 1)))[index // len(_COLORS) % 3],
        "linewidth": 1.6,
        "markersize": 4.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def _finish(
    figure: "Figure", axes: "Axes", path: str | os.PathLike[str], x_label: str, y_label: str, percent_x: bool = False
) -> Path:
    axes.yaxis.set_major_formatter("{x:g} %")
    if percent_x:
        axes.xaxis.set_major_formatter("{x:g} %")
    axes.set_xlabel(x_label, fontsize=_SMALL, color=_TEXT)
    axes.set_title(y_label, fontsize=_SMALL, color=_TEXT, loc="left")  # beside the axis it would need a margin
    axes.tick_params(length=0, labelsize=_SMALL, labelcolor=_MUTED)
    axes.grid(axis="both" if percent_x else "y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")
    figure.legend(loc="lower left", ncols=2, fontsize=_SMALL, frameon=False, bbox_to_anchor=(0.02, 0), borderpad=0)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


_STYLE_KEYS = ("axes.", "figure.", "font.", "grid.", "lines.", "mathtext.", "patch.", "path.", "savefig.", "text.")
_STYLE_KEYS += ("xtick.", "ytick.")


@contextmanager
def _default_style() -> Iterator[None]:
    """Matplotlib's own defaults in place of the caller's style, which comes back afterwards; the backend is left."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            'Plots need Matplotlib, which is not installed. Run `pip install "trl-erprm[plots]"`, or use the table '
            "(`rft_table`), which needs nothing more."
        ) from error
    with matplotlib.rc_context():
        defaults = matplotlib.rcParamsDefault
        matplotlib.rcParams.update({key: defaults[key] for key in defaults if key.startswith(_STYLE_KEYS)})
        yield
