"""
Train a tiny reward model for four steps with `trl.RewardTrainer`, the parent of our PRM trainer, and save it.

    train_reward.py <model folder> <output folder> <batch size of each process>
"""

import sys

from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from tests.distributed.launch import finish


def main(model_folder: str, output_folder: str, batch_size: str) -> None:
    rows = [{"chosen": f"{i}+{j}={i + j}", "rejected": f"{i}+{j}={i + j + 1}"} for i in range(4) for j in (0, 2)]
    arguments = RewardConfig(
        output_dir=output_folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=int(batch_size),
        max_steps=4,
        learning_rate=1e-2,
        max_grad_norm=0.1,  # below the norms met here, so that each strategy clips
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = RewardTrainer(model=model_folder, args=arguments, train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    finish(trainer, {name: [entry[name] for entry in history] for name in ("loss", "grad_norm")})


if __name__ == "__main__":
    main(*sys.argv[1:])
