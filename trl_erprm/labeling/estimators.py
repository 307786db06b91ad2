"""Step values from rollouts: the estimators of ER-PRM (Zhang et al., 2024, arXiv 2412.11006), and their inverse.

The value of a prefix s under the entropy-regularized objective is

    V_eta(s) = (1 / eta) * log E_{rollout ~ pi_0 | s} [ exp(eta * r) ]

with r in [0, 1] the outcome of a rollout and pi_0 the reference policy. It is estimated by the mean over N rollouts in
place of the expectation. For outcomes 0 and 1 with success probability p it reads

    V_eta = (1 / eta) * log(1 + p * (e^eta - 1)),        p = (e^(eta * V_eta) - 1) / (e^eta - 1).

eta orders the labels known before: eta -> 0 is the mean (the soft label of Math-Shepherd), eta -> +inf the best
rollout (the hard label), eta -> -inf the worst. V rises with eta, and a negative eta (a soft minimum) is legal.

The estimate is consistent, its error falls as 1 / sqrt(N), and it is biased for finite N, as a logarithm of a mean is:
downward for eta > 0, upward for eta < 0 (Jensen).

Departures from the reference code: eta need not be an integer, and there is no absolute value around the logarithm
(it hides sign errors). Pure functions on numpy arrays; torch is not imported.
"""

import math
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "check_eta",
    "entropy_regularized_value",
    "entropy_regularized_value_from_counts",
    "entropy_regularized_value_from_probability",
    "success_probability",
]

# Below this |eta| the series mean + (eta / 2) * variance is exact in float64: the next term is at most eta^2 / 12.
_SMALL_ETA = 1e-8


def check_eta(eta: float) -> float:
    """Returns `eta` as a float, or raises `ValueError` if it is nan and `TypeError` if it is not a number.

    Example:

    ```python
    >>> check_eta(2)
    2.0
    >>> check_eta(float("nan"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: `eta` must be finite or one of inf, -inf, got nan. ...

    ```
    """
    if isinstance(eta, bool | str) or not np.isscalar(eta) or not np.isreal(eta):
        raise TypeError(f"`eta` must be a number, got {eta!r} ({type(eta).__name__}). Pass a float, or float('inf').")
    eta = float(eta)
    if math.isnan(eta):
        raise ValueError(
            f"`eta` must be finite or one of inf, -inf, got {eta}. Pass 0 for the mean (soft label), inf for the best "
            "rollout (hard label), or a number between."
        )
    return eta


def entropy_regularized_value(outcomes: ArrayLike, eta: float) -> Any:
    """The entropy-regularized value of a prefix from the outcomes of its rollouts: `(1/eta) log mean exp(eta r)`.

    Args:
        outcomes (`ArrayLike` of shape `(..., num_rollouts)`):
            Outcomes in [0, 1], of any real value. The mean is over the last axis.
        eta (`float`):
            Strength of the regularization, `1 / beta` for a KL coefficient `beta`. Any number, `inf` and `-inf`: 0 is
            the mean, `inf` the maximum, `-inf` the minimum.

    Returns:
        `float` or `np.ndarray` of shape `(...)`: values in [0, 1]; `nan` (no label) where there is no rollout.

    Raises:
        ValueError: if an outcome lies outside [0, 1] or is nan, if `outcomes` has no axis, or if `eta` is nan.

    Example: half of the rollouts right gives log(1 + (e - 1) / 2) at eta = 1.

    ```python
    >>> round(entropy_regularized_value([1, 0, 0, 1], eta=1), 6)
    0.620115
    >>> [entropy_regularized_value([1, 0, 0, 1], eta=eta) for eta in (float("-inf"), 0, float("inf"))]
    [0.0, 0.5, 1.0]
    >>> entropy_regularized_value([[0.5, 0.5], [0.2, 0.4]], eta=0).round(6)
    array([0.5, 0.3])

    ```

    Source: arXiv 2412.11006, the definition of the process reward.
    """
    eta = check_eta(eta)
    r = np.asarray(outcomes, dtype=np.float64)
    if r.ndim == 0:
        raise ValueError(f"`outcomes` must have an axis of rollouts, got the number {outcomes!r}. Pass `[outcome]`.")
    is_outside = ~((r >= 0) & (r <= 1))  # nan is outside, too
    if is_outside.any():
        raise ValueError(
            f"`outcomes` must lie in [0, 1], got {r[is_outside][0]:g}. Map the reward to [0, 1] first, and leave out "
            "rollouts without an outcome."
        )
    if r.shape[-1] == 0:
        return _as_given(np.full(r.shape[:-1], np.nan))
    if eta == math.inf:
        return _as_given(r.max(axis=-1))
    if eta == -math.inf:
        return _as_given(r.min(axis=-1))
    if abs(eta) < _SMALL_ETA:
        return _as_given(r.mean(axis=-1) + eta / 2 * r.var(axis=-1))
    # (1/eta) log mean exp(eta r) = m + (1/eta) log mean exp(eta (r - m)), with the m that keeps every exponent <= 0.
    m = r.max(axis=-1) if eta > 0 else r.min(axis=-1)
    with np.errstate(over="ignore"):  # a huge eta: the exponent becomes -inf, and exp of it 0, which is right
        mean = np.expm1(eta * (r - m[..., None])).mean(axis=-1)
    # expm1 and log1p keep their digits where eta is small, and the mean is >= 1/N - 1, so the logarithm is finite.
    return _as_given(np.clip(m + np.log1p(mean) / eta, 0.0, 1.0))


@overload
def entropy_regularized_value_from_counts(num_correct: int, num_rollouts: int, eta: float) -> float: ...
@overload
def entropy_regularized_value_from_counts(num_correct: ArrayLike, num_rollouts: ArrayLike, eta: float) -> Any: ...
def entropy_regularized_value_from_counts(num_correct: ArrayLike, num_rollouts: ArrayLike, eta: float) -> Any:
    """The entropy-regularized value from counts of right rollouts, for outcomes 0 and 1.

    Equals [`entropy_regularized_value`] of `num_correct` ones and `num_rollouts - num_correct` zeros.

    Args:
        num_correct (`ArrayLike` of `int`):
            Rollouts with a right answer, of any shape.
        num_rollouts (`ArrayLike` of `int`):
            All rollouts, of a shape that broadcasts with `num_correct`.
        eta (`float`):
            As for [`entropy_regularized_value`].

    Returns:
        `float` or `np.ndarray`: values in [0, 1]; `nan` (no label) where `num_rollouts` is 0. Exactly 0 where no
        rollout is right, and exactly 1 where all are, for every `eta`.

    Raises:
        ValueError: if a count is negative or not whole, if more rollouts are right than there are, or if `eta` is nan.

    Example:

    ```python
    >>> round(entropy_regularized_value_from_counts(2, 4, eta=1), 6)
    0.620115
    >>> entropy_regularized_value_from_counts([0, 8, 16], 16, eta=2).round(4)
    array([0.    , 0.7169, 1.    ])
    >>> entropy_regularized_value_from_counts(0, 0, eta=2)
    nan

    ```

    Source: arXiv 2412.11006, the definition of the process reward, with outcomes 0 and 1.
    """
    eta = check_eta(eta)
    correct, total = np.broadcast_arrays(
        np.asarray(num_correct, dtype=np.float64), np.asarray(num_rollouts, dtype=np.float64)
    )
    _check_counts(correct, total)
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan: no label
        p, q = correct / total, (total - correct) / total
    return _as_given(_value(p, q, eta))


def entropy_regularized_value_from_probability(probability: ArrayLike, eta: float) -> Any:
    """The entropy-regularized value where the success probability itself is known: `(1/eta) log(1 + p (e^eta - 1))`.

    Args:
        probability (`ArrayLike`):
            Success probabilities in [0, 1] of any shape. `nan` (no label) is passed through.
        eta (`float`):
            As for [`entropy_regularized_value`].

    Returns:
        `float` or `np.ndarray` of the shape of `probability`: values in [0, 1].

    Raises:
        ValueError: if a probability lies outside [0, 1], or if `eta` is nan.

    Example:

    ```python
    >>> entropy_regularized_value_from_probability([0.0, 0.5, 1.0], eta=2).round(4)
    array([0.    , 0.7169, 1.    ])

    ```

    Source: arXiv 2412.11006, the definition of the process reward, with outcomes 0 and 1.
    """
    eta = check_eta(eta)
    p = np.asarray(probability, dtype=np.float64)
    is_outside = (p < 0) | (p > 1)
    if is_outside.any():
        raise ValueError(f"`probability` must lie in [0, 1], got {p[is_outside][0]:g}. Pass shares, not counts.")
    return _as_given(_value(p, 1.0 - p, eta))


def success_probability(value: ArrayLike, eta: float) -> Any:
    """The success probability with this entropy-regularized value: `p = (e^(eta V) - 1) / (e^eta - 1)`.

    The inverse of [`entropy_regularized_value_from_probability`], for outcomes 0 and 1.

    Args:
        value (`ArrayLike`):
            Values in [0, 1] of any shape, labels or PRM scores. `nan` (no label) is passed through.
        eta (`float`):
            The finite eta that the values were made with. At `inf` and `-inf` there is no inverse: the value 1 of the
            best rollout stands for every p above 0, and the value 0 of the worst for every p below 1. So they are
            errors, rather than a guess.

    Returns:
        `float` or `np.ndarray` of the shape of `value`: probabilities in [0, 1].

    Raises:
        ValueError: if a value lies outside [0, 1], or if `eta` is not finite.

    Example:

    ```python
    >>> value = entropy_regularized_value_from_counts(5, 16, eta=2)
    >>> round(success_probability(value, eta=2) * 16, 9)
    5.0

    ```

    Source: the equation of arXiv 2412.11006 for outcomes 0 and 1, solved for p.
    """
    eta = check_eta(eta)
    if math.isinf(eta):
        raise ValueError(
            f"`eta` must be finite, got {eta}: the best and the worst rollout say nothing about how often one "
            "succeeds. Use the counts, num_correct / num_rollouts."
        )
    v = np.asarray(value, dtype=np.float64)
    is_outside = (v < 0) | (v > 1)
    if is_outside.any():
        raise ValueError(f"`value` must lie in [0, 1], got {v[is_outside][0]:g}. Pass labels or scores, not logits.")
    if abs(eta) < _SMALL_ETA:
        p = v * (1.0 + eta / 2 * (v - 1.0))
    elif eta > 0:
        # Both exponentials divided by e^eta, so that neither overflows.
        p = np.exp(eta * (v - 1.0)) * (np.expm1(-eta * v) / math.expm1(-eta))
    else:
        p = np.expm1(eta * v) / math.expm1(eta)
    return _as_given(np.clip(p, 0.0, 1.0))


def _value(p: np.ndarray, q: np.ndarray, eta: float) -> np.ndarray:
    """V for any eta, with `q = 1 - p` given apart."""
    if eta > 0:
        # The smaller of two exponents is taken: V_eta(p) = 1 - V_{-eta}(1 - p), and expm1(-eta) cannot overflow.
        return 1.0 - _value_for_eta_at_most_0(q, p, -eta)
    return _value_for_eta_at_most_0(p, q, eta)


def _value_for_eta_at_most_0(p: np.ndarray, q: np.ndarray, eta: float) -> np.ndarray:
    """V for eta <= 0, with `q = 1 - p` given apart so that p = 1 is recognized exactly."""
    if eta == -math.inf:
        value = p * 0.0  # the worst rollout; keeps nan
    elif abs(eta) < _SMALL_ETA:
        value = p + eta / 2 * p * q
    else:
        with np.errstate(divide="ignore"):  # log(0) at p = 1 and a large -eta, replaced below
            value = np.log1p(p * math.expm1(eta)) / eta
    return np.clip(np.where(q == 0.0, 1.0, value), 0.0, 1.0)


def _check_counts(correct: np.ndarray, total: np.ndarray) -> None:
    for name, counts in (("num_correct", correct), ("num_rollouts", total)):
        wrong = ~np.isfinite(counts) | (counts < 0) | (counts != np.floor(np.nan_to_num(counts)))
        if np.any(wrong):
            raise ValueError(
                f"`{name}` must be whole numbers from 0 up, got {counts[wrong][0]:g}. Pass counts, not shares."
            )
    if np.any(correct > total):
        first = np.argmax(correct > total)
        raise ValueError(
            f"`num_correct` must not exceed `num_rollouts`, got {correct.flat[first]:g} of {total.flat[first]:g}. "
            "Check the order of the two arguments."
        )


def _as_given(values: np.ndarray) -> Any:
    """A float for no axes, else the array."""
    values = np.asarray(values)
    return float(values) if values.ndim == 0 else values
