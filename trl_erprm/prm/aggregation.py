"""Aggregation: the scores of a completion's steps -> one score, by which completions are ranked.

    min              min_k s_k                                    the paper's, arXiv 2412.11006
    product          prod_k s_k                                   Let's Verify Step by Step, arXiv 2305.20050
    mean             (1/K) sum_k s_k
    last             s_K                                          Math-Shepherd's outcome-like reading
    max              max_k s_k
    softmin(T)       sum_k w_k s_k,  w = softmax(-s / T)          PURE, arXiv 2504.15275; T -> 0: min, T -> inf: mean

A completion without steps has no score: it is an error here, and `None` (never chosen) in a pool of candidates. If it
had one, `product` would give it 1, and selection by it would reward empty completions.
"""

import difflib
import math
import re
from collections.abc import Sequence

__all__ = ["AGGREGATIONS", "DEFAULT_TEMPERATURE", "aggregate", "check_aggregation"]

AGGREGATIONS = ("min", "product", "mean", "last", "max", "softmin")

DEFAULT_TEMPERATURE = 0.1
"""Temperature of "softmin". Our choice for scores in [0, 1]: a step 0.23 above the lowest weighs a tenth of it."""

_SOFTMIN = re.compile(r"softmin\s*\((?P<temperature>[^()]*)\)")


def aggregate(step_scores: Sequence[float], how: str = "min", temperature: float | None = None) -> float:
    r"""Score of a completion from the scores of its steps.

    Args:
        step_scores (`Sequence[float]` of shape `(num_steps,)`):
            PRM output for each step, in order, at least one. Probabilities in [0, 1] for most PRMs; any finite number
            is taken, because the heads of some PRMs are unbounded.
        how (`str`, *optional*, defaults to `"min"`):
            One of [`AGGREGATIONS`], or `"softmin(T)"` with a number for T, such as `"softmin(0.1)"`. The default is
            the paper's (arXiv 2412.11006).
        temperature (`float`, *optional*):
            Temperature of `"softmin"`, in units of a score, above 0; [`DEFAULT_TEMPERATURE`] if `None`. An error with
            any other `how`, where it would do nothing.

    Returns:
        `float`: the aggregated score. It lies between the lowest and the highest step score, except for `"product"`,
        which of scores in [0, 1] is at most the lowest.

    Raises:
        ValueError: if there is no step, a score is not finite, `how` is not known, or `temperature` is not above 0 or
            does not go with `how`.
        TypeError: if `step_scores` is not a flat list of numbers.

    Example:

    ```python
    >>> aggregate([0.9, 0.2, 0.6])
    0.2
    >>> aggregate([0.5, 0.5, 0.0], how="product")
    0.0
    >>> round(aggregate([0.9, 0.2], how="softmin(0.1)"), 4)  # w = (exp(-7), 1) / (1 + exp(-7))
    0.2006
    >>> aggregate([])
    Traceback (most recent call last):
        ...
    ValueError: `step_scores` must hold at least one score, got none: a completion without steps has no score. ...

    ```
    """
    name, softmin_temperature = _parse(how, temperature)
    scores = _read_scores(step_scores)
    if name == "min":
        return min(scores)
    if name == "max":
        return max(scores)
    if name == "last":
        return scores[-1]
    if name == "product":
        return math.prod(scores)
    # `fsum` does not depend on the order of the steps, so that equal sets of scores tie exactly.
    if name == "mean":
        return math.fsum(scores) / len(scores)
    lowest = min(scores)  # subtracted so that the largest weight is exp(0): no overflow at any temperature
    weights = [math.exp((lowest - score) / softmin_temperature) for score in scores]
    return math.fsum(w * s for w, s in zip(weights, scores, strict=True)) / math.fsum(weights)


def check_aggregation(how: str, temperature: float | None = None, argument: str = "how") -> None:
    """Raises `ValueError` unless [`aggregate`] accepts `how` and `temperature`: for configs, before a long run.

    `argument` is the name under which `how` was given, for the message.

    Example:

    ```python
    >>> check_aggregation("softmin(0.5)")
    >>> check_aggregation("minimum")
    Traceback (most recent call last):
        ...
    ValueError: `how` must be one of 'min', 'product', 'mean', 'last', 'max', 'softmin', 'softmin(T)', got 'minimum'.
    Did you mean 'min'?

    ```
    """
    _parse(how, temperature, argument)


def _parse(how: str, temperature: float | None, argument: str = "how") -> tuple[str, float]:
    """Name of the aggregation and its temperature (that of `"softmin"`; without meaning for the others)."""
    if how in AGGREGATIONS:
        name = how
    else:
        match = _SOFTMIN.fullmatch(how.strip()) if isinstance(how, str) else None
        if match is None:
            raise ValueError(_unknown_message(how, argument))
        name = "softmin"
        if temperature is not None:
            raise ValueError(
                f"The temperature must be given once, got `how={how!r}` and `temperature={temperature!r}`. Leave "
                "`temperature` out."
            )
        try:
            temperature = float(match["temperature"])
        except ValueError:
            raise ValueError(
                f"The temperature in `{argument}` must be a number, got {how!r}. Write, for example, 'softmin(0.1)'."
            ) from None
    if name != "softmin":
        if temperature is not None:
            raise ValueError(
                f"`temperature` goes with 'softmin' only, got `temperature={temperature!r}` with `how={how!r}`. Leave "
                "it out, or set `how='softmin'`."
            )
        return name, DEFAULT_TEMPERATURE
    if temperature is None:
        temperature = DEFAULT_TEMPERATURE
    if not temperature > 0:  # also true of nan
        raise ValueError(
            f"`temperature` must be above 0, got {temperature!r}. For the limit at 0, use `how='min'`; for its "
            "opposite, `how='max'`."
        )
    return name, float(temperature)


def _unknown_message(how: object, argument: str) -> str:
    accepted = ", ".join(f"'{name}'" for name in (*AGGREGATIONS, "softmin(T)"))
    text = str(how).strip().lower().partition("(")[0]
    nearest = difflib.get_close_matches(text, AGGREGATIONS, n=1, cutoff=0.4)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else "Choose one of them."
    return f"`{argument}` must be one of {accepted}, got {how!r}. {hint}"


def _read_scores(step_scores: Sequence[float]) -> list[float]:
    if isinstance(step_scores, str | bytes) or not hasattr(step_scores, "__iter__"):
        raise TypeError(
            f"`step_scores` must be a list of numbers, got {type(step_scores).__name__}. For a completion of one "
            "step, pass a list of one score."
        )
    scores = []
    for index, score in enumerate(step_scores):
        try:
            if isinstance(score, str):  # "0.5" would pass `float`
                raise TypeError
            score = float(score)
        except (TypeError, ValueError):
            raise TypeError(
                f"`step_scores` must be a flat list of numbers, got {score!r} at index {index}. Aggregate one "
                "completion at a time, and only completions whose steps were all scored."
            ) from None
        if not math.isfinite(score):
            raise ValueError(
                f"`step_scores` must be finite, got {score!r} at index {index}. Find out where it arose (a model that "
                "diverged, half precision); a ranking by it would mean nothing."
            )
        scores.append(score)
    if not scores:
        raise ValueError(
            "`step_scores` must hold at least one score, got none: a completion without steps has no score. Give such "
            "a candidate the score `None`, which is never chosen."
        )
    return scores
