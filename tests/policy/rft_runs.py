"""Runs of `RFTTrainer` on a tiny policy, which several test modules share."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from tests.tiny import QUIET
from trl_erprm import RFTConfig
from trl_erprm.rollout import Completion
from trl_erprm.verify import verify_answer


def rft_config(output_dir, **changes):
    defaults = {
        "num_iterations": 2,
        "num_samples": 4,
        "max_completion_length": 20,
        "num_eval_samples": 4,
        "answer_how": "arithmetic",
        "generation_batch_size": 16,  # chunks of 16 prompts (training, sampled) or 64 (greedy)
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "num_train_epochs": 1,
        "max_length": 64,
        "logging_steps": 1,
    }
    return RFTConfig(str(output_dir), **{**QUIET, **defaults, **changes})


def is_right(prompts, completions, answer, **kwargs):
    """A reward with the answer at hand: 1 or 0, None where no answer can be read."""
    verdicts = [verify_answer(c, a, "arithmetic") for c, a in zip(completions, answer, strict=True)]
    return [None if verdict is None else float(verdict) for verdict in verdicts]


class ScriptedEngine:
    """Stands in for the engine: the completions of a table, one list a prompt; "…" marks one that is cut off."""

    table: dict[str, list[str]] = {}

    def __init__(self, model, tokenizer, batch_size):
        pass

    @staticmethod
    def key(prompt):
        return prompt if isinstance(prompt, str) else prompt[-1]["content"]

    def generate(self, prefixes, num_samples, options, first_sample=0):
        groups = [self.table[self.key(prefix.prompt)][:num_samples] for prefix in prefixes]
        return [[Completion(t.rstrip("…"), 5, "length" if t.endswith("…") else "stop") for t in g] for g in groups]


class Interruption(Exception):
    """Stands for whatever ends a run."""


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_parquet(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def selected(run: Path, iteration: int = 1) -> list[tuple]:
    """What an iteration was fine-tuned on: prompt, completion, score."""
    rows = read_parquet(run / f"iteration-{iteration}/selection.parquet")
    return [(row["prompt"], row["completion"], row["score"]) for row in rows]
