"""Speed and memory of `ProcessRewardModel.score` with a causal head, on a CPU.

    python benchmarks/prm_scoring.py [--parts reference sharing scale]

- `reference`: completions per second, and peak memory, against scoring as reference code does it: batches of solutions
  in the order given, padded on the right, with an attention mask, and at every token a softmax over the vocabulary in
  float32, of which two columns are kept. Solutions come prompt by prompt, and shuffled. Scores must be the same.
- `sharing`: 32 candidates of one prompt, with `share_prompts` and without, for prompts of three lengths.
- `scale`: time per completion and peak memory from 1,000 to 16,000 completions, with a small model.

The model has the shape of Qwen2-0.5B (24 layers; with fewer, by `--num_layers`, the vocabulary's share and with it the
ratio is larger) and random weights, in float32. The tokenizer is built from the solutions: its ids are the first ones
of the model's vocabulary. Each measurement runs in a process of its own. Peak memory is the operating system's figure
for the process, also given above what it held when the model was loaded. `--num_rounds` repeats everything; the table
has medians. The defaults take about half an hour with 2 threads. Run nothing beside it; where that cannot be had, read
the ratio of processor time, with `--num_threads 1`, since threads that wait for each other count as busy.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("reference", "sharing", "scale")
NUM_CANDIDATES = 32
PROMPT_LENGTHS = (64, 256, 1024)
NUM_COMPLETIONS = (1000, 2000, 4000, 8000, 16000)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--num_rounds", type=int, default=1)
    parser.add_argument("--num_solutions", type=int, default=96, help="of the part `reference`; a multiple of 32")
    parser.add_argument("--batch_size", type=int, default=16, help="on both sides")
    parser.add_argument("--num_layers", type=int, default=24)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("TRL_ERPRM_DATA", ROOT.parent / "shared" / "data")),
        help="folder with bon_gsm8k/candidates.jsonl.gz; where it is absent, synthetic text of like lengths is used",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/prm_scoring.json"))
    return parser.parse_args()


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


def load_prm(task: dict, **changes):
    """A model of random weights, the same in every process, of Qwen2-0.5B's shape but for the changes."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from trl_erprm import ProcessRewardModel

    tokenizer = PreTrainedTokenizerFast.from_pretrained(task["directory"])
    shape = {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": task["num_layers"],
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32_768,
    }
    torch.manual_seed(task["seed"])
    model = Qwen2ForCausalLM(Qwen2Config(**{**shape, **changes}))
    prm = ProcessRewardModel(model, tokenizer, "math-shepherd")
    with torch.no_grad():  # scores that spread over (0, 1), so that a difference would show
        label_ids = list(prm.format.label_token_ids(tokenizer))
        model.lm_head.weight[label_ids] = 0.05 * torch.randn(2, model.config.hidden_size)
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
            "input_ids": torch.tensor([row.input_ids + [pad] * (longest - len(row.input_ids)) for row in rows]),
            "attention_mask": torch.tensor(
                [[1] * len(row.input_ids) + [0] * (longest - len(row.input_ids)) for row in rows]
            ),
        }
        with torch.no_grad():
            probabilities = prm.model(**inputs).logits.float().softmax(-1)[:, :, [positive, negative]]
        for of_row, row in zip(probabilities, rows, strict=True):
            good, bad = of_row[row.step_ends].unbind(-1)
            scores.append((good / (good + bad)).tolist())
    return scores


def measure(score, num_completions: int) -> dict:
    """Time and memory of a call that scores."""
    import psutil

    loaded = psutil.Process().memory_info().rss
    start, cpu_start = time.perf_counter(), time.process_time()
    scores = score()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return {
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
        result = measure(lambda: reference_scores(prm, prompts, steps, task["batch_size"]), len(rows))
    else:
        share = {"ours": None, "ours, no sharing": False}[task["side"]]
        options = {"batch_size": task["batch_size"], "share_prompts": share}
        result = measure(lambda: prm.score(prompts, steps, **options), len(rows))
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
    return measure(lambda: prm.score(prompts, steps, **options), len(steps))


def score_many(task: dict) -> dict:
    """The part `scale`: the same solutions again and again, each time in another order."""
    small = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
    prm = load_prm(task, **small, num_hidden_layers=2, vocab_size=8192)
    draw, rows, chosen = random.Random(task["seed"]), load_rows(task), []
    while len(chosen) < task["num_completions"]:
        chosen += draw.sample(rows, len(rows))
    chosen = chosen[: task["num_completions"]]
    prompts, steps = [prompt for prompt, _ in chosen], [of_row for _, of_row in chosen]
    prm.score(prompts[:100], steps[:100])  # warm: what a first call allocates for good is no part of the growth
    result = measure(lambda: prm.score(prompts, steps), len(chosen))
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
            assert difference < 1e-4, f"{side}, {order}: scores differ by {difference}"
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
            assert difference < 1e-4, f"{length} tokens: scores differ by {difference}"
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
        rounds = [{part: RUN_PART[part](task) for part in args.parts} for _ in range(args.num_rounds)]
    machine = {"processor": platform.machine(), "num_cpus": os.cpu_count(), "num_threads": args.num_threads}
    report = {"settings": settings, "machine": machine, "facts": facts, "rounds": rounds}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    print(f"Written to {args.output}")


def print_report(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    settings, facts, rounds = report["settings"], report["facts"], report["rounds"]
    console = Console(width=119)

    def medians(part: str) -> list[dict]:
        """The runs of a part, numbers as medians over the rounds."""
        return [
            {
                key: statistics.median(run[key] for run in runs) if isinstance(value, float) else value
                for key, value in runs[0].items()
            }
            for runs in zip(*(results[part] for results in rounds), strict=True)
        ]

    def show(title: str, rows: list[dict]) -> None:
        table = Table(title=title)
        for name in rows[0]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)

    if "reference" in rounds[0]:
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
    if "sharing" in rounds[0]:
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
    if "scale" in rounds[0]:
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
    machine = report["machine"]
    print(
        f"Machine: {machine['num_cpus']} CPUs ({machine['processor']}), {machine['num_threads']} threads. "
        f"Model: {settings['num_layers']} layers. Rows: {facts['text']}, median {facts['median_tokens']:.0f} and at "
        f"most {facts['max_tokens']} tokens, {facts['mean_prompt_tokens']:.0f} of them the prompt's on average."
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        name, task, result = sys.argv[2:]
        Path(result).write_text(json.dumps(WORKERS[name](json.loads(task))))
    else:
        main()
