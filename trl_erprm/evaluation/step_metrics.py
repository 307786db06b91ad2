"""Measures of step scores against human judgement of steps, with intervals. Pure functions.

    first_error_curve       ProcessBench's F1 at every threshold, exactly             arXiv 2412.06559, section 4.1
    best_threshold          the threshold of the highest F1, to be carried to other data
    measure_first_errors    ProcessBench's F1 and both accuracies at one threshold
    measure_steps           is each step told right from wrong? PRMBench's PRMScore   arXiv 2501.03124

ProcessBench asks for the *first* error of a solution. The F1 there is the harmonic mean of two accuracies: errors
found at the right step among solutions with an error, and nothing found among those without. PRMBench, and ratings of
every step, ask about *each* step: F1 with right steps as positives, F1_neg with wrong steps as positives, and

    PRMScore = 0.5 F1 + 0.5 F1_neg.

A step is an error where its score is at or below the threshold, and where its label is at or below 0.5. Scores may be
on any scale, and so may thresholds. Labels of NaN or `None` are missing: such a step is left out with its score (as
are the steps behind the first error, of which ProcessBench says nothing).

A threshold chosen on the data that it is then measured on flatters the PRM. ProcessBench chooses it on its GSM8K
subset for all subsets; state where yours is from.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..prm.metrics import auroc, first_error
from .best_of_n import Estimate
from .intervals import group_numbers, resampled_interval

__all__ = [
    "FirstErrorCurve",
    "FirstErrors",
    "StepJudgement",
    "best_threshold",
    "check_step_rows",
    "first_error_curve",
    "labels_of_first_error",
    "measure_first_errors",
    "measure_steps",
]

LABEL_THRESHOLD = 0.5
"""A step with a label at or below it is an error: the middle of the scale, of ratings and of Monte-Carlo values."""


class FirstErrorCurve(NamedTuple):
    """ProcessBench's measures at every threshold that makes a difference.

    Attributes:
        thresholds (`np.ndarray` of shape `(num_thresholds,)`): ascending. Between one and the next nothing changes;
            the first lies below all scores, the others are the scores themselves.
        f1 (`np.ndarray` of the same shape): harmonic mean of the two accuracies, in [0, 1].
        accuracy_erroneous (`np.ndarray` of the same shape): share of the solutions with an error whose first error is
            found.
        accuracy_correct (`np.ndarray` of the same shape): share of the solutions without error in which none is
            found.
    """

    thresholds: np.ndarray
    f1: np.ndarray
    accuracy_erroneous: np.ndarray
    accuracy_correct: np.ndarray


class FirstErrors(NamedTuple):
    """Result of [`measure_first_errors`]: shares in [0, 1] with their 95 % intervals, higher is better.

    Attributes:
        threshold (`float`): what was used.
        f1 (`Estimate`): harmonic mean of the two accuracies; nan where one of them is.
        accuracy_erroneous (`Estimate`): share of the solutions with an error whose first error is found.
        accuracy_correct (`Estimate`): share of the solutions without error in which none is found.
        num_erroneous (`int`): solutions with an error.
        num_correct (`int`): solutions without error.
    """

    threshold: float
    f1: Estimate
    accuracy_erroneous: Estimate
    accuracy_correct: Estimate
    num_erroneous: int
    num_correct: int


class StepJudgement(NamedTuple):
    """Result of [`measure_steps`]: shares in [0, 1] with their 95 % intervals, higher is better.

    Attributes:
        threshold (`float`): what was used.
        prm_score (`Estimate`): 0.5 F1 + 0.5 F1_neg; nan where one of them is.
        f1 (`Estimate`): F1 with right steps as positives; nan without a right step.
        f1_negative (`Estimate`): F1 with wrong steps as positives; nan without a wrong step.
        accuracy_correct (`Estimate`): share of the right steps that are judged right.
        accuracy_erroneous (`Estimate`): share of the wrong steps that are judged wrong.
        auroc (`float`): area under the ROC curve of the scores, which needs no threshold.
        num_correct (`int`): right steps.
        num_erroneous (`int`): wrong steps.
    """

    threshold: float
    prm_score: Estimate
    f1: Estimate
    f1_negative: Estimate
    accuracy_correct: Estimate
    accuracy_erroneous: Estimate
    auroc: float
    num_correct: int
    num_erroneous: int


def labels_of_first_error(label: int, num_steps: int) -> list[float | None]:
    """Step labels from the index of the first error: right before it, wrong there, unknown behind it.

    Args:
        label (`int`):
            Index of the first wrong step, from 0; -1 for a solution without error.
        num_steps (`int`):
            Steps of the solution, at least 1.

    Returns:
        `list[float | None]` of length `num_steps`.

    Raises:
        ValueError: if there is no step, or the label is not one of -1, 0, ..., `num_steps` - 1.

    Example:

    ```python
    >>> labels_of_first_error(1, 4)
    [1.0, 0.0, None, None]
    >>> labels_of_first_error(-1, 2)
    [1.0, 1.0]
    >>> labels_of_first_error(4, 4)
    Traceback (most recent call last):
        ...
    ValueError: the label must be -1 (no error) or the index of one of the 4 steps, from 0 to 3, got 4

    ```
    """
    if num_steps < 1:
        raise ValueError("a solution must have at least one step, got none")
    is_index = isinstance(label, int | np.integer) and not isinstance(label, bool)
    if not is_index or not -1 <= label < num_steps:
        raise ValueError(
            f"the label must be -1 (no error) or the index of one of the {num_steps} steps, from 0 to "
            f"{num_steps - 1}, got {label!r}"
        )
    if label == -1:
        return [1.0] * num_steps
    return [1.0] * label + [0.0] + [None] * (num_steps - label - 1)


def check_step_rows(step_scores: Sequence[Sequence[float]], step_labels: Sequence[Sequence[float | None]]) -> None:
    """Raises `ValueError`, with the number of the row, unless scores and labels are what [`measure_steps`] takes.

    Example:

    ```python
    >>> check_step_rows([[0.9], [0.8, float("nan")]], [[1], [1, 0]])
    Traceback (most recent call last):
        ...
    ValueError: Row 1: the score of step 1 must be finite where the step has a label, got nan.

    ```
    """
    _read_rows(step_scores, step_labels, None)


def first_error_curve(
    step_scores: Sequence[Sequence[float]], step_labels: Sequence[Sequence[float | None]]
) -> FirstErrorCurve:
    """ProcessBench's F1 at every threshold.

    Exact, in one pass: with threshold t the error at step e is found while s_e <= t < the lowest score before it, and
    a solution without error is left in peace while t < its lowest score.

    Args:
        step_scores (`Sequence[Sequence[float]]` of shape `(num_solutions, num_steps)`, each with its `num_steps`):
            PRM output, any finite number.
        step_labels (`Sequence[Sequence[float]]` of the shape of `step_scores`):
            Labels in [0, 1] ([`labels_of_first_error`], ratings). NaN or `None`: no label. A solution without any
            label is left out.

    Returns:
        [`FirstErrorCurve`].

    Raises:
        ValueError: if the shapes differ, a labelled step has no finite score, a label lies outside [0, 1] (each naming
            the row), or there is no solution with an error or none without.

    Example:

    ```python
    >>> curve = first_error_curve([[0.9, 0.2], [0.8, 0.7]], [[1, 0], [1, 1]])
    >>> curve.thresholds[1:], curve.f1
    (array([0.2, 0.7, 0.8, 0.9]), array([0., 1., 0., 0., 0.]))

    ```
    """
    rows = _read_rows(step_scores, step_labels, None)[0]
    begins: list[list[float]] = [[], []]  # of the interval of thresholds in which a solution is judged rightly:
    ends: list[list[float]] = [[], []]  # those without error, those with one
    for scores, labels, _ in rows:
        is_wrong = labels <= LABEL_THRESHOLD
        has_error = bool(is_wrong.any())
        error = int(is_wrong.argmax()) if has_error else scores.size
        begin = scores[error] if has_error else -math.inf
        end = np.fmin.reduce(scores[:error], initial=math.inf)  # passes over NaN
        begins[has_error].append(begin)
        ends[has_error].append(max(begin, end))
    if not begins[0] or not begins[1]:
        raise ValueError(
            f"There must be solutions with an error and solutions without, got {len(begins[1])} and {len(begins[0])}. "
            "F1 is the harmonic mean of the accuracies on both."
        )
    values = np.unique(np.concatenate([scores[~np.isnan(scores)] for scores, _, _ in rows]))
    thresholds = np.concatenate([[np.nextafter(values[0], -math.inf)], values])
    accuracies = []
    for begin, end in zip(begins, ends, strict=True):
        change = np.zeros(thresholds.size + 1)
        np.add.at(change, np.searchsorted(thresholds, begin), 1)
        np.add.at(change, np.searchsorted(thresholds, end), -1)
        accuracies.append(np.cumsum(change)[:-1] / len(begin))
    correct, erroneous = accuracies
    return FirstErrorCurve(thresholds, _harmonic_mean(erroneous, correct), erroneous, correct)


def best_threshold(curve: FirstErrorCurve) -> tuple[float, float]:
    """The threshold with the highest F1, and that F1.

    Between two scores the F1 does not change, so the middle between them is taken, which new data are least likely to
    fall on the wrong side of; of several highest ones the lowest.

    Example:

    ```python
    >>> threshold, f1 = best_threshold(first_error_curve([[0.9, 0.2], [0.8, 0.7]], [[1, 0], [1, 1]]))
    >>> round(threshold, 3), f1
    (0.45, 1.0)

    ```
    """
    best = int(np.argmax(curve.f1))
    following = curve.thresholds[min(best + 1, curve.thresholds.size - 1)]
    middle = curve.thresholds[best] + (following - curve.thresholds[best]) / 2
    # of two neighbouring floats the middle is one of them, and at the upper one the F1 is another
    return float(middle if middle < following else curve.thresholds[best]), float(curve.f1[best])


def measure_first_errors(
    step_scores: Sequence[Sequence[float]],
    step_labels: Sequence[Sequence[float | None]],
    threshold: float = 0.5,
    problems: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> FirstErrors:
    """ProcessBench's measures at one threshold.

    Args:
        step_scores, step_labels:
            As for [`first_error_curve`].
        threshold (`float`, *optional*, defaults to `0.5`):
            A step is an error at or below it, any finite number. Default: even odds, for scores that are
            probabilities.
        problems (`Sequence[Hashable]` of length `num_solutions`, *optional*):
            The problem of each solution, for the intervals: whole problems are resampled. `None`: each is its own.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.

    Returns:
        [`FirstErrors`].

    Raises:
        ValueError: as [`first_error_curve`] (solutions of one kind only are legal), and if `threshold` is not finite.

    Example: the error of the first solution is found, the second is left in peace.

    ```python
    >>> found = measure_first_errors([[0.9, 0.2], [0.8, 0.7]], [[1, 0], [1, 1]])
    >>> found.f1.mean, found.num_erroneous, found.num_correct
    (1.0, 1, 1)

    ```

    Source: arXiv 2412.06559, section 3.1 (the task) and 4.1 (the F1 score).
    """
    rows, groups = _read_rows(step_scores, step_labels, problems)
    wanted = first_error([labels for _, labels, _ in rows], LABEL_THRESHOLD)
    is_found = first_error([scores for scores, _, _ in rows], threshold) == wanted
    has_error = wanted >= 0
    sums = _sums_by_group(
        groups, np.stack([is_found & has_error, has_error, is_found & ~has_error, ~has_error], axis=1)
    )

    def shares(sums: np.ndarray) -> list[np.ndarray]:
        erroneous, correct = _ratio(sums[:, 0], sums[:, 1]), _ratio(sums[:, 2], sums[:, 3])
        return [_harmonic_mean(erroneous, correct), erroneous, correct]

    estimates = _estimates(shares, sums, seed)
    return FirstErrors(float(threshold), *estimates, int(has_error.sum()), int((~has_error).sum()))


def measure_steps(
    step_scores: Sequence[Sequence[float]],
    step_labels: Sequence[Sequence[float | None]],
    threshold: float = 0.5,
    problems: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> StepJudgement:
    """Is each labelled step told right from wrong? For ratings of steps and for perturbed solutions.

    Args:
        step_scores, step_labels, threshold, problems, seed:
            As for [`measure_first_errors`].

    Returns:
        [`StepJudgement`].

    Raises:
        ValueError: as [`measure_first_errors`].

    Example: of three right steps two are judged right; the wrong one is found. F1 = 2 * 2 / (2 * 2 + 0 + 1), and
    F1_neg = 2 * 1 / (2 * 1 + 1 + 0).

    ```python
    >>> judged = measure_steps([[0.9, 0.8, 0.1], [0.3]], [[1, 1, 0], [1]])
    >>> judged.f1.mean, round(judged.f1_negative.mean, 3), round(judged.prm_score.mean, 3)
    (0.8, 0.667, 0.733)

    ```

    Source: arXiv 2501.03124, the definition of PRMScore.
    """
    rows, groups = _read_rows(step_scores, step_labels, problems)
    threshold = float(threshold)
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be finite, got {threshold}. Pass 0.5 for probabilities.")
    scores, labels = (np.concatenate([row[i] for row in rows]) for i in (0, 1))
    of_step = np.repeat(groups, [row[0].size for row in rows])
    has_label = ~np.isnan(labels)
    scores, labels, of_step = scores[has_label], labels[has_label], of_step[has_label]
    is_right, judged_right = labels > LABEL_THRESHOLD, scores > threshold
    kinds = [is_right & judged_right, is_right & ~judged_right, ~is_right & judged_right, ~is_right & ~judged_right]
    sums = _sums_by_group(of_step, np.stack(kinds, axis=1))

    def shares(sums: np.ndarray) -> list[np.ndarray]:
        hit, missed, passed, caught = sums.T  # right steps judged right and wrong, wrong steps judged right and wrong
        # 2 TP / (2 TP + FP + FN), undefined where there is nothing to find
        f1 = np.where(hit + missed > 0, _ratio(2 * hit, 2 * hit + missed + passed), np.nan)
        negative = np.where(passed + caught > 0, _ratio(2 * caught, 2 * caught + missed + passed), np.nan)
        return [(f1 + negative) / 2, f1, negative, _ratio(hit, hit + missed), _ratio(caught, passed + caught)]

    return StepJudgement(
        threshold,
        *_estimates(shares, sums, seed),
        auroc(scores, is_right.astype(float)),
        int(is_right.sum()),
        int((~is_right).sum()),
    )


def _read_rows(
    step_scores: Sequence[Sequence[float]],
    step_labels: Sequence[Sequence[float | None]],
    problems: Sequence[Hashable] | None,
) -> tuple[list[tuple[np.ndarray, np.ndarray, int]], np.ndarray]:
    """Scores, labels and number of the solutions with a label, of equal shape, and the groups of these solutions.

    A step without label has the label NaN and the score NaN, which [`first_error`] passes over.
    """
    if len(step_scores) != len(step_labels):
        raise ValueError(
            f"`step_scores` and `step_labels` must have equally many solutions, got {len(step_scores)} and "
            f"{len(step_labels)}. They must describe the same rows."
        )
    groups = group_numbers(problems, len(step_scores))
    rows = []
    for number, (of_scores, of_labels) in enumerate(zip(step_scores, step_labels, strict=True)):
        if of_scores is None or len(of_scores) != len(of_labels):
            got = "no scores" if of_scores is None else f"{len(of_scores)} scores"
            raise ValueError(
                f"Row {number} has {len(of_labels)} steps, but {got}. Give one score a step, or leave out a row that "
                "could not be scored."
            )
        scores, labels = _as_floats(of_scores, number, "score"), _as_floats(of_labels, number, "label")
        has_label = ~np.isnan(labels)
        if not has_label.any():
            continue
        for name, values, is_wrong, advice in (
            ("label", labels, (labels < 0) | (labels > 1), "must lie in [0, 1], or be None for no label"),
            ("score", scores, has_label & ~np.isfinite(scores), "must be finite where the step has a label"),
        ):
            if is_wrong.any():
                step = int(is_wrong.argmax())
                raise ValueError(f"Row {number}: the {name} of step {step} {advice}, got {values[step]}.")
        rows.append((np.where(has_label, scores, np.nan), labels, number))
    if not rows:
        raise ValueError(f"None of the {len(step_scores)} rows has a labelled step. Check the columns that were read.")
    return rows, groups[[number for *_, number in rows]]


def _as_floats(values: ArrayLike, number: int, name: str) -> np.ndarray:
    try:
        array = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        if array.ndim != 1 or any(isinstance(value, str) for value in values):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"Row {number}: the {name}s must be numbers, one a step, got {values!r}.") from None
    return array


def _sums_by_group(groups: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Counts of each kind in each group, of shape `(num_groups, num_kinds)`."""
    _, numbers = np.unique(groups, return_inverse=True)
    return np.stack([np.bincount(numbers, weights=kind) for kind in kinds.T], axis=1)


def _estimates(shares, sums: np.ndarray, seed: int) -> list[Estimate]:
    means = shares(sums.sum(axis=0, keepdims=True))
    return [
        Estimate(float(mean[0]), *resampled_interval(lambda drawn, i=i: shares(drawn)[i], sums, seed))
        for i, mean in enumerate(means)
    ]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _harmonic_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(a + b == 0, 0.0, _ratio(2 * a * b, a + b))  # nan + x is not 0
