"""[`AnswerReward`]: whether the final answer is right, as a reward function in TRL's protocol."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..verify import check_answer_convention, readable_reference, verify_answer
from .process_reward import completion_text

logger = logging.getLogger(__name__)


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

    Metric, where the trainer offers `log_metric` (GRPO, RLOO and what is built on them):

        - `answer_reward/unreadable_references`: share of the completions whose reference cannot be read, an empty one
          for example, or a word where `answer_how` is `"gsm8k"` (0 to 1; lower is better). The first such reference
          is shown in a warning.

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
        self._has_warned = False

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
            does not answer the question. `None` where the row has no reference answer, or one that cannot be read.

        Raises:
            ValueError: where the dataset has no such column.
        """
        if self.answer_column not in kwargs:
            raise ValueError(
                f"AnswerReward compares with the column {self.answer_column!r}, which the dataset does not have. Name "
                "the column with the reference answers: AnswerReward(answer_column=...)."
            )
        given = kwargs[self.answer_column]
        references = [readable_reference(reference, self.answer_how) for reference in given]
        unreadable = [g for g, reference in zip(given, references, strict=True) if g is not None and reference is None]
        self._report(unreadable, len(given), kwargs.get("log_metric"))
        return [
            None if reference is None else float(self._is_right(completion_text(completion), reference))
            for completion, reference in zip(completions, references, strict=True)
        ]

    def _is_right(self, text: str, reference: str) -> bool:
        return verify_answer(text, reference, self.answer_how) is True

    def _report(self, unreadable: list[Any], num_completions: int, log_metric: Any) -> None:
        if log_metric is not None and num_completions:
            log_metric(f"{self.__name__}/unreadable_references", len(unreadable) / num_completions)
        if unreadable and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "The column %r holds %.80r, which is no reference answer by the convention %r: completions of such "
                "rows get None. `answer_reward/unreadable_references` counts them; name the convention of the data "
                "set in `answer_how`, or remove these rows.",
                self.answer_column,
                unreadable[0],
                self.answer_how,
            )

    @property
    def identity(self) -> dict:
        """What the rewards depend on, by which [`RFTTrainer`] recognizes a run of its own."""
        return {"name": self.__name__, "answer_how": self.answer_how, "answer_column": self.answer_column}
