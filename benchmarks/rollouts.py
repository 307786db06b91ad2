"""Rollouts per second of the `transformers` engine against plain `model.generate(num_return_sequences=N)`.

    python benchmarks/rollouts.py

Plain: left-padded batches, longest prefixes first, `do_sample=True` with everything else off, texts decoded; the loop
that one writes without an engine. Equal on both sides: the model, the prefixes, rollouts a prefix, the limit of new
tokens, sequences a batch, threads, and the distribution of lengths:

- `fixed`: no rollout ends before the limit;
- `lognormal`: the end-of-sequence token has, at each position, the probability that makes lengths log-normal (median a
  quarter of the limit, sigma 0.7) and cut off at the limit. A hook on the model sets it, for both sides. Each side
  draws its own lengths: the mean is printed.

Models, with random weights, in float32: `tiny`, the policy of the embedded task; `half`, Qwen2.5-0.5B in all but the
number of its layers (`--num_layers`; with fewer layers the vocabulary weighs more, and there is less to save).

A round runs both sides, in turn forwards and backwards, after each side has run once on a batch; a ratio is taken
within a round, and the median and the range of the rounds are printed. The ratio by processor time suffers less from a
busy machine; with one thread (the default) it holds no time in which threads wait for each other. `tokens read` counts
what goes through the embedding, padding included, a rollout.

Memory comes first: the peak of a process of its own that rolls out 1,000 to 40,000 prefixes, in calls of 64 as
`MonteCarloLabeler` makes them, and in one call, which holds all results. Writes everything to `--output`.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

LIMIT_SHARE, SIGMA = 0.25, 0.7  # median length as a share of the limit, and the spread of its logarithm


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["tiny", "half"], default=["tiny", "half"])
    parser.add_argument("--prefix_lengths", nargs="+", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--lengths", nargs="+", choices=["fixed", "lognormal"], default=["fixed", "lognormal"])
    parser.add_argument("--num_samples", type=int, default=16, help="rollouts a prefix")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--num_layers", type=int, default=4, help="of `half`; Qwen2.5-0.5B has 24")
    parser.add_argument("--tiny_prefixes", type=int, nargs=2, default=[64, 16], help="in all, and a batch")
    parser.add_argument("--half_prefixes", type=int, nargs=2, default=[4, 2], help="in all, and a batch")
    parser.add_argument("--num_rounds", type=int, default=5)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument(
        "--memory_prefixes", type=int, nargs="*", default=[1000, 5000, 20000, 40000], help="none: leave it out"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/rollouts.json"))
    return parser.parse_args()


def build(name: str, num_layers: int) -> tuple:
    """Model and tokenizer, and a function that makes a text of so many tokens."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from trl_erprm.arithmetic import build_model, build_tokenizer

    rng = random.Random(0)
    if name == "tiny":
        model = build_model()
        model.config.max_position_embeddings = 4096  # no weights depend on it
        return model.eval(), build_tokenizer(), lambda n: "".join(rng.choices("0123456789", k=n))
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(151_936)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="t0", eos_token="t1", unk_token="t0", padding_side="left"
    )
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=num_layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return (
        Qwen2ForCausalLM(config).eval(),
        tokenizer,
        lambda n: " ".join(f"t{rng.randrange(2, 151_936)}" for _ in range(n)),
    )


def set_lengths(model, how: str, prefix_length: int, limit: int):
    """A hook that gives the end-of-sequence token its probability, by position."""
    import torch

    def survival(t: int) -> float:
        z = (math.log(t) - math.log(LIMIT_SHARE * limit)) / SIGMA if t > 0 else -math.inf
        return 0.5 * math.erfc(z / math.sqrt(2))

    # In token t, given that there was none before
    hazard = torch.tensor([1 - survival(t + 1) / survival(t) if how == "lognormal" else 0.0 for t in range(limit)])
    log_odds = hazard.logit()

    def hook(module, args, kwargs, output):
        logits = output.logits[:, -1]
        end = model.config.eos_token_id
        logits[:, end] = -torch.inf
        if how == "lognormal":
            position = kwargs["position_ids"][:, -1] - (prefix_length - 1)
            logits[:, end] = logits.logsumexp(dim=-1) + log_odds[position.clamp(max=limit - 1)]

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
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
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
    started, cpu_started = time.perf_counter(), time.process_time()
    lengths = SIDES[side](model, *task)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    counter.remove()
    return {
        "rollouts_per_second": len(lengths) / seconds,
        "rollouts_per_cpu_second": len(lengths) / cpu_seconds,
        "seconds": seconds,
        "mean_length": statistics.mean(lengths),
        "tokens_read_per_rollout": tokens_read[0] / len(lengths),
    }


def peak_memory(num_prefixes: int, chunk: int) -> dict:
    """In a process of its own: rolls out prefixes of 48 tokens, 2 of up to 8 tokens each, `chunk` of them a call."""
    from trl_erprm.rollout import Prefix, SamplingOptions
    from trl_erprm.rollout.transformers_engine import TransformersEngine

    model, tokenizer, text = build("tiny", 0)
    engine, options = TransformersEngine(model, tokenizer), SamplingOptions(8)
    prefixes = [Prefix(text(48)) for _ in range(num_prefixes)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(0, num_prefixes, chunk):
        engine.generate(prefixes[start : start + chunk], 2, options)
    unit = 1024 * 1024 if platform.system() == "Darwin" else 1024
    return {"before_mb": before / unit, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def main() -> None:
    args = parse_arguments()
    load = os.getloadavg()[0]
    memory = []  # before this process has loaded anything: the peak of a child starts with that of its parent
    for num_prefixes in args.memory_prefixes:
        for chunk in (64, num_prefixes):
            command = [sys.executable, __file__, "--worker", str(num_prefixes), str(chunk)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.num_threads)}
            result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            measured = json.loads(result.stdout.splitlines()[-1])
            memory.append({"num_prefixes": num_prefixes, "prefixes_per_call": chunk, **measured})

    import torch

    torch.set_num_threads(args.num_threads)
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    machine = {"processor": platform.machine(), "num_cpus": os.cpu_count(), "load_before": load}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    report = {"settings": settings, "machine": machine, "versions": versions, "speed": [], "memory": memory}
    for name in args.models:
        model, tokenizer, text = build(name, args.num_layers)
        num_prefixes, per_batch = getattr(args, f"{name}_prefixes")
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
                wall, cpu = (shown(ratios(rounds, by)) for by in ("rollouts_per_second", "rollouts_per_cpu_second"))
                print(f"{name} {prefix_length} {how}: {wall}, by CPU time {cpu}", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    print(f"Written to {args.output}")


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
    machine, versions = report["machine"], report["versions"]
    print(
        f"Machine: {machine['num_cpus']} CPUs ({machine['processor']}), {settings['num_threads']} threads used, "
        f"load {machine['load_before']:.1f} before; torch {versions['torch']}, transformers "
        f"{versions['transformers']}\n{settings['num_samples']} rollouts a prefix of at most "
        f"{settings['max_new_tokens']} tokens; prefixes in all and a batch: tiny {settings['tiny_prefixes']}, half "
        f"{settings['half_prefixes']} with {settings['num_layers']} layers"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(peak_memory(*map(int, sys.argv[2:]))))
    else:
        main()
