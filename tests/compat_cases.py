"""What TRL 1.13's `PRMTrainer` did, and a trainer that should do the same."""

import json

from datasets import Dataset

from tests.golden import trl_1_13 as golden
from trl_erprm.compat import PRMConfig, PRMTrainer

TRL = json.loads(golden.FILE.read_text("utf-8"))
ROW = golden.TRAIN_ROWS[0]


def config(output_dir, **changes) -> PRMConfig:
    return PRMConfig(str(output_dir), **{**golden.TRAINING, **changes})


def build(output_dir, rows=golden.TRAIN_ROWS, eval_rows=None, trainer_class=PRMTrainer, changes=None, **arguments):
    given = {"model": golden.build_model(), "processing_class": golden.build_tokenizer(), **arguments}
    return trainer_class(
        args=config(output_dir, **(changes or {})),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None if eval_rows is None else Dataset.from_list(eval_rows),
        **given,
    )


def tokenized(rows=golden.EVAL_ROWS) -> list[dict]:
    """As TRL's users did it by hand, with a column that nobody needs."""
    options = dict.fromkeys(("max_length", "max_completion_length"))
    tokenizer = golden.build_tokenizer()
    rows = [
        PRMTrainer.tokenize_row(row, tokenizer, "\n", **options, train_on_last_step_only=False, is_eval=True)
        for row in rows
    ]
    return [{**row, "attention_mask": [1] * len(row["labels"])} for row in rows]
