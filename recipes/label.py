"""Label reasoning steps by Monte-Carlo rollouts.

    accelerate launch recipes/label.py \
        --model_name_or_path path/to/policy --dataset_name json --dataset_path problems.jsonl \
        --output_dir outputs/labels

The rows are problems with answers (GSM8K's, MATH's or TRL's columns). Worked solutions among them are split into steps
and labelled; for problems without one, solutions are sampled first. A run that was interrupted goes on where it
stopped, and another `--eta` needs no new rollout.
"""

import json
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from trl_erprm import LabelingConfig, MonteCarloLabeler
from trl_erprm.arguments import DataArguments, ModelArguments, StrictParser, load_policy, load_prompts, process_state
from trl_erprm.manifest import weights_fingerprint
from trl_erprm.rollout import load_engine


@dataclass
class ScriptArguments:
    output_dir: str = field(metadata={"help": "Where counts and labels go; an interrupted run continues there."})
    label_worked_solutions: bool = field(
        default=True, metadata={"help": "Label the solutions that the data brings; if false, sample solutions."}
    )
    engine: str = field(default="transformers", metadata={"help": "What generates the rollouts."})
    generation_batch_size: int = field(default=256, metadata={"help": "Sequences generated at once."})


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser((ScriptArguments, LabelingConfig, ModelArguments, DataArguments))
    script_args, labeling_config, model_args, data_args = parser.parse_args_and_config(argv)

    # Load
    state = process_state()
    rows, _ = load_prompts(data_args, labeling_config.split_how)
    worked = sum(steps is not None for steps in rows["completions"]) if "completions" in rows.column_names else 0
    if 0 < worked < len(rows) and script_args.label_worked_solutions:
        raise ValueError(
            f"{worked} of {len(rows)} rows have a worked solution, the others have none. Label the two kinds in two "
            "runs, or set `label_worked_solutions: false` to sample solutions for all."
        )
    if not (worked and script_args.label_worked_solutions):
        rows = rows.remove_columns([name for name in ("completions", "solution") if name in rows.column_names])
    model, tokenizer = load_policy(model_args, device=state.device)
    engine = load_engine(
        script_args.engine, model=model, tokenizer=tokenizer, batch_size=script_args.generation_batch_size
    )

    # Label
    policy_name = f"{model_args.model_name_or_path} ({weights_fingerprint(model)})"
    labeler = MonteCarloLabeler(engine, labeling_config, policy_name=policy_name)
    labelled = labeler.label(rows, script_args.output_dir)

    # Report
    if state.is_main_process:
        table = Table(title=f"Labels at eta = {labeling_config.eta:g} in {script_args.output_dir}")
        table.add_column("what")
        table.add_column("figure", justify="right")
        for name, value in labeler.summary.items():
            table.add_row(name.replace("_", " "), f"{value:,.3f}" if isinstance(value, float) else f"{value:,}")
        Console().print(table)
        if len(labelled):
            first = {name: labelled[0][name] for name in ("completions", "num_correct", "num_rollouts", "labels")}
            Console().print("First row: " + json.dumps(first, ensure_ascii=False), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
