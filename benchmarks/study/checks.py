"""What a study's config may hold: asked once, before any work, so that no unit fails for it hours later."""

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trl_erprm.choices import check_choice
from trl_erprm.prm.aggregation import check_aggregation

from .devices import trainer_arguments

_OWN_SETTINGS = {
    "labeling": ("num_prompts",),
    "prm": (),
    "rft": ("num_eval_problems",),
    "grpo": ("num_eval_problems", "eval_steps"),
}
"""By section of the config, what it must hold: the study itself asks for these."""

_OF_STUDY = {
    "labeling": ("num_rollouts", "eta", "max_new_tokens", "verify_how", "prefixes_per_chunk", "seed"),
    "prm": (
        *("output_dir", "eta", "train_on_last_step_only", "head", "max_length", "padding_free", "logging_steps"),
        *("seed", *trainer_arguments("cpu")),
    ),
    "rft": (
        *("output_dir", "max_completion_length", "generation_batch_size", "answer_how", "max_length", "keep_models"),
        *("seed", *trainer_arguments("cpu")),
    ),
    "grpo": (
        *("output_dir", "outcome_weight", "reward_weights", "max_completion_length", "per_device_eval_batch_size"),
        *("eval_strategy", "logging_steps", "seed", *trainer_arguments("cpu")),
    ),
}
"""By section, the fields of its config class that the study sets: [`prms`] and [`policies`]."""

_OF_LONGER_TRAINING = ("difficulties", "labels", "num_train_epochs")
_OF_BEST_OF_N = ("num_problems", "num_candidates", "sizes", "aggregations")


def check_list(name: str, values: Any, of: type, may_be_empty: bool = False) -> None:
    """
    Raises `ValueError` unless `values` is a list of that type, without duplicates.

    Example:

    ```python
    >>> check_list("seeds", 3, int)
    Traceback (most recent call last):
        ...
    ValueError: `seeds` must be a list of int, got 3. Write [3].

    ```
    """
    if not isinstance(values, list | tuple):
        raise ValueError(f"`{name}` must be a list of {of.__name__}, got {values!r}. Write [{values}].")
    if not values and not may_be_empty:
        raise ValueError(f"`{name}` must hold at least one {of.__name__}, got an empty list.")
    for value in values:
        if not isinstance(value, of) or isinstance(value, bool):
            raise ValueError(f"`{name}` must be a list of {of.__name__}, got {value!r} in it.")
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"`{name}` must hold each once, got {', '.join(map(str, twice))} more than once.")


def check_integers(name: str, values: Any, least: int) -> None:
    """Raises `ValueError` unless `values` is a list of different integers, none below `least`."""
    check_list(name, values, int)
    if min(values) < least:
        raise ValueError(f"`{name}` must be at least {least} each, got {min(values)}.")


def check_settings(name: str, settings: Any) -> None:
    """Raises `ValueError` unless a section of the config is one of names and values."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"`{name}` must hold names and values, got {settings!r}.")


def check_best_of_n(settings: Any) -> None:
    """Raises `ValueError` unless the section `best_of_n` has what it needs, and nothing else."""
    check_settings("best_of_n", settings)
    _check_names("best_of_n", settings, _OF_BEST_OF_N, needed=_OF_BEST_OF_N)
    check_list("best_of_n.aggregations", settings["aggregations"], str)
    for how in settings["aggregations"]:
        check_aggregation(how, argument="best_of_n.aggregations")
    check_integers("best_of_n.sizes", settings["sizes"], least=1)
    for name in ("num_problems", "num_candidates"):
        check_integers(f"best_of_n.{name}", [settings[name]], least=1)
    if max(settings["sizes"]) > settings["num_candidates"]:
        raise ValueError(
            f"`best_of_n.sizes` must not exceed `num_candidates`, got {settings['sizes']} and "
            f"{settings['num_candidates']}."
        )


def check_longer_training(
    settings: Any, difficulties: Iterable[str], labels: Iterable[str], prm: Mapping[str, Any]
) -> None:
    """Raises `ValueError` unless the section `longer_training` is empty, or trains PRMs of the study for longer."""
    check_settings("longer_training", settings)
    if not settings:
        return
    _check_names("longer_training", settings, _OF_LONGER_TRAINING, needed=_OF_LONGER_TRAINING)
    for name, known in (("difficulties", difficulties), ("labels", labels)):
        check_list(f"longer_training.{name}", settings[name], str)
        for value in settings[name]:
            check_choice(f"longer_training.{name}", value, tuple(known))
    check_integers("longer_training.num_train_epochs", [settings["num_train_epochs"]], least=1)
    if settings["num_train_epochs"] <= prm.get("num_train_epochs", 0):
        raise ValueError(
            f"`longer_training.num_train_epochs` must be above `prm.num_train_epochs`, got "
            f"{settings['num_train_epochs']} and {prm['num_train_epochs']}."
        )


def check_sections(sections: Mapping[str, Any]) -> None:
    """
    Raises `ValueError` unless each of the sections `labeling`, `prm`, `rft` and `grpo` has what the study asks for,
    and else only fields of its config class that the study does not set itself, with values of their types.
    """
    for name, settings in sections.items():
        check_settings(name, settings)
    from trl_erprm import ERPRMConfig, LabelingConfig, RFTConfig, StepGRPOConfig  # takes seconds

    classes = {"labeling": LabelingConfig, "prm": ERPRMConfig, "rft": RFTConfig, "grpo": StepGRPOConfig}
    for name, settings in sections.items():
        own = _OWN_SETTINGS[name]
        if taken := [key for key in settings if key in _OF_STUDY[name]]:
            raise ValueError(f"`{name}` holds {', '.join(taken)}, but the study sets that itself. Leave it out.")
        known = [field.name for field in fields(classes[name]) if field.init and field.name not in _OF_STUDY[name]]
        _check_names(name, settings, [*own, *known], own, f"fields of {classes[name].__name__}")
        hints = get_type_hints(classes[name])
        for key, value in settings.items():
            if key in hints:
                _check_type(f"{name}.{key}", value, hints[key])
            if key in own:
                check_integers(f"{name}.{key}", [value], least=1)


def _check_names(
    section: str, settings: Mapping[str, Any], known: Iterable[str], needed: tuple[str, ...], what: str = "settings"
) -> None:
    if unknown := [name for name in settings if name not in known]:
        near = difflib.get_close_matches(str(unknown[0]), list(known), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        own = ", ".join(needed)
        accepted = own if set(known) == set(needed) else f"{what}{f' and {own}' if own else ''}"
        raise ValueError(f"`{section}` holds {', '.join(map(str, unknown))}, but may hold {accepted}.{hint}")
    if missing := [name for name in needed if name not in settings]:
        raise ValueError(f"`{section}` misses {', '.join(missing)}. Take benchmarks/study/config.yaml as a model.")


def _check_type(name: str, value: Any, hint: Any) -> None:
    """YAML leaves text what no class would refuse before it calculates with it: `1e-3` has to be `1.0e-3` there."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if any(_fits(value, member) for member in members):
        return
    accepted = [str(getattr(member, "__name__", member)) for member in members]
    is_number = {int, float} & set(members) and isinstance(value, str)
    hint = " YAML reads 1e-3 as text: write 1.0e-3." if is_number else " Correct it."
    raise ValueError(f"`{name}` must be {' or '.join(accepted)}, got {value!r}.{hint}")


def _fits(value: Any, member: Any) -> bool:
    kind = get_origin(member) or member
    if kind is Any:
        return True
    if kind is Literal:
        return value in get_args(member)
    if issubclass(kind, Enum):
        return value in [option.value for option in kind]
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind)
