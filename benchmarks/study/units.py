"""Units of work: which there are, in which order, what each needs, and the file that says it is finished."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_erprm.manifest import write_atomically

from .config import BASELINE, StudyConfig

KINDS = ("labels", "prm", "pool", "scores", "rft", "grpo")
_KINDS_OF_PART = {
    "labels": ["labels"],
    "prms": ["prm"],
    "best_of_n": ["pool", "scores"],
    "rft": ["rft"],
    "grpo": ["grpo"],
}


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Attributes:
        kind (`str`): `"labels"` (policy and rollouts), `"prm"` (training), `"pool"` (candidates, and what needs no
            PRM), `"scores"` (measures of a PRM), `"rft"` or `"grpo"`.
        difficulty (`str`), seed (`int`): which task.
        label (`str`), num_rollouts (`int`): which PRM; empty and 0 where there is none.
        num_epochs (`int`): of a PRM that is trained longer than the others, else 0.
    """

    kind: str
    difficulty: str
    seed: int
    label: str = ""
    num_rollouts: int = 0
    num_epochs: int = 0

    @property
    def prm_name(self) -> str:
        """Name of its PRM. An outcome model learns from no rollout, so there is one for all numbers of them."""
        name = self.label if self.label == "outcome" else f"{self.label}-{self.num_rollouts}"
        return f"{name}-{self.num_epochs}-epochs" if self.num_epochs else name

    @property
    def name(self) -> str:
        """What it is called on the console."""
        return f"{self.difficulty} seed {self.seed} {self.kind}" + (f" {self.prm_name}" if self.label else "")

    def directory(self, root: str | Path) -> Path:
        """Of its task."""
        return Path(root) / self.difficulty / f"seed-{self.seed}"

    def path(self, root: str | Path) -> Path:
        """The file that holds its result once it is finished."""
        name = f"{self.kind}-{self.prm_name}" if self.label else self.kind
        return self.directory(root) / "units" / f"{name}.json"


def requirements(unit: Unit) -> list[Unit]:
    """The units that have to be finished before."""
    task = {"difficulty": unit.difficulty, "seed": unit.seed}
    prm = {"label": unit.label, "num_rollouts": unit.num_rollouts, "num_epochs": unit.num_epochs}
    if unit.kind == "labels":
        return []
    if unit.kind in ("prm", "pool"):
        return [Unit("labels", **task)]
    if unit.kind in ("rft", "grpo"):
        return [Unit("prm", **task, **prm)]
    needed = [Unit("prm", **task, **prm), Unit("pool", **task)]
    if unit.label not in (BASELINE, "outcome"):  # ranks are compared with those by soft labels, all else being equal
        needed.append(Unit("scores", **task, **{**prm, "label": BASELINE}))
    return needed


def list_units(config: StudyConfig, parts: Iterable[str]) -> list[Unit]:
    """
    The units of parts of a study, with those they need, in the order of work: part by part, and the seeds innermost,
    so that a run that is stopped has about as many seeds of each setting.
    """
    kinds = [kind for part in parts for kind in _KINDS_OF_PART[part]]
    tasks = [(difficulty, seed) for seed in config.seeds for difficulty in config.difficulties]
    wanted = []
    for kind in KINDS:
        if kind not in kinds:
            continue
        if kind in ("labels", "pool"):
            wanted += [Unit(kind, *task) for task in tasks]
            continue
        is_policy = kind in ("rft", "grpo")
        for num_rollouts in [config.most_rollouts] if is_policy else sorted(config.num_rollouts, reverse=True):
            for label in config.policy_labels if is_policy else config.labels:
                if label == "outcome" and num_rollouts != config.most_rollouts:
                    continue
                wanted += [Unit(kind, *task, label, num_rollouts) for task in tasks]
        if not is_policy and (longer := config.longer_training):
            for label in longer["labels"]:
                prm = (label, config.most_rollouts, longer["num_train_epochs"])
                wanted += [Unit(kind, *task, *prm) for task in tasks if task[0] in longer["difficulties"]]
    return _with_requirements(wanted)


def _with_requirements(units: Sequence[Unit]) -> list[Unit]:
    ordered: dict[Unit, None] = {}

    def add(unit: Unit) -> None:
        for needed in requirements(unit):
            add(needed)
        ordered[unit] = None

    for unit in units:
        add(unit)
    return list(ordered)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Says that a unit is finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(result, indent=1) + "\n")


def read_result(path: Path) -> dict[str, Any] | None:
    """The result of a unit, `None` if it is not finished."""
    return json.loads(path.read_text()) if path.exists() else None
