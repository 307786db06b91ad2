"""Calibration: are step scores the success probabilities that they are said to be?

    reliability_diagram          mean outcome against mean score, in bins of equal width or of equal mass
    binned_calibration_error     sum_b (n_b / N) |mean score - mean outcome|      arXiv 1706.04599, eq. 3
    outcome_brier_score          E (s - r)^2, r one rollout's outcome              = E (s - p)^2 + E p (1 - p)
    probability_brier_score      E (s - p)^2, p the success probability itself     without the rollouts' noise
    min_on_last_share            how often is the lowest score that of the last step?
    measure_calibration          all of them, of a process reward model's step scores

Scores of a PRM whose labels were made with eta estimate V_eta, not a probability. [`success_probability`] maps them
back, and only then can they be compared with frequencies; `measure_calibration(..., eta=eta)` does so. The larger eta,
the flatter V is where p is high, and the more a small error of the score becomes a large one of the probability: near
V = 1 by the factor eta. A PRM can rank well and be badly calibrated this way.

**Frequencies are not probabilities.** Of n rollouts c are right. The share c / n scatters around the success
probability p with variance p (1 - p) / n, so the squared error of a score against c / n is too large by that much, and
a PRM looks worse against fewer rollouts. c / n (1 - c / n) / (n - 1) estimates that variance without bias
(E[p_hat (1 - p_hat)] = p (1 - p) (n - 1) / n), and [`probability_brier_score`] subtracts it. The calibration error has
such an excess too, by which it is above 0 for perfect scores; [`calibration_error_if_perfect`] says how large it is.
The rollouts have to be held out: against those that the labels were made of, every PRM looks better than it is.

Pure functions on numpy arrays, in float64; torch is not imported.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..choices import check_choice
from ..labeling.estimators import check_eta, success_probability
from ..prm.metrics import brier_score
from .best_of_n import Estimate
from .intervals import NUM_RESAMPLES, group_numbers, grouped_interval, resampled_interval

__all__ = [
    "BINNINGS",
    "Calibration",
    "MinOnLast",
    "ReliabilityBin",
    "binned_calibration_error",
    "calibration_error_if_perfect",
    "measure_calibration",
    "min_on_last_share",
    "outcome_brier_score",
    "probability_brier_score",
    "reliability_diagram",
]

BINNINGS = ("equal_width", "equal_mass")


class ReliabilityBin(NamedTuple):
    """One bin of a reliability diagram.

    Attributes:
        low (`float`): lower edge, in [0, 1].
        high (`float`): upper edge, in [0, 1].
        num_items (`int`): items in the bin, at least 1.
        mean_score (`float`): mean score of the items, in [0, 1].
        mean_outcome (`float`): mean outcome of the items, in [0, 1].
        outcome_low (`float`): lower end of the 95 % interval of the mean outcome, in [0, 1].
        outcome_high (`float`): upper end of it, in [0, 1].
    """

    low: float
    high: float
    num_items: int
    mean_score: float
    mean_outcome: float
    outcome_low: float
    outcome_high: float


class MinOnLast(NamedTuple):
    """Result of [`min_on_last_share`].

    Attributes:
        share (`Estimate`): share of the solutions, with its 95 % interval; nan for no solution.
        chance (`float`): share that step scores in random order would have, in [0, 1]; `nan` for no solution.
        num_solutions (`int`): solutions of at least two steps, which are those that count.
    """

    share: Estimate
    chance: float
    num_solutions: int


class Calibration(NamedTuple):
    """Result of [`measure_calibration`]. An error is 0 or more, lower is better.

    Attributes:
        num_steps (`int`): steps with an outcome, which are those that count.
        num_solutions (`int`): solutions with such a step.
        mean_score (`float`): mean score as a probability, in [0, 1].
        mean_outcome (`float`): mean outcome, in [0, 1]. The PRM is too hopeful where it is below `mean_score`.
        calibration_error (`float`): expected calibration error with bins of equal width.
        calibration_error_equal_mass (`float`): the same with bins of equal mass.
        calibration_error_if_perfect (`float`): what perfect scores would have, equal width, by the outcomes' noise.
        outcome_brier (`Estimate`): Brier score of single outcomes, with its 95 % interval over problems.
        probability_brier (`float`): mean squared error of the probability, unbiased (so possibly below 0, by noise);
            `nan` where a step has one rollout only.
        min_on_last (`MinOnLast`): how often the lowest score is that of the last step, over all solutions given.
        equal_width (`list[ReliabilityBin]`): reliability diagram with bins of equal width.
        equal_mass (`list[ReliabilityBin]`): reliability diagram with bins of equal mass.
    """

    num_steps: int
    num_solutions: int
    mean_score: float
    mean_outcome: float
    calibration_error: float
    calibration_error_equal_mass: float
    calibration_error_if_perfect: float
    outcome_brier: Estimate
    probability_brier: float
    min_on_last: MinOnLast
    equal_width: list[ReliabilityBin]
    equal_mass: list[ReliabilityBin]


def reliability_diagram(
    scores: ArrayLike,
    outcomes: ArrayLike,
    num_bins: int = 10,
    binning: str = "equal_width",
    groups: Sequence[Hashable] | None = None,
) -> list[ReliabilityBin]:
    r"""Mean outcome against mean score, in bins of similar score.

    The interval of a bin is [`~evaluation.intervals.grouped_interval`]: the steps of one problem do not pass for
    independent observations.

    Args:
        scores (`ArrayLike` of shape `(num_items,)`):
            Scores in [0, 1]: probabilities.
        outcomes (`ArrayLike` of shape `(num_items,)`):
            Outcomes in [0, 1]: 0 and 1, or shares of right rollouts. Items with NaN or `None` are left out.
        num_bins (`int`, *optional*, defaults to `10`):
            Bins at most, from 1 up. Default: as for [`~prm.metrics.calibration_error`].
        binning (`str`, *optional*, defaults to `"equal_width"`):
            - `"equal_width"`: [0, 1/B), [1/B, 2/B), ..., [1 - 1/B, 1].
            - `"equal_mass"`: equally many items each. Equal scores stay together, so there may be fewer bins; a bin's
              edges are its lowest and its highest score.
        groups (`Sequence[Hashable]` of length `num_items`, *optional*):
            What each item belongs to, usually its problem. `None`: the items are independent.

    Returns:
        `list[ReliabilityBin]`: the bins that hold items, by score.

    Raises:
        ValueError: if the lengths differ, a score or an outcome lies outside [0, 1], a score is NaN, or an option is
            not one of those above.
        TypeError: if `scores` or `outcomes` is not a flat list of numbers.

    Example:

    ```python
    >>> for bin in reliability_diagram([0.1, 0.1, 0.7, 0.9], [0, 0, 1, 0], num_bins=2):
    ...     print(bin.low, bin.high, bin.num_items, round(bin.mean_score, 3), bin.mean_outcome)
    0.0 0.5 2 0.1 0.0
    0.5 1.0 2 0.8 0.5

    ```

    Source: Niculescu-Mizil and Caruana, 2005, "Predicting good probabilities with supervised learning".
    """
    check_choice("binning", binning, BINNINGS)
    _check_num_bins(num_bins)
    scores, outcomes, groups = _read_items(scores, outcomes, groups)
    if binning == "equal_width":
        inner_edges = np.arange(1, num_bins) / num_bins
        index = np.searchsorted(inner_edges, scores, side="right")
        edges = [*inner_edges.tolist(), 1.0]
        lows, highs = [0.0, *edges[:-1]], edges
    else:
        index, lows, highs = _equal_mass_bins(scores, num_bins)
    bins = []
    for b in np.unique(index):
        inside = index == b
        mean, low, high = grouped_interval(outcomes[inside], groups[inside])
        edges_of_bin, mean_score = (float(lows[b]), float(highs[b])), float(scores[inside].mean())
        bins.append(ReliabilityBin(*edges_of_bin, int(inside.sum()), mean_score, mean, low, high))
    return bins


def binned_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error of a reliability diagram: mean over items of |mean score - mean outcome| of the bin.

    With bins of equal width it equals [`~prm.metrics.calibration_error`].

    Args:
        bins (`Sequence[ReliabilityBin]`):
            Bins of [`reliability_diagram`].

    Returns:
        `float`: error in [0, 1], lower is better; `nan` without a bin.

    Example: 0.8 is said of two items, and one of them is right.

    ```python
    >>> round(binned_calibration_error(reliability_diagram([0.8, 0.8], [1, 0])), 6)
    0.3

    ```

    Source: Guo et al., 2017, arXiv 1706.04599, equation 3; bins of equal mass: Nixon et al., 2019, arXiv 1904.01685.
    """
    total = sum(bin.num_items for bin in bins)
    if not total:
        return math.nan
    return math.fsum(bin.num_items * abs(bin.mean_score - bin.mean_outcome) for bin in bins) / total


def calibration_error_if_perfect(
    scores: ArrayLike, num_rollouts: ArrayLike = 1, num_bins: int = 10, seed: int = 0
) -> float:
    """The calibration error that these scores would show if each were exactly its step's success probability.

    A calibration error near this one is no evidence of miscalibration. Outcomes are drawn from the scores, each step's
    independently, and the error (bins of equal width) is averaged over [`NUM_RESAMPLES`] draws. Outcomes of a solution
    that depend on each other, as its final outcome taken for all of its steps, scatter more: it is a lower bound then.

    Args:
        scores (`ArrayLike` of shape `(num_items,)`):
            Scores in [0, 1].
        num_rollouts (`ArrayLike` of shape `(num_items,)` or number, *optional*, defaults to `1`):
            Rollouts behind the outcome of each step; 1 for a rating or a single outcome.
        num_bins (`int`, *optional*, defaults to `10`):
            As for [`reliability_diagram`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `float`: error in [0, 1]; `nan` without scores.

    Example: of one step with even odds, either outcome is half off; 100 rollouts say more.

    ```python
    >>> calibration_error_if_perfect([0.5])
    0.5
    >>> round(calibration_error_if_perfect([0.5], num_rollouts=100), 2)
    0.04

    ```

    Source: Broecker and Smith, 2007, "Increasing the reliability of reliability diagrams".
    """
    _check_num_bins(num_bins)
    scores, _, _ = _read_items(scores, np.zeros(np.shape(scores)), None)
    total = np.asarray(num_rollouts, dtype=np.float64)
    if not (np.isfinite(total) & (total >= 1) & (total == np.floor(total))).all():
        raise ValueError(f"`num_rollouts` must be whole numbers from 1 up, got {num_rollouts!r}. Pass counts.")
    if not scores.size:
        return math.nan
    total = np.broadcast_to(total, scores.shape).astype(np.int64)
    rng = np.random.default_rng(seed)
    index = np.searchsorted(np.arange(1, num_bins) / num_bins, scores, side="right")
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    scores, total = scores[order], total[order]
    errors = []
    for _ in range(NUM_RESAMPLES):
        drawn = rng.binomial(total, scores) / total
        errors.append(np.abs(np.add.reduceat(scores - drawn, starts)).sum() / scores.size)
    return float(np.mean(errors))


def outcome_brier_score(scores: ArrayLike, num_correct: ArrayLike, num_rollouts: ArrayLike) -> float:
    """Brier score of single outcomes: the mean over rollouts of (s - r)^2, each step counting once.

    (c (1 - s)^2 + (n - c) s^2) / n, averaged over steps. It does not depend, in expectation, on the number of
    rollouts, and cannot fall below the mean of p (1 - p), which no score undercuts. With one rollout a step it is
    [`~prm.metrics.brier_score`].

    Args:
        scores (`ArrayLike` of shape `(num_items,)`):
            Scores in [0, 1].
        num_correct (`ArrayLike` of shape `(num_items,)`):
            Right rollouts of each step.
        num_rollouts (`ArrayLike` of shape `(num_items,)` or number):
            Rollouts of each step. A step without rollouts is left out.

    Returns:
        `float`: in [0, 1], lower is better; `nan` without a rollout.

    Raises:
        ValueError: if the lengths differ, a score lies outside [0, 1], or the counts are none.

    Example: 0.5 is said of a step with 3 of 4 right.

    ```python
    >>> outcome_brier_score([0.5], [3], [4])
    0.25

    ```
    """
    scores, correct, total = _read_counts(scores, num_correct, num_rollouts)
    if not scores.size:
        return math.nan
    return float(_outcome_squares(scores, correct, total).mean())


def probability_brier_score(scores: ArrayLike, num_correct: ArrayLike, num_rollouts: ArrayLike) -> float:
    """Unbiased mean squared error of scores as success probabilities: E (s - p)^2 from c of n right rollouts.

    (s - c/n)^2 - (c/n) (1 - c/n) / (n - 1), averaged over steps: the second term is what the noise of c / n adds to
    the first, p (1 - p) / n, without bias.

    Args:
        scores, num_correct, num_rollouts:
            As for [`outcome_brier_score`].

    Returns:
        `float`: lower is better. In [0, 1] but for noise: of near-perfect scores it can be below 0. `nan` without a
        rollout, and where a step has a single rollout: one outcome says nothing about its own variance.

    Example: 4 steps of even odds, of which the scores know exactly, with 2 rollouts each as chance has it.

    ```python
    >>> probability_brier_score([0.5] * 4, [0, 1, 1, 2], [2] * 4)
    0.0
    >>> round(probability_brier_score([0.9] * 4, [0, 1, 1, 2], [2] * 4), 6)
    0.16

    ```
    """
    scores, correct, total = _read_counts(scores, num_correct, num_rollouts)
    if not scores.size or (total < 2).any():
        return math.nan
    share = correct / total
    return float(np.mean((scores - share) ** 2 - share * (1 - share) / (total - 1)))


def min_on_last_share(step_scores: Sequence[Sequence[float]], problems: Sequence[Hashable] | None = None) -> MinOnLast:
    """How often the lowest score of a solution is that of its last step: the symptom of outcome shift.

    A step value says whether the solution can still come right, so a first error lowers it where it happens, most
    often before the last step. A PRM whose lowest score falls on the last step far more often than that judges the
    final answer, whatever its format: min aggregation then selects as an outcome model does.

    Of m steps with the same lowest score the last counts 1/m if it is one of them, so that for scores in random order
    the expected share is exactly `chance`, the mean of 1 / num_steps. Solutions of one step are left out: their lowest
    score is their last, always.

    Args:
        step_scores (`Sequence[Sequence[float]]` of shape `(num_solutions, num_steps)`, each with its `num_steps`):
            PRM output, any finite number. A solution with `None` or without steps is left out.
        problems (`Sequence[Hashable]` of length `num_solutions`, *optional*):
            The problem of each solution, for the interval. `None`: the solutions are independent.

    Returns:
        [`MinOnLast`]: `(share, chance, num_solutions)`.

    Raises:
        ValueError: if a score is not finite (naming the solution), or the lengths differ.

    Example:

    ```python
    >>> found = min_on_last_share([[0.9, 0.2], [0.3, 0.4, 0.5], [0.7]])
    >>> found.share.mean, round(found.chance, 3), found.num_solutions
    (0.5, 0.417, 2)

    ```

    Source: Zhang et al., 2025, arXiv 2501.07301, on the shift from process to outcome in PRMs chosen by best-of-N.
    """
    numbers = group_numbers(problems, len(step_scores))
    shares, chances, kept = [], [], []
    for index, scores in enumerate(step_scores):
        if scores is None or len(scores) < 2:
            continue
        values = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError(
                f"The scores of solution {index} must be finite, got {list(scores)}. Give a solution that was not "
                "scored the value None."
            )
        is_lowest = values == values.min()
        shares.append(is_lowest[-1] / is_lowest.sum())
        chances.append(1 / values.size)
        kept.append(index)
    if not shares:
        return MinOnLast(Estimate(math.nan, math.nan, math.nan), math.nan, 0)
    return MinOnLast(grouped_interval(np.array(shares), numbers[kept]), float(np.mean(chances)), len(shares))


def measure_calibration(
    step_scores: Sequence[Sequence[float] | None],
    outcomes: Sequence[Sequence[float | None]],
    num_rollouts: Sequence[Sequence[int]] | None = None,
    eta: float | None = None,
    problems: Sequence[Hashable] | None = None,
    num_bins: int = 10,
    seed: int = 0,
) -> Calibration:
    """How well a process reward model's step scores are calibrated, against held-out rollouts or ratings.

    Args:
        step_scores (`Sequence[Sequence[float]]` of shape `(num_solutions, num_steps)`, each with its `num_steps`):
            PRM output in [0, 1]. `None`: a solution without scores, left out.
        outcomes (`Sequence[Sequence[float]]` of the shape of `step_scores`):
            With `num_rollouts`: right rollouts from each step on. Else ratings or outcomes in [0, 1] (a single final
            outcome may be repeated for each step). A step with NaN or `None` is left out.
        num_rollouts (`Sequence[Sequence[int]]` of the shape of `step_scores`, *optional*):
            Rollouts from each step on. A step with 0 is left out.
        eta (`float`, *optional*):
            Entropy parameter of the labels that the PRM learnt, finite: scores are taken back through V_eta
            ([`success_probability`]). `None`: scores are probabilities as they are (ratings, hard and soft labels).
        problems (`Sequence[Hashable]` of length `num_solutions`, *optional*):
            The problem of each solution, for the intervals. `None`: each solution is its own.
        num_bins (`int`, *optional*, defaults to `10`):
            Bins of both diagrams.
        seed (`int`, *optional*, defaults to `0`):
            Seed of resampling.

    Returns:
        [`Calibration`].

    Raises:
        ValueError: if shapes differ, a score is outside [0, 1] or NaN, an outcome is outside its range (each naming
            the solution), if `eta` is not finite, or if no step is left.

    Example: scores of a PRM with eta = 2, exact for the rollouts; as probabilities they are far off.

    ```python
    >>> from trl_erprm.labeling.estimators import entropy_regularized_value_from_counts
    >>> counts = [[8, 4, 0], [8, 16]]
    >>> scores = [entropy_regularized_value_from_counts(c, 16, eta=2).tolist() for c in counts]
    >>> rollouts = [[16] * 3, [16] * 2]
    >>> round(measure_calibration(scores, counts, rollouts, eta=2).calibration_error, 6)
    0.0
    >>> round(measure_calibration(scores, counts, rollouts).calibration_error, 3)
    0.132

    ```
    """
    num_solutions = len(step_scores)
    for name, given in (("outcomes", outcomes), ("num_rollouts", num_rollouts), ("problems", problems)):
        if given is not None and len(given) != num_solutions:
            raise ValueError(
                f"`{name}` must hold one entry a solution, got {len(given)} for {num_solutions} solutions. They must "
                "describe the same solutions, in the same order."
            )
    flat = _read_steps(step_scores, outcomes, num_rollouts)
    if not flat:
        raise ValueError(
            f"There is no step with a score and an outcome in the {num_solutions} solutions. Check that scores and "
            "outcomes belong together."
        )
    scores, correct, total = (np.array(column) for column in list(zip(*flat, strict=True))[:3])
    if eta is not None:
        scores = np.asarray(success_probability(scores, check_eta(eta)))
    of_item = [solution for *_, solution in flat]
    groups = group_numbers(of_item if problems is None else [problems[i] for i in of_item], len(of_item))
    shares = correct / total
    equal_width = reliability_diagram(scores, shares, num_bins, "equal_width", groups)
    equal_mass = reliability_diagram(scores, shares, num_bins, "equal_mass", groups)
    # A rating between 0 and 1 is a share of unknown n: nothing is known of its noise.
    is_counted = num_rollouts is not None
    squares = _outcome_squares(scores, correct, total) if is_counted else (scores - shares) ** 2
    of_group = np.stack([np.bincount(groups, weights=squares), np.bincount(groups)], axis=1)
    return Calibration(
        num_steps=len(flat),
        num_solutions=len(set(of_item)),
        mean_score=float(scores.mean()),
        mean_outcome=float(shares.mean()),
        calibration_error=binned_calibration_error(equal_width),
        calibration_error_equal_mass=binned_calibration_error(equal_mass),
        calibration_error_if_perfect=calibration_error_if_perfect(scores, total, num_bins, seed),
        outcome_brier=Estimate(float(squares.mean()), *resampled_interval(_ratio, of_group, seed)),
        probability_brier=probability_brier_score(scores, correct, total) if is_counted else math.nan,
        min_on_last=min_on_last_share(step_scores, problems),
        equal_width=equal_width,
        equal_mass=equal_mass,
    )


def _read_steps(
    step_scores: Sequence[Sequence[float] | None],
    outcomes: Sequence[Sequence[float | None]],
    num_rollouts: Sequence[Sequence[int]] | None,
) -> list[tuple[float, float, float, int]]:
    """Score, right rollouts (or share), rollouts and solution of each step with an outcome."""
    flat = []
    for index, scores in enumerate(step_scores):
        if scores is None:
            continue
        of_solution = outcomes[index]
        counts = num_rollouts[index] if num_rollouts is not None else [1] * len(scores)
        if not len(scores) == len(of_solution) == len(counts):
            raise ValueError(
                f"Solution {index} has {len(scores)} step scores, {len(of_solution)} outcomes"
                f"{f' and {len(counts)} numbers of rollouts' if num_rollouts is not None else ''}. Give one of each "
                "a step, with None where a step has no outcome."
            )
        for step, (score, outcome, total) in enumerate(zip(scores, of_solution, counts, strict=True)):
            if outcome is None or math.isnan(outcome) or not total:
                continue
            if score is None or not 0 <= score <= 1:
                raise ValueError(
                    f"`step_scores` must lie in [0, 1], got {score!r} in solution {index}, step {step}. Pass "
                    "probabilities (the sigmoid of a logit), and None for a solution that was not scored."
                )
            is_count = num_rollouts is None or (outcome == int(outcome) and total == int(total))
            if not (0 <= outcome <= total and is_count):
                accepted = f"a count from 0 to the {total} rollouts" if num_rollouts is not None else "in [0, 1]"
                raise ValueError(
                    f"`outcomes` must be {accepted}, got {outcome!r} in solution {index}, step {step}. Pass counts of "
                    "right rollouts with `num_rollouts`, shares or ratings in [0, 1] without."
                )
            flat.append((float(score), float(outcome), float(total), index))
    return flat


def _equal_mass_bins(scores: np.ndarray, num_bins: int) -> tuple[np.ndarray, list[float], list[float]]:
    """Bin of each item, and lowest and highest score of each bin."""
    ordered = np.sort(scores)
    lows: list[float] = []
    end = 0
    for b in range(1, num_bins + 1):
        wanted = round(b * ordered.size / num_bins)
        if wanted <= end:
            continue  # the run of equal scores at the last cut went beyond this one
        lows.append(float(ordered[end]))
        end = int(np.searchsorted(ordered, ordered[wanted - 1], side="right"))
    index = np.searchsorted(lows, scores, side="right") - 1
    return index, lows, [float(scores[index == b].max()) for b in range(len(lows))]


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def _outcome_squares(scores: np.ndarray, correct: np.ndarray, total: np.ndarray) -> np.ndarray:
    return (correct * (1 - scores) ** 2 + (total - correct) * scores**2) / total


def _read_items(
    scores: ArrayLike, outcomes: ArrayLike, groups: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, outcomes and group numbers of the items that have an outcome."""
    brier_score(scores, outcomes)  # its checks of lengths, types, finite scores and outcomes in [0, 1]
    scores, outcomes = np.asarray(scores, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    numbers = group_numbers(groups, scores.size)
    has_outcome = ~np.isnan(outcomes)
    scores, outcomes, numbers = scores[has_outcome], outcomes[has_outcome], numbers[has_outcome]
    is_outside = (scores < 0) | (scores > 1)
    if is_outside.any():
        raise ValueError(
            f"`scores` must lie in [0, 1] to be probabilities, got {scores[is_outside][0]:g}. Pass the sigmoid of a "
            "logit."
        )
    return scores, outcomes, numbers


def _read_counts(
    scores: ArrayLike, num_correct: ArrayLike, num_rollouts: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and counts of the items that have a rollout."""
    correct = np.asarray(num_correct, dtype=np.float64)
    try:
        total = np.broadcast_to(np.asarray(num_rollouts, dtype=np.float64), correct.shape)
    except ValueError:
        raise ValueError(
            f"`num_rollouts` must be one number, or one an item, got {np.size(num_rollouts)} for {correct.size} "
            "items. Pass the same items."
        ) from None
    is_whole = (correct == np.floor(correct)) & (total == np.floor(total))
    is_wrong = ~((correct >= 0) & (correct <= total) & is_whole)
    if is_wrong.any():
        raise ValueError(
            f"`num_correct` must be whole numbers from 0 to `num_rollouts`, got {correct[is_wrong][0]:g} of "
            f"{total[is_wrong][0]:g}. Pass counts, not shares."
        )
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan: no outcome
        shares = np.where(total > 0, correct / np.maximum(total, 1), np.nan)
    scores, _, kept = _read_items(scores, shares, None)
    return scores, correct[kept], total[kept]


def _check_num_bins(num_bins: int) -> None:
    if isinstance(num_bins, bool) or not isinstance(num_bins, int | np.integer) or num_bins < 1:
        raise ValueError(f"`num_bins` must be a whole number from 1 up, got {num_bins!r}. Pass 10 for tenths.")
