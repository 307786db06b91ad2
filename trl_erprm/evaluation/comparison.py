"""Scorers compared on one pool of candidates: every number of a best-of-n report, with intervals.

[`compare_scorers`] gives plain JSON: `metrics.json` is it, and the report shows it. [`calibrate_scorers`] adds how far
step scores are from the success probabilities that these candidates show, [`judge_scorers`] what they say of single
steps, and [`compare_search`] what search with a scorer costs and is worth beside best of n.

    num_problems, num_candidates, aggregation, notes
    random, majority, oracle                                  a curve each
    scorers    name -> aggregation (its own), num_unscored, and for each of the aggregations best_of_n and
               weighted_majority, a curve each
    pairs      first and second with aggregation: difference, low, high, only_first, only_second, p_value

A *curve* has an item for every n = 1 .. M: `accuracy`, the mean over all subsets of n candidates, `low` and `high`,
its 95 % interval over problems, and `first_n`, the accuracy on the first n candidates, as the literature reports it.
The `difference` of a pair is over all subsets, too, with its paired bootstrap interval; McNemar's test (`only_first`,
`only_second`, `p_value`) needs one outcome a problem and takes the first n candidates.

Pairs are: each scorer with each later one, each with majority vote, and each scorer's weighted majority with it; for
each aggregation, and, where some scorer has one of its own, with each by its own (`aggregation` is "own" then).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from ..choices import check_choice
from ..prm.aggregation import AGGREGATIONS, aggregate, check_aggregation
from .best_of_n import clustered_interval, sampled_accuracy
from .calibration import measure_calibration
from .candidates import CandidatePool, StepScores, check_step_scores, pool_notes
from .curves import MAX_SUBSETS, best_of_n_curves, majority_curves, pass_at_n_curves
from .paired import NUM_RESAMPLES, bootstrap_intervals, mcnemar
from .processbench import JudgedRow, measure_judged_rows
from .search import CurvePoint, best_of_n_curve
from .step_pairs import step_pair_accuracy

__all__ = [
    "MAJORITY",
    "WEIGHTED",
    "aggregated_scores",
    "calibrate_scorers",
    "calibration_notes",
    "compare_scorers",
    "compare_search",
    "headline_pairs",
    "judge_scorers",
]

MAJORITY = "majority vote"
WEIGHTED = "{scorer}, weighted vote"
"""What pairs call the two votes."""

OWN = "own"
"""Aggregation of pairs in which each scorer is aggregated in its own way."""


class _Curve(NamedTuple):
    """Accuracy of each problem at every n, under both rules: two arrays of shape `(P, M)`."""

    all_subsets: np.ndarray
    first_n: np.ndarray


def compare_scorers(
    pool: CandidatePool,
    step_scores: Mapping[str, StepScores],
    aggregation: str = "min",
    own_aggregations: Mapping[str, str] | None = None,
    aggregations: Sequence[str] = AGGREGATIONS,
    num_resamples: int = NUM_RESAMPLES,
    max_subsets: int = MAX_SUBSETS,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracies of best of n and of votes by several scorers of the same candidates, and their paired differences.

    Args:
        pool ([`CandidatePool`]):
            The candidates.
        step_scores (`Mapping[str, StepScores]`):
            Step scores of each scorer by its name, of the shape of the pool.
        aggregation (`str`, *optional*, defaults to `"min"`):
            The one that a report puts first; one of `aggregations`. Default: the paper's (arXiv 2412.11006).
        own_aggregations (`Mapping[str, str]`, *optional*):
            What stands first for single scorers instead, by name: an outcome model learnt the last score only, so
            `{"outcome": "last"}`.
        aggregations (`Sequence[str]`, *optional*):
            How step scores become one number ([`aggregate`]); all six by default.
        num_resamples (`int`, *optional*, defaults to `2000`):
            Bootstrap resamples of problems. Default: [`NUM_RESAMPLES`].
        max_subsets (`int`, *optional*, defaults to `512`):
            Subsets of one size that votes are averaged over. Default: [`MAX_SUBSETS`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of resamples and subsets.

    Returns:
        `dict`: plain JSON values, as the module describes them. Time and memory grow linearly with problems.

    Raises:
        ValueError: if there is no scorer, an aggregation that is to stand first is not among `aggregations` or for no
            scorer, or step scores do not fit the pool (with the name of the scorer and the row).

    Example:

    ```python
    >>> from trl_erprm.evaluation.candidates import make_pool
    >>> pool = make_pool([{"answer": "4", "candidates": ["5", "4"]}, {"answer": "1", "candidates": ["1", "2"]}])
    >>> metrics = compare_scorers(pool, {"a": [[[0.1], [0.9]], [[0.8], [0.3]]], "b": [[[0.5], [0.4]], [[0.5], [0.4]]]})
    >>> [metrics["scorers"][name]["aggregations"]["min"]["best_of_n"]["accuracy"] for name in ("a", "b")]
    [[0.5, 1.0], [0.5, 0.5]]
    >>> metrics["pairs"][0]["first"], metrics["pairs"][0]["second"], metrics["pairs"][0]["difference"]
    ('a', 'b', [0.0, 0.5])

    ```
    """
    aggregations = list(aggregations)
    if not step_scores:
        raise ValueError("`step_scores` must hold at least one scorer, got none.")
    for how in aggregations:
        check_aggregation(how, argument="aggregations")
    names, own_aggregations = list(step_scores), own_aggregations or {}
    for how in (aggregation, *own_aggregations.values()):
        if how not in aggregations:
            raise ValueError(
                f"`aggregation` must be one of those compared, {', '.join(map(repr, aggregations))}, got {how!r}."
            )
    for name in own_aggregations:
        check_choice("own_aggregations", name, names)
    own = {name: own_aggregations.get(name, aggregation) for name in names}
    scores = {
        name: {how: aggregated_scores(check_step_scores(of_scorer, pool, name), how) for how in aggregations}
        for name, of_scorer in step_scores.items()
    }
    notes = pool_notes(pool)
    # A negative weight would vote against its own answer; the sign of a score does not depend on other aggregations.
    unbounded = [name for name in names if any((values < 0).any() for values in scores[name].values())]
    notes += [f"{name!r} has scores below 0: it has no weighted vote." for name in unbounded]

    correct, num_candidates = pool.is_correct, pool.num_candidates
    voting = [(name, how) for name in names if name not in unbounded for how in aggregations]
    weights = np.stack([np.ones(correct.shape), *(scores[name][how] for name, how in voting)])
    votes = [
        _Curve(*both)
        for both in zip(
            majority_curves(pool.classes, correct, weights, "all_subsets", max_subsets, seed),
            majority_curves(pool.classes, correct, weights, "first_n"),
            strict=True,
        )
    ]
    majority, weighted = votes[0], dict(zip(voting, votes[1:], strict=True))
    best = {
        (name, how): _Curve(*(best_of_n_curves(scores[name][how], correct, rule) for rule in _Curve._fields))
        for name in names
        for how in aggregations
    }
    oracle = _Curve(*(pass_at_n_curves(correct, rule) for rule in _Curve._fields))

    metrics: dict[str, Any] = {
        "num_problems": pool.num_problems,
        "num_candidates": num_candidates,
        "aggregation": aggregation,
        "notes": notes,
        "random": dict(zip(("accuracy", "low", "high"), sampled_accuracy(correct), strict=True)),
        "majority": _summary(majority),
        "oracle": _summary(oracle),
        "scorers": {},
        "pairs": [],
    }
    for name in names:
        metrics["scorers"][name] = {
            "aggregation": own[name],
            "num_unscored": int(np.isnan(scores[name][aggregation]).sum()),
            "aggregations": {
                how: {"best_of_n": _summary(best[name, how])}
                | ({"weighted_majority": _summary(weighted[name, how])} if (name, how) in weighted else {})
                for how in aggregations
            },
        }
    families = {how: dict.fromkeys(names, how) for how in aggregations}
    if len({aggregation, *own.values()}) > 1:
        families[OWN] = own
    for family, hows in families.items():
        chosen = {name: best[name, how] for name, how in hows.items()}
        sides = [(first, chosen[first], second, chosen[second]) for first, second in combinations(names, 2)]
        sides += [(name, chosen[name], MAJORITY, majority) for name in names]
        sides += [
            (WEIGHTED.format(scorer=name), weighted[name, how], MAJORITY, majority)
            for name, how in hows.items()
            if (name, how) in weighted
        ]
        for first, one, second, other in sides:
            pair = {"first": first, "second": second, "aggregation": family}
            metrics["pairs"].append(pair | _difference(one, other, num_resamples, seed))
    return metrics


def calibrate_scorers(
    pool: CandidatePool, step_scores: Mapping[str, StepScores], etas: Mapping[str, float | None] | None = None
) -> dict[str, Any]:
    """Calibration of step scores as success probabilities, against the outcomes of the candidates themselves.

    A candidate is one rollout, by the policy that wrote it, from each of its own prefixes; so among steps of one
    score, the share of candidates that end right estimates the success probability of that policy.

    Args:
        pool ([`CandidatePool`]):
            The candidates.
        step_scores (`Mapping[str, StepScores]`):
            Step scores of each scorer by its name, of the shape of the pool.
        etas (`Mapping[str, float | None]`, *optional*):
            Entropy parameter of the labels that a scorer learnt, where it is known: a finite one is taken back
            ([`success_probability`]). Scores of others are taken for probabilities as they are.

    Returns:
        `dict`: by scorer the `eta` that was taken back, and fields of [`~evaluation.calibration.Calibration`] as plain
        JSON, `bins` (of equal mass) in place of the diagrams. A scorer whose scores leave [0, 1], or that scored
        nothing, is left out; [`calibration_notes`] says which.

    Raises:
        ValueError: if step scores do not fit the pool, with the name of the scorer and the row.

    Example:

    ```python
    >>> from trl_erprm.evaluation.candidates import make_pool
    >>> pool = make_pool([{"answer": "4", "candidates": ["4", "5"]}])
    >>> found = calibrate_scorers(pool, {"a": [[[0.9], [0.2]]], "unbounded": [[[3.0], [-1.0]]]})
    >>> list(found), round(found["a"]["calibration_error"], 3)  # (0.1 + 0.2) / 2
    (['a'], 0.15)

    ```
    """
    results: dict[str, Any] = {}
    problems = [row for row in range(pool.num_problems) for _ in range(pool.num_candidates)]
    for name, of_scorer in step_scores.items():
        flat = [scores for problem in check_step_scores(of_scorer, pool, name) for scores in problem]
        scores_range = _range(of_scorer)
        if scores_range is None or scores_range[0] < 0 or scores_range[1] > 1:
            continue
        outcomes = [
            [float(is_right)] * len(scores or ())
            for scores, is_right in zip(flat, pool.is_correct.ravel().tolist(), strict=True)
        ]
        eta = (etas or {}).get(name)
        eta = eta if eta is not None and math.isfinite(eta) else None  # hard labels: of no other probability
        found = measure_calibration(flat, outcomes, eta=eta, problems=problems)
        measures = ("num_steps", "num_solutions", "mean_score", "mean_outcome", "calibration_error")
        on_last = found.min_on_last
        results[name] = {
            "eta": eta,
            **{key: getattr(found, key) for key in (*measures, "calibration_error_if_perfect")},
            "outcome_brier": list(found.outcome_brier),
            "min_on_last": {"share": list(on_last.share), "chance": on_last.chance} if on_last.num_solutions else None,
            "bins": [of_bin._asdict() for of_bin in found.equal_mass],
        }
    return results


def calibration_notes(step_scores: Mapping[str, StepScores]) -> list[str]:
    """Which scorers [`calibrate_scorers`] leaves out, why, and what to do about it.

    Example:

    ```python
    >>> calibration_notes({"prm": [[[0.9], [0.2]]], "logits": [[[3.0], [-1.25]]]})
    ["'logits' has scores from -1.25 to 3, outside [0, 1], which are no probabilities: it has no calibration. If they
    are logits, give their sigmoid."]

    ```
    """
    notes = []
    for name, of_scorer in step_scores.items():
        scores_range = _range(of_scorer)
        if scores_range is None:
            notes.append(f"{name!r} has no score of any candidate: it has no calibration.")
        elif scores_range[0] < 0 or scores_range[1] > 1:
            low, high = scores_range
            notes.append(
                f"{name!r} has scores from {low:.3g} to {high:.3g}, outside [0, 1], which are no probabilities: it "
                "has no calibration. If they are logits, give their sigmoid."
            )
    return notes


def judge_scorers(
    pool: CandidatePool,
    step_scores: Mapping[str, StepScores],
    check_steps: Callable[[Any, list[str]], list[bool]],
) -> dict[str, dict[str, Any]]:
    """What step scores say of single steps, against verdicts on these steps.

    Args:
        pool ([`CandidatePool`]):
            The candidates.
        step_scores (`Mapping[str, StepScores]`):
            Step scores of each scorer by its name, of the shape of the pool. Candidates without scores are left out.
        check_steps (`Callable`):
            `check_steps(prompt, steps) -> list[bool]`: whether each step is right, such as
            [`ArithmeticTask.check_steps`].

    Returns:
        `dict`: by scorer, as plain JSON; `None` where these candidates do not tell:

        - `step_pair_accuracy`, `num_step_pairs`: of [`step_pair_accuracy`].
        - `first_error_f1` (mean and interval), `error_found`, `no_error_seen`, `threshold`: ProcessBench's F1 of
          first errors and its two accuracies, measured on the second half of the problems with the threshold that is
          best on the first half.

    Raises:
        ValueError: if step scores do not fit the pool, with the name of the scorer and the row.

    Example:

    ```python
    >>> from trl_erprm.evaluation.candidates import make_pool
    >>> row = {"prompt": "1+1", "answer": "2", "candidates": ["1+1=2\\n#2", "1+1=3\\n#3"]}
    >>> pool, scores = make_pool([row], "arithmetic"), {"a": [[[0.9, 0.8], [0.3, 0.1]]]}
    >>> found = judge_scorers(pool, scores, lambda prompt, steps: ["3" not in step for step in steps])
    >>> found["a"]["step_pair_accuracy"], found["a"]["num_step_pairs"], found["a"]["first_error_f1"]
    (1.0, 2, None)

    ```
    """
    return {
        name: _judge_scorer(pool, check_step_scores(of_scorer, pool, name), check_steps)
        for name, of_scorer in step_scores.items()
    }


def _judge_scorer(
    pool: CandidatePool, step_scores: StepScores, check_steps: Callable[[Any, list[str]], list[bool]]
) -> dict[str, Any]:
    judged = [(i, j) for i, of_problem in enumerate(step_scores) for j, s in enumerate(of_problem) if s is not None]
    prompts, steps = [pool.prompts[i] for i, _ in judged], [pool.steps[i][j] for i, j in judged]
    scores = [step_scores[i][j] for i, j in judged]
    is_right = [check_steps(prompt, of_one) for prompt, of_one in zip(prompts, steps, strict=True)]
    is_prefix_right = [[all(of_one[: k + 1]) for k in range(len(of_one))] for of_one in is_right]
    pair_accuracy, num_pairs = step_pair_accuracy(prompts, steps, scores, is_prefix_right)
    # One half of the problems chooses the threshold for the other.
    halves = ["chosen on" if i < pool.num_problems // 2 else "measured on" for i, _ in judged]
    rows = [
        JudgedRow(str(k), prompt, of_one, [float(right) for right in verdicts], half)
        for k, (prompt, of_one, verdicts, half) in enumerate(zip(prompts, steps, is_right, halves, strict=True))
    ]
    measures = {"step_pair_accuracy": pair_accuracy if num_pairs else None, "num_step_pairs": num_pairs}
    kinds = {half: {all(v) for v, other in zip(is_right, halves, strict=True) if other == half} for half in halves}
    if kinds.get("chosen on") != {True, False} or kinds.get("measured on") != {True, False}:
        return measures | dict.fromkeys(("first_error_f1", "error_found", "no_error_seen", "threshold"))
    found = measure_judged_rows(rows, scores, threshold_on="chosen on")["measured on"].first_errors
    return measures | {
        "first_error_f1": list(found.f1),
        "error_found": found.accuracy_erroneous.mean,
        "no_error_seen": found.accuracy_correct.mean,
        "threshold": found.threshold,
    }


def compare_search(
    found: Sequence[CurvePoint], pool: CandidatePool, step_scores: StepScores, aggregation: str = "min"
) -> list[dict[str, Any]]:
    """Points of best of n from a pool, and of search on the same problems with the same scorer.

    Args:
        found (`Sequence[CurvePoint]`):
            What [`~evaluation.search.search_curve`] gives.
        pool ([`CandidatePool`]):
            Candidates of the same policy, with the tokens that each took.
        step_scores (`StepScores`):
            Their step scores by the PRM that searched, of the shape of the pool.
        aggregation (`str`, *optional*, defaults to `"min"`):
            The aggregation that pruned. Default: that of [`~evaluation.search.beam_search`].

    Returns:
        `list[dict]`: for [`~evaluation.plots.plot_search`]; best of n at every power of two first. Of each point
        `method`, `n`, `num_tokens` (a problem, mean), and `accuracy` with its interval, `low` and `high`.

    Raises:
        ValueError: if the pool does not say what its candidates took.

    Example:

    ```python
    >>> from trl_erprm.evaluation.candidates import make_pool
    >>> candidates = [{"completion": "#2", "num_tokens": 2}, {"completion": "#3", "num_tokens": 4}]
    >>> pool = make_pool([{"answer": "2", "candidates": candidates}], "arithmetic")
    >>> points = compare_search([CurvePoint("beam_search", 4, (1.0, 0.2, 1.0), 40.0, 8.0)], pool, [[[0.9], [0.1]]])
    >>> [(point["method"], point["n"], point["num_tokens"], point["accuracy"]) for point in points]
    [('best of n', 1, 3.0, 0.5), ('best of n', 2, 6.0, 1.0), ('beam search', 4, 40.0, 1.0)]

    ```
    """
    if pool.num_tokens is None:
        raise ValueError(
            "The candidates must say how many tokens each took (`num_tokens`), got a pool in which some do not: "
            "search and best of n are compared at equal cost. Sample them with `sample_candidates`."
        )
    sizes = [2**k for k in range(pool.num_candidates.bit_length())]
    scores = aggregated_scores(step_scores, aggregation).tolist()
    return [
        {
            "method": point.method.replace("_", " "),
            "n": point.num_beams,
            "num_tokens": point.tokens,
            **dict(zip(("accuracy", "low", "high"), point.accuracy, strict=True)),
        }
        for point in [*best_of_n_curve(scores, pool.is_correct.tolist(), pool.num_tokens, sizes), *found]
    ]


def aggregated_scores(step_scores: StepScores, how: str) -> np.ndarray:
    """Score of each candidate, NaN where it was not scored: float64 of shape `(num_problems, num_candidates)`.

    Example:

    ```python
    >>> aggregated_scores([[[0.9, 0.2], None]], "min").tolist()
    [[0.2, nan]]

    ```
    """
    return np.array(
        [[np.nan if scores is None else aggregate(scores, how) for scores in problem] for problem in step_scores]
    )


def headline_pairs(metrics: Mapping[str, Any], n: int | None = None) -> list[dict[str, Any]]:
    """The pairs that a report puts first, at one n: what [`compare_scorers`] has as lists, as numbers.

    Args:
        metrics (`Mapping[str, Any]`):
            What [`compare_scorers`] gives.
        n (`int`, *optional*):
            Number of candidates; all of them if `None`.

    Returns:
        `list[dict]`: the pairs of the aggregation that stands first, or of each scorer by its own.

    Example:

    ```python
    >>> pair = {"first": "a", "second": "b", "aggregation": "min", "difference": [0.0, 0.1]}
    >>> headline_pairs({"aggregation": "min", "num_candidates": 2, "pairs": [pair]})
    [{'first': 'a', 'second': 'b', 'aggregation': 'min', 'difference': 0.1}]

    ```
    """
    index = (metrics["num_candidates"] if n is None else n) - 1
    families = {pair["aggregation"] for pair in metrics["pairs"]}
    family = OWN if OWN in families else metrics["aggregation"]
    return [
        {key: value[index] if isinstance(value, list) else value for key, value in pair.items()}
        for pair in metrics["pairs"]
        if pair["aggregation"] == family
    ]


def _range(step_scores: StepScores) -> tuple[float, float] | None:
    """Lowest and highest score of a scorer; `None` where it scored nothing."""
    found = [score for problem in step_scores for scores in problem for score in scores or ()]
    return (min(found), max(found)) if found else None


def _summary(curve: _Curve) -> dict[str, list[float]]:
    num_candidates = curve.all_subsets.shape[1]
    # A pool holds M // n draws of n candidates that have nothing in common: no more observations than that.
    intervals = [
        clustered_interval(curve.all_subsets[:, n - 1], num_candidates // n) for n in range(1, num_candidates + 1)
    ]
    mean, low, high = (list(values) for values in zip(*intervals, strict=True))
    return {"accuracy": mean, "low": low, "high": high, "first_n": curve.first_n.mean(axis=0).tolist()}


def _difference(first: _Curve, second: _Curve, num_resamples: int, seed: int) -> dict[str, list[float]]:
    difference = first.all_subsets - second.all_subsets
    mean, low, high = bootstrap_intervals(difference, num_resamples=num_resamples, seed=seed)
    tests = [mcnemar(*outcomes) for outcomes in zip(first.first_n.T, second.first_n.T, strict=True)]
    result = {"difference": mean.tolist(), "low": low.tolist(), "high": high.tolist()}
    return result | {key: [getattr(test, key) for test in tests] for key in tests[0]._fields}
