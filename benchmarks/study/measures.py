"""The part `best_of_n`: what candidates are worth, what exact values would choose, and how good each PRM is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from trl_erprm import ProcessRewardModel, success_probability
from trl_erprm.evaluation.curves import majority_curves, pass_at_n_curves
from trl_erprm.evaluation.step_pairs import step_pair_accuracy
from trl_erprm.prm.metrics import auroc

from .config import BASELINE, StudyConfig, read_label
from .devices import BATCH_SIZES
from .pool import Pool, aggregated, expected_labels, sample_pool
from .prms import load_policy_engine
from .units import Unit

ORDER_ONLY = ("min", "last", "max")
"""Aggregations that see the order of the step scores alone: a monotone map of all scores changes no choice."""
NUM_BINS = 10
_VOTE_SUBSETS = 64  # drawn for each n; with hundreds of problems the draw adds nothing that can be seen
_TIE = 1e-9


def make_pool(config: StudyConfig, unit: Unit) -> dict[str, Any]:
    """Samples the candidates and measures what needs no PRM: votes, the best possible, and choices by exact values."""
    settings = config.best_of_n
    pool = sample_pool(
        config.task(unit.difficulty, unit.seed),
        load_policy_engine(unit.directory(config.output_dir), config.device),
        settings["num_problems"],
        settings["num_candidates"],
        config.max_new_tokens(unit.difficulty),
        unit.seed,
    )
    pool.save(unit.directory(config.output_dir) / "pool.json")
    majority = majority_curves(pool.answers, pool.is_correct, max_subsets=_VOTE_SUBSETS)[0].mean(axis=0)
    oracle = pass_at_n_curves(pool.is_correct).mean(axis=0)
    labels = [read_label(name) for name in config.labels]
    etas = {label.name: label.eta for label in labels if not label.is_outcome and not label.seed_offset}
    return {
        "sampled": float(pool.is_correct.mean()),
        "malformed": float(np.mean([number is None for numbers in pool.candidates for number in numbers])),
        "majority": {str(n): float(majority[n - 1]) for n in settings["sizes"]},
        "oracle": {str(n): float(oracle[n - 1]) for n in settings["sizes"]},
        "exact": exact_choices(pool, etas, config.most_rollouts, settings["sizes"], settings["aggregations"]),
    }


def exact_choices(
    pool: Pool, etas: dict[str, float], num_rollouts: int, sizes: Sequence[int], aggregations: Sequence[str]
) -> dict[str, Any]:
    """
    What PRMs without an error would choose: those that score V_eta(p) of the exact p, and those that score the mean
    label of so many rollouts (`expected_labels`), each with all steps and with those before the last operation, behind
    which the answer is decided and p is 0 or 1.

    Returns:
        `dict`: by scores (`"values"` or `"labels"`), steps (`"all"` or `"open"`), label and aggregation, the accuracy
        of best of n (`"accuracy"`) and the number of pairs of solutions of a problem that stand in the opposite order
        as by p itself (`"inverted_pairs"`), of `"pairs"`.
    """
    choices: dict[str, Any] = {}
    for scores_name, n in (("values", 0), ("labels", num_rollouts)):
        for steps_name, end in (("all", None), ("open", -2)):
            p = pool.probabilities[:, :end]
            aggregated_p = {how: aggregated(p, how) for how in aggregations}
            of_labels = choices.setdefault(scores_name, {}).setdefault(steps_name, {})
            for name, eta in etas.items():
                if eta == np.inf and n == 0:
                    continue  # V is 1 for every p above 0
                scores = expected_labels(p, n, eta)
                of_labels[name] = {}
                for how in aggregations:
                    own = aggregated(scores, how)
                    num_pairs, num_inverted, _ = compare_order(pool, own, aggregated_p[how])
                    of_labels[name][how] = {
                        "accuracy": pool.best_of_n(own, sizes),
                        "pairs": num_pairs,
                        "inverted_pairs": num_inverted,
                    }
    return choices


def compare_order(pool: Pool, first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """
    Two scores of the solutions: do they order those of a problem alike?

    Returns:
        `tuple[int, int, float]`: pairs of solutions of one problem, pairs that stand in opposite orders, and the share
        of problems in which both choose the same solution among all candidates.
    """
    problem_of = np.array(pool.problem_of)
    num_pairs = num_inverted = num_same = num_problems = 0
    for index in range(len(pool.problems)):
        members = np.flatnonzero(problem_of == index)
        if not len(members):
            continue
        num_problems += 1
        # The first of equals, in the order in which they were sampled: as best of n does.
        num_same += int(first[members].argmax() == second[members].argmax())
        signs = []
        for scores in (first[members], second[members]):
            difference = scores[:, None] - scores[None, :]
            signs.append(np.sign(np.where(np.abs(difference) > _TIE, difference, 0.0)))
        num_pairs += len(members) * (len(members) - 1) // 2
        num_inverted += int((signs[0] * signs[1] < 0).sum()) // 2
    return num_pairs, num_inverted, num_same / max(num_problems, 1)


def measure_prm(config: StudyConfig, unit: Unit) -> dict[str, Any]:
    """Scores the candidates with a PRM, and measures it against the truth and against the PRM of soft labels."""
    directory, label = unit.directory(config.output_dir), read_label(unit.label)
    pool = Pool.load(directory / "pool.json", config.task(unit.difficulty, unit.seed))
    prm_dir = directory / "prms" / unit.prm_name
    prm = ProcessRewardModel.from_pretrained(prm_dir, device=config.device, dtype="float32")
    prompts = [f"{pool.problems[index]}\n" for index in pool.problem_of]
    scores = np.array(prm.score(prompts, pool.steps, batch_size=BATCH_SIZES[config.device].scoring))
    (directory / "scores").mkdir(exist_ok=True)
    np.save(directory / "scores" / f"{unit.prm_name}.npy", scores.astype(np.float32))
    settings = config.best_of_n
    result = {
        "best_of_n": {
            how: pool.best_of_n(aggregated(scores, how), settings["sizes"]) for how in settings["aggregations"]
        },
        **step_measures(pool, scores),
        **probability_measures(pool, scores, label.eta, 0 if label.is_outcome else unit.num_rollouts),
    }
    if unit.label not in (BASELINE, "outcome"):
        of_soft = np.load(directory / "scores" / f"{replace(unit, label=BASELINE).prm_name}.npy")
        result["order_as_soft"] = {}
        for how in settings["aggregations"]:
            pairs, inverted, same = compare_order(pool, aggregated(scores, how), aggregated(of_soft, how))
            result["order_as_soft"][how] = {"inverted_share": inverted / max(pairs, 1), "same_choice": same}
    return result


def step_measures(pool: Pool, scores: np.ndarray) -> dict[str, float]:
    """
    Does a PRM tell right steps from wrong ones, by the exact step checker?

    Returns:
        `dict`:
        - `step_auroc`: probability that a right step scores higher than a wrong one, over the steps of all candidates
          up to the first wrong one (what comes behind it is neither: the prefix stays wrong).
        - `step_pair_accuracy`: of two prefixes of a problem, equally long, one right and one wrong, is the right one's
          score higher?
    """
    is_right_prefix = np.cumprod(pool.is_right_step, axis=1).astype(bool)
    is_judged = np.concatenate([np.ones((len(scores), 1), bool), is_right_prefix[:, :-1]], axis=1)
    copies = np.broadcast_to(pool.num_copies[:, None], scores.shape)
    pairs, _ = step_pair_accuracy(pool.problem_of, pool.steps, scores.tolist(), is_right_prefix.tolist())
    return {
        "step_auroc": auroc(scores[is_judged], is_right_prefix[is_judged].astype(float), copies[is_judged]),
        "step_pair_accuracy": pairs,
    }


def probability_measures(pool: Pool, scores: np.ndarray, eta: float, num_rollouts: int) -> dict[str, Any]:
    """
    Is the success probability that a score stands for the exact one? Over the steps of all candidates but the answers.

    Returns:
        `dict`:
        - `p_error`, `p_bias`: root mean square and mean of p(score) - p; `None` for hard labels: they have no inverse.
        - `p_error_if_perfect`, `p_bias_if_perfect`: of a PRM that gives the mean label, which is not V_eta(p).
        - `p_correlation`: Spearman's rank correlation of score and p, which asks for no inverse.
        - `bins`: by p in tenths: mean p, mean score, mean expected label, and the number of steps.
    """
    of_candidates = np.repeat(np.arange(len(scores)), pool.num_copies)
    p, own = pool.probabilities[of_candidates, :-1].ravel(), scores[of_candidates, :-1].ravel()
    expected = expected_labels(p, num_rollouts, eta)
    measures: dict[str, Any] = dict.fromkeys(("p_error", "p_bias", "p_error_if_perfect", "p_bias_if_perfect"))
    if np.isfinite(eta):
        for name, values in (("", own), ("_if_perfect", expected)):
            error = success_probability(values, eta) - p
            measures[f"p_error{name}"] = float(np.sqrt(np.mean(error**2)))
            measures[f"p_bias{name}"] = float(np.mean(error))
    numbers = np.minimum((p * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = [np.flatnonzero(numbers == number) for number in range(NUM_BINS)]
    measures["p_correlation"] = float(spearmanr(own, p).statistic)
    measures["bins"] = [
        [float(p[b].mean()), float(own[b].mean()), float(expected[b].mean()), len(b)] for b in bins if len(b)
    ]
    return measures
