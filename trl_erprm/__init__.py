"""Process supervision for Hugging Face TRL: label steps by rollouts, train an ER-PRM, use it.

The public names are imported when first used: `import trl_erprm` alone loads neither torch nor TRL.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC_NAMES = {
    "steps": ["split_steps"],
    "verify": ["verify_answer"],
    "labeling.config": ["LabelingConfig"],
    "labeling.estimators": ["entropy_regularized_value", "success_probability"],
    "labeling.monte_carlo": ["MonteCarloLabeler", "relabel"],
    "prm.aggregation": ["aggregate"],
    "prm.config": ["ERPRMConfig"],
    "prm.trainer": ["ERPRMTrainer"],
    "prm.scorer": ["ProcessRewardModel"],
    "policy.process_reward": ["ProcessReward"],
    "policy.environment_reward": ["process_reward"],
    "policy.answer_reward": ["AnswerReward"],
    "policy.ppo_config": ["ProcessPPOConfig"],
    "policy.ppo_trainer": ["ProcessPPOTrainer"],
    "policy.rft_config": ["RFTConfig"],
    "policy.rft_trainer": ["RFTTrainer"],
    "policy.step_grpo_config": ["StepGRPOConfig"],
    "policy.step_grpo_trainer": ["StepGRPOTrainer"],
    "evaluation.best_of_n": ["best_of_n_accuracy"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC_NAMES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]

if TYPE_CHECKING:
    from .evaluation.best_of_n import best_of_n_accuracy as best_of_n_accuracy
    from .labeling.config import LabelingConfig as LabelingConfig
    from .labeling.estimators import entropy_regularized_value as entropy_regularized_value
    from .labeling.estimators import success_probability as success_probability
    from .labeling.monte_carlo import MonteCarloLabeler as MonteCarloLabeler
    from .labeling.monte_carlo import relabel as relabel
    from .policy.answer_reward import AnswerReward as AnswerReward
    from .policy.environment_reward import process_reward as process_reward
    from .policy.ppo_config import ProcessPPOConfig as ProcessPPOConfig
    from .policy.ppo_trainer import ProcessPPOTrainer as ProcessPPOTrainer
    from .policy.process_reward import ProcessReward as ProcessReward
    from .policy.rft_config import RFTConfig as RFTConfig
    from .policy.rft_trainer import RFTTrainer as RFTTrainer
    from .policy.step_grpo_config import StepGRPOConfig as StepGRPOConfig
    from .policy.step_grpo_trainer import StepGRPOTrainer as StepGRPOTrainer
    from .prm.aggregation import aggregate as aggregate
    from .prm.config import ERPRMConfig as ERPRMConfig
    from .prm.scorer import ProcessRewardModel as ProcessRewardModel
    from .prm.trainer import ERPRMTrainer as ERPRMTrainer
    from .steps import split_steps as split_steps
    from .verify import verify_answer as verify_answer


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
