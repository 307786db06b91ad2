"""Configuration of [`StepGRPOTrainer`]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig

from ..choices import check_choice
from .advantages import ADVANTAGE_ESTIMATORS, REWARD_SCALINGS, STEP_REWARD_SHAPINGS

PER_TOKEN_LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
"""Losses of GRPOTrainer that multiply each token by its own advantage (tests/policy/test_step_grpo_trainer.py)."""


@dataclass
class StepGRPOConfig(GRPOConfig):
    r"""
    Configuration class for the [`StepGRPOTrainer`].

    It has every field of [`~trl.GRPOConfig`] and of [`~transformers.TrainingArguments`]; only what is new or has
    another default is listed.

    Parameters:
        > Parameters that control the advantages

        advantage_estimator (`str`, *optional*, defaults to `"reward_to_go"`):
            How the scores of steps become their advantages; the formulas are in `trl_erprm/policy/advantages.py`. The
            default did best in our comparison (`docs/step-grpo.md`); it is also the one that a policy can exploit by
            writing more good steps, which guards of [`ProcessReward`] bound.

            - `"outcome"`: GRPOTrainer's own advantages, one a completion.
            - `"reward_to_go"`: normalized step rewards, summed from each step on (GRPO with process supervision,
              DeepSeekMath, arXiv 2402.03300).
            - `"min_form"`: credit to the worst step (PURE, arXiv 2504.15275).
            - `"soft_advantage"`: what each step gained in value (the entropy-regularized problem of ER-PRM).
        outcome_weight (`float`, *optional*):
            Weight of GRPOTrainer's own advantages, those of the whole completion, which are added to those of the
            steps. They come from `reward_funcs` with `reward_weights`, as ever. `None`: 1 where there is another
            reward function beside the process reward, else 0.
        step_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the advantages of the steps. Those of `"reward_to_go"` are scaled as `scale_rewards` says, like
            GRPOTrainer's own; those of `"min_form"` and `"soft_advantage"` are in units of a score, whatever it says
            (`docs/step-grpo.md` has a table).
        step_reward_shaping (`list[str]`, *optional*, defaults to `[]`):
            With `"reward_to_go"`: `"clip"` and `"delta"` (arXiv 2410.15115), applied in the order given.
        clip_threshold (`float`, *optional*, defaults to `0.5`):
            The score above which `"clip"` gives a step 0. The paper takes it from the distribution of the scores; the
            default is the middle of their range.
        min_form_temperature (`float`, *optional*, defaults to `0.1`):
            Temperature of the soft minimum of `"min_form"` (PURE's).
        eta (`float`, *optional*):
            With `"soft_advantage"`: the entropy parameter that the process reward model was trained with. `None`: the
            one that it was saved with (`ProcessRewardModel.eta`), which another value must not contradict. The
            advantages go with `beta = 1 / eta`.

    > [!NOTE]
    > These parameters have default values different from [`~trl.GRPOConfig`]:
    > - `bf16`: Defaults to `True` only where a device supports it, so that a CPU needs no further argument.
    """

    advantage_estimator: str = field(
        default="reward_to_go",
        metadata={"help": "How step scores become advantages.", "choices": list(ADVANTAGE_ESTIMATORS)},
    )
    outcome_weight: float | None = field(
        default=None, metadata={"help": "Weight of the advantages of whole completions; None: see the documentation."}
    )
    step_weight: float = field(default=1.0, metadata={"help": "Weight of the advantages of steps."})
    step_reward_shaping: list[str] = field(
        default_factory=list,
        metadata={"help": "Shaping of step rewards for 'reward_to_go': 'clip', 'delta', or both in their order."},
    )
    clip_threshold: float = field(default=0.5, metadata={"help": "Score above which 'clip' gives a step 0."})
    min_form_temperature: float = field(default=0.1, metadata={"help": "Temperature of the soft minimum."})
    eta: float | None = field(
        default=None, metadata={"help": "Entropy parameter of the process reward model; None: as it was saved."}
    )

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = is_torch_bf16_gpu_available()
        super().__post_init__()
        check_choice("advantage_estimator", self.advantage_estimator, ADVANTAGE_ESTIMATORS)
        check_choice("scale_rewards", self.scale_rewards, REWARD_SCALINGS)
        for name in self.step_reward_shaping:
            check_choice("step_reward_shaping", name, STEP_REWARD_SHAPINGS)
        if self.step_reward_shaping and self.advantage_estimator != "reward_to_go":
            raise ValueError(
                f"`step_reward_shaping` {self.step_reward_shaping} shapes the rewards that 'reward_to_go' adds up; "
                f"'{self.advantage_estimator}' adds up none. Leave it out, or set advantage_estimator='reward_to_go'."
            )
        if self.eta is not None and math.isnan(self.eta):
            raise ValueError("`eta` must be finite or one of inf, -inf, got nan.")
        if not (math.isfinite(self.min_form_temperature) and self.min_form_temperature > 0):
            raise ValueError(
                f"`min_form_temperature` must be a finite number above 0, got {self.min_form_temperature}."
            )
        for name in ("outcome_weight", "step_weight"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` must be a finite number of at least 0, got {value}.")
        if self.advantage_estimator == "outcome":
            return
        if self.loss_type not in PER_TOKEN_LOSS_TYPES:
            raise ValueError(
                f"loss_type={self.loss_type!r} is not known to take an advantage for each token. Set one of "
                f"{', '.join(map(repr, PER_TOKEN_LOSS_TYPES))}, or advantage_estimator='outcome'."
            )
