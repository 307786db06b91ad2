"""[`ProcessReward`]: a process reward model as a reward function in TRL's protocol."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError

from ..choices import check_choice
from ..manifest import weights_fingerprint
from ..prm.aggregation import check_aggregation
from ..prm.formats import PRMFormat, Prompt
from ..prm.prompts import PromptReading, check_prompt_reading
from ..prm.scorer import ProcessRewardModel
from ..steps import Step, check_split_mode, split_steps
from ..verify import check_answer_convention, extract_answer, marked_answer, readable_reference, verify_answer
from .guards import StepGuards
from .process_reward_metrics import batch_metrics

logger = logging.getLogger(__name__)

COMBINATIONS = ("product", "gate", "weighted_sum")

_PLAIN_STEP = "1 + 1 = 2."  # what every format can lay out behind a prompt that fits it


@dataclass(frozen=True)
class Judgement:
    """
    What a process reward model makes of one completion.

    Args:
        steps (`list[Step]`):
            Its steps, with their spans in the text judged: the completion, or the content of the last message of a
            conversational one.
        step_scores (`list[float]`, *optional*):
            A score in [0, 1] for each step; `None` where the completion is malformed or could not be scored.
        malformed (`str`, *optional*):
            Why it was not judged: `"no_step"`, `"no_answer"`, `"not_well_formed"` (`is_well_formed` said no), or what
            a guard objects to ([`StepGuards.violation`]).
        unscored (`str`, *optional*):
            Why a completion that is not malformed has no scores: `"too_long"` (for the process reward model), or
            `"not_encodable"` (its text merges with the format's tag).
    """

    steps: list[Step]
    step_scores: list[float] | None = None
    malformed: str | None = None
    unscored: str | None = None


class ProcessReward:
    """
    One number a completion: its step scores, aggregated. `None` where a completion cannot be judged.

    It follows TRL's reward-function protocol, so `GRPOTrainer(reward_funcs=[ProcessReward(prm)])` works as it stands,
    and so it does in `RLOOTrainer`, in the experimental trainers that take `reward_funcs`, and in [`RFTTrainer`].

    A completion is *malformed*, and gets `reward_if_malformed`, never a high score, if it has no step, if no answer
    can be read from it, if it breaks a bound of `guards`, or if `is_well_formed` says no. Under `min` aggregation a
    solution with fewer steps has fewer chances to score low, so malformed solutions win if they compete: selecting by
    such scores made a policy worse with each iteration in our runs. A completion that the process reward model cannot
    read (longer than its context, or with text that merges with its step tag) gets `None`.

    What `None` means is the trainer's: `RFTTrainer` never selects such a completion, GRPO and RLOO leave it out of its
    group's baseline and give it the advantage 0, so that it is neither learned nor unlearned.

    Args:
        prm ([`ProcessRewardModel`], `str` or `os.PathLike`):
            The process reward model, or the directory it is loaded from.
        aggregation (`str`, *optional*, defaults to `"min"`):
            How step scores become one number ([`aggregate`]); the default is the paper's.
        split_how (`str`, *optional*, defaults to `"newline"`):
            How a completion is split into steps ([`split_steps`]).
        answer_how (`str`, *optional*, defaults to `"auto"`):
            How an answer is looked for ([`extract_answer`]).
        require_answer (`bool`, *optional*, defaults to `True`):
            Whether a completion without an answer is malformed. Stops the policy from never committing itself: steps
            that claim nothing score well. With `answer_how` `"auto"` and `"math"`, which find a number in any text,
            the answer must be marked as one, by a `####` line, a box or "answer is" ([`marked_answer`]).
        is_well_formed (`Callable`, *optional*):
            `is_well_formed(prompt, steps) -> bool`, a further check that the task allows.
        batch_size (`int`, *optional*, defaults to `32`):
            Completions a forward pass of the process reward model.
        combine (`str`, *optional*):
            How the aggregated score s is combined with the outcome r, 1 if the final answer is right, else 0:

            - `None`: not at all, the reward is s.
            - `"product"`: s * r.
            - `"gate"`: s where r is 1, else 0. The same as `"product"` for outcomes of 0 and 1 and scores of at least
              0; for a model with unbounded scores only the product can be below 0.
            - `"weighted_sum"`: (1 - `answer_weight`) * s + `answer_weight` * r.

            A completion in which no answer can be read is malformed then, whatever `require_answer` says. One whose
            answer cannot be compared (it takes too long, or the row has no reference) gets `None`.
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Column of the dataset with the reference answers ([`verify_answer`]). Needed where `combine` is set; else
            read where it is there, for the metrics only.
        answer_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the outcome in `"weighted_sum"`, 0 to 1. Our choice: process and outcome weigh the same.
        guards ([`StepGuards`] or `dict`, *optional*):
            Bounds on the number, length and repetition of steps, each with the hack that it stops. `None`: none.
        reward_if_malformed (`float`, *optional*):
            Reward of a malformed completion. `None` suits selection. In GRPO and RLOO it lets a completion that never
            answers escape punishment (advantage 0, see above): set `0.0` there, the lowest score there is.
        format ([`PRMFormat`] or `str`, *optional*):
            Layout of a `prm` given as a directory that does not say its own: a model from elsewhere, under another
            name than its published one ([`ProcessRewardModel.from_pretrained`], as are the next two).
        device (`str` or `torch.device`, *optional*):
            Where a `prm` given as a directory is loaded. It is loaded whole in every process, also where ZeRO-3 or
            FSDP splits the policy.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Its precision. `"auto"` is that of the checkpoint, but bfloat16 for float32 weights on a GPU that computes
            in it.
        prompt_as (`str`, *optional*, defaults to `"auto"`):
            What the process reward model reads of prompts that are chat messages ([`PromptReader.read`]):

            - `"chat"`: the messages, the policy's system prompt included.
            - `"problem"`: the text of the user's last message.
            - `"auto"`: as the model was trained, `"problem"` for published models. A model that does not say, saved by
              a release that did not write it down, reads the chat. Which it is, is logged once.
        max_tokens_per_batch (`int`, *optional*):
            Most tokens in a forward pass of the process reward model, padding included: bounds the memory that it
            takes beside the policy where completions are long. `None`: only `batch_size` does.
        name (`str`, *optional*, defaults to `"process_reward"`):
            Name under which TRL logs the reward, and the metrics below. Two process rewards in one job need two names.

    Metrics, each of the batch of one process; TRL averages them over processes and logging steps. They are logged
    where the trainer offers `log_metric` (GRPO, RLOO and what is built on them):

        - `{name}/step_score/mean`, `/min`, `/first`, `/last`: mean, over the scored completions, of the mean, lowest,
          first and last step score (0 to 1; higher is better).
        - `{name}/num_steps`: steps per completion. Growth or collapse without a gain in accuracy is an alarm.
        - `{name}/longest_step`: characters of a completion's longest step, mean. Growth is an alarm.
        - `{name}/share_of_empty_steps`, `/share_of_repeated_steps`: mean share of a completion's steps that hold no
          letter and no digit, or repeat an earlier step (0 to 1; an alarm where it grows).
        - `{name}/share_of_white_space`: mean share of characters that is white space around steps (0 to 1; an alarm
          where it grows).
        - `{name}/correlation_with_num_steps`: Pearson's, of score and number of steps, over the scored completions
          (-1 to 1; far from 0 in either direction is an alarm). Not logged where one of the two does not vary.
        - `{name}/accuracy`: share of right answers among completions whose row has a reference answer (0 to 1; higher
          is better). One in which no answer can be read is wrong, as for [`AnswerReward`]. Logged where the dataset
          has the answer column, as is the next.
        - `{name}/gap_to_accuracy`: mean score of those of these completions that have one, minus the accuracy (a
          score that rises while accuracy does not is what reward hacking looks like).
        - `{name}/malformed`, and `{name}/malformed/{reason}` for each reason that the settings admit: share of the
          completions (0 to 1; lower is better).
        - `{name}/unscored/too_long`, `/not_encodable`, and `{name}/unverified`, answers that could not be compared:
          share of the completions (0 to 1; lower is better).

    Columns of the completions table, through `log_extra`: `{name}/step_scores`, `{name}/num_steps`,
    `{name}/malformed` (the reason).

    Raises:
        `ValueError`: at construction for a misspelt or contradictory option; in a call where the answer column is
        missing, where the model's format does not fit the prompts, and where a step score is not a number.
    """

    def __init__(
        self,
        prm: ProcessRewardModel | str | os.PathLike,
        aggregation: str = "min",
        split_how: str = "newline",
        answer_how: str = "auto",
        require_answer: bool = True,
        is_well_formed: Callable[[Prompt, list[str]], bool] | None = None,
        batch_size: int = 32,
        *,
        combine: str | None = None,
        answer_column: str = "answer",
        answer_weight: float = 0.5,
        guards: StepGuards | Mapping | None = None,
        reward_if_malformed: float | None = None,
        format: PRMFormat | str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = "auto",
        prompt_as: PromptReading = "auto",
        max_tokens_per_batch: int | None = None,
        name: str = "process_reward",
    ):
        # A misspelt option is an error now, not after an hour of sampling.
        check_aggregation(aggregation, argument="aggregation")
        check_split_mode(split_how, "split_how")
        check_answer_convention(answer_how, "answer_how")
        if combine is not None:
            check_choice("combine", combine, COMBINATIONS)
        if not 0 <= answer_weight <= 1:
            raise ValueError(f"`answer_weight` must be between 0 and 1, got {answer_weight!r}. It is a share.")
        if reward_if_malformed is not None and not math.isfinite(reward_if_malformed):
            raise ValueError(
                f"`reward_if_malformed` must be a number or None, got {reward_if_malformed!r}. Set 0.0 for the lowest "
                "score, or None to leave malformed completions out."
            )
        check_prompt_reading(prompt_as)
        if max_tokens_per_batch is not None and max_tokens_per_batch < 1:
            raise ValueError(
                f"`max_tokens_per_batch` must be at least 1, got {max_tokens_per_batch}. Leave it out for no limit."
            )
        self.prm = _load(prm, prompt_as, format=format, device=device, dtype=dtype)
        self.aggregation = aggregation
        self.split_how = split_how
        self.answer_how = answer_how
        self.require_answer = require_answer
        self.is_well_formed = is_well_formed
        self.batch_size = batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self.prompt_as = prompt_as
        self.combine = combine
        self.answer_column = answer_column
        self.answer_weight = answer_weight
        self.guards = _read_guards(guards)
        self.reward_if_malformed = reward_if_malformed
        self.__name__ = name  # TRL names the logged metric after it
        self._last_batch: tuple | None = None
        self._has_warned_of_no_answers = False

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str | list[dict]], **kwargs
    ) -> list[float | None]:
        """
        Args:
            prompts (`Sequence` of `str` or messages):
                A prompt for each completion.
            completions (`Sequence` of `str` or messages):
                The completions; of messages, the content of the last is judged.
            **kwargs:
                What else TRL hands to reward functions: the other columns of the dataset, of which `answer_column` is
                read; `log_metric` and `log_extra`. Where a trainer does not offer these, nothing is logged.

        Returns:
            `list[float | None]`: a reward in [0, 1] for each completion, `reward_if_malformed` or `None`.
        """
        judgements = self.judge(prompts, completions)
        scores = [self._score(judgement) for judgement in judgements]
        log_metric, log_extra = kwargs.get("log_metric"), kwargs.get("log_extra")
        outcomes, has_reference = None, []
        if self.combine is not None or (log_metric is not None and self.answer_column in kwargs):
            outcomes = self._outcomes(completions, kwargs)
            references = kwargs[self.answer_column]
            has_reference = [readable_reference(reference, self.answer_how) is not None for reference in references]
        if log_metric is not None:
            metrics = batch_metrics(judgements, scores, outcomes, self._malformed_reasons, has_reference)
            for name, value in metrics.items():
                log_metric(f"{self.__name__}/{name}", value)
        if log_extra is not None:
            self._log_columns(log_extra, judgements)
        return [
            self._reward(judgement, score, None if outcomes is None else outcomes[i])
            for i, (judgement, score) in enumerate(zip(judgements, scores, strict=True))
        ]

    @property
    def identity(self) -> dict:
        """What the rewards depend on, by which [`RFTTrainer`] recognizes a run of its own."""
        names = ("aggregation", "split_how", "answer_how", "require_answer")
        # What came later is named only where it is used: a run that was begun before goes on.
        later = {
            "combine": self.combine and [self.combine, self.answer_column, self.answer_weight],
            "guards": self.guards.settings,
            "reward_if_malformed": self.reward_if_malformed,
            "prompt_as": None if self.prompt_as == "auto" else self.prompt_as,
            "prompt_kind": getattr(self.prm, "prompt_kind", None),
        }
        return {
            "name": self.__name__,
            "prm": weights_fingerprint(self.prm.model),
            "format": dataclasses.asdict(self.prm.format),
            "is_well_formed": getattr(self.is_well_formed, "__qualname__", None),
            **{name: getattr(self, name) for name in names},
            **{name: value for name, value in later.items() if value not in (None, {})},
        }

    # Judging

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[str | list[dict]]) -> list[Judgement]:
        """
        The steps of each completion with their scores, or why it has none.

        The last batch is remembered: a trainer that needs step scores beside the rewards asks again with the same
        lists, and nothing is scored twice.

        Args:
            prompts (`Sequence` of `str` or messages):
                A prompt for each completion.
            completions (`Sequence` of `str` or messages):
                The completions; of messages, the content of the last is judged, if it is the assistant's.

        Returns:
            `list[Judgement]`: one a completion, in order.

        Raises:
            `ValueError`: for unequal numbers of prompts and completions, a format that does not fit the prompts, and a
            score that is not a number.
        """
        if len(prompts) != len(completions):
            raise ValueError(
                f"Got {len(prompts)} prompts, but {len(completions)} completions. Give one prompt a completion: one "
                "list is shorter than the other."
            )
        contents = (list(prompts), list(completions))
        if (last_batch := self._last_batch) is not None:
            last_completions, last_contents, judgements = last_batch
            # The same list with other contents is another batch. Equal elements are compared by identity first.
            if completions is last_completions and contents == last_contents:
                return judgements
        judgements = [self.examine(prompt, c) for prompt, c in zip(prompts, completions, strict=True)]
        if judgements and all(judgement.malformed == "no_answer" for judgement in judgements):
            self._warn_of_no_answers(len(judgements))
        well_formed = [i for i, judgement in enumerate(judgements) if judgement.malformed is None]
        scored = self._scores(
            [prompts[i] for i in well_formed], [[step.text for step in judgements[i].steps] for i in well_formed]
        )
        for i, step_scores in zip(well_formed, scored, strict=True):
            if isinstance(step_scores, str):
                judgements[i] = dataclasses.replace(judgements[i], unscored=step_scores)
            else:
                _check_finite(step_scores, i)
                judgements[i] = dataclasses.replace(judgements[i], step_scores=step_scores)
        self._last_batch = (completions, contents, judgements)
        return judgements

    def step_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[str | list[dict]]
    ) -> list[list[float] | None]:
        """The scores of each completion's steps, or `None` where the completion cannot be judged ([`judge`])."""
        return [judgement.step_scores for judgement in self.judge(prompts, completions)]

    def examine(self, prompt: Prompt, completion: str | list[dict]) -> Judgement:
        """What can be said of a completion without the model: its steps, and whether it is malformed."""
        text = completion_text(completion)
        steps = split_steps(text, self.split_how)
        texts = [step.text for step in steps]
        malformed = None
        if not steps:
            malformed = "no_step"
        elif self._has_no_answer(text):
            malformed = "no_answer"
        elif (violation := self.guards.violation(texts)) is not None:
            malformed = violation
        elif self.is_well_formed is not None and not self.is_well_formed(prompt, texts):
            malformed = "not_well_formed"
        return Judgement(steps, malformed=malformed)

    def _has_no_answer(self, text: str) -> bool:
        if self.require_answer and marked_answer(text, self.answer_how) is None:
            return True
        return self.combine is not None and extract_answer(text, self.answer_how) is None

    def _warn_of_no_answers(self, num_completions: int) -> None:
        if not self._has_warned_of_no_answers:
            self._has_warned_of_no_answers = True
            logger.warning(
                "None of %d completions has an answer that `answer_how=%r` can read: all are malformed. If they do "
                "answer, name their convention in `answer_how`, tell the policy in its prompt how to mark an answer "
                "(such as \\boxed{}), or set `require_answer=False`.",
                num_completions,
                self.answer_how,
            )

    @property
    def _needs_answer(self) -> bool:
        return self.require_answer or self.combine is not None

    @property
    def _malformed_reasons(self) -> list[str]:
        """The reasons that the settings admit."""
        reasons = ["no_step", *(["no_answer"] if self._needs_answer else []), *self.guards.reasons]
        return reasons if self.is_well_formed is None else [*reasons, "not_well_formed"]

    def _scores(self, prompts: list[Prompt], steps: list[list[str]]) -> list[list[float] | str]:
        """Step scores, or the reason why there are none."""
        options: dict = {"batch_size": self.batch_size, "none_if_too_long": True}
        if self.max_tokens_per_batch is not None:
            options["max_tokens_per_batch"] = self.max_tokens_per_batch
        if self.prompt_as != "auto":
            options["prompt_as"] = self.prompt_as
        try:
            scored = self.prm.score(prompts, steps, **options)
        except (ValueError, TypeError, TemplateError) as error:
            fits = self._which_fit(prompts, steps, error)
            kept = [i for i, fit in enumerate(fits) if fit]
            of_kept = self.prm.score([prompts[i] for i in kept], [steps[i] for i in kept], **options) if kept else []
            at = dict(zip(kept, of_kept, strict=True))
            return [(at[i] or "too_long") if i in at else "not_encodable" for i in range(len(prompts))]
        return [step_scores or "too_long" for step_scores in scored]

    def _which_fit(self, prompts: list[Prompt], steps: list[list[str]], error: Exception) -> list[bool]:
        """
        Which completions the format can lay out. `error`, which scoring them all ended in, is raised again where it
        has another cause, and explained where the format cannot even lay out a plain step behind one of the prompts.
        """

        def refusal(prompt: Prompt, of_completion: list[str]) -> Exception | None:
            try:
                [read] = self.prm.prompt_reader.read([prompt], self.prompt_as)
                self.prm.format.encode(self.prm.tokenizer, read, of_completion)
            except (ValueError, TypeError, TemplateError) as refused:
                return refused
            return None

        fits = [refusal(prompt, of_one) is None for prompt, of_one in zip(prompts, steps, strict=True)]
        if all(fits):
            raise error
        for prompt, fit in zip(prompts, fits, strict=True):
            if not fit and (refused := refusal(prompt, [_PLAIN_STEP])) is not None:
                raise ValueError(
                    f"The format {self.prm.format.name!r} of the process reward model does not fit the prompt "
                    f"{str(prompt)[:200]!r}: {refused} Give prompts of the kind that the model was trained on (text, "
                    "or chat messages), or a model whose format and tokenizer fit these."
                ) from refused
        return fits

    # From scores to rewards

    def _score(self, judgement: Judgement) -> float | None:
        if judgement.step_scores is None:
            return None
        texts = [step.text for step in judgement.steps]
        return self.guards.aggregate(texts, judgement.step_scores, self.aggregation)

    def _reward(self, judgement: Judgement, score: float | None, outcome: float | None) -> float | None:
        if judgement.malformed is not None:
            return self.reward_if_malformed
        if self.combine is None or score is None:
            return score
        if outcome is None:
            return None
        return combine_with_outcome(score, outcome, self.combine, self.answer_weight)

    def _outcomes(self, completions: Sequence[str | list[dict]], columns: Mapping) -> list[float | None]:
        """1 for a right answer, 0 for a wrong one, `None` where there is none or it cannot be compared."""
        if self.answer_column not in columns:
            given = [name for name, value in columns.items() if isinstance(value, list) and name != "completion_ids"]
            raise ValueError(
                f"`combine={self.combine!r}` needs the reference answers in the column {self.answer_column!r}, but "
                f"the trainer passes {', '.join(map(repr, given)) or 'no column'}. Name the column of your dataset in "
                "`answer_column`, keep it in the dataset, or set `combine=None`."
            )
        references = columns[self.answer_column]
        return [
            self._outcome(completion_text(completion), reference)
            for completion, reference in zip(completions, references, strict=True)
        ]

    def _outcome(self, text: str, reference) -> float | None:
        if reference is None:
            return None
        if isinstance(reference, int | float):
            reference = str(reference)
        try:
            verdict = verify_answer(text, reference, self.answer_how)
        except (TypeError, ValueError) as error:
            if self.combine is None:  # for the metrics only: a column of this name may hold anything
                return None
            raise ValueError(
                f"The column {self.answer_column!r} holds {reference!r}, which is no reference answer: {error} Name "
                "the column of reference answers in `answer_column`, or set `answer_how`."
            ) from error
        return None if verdict is None else float(verdict)

    def _log_columns(self, log_extra: Callable, judgements: list[Judgement]) -> None:
        def listed(step_scores: list[float] | None) -> str:
            return " ".join(f"{score:.3f}" for score in step_scores or [])

        log_extra(f"{self.__name__}/step_scores", [listed(j.step_scores) for j in judgements])
        log_extra(f"{self.__name__}/num_steps", [len(j.steps) for j in judgements])
        log_extra(f"{self.__name__}/malformed", [j.malformed or j.unscored or "" for j in judgements])


def completion_text(completion: str | list[dict]) -> str:
    """
    The text of a completion that is judged: of messages the content of the last, if the assistant wrote it; a
    completion that ends with a tool's answer, or with a call without text, has none.

    Example:

    ```python
    >>> completion_text([{"role": "assistant", "content": "2+1=3"}])
    '2+1=3'
    >>> completion_text([{"role": "assistant", "content": "f(2)"}, {"role": "tool", "content": "3"}])
    ''

    ```
    """
    if isinstance(completion, str):
        return completion
    last = completion[-1] if completion else {}
    content = last.get("content") if last.get("role", "assistant") == "assistant" else None
    if isinstance(content, list):  # content blocks, as TRL writes them for vision-language models
        return "".join(block["text"] for block in content if block.get("type") == "text")
    return content or ""


def combine_with_outcome(score: float, outcome: float, how: str, answer_weight: float = 0.5) -> float:
    """
    The reward from an aggregated score and an outcome, both in [0, 1].

    Args:
        score (`float`):
            Aggregated step scores.
        outcome (`float`):
            1 for a right final answer, 0 for a wrong one.
        how (`str`):
            `"product"`, `"gate"` or `"weighted_sum"`, as in [`ProcessReward`].
        answer_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the outcome in `"weighted_sum"`.

    Example:

    ```python
    >>> [combine_with_outcome(0.5, outcome, "gate") for outcome in (0.0, 1.0)]
    [0.0, 0.5]
    >>> [combine_with_outcome(0.5, outcome, "weighted_sum", answer_weight=0.25) for outcome in (0.0, 1.0)]
    [0.375, 0.625]

    ```
    """
    check_choice("how", how, COMBINATIONS)
    if how == "product":
        return score * outcome
    if how == "gate":
        return score if outcome == 1 else 0.0
    return (1 - answer_weight) * score + answer_weight * outcome


def _load(prm, prompt_as: PromptReading, **options) -> ProcessRewardModel:
    """The process reward model; `options` of `from_pretrained`, those aside that are left to their defaults."""
    options = {name: value for name, value in options.items() if value not in (None, "auto")}
    if isinstance(prm, str | os.PathLike):
        prm = ProcessRewardModel.from_pretrained(prm, **options)
    elif options:
        raise ValueError(
            f"`{next(iter(options))}` says how a model is loaded, but `prm` is loaded already. Give `prm` as a "
            "directory, or give this to `ProcessRewardModel.from_pretrained`."
        )
    if isinstance(prm, ProcessRewardModel):
        prm.prompt_reader.check(prompt_as)  # now, not after the first completions are sampled
    return prm


def _read_guards(guards: StepGuards | Mapping | None) -> StepGuards:
    if guards is None or isinstance(guards, StepGuards):
        return guards or StepGuards()
    known = [f.name for f in dataclasses.fields(StepGuards)]
    for name in guards:
        check_choice("guards", name, known)
    return StepGuards(**guards)


def _check_finite(step_scores: list[float], completion: int) -> None:
    for k, score in enumerate(step_scores):
        if not math.isfinite(score):
            raise ValueError(
                f"The process reward model gave {score!r} for step {k} of completion {completion}. A policy trained "
                "on that would be lost: find out where it arose (a model that diverged, or half precision; try "
                "`dtype='float32'`)."
            )
