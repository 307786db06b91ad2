"""`trl_erprm.compat`: training and evaluation as by TRL 1.13's `PRMTrainer`, and what is better now."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, DataCollatorWithPadding

from tests.compat_cases import ROW, TRL, build, tokenized
from tests.golden import trl_1_13 as golden
from trl_erprm import ERPRMConfig, ERPRMTrainer, ProcessRewardModel
from trl_erprm.compat import PRMConfig, PRMTrainer, compute_accuracy
from trl_erprm.prm.collator import StepDataCollator
from trl_erprm.prm.prompts import TrainedPrompts


@pytest.fixture(scope="module")
def trained():
    return golden.train(PRMTrainer, PRMConfig)


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

    @pytest.mark.parametrize("ending", ["", "\n"])
    def test_the_prompts_that_it_was_trained_on(self, ending, tmp_path):
        rows = [{**row, "prompt": row["prompt"].rstrip() + ending} for row in golden.TRAIN_ROWS]
        other = [{**row, "prompt": row["prompt"].rstrip() + " "} for row in golden.EVAL_ROWS]
        trainer = build(tmp_path / "prm", rows, other)
        assert trainer.trained_prompts == TrainedPrompts("text", ending)  # of the training set
        trainer.save_model()
        reader = ProcessRewardModel.from_pretrained(tmp_path / "prm").prompt_reader
        assert (reader.prompt_kind, reader.prompt_ending) == ("text", ending)
        # Token ids do not say it: it is that of what was loaded.
        more = build(tmp_path / "more", tokenized(), model=str(tmp_path / "prm"))
        assert more.trained_prompts == TrainedPrompts("text", ending)
        assert build(tmp_path / "new", tokenized()).trained_prompts == TrainedPrompts()

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
