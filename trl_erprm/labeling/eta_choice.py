r"""Chooses eta from counts alone: what `eta="auto"` does. The paper does not say how it chose.

What cannot decide: under min, last or max aggregation every finite eta ranks solutions alike, as V_eta rises with p
for each; and errors of labels at two etas are on two scales. Two criteria remain that are free of scale. Both look at
a part of the prompts (a validation split) and at the steps that were rolled out; neither needs a further rollout.

**`reliability`: the eta whose labels would come out most alike if the rollouts were sampled again.** A model can learn
of the labels only what is reproducible. The rollouts of a prefix are cut into two halves, and the correlation of the
two halves' labels over all prefixes is taken. No cut has to be drawn: rollouts of a prefix are exchangeable, so c
right ones of n fall into the halves by the hypergeometric distribution, and the mean over all cuts is computed.

    r = Cov(V_eta(first half), V_eta(second half)) / Var(V_eta(half))        in [-1, 1], higher is better

It is the reliability of labels of half as many rollouts, hence too low for those at hand. (Spearman and Brown's
formula does not mend that here: V_eta bends, and a longer sample is not a sum of shorter ones.)

Its bias: reproducible is not the same as useful. It prefers the eta at which the prefixes at hand lie far apart and
sample noise is small, be the difference of interest or not. An eta that magnifies small success probabilities loses by
it, because with few rollouts 0 of N and 1 of N are then far apart and hard to tell.

**`ranking`: the eta whose labels, averaged over the steps before the last, best tell right solutions of a problem from
wrong ones** (share of the pairs of one right and one wrong solution of the same prompt that are in the right order, a
tie counts half: the AUROC within prompts). It is best-of-N selection by mean aggregation, with labels in place of
scores, and needs several solutions a prompt.

Its bias: the labels of a solution are judged by their own noise, which a model would average out; and a wrong solution
whose error comes late has good steps, which its mean shows, so the criterion prefers the eta that punishes low steps
(negative) or rewards any hope (large), by where the errors lie. It says nothing about min aggregation.

Neither knows the model. What decides in the end is the accuracy of a PRM trained on the labels; both are there to give
a first value for that search. On the embedded task, whose quickstart uses 10, `reliability` chooses 1 with 4 to 256
rollouts, and `ranking` -1 or -10, of scores that all lie above 0.99.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trl_erprm.choices import check_choice
from trl_erprm.manifest import content_hash

from .estimators import check_eta, entropy_regularized_value_from_counts

__all__ = [
    "CRITERIA",
    "ETAS",
    "EtaChoice",
    "choose_eta",
    "chosen_eta",
    "label_reliability",
    "ranking_accuracy",
    "validation_rows",
]

logger = logging.getLogger(__name__)

CRITERIA = ("reliability", "ranking")

ETAS = (-10.0, -5.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0)
"""Values to choose from: our own choice. Finite, so that the success probability can be told from a label."""


@dataclass(frozen=True)
class EtaChoice:
    """The chosen eta, and what it was chosen by.

    Attributes:
        eta (`float`):
            The eta with the highest score; of several, the one nearest to 0.
        criterion (`str`):
            `"reliability"` or `"ranking"`.
        scores (`dict[float, float]`):
            Score of every eta that was tried, higher is better.
        num_solutions (`int`):
            Solutions that were looked at.
    """

    eta: float
    criterion: str
    scores: dict[float, float]
    num_solutions: int


def choose_eta(
    rows: Iterable[Mapping[str, Any]], criterion: str = "reliability", etas: Sequence[float] = ETAS
) -> EtaChoice:
    """Chooses the eta of the highest score on labelled rows, which should be a validation split.

    Args:
        rows (`Dataset` or iterable of rows):
            Rows labelled by rollouts, with `num_correct` and `num_rollouts` (one item a step, the last step its own
            outcome), and for `"ranking"` `prompt` and `outcome` too.
        criterion (`str`, *optional*, defaults to `"reliability"`):
            `"reliability"` or `"ranking"`; see the module. Default: it needs no more than one solution a prompt.
        etas (`Sequence[float]`, *optional*, defaults to [`ETAS`]):
            Values to choose from.

    Returns:
        [`EtaChoice`].

    Raises:
        ValueError: if the criterion is not known, or if the rows do not say anything about it: no prefix with two
            rollouts and labels that differ, or no prompt with a right and a wrong solution.

    Example: prefixes that seldom succeed differ where the scale is stretched near 0.

    ```python
    >>> rows = [{"num_correct": [c, 1], "num_rollouts": [64, 1]} for c in (0, 0, 4, 4, 4, 60, 64)]
    >>> choose_eta(rows, etas=[-10, 0, 2]).eta
    0.0

    ```
    """
    check_choice("criterion", criterion, CRITERIA)
    rows = list(rows)
    etas = [check_eta(eta) for eta in etas]
    if criterion == "reliability":
        counts = [pair for row in rows for pair in zip(row["num_correct"][:-1], row["num_rollouts"][:-1], strict=True)]
        correct, total = np.array(counts, dtype=np.int64).reshape(-1, 2).T
        scores = {eta: label_reliability(correct, total, eta) for eta in etas}
        needed = "prefixes with 2 or more rollouts and labels that differ"
    else:
        scores = {eta: ranking_accuracy(rows, eta) for eta in etas}
        needed = "prompts with a right and a wrong solution of 2 or more labelled steps"
    found = {eta: score for eta, score in scores.items() if not math.isnan(score)}
    if not found:
        raise ValueError(
            f"The rows must have {needed} to choose eta by {criterion!r}, got none among {len(rows)} solutions. Label "
            "more prompts, raise `eta_validation_share`, or pass a number for `eta`."
        )
    best = max(found, key=lambda eta: (found[eta], -abs(eta)))
    return EtaChoice(best, criterion, scores, len(rows))


def chosen_eta(rows: Sequence[Mapping[str, Any]], eta: float | str, criterion: str, share: float) -> float:
    """`eta` itself, or for `"auto"` the choice on this share of the prompts, logged with all scores."""
    if eta != "auto":
        return check_eta(eta)
    choice = choose_eta(validation_rows(rows, share), criterion)
    logger.info(
        "eta = %g has the highest %s on %d solutions of the validation prompts: %s.",
        choice.eta,
        choice.criterion,
        choice.num_solutions,
        ", ".join(f"{score:.4f} at {tried:g}" for tried, score in choice.scores.items()),
    )
    return choice.eta


def label_reliability(num_correct: Sequence[int], num_rollouts: Sequence[int], eta: float) -> float:
    """Correlation, over prefixes, of the labels of two halves of their rollouts.

    Args:
        num_correct, num_rollouts (`Sequence[int]` of shape `(num_prefixes,)`):
            Counts of the prefixes. Those with fewer than 2 rollouts are left out; of an odd number one is.
        eta (`float`):
            As for [`~labeling.estimators.entropy_regularized_value`].

    Returns:
        `float`: in [-1, 1], higher is better; `nan` where the labels of all halves are equal.

    Example: halves of 2 of 4 right hold 0, 1 or 2 right ones; prefixes with 0 and 4 always agree with themselves.

    ```python
    >>> label_reliability([0, 4], [4, 4], eta=0)
    1.0
    >>> round(label_reliability([0, 2, 4], [4, 4, 4], eta=0), 4)
    0.7143

    ```
    """
    pairs, weights = np.unique(np.stack([num_correct, num_rollouts], axis=-1), axis=0, return_counts=True)
    mean = square = product = total_weight = 0.0
    for (c, n), weight in zip(pairs.tolist(), weights.tolist(), strict=True):
        if n < 2:
            continue
        half, of_cut = n // 2, math.comb(n, c)
        values = entropy_regularized_value_from_counts(np.arange(half + 1), half, eta)
        for first in range(min(half, c) + 1):
            for second in {c - first, c - first - n % 2}:  # an odd rollout that is left out may be right
                if 0 <= second <= half:
                    p = math.comb(half, first) * math.comb(half, second) / of_cut  # whole numbers up to the division
                    mean += weight * p * values[first]
                    square += weight * p * values[first] ** 2
                    product += weight * p * values[first] * values[second]
        total_weight += weight
    if total_weight == 0:
        return math.nan
    mean, square, product = mean / total_weight, square / total_weight, product / total_weight
    variance = square - mean**2
    if variance < 1e-12:
        return math.nan
    return float((product - mean**2) / variance)


def ranking_accuracy(rows: Iterable[Mapping[str, Any]], eta: float) -> float:
    """Share of pairs, a right and a wrong solution of one prompt, that the mean label before the last step orders.

    Args:
        rows (iterable of rows):
            With `prompt`, `num_correct`, `num_rollouts` and `outcome`. Solutions without an outcome (no readable
            answer) count as wrong; those without a labelled step before the last are left out.
        eta (`float`):
            As for [`~labeling.estimators.entropy_regularized_value`].

    Returns:
        `float`: in [0, 1], higher is better, 0.5 is chance; `nan` without a pair.
    """
    groups: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in rows:
        labels = entropy_regularized_value_from_counts(row["num_correct"][:-1], row["num_rollouts"][:-1], eta)
        labels = labels[~np.isnan(labels)]
        if labels.size:
            groups[content_hash(row["prompt"])][row["outcome"] == 1.0].append(float(labels.mean()))
    num_pairs, num_ordered = 0, 0.0
    for wrong, right in groups.values():
        difference = np.subtract.outer(right, wrong)
        num_pairs += difference.size
        num_ordered += float(np.sum(difference > 1e-12) + 0.5 * np.sum(abs(difference) <= 1e-12))
    return num_ordered / num_pairs if num_pairs else math.nan


def validation_rows(rows: Iterable[Mapping[str, Any]], share: float) -> list[Mapping[str, Any]]:
    """The rows of this share of the prompts: by the hash of the prompt, so in every process and order the same."""
    return [row for row in rows if int(content_hash("validation", row["prompt"])[:8], 16) < share * 16**8]
