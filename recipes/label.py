r"""Label reasoning steps by Monte-Carlo rollouts.

    accelerate launch recipes/label.py \
        --model_name_or_path path/to/policy --dataset_name json --dataset_path problems.jsonl \
        --output_dir outputs/labels

The rows are problems with answers (GSM8K's, MATH's or TRL's columns). Worked solutions among them are split into steps
and labelled; for problems without one, solutions are sampled first. A run that was interrupted goes on where it
stopped, and another `--eta` needs no new rollout.

Of a finished run, without a model: `--relabel true --eta 5` (or `auto`) makes its labels anew, `--report true` its
quality report (docs/labels.md).

A policy that is too large or too slow for this process: start completion servers (vLLM, SGLang, ...) on as many nodes
as you like, with whatever starts your jobs, and name them all. The recipe then needs no GPU (docs/engines.md):

    python recipes/label.py --engine endpoint --endpoint_url http://node1:8000/v1 http://node2:8000/v1 \
        --endpoint_model path/to/policy --model_name_or_path path/to/policy ...
"""

import json
from dataclasses import dataclass, field

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from trl_erprm import LabelingConfig, MonteCarloLabeler
from trl_erprm.arguments import (
    DataArguments,
    ModelArguments,
    StrictParser,
    load_prompts,
    process_state,
)
from trl_erprm.labeling.report import format_report, relabel_run, write_report
from trl_erprm.rollout.arguments import EngineArguments, load_policy_engine

RELABEL_OPTIONS = ("interval_level", "eta_criterion", "eta_validation_share")


@dataclass
class ScriptArguments:
    output_dir: str = field(metadata={"help": "Where counts and labels go; an interrupted run continues there."})
    label_worked_solutions: bool = field(
        default=True, metadata={"help": "Label the solutions that the data brings; if false, sample solutions."}
    )
    relabel: bool = field(
        default=False, metadata={"help": "Make the labels of a finished run anew at another eta, without a rollout."}
    )
    report: bool = field(default=False, metadata={"help": "Write the quality report of a finished run anew."})


def main(argv: list[str] | None = None) -> None:
    kinds = (ScriptArguments, LabelingConfig, EngineArguments, ModelArguments, DataArguments)
    parser = StrictParser(kinds, description=__doc__)
    script_args, labeling_config, engine_args, model_args, data_args = parser.parse_args_and_config(argv)

    state = process_state()
    if script_args.relabel or script_args.report:
        if state.is_main_process:
            how = {name: getattr(labeling_config, name) for name in ("eta", *RELABEL_OPTIONS)}
            directory = script_args.output_dir
            report = relabel_run(directory, **how) if script_args.relabel else write_report(directory)
            Console().print(Markdown(format_report(report)))
        return

    # Load
    rows, _ = load_prompts(data_args, labeling_config.split_how)
    worked = sum(steps is not None for steps in rows["completions"]) if "completions" in rows.column_names else 0
    if 0 < worked < len(rows) and script_args.label_worked_solutions:
        raise ValueError(
            f"{worked} of {len(rows)} rows have a worked solution, the others have none. Label the two kinds in two "
            "runs, or set `label_worked_solutions: false` to sample solutions for all."
        )
    if not (worked and script_args.label_worked_solutions):
        rows = rows.remove_columns([name for name in ("completions", "solution") if name in rows.column_names])
    engine, policy_name = load_policy_engine(engine_args, model_args, state.device)

    # Label
    labeler = MonteCarloLabeler(engine, labeling_config, policy_name=policy_name)
    labelled = labeler.label(rows, script_args.output_dir)

    # Report
    if state.is_main_process:
        table = Table(title=f"Labels at eta = {labeler.summary['eta']:g} in {script_args.output_dir}")
        table.add_column("what")
        table.add_column("figure", justify="right")
        for name, value in labeler.summary.items():
            table.add_row(name.replace("_", " "), f"{value:,.3f}" if isinstance(value, float) else f"{value:,}")
        Console().print(table)
        if len(labelled):
            first = {name: labelled[0][name] for name in ("completions", "num_correct", "num_rollouts", "labels")}
            Console().print("First row: " + json.dumps(first, ensure_ascii=False), markup=False, soft_wrap=True)
        Console().print(f"Report: {script_args.output_dir}/report.md", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
