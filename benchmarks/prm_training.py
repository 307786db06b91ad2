"""Training throughput of `ERPRMTrainer` against the `PRMTrainer` of TRL 1.13, the last release that has it.

    python3 -m venv trl113
    trl113/bin/pip install 'trl==1.13.0' 'torch==2.13.0' 'transformers==5.23.0'
    python benchmarks/prm_training.py --trl_python trl113/bin/python
    python benchmarks/prm_training.py --trl_python trl113/bin/python --device cuda --dtype bfloat16 --shape 0.5b

Measured: useful (non-padding) tokens per second from the end of the second optimizer step to the end of the last, so
that start-up, tokenization and warm-up do not count; the loss of every step; the share of padding in the batches; the
peak memory, of the process on a CPU, of torch's allocations on a GPU. There the 7B shape in bfloat16 needs
`--gradient_checkpointing`, and more than the 57 GB of its weights, gradients and AdamW's states.

Equal on both sides: the rows and their order, labels of 0 and 1, the tokenizer, the model (two labels, built on the
device from one config and seed), batch size, `max_length`, optimizer, learning rate, gradient checkpointing (off) and
threads. All else is each trainer's default. TRL pads every batch to its longest row. Ours runs as

- `padded`: the same batches, padded in the same way, so that only the trainers differ;
- `group_by_length`: batches of rows of like length, in another order, so that step losses do not compare. It sorts
  within quarters of the rows, so the more rows, the less padding: 21 % of the default's 256, 3 % of all 3,200. TRL's
  trainer can do this too (a setting of transformers, off by default): `--trl_sampling group_by_length`;
- `padding_free`: the same batches, the rows of each laid end to end without padding. The default of `ERPRMConfig`.

Every side runs in a process of its own. A round runs each side once, in turn forwards and backwards, and a ratio is
taken within a round, so that a slow drift of the machine cancels. Read the ratios alone: tokens per second are of one
machine and one small model. Run nothing beside it: on a busy machine threads wait for each other many times over. The
column "undisturbed" takes each step's least time over the rounds, whose batches are the same, so that what other work
added to some of them drops out. With one thread, processor time suffers least. Writes the measurements to `--output`.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _devices import (
    SHAPES,
    add_device_arguments,
    build_on,
    describe_model,
    kind_of_time,
    peak_memory,
    qwen2_config,
    synchronize,
)
from _measurements import Measurement, over_rounds, write_measurements

ROOT = Path(__file__).resolve().parents[1]
MODES = ("padded", "group_by_length", "padding_free")
NUM_WARMUP_STEPS = 2

HOW_TO_GET_TRL = """\
`--trl_python` must name the Python of an environment with TRL 1.13, got {given}. Make one, with the build of torch
(CPU or CUDA) that trl-erprm runs with, and give its `bin/python`:

    python3 -m venv trl113
    trl113/bin/pip install 'trl==1.13.0' 'torch==2.13.0' 'transformers==5.23.0'"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl_python", type=Path, help="Python of an environment with TRL 1.13")
    parser.add_argument("--ours", nargs="+", choices=MODES, default=list(MODES), help="how ours runs (all three)")
    parser.add_argument("--trl_sampling", choices=["sequential", "group_by_length"], default="sequential")
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--num_rows", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--shape", choices=["llama", *SHAPES], default="llama")
    parser.add_argument("--hidden_size", type=int, default=512, help="of the shape llama; a multiple of 64")
    parser.add_argument("--num_layers", type=int, default=2, help="of the shape llama")
    add_device_arguments(parser)
    parser.add_argument("--gradient_checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("TRL_ERPRM_DATA", ROOT.parent / "shared" / "data")),
        help="folder with bon_gsm8k/candidates.jsonl.gz; where it is absent, synthetic text of like lengths is used",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/prm_training.json"))
    return parser.parse_args()


# Workers: each runs in a process of its own and returns what is written to its result file. What they import is
# imported inside them, since this file runs in two environments.


def prepare(task: dict) -> dict:
    """Rows, tokenizer and config of one seed, saved once for both sides."""
    from _rows import build_tokenizer, llama_config, load_solutions
    from transformers import AutoModelForTokenClassification

    rng = random.Random(task["seed"])
    solutions, kind_of_text = load_solutions(Path(task["data"]), rng)
    rows = [
        {"prompt": prompt, "completions": steps, "labels": [rng.random() < 0.5 for _ in steps]}
        for prompt, steps in solutions[: task["num_rows"]]
    ]
    if len(rows) < task["num_rows"]:
        raise ValueError(f"`--num_rows` is {task['num_rows']}, but there are {len(rows)} solutions.")
    (Path(task["directory"]) / "rows.json").write_text(json.dumps(rows))

    texts = ["\n".join([prompt, *steps]) for prompt, steps in solutions]
    tokenizer = build_tokenizer(texts, vocab_size=8192)
    tokenizer.save_pretrained(task["model"])
    if task["shape"] == "llama":
        config = llama_config(tokenizer, task["hidden_size"], task["num_layers"])
    else:
        ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = qwen2_config(task["shape"], num_labels=2, **ends)
    config.save_pretrained(task["model"])
    model = build_on(AutoModelForTokenClassification, config, "meta", task["dtype"], task["seed"])
    num_tokens = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    return {
        "text": kind_of_text,
        "num_parameters": model.num_parameters(),
        "characters_per_token": sum(map(len, texts)) / sum(num_tokens),
        "median_tokens": statistics.median(num_tokens),
        "max_tokens": max(num_tokens),
    }


def load(task: dict) -> tuple:
    """What both trainers are given: the model, the rows, the tokenizer, and the arguments they share."""
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedTokenizerFast

    config = AutoConfig.from_pretrained(task["model"])
    model = build_on(AutoModelForTokenClassification, config, task["device"], task["dtype"], task["seed"])
    rows = Dataset.from_list(json.loads((Path(task["directory"]) / "rows.json").read_text()))
    arguments = {
        "output_dir": task["directory"] + "/trainer",
        "per_device_train_batch_size": task["batch_size"],
        "num_train_epochs": 1,
        "max_length": task["max_length"],
        "learning_rate": 1e-4,
        "gradient_checkpointing": task["gradient_checkpointing"],
        "use_cpu": task["device"] == "cpu",
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": task["seed"],
    }
    return model, rows, PreTrainedTokenizerFast.from_pretrained(task["model"]), arguments


def trl(task: dict) -> dict:
    from trl.experimental.prm import PRMConfig, PRMTrainer

    model, rows, tokenizer, arguments = load(task)
    config = PRMConfig(**arguments, train_sampling_strategy=task["trl_sampling"])
    return train(PRMTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer))


def ours(task: dict) -> dict:
    from trl_erprm import ERPRMConfig, ERPRMTrainer

    model, rows, tokenizer, arguments = load(task)
    config = ERPRMConfig(
        **arguments,
        num_labels=2,
        head="token_classification",
        format="trl",
        padding_free=task["mode"] == "padding_free",
        train_sampling_strategy="group_by_length" if task["mode"] == "group_by_length" else "sequential",
    )
    return train(ERPRMTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer))


def train(trainer) -> dict:
    """Trains, with the time of each step's end and the size of each batch noted."""
    import torch
    from transformers import TrainerCallback

    step_ends, cpu_ends, num_useful, num_in_batch = [], [], [], []
    device = str(trainer.model.device)

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            synchronize(device)
            step_ends.append(time.perf_counter())
            cpu_ends.append(time.process_time())

    collate = trainer.data_collator

    def counted(examples):
        num_useful.append(sum(len(example["input_ids"]) for example in examples))
        batch = collate(examples)
        num_in_batch.append(batch["input_ids"].numel())
        return batch

    trainer.data_collator = counted
    trainer.add_callback(Clock())
    trainer.train()
    assert len(step_ends) == len(num_useful), f"{len(step_ends)} steps, but {len(num_useful)} batches"
    assert trainer.model.is_gradient_checkpointing == trainer.args.gradient_checkpointing
    step_ends = step_ends[NUM_WARMUP_STEPS - 1 :]
    seconds, cpu_seconds = step_ends[-1] - step_ends[0], cpu_ends[-1] - cpu_ends[NUM_WARMUP_STEPS - 1]
    return {
        "tokens_per_second": sum(num_useful[NUM_WARMUP_STEPS:]) / seconds,
        "tokens_per_cpu_second": sum(num_useful[NUM_WARMUP_STEPS:]) / cpu_seconds,
        "seconds": seconds,
        "step_seconds": [end - start for start, end in itertools.pairwise(step_ends)],
        "num_useful_tokens": num_useful,
        "num_batch_tokens": num_in_batch,
        "padding": 1 - sum(num_useful) / sum(num_in_batch),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "peak_memory_mb": peak_memory(device) / 2**20,
        "attention": trainer.model.config._attn_implementation,
        "num_threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")},
    }


WORKERS = {"prepare": prepare, "trl": trl, "ours": ours}


# The benchmark


def run_worker(name: str, python: str | Path, task: dict, **changes) -> dict:
    """Runs a worker under `python`; its output is shown only where it fails."""
    result, log = Path(task["directory"]) / "result.json", Path(task["directory"]) / "log.txt"
    num_threads = str(task["num_threads"])
    environment = os.environ | {"OMP_NUM_THREADS": num_threads, "MKL_NUM_THREADS": num_threads}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [str(python), __file__, "--worker", name, json.dumps({**task, **changes}), str(result)]
    with open(log, "w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        raise SystemExit(f"{log.read_text()[-5000:]}\nThe worker {name!r} ended with exit code {code}; see above.")
    return json.loads(result.read_text())


def main() -> None:
    args = parse_arguments()
    if args.trl_python is None or not args.trl_python.exists():
        raise SystemExit(HOW_TO_GET_TRL.format(given=args.trl_python))
    started = time.time()
    settings = {key: value for key, value in vars(args).items() if key not in ("trl_python", "output", "data")}
    with tempfile.TemporaryDirectory() as directory:
        task = {**settings, "data": str(args.data), "directory": directory, "model": directory + "/model"}
        facts = run_worker("prepare", sys.executable, task)
        print(f"{args.num_rows} rows of {facts['text']}, {facts['num_parameters'] / 1e6:.1f}M parameters", flush=True)
        sides, rounds = ["trl", *args.ours], []
        for number in range(args.num_rounds):
            rounds.append({})
            for side in sides if number % 2 == 0 else sides[::-1]:
                worker = ("trl", args.trl_python) if side == "trl" else ("ours", sys.executable)
                result = rounds[-1][side] = run_worker(*worker, task, mode=side)
                speed = f"{result['tokens_per_second']:.0f} useful tokens/s in {result['seconds']:.0f} s"
                print(f"round {number + 1}, {side}: {speed}", flush=True)
    report = {"settings": settings, "facts": facts, "rounds": rounds}
    print_report(report)
    write_measurements(args.output, measurements(report), started, args.num_threads, args.device)


def measurements(report: dict) -> list[Measurement]:
    settings, facts, rounds = report["settings"], report["facts"], report["rounds"]
    peer = f"`PRMTrainer` of TRL {rounds[0]['trl']['versions']['trl']}"
    model, rows = describe_model(facts["num_parameters"], settings["dtype"]), []
    kind = kind_of_time(settings["device"], settings["num_threads"])
    speed = "tokens_per_cpu_second" if kind == "processor time" else "tokens_per_second"

    def add(measured: str, against: str, side: str, values: list[float], unit: str) -> None:
        found = over_rounds(values, statistics.median(values))
        setting = f"`{side}`, {settings['num_rows']} rows in batches of {settings['batch_size']}"
        rows.append(Measurement("Training a PRM", f"{measured}; {model}", against, setting, unit=unit, **found))

    for measured, key in ((f"useful tokens/s by {kind}", speed), ("peak memory", "peak_memory_mb")):
        for side in settings["ours"]:
            add(measured, peer, side, [results[side][key] / results["trl"][key] for results in rounds], "x")
    for side in settings["ours"]:
        if rounds[0][side]["num_useful_tokens"] == rounds[0]["trl"]["num_useful_tokens"]:  # the same batches
            gaps = [loss_gap(results[side], results["trl"]) for results in rounds]
            add("largest difference of a step's loss", peer, side, gaps, "")
    for side in settings["ours"]:
        of_peer = f"{peer}: {100 * rounds[0]['trl']['padding']:.1f} %"
        add("padding in the batches", of_peer, side, [100 * rounds[0][side]["padding"]], "%")
    return rows


def loss_gap(run: dict, other: dict) -> float:
    return max(abs(a - b) for a, b in zip(run["losses"], other["losses"], strict=True))


def print_report(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    settings, facts, rounds = report["settings"], report["facts"], report["rounds"]
    table = Table(title="Ratio to TRL's PRMTrainer in useful tokens per second: median over rounds (each round)")
    for column in ("side", "ratio", "undisturbed", "tokens/s", "padding", "mean loss", "max loss gap", "peak MB"):
        table.add_column(column, justify="left" if column == "side" else "right")

    undisturbed = {}  # useful tokens per second, from the least time of each step
    for side in rounds[0]:
        least = [min(times) for times in zip(*(results[side]["step_seconds"] for results in rounds), strict=True)]
        undisturbed[side] = sum(rounds[0][side]["num_useful_tokens"][NUM_WARMUP_STEPS:]) / sum(least)

    for side in rounds[0]:
        runs = [results[side] for results in rounds]
        ratios = [results[side]["tokens_per_second"] / results["trl"]["tokens_per_second"] for results in rounds]
        # Step by step only where both sides saw the same batches.
        is_same_order = runs[0]["num_useful_tokens"] == rounds[0]["trl"]["num_useful_tokens"]
        gap = max(loss_gap(results[side], results["trl"]) for results in rounds)
        table.add_row(
            f"TRL, {settings['trl_sampling']}" if side == "trl" else f"ours, {side}",
            f"{statistics.median(ratios):.2f} ({' '.join(f'{ratio:.2f}' for ratio in ratios)})",
            f"{undisturbed[side] / undisturbed['trl']:.2f}",
            f"{statistics.median(run['tokens_per_second'] for run in runs):.0f}",
            f"{100 * runs[0]['padding']:.1f} %",
            f"{statistics.mean(runs[0]['losses']):.4f}",
            f"{gap:.1e}" if is_same_order else "other order",
            f"{statistics.median(run['peak_memory_mb'] for run in runs):.0f}",
        )
    Console(width=125).print(table)
    for name, side in (("TRL's", "trl"), ("Our", settings["ours"][0])):
        versions = rounds[0][side]["versions"].items()
        print(f"{name} environment: " + ", ".join(f"{package} {version}" for package, version in versions))
    print(
        f"{settings['num_threads']} threads, {settings['device']}; {facts['num_parameters'] / 1e6:.1f}M parameters, "
        f"{settings['dtype']}, batches of {settings['batch_size']} of {settings['num_rows']} rows "
        f"({facts['text']}: median {facts['median_tokens']:.0f} and at most {facts['max_tokens']} tokens, "
        f"{facts['characters_per_token']:.1f} characters a token)"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        name, task, result = sys.argv[2:]
        Path(result).write_text(json.dumps(WORKERS[name](json.loads(task))))
    else:
        main()
