"""Measure a process reward model: best-of-N against majority vote, and how it ranks right and wrong steps.

    accelerate launch recipes/evaluate.py                  # the embedded task, as recipes/rft.py prepared it
    accelerate launch recipes/evaluate.py --prm_path outputs/prm --model_name_or_path path/to/policy \
        --dataset_name json --dataset_path problems.jsonl --output_dir outputs/evaluation
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import stages
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from trl_erprm import ProcessReward, aggregate, best_of_n_accuracy, verify_answer
from trl_erprm.arguments import DataArguments, ModelArguments, StrictParser, load_policy, load_prompts, process_state
from trl_erprm.evaluation.best_of_n import majority_accuracy, pass_at_n, sampled_accuracy
from trl_erprm.evaluation.step_pairs import step_pair_accuracy
from trl_erprm.manifest import content_hash, open_run, weights_fingerprint, write_atomically
from trl_erprm.prm.aggregation import AGGREGATIONS
from trl_erprm.rollout import Prefix, SamplingOptions, load_engine
from trl_erprm.steps import step_texts
from trl_erprm.verify import extract_answer


@dataclass
class ScriptArguments:
    output_dir: str = field(metadata={"help": "Where metrics.json and candidates.jsonl go."})
    prm_path: str | None = field(default=None, metadata={"help": "Directory of the process reward model."})
    num_samples: int = field(default=8, metadata={"help": "Candidates sampled for each problem."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    max_completion_length: int = field(default=512, metadata={"help": "Most tokens of a candidate."})
    generation_batch_size: int = field(default=64, metadata={"help": "Sequences generated at once."})
    scoring_batch_size: int = field(default=32, metadata={"help": "Candidates the PRM scores at once."})
    split_how: str = field(default="newline", metadata={"help": "How candidates are split into steps."})
    answer_how: str = field(default="auto", metadata={"help": "How answers are read: see `verify_answer`."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    task: str | None = field(
        default=None, metadata={"help": "'arithmetic': the embedded task.", "choices": ["arithmetic"]}
    )


def main(argv: list[str] | None = None) -> dict:
    argv = sys.argv[1:] if argv is None else argv
    parser = StrictParser((ScriptArguments, ModelArguments, DataArguments))
    script_args, model_args, data_args = parser.parse_args_and_config(
        argv or ["--config", str(stages.CONFIGS / "evaluate.yaml")]
    )

    # Load
    state, task = process_state(), None
    if script_args.task == "arithmetic":
        prepared = stages.prepare(Path(script_args.output_dir).parent, script_args.seed)
        task, model_args.model_name_or_path = prepared.task, str(prepared.policy_dir)
        script_args.prm_path = script_args.prm_path or str(prepared.prm_dir)
        rows = task.dataset(data_args.dataset_split, data_args.num_rows)
    else:
        if not script_args.prm_path:
            raise ValueError(stages.missing("prm_path", "evaluate"))
        rows, _ = load_prompts(data_args, script_args.split_how)
    if "answer" not in rows.column_names or None in rows["answer"]:
        raise ValueError("Some rows have no answer to compare with. Give problems with a column `answer`.")
    policy, tokenizer = load_policy(model_args, device=state.device)
    engine = load_engine(
        "transformers", model=policy, tokenizer=tokenizer, batch_size=script_args.generation_batch_size
    )
    reward = ProcessReward(
        script_args.prm_path,
        split_how=script_args.split_how,
        answer_how=script_args.answer_how,
        is_well_formed=task.is_well_formed if task else None,
        batch_size=script_args.scoring_batch_size,
    )

    if not state.is_main_process:
        return {}  # one process measures: seconds to minutes of work
    settings = {k: v for k, v in vars(script_args).items() if k not in ("output_dir", "prm_path")}
    identity = {"policy": weights_fingerprint(policy), "reward": reward.identity, "settings": settings}
    identity["rows"] = content_hash(list(rows["prompt"]), list(rows["answer"]))
    open_run(script_args.output_dir, identity, kind="evaluation")

    # Sample and score
    n = script_args.num_samples
    options = SamplingOptions(script_args.max_completion_length, script_args.temperature, seed=script_args.seed)
    candidates = [
        [c.text for c in group] for group in engine.generate([Prefix(p) for p in rows["prompt"]], n, options)
    ]
    prompts = [prompt for prompt in rows["prompt"] for _ in range(n)]
    texts = [text for group in candidates for text in group]
    flat_scores = reward.step_scores(prompts, texts)
    step_scores = [flat_scores[i : i + n] for i in range(0, len(flat_scores), n)]

    # Measure
    how = script_args.answer_how
    correct = [[verify_answer(c, row["answer"], how) for c in g] for row, g in zip(rows, candidates, strict=True)]
    answers = [[extract_answer(c, how) for c in group] for group in candidates]
    estimate = sampled_accuracy(correct)
    metrics = {
        "num_problems": len(rows),
        "num_samples": n,
        "sampled": estimate.mean,
        "sampled_low": estimate.low,
        "sampled_high": estimate.high,
        "majority": majority_accuracy(answers, correct, n),
        "oracle": pass_at_n(correct, n),
        "unscored_share": float(np.mean([scores is None for scores in flat_scores])),
    }
    for aggregation in AGGREGATIONS:
        scores = [[None if s is None else aggregate(s, aggregation) for s in group] for group in step_scores]
        metrics[f"best_of_{n}_{aggregation}"] = best_of_n_accuracy(scores, correct, n)
    if task is not None:
        judged = [i for i, scores in enumerate(flat_scores) if scores is not None]
        steps = [step_texts(texts[i], script_args.split_how) for i in judged]
        right = [np.cumprod(task.check_steps(prompts[i], s)).astype(bool) for i, s in zip(judged, steps, strict=True)]
        metrics["step_pair_accuracy"], metrics["num_step_pairs"] = step_pair_accuracy(
            [prompts[i] for i in judged], steps, [flat_scores[i] for i in judged], right
        )

    # Save
    output_dir = Path(script_args.output_dir)
    Dataset.from_dict(
        {"prompt": rows["prompt"], "candidates": candidates, "step_scores": step_scores, "is_correct": correct}
    ).to_json(output_dir / "candidates.jsonl")
    write_atomically(output_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    table = Table(title=f"{script_args.prm_path} on {len(rows)} problems, {n} candidates each")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)
    return metrics


if __name__ == "__main__":
    main()
