"""`trl_erprm.evaluation.step_pairs`: pairs counted by hand."""

import math

import numpy as np
import pytest

from trl_erprm.evaluation.step_pairs import step_pair_accuracy


def test_by_hand():
    """
    Problem a, length 1: one right (0.9) against one wrong (0.5), won. Length 2: 0.4 against 0.7 and 0.4: lost, tied.

    Problem b has only right prefixes, hence no pair; no pair crosses problems or lengths.
    """
    accuracy, num_pairs = step_pair_accuracy(
        problems=["a", "a", "a", "b"],
        steps=[["x", "y"], ["x", "z"], ["w", "v"], ["x", "q"]],
        step_scores=[[0.9, 0.4], [0.9, 0.7], [0.5, 0.4], [0.1, 0.0]],
        is_right=[[True, True], [True, False], [False, False], [True, True]],
    )
    assert num_pairs == 3
    assert accuracy == pytest.approx((1 + 0 + 0.5) / 3)


def test_equal_prefixes_count_once():
    one = step_pair_accuracy(["a"] * 2, [["x"], ["y"]], [[0.2], [0.8]], [[True], [False]])
    many = step_pair_accuracy(["a"] * 5, [["x"], ["y"], ["x"], ["x"], ["y"]], [[0.2], [0.8], [0.2], [0.2], [0.8]],
                              [[True], [False], [True], [True], [False]])  # fmt: skip
    assert one == many == (0.0, 1)


def test_against_a_naive_loop():
    rng = np.random.default_rng(0)
    problems = [int(p) for p in rng.integers(0, 3, 60)]
    steps = [[f"{i}-{k}" for k in range(int(rng.integers(1, 4)))] for i in range(60)]
    scores = [[float(np.round(rng.random(), 1)) for _ in s] for s in steps]
    right = [[bool(rng.integers(2)) for _ in s] for s in steps]
    won = total = 0
    for i in range(60):
        for j in range(60):
            for k in range(min(len(steps[i]), len(steps[j]))):
                if problems[i] == problems[j] and right[i][k] and not right[j][k]:
                    total += 1
                    won += (scores[i][k] > scores[j][k]) + (scores[i][k] == scores[j][k]) / 2
    assert step_pair_accuracy(problems, steps, scores, right) == (pytest.approx(won / total), total)


def test_without_a_pair():
    accuracy, num_pairs = step_pair_accuracy(["a"], [["x"]], [[0.5]], [[True]])
    assert math.isnan(accuracy) and num_pairs == 0


def test_lengths_that_differ():
    with pytest.raises(ValueError, match="Solution 1 has 2 steps, 1 scores and 2 verdicts"):
        step_pair_accuracy(["a", "a"], [["x"], ["x", "y"]], [[0.5], [0.5]], [[True], [True, True]])
    with pytest.raises(ValueError, match="got 1, 2, 1 and 1 of them"):
        step_pair_accuracy(["a"], [["x"], ["y"]], [[0.5]], [[True]])
