"""What [`ProcessReward`] logs about a batch of completions: scores, and alarms for reward hacking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .guards import share_of_empty_steps, share_of_repeated_steps, share_of_white_space

if TYPE_CHECKING:
    from .process_reward import Judgement


def batch_metrics(
    judgements: Sequence[Judgement],
    scores: Sequence[float | None],
    outcomes: Sequence[float | None] | None,
    malformed_reasons: Sequence[str],
    has_reference: Sequence[bool] = (),
) -> dict[str, float]:
    """
    Metrics of one batch, defined in the docstring of [`ProcessReward`]. What is not defined in this batch (a
    correlation where nothing varies) is left out, never logged as 0 or nan.

    Args:
        judgements (`Sequence[Judgement]`):
            What the process reward model makes of each completion.
        scores (`Sequence[float | None]`):
            The aggregated score of each, before it is combined with an outcome.
        outcomes (`Sequence[float | None]`, *optional*):
            Outcome of each, `None` where there is none; `None` as a whole where no reference answers are at hand.
        malformed_reasons (`Sequence[str]`):
            The reasons that can occur: each is logged also where its share is 0, for means over batches.
        has_reference (`Sequence[bool]`, *optional*):
            With outcomes, whether the row of each has a reference answer that can be read. Without an outcome, such a
            completion counts as wrong: else fewer readable answers would make the accuracy rise.

    Returns:
        `dict[str, float]`: value by name, without the reward's own name.
    """
    if not judgements:
        return {}
    metrics = {}
    step_scores = [j.step_scores for j in judgements if j.step_scores is not None]
    if step_scores:
        metrics["step_score/mean"] = _mean([np.mean(s) for s in step_scores])
        metrics["step_score/min"] = _mean([min(s) for s in step_scores])
        metrics["step_score/first"] = _mean([s[0] for s in step_scores])
        metrics["step_score/last"] = _mean([s[-1] for s in step_scores])
    texts = [[step.text for step in j.steps] for j in judgements]
    metrics["num_steps"] = _mean([len(of_one) for of_one in texts])
    metrics["longest_step"] = _mean([max(map(len, of_one), default=0) for of_one in texts])
    metrics["share_of_empty_steps"] = _mean([share_of_empty_steps(of_one) for of_one in texts])
    metrics["share_of_repeated_steps"] = _mean([share_of_repeated_steps(of_one) for of_one in texts])
    metrics["share_of_white_space"] = _mean([share_of_white_space(j.steps) for j in judgements])
    scored = [i for i, score in enumerate(scores) if score is not None]
    correlation = _correlation([scores[i] for i in scored], [len(texts[i]) for i in scored])
    if correlation is not None:
        metrics["correlation_with_num_steps"] = correlation
    metrics["malformed"] = _mean([j.malformed is not None for j in judgements])
    for reason in malformed_reasons:
        metrics[f"malformed/{reason}"] = _mean([j.malformed == reason for j in judgements])
    for reason in ("too_long", "not_encodable"):
        metrics[f"unscored/{reason}"] = _mean([j.unscored == reason for j in judgements])
    if outcomes is not None:
        answerable = [i for i, has_one in enumerate(has_reference) if has_one]
        if answerable:
            metrics["accuracy"] = _mean([outcomes[i] or 0.0 for i in answerable])
        both = [scores[i] for i in scored if has_reference[i]]
        if both:
            metrics["gap_to_accuracy"] = _mean(both) - metrics["accuracy"]
        is_open = [o is None and j.malformed is None for o, j in zip(outcomes, judgements, strict=True)]
        metrics["unverified"] = _mean(is_open)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's; `None` for fewer than 3 pairs (2 are always in line) or where one of the two does not vary."""
    if len(x) < 3 or min(x) == max(x) or min(y) == max(y):
        return None
    return float(np.corrcoef(x, y)[0, 1])
