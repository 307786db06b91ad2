"""Train a policy with GRPO on the steps of its completions, as a process reward model judges them.

    accelerate launch recipes/grpo.py                                 # the embedded task: everything from scratch
    accelerate launch recipes/grpo.py --config my_run.yaml            # your policy, your PRM, your prompts

Without arguments the embedded task is run: the policy, the labels and the PRM are prepared by the stages before
(`recipes/stages.py`), each kept under `outputs/arithmetic/` and reused by the next run.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stages
from rich.console import Console

from trl_erprm import AnswerReward, ProcessReward, StepGRPOConfig, StepGRPOTrainer
from trl_erprm.arguments import (
    DataArguments,
    ModelArguments,
    StrictParser,
    get_peft_config,
    load_policy,
    load_prompts,
)
from trl_erprm.evaluation.reinforcement import reinforcement_table


@dataclass
class ScriptArguments:
    prm_path: str | None = field(default=None, metadata={"help": "Directory of the process reward model."})
    aggregation: str = field(default="min", metadata={"help": "How step scores become one number (paper: min)."})
    split_how: str = field(default="newline", metadata={"help": "How completions are split into steps."})
    answer_how: str = field(default="auto", metadata={"help": "How answers are read: see `verify_answer`."})
    scoring_batch_size: int = field(default=32, metadata={"help": "Completions the PRM scores at once."})
    guards: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Bounds on steps against reward hacking, see `StepGuards`; JSON."}
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "'arithmetic': the embedded task; policy, PRM and prompts are made.",
            "choices": ["arithmetic"],
        },
    )


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = StrictParser((ScriptArguments, StepGRPOConfig, ModelArguments, DataArguments))
    script_args, training_args, model_args, data_args = parser.parse_args_and_config(
        argv or ["--config", str(stages.CONFIGS / "grpo.yaml")]
    )

    # Load
    is_well_formed = None
    if script_args.task == "arithmetic":
        root = Path(training_args.output_dir).parent
        task = stages.prepare(root, training_args.seed, "GRPO: each step of a completion has an advantage of its own")
        model_args.model_name_or_path, script_args.prm_path = str(task.policy_dir), str(task.prm_dir)
        prompts = task.task.dataset(data_args.dataset_split, data_args.num_rows)
        held_out = task.task.dataset(data_args.eval_split or "test", data_args.num_eval_rows)
        is_well_formed = task.task.is_well_formed
    else:
        if not script_args.prm_path:
            raise ValueError(stages.missing("prm_path", "grpo"))
        prompts, held_out = load_prompts(data_args, script_args.split_how)
        # Worked solutions bring a column `completions`, TRL's name for what was sampled.
        taken = {"completions"}.intersection(prompts.column_names)
        prompts, held_out = (rows and rows.remove_columns(list(taken)) for rows in (prompts, held_out))
    policy, tokenizer = load_policy(model_args)
    # At the start of training rather than before it: DeepSpeed cannot evaluate what it does not train yet.
    training_args.eval_on_start = held_out is not None

    # Build
    process_reward = ProcessReward(
        script_args.prm_path,
        aggregation=script_args.aggregation,
        split_how=script_args.split_how,
        answer_how=script_args.answer_how,
        is_well_formed=is_well_formed,
        guards=stages.guards_of(script_args.guards),
        reward_if_malformed=0.0,  # `None` would keep a completion without an answer from being punished
        batch_size=script_args.scoring_batch_size,
    )
    trainer = StepGRPOTrainer(
        model=policy,
        reward_funcs=[process_reward, AnswerReward(script_args.answer_how)],
        args=training_args,
        train_dataset=prompts,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )

    # Train
    trainer.train()

    # Save
    trainer.save_model()
    if held_out is not None:
        after = trainer.evaluate()
        if trainer.is_world_process_zero():
            console = Console()
            console.print(
                reinforcement_table(
                    [*trainer.state.log_history, after],
                    len(held_out),
                    training_args.num_generations_eval or training_args.num_generations,
                )
            )
            console.print(f"Policy: {training_args.output_dir}", soft_wrap=True)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
