"""[`process_reward`]: a process reward that environment variables set up."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence

from ..prm.formats import Prompt
from .process_reward import ProcessReward

MODEL_VARIABLE = "TRL_ERPRM_MODEL"
OPTIONS_VARIABLE = "TRL_ERPRM_OPTIONS"


def process_reward(prompts: Sequence[Prompt], completions: Sequence[str | list[dict]], **kwargs) -> list[float | None]:
    """
    A [`ProcessReward`] that is set up by environment variables, for TRL's command line and for trainers that send
    their reward functions to other processes:

    ```bash
    TRL_ERPRM_MODEL=outputs/prm trl grpo --reward_funcs trl_erprm.process_reward ...
    ```

    `TRL_ERPRM_MODEL` names the directory of the process reward model; `TRL_ERPRM_OPTIONS` holds further arguments of
    [`ProcessReward`] as JSON, for example `{"aggregation": "product", "reward_if_malformed": 0.0}`. The model is
    loaded at the first call.
    """
    return _process_reward_of(os.environ.get(MODEL_VARIABLE), os.environ.get(OPTIONS_VARIABLE))(
        prompts, completions, **kwargs
    )


@functools.lru_cache(maxsize=1)
def _process_reward_of(model: str | None, options: str | None) -> ProcessReward:
    if not model:
        raise ValueError(
            f"`trl_erprm.process_reward` needs a process reward model, but {MODEL_VARIABLE} is not set. Set it to the "
            "directory that `ERPRMTrainer` saved."
        )
    try:
        arguments = json.loads(options or "{}")
        if not isinstance(arguments, dict):
            raise TypeError(f"it is a {type(arguments).__name__}")
        return ProcessReward(model, **arguments)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{OPTIONS_VARIABLE} must hold arguments of `ProcessReward` as a JSON object, got {options!r}: {error}. "
            """For example '{"aggregation": "product"}'."""
        ) from error
