"""The table of a reinforcement-learning run."""

import pytest
from rich.console import Console

from trl_erprm.evaluation.best_of_n import clustered_interval
from trl_erprm.evaluation.reinforcement import reinforcement_table


def cells(table):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return [[c.strip() for c in line.split("│")[1:-1]] for line in capture.get().splitlines() if line.startswith("│")]


def test_rows():
    accuracy, reward, length = (
        f"eval_{name}"
        for name in ("rewards/answer_reward/mean", "rewards/process_reward/mean", "completions/mean_length")
    )
    history = [
        {accuracy: 0.5, reward: 0.25, length: 23.4},
        {"step": 5, "loss": 0.1},
        {"step": 10, accuracy: 0.8, length: 20.0},
        {"step": 10, accuracy: 0.1},  # evaluated again
    ]
    _, low, high = clustered_interval([1.0] * 5 + [0.0] * 5)
    rows = cells(reinforcement_table(history, 10))
    assert rows[0] == ["0", f"50.0 [{100 * low:.1f}, {100 * high:.1f}]", "0.250", "23"]
    assert rows[1][0] == "10" and rows[1][1].startswith("80.0 [") and rows[1][2:] == ["-", "20"]
    assert len(rows) == 2


@pytest.mark.parametrize("num_samples, words", [(1, "one sample each"), (4, "4 samples each")])
def test_title(num_samples, words):
    table = reinforcement_table([{"eval_rewards/answer_reward/mean": 0.5}], 10, num_samples)
    assert table.title == f"10 held-out problems, {words}"


def test_title_of_one_problem():
    table = reinforcement_table([{"eval_rewards/answer_reward/mean": 1.0}], 1)
    assert table.title == "1 held-out problem, one sample each"


def test_nothing_evaluated():
    with pytest.raises(ValueError, match="holds no evaluation with 'eval_rewards/answer_reward/mean'"):
        reinforcement_table([{"step": 1, "loss": 0.1}], 10)
