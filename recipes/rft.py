"""Fine-tune a policy on the completions that a process reward model likes best (RAFT).

    accelerate launch recipes/rft.py                                  # the embedded task: everything from scratch
    accelerate launch recipes/rft.py --config my_run.yaml             # your policy, your PRM, your prompts

Without arguments the embedded task is run: the policy, the labels and the PRM are prepared by the stages before
(`recipes/stages.py`), each kept under `outputs/arithmetic/` and reused by the next run.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import stages
from peft import get_peft_model
from rich.console import Console
from transformers import set_seed

from trl_erprm import ProcessReward, RFTConfig, RFTTrainer
from trl_erprm.arguments import (
    DataArguments,
    ModelArguments,
    StrictParser,
    get_peft_config,
    load_policy,
    load_prompts,
)
from trl_erprm.evaluation.plots import plot_rft_iterations
from trl_erprm.evaluation.report import rft_table
from trl_erprm.policy.shared_base import share_base


@dataclass
class ScriptArguments:
    prm_path: str | None = field(default=None, metadata={"help": "Directory of the process reward model."})
    aggregation: str = field(default="min", metadata={"help": "How step scores become one number (paper: min)."})
    split_how: str = field(default="newline", metadata={"help": "How completions are split into steps."})
    scoring_batch_size: int = field(default=32, metadata={"help": "Completions the PRM scores at once."})
    share_base: bool = field(
        default=False,
        metadata={"help": "Load the PRM, an adapter of the policy's base, onto the policy: one copy in memory."},
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
    parser = StrictParser((ScriptArguments, RFTConfig, ModelArguments, DataArguments))
    script_args, training_args, model_args, data_args = parser.parse_args_and_config(
        argv or ["--config", str(stages.CONFIGS / "rft.yaml")]
    )

    # Load
    is_well_formed = None
    if script_args.task == "arithmetic":
        task = stages.prepare(Path(training_args.output_dir).parent, training_args.seed)
        model_args.model_name_or_path, script_args.prm_path = str(task.policy_dir), str(task.prm_dir)
        prompts = task.task.dataset(data_args.dataset_split, data_args.num_rows)
        held_out = task.task.dataset(data_args.eval_split or "test", data_args.num_eval_rows)
        is_well_formed = task.task.is_well_formed
    else:
        if not script_args.prm_path:
            raise ValueError(stages.missing("prm_path", "rft"))
        prompts, held_out = load_prompts(data_args, script_args.split_how)
    policy, tokenizer = load_policy(model_args, training_args.trust_remote_code)

    # Build
    peft_config, prm = get_peft_config(model_args), script_args.prm_path
    if script_args.share_base:
        if peft_config is None:
            raise ValueError("`share_base` puts two adapters on one base model, got no `use_peft`. Set it.")
        set_seed(training_args.seed)  # the adapter's first weights
        policy, peft_config = get_peft_model(policy, peft_config), None
        prm = share_base(policy, prm)
    reward = ProcessReward(
        prm,
        aggregation=script_args.aggregation,
        split_how=script_args.split_how,
        answer_how=training_args.answer_how,
        is_well_formed=is_well_formed,
        batch_size=script_args.scoring_batch_size,
    )
    trainer = RFTTrainer(
        model=policy,
        reward_funcs=reward,
        args=training_args,
        train_dataset=prompts,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=peft_config,
    )

    # Train
    history = trainer.train()

    # Save
    trainer.save_model()
    if trainer.is_world_process_zero() and held_out is not None:
        plot = Path(training_args.output_dir) / "iterations.png"
        plot_rft_iterations(history, plot)
        console = Console()
        console.print(rft_table(history))
        console.print(f"Policy: {training_args.output_dir}   Plot: {plot}", soft_wrap=True)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
