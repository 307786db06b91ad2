"""What [`ERPRMTrainer`] starts from and updates: a stored adapter goes on, and a head is trained in float32."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.logging import get_logger
from peft import PeftConfig
from peft.utils import ModulesToSaveWrapper, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ..arguments import check_path_or_id
from ..trained_weights import (
    find_adapter,
    lines_to_merge_policy,
    load_adapter_to_train,
    new_adapter_error,
    warn_of_lost_updates,
)
from .config import ERPRMConfig
from .formats import FORMAT_FILE, PRMFormat, read_saved_format
from .heads import load_prm

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = get_logger(__name__)

SMALL_ADAPTER_LEARNING_RATE = 1e-5
"""Below it, a new adapter is warned of: LoRA takes about ten times the learning rate of training in full (TRL's guide
"LoRA Without Regret"), and the paper's for that is up to 1e-6 at 7 to 8B."""

_HEADS = ("score", "classifier", "lm_head")


def load_prm_to_train(
    path: str | os.PathLike,
    format: PRMFormat,
    args: ERPRMConfig,
    quantization_config: Any = None,
    peft_config: PeftConfig | None = None,
) -> PreTrainedModel | PeftModel:
    """
    The model that a path names, with the head that a format asks for; of an adapter, the base model with it on top.

    Args:
        path (`str` or `os.PathLike`):
            Directory or model id: a process reward model, a language model that is to become one, or an adapter.
        format ([`PRMFormat`]):
            Says which head.
        args ([`ERPRMConfig`]):
            Configuration. `num_labels` follows an adapter's head unless given.
        quantization_config (*optional*):
            As in [`ERPRMTrainer`].
        peft_config ([`~peft.PeftConfig`], *optional*):
            The new adapter that is to be trained.

    Returns:
        [`~transformers.PreTrainedModel`], or [`~peft.PeftModel`] whose adapter, and head beside it, are to be trained.

    Raises:
        `ValueError`: where the path is an adapter, and a new one is asked for, or another head than it brings.
    """
    kwargs = dict(args.model_init_kwargs or {})
    quantization_config = quantization_config or kwargs.pop("quantization_config", None)
    if args.distributed_state.distributed_type in ["MULTI_GPU", "DEEPSPEED"]:
        kwargs["device_map"] = None  # "auto" would spread one copy over the processes' devices
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    adapter = find_adapter(path, **kwargs)
    if adapter is None:
        return load_prm(path, format, args.num_labels, **kwargs)
    if peft_config is not None:
        raise new_adapter_error(path, "peft_config", _lines_to_merge(path))
    return _load_adapter(str(path), adapter, format, args, kwargs)


def _load_adapter(
    path: str, adapter: PeftConfig, format: PRMFormat, args: ERPRMConfig, kwargs: dict[str, Any]
) -> PeftModel:
    base_path, where = adapter.base_model_name_or_path, {"revision": kwargs.pop("revision", None)}
    if format.head == "token_classification":
        if adapter.task_type != "TOKEN_CLS":
            raise ValueError(
                f"{path!r} holds the adapter of a language model ({adapter.task_type}), which has no head that "
                "classifies tokens. Train it with `head='causal_lm'`, or merge it into its base model first, and "
                f"start from the result:\n\n{lines_to_merge_policy(path, base_path)}"
            )
        num_labels = (read_saved_format(path, **where) or {}).get("num_labels")
        if num_labels is not None and not args.num_labels_is_given:
            args.num_labels = num_labels
        if num_labels not in (None, args.num_labels):
            raise ValueError(
                f"The adapter {path!r} brings a head with {num_labels} labels, but `num_labels` is {args.num_labels}. "
                "Leave `num_labels` out to go on training this head."
            )
    check_path_or_id(base_path, "base_model_name_or_path")
    stored = load_peft_weights(path, device="cpu", **where)
    brings_head = any(f".{head}." in name and ".lora_" not in name for name in stored for head in _HEADS)
    base = load_prm(
        base_path,
        format,
        args.num_labels,
        head_must_be_trained=not brings_head,  # else a new head would be drawn, and never trained
        revision=adapter.revision,
        **kwargs,
    )
    model = load_adapter_to_train(base, path, **where)
    train_head_in_float32(model)
    set_peft_model_state_dict(model, stored)  # the head again, which was rounded to the base's precision
    return model


def _lines_to_merge(path: str | os.PathLike) -> str:
    """Python that merges the adapter of a process reward model into its base model."""
    return (
        "    import shutil\n"
        "    from trl_erprm import ProcessRewardModel\n"
        f"    prm = ProcessRewardModel.from_pretrained({str(path)!r}, dtype='float32')\n"
        "    prm.model.merge_and_unload().save_pretrained('merged')\n"
        "    prm.tokenizer.save_pretrained('merged')\n"
        f"    shutil.copy({str(Path(path) / FORMAT_FILE)!r}, 'merged')"
    )


def prepare_trained_weights(
    model: nn.Module, accelerator: Accelerator, learning_rate: float, has_new_adapter: bool
) -> None:
    """
    Makes what is trained beside an adapter float32 where small updates would be lost, and warns of what stays less,
    and of a learning rate at which a new adapter hardly learns.

    Args:
        model (`nn.Module`):
            The model that [`ERPRMTrainer`] trains, not wrapped yet.
        accelerator ([`~accelerate.Accelerator`]):
            What will wrap it.
        learning_rate (`float`):
            What it is trained with.
        has_new_adapter (`bool`):
            Whether its adapter begins as no change to the base model.
    """
    if has_new_adapter and learning_rate < SMALL_ADAPTER_LEARNING_RATE:
        logger.warning(
            f"`learning_rate` is {learning_rate:g}, and a new adapter is trained, which begins as no change to the "
            "model and at this rate hardly becomes one: 1e-6, the default, is for training in full at 7 to 8B. Set "
            f"`learning_rate` to {SMALL_ADAPTER_LEARNING_RATE:g} or more; 1e-4 is usual (docs/prm.md)."
        )
    if getattr(model, "_hf_peft_config_loaded", False) and not _has_trained_head(model):
        logger.warning(
            "The head is not trained beside the adapter, which `add_adapter` of transformers has put into the model, "
            "and is not saved with it: right only where the base model has a trained head. For a new head, add the "
            "adapter with `modules_to_save=['score']`, or give ERPRMTrainer the base model and a `peft_config`."
        )
    train_head_in_float32(model)
    if getattr(model, "is_loaded_in_4bit", False) and accelerator.mixed_precision != "bf16":
        # RewardTrainer makes what is trained beside quantized weights bfloat16, which needs autocast around it.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    warn_of_lost_updates(model, accelerator)


def _has_trained_head(model: nn.Module) -> bool:
    trained = (name.split(".") for name, parameter in model.named_parameters() if parameter.requires_grad)
    return any(head in parts for parts in trained for head in _HEADS)


def train_head_in_float32(model: nn.Module) -> None:
    """
    Makes a head that is trained in full beside an adapter float32. PEFT does so with the adapter's matrices, for small
    updates of bfloat16 weights are lost, but leaves the head as the base model is. Its inputs are cast to it, so that
    the model also works without autocast. ZeRO-3 takes one precision only, and keeps float32 weights by itself: there
    the head is left as it is.

    Args:
        model (`nn.Module`):
            A [`~peft.PeftModel`]; others are left as they are.
    """
    if is_deepspeed_zero3_enabled():
        return
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and name.rpartition(".")[2] in _HEADS:
            for head in module.modules_to_save.values():
                head.float()
                if _cast_to_own_dtype not in head._forward_pre_hooks.values():  # a stored head comes here twice
                    head.register_forward_pre_hook(_cast_to_own_dtype)


def _cast_to_own_dtype(head: nn.Module, args: tuple) -> tuple:
    dtype = next(head.parameters()).dtype
    return (args[0].to(dtype), *args[1:])
