"""Metrics: how well scores fit labels. Step scores against step labels, or solutions' scores against outcomes.

    auroc               do higher labels get higher scores?       in [0, 1], higher is better, 0.5 is chance
    brier_score         mean (s - V)^2                            0 or more, lower is better
    calibration_error   mean |s - V| of bins of equal s           in [0, 1], lower is better; arXiv 1706.04599
    step_accuracy       are s and V on one side of a threshold?   in [0, 1], higher is better
    first_error_f1      is the first wrong step found?            in [0, 1], higher is better; ProcessBench, 2412.06559

A label lies in [0, 1] and may be soft, such as a step value from rollouts. One that is NaN or `None` is missing: it is
left out together with its score, whatever that is. A metric of nothing is nan, not an error, so that a batch without
labels can be logged.

A step is good where its value is above the threshold, and an error where it is equal or below, in every function here.

Pure functions on numpy arrays, in float64; torch is not imported.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "FirstErrorF1",
    "auroc",
    "brier_score",
    "calibration_error",
    "first_error",
    "first_error_f1",
    "step_accuracy",
]


def auroc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    r"""Area under the ROC curve: the probability that a positive scores higher than a negative, a tie counting half.

    An item of label V and weight w is w * V of a positive and w * (1 - V) of a negative, so with labels 0 and 1 this
    is the usual AUROC. A soft label is therefore the same as copies of its item with labels 0 and 1 whose mean is V:
    0.5 of weight 2 is one positive and one negative. The pairs of an item with itself are in, as ties, because the
    pairs of its copies are. Hence soft labels keep the best AUROC that any scores can reach below 1: compare models
    on the same labels only.

    Args:
        scores (`ArrayLike` of shape `(num_items,)`):
            Scores of steps or of solutions (their [`aggregate`]), finite, on any scale: only their order matters.
        labels (`ArrayLike` of shape `(num_items,)`):
            Step labels or outcomes in [0, 1], soft or not. Items with NaN or `None` are left out.
        weights (`ArrayLike` of shape `(num_items,)`, *optional*):
            How often each item counts, finite and 0 or more, on any scale. Each once if `None`.

    Returns:
        `float`: area in [0, 1], 0.5 for scores that say nothing; `nan` where there is no positive or no negative.

    Raises:
        ValueError: if the lengths differ, a score is not finite, a label lies outside [0, 1], or a weight is negative
            or not finite.
        TypeError: if an argument is not a flat list of numbers.

    Example: of the four pairs of a positive and a negative, three are in order.

    ```python
    >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75
    >>> auroc([0.2, 0.8], [0.25, 0.75])
    0.75
    >>> auroc([0.2, 0.8], [1, 1])
    nan

    ```

    Source: Hanley and McNeil, 1982, "The meaning and use of the area under a receiver operating characteristic (ROC)
    curve". Soft labels: the same statistic, under the weights above.
    """
    scores, labels, weights = _read_items(scores, labels, weights)
    positive, negative = _rescale(weights * labels), _rescale(weights * (1.0 - labels))
    if not positive.any() or not negative.any():
        return math.nan
    order = np.argsort(scores, kind="stable")
    scores = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))  # of the runs of equal scores
    positive, negative = np.add.reduceat(positive[order], starts), np.add.reduceat(negative[order], starts)
    negative_below = np.cumsum(negative) - negative
    num_in_order = np.dot(positive, negative_below + negative / 2)
    return float(np.clip(num_in_order / (positive.sum() * negative.sum()), 0.0, 1.0))


def brier_score(scores: ArrayLike, labels: ArrayLike) -> float:
    """Brier score: the mean squared difference of scores and labels.

    Args:
        scores (`ArrayLike` of shape `(num_items,)`):
            Scores of steps or of solutions: probabilities. Any finite number is taken, because the heads of some PRMs
            are unbounded.
        labels (`ArrayLike` of shape `(num_items,)`):
            Step labels or outcomes in [0, 1], soft or not. Items with NaN or `None` are left out.

    Returns:
        `float`: mean squared difference, in [0, 1] for scores in [0, 1], lower is better; `nan` without a label.

    Raises:
        ValueError: if the lengths differ, a score is not finite, or a label lies outside [0, 1].
        TypeError: if an argument is not a flat list of numbers.

    Example:

    ```python
    >>> brier_score([0.5, 1.0], [1.0, 1.0])
    0.125

    ```

    Source: Brier, 1950, "Verification of forecasts expressed in terms of probability", for one class of two.
    """
    scores, labels, _ = _read_items(scores, labels)
    if not scores.size:
        return math.nan
    with np.errstate(over="ignore"):  # the square of a huge score is inf, which is right
        return float(np.square(scores - labels).mean())


def calibration_error(scores: ArrayLike, labels: ArrayLike, num_bins: int = 10) -> float:
    """Expected calibration error: how far the mean label lies from the mean score, among items of similar score.

    The items are put in bins of equal width, [0, 1/B), [1/B, 2/B), ..., [1 - 1/B, 1]. The error is the mean over bins
    of |mean score - mean label|, each bin weighted by its share of the items.

    Args:
        scores (`ArrayLike` of shape `(num_items,)`):
            Scores of steps or of solutions in [0, 1].
        labels (`ArrayLike` of shape `(num_items,)`):
            Step labels or outcomes in [0, 1], soft or not. Items with NaN or `None` are left out.
        num_bins (`int`, *optional*, defaults to `10`):
            B, 1 or more. More bins see more of the miscalibration, and more noise. The default is our choice; Guo et
            al. take 15.

    Returns:
        `float`: error in [0, 1], lower is better; `nan` without a label.

    Raises:
        ValueError: if the lengths differ, a score or a label lies outside [0, 1], or `num_bins` is not a whole number
            from 1 up.
        TypeError: if an argument is not a flat list of numbers.

    Example: 0.75 is said of two steps, and one of them is right.

    ```python
    >>> calibration_error([0.75, 0.75], [1, 0])
    0.25

    ```

    Source: Naeini et al., 2015, "Obtaining well calibrated probabilities using Bayesian binning", and Guo et al.,
    2017, arXiv 1706.04599, there with bins closed on the right.
    """
    if isinstance(num_bins, bool) or not isinstance(num_bins, int | np.integer) or num_bins < 1:
        raise ValueError(f"`num_bins` must be a whole number from 1 up, got {num_bins!r}. Pass 10 for tenths.")
    scores, labels, _ = _read_items(scores, labels)
    is_outside = (scores < 0) | (scores > 1)
    if is_outside.any():
        raise ValueError(
            f"`scores` must lie in [0, 1] to be put in bins, got {scores[is_outside][0]:g}. Pass probabilities, not "
            "logits."
        )
    if not scores.size:
        return math.nan
    # Compared with the edges themselves, because `floor(score * num_bins)` puts 0.29 of 100 bins in the one below it.
    inner_edges = np.arange(1, num_bins) / num_bins
    bins = np.searchsorted(inner_edges, scores, side="right")
    # share * |mean s - mean V| of a bin = |sum (s - V)| / num_items
    return float(np.abs(np.bincount(bins, weights=scores - labels)).sum() / scores.size)


def step_accuracy(scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5) -> float:
    """Share of items whose score and label lie on the same side of the threshold: both above, or both not above.

    Args:
        scores (`ArrayLike` of shape `(num_items,)`):
            Scores of steps or of solutions, finite, on the scale of the labels.
        labels (`ArrayLike` of shape `(num_items,)`):
            Step labels or outcomes in [0, 1], soft or not. Items with NaN or `None` are left out.
        threshold (`float`, *optional*, defaults to `0.5`):
            What is above it is good, any finite number. The default, even odds, is our choice; for scores of PRMs
            ProcessBench takes the threshold that is best on its GSM8K subset (arXiv 2412.06559, section 4.1).

    Returns:
        `float`: share in [0, 1], higher is better; `nan` without a label.

    Raises:
        ValueError: if the lengths differ, a score is not finite, a label lies outside [0, 1], or `threshold` is not
            finite.
        TypeError: if `scores` or `labels` is not a flat list of numbers, or `threshold` is not a number.

    Example: 0.5 is not above the threshold, and the last step has no label.

    ```python
    >>> step_accuracy([0.9, 0.5, 0.8, 0.1], [1, 0.3, 0, float("nan")])
    0.6666666666666666

    ```
    """
    threshold = _check_threshold(threshold)
    scores, labels, _ = _read_items(scores, labels)
    if not scores.size:
        return math.nan
    return float(((scores > threshold) == (labels > threshold)).mean())


def first_error(values: Sequence[ArrayLike], threshold: float = 0.5) -> np.ndarray:
    """Index of the first step of each solution that is not above the threshold, -1 where there is none.

    Args:
        values (`Sequence[ArrayLike]` of shape `(num_solutions, num_steps)`, each solution with its `num_steps`):
            Step scores or step labels, any finite number. NaN or `None` is passed over: it is neither good nor an
            error, but has its place in the count.
        threshold (`float`, *optional*, defaults to `0.5`):
            As for [`step_accuracy`].

    Returns:
        `np.ndarray` of `int64` and shape `(num_solutions,)`: indices from 0, or -1 where every step is good, also for
        a solution without steps.

    Raises:
        ValueError: if a value is infinite, or `threshold` is not finite.
        TypeError: if `values` is not a list of lists of numbers, or `threshold` is not a number.

    Example:

    ```python
    >>> first_error([[0.9, 0.4, 0.3], [0.9, 0.8], [float("nan"), 0.5]])
    array([ 1, -1,  1])

    ```
    """
    threshold = _check_threshold(threshold)
    flat, lengths = _read_solutions("values", values)
    if np.isinf(flat).any():
        raise ValueError(
            f"`values` must be finite, or NaN for a step without a value, got {flat[np.isinf(flat)][0]}. Find out "
            "where it arose (a model that diverged, half precision)."
        )
    return _first_error(flat, lengths, threshold)


class FirstErrorF1(NamedTuple):
    """Result of [`first_error_f1`].

    Attributes:
        f1 (`float`): harmonic mean of the two accuracies, in [0, 1]; `nan` where one of them is.
        accuracy_erroneous (`float`): share of the solutions with an error whose first error is found; `nan` for none.
        accuracy_correct (`float`): share of the solutions without error in which none is found; `nan` for none.
        num_erroneous (`int`): number of solutions with an error.
        num_correct (`int`): number of solutions without error.
    """

    f1: float
    accuracy_erroneous: float
    accuracy_correct: float
    num_erroneous: int
    num_correct: int


def first_error_f1(
    step_scores: Sequence[ArrayLike], step_labels: Sequence[ArrayLike], threshold: float = 0.5
) -> FirstErrorF1:
    """ProcessBench's measure: is the first error of a solution found, and are solutions without error left in peace?

    The two accuracies are those of [`first_error`] of the scores against that of the labels, apart for solutions with
    and without an error. Their harmonic mean is 0 for a PRM that finds errors everywhere and for one that finds none.

    Args:
        step_scores (`Sequence[ArrayLike]` of shape `(num_solutions, num_steps)`, each solution with its `num_steps`):
            PRM output for each step, finite, on the scale of the labels.
        step_labels (`Sequence[ArrayLike]` of the shape of `step_scores`):
            Step labels in [0, 1], soft or not. A step with NaN or `None` is left out together with its score, and has
            its place in the count. A solution without any label is left out.
        threshold (`float`, *optional*, defaults to `0.5`):
            As for [`step_accuracy`], for the scores and the labels.

    Returns:
        [`FirstErrorF1`]: `(f1, accuracy_erroneous, accuracy_correct, num_erroneous, num_correct)`, higher is better.

    Raises:
        ValueError: if the numbers of solutions or of steps differ, the score of a labelled step is not finite, a label
            lies outside [0, 1], or `threshold` is not finite.
        TypeError: if `step_scores` or `step_labels` is not a list of lists of numbers, or `threshold` is not a number.

    Example: the error of the first solution is found, that of the second is placed a step early, the third is left in
    peace.

    ```python
    >>> first_error_f1(
    ...     step_scores=[[0.9, 0.2], [0.4, 0.3], [0.9, 0.8]],
    ...     step_labels=[[1, 0], [1, 0], [1, 1]],
    ... )
    FirstErrorF1(f1=0.6666666666666666, accuracy_erroneous=0.5, accuracy_correct=1.0, num_erroneous=2, num_correct=1)

    ```

    Source: arXiv 2412.06559, section 3.1 (the task) and 4.1 (the F1 score).
    """
    threshold = _check_threshold(threshold)
    scores, lengths = _read_solutions("step_scores", step_scores)
    labels, label_lengths = _read_solutions("step_labels", step_labels)
    if lengths.size != label_lengths.size:
        raise ValueError(
            "`step_scores` and `step_labels` must have equally many solutions, got "
            f"{lengths.size} and {label_lengths.size}. Pass one list of each for every solution."
        )
    if (lengths != label_lengths).any():
        index = np.argmax(lengths != label_lengths)
        raise ValueError(
            "`step_scores` and `step_labels` must have equally many steps in each solution, got "
            f"{lengths[index]} and {label_lengths[index]} at index {index}. Give a step without a label the label NaN."
        )
    has_label = ~np.isnan(labels)
    _check_scores("step_scores", scores[has_label])
    _check_labels("step_labels", labels)
    found = _first_error(np.where(has_label, scores, np.nan), lengths, threshold)
    wanted = _first_error(labels, lengths, threshold)
    num_labels = np.bincount(np.repeat(np.arange(lengths.size), lengths)[has_label], minlength=lengths.size)

    is_found = found == wanted
    is_erroneous = wanted >= 0
    is_correct = (wanted < 0) & (num_labels > 0)
    erroneous = float(is_found[is_erroneous].mean()) if is_erroneous.any() else math.nan
    correct = float(is_found[is_correct].mean()) if is_correct.any() else math.nan
    # nan + x is nan, so only two zeros take the other branch
    f1 = 0.0 if erroneous + correct == 0 else 2 * erroneous * correct / (erroneous + correct)
    return FirstErrorF1(f1, erroneous, correct, int(is_erroneous.sum()), int(is_correct.sum()))


def _first_error(flat: np.ndarray, lengths: np.ndarray, threshold: float) -> np.ndarray:
    """[`first_error`] of the solutions' values one after the other, `lengths[i]` of them for solution i."""
    positions = np.flatnonzero(flat <= threshold)  # nan is not
    solutions = np.repeat(np.arange(lengths.size), lengths)[positions]
    solutions, firsts = np.unique(solutions, return_index=True)
    first = np.full(lengths.size, -1, dtype=np.int64)
    first[solutions] = positions[firsts] - (np.cumsum(lengths) - lengths)[solutions]
    return first


def _rescale(mass: np.ndarray) -> np.ndarray:
    """`mass` times the power of 2, hence exactly, that brings its largest below 1: no sum or product overflows."""
    _, exponent = np.frexp(mass.max(initial=0.0))
    return np.ldexp(mass, -exponent)


def _read_items(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checked scores, labels and weights of the items that have a label."""
    scores, labels = _read_flat("scores", scores), _read_flat("labels", labels)
    weights = np.ones_like(scores) if weights is None else _read_flat("weights", weights)
    for name, other in (("labels", labels), ("weights", weights)):
        if other.size != scores.size:
            raise ValueError(
                f"`scores` and `{name}` must be equally long, got {scores.size} and {other.size}. Pass one of each "
                "for every item."
            )
    has_label = ~np.isnan(labels)
    if not has_label.all():
        scores, labels, weights = scores[has_label], labels[has_label], weights[has_label]
    _check_scores("scores", scores)
    _check_labels("labels", labels)
    is_wrong = ~(np.isfinite(weights) & (weights >= 0))
    if is_wrong.any():
        raise ValueError(
            f"`weights` must be finite and 0 or more, got {weights[is_wrong][0]:g}. Pass 0 for an item that does not "
            "count."
        )
    return scores, labels, weights


def _check_scores(name: str, scores: np.ndarray) -> None:
    is_finite = np.isfinite(scores)
    if not is_finite.all():
        raise ValueError(
            f"`{name}` must be finite wherever there is a label, got {scores[~is_finite][0]}. Find out where it arose "
            "(a model that diverged, half precision), or give an item that was not scored the label NaN."
        )


def _check_labels(name: str, labels: np.ndarray) -> None:
    is_outside = (labels < 0) | (labels > 1)
    if is_outside.any():
        raise ValueError(
            f"`{name}` must lie in [0, 1], or be NaN for no label, got {labels[is_outside][0]:g}. Map rewards to "
            "[0, 1], and the -100 of a token-level mask to NaN."
        )


def _check_threshold(threshold: float) -> float:
    if isinstance(threshold, bool | str) or not np.isscalar(threshold) or not np.isreal(threshold):
        raise TypeError(f"`threshold` must be a number, got {threshold!r}. Pass 0.5 for probabilities.")
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be finite, got {threshold}. Pass 0.5 for probabilities.")
    return float(threshold)


def _read_flat(name: str, values: ArrayLike) -> np.ndarray:
    array = _as_float64(name, values)
    if array.ndim != 1:
        raise TypeError(
            f"`{name}` must be a flat list of numbers, got an array of shape {array.shape}. Pass the items of all "
            "rows as one list."
        )
    return array


def _read_solutions(name: str, solutions: Sequence[ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    """The solutions' values one after the other, and the number of them of each solution."""
    if isinstance(solutions, str | bytes) or not hasattr(solutions, "__iter__"):
        raise TypeError(
            f"`{name}` must be a list of lists of numbers, got {type(solutions).__name__}. Pass a list of values for "
            "each solution."
        )
    arrays = [_as_float64(name, values) for values in solutions]
    for index, array in enumerate(arrays):
        if array.ndim != 1:
            raise TypeError(
                f"`{name}` must be a list of lists of numbers, got one of shape {array.shape} at index {index}. Pass "
                "a flat list of values for each solution, also where there is one solution or one step."
            )
    flat = np.concatenate(arrays) if arrays else np.empty(0)
    return flat, np.array([array.size for array in arrays], dtype=np.int64)


def _as_float64(name: str, values: Any) -> np.ndarray:
    """`values` as an array of float64, with NaN for `None`."""
    try:
        array = np.asarray(values)
        is_number = array.dtype.kind in "biuf" or not array.size
        if array.dtype.kind == "O":  # `None`, or whole numbers beyond int64; a string would be converted
            is_number = not any(isinstance(value, str | bytes) for value in array.flat)
        if not is_number:
            raise TypeError(f"values of type {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must hold numbers only, in lists or arrays of one axis: {error}. Pass tensors as "
            "`tensor.float().cpu().numpy()`."
        ) from None
