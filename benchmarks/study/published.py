"""What of a study goes into benchmarks/RESULTS.md: how long it took, and how labels differ from soft ones."""

import time
from pathlib import Path

from .._measurements import Measurement, day_of, read_measurements, write_measurements
from .config import BASELINE, PARTS
from .paired import compare_with
from .results import GRPO, RFT, STEP_AUROC, Measure, Results, best_of_n
from .units import list_units

BENCHMARK = "Controlled study"
LEAST_SEEDS = 10
"""Of fewer seeds no difference is published: docs/study.md says what can be shown with three."""


def file_name(config_path: Path) -> str:
    """Of the measurements of a config, in the directory of the study and among those that are published.

    Example:

    ```python
    >>> file_name(Path("benchmarks/study/small.yaml")), file_name(Path("benchmarks/study/config.yaml"))
    ('study_small.json', 'study.json')

    ```
    """
    return "study.json" if config_path.stem == "config" else f"study_{config_path.stem}.json"


def measurements(results: Results, seconds: float | None, num_jobs: int) -> list[Measurement]:
    """
    Rows of a finished study: its time and, of enough seeds, differences from soft labels.

    Args:
        results (`Results`): of all units.
        seconds (`float`, *optional*): wall time, if all units were done in one go.
        num_jobs (`int`): processes that did them.
    """
    config = results.config
    setting, rows = _setting(results), []
    if seconds is not None:
        jobs = f"{num_jobs} processes" if num_jobs > 1 else "1 process"
        rows.append(Measurement(BENCHMARK, f"wall time with {jobs}", "", setting, seconds / 60, "min"))
    hours = sum(result["processor_seconds"] for result in results.of_units.values()) / 3600
    rows.append(Measurement(BENCHMARK, "processor time", "", setting, hours, "h"))
    if len(config.seeds) < LEAST_SEEDS:
        return rows
    of_candidates = best_of_n("min", max(config.best_of_n["sizes"]))
    for measure in (of_candidates, STEP_AUROC, RFT, GRPO):
        for difficulty in config.difficulties:
            rows += _differences(results, measure, difficulty)
    return rows


def _setting(results: Results) -> str:
    config = results.config
    return f"{len(config.seeds)} seeds, {len(config.labels)} labels, {len(results.of_units):,} units"


def _differences(results: Results, measure: Measure, difficulty: str) -> list[Measurement]:
    scale, unit = (100, "points") if measure.unit else (1, "")
    return [
        Measurement(
            BENCHMARK,
            f"{measure.name}: difference",
            f"{BASELINE} labels",
            f"`{label}`, {difficulty}",
            *(scale * difference.mean, unit, scale * difference.low, scale * difference.high),
            note=f"95 %, {difference.n} seeds",
        )
        for label, difference in compare_with(BASELINE, results.values(measure, difficulty)).items()
    ]


def write_published(results: Results, path: Path, started: float | None, num_jobs: int) -> None:
    """
    Writes the measurements of a study, if it is finished; of a part nothing is published. What was written of the same
    units stays, as it may have their wall time.

    Args:
        results (`Results`): of a study.
        path (`Path`): the file.
        started (`float`, *optional*): `time.time()` at the start, if all units were done since; else `None`.
        num_jobs (`int`): processes that did them.
    """
    config = results.config
    units = list_units(config, PARTS)
    if len(results.of_units) < len(units):
        print(f"{path} is written when all units are finished: {len(results.of_units):,} of {len(units):,} are.")
        return
    if started is None and path.exists():
        if any(row.setting == _setting(results) for row in read_measurements(path).rows):
            return
    seconds = None if started is None else time.time() - started
    files = [unit.path(config.output_dir) for unit in units]
    rows = measurements(results, seconds, num_jobs)
    write_measurements(path, rows, started, 1, config.device, date=None if started else day_of(files))
