"""Train an entropy-regularized process reward model.

    accelerate launch recipes/prm.py \
        --model_name_or_path path/to/model --dataset_path outputs/labels/labels.jsonl --eta 2 --output_dir outputs/prm

The rows are what `recipes/label.py` writes, or any public stepwise data (TRL, Math-Shepherd, PRM800K, ER-PRM). With
`--eta`, rows with rollout counts are labelled anew; without it their `labels` are used as they are.
"""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers.trainer_utils import get_last_checkpoint

from trl_erprm import ERPRMConfig, ERPRMTrainer
from trl_erprm.arguments import (
    DataArguments,
    ModelArguments,
    StrictParser,
    get_peft_config,
    get_quantization_config,
    load_data,
    result_arguments,
)
from trl_erprm.data import to_stepwise_rows
from trl_erprm.manifest import content_hash, open_run, write_atomically


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser((ERPRMConfig, ModelArguments, DataArguments))
    training_args, model_args, data_args = parser.parse_args_and_config(argv)
    output_dir = Path(training_args.output_dir)
    finished = output_dir / "metrics.json"

    # Load
    rows, eval_rows = load_data(data_args)
    rows = to_stepwise_rows(rows)
    identity = {
        "model": model_args.model_name_or_path,
        "rows": content_hash([rows[name][:] for name in sorted(rows.column_names)]),
        "arguments": result_arguments(training_args),
        "peft": model_args.use_peft and {k: v for k, v in vars(model_args).items() if k.startswith("lora")},
    }
    if training_args.process_index == 0:
        open_run(output_dir, identity, kind="prm")
    if finished.exists():
        Console().print(f"{output_dir} holds this model already; delete the directory to train it again.")
        return

    # Build
    training_args.model_init_kwargs = {
        **(training_args.model_init_kwargs or {}),
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype or "float32",
    }
    trainer = ERPRMTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=rows,
        eval_dataset=None if eval_rows is None else to_stepwise_rows(eval_rows),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )

    # Train
    checkpoint = training_args.resume_from_checkpoint or get_last_checkpoint(training_args.output_dir)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = dict(result.metrics)
    if eval_rows is not None:
        metrics.update(trainer.evaluate())

    # Save
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_atomically(finished, json.dumps(metrics, indent=2) + "\n")
        table = Table(title=f"Process reward model in {output_dir}")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in metrics.items():
            table.add_row(name, f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
        Console().print(table)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
