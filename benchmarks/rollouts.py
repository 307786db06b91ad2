"""Rollouts per second of the `transformers` engine against plain `model.generate(num_return_sequences=N)`.

    python benchmarks/rollouts.py
    python benchmarks/rollouts.py --device cuda --dtype bfloat16 --models 0.5b 7b --prefixes 64 16 --memory_prefixes

Plain: left-padded batches, longest prefixes first, `do_sample=True` with everything else off, texts decoded; the loop
that one writes without an engine. Equal on both sides: the model, the prefixes, rollouts a prefix, the limit of new
tokens, sequences a batch, threads, and the distribution of lengths:

- `fixed`: no rollout ends before the limit;
- `lognormal`: the end-of-sequence token has, at each position, the probability that makes lengths log-normal (median a
  quarter of the limit, sigma 0.7) and cut off at the limit. A hook on the model sets it, for both sides. Each side
  draws its own lengths: the mean is printed.

Models, with random weights: `tiny`, the policy of the embedded task; `half`, Qwen2.5-0.5B with 4 layers (with fewer
layers the vocabulary weighs more, and there is less to save); `0.5b` and `7b`, Qwen2.5-0.5B and 7B whole.

A round runs both sides, in turn forwards and backwards, after each side has run once on a batch; a ratio is taken
within a round, and the median and the range of the rounds are printed. The ratio by processor time suffers less from a
busy machine; with one thread (the default) it holds no time in which threads wait for each other. On a GPU wall time
and peak memory are compared. `tokens read` counts what goes through the embedding, padding included, a rollout.

Memory comes first: the peak of a process of its own that rolls out 1,000 to 40,000 prefixes on the CPU, in calls of 64
as `MonteCarloLabeler` makes them, and in one call, which holds all results. Each model, and memory, has a file of
measurements of its own: `--output` with its name behind.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _devices import (
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

MODELS = ("tiny", "half", "0.5b", "7b")
LIMIT_SHARE, SIGMA = 0.25, 0.7  # median length as a share of the limit, and the spread of its logarithm


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["tiny", "half"])
    parser.add_argument("--prefix_lengths", nargs="+", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--lengths", nargs="+", choices=["fixed", "lognormal"], default=["fixed", "lognormal"])
    parser.add_argument("--num_samples", type=int, default=16, help="rollouts a prefix")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--tiny_prefixes", type=int, nargs=2, default=[64, 16], help="in all, and a batch")
    parser.add_argument("--prefixes", type=int, nargs=2, default=[4, 2], help="the same of the other models")
    parser.add_argument("--num_rounds", type=int, default=5)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument(
        "--memory_prefixes", type=int, nargs="*", default=[1000, 5000, 20000, 40000], help="none: leave it out"
    )
    add_device_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/rollouts.json"))
    return parser.parse_args()


def shape_of(name: str) -> str:
    """Of a model other than `tiny`, the shape in [`SHAPES`]."""
    return "0.5b" if name == "half" else name


def build(name: str, device: str, dtype: str) -> tuple:
    """Model and tokenizer, and a function that makes a text of so many tokens."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from trl_erprm.arithmetic import build_model, build_tokenizer

    rng = random.Random(0)
    if name == "tiny":
        model = build_model()
        model.config.max_position_embeddings = 4096  # no weights depend on it
        model = model.to(device, getattr(torch, dtype))
        return model.eval(), build_tokenizer(), lambda n: "".join(rng.choices("0123456789", k=n))
    changes = {"num_hidden_layers": 4} if name == "half" else {}
    config = qwen2_config(shape_of(name), eos_token_id=1, pad_token_id=0, **changes)
    # No special token may be the beginning of a word: it would be cut out of it.
    vocabulary = {"<pad>": 0, "</s>": 1, **{f"t{i}": i for i in range(2, config.vocab_size)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<pad>", padding_side="left"
    )
    model = build_on(AutoModelForCausalLM, config, device, dtype, seed=0).eval()
    return model, tokenizer, lambda n: " ".join(f"t{rng.randrange(2, config.vocab_size)}" for _ in range(n))


def set_lengths(model, how: str, prefix_length: int, limit: int):
    """A hook that gives the end-of-sequence token its probability, by position."""
    import torch

    def survival(t: int) -> float:
        z = (math.log(t) - math.log(LIMIT_SHARE * limit)) / SIGMA if t > 0 else -math.inf
        return 0.5 * math.erfc(z / math.sqrt(2))

    # In token t, given that there was none before
    hazard = torch.tensor([1 - survival(t + 1) / survival(t) if how == "lognormal" else 0.0 for t in range(limit)])
    log_odds = hazard.logit().to(model.device)

    def hook(module, args, kwargs, output):
        logits = output.logits[:, -1]
        end = model.config.eos_token_id
        logits[:, end] = -torch.inf
        if how == "lognormal":
            position = kwargs["position_ids"][:, -1] - (prefix_length - 1)
            logits[:, end] = logits.float().logsumexp(dim=-1) + log_odds[position.clamp(max=limit - 1)]

    return model.register_forward_hook(hook, with_kwargs=True)


def run_plain(model, tokenizer, texts: list[str], prefixes_per_batch: int, num_samples: int, limit: int) -> list:
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=limit,
        num_return_sequences=num_samples,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = sorted(texts, key=len, reverse=True)
    lengths = []
    for start in range(0, len(texts), prefixes_per_batch):
        batch = tokenizer(
            texts[start : start + prefixes_per_batch], padding=True, padding_side="left", return_tensors="pt"
        )
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            new_ids = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
        tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        is_end = new_ids == tokenizer.eos_token_id
        lengths += torch.where(is_end.any(1), is_end.int().argmax(1) + 1, new_ids.shape[1]).tolist()
    return lengths


def run_ours(model, tokenizer, texts: list[str], prefixes_per_batch: int, num_samples: int, limit: int) -> list:
    from trl_erprm.rollout import Prefix, SamplingOptions
    from trl_erprm.rollout.transformers_engine import TransformersEngine

    engine = TransformersEngine(model, tokenizer, batch_size=prefixes_per_batch * num_samples)
    result = engine.generate([Prefix(text) for text in texts], num_samples, SamplingOptions(limit))
    return [completion.num_tokens for of_prefix in result for completion in of_prefix]


SIDES = {"plain": run_plain, "ours": run_ours}


def measure(side: str, model, *task) -> dict:
    tokens_read = [0]
    counter = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: tokens_read.__setitem__(0, tokens_read[0] + args[0].numel())
    )
    device = str(model.device)
    memory_held(device)  # a GPU's peak is counted from here on
    synchronize(device)
    started, cpu_started = time.perf_counter(), time.process_time()
    lengths = SIDES[side](model, *task)
    synchronize(device)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    counter.remove()
    return {
        "peak_mb": peak_memory(device) / 2**20,
        "rollouts_per_second": len(lengths) / seconds,
        "rollouts_per_cpu_second": len(lengths) / cpu_seconds,
        "seconds": seconds,
        "mean_length": statistics.mean(lengths),
        "tokens_read_per_rollout": tokens_read[0] / len(lengths),
    }


def memory_of_calls(num_prefixes: int, chunk: int) -> dict:
    """In a process of its own: rolls out prefixes of 48 tokens, 2 of up to 8 tokens each, `chunk` of them a call."""
    from trl_erprm.rollout import Prefix, SamplingOptions
    from trl_erprm.rollout.transformers_engine import TransformersEngine

    model, tokenizer, text = build("tiny", "cpu", "float32")
    engine, options = TransformersEngine(model, tokenizer), SamplingOptions(8)
    prefixes = [Prefix(text(48)) for _ in range(num_prefixes)]
    before = peak_memory("cpu")
    for start in range(0, num_prefixes, chunk):
        engine.generate(prefixes[start : start + chunk], 2, options)
    return {"before_mb": before / 2**20, "peak_mb": peak_memory("cpu") / 2**20}


def main() -> None:
    args = parse_arguments()
    # Before this process has loaded anything: the peak of a child starts with that of its parent.
    started, memory = time.time(), []
    for num_prefixes in args.memory_prefixes:
        for chunk in (64, num_prefixes):
            command = [sys.executable, __file__, "--worker", str(num_prefixes), str(chunk)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.num_threads)}
            result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            measured = json.loads(result.stdout.splitlines()[-1])
            memory.append({"num_prefixes": num_prefixes, "prefixes_per_call": chunk, **measured})
    if memory:
        write_measurements(of_part(args.output, "memory"), memory_rows(memory), started, args.num_threads)

    import torch

    torch.set_num_threads(args.num_threads)
    report = {"settings": vars(args), "speed": [], "memory": memory}
    for name in args.models:
        started, rows = time.time(), []
        model, tokenizer, text = build(name, args.device, args.dtype)
        num_prefixes, per_batch = args.tiny_prefixes if name == "tiny" else args.prefixes
        for prefix_length in args.prefix_lengths:
            for how in args.lengths:
                texts = [text(prefix_length) for _ in range(num_prefixes)]
                task = (tokenizer, texts, per_batch, args.num_samples, args.max_new_tokens)
                hook = set_lengths(model, how, prefix_length, args.max_new_tokens)
                rounds = []
                for side in SIDES:  # allocations and thread pools
                    measure(side, model, tokenizer, texts[:per_batch], *task[2:])
                for number in range(args.num_rounds):
                    order = list(SIDES) if number % 2 == 0 else list(SIDES)[::-1]
                    rounds.append({side: measure(side, model, *task) for side in order})
                hook.remove()
                report["speed"].append(
                    {"model": name, "prefix_length": prefix_length, "lengths": how, "rounds": rounds}
                )
                rows += speed_rows(model, name, prefix_length, how, rounds, args)
                wall, cpu = (shown(ratios(rounds, by)) for by in ("rollouts_per_second", "rollouts_per_cpu_second"))
                print(f"{name} {prefix_length} {how}: {wall}, by CPU time {cpu}", flush=True)
        write_measurements(of_part(args.output, name), rows, started, args.num_threads, args.device)
    print_report(report)


def speed_rows(model, name: str, length: int, how: str, rounds: list[dict], args) -> list[Measurement]:
    against = f"`model.generate(num_return_sequences={args.num_samples})`"
    lengths = {"fixed": "fixed lengths", "lognormal": "log-normal lengths"}[how]
    shown_model = f"`{name}`, {describe_model(model.num_parameters(), args.dtype)}"
    layers = describe_layers(model.config.num_hidden_layers, shape_of(name)) if name != "tiny" else ""
    kind = kind_of_time(args.device, args.num_threads)
    speed = "rollouts_per_cpu_second" if kind == "processor time" else "rollouts_per_second"
    measures = {f"rollouts/s by {kind}": ratios(rounds, speed)}
    if args.device != "cpu":
        measures["peak memory"] = ratios(rounds, "peak_mb")
    return [
        Measurement(
            "Rollouts",
            f"{measured}; {shown_model}",
            against,
            f"{lengths}, prefixes of {length} tokens{layers}",
            unit="x",
            **over_rounds(of, statistics.median(of)),
        )
        for measured, of in measures.items()
    ]


def memory_rows(memory: list[dict]) -> list[Measurement]:
    return [
        Measurement(
            "Rollouts",
            "peak memory of a process; `tiny`, prefixes of 48 tokens, 2 rollouts each",
            "",
            f"{row['num_prefixes']:,} prefixes, " + ("calls of 64" if row["prefixes_per_call"] == 64 else "one call"),
            row["peak_mb"],
            "MiB",
        )
        for row in memory
    ]


def ratios(rounds: list[dict], by: str) -> list[float]:
    return [results["ours"][by] / results["plain"][by] for results in rounds]


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def print_report(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console, settings = Console(width=135), report["settings"]
    table = Table(title="Rollouts per second, ours against plain generate: median (range) over rounds")
    for column in (
        "model",
        "prefix",
        "lengths",
        "ratio",
        "by CPU time",
        "plain /s",
        "ours /s",
        "tokens read",
        "mean length",
    ):
        table.add_column(column, justify="left" if column in ("model", "lengths") else "right")

    def of_sides(rounds: list[dict], measure: str, digits: int) -> list[str]:
        return [f"{statistics.median(results[side][measure] for results in rounds):.{digits}f}" for side in SIDES]

    for row in report["speed"]:
        rounds = row["rounds"]
        table.add_row(
            row["model"],
            str(row["prefix_length"]),
            row["lengths"],
            shown(ratios(rounds, "rollouts_per_second")),
            shown(ratios(rounds, "rollouts_per_cpu_second")),
            *of_sides(rounds, "rollouts_per_second", 2),
            " : ".join(of_sides(rounds, "tokens_read_per_rollout", 0)),
            " : ".join(of_sides(rounds, "mean_length", 1)),
        )
    console.print(table)
    if report["memory"]:
        table = Table(title="Peak memory of a process, tiny model, prefixes of 48 tokens, 2 rollouts each")
        for column in ("prefixes", "prefixes a call", "before, MB", "peak, MB", "growth, MB"):
            table.add_column(column, justify="right")
        for row in report["memory"]:
            growth = row["peak_mb"] - row["before_mb"]
            cells = f"{row['before_mb']:.0f}", f"{row['peak_mb']:.0f}", f"{growth:.0f}"
            table.add_row(str(row["num_prefixes"]), str(row["prefixes_per_call"]), *cells)
        console.print(table)
    print(
        f"{settings['num_threads']} threads, {settings['device']}, {settings['dtype']}. {settings['num_samples']} "
        f"rollouts a prefix of at most {settings['max_new_tokens']} tokens; prefixes in all and a batch: tiny "
        f"{settings['tiny_prefixes']}, others {settings['prefixes']}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(memory_of_calls(*map(int, sys.argv[2:]))))
    else:
        main()
