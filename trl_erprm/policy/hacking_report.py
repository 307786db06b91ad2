"""How could a policy be rewarded for nothing? Perturbs given solutions and looks at the reward, before any training.

    python -m trl_erprm.policy.hacking_report --prm_path outputs/prm --dataset_path rows.jsonl

Each solution is changed in ways that solve nothing better (a filler step, steps repeated, cut in two, merged, skipped,
...), scored again, and the change of its aggregated score is averaged: a perturbation that raises it is what a policy
trained on this reward will learn. The same with guards shows what they leave over. Without guards on the command line,
those are taken that suit the given solutions (`suggested_guards`).

The rows are prompts with a `completion`, worked solutions (GSM8K, MATH), or stepwise rows of any layout that
`recipes/prm.py` reads. Solutions of the policy that is to be trained say most.

Exit code: 0 if no perturbation pays with the guards, 1 if one does, 2 if there was nothing to look at: a wrong
argument, no such file, no such model.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from datasets import Dataset, disable_progress_bars
from datasets.exceptions import DatasetsError
from rich.console import Console
from rich.table import Column, Table

from ..arguments import check_path_or_id
from ..choices import check_choice
from ..data import load_rows, to_prompt_rows, to_stepwise_rows
from ..evaluation.best_of_n import Estimate
from ..evaluation.paired import bootstrap_interval
from ..parsing import StrictParser
from ..prm.aggregation import aggregate, check_aggregation
from ..prm.formats import FORMATS, Prompt
from ..prm.prompts import check_prompt_reading
from ..prm.scorer import ProcessRewardModel
from ..steps import check_split_mode, step_texts
from ..verify import check_answer_convention
from ..wording import counted
from .guards import StepGuards, are_fillers, characters_per_step
from .perturbations import FILLER, PERTURBATIONS, join_as, perturb
from .process_reward import ProcessReward, completion_text

AGGREGATIONS = ("min", "product", "mean", "last")
"""What is reported where nothing else is asked for: those that published work trains or selects with."""

LEAST_GAIN = 1e-3
"""A change of a score, 0 to 1, up to which it counts as none. Rounding alone moves scores by 1e-5 in float32."""


@dataclass(frozen=True)
class Effect:
    """
    What one perturbation does to the aggregated score.

    Args:
        perturbation (`str`), aggregation (`str`):
            Of [`PERTURBATIONS`] and [`AGGREGATIONS`][trl_erprm.prm.aggregation.AGGREGATIONS].
        num_solutions (`int`):
            Solutions to which it could be done, and that could be scored.
        change ([`Estimate`]):
            Mean change without guards, -1 to 1, with its 95 % interval.
        share_gaining (`float`):
            Share of the solutions whose score rises by more than [`LEAST_GAIN`].
        guarded_change ([`Estimate`], *optional*), guarded_share_gaining (`float`, *optional*):
            The same with guards, over the solutions that they admit unperturbed; a rejected perturbed one has the
            reward of a malformed completion (0 where that is `None`). `None` where the guards admit no solution.
        share_rejected (`float`, *optional*):
            Share of the perturbed solutions that the guards reject.
    """

    perturbation: str
    aggregation: str
    num_solutions: int
    change: Estimate
    share_gaining: float
    guarded_change: Estimate | None
    guarded_share_gaining: float | None
    share_rejected: float | None

    @property
    def pays(self) -> bool:
        """Whether scores rise without guards, beyond chance."""
        return self.change.low > LEAST_GAIN

    @property
    def pays_with_guards(self) -> bool:
        """Whether scores rise with the guards, beyond chance."""
        return self.guarded_change is not None and self.guarded_change.low > LEAST_GAIN


@dataclass(frozen=True)
class HackingReport:
    """
    What [`hacking_report`] found.

    Args:
        effects (`list[Effect]`):
            For each aggregation, the perturbations by falling change.
        num_solutions (`int`):
            Solutions looked at.
        num_unscored (`int`):
            Solutions left out since they have no step or the process reward model cannot read them.
        num_rejected (`int`):
            Solutions that the guards reject as they are: should be few.
        mean_scores (`dict[str, float]`):
            Mean score of the solutions as they are, by aggregation.
        guards ([`StepGuards`]):
            The guards that were on.
    """

    effects: list[Effect]
    num_solutions: int
    num_unscored: int
    num_rejected: int
    mean_scores: dict[str, float]
    guards: StepGuards

    def paying(self, with_guards: bool = False) -> list[Effect]:
        """The effects by which scores rise."""
        return [effect for effect in self.effects if (effect.pays_with_guards if with_guards else effect.pays)]

    def to_dict(self) -> dict:
        """All numbers, for JSON; intervals as `[mean, low, high]`."""
        return asdict(self)

    def print(self, console: Console | None = None) -> None:
        """One table an aggregation, and what pays."""
        console = console or Console(highlight=False)
        console.print(
            f"{counted(self.num_solutions, 'solution')} ({self.num_unscored:,} more could not be scored); the guards "
            f"reject {self.num_rejected:,} as they are: {self.guards.settings or 'none'}"
        )
        for aggregation, mean_score in self.mean_scores.items():
            self._print_table(console, aggregation, mean_score)
        for with_guards in (False, True):
            paying = self.paying(with_guards)
            names = {a: [e.perturbation for e in paying if e.aggregation == a] for a in self.mean_scores}
            listed = "; ".join(f"{a}: {', '.join(of_a)}" for a, of_a in names.items() if of_a)
            label = "pays with guards" if with_guards else "pays without guards"
            console.print(f"{label}: {listed or 'nothing'}", style="red" if paying and with_guards else "")

    def _print_table(self, console: Console, aggregation: str, mean_score: float) -> None:
        columns = (
            Column("perturbation", no_wrap=True),
            Column("change [95 %]", justify="right", no_wrap=True),
            Column("gain", justify="right"),
            Column("with guards", justify="right", no_wrap=True),
            Column("gain", justify="right"),
            Column("rejected", justify="right"),
        )
        title = f"\n{aggregation}, mean score {mean_score:.3f}"
        table = Table(*columns, title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
        for effect in (e for e in self.effects if e.aggregation == aggregation):
            style = "red" if effect.pays_with_guards else "yellow" if effect.pays else None
            table.add_row(
                effect.perturbation,
                _written(effect.change),
                f"{effect.share_gaining:.0%}",
                _written(effect.guarded_change),
                "" if effect.guarded_share_gaining is None else f"{effect.guarded_share_gaining:.0%}",
                "" if effect.share_rejected is None else f"{effect.share_rejected:.0%}",
                style=style,
            )
        console.print(table)
        fewer = {e.perturbation: e.num_solutions for e in self.effects if e.aggregation == aggregation}
        listed = ", ".join(f"{name} ({n:,})" for name, n in fewer.items() if n < self.num_solutions)
        if listed:
            console.print(f"possible with some of the solutions only: {listed}", style="dim")


def hacking_report(
    process_reward: ProcessReward | ProcessRewardModel,
    prompts: Sequence[Prompt],
    completions: Sequence[str | list[dict]],
    aggregations: Sequence[str] = AGGREGATIONS,
    perturbations: Sequence[str] | None = None,
    filler: str = FILLER,
    seed: int = 0,
) -> HackingReport:
    """
    Measures how the aggregated score of given solutions moves when they are perturbed, with and without the guards of
    a process reward.

    Args:
        process_reward ([`ProcessReward`] or [`ProcessRewardModel`]):
            The reward as it is to be used: its model, splitting, `guards`, `require_answer` and `is_well_formed`. Of a
            model alone, the guards are those that suit the solutions ([`suggested_guards`]).
        prompts (`Sequence` of `str` or messages):
            A prompt for each solution.
        completions (`Sequence` of `str` or messages):
            The solutions, as the policy writes them. Right and wrong ones: a policy is rewarded for both.
        aggregations (`Sequence[str]`, *optional*, defaults to `("min", "product", "mean", "last")`):
            What to report on ([`aggregate`]); scores are computed once for all of them.
        perturbations (`Sequence[str]`, *optional*):
            Some of [`PERTURBATIONS`]; `None`: all.
        filler (`str`, *optional*):
            The step that claims nothing; write one that the policy could.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        [`HackingReport`]: `report.print()` writes it as tables. The changes of a prompt's solutions are averaged
        first, and the intervals are bootstrapped over prompts: solutions of one prompt are no independent evidence.

    Raises:
        `ValueError`: where there is no solution that can be scored, and for an unknown perturbation or aggregation.
    """
    names = list(PERTURBATIONS) if perturbations is None else list(perturbations)
    for name in names:
        check_choice("perturbations", name, PERTURBATIONS)
    for aggregation in aggregations:
        check_aggregation(aggregation, argument="aggregations")
    prompts, texts = list(prompts), [completion_text(completion) for completion in completions]
    if isinstance(process_reward, ProcessReward):
        guarded = process_reward
    else:
        guarded = ProcessReward(process_reward, guards=suggested_guards(texts))
    plain = ProcessReward(
        guarded.prm,
        split_how=guarded.split_how,
        require_answer=False,
        batch_size=guarded.batch_size,
        prompt_as=guarded.prompt_as,
        max_tokens_per_batch=guarded.max_tokens_per_batch,
    )

    def scored(indices: Sequence[int], texts: Sequence[str]) -> list[_Scored | None]:
        of_prompts = [prompts[i] for i in indices]
        return [
            None
            if judgement.step_scores is None
            else _Scored(
                steps=[step.text for step in judgement.steps],
                step_scores=judgement.step_scores,
                is_rejected=guarded.examine(prompt, text).malformed is not None,
            )
            for prompt, text, judgement in zip(of_prompts, texts, plain.judge(of_prompts, texts), strict=True)
        ]

    before = dict(enumerate(scored(range(len(texts)), texts)))
    before = {i: solution for i, solution in before.items() if solution is not None}
    if not before:
        raise ValueError(
            f"None of {len(texts)} solutions can be scored. Give solutions that have steps and that the model can "
            "read: they fit into its context, and its tag stands apart in them."
        )
    changed = [
        (name, i, text)
        for name in names
        for i, solution in before.items()
        if (text := perturb(name, texts[i], solution.step_scores, guarded.split_how, filler)) is not None
    ]
    after: dict[str, dict[int, _Scored]] = {name: {} for name in names}
    of_changed = scored([i for _, i, _ in changed], [text for _, _, text in changed])
    for (name, i, _), solution in zip(changed, of_changed, strict=True):
        if solution is not None:
            after[name][i] = solution

    clusters = [str(prompt) for prompt in prompts]
    effects, mean_scores = [], {}
    for aggregation in aggregations:
        measure = _Measure(aggregation, guarded.guards, guarded.reward_if_malformed or 0.0, clusters, seed)
        mean_scores[aggregation] = float(np.mean([measure.score(solution) for solution in before.values()]))
        found = [measure.effect(name, before, solutions) for name, solutions in after.items() if solutions]
        effects += sorted(found, key=lambda effect: -effect.change.mean)
    num_rejected = sum(solution.is_rejected for solution in before.values())
    return HackingReport(effects, len(before), len(texts) - len(before), num_rejected, mean_scores, guarded.guards)


@dataclass(frozen=True)
class _Scored:
    """A solution, as it is or perturbed."""

    steps: list[str]
    step_scores: list[float]
    is_rejected: bool  # by the guards


@dataclass(frozen=True)
class _Measure:
    """Scores under one aggregation, and how they move."""

    aggregation: str
    guards: StepGuards
    reward_if_rejected: float
    clusters: Sequence[str]  # the prompt of each solution
    seed: int

    def score(self, solution: _Scored) -> float:
        return aggregate(solution.step_scores, self.aggregation)

    def guarded_score(self, solution: _Scored) -> float:
        if solution.is_rejected:
            return self.reward_if_rejected
        return self.guards.aggregate(solution.steps, solution.step_scores, self.aggregation)

    def effect(self, name: str, before: Mapping[int, _Scored], after: Mapping[int, _Scored]) -> Effect:
        changes = {i: self.score(solution) - self.score(before[i]) for i, solution in after.items()}
        admitted = {i: solution for i, solution in after.items() if not before[i].is_rejected}
        guarded = {i: self.guarded_score(solution) - self.guarded_score(before[i]) for i, solution in admitted.items()}
        return Effect(
            perturbation=name,
            aggregation=self.aggregation,
            num_solutions=len(changes),
            change=self._interval(changes),
            share_gaining=_share_gaining(changes),
            guarded_change=self._interval(guarded) if guarded else None,
            guarded_share_gaining=_share_gaining(guarded) if guarded else None,
            share_rejected=float(np.mean([s.is_rejected for s in admitted.values()])) if admitted else None,
        )

    def _interval(self, changes: Mapping[int, float]) -> Estimate:
        """Mean over prompts of the mean change of their solutions."""
        of_prompt: dict[str, list[float]] = {}
        for i, change in changes.items():
            of_prompt.setdefault(self.clusters[i], []).append(change)
        return bootstrap_interval([float(np.mean(values)) for values in of_prompt.values()], seed=self.seed)


def _share_gaining(changes: Mapping[int, float]) -> float:
    return float(np.mean([change > LEAST_GAIN for change in changes.values()]))


def suggested_guards(
    completions: Sequence[str | list[dict]], split_how: str = "newline", slack: float = 1.5
) -> StepGuards:
    """
    Guards that solutions known to be good pass with some slack: at most `slack` times the steps seen and the length of
    the longest, on average no shorter than the shortest by `slack`, no fewer than the fewest; fillers without credit.

    Args:
        completions (`Sequence` of `str` or messages):
            Solutions, such as the policy's own before training, or worked solutions of the dataset.
        split_how (`str`, *optional*, defaults to `"newline"`):
            How they are split into steps ([`split_steps`]).
        slack (`float`, *optional*, defaults to `1.5`):
            At least 1. Our choice: below 2, so that writing every step twice, or in two halves, does not pass where
            solutions are of one length.

    Returns:
        [`StepGuards`].

    Example:

    ```python
    >>> suggested_guards(["1+1=2\\n2+1=3\\n#3", "4+5=9\\n#9"]).settings
    {'min_steps': 2, 'max_steps': 5, 'min_characters_per_step': 2.3, 'max_step_characters': 8,
     'max_share_of_fillers': 0.34, 'credit_fillers': False}

    ```
    """
    if not slack >= 1:
        raise ValueError(f"`slack` must be at least 1, got {slack!r}: the solutions themselves would be rejected.")
    solutions = [steps for completion in completions if (steps := step_texts(completion_text(completion), split_how))]
    if not solutions:
        raise ValueError("None of the completions has a step. Give solutions, and `split_how` as they are written.")
    numbers = [len(steps) for steps in solutions]
    fillers = max(sum(are_fillers(steps)) / len(steps) for steps in solutions)
    shortest = math.floor(10 * min(map(characters_per_step, solutions)) / slack) / 10
    return StepGuards(
        # Without slack: a step fewer than any solution seen is what this bound is there for.
        min_steps=min(numbers),
        max_steps=math.ceil(slack * max(numbers)),
        min_characters_per_step=max(1.0, shortest),
        max_step_characters=math.ceil(slack * max(len(step) for steps in solutions for step in steps)),
        max_share_of_fillers=min(math.ceil(100 * (1 - (1 - fillers) / slack)) / 100, 0.99),
        credit_fillers=False,
    )


def _written(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.mean:+.3f} [{estimate.low:+.2f} {estimate.high:+.2f}]"


# ---------------------------------------------------------------------------------------------------------------------
# Command line


@dataclass
class HackingReportArguments:
    """What to look at."""

    prm_path: str = field(metadata={"help": "Directory of a process reward model, or the id of a known one."})
    dataset_path: str = field(metadata={"help": "File or directory of solutions."})
    prm_format: str | None = field(
        default=None, metadata={"help": "Format of a PRM from elsewhere that does not say its own."}
    )
    prompt_as: str = field(
        default="auto",
        metadata={"help": "What the PRM reads of chats: chat; problem, the user's last message; auto: as trained."},
    )
    split: str = field(default="train", metadata={"help": "Split, with a slice if wanted."})
    num_solutions: int = field(default=200, metadata={"help": "Look at this many solutions; 0: all."})
    aggregations: list[str] = field(
        default_factory=lambda: list(AGGREGATIONS), metadata={"help": "Aggregations to report on."}
    )
    split_how: str = field(default="newline", metadata={"help": "How a solution is split into steps."})
    answer_how: str = field(default="auto", metadata={"help": "How an answer is looked for."})
    prompt_suffix: str = field(default="", metadata={"help": "Put behind each text prompt that lacks it."})
    filler: str = field(default=FILLER, metadata={"help": "A step that claims nothing."})
    batch_size: int = field(default=32, metadata={"help": "Solutions a forward pass."})

    def __post_init__(self):
        check_path_or_id(self.prm_path, "prm_path")
        if self.prm_format is not None:
            check_choice("prm_format", self.prm_format, FORMATS)
        check_split_mode(self.split_how, "split_how")
        check_answer_convention(self.answer_how, "answer_how")
        check_prompt_reading(self.prompt_as)
        for aggregation in self.aggregations:
            check_aggregation(aggregation, argument="aggregations")


def read_solutions(args: HackingReportArguments) -> tuple[list[Prompt], list[str]]:
    """Prompts and solutions of a dataset of any layout that holds some."""
    rows = load_rows(dataset_path=args.dataset_path, split=args.split)
    columns = set(rows.column_names)
    if {"prompt", "completion"} <= columns:
        prompts, texts = list(rows["prompt"]), [completion_text(completion) for completion in rows["completion"]]
    else:
        prompts, texts = _stepwise_solutions(rows, columns, args.split_how)
    kept = [i for i, text in enumerate(texts) if text and text.strip()][: args.num_solutions or None]
    if not kept:
        raise ValueError(
            f"`dataset_path` must hold solutions, got the columns {', '.join(sorted(columns))} in "
            f"{args.dataset_path!r}, and no solution in them. Give rows with `prompt` and `completion`."
        )

    def suffixed(prompt: Prompt) -> Prompt:
        is_complete = not isinstance(prompt, str) or prompt.endswith(args.prompt_suffix)
        return prompt if is_complete else prompt + args.prompt_suffix

    return [suffixed(prompts[i]) for i in kept], [texts[i] for i in kept]


def _stepwise_solutions(rows: Dataset, columns: set[str], split_how: str) -> tuple[list[Prompt], list[str]]:
    if not {"prompt", "completions"} <= columns:
        is_worked = {"question", "answer"} <= columns or "problem" in columns or {"prompt", "solution"} <= columns
        rows = to_prompt_rows(rows, split_how) if is_worked else to_stepwise_rows(rows, skip_unreadable=True)
    if "completions" not in rows.column_names:
        return list(rows["prompt"]), [""] * len(rows)
    return list(rows["prompt"]), [join_as(steps, split_how) if steps else "" for steps in rows["completions"]]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    disable_progress_bars()
    how = {"prog": "python -m trl_erprm.policy.hacking_report", "description": __doc__}
    try:
        args, guards = StrictParser((HackingReportArguments, StepGuards), **how).parse_args_and_config(argv)
        prompts, texts = read_solutions(args)
        if not guards.settings:
            guards = suggested_guards(texts, args.split_how)
        process_reward = ProcessReward(
            args.prm_path,
            split_how=args.split_how,
            answer_how=args.answer_how,
            guards=guards,
            format=args.prm_format,
            prompt_as=args.prompt_as,
            batch_size=args.batch_size,
        )
        report = hacking_report(process_reward, prompts, texts, args.aggregations, filler=args.filler)
    except (ValueError, OSError, DatasetsError) as error:
        print(f"hacking_report: {error}", file=sys.stderr)
        return 2
    report.print()
    return int(bool(report.paying(with_guards=True)))


if __name__ == "__main__":
    sys.exit(main())
