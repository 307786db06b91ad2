"""Batches without padding: solutions laid end to end in one row, each attending to itself alone.

With FlashAttention (`attn_implementation="flash_attention_2"` or a kernel of it) its own variable-length kernel is
used. Without it, [`packed_sdpa_attention`] calls PyTorch's causal attention on one solution at a time: everything
else (the linear layers, nearly all of the time) runs on the tokens of the whole batch at once, and no mask of T x T
is ever made, which is what sdpa would otherwise do with several solutions in a row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_SDPA = "packed_sdpa"
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def packed_sdpa_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Causal attention within each of the sequences of a row; an attention function of transformers' interface.

    Args:
        module (`nn.Module`):
            The attention layer.
        query (`torch.Tensor` of shape `(1, H, T, D)`), key, value (`torch.Tensor` of shape `(1, H_kv, T, D)`):
            Projections.
        attention_mask, scaling, dropout, sliding_window:
            As transformers passes them.
        cu_seq_lens_q (`torch.IntTensor` of shape `(num_sequences + 1,)`, *optional*):
            Where each sequence begins, and T. Without it, `position_ids` tell; and where these count up once, this is
            transformers' own sdpa, so that the model can still generate and take padded batches.

    Returns:
        `torch.Tensor` of shape `(1, T, H, D)`, and `None` for the weights.
    """
    position_ids = kwargs.get("position_ids")
    if cu_seq_lens_q is None and attention_mask is None and position_ids is not None and len(position_ids) == 1:
        starts = (position_ids[0] == 0).nonzero().flatten()
        if len(starts) > 1 and query.shape[2] == key.shape[2]:
            cu_seq_lens_q = torch.cat([starts, starts.new_tensor([query.shape[2]])])
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    # Read once a batch rather than once a layer: on a GPU, each reading waits for all work before it.
    bounds = getattr(cu_seq_lens_q, "_bounds", None)
    if bounds is None:
        bounds = cu_seq_lens_q._bounds = cu_seq_lens_q.tolist()
    outputs = []
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        length, mask = end - start, None
        if sliding_window is not None and length > sliding_window:
            distance = torch.arange(length, device=query.device)
            distance = distance[:, None] - distance[None, :]
            mask = (distance >= 0) & (distance < sliding_window)
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _packed_sdpa_mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """No mask for a row of sequences, which comes without one; sdpa's for padded batches and with a cache."""
    is_packed = (
        attention_mask is None
        and kwargs.get("q_length") == kwargs.get("kv_length")
        and kwargs.get("batch_size") == 1
        and not kwargs.get("allow_is_causal_skip", True)
    )
    return None if is_packed else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(PACKED_SDPA, packed_sdpa_attention)
AttentionMaskInterface.register(PACKED_SDPA, _packed_sdpa_mask)


def is_causal(model: nn.Module) -> bool:
    """
    Whether no token of this model sees a later one, so that what follows a step end, padding included, needs no mask.
    """
    marks = [module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return bool(marks) and all(marks)


def why_not_padding_free(model: PreTrainedModel) -> str | None:
    """What keeps this model from batches without padding, as a clause for a message; `None` where nothing does."""
    config = model.config.get_text_config()
    if not is_causal(model):
        return "its attention is not causal"
    other = sorted(set(getattr(config, "layer_types", None) or []) - _LAYER_TYPES)
    if other:
        return f"it has layers of other kinds than attention ({', '.join(other)})"
    implementation = config._attn_implementation or "eager"
    if implementation not in ("sdpa", PACKED_SDPA) and "flash" not in implementation:
        return f"its attention runs as {implementation!r}, and 'sdpa' or a FlashAttention is needed"
    if not getattr(model, "_supports_attention_backend", True):
        return "its attention cannot be exchanged"
    return None


def use_packed_attention(model: PreTrainedModel) -> None:
    """Makes a model with sdpa attention take batches without padding; with FlashAttention it does already."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation(PACKED_SDPA)
