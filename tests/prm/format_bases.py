"""Tiny base models with the tokenizers that the formats of public process reward models need."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tokenizers import CHATML_TEMPLATE, LLAMA_TEMPLATE, byte_level_tokenizer


def save_base_for(format: str, directory: Path, seed: int = 0) -> str:
    """A Llama of random weights with a byte-level tokenizer; Qwen's chat template for the format that is Qwen's."""
    torch.manual_seed(seed)
    tokenizer = byte_level_tokenizer(template=CHATML_TEMPLATE if format.startswith("qwen") else LLAMA_TEMPLATE)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def solutions() -> list[dict]:
    """Four solutions of one to three steps with soft labels."""
    steps = ["Step 1: She has 3 + 9 = 12 pieces.", "Step 2: So 12 - 2 = 10 are left.", "The answer is: 10"]
    prompt = "Janet has 3 apples and 4 + 5 pears. How many pieces of fruit?"
    return [
        {"prompt": prompt, "completions": steps, "labels": [0.9, 0.7, 1.0]},
        {"prompt": prompt, "completions": steps[:1], "labels": [0.9]},
        {"prompt": prompt, "completions": [steps[0], "So x + y = 4.", steps[2]], "labels": [0.9, 0.1, 0.0]},
        {"prompt": "What is 3 + 4?", "completions": ["So 3 + 4 = 8."], "labels": [0.0]},
    ]
