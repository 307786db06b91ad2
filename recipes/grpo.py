"""Train a policy with GRPO on the steps of its completions, as a process reward model judges them.

    accelerate launch recipes/grpo.py                                 # the embedded task: everything from scratch
    accelerate launch recipes/grpo.py --config my_run.yaml            # your policy, your PRM, your prompts

Without arguments the embedded task is run: the policy, the labels and the PRM are prepared by the stages before
(`recipes/stages.py`), each kept under `outputs/arithmetic/` and reused by the next run.
"""

import stages
from policy_training import ReinforcementArguments, load_process_reward, load_task, save_policy

from trl_erprm import AnswerReward, StepGRPOConfig, StepGRPOTrainer
from trl_erprm.arguments import DataArguments, ModelArguments, StrictParser, get_peft_config, load_policy


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser((ReinforcementArguments, StepGRPOConfig, ModelArguments, DataArguments), description=__doc__)
    script_args, training_args, model_args, data_args = parser.parse_args_and_config(stages.command_line(argv, "grpo"))

    # Load
    task = load_task("grpo", script_args, training_args, model_args, data_args)
    policy, tokenizer = load_policy(model_args)
    # At the start of training rather than before it: DeepSpeed cannot evaluate what it does not train yet.
    training_args.eval_on_start = task.held_out is not None

    # Build
    trainer = StepGRPOTrainer(
        model=policy,
        reward_funcs=[load_process_reward(script_args, task.is_well_formed), AnswerReward(script_args.answer_how)],
        args=training_args,
        train_dataset=task.prompts,
        eval_dataset=task.held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )

    # Train
    trainer.train()

    # Save
    save_policy(trainer, f"Policy: {training_args.output_dir}")


if __name__ == "__main__":
    main()
