"""Compare process reward models by what their choices are worth: best of n with intervals, as one report.

    accelerate launch recipes/evaluate.py                        # the embedded task: ER, soft, hard and outcome PRM
    python recipes/evaluate.py --candidates pool.jsonl.gz --step_scores scores/*.jsonl.gz --output_dir outputs/report
    python recipes/evaluate.py --candidates pool.jsonl.gz --prm_path er=outputs/prm soft=outputs/prm-soft ...
    accelerate launch recipes/evaluate.py --model_name_or_path path/to/policy --dataset_path p.jsonl --prm_path ...

Candidates and step scores are files in the layout of trl_erprm/evaluation/candidates.py; what is sampled and scored
here is kept in that layout, and an interrupted run goes on where it stopped (trl_erprm/evaluation/run.py). `--engine`
says where the policy runs (docs/engines.md). `report.html` in the output directory needs no network
(docs/evaluation.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stages
from datasets import Dataset
from rich.console import Console

from trl_erprm import ProcessRewardModel
from trl_erprm.arguments import (
    DataArguments,
    ModelArguments,
    StrictParser,
    check_path_or_id,
    load_prompts,
    process_state,
)
from trl_erprm.arithmetic import ArithmeticTask
from trl_erprm.choices import check_choice
from trl_erprm.evaluation.candidates import read_step_scores
from trl_erprm.evaluation.comparison import (
    calibrate_scorers,
    calibration_notes,
    compare_scorers,
    compare_search,
    judge_scorers,
)
from trl_erprm.evaluation.html_report import write_report
from trl_erprm.evaluation.report import comparison_table
from trl_erprm.evaluation.run import EvaluationRun
from trl_erprm.evaluation.scoring import scorer_paths
from trl_erprm.evaluation.search import STEP_SEPARATORS, check_beams
from trl_erprm.prm.aggregation import AGGREGATIONS, check_aggregation
from trl_erprm.prm.formats import FORMATS, PRMFormat, format_of_checkpoint, read_saved_format
from trl_erprm.prm.scorer import resolve_format
from trl_erprm.rollout import SamplingOptions
from trl_erprm.rollout.arguments import EngineArguments, load_policy_engine
from trl_erprm.steps import check_split_mode
from trl_erprm.verify import check_answer_convention
from trl_erprm.wording import counted


@dataclass
class ScriptArguments:
    output_dir: str = field(metadata={"help": "Where report.html, metrics.json and the plots go."})
    candidates: str | None = field(
        default=None,
        metadata={"help": "File of candidates (.jsonl, .jsonl.gz, .parquet); else they are sampled."},
    )
    step_scores: list[str] | None = field(
        default=None, metadata={"help": "Files of step scores of these candidates; 'name=file' gives a name."}
    )
    prm_path: list[str] | None = field(
        default=None, metadata={"help": "Directories or ids of process reward models; 'name=directory' gives a name."}
    )
    prm_format: str | None = field(
        default=None,
        metadata={"help": f"Layout of the models that do not say theirs: {', '.join(FORMATS)}."},
    )
    aggregation: str = field(
        default="min",
        metadata={
            "help": "Aggregation that the report puts first: min (the paper), product, mean, last, max, softmin(T)."
        },
    )
    own_aggregations: list[str] | None = field(
        default=None, metadata={"help": "'name=aggregation' for what another one suits, such as 'outcome=last'."}
    )
    search_budgets: list[int] | None = field(
        default=None,
        metadata={"help": "Beams, multiples of 4, of beam search and DVTS with the first PRM, beside best of n."},
    )
    num_samples: int = field(
        default=16, metadata={"help": "Candidates sampled for each problem (our choice; the paper has up to 64)."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the candidates (our choice: that of the rollouts)."}
    )
    max_completion_length: int = field(default=512, metadata={"help": "Most tokens of a candidate (our choice)."})
    scoring_batch_size: int = field(
        default=32, metadata={"help": "Candidates a PRM scores at once. No effect on results."}
    )
    split_how: str = field(
        default="newline",
        metadata={"help": "How candidates are split into steps: newline, blank_line, step_marker or sentence."},
    )
    answer_how: str = field(
        default="auto",
        metadata={"help": "Where the final answer stands: auto, gsm8k, boxed, math or arithmetic."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of sampling, of resampled problems and of drawn subsets."})
    task: str | None = field(
        default=None, metadata={"help": "'arithmetic': the embedded task.", "choices": ["arithmetic"]}
    )

    def __post_init__(self) -> None:
        check_aggregation(self.aggregation, argument="aggregation")
        check_split_mode(self.split_how, "split_how")
        check_answer_convention(self.answer_how, "answer_how")
        for name in ("num_samples", "max_completion_length", "scoring_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be at least 1, got {getattr(self, name)}. Leave it out for the default."
                )
        sampling_options(self)  # checks the temperature and the seed
        if self.candidates is not None:
            check_file(self.candidates, "candidates")
        if self.prm_format is not None:
            check_choice("prm_format", self.prm_format, FORMATS)
        for budget in self.search_budgets or ():
            check_beams(budget)
            check_choice("split_how", self.split_how, STEP_SEPARATORS)  # where a step ends, the policy has to stop
        for text in self.own_aggregations or ():
            _, equals, how = text.partition("=")
            if not equals:
                raise ValueError(
                    f"`own_aggregations` must be written 'name=aggregation', got {text!r}. Write, for example, "
                    "'outcome=last'."
                )
            check_aggregation(how, argument="own_aggregations")


def main(argv: list[str] | None = None) -> dict:
    kinds = (ScriptArguments, EngineArguments, ModelArguments, DataArguments)
    parser = StrictParser(kinds, description=__doc__)
    args, engine_args, model_args, data_args = parser.parse_args_and_config(stages.command_line(argv, "evaluate"))
    prms, score_files = scorer_paths(args.prm_path, "prm_path"), scorer_paths(args.step_scores, "step_scores")
    for path in prms.values():
        check_path_or_id(path, "prm_path")
    for path in score_files.values():
        check_file(path, "step_scores")
    own_aggregations = dict(text.split("=", 1) for text in args.own_aggregations or [])
    output_dir = Path(args.output_dir)
    are_variants = args.task == "arithmetic" and not prms  # the PRMs are those of the embedded task
    check_scorers(
        args, stages.variant_dirs(output_dir.parent) if are_variants else prms, score_files, own_aggregations
    )
    for path in prms.values():
        format_of_prm(args, path)  # a model that cannot be read is found before anything is sampled

    # Load
    device, task, rows, engine = process_state().device, None, None, None
    run = EvaluationRun(output_dir, args.answer_how, args.split_how)
    if args.task == "arithmetic":
        prepared = stages.prepare(output_dir.parent, args.seed, "evaluate")
        task, model_args.model_name_or_path = prepared.task, str(prepared.policy_dir)
        if are_variants:
            prms = stages.train_variants(prepared, output_dir.parent, args.seed)
            own_aggregations = {name: "last" for name in prms if name == "outcome"} | own_aggregations  # all it learnt
    is_well_formed = task.is_well_formed if task else None

    # Candidates, given or sampled
    if args.candidates:
        pool = run.read(args.candidates)
    else:
        rows = load_problems(data_args, task, args.split_how)
        engine, policy_name = load_policy_engine(engine_args, model_args, device)
        problems = (list(rows["prompt"]), list(rows["answer"]))
        pool = run.sample(engine, policy_name, *problems, args.num_samples, sampling_options(args))
    scores = {name: read_step_scores(path, pool) for name, path in score_files.items()}

    # Score
    etas = {}
    for name, path in prms.items():
        prm = load_prm(args, path)
        scores[name] = run.score(name, prm, pool, args.scoring_batch_size, is_well_formed)
        etas[name] = None if name == "outcome" and task else prm.eta  # an outcome is a probability at any eta

    # Search
    found = None
    if args.search_budgets:
        first = load_prm(args, next(iter(prms.values())))
        how = (sampling_options(args), args.search_budgets, args.aggregation, is_well_formed)
        found = run.search(engine, first, *problems, *how)
    if not run.is_main_process:
        return {}  # one process measures; the others had their part in what is compared

    # Measure
    aggregations = list(dict.fromkeys((*AGGREGATIONS, args.aggregation, *own_aggregations.values())))
    metrics = compare_scorers(pool, scores, args.aggregation, own_aggregations, aggregations, seed=args.seed)
    metrics["calibration"] = calibrate_scorers(pool, scores, etas)
    metrics["notes"] += calibration_notes(scores)
    if task is not None:
        metrics["steps"] = judge_scorers(pool, scores, task.check_steps)
    if found is not None:
        metrics["search"] = compare_search(found, pool, scores[next(iter(prms))], args.aggregation)
    policy = engine_args.endpoint_model or model_args.model_name_or_path
    metrics["settings"] = {"candidates": args.candidates or f"sampled from {policy}"}

    # Save
    console = Console()
    for note in metrics["notes"]:
        console.print(f"Note: {note}", markup=False)
    console.print(comparison_table(metrics))
    num_scorers = counted(len(scores), "reward model")
    page = write_report(metrics, output_dir, f"Best of {pool.num_candidates} by {num_scorers}")
    console.print(f"Report: {page}", soft_wrap=True)
    return metrics


def load_prm(args: ScriptArguments, path: str | Path) -> ProcessRewardModel:
    return ProcessRewardModel.from_pretrained(path, format_of_prm(args, path))


def format_of_prm(args: ScriptArguments, path: str | Path) -> PRMFormat:
    """How a model reads solutions: what its checkpoint says, else `prm_format`; raises where neither does."""
    says_its_own = format_of_checkpoint(path, read_saved_format(path)) is not None
    return resolve_format(path, None if says_its_own else args.prm_format)


def sampling_options(args: ScriptArguments) -> SamplingOptions:
    return SamplingOptions(args.max_completion_length, args.temperature, seed=args.seed)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


def check_file(path: str, argument: str) -> None:
    """Raises `FileNotFoundError`, by the name of the argument, where there is no such file."""
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(
            f"`{argument}` must be an existing file, got {path!r}, which is none. Check the path, which is relative "
            f"to {Path.cwd()}."
        )


def check_scorers(
    args: ScriptArguments,
    prms: Mapping[str, Any],
    score_files: Mapping[str, str],
    own_aggregations: Mapping[str, str],
) -> None:
    """Raises, before anything is made or sampled, where the arguments do not go together."""
    if not prms and not score_files:
        raise ValueError(stages.missing("prm_path", "evaluate"))
    if score_files and not args.candidates:
        raise ValueError("`step_scores` goes with `candidates`, the file of what was scored. Give it, too.")
    for name in own_aggregations:
        check_choice("own_aggregations", name, [*score_files, *prms])
    if both := sorted(set(prms) & set(score_files)):
        raise ValueError(
            f"`prm_path` and `step_scores` must have names of their own, got {both} in both. Write, for example, "
            f"`prm_path: {both[0]}-2={prms[both[0]]}`."
        )
    if args.search_budgets and (args.candidates or not prms):
        raise ValueError("`search_budgets` needs a policy and a PRM: give `prm_path`, and no `candidates`.")


def load_problems(data_args: DataArguments, task: ArithmeticTask | None, split_how: str) -> Dataset:
    """Prompt rows, each with an answer."""
    if task is not None:
        return task.dataset(data_args.dataset_split, data_args.num_rows)
    rows, _ = load_prompts(data_args, split_how)
    answers = rows["answer"] if "answer" in rows.column_names else [None]
    if None in answers:
        raise ValueError(
            f"Row {list(answers).index(None)} has no answer to compare with. Give problems with a column `answer`."
        )
    return rows


if __name__ == "__main__":
    main()
