"""Train a policy with PPO: a process reward model rewards each step, a critic says what to expect.

    accelerate launch recipes/ppo.py                                  # the embedded task: everything from scratch
    accelerate launch recipes/ppo.py --config my_run.yaml             # your policy, your PRM, your prompts

Without arguments the embedded task is run: the policy, the labels and the PRM are prepared by the stages before
(`recipes/stages.py`), each kept under `outputs/arithmetic/` and reused by the next run.
"""

from dataclasses import dataclass, field
from pathlib import Path

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

from trl_erprm import ProcessPPOConfig, ProcessPPOTrainer
from trl_erprm.arguments import (
    DataArguments,
    ModelArguments,
    StrictParser,
    check_path_or_id,
    get_peft_config,
    load_policy,
)


@dataclass
class ScriptArguments(ReinforcementArguments):
    critic: str = field(
        default="policy",
        metadata={"help": "What the critic begins as: 'policy', 'prm' (which needs its tokens), or another model."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic in ("policy", "prm"):
            return
        if "/" not in self.critic and not Path(self.critic).exists():  # a misspelt word rather than an id
            raise ValueError(
                f"`critic` must be 'policy', 'prm', an existing directory or a model on the Hub (org/name), got "
                f"{self.critic!r}. Write one of them."
            )
        check_path_or_id(self.critic, "critic")


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser((ScriptArguments, ProcessPPOConfig, ModelArguments, DataArguments), description=__doc__)
    parser.set_defaults(eval_on_start=None)  # so that it shows whether it was given
    script_args, training_args, model_args, data_args = parser.parse_args_and_config(stages.command_line(argv, "ppo"))

    # Load
    task = load_task("ppo", script_args, training_args, model_args, data_args)
    policy, tokenizer = load_policy(model_args, training_args.trust_remote_code)
    if training_args.eval_on_start is None:
        # At the start of training rather than before it: DeepSpeed cannot evaluate what it does not train yet.
        training_args.eval_on_start = task.held_out is not None

    # Build
    trainer = ProcessPPOTrainer(
        model=policy,
        reward_funcs=load_rewards(script_args, task),
        critic={"policy": None, "prm": script_args.prm_path}.get(script_args.critic, script_args.critic),
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
    save_policy(trainer, metrics, f"Policy: {training_args.output_dir}   Critic: critic/ in it")


if __name__ == "__main__":
    main()
