"""RESULTS.md from the files of measurements: one table over all benchmarks.

    python -m benchmarks.results                                  # benchmarks/results/*.json -> benchmarks/RESULTS.md
    python -m benchmarks.results --publish outputs/benchmarks     # copies fresh files there first
    python -m benchmarks.results --results outputs/benchmarks --stdout    # only shows a table, as `make bench` does

What stands between the two marks of RESULTS.md is written by this command. What stands around them is written by hand,
holds no measured number, and is left alone.
"""

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ._measurements import BENCHMARKS, Measurement, Run, read_measurements, show_number

HERE = Path(__file__).parent
BEGIN, END = "<!-- begin: python -m benchmarks.results -->", "<!-- end: python -m benchmarks.results -->"
COLUMNS = ("Benchmark", "Measured", "Against", "Setting", "Ratio or value", "Machine", "Command", "Date")
HEADLINES: dict[str, list[tuple[str, str | None]]] = {
    "Rollouts": [("rollouts/s", None)],
    "Labels": [("tokens of adaptive rollouts", None)],
    "Training a PRM": [("useful tokens/s", "`padding_free`")],
    "PRM on several processes": [("largest difference of a loss", None)],
    "Scoring": [("speed by", None)],
    "Process rewards": [
        ("change of the score by the rewriting", "min: `merge_all`"),
        ("the same rewriting, with guards", "min: `merge_all`"),
    ],
    "GRPO on steps": [("samples to the accuracy", "`reward_to_go`")],
    "PPO": [("accuracy of a sample after training", "critic begins as the ER-PRM")],
    "Rejection-sampling fine-tuning": [("accuracy of a sample", "selected by: ER-PRM")],
    "Quickstart": [("wall time of all stages", None)],
    "Evaluation": [("processor time a problem", None)],
    "Controlled study": [("best of 64, min: difference", None)],
}
"""
Of each part, in the order of [`BENCHMARKS`], the rows of the first table: how `measured` begins, and `setting` up to
its first comma; `None` for all settings, whose lowest and highest value are shown. What is taken: [`HEADLINE_RULE`].
"""
HEADLINE_RULE = (
    "Of each part the quantity that it is there for: at the default setting or, where none is a default, from the\n"
    "lowest to the highest value of all settings. No setting is taken for its value."
)


def read_runs(directory: Path) -> dict[str, Run]:
    """
    By name of the file, all runs of a directory.

    Raises:
        `ValueError`: where there is none, or one is of a wrong shape.
    """
    paths = sorted(directory.glob("*.json"))
    if not paths:
        raise ValueError(f"No file of measurements (*.json) in {directory}. `make bench` writes some.")
    return {path.stem: read_measurements(path) for path in paths}


def render(runs: dict[str, Run]) -> str:
    """
    What stands between the marks: headlines, the table over all runs, its machines by letter, its commands by number.

    Example:

    ```python
    >>> machine = {"processor": "P", "num_cores": 4, "memory_gib": 23, "num_threads": 1, "gpu": None}
    >>> from benchmarks._measurements import Measurement
    >>> row = Measurement("Scoring", "completions/s", "reference", "shuffled", 2.0, "x")
    >>> run = Run("python benchmarks/a.py", "2026-01-31", 90, machine, {"torch": "2.13.0"}, (row,))
    >>> print(render({"a": run}))
    ### All rows
    <BLANKLINE>
    All on one machine: P, 4 cores, 23 GiB, 1 thread a process; torch 2.13.0.
    <BLANKLINE>
    | Benchmark | Measured | Against | Setting | Ratio or value | Command | Date |
    |---|---|---|---|---|---|---|
    | **Scoring** | completions/s | reference | shuffled | 2.00 x | 1 | 2026-01-31 |
    <BLANKLINE>
    **Commands**, with the time that each took:
    <BLANKLINE>
    1. `python benchmarks/a.py` (90 s)

    ```
    """
    of_rows = in_order(runs)
    machines = list(dict.fromkeys(describe(run) for _, run in of_rows))
    commands = list(dict.fromkeys(run.command for _, run in of_rows))

    lines = []
    if shown := headlines([row for row, _ in of_rows]):
        lines += ["### In short", "", HEADLINE_RULE, "", *_table(COLUMNS[:5], shown), ""]
    lines += ["### All rows", ""]
    if len(machines) == 1:
        lines += [f"All on one machine: {machines[0]}.", ""]
    columns = [column for column in COLUMNS if column != "Machine" or len(machines) > 1]
    cells = []
    for row, run in of_rows:
        machine = [_letter(machines.index(describe(run)))] if len(machines) > 1 else []
        of_run = [*machine, str(1 + commands.index(run.command)), run.date]
        cells.append([f"**{row.benchmark}**", row.measured, row.against, row.setting, row.shown(), *of_run])
    lines += _table(columns, cells)
    if len(machines) > 1:
        lines += ["", "**Machines.**", ""]
        lines += [f"- {_letter(number)}: {machine}" for number, machine in enumerate(machines)]
    lines += ["", "**Commands**, with the time that each took:", ""]
    for number, command in enumerate(commands, start=1):
        lines.append(f"{number}. `{command}` ({_took([run for run in runs.values() if run.command == command])})")
    return "\n".join(lines)


def in_order(runs: dict[str, Run]) -> list[tuple[Measurement, Run]]:
    """All rows with their runs, in the order of [`BENCHMARKS`]; in a part what measures the same stands together."""
    of_rows = [(row, run) for run in runs.values() for row in run.rows]
    firsts: dict[tuple[str, str], int] = {}  # the first place of a quantity, whatever model it is of
    for place, (row, _) in enumerate(of_rows):
        firsts.setdefault((row.benchmark, _quantity(row)), place)
    return sorted(
        of_rows,
        key=lambda of_row: (
            BENCHMARKS.index(of_row[0].benchmark),
            firsts[of_row[0].benchmark, _quantity(of_row[0])],
        ),
    )


def headlines(rows: Sequence[Measurement]) -> list[list[str]]:
    """
    The cells of the rows that [`HEADLINES`] names. Rows that differ in their setting alone are one, with the lowest
    and the highest value.

    Example:

    ```python
    >>> of_part = "Scoring", "speed by wall time", "reference"
    >>> rows = [Measurement(*of_part, setting, value, "x") for setting, value in (("a", 3.0), ("b", 2.0))]
    >>> headlines(rows)
    [['**Scoring**', 'speed by wall time', 'reference', '2 settings, lowest to highest', '2.00 to 3.00 x']]

    ```
    """
    shown = []
    for benchmark, named in HEADLINES.items():
        for measured, setting in named:
            groups: dict[tuple[str, str, str], list[Measurement]] = {}
            for row in rows:
                if row.benchmark == benchmark and row.measured.startswith(measured):
                    if setting is None or row.setting.split(",")[0] == setting:
                        groups.setdefault((row.measured, row.against, row.unit), []).append(row)
            for (of, against, unit), group in groups.items():
                if len(group) == 1:
                    cells = group[0].setting, group[0].shown()
                else:
                    values = [row.value for row in group if row.value is not None]
                    without = (
                        f", {len(group) - len(values)} of them without a value" if len(values) < len(group) else ""
                    )
                    settings = f"{len(group)} settings{without}, lowest to highest"
                    span = (
                        f"{show_number(min(values))} to {show_number(max(values))} {unit}".rstrip() if values else "-"
                    )
                    cells = settings, span
                shown.append([f"**{benchmark}**", of, against, *cells])
    return shown


def describe(run: Run) -> str:
    """Machine and versions of a run, in a line."""
    m, threads = run.machine, "thread" if run.machine["num_threads"] == 1 else "threads"
    parts = [m["gpu"], m["processor"], f"{m['num_cores']} cores", f"{m['memory_gib']} GiB"]
    parts.append(f"{m['num_threads']} {threads} a process")
    versions = ", ".join(f"{package} {number}" for package, number in run.versions.items())
    return f"{', '.join(filter(None, parts))}; {versions}"


def put_between_marks(page: str, text: str) -> str:
    """
    The page with the text between its marks.

    Raises:
        `ValueError`: unless the page has each mark once, in order.

    Example:

    ```python
    >>> page = put_between_marks(f"Before\\n{BEGIN}\\nold\\n{END}\\nafter", "new")
    >>> print(page.replace(BEGIN, "[").replace(END, "]"))
    Before
    [
    <BLANKLINE>
    new
    <BLANKLINE>
    ]
    after

    ```
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(
            f"The page must have the lines {BEGIN!r} and {END!r} once each, in this order: the table goes between."
        )
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def read_merged(source: Path, results: Path) -> tuple[dict[str, Run], list[str]]:
    """
    What a directory holds once the files of another are copied there, and the names of those; nothing is copied.

    Raises:
        `ValueError`: as [`read_runs`], and if both are the same directory.
    """
    if source.resolve() == results.resolve():
        raise ValueError(f"--publish and --results are the same folder, {results}: there is nothing to copy.")
    fresh = read_runs(source)
    kept = {path.stem: path for path in results.glob("*.json") if path.stem not in fresh}
    runs = {**{name: read_measurements(path) for name, path in kept.items()}, **fresh}
    return {name: runs[name] for name in sorted(runs)}, list(fresh)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Its lines. A cell of the first three columns is empty where it says the same as the one above."""
    lines = [_line(columns), "|" + "---|" * len(columns)]
    last: Sequence[str] = ("", "", "")
    for row in rows:
        # What stands above is not repeated, from the left as far as it is the same.
        num_same = next((i for i in range(3) if row[i] != last[i]), 3)
        last = row
        lines.append(_line([*[""] * num_same, *row[num_same:]]))
    return lines


def _quantity(row: Measurement) -> str:
    """What is measured, without the model that it is of."""
    return row.measured.split("; ")[0]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(re.sub(r"\s+", " ", cell.replace("|", "\\|")) for cell in cells) + " |"


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"{_letter(number // 26 - 1)}{_letter(number % 26)}"


def _took(runs: Sequence[Run]) -> str:
    """Of a command, whose parts each say how long they took."""
    taken_up = [run for run in runs if run.seconds is None]
    if taken_up:
        is_known = all(run.origin_known for run in taken_up)
        return "taken up from an earlier run" + ("" if is_known else "; machine and versions of the collecting run")
    seconds = sum(run.seconds for run in runs)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder with files of measurements")
    parser.add_argument("--page", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="copy its files into --results first")
    parser.add_argument("--stdout", action="store_true", help="print the table, and write no page")
    args = parser.parse_args(argv)
    try:
        runs, fresh = read_merged(args.publish, args.results) if args.publish else (read_runs(args.results), [])
        text = render(runs)
        page = None if args.stdout else put_between_marks(args.page.read_text(encoding="utf-8"), text)
        # Nothing is written before all is read and rendered.
        if fresh:
            args.results.mkdir(parents=True, exist_ok=True)
            for name in fresh:
                shutil.copyfile(args.publish / f"{name}.json", args.results / f"{name}.json")
            print(f"Copied to {args.results}: {', '.join(fresh)}")
        if page is None:
            print(text)
        else:
            args.page.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
