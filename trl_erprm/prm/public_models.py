"""Published process reward models: which format each has, and by what a copy of one on a disk is recognized."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ..arguments import process_state

logger = logging.getLogger(__name__)

PUBLIC_MODELS = {
    "trl-lib/Qwen2-0.5B-Reward-Math-Sheperd": "trl",
    "peiyi9979/math-shepherd-mistral-7b-prm": "math-shepherd",
    "RLHFlow/Llama3.1-8B-PRM-Mistral-Data": "rlhflow",
    "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data": "rlhflow",
    "Qwen/Qwen2.5-Math-PRM-7B": "qwen2.5-math-prm",
    "Qwen/Qwen2.5-Math-PRM-72B": "qwen2.5-math-prm",
    "Qwen/Qwen2.5-Math-7B-PRM800K": "qwen2.5-math-prm",
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B": "skywork-o1",
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B": "skywork-o1",
}
"""Names of the formats of published models, by their id on the Hub; a model from elsewhere names its format."""

_CACHE_PREFIX = "models--"  # a folder of the Hub's cache: models--<organization>--<name>/snapshots/<commit>


def public_model_of(path: str | os.PathLike) -> str | None:
    """
    The id of the published model that a path names: the id itself, or a local copy of it.

    A local copy is recognized by the name of its directory, which is the model's (`/models/Qwen2.5-Math-PRM-7B`), by
    its place in the Hub's cache (`models--Qwen--Qwen2.5-Math-PRM-7B/snapshots/<commit>`), or by the id that its
    `config.json` says it was loaded from. The Hub ignores the case of letters, and so does this.

    Args:
        path (`str` or `os.PathLike`):
            Directory or model id.

    Returns:
        `str` or `None`: one of [`PUBLIC_MODELS`]; `None` for any other model.

    Example:

    ```python
    >>> public_model_of("qwen/qwen2.5-math-prm-7b")
    'Qwen/Qwen2.5-Math-PRM-7B'
    >>> public_model_of("Qwen/Qwen2.5-0.5B")

    ```
    """
    ids = {model_id.lower(): model_id for model_id in PUBLIC_MODELS}
    if (found := ids.get(str(path).lower())) is not None or not Path(path).expanduser().is_dir():
        return found
    by_name = {model_id.rpartition("/")[2]: model_id for model_id in ids}
    for name, is_id in _names_of_copy(Path(path).expanduser()):
        lowered = name.lower()
        if (model_id := lowered if is_id else by_name.get(lowered)) in ids:
            return ids[model_id]
    return None


def _names_of_copy(directory: Path) -> Iterator[tuple[str, bool]]:
    """What a directory might be called after, surest first, and whether that is a whole id."""
    absolute = Path(os.path.abspath(directory))  # links are followed last: a cluster's often lead to the cache
    for place in dict.fromkeys((absolute, absolute.resolve())):
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith(_CACHE_PREFIX):
            yield place.parent.parent.name.removeprefix(_CACHE_PREFIX).replace("--", "/"), True
        yield place.name, False
    try:
        loaded_from = json.loads((directory / "config.json").read_text("utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):  # no such file, or none that transformers wrote: it says nothing
        loaded_from = None
    if isinstance(loaded_from, str):
        yield loaded_from, True


@functools.cache
def log_recognized(path: str, model_id: str) -> None:
    """Logs once that a local copy is read in the format of the model it was taken for; an id needs no guess."""
    if path.lower() != model_id.lower() and process_state().is_main_process:
        logger.warning(
            f"{path!r} has no format of its own and is taken for a copy of {model_id}: it is read in the format "
            f"{PUBLIC_MODELS[model_id]!r}. If it is another model, name its format."
        )
