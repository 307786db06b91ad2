"""Train a policy with GRPO on the steps of its completions, as a process reward model judges them.

    accelerate launch recipes/grpo.py                                 # the embedded task: everything from scratch
    accelerate launch recipes/grpo.py --config my_run.yaml            # your policy, your PRM, your prompts

Without arguments the embedded task is run: the policy, the labels and the PRM are prepared by the stages before
(`recipes/stages.py`), each kept under `outputs/arithmetic/` and reused by the next run.
"""

import stages
from policy_training import (
    ReinforcementArguments,
    claim_directory,
    is_finished,
    load_rewards,
    load_task,
    save_policy,
    train,
)

from trl_erprm import StepGRPOConfig, StepGRPOTrainer
from trl_erprm.arguments import DataArguments, ModelArguments, StrictParser, get_peft_config, load_policy


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser((ReinforcementArguments, StepGRPOConfig, ModelArguments, DataArguments), description=__doc__)
    parser.set_defaults(eval_on_start=None)  # so that it shows whether it was given
    script_args, training_args, model_args, data_args = parser.parse_args_and_config(stages.command_line(argv, "grpo"))

    # Load
    task = load_task("grpo", script_args, training_args, model_args, data_args)
    policy, tokenizer = load_policy(model_args, training_args.trust_remote_code)
    if training_args.eval_on_start is None:
        # At the start of training rather than before it: DeepSpeed cannot evaluate what it does not train yet.
        training_args.eval_on_start = task.held_out is not None

    # Build
    trainer = StepGRPOTrainer(
        model=policy,
        reward_funcs=load_rewards(script_args, task),
        args=training_args,
        train_dataset=task.prompts,
        eval_dataset=task.held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )

    # Train, unless that was done before
    claim_directory(trainer, model_args)
    if is_finished(trainer):
        return
    metrics = train(trainer)

    # Save
    save_policy(trainer, metrics, f"Policy: {training_args.output_dir}")


if __name__ == "__main__":
    main()
