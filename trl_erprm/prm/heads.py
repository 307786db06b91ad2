"""From a model to one number a step: the log-odds that the step is good.

Both heads end in the same quantity, so that the loss and the score are written once:

- `token_classification` with one label: the logit itself (score = sigmoid);
- `token_classification` with two labels: logit of class 1 minus logit of class 0 (score = softmax);
- `causal_lm`: logit of the positive label token minus logit of the negative one (score = softmax over the two).

The soft cross-entropy over two classes (the paper's loss) is the binary cross-entropy of these log-odds, exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GenericForTokenClassification


@contextmanager
def project_only(output_embeddings: nn.Module, is_step_end: torch.Tensor) -> Iterator[None]:
    """
    While active, `output_embeddings` (the `lm_head`) receives the hidden states of the step ends alone.

    A vocabulary has 32,000 to 250,000 columns and a solution some ten steps in hundreds of tokens: logits for every
    position would be the largest tensor of the whole run (about 2 GB in fp32 at 8 x 512 tokens and 128,000 columns)
    to read two columns of a few rows. A hook rather than a call of our own, because under DDP, DeepSpeed and FSDP the
    model must be entered through its wrapper.

    Args:
        output_embeddings (`nn.Module`):
            The module that maps hidden states `(B, T, H)` to logits.
        is_step_end (`torch.BoolTensor` of shape `(B, T)`):
            Where a step's score is read. The logits then have the shape `(num_step_ends, V)`, in row-major order.
    """

    def select(module: nn.Module, args: tuple) -> tuple:
        return (args[0][is_step_end.to(args[0].device)], *args[1:])

    hook = output_embeddings.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def step_log_odds(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    is_step_end: torch.Tensor,
    label_token_ids: tuple[int, int] | None = None,
    unwrapped_model: nn.Module | None = None,
) -> torch.Tensor:
    """
    One forward pass; the log-odds of every step end.

    Args:
        model (`nn.Module`):
            The model as it is to be called (wrapped by DDP, DeepSpeed or FSDP where it is).
        inputs (`dict[str, torch.Tensor]`):
            What the model takes: `input_ids` of shape `(B, T)`, and `attention_mask` or `position_ids`.
        is_step_end (`torch.BoolTensor` of shape `(B, T)`):
            Where a step's score is read.
        label_token_ids (`tuple[int, int]`, *optional*):
            Positive and negative label token: the model is a causal language model. `None`: it classifies tokens.
        unwrapped_model (`nn.Module`, *optional*):
            The model inside the wrapper; needed for the causal head of a wrapped model.

    Returns:
        `torch.FloatTensor` of shape `(num_step_ends,)`: float32, in row-major order of `is_step_end`.
    """
    if label_token_ids is None:
        logits = model(**inputs, use_cache=False).logits[is_step_end].float()
        return logits[:, 0] if logits.shape[-1] == 1 else logits[:, 1] - logits[:, 0]
    output_embeddings = (unwrapped_model if unwrapped_model is not None else model).get_output_embeddings()
    with project_only(output_embeddings, is_step_end):
        logits = model(**inputs, use_cache=False).logits.float()
    positive, negative = label_token_ids
    return logits[:, positive] - logits[:, negative]


@contextmanager
def new_head_is_expected() -> Iterator[None]:
    """Keeps transformers from reporting the new `score` layer and the unused `lm_head` of a causal checkpoint."""
    names = ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected")
    before = {name: getattr(GenericForTokenClassification, name, None) for name in names}
    for name, pattern in zip(names, (r"^score\.(weight|bias)$", r"^lm_head\."), strict=True):
        setattr(GenericForTokenClassification, name, [*(before[name] or []), pattern])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(GenericForTokenClassification, name, value)


def without_head(quantization_config: Any) -> Any:
    """
    A copy of a quantization configuration that leaves a token-classification head (`score`) in full precision.

    A new head has no quantized weights to load: quantized, loading ends in an AttributeError. A configuration that
    names modules to skip, and `None`, are returned as they are.
    """
    if quantization_config is None or getattr(quantization_config, "llm_int8_skip_modules", None):
        return quantization_config
    quantization_config = copy.deepcopy(quantization_config)
    quantization_config.llm_int8_skip_modules = ["score"]
    return quantization_config
