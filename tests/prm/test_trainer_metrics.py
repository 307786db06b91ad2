"""`trl_erprm.prm.trainer`: what is logged is what `metrics.py` says of scores collected by hand; predictions."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.prm.by_hand import ROWS, log_odds_by_hand, logged, random_rows
from tests.tiny import HEADS, prm_config, prm_trainer, save_base, sigmoid
from tests.tiny import randomize_head as randomize
from trl_erprm import ERPRMTrainer
from trl_erprm.prm.metrics import auroc, brier_score, calibration_error, first_error_f1, step_accuracy
from trl_erprm.prm.trainer import step_losses, step_metrics

NAN = math.nan
STEP_METRICS = {
    "step_accuracy",
    "step_auroc",
    "brier_score",
    "calibration_error",
    "first_error_f1",
    "mean_score",
    "mean_label",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(params=list(HEADS))
def head(request):
    return HEADS[request.param]


def randomize_head(model):
    """Scores that differ, but not so much that two of them are the same 1.0 in float32."""
    randomize(model)
    if hasattr(model, "score"):
        model.score.weight.data *= 0.2


def scores_by_hand(model, rows, head):
    return [sigmoid(log_odds_by_hand(model, row, head)).tolist() for row in rows]


def metrics_by_hand(scores, rows):
    """Of step scores a solution; the functions themselves are tested in `test_metrics.py`."""
    labels = [[NAN if label is None else float(label) for label in row["labels"]] for row in rows]
    pairs = [(s, v) for of_row in zip(scores, labels, strict=True) for s, v in zip(*of_row, strict=True)]
    flat_scores, flat_labels = (np.array(values) for values in zip(*pairs, strict=True))
    known = ~np.isnan(flat_labels)
    s, v = flat_scores[known], flat_labels[known]
    expected = {
        "loss": float(np.mean(-v * np.log(s) - (1 - v) * np.log1p(-s))),
        "step_accuracy": step_accuracy(flat_scores, flat_labels),
        "step_auroc": auroc(flat_scores, flat_labels),
        "brier_score": brier_score(flat_scores, flat_labels),
        "calibration_error": calibration_error(flat_scores, flat_labels),
        "first_error_f1": first_error_f1(scores, labels).f1,
        "mean_score": s.mean(),
        "mean_label": v.mean(),
    }
    if "outcome" in rows[0]:
        least = [min(s for s, v in zip(*of_row, strict=True) if v == v) for of_row in zip(scores, labels, strict=True)]
        outcomes = [NAN if row["outcome"] is None else row["outcome"] for row in rows]
        expected["outcome_auroc"] = auroc(least, outcomes)
    return {name: value for name, value in expected.items() if value == value}


def evaluated(metrics, name="eval"):
    """The metrics of our own among those of an evaluation, without the prefix."""
    names = {"loss", "outcome_auroc", *STEP_METRICS}
    return {key.removeprefix(f"{name}_"): v for key, v in metrics.items() if key.removeprefix(f"{name}_") in names}


class TestMetrics:
    @pytest.mark.parametrize("padding_free", [False, True])
    def test_by_hand_and_independent_of_the_batch_size(self, base, tmp_path, head, padding_free):
        """Solutions of one to five steps, some steps without a label, some solutions without an outcome."""
        rows = random_rows(11)
        rows = [{**row, "outcome": [None, 0.0, 1.0][i % 3]} for i, row in enumerate(rows)]
        expected = None
        for batch_size in (1, 4, 11):
            options = {"per_device_eval_batch_size": batch_size, "padding_free": padding_free, **head}
            trainer = prm_trainer(base, tmp_path, ROWS, rows, **options)
            randomize_head(trainer.model)
            metrics = evaluated(trainer.evaluate())
            expected = expected or metrics_by_hand(scores_by_hand(trainer.model, rows, head), rows)
            assert set(expected) == {"loss", "outcome_auroc", *STEP_METRICS}
            assert metrics == pytest.approx(expected, abs=1e-5)
        assert evaluated(trainer.evaluate()) == pytest.approx(expected, abs=1e-5)  # nothing is left of the last time

    def test_in_training(self, base, tmp_path, head):
        """Over all steps since the last log, that is, two optimizer steps of two micro-batches each."""
        rows = [{**row, "outcome": i % 2} for i, row in enumerate(random_rows(8))]
        trainer = prm_trainer(
            base,
            tmp_path,
            rows,
            max_steps=2,
            learning_rate=0.0,
            logging_steps=2,
            gradient_accumulation_steps=2,
            **head,
        )
        randomize_head(trainer.model)
        trainer.train()
        expected = metrics_by_hand(scores_by_hand(trainer.model, rows, head), rows)
        del expected["loss"]  # which is the mean of the two optimizer steps
        [entry] = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert {name: entry[name] for name in expected} == pytest.approx(expected, abs=1e-5)

    def test_each_log_has_its_own_steps(self, base, tmp_path):
        rows = [{**ROWS[1], "labels": [value]} for value in (0.1, 0.6)]
        trainer = prm_trainer(
            base, tmp_path, rows, max_steps=2, per_device_train_batch_size=1, train_sampling_strategy="sequential"
        )
        trainer.train()
        assert logged(trainer, "mean_label") == pytest.approx([0.1, 0.6])

    def test_what_is_not_determined_is_left_out(self, base, tmp_path):
        """No bad step: no ranking, no solution with an error. Not NaN, which would spoil a plot or a comparison."""
        rows = [{**ROWS[0], "labels": [1.0, 1.0, None], "outcome": 1.0}]
        trainer = prm_trainer(base, tmp_path, rows, rows, max_steps=1)
        trainer.train()
        [entry] = [entry for entry in trainer.state.log_history if "loss" in entry]
        metrics = trainer.evaluate()
        for name in STEP_METRICS - {"step_auroc", "first_error_f1"}:
            assert math.isfinite(entry[name]) and math.isfinite(metrics[f"eval_{name}"])
        for name in ("step_auroc", "first_error_f1", "outcome_auroc"):
            assert name not in entry and f"eval_{name}" not in metrics

    @pytest.mark.parametrize("outcomes", [[0.0, 1.0], [None, None], None])
    def test_outcome_auroc_only_where_outcomes_are_known(self, base, tmp_path, outcomes):
        rows = [{**row, "outcome": outcomes[i]} if outcomes else row for i, row in enumerate(ROWS)]
        trainer = prm_trainer(base, tmp_path, ROWS, rows)
        assert ("eval_outcome_auroc" in trainer.evaluate()) is (outcomes == [0.0, 1.0])

    def test_without_logs_nothing_is_kept_for_them(self, base, tmp_path):
        """Else the record of a long run would grow to its end."""
        trainer = prm_trainer(base, tmp_path, ROWS, ROWS, max_steps=2, logging_strategy="no")
        trainer.train()
        assert not logged(trainer, "mean_score")
        assert trainer.evaluate()["eval_mean_label"] == pytest.approx(0.6)
        assert trainer._records == {"train": [], "eval": []}

    def test_training_and_evaluation_do_not_mix(self, base, tmp_path):
        eval_rows = [{**ROWS[1], "labels": [0.0]}]
        trainer = prm_trainer(
            base, tmp_path, [{**ROWS[1], "labels": [1.0]}], eval_rows, max_steps=2, eval_strategy="steps", eval_steps=1
        )
        trainer.train()
        assert logged(trainer, "mean_label") == [1.0, 1.0]
        assert logged(trainer, "eval_mean_label") == [0.0, 0.0]

    def test_evaluation_between_two_logs(self, base, tmp_path):
        """What training has recorded so far is not lost to an evaluation, nor taken into it."""
        rows = [{**ROWS[1], "labels": [value]} for value in (0.2, 0.6)]
        trainer = prm_trainer(
            base, tmp_path, rows, [{**ROWS[1], "labels": [0.0]}], max_steps=2, per_device_train_batch_size=1,
            logging_steps=2, eval_strategy="steps", eval_steps=1,
        )  # fmt: skip
        trainer.train()
        assert logged(trainer, "mean_label") == [pytest.approx(0.4)]
        assert logged(trainer, "eval_mean_label") == [0.0, 0.0]

    def test_each_evaluation_set_has_its_own(self, base, tmp_path):
        sets = {"easy": random_rows(5, seed=1), "very_hard": random_rows(6, seed=2)}
        datasets = {name: Dataset.from_list(rows) for name, rows in sets.items()}
        trainer = ERPRMTrainer(
            base, args=prm_config(tmp_path), train_dataset=Dataset.from_list(ROWS), eval_dataset=datasets
        )
        randomize_head(trainer.model)
        metrics = trainer.evaluate()
        for name, rows in sets.items():
            expected = metrics_by_hand(scores_by_hand(trainer.model, rows, {}), rows)
            assert evaluated(metrics, f"eval_{name}") == pytest.approx(expected, abs=1e-5)
            for metric, value in expected.items():
                assert logged(trainer, f"eval_{name}_{metric}") == [pytest.approx(value, abs=1e-5)]
        assert "eval_loss" not in metrics and "eval_mean_label" not in metrics

    def test_the_best_model_is_chosen_by_our_loss(self, base, tmp_path):
        """Solutions of one and of three steps in batches of one: the mean of the batches would be another number."""
        trainer = prm_trainer(
            base, tmp_path, ROWS, ROWS, max_steps=2, learning_rate=1e-2, eval_strategy="steps", eval_steps=1,
            save_strategy="steps", save_steps=1, load_best_model_at_end=True, per_device_eval_batch_size=1,
            metric_for_best_model="eval_step_auroc", greater_is_better=True,
        )  # fmt: skip
        trainer.train()
        assert trainer.state.best_metric == max(logged(trainer, "eval_step_auroc"))

    def test_num_tokens(self, base, tmp_path):
        trainer = prm_trainer(base, tmp_path, ROWS, ROWS, max_steps=2, eval_strategy="steps", eval_steps=1)
        num_tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
        trainer.train()
        assert logged(trainer, "num_tokens") == [num_tokens, 2 * num_tokens]
        assert logged(trainer, "eval_num_tokens") == [num_tokens, 2 * num_tokens]  # tokens trained on, here as well

    @pytest.mark.parametrize("padding_free", [False, True])
    def test_filling_is_no_token_trained_on(self, base, tmp_path, padding_free):
        trainer = prm_trainer(base, tmp_path, ROWS, max_steps=1, pad_to_multiple_of=32, padding_free=padding_free)
        trainer.train()
        assert logged(trainer, "num_tokens") == [sum(len(ids) for ids in trainer.train_dataset["input_ids"])]

    def test_a_held_out_metric_improves(self, base, tmp_path, head):
        """A step is good if one of its three numbers is 0; the prompts say nothing about it."""
        rng = np.random.default_rng(0)
        rows = []
        for _ in range(400):
            a, b, c = (int(v) for v in rng.integers(0, 3, 3))
            rows.append(
                {"prompt": f"{rng.integers(10)}{rng.integers(10)}{rng.integers(10)}\n",
                 "completions": [f"{a}+{b}={c}"], "labels": [0.9 if a * b * c == 0 else 0.1]}
            )  # fmt: skip
        trainer = prm_trainer(
            base, tmp_path, rows[:360], rows[360:], max_steps=100, learning_rate=1e-2, logging_steps=50,
            per_device_train_batch_size=36, **head,
        )  # fmt: skip
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        assert after["eval_brier_score"] < 0.02 < before["eval_brier_score"]
        assert after["eval_step_accuracy"] > 0.95 and after["eval_step_auroc"] > 0.85
        assert after["eval_loss"] < before["eval_loss"]


class TestStepMetrics:
    def record(self, scores, labels, outcome=NAN):
        """One solution, as recorded: shape `(1, K, 4)`."""
        scores, labels = torch.tensor(scores), torch.tensor(labels)
        losses = step_losses(scores.logit(), labels)
        return torch.stack([scores, labels, losses, torch.full_like(labels, outcome)], dim=1)[None]

    def test_batches_of_unequal_numbers_of_steps(self):
        records = [self.record([0.9, 0.2], [1.0, 0.0]), self.record([0.7, 0.6, 0.4], [1.0, 1.0, 1.0])]
        loss, metrics = step_metrics(records)
        assert loss == pytest.approx(-np.mean(np.log([0.9, 0.8, 0.7, 0.6, 0.4])), abs=1e-6)
        assert metrics["step_accuracy"] == pytest.approx(0.8)
        assert metrics["step_auroc"] == 1.0
        assert metrics["first_error_f1"] == 0.0  # an error is seen in the right solution

    def test_outcomes(self):
        records = [self.record([0.9, 0.2], [1.0, NAN], 0.0), self.record([0.7], [1.0], 1.0), self.record([0.1], [0.0])]
        _, metrics = step_metrics(records)
        assert metrics["outcome_auroc"] == 0.0  # 0.9, the least among the steps with a label, against 0.7

    def test_no_label(self):
        for scores in ([], [NAN]):
            loss, metrics = step_metrics([self.record(scores, scores)])
            assert math.isnan(loss) and metrics == {}


class TestPredictions:
    ROWS = random_rows(5, seed=3)

    def collect(self, seen):
        def compute_metrics(prediction):
            seen.append(prediction)
            known = prediction.label_ids != -100
            error = np.abs(prediction.predictions - prediction.label_ids)[known].mean()
            return {"mean_error": error, "hinge_loss": 7.0}

        return compute_metrics

    def trainer(self, base, tmp_path, head, **kwargs):
        rows = Dataset.from_list(self.ROWS)
        args = prm_config(tmp_path, per_device_eval_batch_size=2, **head)
        trainer = ERPRMTrainer(base, args=args, train_dataset=rows, eval_dataset=rows, **kwargs)
        randomize_head(trainer.model)
        return trainer

    def check(self, predictions, label_ids, model, head):
        """Arrays of solutions x steps, -100 where there is no label."""
        most = max(len(row["labels"]) for row in self.ROWS)
        assert predictions.shape == label_ids.shape == (len(self.ROWS), most)
        scores = scores_by_hand(model, self.ROWS, head)
        for i, row in enumerate(self.ROWS):
            for k in range(most):
                if k < len(row["labels"]) and row["labels"][k] is not None:
                    assert predictions[i, k] == pytest.approx(scores[i][k], abs=1e-5)
                    assert label_ids[i, k] == pytest.approx(row["labels"][k])
                else:
                    assert predictions[i, k] == label_ids[i, k] == -100

    @pytest.mark.parametrize("padding_free", [False, True])
    def test_compute_metrics(self, base, tmp_path, head, padding_free):
        seen = []
        options = {"padding_free": padding_free, **head}
        trainer = self.trainer(base, tmp_path, options, compute_metrics=self.collect(seen))
        metrics = trainer.evaluate()
        [prediction] = seen
        self.check(prediction.predictions, prediction.label_ids, trainer.model, head)
        known = prediction.label_ids != -100
        error = np.abs(prediction.predictions - prediction.label_ids)[known].mean()
        assert logged(trainer, "eval_mean_error") == [pytest.approx(error)]
        # one of its own that is called a loss is not taken for the loss
        assert metrics["eval_hinge_loss"] == 7.0
        expected = metrics_by_hand(scores_by_hand(trainer.model, self.ROWS, head), self.ROWS)
        assert evaluated(metrics) == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("is_prepared", [False, True])
    def test_predict(self, base, tmp_path, head, is_prepared):
        trainer = self.trainer(base, tmp_path, head)
        given = trainer.eval_dataset if is_prepared else Dataset.from_list(self.ROWS)
        output = trainer.predict(given)
        self.check(output.predictions, output.label_ids, trainer.model, head)
        expected = metrics_by_hand(scores_by_hand(trainer.model, self.ROWS, head), self.ROWS)
        assert evaluated(output.metrics, "test") == pytest.approx(expected, abs=1e-5)

    def test_a_prediction_leaves_nothing_for_the_next_evaluation(self, base, tmp_path):
        trainer = self.trainer(base, tmp_path, {})
        before = evaluated(trainer.evaluate())
        trainer.predict(Dataset.from_list(ROWS))
        assert evaluated(trainer.evaluate()) == before

    def test_an_evaluation_that_was_interrupted_leaves_nothing(self, base, tmp_path):
        trainer = self.trainer(base, tmp_path, {})
        before = evaluated(trainer.evaluate())
        forward, num_calls = trainer.model.forward, []

        def fail(*args, **kwargs):
            num_calls.append(1)
            if len(num_calls) == 2:
                raise KeyboardInterrupt
            return forward(*args, **kwargs)

        trainer.model.forward = fail
        with pytest.raises(KeyboardInterrupt):
            trainer.evaluate()
        trainer.model.forward = forward
        assert evaluated(trainer.evaluate()) == before

    def test_other_prefix(self, base, tmp_path):
        trainer = self.trainer(base, tmp_path, {})
        expected = evaluated(trainer.evaluate())
        metrics = trainer.evaluate(Dataset.from_list(self.ROWS), metric_key_prefix="final")
        assert evaluated(metrics, "final") == expected
        assert not evaluated(metrics)


class TestEvaluationSets:
    def test_one_called_train_is_no_training_set(self, base, tmp_path):
        """Weights and `train_on_last_step_only` are for training alone."""
        rows = [{**ROWS[0], "num_rollouts": [4, 2, 1], "outcome": 1.0}]
        options = {"train_on_last_step_only": True, "weight_by_rollouts": True}
        trainer = ERPRMTrainer(
            base,
            args=prm_config(tmp_path, **options),
            train_dataset=Dataset.from_list(rows),
            eval_dataset={"train": Dataset.from_list(rows)},
        )
        assert np.isnan(trainer.train_dataset[0]["step_labels"][:2]).all()
        assert "step_weights" in trainer.train_dataset.column_names
        again = trainer._prepare_dataset(Dataset.from_list(rows), trainer.processing_class, trainer.args, "train")
        for dataset in (trainer.eval_dataset["train"], again):
            assert dataset[0]["step_labels"] == [0.9, 0.3, 1.0]
            assert "step_weights" not in dataset.column_names

    def test_also_where_the_training_set_was_encoded_before(self, base, tmp_path):
        encoded = Dataset.from_list([{"input_ids": [3, 4], "step_ends": [1], "step_labels": [0.5]}])
        trainer = ERPRMTrainer(
            base,
            args=prm_config(tmp_path, train_on_last_step_only=True),
            train_dataset=encoded,
            eval_dataset={"train": Dataset.from_list(ROWS)},
        )
        assert trainer.eval_dataset["train"][0]["step_labels"] == [0.9, 0.3, 1.0]

    def test_evaluate_prepares_what_it_is_given(self, base, tmp_path):
        trainer = prm_trainer(base, tmp_path, ROWS, ROWS, train_on_last_step_only=True)
        expected = evaluated(trainer.evaluate())
        assert evaluated(trainer.evaluate(Dataset.from_list(ROWS))) == expected
        stream = Dataset.from_list(ROWS).to_iterable_dataset()
        assert evaluated(trainer.evaluate(stream)) == expected
        assert trainer.evaluate({"new": stream})["eval_new_loss"] == expected["loss"]
