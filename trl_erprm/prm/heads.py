"""Loading a model with the head that its format asks for, and from the model to one number a step: the log-odds that
the step is good.

Both heads end in the same quantity, so that the loss and the score are written once:

- `token_classification` with one label: the logit itself (score = sigmoid);
- `token_classification` with two labels: logit of class 1 minus logit of class 0 (score = softmax);
- `causal_lm`: logit of the positive label token minus logit of the negative one (score = softmax over the two).

The soft cross-entropy over two classes (the paper's loss) is the binary cross-entropy of these log-odds, exactly.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForTokenClassification
from trl.trainer.utils import create_model_from_path

from .formats import PRMFormat

_HEAD_NAMES = ("score.", "classifier.", "lm_head.", "v_head.")

_HEADS_TO_SKIP = {"score"}


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
    inputs.setdefault("use_cache", False)
    if label_token_ids is None:
        logits = model(**inputs).logits[is_step_end].float()
        return logits[:, 0] if logits.shape[-1] == 1 else logits[:, 1] - logits[:, 0]
    output_embeddings = (unwrapped_model if unwrapped_model is not None else model).get_output_embeddings()
    with project_only(output_embeddings, is_step_end):
        logits = model(**inputs).logits.float()
    positive, negative = label_token_ids
    return logits[:, positive] - logits[:, negative]


def load_prm(
    path: str | os.PathLike,
    format: PRMFormat,
    num_labels: int | None = None,
    head_must_be_trained: bool = False,
    **model_init_kwargs,
) -> PreTrainedModel:
    """
    A model with the head that a format asks for.

    Args:
        path (`str` or `os.PathLike`):
            Directory or model id: a process reward model, or a language model that is to become one.
        format ([`PRMFormat`]):
            Says which head, of what kind, and under which names a checkpoint holds it.
        num_labels (`int`, *optional*):
            Outputs of a `token_classification` head; `None` leaves it to the format, then to the checkpoint's config.
        head_must_be_trained (`bool`, *optional*, defaults to `False`):
            Whether a checkpoint without a trained head of this kind is an error, rather than given a new one.
        **model_init_kwargs:
            For `from_pretrained`. `dtype` is float32 and `device_map` `"auto"` beside a GPU where they are not given,
            as in TRL. In a `quantization_config`, a token-classification head is left out.

    Raises:
        `ValueError`: where the checkpoint's weights have other sizes; with `head_must_be_trained`, where it holds
        another head than the format reads, or none.
    """
    if format.key_mapping:
        model_init_kwargs["key_mapping"] = dict(format.key_mapping)
    architecture: Any = AutoModelForCausalLM
    if format.head == "token_classification":
        architecture = AutoModelForTokenClassification
        num_labels = num_labels or format.num_labels
        if num_labels is not None:
            model_init_kwargs["num_labels"] = num_labels
        if "quantization_config" in model_init_kwargs:
            model_init_kwargs["quantization_config"] = without_head(model_init_kwargs["quantization_config"])
        if format.head_module == "mlp":
            # Without `trust_remote_code`: the class has to be one of transformers, to which the head is given here.
            names = ("revision", "cache_dir", "token", "local_files_only")
            config = AutoConfig.from_pretrained(
                path, **{n: model_init_kwargs[n] for n in names if n in model_init_kwargs}
            )
            architecture = _with_mlp_head(AutoModelForTokenClassification._model_mapping[type(config)])
            model_init_kwargs.pop("trust_remote_code", None)
    may_resize_head = model_init_kwargs.pop("ignore_mismatched_sizes", False) and not head_must_be_trained
    model_init_kwargs["ignore_mismatched_sizes"] = True  # so that the error below says which sizes
    with new_head_is_expected(may_be_missing=not head_must_be_trained):
        model, info = create_model_from_path(str(path), architecture, output_loading_info=True, **model_init_kwargs)
    if info["mismatched_keys"] and not may_resize_head:
        sizes = (f"{name} of {tuple(held)} for {tuple(asked)}" for name, held, asked in info["mismatched_keys"])
        raise ValueError(
            f"The format {format.name!r} reads weights of other sizes than {str(path)!r} holds "
            f"({', '.join(sorted(sizes))}). Name the format and the `num_labels` that the model was trained with"
            + ("." if head_must_be_trained else ", or give it a new head with `ignore_mismatched_sizes=True`.")
        )
    if head_must_be_trained or format.head == "causal_lm":  # a language model's own head is never a new one
        missing = sorted(name for name in info["missing_keys"] if name.startswith(_HEAD_NAMES))
        unread = sorted(name for name in info["unexpected_keys"] if name.startswith(_HEAD_NAMES))
        if not head_must_be_trained and not missing:
            unread = []  # a classifier that is to become a causal model, its language model still in it
        if missing or unread:
            raise ValueError(
                f"The format {format.name!r} reads a {format.head} head ({format.head_module}), but {str(path)!r} "
                + (f"has no weights for it ({', '.join(missing)})" if missing else "holds another head")
                + (f"; it holds {', '.join(unread)}" if unread else "")
                + ". Name the format that the model was trained with, or train it first with `ERPRMTrainer`."
            )
    if format.key_mapping and getattr(model, "_weight_conversions", None):
        # Else it would be saved under the names it came with, which a trainer that resumes does not know.
        model._weight_conversions = [c for c in model._weight_conversions if not _is_one_of(c, format.key_mapping)]
    return model


def _with_mlp_head(architecture: type) -> type:
    """The token-classification architecture with linear, ReLU, linear for its head, as Qwen2.5-Math-PRM has it."""

    class WithMLPHead(architecture):
        def __init__(self, config):
            super().__init__(config)
            hidden_size = config.get_text_config().hidden_size
            self.score = nn.Sequential(
                nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, config.num_labels)
            )

    WithMLPHead.__name__ = WithMLPHead.__qualname__ = architecture.__name__  # written into the checkpoint's config
    return WithMLPHead


def _is_one_of(conversion: Any, key_mapping: tuple[tuple[str, str], ...]) -> bool:
    """Whether this conversion of weights, as transformers keeps it with the model, comes from our key mapping."""
    patterns = (conversion._original_source_patterns, conversion._original_target_patterns)
    return patterns in [([source], [target]) for source, target in key_mapping]


@contextmanager
def new_head_is_expected(may_be_missing: bool = True) -> Iterator[None]:
    """
    Keeps transformers from reporting the new `score` layer and the unused `lm_head` of a causal checkpoint; with
    `may_be_missing=False` the new layer is reported, in its log and in its `missing_keys`.
    """
    patterns = {"_keys_to_ignore_on_load_unexpected": r"^lm_head\."}
    if may_be_missing:
        patterns["_keys_to_ignore_on_load_missing"] = r"^score\."
    before = {name: getattr(GenericForTokenClassification, name, None) for name in patterns}
    for name, pattern in patterns.items():
        setattr(GenericForTokenClassification, name, [*(before[name] or []), pattern])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(GenericForTokenClassification, name, value)


def without_head(quantization_config: Any) -> Any:
    """
    A copy of a bitsandbytes configuration (object or dictionary) that leaves a token-classification head in full
    precision. A new head has no quantized weights to load: quantized, loading ends in an AttributeError. Other
    configurations, and `None`, are returned as they are.
    """
    if isinstance(quantization_config, dict):
        if "bitsandbytes" not in str(quantization_config.get("quant_method", "bitsandbytes")).lower():
            return quantization_config
        skipped = quantization_config.get("llm_int8_skip_modules") or []
        return {**quantization_config, "llm_int8_skip_modules": [*skipped, *sorted(_HEADS_TO_SKIP - set(skipped))]}
    if not hasattr(quantization_config, "llm_int8_skip_modules"):
        return quantization_config
    quantization_config = copy.deepcopy(quantization_config)
    skipped = quantization_config.llm_int8_skip_modules or []
    quantization_config.llm_int8_skip_modules = [*skipped, *sorted(_HEADS_TO_SKIP - set(skipped))]
    return quantization_config
