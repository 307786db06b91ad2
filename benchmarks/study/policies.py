"""The parts `rft` and `grpo`: a policy after each, trained with a PRM and nothing else."""

import shutil
from collections.abc import Mapping
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
        dtype="float32",
        **options,
    )


def _load_policy(directory: Path) -> tuple:
    return load_policy(ModelArguments(model_name_or_path=str(directory / "policy")))


def rft_config(config: StudyConfig, unit: Unit) -> RFTConfig:
    """How a policy is fine-tuned."""
    return RFTConfig(
        str(_work(config, unit)),
        max_completion_length=config.max_new_tokens(unit.difficulty),
        generation_batch_size=BATCH_SIZES[config.device].generation,
        answer_how="arithmetic",
        max_length=config.max_length(unit.difficulty),
        keep_models=1,
        seed=unit.seed,
        **trainer_arguments(config.device),
        **_of_trainer(config.rft),
    )


def grpo_config(config: StudyConfig, unit: Unit) -> StepGRPOConfig:
    """How a policy is trained by GRPO: on one score a completion where only the answer was learnt."""
    settings = _of_trainer(config.grpo)
    if is_outcome := read_label(unit.label).is_outcome:
        settings["advantage_estimator"] = "outcome"
    return StepGRPOConfig(
        str(_work(config, unit)),
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


def _work(config: StudyConfig, unit: Unit) -> Path:
    """Where a trainer writes what is removed behind it."""
    return unit.directory(config.output_dir) / unit.kind / unit.prm_name


def _of_trainer(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "num_eval_problems"}


def run_rft(config: StudyConfig, unit: Unit) -> dict[str, Any]:
    """Rejection-sampling fine-tuning. Gives what the trainer measures before and after each iteration."""
    task, args = config.task(unit.difficulty, unit.seed), rft_config(config, unit)
    policy, tokenizer = _load_policy(unit.directory(config.output_dir))
    trainer = RFTTrainer(
        model=policy,
        reward_funcs=_process_reward(config, unit),
        args=args,
        train_dataset=task.dataset("train"),
        eval_dataset=task.dataset("test", config.rft["num_eval_problems"]),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    history = trainer.train()
    shutil.rmtree(args.output_dir)
    names = ("iteration", "greedy", "sampled", "best_of_n", "majority", "oracle")
    return {"history": [{name: row[name] for name in names} for row in history]}


def run_grpo(config: StudyConfig, unit: Unit) -> dict[str, Any]:
    """GRPO on the scores of the steps; on the score of the answer, one a completion, where only this was learnt."""
    task, args = config.task(unit.difficulty, unit.seed), grpo_config(config, unit)
    set_seed(unit.seed)
    policy, tokenizer = _load_policy(unit.directory(config.output_dir))
    trainer = StepGRPOTrainer(
        policy,
        [_process_reward(config, unit, reward_if_malformed=0.0), AnswerReward("arithmetic")],
        args=args,
        train_dataset=task.dataset("train"),
        eval_dataset=task.dataset("test", config.grpo["num_eval_problems"]),
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
    shutil.rmtree(args.output_dir, ignore_errors=True)
    return {"history": history}
