"""Speed and memory of `ProcessRewardModel.score` with a causal head.

    python benchmarks/prm_scoring.py [--parts reference sharing scale]
    python benchmarks/prm_scoring.py --device cuda --dtype bfloat16 --shape 7b --num_solutions 512

- `reference`: completions per second, and peak memory, against scoring as reference code does it: batches of solutions
  in the order given, padded on the right, with an attention mask, and at every token a softmax over the vocabulary in
  float32, of which two columns are kept. Solutions come prompt by prompt, and shuffled. Scores must be the same.
- `sharing`: 32 candidates of one prompt, with `share_prompts` and without, for prompts of three lengths.
- `scale`: time per completion and peak memory from 1,000 to 16,000 completions, with a small model.

The model has the shape of Qwen2.5-0.5B or 7B (with fewer layers, by `--num_layers`, the vocabulary's share and with it
the ratio is larger) and random weights. The tokenizer is built from the solutions: its ids are the first ones of the
model's vocabulary. Each measurement runs in a process of its own. Peak memory is the operating system's figure for the
process, on a GPU torch's for its allocations, also given above what was held when the model was loaded. `--num_rounds`
repeats everything; the table has medians. The defaults take about half an hour with 2 threads. Run nothing beside it;
where that cannot be had, read the ratio of processor time, with `--num_threads 1`, since threads that wait for each
other count as busy. On a GPU read wall time: the processor only waits there. Each part writes its measurements to a
file of its own: `--output` with the part's name behind its own.
"""

import argparse
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
    describe_layers,
    describe_model,
    kind_of_time,
    memory_held,
    peak_memory,
    qwen2_config,
    synchronize,
)
from _measurements import Measurement, of_part, over_rounds, write_measurements

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("reference", "sharing", "scale")
NUM_CANDIDATES = 32
PROMPT_LENGTHS = (64, 256, 1024)
NUM_COMPLETIONS = (1000, 2000, 4000, 8000, 16000)
LARGEST_DIFFERENCE = 1e-4  # of scores that shall be the same, in float32; less precise weights round as they may


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--num_rounds", type=int, default=1)
    parser.add_argument("--num_solutions", type=int, default=96, help="of the part `reference`; a multiple of 32")
    parser.add_argument("--batch_size", type=int, default=16, help="on both sides")
    parser.add_argument("--shape", choices=list(SHAPES), default="0.5b")
    parser.add_argument("--num_layers", type=int, help="instead of the shape's")
    add_device_arguments(parser)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("TRL_ERPRM_DATA", ROOT.parent / "shared" / "data")),
        help="folder with bon_gsm8k/candidates.jsonl.gz; where it is absent, synthetic text of like lengths is used",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/prm_scoring.json"))
    args = parser.parse_args()
    of_shape = SHAPES[args.shape]["num_hidden_layers"]
    if args.num_layers is not None and not 1 <= args.num_layers <= of_shape:
        parser.error(f"--num_layers must be from 1 to {of_shape}, those of {args.shape}, got {args.num_layers}.")
    if args.num_solutions < NUM_CANDIDATES or args.num_solutions % NUM_CANDIDATES:
        parser.error(
            f"--num_solutions must be a multiple of {NUM_CANDIDATES}, the solutions of a prompt, got "
            f"{args.num_solutions}."
        )
    return args


# Workers: each runs in a process of its own and returns what is written to its result file.


def prepare(task: dict) -> dict:
    """Solutions, prompt by prompt, and their tokenizer."""
    from _rows import build_tokenizer, load_solutions

    from trl_erprm.prm.formats import MATH_SHEPHERD

    solutions, kind_of_text = load_solutions(Path(task["data"]), random.Random(task["seed"]))
    by_prompt: dict[str, list[list[str]]] = {}
    for prompt, steps in solutions:
        by_prompt.setdefault(prompt, []).append(steps)
    if len(by_prompt) == len(solutions):  # synthetic text: 32 solutions for each of some prompts
        prompts = list(by_prompt)
        by_prompt = {prompts[k]: [s for _, s in solutions[k : k + NUM_CANDIDATES]] for k in range(0, len(prompts), 32)}
    rows = [(prompt, steps) for prompt, of_prompt in by_prompt.items() for steps in of_prompt]
    (Path(task["directory"]) / "rows.json").write_text(json.dumps(rows))

    texts = [MATH_SHEPHERD.render(prompt, steps) for prompt, steps in rows]
    tokenizer = build_tokenizer(texts, 8192)
    tokenizer.save_pretrained(task["directory"])
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    return {
        "text": kind_of_text,
        "vocabulary_of_tokenizer": len(tokenizer),
        "median_tokens": statistics.median(lengths),
        "max_tokens": max(lengths),
        "mean_prompt_tokens": statistics.mean(len(ids) for ids in tokenizer(list(by_prompt))["input_ids"]),
    }


def load_prm(task: dict, shape: str | None = None):
    """A model of random weights, the same in every process, on its device; `shape` instead of the one asked for."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from trl_erprm import ProcessRewardModel

    tokenizer = PreTrainedTokenizerFast.from_pretrained(task["directory"])
    changes = {"num_hidden_layers": task["num_layers"]} if task["num_layers"] is not None and shape is None else {}
    config = qwen2_config(shape or task["shape"], **changes)
    model = build_on(AutoModelForCausalLM, config, task["device"], task["dtype"], task["seed"])
    prm = ProcessRewardModel(model, tokenizer, "math-shepherd")
    with torch.no_grad():  # scores that spread over (0, 1), so that a difference would show
        label_ids = list(prm.format.label_token_ids(tokenizer))
        rows = 0.05 * torch.randn(2, model.config.hidden_size)
        model.lm_head.weight[label_ids] = rows.to(model.lm_head.weight)
    return prm


def load_rows(task: dict) -> list[tuple[str, list[str]]]:
    return json.loads((Path(task["directory"]) / "rows.json").read_text())


def reference_scores(prm, prompts: list[str], steps: list[list[str]], batch_size: int) -> list[list[float]]:
    """What reference code does, batch by batch, from the same token ids."""
    import torch

    encoded = prm.format.encode_batch(prm.tokenizer, prompts, steps)
    positive, negative = prm.format.label_token_ids(prm.tokenizer)
    scores = []
    for start in range(0, len(encoded), batch_size):
        rows = encoded[start : start + batch_size]
        longest = max(len(row.input_ids) for row in rows)
        pad = prm.tokenizer.pad_token_id
        inputs = {
            "input_ids": torch.tensor(
                [row.input_ids + [pad] * (longest - len(row.input_ids)) for row in rows], device=prm.device
            ),
            "attention_mask": torch.tensor(
                [[1] * len(row.input_ids) + [0] * (longest - len(row.input_ids)) for row in rows], device=prm.device
            ),
        }
        with torch.no_grad():
            probabilities = prm.model(**inputs).logits.float().softmax(-1)[:, :, [positive, negative]].cpu()
        for of_row, row in zip(probabilities, rows, strict=True):
            good, bad = of_row[row.step_ends].unbind(-1)
            scores.append((good / (good + bad)).tolist())
    return scores


def measure(score, prm, num_completions: int) -> dict:
    """Time and memory of a call that scores. A GPU is warmed up by a call before, a CPU is not."""
    device = str(prm.device)
    if device != "cpu":
        score()
    loaded = memory_held(device)
    synchronize(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    scores = score()
    synchronize(device)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = peak_memory(device)
    return {
        "num_parameters": prm.model.num_parameters(),
        "num_layers": prm.model.config.num_hidden_layers,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "completions_per_second": num_completions / seconds,
        "peak_mb": peak / 2**20,
        "above_model_mb": (peak - loaded) / 2**20,
        "scores": scores,
    }


def score_solutions(task: dict) -> dict:
    """The part `reference`: one side, with one order of the solutions."""
    prm, rows = load_prm(task), load_rows(task)[: task["num_solutions"]]
    if task["order"] == "shuffled":
        random.Random(task["seed"]).shuffle(rows)
    prompts, steps = [prompt for prompt, _ in rows], [of_row for _, of_row in rows]
    if task["side"] == "reference":
        result = measure(lambda: reference_scores(prm, prompts, steps, task["batch_size"]), prm, len(rows))
    else:
        share = {"ours": None, "ours, no sharing": False}[task["side"]]
        options = {"batch_size": task["batch_size"], "share_prompts": share}
        result = measure(lambda: prm.score(prompts, steps, **options), prm, len(rows))
    return result


def score_candidates(task: dict) -> dict:
    """The part `sharing`: candidates of one prompt, which other problems' texts make as long as asked."""
    prm, rows = load_prm(task), load_rows(task)
    steps = [of_row for _, of_row in rows[:NUM_CANDIDATES]]
    problems = list(dict.fromkeys(prompt for prompt, _ in rows))
    words = " ".join([*problems[1:], problems[0]]).split(" ")
    start = len(words)
    while len(prm.tokenizer(" ".join(words[start:]))["input_ids"]) < task["prompt_length"]:
        start -= 1
    prompts = [" ".join(words[start:])] * len(steps)
    options = {"batch_size": task["batch_size"], "share_prompts": task["share_prompts"]}
    return measure(lambda: prm.score(prompts, steps, **options), prm, len(steps))


def score_many(task: dict) -> dict:
    """The part `scale`: the same solutions again and again, each time in another order."""
    prm = load_prm(task, shape="small")
    draw, rows, chosen = random.Random(task["seed"]), load_rows(task), []
    while len(chosen) < task["num_completions"]:
        chosen += draw.sample(rows, len(rows))
    chosen = chosen[: task["num_completions"]]
    prompts, steps = [prompt for prompt, _ in chosen], [of_row for _, of_row in chosen]
    prm.score(prompts[:100], steps[:100])  # warm: what a first call allocates for good is no part of the growth
    result = measure(lambda: prm.score(prompts, steps), prm, len(chosen))
    return {key: value for key, value in result.items() if key != "scores"}


WORKERS = {
    "prepare": prepare,
    "score_solutions": score_solutions,
    "score_candidates": score_candidates,
    "score_many": score_many,
}


# The benchmark


def run_worker(name: str, task: dict, **changes) -> dict:
    """Runs a worker; its output is shown only where it fails."""
    result, log = Path(task["directory"]) / "result.json", Path(task["directory"]) / "log.txt"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(task["num_threads"]),
        "MKL_NUM_THREADS": str(task["num_threads"]),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, __file__, "--worker", name, json.dumps({**task, **changes}), str(result)]
    with open(log, "w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        raise SystemExit(f"{log.read_text()[-5000:]}\nThe worker {name!r} ended with exit code {code}; see above.")
    return json.loads(result.read_text())


def largest_difference(scores: list[list[float]], others: list[list[float]]) -> float:
    return max(abs(a - b) for one, other in zip(scores, others, strict=True) for a, b in zip(one, other, strict=True))


def check_difference(task: dict, difference: float, of_what: str) -> None:
    assert task["dtype"] != "float32" or difference < LARGEST_DIFFERENCE, f"{of_what}: scores differ by {difference}"


def run_reference(task: dict) -> list[dict]:
    runs = []
    for order, sides in (
        ("prompt by prompt", ("reference", "ours", "ours, no sharing")),
        ("shuffled", ("reference", "ours, no sharing")),
    ):
        of_order = {}
        for side in sides:
            of_order[side] = run_worker("score_solutions", task, order=order, side=side)
            print(f"{order}, {side}: {of_order[side]['completions_per_second']:.3f} completions/s", flush=True)
        expected = of_order["reference"]["scores"]
        for side, run in of_order.items():
            values = sum(scores := run.pop("scores"), [])
            difference = largest_difference(scores, expected)
            check_difference(task, difference, f"{side}, {order}")
            spread = statistics.stdev(values)
            runs.append({"order": order, "side": side, **run, "difference": difference, "spread": spread})
    return runs


def run_sharing(task: dict) -> list[dict]:
    runs = []
    for length in PROMPT_LENGTHS:
        of_length = {}
        for share, name in ((False, "off"), (True, "on")):
            of_length[name] = run_worker("score_candidates", task, prompt_length=length, share_prompts=share)
            print(
                f"{length} tokens, {name}: {of_length[name]['completions_per_second']:.3f} completions/s", flush=True
            )
        expected = of_length["off"]["scores"]
        for name, run in of_length.items():
            difference = largest_difference(run.pop("scores"), expected)
            check_difference(task, difference, f"{length} tokens")
            runs.append({"prompt_length": length, "sharing": name, **run, "difference": difference})
    return runs


def run_scale(task: dict) -> list[dict]:
    runs = []
    for number in NUM_COMPLETIONS:
        runs.append({"num_completions": number, **run_worker("score_many", task, num_completions=number)})
        print(f"{number} completions: {runs[-1]['seconds']:.1f} s", flush=True)
    return runs


RUN_PART = {"reference": run_reference, "sharing": run_sharing, "scale": run_scale}


def main() -> None:
    args = parse_arguments()
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "data")}
    with tempfile.TemporaryDirectory() as directory:
        task = {**settings, "data": str(args.data), "directory": directory}
        facts = run_worker("prepare", task)
        results = {}
        for part in args.parts:
            started = time.time()
            results[part] = [RUN_PART[part](task) for _ in range(args.num_rounds)]
            rows = ROWS_OF_PART[part](results[part], args)
            write_measurements(of_part(args.output, part), rows, started, args.num_threads, args.device)
    print_report({"settings": settings, "facts": facts, "results": results})


# Measurements


def seconds_of(run: dict, args: argparse.Namespace) -> float:
    return run["cpu_seconds" if kind_of_time(args.device, args.num_threads) == "processor time" else "seconds"]


def compared(run: dict, base: dict, args: argparse.Namespace) -> dict[str, tuple[float, str]]:
    """Ratios of a run to what it is compared with, in the same round: what is measured -> value and unit."""
    return {
        f"speed by {kind_of_time(args.device, args.num_threads)}": (
            seconds_of(base, args) / seconds_of(run, args),
            "x",
        ),
        "peak memory": (run["peak_mb"] / base["peak_mb"], "x"),
        "memory above the loaded model": (run["above_model_mb"] / base["above_model_mb"], "x"),
        "largest difference of a score": (run["difference"], ""),
    }


def compared_rows(
    pairs: list[list[tuple[dict, dict]]], against: str, settings: list[str], args: argparse.Namespace
) -> list[Measurement]:
    """Rows for pairs (run, what it is compared with) of each round, in the order of the settings."""
    run = pairs[0][0][0]
    model, layers = describe_model(run["num_parameters"], args.dtype), describe_layers(run["num_layers"], args.shape)
    of_pairs = [[compared(*of_round[number], args) for of_round in pairs] for number in range(len(settings))]
    rows = []
    for measured, (_, unit) in of_pairs[0][0].items():
        for setting, of_rounds in zip(settings, of_pairs, strict=True):
            values = [of_round[measured][0] for of_round in of_rounds]
            found = over_rounds(values, statistics.median(values))
            rows.append(
                Measurement("Scoring", f"{measured}; {model}", against, f"{setting}{layers}", unit=unit, **found)
            )
    return rows


def reference_rows(rounds: list[list[dict]], args: argparse.Namespace) -> list[Measurement]:
    pairs = []
    for runs in rounds:
        base = {run["order"]: run for run in runs if run["side"] == "reference"}
        pairs.append([(run, base[run["order"]]) for run in runs if run["side"] != "reference"])
    settings = [f"{args.num_solutions} solutions {run['order']}; {run['side']}" for run, _ in pairs[0]]
    return compared_rows(pairs, "the reference way", settings, args)


def sharing_rows(rounds: list[list[dict]], args: argparse.Namespace) -> list[Measurement]:
    pairs = [list(zip(runs[1::2], runs[::2], strict=True)) for runs in rounds]
    settings = [f"{NUM_CANDIDATES} candidates, prompt of {run['prompt_length']:,} tokens" for run, _ in pairs[0]]
    return compared_rows(pairs, "the same with `share_prompts=False`", settings, args)


def scale_rows(rounds: list[list[dict]], args: argparse.Namespace) -> list[Measurement]:
    kind, model = (
        kind_of_time(args.device, args.num_threads),
        describe_model(rounds[0][0]["num_parameters"], args.dtype),
    )
    times, memory = [], []
    for runs in zip(*rounds, strict=True):
        number = runs[0]["num_completions"]
        for rows, measured, values, unit in (
            (times, f"{kind} a completion", [1000 * seconds_of(run, args) / number for run in runs], "ms"),
            (memory, "memory above loaded model and rows", [run["above_model_mb"] for run in runs], "MiB"),
        ):
            found = over_rounds(values, statistics.median(values))
            setting = f"{number:,} completions"
            rows.append(Measurement("Scoring", f"{measured}; {model}", "", setting, unit=unit, **found))
    return times + memory


ROWS_OF_PART = {"reference": reference_rows, "sharing": sharing_rows, "scale": scale_rows}


def print_report(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    settings, facts, results = report["settings"], report["facts"], report["results"]
    console = Console(width=119)

    def medians(part: str) -> list[dict]:
        """The runs of a part, numbers as medians over the rounds."""
        return [
            {
                key: statistics.median(run[key] for run in runs) if isinstance(value, float) else value
                for key, value in runs[0].items()
            }
            for runs in zip(*results[part], strict=True)
        ]

    def show(title: str, rows: list[dict]) -> None:
        table = Table(title=title)
        for name in rows[0]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)

    if "reference" in results:
        rows, runs = [], medians("reference")
        for run in runs:
            base = next(r for r in runs if r["order"] == run["order"] and r["side"] == "reference")
            rows.append(
                {
                    "order": run["order"],
                    "side": run["side"],
                    "completions/s": f"{run['completions_per_second']:.3f}",
                    "ratio": f"{run['completions_per_second'] / base['completions_per_second']:.2f}",
                    "of CPU time": f"{base['cpu_seconds'] / run['cpu_seconds']:.2f}",
                    "peak MB": f"{run['peak_mb']:.0f} ({run['peak_mb'] / base['peak_mb']:.2f})",
                    "above model": f"{run['above_model_mb']:.0f} "
                    f"({run['above_model_mb'] / base['above_model_mb']:.3f})",
                    "difference": f"{run['difference']:.1e}",
                }
            )
        show(
            f"{settings['num_solutions']} solutions, batches of {settings['batch_size']}; ratios to the reference",
            rows,
        )
        print(f"Standard deviation of the scores: {runs[0]['spread']:.3f}")
    if "sharing" in results:
        rows, runs = [], medians("sharing")
        for off, on in zip(runs[::2], runs[1::2], strict=True):
            rows.append(
                {
                    "prompt tokens": off["prompt_length"],
                    "off, completions/s": f"{off['completions_per_second']:.3f}",
                    "on, completions/s": f"{on['completions_per_second']:.3f}",
                    "ratio": f"{on['completions_per_second'] / off['completions_per_second']:.2f}",
                    "of CPU time": f"{off['cpu_seconds'] / on['cpu_seconds']:.2f}",
                    "off, MB above model": f"{off['above_model_mb']:.0f}",
                    "on, MB above model": f"{on['above_model_mb']:.0f}",
                    "difference": f"{on['difference']:.1e}",
                }
            )
        show(f"{NUM_CANDIDATES} candidates of one prompt: prefix sharing off and on", rows)
    if "scale" in results:
        rows = [
            {
                "completions": run["num_completions"],
                "ms a completion": f"{1000 * run['seconds'] / run['num_completions']:.2f}",
                "of CPU time": f"{1000 * run['cpu_seconds'] / run['num_completions']:.2f}",
                "peak MB": f"{run['peak_mb']:.0f}",
                "MB above loaded model and rows": f"{run['above_model_mb']:.0f}",
            }
            for run in medians("scale")
        ]
        show("Many completions, small model", rows)
    print(
        f"{settings['num_threads']} threads, {settings['device']}, {settings['dtype']}, shape {settings['shape']}. "
        f"Rows: {facts['text']}, median {facts['median_tokens']:.0f} and at most {facts['max_tokens']} tokens, "
        f"{facts['mean_prompt_tokens']:.0f} of them the prompt's on average."
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        name, task, result = sys.argv[2:]
        Path(result).write_text(json.dumps(WORKERS[name](json.loads(task))))
    else:
        main()
