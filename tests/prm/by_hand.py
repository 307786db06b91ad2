"""Step scores once more, without a format, a collator or a batch: what the trainer's tests compare with."""

import numpy as np
import torch

from tests.tiny import CAUSAL
from trl_erprm.arithmetic import build_tokenizer

ROWS = [
    {"prompt": "3+4*2\n", "completions": ["3+4=2", "2*2=4", "#4"], "labels": [0.9, 0.3, 1.0]},
    {"prompt": "1+1\n", "completions": ["1+1=2"], "labels": [0.2]},
]


def log_odds_by_hand(model, row, head):
    """A plain forward of one unpadded solution, laid out here once more; the log-odds at each tag."""
    tokenizer = build_tokenizer()

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    if head is CAUSAL:
        tag, joiner, input_ids = "ки", "\n", ids(row["prompt"] + "\n")
    else:
        tag, joiner, input_ids = "\n", "", ids(row["prompt"])
    ends = []
    for k, step in enumerate(row["completions"]):
        input_ids = input_ids + ids((joiner if k else "") + step) + ids(tag)
        ends.append(len(input_ids) - 1)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([input_ids])).logits[0, ends].double().numpy()
    if head is CAUSAL:
        return logits[:, ids("+")[0]] - logits[:, ids("-")[0]]
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def random_rows(num_rows: int, seed: int = 0, max_steps: int = 5) -> list[dict]:
    """Solutions of one to `max_steps` steps with soft labels, some steps without one."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        values = rng.integers(0, 5, size=(rng.integers(1, max_steps + 1), 3))
        least = 6 * rng.integers(0, 2)  # half of the solutions have no bad step
        labels = [
            None if k and rng.random() < 0.2 else float(rng.integers(least, 11)) / 10 for k in range(len(values))
        ]
        rows.append(
            {
                "prompt": "+".join(str(v) for v in rng.integers(0, 10, rng.integers(1, 8))) + "\n",
                "completions": [f"{a}+{b}={c}" for a, b, c in values],
                "labels": labels,
            }
        )
    return rows


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]
