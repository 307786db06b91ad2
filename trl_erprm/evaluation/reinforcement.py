"""Tables of reinforcement-learning runs, made from what the trainer logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ..wording import counted
from .best_of_n import clustered_interval

_ACCURACY = "eval_rewards/answer_reward/mean"
_PROCESS_REWARD = "eval_rewards/process_reward/mean"


def reinforcement_table(log_history: Sequence[Mapping[str, Any]], num_problems: int, num_samples: int = 1) -> Table:
    """
    Held-out accuracy over a run of GRPO, RLOO or PPO that was evaluated with an [`AnswerReward`].

    Args:
        log_history (`Sequence[Mapping[str, Any]]`):
            What the trainer logged (`trainer.state.log_history`); entries without an evaluation are passed over, and
            of entries of one step the first counts.
        num_problems (`int`):
            Held-out problems: the interval is that of a share of so many.
        num_samples (`int`, *optional*, defaults to `1`):
            Samples of each (`num_generations_eval`). With several, the interval is wider than it need be: how the
            samples of a problem agree is not logged.

    Returns:
        [`~rich.table.Table`]: a row for each evaluation: step, accuracy in percent with its 95 % interval, mean
        process reward, length in tokens.

    Raises:
        ValueError: where nothing was evaluated.
    """
    rows: dict[int, Mapping[str, Any]] = {}
    for entry in log_history:
        if _ACCURACY in entry:
            rows.setdefault(int(entry.get("step", 0)), entry)
    if not rows:
        raise ValueError(
            f"`log_history` holds no evaluation with {_ACCURACY!r}. Put an AnswerReward among the reward functions "
            "and give the trainer an `eval_dataset`."
        )
    samples = "one sample" if num_samples == 1 else f"{num_samples} samples"
    table = Table(title=f"{counted(num_problems, 'held-out problem')}, {samples} each")
    for name in ("step", "accuracy [95 %]", "process reward", "tokens"):
        table.add_column(name, justify="right")
    for step, entry in sorted(rows.items()):
        num_right = round(entry[_ACCURACY] * num_problems)
        mean, low, high = clustered_interval([1.0] * num_right + [0.0] * (num_problems - num_right))
        reward, length = entry.get(_PROCESS_REWARD), entry.get("eval_completions/mean_length")
        table.add_row(
            str(step),
            Text(f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"),
            "-" if reward is None else f"{reward:.3f}",
            "-" if length is None else f"{length:.0f}",
        )
    return table
