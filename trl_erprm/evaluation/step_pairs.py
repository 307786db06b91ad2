"""Does a process reward model put right prefixes above wrong ones? Pure statistics over scores and verdicts.

Prefixes are compared only within one problem and with equally many steps: so neither the difficulty of a problem nor
the place in the solution, both of which move a value up and down, can be mistaken for judgement of the steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def step_pair_accuracy(
    problems: Sequence[Hashable],
    steps: Sequence[Sequence[str]],
    step_scores: Sequence[Sequence[float]],
    is_right: Sequence[Sequence[bool]],
) -> tuple[float, int]:
    """Share of pairs of a right and a wrong prefix, of one problem and one length, in which the right one scores
    higher.

    Equal prefixes of several solutions count once. A tie counts half, as in the area under the ROC curve, of which
    this is the form within groups.

    Args:
        problems (`Sequence[Hashable]` of length N):
            The problem of each solution.
        steps (`Sequence[Sequence[str]]` of length N):
            The steps of each solution.
        step_scores (`Sequence[Sequence[float]]` of the shape of `steps`):
            The score of each step.
        is_right (`Sequence[Sequence[bool]]` of the shape of `steps`):
            Whether the prefix that ends with the step is right, hence all of its steps.

    Returns:
        `tuple[float, int]`: the share in [0, 1], higher is better (nan without a pair), and the number of pairs.

    Raises:
        ValueError: if the lengths differ, with the number of the solution.

    Example:

    ```python
    >>> step_pair_accuracy(
    ...     problems=["1+1+1", "1+1+1"],
    ...     steps=[["1+1=2", "2+1=3"], ["1+1=2", "2+1=4"]],
    ...     step_scores=[[0.9, 0.8], [0.9, 0.3]],
    ...     is_right=[[True, True], [True, False]],
    ... )
    (1.0, 1)

    ```
    """
    if not len(problems) == len(steps) == len(step_scores) == len(is_right):
        raise ValueError(
            f"Each solution needs a problem, steps, scores and verdicts, got {len(problems)}, {len(steps)}, "
            f"{len(step_scores)} and {len(is_right)} of them."
        )
    groups: dict[tuple[Hashable, int], dict[tuple[str, ...], tuple[float, bool]]] = {}
    for number, (problem, texts, scores, verdicts) in enumerate(
        zip(problems, steps, step_scores, is_right, strict=True)
    ):
        if not len(texts) == len(scores) == len(verdicts):
            raise ValueError(
                f"Solution {number} has {len(texts)} steps, {len(scores)} scores and {len(verdicts)} verdicts. Give "
                "one score and one verdict a step."
            )
        for length, (score, verdict) in enumerate(zip(scores, verdicts, strict=True), start=1):
            groups.setdefault((problem, length), {})[tuple(texts[:length])] = (score, bool(verdict))
    won, num_pairs = 0.0, 0
    for prefixes in groups.values():
        right = np.array([score for score, verdict in prefixes.values() if verdict])
        wrong = np.array([score for score, verdict in prefixes.values() if not verdict])
        won += (right[:, None] > wrong).sum() + 0.5 * (right[:, None] == wrong).sum()
        num_pairs += len(right) * len(wrong)
    return (float(won / num_pairs) if num_pairs else float("nan")), num_pairs
