"""What `PRMTrainer` of TRL 1.13 does, recorded for `tests/test_compat.py` in `trl_1_13_tokenize_row.json`.

In an environment with trl==1.13.0 (here: torch 2.13.0, transformers 5.23.0), `python tests/golden/trl_1_13.py` writes
the file anew. Tokenizer, model and rows are built here for both sides, so that nothing is downloaded.
"""

import dataclasses
import inspect
import itertools
import json
import tempfile
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForTokenClassification, PreTrainedTokenizerFast

FILE = Path(__file__).with_name("trl_1_13_tokenize_row.json")

SEPARATORS = ("\n", "\n\n", " ки")  # one, two and three tokens
LENGTHS = ((None, None), (19, None), (16, None), (7, None), (None, 12), (None, 3), (14, 12), (20, 3), (None, 0))
STEPWISE_ROWS = (
    {"prompt": "3+4-2?\n", "completions": ["3+4=7", "7-2=5", "5."], "labels": [True, False, True]},
    {"prompt": "1+1?", "completions": ["1+1=3"], "labels": [0]},
    {"prompt": "2+2?", "completions": ["2+2=4", "", "4"], "labels": [1.0, 0.0, 1.0]},
)
SOFT_ROW = {"prompt": "3+4-2?\n", "completions": ["3+4=7", "7-2=5", "5."], "labels": [0.9, 0.3, 1.0]}

TRAIN_ROWS = [
    {"prompt": "3+4-2?", "completions": ["3+4=7", "7-2=5", "5."], "labels": [True, True, False]},
    {"prompt": "1+1?", "completions": ["1+1=3"], "labels": [False]},
    {"prompt": "2+2?", "completions": ["2+2=4", "4"], "labels": [True, False]},
    {"prompt": "9-8+7?", "completions": ["9-8=1", "1+7=8", "8", "8."], "labels": [True, True, True, False]},
    {"prompt": "5+5?", "completions": ["5+5=0"], "labels": [False]},
    {"prompt": "6-1+2?", "completions": ["6-1=5", "5+2=6", "6."], "labels": [True, False, False]},
]
EVAL_ROWS = [
    {"prompt": "3+3?", "completions": ["3+3=6", "6."], "labels": [True, True]},
    {"prompt": "7-2?", "completions": ["7-2=4", "4"], "labels": [False, False]},
    {"prompt": "8-1-1?", "completions": ["8-1=7", "7-1=6", "6."], "labels": [True, True, False]},
]
TRAINING = {
    "max_length": 23,  # cuts the end of the fourth row, and with it the label of its last step
    "max_steps": 3,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


def build_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """A token for each character."""
    tokens = ["<pad>", "<s>", "<unk>", *"0123456789+-=?. ки\n"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", **({"bos_token": "<s>"} if bos else {})}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def build_model() -> LlamaForTokenClassification:
    """A two-label token classifier whose weights depend on nothing but torch's random numbers."""
    config = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        num_labels=2,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForTokenClassification(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            random = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * random if "norm" in name else 0.3 * random)
    return model


def tokenize_cases() -> list[tuple[dict, bool, dict]]:
    """Rows, whether the tokenizer has a beginning-of-sequence token, and the other arguments of `tokenize_row`."""
    cases = [
        (row, bos, _options(separator, *lengths))
        for row, bos, separator, lengths in itertools.product(STEPWISE_ROWS, (True, False), SEPARATORS, LENGTHS)
    ]
    last_only = itertools.product(STEPWISE_ROWS, ((None, None), (16, None)), (False, True))
    cases += [(row, True, _options("\n", *lengths, True, is_eval)) for row, lengths, is_eval in last_only]
    return [*cases, (SOFT_ROW, True, _options("\n"))]


def _options(separator, max_length=None, max_completion_length=None, last_only=False, is_eval=False) -> dict:
    return {
        "step_separator": separator,
        "max_length": max_length,
        "max_completion_length": max_completion_length,
        "train_on_last_step_only": last_only,
        "is_eval": is_eval,
    }


def plain(value: Any) -> Any:
    """A default value as JSON holds it."""
    if isinstance(value, Enum):
        return value.value
    return json.loads(json.dumps(value, default=str))


def defaults(config_class: type) -> dict[str, Any]:
    """The fields of a dataclass and their defaults."""
    values = {}
    for field in dataclasses.fields(config_class):
        if field.default is not dataclasses.MISSING:
            values[field.name] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = plain(field.default_factory())
        else:
            values[field.name] = "required"
    return values


def train(trainer_class, config_class, train_rows=TRAIN_ROWS, **changes):
    """A trainer after its run on [`TRAIN_ROWS`], in order."""
    with tempfile.TemporaryDirectory() as directory:
        trainer = trainer_class(
            model=build_model(),
            args=config_class(output_dir=directory, **{**TRAINING, **changes}),
            train_dataset=Dataset.from_list(train_rows),
            eval_dataset=Dataset.from_list(EVAL_ROWS),
            processing_class=build_tokenizer(),
        )
        trainer.train()
    return trainer


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def main() -> None:
    import trl
    from transformers import TrainingArguments
    from trl.experimental.prm import PRMConfig, PRMTrainer

    trainer = train(PRMTrainer, PRMConfig)
    outputs = trainer.predict(trainer.eval_dataset)
    content = {
        "versions": {"trl": trl.__version__, "torch": torch.__version__},
        "config": defaults(PRMConfig),
        "own_fields": sorted(
            {
                name
                for cls in PRMConfig.__mro__  # TRL's base configuration included
                if cls.__module__.startswith("trl.")
                for name in vars(cls).get("__annotations__", {})
            }
        ),
        "transformers_fields": sorted(field.name for field in dataclasses.fields(TrainingArguments)),
        "init_parameters": list(inspect.signature(PRMTrainer).parameters),
        "losses": logged(trainer, "loss"),
        "grad_norms": logged(trainer, "grad_norm"),
        "accumulated": {
            name: logged(train(PRMTrainer, PRMConfig, gradient_accumulation_steps=2, max_steps=1), name)
            for name in ("loss", "grad_norm")
        },
        "evaluation": {k: v for k, v in trainer.evaluate().items() if k in ("eval_loss", "eval_accuracy")},
        "predictions": outputs.predictions.tolist(),
        "prediction_metrics": {k: v for k, v in outputs.metrics.items() if k in ("test_loss", "test_accuracy")},
        "label_ids": outputs.label_ids.tolist(),
        "label_dtype": str(outputs.label_ids.dtype),
        "train_columns": sorted(trainer.train_dataset.column_names),
        "loss_of_rows_without_label": str(
            *logged(train(PRMTrainer, PRMConfig, max_length=4, max_steps=1, logging_nan_inf_filter=False), "loss")
        ),
        "tokenize_row": [
            PRMTrainer.tokenize_row(row, build_tokenizer(bos), **options) for row, bos, options in tokenize_cases()
        ],
    }
    cases = ",\n".join(json.dumps(case) for case in content.pop("tokenize_row"))
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items()]
    FILE.write_text("{\n" + ",\n".join([*lines, f'"tokenize_row": [\n{cases}\n]']) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
