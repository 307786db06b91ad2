"""Decoding rows that share prefixes: keys and values of a prefix are there once, and read once for all of its rows.

Attention to the keys of a prefix (P) and to those that a row has written itself (O) is computed apart and joined, as
in Hydragen (arXiv 2402.05099) and cascade inference. With scores s_j, maxima m_X, and for each part
z_X = sum_{j in X} exp(s_j - m_X) and o_X = sum_{j in X} exp(s_j - m_X) v_j,

    m = max(m_P, m_O)        output = (o_P exp(m_P - m) + o_O exp(m_O - m)) / (z_P exp(m_P - m) + z_O exp(m_O - m))

which is the softmax over all keys. For o_P, the queries of all rows of a prefix are one matrix: with 16 rollouts a
prefix, a step of decoding reads 1/16 of the memory that a cache for each row would make it read, and takes 1/16 of the
room. The model itself is left as it is: transformers lets an attention function be registered under a name.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["NotShareableError", "SharedPrefixCache", "base_model", "shared_prefix_attention", "why_not_shareable"]

ATTENTION = "trl_erprm_shared_prefix"
GROWTH = 64
"""Columns by which the buffers of written tokens grow. Growing by one, as transformers does, copies them each step."""

# How the arguments of attention functions begin that change nothing for a single query that may see all keys.
_NEUTRAL = ("cache_position", "is_causal", "output_", "position_ids", "use_cache")


class NotShareableError(Exception):
    """The model's attention does something that [`SharedPrefixCache`] does not know."""


@dataclass(frozen=True)
class _Layout:
    """Which rows have which prefix, and which columns are padding."""

    group_of_row: torch.Tensor  # (B,): the prefix of each row
    rank_of_row: torch.Tensor  # (B,): its number among the rows of this prefix
    row_of_slot: torch.Tensor  # (G, R): the inverse; R is the largest number of rows of a prefix, unused slots hold 0
    prefix_bias: torch.Tensor | None  # (G, 1, 1, P): -inf where a shorter prefix has no token; None if there is none
    own_bias: torch.Tensor | None  # (B, 1, 1, T): -inf in columns from before a row was there; later ones have no bias


class SharedPrefixCache(DynamicCache):
    """
    The cache of a batch of rows that come and go, each with one of G prefixes.

    Rows of a prefix stand next to each other, in the order of the prefixes. Columns are aligned at the right, those of
    prefixes and those of written tokens alike, so that all rows write into the same column.
    """

    @property
    def numel_per_token(self) -> int:
        """Numbers that are stored for each token of a row, in all layers; 0 before the first rows."""
        return sum(layer.keys[0, :, 0].numel() + layer.values[0, :, 0].numel() for layer in self.layers)

    def rebuild(
        self,
        kept_rows: Sequence[int],
        kept_prefixes: Sequence[int],
        new_prefixes: DynamicCache | None,
        prefix_lengths: Sequence[int],
        group_of_row: Sequence[int],
        num_written: Sequence[int],
    ) -> None:
        """
        Takes rows and prefixes out, and others in, behind those that stay.

        Args:
            kept_rows, kept_prefixes (`Sequence[int]`):
                Indices of those that stay, rising.
            new_prefixes (`DynamicCache`, *optional*):
                Keys and values of those that come, left-padded.
            prefix_lengths (`Sequence[int]`):
                Tokens of each prefix, of those that stay and those that come.
            group_of_row (`Sequence[int]`):
                The index of its prefix for each row that stays or comes, not falling.
            num_written (`Sequence[int]`):
                How many tokens each of these rows has in the cache behind its prefix: 0 for one that comes.
        """
        if not self.layers:
            self.layers = [_SharedPrefixLayer() for _ in new_prefixes.layers]
        width, columns = max(prefix_lengths), max(num_written)
        for index, layer in enumerate(self.layers):
            new = None if new_prefixes is None else new_prefixes.layers[index]
            layer.rebuild(kept_rows, kept_prefixes, new, len(group_of_row), width, columns)

        device = self.layers[0].keys.device
        first_row = {group: row for row, group in reversed(list(enumerate(group_of_row)))}
        ranks = [row - first_row[group] for row, group in enumerate(group_of_row)]
        groups, ranks = torch.tensor(group_of_row, device=device), torch.tensor(ranks, device=device)
        row_of_slot = torch.zeros(len(prefix_lengths), int(ranks.max()) + 1, dtype=torch.long, device=device)
        row_of_slot[groups, ranks] = torch.arange(len(ranks), device=device)
        layout = _Layout(
            groups,
            ranks,
            row_of_slot,
            _left_padding_bias(prefix_lengths, width, device),
            _left_padding_bias(num_written, columns, device),
        )
        for layer in self.layers:  # not the cache itself: it would then be freed only by the garbage collector
            layer.layout = layout


class _SharedPrefixLayer(DynamicLayer):
    """`prefix_keys`, `prefix_values` of shape `(G, H_kv, P, D)`; `keys`, `values` `(B, H_kv, capacity, D)`."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0  # columns of `keys` that are written

    def rebuild(
        self,
        kept_rows: Sequence[int],
        kept_prefixes: Sequence[int],
        new_prefixes: DynamicLayer | None,
        num_rows: int,
        width: int,
        columns: int,
    ) -> None:
        for name in ("keys", "values"):
            parts = []
            if kept_prefixes:
                parts.append(_fit(getattr(self, f"prefix_{name}")[kept_prefixes], width))
            if new_prefixes is not None:
                parts.append(_fit(getattr(new_prefixes, name), width))
            of_prefixes = parts[0] if len(parts) == 1 else torch.cat(parts)
            _, heads, _, dim = of_prefixes.shape
            own = of_prefixes.new_zeros(num_rows, heads, columns + GROWTH, dim)
            if kept_rows:
                written = getattr(self, name)[:, :, self.length - columns : self.length]
                own[: len(kept_rows), :, :columns] = written[kept_rows]
            setattr(self, f"prefix_{name}", of_prefixes)
            setattr(self, name, own)
        self.length = columns
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the keys and values of one token a row, and gives those that the rows have written."""
        if key_states.shape[-2] != 1:
            raise NotShareableError(f"it runs {key_states.shape[-2]} tokens a row in a step")
        if self.length == self.keys.shape[-2]:
            self.keys = F.pad(self.keys, (0, 0, 0, GROWTH))
            self.values = F.pad(self.values, (0, 0, 0, GROWTH))
        self.keys[:, :, self.length] = key_states[:, :, 0]
        self.values[:, :, self.length] = value_states[:, :, 0]
        self.length += 1
        keys, values = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        keys.shared_prefix_layer = self  # read by `_attention_function`, which so knows that it is given these keys
        return keys, values

    def get_seq_length(self) -> int:
        return self.length

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention of one query a row, `(B, H, 1, D)`, to its prefix and to what it has written: `(B, 1, H, D_v)`."""
        layout, (batch, num_heads, _, dim) = self.layout, query.shape
        num_groups, num_slots = layout.row_of_slot.shape
        heads = keys.shape[1]  # H_kv; the queries of the H / H_kv heads that share one are rows of one matrix
        query = (query * scaling).reshape(batch, heads, -1, dim)
        by_prefix = query[layout.row_of_slot].transpose(1, 2).reshape(num_groups, heads, -1, dim)
        of_prefix = _unnormalized(by_prefix, self.prefix_keys, self.prefix_values, layout.prefix_bias)
        of_prefix = of_prefix.view(num_groups, heads, num_slots, -1, of_prefix.shape[-1]).transpose(1, 2)
        of_prefix = of_prefix[layout.group_of_row, layout.rank_of_row]  # (B, H_kv, H / H_kv, D_v + 2)
        of_own = _unnormalized(query, keys, values, layout.own_bias)

        # Both: the weighted sum of the values, the sum of the weights, and the logarithm of their scale
        largest = torch.maximum(of_prefix[..., -1:], of_own[..., -1:])
        joined = of_prefix[..., :-1] * (of_prefix[..., -1:] - largest).exp_()
        joined += of_own[..., :-1] * (of_own[..., -1:] - largest).exp_()
        return (joined[..., :-1] / joined[..., -1:]).to(query.dtype).reshape(batch, 1, num_heads, -1)


def _unnormalized(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """`(..., D_v + 2)`, float32: sum_j w_j v_j, sum_j w_j and m with the weights w_j = exp(s_j - m), m = max_j s_j."""
    scores = (query @ keys.transpose(-1, -2)).float()
    if bias is not None:
        scores[..., : bias.shape[-1]] += bias
    largest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    return torch.cat([(weights.to(values.dtype) @ values).float(), weights.sum(dim=-1, keepdim=True), largest], dim=-1)


def _attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' interface of an attention function, for a forward pass with a [`SharedPrefixCache`]."""
    layer = getattr(key, "shared_prefix_layer", None)
    if layer is None:
        raise NotShareableError("it attends to other keys than those that its cache gives")
    unknown = sorted(
        name for name, argument in kwargs.items() if argument is not None and not name.startswith(_NEUTRAL)
    )
    if unknown or dropout:
        raise NotShareableError(f"its attention takes {', '.join(unknown) or 'dropout'}")
    return layer.attend(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


AttentionInterface.register(ATTENTION, _attention_function)


def base_model(model: "PreTrainedModel") -> "PreTrainedModel":
    """The transformers model, without the wrapper of PEFT."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def shared_prefix_attention(model: "PreTrainedModel") -> Iterator[None]:
    """Makes a model attend through the [`SharedPrefixCache`] that its forward pass is given."""
    model = base_model(model)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def why_not_shareable(model: "PreTrainedModel") -> str | None:
    """What keeps a model from decoding with a [`SharedPrefixCache`], as a clause for a message; `None` if nothing."""
    base = base_model(model)
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return "its adapter puts learned tokens in front of the prompt"
    if not getattr(base, "_supports_attention_backend", False):
        return "its attention function cannot be chosen"
    if base.config.is_encoder_decoder or base.config.get_text_config() is not base.config:
        return "it is more than a decoder of text"
    missing = {"position_ids", "past_key_values", "logits_to_keep"} - set(
        inspect.signature(type(base).forward).parameters
    )
    if missing:
        return f"its forward pass does not take {', '.join(sorted(missing))}"
    kinds = sorted(
        {type(layer).__name__ for layer in DynamicCache(config=base.config).layers if type(layer) is not DynamicLayer}
    )
    if kinds:
        return f"its cache has layers of other kinds than full attention ({', '.join(kinds)})"
    rope = getattr(base.config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return "its rotary embedding depends on the longest row of a batch"
    if len(set((getattr(base, "hf_device_map", None) or {}).values())) > 1:
        return "it lies on several devices"
    return None


def _fit(states: torch.Tensor, width: int) -> torch.Tensor:
    """Keys or values with `width` columns: padding added or taken away at the left."""
    missing = width - states.shape[-2]
    return F.pad(states, (0, 0, missing, 0)) if missing > 0 else states[:, :, -missing:]


def _left_padding_bias(lengths: Sequence[int], width: int, device: torch.device) -> torch.Tensor | None:
    """`(len(lengths), 1, 1, width)`: 0 in the last columns of a row, as many as its length, and -inf before them."""
    if min(lengths) == width:
        return None
    first = width - torch.tensor(lengths, device=device)[:, None]
    is_padding = torch.arange(width, device=device) < first
    return torch.zeros(is_padding.shape, device=device).masked_fill_(is_padding, -torch.inf)[:, None, None]
