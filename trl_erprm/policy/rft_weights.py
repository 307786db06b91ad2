"""The weights of a policy that may be split over processes: whole while it samples, read back from disk, named.

Under ZeRO-3 and FSDP2 a process holds a part of each parameter, and every forward pass is an exchange between all
processes. Sampling cannot be: each process has prompts of its own, whose completions take different numbers of passes.
So for the time of sampling each process holds the whole model, and no pass waits for another process:

- ZeRO-3: the parameters are gathered, and DeepSpeed's hooks (which compare the processes' passes) set aside.
- FSDP2: each unit is gathered and kept so after a forward pass.
- DDP, ZeRO-1, ZeRO-2 and one process: the model inside the wrapper is whole anyhow.

The memory is that of one copy of the policy in each process, in the precision it is kept in.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import is_peft_model
from safetensors import safe_open
from torch import nn
from trl.models.utils import unwrap_model_for_generation

from ..manifest import weights_fingerprint

if TYPE_CHECKING:
    from accelerate import Accelerator

POLICY_ADAPTER = "default"
"""The name that PEFT gives an adapter where none is given: the one that is trained."""

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def is_zero3(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed splits the parameters."""
    return getattr(accelerator.state.deepspeed_plugin, "zero_stage", None) == 3


@contextlib.contextmanager
def whole_weights(model: nn.Module, accelerator: Accelerator) -> Iterator[nn.Module]:
    """
    The policy itself, out of its wrapper, with all of its weights in each process; all processes enter together.

    Args:
        model (`nn.Module`):
            The model as accelerate wrapped it.
        accelerator ([`~accelerate.Accelerator`]):
            What wrapped it.

    Yields:
        `nn.Module`: a model whose forward passes wait for no other process.
    """
    with (
        # Without its own gathering: it leaves hooks that wait for the other processes.
        unwrap_model_for_generation(model, accelerator, gather_deepspeed3_params=False) as policy,
        _gathered(policy, accelerator),
    ):
        yield policy


@contextlib.contextmanager
def _gathered(policy: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    if is_zero3(accelerator):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(policy.parameters())), _without_deepspeed_hooks(policy):
            yield
    elif units := _fsdp_units(policy):
        # What each unit does after a forward pass is kept as a mesh (split again) or `None` (stay whole).
        kept = [unit._get_fsdp_state()._fsdp_param_group for unit in units]
        kept = [(group, group.post_forward_mesh_info) for group in kept if group is not None]
        with torch.no_grad():
            for unit in units:
                unit.set_reshard_after_forward(False, recurse=False)
                unit.unshard()
        try:
            yield
        finally:
            for group, mesh_info in kept:
                group.post_forward_mesh_info = mesh_info
            for unit in units:
                unit.reshard()
    else:
        yield


def _fsdp_units(policy: nn.Module) -> list[nn.Module]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in policy.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def _without_deepspeed_hooks(policy: nn.Module) -> Iterator[None]:
    """
    Sets DeepSpeed's forward hooks aside. They fetch parameters, which are there; and at the start of each pass they
    compare the processes, which would wait for each other for ever.
    """
    kept = []
    for module in policy.modules():
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = getattr(module, name)
            others = OrderedDict((key, hook) for key, hook in hooks.items() if not _is_of_deepspeed(hook))
            if len(others) < len(hooks):
                kept.append((module, name, hooks))
                setattr(module, name, others)
    try:
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)


def _is_of_deepspeed(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("deepspeed")


def split_weights(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """
    Splits a policy before its first sampling where FSDP2 will split it for training.

    Under FSDP2 one process loads the weights, and the others get theirs when the model is split: until then they
    would sample from nothing.
    """
    if getattr(accelerator, "is_fsdp2", False) and not _fsdp_units(model):
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        accelerator.state.fsdp_plugin.set_auto_wrap_policy(model)
        return fsdp2_prepare_model(accelerator, model)
    return model


def fingerprint(model: nn.Module, accelerator: Accelerator) -> str:
    """[`weights_fingerprint`] of the whole weights, so that a run is known under every way of splitting them."""
    if is_zero3(accelerator):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            return weights_fingerprint(model)
    return weights_fingerprint(model)


def check_can_be_loaded(model: str | nn.Module) -> None:
    """Raises `ValueError` for an adapter inside of a transformers model, of which [`load_weights`] has no names."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"RFTTrainer loads the policies of its iterations again, which it cannot where the adapter is inside of "
            f"the model ({type(model).__name__}), as `add_adapter` of transformers puts it. Give the model without "
            "an adapter together with `peft_config`, or a PeftModel (`peft.get_peft_model(model, config)`)."
        )


def load_weights(model: nn.Module, directory: str | os.PathLike, accelerator: Accelerator) -> None:
    """
    Puts saved weights into a model in place, whole or split; all processes read the files.

    Args:
        model (`nn.Module`):
            The policy, out of its wrapper. Of a [`~peft.PeftModel`], the adapter that is trained is loaded.
        directory (`str` or `os.PathLike`):
            What `save_pretrained` wrote.
        accelerator ([`~accelerate.Accelerator`]):
            What split the weights.

    Raises:
        `ValueError`: where the files hold other weights than the model has.
    """
    saved = _saved_tensors(Path(directory), is_peft_model(model))
    targets = _targets(model)
    untouched = dict.fromkeys(targets)
    with torch.no_grad():
        for name, tensor in saved:
            if name not in targets:
                raise ValueError(
                    f"{str(directory)!r} holds the weight {name!r}, which the policy does not have. It was saved from "
                    "another model: restore the directory, or delete it to start over."
                )
            untouched.pop(name, None)
            _copy(targets[name], tensor, accelerator)
    tied = {id(targets[name]) for name in targets if name not in untouched}
    if missing := [name for name in untouched if id(targets[name]) not in tied]:
        raise ValueError(
            f"{str(directory)!r} lacks the weight {missing[0]!r} of the policy (and {len(missing) - 1} more). Restore "
            "the directory, or delete it to start over."
        )


def _targets(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that are saved, under the names they are saved under; tied ones under each of their names."""
    if is_peft_model(model):
        from peft import get_peft_model_state_dict

        # Names without the adapter's, as PEFT writes them; the values are the model's own tensors.
        own = {
            name.replace(f".{POLICY_ADAPTER}.", ".").replace(f".{POLICY_ADAPTER}", ""): tensor
            for name, tensor in model.named_parameters(remove_duplicate=False)
            if f".{POLICY_ADAPTER}" in name
        }
        names = get_peft_model_state_dict(model, adapter_name=POLICY_ADAPTER, save_embedding_layers=False)
        own = {name.replace("modules_to_save.", ""): tensor for name, tensor in own.items()}
        return {name: own[name] for name in names}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    persistent = model.state_dict(keep_vars=True)
    return {name: parameters.get(name, value) for name, value in persistent.items()}


def _saved_tensors(directory: Path, is_adapter: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors, one at a time: the files may be larger than the memory that is free."""
    if is_adapter:
        files = [directory / "adapter_model.safetensors"]
    elif (directory / _INDEX).exists():
        names = json.loads((directory / _INDEX).read_text())["weight_map"].values()
        files = [directory / name for name in dict.fromkeys(names)]
    else:
        files = [directory / _SINGLE]
    for file in files:
        if not file.exists():
            raise ValueError(
                f"{str(directory)!r} has no {file.name}: the policy of this iteration was removed, or never saved "
                "whole. Restore it, or delete the run's directory to start over."
            )
        with safe_open(file, framework="pt", device="cpu") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dictionary)
                yield name, tensors.get_tensor(name)


def _copy(target: torch.Tensor, tensor: torch.Tensor, accelerator: Accelerator) -> None:
    if is_zero3(accelerator) and hasattr(target, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([target], modifier_rank=0):
            if accelerator.is_main_process:
                _copy_whole(target, tensor)
    elif hasattr(target, "device_mesh"):  # a DTensor: FSDP2
        from torch.distributed.tensor import distribute_tensor

        whole = tensor.to(device=target.device_mesh.device_type, dtype=target.dtype)
        target.copy_(distribute_tensor(whole, target.device_mesh, target.placements))
    else:
        _copy_whole(target, tensor)


def _copy_whole(target: torch.Tensor, tensor: torch.Tensor) -> None:
    if target.shape != tensor.shape:
        raise ValueError(
            f"A saved weight has the shape {tuple(tensor.shape)}, the policy's {tuple(target.shape)}. It was saved "
            "from another model: delete the run's directory to start over."
        )
    target.copy_(tensor)
