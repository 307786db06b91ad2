"""
Two steps of GRPO with a process reward, built after the training arguments, under whatever splits the policy.

    grpo_process_reward.py <policy folder> <process reward model folder> <output folder>
"""

import sys

from accelerate.utils import gather_object
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.distributed.launch import finish
from trl_erprm import ProcessReward

PROMPTS = [f"{i}+{k}=" for i in range(1, 5) for k in range(1, 5)]


def main(policy_folder: str, prm_folder: str, output_folder: str) -> None:
    arguments = GRPOConfig(
        output_dir=output_folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=16,
        max_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        activation_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # Behind the arguments, as in any training script: from here on `from_pretrained` splits weights under ZeRO-3.
    reward = ProcessReward(prm_folder, require_answer=False)
    num_parameters = sum(parameter.numel() for parameter in reward.prm.model.parameters())
    calls = []

    def process_reward(prompts, completions, **kwargs):
        rewards = reward(prompts, completions, **kwargs)
        calls.extend(zip(prompts, completions, rewards, strict=True))
        return rewards

    trainer = GRPOTrainer(
        model=policy_folder,
        reward_funcs=[process_reward],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "calls": gather_object([calls]),
        "num_parameters": gather_object([num_parameters]),
        "reward": [entry["reward"] for entry in history],
        "num_steps": [entry["process_reward/num_steps"] for entry in history],
        "grad_norm": [entry["grad_norm"] for entry in history],
    }
    finish(trainer, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
