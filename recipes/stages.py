"""The stages before, for the embedded task: policy, labels and process reward model, each made once and kept.

outputs/arithmetic/
  base/      a tiny model with random weights, from which the PRM starts
  policy/    the tiny policy, trained on solutions with misconceptions
  labels/    rollout counts and labels of 16,000 of its solutions     recipes/label.py
  prm/       the process reward model                                 recipes/prm.py
  rft/       the policy after each iteration, the table's numbers     recipes/rft.py
  grpo/, ppo/    the policy after reinforcement learning              recipes/grpo.py, recipes/ppo.py
  evaluation/    report.html                                          recipes/evaluate.py
  prm-soft/, prm-hard/, prm-outcome/   other PRMs from the same labels, for recipes/evaluate.py
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import label
import prm
from rich.console import Console

from trl_erprm.arithmetic import ArithmeticTask, build_model, build_tokenizer, train_policy

CONFIGS = Path(__file__).parent / "configs" / "arithmetic"


@dataclass
class PreparedTask:
    """What the stages made."""

    task: ArithmeticTask
    policy_dir: Path
    labels_dir: Path
    prm_dir: Path


def command_line(argv: list[str] | None, recipe: str) -> list[str]:
    """The arguments of a recipe; where none are given, the config of the embedded task."""
    return (sys.argv[1:] if argv is None else argv) or ["--config", str(CONFIGS / f"{recipe}.yaml")]


def missing(argument: str, recipe: str) -> str:
    """What to say where a recipe runs neither on the user's models nor on the embedded task."""
    return (
        f"`{argument}` is missing: the directory that `recipes/prm.py` wrote, or the id of a published model. For the "
        "embedded task give no arguments, or add them to its config: "
        f"`--config recipes/configs/arithmetic/{recipe}.yaml --seed 1`."
    )


# What follows on the stages before, by recipe.
LAST_STAGE = {
    "rft": "rejection-sampling fine-tuning: the policy learns from what the PRM prefers",
    "grpo": "GRPO: each step of a completion has an advantage of its own",
    "ppo": "PPO: a critic, and a reward for each step",
    "evaluate": "evaluation: which PRM chooses best?",
}


def prepare(root: Path, seed: int, recipe: str = "rft") -> PreparedTask:
    """Makes what `recipe` needs and is missing under `root`; a stage skips, or continues, what is there."""
    console = Console()
    task = ArithmeticTask(seed=seed)
    prepared = PreparedTask(task, root / "policy", root / "labels", root / "prm")

    console.rule("1 of 4  policy: a tiny transformer learns to calculate, misconceptions included")
    train_policy(task, prepared.policy_dir, seed=seed)
    prompts = root / "prompts.jsonl"
    if not prompts.exists():
        task.dataset("train").to_json(prompts)

    console.rule("2 of 4  labels: its solutions, and rollouts from every step")
    label.main(
        ["--config", str(CONFIGS / "label.yaml"), "--seed", str(seed), "--dataset_path", str(prompts)]
        + ["--model_name_or_path", str(prepared.policy_dir), "--output_dir", str(prepared.labels_dir)]
    )

    console.rule("3 of 4  ER-PRM: learns from the labels which steps are good")
    base = root / "base"
    if not (base / "config.json").exists():
        build_tokenizer().save_pretrained(base)
        # A layer more than the policy: checking a step compares its result with what the policy would compute.
        build_model(num_layers=3, seed=seed).save_pretrained(base)
    prm.main(
        ["--config", str(CONFIGS / "prm.yaml"), "--seed", str(seed), "--model_name_or_path", str(base)]
        + ["--dataset_path", str(prepared.labels_dir / "labels.jsonl"), "--output_dir", str(prepared.prm_dir)]
    )

    console.rule(f"4 of 4  {LAST_STAGE[recipe]}")
    return prepared


# PRMs from the labels of one run of rollouts, and what sets them apart.
VARIANTS = {
    "soft": ["--eta", "0"],  # the mean of the outcomes (Math-Shepherd)
    "hard": ["--eta", "inf"],  # whether any rollout is right
    "outcome": ["--train_on_last_step_only", "true"],  # the final answers alone
}


def variant_dirs(root: Path) -> dict[str, Path]:
    """Directories of the PRMs to compare, by name: the ER-PRM of [`prepare`], and [`VARIANTS`]."""
    return {"er": root / "prm"} | {name: root / f"prm-{name}" for name in VARIANTS}


def train_variants(prepared: PreparedTask, root: Path, seed: int) -> dict[str, Path]:
    """[`variant_dirs`], after the training of those that are missing."""
    variants = variant_dirs(root)
    for name, options in VARIANTS.items():
        prm.main(
            ["--config", str(CONFIGS / "prm.yaml"), "--seed", str(seed), "--model_name_or_path", str(root / "base")]
            + ["--dataset_path", str(prepared.labels_dir / "labels.jsonl"), "--output_dir", str(variants[name])]
            + options
        )
    return variants
