"""Tiny models and configurations that several test modules share; nothing here is downloaded."""

from pathlib import Path

import numpy as np
from datasets import Dataset

from trl_erprm import ERPRMConfig, ERPRMTrainer
from trl_erprm.arithmetic import build_model, build_tokenizer

# What turns off everything that these tests do not look at.
QUIET = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "activation_checkpointing": False,
}

# The tiny tokenizer has no space: the tag and the separator of the paper's format without it.
CAUSAL = {"head": "causal_lm", "step_tag": "ки", "prompt_separator": "\n"}
HEADS = {"one_label": {}, "two_labels": {"num_labels": 2}, "causal_lm": CAUSAL}


def save_base(directory: Path, seed: int = 0) -> str:
    """A causal language model of random weights with its tokenizer."""
    build_model(hidden_size=32, seed=seed).save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return str(directory)


def prm_config(output_dir: Path, **changes) -> ERPRMConfig:
    defaults = {"max_length": 64, "save_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": 2}
    return ERPRMConfig(str(output_dir), **{**QUIET, **defaults, **changes})


def prm_trainer(base: str, output_dir: Path, rows: list[dict] | Dataset, eval_rows=None, peft_config=None, **changes):
    def dataset(rows):
        return Dataset.from_list(rows) if isinstance(rows, list) else rows

    return ERPRMTrainer(
        base,
        args=prm_config(output_dir, **changes),
        train_dataset=dataset(rows),
        eval_dataset=dataset(eval_rows),
        peft_config=peft_config,
    )


def randomize_head(model, seed: int = 0) -> None:
    """Makes the scores of a new token-classification head differ visibly between steps."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    if hasattr(model, "score"):
        with torch.no_grad():
            model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=generator))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))
