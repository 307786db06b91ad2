"""What the trainers of a policy start from, and resume from: a stored adapter goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME
from trl.trainer.utils import create_model_from_path

from ..arguments import check_path_or_id, load_tokenizer
from ..trained_weights import (
    check_adapter_of_model,
    check_adapter_of_policy,
    find_adapter,
    lines_to_merge_policy,
    load_adapter_to_train,
    new_adapter_error,
)
from .rft_weights import POLICY_ADAPTER

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedTokenizerBase
    from trl import GRPOConfig, SFTConfig


def start_policy(
    model: str | nn.Module,
    processing_class: PreTrainedTokenizerBase | None,
    args: GRPOConfig | SFTConfig,
    peft_config: PeftConfig | None = None,
    quantization_config: Any = None,
) -> tuple[str | nn.Module, PreTrainedTokenizerBase | None]:
    """
    Loads a policy that is given as the path of an adapter; TRL's trainers would load it to look at, not to train.

    Args:
        model (`str` or `nn.Module`):
            What the trainer was given.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The same.
        args ([`~trl.GRPOConfig`] or [`~trl.SFTConfig`]):
            Configuration, whose `model_init_kwargs` are for the base model.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The new adapter that is to be trained.
        quantization_config (*optional*):
            Of the base model.

    Returns:
        `tuple`: of an adapter, the base model with it on top, and the tokenizer that lies beside it unless one was
        given; else what was given.

    Raises:
        `ValueError`: where there is an adapter and a new one is asked for, where it is of another kind of model, or
            where no weight would be trained.
    """
    check_adapter_of_model(model, peft_config)
    kwargs = dict(args.model_init_kwargs or {})
    adapter = find_adapter(model, **kwargs) if isinstance(model, str) else None
    if adapter is None:
        return model, processing_class
    check_adapter_of_policy(model, adapter)
    base_path = adapter.base_model_name_or_path
    if peft_config is not None:
        raise new_adapter_error(model, "peft_config", lines_to_merge_policy(model, base_path))
    check_path_or_id(base_path, "base_model_name_or_path")
    revision = kwargs.pop("revision", None)
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ["MULTI_GPU", "DEEPSPEED"]:
        kwargs["device_map"] = None  # "auto" would spread one copy over the processes' devices
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    base = create_model_from_path(base_path, AutoModelForCausalLM, revision=adapter.revision, **kwargs)
    if processing_class is None:
        processing_class = load_tokenizer(model, revision=revision, trust_remote_code=args.trust_remote_code)
    return load_adapter_to_train(base, model, revision=revision), processing_class


def restore_adapter(policy: nn.Module, checkpoint: str | os.PathLike) -> None:
    """
    Loads the trained adapter of a checkpoint, once more where transformers has done so.

    With `beta` above 0, GRPO keeps a copy of a stored adapter as the reference. A checkpoint then has two: the trained
    one, and the reference in the folder `ref`. Where there are such folders, some versions of transformers load them
    alone when training resumes: the policy would silently stay what it was before training.

    Args:
        policy (`nn.Module`):
            The policy, not wrapped. Only a [`~peft.PeftModel`] is changed.
        checkpoint (`str` or `os.PathLike`):
            Directory of a checkpoint. One without an adapter beside its folders changes nothing.
    """
    is_stored = any((Path(checkpoint) / name).is_file() for name in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME))
    if is_stored and isinstance(policy, PeftModel) and POLICY_ADAPTER in policy.peft_config:
        weights = load_peft_weights(str(checkpoint), device="cpu")
        set_peft_model_state_dict(policy, weights, adapter_name=POLICY_ADAPTER)
