"""What the recipes share that train a policy with a process reward model: rft.py, grpo.py and ppo.py."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import stages
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from rich.console import Console

from trl_erprm import AnswerReward, ProcessReward
from trl_erprm.arguments import DataArguments, ModelArguments, check_path_or_id, load_prompts, result_arguments
from trl_erprm.choices import check_choice
from trl_erprm.evaluation.reinforcement import reinforcement_table
from trl_erprm.manifest import checkpoint_to_resume, content_hash, open_run, write_atomically
from trl_erprm.policy.guards import StepGuards
from trl_erprm.policy.process_reward import COMBINATIONS
from trl_erprm.policy.rft_weights import fingerprint
from trl_erprm.prm.aggregation import check_aggregation
from trl_erprm.prm.formats import FORMATS
from trl_erprm.prm.prompts import check_prompt_reading
from trl_erprm.prm.scorer import resolve_format
from trl_erprm.steps import check_split_mode
from trl_erprm.verify import check_answer_convention, readable_reference
from trl_erprm.wording import counted

if TYPE_CHECKING:
    from trl import GRPOConfig

    from trl_erprm import ProcessPPOTrainer, ProcessRewardModel, RFTConfig, StepGRPOTrainer

logger = get_logger(__name__)

FINISHED = "metrics.json"
"""What is written last: the metrics of a run that is complete."""

# Of TRL's arguments, beside those of every trainer: where vLLM runs, what is printed, and how what is sampled at once
# (`generation_batch_size`) is shared between steps.
_NOT_IN_RESULTS = frozenset(
    "steps_per_generation vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port "
    "vllm_gpu_memory_utilization vllm_enable_sleep_mode log_completions log_multimodal num_completions_to_print "
    "log_unique_prompts log_completions_hub_repo".split()
)


@dataclass
class RewardArguments:
    """Which process reward model judges completions, and how."""

    prm_path: str | None = field(
        default=None,
        metadata={
            "help": "Directory of the process reward model that recipes/prm.py wrote, or the id of a known one."
        },
    )
    prm_format: str | None = field(
        default=None,
        metadata={"help": "Layout that the PRM reads, where its checkpoint does not say it: trl, math-shepherd, ..."},
    )
    prm_dtype: str = field(
        default="auto",
        metadata={
            "help": "Precision of the PRM: bfloat16, float32, ... 'auto': the checkpoint's, but bfloat16 for float32 "
            "weights on a GPU that computes in it."
        },
    )
    prompt_as: str = field(
        default="auto",
        metadata={"help": "What the PRM reads of chats: 'chat', 'problem' (the last user message), 'auto'."},
    )
    aggregation: str = field(
        default="min",
        metadata={"help": "How step scores become one number: min (the paper), product, mean, last, max, softmin(T)."},
    )
    split_how: str = field(
        default="newline",
        metadata={"help": "How completions are split into steps: newline, blank_line, step_marker or sentence."},
    )
    require_answer: bool = field(
        default=True,
        metadata={"help": "Whether a completion that does not mark its answer is malformed; the PRM does not see it."},
    )
    scoring_batch_size: int = field(
        default=32, metadata={"help": "Completions the PRM scores at once. No effect on results."}
    )
    max_tokens_per_batch: int | None = field(
        default=None, metadata={"help": "Most tokens the PRM reads at once, padding included. No effect on results."}
    )
    combine: str | None = field(
        default=None,
        metadata={
            "help": "How the score is combined with whether the answer is right: product, gate or weighted_sum; left "
            "out, it is not."
        },
    )
    answer_weight: float = field(
        default=0.5, metadata={"help": "Weight of the right answer in `combine: weighted_sum`, 0 to 1."}
    )
    answer_column: str = field(
        default="answer", metadata={"help": "Column with the reference answers that rewards compare with."}
    )
    guards: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": """Bounds on steps against reward hacking (none by default), as JSON: '{"max_steps": 20}'. The """
            "names are those of `StepGuards` (trl_erprm/policy/guards.py)."
        },
    )
    reward_if_malformed: float | None = field(
        default=None,
        metadata={"help": "Reward of a completion without a step or an answer, or out of bounds; null: none."},
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
        for name in ("scoring_batch_size", "max_tokens_per_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}. Leave it out for the default.")
        if self.prm_format is not None:
            check_choice("prm_format", self.prm_format, FORMATS)
        if self.prm_dtype != "auto" and not isinstance(getattr(torch, self.prm_dtype, None), torch.dtype):
            raise ValueError(
                f"`prm_dtype` must be 'auto' or a precision of torch such as 'bfloat16', got {self.prm_dtype!r}. Name "
                "one, or leave it out."
            )
        check_prompt_reading(self.prompt_as)
        if self.combine is not None:
            check_choice("combine", self.combine, COMBINATIONS)
        if not 0 <= self.answer_weight <= 1:
            raise ValueError(f"`answer_weight` must be between 0 and 1, got {self.answer_weight}. It is a share.")
        if self.reward_if_malformed is not None and not math.isfinite(self.reward_if_malformed):
            raise ValueError(
                f"`reward_if_malformed` must be a finite number or null, got {self.reward_if_malformed}. Set 0 for "
                "the lowest score."
            )
        read_guards(self.guards)


@dataclass
class ReinforcementArguments(RewardArguments):
    """The same for reinforcement learning, which pays what a completion is worth."""

    answer_how: str = field(
        default="auto",
        metadata={"help": "Where the final answer stands: auto, gsm8k, boxed, math or arithmetic."},
    )
    reward_if_malformed: float | None = field(
        default=0.0,  # `None` would keep a completion without an answer from being punished
        metadata={"help": "Reward of a completion without a step or an answer, or out of bounds; null: none."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_answer_convention(self.answer_how, "answer_how")


class Task(NamedTuple):
    """What to train on."""

    prompts: Dataset
    held_out: Dataset | None
    is_well_formed: Callable[[str, list[str]], bool] | None = None  # a check of solutions that the embedded task has
    has_answers: bool = True  # whether there are reference answers to train and to evaluate with


def load_task(
    recipe: str,
    script_args: RewardArguments,
    training_args: "GRPOConfig | RFTConfig",
    model_args: ModelArguments,
    data_args: DataArguments,
) -> Task:
    """
    The prompts that the arguments name. For the embedded task, the policy and the PRM are made, and named there.

    What can be said of the arguments and the rows is said here, before a policy is loaded.
    """
    if recipe != "rft":
        checkpoint_to_resume(training_args.output_dir, training_args.resume_from_checkpoint)
    if script_args.task == "arithmetic":
        prepared = stages.prepare(Path(training_args.output_dir).parent, training_args.seed, recipe)
        model_args.model_name_or_path, script_args.prm_path = str(prepared.policy_dir), str(prepared.prm_dir)
        prompts = prepared.task.dataset(data_args.dataset_split, data_args.num_rows)
        held_out = prepared.task.dataset(data_args.eval_split or "test", data_args.num_eval_rows)
        return Task(prompts, held_out, prepared.task.is_well_formed)
    if not script_args.prm_path:
        raise ValueError(stages.missing("prm_path", recipe))
    check_path_or_id(script_args.prm_path, "prm_path")
    if Path(script_args.prm_path).is_dir():  # else its format is known by its id, or read from the Hub
        resolve_format(script_args.prm_path, script_args.prm_format)
    prompts, held_out = map(_without_worked_steps, load_prompts(data_args, script_args.split_how))
    if recipe != "rft":
        return Task(prompts, held_out, has_answers=has_answers(prompts, held_out, script_args, training_args))
    how, needs_answers = training_args.answer_how, training_args.selection_rule.needs_answers
    for rows, name in ((prompts, "rows to train on"), (held_out, "held-out rows")):
        if rows is not None and script_args.combine is not None:
            _check_answers_to_combine(rows, name, script_args.answer_column, how)
        if rows is not None and (needs_answers or rows is held_out):
            _has_readable_answers(rows, name, "answer", how, is_each_needed=True)
    return Task(prompts, held_out)


def _without_worked_steps(rows: Dataset | None) -> Dataset | None:
    """Worked solutions bring a column `completions`, TRL's name for what was sampled."""
    return rows.remove_columns("completions") if rows and "completions" in rows.column_names else rows


def has_answers(
    prompts: Dataset, held_out: Dataset | None, script_args: ReinforcementArguments, training_args: "GRPOConfig"
) -> bool:
    """
    Whether the rows have reference answers. Without them there is no [`AnswerReward`], nor a weight for it.

    Raises:
        ValueError: where no answer can be read, the held-out rows lack them, or a weight is given to what is missing.
    """
    column, how = script_args.answer_column, script_args.answer_how
    if script_args.combine is not None:
        _check_answers_to_combine(prompts, "rows to train on", column, how)
    if not _has_readable_answers(prompts, "rows to train on", column, how):
        weights = training_args.reward_weights
        if weights is not None and len(weights) == 2:
            if weights[1]:
                raise ValueError(
                    f"`reward_weights` gives right answers the weight {weights[1]:g}, but the rows have no answers in "
                    f"the column {column!r}. Name the column in `answer_column`, or leave that weight out."
                )
            training_args.reward_weights = weights[:1]
        logger.warning(
            f"The rows have no answers in the column {column!r}: the policy is trained and evaluated by the process "
            "reward alone, and nothing says how many answers are right. Another column is named by `answer_column`."
        )
        return False
    if held_out is not None and not _has_readable_answers(held_out, "held-out rows", column, how):
        raise ValueError(
            f"The held-out rows have no answers in the column {column!r}, which the rows to train on have. Add them, "
            "or leave the held-out rows out."
        )
    return True


def _check_answers_to_combine(rows: Dataset, name: str, column: str, how: str) -> None:
    if not _has_readable_answers(rows, name, column, how, is_each_needed=True):
        raise ValueError(
            f"`combine` needs reference answers, and the {name} have none in the column {column!r}. Name the column "
            "in `answer_column`, or leave `combine` out."
        )


def _has_readable_answers(rows: Dataset, name: str, column: str, how: str, is_each_needed: bool = False) -> bool:
    """Whether there are answers. Says how many cannot be read; raises where it is all of them, or each is needed."""
    answers = rows[column] if column in rows.column_names else []
    given = [(i, answer) for i, answer in enumerate(answers) if answer is not None]
    unreadable = [(i, answer) for i, answer in given if readable_reference(answer, how) is None]
    if unreadable:
        i, answer = unreadable[0]
        found = (
            f"{len(unreadable)} of {counted(len(given), 'answer')} in the column {column!r} of the {name} cannot be "
            f"read by `answer_how: {how}` (row {i}: {answer!r:.80})."
        )
        if is_each_needed or len(unreadable) == len(given):
            raise ValueError(f"{found} Set `answer_how` to how they are written, or correct or remove these rows.")
        logger.warning(f"{found} Completions of these rows are not compared.")
    return bool(given)


def load_rewards(script_args: ReinforcementArguments, task: Task) -> list[ProcessReward | AnswerReward]:
    """The rewards of reinforcement learning: of the steps, and of the answers where the rows have some."""
    rewards = [load_process_reward(script_args, task, script_args.answer_how, script_args.prm_path)]
    if task.has_answers:
        rewards.append(AnswerReward(script_args.answer_how, script_args.answer_column))
    return rewards


def load_process_reward(
    script_args: RewardArguments, task: Task, answer_how: str, prm: "str | ProcessRewardModel"
) -> ProcessReward:
    """The process reward, with its model, as the options say."""
    return ProcessReward(
        prm,
        aggregation=script_args.aggregation,
        split_how=script_args.split_how,
        answer_how=answer_how,
        require_answer=script_args.require_answer,
        is_well_formed=task.is_well_formed,
        batch_size=script_args.scoring_batch_size,
        max_tokens_per_batch=script_args.max_tokens_per_batch,
        format=script_args.prm_format,
        dtype=script_args.prm_dtype,
        prompt_as=script_args.prompt_as,
        combine=script_args.combine,
        answer_column=script_args.answer_column,
        answer_weight=script_args.answer_weight,
        guards=read_guards(script_args.guards),
        reward_if_malformed=script_args.reward_if_malformed,
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


def claim_directory(trainer: "StepGRPOTrainer | ProcessPPOTrainer", model_args: ModelArguments) -> None:
    """
    Claims `output_dir` for this policy, these rewards, rows and arguments.

    Raises:
        ValueError: where the directory holds another run; the differences are named.
    """
    args, rows = trainer.args, {"rows": trainer.train_dataset, "eval_rows": trainer.eval_dataset}
    models = {"model": trainer.model, "critic": getattr(trainer, "critic", None)}
    arguments = {name: value for name, value in result_arguments(args).items() if name not in _NOT_IN_RESULTS}
    identity = {
        **{name: model and fingerprint(model, trainer.accelerator) for name, model in models.items()},
        "rewards": {function.__name__: function.identity for function in trainer.reward_funcs},
        **{name: of and content_hash([of[c][:] for c in sorted(of.column_names)]) for name, of in rows.items()},
        "arguments": {**vars(model_args), **arguments, "generation_batch_size": args.generation_batch_size},
    }
    if trainer.is_world_process_zero():
        open_run(args.output_dir, identity, kind=type(trainer).__name__)
    trainer.accelerator.wait_for_everyone()


def is_finished(trainer: "StepGRPOTrainer | ProcessPPOTrainer") -> bool:
    """Whether the directory holds the policy already, and says so."""
    directory = trainer.args.output_dir
    if not (Path(directory) / FINISHED).exists():
        return False
    if trainer.is_world_process_zero():
        Console().print(f"{directory} holds this policy already; delete the directory to train it again.")
    return True


def train(trainer: "StepGRPOTrainer | ProcessPPOTrainer") -> dict[str, float]:
    """Trains, and goes on at the last checkpoint of the run, or at `resume_from_checkpoint`, where there is one."""
    args = trainer.args
    checkpoint = checkpoint_to_resume(args.output_dir, args.resume_from_checkpoint)
    if checkpoint is not None:
        if trainer.is_world_process_zero():
            Console().print(f"The run goes on at {checkpoint}.", soft_wrap=True)
        step = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        if step * args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations):
            logger.warning(
                f"Step {step} lies between two rounds of sampling: TRL samples anew, and the run will not be that "
                "which was not interrupted. It is with `save_steps` a multiple of `num_iterations * "
                "steps_per_generation / gradient_accumulation_steps`."
            )
    # An interrupted run was evaluated before its first step.
    is_evaluated_first = args.eval_on_start
    args.eval_on_start = is_evaluated_first and checkpoint is None
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    args.eval_on_start = is_evaluated_first
    return metrics


def save_policy(trainer: "StepGRPOTrainer | ProcessPPOTrainer", metrics: dict[str, float], made: str) -> None:
    """Saves the policy, evaluates it, prints its accuracy over the run and what was `made`; last come the metrics."""
    args = trainer.args
    trainer.save_model()
    if trainer.eval_dataset is not None and (args.eval_on_start or args.eval_strategy != "no"):
        after = trainer.evaluate()
        metrics = {**metrics, **after}
        if trainer.is_world_process_zero() and len(trainer.reward_funcs) == 2:  # with an AnswerReward
            num_samples = args.num_generations_eval or args.num_generations
            history = [*trainer.state.log_history, after]
            Console().print(reinforcement_table(history, len(trainer.eval_dataset), num_samples))
    if trainer.is_world_process_zero():
        Console().print(made, soft_wrap=True)
        write_atomically(Path(args.output_dir) / FINISHED, json.dumps(metrics, indent=2) + "\n")
    trainer.accelerator.wait_for_everyone()
