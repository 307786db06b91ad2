"""What a benchmark found, in a file of its own: `python -m benchmarks.results` makes RESULTS.md from such files."""

import datetime
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BENCHMARKS = (
    "Rollouts",
    "Labels",
    "Training a PRM",
    "PRM on several processes",
    "Scoring",
    "Process rewards",
    "GRPO on steps",
    "PPO",
    "Rejection-sampling fine-tuning",
    "Quickstart",
    "Evaluation",
    "Controlled study",
)
"""Parts of the project that are measured, in the order of the table."""

PACKAGES = ("torch", "transformers", "trl", "trl-erprm")
DIGITS = 6  # of a number in a file: more than any measurement has


@dataclass(frozen=True)
class Measurement:
    """
    A row of the table: one number.

    Args:
        benchmark (`str`):
            The part of the project, one of [`BENCHMARKS`].
        measured (`str`):
            What was measured: of what, and which quantity.
        against (`str`):
            What it is compared with. Empty where the number stands for itself.
        setting (`str`):
            What distinguishes this row from others of the benchmark: the model, the data, the option.
        value (`float`, *optional*):
            The number. `None` where there is none; `note` then says why.
        unit (`str`):
            `"x"` for a ratio, else for example `"%"`, `"MB"` or `"ms"`; empty for a number without a unit.
        low (`float`, *optional*), high (`float`, *optional*):
            Its range over rounds or seeds, or its 95 % interval, as `note` says. Both or neither.
        note (`str`, *optional*, defaults to `""`):
            What stands behind the number in its cell.

    Raises:
        `ValueError`: for an unknown benchmark, for half a range, and for no value without a note.

    Example:

    ```python
    >>> Measurement("Scoring", "completions/s", "reference", "shuffled", 2.644, "x", 2.5, 2.71, "3 rounds").shown()
    '2.64 x (2.50 to 2.71), 3 rounds'
    >>> Measurement("Scoring", "difference of a score", "reference", "shuffled", 1.49e-06, "").shown()
    '1.5e-06'

    ```
    """

    benchmark: str
    measured: str
    against: str
    setting: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __post_init__(self):
        if self.benchmark not in BENCHMARKS:
            raise ValueError(
                f"`benchmark` is {self.benchmark!r}, but must be one of {', '.join(map(repr, BENCHMARKS))}. Add a new "
                "one to `BENCHMARKS` (benchmarks/_measurements.py), at its place in the table."
            )
        if (self.low is None) != (self.high is None):
            raise ValueError(f"Half a range: `low` is {self.low}, `high` is {self.high}. Give both or neither.")
        if self.value is None and not self.note:
            raise ValueError(f"{self.measured!r} has neither `value` nor `note`. Say in `note` why there is no value.")

    def shown(self) -> str:
        """The cell of the table."""
        if self.value is None:
            return self.note
        text = f"{show_number(self.value)} {self.unit}".rstrip()
        if self.low is not None:
            text += f" ({show_number(self.low)} to {show_number(self.high)})"
        return f"{text}, {self.note}" if self.note else text


def over_rounds(values: Sequence[float], value: float) -> dict[str, Any]:
    """`value`, `low`, `high` and `note` of a row whose measurement was repeated; without a range where it was not.

    Example:

    ```python
    >>> over_rounds([1.2, 1.0, 1.1], value=1.1)
    {'value': 1.1, 'low': 1.0, 'high': 1.2, 'note': '3 rounds'}
    >>> over_rounds([1.2], value=1.2)
    {'value': 1.2}

    ```
    """
    if len(values) == 1:
        return {"value": value}
    return {"value": value, "low": min(values), "high": max(values), "note": f"{len(values)} rounds"}


def show_number(value: float) -> str:
    """Two decimals; fewer from 10 on, more below 0.1, a power of ten below 0.001.

    Example:

    ```python
    >>> [show_number(x) for x in (12345.6, 99.96, 12.345, 1.5, 0.1, 0.0123, 0.00012, 0.0)]
    ['12,346', '100', '12.3', '1.50', '0.10', '0.012', '1.2e-04', '0']

    ```
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) < 0.0995:
        return f"{value:#.2g}"
    if abs(value) < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 99.95 else f"{value:,.0f}"


def write_measurements(
    path: Path,
    rows: Sequence[Measurement],
    started: float | None,
    num_threads: int,
    device: str = "cpu",
    details: Any = None,
    date: str | None = None,
    origins: Sequence[Mapping[str, Any] | None] = (),
) -> None:
    """
    Writes rows with how they came about: command, machine, versions, date, and the seconds that the run took.

    Args:
        path (`Path`):
            The file; its folder is made.
        rows (`Sequence[Measurement]`):
            What was found.
        started (`float`, *optional*):
            `time.time()` at the start of the run. `None` where results of an earlier run were taken up, so that the
            time of this one says nothing.
        num_threads (`int`):
            Threads of each process on the CPU.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where the models were, as torch names it.
        details (*optional*):
            What else the run found, as JSON; numbers are rounded to six digits.
        date (`str`, *optional*):
            Day of the measurements, `YYYY-MM-DD`, where they were taken up from an earlier run ([`day_of`]). `None`:
            today.
        origins (`Sequence[Mapping[str, Any] | None]`, *optional*, defaults to `()`):
            Of results that may have been taken up: the [`origin`] stored with each when it was made, `None` where none
            was. Where all are there and the same, the file has this machine and these versions, else those of the run
            that only collects, and says so.

    Raises:
        `ValueError`: if there are no rows, or numbers that are nan or infinite.
    """
    if not rows:
        raise ValueError(f"There is nothing to write to {path}: `rows` is empty. Give at least one measurement.")
    here = origin(num_threads, device)
    is_known = bool(origins) and all(of_result is not None and of_result == origins[0] for of_result in origins)
    report = {
        "command": reader_command(sys.argv),
        "date": date or datetime.date.today().isoformat(),
        "seconds": None if started is None else round(time.time() - started),
        **(origins[0] if is_known else here),
        **({"origin_known": is_known} if started is None else {}),
        "rows": [asdict(row) for row in rows],
    }
    if details is not None:
        report["details"] = details
    try:
        text = json.dumps(_rounded(report), indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(
            f"A number of {path} is nan or infinite. Give None, and say in the row's `note` why there is no value."
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"Written to {path}", flush=True)


def day_of(paths: Iterable[Path]) -> str:
    """The day on which the newest of these files was written: the date of results that a script takes up again."""
    return datetime.date.fromtimestamp(max(path.stat().st_mtime for path in paths)).isoformat()


def origin(num_threads: int, device: str = "cpu") -> dict[str, Any]:
    """What a script stores with results that a later run may take up: machine and versions, as the file has them."""
    return {"machine": describe_machine(num_threads, device), "versions": installed_versions()}


def of_part(output: Path, part: str) -> Path:
    """The file of one part of a benchmark that has several: `rft.json` -> `rft_memory.json`."""
    return output.with_stem(f"{output.stem}_{part}")


def reader_command(argv: Sequence[str]) -> str:
    """
    The command line as a reader types it in the root of the repository: without `--output`, and without folders that
    only this machine has.

    Example:

    ```python
    >>> reader_command(["/home/me/benchmarks/rft.py", "--memory", "--output", "a.json", "--data", "/home/me/d"])
    'python benchmarks/rft.py --memory --data d'
    >>> reader_command(["/home/me/benchmarks/study/__main__.py", "--jobs", "4"])
    'python -m benchmarks.study --jobs 4'

    ```
    """
    words, rest = [], iter(argv[1:])
    for word in rest:
        if word == "--output":
            next(rest, None)
        elif not word.startswith("--output="):
            words.append(Path(word).name if Path(word).is_absolute() else word)
    script = Path(argv[0])
    is_package = script.name == "__main__.py"
    program = ["-m", f"benchmarks.{script.parent.name}"] if is_package else [f"benchmarks/{script.name}"]
    return shlex.join(["python", *program, *words])


def describe_machine(num_threads: int, device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, memory, threads used, and the accelerator where one is used. No name of a host."""
    import psutil

    gpu = None
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_name(device)
    return {
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "num_threads": num_threads,
        "gpu": gpu,
    }


def installed_versions() -> dict[str, str]:
    """Version of each package that the figures depend on, those that are not installed left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


@dataclass(frozen=True)
class Run:
    """
    A file of measurements, read: [`write_measurements`] says what each field holds. `origin_known`: where results were
    taken up from an earlier run, whether machine and versions are theirs, not those of the run that collected them.
    """

    command: str
    date: str
    seconds: float | None
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    rows: tuple[Measurement, ...]
    details: Any = None
    origin_known: bool = False


# By field: the types that it may have, and what the message says of them.
_TEXT, _COUNT = ((str,), "a text"), ((int,), "a whole number")
_NUMBER = ((int, float), "a finite number")
_NUMBER_OR_NONE = ((int, float, type(None)), "a finite number or null")
_TYPES_OF_FILE = {
    "command": _TEXT,
    "date": _TEXT,
    "seconds": _NUMBER_OR_NONE,
    "machine": ((dict,), "a mapping"),
    "versions": ((dict,), "a mapping"),
    "rows": ((list,), "a list of measurements"),
    "origin_known": ((bool,), "true or false"),
}
_TYPES_OF_MACHINE = {
    "processor": _TEXT,
    "num_cores": ((int, type(None)), "a whole number or null"),
    "memory_gib": _NUMBER,
    "num_threads": _COUNT,
    "gpu": ((str, type(None)), "a text or null"),
}
_TYPES_OF_ROW = {
    **dict.fromkeys(("benchmark", "measured", "against", "setting", "unit", "note"), _TEXT),
    **dict.fromkeys(("value", "low", "high"), _NUMBER_OR_NONE),
}


def read_measurements(path: Path) -> Run:
    """
    Reads a file of [`write_measurements`].

    Raises:
        `ValueError`: where the file is no JSON, lacks or adds a field, or has a value of a wrong type in one, naming
            the file and the field.
    """
    advice = "Write it with a script of benchmarks/ (`make bench`), or take it away."
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}. {advice}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}. {advice}") from error
    names, optional = {f.name for f in fields(Run)}, {"details", "origin_known"}
    _check_fields(path, "the file", report, names, optional=optional, advice=advice)
    _check_types(path, "", report, _TYPES_OF_FILE, advice)
    try:
        datetime.date.fromisoformat(report["date"])
    except ValueError as error:
        raise ValueError(f"{path}: `date` must be a day, YYYY-MM-DD, got {report['date']!r}. {advice}") from error
    _check_fields(path, "`machine`", report["machine"], set(_TYPES_OF_MACHINE), advice=advice)
    _check_types(path, "`machine`, ", report["machine"], _TYPES_OF_MACHINE, advice)
    _check_types(path, "`versions`, ", report["versions"], dict.fromkeys(report["versions"], _TEXT), advice)
    if not report["rows"]:
        raise ValueError(f"{path}: `rows` must be a list of measurements, got {report['rows']!r}. {advice}")
    rows = []
    for number, row in enumerate(report["rows"]):
        _check_fields(path, f"row {number}", row, {f.name for f in fields(Measurement)}, advice=advice)
        _check_types(path, f"row {number}, ", row, _TYPES_OF_ROW, advice)
        try:
            rows.append(Measurement(**row))
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    return Run(**{**report, "rows": tuple(rows)})


def _check_fields(path: Path, where: str, found: Any, expected: set, optional: set = frozenset(), advice: str = ""):
    names = set(found) if isinstance(found, dict) else None
    if names is None:
        raise ValueError(f"{path}: {where} must be a mapping, got {type(found).__name__}. {advice}")
    missing, unknown = sorted(expected - optional - names), sorted(names - expected)
    if missing or unknown:
        problems = (("lacks", missing), ("has unknown", unknown))
        text = " and ".join(f"{problem} {', '.join(names)}" for problem, names in problems if names)
        raise ValueError(f"{path}: {where} {text}. {advice}")


def _check_types(path: Path, where: str, found: Mapping, types: Mapping[str, tuple], advice: str) -> None:
    """Of the fields that are there. In Python true is a whole number, and JSON may hold nan."""
    for name, (accepted, described) in types.items():
        if name not in found:
            continue
        value = found[name]
        is_right = isinstance(value, accepted) and isinstance(value, bool) == (bool in accepted)
        if not is_right or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{path}: {where}`{name}` must be {described}, got {value!r}. {advice}")


def _processor() -> str:
    """Its model where the system tells it, and its architecture."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:  # not Linux
        pass
    return f"{model} ({platform.machine()})" if model else platform.machine()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return value if value != value or abs(value) == float("inf") else float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {str(key): _rounded(of_key) for key, of_key in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
