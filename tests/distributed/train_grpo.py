"""
GRPO and StepGRPO on two processes, each group of completions on both.

    train_grpo.py <policy folder> <process reward model folder> <output folder> [equality]

With `equality`, GRPOTrainer and StepGRPOTrainer with the estimator "outcome" come first, five steps each.
"""

import sys

from accelerate.utils import gather_object
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.distributed.launch import finish
from tests.policy.test_step_grpo_trainer import Recording
from trl_erprm import ProcessReward, StepGRPOConfig, StepGRPOTrainer

PROMPTS = [f"{i}+{k}=" for i in range(1, 5) for k in range(1, 5)]


def train(trainer_class, policy_folder, prm_folder, output_folder, max_steps, **options):
    config_class = GRPOConfig if trainer_class is GRPOTrainer else StepGRPOConfig
    arguments = config_class(
        output_dir=output_folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=8,  # four on each process
        max_completion_length=16,
        max_steps=max_steps,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        activation_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    reward = ProcessReward(prm_folder, require_answer=False)
    trainer = trainer_class(
        model=policy_folder,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    trainer.train()
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main(policy_folder: str, prm_folder: str, output_folder: str, *flags: str) -> None:
    folders = policy_folder, prm_folder, output_folder
    result = {}
    if "equality" in flags:
        result["grpo"] = losses(train(GRPOTrainer, *folders, 5))
        result["outcome"] = losses(train(StepGRPOTrainer, *folders, 5, advantage_estimator="outcome"))
    trainer = train(Recording, *folders, 2, advantage_estimator="min_form")
    own = [
        {
            "step_scores": [judgement.step_scores for judgement in trainer.process_reward.judge(prompts, completions)],
            "first_advantages": output["advantages"][:, 0].tolist(),
        }
        for prompts, completions, _, output in trainer.outputs
    ]
    result["generated"] = gather_object([own])
    result["mean"] = [e["step_advantages/mean"] for e in trainer.state.log_history if "step_advantages/mean" in e]
    result["grad_norm"] = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    finish(trainer, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
