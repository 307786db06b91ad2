"""[`AnswerReward`]: whether the final answer is right, as a reward function in TRL's protocol."""

from __future__ import annotations

from collections.abc import Sequence

from ..verify import check_answer_convention, verify_answer
from .process_reward import completion_text


class AnswerReward:
    """
    1 for a right final answer, 0 for a wrong one, `None` where the reference cannot be read.

    The outcome reward beside a [`ProcessReward`], and a measure in evaluation: `eval_rewards/answer_reward/mean` is
    the sampled accuracy. TRL's own `accuracy_reward` compares mathematical expressions only, against a column
    `solution`; this one reads answers the way that rollouts are judged ([`verify_answer`]).

    Args:
        answer_how (`str`, *optional*, defaults to `"auto"`):
            How an answer is looked for ([`extract_answer`]).
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Column of the dataset that holds the reference answers.

    Example:

    ```python
    >>> AnswerReward()(completions=["2+1=3\\n#3", "2+1=4"], answer=["3", "3"], prompts=["2+1", "2+1"])
    [1.0, 0.0]

    ```
    """

    __name__ = "answer_reward"  # TRL names the logged metric after it

    def __init__(self, answer_how: str = "auto", answer_column: str = "answer"):
        check_answer_convention(answer_how, "answer_how")
        self.answer_how = answer_how
        self.answer_column = answer_column

    def __call__(self, completions: Sequence[str | list[dict]], **kwargs) -> list[float | None]:
        """
        Args:
            completions (`Sequence` of `str` or messages):
                The completions; of messages, the content of the last is read, if it is the assistant's
                ([`completion_text`]).
            **kwargs:
                The columns of the dataset, among them `answer_column`, and what else TRL hands to reward functions.

        Returns:
            `list[float | None]`: 1.0 or 0.0 for each completion. A completion without a readable answer gets 0.0: it
            does not answer the question. `None` where the row has no reference answer.

        Raises:
            ValueError: where the dataset has no such column.
        """
        if self.answer_column not in kwargs:
            raise ValueError(
                f"AnswerReward compares with the column {self.answer_column!r}, which the dataset does not have. Name "
                "the column with the reference answers: AnswerReward(answer_column=...)."
            )
        return [
            None if reference is None else float(self._is_right(completion_text(completion), reference))
            for completion, reference in zip(completions, kwargs[self.answer_column], strict=True)
        ]

    def _is_right(self, text: str, reference: str | int | float) -> bool:
        reference = str(reference) if isinstance(reference, int | float) else reference
        return verify_answer(text, reference, self.answer_how) is True

    @property
    def identity(self) -> dict:
        """What the rewards depend on, by which [`RFTTrainer`] recognizes a run of its own."""
        return {"name": self.__name__, "answer_how": self.answer_how, "answer_column": self.answer_column}
