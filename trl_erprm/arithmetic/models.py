"""The models: a tokenizer, a Qwen2 of any size, and the policy, trained to make the mistakes of the ideal one."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..choices import check_choice
from .task import VALUES, ArithmeticTask, check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

__all__ = ["STEP_TAG", "build_model", "build_tokenizer", "train_policy"]

STEP_TAG = "ки"
"""The tag of Math-Shepherd and ER-PRM; the tiny tokenizer has it as one token, for the `causal_lm` head."""


def build_tokenizer(task: ArithmeticTask | None = None) -> PreTrainedTokenizerBase:
    """
    The tokenizer of the embedded task, no file needed: 80 tokens, which serve every modulus up to 10, and behind them
    what else a task has: values that are letters, with their operations, and the mark of the chain that is asked for.

    An operation with its operand is one token (`*3`, and `*3=` inside a step), everything else is a character. Merged
    so, a step is five tokens with its newline, and checking it depends on three of them: in our runs both the policy
    and the PRM learnt several times faster than on single characters.

    It is a `Qwen2Tokenizer`, because transformers loads any tokenizer beside a Qwen2 configuration as one, whatever
    class it was saved as; the merged operations are added tokens, which that class keeps whole.

    Args:
        task ([`ArithmeticTask`], *optional*):
            Task whose problems it has to read.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    # Byte-level vocabularies write a newline as this letter.
    characters = ["<pad>", "<eos>", "<unk>", *"0123456789+-*=#", "\u010a"]
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(characters)},
        merges=[],
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )
    letters = VALUES[10 : task.modulus] if task is not None else ""
    mark = ["?"] if task is not None and task.num_distractors else []
    added = [*_operation_tokens(VALUES[:10]), STEP_TAG, *letters, *_operation_tokens(letters), *mark]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def _operation_tokens(values: str) -> list[str]:
    return [f"{o}{b}{e}" for o in "+-*" for b in values for e in ("=", "")]


def build_model(
    hidden_size: int = 64,
    num_layers: int = 2,
    initializer_range: float | None = None,
    seed: int = 0,
    task: ArithmeticTask | None = None,
) -> Qwen2ForCausalLM:
    """
    A Qwen2 with random weights, for [`build_tokenizer`]'s vocabulary; of about 140k parameters by default.

    Args:
        hidden_size (`int`, *optional*, defaults to `64`):
            Width, a multiple of twice the number of heads: 4 up to a width of 256, then one for each 64, the width of
            a head in models of every size. The feed-forward layers are four times as wide.
        num_layers (`int`, *optional*, defaults to `2`):
            Depth.
        initializer_range (`float`, *optional*):
            Standard deviation of the weights; by default 0.1, and above a width of 64 as much less as keeps the sums
            over the width alike: 0.1 sqrt(64 / width). Transformers' default of 0.02 is made for widths in the
            thousands; at width 64 it leaves the layers nearly silent: in our runs learning then began several times
            later.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights. The global random state is left as it was.
        task ([`ArithmeticTask`], *optional*):
            Task whose problems its vocabulary has to hold.

    Raises:
        `ValueError`: for a width that the heads cannot share, or less than one layer.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    _check_size(hidden_size, num_layers)
    num_heads = _num_heads(hidden_size)
    if initializer_range is None:
        initializer_range = 0.1 * min(1.0, (64 / hidden_size) ** 0.5)
    tokenizer = build_tokenizer(task)
    # A line of the prompt has a token an operation and two more, a solution four an operation and three: room for it,
    # and for one that goes on by a quarter.
    num_tokens = 0 if task is None else (task.num_distractors + 6) * (task.num_operations + 2)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max(256, num_tokens),
        initializer_range=initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        classifier_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def _check_size(hidden_size: int, num_layers: int) -> None:
    check_whole("hidden_size", hidden_size, None)
    check_whole("num_layers", num_layers, 1)
    num_heads = _num_heads(hidden_size)
    if hidden_size < 1 or hidden_size % (2 * num_heads):  # positions are rotations of pairs of numbers
        raise ValueError(
            f"`hidden_size` must be a multiple of {2 * num_heads} (twice its {num_heads} heads), got {hidden_size}. "
            "Take a multiple of 8 up to 256, or of 64 above."
        )


def _num_heads(hidden_size: int) -> int:
    return max(4, hidden_size // 64)


def train_policy(
    task: ArithmeticTask,
    output_dir: str | os.PathLike,
    *,
    num_steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    solutions_per_problem: int = 5,
    seed: int = 0,
    hidden_size: int = 64,
    num_layers: int = 2,
    device: str | None = None,
    bf16: bool = False,
) -> Path:
    """
    Trains the tiny policy from random weights on solutions of the ideal policy, errors included, and saves it with its
    tokenizer. A policy that is already there is kept if it was trained with the same arguments, and refused otherwise.

    Args:
        task ([`ArithmeticTask`]):
            The task; only its training split is seen.
        output_dir (`str` or `os.PathLike`):
            Where the model goes.
        num_steps (`int`, *optional*, defaults to `600`):
            Optimizer steps (AdamW, linear decay): the least of our runs that came within two points of the ideal
            policy's accuracy.
        batch_size (`int`, *optional*, defaults to `64`):
            Solutions an optimizer step.
        learning_rate (`float`, *optional*, defaults to `3e-3`):
            Highest learning rate, reached after a tenth of the steps. Wider models need less.
        solutions_per_problem (`int`, *optional*, defaults to `5`):
            Solutions drawn for each training problem.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights, the solutions and the order of the batches.
        hidden_size (`int`, *optional*, defaults to `64`), num_layers (`int`, *optional*, defaults to `2`):
            Size of the model ([`build_model`]).
        device (`str`, *optional*):
            `"cpu"` or `"cuda"`; by default a GPU where there is one. Neither it nor `bf16` tells policies apart: one
            that is there is kept.
        bf16 (`bool`, *optional*, defaults to `False`):
            Whether matrices are multiplied in bfloat16 (autocast; weights and optimizer stay in float32). It pays for
            models of millions of parameters on a GPU. What is learnt, error rates of some per cent, is far coarser
            than its rounding.

    Returns:
        `Path`: the directory of the model.

    Raises:
        `ValueError`: where the directory holds another policy, there is no such device, a number that counts is below
            1, or the size is none that [`build_model`] takes.
    """
    import torch
    from transformers import Trainer, TrainingArguments

    counts = {"num_steps": num_steps, "batch_size": batch_size, "solutions_per_problem": solutions_per_problem}
    for name, value in counts.items():
        check_whole(name, value, 1)
    check_whole("num_train", task.num_train, 1)
    _check_size(hidden_size, num_layers)
    output_dir = Path(output_dir)
    # What came later is named only where it is used: a policy that was trained before is kept.
    later = {"hidden_size": (hidden_size, 64), "num_layers": (num_layers, 2)}
    identity = {
        "task": {name: value for name, value in asdict(task).items() if name != "num_distractors" or value},
        "num_steps": num_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "solutions_per_problem": solutions_per_problem,
        "seed": seed,
        **{name: value for name, (value, before) in later.items() if value != before},
    }
    record = output_dir / "arithmetic_policy.json"
    if record.exists():
        if json.loads(record.read_text()) == identity:
            return output_dir
        raise ValueError(
            f"{output_dir} holds a policy that was trained with other arguments ({record.read_text()}), not with "
            f"{json.dumps(identity)}. Give another directory, or delete this one."
        )
    if device is not None:
        check_choice("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError('`device` is "cuda", but torch sees no GPU here. Pass device="cpu", or leave it out.')

    tokenizer, rng = build_tokenizer(task), np.random.default_rng(seed)
    problems = task.problems("train")
    solutions = ["\n".join(task.sample_solution(p, rng)) for p in problems * solutions_per_problem]
    prompt_ids = tokenizer([f"{p}\n" for p in problems], add_special_tokens=False)["input_ids"]
    solution_ids = tokenizer(solutions, add_special_tokens=False)["input_ids"]
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=num_steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=num_steps // 10,
        weight_decay=0.01,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=device == "cpu",
        bf16=bf16,
        seed=seed,
        disable_tqdm=None,
    )
    # Every problem of a task has the same number of operations and distractors, hence every row the same number of
    # tokens: one tensor holds them all, where the model is.
    rows = [
        [*p, *s, tokenizer.eos_token_id] for p, s in zip(prompt_ids * solutions_per_problem, solution_ids, strict=True)
    ]
    input_ids = torch.tensor(rows, device=arguments.device)
    labels = input_ids.clone()
    labels[:, : len(prompt_ids[0])] = -100

    def collate(batch):
        chosen = torch.tensor(batch, device=input_ids.device)
        return {
            "input_ids": input_ids[chosen],
            "attention_mask": torch.ones_like(input_ids[chosen]),
            "labels": labels[chosen],
        }

    trainer = Trainer(
        model=build_model(hidden_size, num_layers, seed=seed, task=task),
        args=arguments,
        train_dataset=range(len(input_ids)),
        data_collator=collate,
    )
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(output_dir)
    if trainer.is_world_process_zero():
        # Written last: a directory without it is an interrupted training, which simply starts again.
        record.write_text(json.dumps(identity))
    trainer.accelerator.wait_for_everyone()
    return output_dir
