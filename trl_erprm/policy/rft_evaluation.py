r"""What is measured after an iteration of [`RFTTrainer`]: accuracy on held-out prompts, and drift from the start.

Drift is measured on the policy's own samples y ~ pi_k( . | x), of held-out prompts x, over all their tokens t:

    kl_to_start   mean_t [ log pi_k(y_t | x, y_<t) - log pi_0(y_t | x, y_<t) ]     estimates the KL divergence
    entropy       mean_t [ - sum_v pi_k(v | x, y_<t) log pi_k(v | x, y_<t) ]

The estimate has no bias (it is k1 of Schulman, "Approximating KL divergence", 2020), and may fall below 0 by chance.
Both are of the model's distribution at temperature 1, on the text of a completion as the tokenizer reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..evaluation.best_of_n import best_of_n_accuracy, majority_accuracy, pass_at_n, sampled_accuracy
from ..rollout.engine import Prefix
from ..rollout.rendering import encode, render
from ..verify import extract_answer, verify_answer


def held_out_metrics(
    greedy: Iterable[dict], sampled: Iterable[dict], scores: Iterable[dict], references: Sequence, answer_how: str
) -> dict:
    """
    Accuracies of a policy from its completions of held-out prompts; of the completions, only verdicts are held.

    Args:
        greedy (`Iterable[dict]`):
            Records of one greedy completion a prompt.
        sampled (`Iterable[dict]`), scores (`Iterable[dict]`):
            Records of n sampled completions a prompt, and of their scores, in the same order.
        references (`Sequence`):
            The right answer of each prompt.
        answer_how (`str`):
            How answers are read.

    Returns:
        `dict`: see the metrics of [`RFTTrainer`].
    """
    greedy_verdicts = [verify_answer(r["completions"][0], references[r["index"]], answer_how) for r in greedy]
    correct, answers, rewards, lengths, num_distinct = [], [], [], [], []
    for record, score in zip(sampled, scores, strict=True):
        texts = record["completions"]
        correct.append([verify_answer(text, references[record["index"]], answer_how) for text in texts])
        answers.append([extract_answer(text, answer_how) for text in texts])
        rewards.append(score["scores"])
        lengths.append(np.mean(record["num_tokens"]))
        num_distinct.append(len(set(texts)) / len(texts))
    n = len(correct[0])
    estimate = sampled_accuracy(correct)
    return {
        "num_problems": len(correct),
        "n": n,
        "greedy": float(np.mean([verdict is True for verdict in greedy_verdicts])),
        "sampled": estimate.mean,
        "sampled_low": estimate.low,
        "sampled_high": estimate.high,
        "best_of_n": best_of_n_accuracy(rewards, correct, n),
        "majority": majority_accuracy(answers, correct, n),
        "oracle": pass_at_n(correct, n),
        "unparsed_share": float(np.mean([verdict is None for row in correct for verdict in row])),
        "length": float(np.mean(lengths)),
        "distinct_share": float(np.mean(num_distinct)),
    }


def token_sums(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]],
    texts: Sequence[str],
    is_truncated: Sequence[bool],
    batch_size: int,
) -> np.ndarray:
    """
    Of completions of prompts under a model: log-probability and entropy, each summed over tokens, and the tokens.

    Args:
        model (`nn.Module`):
            A causal language model that [`~trl.SFTTrainer`] has prepared: its loss never holds the logits of all
            positions at once.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompts (`Sequence` of `str` or messages), texts (`Sequence[str]`):
            Prompts and completions.
        is_truncated (`Sequence[bool]`):
            Whether a completion was cut off: any other one ends with the end-of-sequence token.
        batch_size (`int`):
            Completions in a forward pass.

    Returns:
        `np.ndarray` of shape `(3,)`: sums over all completions, float64.
    """
    prefixes = [Prefix(prompt) for prompt in prompts]
    prompt_ids = encode(prefixes, [render(i, prefix, tokenizer) for i, prefix in enumerate(prefixes)], tokenizer)
    rows = []
    for ids, text, is_cut in zip(prompt_ids, texts, is_truncated, strict=True):
        of_text = tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append((ids, of_text if is_cut else [*of_text, tokenizer.eos_token_id]))
    rows.sort(key=lambda row: -len(row[0]) - len(row[1]))
    device = next(model.parameters()).device
    sums = np.zeros(3)
    was_training = model.training
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        width = len(batch[0][0]) + len(batch[0][1])
        input_ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, -100)
        for i, (ids, of_text) in enumerate(batch):
            end = len(ids) + len(of_text)
            input_ids[i, :end] = torch.tensor([*ids, *of_text])
            attention_mask[i, :end] = 1
            labels[i, len(ids) : end] = input_ids[i, len(ids) : end]
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        with torch.no_grad():
            outputs = model(**{name: value.to(device) for name, value in inputs.items()}, fused_lm_head=True)
        of_batch = (outputs.log_probs.double().sum(), outputs.entropy.double().sum(), outputs.label_mask.sum())
        sums += [float(value) for value in of_batch]
    model.train(was_training)
    return sums


def drift_metrics(of_policy: np.ndarray, of_start: np.ndarray) -> dict:
    """
    Drift from the sums ([`token_sums`]) of the same completions under the policy and under the one at the start.

    Example:

    ```python
    >>> drift_metrics(np.array([-10.0, 30.0, 20]), np.array([-18.0, 40.0, 20]))
    {'kl_to_start': 0.4, 'entropy': 1.5}

    ```
    """
    num_tokens = max(of_policy[2], 1)
    return {
        "kl_to_start": float((of_policy[0] - of_start[0]) / num_tokens),
        "entropy": float(of_policy[1] / num_tokens),
    }


def best_iteration(history: Sequence[dict]) -> int:
    """
    The iteration with the highest sampled accuracy on the held-out prompts, the first of equals.

    Example:

    ```python
    >>> best_iteration([{"sampled": 0.4}, {"sampled": 0.7}, {"sampled": 0.6}])
    1

    ```
    """
    return max(range(len(history)), key=lambda i: history[i]["sampled"])


def check_prompts(
    train_dataset: Dataset | None, eval_dataset: Dataset | None, needs_answers: str | None, hash_of: Callable
) -> None:
    """
    Raises `ValueError` unless the prompts can be sampled from, and none of them is held out.

    Args:
        train_dataset ([`~datasets.Dataset`]), eval_dataset ([`~datasets.Dataset`], *optional*):
            Prompts, and held-out prompts.
        needs_answers (`str`, *optional*):
            What needs the answers of the training prompts, for the message; `None`: nothing.
        hash_of (`Callable`):
            A name for a prompt.
    """
    answered = ["prompt", "answer"]
    for name, dataset, needed in (
        ("train_dataset", train_dataset, answered if needs_answers else ["prompt"]),
        ("eval_dataset", eval_dataset, answered),
    ):
        if dataset is None:
            if name == "train_dataset":
                raise ValueError("`train_dataset` is required: the prompts to sample from, in a column `prompt`.")
            continue
        missing = [column for column in needed if column not in dataset.column_names]
        if missing:
            why = f" ({needs_answers} compares answers)" if name == "train_dataset" and needs_answers else ""
            raise ValueError(
                f"`{name}` needs the columns {', '.join(needed)}{why}, but has {', '.join(dataset.column_names)}. "
                "`trl_erprm.data.to_prompt_rows` converts the layouts of GSM8K, MATH and TRL."
            )
        for row, prompt in enumerate(dataset["prompt"]):
            if not prompt:
                raise ValueError(f"Row {row} of `{name}` has an empty prompt. Remove the row, or fill it in.")
        for row, answer in enumerate(dataset["answer"] if "answer" in needed else ()):
            if answer is None:
                reason = needs_answers if name == "train_dataset" else "its accuracy"
                raise ValueError(
                    f"Row {row} of `{name}` has no answer, which {reason} needs. Remove it, or fill it in."
                )
    if eval_dataset is not None:
        held_out = {hash_of(prompt): row for row, prompt in enumerate(eval_dataset["prompt"])}
        for prompt in train_dataset["prompt"]:
            if (row := held_out.get(hash_of(prompt))) is not None:
                raise ValueError(
                    f"Row {row} of `eval_dataset` is also a training prompt. Accuracy on it would measure memory: "
                    "remove it from one of the two."
                )
