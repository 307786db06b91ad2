"""The figures of the report. Matplotlib is imported when one is drawn."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .config import StudyConfig, read_label
from .paired import mean_over_seeds
from .pool import expected_labels
from .results import Results, best_of_n

# Colours of Okabe and Ito, told apart with every form of colour blindness; markers tell lines apart without colour.
_COLORS = ("#0072B2", "#C04A00", "#E69F00", "#00805C", "#A8457F", "#56B4E9", "#000000", "#666666", "#B8860B")
_MARKERS = "osD^vP*Xh"
_MUTED, _GRID = "#666666", "#E4E4E4"


def draw_figures(results: Results, directory: Path) -> dict[str, str]:
    """
    Draws what has results, a file a difficulty and figure. Without matplotlib there are no figures, and a line on the
    console says so: the tables of a long run shall not be lost for it.

    Returns:
        `dict[str, str]`: by `"<difficulty>: <title>"`, the name of the file in the directory.
    """
    if importlib.util.find_spec("matplotlib") is None:
        print("No figures are drawn: matplotlib is missing. Install it (the extra `plots`), then run --report_only.")
        return {}
    drawings: dict[str, tuple[str, Callable[[Results, str], Any]]] = {
        "best_of_n": ("right answers of best of n", _best_of_n),
        "scores": ("where the labels differ: score by exact success probability", _scores),
        "policies": ("policies trained with each PRM", _policies),
    }
    images = {}
    for difficulty in results.config.difficulties:
        for name, (title, draw) in drawings.items():
            figure = draw(results, difficulty)
            if figure is None:
                continue
            path = directory / f"{name}_{difficulty}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=130)
            images[f"{difficulty}: {title}"] = path.name
    return images


def _figure(num_panels: int, columns: int = 3) -> tuple[Any, np.ndarray]:
    from matplotlib.figure import Figure

    columns = min(columns, num_panels)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(3.6 * columns, 3.1 * rows + 0.7), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for panel in axes:
        panel.grid(color=_GRID)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    for panel in axes[num_panels:]:
        panel.set_visible(False)
    return figure, axes[:num_panels]


def _style(config: StudyConfig, label: str, num_seeds: int) -> dict[str, Any]:
    """How a label's line looks, and its name: with the number of its seeds where some are missing."""
    index = config.labels.index(label)
    name = label if num_seeds == len(config.seeds) else f"{label} (n = {num_seeds})"
    color, marker = _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]
    return {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.4, "label": name}


def _best_of_n(results: Results, difficulty: str) -> Any:
    """A panel an aggregation: accuracy by n, mean over seeds."""
    config, pools = results.config, list(results.of("pool", difficulty).values())
    sizes, aggregations = config.best_of_n["sizes"], config.best_of_n["aggregations"]
    if not results.values(best_of_n(aggregations[0], sizes[0]), difficulty):
        return None
    figure, panels = _figure(len(aggregations))
    for panel, how in zip(panels, aggregations, strict=True):
        for name, key, dash in (("oracle", "oracle", ":"), ("majority", "majority", "--")):
            means = [100 * np.mean([pool[key][str(n)] for pool in pools]) for n in sizes]
            panel.plot(sizes, means, dash, color=_MUTED, linewidth=1.2, label=name)
        curves = [results.values(best_of_n(how, n), difficulty) for n in sizes]
        for label in curves[0]:
            means = [100 * float(np.mean(list(of_n[label].values()))) for of_n in curves]
            panel.plot(sizes, means, **_style(config, label, len(curves[0][label])))
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [str(n) for n in sizes])
        panel.set_title(how, fontsize=10)
        panel.set_xlabel("candidates n", fontsize=9)
    panels[0].set_ylabel("right answers, %", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def _scores(results: Results, difficulty: str) -> Any:
    """A panel a label: V of the exact p, the mean label of so many rollouts, and what the PRM has learnt."""
    config = results.config
    found = {}
    for label in config.labels:
        of_seeds = results.of("scores", difficulty, label, config.most_rollouts)
        if of_seeds and not read_label(label).seed_offset:
            found[label] = [result["bins"] for result in of_seeds.values()]
    if not found:
        return None
    figure, panels = _figure(len(found), columns=4)
    p = np.linspace(0, 1, 101)
    for panel, (label, of_seeds) in zip(panels, found.items(), strict=True):
        eta = read_label(label).eta
        panel.plot(p, expected_labels(p, 0, eta), color=_MUTED, linewidth=1.2, label="V(p)")
        if not read_label(label).is_outcome:
            mean_label = expected_labels(p, config.most_rollouts, eta)
            panel.plot(
                p, mean_label, "--", color="#00805C", linewidth=1.4, label=f"mean label, {config.most_rollouts}"
            )
        for index, bins in enumerate(of_seeds):
            mean_p, score, _, num_steps = np.array(bins).T
            name = None if index else "PRM, a line a seed; large dots: many steps"
            panel.plot(mean_p, score, color="#C04A00", linewidth=0.6, alpha=0.5)
            panel.scatter(mean_p, score, 2 + 200 * num_steps / num_steps.sum(), color="#C04A00", alpha=0.5, label=name)
        panel.set_title(_style(config, label, len(of_seeds))["label"], fontsize=10)
        panel.set_xlabel("exact p", fontsize=9)
        panel.set_ylim(-0.03, 1.03)
    panels[0].set_ylabel("score", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _policies(results: Results, difficulty: str) -> Any:
    """RFT and GRPO: accuracy of a sample over training, mean over seeds."""
    config = results.config
    kinds = [("rft", "iteration", "RFT"), ("grpo", "step", "GRPO")]
    kinds = [
        kind
        for kind in kinds
        if any(results.of(kind[0], difficulty, label, config.most_rollouts) for label in config.labels)
    ]
    if not kinds:
        return None
    figure, panels = _figure(len(kinds))
    for panel, (kind, x_name, title) in zip(panels, kinds, strict=True):
        for label in config.policy_labels:
            histories = [
                result["history"] for result in results.of(kind, difficulty, label, config.most_rollouts).values()
            ]
            if not histories:
                continue
            x = [row[x_name] for row in histories[0]]
            means = [mean_over_seeds([100 * history[i]["sampled"] for history in histories]) for i in range(len(x))]
            panel.plot(x, [mean.mean for mean in means], **_style(config, label, len(histories)))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(x_name, fontsize=9)
    panels[0].set_ylabel("right answers of a sample, %", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure
