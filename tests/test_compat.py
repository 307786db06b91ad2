"""`trl_erprm.compat`: names, fields and rows of TRL 1.13's `PRMTrainer`, as recorded in `tests/golden`."""

import inspect
import json
import math
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from transformers import TrainingArguments
from trl import TrlParser

from tests.compat_cases import ROW, TRL, build, config, tokenized
from tests.golden import trl_1_13 as golden
from trl_erprm import ERPRMConfig, ProcessRewardModel
from trl_erprm.arguments import DataArguments, ModelArguments, StrictParser
from trl_erprm.compat import PRMConfig, PRMTrainer
from trl_erprm.data import to_stepwise_rows
from trl_erprm.prm.formats import TRL_TOKEN_CLASSIFICATION

PAGE = (Path(__file__).parents[1] / "docs" / "switching.md").read_text("utf-8")
FORMAT_FIELDS = ("step_tag", "positive_token", "negative_token")


class TestConfig:
    # Fields of TRL 1.13 with another default here, and why.
    EXCEPTIONS: dict[str, str] = {}

    def test_fields_and_defaults(self):
        """TRL's own fields have TRL 1.13's defaults, those of transformers the installed transformers'."""
        ours, transformers = golden.defaults(PRMConfig), golden.defaults(TrainingArguments)
        own, missing = set(TRL["own_fields"]), "missing"
        for name, default in TRL["config"].items():
            expected = default if name in own else transformers.get(name, missing)
            if name not in self.EXCEPTIONS and expected is not missing:
                assert ours.get(name, missing) == expected, name
        assert {"max_length", "max_completion_length", "step_separator", "logging_steps"} <= own

    def test_values(self):
        args = PRMConfig("prm", use_cpu=True)
        assert (args.max_length, args.max_completion_length, args.step_separator) == (1024, None, "\n")
        assert (args.learning_rate, args.num_train_epochs, args.logging_steps) == (1e-5, 3, 10)
        assert (args.num_labels, args.head, args.disable_dropout) == (2, "token_classification", True)
        assert args.bf16 is False  # no GPU here; TRL: True

    def test_the_separator_is_the_tag(self):
        format = PRMConfig("prm", use_cpu=True, step_separator=" ки").build_format()
        assert format.render("1+1?", ["1+1=2", "2."]) == "1+1?1+1=2 ки2. ки"
        assert PRMConfig("prm", use_cpu=True).build_format() == TRL_TOKEN_CLASSIFICATION

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"head": "causal_lm"}, "`head`='causal_lm'. Use `ERPRMConfig` with `ERPRMTrainer`"),
            ({"num_labels": 1}, "`num_labels`=1"),
            ({"format": "skywork-o1"}, "`format`='skywork-o1'"),
            ({"step_tag": "\n\n"}, "`step_tag`='\\\\n\\\\n'. Set `step_separator`"),
            ({"prompt_separator": "\n"}, "`prompt_separator`="),
            ({"tokenization": "joint"}, "`tokenization`='joint'"),
            ({"eta": 2.0}, "`eta`=2.0"),
            ({"weight_by_rollouts": True}, "`weight_by_rollouts`=True"),
            ({"balance_classes": True}, "`balance_classes`=True"),
            ({"label_smoothing_factor": 0.3}, "`label_smoothing_factor` must be 0, got 0.3"),
            ({"step_separator": ""}, "`step_separator` must not be empty"),
        ],
    )
    def test_what_does_not_go_with_trl(self, changes, message):
        with pytest.raises(ValueError, match=message):
            PRMConfig("prm", use_cpu=True, **changes)

    def test_from_the_command_line(self):
        argv = ["--output_dir", "prm", "--use_cpu", "--step_separator", "|", "--max_completion_length", "7"]
        [args] = TrlParser(PRMConfig).parse_args_and_config(argv)
        assert (args.step_separator, args.max_completion_length, args.build_format().step_tag) == ("|", 7, "|")


class TestTokenizeRow:
    def test_equals_trl(self):
        """Types included: JSON tells 1 from 1.0 and true."""
        cases = golden.tokenize_cases()
        assert len(cases) == len(TRL["tokenize_row"]) > 150
        for (row, bos, options), expected in zip(cases, TRL["tokenize_row"], strict=True):
            if row is not golden.SOFT_ROW:
                result = PRMTrainer.tokenize_row(row, golden.build_tokenizer(bos), **options)
                assert json.dumps(result) == json.dumps(expected), (row, bos, options)

    def test_parameters(self):
        expected = (
            "features, tokenizer, step_separator, max_length, max_completion_length, train_on_last_step_only, is_eval"
        )
        assert list(inspect.signature(PRMTrainer.tokenize_row).parameters) == expected.split(", ")
        assert list(inspect.signature(PRMTrainer).parameters) == TRL["init_parameters"]

    def test_soft_labels_are_kept(self):
        row, _, options = golden.tokenize_cases()[-1]
        cut, kept = TRL["tokenize_row"][-1], PRMTrainer.tokenize_row(row, golden.build_tokenizer(), **options)
        assert [label for label in cut["labels"] if label != -100] == [0, 0, 1]  # TRL: int(0.9)
        assert [label for label in kept["labels"] if label != -100] == [0.9, 0.3, 1]
        assert kept["input_ids"] == cut["input_ids"]
        assert [i for i, label in enumerate(kept["labels"]) if label != -100] == [
            i for i, label in enumerate(cut["labels"]) if label != -100
        ]

    @pytest.mark.parametrize("none", [None, math.nan, -100])
    def test_no_label(self, none):
        options = golden.tokenize_cases()[-1][2]
        row = {**ROW, "labels": [1, none, 0]}
        labels = PRMTrainer.tokenize_row(row, golden.build_tokenizer(), **options)["labels"]
        expected = PRMTrainer.tokenize_row({**ROW, "labels": [1, 1, 0]}, golden.build_tokenizer(), **options)["labels"]
        second = [i for i, label in enumerate(expected) if label != -100][1]
        assert labels == [*expected[:second], -100, *expected[second + 1 :]]

    @pytest.mark.parametrize("bos", [True, False])
    @pytest.mark.parametrize("separator", golden.SEPARATORS)
    def test_the_scorer_lays_out_the_same(self, bos, separator):
        tokenizer, args = golden.build_tokenizer(bos), PRMConfig("prm", use_cpu=True, step_separator=separator)
        options = {**golden.tokenize_cases()[-1][2], "step_separator": separator}
        for row in golden.TRAIN_ROWS:
            result = PRMTrainer.tokenize_row(row, tokenizer, **options)
            encoded = args.build_format().encode(tokenizer, row["prompt"], row["completions"])
            assert encoded.input_ids == result["input_ids"]
            assert encoded.step_ends == [i for i, label in enumerate(result["labels"]) if label != -100]

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"labels": [1, 0]}, "Row 1 of the train dataset: There are 2 labels for 3 steps"),
            ({"labels": [1.0, 2.0, 0.0]}, r"Row 1 of the train dataset: Label 1 must be in \[0, 1\], .*, got 2"),
            ({"labels": [1.0, -0.5, 0.0]}, "Row 1 of the train dataset: Label 1 must be .*, got -0.5"),
        ],
    )
    def test_rows_that_cannot_be_read(self, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            build(tmp_path, [{**ROW, "labels": [float(label) for label in ROW["labels"]]}, {**ROW, **changes}])

    def test_chat_messages(self, tmp_path):
        row = {**ROW, "prompt": [{"role": "user", "content": "1+1?"}]}
        with pytest.raises(ValueError, match="Row 0 .*`prompt` and the steps must be texts. For chat messages"):
            build(tmp_path, [row])

    def test_columns_that_are_missing(self, tmp_path):
        with pytest.raises(ValueError, match="Row 0 of the train dataset has no column 'labels': it has prompt, comp"):
            build(tmp_path, [{"prompt": "1+1?", "completions": ["2"]}])
        with pytest.raises(ValueError, match="The train dataset has `input_ids`, but no `labels`"):
            build(tmp_path, [{"input_ids": [1, 2]}])
        with pytest.raises(ValueError, match="Row 0 of the train dataset has 1 token labels for 2 tokens"):
            build(tmp_path, [{"input_ids": [1, 2], "labels": [1]}])


class TestData:
    def test_truncated_steps_stay_without_a_label(self, tmp_path):
        row = {**ROW, "labels": [0.9, 0.3, 1.0]}
        # <s> and six characters of the prompt, then six tokens a step: the second is cut in its middle
        trainer = build(tmp_path, [row], changes={"max_length": 16})
        [encoded] = trainer.train_dataset
        assert len(encoded["input_ids"]) == 16
        assert (encoded["step_ends"], encoded["step_labels"]) == ([12], [0.9])

    def test_max_completion_length(self, tmp_path):
        trainer = build(tmp_path, [ROW], changes={"max_completion_length": 12, "max_length": None})
        assert trainer.train_dataset[0]["step_ends"] == [12, 18]
        assert len(trainer.train_dataset[0]["input_ids"]) == 7 + 12

    def test_eta_of_the_labels(self, tmp_path):
        """Rows that the labeler wrote say what their labels mean, and the checkpoint then says it, too."""
        trainer = build(tmp_path, [{**ROW, "labels": [0.9, 0.3, 1.0], "eta": 10.0}])
        trainer.save_model()
        assert ProcessRewardModel.from_pretrained(tmp_path).eta == trainer.eta == 10.0
        with pytest.raises(ValueError, match="The labels of the train dataset must be made with one eta, got rows w"):
            build(tmp_path, [{**ROW, "eta": 2.0}, {**ROW, "eta": 10.0}])

    def test_the_last_step_only_in_training(self, tmp_path):
        trainer = build(tmp_path, [ROW], [ROW], changes={"train_on_last_step_only": True})
        assert trainer.train_dataset[0]["step_labels"] == [0.0]
        assert trainer.eval_dataset[0]["step_labels"] == [1.0, 1.0, 0.0]
        both = {"train": Dataset.from_list([ROW])}  # an evaluation set of that name
        trainer = PRMTrainer(
            golden.build_model(),
            config(tmp_path, train_on_last_step_only=True),
            None,
            Dataset.from_list([ROW]),
            both,
            golden.build_tokenizer(),
        )
        assert trainer.eval_dataset["train"][0]["step_labels"] == [1.0, 1.0, 0.0]

    def test_rows_without_a_label_are_left_out(self, tmp_path, caplog):
        assert TRL["loss_of_rows_without_label"] == "nan"  # of such rows alone
        trainer = build(tmp_path, [golden.TRAIN_ROWS[3], golden.TRAIN_ROWS[1]], changes={"max_length": 11})
        assert len(trainer.train_dataset) == 1
        expected = (
            "1 of 2 rows of the train dataset have no labelled step within `max_length` (11 tokens) and are left"
        )
        assert expected in caplog.text
        with pytest.raises(ValueError, match=r"No row of the train dataset .* within `max_length` \(4 tokens\)"):
            build(tmp_path, changes={"max_length": 4})
        with pytest.raises(ValueError, match="No row of the train dataset has a labelled step. Raise"):
            build(tmp_path, [{**ROW, "labels": [None] * 3}], changes={"max_length": None})

    def test_tokenized_rows(self, tmp_path):
        """They are taken as they are: neither cut nor reduced to the last step."""
        changes = {"max_length": 10, "train_on_last_step_only": True, "max_steps": 1}
        rows = tokenized(golden.TRAIN_ROWS)
        rows[1]["labels"] = [label if label == -100 else 0.25 for label in rows[1]["labels"]]
        trainer = build(tmp_path, rows, changes=changes)
        assert [row["step_labels"] for row in trainer.train_dataset][:3] == [[1.0, 1.0, 0.0], [0.25], [1.0, 0.0]]
        assert [row["input_ids"] for row in trainer.train_dataset] == [row["input_ids"] for row in rows]
        trainer.train()
        [loss] = golden.logged(trainer, "loss")
        by_hand = []
        for row in rows[:2]:
            with torch.no_grad():
                logits = golden.build_model().eval()(torch.tensor([row["input_ids"]])).logits[0].double()
            log_p = logits.log_softmax(dim=-1)
            by_hand += [
                -label * log_p[i, 1] - (1 - label) * log_p[i, 0]
                for i, label in enumerate(row["labels"])
                if label != -100
            ]
        assert loss == pytest.approx(np.mean(by_hand), abs=1e-5)

    def test_a_subclass_can_override_tokenize_row(self, tmp_path):
        class Trainer(PRMTrainer):
            @staticmethod
            def tokenize_row(features, tokenizer, max_length, is_eval, **options):
                ids = tokenizer(features["question"], add_special_tokens=False)["input_ids"]
                return {"input_ids": ids, "labels": [-100] * (len(ids) - 1) + [0.5 if is_eval else 1]}

        rows = [{"question": "1+1", "unused": 0}]
        trainer = build(tmp_path, rows, rows, trainer_class=Trainer)
        assert trainer.train_dataset[:] == {"input_ids": [[4, 13, 4]], "step_ends": [[2]], "step_labels": [[1.0]]}
        assert trainer.eval_dataset[0]["step_labels"] == [0.5]

    def test_streaming(self, tmp_path):
        dataset = Dataset.from_list(golden.TRAIN_ROWS).to_iterable_dataset()
        trainer = PRMTrainer(
            model=golden.build_model(),
            args=config(tmp_path),
            train_dataset=dataset,
            processing_class=golden.build_tokenizer(),
        )
        trainer.train()
        assert golden.logged(trainer, "loss") == pytest.approx(TRL["losses"], abs=1e-4)


class TestPage:
    """`docs/switching.md`: its Python runs, its YAML is what the recipe's parser takes."""

    @staticmethod
    def blocks(language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

    def parse(self, text: str, tmp_path) -> dict:
        path = tmp_path / "run.yaml"
        path.write_text(text, "utf-8")
        parser = StrictParser((ERPRMConfig, ModelArguments, DataArguments))
        parts = parser.parse_args_and_config(["--config", str(path), "--use_cpu", "true"])
        return {name: value for part in parts for name, value in vars(part).items()}

    def test_python(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        golden.build_model().save_pretrained("outputs/old-prm")
        golden.build_tokenizer().save_pretrained("outputs/old-prm")
        names = {
            "model": golden.build_model(),
            "tokenizer": golden.build_tokenizer(),
            "dataset": Dataset.from_list(golden.TRAIN_ROWS),
        }
        switch, scoring = self.blocks("python")
        exec(switch, names)
        exec(scoring, names)
        prm = ProcessRewardModel(names["trainer"].model, names["tokenizer"], "trl")
        assert names["scores"] == [pytest.approx(prm.score(["1+1+1?"], [["1+1=2", "2+1=4"]])[0], abs=1e-5)]

    def test_axolotl(self, tmp_path):
        given, ours, _ = self.blocks("yaml")
        given, values = yaml.safe_load(given), self.parse(ours, tmp_path)
        [dataset] = given["datasets"]
        assert dataset["split"] == "train"
        expected = {
            "model_name_or_path": given["base_model"],
            "num_labels": given["num_labels"],
            "dataset_name": dataset["path"],
            "dataset_split": "train[:90%]",
            "eval_split": "train[90%:]",
            "step_tag": dataset["step_separator"],
            "train_on_last_step_only": dataset["train_on_last_step_only"],
            "output_dir": given["output_dir"],
            "max_length": given["sequence_len"],
            "per_device_train_batch_size": given["micro_batch_size"],
            "gradient_accumulation_steps": given["gradient_accumulation_steps"],
            "num_train_epochs": given["num_epochs"],
            "optim": given["optimizer"],
            "lr_scheduler_type": given["lr_scheduler"],
            "learning_rate": given["learning_rate"],
            "warmup_steps": given["warmup_ratio"],
            "logging_steps": given["logging_steps"],
            "eval_steps": given["eval_steps"],
        }
        assert {name: values[name] for name in expected} == expected
        assert (values["head"], values["attn_implementation"]) == ("token_classification", "flash_attention_2")
        assert (values["activation_checkpointing"], values["save_strategy"]) == (True, "epoch")
        # Line by line: an empty one and a comment stand where nothing is needed, `eval_strategy` comes in addition.
        assert len(self.blocks("yaml")[1].splitlines()) == len(self.blocks("yaml")[0].splitlines()) + 2
        format = ERPRMConfig("prm", use_cpu=True, head="token_classification", step_tag="\n").build_format()
        assert format == TRL_TOKEN_CLASSIFICATION

    def test_openrlhf(self, tmp_path):
        values = self.parse(self.blocks("yaml")[2], tmp_path)
        [command] = self.blocks("bash")
        given = dict(re.findall(r"--(\w+) ([^-\\\n]\S*)", command))
        expected = {
            "model_name_or_path": given["pretrain"],
            "dataset_name": given["dataset"],
            "max_length": int(given["max_len"]),
            "num_train_epochs": float(given["max_epochs"]),
            "per_device_train_batch_size": int(given["micro_train_batch_size"]),
            "learning_rate": float(given["learning_rate"]),
            "lr_scheduler_type": given["lr_scheduler"],
            "warmup_steps": float(given["lr_warmup_ratio"]),
            "save_steps": int(given["save_steps"]),
            "logging_steps": int(given["logging_steps"]),
            "output_dir": given["save_path"],
        }
        assert {name: values[name] for name in expected} == expected
        assert (values["adam_beta1"], values["adam_beta2"]) == (0.9, 0.95)
        batch = values["per_device_train_batch_size"] * 8 * values["gradient_accumulation_steps"]
        assert batch == int(given["train_batch_size"])
        assert values["step_tag"].strip() == given["placeholder_token"]
        args = ERPRMConfig("prm", use_cpu=True, **{n: values[n] for n in ("head", *FORMAT_FIELDS)})
        text = "2+3+4? Step 1: 2+3=5 ки\nStep 2: 5+4=8 ки"
        [row] = to_stepwise_rows(Dataset.from_list([{"input": text, "value": ["+", "-"]}]))
        assert args.build_format().render(row["prompt"], row["completions"]) == text

    def test_names(self):
        table = re.search(r"^## Names\n.*?\|---\|\n(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)[1]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        assert len(rows) > 15
        recipe_fields = {f.name for cls in (ERPRMConfig, ModelArguments, DataArguments) for f in fields(cls)}
        trl_fields = set(TRL["config"]) | {"num_labels", "peft_config"}  # of the model; of the trainer
        for row in rows:
            assert set(re.findall(r"`(\w+)`", row[0])) <= trl_fields, row
            assert set(re.findall(r"`(\w+)`", row[3])) - {"PRMConfig"} <= recipe_fields, row
