"""The task: chained modular arithmetic, its exact truth, and the mistakes of its policy.

A problem is a chain of operations, evaluated **from left to right without precedence**, modulo a small number. A
solution writes one step a line and ends with the answer line ``#<value>`` (GSM8K's ``####`` in miniature):

```text
3+4*2+1         the prompt (modulus 5)
3+4=2           step 1
2*2=4           step 2
4+1=0           step 3
#0              step 4, the answer
```

A harder one has a larger modulus, whose values above 9 are letters (`a` is 10, as in `int("a", 36)`: a value stays one
character), and distractors, other chains beside the one that is asked for, which a `?` marks:

```text
c+4*b+1         a distractor
?3+9*2+c        the chain that is asked for (modulus 13)
3+9=c           step 1
c*2=b           step 2
b+c=a           step 3
#a              step 4, the answer
```

The task is small enough for everything to be known: whether each step is right ([`check_steps`]) and the success
probability of every prefix under an ideal policy of given error rates ([`exact_value`], by dynamic programming). It
serves the quickstart, the tests of the labels and controlled studies, and nothing has to be downloaded for it.

Why the policy has *misconceptions*: where errors are purely random, a majority vote repairs nearly all of them and a
process reward model has nothing to add. So a fixed share of the facts (`3+4=` ...) is learnt wrongly: answered more
often than not with one and the same wrong value. Greedy decoding and the majority then agree on wrong answers, and
only a verifier that looks at the steps can tell. The policy is *trained* on solutions with exactly these errors;
nothing else about it is simulated: it is a transformer that samples.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..choices import check_choice
from ..labeling.estimators import entropy_regularized_value_from_probability

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SPLITS", "VALUES", "ArithmeticTask"]

Fact = tuple[int, str, int]
"""One line of the multiplication (or addition) table: left value, operator, right operand."""

SPLITS = ("train", "validation", "test")
VALUES = "0123456789abcdefghijklmnopqrstuvwxyz"
"""How values are written, one character each; a value is the index of its character."""

# The least of each argument that is a whole number; `modulus` has a range, a seed can be any.
_WHOLE_NUMBERS = {
    "modulus": None,
    "num_operations": 1,
    "num_train": 0,
    "num_validation": 0,
    "num_test": 0,
    "seed": None,
    "num_distractors": 0,
}


@dataclass(frozen=True)
class ArithmeticTask:
    r"""
    The difficulty knobs of the embedded task. Equal values give equal problems, splits and misconceptions.

    The defaults come from our own runs: with them a policy of 140k parameters samples right answers about half of the
    time, its majority of 8 is right in six problems of ten, and one of 8 samples is right in nine of ten.

    Args:
        modulus (`int`, *optional*, defaults to `5`):
            Values are the integers `0 .. modulus - 1`; from 3 to 36, so that a value is one character ([`VALUES`]). A
            prime keeps an error visible to the end: a wrong intermediate value then leads to a wrong answer unless a
            second error cancels the first. Any other modulus is as exact, but there a multiplication can bring two
            values together (modulo 4, both `1*2` and `3*2` are 2), which repairs an error.
        operators (`str`, *optional*, defaults to `"+*"`):
            The operators that occur, out of `+`, `-` and `*`.
        num_operations (`int`, *optional*, defaults to `5`):
            Operations a problem, hence steps a solution (the answer line comes on top).
        misconception_share (`float`, *optional*, defaults to `0.15`):
            Share of the facts that the policy has learnt wrongly, in [0, 1].
        systematic_error_rate (`float`, *optional*, defaults to `0.6`):
            How often a wrongly learnt fact is answered with its wrong value, in [0, 1]. Above 0.5, greedy decoding and
            the majority are wrong about it.
        random_error_rate (`float`, *optional*, defaults to `0.05`):
            How often any fact is answered with a wrong value drawn uniformly, in [0, 1].
        num_train (`int`, *optional*, defaults to `4000`):
            Problems in the training split. The three splits are disjoint.
        num_validation (`int`, *optional*, defaults to `500`):
            Problems in the validation split.
        num_test (`int`, *optional*, defaults to `500`):
            Problems in the test split.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the problems, the splits, the misconceptions and the distractors.
        num_distractors (`int`, *optional*, defaults to `0`):
            Other chains in the prompt, each on a line of its own, in random order with the one that is asked for, in
            front of which then stands a `?`. The chains that are asked for are those of the task without distractors.

    Raises:
        `ValueError`: for a value outside what is named above, a number that is not whole where it must be, or splits
            that ask for more problems than there are.

    Example:

    ```python
    >>> task = ArithmeticTask(modulus=5)
    >>> task.solve("3+4*2+1")
    ['3+4=2', '2*2=4', '4+1=0', '#0']
    >>> task.check_steps("3+4*2+1", ["3+4=2", "2*2=3", "3+1=4", "#4"])
    [True, False, True, True]
    >>> ArithmeticTask(modulus=13, num_distractors=1).solve("c+4*b+1\n?3+9*2+c")
    ['3+9=c', 'c*2=b', 'b+c=a', '#a']

    ```
    """

    modulus: int = 5
    operators: str = "+*"
    num_operations: int = 5
    misconception_share: float = 0.15
    systematic_error_rate: float = 0.6
    random_error_rate: float = 0.05
    num_train: int = 4000
    num_validation: int = 500
    num_test: int = 500
    seed: int = 0
    num_distractors: int = 0

    def __post_init__(self):
        for name, least in _WHOLE_NUMBERS.items():
            check_whole(name, getattr(self, name), least)
        if not 3 <= self.modulus <= len(VALUES):
            raise ValueError(
                f"`modulus` must be from 3 to {len(VALUES)} (a value is one character), got {self.modulus}."
            )
        if not self.operators or set(self.operators) - set("+-*"):
            raise ValueError(f"`operators` must be one or more of '+', '-' and '*', got {self.operators!r}.")
        for name in ("misconception_share", "systematic_error_rate", "random_error_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        wanted = self.num_train + self.num_validation + self.num_test
        if wanted > self.num_problems:
            raise ValueError(
                f"The splits ask for {wanted} different problems, but {self.num_operations} operations modulo "
                f"{self.modulus} with operators {self.operators!r} make only {self.num_problems}. Lower `num_train`, "
                "`num_validation` or `num_test`, or raise `num_operations` or `modulus`."
            )

    # The problems

    @cached_property
    def operations(self) -> list[tuple[str, int]]:
        """All `(operator, operand)` pairs. Left out are those that change nothing (`+0`, `-0`, `*1`), since a step
        that cannot go wrong teaches nothing, and `*0`, which would repair every earlier error."""
        return [(o, b) for o in self.operators for b in range(2 if o == "*" else 1, self.modulus)]

    @property
    def num_problems(self) -> int:
        """How many different problems exist, whatever stands beside them."""
        return self.modulus * len(self.operations) ** self.num_operations

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        rng = random.Random(f"problems-{self.seed}")
        sizes = {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}
        prompts: dict[str, None] = {}  # a dictionary keeps the order of insertion, a set does not
        while len(prompts) < sum(sizes.values()):
            prompts[self._draw_chain(rng)] = None
        drawn = self._among_distractors(prompts) if self.num_distractors else iter(prompts)
        return {split: [next(drawn) for _ in range(size)] for split, size in sizes.items()}

    def _draw_chain(self, rng: random.Random) -> str:
        chain = "".join(f"{o}{VALUES[b]}" for o, b in rng.choices(self.operations, k=self.num_operations))
        return f"{VALUES[rng.randrange(self.modulus)]}{chain}"

    def _among_distractors(self, problems: Iterable[str]) -> Iterator[str]:
        rng = random.Random(f"distractors-{self.seed}")
        for problem in problems:
            lines: list[str] = []
            while len(lines) < self.num_distractors:
                if (chain := self._draw_chain(rng)) != problem:
                    lines.append(chain)
            lines.insert(rng.randrange(len(lines) + 1), f"?{problem}")
            yield "\n".join(lines)

    def problems(self, split: str) -> list[str]:
        """The problems of a split (`"train"`, `"validation"` or `"test"`), each without its closing newline. Splits
        share no chain that is asked for; a distractor may be asked for elsewhere, where it stands unsolved here."""
        check_choice("split", split, SPLITS)
        return self._splits[split]

    def dataset(self, split: str, num_rows: int | None = None) -> Dataset:
        """
        A split as prompt data: the columns `prompt` (the problem and a newline, so that the solution starts on a line
        of its own) and `answer` (the value as it is written); the first `num_rows`, or all of them.

        Raises:
            `ValueError`: for an unknown split, or fewer than one row.
        """
        from datasets import Dataset

        if num_rows is not None:
            check_whole("num_rows", num_rows, 1)
        problems = self.problems(split)[:num_rows]
        return Dataset.from_dict(
            {"prompt": [f"{p}\n" for p in problems], "answer": [self.solve(p)[-1][1:] for p in problems]}
        )

    # The truth

    @staticmethod
    def parse(prompt: str) -> tuple[int, list[tuple[str, int]]]:
        """
        The start value and the `(operator, operand)` chain that a prompt asks for: its only line, or the one that
        starts with `?`. It reads the problems of every modulus; the methods of a task take those of its own alone.

        Raises:
            `ValueError`: where a line is not a chain such as `3+4*2`, or not exactly one of several lines is marked.
        """
        lines = prompt.strip().split("\n")
        asked = [line for line in lines if line[:1] == "?"] or lines
        chains = [line.removeprefix("?") for line in lines]
        if len(asked) != 1 or not all(_is_chain(chain) for chain in chains):
            raise ValueError(
                f"{prompt!r} is not a problem of this task; a problem reads like '3+4*2', or has several such lines "
                "and a '?' in front of the one that is asked for."
            )
        text = asked[0].removeprefix("?")
        chain = list(zip(text[1::2], text[2::2], strict=True))
        return VALUES.index(text[0]), [(o, VALUES.index(b)) for o, b in chain]

    @cached_property
    def _characters(self) -> frozenset[str]:
        return frozenset(VALUES[: self.modulus] + "+-*?\n")

    def _parse(self, prompt: str) -> tuple[int, list[tuple[str, int]]]:
        """[`parse`], of values of this task alone, those of distractors included."""
        parsed = self.parse(prompt)
        if not self._characters.issuperset(text := prompt.strip()):
            strange = next(character for character in text if character not in self._characters)
            raise ValueError(
                f"{text!r} is not a problem of this task: {strange!r} is no value modulo {self.modulus}. Values go "
                f"from 0 to {VALUES[self.modulus - 1]}; give such a problem, or a task with a larger `modulus`."
            )
        return parsed

    def _parse_for_policy(self, prompt: str) -> tuple[int, list[tuple[str, int]]]:
        """[`parse`], of values and operations of this task alone: the ideal policy knows no others."""
        start, chain = self._parse(prompt)
        for operator, b in chain:
            if (operator, b) not in self._transitions:
                known = " ".join(f"{o}{VALUES[v]}" for o, v in self.operations)
                raise ValueError(
                    f"{prompt.strip()!r} is not a problem of this task: '{operator}{VALUES[b]}' is none of its "
                    f"operations, which are {known}. Give a problem of these, as `problems` does."
                )
        return start, chain

    def result(self, a: int, operator: str, b: int) -> int:
        """The true value of a fact."""
        return {"+": a + b, "-": a - b, "*": a * b}[operator] % self.modulus

    def solve(self, prompt: str) -> list[str]:
        """
        The right solution, as steps.

        Raises:
            `ValueError`: for what is no problem of this task: 7 is no value modulo 5.
        """
        value, chain = self._parse(prompt)
        steps = []
        for operator, b in chain:
            result = self.result(value, operator, b)
            steps.append(_step(value, operator, b, result))
            value = result
        return [*steps, f"#{VALUES[value]}"]

    def check_steps(self, prompt: str, steps: Sequence[str]) -> list[bool]:
        """
        Whether each step is right **given the steps before it**: it takes the value that the step before it wrote,
        applies the operation that the problem asks for at that place, and writes the true result; the step after the
        last operation repeats the value as the answer. A prefix is right where all of its steps are.

        Returns:
            `list[bool]`: one a step. Steps beyond the answer line are wrong, and so is all that follows a line whose
            result cannot be read.

        Raises:
            `ValueError`: as [`solve`][ArithmeticTask.solve].
        """
        value, chain = self._parse(prompt)
        readable = VALUES[: max(10, self.modulus)]  # every digit; letters where the task has them
        verdicts = []
        for index, step in enumerate(steps):
            if index < len(chain) and value is not None:
                operator, b = chain[index]
                verdicts.append(step == _step(value, operator, b, self.result(value, operator, b)))
                # An error is carried on as a solver who made it would: the next step starts from what was written.
                written = step.rpartition("=")[2]
                value = readable.index(written) if len(written) == 1 and written in readable else None
            else:
                verdicts.append(index == len(chain) and value is not None and step == f"#{VALUES[value]}")
        return verdicts

    def is_well_formed(self, prompt: str, steps: Sequence[str]) -> bool:
        """
        Whether a solution has every step that the problem asks for and one answer line at its end, right or wrong, in
        values of this task: 7 is none modulo 5.

        A solution with a step skipped must not compete: under `min` aggregation it would win by having fewer steps.

        Raises:
            `ValueError`: as [`solve`][ArithmeticTask.solve], for the problem; never for the solution.
        """
        _, chain = self._parse(prompt)
        return (
            len(steps) == len(chain) + 1
            and all(
                len(step) == 5
                and step[1:4] == f"{o}{VALUES[b]}="
                and self._is_value(step[0])
                and self._is_value(step[4])
                for step, (o, b) in zip(steps, chain, strict=False)
            )
            and len(steps[-1]) == 2
            and steps[-1][0] == "#"
            and self._is_value(steps[-1][1])
        )

    def _is_value(self, text: str) -> bool:
        return len(text) == 1 and text in VALUES[: self.modulus]

    # The ideal policy

    @cached_property
    def misconceptions(self) -> dict[Fact, int]:
        """The wrongly learnt facts and the wrong value of each."""
        rng = random.Random(f"misconceptions-{self.seed}")
        facts = [(a, o, b) for a in range(self.modulus) for o, b in self.operations]
        return {
            fact: rng.choice([v for v in range(self.modulus) if v != self.result(*fact)])
            for fact in sorted(rng.sample(facts, round(self.misconception_share * len(facts))))
        }

    @cached_property
    def _transitions(self) -> dict[tuple[str, int], np.ndarray]:
        """By operation, the probability of each value that is written behind it (column) given the one before it
        (row), of shape `(modulus, modulus)`."""
        transitions = {}
        for operator, b in self.operations:
            matrix = np.full((self.modulus, self.modulus), self.random_error_rate / (self.modulus - 1))
            for a, p in enumerate(matrix):
                fact, truth = (a, operator, b), self.result(a, operator, b)
                p[truth] = 1 - self.random_error_rate
                if fact in self.misconceptions:
                    moved = p[truth] * self.systematic_error_rate
                    p[truth] -= moved
                    p[self.misconceptions[fact]] += moved
            transitions[operator, b] = matrix
        return transitions

    def result_distribution(self, a: int, operator: str, b: int) -> np.ndarray:
        """What the ideal policy writes behind `a operator b =`: probabilities of shape `(modulus,)`."""
        return self._transitions[operator, b][a]

    @cached_property
    def _cumulative(self) -> dict[tuple[str, int], list[list[float]]]:
        sums = {operation: matrix.cumsum(axis=1) for operation, matrix in self._transitions.items()}
        return {operation: (of_rows / of_rows[:, -1:]).tolist() for operation, of_rows in sums.items()}

    def sample_solution(self, prompt: str, rng: np.random.Generator) -> list[str]:
        """
        A solution of the ideal policy: it errs at the given rates and goes on from what it wrote.

        Raises:
            `ValueError`: for what is no problem of this task, in its values and its operations.
        """
        value, chain = self._parse_for_policy(prompt)
        steps = []
        for operator, b in chain:
            # what `rng.choice(modulus, p=...)` draws, in a tenth of the time
            written = bisect_right(self._cumulative[operator, b][value], rng.random())
            steps.append(_step(value, operator, b, written))
            value = written
        return [*steps, f"#{VALUES[value]}"]

    def exact_value(self, prompt: str, steps: Sequence[str] = (), eta: float = 0.0) -> float:
        r"""
        The entropy-regularized value of a prefix under the ideal policy, exactly:
        V_eta(s) = (1/eta) log(1 + p (e^eta - 1)), where p is the probability that a completion ends in the right
        answer (arXiv 2412.11006, for outcomes 0 and 1). With `eta=0`, the default, it is p itself.

        p is found by dynamic programming over the distribution of the running value.

        Args:
            prompt (`str`):
                The problem.
            steps (`Sequence[str]`, *optional*):
                The steps written so far, well formed, right or wrong.
            eta (`float`, *optional*, defaults to `0.0`):
                Entropy parameter, any number, `inf` and `-inf` included.

        Returns:
            `float`: the value, in [0, 1].

        Raises:
            `ValueError`: for more steps than a solution has, a last step that ends in no value of this task, or what
                is no problem of this task, in its values and its operations.
        """
        start, chain = self._parse_for_policy(prompt)
        truth = VALUES.index(self.solve(prompt)[-1][1:])
        if steps:
            written = steps[-1][-1:]
            if len(steps) > len(chain) + 1 or not self._is_value(written):
                raise ValueError(
                    f"{list(steps)!r} is not a prefix of a solution of {prompt.strip()!r} modulo {self.modulus}. A "
                    f"prefix has at most {len(chain) + 1} steps, and its last one ends in a value from 0 to "
                    f"{VALUES[self.modulus - 1]}."
                )
            start = VALUES.index(written)
        distribution = np.zeros(self.modulus)
        distribution[start] = 1.0
        for operator, b in chain[len(steps) :]:
            distribution = (distribution[:, None] * self._transitions[operator, b]).sum(axis=0)
        return float(entropy_regularized_value_from_probability(min(1.0, distribution[truth]), eta))


def check_whole(name: str, value: object, least: int | None) -> None:
    """Raises `ValueError` unless `value` is an `int`, and at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"`{name}` must be a whole number, got {value!r}. Pass an int.")
    if least is not None and value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}. Raise it, or leave it out.")


def _is_chain(text: str) -> bool:
    return (
        len(text) % 2 == 1
        and all(value in VALUES for value in text[::2])
        and all(operator in "+-*" for operator in text[1::2])
    )


def _step(value: int, operator: str, b: int, result: int) -> str:
    return f"{VALUES[value]}{operator}{VALUES[b]}={VALUES[result]}"
