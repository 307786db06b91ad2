"""
Train a tiny policy with PPO for four steps on completions that are given, and save it.

    train_ppo.py <model folder> <output folder> <batch size of each process> <accumulation steps> <adapters>
        <critic folder> <checkpoint>

`adapters` is "lora" or "full". Without a critic folder the critic begins as the policy; a checkpoint is resumed from.
Completions are given, because two processes sample others than one does.
"""

import os
import sys

from datasets import Dataset
from peft import LoraConfig

from tests.distributed.launch import finish

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # of `rollout_func`, which TRL may change

from trl_erprm import ProcessPPOConfig, ProcessPPOTrainer, ProcessReward  # noqa: E402

# Of one to three steps, of different lengths: processes hold different numbers of tokens.
COMPLETIONS = {
    f"{i}+1=\n": "\n".join([*(f"{i}+{k}={i + k}" for k in range(i % 3)), f"#{(i + 1) % 4}"]) for i in range(8)
}
METRICS = (
    "values/mean", "returns/mean", "returns/std", "advantages/std", "explained_variance", "step_rewards/mean",
    "outcome_rewards/mean", "kl", "loss/policy", "loss/value", "clip_ratio/value",
)  # fmt: skip


class ScriptedPRM:
    """A score for each step, by what it says."""

    def score(self, prompts, steps, batch_size, none_if_too_long):
        return [[(7 * sum(map(ord, step)) % 11) / 10 for step in solution] for solution in steps]


def outcome(completions, **kwargs):
    return [float(completion.endswith("1")) for completion in completions]


def rollout(prompts, trainer):
    tokenizer = trainer.processing_class
    completion_ids = [
        [*tokenizer(COMPLETIONS[prompt], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for prompt in prompts
    ]
    prompt_ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def train(
    model_folder: str,
    output_folder: str,
    batch_size: str,
    accumulation_steps: str,
    adapters: str,
    critic_folder: str = "",
    checkpoint: str = "",
) -> tuple[ProcessPPOTrainer, dict]:
    arguments = ProcessPPOConfig(
        output_dir=output_folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=int(batch_size),
        gradient_accumulation_steps=int(accumulation_steps),
        num_iterations=2,
        max_completion_length=32,
        max_steps=4,
        learning_rate=1e-3,
        critic_learning_rate=1e-2,
        cliprange_value=0.02,  # narrow enough to clip here
        lam=0.9,
        gamma=0.99,
        logging_steps=1,
        save_steps=2,
        activation_checkpointing=adapters == "lora",  # without, DDP looks for unused parameters
        eval_on_start=True,
        per_device_eval_batch_size=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
    )

    trainer = ProcessPPOTrainer(
        model=model_folder,
        reward_funcs=[ProcessReward(ScriptedPRM(), answer_how="arithmetic"), outcome],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in COMPLETIONS]),
        eval_dataset=Dataset.from_list([{"prompt": prompt} for prompt in list(COMPLETIONS)[:4]]),
        rollout_func=rollout,
        critic=critic_folder or None,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if adapters == "lora" else None,
    )
    trainer.train(resume_from_checkpoint=checkpoint or None)
    trainer.save_model()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {name: [entry.get(name) for entry in history] for name in ("loss", "grad_norm", *METRICS)}
    result["eval_reward"] = [entry["eval_reward"] for entry in trainer.state.log_history if "eval_reward" in entry]
    result["eval_reward"].append(trainer.evaluate()["eval_reward"])
    return trainer, result


if __name__ == "__main__":
    finish(*train(*sys.argv[1:]))
