"""The parts `rft` and `grpo`: a policy after each, trained with a PRM and nothing else."""

import shutil
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed

from trl_erprm import ProcessReward, RFTConfig, RFTTrainer, StepGRPOConfig, StepGRPOTrainer
from trl_erprm.arguments import ModelArguments, load_policy
from trl_erprm.policy.answer_reward import AnswerReward

from .config import StudyConfig, read_label
from .devices import BATCH_SIZES, trainer_arguments
from .units import Unit


def _process_reward(config: StudyConfig, unit: Unit, **options: Any) -> ProcessReward:
    """The PRM as a reward: the least step (the paper's), or the last one where only this was learnt."""
    return ProcessReward(
        unit.directory(config.output_dir) / "prms" / unit.prm_name,
        aggregation="last" if read_label(unit.label).is_outcome else "min",
        answer_how="arithmetic",
        is_well_formed=config.task(unit.difficulty, unit.seed).is_well_formed,
        batch_size=BATCH_SIZES[config.device].scoring,
        device=config.device,
        **options,
    )


def _load_policy(directory: Path) -> tuple:
    return load_policy(ModelArguments(model_name_or_path=str(directory / "policy")))


def run_rft(config: StudyConfig, unit: Unit) -> dict[str, Any]:
    """Rejection-sampling fine-tuning. Gives what the trainer measures before and after each iteration."""
    directory, settings = unit.directory(config.output_dir), dict(config.rft)
    task = config.task(unit.difficulty, unit.seed)
    held_out = task.dataset("test", settings.pop("num_eval_problems"))
    work = directory / "rft" / unit.prm_name
    args = RFTConfig(
        str(work),
        max_completion_length=config.max_new_tokens(unit.difficulty),
        generation_batch_size=BATCH_SIZES[config.device].generation,
        answer_how="arithmetic",
        max_length=config.max_length(unit.difficulty),
        keep_models=1,
        seed=unit.seed,
        **trainer_arguments(config.device),
        **settings,
    )
    policy, tokenizer = _load_policy(directory)
    trainer = RFTTrainer(
        model=policy,
        reward_funcs=_process_reward(config, unit),
        args=args,
        train_dataset=task.dataset("train"),
        eval_dataset=held_out,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    history = trainer.train()
    shutil.rmtree(work)
    names = ("iteration", "greedy", "sampled", "best_of_n", "majority", "oracle")
    return {"history": [{name: row[name] for name in names} for row in history]}


def run_grpo(config: StudyConfig, unit: Unit) -> dict[str, Any]:
    """GRPO on the scores of the steps; on the score of the answer, one a completion, where only this was learnt."""
    directory, settings = unit.directory(config.output_dir), dict(config.grpo)
    task = config.task(unit.difficulty, unit.seed)
    held_out = task.dataset("test", settings.pop("num_eval_problems"))
    if is_outcome := read_label(unit.label).is_outcome:
        settings["advantage_estimator"] = "outcome"
    work = directory / "grpo" / unit.prm_name
    args = StepGRPOConfig(
        str(work),
        outcome_weight=1.0 if is_outcome else 0.0,
        reward_weights=[1.0, 0.0],  # the PRM; right answers are only watched
        max_completion_length=config.max_new_tokens(unit.difficulty),
        per_device_eval_batch_size=400,
        eval_strategy="steps",
        logging_steps=settings["eval_steps"],
        seed=unit.seed,
        **trainer_arguments(config.device),
        **settings,
    )
    set_seed(unit.seed)
    policy, tokenizer = _load_policy(directory)
    trainer = StepGRPOTrainer(
        policy,
        [_process_reward(config, unit, reward_if_malformed=0.0), AnswerReward("arithmetic")],
        args=args,
        train_dataset=task.dataset("train"),
        eval_dataset=held_out,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    name = "eval_rewards/answer_reward/mean"
    history = [{"step": 0, "sampled": trainer.evaluate()[name]}]
    trainer.train()
    history += [
        {"step": entry["step"], "sampled": entry[name]}
        for entry in trainer.state.log_history
        if name in entry and entry["step"] > 0
    ]
    shutil.rmtree(work, ignore_errors=True)
    return {"history": history}
