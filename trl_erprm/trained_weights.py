"""What a trainer starts from and updates: adapters that are stored, and the precision that small updates need.

A directory with `adapter_config.json` is a base model's name and the weights of an adapter. Training goes on with that
adapter. A new one beside it is refused: PEFT would put it in the old one's place, and a new adapter on merged weights
could not be loaded again, as no directory would hold these.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, is_peft_model
from peft import PeftConfig, PeftModel
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import find_adapter_config_file

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

logger = get_logger(__name__)

_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only")


# ---------------------------------------------------------------------------------------------------------------------
# Adapters


def find_adapter(path: str | os.PathLike, **kwargs: Any) -> PeftConfig | None:
    """
    The configuration of the adapter that a directory holds.

    Args:
        path (`str` or `os.PathLike`):
            Local directory, or a model on the Hub.
        **kwargs:
            Arguments of `from_pretrained`; those that say where on the Hub are used.

    Returns:
        `PeftConfig`, or `None` where there is no adapter.

    Raises:
        `ValueError`: for an adapter that names no base model.
    """
    hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
    if find_adapter_config_file(str(path), **hub) is None:
        return None
    config = PeftConfig.from_pretrained(str(path), **hub)
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(
            f"The adapter {str(path)!r} must name its base model, got `base_model_name_or_path` {base!r}. Write it "
            "into adapter_config.json."
        )
    return config


def load_adapter_to_train(base: PreTrainedModel, path: str | os.PathLike, **kwargs: Any) -> PeftModel:
    """
    Puts a stored adapter onto its base model, to go on training it.

    Args:
        base ([`~transformers.PreTrainedModel`]):
            The base model.
        path (`str` or `os.PathLike`):
            Where the adapter is.
        **kwargs:
            Arguments of `from_pretrained`; those that say where on the Hub are used.

    Returns:
        [`~peft.PeftModel`]: with the weights as they were stored; the adapter's need gradients, the base's do not.

    Raises:
        `ValueError`: where the base model is an adapter itself, which would be lost.
    """
    if getattr(base, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"The adapter {str(path)!r} must lie on a whole model, but its base model is an adapter itself, whose "
            "place it would take: what was trained would be lost. Merge that adapter into the model below it, "
            "and write the result's path into adapter_config.json as `base_model_name_or_path`."
        )
    hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
    # As TRL makes an adapter: float32 beside weights of less, except under ZeRO-3, which takes one precision only.
    return PeftModel.from_pretrained(
        base, str(path), is_trainable=True, autocast_adapter_dtype=not is_deepspeed_zero3_enabled(), **hub
    )


def check_adapter_of_policy(path: str | os.PathLike, adapter: PeftConfig) -> None:
    """
    Checks that a stored adapter is one of a causal language model, as a policy is.

    Args:
        path (`str` or `os.PathLike`):
            Where the adapter is.
        adapter ([`~peft.PeftConfig`]):
            Its configuration ([`find_adapter`]). One that names no task is taken as it is.

    Raises:
        `ValueError`: where it names another task: its head would be left out.

    Example:

    ```python
    >>> check_adapter_of_policy("outputs/policy-lora", PeftConfig(task_type="CAUSAL_LM"))
    >>> check_adapter_of_policy("outputs/prm-lora", PeftConfig(task_type="TOKEN_CLS"))
    Traceback (most recent call last):
        ...
    ValueError: 'outputs/prm-lora' must hold the adapter of a causal language model (task_type CAUSAL_LM), but...

    ```
    """
    if adapter.task_type not in (None, "CAUSAL_LM"):
        task_type = getattr(adapter.task_type, "value", adapter.task_type)
        raise ValueError(
            f"{str(path)!r} must hold the adapter of a causal language model (task_type CAUSAL_LM), but is one of "
            f"another kind of model ({task_type}), such as a process reward model. Give the path of a policy."
        )


def new_adapter_error(path: str | os.PathLike, is_asked_by: str, merge: str) -> ValueError:
    """
    The error where a directory holds an adapter, and a new one is asked for.

    Args:
        path (`str` or `os.PathLike`):
            Where the adapter is.
        is_asked_by (`str`):
            The option that asks for a new one.
        merge (`str`):
            Lines of Python that merge the stored one.
    """
    return ValueError(
        f"{str(path)!r} holds a trained adapter, but `{is_asked_by}` asks for a new one, which would take its place: "
        f"what was trained would be lost. Leave `{is_asked_by}` out to go on training the stored adapter. For a new "
        f"one, merge the stored one into its base model first, and start from the result:\n\n{merge}"
    )


def lines_to_merge_policy(path: str | os.PathLike, base: str) -> str:
    """Python that merges the adapter of a policy into its base model."""
    return (
        "    from peft import PeftModel\n"
        "    from transformers import AutoModelForCausalLM\n"
        "    from trl_erprm.arguments import load_tokenizer\n"
        f"    base = AutoModelForCausalLM.from_pretrained({base!r}, dtype='float32')\n"
        f"    PeftModel.from_pretrained(base, {str(path)!r}).merge_and_unload().save_pretrained('merged')\n"
        f"    load_tokenizer({str(path)!r}).save_pretrained('merged')"
    )


def check_adapter_of_model(model: str | nn.Module, peft_config: PeftConfig | None) -> None:
    """
    Checks that a model which has an adapter can be trained as it is asked for.

    Args:
        model (`str` or `nn.Module`):
            The model that a trainer was given; a path is not looked at.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The new adapter that is asked for.

    Raises:
        `ValueError`: where there is an adapter and a new one is asked for, or where no weight would be trained.
    """
    is_in_place = getattr(model, "_hf_peft_config_loaded", False)
    if isinstance(model, str) or not (is_in_place or is_peft_model(model)):
        return
    if peft_config is not None:
        raise ValueError(
            f"The model ({type(model).__name__}) has an adapter already, but `peft_config` asks for a new one, which "
            "would take its place. Leave `peft_config` out to go on training the adapter it has. For a new one, merge "
            "the old one first: save `model.merge_and_unload()`, and give the path of what was saved."
        )
    if any(parameter.requires_grad for parameter in model.parameters()):
        return
    if is_in_place:
        raise ValueError(
            f"The model ({type(model).__name__}) was loaded together with an adapter, which transformers leaves "
            "frozen: no weight would be trained. Give the adapter's path, or load it with "
            "`PeftModel.from_pretrained(base, path, is_trainable=True)`."
        )
    raise ValueError(
        f"The adapter of the model ({type(model).__name__}) is frozen: no weight would be trained. Load it with "
        "`PeftModel.from_pretrained(base, path, is_trainable=True)`, or give its path."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Precision


def warn_of_lost_updates(model: nn.Module, accelerator: Accelerator) -> None:
    """
    Warns where weights that are trained are in bfloat16 or float16, and nothing keeps them in float32 beside.

    bfloat16 has 8 significant bits: an update below 1/512 of a weight rounds to no update at all. With Adam an update
    is about as large as the learning rate, and at the paper's 1e-6 hardly a weight would move. DeepSpeed keeps weights
    in float32 for the optimizer, accelerate makes them float32 under FSDP with mixed precision, and the adapters of a
    quantized base are bfloat16 in TRL by intent (arXiv 2305.14314): none of these is warned of.

    Args:
        model (`nn.Module`):
            The model, or several in one, that is trained.
        accelerator ([`~accelerate.Accelerator`]):
            What will wrap it.
    """
    kept_by_fsdp = accelerator.distributed_type == DistributedType.FSDP and accelerator.mixed_precision != "no"
    if accelerator.distributed_type == DistributedType.DEEPSPEED or kept_by_fsdp:
        return
    is_quantized = getattr(model, "is_quantized", False)
    trained = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not (is_quantized and ".lora_" in name)
    ]
    for dtype in (torch.bfloat16, torch.float16):
        if num_weights := sum(parameter.numel() for parameter in trained if parameter.dtype == dtype):
            logger.warning(
                f"{num_weights:,} weights are trained in {str(dtype).removeprefix('torch.')}, where an update of less "
                f"than 1/{4 / torch.finfo(dtype).eps:.0f} of a weight is lost: at small learning rates most of them "
                "stay where they are. Load the model in float32 (`dtype: float32`), and compute in bfloat16 with "
                "`bf16: true`."
            )
