"""The report: tables in Markdown from the finished units, all settings and all seeds; figures beside them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_erprm.manifest import write_atomically

from .config import BASELINE, CONTROL, PARTS, StudyConfig, read_label
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
from .units import list_units

LEVEL = 0.05
"""p-values below it, after Holm's correction within a table, are called a difference."""
_NO_DIFFERENCE = "no difference shown"
_FEW_CANDIDATES = 8
"""Beside the most candidates: what can be afforded more often."""
_WITHOUT_PRM = {"one at random": "sampled", "majority": "majority", "oracle (pass@n)": "oracle"}
"""What needs no PRM, and where it stands in the result of a pool."""
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
    """
    Puts the summary between the two marks of a page, and the figures and all tables (`tables.md`) into a folder beside
    it that has the name of the page.
    """
    from .figures import draw_figures

    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} must hold {BEGIN!r} and {END!r}, once each, to say where the results go.")
    results, folder = Results.read(config), page.parent / page.stem
    images = draw_figures(results, folder)
    folder.mkdir(exist_ok=True)
    story = f"What they say, and how they came about: [{page.name}](../{page.name})."
    tables = f"# The controlled study: all tables\n\n{story}\n\n{report(results, images)}"
    write_atomically(folder / "tables.md", tables)
    images = {name: f"{page.stem}/{path}" for name, path in images.items()}
    own = summary(results, images, heading="###", tables=f"{page.stem}/tables.md")
    write_atomically(page, f"{text[: text.index(BEGIN)]}{BEGIN}\n\n{own}\n{text[text.index(END) :]}")


def summary(results: Results, images: Mapping[str, str], heading: str = "##", tables: str = "") -> str:
    """
    What a reader wants to know first, from [`report`]: means beside what needs no PRM, differences from soft labels,
    what was found, and the figures. `tables` is the path of the whole report.
    """
    config = results.config
    largest = max(config.best_of_n["sizes"])
    compared = compared_measures(largest)
    few = [best_of_n("min", n) for n in config.best_of_n["sizes"] if n == _FEW_CANDIDATES != largest]
    means = [*compared[:4], *few, *compared[4:]]
    parts = [_progress(results), _overview(results)]
    for difficulty in config.difficulties:
        if not results.of("labels", difficulty):
            continue
        rollouts = rollouts_table(results, difficulty, [best_of_n("min", largest)])
        sections = [
            ("means", _with_notes(means_table(results, difficulty, means, with_references=True))),
            ("differences from soft labels", [difference_matrix(results, difficulty, compared)]),
            ("what was found", [findings(results, difficulty, [*compared, *_by_aggregation(config)])]),
            ("fewer rollouts", [rollouts] if len(config.num_rollouts) > 1 else []),
            ("longer training", longer_training_tables(results, difficulty, [STEP_AUROC, best_of_n("min", largest)])),
            ("the theory, on exact values", [exact_verdict(results, difficulty)]),
        ]
        parts += _sections(sections, f"{heading} {difficulty.capitalize()}")
        parts += [f"![{name}]({path})" for name, path in images.items() if name.startswith(f"{difficulty}:")]
    if tables:
        parts.append(f"All tables: [{tables}]({tables}).")
    return "\n\n".join(parts) + "\n"


def compared_measures(largest: int) -> list[Measure]:
    """What labels are compared by: PRMs, choices among `largest` candidates, and policies."""
    return [STEP_AUROC, STEP_PAIRS, P_CORRELATION, P_ERROR, best_of_n("min", largest), RFT, GRPO]


def _by_aggregation(config: StudyConfig) -> list[Measure]:
    return [best_of_n(how, max(config.best_of_n["sizes"])) for how in config.best_of_n["aggregations"]]


def report(results: Results, images: Mapping[str, str], heading: str = "##") -> str:
    """All tables. `images` are the figures by name."""
    config = results.config
    parts = [_progress(results), _overview(results)]
    for difficulty in config.difficulties:
        if not results.of("labels", difficulty):
            continue
        largest, sizes = max(config.best_of_n["sizes"]), config.best_of_n["sizes"]
        compared = compared_measures(largest)
        headline = [*compared[:4], P_BIAS, P_BIAS_IF_PERFECT, *compared[4:]]
        by_n = [best_of_n("min", n) for n in sizes]
        by_how = _by_aggregation(config)
        few = [measure for measure in by_n if measure == best_of_n("min", _FEW_CANDIDATES)]
        sections = [
            ("labels against each other", _with_notes(means_table(results, difficulty, headline))),
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
                [
                    rollouts_table(results, difficulty, [STEP_AUROC, P_ERROR, best_of_n("min", largest)]),
                    *fewer_rollouts_differences(results, difficulty, [*compared[:4], *few, *by_how]),
                ],
            ),
            ("longer training", longer_training_tables(results, difficulty, [*compared[:4], *few, *by_how])),
            ("the theory, on exact values", [exact_table(results, difficulty)]),
            ("the theory, on trained PRMs", [order_table(results, difficulty)]),
        ]
        parts += _sections(sections, f"{heading} {difficulty.capitalize()}")
        parts += [f"![{name}]({path})" for name, path in images.items() if name.startswith(f"{difficulty}:")]
    parts += [f"{heading} What it took", times_table(results)]
    return "\n\n".join(parts) + "\n"


# The tables


def means_table(results: Results, difficulty: str, measures: Sequence[Measure], with_references: bool = False) -> str:
    """
    A row a label, a column a measure: mean over seeds with its interval. The references are what needs no PRM, where
    the measure is one of best of n.
    """
    values = {measure: results.values(measure, difficulty) for measure in measures}
    measures = [measure for measure in measures if values[measure]]
    rows = []
    for label in results.config.labels:
        cells = [_mean(results, measure, list(values[measure].get(label, {}).values())) for measure in measures]
        if any(cells):
            rows.append([label, *cells])
    if with_references:
        for name in _WITHOUT_PRM:
            cells = [
                _without_prm(results, difficulty, name, measure.path[-1]) if measure.path[0] == "best_of_n" else ""
                for measure in measures
            ]
            if any(cells):
                rows.append([name, *cells])
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


def difference_matrix(
    results: Results,
    difficulty: str,
    measures: Sequence[Measure],
    num_rollouts: int | None = None,
    num_epochs: int = 0,
) -> str:
    """A row a label, a column a measure: its difference from soft labels, bold where it is one."""
    of_measures = {measure: _compared(results, difficulty, measure, num_rollouts, num_epochs) for measure in measures}
    measures = [measure for measure in measures if of_measures[measure]]
    rows = []
    for label in results.config.labels:
        cells = []
        for measure in measures:
            difference = of_measures[measure].get(label)
            if difference is None:
                cells.append("")
                continue
            mean = measure.show(difference.mean, True)
            if _verdict(measure, difference) != _NO_DIFFERENCE:
                mean = f"**{mean}**"
            if difference.n > 1:
                mean += f" [{measure.show(difference.low, True)}, {measure.show(difference.high, True)}]"
            cells.append(mean + _fewer_seeds(difference.n, len(results.config.seeds)))
        if any(cells):
            rows.append([label, *cells])
    if not rows:
        return ""
    say = f"In brackets: 95 % interval over seeds. Bold: p below {LEVEL} after Holm's correction for the labels."
    return say + "\n\n" + table(["Labels", *(_head(measure) for measure in measures)], rows)


def findings(results: Results, difficulty: str, measures: Sequence[Measure]) -> str:
    """A line a measure: which labels differ from soft ones, and which do not."""
    lines = []
    for measure in dict.fromkeys(measures):
        of_labels = _compared(results, difficulty, measure)
        if not of_labels:
            continue
        most = max(difference.n for difference in of_labels.values())
        groups: dict[str, list[str]] = {"better": [], "worse": [], _NO_DIFFERENCE: []}
        for label, difference in of_labels.items():
            groups[_verdict(measure, difference)].append(label + _fewer_seeds(difference.n, most))
        told = "; ".join(f"{verdict}: {', '.join(labels)}" for verdict, labels in groups.items() if labels)
        seeds = len(results.config.seeds)
        number = f"{most} seeds" if most == seeds else f"{most} of {seeds} seeds"
        lines.append(f"- {measure.name} ({number}): {told}")
    if not lines:
        return ""
    say = (
        f"In comparison with soft labels; a difference is one whose p-value is below {LEVEL} after Holm's correction."
    )
    return say + "\n\n" + "\n".join(lines)


def pool_table(results: Results, difficulty: str) -> str:
    """What needs no PRM: one candidate at random, votes, the best possible."""
    if not results.of("pool", difficulty):
        return ""
    sizes = [str(n) for n in results.config.best_of_n["sizes"]]
    rows = [[name, *(_without_prm(results, difficulty, name, n) for n in sizes)] for name in _WITHOUT_PRM]
    return table(["Without a PRM, %", *(f"n = {n}" for n in sizes)], rows)


def _without_prm(results: Results, difficulty: str, name: str, n: str) -> str:
    """A cell: right answers without a PRM, of n candidates."""
    found = [result[_WITHOUT_PRM[name]] for result in results.of("pool", difficulty).values()]
    return _mean(results, best_of_n("min", int(n)), [of_n[n] if isinstance(of_n, dict) else of_n for of_n in found])


def rollouts_table(results: Results, difficulty: str, measures: Sequence[Measure]) -> str:
    """A row a label, a column a measure and number of rollouts. An outcome model learns from none: it stands once."""
    numbers = sorted(results.config.num_rollouts, reverse=True)
    columns = []
    for measure in measures:
        for n in numbers:
            values = results.values(measure, difficulty, n)
            if n != numbers[0]:
                values = {label: of_seeds for label, of_seeds in values.items() if not read_label(label).is_outcome}
            if values:
                columns.append((measure, n, values))
    if len({n for _, n, _ in columns}) < 2:
        return ""  # nothing to compare yet
    rows = []
    for label in results.config.labels:
        cells = [_mean(results, measure, list(values.get(label, {}).values())) for measure, _, values in columns]
        if any(cells):
            rows.append([label, *cells])
    return table(["Labels", *(f"{_head(measure)}: {n}" for measure, n, _ in columns)], rows)


def fewer_rollouts_differences(results: Results, difficulty: str, measures: Sequence[Measure]) -> list[str]:
    """A table for each smaller number of rollouts: labels against soft ones from as many."""
    parts = []
    for n in sorted(results.config.num_rollouts, reverse=True)[1:]:
        if differences := difference_matrix(results, difficulty, measures, n):
            parts.append(f"{n} rollouts, differences from soft labels. {differences}")
    return parts


def longer_training_tables(results: Results, difficulty: str, measures: Sequence[Measure]) -> list[str]:
    """PRMs that are trained longer: a row a label, a column a measure and number of epochs; and their differences."""
    longer = results.config.longer_training
    if not longer:
        return []
    epochs = longer["num_train_epochs"]
    columns, heads = [], []
    for measure in measures:
        found = results.values(measure, difficulty, num_epochs=epochs)
        if found:
            columns += [(measure, results.values(measure, difficulty)), (measure, found)]
            heads += [f"{_head(measure)}: {n} epochs" for n in (results.config.prm["num_train_epochs"], epochs)]
    rows = [
        [label, *(_mean(results, measure, list(of_labels.get(label, {}).values())) for measure, of_labels in columns)]
        for label in longer["labels"]
    ]
    if not columns:
        return []
    differences = difference_matrix(results, difficulty, measures, num_epochs=epochs)
    return [table(["Labels", *heads], rows), f"After {epochs} epochs, differences from soft labels. {differences}"]


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
    first = aggregations[0]
    pairs = sum(result["values"]["all"][BASELINE][first]["pairs"] for result in of_seeds)
    say = (
        f"PRMs without an error: right answers of best of {largest} in per cent, and in brackets how many of "
        f"{pairs:,} pairs of solutions of one problem stand in the opposite order as by p itself"
        f"{_fewer_seeds(len(of_seeds), len(results.config.seeds))}. The last two steps are the last operation and the "
        f"answer: behind them p is 0 or 1. {exact_verdict(results, difficulty)}"
    )
    return say.rstrip() + "\n\n" + table(["Scores", "Steps", "Labels", *aggregations], rows)


def exact_verdict(results: Results, difficulty: str) -> str:
    """Whether labels order alike on exact values where theory says so; empty where nothing was asked."""
    of_seeds = [result["exact"] for result in results.of("pool", difficulty).values()]
    names = [how for how in ORDER_ONLY if how in results.config.best_of_n["aggregations"]]
    found = [
        of_label[how]
        for result in of_seeds
        for of_steps in result.values()
        for of_labels in of_steps.values()
        for of_label in of_labels.values()
        for how in names
    ]
    if not found:
        return ""
    bad, pairs = (sum(one[key] for one in found) for key in ("inverted_pairs", "pairs"))
    verdict = "holds" if bad == 0 else "FAILS"
    return (
        f"The prediction that under {', '.join(names)} PRMs without an error order alike, whatever the label, "
        f"{verdict}: {bad:,} inverted pairs of {pairs:,} compared"
        f"{_fewer_seeds(len(of_seeds), len(results.config.seeds))}."
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
                number = _fewer_seeds(len(of_seeds), len(results.config.seeds))
                cells.append(f"{100 * inverted:.1f} / {100 * same:.1f}{number}")
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


def _progress(results: Results) -> str:
    """From what a report is: seeds, units, processor time, and what is missing."""
    units = list_units(results.config, PARTS)
    hours = sum(result["processor_seconds"] for result in results.of_units.values()) / 3600
    seeds = ", ".join(str(seed) for seed in results.config.seeds)
    say = f"{len(results.of_units):,} of {len(units):,} units finished"
    missing: dict[tuple[str, int, int], list[str]] = {}  # labels by their PRMs, each as often as it is missing
    for unit in units:
        if unit not in results.of_units:
            missing.setdefault((unit.kind, unit.num_rollouts, unit.num_epochs), []).append(unit.label)
    told = []
    for (kind, num_rollouts, num_epochs), labels in missing.items():
        of = f" of {num_rollouts} rollouts" if num_rollouts else ""
        of += f" and {num_epochs} epochs" if num_epochs else ""
        names = f" ({', '.join(dict.fromkeys(labels))})" if labels[0] else ""
        told.append(f"{len(labels)} {kind}{of}{names}")
    head = f"Seeds {seeds}; {f'**{say}**' if missing else say}; {hours:,.1f} processor hours."
    return f"{head} Missing: {'; '.join(told)}." if missing else head


def _overview(results: Results) -> str:
    config = results.config
    num_seeds = len(config.seeds)
    rows = []
    for difficulty in config.difficulties:
        of_labels, of_pool = (list(results.of(kind, difficulty).values()) for kind in ("labels", "pool"))
        if not of_labels:
            continue
        errors = ", ".join(_share_error(of_labels, n, num_seeds) for n in sorted(config.num_rollouts, reverse=True))
        sampled = f"{100 * np.mean([result['sampled'] for result in of_pool]):.1f}" if of_pool else ""
        sampled += _fewer_seeds(len(of_pool), num_seeds) if of_pool else ""
        rows.append(
            [
                difficulty,
                str(len(of_labels)) + (f" of {num_seeds}" if len(of_labels) < num_seeds else ""),
                f"{np.mean([result['num_solutions'] for result in of_labels]):,.0f}",
                f"{np.mean([result['num_unique_prefixes'] for result in of_labels]):,.0f}",
                f"{100 * np.mean([result['right_answers'] for result in of_labels]):.1f}",
                sampled,
                errors,
            ]
        )
    numbers = ", ".join(str(n) for n in sorted(config.num_rollouts, reverse=True))
    heads = ["Difficulty", "Seeds", "Solutions", "Different prefixes", "Right, %", "Right at temperature 1, %"]
    say = "Means over seeds, with 95 % intervals by Student's t in brackets; n is named where seeds are missing."
    return f"{say}\n\n" + table([*heads, f"Error of the share of right rollouts ({numbers} rollouts)"], rows)


def _share_error(of_labels: Sequence[Mapping[str, Any]], num_rollouts: int, num_seeds: int) -> str:
    """Mean over the seeds that have it: not those whose labels were made before this number was asked for."""
    found = [result["share_error"].get(str(num_rollouts)) for result in of_labels]
    errors = [error for error in found if error is not None]
    return f"{np.mean(errors):.3f}{_fewer_seeds(len(errors), num_seeds)}" if errors else "not measured"


def _sections(sections: Sequence[tuple[str, Sequence[str]]], heading: str) -> list[str]:
    """Titles with their tables; without what has none yet."""
    found = [(title, [table for table in tables if table]) for title, tables in sections]
    return [part for title, tables in found if tables for part in (f"{heading}: {title}", *tables)]


def _with_notes(headline: str) -> list[str]:
    notes = (
        "Best of n, min: of n candidates the one with the best lowest step is taken. RFT and GRPO: right answers of a "
        "sample of the policy after training. Error and bias of p: of the success probability that a score stands "
        "for; hard labels have no such inverse."
    )
    return [headline, notes] if headline else []


# Their cells


def _compared(
    results: Results, difficulty: str, measure: Measure, num_rollouts: int | None = None, num_epochs: int = 0
) -> dict[str, Difference]:
    return compare_with(BASELINE, results.values(measure, difficulty, num_rollouts, num_epochs))


def _verdict(measure: Measure, difference: Difference) -> str:
    if not difference.p_value < LEVEL:  # NaN, too
        return _NO_DIFFERENCE
    return "better" if (difference.mean > 0) is measure.higher_is_better else "worse"


def _mean(results: Results, measure: Measure, values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, number = mean_over_seeds(values), _fewer_seeds(len(values), len(results.config.seeds))
    if mean.n < 2:
        return measure.show(mean.mean) + number
    low, high = max(mean.low, measure.limits[0]), min(mean.high, measure.limits[1])
    return f"{measure.show(mean.mean)} [{measure.show(low)}, {measure.show(high)}]{number}"


def _fewer_seeds(n: int, num_seeds: int) -> str:
    """Behind a value of fewer seeds than there are."""
    return f" (n = {n})" if n < num_seeds else ""


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
