r"""Train an entropy-regularized process reward model.

    accelerate launch recipes/prm.py \
        --model_name_or_path path/to/model --dataset_path outputs/labels/labels.jsonl --eta 2 --output_dir outputs/prm

The rows are what `recipes/label.py` writes, or any public stepwise data (TRL, Math-Shepherd, PRM800K, ER-PRM,
OpenRLHF). With `--eta`, rows with rollout counts are labelled anew; without it their `labels` are used as they are.
A run that was interrupted goes on where it stopped, also with smaller micro-batches and more accumulation.
"""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trl_erprm import ERPRMConfig, ERPRMTrainer
from trl_erprm.arguments import (
    DataArguments,
    ModelArguments,
    StrictParser,
    check_model_name,
    get_peft_config,
    get_quantization_config,
    load_data,
    result_arguments,
)
from trl_erprm.data import to_stepwise_rows
from trl_erprm.manifest import (
    checkpoint_to_resume,
    content_hash,
    open_run,
    weights_fingerprint,
    write_atomically,
)

# Of those that the trainer logs, those shown at the end; its docstring defines them.
STEP_METRICS = (
    "step_accuracy",
    "step_auroc",
    "brier_score",
    "calibration_error",
    "first_error_f1",
    "outcome_auroc",
    "mean_score",
    "mean_label",
)


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser((ERPRMConfig, ModelArguments, DataArguments), description=__doc__)
    training_args, model_args, data_args = parser.parse_args_and_config(argv)
    output_dir = Path(training_args.output_dir)
    finished = output_dir / "metrics.json"
    checkpoint = checkpoint_to_resume(output_dir, training_args.resume_from_checkpoint)

    # Load
    model_name = check_model_name(model_args)
    rows, eval_rows = load_data(data_args)
    rows = to_stepwise_rows(rows, eta=training_args.eta)
    eval_rows = None if eval_rows is None else to_stepwise_rows(eval_rows, eta=training_args.eta)

    # Build
    training_args.model_init_kwargs = {
        **(training_args.model_init_kwargs or {}),
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype or "float32",
    }
    trainer = ERPRMTrainer(
        model=model_name,
        args=training_args,
        train_dataset=rows,
        eval_dataset=eval_rows,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )

    # Claim the directory, for this model and these rows
    identity = {
        "model": weights_fingerprint(trainer.model),
        "rows": content_hash([rows[name][:] for name in sorted(rows.column_names)]),
        "eval_rows": None
        if eval_rows is None
        else content_hash([eval_rows[n][:] for n in sorted(eval_rows.column_names)]),
        "arguments": {**vars(model_args), **result_arguments(training_args)},
    }
    if trainer.is_world_process_zero():
        open_run(output_dir, identity, kind="prm")
    trainer.accelerator.wait_for_everyone()
    if finished.exists():
        Console().print(f"{output_dir} holds this model already; delete the directory to train it again.")
        return

    # Train
    result = trainer.train(resume_from_checkpoint=checkpoint)
    logged = next((entry for entry in reversed(trainer.state.log_history) if "step_accuracy" in entry), {})
    metrics = {**result.metrics, **{name: logged[name] for name in STEP_METRICS if name in logged}}
    if eval_rows is not None:
        metrics.update(trainer.evaluate())

    # Save
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_atomically(finished, json.dumps(metrics, indent=2) + "\n")
        labels = "labels as they are" if trainer.eta is None else f"labels at eta = {trainer.eta:g}"
        table = Table(title=f"Process reward model in {output_dir}, {labels}")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in metrics.items():
            table.add_row(name, f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
        Console().print(table)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
