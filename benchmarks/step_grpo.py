"""Learning curves on the embedded task: GRPO on outcomes against GRPO on steps, at equal numbers of samples.

    python benchmarks/step_grpo.py --seeds 0 1 2 --output_dir outputs/step_grpo

Each seed has problems, misconceptions, a policy, labels and a PRM of its own (recipes/stages.py); what is there is
reused, and a method that was run is not run again. All methods share every setting but their advantages. Writes
`seed-<n>/results.json` and the measurements to `--output`, prints a table in Markdown and draws `step_grpo.png`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from _measurements import Measurement, day_of, origin, write_measurements
from transformers import PrinterCallback, set_seed
from trl import GRPOTrainer

from trl_erprm import AnswerReward, ProcessReward, StepGRPOConfig, StepGRPOTrainer
from trl_erprm.arguments import ModelArguments, load_policy
from trl_erprm.arithmetic import ArithmeticTask

ROOT = Path(__file__).resolve().parents[1]
NUM_THREADS = 1  # so small a model gains nothing from more
ETA = 10.0  # of the labels: recipes/configs/arithmetic/label.yaml

STEP_METHODS = {
    "reward_to_go": {"advantage_estimator": "reward_to_go"},
    "reward_to_go, clip + delta": {
        "advantage_estimator": "reward_to_go",
        "step_reward_shaping": ["clip", "delta"],
    },
    "min_form": {"advantage_estimator": "min_form"},
    "soft_advantage": {"advantage_estimator": "soft_advantage", "eta": ETA},
    "soft_advantage, beta = 1 / eta": {"advantage_estimator": "soft_advantage", "eta": ETA, "beta": 1 / ETA},
}
METHODS = {
    "outcome (right answers)": None,
    "outcome (PRM, min)": None,
    **STEP_METHODS,
    "reward_to_go + right answers": {**STEP_METHODS["reward_to_go"], "outcome_weight": 1.0},
    "reward_to_go, clip + delta + right answers": {
        **STEP_METHODS["reward_to_go, clip + delta"],
        "outcome_weight": 1.0,
    },
    "min_form + right answers": {**STEP_METHODS["min_form"], "outcome_weight": 1.0},
    "soft_advantage + right answers": {**STEP_METHODS["soft_advantage"], "outcome_weight": 1.0},
}
BASELINE = "outcome (right answers)"


def train(method: str, task: ArithmeticTask, root: Path, seed: int, args: argparse.Namespace) -> dict:
    """Accuracy on held-out problems after each so many steps, and the seconds that training took."""
    settings = dict(METHODS[method] or {"advantage_estimator": "outcome"})
    uses_prm = method != BASELINE
    # the PRM's own reward counts in the whole completion's advantage only where nothing else does
    weights = [1.0, 0.0] if method == "outcome (PRM, min)" else [0.0, 1.0]
    settings.setdefault("outcome_weight", 1.0 if METHODS[method] is None else 0.0)
    config = StepGRPOConfig(
        str(root / "grpo"),
        **settings,
        reward_weights=weights if uses_prm else [1.0],
        num_generations=args.num_generations,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=400,
        num_generations_eval=4,
        eval_strategy="steps",
        eval_steps=args.eval_steps,
        max_completion_length=32,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        seed=seed,
        logging_steps=args.eval_steps,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    set_seed(seed)
    policy, tokenizer = load_policy(ModelArguments(model_name_or_path=str(root / "policy")))
    rewards = [AnswerReward("arithmetic")]
    if uses_prm:
        judge = ProcessReward(
            str(root / "prm"),
            answer_how="arithmetic",
            is_well_formed=task.is_well_formed,
            reward_if_malformed=0.0,
            batch_size=256,
        )
        rewards.insert(0, judge)
    trainer = (StepGRPOTrainer if uses_prm else GRPOTrainer)(
        policy,
        rewards,
        args=config,
        train_dataset=task.dataset("train"),
        eval_dataset=task.dataset("test", 400),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    before = trainer.evaluate()
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    evaluations = [before, *(entry for entry in trainer.state.log_history if entry.get("step", 0) > 0)]
    curve = {
        int(entry.get("step", 0)): entry["eval_rewards/answer_reward/mean"]
        for entry in evaluations
        if "eval_rewards/answer_reward/mean" in entry
    }
    return {
        "samples": [step * args.batch_size for step in curve],
        "accuracy": list(curve.values()),
        "seconds": seconds,
    }


def samples_to_reach(curve: dict, accuracy: float) -> float:
    """Samples after which a curve first reaches an accuracy, between two evaluations in proportion; inf if never."""
    points = list(zip(curve["samples"], curve["accuracy"], strict=True))
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if y1 >= accuracy:
            return x0 + (x1 - x0) * max(0.0, (accuracy - y0) / (y1 - y0)) if y1 > y0 else x1
    return np.inf


def final_accuracy(curve: dict) -> float:
    """Mean of the last three evaluations: one alone has a standard error of half a point or more."""
    return float(np.mean(curve["accuracy"][-3:]))


def plot(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True, layout="constrained")
    titles = ["steps alone (dashed: whole completions)", "steps and right answers"]
    for axes, title, mixed in zip(panels, titles, (False, True), strict=True):
        shown = [m for m in METHODS if m == BASELINE or ("+ right answers" in m) == mixed]
        for number, method in enumerate(shown):
            curves = [runs[method] for runs in results.values() if method in runs]
            if not curves:
                continue
            values = 100 * np.array([curve["accuracy"] for curve in curves])
            samples, dash = np.array(curves[0]["samples"]), "--" if method.startswith("outcome") else "-"
            color = "black" if method == BASELINE else plt.cm.tab10(number)
            axes.plot(samples, values.mean(axis=0), dash, color=color, label=method.removesuffix(" + right answers"))
            axes.fill_between(samples, values.min(axis=0), values.max(axis=0), color=color, alpha=0.1, linewidth=0)
        axes.set_title(title)
        axes.set_xlabel("sampled completions")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=9, frameon=False)
    panels[0].set_ylabel("held-out accuracy of a sample (%)")
    figure.suptitle(f"Embedded task, {len(results)} seeds: mean, and lowest to highest seed")
    figure.savefig(path, dpi=100)


def markdown(results: dict) -> str:
    lines = ["| Advantages | Accuracy at the end, seeds | Samples to the outcome's end, share of its samples | Mean |"]
    lines.append("|---|---|---|---|")
    for method in METHODS:
        if not all(method in runs for runs in results.values()):
            continue
        ends, shares = [], []
        for runs in results.values():
            ends.append(f"{100 * final_accuracy(runs[method]):.1f}")
            target = final_accuracy(runs[BASELINE])
            own = samples_to_reach(runs[method], target)
            shares.append(own / samples_to_reach(runs[BASELINE], target))
        texts = ["never" if np.isinf(share) else f"{share:.2f}" for share in shares]
        mean = "-" if np.isinf(shares).any() else f"{np.mean(shares):.2f}"
        lines.append(f"| {method} | {' / '.join(ends)} | {' / '.join(texts)} | {mean} |")
    return "\n".join(lines)


def measurements(results: dict) -> list[Measurement]:
    accuracies, samples, note = [], [], f"{len(results)} seeds"
    for method in METHODS:
        if not all(method in runs and BASELINE in runs for runs in results.values()):
            continue
        ends = [100 * final_accuracy(runs[method]) for runs in results.values()]
        measured = "accuracy at the end, mean of the last three evaluations"
        found = np.mean(ends).item(), "%", min(ends), max(ends), note
        accuracies.append(Measurement("GRPO on steps", measured, "", f"`{method}`", *found))
        if method == BASELINE:
            continue
        shares = []
        for runs in results.values():
            target = final_accuracy(runs[BASELINE])
            shares.append(samples_to_reach(runs[method], target) / samples_to_reach(runs[BASELINE], target))
        reached = [share for share in shares if np.isfinite(share)]
        measured, against = "samples to the accuracy that the baseline ends with", f"`{BASELINE}`"
        if len(reached) == len(shares):
            found = np.mean(shares).item(), "x", min(shares), max(shares), note
        else:
            found = None, "x", None, None, f"not reached on {len(shares) - len(reached)} of {len(shares)} seeds"
        samples.append(Measurement("GRPO on steps", measured, against, f"`{method}`", *found))
    return accuracies + samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/step_grpo"))
    parser.add_argument("--max_steps", type=int, default=240)
    parser.add_argument("--eval_steps", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_generations", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/step_grpo.json"))
    args = parser.parse_args()
    started, files = time.time(), []
    sys.path.insert(0, str(ROOT / "recipes"))
    import stages

    results = {}
    for seed in args.seeds:
        root = args.output_dir / f"seed-{seed}"
        root.mkdir(parents=True, exist_ok=True)
        task = stages.prepare(root, seed).task
        path = root / "results.json"  # a file a seed, so that several processes may share the seeds
        runs = results[seed] = json.loads(path.read_text()) if path.exists() else {}
        files.append(path)
        if runs:
            started = None
        for method in args.methods:
            if method not in runs:
                runs[method] = {**train(method, task, root, seed, args), "origin": origin(NUM_THREADS)}
                path.write_text(json.dumps(runs, indent=2) + "\n")
            print(f"seed {seed}, {method}: {100 * final_accuracy(runs[method]):.1f} %", flush=True)
    print(f"\n{markdown(results)}")
    plot(results, args.output_dir / "step_grpo.png")
    curves = {
        f"seed {seed}": {method: [100 * accuracy for accuracy in run["accuracy"]] for method, run in runs.items()}
        for seed, runs in results.items()
    }
    origins = [run.get("origin") for runs in results.values() for run in runs.values()]
    write_measurements(
        args.output, measurements(results), started, NUM_THREADS, details=curves, date=day_of(files), origins=origins
    )


if __name__ == "__main__":
    torch.set_num_threads(NUM_THREADS)
    main()
