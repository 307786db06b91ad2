"""What a study does: its config file, and what a label's name stands for."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from trl_erprm.arithmetic import ArithmeticTask
from trl_erprm.choices import check_choice
from trl_erprm.prm.aggregation import check_aggregation

PARTS = ("labels", "prms", "best_of_n", "rft", "grpo")
BASELINE = "soft"
"""The label that the others are compared with."""
CONTROL = "soft-again"
"""Soft labels trained on with another seed: how much two PRMs differ for which nothing but luck differs."""

_ER = re.compile(r"er-(?P<eta>[0-9.]+)")


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
        difficulties (`dict`): by name, the fields of [`ArithmeticTask`] and `policy_steps`, the optimizer steps of the
            policy.
        labeling (`dict`): fields of [`LabelingConfig`], and `num_prompts`.
        prm (`dict`): fields of [`ERPRMConfig`].
        best_of_n (`dict`): `num_problems`, `num_candidates`, `sizes` and `aggregations`.
        rft (`dict`): fields of [`RFTConfig`], and `num_eval_problems`.
        grpo (`dict`): fields of [`StepGRPOConfig`], and `num_eval_problems`.
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

    def __post_init__(self) -> None:
        for name in (*self.labels, *self.policy_labels):
            read_label(name)
        if missing := {BASELINE, *self.policy_labels} - set(self.labels):
            raise ValueError(
                f"`labels` must hold {BASELINE!r}, with which all are compared, and all `policy_labels`; "
                f"{', '.join(sorted(missing))} missing in {self.labels}."
            )
        for how in self.best_of_n["aggregations"]:
            check_aggregation(how)
        if max(self.best_of_n["sizes"]) > self.best_of_n["num_candidates"]:
            raise ValueError(
                f"`best_of_n.sizes` must not exceed `num_candidates`, got {self.best_of_n['sizes']} and "
                f"{self.best_of_n['num_candidates']}."
            )
        for name in self.difficulties:
            self.task(name, seed=0)

    @property
    def most_rollouts(self) -> int:
        """Rollouts that are sampled for a prefix."""
        return max(self.num_rollouts)

    def task(self, difficulty: str, seed: int) -> ArithmeticTask:
        """The task of a difficulty and a seed."""
        settings = {name: value for name, value in self.difficulties[difficulty].items() if name != "policy_steps"}
        return ArithmeticTask(**settings, seed=seed)

    def max_new_tokens(self, difficulty: str) -> int:
        """Enough for a solution, and some for one that goes on: a step has four tokens, the answer two."""
        return 4 * self.task(difficulty, seed=0).num_operations + 12

    def identity(self, difficulty: str) -> dict[str, Any]:
        """What makes two studies the same: seeds, labels and smaller numbers of rollouts may be added to one."""
        return {
            "most_rollouts": self.most_rollouts,
            "difficulty": self.difficulties[difficulty],
            "labeling": self.labeling,
            "prm": self.prm,
            "best_of_n": self.best_of_n,
            "rft": self.rft,
            "grpo": self.grpo,
        }


def read_config(path: str | Path, **changes: Any) -> StudyConfig:
    """
    A study from its YAML file; `changes` that are not `None` replace its values.

    Raises:
        `ValueError`: for a name that no study has, or one that is missing.
    """
    values = yaml.safe_load(Path(path).read_text())
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must hold the names and values of a study, got {values!r}.")
    values = {**values, **{name: value for name, value in changes.items() if value is not None}}
    names = {field.name for field in fields(StudyConfig)}
    if unknown := set(values) - names:
        raise ValueError(f"{path} holds {', '.join(sorted(unknown))}, but a study has {', '.join(sorted(names))}.")
    if missing := names - set(values):
        raise ValueError(f"{path} misses {', '.join(sorted(missing))}. Take benchmarks/study/config.yaml as a model.")
    return StudyConfig(**values)
