"""Candidates of a task's held-out problems: sampled once a seed, scored by every PRM, with the truth about each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from trl_erprm.arithmetic import ArithmeticTask
from trl_erprm.evaluation.curves import best_of_n_curves
from trl_erprm.labeling.estimators import (
    entropy_regularized_value_from_counts,
    entropy_regularized_value_from_probability,
)
from trl_erprm.manifest import write_atomically
from trl_erprm.prm.aggregation import aggregate
from trl_erprm.rollout import RolloutEngine
from trl_erprm.rollout.engine import Prefix, SamplingOptions


@dataclass(frozen=True)
class Pool:
    """
    Candidates of some problems, equal ones held once.

    Args:
        task ([`ArithmeticTask`]): where the problems are from.
        problems (`list[str]`): P problems.
        problem_of (`list[int]` of length U): the problem of each different well-formed solution.
        steps (`list[list[str]]` of length U): its steps, K of them as in every well-formed solution.
        candidates (`list[list[int | None]]` of shape `(P, M)`): which solution each candidate is; `None`: malformed.
        answers (`list[list[str | None]]` of shape `(P, M)`): the answer of each candidate, `None` where it has none.
    """

    task: ArithmeticTask
    problems: list[str]
    problem_of: list[int]
    steps: list[list[str]]
    candidates: list[list[int | None]]
    answers: list[list[str | None]]

    @classmethod
    def of_texts(cls, task: ArithmeticTask, problems: Sequence[str], texts: Sequence[Sequence[str]]) -> "Pool":
        """From the texts of the candidates of each problem."""
        numbers: dict[tuple, int] = {}
        candidates, answers = [], []
        for index, (problem, of_problem) in enumerate(zip(problems, texts, strict=True)):
            split = [tuple(text.rstrip("\n").split("\n")) for text in of_problem]
            is_well_formed = [task.is_well_formed(problem, steps) for steps in split]
            candidates.append(
                [
                    numbers.setdefault((index, steps), len(numbers)) if is_fine else None
                    for steps, is_fine in zip(split, is_well_formed, strict=True)
                ]
            )
            answers.append([steps[-1][1:] if steps[-1].startswith("#") else None for steps in split])
        problem_of = [index for index, _ in numbers]
        return cls(task, list(problems), problem_of, [list(steps) for _, steps in numbers], candidates, answers)

    def save(self, path: Path) -> None:
        """Writes all but the task."""
        names = ("problems", "problem_of", "steps", "candidates", "answers")
        write_atomically(path, json.dumps({name: getattr(self, name) for name in names}) + "\n")

    @classmethod
    def load(cls, path: Path, task: ArithmeticTask) -> "Pool":
        """What [`save`] wrote."""
        return cls(task, **json.loads(path.read_text()))

    @cached_property
    def is_correct(self) -> np.ndarray:
        """Whether the answer of each candidate is right, of shape `(P, M)`. A malformed one counts as wrong."""
        truth = [self.task.solve(problem)[-1][1:] for problem in self.problems]
        return np.array(
            [
                [number is not None and answer == true for number, answer in zip(numbers, of_problem, strict=True)]
                for numbers, of_problem, true in zip(self.candidates, self.answers, truth, strict=True)
            ]
        )

    @cached_property
    def num_copies(self) -> np.ndarray:
        """How many candidates each solution is, of shape `(U,)`."""
        numbers = [number for of_problem in self.candidates for number in of_problem if number is not None]
        return np.bincount(numbers, minlength=len(self.steps))

    @cached_property
    def is_right_step(self) -> np.ndarray:
        """Whether each step is right given those before it, of shape `(U, K)`."""
        return np.array(
            [
                self.task.check_steps(self.problems[i], steps)
                for i, steps in zip(self.problem_of, self.steps, strict=True)
            ]
        )

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The exact success probability behind each step, of shape `(U, K)`: 0 or 1 behind the answer."""
        known: dict[tuple, float] = {}
        for index, steps in zip(self.problem_of, self.steps, strict=True):
            for k, step in enumerate(steps):  # it depends on what was written last
                key = (index, k, step[-1])
                if key not in known:
                    known[key] = self.task.exact_value(self.problems[index], steps[: k + 1])
        return np.array(
            [
                [known[index, k, step[-1]] for k, step in enumerate(steps)]
                for index, steps in zip(self.problem_of, self.steps, strict=True)
            ]
        )

    def of_candidates(self, of_solutions: Sequence[float] | np.ndarray) -> np.ndarray:
        """From a number a solution to one a candidate, of shape `(P, M)`; NaN where it is malformed."""
        values = np.append(np.asarray(of_solutions, dtype=np.float64), np.nan)
        return values[[[-1 if number is None else number for number in numbers] for numbers in self.candidates]]

    def best_of_n(self, of_solutions: Sequence[float] | np.ndarray, sizes: Sequence[int]) -> dict[str, float]:
        """Accuracy of the candidate with the highest score among n, for each n, over all subsets of the candidates."""
        curve = best_of_n_curves(self.of_candidates(of_solutions), self.is_correct).mean(axis=0)
        return {str(n): float(curve[n - 1]) for n in sizes}


def sample_pool(
    task: ArithmeticTask, engine: RolloutEngine, num_problems: int, num_candidates: int, max_new_tokens: int, seed: int
) -> Pool:
    """Candidates at temperature 1, from the test split. Their seed is not that of the rollouts."""
    problems = task.problems("test")[:num_problems]
    options = SamplingOptions(max_new_tokens=max_new_tokens, seed=seed + 500_009)
    completions = engine.generate([Prefix(f"{problem}\n") for problem in problems], num_candidates, options)
    return Pool.of_texts(task, problems, [[completion.text for completion in of_one] for of_one in completions])


def aggregated(step_scores: np.ndarray, how: str) -> np.ndarray:
    """One number a solution, from scores of shape `(U, K)`."""
    return np.array([aggregate(scores, how) for scores in step_scores.tolist()])


def expected_labels(probabilities: np.ndarray, num_rollouts: int, eta: float) -> np.ndarray:
    r"""
    The mean of the labels that prefixes of success probability p get from N rollouts,

        E V_eta(k / N),   k ~ Binomial(N, p),

    which is what a perfect fit to them learns (the soft cross-entropy is least at the mean label). It is a Bernstein
    polynomial in p, and rises with p, as V does: also for hard labels, where it is 1 - (1 - p)^N. It is not V_eta(p):
    below it for eta > 0 (Jensen).

    Args:
        probabilities (`np.ndarray`): success probabilities p, of any shape.
        num_rollouts (`int`): N; 0 stands for infinitely many, V_eta(p) itself.
        eta (`float`): entropy parameter.

    Example:

    ```python
    >>> expected_labels(np.array([0.0, 0.1, 1.0]), num_rollouts=4, eta=float("inf")).round(4)  # 1 - 0.9 ** 4
    array([0.    , 0.3439, 1.    ])

    ```
    """
    if num_rollouts == 0:
        return np.asarray(entropy_regularized_value_from_probability(probabilities, eta))
    from scipy.stats import binom

    counts = np.arange(num_rollouts + 1)
    values = entropy_regularized_value_from_counts(counts, num_rollouts, eta)
    different, where = np.unique(probabilities, return_inverse=True)
    means = binom.pmf(counts, num_rollouts, different[:, None]) @ values
    return means[where].reshape(np.shape(probabilities))
