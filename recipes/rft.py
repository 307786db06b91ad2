"""Fine-tune a policy on the completions that a process reward model likes best (RAFT).

    accelerate launch recipes/rft.py                                  # the embedded task: everything from scratch
    accelerate launch recipes/rft.py --config my_run.yaml             # your policy, your PRM, your prompts

Without arguments the embedded task is run: the policy, the labels and the PRM are prepared by the stages before
(`recipes/stages.py`), each kept under `outputs/arithmetic/` and reused by the next run.
"""

from dataclasses import dataclass, field
from pathlib import Path

import stages
from peft import get_peft_model
from policy_training import RewardArguments, load_process_reward, load_task
from rich.console import Console
from transformers import set_seed

from trl_erprm import RFTConfig, RFTTrainer
from trl_erprm.arguments import DataArguments, ModelArguments, StrictParser, get_peft_config, load_policy
from trl_erprm.evaluation.plots import plot_rft_iterations
from trl_erprm.evaluation.report import rft_table
from trl_erprm.policy.shared_base import share_base


@dataclass
class ScriptArguments(RewardArguments):
    share_base: bool = field(
        default=False,
        metadata={"help": "Load the PRM, an adapter of the policy's base, onto the policy: one copy in memory."},
    )


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser((ScriptArguments, RFTConfig, ModelArguments, DataArguments), description=__doc__)
    script_args, training_args, model_args, data_args = parser.parse_args_and_config(stages.command_line(argv, "rft"))
    if script_args.share_base:
        check_share_base(script_args, model_args)
    if (checkpoint := training_args.resume_from_checkpoint) is not None:
        raise ValueError(
            f"`resume_from_checkpoint` is not for this recipe, got {checkpoint!r}: a run goes on by itself where it "
            "was. Leave it out, and give the run's `output_dir`."
        )

    # Load
    task = load_task("rft", script_args, training_args, model_args, data_args)
    policy, tokenizer = load_policy(model_args, training_args.trust_remote_code)

    # Build
    peft_config, prm = get_peft_config(model_args), script_args.prm_path
    if script_args.share_base:
        set_seed(training_args.seed)  # the adapter's first weights
        policy, peft_config = get_peft_model(policy, peft_config), None
        prm = share_base(policy, prm)
    trainer = RFTTrainer(
        model=policy,
        reward_funcs=load_process_reward(script_args, task, training_args.answer_how, prm),
        args=training_args,
        train_dataset=task.prompts,
        eval_dataset=task.held_out,
        processing_class=tokenizer,
        peft_config=peft_config,
    )

    # Train
    history = trainer.train()

    # Save
    trainer.save_model()
    if trainer.is_world_process_zero() and task.held_out is not None:
        plot = Path(training_args.output_dir) / "iterations.png"
        plot_rft_iterations(history, plot)
        console = Console()
        console.print(rft_table(history))
        console.print(f"Policy: {training_args.output_dir}   Plot: {plot}", soft_wrap=True)
    trainer.accelerator.wait_for_everyone()


def check_share_base(script_args: ScriptArguments, model_args: ModelArguments) -> None:
    """Raises where there are no two adapters to put on one base model."""
    if not model_args.use_peft:
        raise ValueError("`share_base` puts two adapters on one base model, got no `use_peft`. Set it.")
    if script_args.task is not None:
        raise ValueError(
            f"`share_base` needs a PRM that is an adapter, got `task: {script_args.task}`, whose PRM is a whole "
            "model. Leave `share_base` out."
        )
    for name, default in (("prm_format", None), ("prm_dtype", "auto")):
        if (value := getattr(script_args, name)) != default:
            raise ValueError(
                f"`{name}` is how a PRM of its own is loaded, got {value!r} with `share_base`, where the PRM is an "
                "adapter of the policy's base. Leave it out."
            )


if __name__ == "__main__":
    main()
