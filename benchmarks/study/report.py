"""The report: tables in Markdown from the finished units, all settings and all seeds; figures beside them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trl_erprm.manifest import write_atomically

from .config import BASELINE, CONTROL, StudyConfig
from .measures import ORDER_ONLY
from .paired import Difference, compare_with, mean_over_seeds
from .results import (
    GRPO,
    P_BIAS,
    P_BIAS_IF_PERFECT,
    P_CORRELATION,
    P_ERROR,
    RFT,
    STEP_AUROC,
    STEP_PAIRS,
    Measure,
    Results,
    best_of_n,
)

LEVEL = 0.05
"""p-values below it, after Holm's correction within a table, are called a difference."""
BEGIN, END = "<!-- results: written by python -m benchmarks.study --write_docs -->", "<!-- end of results -->"


def write_report(config: StudyConfig) -> Path:
    """Writes `report.md`, `results.csv` and the figures of what is finished; gives the path of the report."""
    from .figures import draw_figures

    root, results = Path(config.output_dir), Results.read(config)
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / "results.csv", results.csv())
    images = draw_figures(results, root)
    write_atomically(root / "report.md", "# The controlled study\n\n" + report(results, images))
    return root / "report.md"


def write_docs(config: StudyConfig, page: Path) -> None:
    """Puts the report between the two marks of a page, and the figures into a folder beside it."""
    from .figures import draw_figures

    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} must hold {BEGIN!r} and {END!r}, once each, to say where the results go.")
    results = Results.read(config)
    images = draw_figures(results, page.parent / page.stem)
    own = report(results, {name: f"{page.stem}/{path}" for name, path in images.items()}, heading="###")
    write_atomically(page, f"{text[: text.index(BEGIN)]}{BEGIN}\n\n{own}\n{text[text.index(END) :]}")


def report(results: Results, images: Mapping[str, str], heading: str = "##") -> str:
    """All tables. `images` are the figures by name."""
    config = results.config
    parts = [_overview(results)]
    for difficulty in config.difficulties:
        if not results.of("labels", difficulty):
            continue
        largest, sizes = max(config.best_of_n["sizes"]), config.best_of_n["sizes"]
        compared = [STEP_AUROC, STEP_PAIRS, P_CORRELATION, P_ERROR, best_of_n("min", largest), RFT, GRPO]
        headline = [*compared[:4], P_BIAS, P_BIAS_IF_PERFECT, *compared[4:]]
        by_n = [best_of_n("min", n) for n in sizes]
        by_how = [best_of_n(how, largest) for how in config.best_of_n["aggregations"]]
        sections = [
            ("labels against each other", [means_table(results, difficulty, headline), _headline_notes(largest)]),
            ("differences from soft labels", [differences_table(results, difficulty, compared)]),
            ("what was found", [findings(results, difficulty, [*compared, *by_how])]),
            ("best of n, by min", [means_table(results, difficulty, by_n), pool_table(results, difficulty)]),
            (f"best of {largest}, by aggregation", [means_table(results, difficulty, by_how)]),
            (
                f"best of {largest}, by aggregation, differences from soft labels",
                [differences_table(results, difficulty, by_how)],
            ),
            (
                "fewer rollouts",
                [rollouts_table(results, difficulty, [STEP_AUROC, P_ERROR, best_of_n("min", largest)])],
            ),
            ("the theory, on exact values", [exact_table(results, difficulty)]),
            ("the theory, on trained PRMs", [order_table(results, difficulty)]),
        ]
        for title, tables in sections:
            parts += [f"{heading} {difficulty.capitalize()}: {title}", *[table for table in tables if table]]
        parts += [f"![{name}]({path})" for name, path in images.items() if name.startswith(f"{difficulty}:")]
    parts += [f"{heading} What it took", times_table(results)]
    return "\n\n".join(parts) + "\n"


# The tables


def means_table(results: Results, difficulty: str, measures: Sequence[Measure]) -> str:
    """A row a label, a column a measure: mean over seeds with its interval."""
    values = {measure: results.values(measure, difficulty) for measure in measures}
    measures = [measure for measure in measures if values[measure]]
    rows = []
    for label in results.config.labels:
        cells = []
        for measure in measures:
            of_seeds = values[measure].get(label)
            cells.append(_mean(measure, list(of_seeds.values())) if of_seeds else "")
        if any(cells):
            rows.append([label, *cells])
    return table(["Labels", *(_head(measure) for measure in measures)], rows)


def differences_table(results: Results, difficulty: str, measures: Sequence[Measure]) -> str:
    """A row a measure and label: its difference from soft labels, with interval, effect size and p-value."""
    rows = []
    for measure in measures:
        for label, difference in _compared(results, difficulty, measure).items():
            interval = f"{measure.show(difference.low, True)} to {measure.show(difference.high, True)}"
            rows.append(
                [
                    measure.name,
                    label,
                    measure.show(difference.mean, True),
                    interval if difference.n > 1 else "",
                    _number(difference.effect_size, "+.2f"),
                    "< 0.001" if difference.p_value < 0.001 else _number(difference.p_value, ".3f"),
                    str(difference.n),
                ]
            )
    return table(["Measure", "Labels", "Minus soft", "95 %", "d", "p (Holm)", "Seeds"], rows)


def findings(results: Results, difficulty: str, measures: Sequence[Measure]) -> str:
    """A line a measure: which labels differ from soft ones, and which do not."""
    lines = []
    for measure in dict.fromkeys(measures):
        of_labels = _compared(results, difficulty, measure)
        if not of_labels:
            continue
        groups: dict[str, list[str]] = {"better": [], "worse": [], "no difference shown": []}
        for label, difference in of_labels.items():
            groups[_verdict(measure, difference)].append(label)
        told = "; ".join(f"{verdict}: {', '.join(labels)}" for verdict, labels in groups.items() if labels)
        lines.append(f"- {measure.name} ({max(d.n for d in of_labels.values())} seeds): {told}")
    if not lines:
        return ""
    say = (
        f"In comparison with soft labels; a difference is one whose p-value is below {LEVEL} after Holm's correction."
    )
    return say + "\n\n" + "\n".join(lines)


def pool_table(results: Results, difficulty: str) -> str:
    """What needs no PRM: one candidate at random, votes, the best possible."""
    of_seeds = list(results.of("pool", difficulty).values())
    if not of_seeds:
        return ""
    sizes = [str(n) for n in results.config.best_of_n["sizes"]]
    show = best_of_n("min", 1)
    rows = [["one at random", *[_mean(show, [result["sampled"] for result in of_seeds])] * len(sizes)]]
    for name, key in (("majority", "majority"), ("oracle (pass@n)", "oracle")):
        rows.append([name, *(_mean(show, [result[key][n] for result in of_seeds]) for n in sizes)])
    return table(["Without a PRM, %", *(f"n = {n}" for n in sizes)], rows)


def rollouts_table(results: Results, difficulty: str, measures: Sequence[Measure]) -> str:
    """A row a label, a column a measure and number of rollouts."""
    numbers = sorted(results.config.num_rollouts, reverse=True)
    columns = [(measure, n, results.values(measure, difficulty, n)) for measure in measures for n in numbers]
    columns = [column for column in columns if column[2]]
    rows = []
    for label in results.config.labels:
        cells = [_mean(m, list(values[label].values())) if label in values else "" for m, _, values in columns]
        if any(cells):
            rows.append([label, *cells])
    return table(["Labels", *(f"{_head(measure)}: {n}" for measure, n, _ in columns)], rows)


def exact_table(results: Results, difficulty: str) -> str:
    """Choices by exact values, and by the mean labels that a perfect fit learns: order and accuracy."""
    of_seeds = [result["exact"] for result in results.of("pool", difficulty).values()]
    if not of_seeds:
        return ""
    largest = str(max(results.config.best_of_n["sizes"]))
    show, aggregations = best_of_n("min", 1), results.config.best_of_n["aggregations"]
    rows = []
    for scores, scores_name in (("values", "V of the exact p"), ("labels", "mean label")):
        for steps, steps_name in (("all", "all"), ("open", "all but the last two")):
            for label in of_seeds[0][scores][steps]:
                if not all(label in result[scores][steps] for result in of_seeds):
                    continue  # labels that were added to the config after some of the candidates
                cells = []
                for how in aggregations:
                    found = [result[scores][steps][label][how] for result in of_seeds]
                    inverted = sum(one["inverted_pairs"] for one in found)
                    cells.append(
                        f"{show.show(float(np.mean([one['accuracy'][largest] for one in found])))} ({inverted:,})"
                    )
                rows.append([scores_name, steps_name, label, *cells])
    pairs = sum(result["values"]["all"][BASELINE]["min"]["pairs"] for result in of_seeds)
    bad = sum(
        result[scores][steps][label][how]["inverted_pairs"]
        for result in of_seeds
        for scores in result
        for steps in result[scores]
        for label in result[scores][steps]
        for how in ORDER_ONLY
        if how in aggregations
    )
    verdict = "holds" if bad == 0 else "FAILS"
    return (
        f"PRMs without an error: right answers of best of {largest} in per cent, and in brackets how many of "
        f"{pairs:,} pairs of solutions of one problem stand in the opposite order as by p itself. The last two steps "
        "are the last operation and the answer: behind them p is 0 or 1. The prediction that under "
        f"{', '.join(ORDER_ONLY)} all labels order alike {verdict}: {bad} inverted pairs in all rows together.\n\n"
        + table(["Scores", "Steps", "Labels", *aggregations], rows)
    )


def order_table(results: Results, difficulty: str) -> str:
    """Do trained PRMs order candidates as that of soft labels does?"""
    rows = []
    for label in results.config.labels:
        of_seeds = results.of("scores", difficulty, label, results.config.most_rollouts).values()
        of_seeds = [result["order_as_soft"] for result in of_seeds if "order_as_soft" in result]
        if of_seeds:
            cells = []
            for how in results.config.best_of_n["aggregations"]:
                inverted = float(np.mean([result[how]["inverted_share"] for result in of_seeds]))
                same = float(np.mean([result[how]["same_choice"] for result in of_seeds]))
                cells.append(f"{100 * inverted:.1f} / {100 * same:.1f}")
            rows.append([label, *cells])
    if not rows:
        return ""
    control = ""
    if any(row[0] == CONTROL for row in rows):
        control = (
            f" `{CONTROL}` is the control, soft labels and another seed of the training: the labels' own share is "
        )
        control += "what lies beyond it."
    return (
        "Against the PRM of soft labels, in per cent: pairs of solutions of a problem in the opposite order / "
        f"problems in which the same candidate is best.{control}\n\n"
        + table(["Labels", *results.config.best_of_n["aggregations"]], rows)
    )


def times_table(results: Results) -> str:
    """Seconds a unit."""
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for unit, result in results.of_units.items():
        times.setdefault((unit.kind, unit.difficulty), []).append((result["seconds"], result["processor_seconds"]))
    rows = []
    for (kind, difficulty), pairs in times.items():
        wall, cpu = np.array(pairs).T
        rows.append(
            [kind, difficulty, str(len(pairs)), f"{np.median(wall):.0f}", f"{np.median(cpu):.0f}", f"{cpu.sum():.0f}"]
        )
    heads = [
        "Unit",
        "Difficulty",
        "Finished",
        "Seconds (median)",
        "Processor seconds (median)",
        "Processor seconds in all",
    ]
    return table(heads, rows)


def _overview(results: Results) -> str:
    config = results.config
    rows = []
    for difficulty in config.difficulties:
        of_labels, of_pool = (list(results.of(kind, difficulty).values()) for kind in ("labels", "pool"))
        if not of_labels:
            continue
        errors = ", ".join(
            f"{np.mean([result['share_error'][str(n)] for result in of_labels]):.3f}"
            for n in sorted(config.num_rollouts, reverse=True)
        )
        sampled = f"{100 * np.mean([result['sampled'] for result in of_pool]):.1f}" if of_pool else ""
        rows.append(
            [
                difficulty,
                str(len(of_labels)),
                f"{np.mean([result['num_solutions'] for result in of_labels]):,.0f}",
                f"{np.mean([result['num_unique_prefixes'] for result in of_labels]):,.0f}",
                f"{100 * np.mean([result['right_answers'] for result in of_labels]):.1f}",
                sampled,
                errors,
            ]
        )
    numbers = ", ".join(str(n) for n in sorted(config.num_rollouts, reverse=True))
    heads = ["Difficulty", "Seeds", "Solutions", "Different prefixes", "Right, %", "Right at temperature 1, %"]
    return "Means over seeds, with 95 % intervals by Student's t in brackets.\n\n" + table(
        [*heads, f"Error of the share of right rollouts ({numbers} rollouts)"], rows
    )


def _headline_notes(largest: int) -> str:
    return (
        f"Of {largest} candidates the one with the best lowest step is taken. RFT and GRPO: right answers of a sample "
        "of the policy after training. Error and bias of p: of the success probability that a score stands for; hard "
        "labels have no such inverse."
    )


# Their cells


def _compared(results: Results, difficulty: str, measure: Measure) -> dict[str, Difference]:
    return compare_with(BASELINE, results.values(measure, difficulty))


def _verdict(measure: Measure, difference: Difference) -> str:
    if not difference.p_value < LEVEL:  # NaN, too
        return "no difference shown"
    return "better" if (difference.mean > 0) is measure.higher_is_better else "worse"


def _mean(measure: Measure, values: Sequence[float]) -> str:
    mean = mean_over_seeds(values)
    if mean.n < 2:
        return measure.show(mean.mean)
    low, high = max(mean.low, measure.limits[0]), min(mean.high, measure.limits[1])
    return f"{measure.show(mean.mean)} [{measure.show(low)}, {measure.show(high)}]"


def _head(measure: Measure) -> str:
    return f"{measure.name}, %" if measure.unit else measure.name


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; empty where there is no row."""
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
