r"""Generalized advantage estimation: rewards and values of each token -> its advantage and its return.

    delta_t = r_t + gamma * V_{t'} - V_t                      t' the next token of the policy, V = 0 behind the last
    A_t     = delta_t + gamma * lambda * A_{t'}
    R_t     = A_t + V_t                                       what the critic is trained towards

V_t is the value of the state *before* token t: of the prompt and the tokens up to t - 1. All tensors are of shape
(B, T). Tokens that the policy did not write (padding, the answers of tools) are skipped: t' is the next one that it
did write, and a reward on a skipped token is lost, so [`place_rewards`] puts none there.

Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, arXiv 1506.02438,
equations 11 to 16. The clipped value loss is not in the PPO paper (arXiv 1707.06347), but in its authors' code.

A completion cut off at the greatest length ends there like any other: its last value is not carried on (bootstrapped).
The limit is part of the task, as it is when the policy is used, and not an accident of training (arXiv 1712.00378,
section 2, against section 3); carried on, a completion that never ends would escape judgement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = [
    "clipped_value_loss",
    "explained_variance",
    "generalized_advantages",
    "masked_moments",
    "place_rewards",
    "whiten",
]


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Advantages and returns of each token (arXiv 1506.02438, equation 16, summed from the end).

    Args:
        rewards (`torch.Tensor` of shape `(B, T)`):
            Reward of each token.
        values (`torch.Tensor` of shape `(B, T)`):
            Value of the state before each token.
        mask (`torch.Tensor` of shape `(B, T)`):
            Where the policy wrote the token; all others are skipped.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of a token, in [0, 1].
        lam (`float`, *optional*, defaults to `0.95`):
            0: the next value is trusted (little variance); 1: the rewards alone are (no bias), in [0, 1].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: advantages and returns, both of shape `(B, T)`, 0 where `mask` is.

    Example:

    ```python
    >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.75]])
    >>> generalized_advantages(rewards, values, torch.ones(1, 2), gamma=1.0, lam=0.5)
    (tensor([[0.3750, 0.2500]]), tensor([[0.8750, 1.0000]]))

    ```
    """
    is_own = mask.bool()
    next_value = next_advantage = values.new_zeros(values.size(0))
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_advantage = torch.where(is_own[:, t], advantage, next_advantage)
        next_value = torch.where(is_own[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(is_own[:, t], advantage, 0.0)
    return advantages, torch.where(is_own, advantages + values, 0.0)


def place_rewards(
    rewards: Sequence[Sequence[float]], positions: Sequence[Sequence[int]], mask: torch.Tensor
) -> torch.Tensor:
    r"""
    Puts rewards onto tokens of the policy.

    Args:
        rewards (`Sequence[Sequence[float]]`):
            Rewards of each completion.
        positions (`Sequence[Sequence[int]]`):
            The token at which each is earned; -1 for the last one. Where the policy did not write that token, the
            reward goes to the last one before it that it did write, or, where there is none, to its first.
        mask (`torch.Tensor` of shape `(B, T)`):
            Where the policy wrote the token. A completion without such a token gets nothing.

    Returns:
        `torch.Tensor` of shape `(B, T)`: float32, rewards on the same token added up.

    Example:

    ```python
    >>> place_rewards([[0.5, 1.0]], [[1, -1]], torch.tensor([[1, 0, 1, 0]]))
    tensor([[0.5000, 0.0000, 1.0000, 0.0000]])

    ```
    """
    placed = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    for row, (of_row, at) in enumerate(zip(rewards, positions, strict=True)):
        own = mask[row].bool().nonzero()[:, 0].tolist()
        if not own:
            continue
        for reward, position in zip(of_row, at, strict=True):
            before = own if position < 0 else [t for t in own if t <= position]
            placed[row, before[-1] if before else own[0]] += reward
    return placed


def masked_moments(
    values: torch.Tensor, mask: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Mean and variance (of n values, over n) of the values where `mask` is.

    Args:
        values (`torch.Tensor`), mask (`torch.Tensor` of the same shape):
            The values, and which of them count.
        reduce (`Callable`, *optional*):
            Adds a tensor up over processes.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: two float64 scalars, NaN where no value counts.

    Example:

    ```python
    >>> [m.item() for m in masked_moments(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([1, 1, 0]))]
    [2.0, 1.0]

    ```
    """
    # Apple's GPUs have no float64
    counted = values.to(torch.float32 if values.device.type == "mps" else torch.float64)[mask.bool()]
    total, count = reduce(torch.stack([counted.sum(), counted.new_tensor(counted.numel())]))
    mean = total / count
    # a second pass: the difference of two large sums would lose the variance of values far from 0
    return mean, reduce((counted - mean).square().sum()) / count


def whiten(
    advantages: torch.Tensor, mask: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums
) -> torch.Tensor:
    r"""
    Advantages with mean 0 and standard deviation 1 over the tokens where `mask` is; 0 elsewhere.

    Args:
        advantages (`torch.Tensor` of shape `(B, T)`), mask (`torch.Tensor` of shape `(B, T)`):
            The advantages, and which of them count.
        reduce (`Callable`, *optional*):
            Adds a tensor up over processes.

    Example:

    ```python
    >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]]))
    tensor([[-1.,  1.,  0.]])

    ```
    """
    mean, variance = masked_moments(advantages, mask, reduce)
    whitened = (advantages - mean.to(advantages.dtype)) * torch.rsqrt(variance + 1e-8).to(advantages.dtype)
    return torch.where(mask.bool(), whitened, 0.0)


def explained_variance(
    returns: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
) -> torch.Tensor:
    r"""
    Share of the variance of the returns that the values foresee: `1 - Var(R - V) / Var(R)`.

    Args:
        returns, values, mask (`torch.Tensor` of shape `(B, T)`):
            Returns, the values predicted for them, and which of them count.
        reduce (`Callable`, *optional*):
            Adds a tensor up over processes.

    Returns:
        `torch.Tensor`: a scalar; 1 for a perfect critic, 0 for a constant, below 0 for one that misleads; NaN where
        the returns do not vary.

    Example:

    ```python
    >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 1.5]), torch.ones(2)).item()
    1.0

    ```
    """
    _, variance = masked_moments(returns, mask, reduce)
    _, residual = masked_moments(returns - values, mask, reduce)
    return 1 - residual / torch.where(variance > 0, variance, torch.nan)


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Half the squared error of each value, where a step beyond `cliprange` from the old value earns nothing.

    `max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2`

    Args:
        values, old_values, returns (`torch.Tensor` of shape `(B, T)`):
            Values now, values when the completions were sampled, and what they should be.
        cliprange (`float`, *optional*):
            c, in units of a value; `None`: the squared error alone.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: loss of each token, and whether it was clipped, both of shape `(B, T)`.

    Example:

    ```python
    >>> clipped_value_loss(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, 1.0]]), 0.25)
    (tensor([[0.2812, 0.1250]]), tensor([[ True, False]]))

    ```
    """
    loss = (values - returns).square()
    if cliprange is None:
        return 0.5 * loss, torch.zeros_like(loss, dtype=torch.bool)
    clipped = (old_values + (values - old_values).clamp(-cliprange, cliprange) - returns).square()
    return 0.5 * torch.maximum(loss, clipped), clipped > loss
