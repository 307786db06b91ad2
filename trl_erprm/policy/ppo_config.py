"""Configuration of [`ProcessPPOTrainer`]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig

from ..choices import check_choice
from .advantages import STEP_REWARD_SHAPINGS
from .step_grpo_config import PER_TOKEN_LOSS_TYPES

VALUE_HEADS = ("sigmoid", "linear")


class _One(int):
    """The number 1, which [`~trl.GRPOConfig`] takes for enough completions of a prompt."""

    def __lt__(self, other: int) -> bool:
        return False


@dataclass
class ProcessPPOConfig(GRPOConfig):
    r"""
    Configuration class for the [`ProcessPPOTrainer`].

    It has every field of [`~trl.GRPOConfig`] and of [`~transformers.TrainingArguments`], which govern sampling (vLLM
    included), the clipped policy loss and the optimizer; only what is new or has another default is listed.
    "TRL's PPO" is the `PPOTrainer` that TRL removed in 1.13: its defaults are kept where it had the same option.

    Parameters:
        > Parameters that control the rewards

        step_weight (`float`, *optional*):
            Weight of the rewards of steps, from the [`ProcessReward`]. `None`: what `outcome_weight` leaves of 1, so
            that the reward of a completion stays in [0, 1], as values are.
        outcome_weight (`float`, *optional*):
            Weight of the outcome reward at the last token: the sum of what the reward functions return, with
            `reward_weights`. `None`: 0.5 where there is another reward function beside the process reward, 0 where
            there is none, and 1 without a process reward.
        step_reward_shaping (`list[str]`, *optional*, defaults to `["delta"]`):
            `"clip"` and `"delta"` (arXiv 2410.15115), applied in the order given. With `"delta"` the rewards from a
            step on add up to that step's score: a policy cannot gain by the number of its steps, and a critic that
            begins as an ER-PRM is right from the start. An empty list rewards each step with its score: then more
            steps are more reward.
        clip_threshold (`float`, *optional*, defaults to `0.5`):
            The score above which `"clip"` gives a step 0. The paper takes it from the distribution of the scores; the
            default is the middle of their range.
        kl_in_reward (`bool`, *optional*, defaults to `True`):
            Whether the distance to the reference is paid for in the reward, `-beta * log(pi / pi_ref)` at each token
            (k1; InstructGPT, arXiv 2203.02155, and TRL's PPO), or added to the loss as GRPO does (k3).

        > Parameters that control the advantages

        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of a token (TRL's PPO).
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda of generalized advantage estimation (TRL's PPO).
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Whether advantages get mean 0 and standard deviation 1 over the tokens that were sampled at once, on all
            processes (TRL's PPO).

        > Parameters that control the critic

        value_head (`str`, *optional*, defaults to `"sigmoid"`):
            `"sigmoid"`: values in [0, 1], as the scores of an ER-PRM are. `"linear"`: any number, for rewards that
            leave [0, 1]; such a critic cannot begin as a process reward model.
        critic_learning_rate (`float`, *optional*):
            Learning rate of the critic; `None`: `learning_rate`. It follows the same schedule.
        critic_use_peft (`bool`, *optional*):
            Whether the critic is trained through adapters as the policy is. `None`: where the policy is given a
            `peft_config`.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss (TRL's PPO).
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            How far a value may move in one round of updates before the loss stops rewarding it (TRL's PPO). `None`:
            as far as it likes.
        num_value_warmup_steps (`int`, *optional*, defaults to `0`):
            In so many optimizer steps at the beginning only the critic learns. A critic with a new head is no baseline
            yet (value pretraining of VC-PPO, arXiv 2503.01491); 0 is right for one that begins as an ER-PRM whose
            format has no tags.

    > [!NOTE]
    > These parameters have default values different from [`~trl.GRPOConfig`]:
    > - `num_generations`: Defaults to `1` instead of `8`: the critic is the baseline, so PPO needs no group.
    > - `num_iterations`: Defaults to `4` instead of `1`: rounds of updates on the same completions (TRL's PPO).
    > - `beta`: Defaults to `0.05` instead of `0`: the coefficient of the distance to the reference (TRL's PPO).
    > - `bf16`: Defaults to `True` only where a device supports it, so that a CPU needs no further argument.
    """

    num_generations: int | None = field(default=1, metadata={"help": "Completions sampled for each prompt."})
    num_iterations: int = field(default=4, metadata={"help": "Rounds of updates on the same completions."})
    beta: float = field(default=0.05, metadata={"help": "Coefficient of the distance to the reference policy."})

    step_weight: float | None = field(
        default=None, metadata={"help": "Weight of step rewards; None: what outcome_weight leaves of 1."}
    )
    outcome_weight: float | None = field(
        default=None, metadata={"help": "Weight of the outcome reward; None: see the documentation."}
    )
    step_reward_shaping: list[str] = field(
        default_factory=lambda: ["delta"],
        metadata={"help": "Shaping of step rewards: 'clip', 'delta', both in their order, or none."},
    )
    clip_threshold: float = field(default=0.5, metadata={"help": "Score above which 'clip' gives a step 0."})
    kl_in_reward: bool = field(
        default=True, metadata={"help": "Distance to the reference in the reward rather than in the loss."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount of a token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalized advantage estimation."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Advantages of mean 0 and deviation 1."})
    value_head: str = field(default="sigmoid", metadata={"help": "Range of values.", "choices": list(VALUE_HEADS)})
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the critic; None: learning_rate."}
    )
    critic_use_peft: bool | None = field(
        default=None, metadata={"help": "Whether the critic is trained through adapters; None: as the policy is."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float | None = field(default=0.2, metadata={"help": "Clipping range of values; None: none."})
    num_value_warmup_steps: int = field(default=0, metadata={"help": "Optimizer steps of the critic alone."})

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = is_torch_bf16_gpu_available()
        num_generations = self.num_generations
        if num_generations == 1:
            self.num_generations = _One(1)
        super().__post_init__()
        self.num_generations = num_generations
        for name in self.step_reward_shaping:
            check_choice("step_reward_shaping", name, STEP_REWARD_SHAPINGS)
        check_choice("value_head", self.value_head, VALUE_HEADS)
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        for name in ("step_weight", "outcome_weight", "vf_coef", "critic_learning_rate", "beta"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` must be a finite number of at least 0, got {value}.")
        if self.cliprange_value is not None and not self.cliprange_value > 0:
            raise ValueError(
                f"`cliprange_value` must be above 0, or None for values that are not clipped, got "
                f"{self.cliprange_value}."
            )
        if self.num_value_warmup_steps < 0:
            raise ValueError(f"`num_value_warmup_steps` must be at least 0, got {self.num_value_warmup_steps}.")
        if self.step_weight == 0 and self.outcome_weight == 0:
            raise ValueError(
                "`step_weight` and `outcome_weight` are both 0: there would be no reward. Set one of them above 0, or "
                "leave them out."
            )
        if self.loss_type not in PER_TOKEN_LOSS_TYPES:
            raise ValueError(
                f"loss_type={self.loss_type!r} is not known to take an advantage for each token. Set one of "
                f"{', '.join(map(repr, PER_TOKEN_LOSS_TYPES))}."
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} compares the completions of a "
                "group, and PPO compares with a critic. Leave it out."
            )
