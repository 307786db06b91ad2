"""
Train a tiny process reward model for four steps and save it.

    train_prm.py <model folder> <output folder> <head> <batch size of each process> <accumulation steps> <options>

`options` are further arguments of the configuration, as JSON.
"""

import json
import math
import sys

from datasets import Dataset

from tests.distributed.launch import finish
from trl_erprm import ERPRMConfig, ERPRMTrainer


# Solutions of one to four steps, some without a label: processes and micro-batches hold unequal numbers of labels, so
# an average of averages would give other losses than the mean over steps. Each solution keeps a label, since one
# without is left out, and two processes fill up the last batch with rows from the start.
def build_row(i: int) -> dict:
    steps = range(1 + i % 4)
    return {
        "prompt": f"{i}+1=",
        "completions": [f"{i}+{k}={i + k}" for k in steps],
        "labels": [None if k > 0 and (i + k) % 5 == 4 else ((3 * i + 2 * k) % 11) / 10 for k in steps],
        "num_rollouts": [1 + (i + k) % 4 for k in steps],
        "outcome": float(i % 2),
    }


ROWS = [build_row(i) for i in range(8)]
EVAL_ROWS = ROWS[:5]  # odd: two processes need one of them twice, which must not count
METRICS = ("step_accuracy", "step_auroc", "brier_score", "calibration_error", "first_error_f1", "outcome_auroc")


def main(
    model_folder: str, output_folder: str, head: str, batch_size: str, accumulation_steps: str, options: str = "{}"
) -> None:
    arguments = ERPRMConfig(
        output_dir=output_folder,
        head=head,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=int(batch_size),
        gradient_accumulation_steps=int(accumulation_steps),
        max_steps=4,
        learning_rate=1e-2,
        max_grad_norm=0.1,  # below the norms met here, so that each strategy clips
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        per_device_eval_batch_size=2,
        **json.loads(options),
    )
    trainer = ERPRMTrainer(
        model=model_folder,
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(EVAL_ROWS),
    )
    trainer.train()
    trainer.save_model()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("loss", "grad_norm", "num_tokens", "mean_score", *METRICS)
    result = {name: [entry.get(name, math.nan) for entry in history] for name in names}
    evaluation = trainer.evaluate()
    result["evaluation"] = {
        name: evaluation.get(f"eval_{name}", math.nan) for name in ("loss", "mean_score", *METRICS)
    }
    finish(trainer, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
