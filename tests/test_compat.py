"""`trl_erprm.compat`: what TRL 1.13's `PRMTrainer` did, as recorded in `tests/golden`, and what is better now."""

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
from peft import LoraConfig
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    TrainingArguments,
)
from trl import TrlParser

from tests.golden import trl_1_13 as golden
from trl_erprm import ERPRMConfig, ERPRMTrainer, ProcessRewardModel
from trl_erprm.arguments import DataArguments, ModelArguments, StrictParser
from trl_erprm.compat import PRMConfig, PRMTrainer, compute_accuracy
from trl_erprm.data import to_stepwise_rows
from trl_erprm.prm.collator import StepDataCollator
from trl_erprm.prm.formats import TRL_TOKEN_CLASSIFICATION

TRL = json.loads(golden.FILE.read_text("utf-8"))
PAGE = (Path(__file__).parents[1] / "docs" / "switching.md").read_text("utf-8")
ROW = golden.TRAIN_ROWS[0]
FORMAT_FIELDS = ("step_tag", "positive_token", "negative_token")


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


@pytest.fixture(scope="module")
def trained():
    return golden.train(PRMTrainer, PRMConfig)


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


class TestTraining:
    @pytest.mark.parametrize("padding_free", [True, False])
    def test_losses_equal_trl(self, padding_free):
        trainer = golden.train(PRMTrainer, PRMConfig, padding_free=padding_free)
        assert golden.logged(trainer, "loss") == pytest.approx(TRL["losses"], abs=1e-4)
        assert golden.logged(trainer, "grad_norm") == pytest.approx(TRL["grad_norms"], rel=1e-4)

    def test_accumulation(self):
        """TRL adds the means of the micro-batches; here it is the mean over the steps of all of them."""
        apart = golden.logged(golden.train(PRMTrainer, PRMConfig, learning_rate=0.0, max_steps=2), "loss")
        assert TRL["accumulated"]["loss"] == [pytest.approx(sum(apart), abs=1e-4)]
        trainer = golden.train(PRMTrainer, PRMConfig, gradient_accumulation_steps=2, max_steps=1)
        num_steps = [len(row["step_ends"]) for row in trainer.train_dataset]
        weights = [sum(num_steps[:2]), sum(num_steps[2:4])]
        assert weights == [4, 5]
        assert golden.logged(trainer, "loss") == [pytest.approx(np.average(apart, weights=weights), abs=1e-5)]

    def test_soft_labels_are_learnt(self, tmp_path):
        row = {"prompt": "3+4-2?", "completions": ["3+4=7", "7-2=6"], "labels": [0.9, 0.3]}
        trainer = build(tmp_path, [row], changes={"max_steps": 80})
        trainer.train()
        trainer.save_model()
        [scores] = ProcessRewardModel.from_pretrained(tmp_path).score([row["prompt"]], [row["completions"]])
        assert scores == pytest.approx([0.9, 0.3], abs=0.01)

    def test_loss_type_moves_the_loss(self, tmp_path):
        trainer = build(tmp_path, changes={"loss_type": "mse", "max_steps": 1})
        trainer.train()
        assert golden.logged(trainer, "loss") == [pytest.approx(golden.logged(trainer, "brier_score")[0], abs=1e-5)]

    def test_dropout(self, tmp_path):
        assert build(tmp_path).model.dropout.p == 0
        assert build(tmp_path, changes={"disable_dropout": False}).model.dropout.p == 0.1


class TestEvaluation:
    def test_predictions_equal_trl(self, trained):
        outputs = trained.predict(trained.eval_dataset)
        expected = np.array(TRL["predictions"])
        assert outputs.label_ids.tolist() == TRL["label_ids"]
        assert str(outputs.label_ids.dtype) == TRL["label_dtype"]
        assert outputs.predictions.shape == expected.shape
        lengths = [len(row["input_ids"]) for row in trained.eval_dataset]
        assert min(lengths) < max(lengths)  # else padding would not be looked at
        for ours, trls, length in zip(outputs.predictions, expected, lengths, strict=True):
            np.testing.assert_allclose(ours[:length], trls[:length], atol=1e-4)
        assert (outputs.predictions[0, lengths[0] :] == -100).all()
        assert outputs.metrics["test_accuracy"] == TRL["prediction_metrics"]["test_accuracy"]

    def test_metrics(self, trained):
        metrics = trained.evaluate()
        assert metrics["eval_accuracy"] == TRL["evaluation"]["eval_accuracy"] == pytest.approx(5 / 7)
        assert trained.state.log_history[-1]["eval_accuracy"] == metrics["eval_accuracy"]
        assert metrics["eval_step_accuracy"] == metrics["eval_accuracy"]  # ours, beside it
        # The mean over the 7 steps; TRL's is the mean of the batches (4 and 3 steps), weighted by rows (2 and 1).
        outputs = trained.predict(trained.eval_dataset)
        is_labelled = outputs.label_ids != -100
        logits = torch.tensor(outputs.predictions[is_labelled])
        losses = torch.nn.functional.cross_entropy(
            logits, torch.tensor(outputs.label_ids[is_labelled]), reduction="none"
        )
        assert metrics["eval_loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
        by_batch = (2 * losses[:4].mean() + losses[4:].mean()) / 3
        assert TRL["evaluation"]["eval_loss"] == pytest.approx(by_batch.item(), abs=1e-4)

    @pytest.mark.parametrize("padding_free", [True, False])
    @pytest.mark.parametrize("pad_to_multiple_of", [None, 8])
    def test_compute_metrics_gets_what_trl_gave(self, tmp_path, padding_free, pad_to_multiple_of):
        given = []

        def compute_metrics(eval_pred):
            given.append(eval_pred)
            predictions, labels = eval_pred
            return {"share_of_ones": float((predictions.argmax(axis=-1)[labels != -100] == 1).mean())}

        changes = {"padding_free": padding_free, "pad_to_multiple_of": pad_to_multiple_of}
        trainer = build(tmp_path, eval_rows=golden.EVAL_ROWS, changes=changes, compute_metrics=compute_metrics)
        num_runs = []
        trainer.model.register_forward_pre_hook(lambda module, args: num_runs.append(1))
        metrics = trainer.evaluate()
        assert len(num_runs) == 2  # the model runs once a batch
        assert not trainer.model._forward_hooks  # nothing of it is left
        [(predictions, labels)] = given
        assert labels.dtype == np.int64
        ones = []
        for row, of_row, labels_of_row in zip(trainer.eval_dataset, predictions, labels, strict=True):
            with torch.no_grad():
                logits = trainer.model(torch.tensor([row["input_ids"]])).logits[0].numpy()
            np.testing.assert_allclose(of_row[: len(logits)], logits, atol=1e-5)
            ends = np.flatnonzero(labels_of_row != -100)
            assert ends.tolist() == row["step_ends"] and labels_of_row[ends].tolist() == row["step_labels"]
            ones += (logits[ends, 1] > logits[ends, 0]).tolist()
        assert metrics["eval_share_of_ones"] == pytest.approx(np.mean(ones))
        assert "eval_accuracy" not in metrics and "eval_step_accuracy" in metrics

    def test_soft_labels(self, tmp_path):
        rows = [{**row, "labels": [0.75 if label else 0.5 for label in row["labels"]]} for row in golden.EVAL_ROWS]
        trainer = build(tmp_path, eval_rows=rows)
        outputs = trainer.predict(trainer.eval_dataset)
        labels = outputs.label_ids[outputs.label_ids != -100]
        assert labels.tolist() == [0.75, 0.75, 0.5, 0.5, 0.75, 0.75, 0.5]
        ones = outputs.predictions.argmax(axis=-1)[outputs.label_ids != -100]
        assert outputs.metrics["test_accuracy"] == pytest.approx(np.mean(ones == [1, 1, 0, 0, 1, 1, 0]))

    def test_compute_accuracy(self):
        logits = np.array([[[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0], [-100.0, -100.0]]])
        # right; right, 0.5 not being above it; right, as the first class wins a tie; wrong
        labels = np.array([[0.6, 0.5, 0.0], [0.0, -100, -100]])
        assert compute_accuracy((logits, labels)) == {"accuracy": 0.75}
        assert math.isnan(compute_accuracy((logits, np.full((2, 3), -100)))["accuracy"])

    def test_rows_given_to_evaluate_and_predict(self, trained):
        """Raw rows and tokenized ones are taken for what they are."""
        expected = trained.evaluate()["eval_loss"]
        for rows in (golden.EVAL_ROWS, tokenized()):
            assert trained.evaluate(Dataset.from_list(rows))["eval_loss"] == pytest.approx(expected, abs=1e-6)
            metrics = trained.predict(Dataset.from_list(rows)).metrics
            assert metrics["test_accuracy"] == TRL["prediction_metrics"]["test_accuracy"]
            assert metrics["test_loss"] == pytest.approx(expected, abs=1e-6)

    def test_preprocess_logits_for_metrics(self, tmp_path):
        shapes = []

        def first_class(logits, labels):
            shapes.append((tuple(logits.shape[:2]), tuple(labels.shape)))
            return logits[..., 0]

        trainer = build(
            tmp_path,
            eval_rows=golden.EVAL_ROWS,
            preprocess_logits_for_metrics=first_class,
            compute_metrics=lambda eval_pred: {"sum": float(eval_pred[0][eval_pred[1] != -100].sum())},
        )
        metrics = trainer.evaluate()
        logits = trainer.model.eval()
        with torch.no_grad():
            total = sum(
                logits(torch.tensor([row["input_ids"]])).logits[0, row["step_ends"], 0].sum().item()
                for row in trainer.eval_dataset
            )
        assert metrics["eval_sum"] == pytest.approx(total, abs=1e-4)
        assert all(of_logits == of_labels for of_logits, of_labels in shapes) and len(shapes) == 2

    def test_the_best_checkpoint_by_accuracy(self, tmp_path):
        changes = {
            "metric_for_best_model": "accuracy",
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": 1,
            "save_steps": 1,
            "load_best_model_at_end": True,
        }
        trainer = build(tmp_path, eval_rows=golden.EVAL_ROWS, changes=changes)
        trainer.train()
        accuracies = golden.logged(trainer, "eval_accuracy")
        assert len(accuracies) == 3 and trainer.state.best_metric == max(accuracies)


class TestCheckpoints:
    def test_what_is_saved(self, tmp_path):
        trainer = build(tmp_path, changes={"step_separator": "\n\n"})
        trainer.train()
        trainer.save_model()
        tokenizer, steps = golden.build_tokenizer(), ROW["completions"]
        model, info = AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert model.config.num_labels == 2 and not info["missing_keys"] and not info["unexpected_keys"]
        options = {**golden.tokenize_cases()[-1][2], "step_separator": "\n\n"}
        row = PRMTrainer.tokenize_row(ROW, tokenizer, **options)
        ends = [i for i, label in enumerate(row["labels"]) if label != -100]
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits
            torch.testing.assert_close(logits, trainer.model.eval()(torch.tensor([row["input_ids"]])).logits)
        prm = ProcessRewardModel.from_pretrained(tmp_path)
        [scores] = prm.score([ROW["prompt"]], [steps])
        assert scores == pytest.approx(logits[0, ends].softmax(-1)[:, 1].tolist(), abs=1e-5)
        trainer.create_model_card()
        card = (tmp_path / "README.md").read_text("utf-8")
        assert "trained with PRM, a method introduced in [Solving math word problems" in card
        assert "uesato2022solving" in card and "zhang2024entropy" not in card

    def test_of_old_trl(self, tmp_path):
        """TRL saved a token classifier and its tokenizer, and nothing of ours."""
        model, tokenizer = golden.build_model().eval(), golden.build_tokenizer()
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="has no prm_format.json .* its `format`"):
            ProcessRewardModel.from_pretrained(tmp_path)
        [scores] = ProcessRewardModel.from_pretrained(tmp_path, format="trl").score(
            [ROW["prompt"]], [ROW["completions"]]
        )
        row = PRMTrainer.tokenize_row(ROW, tokenizer, **golden.tokenize_cases()[-1][2])
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0]
        ends = [i for i, label in enumerate(row["labels"]) if label != -100]
        assert scores == pytest.approx(logits[ends].softmax(-1)[:, 1].tolist(), abs=1e-5)
        # And training goes on from its path.
        trainer = build(tmp_path / "more", model=str(tmp_path), processing_class=None)
        trainer.train()
        assert golden.logged(trainer, "loss") == pytest.approx(TRL["losses"], abs=1e-4)

    def test_lora(self, tmp_path):
        trainer = build(tmp_path, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
        before = {name: p.clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
        assert changed and all("lora_" in name or "score.modules_to_save" in name for name in changed)
        assert golden.logged(trainer, "loss")[0] == pytest.approx(TRL["losses"][0], abs=1e-4)


class TestArguments:
    def test_model_init(self, tmp_path):
        calls = []

        def model_init():
            calls.append(torch.initial_seed())
            return golden.build_model()

        trainer = build(tmp_path, model=None, model_init=model_init, changes={"seed": 7})
        trainer.train()
        assert calls == [7]
        assert golden.logged(trainer, "loss") == pytest.approx(TRL["losses"], abs=1e-4)
        with pytest.raises(NotImplementedError, match="calls `model_init` once"):
            trainer.hyperparameter_search()

    def test_a_model_is_needed(self, tmp_path):
        with pytest.raises(ValueError, match="Give either `model` or `model_init`, got neither"):
            build(tmp_path, model=None)
        with pytest.raises(ValueError, match="got both"):
            build(tmp_path, model_init=golden.build_model)

    def test_trls_collator(self, tmp_path, caplog):
        caplog.set_level("INFO", logger="trl_erprm.compat")
        collator = DataCollatorForTokenClassification(golden.build_tokenizer(), pad_to_multiple_of=8)
        trainer = build(tmp_path, data_collator=collator, changes={"padding_free": False})
        assert "`StepDataCollator` takes the place of the `DataCollatorForTokenClassification`" in caplog.text
        batch = trainer.data_collator(list(trainer.train_dataset)[:2])
        rows = tokenized(golden.TRAIN_ROWS[:2])
        expected = collator([{n: row[n] for n in ("input_ids", "labels")} for row in rows])
        torch.testing.assert_close(batch["input_ids"], expected["input_ids"])
        torch.testing.assert_close(batch["attention_mask"], expected["attention_mask"])
        torch.testing.assert_close(batch["is_step_end"], expected["labels"] != -100)
        labels = batch["step_labels"][~batch["step_labels"].isnan()]
        torch.testing.assert_close(labels, expected["labels"][expected["labels"] != -100].float())

    def test_other_collators(self, tmp_path):
        own = StepDataCollator(pad_token_id=2)
        assert build(tmp_path, data_collator=own).data_collator is own
        with pytest.raises(TypeError, match="must be a `DataCollatorForTokenClassification` .*, got DataCollatorWith"):
            build(tmp_path, data_collator=DataCollatorWithPadding(golden.build_tokenizer()))

    def test_other_configurations(self, tmp_path):
        with pytest.raises(TypeError, match="must be a `trl_erprm.compat.PRMConfig`, got ERPRMConfig"):
            PRMTrainer(golden.build_model(), ERPRMConfig(str(tmp_path), use_cpu=True))

    def test_it_is_an_erprm_trainer(self):
        assert issubclass(PRMTrainer, ERPRMTrainer) and issubclass(PRMConfig, ERPRMConfig)


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
