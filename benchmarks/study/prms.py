"""The parts `labels` and `prms`: a policy, its rollouts, and PRMs from the same rollouts under the same budget."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from trl_erprm import ERPRMConfig, ERPRMTrainer, LabelingConfig, MonteCarloLabeler
from trl_erprm.arithmetic import ArithmeticTask, train_policy
from trl_erprm.manifest import weights_fingerprint
from trl_erprm.rollout import RolloutEngine, load_engine

from .config import StudyConfig, read_label
from .devices import BATCH_SIZES, multiplies_in_bf16, trainer_arguments
from .units import Unit, read_result, write_result


def load_policy_engine(directory: Path, device: str) -> RolloutEngine:
    """The engine that samples from the policy of a task."""
    policy = directory / "policy"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
    batch_size = BATCH_SIZES[device].generation
    return load_engine("transformers", model=model.to(device), tokenizer=tokenizer, batch_size=batch_size)


def labeling_config(config: StudyConfig, unit: Unit) -> LabelingConfig:
    """How the prefixes of a task are rolled out."""
    return LabelingConfig(
        num_rollouts=config.most_rollouts,
        eta=0.0,  # of no effect: PRMs make their labels from the counts
        max_new_tokens=config.max_new_tokens(unit.difficulty),
        verify_how="arithmetic",
        prefixes_per_chunk=BATCH_SIZES[config.device].chunk,
        seed=unit.seed,
        **{name: value for name, value in config.labeling.items() if name != "num_prompts"},
    )


def prm_config(config: StudyConfig, unit: Unit) -> ERPRMConfig:
    """How a PRM is trained."""
    label = read_label(unit.label)
    return ERPRMConfig(
        str(unit.directory(config.output_dir) / "prms" / unit.prm_name),
        eta=label.eta,
        train_on_last_step_only=label.is_outcome,
        head="token_classification",
        max_length=config.max_length(unit.difficulty),
        padding_free=False,  # short rows of like lengths on a tiny model: one batched call is faster
        logging_steps=0.2,  # of all steps: the last fifth is what is kept
        seed=unit.seed + label.seed_offset,
        **trainer_arguments(config.device),
        **({**config.prm, "num_train_epochs": unit.num_epochs} if unit.num_epochs else config.prm),
    )


def make_labels(config: StudyConfig, unit: Unit) -> dict[str, Any]:
    """Trains the policy, samples solutions and rolls out their prefixes. The counts are what is kept."""
    directory, labeling = unit.directory(config.output_dir), labeling_config(config, unit)
    task = config.task(unit.difficulty, unit.seed)
    train_policy(
        task,
        directory / "policy",
        seed=unit.seed,
        device=config.device,
        bf16=multiplies_in_bf16(config.device),
        **config.policy(unit.difficulty),
    )

    prompts = task.dataset("train", config.labeling["num_prompts"])
    engine = load_policy_engine(directory, config.device)
    labeler = MonteCarloLabeler(engine, labeling, policy_name=f"policy of seed {unit.seed}")
    rows = labeler.label(prompts, directory / "labels")
    names = ("num_solutions", "num_unique_prefixes", "num_rollouts", "unparsed_share")
    return {
        **{name: labeler.summary[name] for name in names},
        "right_answers": float(np.mean([outcome or 0.0 for outcome in rows["outcome"]])),
        "share_error": {n: share_error(task, counted_rows(rows, n, unit.seed)) for n in config.num_rollouts},
    }


def add_share_errors(config: StudyConfig, unit: Unit) -> None:
    """Completes finished labels whose study has been given more, smaller numbers of rollouts since."""
    path = unit.path(config.output_dir)
    result = read_result(path)
    missing = [n for n in config.num_rollouts if str(n) not in result["share_error"]]
    if not missing:
        return
    task, rows = config.task(unit.difficulty, unit.seed), labelled_rows(unit.directory(config.output_dir))
    for n in missing:
        result["share_error"][str(n)] = share_error(task, counted_rows(rows, n, unit.seed))
    write_result(path, result)


def labelled_rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of a task, with their counts."""
    return [json.loads(line) for line in (directory / "labels" / "labels.jsonl").read_text().splitlines()]


def counted_rows(rows: Sequence[Mapping[str, Any]] | Dataset, num_rollouts: int, seed: int) -> list[dict[str, Any]]:
    """
    Rows as if each prefix had had `num_rollouts` rollouts: that many of its own, drawn at random without replacement.

    Equal prefixes keep equal counts, as they have the same rollouts, and the draw for fewer rollouts is a part of the
    draw for more. The last step has its own outcome, and no rollout to draw from.

    Args:
        rows (`Sequence[Mapping]` or `Dataset`):
            Labelled rows, with `num_correct` and `num_rollouts`.
        num_rollouts (`int`):
            Rollouts to keep of each prefix, at most as many as there are.
        seed (`int`):
            Seed of the draw.

    Returns:
        `list[dict]`: `prompt`, `completions`, `num_correct`, `num_rollouts` and `outcome` of each row.
    """
    drawn: dict[tuple, int] = {}
    rng = np.random.default_rng([seed, 20])
    counted = []
    for row in rows:
        steps, correct, total = row["completions"], list(row["num_correct"]), list(row["num_rollouts"])
        for k in range(len(steps) - 1):
            key = (row["prompt"], *steps[: k + 1])
            if key not in drawn:
                # The first `num_rollouts` of all in random order, of which `correct` are right.
                drawn[key] = int((rng.permutation(total[k])[:num_rollouts] < correct[k]).sum())
            correct[k], total[k] = drawn[key], min(num_rollouts, total[k])
        kept = {"prompt": row["prompt"], "completions": steps, "outcome": row["outcome"]}
        counted.append({**kept, "num_correct": correct, "num_rollouts": total})
    return counted


def share_error(task: ArithmeticTask, rows: Sequence[Mapping[str, Any]]) -> float:
    """Root mean square error of the share of right rollouts against the exact value, over different prefixes."""
    errors: dict[tuple, float] = {}
    for row in rows:
        prompt, steps = row["prompt"], row["completions"]
        if not task.is_well_formed(prompt, steps):
            continue
        for k in range(len(steps) - 1):
            key = (prompt, *steps[: k + 1])
            if key not in errors and row["num_rollouts"][k]:
                share = row["num_correct"][k] / row["num_rollouts"][k]
                errors[key] = share - task.exact_value(prompt, steps[: k + 1])
    return float(np.sqrt(np.mean(np.square(list(errors.values())))))


def train_prm(config: StudyConfig, unit: Unit) -> dict[str, Any]:
    """
    Trains a PRM. All PRMs of a task have the same weights at the start, rows, order of rows and number of steps.

    The weights at the start are the policy's, with a new head: a PRM starts from a language model that has learnt the
    task, as the paper's do. In our own run, 504 steps on 4,000 solutions gave a step AUROC of 0.93, from random
    weights of 0.79 to 0.82.
    """
    directory, args = unit.directory(config.output_dir), prm_config(config, unit)
    rows = labelled_rows(directory)
    trainer = ERPRMTrainer(
        str(directory / "policy"),
        args=args,
        train_dataset=Dataset.from_list(counted_rows(rows, unit.num_rollouts, unit.seed)),
    )
    trainer.remove_callback(PrinterCallback)
    start = weights_fingerprint(trainer.model)
    trainer.train()
    trainer.save_model()
    logged = next(entry for entry in reversed(trainer.state.log_history) if {"loss", "mean_label"} <= entry.keys())
    return {
        "num_steps": trainer.state.global_step,
        "start": start,
        "loss": logged["loss"],
        "mean_label": logged["mean_label"],
    }
