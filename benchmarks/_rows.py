"""Rows, a tokenizer and a config for benchmarks: step texts as a policy writes them, and nothing downloaded."""

import gzip
import json
import math
import random
from pathlib import Path

REAL, SYNTHETIC = "sampled GSM8K solutions", "synthetic text"


def load_solutions(data: Path, rng: random.Random) -> tuple[list[tuple[str, list[str]]], str]:
    """Shuffled (prompt, steps) of sampled solutions, 32 for each of 100 problems, and which kind of text they are."""
    path = data / "bon_gsm8k" / "candidates.jsonl.gz"
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            problems = [json.loads(line) for line in file]
        solutions = [
            (problem["prompt"], candidate["steps"]) for problem in problems for candidate in problem["candidates"]
        ]
    else:
        solutions = synthetic_solutions(rng, 3200)
    rng.shuffle(solutions)
    return solutions, REAL if path.exists() else SYNTHETIC


def synthetic_solutions(rng: random.Random, num_solutions: int) -> list[tuple[str, list[str]]]:
    """Random three-letter words; the numbers of steps and of characters are log-normal, fitted to the real ones."""
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=3)) for _ in range(4000)]

    def text(mu: float, sigma: float, longest: int) -> str:
        num_characters = min(rng.lognormvariate(mu, sigma), longest)
        return " ".join(rng.choices(words, k=max(1, round(num_characters / 4))))

    def solution() -> tuple[str, list[str]]:
        num_steps = min(max(round(rng.lognormvariate(1.415, 0.455)), 2), 23)
        mu = 5.708 - 0.482 * math.log(num_steps)  # the more steps, the shorter each
        return text(5.365, 0.396, 545), [text(mu, 0.743, 2109) for _ in range(num_steps)]

    return [solution() for _ in range(num_solutions)]


def build_tokenizer(texts: list[str], vocab_size: int):
    """A byte-level BPE trained on the texts: about as many characters a token as a real tokenizer has on such text."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=["<pad>", "</s>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="</s>")


def llama_config(tokenizer, hidden_size: int, num_layers: int):
    """Config of a small model of Llama's architecture with the tokenizer's vocabulary and two labels."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        max_position_embeddings=4096,
        num_labels=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
