"""Candidates sampled from a policy, as a pool like those that [`~evaluation.candidates.read_candidates`] reads."""

from collections.abc import Sequence
from typing import Any

from ..prm.formats import Prompt
from ..rollout import Prefix, RolloutEngine, SamplingOptions
from ..wording import counted
from .candidates import CandidatePool, make_pool

__all__ = ["candidate_rows", "check_answers", "sample_candidates"]


def sample_candidates(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    num_samples: int,
    options: SamplingOptions,
    answer_how: str = "auto",
    split_how: str = "newline",
) -> CandidatePool:
    """Samples candidates for each problem and judges their answers.

    Args:
        engine ([`RolloutEngine`]):
            The policy.
        prompts (`Sequence` of `str` or messages):
            The problems.
        answers (`Sequence[str]`):
            The reference answer of each problem.
        num_samples (`int`):
            M, candidates for each problem.
        options ([`SamplingOptions`]):
            How they are sampled; the same options and seed give the same candidates.
        answer_how (`str`, *optional*, defaults to `"auto"`):
            How answers are read and compared: as for [`verify_answer`].
        split_how (`str`, *optional*, defaults to `"newline"`):
            How candidates are split into steps: as for [`split_steps`].

    Returns:
        [`CandidatePool`]: of P problems and M candidates, with the tokens that each took; the problems are called by
        their numbers, from "0". `write_rows(path, pool.rows())` keeps it.

    Raises:
        ValueError: if there are no problems, not one answer a problem, or no candidate of any problem is right.

    Example: a policy that guesses.

    ```python
    >>> from trl_erprm.rollout import Completion, SamplingOptions
    >>> class Policy:
    ...     def generate(self, prefixes, num_samples, options, first_sample=0):
    ...         return [[Completion(f"#{i}", 2, "stop") for i in range(num_samples)] for _ in prefixes]
    >>> pool = sample_candidates(Policy(), ["1+1"], ["2"], 3, SamplingOptions(8), "arithmetic")
    >>> pool.answers, pool.is_correct.tolist(), pool.num_tokens
    ([['0', '1', '2']], [[False, False, True]], [[2, 2, 2]])

    ```
    """
    check_answers(prompts, answers)
    groups = engine.generate([Prefix(prompt) for prompt in prompts], num_samples, options)
    texts = [[completion.text for completion in group] for group in groups]
    num_tokens = [[completion.num_tokens for completion in group] for group in groups]
    rows = candidate_rows(prompts, answers, texts, num_tokens)
    return make_pool(rows, answer_how, split_how, name="The sampled candidates")


def candidate_rows(
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    texts: Sequence[Sequence[str]],
    num_tokens: Sequence[Sequence[int]],
) -> list[dict[str, Any]]:
    """Rows of a candidates file, as they were sampled: without steps, answers and verdicts, which are made of these.

    Example:

    ```python
    >>> [row] = candidate_rows(["1+1"], ["2"], [["#2"]], [[2]])
    >>> row["problem_id"], row["candidates"]
    ('0', [{'completion': '#2', 'num_tokens': 2}])

    ```
    """
    return [
        {
            "problem_id": str(i),
            "prompt": prompt,
            "answer": answer,
            "candidates": [{"completion": text, "num_tokens": n} for text, n in zip(*of_problem, strict=True)],
        }
        for i, (prompt, answer, *of_problem) in enumerate(zip(prompts, answers, texts, num_tokens, strict=True))
    ]


def check_answers(prompts: Sequence[Prompt], answers: Sequence[str]) -> None:
    """Raises `ValueError` unless there are problems, and an answer for each."""
    if not len(prompts) or len(prompts) != len(answers):
        raise ValueError(
            f"`answers` must hold one answer a problem, got {len(answers)} for {counted(len(prompts), 'problem')}. "
            "Candidates are judged by comparing their answers with these."
        )
