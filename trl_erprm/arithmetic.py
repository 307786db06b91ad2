"""The embedded task: chained modular arithmetic, its exact truth, and a tiny policy that makes real mistakes.

A problem is a chain of operations, evaluated **from left to right without precedence**, modulo a small number. A
solution writes one step a line and ends with the answer line ``#<value>`` (GSM8K's ``####`` in miniature):

```text
3+4*2+1         the prompt (modulus 5)
3+4=2           step 1
2*2=4           step 2
4+1=0           step 3
#0              step 4, the answer
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

import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .choices import check_choice
from .labeling.estimators import entropy_regularized_value_from_probability

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM


Fact = tuple[int, str, int]
"""One line of the multiplication (or addition) table: left value, operator, right operand."""

SPLITS = ("train", "validation", "test")
STEP_TAG = "ки"
"""The tag of Math-Shepherd and ER-PRM; the tiny tokenizer has it as one token, for the `causal_lm` head."""


@dataclass(frozen=True)
class ArithmeticTask:
    r"""
    The difficulty knobs of the embedded task. Equal values give equal problems, splits and misconceptions.

    The defaults come from our own runs: with them a policy of 140k parameters samples right answers about half of the
    time, its majority of 8 is right in six problems of ten, and one of 8 samples is right in nine of ten.

    Args:
        modulus (`int`, *optional*, defaults to `5`):
            Values are the integers `0 .. modulus - 1`; from 3 to 10, so that a value is one character. A prime keeps
            an error visible to the end: a wrong intermediate value then leads to a wrong answer unless a second error
            cancels the first.
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
            Seed of the problems, the splits and the misconceptions.

    Example:

    ```python
    >>> task = ArithmeticTask(modulus=5)
    >>> task.solve("3+4*2+1")
    ['3+4=2', '2*2=4', '4+1=0', '#0']
    >>> task.check_steps("3+4*2+1", ["3+4=2", "2*2=3", "3+1=4", "#4"])
    [True, False, True, True]

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

    def __post_init__(self):
        if not 3 <= self.modulus <= 10:
            raise ValueError(f"`modulus` must be from 3 to 10 (a value is one character), got {self.modulus}.")
        if not self.operators or set(self.operators) - set("+-*"):
            raise ValueError(f"`operators` must be one or more of '+', '-' and '*', got {self.operators!r}.")
        if self.num_operations < 1:
            raise ValueError(f"`num_operations` must be at least 1, got {self.num_operations}.")
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
        """How many different problems exist."""
        return self.modulus * len(self.operations) ** self.num_operations

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        rng = random.Random(f"problems-{self.seed}")
        sizes = {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}
        prompts: dict[str, None] = {}  # a dictionary keeps the order of insertion, a set does not
        while len(prompts) < sum(sizes.values()):
            chain = "".join(f"{o}{b}" for o, b in rng.choices(self.operations, k=self.num_operations))
            prompts[f"{rng.randrange(self.modulus)}{chain}"] = None
        drawn = iter(prompts)
        return {split: [next(drawn) for _ in range(size)] for split, size in sizes.items()}

    def problems(self, split: str) -> list[str]:
        """The problems of a split (`"train"`, `"validation"` or `"test"`), each without its closing newline."""
        check_choice("split", split, SPLITS)
        return self._splits[split]

    def dataset(self, split: str, num_rows: int | None = None) -> Dataset:
        """
        A split as prompt data: the columns `prompt` (the chain and a newline, so that the solution starts on a line of
        its own) and `answer` (the value as a string).
        """
        from datasets import Dataset

        problems = self.problems(split)[:num_rows]
        return Dataset.from_dict(
            {"prompt": [f"{p}\n" for p in problems], "answer": [self.solve(p)[-1][1:] for p in problems]}
        )

    # The truth

    @staticmethod
    def parse(prompt: str) -> tuple[int, list[tuple[str, int]]]:
        """
        The start value and the `(operator, operand)` chain of a prompt.

        Raises:
            `ValueError`: where the text is not a chain such as `3+4*2`.
        """
        text = prompt.strip()
        chain = list(zip(text[1::2], text[2::2], strict=False))
        if (
            len(text) % 2 == 0
            or not text[0].isdigit()
            or not all(o in "+-*" and b.isdigit() and b.isascii() for o, b in chain)
        ):
            raise ValueError(f"{prompt!r} is not a problem of this task; a problem reads like '3+4*2'.")
        return int(text[0]), [(o, int(b)) for o, b in chain]

    def result(self, a: int, operator: str, b: int) -> int:
        """The true value of a fact."""
        return {"+": a + b, "-": a - b, "*": a * b}[operator] % self.modulus

    def solve(self, prompt: str) -> list[str]:
        """The right solution, as steps."""
        value, chain = self.parse(prompt)
        steps = []
        for operator, b in chain:
            steps.append(f"{value}{operator}{b}={self.result(value, operator, b)}")
            value = self.result(value, operator, b)
        return [*steps, f"#{value}"]

    def check_steps(self, prompt: str, steps: Sequence[str]) -> list[bool]:
        """
        Whether each step is right **given the steps before it**: it takes the value that the step before it wrote,
        applies the operation that the problem asks for at that place, and writes the true result; the step after the
        last operation repeats the value as the answer. A prefix is right where all of its steps are.

        Returns:
            `list[bool]`: one a step. Steps beyond the answer line are wrong, and so is all that follows a line whose
            result cannot be read.
        """
        value, chain = self.parse(prompt)
        verdicts = []
        for index, step in enumerate(steps):
            if index < len(chain) and value is not None:
                operator, b = chain[index]
                verdicts.append(step == f"{value}{operator}{b}={self.result(value, operator, b)}")
                # An error is carried on as a solver who made it would: the next step starts from what was written.
                written = step.rpartition("=")[2]
                value = int(written) if len(written) == 1 and written.isdigit() else None
            else:
                verdicts.append(index == len(chain) and value is not None and step == f"#{value}")
        return verdicts

    def is_well_formed(self, prompt: str, steps: Sequence[str]) -> bool:
        """
        Whether a solution has every step that the problem asks for and one answer line at its end, right or wrong, in
        values of this task: 7 is none modulo 5.

        A solution with a step skipped must not compete: under `min` aggregation it would win by having fewer steps.
        """
        _, chain = self.parse(prompt)
        return (
            len(steps) == len(chain) + 1
            and all(
                len(step) == 5 and step[1:4] == f"{o}{b}=" and self._is_value(step[0]) and self._is_value(step[4])
                for step, (o, b) in zip(steps, chain, strict=False)
            )
            and len(steps[-1]) == 2
            and steps[-1][0] == "#"
            and self._is_value(steps[-1][1])
        )

    def _is_value(self, text: str) -> bool:
        return len(text) == 1 and text in "0123456789"[: self.modulus]

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
    def _result_distributions(self) -> dict[Fact, np.ndarray]:
        distributions = {}
        for a in range(self.modulus):
            for operator, b in self.operations:
                fact, truth = (a, operator, b), self.result(a, operator, b)
                p = np.full(self.modulus, self.random_error_rate / (self.modulus - 1))
                p[truth] = 1 - self.random_error_rate
                if fact in self.misconceptions:
                    moved = p[truth] * self.systematic_error_rate
                    p[truth] -= moved
                    p[self.misconceptions[fact]] += moved
                distributions[fact] = p
        return distributions

    def result_distribution(self, a: int, operator: str, b: int) -> np.ndarray:
        """What the ideal policy writes behind `a operator b =`: probabilities of shape `(modulus,)`."""
        return self._result_distributions[(a, operator, b)]

    def sample_solution(self, prompt: str, rng: np.random.Generator) -> list[str]:
        """A solution of the ideal policy: it errs at the given rates and goes on from what it wrote."""
        value, chain = self.parse(prompt)
        steps = []
        for operator, b in chain:
            written = int(rng.choice(self.modulus, p=self.result_distribution(value, operator, b)))
            steps.append(f"{value}{operator}{b}={written}")
            value = written
        return [*steps, f"#{value}"]

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
            `ValueError`: for more steps than a solution has, or a last step that ends in no value of this task.
        """
        start, chain = self.parse(prompt)
        truth = int(self.solve(prompt)[-1][1:])
        if steps:
            written = steps[-1][-1:]
            if len(steps) > len(chain) + 1 or not self._is_value(written):
                raise ValueError(
                    f"{list(steps)!r} is not a prefix of a solution of {prompt.strip()!r} modulo {self.modulus}. A "
                    f"prefix has at most {len(chain) + 1} steps, and its last one ends in a value from 0 to "
                    f"{self.modulus - 1}."
                )
            start = int(written)
        distribution = np.zeros(self.modulus)
        distribution[start] = 1.0
        for operator, b in chain[len(steps) :]:
            distribution = sum(distribution[a] * self.result_distribution(a, operator, b) for a in range(self.modulus))
        return float(entropy_regularized_value_from_probability(min(1.0, distribution[truth]), eta))


# The tiny models


def build_tokenizer() -> PreTrainedTokenizerBase:
    """
    The tokenizer of the embedded task: 80 tokens, no file needed.

    An operation with its operand is one token (`*3`, and `*3=` inside a step), everything else is a character. Merged
    so, a step is five tokens with its newline, and checking it depends on three of them: in our runs both the policy
    and the PRM learnt several times faster than on single characters.

    It is a `Qwen2Tokenizer`, because transformers loads any tokenizer beside a Qwen2 configuration as one, whatever
    class it was saved as; the merged operations are added tokens, which that class keeps whole.
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
    operations = [f"{o}{b}{e}" for o in "+-*" for b in range(10) for e in ("=", "")]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in [*operations, STEP_TAG]])
    return tokenizer


def build_model(
    hidden_size: int = 64, num_layers: int = 2, initializer_range: float = 0.1, seed: int = 0
) -> Qwen2ForCausalLM:
    """
    A Qwen2 of about 140k parameters with random weights, for [`build_tokenizer`]'s vocabulary.

    Args:
        hidden_size (`int`, *optional*, defaults to `64`):
            Width; the feed-forward layers are four times as wide.
        num_layers (`int`, *optional*, defaults to `2`):
            Depth.
        initializer_range (`float`, *optional*, defaults to `0.1`):
            Standard deviation of the weights. Transformers' default of 0.02 is made for widths in the thousands;
            at width 64 it leaves the layers nearly silent: in our runs learning then began several times later.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights. The global random state is left as it was.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
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


def train_policy(
    task: ArithmeticTask,
    output_dir: str | os.PathLike,
    *,
    num_steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    solutions_per_problem: int = 5,
    seed: int = 0,
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
            Highest learning rate, reached after a tenth of the steps.
        solutions_per_problem (`int`, *optional*, defaults to `5`):
            Solutions drawn for each training problem.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights, the solutions and the order of the batches.

    Returns:
        `Path`: the directory of the model.
    """
    import torch
    from transformers import Trainer, TrainingArguments

    output_dir = Path(output_dir)
    identity = {
        "task": asdict(task),
        "num_steps": num_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "solutions_per_problem": solutions_per_problem,
        "seed": seed,
    }
    record = output_dir / "arithmetic_policy.json"
    if record.exists():
        if json.loads(record.read_text()) == identity:
            return output_dir
        raise ValueError(
            f"{output_dir} holds a policy that was trained with other arguments ({record.read_text()}), not with "
            f"{json.dumps(identity)}. Give another directory, or delete this one."
        )

    tokenizer, rng = build_tokenizer(), np.random.default_rng(seed)
    rows = []
    for problem in task.problems("train") * solutions_per_problem:
        prompt_ids = tokenizer(f"{problem}\n", add_special_tokens=False)["input_ids"]
        solution_ids = tokenizer("\n".join(task.sample_solution(problem, rng)), add_special_tokens=False)["input_ids"]
        rows.append((prompt_ids, [*solution_ids, tokenizer.eos_token_id]))

    def collate(batch):
        # Every problem of a task has the same number of operations, hence every row the same number of tokens.
        input_ids = torch.tensor([prompt + solution for prompt, solution in batch])
        labels = torch.tensor([[-100] * len(prompt) + solution for prompt, solution in batch])
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}

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
        seed=seed,
        disable_tqdm=None,
    )
    trainer = Trainer(model=build_model(seed=seed), args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(output_dir)
    if trainer.is_world_process_zero():
        # Written last: a directory without it is an interrupted training, which simply starts again.
        record.write_text(json.dumps(identity))
    trainer.accelerator.wait_for_everyone()
    return output_dir
