r"""Search with a process reward model while the policy writes: step-level beam search and DVTS.

Best-of-N writes N solutions to their end and then chooses. Search writes N steps, lets the process reward model choose
among them, goes on from the chosen ones only, and so spends the same tokens on solutions that began well:

    beam search      one tree: of N beams the N / M best are kept, and each is continued M times
    DVTS             N / M trees (diverse verifier tree search): in each, of M beams the best is kept, and continued
                     M times. The trees never meet, so that one early favourite cannot fill all beams

A round samples the next step of every kept beam, of a problem N in all, and scores each new prefix. It ends where the
engine meets the text that ends a step, so any [`~rollout.engine.RolloutEngine`] serves that says which stop text it
met ([`Completion.stop_text`]).

What is kept and what counts:

- A solution that the policy ended is a *finished* beam. It holds its place among the kept ones, where only a better
  one can take it, and is not continued. A tree ends when all that it keeps is finished, or after `max_steps` rounds.
- Every finished solution is a candidate of the result, those that were not kept, too: it was paid for. So any choice
  can be made among them afterwards (by another aggregation, by vote).
- Beams of a tree with equal text are one beam, scored once. What they leave free is sampled from the other beams, so
  the number of samples a round stays N while nothing is finished.
- Where the policy writes a blank line before the step, the step is what follows it.
- A beam without score (`None`: longer than the PRM reads, or malformed at its end) is never kept, nor is one that has
  grown too long for the policy's context window.

**Budget**, the same as for best-of-N: `num_tokens` is every token that was sampled for the problem, those of dropped
beams included, and `num_prm_calls` every solution or prefix that was scored. [`search_curve`] and [`best_of_n_curve`]
give rows of one form, for one plot of accuracy against generated tokens.

Deterministic for a seed. Sample numbers are counted through for each prefix, so that trees that meet in the same
prefix draw different continuations of it.

Departures from search-and-learn, the reference code: every aggregation is applied (there it is the last score,
whatever is asked for); the score that prunes is of all steps so far; a solution is finished where the policy ends it,
not where "boxed{" occurs; duplicates are merged; a finished solution competes instead of being set aside.

Source: Beeching, Tunstall and Rush, 2024, "Scaling test-time compute with open models"; beam search with a PRM also in
Snell et al., 2024, arXiv 2408.03314, section 5.1.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..choices import check_choice
from ..prm.aggregation import aggregate, check_aggregation
from ..rollout import Completion, Prefix, PrefixTooLongError, RolloutEngine, SamplingOptions
from ..steps import step_texts
from ..verify import verify_answer
from .best_of_n import Estimate, best_of_n_per_problem, clustered_interval

__all__ = [
    "SEARCH_METHODS",
    "CurvePoint",
    "SearchCandidate",
    "SearchResult",
    "StepScorer",
    "beam_search",
    "best_of_n_curve",
    "check_beams",
    "curve_point",
    "diverse_verifier_tree_search",
    "search_curve",
]

SEARCH_METHODS = ("beam_search", "dvts")

STEP_SEPARATORS = {"newline": "\n", "blank_line": "\n\n"}
"""What ends a step, for each way of splitting that a stop text can follow."""

MAX_BLANK_LINES = 4
"""Separators in a row that are read over before a step. A beam that writes more writes nothing else."""

Prompt = str | list[dict[str, Any]]


class StepScorer(Protocol):
    """What is asked of a process reward model: [`ProcessRewardModel`] is one."""

    def score(
        self, prompts: Sequence[Prompt], steps: Sequence[Sequence[str]], *, none_if_too_long: bool
    ) -> list[list[float] | None]:
        """Scores of the steps of each solution, or `None` for one that is too long."""
        ...


@dataclass
class SearchCandidate:
    """A solution that the search came to.

    Attributes:
        text (`str`): what the policy wrote, step ends included.
        steps (`list[str]`): its steps.
        step_scores (`list[float]` or `None`): their scores; `None` where there are none.
        score (`float` or `None`): their aggregation.
        num_tokens (`int`): tokens of this solution alone.
        is_finished (`bool`): whether the policy ended it. Else a limit did.
        tree (`int`): its tree, from 0.
    """

    text: str
    steps: list[str]
    step_scores: list[float] | None
    score: float | None
    num_tokens: int
    is_finished: bool
    tree: int


@dataclass
class SearchResult:
    """What the search found for a problem, and what it cost.

    Attributes:
        candidates (`list[SearchCandidate]`): finished solutions in the order in which they were found, then those
            that a limit ended, of the trees that found no other.
        best (`int` or `None`): index of the candidate of the highest score, the first among equals; a finished one
            where there is one with a score. `None` where no candidate has a score.
        num_tokens (`int`): all tokens sampled for the problem.
        num_prm_calls (`int`): solutions and prefixes that were scored for the problem.
        num_rounds (`int`): rounds until the last of its trees ended.
    """

    candidates: list[SearchCandidate] = field(default_factory=list)
    best: int | None = None
    num_tokens: int = 0
    num_prm_calls: int = 0
    num_rounds: int = 0

    @property
    def best_text(self) -> str | None:
        """What the best candidate wrote; `None` where there is none."""
        return None if self.best is None else self.candidates[self.best].text


class CurvePoint(NamedTuple):
    """A row of the plot of accuracy against generated tokens.

    Attributes:
        method (`str`): `"best_of_n"`, `"beam_search"` or `"dvts"`.
        num_beams (`int`): N: candidates, or beams a round.
        accuracy (`Estimate`): share of problems whose chosen solution is right, with its 95 % interval over problems.
        tokens (`float`): sampled tokens a problem, mean.
        prm_calls (`float`): solutions and prefixes scored a problem, mean.
    """

    method: str
    num_beams: int
    accuracy: Estimate
    tokens: float
    prm_calls: float


def beam_search(
    engine: RolloutEngine,
    prm: StepScorer,
    prompts: Sequence[Prompt],
    options: SamplingOptions,
    num_beams: int = 16,
    beam_width: int = 4,
    **how: Any,
) -> list[SearchResult]:
    r"""Step-level beam search: of `num_beams` beams the best `num_beams / beam_width` are kept each round.

    Args:
        engine ([`RolloutEngine`]):
            The policy.
        prm ([`ProcessRewardModel`] or another [`StepScorer`]):
            Scores the steps.
        prompts (`Sequence` of `str` or messages):
            The problems.
        options ([`SamplingOptions`]):
            How steps are sampled. `max_new_tokens` is the longest *solution*, as for best-of-N; further `stop` texts
            end a solution.
        num_beams (`int`, *optional*, defaults to `16`):
            N, beams a round: the budget, as the number of candidates is for best-of-N. A multiple of `beam_width`.
        beam_width (`int`, *optional*, defaults to `4`):
            M, continuations of each kept beam. Default: that of the source (and of arXiv 2408.03314).
        **how:
            - `aggregation` (`str`, defaults to `"min"`): how step scores become one, for pruning and for the choice
              ([`aggregate`]). Default: the paper's (arXiv 2412.11006). For a PRM whose scores are values of states,
              as an ER-PRM's are, `"last"` prunes by what can still be reached.
            - `split_how` (`str`, defaults to `"newline"`): what ends a step, `"newline"` or `"blank_line"`.
            - `max_steps` (`int`, defaults to `40`): rounds at most. Default: that of the source.
            - `max_step_tokens` (`int`, defaults to `256`): longest step in tokens; a beam whose step is longer is
              dropped. Our choice: a paragraph.
            - `is_well_formed` (`Callable`): `is_well_formed(prompt, steps) -> bool` of a finished solution; one that
              is not gets no score, since solutions with a step skipped would win under min.

    Returns:
        `list[SearchResult]`: one a prompt.

    Raises:
        ValueError: if `num_beams` is no multiple of `beam_width`, or an option is out of its range.

    Example: a policy that always ends at once, and a PRM that prefers 2.

    ```python
    >>> from trl_erprm.rollout import Completion, SamplingOptions
    >>> class Policy:
    ...     def generate(self, prefixes, num_samples, options, first_sample=0):
    ...         numbers = range(first_sample, first_sample + num_samples)
    ...         return [[Completion(f"#{i % 4}", 2, "stop") for i in numbers] for _ in prefixes]
    >>> class PRM:
    ...     def score(self, prompts, steps, *, none_if_too_long):
    ...         return [[1.0 if s == "#2" else 0.1 for s in of_one] for of_one in steps]
    >>> [result] = beam_search(Policy(), PRM(), ["1+1"], SamplingOptions(8), num_beams=8)
    >>> result.candidates[result.best].text, result.num_tokens, result.num_prm_calls
    ('#2', 16, 4)

    ```
    """
    check_beams(num_beams, beam_width)
    return _search(engine, prm, prompts, options, 1, num_beams // beam_width, beam_width, **how)


def diverse_verifier_tree_search(
    engine: RolloutEngine,
    prm: StepScorer,
    prompts: Sequence[Prompt],
    options: SamplingOptions,
    num_beams: int = 16,
    beam_width: int = 4,
    **how: Any,
) -> list[SearchResult]:
    """Diverse verifier tree search (DVTS): `num_beams / beam_width` trees that keep one of `beam_width` beams each.

    Args and returns are those of [`beam_search`].
    """
    check_beams(num_beams, beam_width)
    return _search(engine, prm, prompts, options, num_beams // beam_width, 1, beam_width, **how)


def search_curve(
    engine: RolloutEngine,
    prm: StepScorer,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    options: SamplingOptions,
    budgets: Sequence[int] = (4, 16, 64),
    methods: Sequence[str] = SEARCH_METHODS,
    beam_width: int = 4,
    answer_how: str = "auto",
    **how: Any,
) -> list[CurvePoint]:
    """Accuracy of search against what it costs, for each method and budget.

    Args:
        engine, prm, prompts, options, beam_width, **how:
            As for [`beam_search`].
        answers (`Sequence[str]`):
            The reference answer of each problem.
        budgets (`Sequence[int]`, *optional*, defaults to `(4, 16, 64)`):
            Numbers of beams N, multiples of `beam_width`. Default: powers of 4, as in the source's plots.
        methods (`Sequence[str]`, *optional*, defaults to both):
            Of [`SEARCH_METHODS`].
        answer_how (`str`, *optional*, defaults to `"auto"`):
            How answers are read ([`verify_answer`]). A problem without a chosen solution counts as wrong.

    Returns:
        `list[CurvePoint]`: by method, then by budget, to be drawn with those of [`best_of_n_curve`].

    Raises:
        ValueError: if there are no problems, not one answer a problem, or a method or a budget is not accepted.
    """
    if not len(prompts) or len(prompts) != len(answers):
        raise ValueError(
            f"`answers` must hold one answer a problem, got {len(answers)} for {len(prompts)} problems. Search is "
            "measured on problems with a known answer."
        )
    for method in methods:
        check_choice("methods", method, SEARCH_METHODS)
    for budget in budgets:
        check_beams(budget, beam_width)
    points = []
    for method in methods:
        search = beam_search if method == "beam_search" else diverse_verifier_tree_search
        for budget in budgets:
            results = search(engine, prm, prompts, options, budget, beam_width, **how)
            costs = ([r.num_tokens for r in results], [r.num_prm_calls for r in results])
            points.append(curve_point(method, budget, [r.best_text for r in results], *costs, answers, answer_how))
    return points


def curve_point(
    method: str,
    num_beams: int,
    texts: Sequence[str | None],
    num_tokens: Sequence[int],
    num_prm_calls: Sequence[int],
    answers: Sequence[str],
    answer_how: str = "auto",
) -> CurvePoint:
    """The row of a search: of each problem the chosen text (`None`: no solution), what it cost, and its answer."""
    pairs = zip(texts, answers, strict=True)
    accuracy = clustered_interval([float(t is not None and bool(verify_answer(t, a, answer_how))) for t, a in pairs])
    return CurvePoint(method, num_beams, accuracy, float(np.mean(num_tokens)), float(np.mean(num_prm_calls)))


def best_of_n_curve(
    scores: Sequence[Sequence[float | None]],
    is_correct: Sequence[Sequence[bool | None]],
    num_tokens: Sequence[Sequence[int]],
    budgets: Sequence[int] = (4, 16, 64),
) -> list[CurvePoint]:
    """Accuracy of best-of-N against what it costs, in the rows of [`search_curve`].

    Averaged over all subsets of the pool ([`~evaluation.best_of_n.best_of_n_accuracy`]): n candidates cost n times the
    mean tokens of a candidate, and one call of the PRM each that has a score.

    Args:
        scores, is_correct (`Sequence[Sequence]` of shape `(num_problems, num_candidates)`):
            As for [`~evaluation.best_of_n.best_of_n_accuracy`].
        num_tokens (`Sequence[Sequence[int]]` of shape `(num_problems, num_candidates)`):
            Sampled tokens of each candidate ([`Completion.num_tokens`]).
        budgets (`Sequence[int]`, *optional*, defaults to `(4, 16, 64)`):
            Numbers of candidates n; those above `num_candidates` are left out.

    Returns:
        `list[CurvePoint]`: by budget.

    Raises:
        ValueError: as [`~evaluation.best_of_n.best_of_n_accuracy`], and if `num_tokens` has another shape.

    Example:

    ```python
    >>> [point] = best_of_n_curve([[0.9, 0.1]], [[True, False]], [[10, 14]], budgets=(2, 4))
    >>> point.accuracy.mean, point.tokens, point.prm_calls
    (1.0, 24.0, 2.0)

    ```
    """
    shapes = [[len(row) for row in rows] for rows in (num_tokens, is_correct)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`num_tokens` must have the shape of `is_correct`, one number a candidate, got "
            f"{len(num_tokens)} problems against {len(is_correct)}, or rows of other lengths. Pass the tokens that "
            "each candidate took."
        )
    points = []
    for n in (n for n in budgets if n <= len(is_correct[0])):
        accuracy = clustered_interval(best_of_n_per_problem(scores, is_correct, n), len(is_correct[0]) // n)
        scored_share = np.mean([score is not None and not math.isnan(score) for row in scores for score in row])
        points.append(CurvePoint("best_of_n", n, accuracy, n * float(np.mean(num_tokens)), n * float(scored_share)))
    return points


# ---------------------------------------------------------------------------------------------------------------------
# The search


class _Beam(NamedTuple):
    """A prefix that a tree may continue; `text` ends with the separator, but for a finished or cut-off one."""

    text: str
    num_tokens: int
    is_finished: bool = False
    is_cut: bool = False  # by a limit: neither finished nor to be continued
    steps: tuple[str, ...] = ()
    step_scores: tuple[float, ...] | None = None
    score: float | None = None


@dataclass
class _Tree:
    """The beams of a tree: those it keeps, and all finished or cut ones that it came to."""

    problem: int
    number: int
    kept: list[_Beam]
    ended: dict[str, _Beam] = field(default_factory=dict)

    @property
    def active(self) -> list[_Beam]:
        return [beam for beam in self.kept if not beam.is_finished]


def _search(
    engine: RolloutEngine,
    prm: StepScorer,
    prompts: Sequence[Prompt],
    options: SamplingOptions,
    num_trees: int,
    num_kept: int,
    beam_width: int,
    aggregation: str = "min",
    split_how: str = "newline",
    max_steps: int = 40,
    max_step_tokens: int = 256,
    is_well_formed: Callable[[Prompt, list[str]], bool] | None = None,
) -> list[SearchResult]:
    """Both methods: `num_trees` trees a problem, of which each keeps `num_kept` beams."""
    check_aggregation(aggregation, argument="aggregation")
    check_choice("split_how", split_how, STEP_SEPARATORS)
    for name, value in (("max_steps", max_steps), ("max_step_tokens", max_step_tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a whole number from 1 up, got {value!r}. Pass at least 1.")
    sampler = _StepSampler(engine, prompts, options, STEP_SEPARATORS[split_how], max_step_tokens)
    results = [SearchResult() for _ in prompts]
    trees = [_Tree(problem, number, [_Beam("", 0)]) for problem in range(len(prompts)) for number in range(num_trees)]
    for _ in range(max_steps):
        running = [tree for tree in trees if tree.active]
        if not running:
            break
        requests = []
        for tree in running:
            # A finished beam holds one of the places; the others share the samples, the best beams first.
            num_samples = (num_kept - len(tree.kept) + len(tree.active)) * beam_width
            share, rest = divmod(num_samples, len(tree.active))
            requests += [(tree, beam, share + (i < rest)) for i, beam in enumerate(tree.active)]
        found: dict[int, dict[str, _Beam]] = {id(tree): {} for tree in running}
        for tree, beam in sampler.sample(requests, results):
            found[id(tree)].setdefault(beam.text, beam)
        for problem in {tree.problem for tree in running}:
            results[problem].num_rounds += 1

        new = [
            (tree, beam._replace(steps=tuple(step_texts(beam.text, split_how))))
            for tree in running
            for text, beam in found[id(tree)].items()
            if text not in tree.ended
        ]
        scores = _score(prm, prompts, new, aggregation, is_well_formed, results)
        for tree in running:
            tree.kept = [beam for beam in tree.kept if beam.is_finished]
        for (tree, beam), (step_scores, score) in zip(new, scores, strict=True):
            beam = beam._replace(step_scores=step_scores, score=score)
            if beam.is_finished or beam.is_cut:
                tree.ended[beam.text] = beam
            if score is not None and not beam.is_cut:
                tree.kept.append(beam)
        for tree in running:
            tree.kept = sorted(tree.kept, key=lambda beam: -beam.score)[:num_kept]  # stable: the first among equals

    for tree in trees:
        _collect(tree, results[tree.problem])
    for result in results:
        result.candidates.sort(key=lambda candidate: not candidate.is_finished)  # stable
        with_score = [i for i, candidate in enumerate(result.candidates) if candidate.score is not None]
        finished = [i for i in with_score if result.candidates[i].is_finished]
        result.best = max(finished or with_score, key=lambda i: result.candidates[i].score, default=None)
    return results


def _score(
    prm: StepScorer,
    prompts: Sequence[Prompt],
    new: Sequence[tuple[_Tree, _Beam]],
    aggregation: str,
    is_well_formed: Callable[[Prompt, list[str]], bool] | None,
    results: list[SearchResult],
) -> list[tuple[tuple[float, ...] | None, float | None]]:
    """Step scores and their aggregation, of each beam; `(None, None)` for one that gets none."""
    judged = [
        i
        for i, (tree, beam) in enumerate(new)
        if beam.steps
        and not (
            beam.is_finished
            and is_well_formed is not None
            and not is_well_formed(prompts[tree.problem], list(beam.steps))
        )
    ]
    # Trees may come to the same prefix: it is scored once.
    keys = [(new[i][0].problem, new[i][1].steps) for i in judged]
    distinct = list(dict.fromkeys(keys))
    step_scores = prm.score(
        [prompts[problem] for problem, _ in distinct], [list(steps) for _, steps in distinct], none_if_too_long=True
    )
    for problem, _ in distinct:
        results[problem].num_prm_calls += 1
    of_key = dict(zip(distinct, step_scores, strict=True))
    scores: list[tuple[tuple[float, ...] | None, float | None]] = [(None, None)] * len(new)
    for i, key in zip(judged, keys, strict=True):
        if of_key[key] is not None:
            scores[i] = tuple(of_key[key]), aggregate(of_key[key], aggregation)
    return scores


def _collect(tree: _Tree, result: SearchResult) -> None:
    """Adds what a tree came to: its finished solutions or, where it has none, what the limits left."""
    beams = [beam for beam in tree.ended.values() if beam.is_finished]
    beams = beams or [*tree.ended.values(), *(beam for beam in tree.active if beam.steps)]
    known = {candidate.text for candidate in result.candidates}
    for beam in beams:
        if beam.text in known:  # two trees came to the same solution
            continue
        step_scores = None if beam.step_scores is None else list(beam.step_scores)
        result.candidates.append(
            SearchCandidate(
                beam.text, list(beam.steps), step_scores, beam.score, beam.num_tokens, beam.is_finished, tree.number
            )
        )


class _StepSampler:
    """Samples the next steps of beams, with sample numbers that are counted through for each prefix."""

    def __init__(
        self,
        engine: RolloutEngine,
        prompts: Sequence[Prompt],
        options: SamplingOptions,
        separator: str,
        max_step_tokens: int,
    ):
        self.engine = engine
        self.prompts = prompts
        self.options = dataclasses.replace(options, stop=(separator, *options.stop))
        self.separator = separator
        self.max_step_tokens = max_step_tokens
        self.num_drawn: dict[tuple[int, str], int] = defaultdict(int)

    def sample(
        self, requests: Sequence[tuple[_Tree, _Beam, int]], results: list[SearchResult]
    ) -> list[tuple[_Tree, _Beam]]:
        """Beams with a step more, in the order of the requests."""
        places = [(tree, beam) for tree, beam, num_samples in requests for _ in range(num_samples)]
        done: list[tuple[_Tree, _Beam] | None] = [None] * len(places)
        waiting = list(range(len(places)))
        for _ in range(1 + MAX_BLANK_LINES):
            completions = self._draw([places[i] for i in waiting])
            still_waiting = []
            for i, completion in zip(waiting, completions, strict=True):
                tree, beam = places[i]
                if completion is None:
                    done[i] = tree, beam._replace(is_cut=True)
                    continue
                results[tree.problem].num_tokens += completion.num_tokens
                beam = self._continued(beam, completion)
                is_blank = not completion.text.strip() and not (beam.is_finished or beam.is_cut)
                if is_blank:
                    places[i] = tree, beam
                    still_waiting.append(i)
                else:
                    done[i] = tree, beam
            waiting = still_waiting
            if not waiting:
                break
        return [of_place for of_place in done if of_place is not None]  # without those that wrote blank lines only

    def _continued(self, beam: _Beam, completion: Completion) -> _Beam:
        ends_step = completion.stop_text == self.separator
        num_tokens = beam.num_tokens + completion.num_tokens
        # At the longest length there is no room for another step.
        is_cut = completion.finish_reason == "length" or (ends_step and num_tokens >= self.options.max_new_tokens)
        text = beam.text + completion.text + (self.separator if ends_step else "")
        return _Beam(text, num_tokens, is_finished=not (ends_step or is_cut), is_cut=is_cut)

    def _draw(self, places: Sequence[tuple[_Tree, _Beam]]) -> list[Completion | None]:
        """One completion for each place, `None` where the prefix has grown too long for the context window.

        Places with equal prefixes get different samples.
        """
        of_prefix: dict[tuple[int, str, int], list[int]] = defaultdict(list)
        for i, (tree, beam) in enumerate(places):
            limit = min(self.max_step_tokens, self.options.max_new_tokens - beam.num_tokens)
            of_prefix[tree.problem, beam.text, limit].append(i)
        calls: dict[tuple[int, int, int], list[tuple[int, str, int]]] = defaultdict(list)
        for key, members in of_prefix.items():
            problem, text, limit = key
            calls[len(members), self.num_drawn[problem, text], limit].append(key)
            self.num_drawn[problem, text] += len(members)
        completions: list[Completion | None] = [None] * len(places)
        for (num_samples, first_sample, limit), keys in calls.items():
            options = dataclasses.replace(self.options, max_new_tokens=limit)
            while keys:
                prefixes = [Prefix(self.prompts[problem], text) for problem, text, _ in keys]
                try:
                    generated = self.engine.generate(prefixes, num_samples, options, first_sample=first_sample)
                    break
                except PrefixTooLongError as error:
                    if not all(keys[i][1] for i in error.indices):
                        raise  # a problem that leaves no room for an answer
                    keys = [key for i, key in enumerate(keys) if i not in error.indices]
            for key, of_one in zip(keys, generated if keys else [], strict=True):
                for i, completion in zip(of_prefix[key], of_one, strict=True):
                    completions[i] = completion
        return completions


def check_beams(num_beams: int, beam_width: int = 4) -> None:
    """Raises `ValueError` unless a search of `num_beams` keeps a whole number of beams, of [`beam_search`]'s width."""
    for name, value in (("num_beams", num_beams), ("beam_width", beam_width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a whole number from 1 up, got {value!r}. Pass at least 1.")
    if num_beams % beam_width:
        raise ValueError(
            f"`num_beams` must be a multiple of `beam_width`={beam_width}, got {num_beams}: a round keeps "
            "num_beams / beam_width beams. Pass, for example, "
            f"{max(1, round(num_beams / beam_width)) * beam_width}."
        )
