"""`trl_erprm.evaluation.plots` and `.report`: the drawn data, the pixels of the file, the cells of the table."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from trl_erprm.evaluation import plots
from trl_erprm.evaluation.plots import (
    _draw_rft_iterations,
    _spread,
    plot_accuracy_curves,
    plot_reliability,
    plot_rft_iterations,
    plot_search,
)
from trl_erprm.evaluation.report import RFT_METRICS, check_rft_rows, rft_table

matplotlib = pytest.importorskip("matplotlib")
colors = pytest.importorskip("matplotlib.colors")
image = pytest.importorskip("matplotlib.image")


def make_row(iteration, greedy, sampled, best_of_n, majority, oracle, n=8):
    interval = {"sampled_low": sampled - 0.03, "sampled_high": sampled + 0.03} if sampled is not None else {}
    return {
        "iteration": iteration,
        "greedy": greedy,
        "sampled": sampled,
        **(interval or {"sampled_low": None, "sampled_high": None}),
        "best_of_n": best_of_n,
        "majority": majority,
        "oracle": oracle,
        "n": n,
        "num_problems": 200,
    }


ROWS = [
    make_row(0, 0.46, 0.47, 0.68, 0.56, 0.93),
    make_row(1, 0.60, 0.575, 0.74, 0.66, 0.94),
    make_row(2, 0.69, 0.652, 0.785, 0.71, 0.945),
]
# All lines end at nearly one place, the highest that there is, with the longest labels.
CROWDED = [make_row(0, 0.9, 0.9, 0.9, 0.9, 0.9, n=128), make_row(1, 1.0, 0.97, 1.0, 0.999, 1.0, n=128)]


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def labels_of(figure):
    return [text for text in figure.axes[0].texts if text.get_text()]


def tick_labels_of(axes):
    """Those that are drawn: Matplotlib also keeps labels of ticks outside the axes."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x_labels = [text for text in axes.get_xticklabels() if left <= text.get_position()[0] <= right]
    return x_labels + [text for text in axes.get_yticklabels() if bottom <= text.get_position()[1] <= top]


def test_lines_show_the_rows_in_per_cent_in_the_order_of_iterations():
    lines = lines_of(_draw_rft_iterations(check_rft_rows([ROWS[2], ROWS[0], ROWS[1]])))
    assert set(lines) == set(RFT_METRICS)
    for metric, line in lines.items():
        assert list(line.get_xdata()) == [0, 1, 2]
        assert list(line.get_ydata()) == pytest.approx([100 * row[metric] for row in ROWS])


def test_band_is_the_interval():
    (band,) = _draw_rft_iterations(ROWS).axes[0].collections
    corners = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices}
    for row in ROWS:
        assert (row["iteration"], round(100 * row["sampled_low"], 6)) in corners
        assert (row["iteration"], round(100 * row["sampled_high"], 6)) in corners


def test_labels_name_the_lines_with_their_last_values_in_their_colors():
    figure = _draw_rft_iterations(ROWS)
    written = {label.get_text(): label.get_color() for label in labels_of(figure)}
    lines = lines_of(figure)
    assert written == {
        "Greedy  69.0 %": lines["greedy"].get_color(),
        "Sampled  65.2 %": lines["sampled"].get_color(),
        "Best of 8 by PRM  78.5 %": lines["best_of_n"].get_color(),
        "Majority of 8  71.0 %": lines["majority"].get_color(),
        "Oracle of 8  94.5 %": lines["oracle"].get_color(),
    }


@pytest.mark.parametrize("rows", [ROWS, CROWDED, ROWS[:1], CROWDED[:1]], ids=["usual", "crowded", "one", "one point"])
def test_no_text_overlaps_another_or_leaves_the_figure(rows):
    figure = _draw_rft_iterations(rows)
    figure.canvas.draw()
    axes = figure.axes[0]
    texts = [*labels_of(figure), *figure.texts, *tick_labels_of(axes), axes.xaxis.label]
    # of an annotation only the text: its leader may begin anywhere
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in texts if text.get_text()]
    assert len(boxes) >= 10
    for index, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_text_is_large_enough_at_800_pixels():
    figure = _draw_rft_iterations(ROWS)
    figure.canvas.draw()
    shrink = 800 / figure.bbox.width
    axes = figure.axes[0]
    for text in (*labels_of(figure), *figure.texts, *tick_labels_of(axes), axes.xaxis.label):
        assert text.get_fontsize() * figure.dpi / 72 * shrink >= 12


def test_colors_are_apart_and_read_on_white():
    def luminance(color):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colors.to_rgb(color)]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    styles = plots._STYLES.values()
    for style in styles:
        assert 1.05 / (luminance(style.color) + 0.05) >= 4.5  # WCAG 2 AA
    assert len({style.color for style in styles}) == len({style.marker for style in styles}) == len(RFT_METRICS)


def test_file_holds_the_lines_in_pixels(tmp_path):
    path = plot_rft_iterations(ROWS, tmp_path / "new" / "rft.png")
    assert path == tmp_path / "new" / "rft.png"
    pixels = image.imread(path)[..., :3]
    assert pixels.shape == (800, 1280, 3)
    height, width = pixels.shape[:2]
    plot_area = pixels[: int(0.87 * height), : int(0.66 * width)]
    for metric, style in plots._STYLES.items():
        is_line = np.abs(plot_area - np.array(colors.to_rgb(style.color))).max(axis=-1) < 0.02
        assert is_line.sum() > 200, metric
        # every metric rises: at the right the line stands higher than at the left
        rows_of, columns_of = np.nonzero(is_line)
        left, right = columns_of < 0.25 * width, columns_of > 0.5 * width
        assert rows_of[right].mean() < rows_of[left].mean(), metric


def test_missing_values_leave_a_gap_and_missing_metrics_are_left_out():
    rows = [make_row(i, 0.5, 0.4 if i != 1 else None, 0.6, 0.5, None) for i in range(4)]
    figure = _draw_rft_iterations(rows)
    lines = lines_of(figure)
    assert "oracle" not in lines and not any("Oracle" in label.get_text() for label in labels_of(figure))
    assert [math.isnan(value) for value in lines["sampled"].get_ydata()] == [False, True, False, False]


def test_nothing_measured_still_draws(tmp_path):
    assert plot_rft_iterations([make_row(0, None, None, None, None, None)], tmp_path / "rft.png").stat().st_size > 0


def test_one_iteration_shows_its_interval():
    figure = _draw_rft_iterations(ROWS[:1])
    (bar,) = figure.axes[0].collections
    assert bar.get_segments()[0][:, 1] == pytest.approx([44, 50])
    assert list(figure.axes[0].get_xticks()) == [0]


def test_only_whole_iterations_are_ticked():
    axes = _draw_rft_iterations(ROWS).axes[0]
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_values_at_the_ends_of_the_scale_stay_inside():
    rows = [make_row(i, 0.5, 0.5, 1.0, 0.0, 1.0) for i in range(2)]
    low, high = _draw_rft_iterations(rows).axes[0].get_ylim()
    assert low == 0 and high == 100


def test_the_style_of_the_caller_is_not_used_and_comes_back(tmp_path):
    first = plot_rft_iterations(ROWS, tmp_path / "first.png").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20, "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        second = plot_rft_iterations(ROWS, tmp_path / "second.png").read_bytes()
        assert dict(matplotlib.rcParams) == before
    assert first == second


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path):
    code = f"""
import sys
from trl_erprm.evaluation import plots, report
assert "matplotlib" not in sys.modules
import matplotlib
backend = dict.__getitem__(matplotlib.rcParams, "backend")
plots.plot_rft_iterations({ROWS!r}, {str(tmp_path / "rft.png")!r})
assert "matplotlib.pyplot" not in sys.modules
assert dict.__getitem__(matplotlib.rcParams, "backend") is backend
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ImportError, match=r'Matplotlib, which is not installed. Run `pip install "trl-erprm\[plots\]"`'
    ):
        plot_rft_iterations(ROWS, tmp_path / "rft.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        ([3], [3]),
        ([0, 50], [0, 50]),
        ([50, 50], [45, 55]),
        ([10, 40, 41, 42, 90], [10, 31, 41, 51, 90]),
        ([99, 100], [90, 100]),
        ([0, 1], [0, 10]),
        ([20, 29, 30], [16.333, 26.333, 36.333]),
    ],
)
def test_spread(wanted, expected):
    assert _spread(wanted, gap=10, low=0, high=100) == pytest.approx(expected, abs=1e-3)


def test_table():
    rows = [*ROWS[:2], make_row(2, None, None, 1.0, 1.0, 1.0)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rft_table(rows[::-1]))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines()]
    assert [cells for cells in lines if cells] == [
        ["0", "46.0", "47.0 [44.0, 50.0]", "68.0", "56.0", "93.0"],
        ["1", "60.0", "57.5 [54.5, 60.5]", "74.0", "66.0", "94.0"],
        ["2", "-", "-", "100.0", "100.0", "100.0"],
    ]


def test_headings_of_the_table_fit_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rft_table(CROWDED))
    text = console.export_text()
    for words in ("Iteration", "Greedy", "Sampled", "of 128 by PRM", "Majority", "Oracle", "200 held-out problems"):
        assert words in text
    assert "…" not in text


def test_caption_of_one_problem():
    assert rft_table([ROWS[0] | {"num_problems": 1}]).caption.startswith("1 held-out problem; ")


@pytest.mark.parametrize(
    "use", [rft_table, lambda rows: plot_rft_iterations(rows, "never.png")], ids=["table", "plot"]
)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "`rows` must hold at least one iteration, got none"),
        ([{"iteration": 0, "n": 8}], "row 0 lacks 'num_problems', 'greedy', 'sampled'"),
        ([ROWS[0], ROWS[1] | {"greedy": 62}], r"`greedy` must be a share in \[0, 1\] or None, got 62 in row 1"),
        ([ROWS[0] | {"oracle": math.nan}], r"`oracle` must be a share in \[0, 1\] or None, got nan in row 0"),
        ([ROWS[0], ROWS[1] | {"n": 16}], "`n` must be the same in all rows, got 8 in row 0 and 16 in row 1"),
        (
            [ROWS[0] | {"sampled_low": 0.6}],
            "`sampled_low`, `sampled` and `sampled_high` must ascend, got 0.6, 0.47, 0.5 in row 0",
        ),
    ],
)
def test_bad_rows(use, rows, message):
    with pytest.raises(ValueError, match=message):
        use(rows)


# ---------------------------------------------------------------------------------------------------------------------
# Of a report


@pytest.fixture
def figures(monkeypatch):
    """Figures as they are when they are saved."""
    saved = []
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    savefig = figure_class.savefig
    monkeypatch.setattr(figure_class, "savefig", lambda self, *a, **k: saved.append(self) or savefig(self, *a, **k))
    return saved


def comparison(num_candidates=4, scorers=("a", "b")):
    curve = [0.5 + 0.1 * i for i in range(num_candidates)]
    of_scorer = {
        how: {
            key: {"accuracy": [v - 0.01 * k for v in curve]}
            for k, key in enumerate(("best_of_n", "weighted_majority"))
        }
        for how in ("min", "mean")
    }
    return {
        "num_candidates": num_candidates,
        "aggregation": "min",
        "random": {"accuracy": 0.5},
        "majority": {"accuracy": [v - 0.05 for v in curve]},
        "oracle": {"accuracy": [v + 0.05 for v in curve]},
        "scorers": {name: {"aggregation": "min", "aggregations": of_scorer} for name in scorers},
    }


def overlapping(figure):
    """Texts of the figure that lie on each other or reach over its edge."""
    renderer = figure.canvas.get_renderer()
    axes = figure.axes[0]
    texts = [*figure.texts, *figure.legends[0].get_texts(), axes.title, axes._left_title, axes.xaxis.label]
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        texts += [tick.label1 for tick in axis.get_major_ticks() if limits[0] <= tick.get_loc() <= limits[1]]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    width, height = figure.canvas.get_width_height()
    found = [name for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a[1].overlaps(b[1])]
    return found + [(a[0], b[0]) for a, b in pairs]


@pytest.mark.parametrize("votes", [False, True])
def test_accuracy_curves(figures, tmp_path, votes):
    path = plot_accuracy_curves(comparison(), tmp_path / "sub" / "plot.png", "mean", votes)
    assert path.read_bytes()[:4] == b"\x89PNG"
    (figure,) = figures
    lines = lines_of(figure)
    assert list(lines) == ["oracle (pass@n)", "majority vote", "one at random", "a", "b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)
    expected = [49, 59, 69, 79] if votes else [50, 60, 70, 80]
    assert lines["b"].get_xdata().tolist() == [1, 2, 3, 4] and lines["b"].get_ydata() == pytest.approx(expected)
    assert lines["one at random"].get_ydata() == pytest.approx([50] * 4)
    assert lines["oracle (pass@n)"].get_ydata() == pytest.approx([55, 65, 75, 85])
    assert figure.texts[0].get_text() == f"{'Weighted vote' if votes else 'Best of n'}, mean of the step scores"
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "2", "4"]


def test_a_scorer_by_its_own_aggregation(figures, tmp_path):
    metrics = comparison()
    metrics["scorers"]["b"] = metrics["scorers"]["b"] | {"aggregation": "mean"}
    plot_accuracy_curves(metrics, tmp_path / "plot.png")
    plot_accuracy_curves(metrics, tmp_path / "plot.png", "min")
    assert list(lines_of(figures[0]))[3:] == ["a", "b (mean)"] and list(lines_of(figures[1]))[3:] == ["a", "b"]


@pytest.mark.parametrize("scorers", [["one"], [f"a reward model of name {i:02}" for i in range(20)]])
@pytest.mark.parametrize("num_candidates", [1, 3, 64])
def test_nothing_of_a_report_plot_overlaps(figures, tmp_path, scorers, num_candidates):
    metrics = comparison(num_candidates, scorers)
    for curves in (metrics["oracle"], metrics["majority"]):
        curves["accuracy"] = [0.9] * num_candidates
    for scorer in metrics["scorers"].values():
        scorer["aggregations"]["min"]["best_of_n"]["accuracy"] = [0.6 + 0.3 / n for n in range(1, num_candidates + 1)]
    plot_accuracy_curves(metrics, tmp_path / "plot.png")
    assert overlapping(figures[0]) == []


def test_twenty_scorers_have_looks_of_their_own(figures, tmp_path):
    plot_accuracy_curves(comparison(scorers=[f"model {i}" for i in range(20)]), tmp_path / "plot.png")
    looks = {(line.get_color(), str(line._dash_pattern), line.get_marker()) for line in figures[0].axes[0].lines[3:]}
    assert len(looks) == 20


def test_a_long_name_is_cut_in_the_legend(figures, tmp_path):
    plot_accuracy_curves(comparison(scorers=["x" * 60]), tmp_path / "plot.png")
    assert figures[0].legends[0].get_texts()[-1].get_text() == "x" * 25 + "…"
    assert overlapping(figures[0]) == []


def test_reliability(figures, tmp_path):
    bins = [
        {"mean_score": 0.2, "mean_outcome": 0.3, "outcome_low": 0.1, "outcome_high": 0.5},
        {"mean_score": 0.9, "mean_outcome": 0.7, "outcome_low": 0.6, "outcome_high": 0.8},
    ]
    plot_reliability({"a": {"bins": bins}}, tmp_path / "plot.png")
    (figure,) = figures
    line = lines_of(figure)["a"]
    assert line.get_xdata() == pytest.approx([20, 90]) and line.get_ydata() == pytest.approx([30, 70])
    segments = figure.axes[0].collections[0].get_segments()
    assert [segment[:, 1].tolist() for segment in segments] == [[10, 50], [60, 80]]
    assert overlapping(figure) == []


def test_search(figures, tmp_path):
    points = [
        {"method": "best of n", "num_tokens": 400, "accuracy": 0.6, "low": 0.5, "high": 0.7},
        {"method": "beam search", "num_tokens": 300, "accuracy": 0.7, "low": 0.6, "high": 0.8},
        {"method": "best of n", "num_tokens": 100, "accuracy": 0.5, "low": 0.4, "high": 0.6},
    ]
    plot_search(points, tmp_path / "plot.png")
    (figure,) = figures
    line = lines_of(figure)["best of n"]
    assert list(line.get_xdata()) == [100, 400] and line.get_ydata() == pytest.approx([50, 60])
    assert set(lines_of(figure)) == {"best of n", "beam search"} and figure.axes[0].get_xscale() == "log"
    assert overlapping(figure) == []
