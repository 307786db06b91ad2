"""The critic of [`ProcessPPOTrainer`]: a network of its own that says what a state is worth, one number a token.

A critic is a token classifier with one label. Its value is sigmoid(logit), in [0, 1], like the score of an ER-PRM with
that head: the expected reward of what follows, where rewards are step scores and outcomes. So an ER-PRM is a critic as
it stands. Other heads become this one exactly: two labels, or two label tokens of a language model, are read as the
difference of two logits, and a difference of two linear maps is one.

The critic reads the policy's tokens: prompt and completion as they were sampled, without the tags that a PRM's format
puts between steps. So its vocabulary must be the policy's, and a PRM of a format with tags begins out of its format:
value warm-up lets it find its way.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from peft import (
    AutoPeftModelForTokenClassification,
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import find_adapter_config_file
from trl.trainer.utils import create_model_from_path, get_config_model_id

from ..arguments import load_tokenizer
from ..prm.formats import format_of_checkpoint, read_saved_format
from ..prm.heads import new_head_is_expected, without_head
from ..prm.scorer import ProcessRewardModel, loaded_whole
from ..prm.trained_weights import train_head_in_float32
from .rft_weights import POLICY_ADAPTER

CRITIC_FOLDER = "critic"
"""Where a checkpoint keeps the critic, beside the policy's files."""

_ADAPTER_FOLDER = "adapter"

_INIT_LEAVES_BASE = (True, False, "gaussian")
"""Ways of initializing LoRA after which the base model is what it was: others move a part of it into the adapter."""


class PolicyAndCritic(nn.Module):
    """
    Both networks as one module: what is trained, and what DDP, DeepSpeed or FSDP wraps.

    Only training sees it. What saves the policy, sends it to vLLM or generates from it has the policy itself, so
    nothing has to be told to leave the critic out. One forward pass serves both: wrappers then gather weights, and
    look for unused parameters, once.

    Attributes that it does not have are the policy's (`config`, `generate`, `is_gradient_checkpointing`, ...).

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The language model.
        critic ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The token classifier.
    """

    def __init__(self, policy: nn.Module, critic: nn.Module):
        super().__init__()
        self.policy = policy
        self.critic = critic

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("policy"), name)

    def forward(self, *args, num_values: int | None = None, with_policy: bool = True, **inputs) -> Any:
        """
        Args:
            num_values (`int`, *optional*):
                How many tokens at the end of each sequence to value, T.
            with_policy (`bool`, *optional*, defaults to `True`):
                Whether the policy is called.
            **inputs:
                What the policy takes; the critic gets `input_ids` and `attention_mask`, of shape `(B, P + T)`.

        Returns:
            What the policy returns; with `num_values`, a pair of that (or `None`) and the logits of the values, of
            shape `(B, T)`: those of the state *before* each of the last T tokens.
        """
        outputs = self.policy(*args, **inputs) if with_policy else None
        if num_values is None:
            return outputs
        logits = self.critic(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).logits
        return outputs, logits[:, -num_values - 1 : -1, 0].float()


def load_critic(
    critic: str | os.PathLike | PreTrainedModel | PeftModel | None,
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: PeftConfig | None = None,
    **model_init_kwargs,
) -> PreTrainedModel | PeftModel:
    """
    A critic for the policy.

    Args:
        critic (`str`, `os.PathLike`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            A process reward model that [`ERPRMTrainer`] saved, a critic that [`ProcessPPOTrainer`] saved, any
            checkpoint with the policy's vocabulary, or a loaded token classifier. `None`: the weights that the policy
            was loaded from, a stored LoRA adapter merged into them (of a quantized policy, and under ZeRO-3: the base
            model's alone), with a new head.
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, which is left as it is.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The critic is trained through adapters of this configuration, and its head in full.
        **model_init_kwargs:
            For `from_pretrained`.

    Raises:
        `ValueError`: where the critic has another vocabulary than the policy, or more than one label.
    """
    if isinstance(critic, nn.Module):
        model = critic
    elif critic is None:
        model = _load_from_policy(policy, model_init_kwargs)
    else:
        path = str(critic)
        _check_vocabulary(path, tokenizer)
        model = _load_from_path(path, model_init_kwargs)
    num_labels = getattr(model.config, "num_labels", None)
    if num_labels != 1 or not hasattr(model, "score") and not hasattr(model, "classifier"):
        raise ValueError(
            f"A critic is a token classifier with one label, got a {type(model).__name__} with {num_labels}. Load it "
            "with AutoModelForTokenClassification and num_labels=1, or give the directory of a process reward model."
        )
    num_rows = model.get_input_embeddings().num_embeddings
    if num_rows < len(tokenizer):
        raise ValueError(
            f"The critic reads the policy's token ids, but embeds {num_rows} tokens where the policy's tokenizer has "
            f"{len(tokenizer)}. Take a critic of the policy's model family, or leave `critic` out."
        )
    if peft_config is not None:
        model = _with_adapters(model, peft_config)
    return model


def is_process_reward_model(path: str | os.PathLike, **hub_arguments) -> bool:
    """Whether a checkpoint is a process reward model: saved by [`ERPRMTrainer`], or a known public one."""
    return format_of_checkpoint(path, read_saved_format(path, **hub_arguments)) is not None


def save_critic(critic: nn.Module, directory: Path, state_dict: dict | None = None) -> None:
    """
    Saves the critic where [`load_critic`] reads it.

    Adapters, with the head, go one folder deeper: transformers loads every adapter that lies in a folder of a
    checkpoint into the policy when training resumes.
    """
    critic.save_pretrained(
        directory / _ADAPTER_FOLDER if isinstance(critic, PeftModel) else directory, state_dict=state_dict
    )


def restore_critic(critic: nn.Module, directory: Path) -> None:
    """Loads what [`save_critic`] saved into the critic that it was saved from."""
    if isinstance(critic, PeftModel):
        weights = load_peft_weights(str(directory / _ADAPTER_FOLDER), device="cpu")
        set_peft_model_state_dict(critic, weights, adapter_name=critic.active_adapter)
        return
    saved = AutoModelForTokenClassification.from_pretrained(directory, dtype=critic.dtype)
    critic.load_state_dict(saved.state_dict())


def _load_from_policy(policy: nn.Module, model_init_kwargs: dict) -> PreTrainedModel:
    """From the checkpoint the policy came from; as TRL loads the reference. A policy made in memory is copied."""
    base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    path = get_config_model_id(base.config)
    if path:
        return _with_merged_adapter(_load_classifier(path, model_init_kwargs), policy)
    if isinstance(policy, PeftModel) or getattr(policy, "_hf_peft_config_loaded", False):
        raise ValueError(
            "The critic would begin as the policy, but the policy was made in memory and has adapters already. Give "
            "`critic` a directory, or the policy without adapters together with `peft_config`."
        )
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    model = AutoModelForTokenClassification.from_config(config, dtype=base.dtype)
    model.load_state_dict(base.state_dict(), strict=False)  # the language model's head has no place in it
    return model


def _with_merged_adapter(model: PreTrainedModel, policy: nn.Module) -> PreTrainedModel:
    """The classifier with what the policy's LoRA adapter changes; a new adapter changes nothing yet."""
    config = policy.peft_config.get(POLICY_ADAPTER) if isinstance(policy, PeftModel) else None
    if not isinstance(config, LoraConfig) or config.init_lora_weights not in _INIT_LEAVES_BASE:
        return model
    if getattr(policy, "is_quantized", False) or is_deepspeed_zero3_enabled():
        return model
    config = copy.deepcopy(config)
    config.task_type = config.modules_to_save = None  # a classifier has no language model's head
    adapted = get_peft_model(model, config)
    set_peft_model_state_dict(adapted, get_peft_model_state_dict(policy, adapter_name=POLICY_ADAPTER))
    return _merged(adapted)


def _merged(model: PeftModel) -> PreTrainedModel:
    """The model with its adapter merged into it, to be trained in full: beside an adapter it was frozen."""
    merged = model.merge_and_unload()
    for parameter in merged.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # quantized weights cannot
    return merged


def _load_from_path(path: str, model_init_kwargs: dict) -> PreTrainedModel:
    hub = {name: model_init_kwargs[name] for name in ("revision", "token", "cache_dir") if name in model_init_kwargs}
    if not is_process_reward_model(path, **hub):
        if (Path(path) / _ADAPTER_FOLDER).is_dir():  # saved by `save_critic`
            path = str(Path(path) / _ADAPTER_FOLDER)
        if find_adapter_config_file(path, **hub) is not None:
            return _merged(
                AutoPeftModelForTokenClassification.from_pretrained(path, num_labels=1, **model_init_kwargs)
            )
        return _load_classifier(path, model_init_kwargs)
    prm = ProcessRewardModel.from_pretrained(path, device="cpu", **model_init_kwargs)
    model = _merged(prm.model) if isinstance(prm.model, PeftModel) else prm.model
    if prm.format.head_module == "mlp":
        raise ValueError(
            f"The head of {path!r} is no linear map, so that it cannot become a critic's. Take a process reward model "
            "with a linear head, or leave `critic` out."
        )
    if prm.format.head == "token_classification" and model.config.num_labels == 1:
        return model
    return _with_one_label(model, prm._label_token_ids)


def _load_classifier(path: str, model_init_kwargs: dict) -> PreTrainedModel:
    kwargs = dict(model_init_kwargs)
    if "quantization_config" in kwargs:
        kwargs["quantization_config"] = without_head(kwargs["quantization_config"])
    with new_head_is_expected():
        return create_model_from_path(path, AutoModelForTokenClassification, num_labels=1, **kwargs)


def _with_one_label(model: PreTrainedModel, label_token_ids: tuple[int, int] | None) -> PreTrainedModel:
    """The token classifier whose logit is the difference of the model's two."""
    if label_token_ids is None:
        (positive, negative), old_head = (1, 0), model.score
    else:
        (positive, negative), old_head = label_token_ids, model.get_output_embeddings()
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    with loaded_whole():
        converted = AutoModelForTokenClassification.from_config(config, dtype=model.dtype)
    state_dict = {name: weight for name, weight in model.state_dict().items() if not name.startswith("score.")}
    converted.load_state_dict(state_dict, strict=False)
    with torch.no_grad():
        converted.score.weight.copy_((old_head.weight[positive] - old_head.weight[negative])[None])
        if converted.score.bias is not None:
            converted.score.bias.zero_()
            if old_head.bias is not None:
                converted.score.bias.copy_((old_head.bias[positive] - old_head.bias[negative])[None])
    return converted


def _with_adapters(model: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """Adapters as the policy has them; PEFT trains the head of a token classifier in full, here in float32."""
    config = copy.deepcopy(peft_config)
    config.task_type = TaskType.TOKEN_CLS
    if getattr(config, "modules_to_save", None):  # a classifier has no language model's head
        config.modules_to_save = [name for name in config.modules_to_save if name != "lm_head"]
    # As TRL makes the policy's: float32 beside weights of less, except under ZeRO-3, which takes one precision only.
    adapted = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    train_head_in_float32(adapted)
    return adapted


def _check_vocabulary(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Each token of the policy must have the same id in the critic's vocabulary, which may have further ones."""
    own = load_tokenizer(path).get_vocab()
    different = {token: i for token, i in tokenizer.get_vocab().items() if own.get(token) != i}
    if different:
        token, i = min(different.items(), key=lambda item: item[1])
        raise ValueError(
            f"The critic reads the policy's token ids, but {len(different)} of the policy's {len(tokenizer)} tokens "
            f"have another id, or none, in {path!r} (the first: {token!r}, {i} here, {own.get(token)} there). Take "
            f"a process reward model of the policy's model family, or leave `critic` out."
        )
