"""A policy and a process reward model in the memory of one: two adapters on the weights of one base model.

The policy is trained as one adapter; the process reward model was trained as another one on the same base (with the
causal head: it reads two tokens of the language model's own vocabulary, and has no weights beside the adapter's). To
score, its adapter is put in the place of the policy's for the time of a forward pass.

A process reward model with a token-classification head cannot be loaded so: its body is another class of model, with a
head that the language model does not have. It needs a copy of the base of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..arguments import load_tokenizer
from ..prm.formats import format_of_checkpoint, read_saved_format
from ..prm.prompts import trained_prompts
from ..prm.scorer import ProcessRewardModel
from .rft_weights import POLICY_ADAPTER

if TYPE_CHECKING:
    from peft import PeftModel

PRM_ADAPTER = "process_reward_model"


def share_base(policy: PeftModel, prm_path: str | os.PathLike, max_length: int | None = None) -> ProcessRewardModel:
    """
    Loads the adapter of a process reward model onto the base model of a policy.

    Args:
        policy ([`~peft.PeftModel`]):
            The policy: a base model with the adapter that is trained.
        prm_path (`str` or `os.PathLike`):
            Directory of an adapter that [`ERPRMTrainer`] has trained with the causal head, on the same base.
        max_length (`int`, *optional*):
            Longest input of the process reward model in tokens.

    Returns:
        [`ProcessRewardModel`]: gives the scores of the process reward model loaded alone (on a quantized base: loaded
        alone on that quantized base).

    Raises:
        `ValueError`: where the directory holds no such adapter, or one of another base model.

    Example:

    ```python
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM"))
    reward = ProcessReward(share_base(policy, "outputs/prm-causal-lora"))
    trainer = RFTTrainer(policy, reward_funcs=reward, args=args, train_dataset=prompts)
    ```
    """
    from peft import PeftConfig

    path = str(prm_path)
    saved = read_saved_format(path)
    prm_format = format_of_checkpoint(path, saved)
    if not os.path.isfile(os.path.join(path, "adapter_config.json")) or prm_format is None:
        raise ValueError(
            f"{path!r} must hold the adapter of a process reward model (adapter_config.json and prm_format.json), and "
            "does not. Train one with `recipes/prm.py --head causal_lm --use_peft`, or load a whole model by itself."
        )
    if prm_format.head != "causal_lm":
        raise ValueError(
            f"The process reward model {path!r} has the head {prm_format.head!r}, which the policy's base model does "
            'not have. Only `head="causal_lm"` can share it; load this one by itself.'
        )
    bases = [config.base_model_name_or_path for config in (PeftConfig.from_pretrained(path), _config_of(policy))]
    if bases[0] != bases[1]:
        raise ValueError(
            f"The adapter {path!r} was trained on {bases[0]!r}, but the policy's base model is {bases[1]!r}. Scores "
            "would mean nothing: train the process reward model on the policy's base model."
        )
    policy.load_adapter(path, adapter_name=PRM_ADAPTER, is_trainable=False)
    policy.set_adapter(POLICY_ADAPTER)
    eta, trained_on = (saved or {}).get("eta"), trained_prompts(saved, path)
    view = AdapterView(policy, PRM_ADAPTER)
    return ProcessRewardModel(view, load_tokenizer(path), prm_format, eta, max_length, *trained_on)


def _config_of(policy: PeftModel) -> Any:
    if POLICY_ADAPTER not in getattr(policy, "peft_config", {}):
        raise ValueError(
            f"`policy` must be a PEFT model with the adapter {POLICY_ADAPTER!r}, got {type(policy).__name__}. Make "
            "one with `peft.get_peft_model`."
        )
    return policy.peft_config[POLICY_ADAPTER]


class AdapterView(nn.Module):
    """
    One adapter of a PEFT model, to be called as if it were a model by itself. It holds no weights of its own.

    Args:
        model ([`~peft.PeftModel`]):
            A base model with several adapters.
        adapter (`str`):
            The one that is seen.
    """

    def __init__(self, model: PeftModel, adapter: str):
        super().__init__()
        object.__setattr__(self, "_model", model)  # no submodule: its mode and its device are the policy's
        self.adapter = adapter

    @property
    def config(self) -> Any:
        """The base model's."""
        return self._model.config

    def get_output_embeddings(self) -> nn.Module:
        """The base model's."""
        return self._model.get_output_embeddings()

    def modules(self) -> Iterator[nn.Module]:
        """Those of the model."""
        return self._model.modules()

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the base model and of this adapter."""
        others = [f".{name}." for name in self._model.peft_config if name != self.adapter]
        for name, parameter in self._model.named_parameters(*args, **kwargs):
            if not any(other in f"{name}." for other in others):
                yield name, parameter

    def train(self, mode: bool = True) -> AdapterView:
        """Changes nothing: the model's mode is the policy's, and a pass through this view is one of evaluation."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._in_place():
            return self._model(*args, **kwargs)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """This adapter instead of the active one, without dropout; all is put back afterwards."""
        model = self._model
        active, is_training = model.active_adapter, model.training
        needed_gradients = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.set_adapter(self.adapter)
        model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            model.set_adapter(active)
            model.train(is_training)
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for parameter in needed_gradients:
                parameter.requires_grad_(True)
