"""What the recipes share that train a policy with a process reward model: rft.py, grpo.py and ppo.py."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import stages
from datasets import Dataset
from rich.console import Console

from trl_erprm import ProcessReward
from trl_erprm.arguments import DataArguments, ModelArguments, check_path_or_id, load_prompts
from trl_erprm.choices import check_choice
from trl_erprm.evaluation.reinforcement import reinforcement_table
from trl_erprm.policy.guards import StepGuards
from trl_erprm.prm.aggregation import check_aggregation
from trl_erprm.steps import check_split_mode
from trl_erprm.verify import check_answer_convention

if TYPE_CHECKING:
    from trl import GRPOConfig

    from trl_erprm import RFTConfig, StepGRPOTrainer


@dataclass
class RewardArguments:
    """Which process reward model judges completions, and how."""

    prm_path: str | None = field(
        default=None,
        metadata={
            "help": "Directory of the process reward model that recipes/prm.py wrote, or the id of a known one."
        },
    )
    aggregation: str = field(
        default="min",
        metadata={"help": "How step scores become one number: min (the paper), product, mean, last, max, softmin(T)."},
    )
    split_how: str = field(
        default="newline",
        metadata={"help": "How completions are split into steps: newline, blank_line, step_marker or sentence."},
    )
    scoring_batch_size: int = field(
        default=32, metadata={"help": "Completions the PRM scores at once. No effect on results."}
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "'arithmetic': the embedded task; policy, PRM and prompts are made.",
            "choices": ["arithmetic"],
        },
    )

    def __post_init__(self) -> None:
        check_aggregation(self.aggregation, argument="aggregation")
        check_split_mode(self.split_how, "split_how")
        if self.scoring_batch_size < 1:
            raise ValueError(
                f"`scoring_batch_size` must be at least 1, got {self.scoring_batch_size}. Leave it out for the "
                "default."
            )


@dataclass
class ReinforcementArguments(RewardArguments):
    """The same for reinforcement learning, which pays what a completion is worth."""

    answer_how: str = field(
        default="auto",
        metadata={"help": "Where the final answer stands: auto, gsm8k, boxed, math or arithmetic."},
    )
    guards: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": """Bounds on steps against reward hacking (none by default), as JSON: '{"max_steps": 20}'. The """
            "names are those of `StepGuards` (trl_erprm/policy/guards.py)."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_answer_convention(self.answer_how, "answer_how")
        read_guards(self.guards)


class Task(NamedTuple):
    """What to train on."""

    prompts: Dataset
    held_out: Dataset | None
    is_well_formed: Callable[[str, list[str]], bool] | None  # a check of solutions that the embedded task has


def load_task(
    recipe: str,
    script_args: RewardArguments,
    training_args: "GRPOConfig | RFTConfig",
    model_args: ModelArguments,
    data_args: DataArguments,
) -> Task:
    """The prompts that the arguments name. For the embedded task, the policy and the PRM are made, and named there."""
    if script_args.task == "arithmetic":
        prepared = stages.prepare(Path(training_args.output_dir).parent, training_args.seed, recipe)
        model_args.model_name_or_path, script_args.prm_path = str(prepared.policy_dir), str(prepared.prm_dir)
        prompts = prepared.task.dataset(data_args.dataset_split, data_args.num_rows)
        held_out = prepared.task.dataset(data_args.eval_split or "test", data_args.num_eval_rows)
        return Task(prompts, held_out, prepared.task.is_well_formed)
    if not script_args.prm_path:
        raise ValueError(stages.missing("prm_path", recipe))
    check_path_or_id(script_args.prm_path, "prm_path")  # before a policy is loaded
    return Task(*map(_without_worked_steps, load_prompts(data_args, script_args.split_how)), None)


def _without_worked_steps(rows: Dataset | None) -> Dataset | None:
    """Worked solutions bring a column `completions`, TRL's name for what was sampled."""
    return rows.remove_columns("completions") if rows and "completions" in rows.column_names else rows


def load_process_reward(
    script_args: ReinforcementArguments, is_well_formed: Callable[[str, list[str]], bool] | None
) -> ProcessReward:
    """The reward of reinforcement learning, with its process reward model."""
    return ProcessReward(
        script_args.prm_path,
        aggregation=script_args.aggregation,
        split_how=script_args.split_how,
        answer_how=script_args.answer_how,
        is_well_formed=is_well_formed,
        guards=read_guards(script_args.guards),
        reward_if_malformed=0.0,  # `None` would keep a completion without an answer from being punished
        batch_size=script_args.scoring_batch_size,
    )


def read_guards(value: dict | str | None) -> StepGuards | None:
    """The option `--guards`, which is JSON on the command line and a mapping in a YAML file."""
    if value is None:
        return None
    try:
        bounds = json.loads(value) if isinstance(value, str) else value
        for name in bounds:
            check_choice("guards", name, [bound.name for bound in fields(StepGuards)])
        return StepGuards(**bounds)
    except (json.JSONDecodeError, TypeError) as error:  # no JSON; a list, a number, or a bound that is text
        raise ValueError(
            f"`guards` must be JSON such as '{{\"max_steps\": 20}}', got {value!r} ({error}). The names are those of "
            "`StepGuards` (trl_erprm/policy/guards.py)."
        ) from error


def save_policy(trainer: "StepGRPOTrainer", made: str) -> None:
    """Saves the policy, and prints its accuracy over the run, where rows were held out, and what was `made`."""
    trainer.save_model()
    if trainer.eval_dataset is not None:
        after = trainer.evaluate()
        if trainer.is_world_process_zero():
            num_samples = trainer.args.num_generations_eval or trainer.args.num_generations
            history = [*trainer.state.log_history, after]
            console = Console()
            console.print(reinforcement_table(history, len(trainer.eval_dataset), num_samples))
            console.print(made, soft_wrap=True)
    trainer.accelerator.wait_for_everyone()
