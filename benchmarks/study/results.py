"""What finished units hold: a value for each seed, by measure, setting and difficulty."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from .config import PARTS, StudyConfig
from .units import Unit, list_units, read_result


class Measure(NamedTuple):
    """
    What is read from the results of a kind of unit.

    Attributes:
        name (`str`): as in the tables.
        kind (`str`): kind of unit.
        path (`tuple[str | int, ...]`): where it stands in the result.
        unit (`str`): `"%"` for shares that are shown in per cent, else empty.
        higher_is_better (`bool`): direction.
        limits (`tuple[float, float]`): between which it lies, and intervals of its mean are cut off.
    """

    name: str
    kind: str
    path: tuple[str | int, ...]
    unit: str = ""
    higher_is_better: bool = True
    limits: tuple[float, float] = (0.0, 1.0)

    def show(self, value: float, sign: bool = False) -> str:
        """A value as the tables write it."""
        return format(100 * value if self.unit else value, ("+" if sign else "") + (".1f" if self.unit else ".3f"))


STEP_AUROC = Measure("step AUROC", "scores", ("step_auroc",))
STEP_PAIRS = Measure("right prefix above wrong", "scores", ("step_pair_accuracy",), "%")
P_CORRELATION = Measure("rank correlation with p", "scores", ("p_correlation",), limits=(-1.0, 1.0))
P_ERROR = Measure("error of p", "scores", ("p_error",), higher_is_better=False)
P_BIAS = Measure("bias of p", "scores", ("p_bias",), limits=(-1.0, 1.0))
P_BIAS_IF_PERFECT = Measure("... of a perfect fit", "scores", ("p_bias_if_perfect",), limits=(-1.0, 1.0))
RFT = Measure("RFT", "rft", ("history", -1, "sampled"), "%")
GRPO = Measure("GRPO", "grpo", ("history", -1, "sampled"), "%")


_OF_UNIT = ("difficulty", "seed", "kind", "label", "num_rollouts", "num_epochs")


def best_of_n(aggregation: str, n: int) -> Measure:
    """The accuracy of best of n by an aggregation."""
    return Measure(f"best of {n}, {aggregation}", "scores", ("best_of_n", aggregation, str(n)), "%")


@dataclass(frozen=True)
class Results:
    """The results of all finished units of a study."""

    config: StudyConfig
    of_units: dict[Unit, dict[str, Any]]

    @classmethod
    def read(cls, config: StudyConfig) -> "Results":
        """From the files of the study's directory."""
        found = {unit: read_result(unit.path(config.output_dir)) for unit in list_units(config, PARTS)}
        return cls(config, {unit: result for unit, result in found.items() if result is not None})

    def of(
        self, kind: str, difficulty: str, label: str = "", num_rollouts: int = 0, num_epochs: int = 0
    ) -> dict[int, dict[str, Any]]:
        """The result of each seed, for one kind of unit and one PRM. An outcome model is one for all rollouts."""
        if label == "outcome":
            num_rollouts = self.config.most_rollouts
        units = (Unit(kind, difficulty, seed, label, num_rollouts, num_epochs) for seed in self.config.seeds)
        return {unit.seed: self.of_units[unit] for unit in units if unit in self.of_units}

    def values(
        self, measure: Measure, difficulty: str, num_rollouts: int | None = None, num_epochs: int = 0
    ) -> dict[str, dict[int, float]]:
        """By label, the measure of each seed; labels that do not have it are left out."""
        num_rollouts = self.config.most_rollouts if num_rollouts is None else num_rollouts
        found = {}
        for label in self.config.labels:
            results = self.of(measure.kind, difficulty, label, num_rollouts, num_epochs)
            values = {seed: value_at(result, measure.path) for seed, result in results.items()}
            values = {seed: value for seed, value in values.items() if value is not None}
            if values:
                found[label] = values
        return found

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every number of every unit, by its path in the result."""
        for unit, result in self.of_units.items():
            of_unit = {name: getattr(unit, name) for name in _OF_UNIT}
            for path, value in _leaves(result):
                yield {**of_unit, "measure": path, "value": value}

    def csv(self) -> str:
        """[`rows`] as a table of comma-separated values."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [*_OF_UNIT, "measure", "value"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()


def value_at(result: Any, path: tuple[str | int, ...]) -> Any:
    """What stands at a path of keys and indices.

    Example:

    ```python
    >>> value_at({"history": [{"sampled": 0.5}, {"sampled": 0.6}]}, ("history", -1, "sampled"))
    0.6

    ```
    """
    for key in path:
        result = result[key]
    return result


def _leaves(result: Any, above: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(result, dict | list):
        items = result.items() if isinstance(result, dict) else enumerate(result)
        for key, value in items:
            yield from _leaves(value, f"{above}/{key}" if above else str(key))
    elif isinstance(result, int | float):
        yield above, result
