"""Rejection-sampling fine-tuning on the embedded task: what selection is worth, what a run costs beside generation.

    python benchmarks/rft.py --study --seeds 0 1 2      # ER-PRM against an outcome model, chance and right answers
    python benchmarks/rft.py --overhead                 # shares of three iterations' processor time
    python benchmarks/rft.py --memory                   # peak memory with 1,000 and with 20,000 prompts

The study prepares a seed as `recipes/rft.py` does (policy, labels, ER-PRM), trains an outcome model on the same labels
(the last step alone), and runs the recipe's three iterations once for each way to select. What is there already is
reused, so an interrupted study continues; it writes `results.json` and `results.md`. About 10 minutes a seed.

Each part writes its measurements to a file of its own: `--output` with the part's name behind its own.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml
from _devices import peak_memory
from _measurements import Measurement, day_of, of_part, origin, write_measurements
from datasets import Dataset, disable_progress_bars

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import prm as prm_recipe  # noqa: E402
import stages  # noqa: E402

from trl_erprm import ProcessReward, RFTConfig, RFTTrainer  # noqa: E402
from trl_erprm.evaluation.best_of_n import sampled_accuracy  # noqa: E402
from trl_erprm.manifest import JsonlStore, content_hash  # noqa: E402
from trl_erprm.policy import rft_trainer  # noqa: E402
from trl_erprm.policy.rft_scoring import Scorers  # noqa: E402
from trl_erprm.rollout import Completion  # noqa: E402
from trl_erprm.verify import extract_answer, verify_answer  # noqa: E402

BENCHMARK = "Rejection-sampling fine-tuning"
NUM_THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
HOW = "arithmetic"
SCORING_BATCH_SIZE = yaml.safe_load((stages.CONFIGS / "rft.yaml").read_text())["scoring_batch_size"]
# Ways to select: which scores, how aggregated, and the rule.
ARMS = {
    "ER-PRM": ("prm", "min", "best"),
    "outcome model": ("outcome", "last", "best"),
    "random": (None, None, "best"),
    "right and best by ER-PRM": ("prm", "min", "best_correct"),
    "all right answers": ("prm", "min", "correct"),
}


class RandomReward:
    """Chance, among the completions that the others may choose from: well formed, with an answer."""

    __name__ = "random"

    def __init__(self, is_well_formed, seed: int):
        self.is_well_formed, self.seed = is_well_formed, seed

    def __call__(self, prompts, completions, **kwargs):
        seen = collections.Counter()
        rewards = []
        for prompt, text in zip(prompts, completions, strict=True):
            seen[prompt] += 1
            steps = text.splitlines()
            is_fit = steps and extract_answer(text, HOW) is not None and self.is_well_formed(prompt, steps)
            number = int(content_hash(self.seed, prompt, text, seen[prompt])[:8], 16) / 16**8
            rewards.append(number if is_fit else None)
        return rewards


def config(seed: int, output_dir: Path, **changes) -> RFTConfig:
    """That of the quickstart."""
    options = yaml.safe_load((stages.CONFIGS / "rft.yaml").read_text())
    known = RFTConfig.__dataclass_fields__
    options = {name: value for name, value in options.items() if name in known}
    return RFTConfig(
        **{**options, "seed": seed, "output_dir": str(output_dir), "use_cpu": True, "disable_tqdm": True, **changes}
    )


def prepare(root: Path, seed: int) -> stages.PreparedTask:
    prepared = stages.prepare(root, seed)
    prm_recipe.main(
        ["--config", str(stages.CONFIGS / "prm.yaml"), "--seed", str(seed), "--model_name_or_path", str(root / "base")]
        + ["--dataset_path", str(prepared.labels_dir / "labels.jsonl"), "--output_dir", str(root / "outcome")]
        + ["--train_on_last_step_only", "true"]
    )
    return prepared


def run_arm(prepared: stages.PreparedTask, root: Path, seed: int, arm: str) -> list[dict]:
    model, aggregation, rule = ARMS[arm]
    task, directory = prepared.task, arm_dir(root, arm)
    if not directory.exists():  # what a later run takes up says where it was made
        directory.mkdir(parents=True)
        (directory / "origin.json").write_text(json.dumps(origin(NUM_THREADS)) + "\n")
    if model is None:
        reward = RandomReward(task.is_well_formed, seed)
    else:
        reward = ProcessReward(
            root / model,
            aggregation=aggregation,
            answer_how=HOW,
            is_well_formed=task.is_well_formed,
            batch_size=SCORING_BATCH_SIZE,
        )
    trainer = RFTTrainer(
        str(prepared.policy_dir),
        reward_funcs=reward,
        args=config(seed, directory, selection=rule, keep_models=1),
        train_dataset=task.dataset("train"),
        eval_dataset=task.dataset("test", 400),
    )
    return trainer.train()


def arm_dir(root: Path, arm: str) -> Path:
    return root / f"rft-{arm.replace(' ', '-')}"


def stored_origin(directory: Path) -> dict | None:
    """Machine and versions of an arm's run; none where it was made before they were stored."""
    path = directory / "origin.json"
    return json.loads(path.read_text()) if path.exists() else None


def verdicts(directory: Path, references: list[str]) -> list[list[bool]]:
    """Whether each held-out sample of an iteration is right, by problem."""
    records = sorted(JsonlStore(directory / "eval_sampled-0.jsonl"), key=lambda record: record["index"])
    return [[verify_answer(t, references[r["index"]], HOW) is True for t in r["completions"]] for r in records]


def study(args: argparse.Namespace) -> None:
    started, results, pooled, origins = time.time(), [], collections.defaultdict(list), []
    if any(args.output_dir.glob("seed-*/rft-*/iteration-*")):
        started = None
    for seed in args.seeds:
        root = args.output_dir / f"seed-{seed}"
        prepared = prepare(root, seed)
        references = list(prepared.task.dataset("test", 400)["answer"])
        for arm in ARMS:
            history = run_arm(prepared, root, seed, arm)
            results.append({"seed": seed, "arm": arm, "history": history})
            origins.append(stored_origin(arm_dir(root, arm)))
            last = arm_dir(root, arm) / f"iteration-{len(history) - 1}"
            pooled[arm] += verdicts(last, references)
            write_results(args.output_dir, results, pooled)
    print((args.output_dir / "results.md").read_text())
    rows = []
    for arm, correct in pooled.items():
        estimate = sampled_accuracy(correct)
        values = [100 * value for value in (estimate.mean, estimate.low, estimate.high)]
        measured, note = "accuracy of a sample after three iterations", f"95 %, seeds {_joined(args.seeds)}"
        of_start = [100 * result["history"][0]["sampled"] for result in results if result["arm"] == arm]
        against = f"at the start, {sum(of_start) / len(of_start):.1f} %"
        found = values[0], "%", *values[1:], note
        rows.append(Measurement(BENCHMARK, measured, against, f"selected by: {arm}", *found))
    write_measurements(
        of_part(args.output, "study"),
        rows,
        started,
        NUM_THREADS,
        details=[{**result, "history": _kept(result)} for result in results],
        date=day_of(args.output_dir.glob("seed-*/rft-*/iteration-*/metrics.json")),
        origins=origins,
    )


def _joined(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def _kept(result: dict) -> list:
    """What goes into the file of measurements: of the ER-PRM all that the README shows, else the accuracies."""
    names = ("greedy", "sampled", "sampled_low", "sampled_high", "best_of_n", "majority", "oracle")
    names += ("entropy", "distinct_share")
    if result["arm"] == "ER-PRM":
        return [{name: row[name] for name in names} for row in result["history"]]
    return [row["sampled"] for row in result["history"]]


def write_results(directory: Path, results: list[dict], pooled: dict) -> None:
    (directory / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    seeds = sorted({result["seed"] for result in results})
    lines = ["| Selected by | " + " | ".join(f"seed {seed}" for seed in seeds) + " | all [95 %] |"]
    lines.append("|---|" + "---|" * (len(seeds) + 1))
    for arm, correct in pooled.items():
        cells = []
        for seed in seeds:
            history = [r["history"] for r in results if (r["seed"], r["arm"]) == (seed, arm)]
            path = " → ".join(f"{100 * row['sampled']:.1f}" for row in history[0]) if history else ""
            cells.append(path)
        estimate = sampled_accuracy(correct)
        cells.append(f"{100 * estimate.mean:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    (directory / "results.md").write_text("\n".join(lines) + "\n")


# What a run costs beside generation


class Clock:
    """Processor seconds spent in functions, by name; a function inside another counts for itself, too."""

    def __init__(self):
        self.seconds = collections.Counter()

    def measure(self, owner: object, name: str, label: str) -> None:
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.process_time()
            result = function(*args, **kwargs)
            if not isinstance(result, list | dict | tuple | type(None)):
                result = list(result)  # a generator works while it is read
            self.seconds[label] += time.process_time() - start
            return result

        setattr(owner, name, timed)


def overhead(args: argparse.Namespace) -> None:
    root = args.output_dir / f"seed-{args.seeds[0]}"
    prepared = stages.prepare(root, args.seeds[0])
    started = time.time()
    task, clock = prepared.task, Clock()
    clock.measure(rft_trainer.TransformersEngine, "generate", "generation")
    clock.measure(Scorers, "score", "scoring")
    clock.measure(rft_trainer, "write_selection", "selection")
    clock.measure(RFTTrainer, "_sample", "sampling and scoring, whole")
    clock.measure(RFTTrainer, "_fine_tune", "fine-tuning")
    clock.measure(RFTTrainer, "_evaluate_policy", "evaluation, whole")
    clock.measure(RFTTrainer, "_drift", "drift")
    reward = ProcessReward(
        root / "prm", answer_how=HOW, is_well_formed=task.is_well_formed, batch_size=SCORING_BATCH_SIZE
    )
    output_dir = args.output_dir / f"overhead-{int(time.time())}"
    trainer = RFTTrainer(
        str(prepared.policy_dir),
        reward_funcs=reward,
        args=config(args.seeds[0], output_dir, num_iterations=3),
        train_dataset=task.dataset("train"),
    )
    start = time.process_time()
    trainer.train()
    whole = time.process_time() - start
    seconds = clock.seconds
    beside = seconds["sampling and scoring, whole"] + seconds["selection"] - seconds["generation"]
    for label in ("generation", "scoring", "selection", "fine-tuning"):
        print(f"{label:42} {seconds[label]:7.2f} s  {100 * seconds[label] / whole:5.1f} %")
    print(f"{'three iterations, without evaluation':42} {whole:7.2f} s")
    print(f"{'sampling, scoring, selection - generation':42} {beside:7.2f} s  {100 * beside / whole:5.1f} %")
    without = beside - seconds["scoring"]
    print(f"{'  of which not the PRM itself':42} {without:7.2f} s  {100 * without / whole:5.1f} %")
    shares = {label: seconds[label] for label in ("generation", "scoring", "fine-tuning")}
    shares["sampling, scoring, selection, without generation"] = beside
    shares["the same without the PRM's passes"] = without
    of_whole = "three iterations, without evaluation"
    rows = [
        Measurement(BENCHMARK, "share of processor time", of_whole, label, 100 * value / whole, "%")
        for label, value in shares.items()
    ]
    rows.append(Measurement(BENCHMARK, "processor time", "", of_whole, whole, "s"))
    write_measurements(of_part(args.output, "overhead"), rows, started, NUM_THREADS)


class StubEngine:
    """Completions of 400 characters, made from nothing."""

    def __init__(self, model, tokenizer, batch_size):
        pass

    def generate(self, prefixes, num_samples, options, first_sample=0):
        return [[Completion(f"{i}+0={i}\n" * 60 + f"#{i}", 400, "stop") for i in range(num_samples)] for _ in prefixes]


def memory_child(num_prompts: int, directory: Path, policy: str) -> None:
    """Samples, scores and selects; prints the growth of the peak."""
    disable_progress_bars()
    rft_trainer.TransformersEngine = StubEngine
    rows = Dataset.from_dict({"prompt": [f"{i}\n" for i in range(num_prompts)]})
    rows.to_parquet(directory / "prompts.parquet")
    rows = Dataset.from_parquet(str(directory / "prompts.parquet"), cache_dir=str(directory / "cache"))
    RFTTrainer._fine_tune = lambda self, iteration, directory, before: {"training_loss": 0.0, "num_steps": 0}
    RFTTrainer._release = lambda self: None
    trainer = RFTTrainer(
        policy,
        reward_funcs=lambda completions, **_: [float(len(c)) for c in completions],
        args=config(0, directory / "run", num_iterations=1, num_samples=16, prompts_per_iteration=None),
        train_dataset=rows,
    )
    before = peak_memory("cpu")
    start = time.perf_counter()
    trainer.train()
    after, seconds = peak_memory("cpu"), time.perf_counter() - start
    print(json.dumps({"before": before / 2**20, "after": after / 2**20, "seconds": seconds}))


def memory(args: argparse.Namespace) -> None:
    policy = stages.prepare(args.output_dir / f"seed-{args.seeds[0]}", args.seeds[0]).policy_dir
    started, rows = time.time(), []
    for num_prompts in (1_000, 20_000):
        directory = args.output_dir / f"memory-{num_prompts}-{int(time.time())}"
        directory.mkdir(parents=True)
        command = [sys.executable, __file__, "--memory_child", str(num_prompts), str(directory), str(policy)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{num_prompts:6} prompts x 16: peak {found['before']:.0f} MiB before, {found['after']:.0f} MiB after, "
            f"{found['seconds']:.0f} s"
        )
        setting = f"{num_prompts:,} prompts x 16, stub engine, no fine-tuning"
        rows.append(Measurement(BENCHMARK, "peak memory of an iteration", "", setting, found["after"], "MiB"))
    write_measurements(of_part(args.output, "memory"), rows, started, NUM_THREADS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/rft_study"))
    for name in ("study", "overhead", "memory"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/rft.json"))
    parser.add_argument("--memory_child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_child:
        num_prompts, directory, policy = args.memory_child
        memory_child(int(num_prompts), Path(directory), policy)
    elif not (args.study or args.overhead or args.memory):
        parser.error("nothing to do: give one or more of --study, --overhead and --memory.")
    for name, function in (("study", study), ("overhead", overhead), ("memory", memory)):
        if getattr(args, name):
            function(args)


if __name__ == "__main__":
    main()
