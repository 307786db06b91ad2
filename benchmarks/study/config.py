"""What a study does: its config file, and what a label's name stands for."""

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from trl_erprm.arithmetic import ArithmeticTask
from trl_erprm.choices import check_choice

from .checks import (
    check_best_of_n,
    check_integers,
    check_list,
    check_longer_training,
    check_sections,
    check_settings,
)
from .devices import DEVICES

PARTS = ("labels", "prms", "best_of_n", "rft", "grpo")
BASELINE = "soft"
"""The label that the others are compared with."""
CONTROL = "soft-again"
"""Soft labels trained on with another seed: how much two PRMs differ for which nothing but luck differs."""

_OF_POLICY = {
    "policy_steps": "num_steps",
    "policy_batch_size": "batch_size",
    "policy_learning_rate": "learning_rate",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
}
"""Fields of a difficulty that are of the policy, and the arguments of [`train_policy`] that they are."""
_OF_TASK = tuple(one.name for one in fields(ArithmeticTask) if one.name != "seed")

_ER = re.compile(r"er-(?P<eta>\d+(\.\d+)?)")


@dataclass(frozen=True)
class Label:
    """What a PRM learns.

    Attributes:
        name (`str`): as in the config.
        eta (`float`): entropy parameter of its labels.
        is_outcome (`bool`): whether it learns from the last step, the answer, alone.
        seed_offset (`int`): added to the seed of its training.
    """

    name: str
    eta: float
    is_outcome: bool = False
    seed_offset: int = 0


def read_label(name: str) -> Label:
    """
    The label of a name: `soft`, `hard`, `er-<eta>`, `outcome`, or `soft-again`.

    Example:

    ```python
    >>> read_label("er-0.5")
    Label(name='er-0.5', eta=0.5, is_outcome=False, seed_offset=0)

    ```
    """
    if match := _ER.fullmatch(name):
        if not float(match["eta"]):
            raise ValueError(f"`labels` holds {name!r}, but `er-<eta>` asks for an eta above 0: say 'soft'.")
        return Label(name, float(match["eta"]))
    known = {
        "soft": Label("soft", 0.0),
        "hard": Label("hard", math.inf),
        "outcome": Label("outcome", 0.0, is_outcome=True),
        CONTROL: Label(CONTROL, 0.0, seed_offset=1_000),
    }
    if name not in known:
        check_choice("labels", name, (*known, "er-<eta>"))
    return known[name]


@dataclass(frozen=True)
class StudyConfig:
    """
    A study. `config.yaml` says where each value is from.

    Attributes:
        output_dir (`str`): where units and models go.
        seeds (`list[int]`): each has problems, misconceptions, a policy, rollouts and models of its own.
        num_rollouts (`list[int]`): rollouts a prefix behind the labels; the fewer are drawn from the most.
        labels (`list[str]`): labels of the PRMs ([`read_label`]).
        policy_labels (`list[str]`): those with whose PRMs policies are trained (parts rft and grpo).
        difficulties (`dict`): by name, the fields of [`ArithmeticTask`], and of the policy `policy_steps`,
            `policy_batch_size`, `policy_learning_rate`, `hidden_size` and `num_layers` ([`train_policy`]).
        labeling (`dict`): fields of [`LabelingConfig`], and `num_prompts`.
        prm (`dict`): fields of [`ERPRMConfig`].
        best_of_n (`dict`): `num_problems`, `num_candidates`, `sizes` and `aggregations`.
        rft (`dict`): fields of [`RFTConfig`], and `num_eval_problems`.
        grpo (`dict`): fields of [`StepGRPOConfig`], and `num_eval_problems`.
        longer_training (`dict`): PRMs of the most rollouts that are trained for more epochs besides: `difficulties`,
            `labels` and `num_train_epochs`. Empty: none.
        device (`str`): `"cpu"` or `"cuda"`, one GPU for all processes.
    """

    output_dir: str
    seeds: list[int]
    num_rollouts: list[int]
    labels: list[str]
    policy_labels: list[str]
    difficulties: dict[str, dict[str, Any]]
    labeling: dict[str, Any]
    prm: dict[str, Any]
    best_of_n: dict[str, Any]
    rft: dict[str, Any]
    grpo: dict[str, Any]
    longer_training: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_integers("seeds", self.seeds, least=0)
        check_integers("num_rollouts", self.num_rollouts, least=1)
        check_list("labels", self.labels, str)
        check_list("policy_labels", self.policy_labels, str, may_be_empty=True)
        names: dict[Label, str] = {}
        for name in (*self.labels, *self.policy_labels):
            meant = replace(read_label(name), name="")
            if (first := names.setdefault(meant, name)) != name:
                raise ValueError(f"`labels` holds {first!r} and {name!r}, which are the same. Leave one out.")
        if missing := {BASELINE, *self.policy_labels} - set(self.labels):
            raise ValueError(
                f"`labels` must hold {BASELINE!r}, with which all are compared, and all `policy_labels`; "
                f"{', '.join(sorted(missing))} missing in {self.labels}."
            )
        check_best_of_n(self.best_of_n)
        check_settings("difficulties", self.difficulties)
        if not self.difficulties:
            raise ValueError("`difficulties` must hold at least one, got none.")
        for name, settings in self.difficulties.items():
            self._check_difficulty(name, settings)
        check_choice("device", self.device, DEVICES)
        check_sections({name: getattr(self, name) for name in ("labeling", "prm", "rft", "grpo")})
        check_longer_training(self.longer_training, self.difficulties, self.labels, self.prm)
        if self.longer_training and BASELINE not in self.longer_training["labels"]:
            raise ValueError(
                f"`longer_training.labels` must hold {BASELINE!r}, with which all are compared, got "
                f"{self.longer_training['labels']}."
            )

    def _check_difficulty(self, name: Any, settings: Any) -> None:
        check_list("difficulties", [name], str)  # it names a directory
        check_settings(f"difficulties.{name}", settings)
        if unknown := settings.keys() - {*_OF_TASK, *_OF_POLICY}:
            raise ValueError(
                f"The difficulty {name!r} holds {', '.join(sorted(map(str, unknown)))}, but may hold "
                f"{', '.join((*_OF_TASK, *_OF_POLICY))}."
            )
        for key, value in settings.items():
            kind = _type(key)
            if isinstance(value, bool) or not isinstance(value, kind) or (key in _OF_POLICY and value <= 0):
                hint = " YAML reads 1e-3 as text: write 1.0e-3." if isinstance(value, str) else ""
                what = {int: "an integer", str: "text"}.get(kind, "a number")
                above = " above 0" if key in _OF_POLICY else ""
                raise ValueError(f"The difficulty {name!r}: `{key}` must be {what}{above}, got {value!r}.{hint}")
        try:
            self.task(name, seed=0)
        except ValueError as error:
            raise ValueError(f"The difficulty {name!r}: {error}") from error

    @property
    def most_rollouts(self) -> int:
        """Rollouts that are sampled for a prefix."""
        return max(self.num_rollouts)

    def task(self, difficulty: str, seed: int) -> ArithmeticTask:
        """The task of a difficulty and a seed."""
        settings = {name: value for name, value in self.difficulties[difficulty].items() if name in _OF_TASK}
        return ArithmeticTask(**settings, seed=seed)

    def policy(self, difficulty: str) -> dict[str, Any]:
        """Arguments of [`train_policy`] for a difficulty."""
        settings = self.difficulties[difficulty]
        return {argument: settings[name] for name, argument in _OF_POLICY.items() if name in settings}

    def max_new_tokens(self, difficulty: str) -> int:
        """Enough for a solution, and some for one that goes on: a step has four tokens, the answer two."""
        return 4 * self.task(difficulty, seed=0).num_operations + 12

    def max_length(self, difficulty: str) -> int:
        """Enough for a prompt and a solution: a line of the prompt has a token a value and operation and one at its
        end, and one of several has a mark."""
        task = self.task(difficulty, seed=0)
        prompt = (1 + task.num_distractors) * (task.num_operations + 2) + (task.num_distractors > 0)
        return max(128, prompt + self.max_new_tokens(difficulty))

    def identity(self, difficulty: str) -> dict[str, Any]:
        """What makes two studies the same: seeds, labels, smaller numbers of rollouts and
        longer training may be added to one."""
        return {
            "most_rollouts": self.most_rollouts,
            "difficulty": self.difficulties[difficulty],
            "labeling": self.labeling,
            "prm": self.prm,
            "best_of_n": self.best_of_n,
            "rft": self.rft,
            "grpo": self.grpo,
            # named only where it is not a CPU: a run that was begun before there was a choice goes on
            **({"device": self.device} if self.device != "cpu" else {}),
        }


def _type(key: str) -> Any:
    """What the value of a difficulty's field must be."""
    if key in _OF_POLICY:
        return int | float if key == "policy_learning_rate" else int
    default = next(one.default for one in fields(ArithmeticTask) if one.name == key)
    return int | float if isinstance(default, float) else type(default)


def read_config(path: str | Path, **changes: Any) -> StudyConfig:
    """
    A study from its YAML file; `changes` that are not `None` replace its values.

    Raises:
        `ValueError`: without such a file, for a name that no study has or one that is missing, and for a value that a
            study cannot have.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}. Name a config, such as benchmarks/study/config.yaml.")
    try:
        values = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must hold the names and values of a study, got {values!r}.")
    values = {**values, **{name: value for name, value in changes.items() if value is not None}}
    names = {one.name: one.default is one.default_factory is MISSING for one in fields(StudyConfig)}
    if unknown := values.keys() - names:
        raise ValueError(
            f"{path} holds {', '.join(sorted(map(str, unknown)))}, but a study has {', '.join(sorted(names))}."
        )
    if missing := {name for name, is_needed in names.items() if is_needed} - values.keys():
        raise ValueError(f"{path} misses {', '.join(sorted(missing))}. Take benchmarks/study/config.yaml as a model.")
    return StudyConfig(**values)
