"""Prefix sharing: solutions that begin with the same tokens, mostly candidates for one prompt, pay for these once.

The common beginning runs through the model by itself, at batch size 1, and leaves its keys and values in a cache. The
remainders then run in batches against that cache. Every token sees the very tokens it would have seen in a row of its
own, so scores are equal up to rounding.

What it costs: one pass more for each group, and smaller batches, since a batch holds remainders of one group only.
[`cut_batches`] weighs that against the tokens saved.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from .attention import is_causal
from .formats import EncodedSolution, Prompt
from .heads import step_log_odds

CPU_PASS_COST, ACCELERATOR_PASS_COST = 32, 512
"""What a forward pass costs besides its tokens (to read the weights, to launch kernels), in tokens. On a CPU, 10 were
measured for layers of a 0.5B model and 110 for a model of 30,000 parameters. For accelerators it is computed, not
measured: with 3 TB/s and 500 TFLOP/s, some 150 for a 7B model, which waits for its weights, and 1,300 for one of 0.5B,
at 100 microseconds to launch a layer."""

MIN_SAVING = 0.05
"""Share of a group's cost that sharing must save."""

_LAYER_TYPES = {"full_attention", "sliding_attention"}  # those for which keys and values of all tokens are enough
_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")  # those that align queries with the last keys


def pass_cost_on(device: torch.device) -> int:
    """[`CPU_PASS_COST`] or [`ACCELERATOR_PASS_COST`]."""
    return CPU_PASS_COST if device.type == "cpu" else ACCELERATOR_PASS_COST


def common_prefix_length(solutions: Sequence[EncodedSolution]) -> int:
    """
    With how many equal tokens solutions begin, all step ends lying behind them.

    Args:
        solutions (`Sequence[EncodedSolution]`):
            Solutions of one or more steps.

    Returns:
        `int`: at least 0, and less than the length of each.

    Example:

    ```python
    >>> common_prefix_length([EncodedSolution([5, 6, 7, 8], [3]), EncodedSolution([5, 6, 9], [2])])
    2
    >>> common_prefix_length([EncodedSolution([5, 6, 7, 8], [1, 3]), EncodedSolution([5, 6, 7, 8], [1, 3])])
    1

    ```
    """
    common = os.path.commonprefix([solution.input_ids for solution in solutions])  # of any lists, in spite of its name
    return min(len(common), *(solution.step_ends[0] for solution in solutions))


def cut_batches(
    lengths: Sequence[int], batch_size: int, max_tokens: int | None = None, pass_cost: int = ACCELERATOR_PASS_COST
) -> tuple[list[slice], int]:
    """
    The cheapest batches of consecutive rows, by padded tokens and passes.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each row, longest first.
        batch_size (`int`):
            Most rows in a batch.
        max_tokens (`int`, *optional*):
            Most tokens in a batch, padding included; a single row may have more.
        pass_cost (`int`, *optional*):
            What a batch costs besides its tokens, in tokens.

    Returns:
        `tuple[list[slice], int]`: the batches, and their cost: rows times longest row, and `pass_cost` for each.

    Example:

    ```python
    >>> cut_batches([900, 310, 300, 290, 280], batch_size=4, pass_cost=100)
    ([slice(0, 1, None), slice(1, 5, None)], 2340)

    ```
    """
    length, count = np.asarray(lengths, dtype=np.int64), len(lengths)
    cost, start_of = np.zeros(count + 1, dtype=np.int64), np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):  # cost[end]: of the best batches of the first `end` rows
        starts = np.arange(max(0, end - batch_size), end)
        tokens = (end - starts) * length[starts]
        if max_tokens is not None:
            starts, tokens = starts[fits := (tokens <= max_tokens) | (starts == end - 1)], tokens[fits]
        totals = cost[starts] + tokens + pass_cost
        best = int(totals.argmin())
        cost[end], start_of[end] = totals[best], starts[best]
    batches, end = [], count
    while end > 0:
        batches.append(slice(int(start_of[end]), end))
        end = int(start_of[end])
    return batches[::-1], int(cost[count])


def windows(prompts: Sequence[Prompt], indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Parts of `indices`: `size` solutions, and up to as many more that belong to the prompt of the last."""
    start = 0
    while start < len(indices):
        end = min(start + size, len(indices))
        last = min(end + size, len(indices))
        while end < last and prompts[indices[end]] == prompts[indices[end - 1]]:
            end += 1
        yield indices[start:end]
        start = end


class PrefixCache(DynamicCache):
    """
    Keys and values of a prefix, of batch size 1, put before those of any number of rows.

    Once `is_frozen`, nothing is added: a layer's joined keys and values live for as long as that layer needs them, so
    memory grows by one layer's worth, not by a copy of the prefix for each row in all layers.
    """

    is_frozen = False

    @classmethod
    def of(
        cls, input_ids: list[int], model: PreTrainedModel, label_token_ids: tuple[int, int] | None = None
    ) -> PrefixCache:
        """The frozen cache of a prefix; arguments as for [`step_log_odds`]."""
        cache, ids = cls(), torch.tensor([input_ids], device=next(model.parameters()).device)
        nowhere = torch.zeros_like(ids, dtype=torch.bool)  # no step ends, so no logits either
        inputs = {"input_ids": ids, "past_key_values": cache, "use_cache": True}
        step_log_odds(model, inputs, nowhere, label_token_ids)
        cache.is_frozen = True
        return cache

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `(B, H_kv, P + T, D)` of the prefix's P tokens and the T of each row."""
        if not self.is_frozen:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer, rows = self.layers[layer_idx], len(key_states)
        return (
            torch.cat([layer.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([layer.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


def why_not_shareable(model: PreTrainedModel) -> str | None:
    """What keeps this model from sharing prefixes, as a clause for a message; `None` where nothing does."""
    config = model.config.get_text_config()
    if not is_causal(model):
        return "its attention is not causal"
    other = sorted(set(getattr(config, "layer_types", None) or []) - _LAYER_TYPES)
    if other:
        return f"it has layers of other kinds than attention ({', '.join(other)})"
    if (config._attn_implementation or "eager") not in _ATTENTION:
        return f"its attention runs as {config._attn_implementation!r}, and one of {', '.join(_ATTENTION)} is needed"
    return None


def plan_sharing(
    encoded: Mapping[int, EncodedSolution],
    prompts: Sequence[Prompt],
    share: bool | None,
    batch_size: int,
    max_tokens: int | None = None,
    pass_cost: int = ACCELERATOR_PASS_COST,
) -> list[tuple[list[int], int]]:
    """
    Which solutions run together, behind which prefix.

    Args:
        encoded (`Mapping[int, EncodedSolution]`):
            Solutions by index.
        prompts (`Sequence` of `str` or messages):
            Prompts; that of a solution is at its index. Equal prompts make a group.
        share (`bool`, *optional*):
            `True`: share whatever a group has in common; `False`: share nothing; `None`: share where
            [`is_worth_sharing`].
        batch_size (`int`), max_tokens (`int`, *optional*), pass_cost (`int`, *optional*):
            As for [`cut_batches`].

    Returns:
        `list[tuple[list[int], int]]`: the indices of each group and the length of the prefix that runs once for all of
        it; behind the length 0, all solutions that share nothing.
    """
    if share is False:
        return [(list(encoded), 0)]
    groups: dict[str, list[int]] = {}
    for i in encoded:
        groups.setdefault(repr(prompts[i]), []).append(i)
    plan, others = [], []
    for group in groups.values():
        solutions = [encoded[i] for i in group]
        length = common_prefix_length(solutions) if len(group) > 1 else 0
        lengths = [len(solution.input_ids) for solution in solutions]
        if length and (share or is_worth_sharing(lengths, length, batch_size, max_tokens, pass_cost)):
            plan.append((group, length))
        else:
            others += group
    return [*plan, (others, 0)]


def is_worth_sharing(
    lengths: Sequence[int],
    prefix_length: int,
    batch_size: int,
    max_tokens: int | None = None,
    pass_cost: int = ACCELERATOR_PASS_COST,
) -> bool:
    """
    Whether a group costs at least [`MIN_SAVING`] less with a shared prefix, in tokens run and passes.

    Without sharing, its solutions stand in batches with others of like length, all of them full and without padding.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each solution, the prefix included.
        prefix_length (`int`):
            Tokens of the prefix.
        batch_size (`int`), max_tokens (`int`, *optional*), pass_cost (`int`, *optional*):
            As for [`cut_batches`].

    Example:

    ```python
    >>> is_worth_sharing([300] * 32, 100, batch_size=32), is_worth_sharing([300] * 2, 10, batch_size=32)
    (True, False)

    ```
    """
    total = sum(lengths)
    num_passes = min(len(lengths), max(len(lengths) / batch_size, 0 if max_tokens is None else total / max_tokens))
    rests = sorted((length - prefix_length for length in lengths), reverse=True)
    _, cost = cut_batches(rests, batch_size, max_tokens, pass_cost)
    return prefix_length + pass_cost + cost < (1 - MIN_SAVING) * (total + num_passes * pass_cost)
