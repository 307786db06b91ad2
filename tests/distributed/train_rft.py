"""
Two iterations of rejection-sampling fine-tuning on a tiny policy.

    train_rft.py <policy folder> <output folder> <batch size of each process> <options>

`options` are further arguments of the configuration, as JSON.
"""

import json
import sys
from typing import Any

from tests.distributed.launch import finish
from trl_erprm import RFTConfig, RFTTrainer
from trl_erprm.arithmetic import ArithmeticTask
from trl_erprm.verify import verify_answer

# As the fixture `tiny_policy`. An odd number of prompts: neither shares nor batches of two processes are equal.
TASK = {"num_operations": 2, "num_train": 150, "num_validation": 10, "num_test": 40}
NUM_PROMPTS, NUM_HELD_OUT, NUM_SAMPLES = 21, 7, 4


def is_right(prompts: list[str], completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    verdicts = [verify_answer(c, a, "arithmetic") for c, a in zip(completions, answer, strict=True)]
    return [float(verdict is True) for verdict in verdicts]


def main(policy_folder: str, output_folder: str, batch_size: str, options: str = "{}") -> None:
    task = ArithmeticTask(**TASK)
    arguments = RFTConfig(
        output_folder,
        use_cpu=True,
        bf16=False,
        num_iterations=2,
        num_samples=NUM_SAMPLES,
        num_eval_samples=NUM_SAMPLES,
        max_completion_length=20,
        answer_how="arithmetic",
        generation_batch_size=8,  # chunks of 8 prompts: two for one process, one for the other
        per_device_train_batch_size=int(batch_size),
        per_device_eval_batch_size=4,
        num_train_epochs=1,
        learning_rate=1e-3,
        max_length=64,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        activation_checkpointing=False,
        **json.loads(options),
    )
    trainer = RFTTrainer(
        policy_folder,
        reward_funcs=is_right,
        args=arguments,
        train_dataset=task.dataset("train", NUM_PROMPTS),
        eval_dataset=task.dataset("test", NUM_HELD_OUT),
    )
    during: list[str] = []
    step = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        during.append(type(trainer.model_wrapped).__name__)
        return step(*args, **kwargs)

    trainer.training_step = training_step
    history = trainer.train()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    finish(trainer, {"history": history, "losses": losses, "wrappers": sorted(set(during))})


if __name__ == "__main__":
    main(*sys.argv[1:])
