"""Compare process reward models by what their choices are worth: best of n with intervals, as one report.

    accelerate launch recipes/evaluate.py                        # the embedded task: ER, soft, hard and outcome PRM
    python recipes/evaluate.py --candidates pool.jsonl.gz --step_scores scores/*.jsonl.gz --output_dir outputs/report
    python recipes/evaluate.py --candidates pool.jsonl.gz --prm_path er=outputs/prm soft=outputs/prm-soft ...
    python recipes/evaluate.py --model_name_or_path path/to/policy --dataset_path problems.jsonl --prm_path ...

Candidates and step scores are files in the layout of trl_erprm/evaluation/candidates.py; what is sampled and scored
here is kept in that layout. `report.html` in the output directory needs no network (docs/evaluation.md).
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import stages
from datasets import Dataset
from rich.console import Console

from trl_erprm import ProcessRewardModel
from trl_erprm.arguments import DataArguments, ModelArguments, StrictParser, load_policy, load_prompts, process_state
from trl_erprm.arithmetic import ArithmeticTask
from trl_erprm.choices import check_choice
from trl_erprm.evaluation.candidates import CandidatePool, make_pool, read_candidates, read_step_scores, write_rows
from trl_erprm.evaluation.comparison import aggregated_scores, calibrate_scorers, compare_scorers
from trl_erprm.evaluation.html_report import write_report
from trl_erprm.evaluation.processbench import JudgedRow, measure_judged_rows
from trl_erprm.evaluation.report import comparison_table
from trl_erprm.evaluation.search import best_of_n_curve, search_curve
from trl_erprm.evaluation.step_pairs import step_pair_accuracy
from trl_erprm.manifest import content_hash, open_run, weights_fingerprint, write_atomically
from trl_erprm.prm.aggregation import AGGREGATIONS, check_aggregation
from trl_erprm.rollout import Prefix, RolloutEngine, SamplingOptions, load_engine


@dataclass
class ScriptArguments:
    output_dir: str = field(metadata={"help": "Where report.html, metrics.json and the plots go."})
    candidates: str | None = field(
        default=None, metadata={"help": "File of candidates (.jsonl, .jsonl.gz, .parquet)."}
    )
    step_scores: list[str] | None = field(
        default=None, metadata={"help": "Files of step scores of these candidates; 'name=file' gives a name."}
    )
    prm_path: list[str] | None = field(
        default=None, metadata={"help": "Directories of process reward models; 'name=directory' gives a name."}
    )
    aggregation: str = field(default="min", metadata={"help": "Aggregation that the report puts first (paper: min)."})
    own_aggregations: list[str] | None = field(
        default=None, metadata={"help": "'name=aggregation' for what another one suits, such as 'outcome=last'."}
    )
    search_budgets: list[int] | None = field(
        default=None, metadata={"help": "Beams of beam search and DVTS with the first PRM, to plot beside best of n."}
    )
    num_samples: int = field(default=16, metadata={"help": "Candidates sampled for each problem."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    max_completion_length: int = field(default=512, metadata={"help": "Most tokens of a candidate."})
    generation_batch_size: int = field(default=64, metadata={"help": "Sequences generated at once."})
    scoring_batch_size: int = field(default=32, metadata={"help": "Candidates a PRM scores at once."})
    split_how: str = field(default="newline", metadata={"help": "How candidates are split into steps."})
    answer_how: str = field(default="auto", metadata={"help": "How answers are read: see `verify_answer`."})
    seed: int = field(default=0, metadata={"help": "Seed of sampling, of resampled problems and of drawn subsets."})
    task: str | None = field(
        default=None, metadata={"help": "'arithmetic': the embedded task.", "choices": ["arithmetic"]}
    )


def main(argv: list[str] | None = None) -> dict:
    argv = sys.argv[1:] if argv is None else argv
    parser = StrictParser((ScriptArguments, ModelArguments, DataArguments))
    args, model_args, data_args = parser.parse_args_and_config(
        argv or ["--config", str(stages.CONFIGS / "evaluate.yaml")]
    )
    own_aggregations = _own_aggregations(args.own_aggregations)
    for how in (args.aggregation, *own_aggregations.values()):
        check_aggregation(how)
    output_dir = Path(args.output_dir)

    # Load
    state, task = process_state(), None
    is_main = state.is_main_process  # now: trainers make the state anew, without the other processes of a CPU
    prms, score_files = _named(args.prm_path, "prm_path"), _named(args.step_scores, "step_scores")
    if args.task == "arithmetic":
        prepared = stages.prepare(output_dir.parent, args.seed, "evaluation: which PRM chooses best?")
        task, model_args.model_name_or_path = prepared.task, str(prepared.policy_dir)
        if not prms:
            prms = stages.train_variants(prepared, output_dir.parent, args.seed)
            own_aggregations = {name: "last" for name in prms if name == "outcome"} | own_aggregations  # all it learnt
    if not prms and not score_files:
        raise ValueError(stages.missing("prm_path", "evaluate"))
    if score_files and not args.candidates:
        raise ValueError("`step_scores` goes with `candidates`, the file of what was scored. Give it, too.")
    for name in own_aggregations:
        check_choice("own_aggregations", name, [*score_files, *prms])
    if both := set(prms) & set(score_files):
        raise ValueError(f"`prm_path` and `step_scores` must have names of their own, got {sorted(both)} in both.")
    if args.search_budgets and (args.candidates or not prms):
        raise ValueError("`search_budgets` needs a policy and a PRM: give `prm_path`, and no `candidates`.")
    if not is_main:
        return {}  # one process measures; the others had their part in training what is compared

    # Candidates, given or sampled
    rows = engine = None
    if args.candidates:
        pool = read_candidates(args.candidates, args.answer_how, args.split_how)
    else:
        rows = _problems(data_args, task, args.split_how)
        policy, tokenizer = load_policy(model_args, device=state.device)
        engine = load_engine("transformers", model=policy, tokenizer=tokenizer, batch_size=args.generation_batch_size)
        pool = _sample(args, rows, engine, weights_fingerprint(policy))
    scores = {name: read_step_scores(path, pool) for name, path in score_files.items()}
    if args.candidates:
        open_run(output_dir, {"candidates": content_hash(pool.rows())}, kind="evaluation")

    # Score
    etas = {}
    for name, path in prms.items():
        prm, directory = ProcessRewardModel.from_pretrained(path), output_dir / "scores" / name
        etas[name] = None if name == "outcome" and task else prm.eta  # an outcome is a probability at any eta
        identity = {
            "prm": weights_fingerprint(prm.model),
            "format": asdict(prm.format),
            "steps": content_hash(pool.steps),
        }
        kept = directory / "step_scores.jsonl"
        if not (open_run(directory, identity, kind="step scores") and kept.exists()):
            found = _score(prm, pool, args.scoring_batch_size, task.is_well_formed if task else None)
            ids = pool.problem_ids
            write_rows(kept, [{"problem_id": i, "step_scores": s} for i, s in zip(ids, found, strict=True)])
        scores[name] = read_step_scores(kept, pool)

    # Measure
    aggregations = list(dict.fromkeys((*AGGREGATIONS, args.aggregation, *own_aggregations.values())))
    metrics = compare_scorers(pool, scores, args.aggregation, own_aggregations, aggregations, seed=args.seed)
    metrics["calibration"] = calibrate_scorers(pool, scores, etas)
    if task is not None:
        metrics["steps"] = {name: _step_metrics(task, pool, of_scorer) for name, of_scorer in scores.items()}
    if args.search_budgets:
        metrics["search"] = _search(args, rows, engine, next(iter(prms.items())), pool, scores, task)
    metrics["settings"] = {"candidates": args.candidates or f"sampled from {model_args.model_name_or_path}"}

    # Save
    console = Console()
    for note in metrics["notes"]:
        console.print(f"Note: {note}", markup=False)
    console.print(comparison_table(metrics))
    page = write_report(metrics, output_dir, f"Best of {pool.num_candidates} by {len(scores)} reward models")
    console.print(f"Report: {page}", soft_wrap=True)
    return metrics


def _named(paths: list[str] | None, argument: str) -> dict[str, str]:
    """Path by name: 'name=path', or the file's own name (its folder's, of a `step_scores.jsonl`)."""
    named: dict[str, str] = {}
    for text in paths or []:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            path = text
            stem = Path(text).name.split(".jsonl")[0].removesuffix(".parquet") if argument == "step_scores" else ""
            name = Path(text).resolve().parent.name if stem == "step_scores" else stem.removeprefix("step_scores_")
            name = name or Path(text).resolve().name
        if name in named or "/" in name:
            raise ValueError(
                f"`{argument}` must give each a name of its own without a slash, got {name!r} for {path!r}"
                + (f" and for {named[name]!r}" if name in named else "")
                + f". Write {name.replace('/', '-')}-2={path}."
            )
        named[name] = path
    return named


def _own_aggregations(texts: list[str] | None) -> dict[str, str]:
    """Aggregation by name, from 'name=aggregation'."""
    for text in texts or []:
        if "=" not in text:
            raise ValueError(f"`own_aggregations` must be written 'name=aggregation', got {text!r}.")
    return dict(text.split("=", 1) for text in texts or [])


def _problems(data_args: DataArguments, task: ArithmeticTask | None, split_how: str) -> Dataset:
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


def _sample(args: ScriptArguments, rows: Dataset, engine: RolloutEngine, policy: str) -> CandidatePool:
    """Candidates of the policy, sampled once and kept as `candidates.jsonl`."""
    names = ("num_samples", "temperature", "max_completion_length", "split_how", "answer_how", "seed", "task")
    settings = {name: getattr(args, name) for name in names}
    identity = {
        "policy": policy,
        "rows": content_hash(list(rows["prompt"]), list(rows["answer"])),
        "settings": settings,
    }
    kept = Path(args.output_dir) / "candidates.jsonl"
    if not (open_run(args.output_dir, identity, kind="evaluation") and kept.exists()):
        options = SamplingOptions(args.max_completion_length, args.temperature, seed=args.seed)
        groups = engine.generate([Prefix(prompt) for prompt in rows["prompt"]], args.num_samples, options)
        sampled = [
            {
                "problem_id": str(i),
                "prompt": row["prompt"],
                "answer": row["answer"],
                "candidates": [{"completion": c.text, "num_tokens": c.num_tokens} for c in group],
            }
            for i, (row, group) in enumerate(zip(rows, groups, strict=True))
        ]
        write_rows(kept, make_pool(sampled, args.answer_how, args.split_how, name="The sampled candidates").rows())
    return read_candidates(kept, args.answer_how, args.split_how)


def _search(
    args: ScriptArguments,
    rows: Dataset,
    engine: RolloutEngine,
    prm: tuple[str, str],
    pool: CandidatePool,
    scores: dict[str, list],
    task: ArithmeticTask | None,
) -> list[dict[str, Any]]:
    """Points of beam search and DVTS, found once and kept, and of best of n from the pool, by the same PRM."""
    name, path = prm
    kept = Path(args.output_dir) / "search" / "points.json"
    scorer = ProcessRewardModel.from_pretrained(path)
    identity = {
        "prm": weights_fingerprint(scorer.model),
        "aggregation": args.aggregation,
        "budgets": args.search_budgets,
    }
    if not (open_run(kept.parent, identity, kind="search") and kept.exists()):
        found = search_curve(
            engine,
            scorer,
            list(rows["prompt"]),
            list(rows["answer"]),
            SamplingOptions(args.max_completion_length, args.temperature, seed=args.seed),
            args.search_budgets,
            answer_how=args.answer_how,
            aggregation=args.aggregation,
            split_how=args.split_how,
            is_well_formed=task.is_well_formed if task else None,
        )
        write_atomically(kept, json.dumps([point._asdict() for point in found]) + "\n")
    sizes = [2**k for k in range(pool.num_candidates.bit_length())]
    of_pool = best_of_n_curve(
        aggregated_scores(scores[name], args.aggregation).tolist(), pool.is_correct.tolist(), pool.num_tokens, sizes
    )
    return [
        {
            "method": method.replace("_", " "),
            "n": n,
            "num_tokens": tokens,
            **dict(zip(("accuracy", "low", "high"), accuracy, strict=True)),
        }
        for method, n, accuracy, tokens, _ in [
            *of_pool,
            *(tuple(point.values()) for point in json.loads(kept.read_text("utf-8"))),
        ]
    ]


def _score(
    prm: ProcessRewardModel,
    pool: CandidatePool,
    batch_size: int,
    is_well_formed: Callable[[str, list[str]], bool] | None,
) -> list[list[list[float] | None]]:
    """Step scores of all candidates; `None` for one without steps, without answer, malformed, or too long."""
    if None in pool.prompts:
        raise ValueError(f"Problem {pool.prompts.index(None)} has no `prompt`, which a reward model has to read.")
    m = pool.num_candidates
    judged = [
        (i, j)
        for i in range(pool.num_problems)
        for j, steps in enumerate(pool.steps[i])
        if steps and pool.answers[i][j] is not None and (not is_well_formed or is_well_formed(pool.prompts[i], steps))
    ]
    scored = prm.score(
        [pool.prompts[i] for i, _ in judged],
        [pool.steps[i][j] for i, j in judged],
        batch_size=batch_size,
        none_if_too_long=True,
        show_progress=True,
    )
    found: list[list[list[float] | None]] = [[None] * m for _ in range(pool.num_problems)]
    for (i, j), scores in zip(judged, scored, strict=True):
        found[i][j] = scores
    return found


def _step_metrics(task: ArithmeticTask, pool: CandidatePool, step_scores: list) -> dict[str, Any]:
    """What the scores say of single steps, against the task's own exact checker."""
    judged = [(i, j) for i, of_problem in enumerate(step_scores) for j, s in enumerate(of_problem) if s is not None]
    prompts, steps = [pool.prompts[i] for i, _ in judged], [pool.steps[i][j] for i, j in judged]
    scores = [step_scores[i][j] for i, j in judged]
    is_right = [task.check_steps(prompt, of_one) for prompt, of_one in zip(prompts, steps, strict=True)]
    is_prefix_right = [[all(of_one[: k + 1]) for k in range(len(of_one))] for of_one in is_right]
    pair_accuracy, num_pairs = step_pair_accuracy(prompts, steps, scores, is_prefix_right)
    # One half of the problems chooses the threshold for the other.
    halves = ("chosen on" if i < pool.num_problems // 2 else "measured on" for i, _ in judged)
    rows = [
        JudgedRow(str(k), prompt, of_one, [float(right) for right in verdicts], half)
        for k, (prompt, of_one, verdicts, half) in enumerate(zip(prompts, steps, is_right, halves, strict=True))
    ]
    found = measure_judged_rows(rows, scores, threshold_on="chosen on")["measured on"].first_errors
    return {
        "step_pair_accuracy": pair_accuracy,
        "num_step_pairs": num_pairs,
        "first_error_f1": list(found.f1),
        "error_found": found.accuracy_erroneous.mean,
        "no_error_seen": found.accuracy_correct.mean,
        "threshold": found.threshold,
    }


if __name__ == "__main__":
    main()
