"""What PPO's critic may begin as: the process reward model, or the policy with a new head.

    python benchmarks/ppo.py --seeds 0 1 2

Trains as `recipes/ppo.py` does on the embedded task, once with each critic; a seed has problems, misconceptions, a
policy, labels and a PRM of its own (recipes/stages.py). What is there is reused, and a run that is finished is not run
again. Prints how much of the returns' variance the critic foresees, at first and in the end, and the accuracy of the
policy. About 5 minutes a seed on one core.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import yaml
from _measurements import Measurement, day_of, write_measurements
from transformers import PrinterCallback, set_seed

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import stages  # noqa: E402

from trl_erprm import AnswerReward, ProcessPPOConfig, ProcessPPOTrainer, ProcessReward  # noqa: E402
from trl_erprm.arguments import ModelArguments, load_policy  # noqa: E402

CRITICS = {"prm": "the ER-PRM", "policy": "the policy, new head"}  # as `--critic` of the recipe


def train(critic: str, prepared: stages.PreparedTask, root: Path, seed: int) -> list[dict]:
    """A run of the recipe; what it logged, an entry a generation or an evaluation."""
    options = yaml.safe_load((stages.CONFIGS / "ppo.yaml").read_text())
    known = ProcessPPOConfig.__dataclass_fields__
    config = {name: value for name, value in options.items() if name in known}
    config |= {"seed": seed, "output_dir": str(root / f"ppo-{critic}"), "use_cpu": True, "disable_tqdm": True}
    # A generation's values are logged at its first update, before which the critic learnt nothing from it.
    config |= {"logging_steps": 1, "eval_on_start": True}
    judge = ProcessReward(
        str(prepared.prm_dir),
        aggregation=options["aggregation"],
        answer_how=options["answer_how"],
        is_well_formed=prepared.task.is_well_formed,
        reward_if_malformed=0.0,
        batch_size=options["scoring_batch_size"],
    )
    set_seed(seed)
    policy, tokenizer = load_policy(ModelArguments(model_name_or_path=str(prepared.policy_dir)))
    trainer = ProcessPPOTrainer(
        policy,
        [judge, AnswerReward(options["answer_how"])],
        critic=str(prepared.prm_dir) if critic == "prm" else None,
        args=ProcessPPOConfig(**config),
        train_dataset=prepared.task.dataset("train"),
        eval_dataset=prepared.task.dataset(options["eval_split"], options["num_eval_rows"]),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.state.log_history


def curves(history: list[dict]) -> dict[str, list]:
    """
    Of what a run logged: explained variance of each generation's returns, and accuracy in per cent at evaluations.

    Example:

    ```python
    >>> evaluation = {"step": 0, "eval_rewards/answer_reward/mean": 0.5}
    >>> curves([evaluation, {"step": 1, "explained_variance": 0.6}, {"step": 2, "loss": 0.1}])
    {'explained_variance': [0.6], 'accuracy': [50.0]}

    ```
    """
    accuracy = "eval_rewards/answer_reward/mean"
    return {
        "explained_variance": [entry["explained_variance"] for entry in history if "explained_variance" in entry],
        "accuracy": [100 * entry[accuracy] for entry in history if accuracy in entry],
    }


def measurements(results: dict[int, dict[str, dict[str, list]]]) -> list[Measurement]:
    """Of the curves by seed and critic."""
    rows, note = [], f"{len(results)} seeds"
    for measured, name, number, factor in (
        ("variance of the first returns that the critic foresees", "explained_variance", 0, 100),
        ("the same of the last returns", "explained_variance", -1, 100),
        ("accuracy of a sample after training", "accuracy", -1, 1),
    ):
        for critic, described in CRITICS.items():
            values = [factor * runs[critic][name][number] for runs in results.values()]
            found = statistics.fmean(values), "%", min(values), max(values), note
            rows.append(Measurement("PPO", measured, "", f"critic begins as {described}", *found))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/ppo"))
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/ppo.json"))
    args = parser.parse_args()

    started, results, files = time.time(), {}, []
    for seed in args.seeds:
        root = args.output_dir / f"seed-{seed}"
        if root.exists():
            started = None  # of all stages
        root.mkdir(parents=True, exist_ok=True)
        prepared = stages.prepare(root, seed, "ppo")
        path = root / "critics.json"
        runs = results[seed] = json.loads(path.read_text()) if path.exists() else {}
        files.append(path)
        for critic in CRITICS:
            if critic not in runs:
                runs[critic] = curves(train(critic, prepared, root, seed))
                path.write_text(json.dumps(runs, indent=2) + "\n")
    rows = measurements(results)
    for row in rows:
        print(f"{row.measured:<56} {row.setting:<42} {row.shown()}")
    num_threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    details = {f"seed {seed}": runs for seed, runs in results.items()}
    write_measurements(args.output, rows, started, num_threads, details=details, date=day_of(files))


if __name__ == "__main__":
    main()
