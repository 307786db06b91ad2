r"""Advantage estimators: the scores of a completion's steps -> an advantage for each step, hence for each token.

    completions of one prompt           step scores V_{i,k} in [0, 1], NaN where a completion has fewer steps
                                        k=1   k=2   k=3
    i=1   4*3=2 | 2+1=3 | #3            0.9   0.8   0.9
    i=2   4*3=1 | #1                    0.2   0.1   NaN

All functions take and give tensors of shape (N, S): N completions, G = `num_generations` of each prompt next to each
other, S steps of the longest. A completion that could not be scored is a row of NaN; it gets no advantage, and counts
in no statistic of its group.

    outcome          A_i         of the whole completion, GRPOTrainer's own: no function here
    reward_to_go     A_{i,k} = sum_{j >= k} (r_{i,j} - mean(r)) / std(r)       mean over all steps of the group; std of
                                                                               the group, the batch, or left out
    min_form         A_{i,k} = G_{i,k} - mean_{j != i} G_{j,k},   G_{i,k} = sum_{j >= k} w_{i,j} V_{i,j},
                     w_i = softmax(-V_i / T)
    soft_advantage   A_{i,k} = V_{i,k} - V_{i,k-1},   V_{i,0} = (1/eta) log mean_j exp(eta V_{j,1})

Sources: reward_to_go is GRPO with process supervision (DeepSeekMath, arXiv 2402.03300, section 4.1.3). min_form is the
credit assignment of PURE (arXiv 2504.15275, section 3). soft_advantage follows from the Bellman identity of the
entropy-regularized values, exp(eta V(s)) = E_{a ~ pi_0}[exp(eta V(s + a))] (ER-PRM, arXiv 2412.11006).

Departures: PURE spreads the mean return of the other completions over their tokens; here the baseline of a step is the
mean return from the same step on, which is free of bias just as well, and does not punish what follows after the worst
step of a good completion.
"""

from __future__ import annotations

import math

import torch

from ..choices import check_choice

__all__ = [
    "ADVANTAGE_ESTIMATORS",
    "REWARD_SCALINGS",
    "STEP_REWARD_SHAPINGS",
    "advantages_per_token",
    "clip_step_rewards",
    "delta_step_rewards",
    "min_form_advantages",
    "reward_to_go_advantages",
    "soft_advantages",
]

ADVANTAGE_ESTIMATORS = ("outcome", "reward_to_go", "min_form", "soft_advantage")

STEP_REWARD_SHAPINGS = ("clip", "delta")

REWARD_SCALINGS = ("group", "batch", "none")


def clip_step_rewards(step_scores: torch.Tensor, threshold: float) -> torch.Tensor:
    r"""
    Step rewards that no step can gain by: `min(V_k - threshold, 0)` (arXiv 2410.15115, "Clip").

    A completion's rewards then add up to at most 0, however many good steps it has.

    Args:
        step_scores (`torch.Tensor` of shape `(N, S)`):
            Scores in [0, 1], NaN behind the last step.
        threshold (`float`):
            Scores above it count as good enough.

    Returns:
        `torch.Tensor` of shape `(N, S)`: rewards in [-threshold, 0].

    Example:

    ```python
    >>> clip_step_rewards(torch.tensor([[0.75, 0.25]]), threshold=0.5)
    tensor([[ 0.0000, -0.2500]])

    ```
    """
    return (step_scores - threshold).clamp(max=0.0)


def delta_step_rewards(step_scores: torch.Tensor) -> torch.Tensor:
    r"""
    Step rewards whose sum from any step on is that step's own score (arXiv 2410.15115, "Delta").

    `V_k - V_{k+1}` for k < K - 1, `V_{K-1}` for k = K - 1, and 0 for the last step K, whose judgement is left to the
    outcome reward. Further steps then add nothing to the return of those before.

    Args:
        step_scores (`torch.Tensor` of shape `(N, S)`):
            Scores in [0, 1], or clipped rewards; NaN behind the last step.

    Returns:
        `torch.Tensor` of shape `(N, S)`: rewards in [-1, 1].

    Example:

    ```python
    >>> delta_step_rewards(torch.tensor([[0.75, 0.5, 0.25]]))
    tensor([[0.2500, 0.5000, 0.0000]])

    ```
    """
    is_last = _is_last_step(step_scores)
    scores = step_scores.masked_fill(is_last, 0.0)
    following = torch.nn.functional.pad(scores[:, 1:], (0, 1))
    return torch.where(is_last, scores, scores - following)


def reward_to_go_advantages(
    step_rewards: torch.Tensor, num_generations: int, scale_rewards: str = "group"
) -> torch.Tensor:
    r"""
    Sum of the normalized rewards from each step on: GRPO with process supervision (arXiv 2402.03300, section 4.1.3).

    All step rewards of a group are normalized together, with the `1e-4` beside the standard deviation that
    GRPOTrainer has. A group of completions with different numbers of steps is not treated alike by it: a step above
    the group's mean adds to every step before it, so a policy can gain by splitting good steps. Shape the rewards
    ([`clip_step_rewards`], [`delta_step_rewards`]), or take another estimator.

    Args:
        step_rewards (`torch.Tensor` of shape `(N, S)`):
            Step scores, or rewards shaped from them; NaN behind the last step.
        num_generations (`int`):
            Completions a prompt, G; they lie next to each other.
        scale_rewards (`str`, *optional*, defaults to `"group"`):
            What the rewards, less the mean of their group, are divided by, as in GRPOTrainer:

            - `"group"`: the standard deviation of the step rewards of their group.
            - `"batch"`: that of all step rewards given (arXiv 2508.08221).
            - `"none"`: nothing (Dr. GRPO, arXiv 2503.20783). The advantages then are in units of a step reward.

    Returns:
        `torch.Tensor` of shape `(N, S)`: advantages; NaN behind the last step.

    Raises:
        ValueError: if `scale_rewards` is none of these, or if the completions cannot be divided into groups.

    Example:

    ```python
    >>> rewards = torch.tensor([[1.0, 0.0], [1.0, torch.nan], [0.0, torch.nan]])
    >>> reward_to_go_advantages(rewards, num_generations=3)  # mean 0.5, standard deviation 0.5774
    tensor([[ 0.0000, -0.8659],
            [ 0.8659,     nan],
            [-0.8659,     nan]])

    ```
    """
    check_choice("scale_rewards", scale_rewards, REWARD_SCALINGS)
    groups = _groups(step_rewards, num_generations).flatten(1)
    normalized = groups - groups.nanmean(dim=1, keepdim=True)
    if scale_rewards != "none":
        normalized = normalized / (_std(groups if scale_rewards == "group" else groups.view(1, -1)) + 1e-4)
    return _returns_to_go(normalized.view_as(step_rewards))


def min_form_advantages(step_scores: torch.Tensor, num_generations: int, temperature: float = 0.1) -> torch.Tensor:
    r"""
    Credit to the worst step: the return is a soft minimum of the scores, not their sum (PURE, arXiv 2504.15275).

    Each step is rewarded with its part of the soft minimum, `w_k V_k` with `w = softmax(-V / T)`. The return from step
    k on is what of it lies ahead: the steps up to the worst one carry the value of the completion, those behind it
    carry nothing. From it the mean return of the other completions of the group from the same step on is taken away.

    Args:
        step_scores (`torch.Tensor` of shape `(N, S)`):
            Scores, NaN behind the last step.
        num_generations (`int`):
            Completions a prompt, G.
        temperature (`float`, *optional*, defaults to `0.1`):
            T above 0, in units of a score; towards 0 the worst step alone counts. The default is PURE's.

    Returns:
        `torch.Tensor` of shape `(N, S)`: advantages in [-1, 1] for scores in [0, 1]; NaN behind the last step. 0
        where no other completion of the group was scored.

    Example:

    ```python
    >>> scores = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> min_form_advantages(scores, num_generations=2, temperature=0.01)
    tensor([[-1.0000, -0.5000],
            [ 1.0000,  0.5000]])

    ```
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"`temperature` of the soft minimum must be a finite number above 0, got {temperature}.")
    is_step = ~step_scores.isnan()
    weights = torch.softmax((-step_scores / temperature).masked_fill(~is_step, -torch.inf), dim=1)
    returns = _returns_to_go((weights * step_scores).masked_fill(~is_step, torch.nan))
    return returns - _mean_of_others(returns, num_generations)


def soft_advantages(step_values: torch.Tensor, num_generations: int, eta: float) -> torch.Tensor:
    r"""
    What each step gained: the difference of the values after and before it.

    With entropy-regularized values, `eta` times this is the logarithm of the ratio between the best policy and the
    reference policy, `pi*(a|s) = pi_0(a|s) exp(eta (V(s + a) - V(s)))`, where "best" weighs reward against the
    KL divergence to `pi_0` with the coefficient 1 / eta. In units of reward, as here, it goes with GRPO's
    `beta = 1 / eta`.

    The value before the first step is that of the prompt, which a PRM does not score. The Bellman identity gives it
    from the values after the first step, of which the group is a sample.

    The advantages of a completion add up to the value of its last step minus that of the prompt: neither more steps
    nor repeated ones change the sum.

    Args:
        step_values (`torch.Tensor` of shape `(N, S)`):
            Scores of an ER-PRM trained with `eta`, NaN behind the last step.
        num_generations (`int`):
            Completions a prompt, G.
        eta (`float`):
            The entropy parameter that the labels were made with; 0 and the infinities are limits (mean, maximum,
            minimum).

    Returns:
        `torch.Tensor` of shape `(N, S)`: advantages in [-1, 1] for values in [0, 1]; NaN behind the last step.

    Example:

    ```python
    >>> soft_advantages(torch.tensor([[0.75, 1.0], [0.25, 0.0]]), num_generations=2, eta=0.0)
    tensor([[ 0.2500,  0.2500],
            [-0.2500, -0.2500]])

    ```
    """
    first = _groups(step_values, num_generations)[:, :, 0]
    is_scored = ~first.isnan()
    # The largest value, for negative eta the smallest: the other exponents are below 0 then, and none overflows.
    largest = first.masked_fill(~is_scored, -math.copysign(math.inf, eta))
    largest = largest.amax(dim=1, keepdim=True) if eta > 0 else largest.amin(dim=1, keepdim=True)
    if eta == 0:
        prompt_values = first.nanmean(dim=1, keepdim=True)
    elif math.isinf(eta):
        prompt_values = largest
    else:
        prompt_values = largest + torch.expm1(eta * (first - largest)).nanmean(dim=1, keepdim=True).log1p() / eta
    before = torch.cat([prompt_values.repeat_interleave(num_generations, dim=0), step_values[:, :-1]], dim=1)
    return step_values - before


def advantages_per_token(step_advantages: torch.Tensor, step_index: torch.Tensor) -> torch.Tensor:
    r"""
    Hands each token the advantage of its step.

    Args:
        step_advantages (`torch.Tensor` of shape `(B, S)`):
            Advantages, NaN behind the last step.
        step_index (`torch.Tensor` of shape `(B, T)`, integers):
            The step of each token; -1 for a token that is of no step.

    Returns:
        `torch.Tensor` of shape `(B, T)`: the advantage of each token, 0 where there is none.

    Example:

    ```python
    >>> advantages_per_token(torch.tensor([[0.5, -0.5]]), torch.tensor([[0, 0, 1, -1]]))
    tensor([[ 0.5000,  0.5000, -0.5000,  0.0000]])

    ```
    """
    if step_advantages.size(1) == 0:
        return step_advantages.new_zeros(step_index.shape)
    gathered = step_advantages.gather(1, step_index.clamp(min=0))
    return gathered.masked_fill(step_index < 0, 0.0).nan_to_num(nan=0.0)


def _groups(values: torch.Tensor, num_generations: int) -> torch.Tensor:
    """(N, S) -> (N / G, G, S)."""
    if values.size(0) % num_generations:
        raise ValueError(
            f"{values.size(0)} completions cannot be groups of {num_generations}. Gather the completions of all "
            "processes first: a group may lie on several of them."
        )
    return values.view(-1, num_generations, values.size(1))


def _std(values: torch.Tensor) -> torch.Tensor:
    """(R, C) -> (R, 1): of n values over n - 1, as `torch.std` and GRPOTrainer; of one value there is none: 0."""
    count = (~values.isnan()).sum(dim=1, keepdim=True)
    mean = values.nanmean(dim=1, keepdim=True)
    return ((values - mean).square().nansum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()


def _returns_to_go(step_rewards: torch.Tensor) -> torch.Tensor:
    """Sums from each step on; NaN stays where there is no step."""
    returns = step_rewards.nan_to_num(nan=0.0).flip(1).cumsum(1).flip(1)
    return returns.masked_fill(step_rewards.isnan(), torch.nan)


def _mean_of_others(returns: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Mean, over the other scored completions of the group, of the return from the same step on; 0 past their end."""
    groups = _groups(returns, num_generations)
    is_scored = (~groups.isnan()).any(dim=2, keepdim=True)
    own = groups.nan_to_num(nan=0.0)
    num_others = is_scored.sum(dim=1, keepdim=True) - is_scored.long()
    mean = (own.sum(dim=1, keepdim=True) - own) / num_others.clamp(min=1)
    # without another completion there is nothing to compare with: the own return makes the advantage 0
    return torch.where(num_others > 0, mean, own).view_as(returns)


def _is_last_step(step_scores: torch.Tensor) -> torch.Tensor:
    num_steps = (~step_scores.isnan()).sum(dim=1, keepdim=True)
    return torch.arange(step_scores.size(1), device=step_scores.device) == num_steps - 1
