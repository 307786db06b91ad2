"""`trl_erprm.prm.trainer`: the loss by hand, soft labels end to end, data, LoRA, checkpoints, errors."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
)

from tests.prm.by_hand import ROWS, log_odds_by_hand, logged
from tests.tiny import CAUSAL, HEADS, QUIET, prm_config, prm_trainer, randomize_head, save_base, sigmoid
from trl_erprm import ERPRMConfig, ERPRMTrainer, ProcessRewardModel
from trl_erprm.arithmetic import build_model, build_tokenizer
from trl_erprm.prm.trainer import step_losses

NAN = math.nan


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(params=list(HEADS))
def head(request):
    return HEADS[request.param]


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def padding_free(request):
    return request.param


class TestLoss:
    @pytest.mark.parametrize("loss_type", ["soft_cross_entropy", "mse"])
    def test_two_rows_by_hand(self, base, tmp_path, head, loss_type, padding_free):
        options = {"loss_type": loss_type, "padding_free": padding_free, **head}
        trainer = prm_trainer(base, tmp_path, ROWS, ROWS, max_steps=1, learning_rate=0.0, **options)
        randomize_head(trainer.model)
        scores = sigmoid(np.concatenate([log_odds_by_hand(trainer.model, row, head) for row in ROWS]))
        labels = np.array([0.9, 0.3, 1.0, 0.2])
        if loss_type == "mse":
            losses = (scores - labels) ** 2
        else:
            losses = -labels * np.log(scores) - (1 - labels) * np.log(1 - scores)
        assert np.ptp(losses) > 0.05  # else a wrong order would not show
        trainer.train()
        assert logged(trainer, "loss") == [pytest.approx(losses.mean(), abs=1e-5)]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(losses.mean(), abs=1e-5)

    def test_soft_cross_entropy_is_that_of_two_classes(self):
        logits = torch.randn(20, 2, dtype=torch.float64)
        labels = torch.rand(20, dtype=torch.float64)
        targets = torch.stack([1 - labels, labels], dim=1)
        expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        torch.testing.assert_close(step_losses(logits[:, 1] - logits[:, 0], labels), expected)

    def test_a_label_of_0_9_stays_0_9(self, base, tmp_path, head):
        """To convergence on one row: labels are used as they are, never rounded, through saving and scoring."""
        row = {"prompt": "3+4*2\n", "completions": ["3+4=2", "2*2=3"], "labels": [0.9, 0.3]}
        trainer = prm_trainer(base, tmp_path, [row], max_steps=60, learning_rate=1e-2, **head)
        trainer.train()
        trainer.save_model()
        prm = ProcessRewardModel.from_pretrained(tmp_path)
        [scores] = prm.score([row["prompt"]], [row["completions"]])
        assert scores == pytest.approx([0.9, 0.3], abs=0.02)
        entropy = -np.mean([v * math.log(v) + (1 - v) * math.log(1 - v) for v in (0.9, 0.3)])
        assert logged(trainer, "loss")[-1] == pytest.approx(entropy, abs=0.005)  # the least that soft labels allow

    def test_steps_without_a_label_are_ignored(self, base, tmp_path, head, padding_free):
        rows = [{**ROWS[0], "labels": [0.9, None, NAN]}, ROWS[1]]
        options = {"padding_free": padding_free, **head}
        trainer = prm_trainer(base, tmp_path, rows, max_steps=1, learning_rate=0.0, **options)
        randomize_head(trainer.model)
        z = [log_odds_by_hand(trainer.model, row, head)[0] for row in rows]
        losses = step_losses(torch.tensor(z), torch.tensor([0.9, 0.2]))
        trainer.train()
        assert logged(trainer, "loss") == [pytest.approx(losses.mean().item(), abs=1e-5)]
        assert logged(trainer, "mean_label") == [pytest.approx(0.55)]

    def test_a_batch_without_labels_has_loss_0(self, base, tmp_path, head, padding_free):
        trainer = prm_trainer(base, tmp_path, ROWS, padding_free=padding_free, **head)
        rows = [{"input_ids": [3, 4, 5], "step_ends": [1, 2], "step_labels": [NAN, NAN]}]
        batch = trainer.data_collator(rows)
        for num_items in (None, trainer._get_num_items_in_batch([batch], "cpu")):
            trainer.model.zero_grad()
            loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=num_items)
            loss.backward()
            assert loss.item() == 0.0
            assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())

    def test_training_goes_on_over_a_batch_without_labels(self, base, tmp_path, padding_free):
        rows = [{**ROWS[1], "labels": [None]}, ROWS[1], {**ROWS[1], "labels": [None]}]
        dataset = Dataset.from_list(rows).to_iterable_dataset()
        options = {"max_steps": 3, "per_device_train_batch_size": 1, "learning_rate": 1e-2}
        trainer = prm_trainer(base, tmp_path, dataset, padding_free=padding_free, **options)
        trainer.train()
        losses = logged(trainer, "loss")
        assert losses[0] == losses[2] == 0.0 < losses[1]
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())

    def test_outputs(self, base, tmp_path):
        trainer = prm_trainer(base, tmp_path, ROWS)
        batch = trainer.data_collator(list(trainer.train_dataset))
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        expected = np.concatenate([log_odds_by_hand(trainer.model, row, {}) for row in ROWS])
        is_labelled = ~batch["step_labels"].isnan()
        assert outputs["step_scores"].shape == (2, 3)
        assert outputs["step_scores"][is_labelled].tolist() == pytest.approx(sigmoid(expected), abs=1e-5)
        assert outputs["step_scores"].isnan().tolist() == (~is_labelled).tolist()
        torch.testing.assert_close(outputs["step_labels"], batch["step_labels"], equal_nan=True)
        assert loss.item() == pytest.approx(
            step_losses(torch.tensor(expected), torch.tensor([0.9, 0.3, 1.0, 0.2])).mean().item(), abs=1e-5
        )
        # the caller's batch is left whole
        assert {"is_step_end", "step_labels", "input_ids", "position_ids", "cu_seq_lens_q"} <= set(batch)

    def test_accumulation_1x4_equals_4x1(self, base, tmp_path, head):
        """Solutions of one to three steps: a mean of the means of micro-batches would give another loss."""
        given = [
            {"prompt": "3+4*2\n", "completions": ["3+4=2", "2*2=4", "#4"][: 1 + i % 3],
             "labels": [0.1 * i, None if i == 2 else 0.9, 0.5][: 1 + i % 3]}
            for i in range(4)
        ]  # fmt: skip
        results = []
        for batch_size, accumulation in ((4, 1), (1, 4), (2, 2)):
            trainer = prm_trainer(
                base,
                tmp_path / str(batch_size),
                given,
                max_steps=3,
                learning_rate=1e-2,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                **head,
            )
            trainer.train()
            results.append(
                {n: logged(trainer, n) for n in ("loss", "grad_norm", "brier_score", "mean_score", "step_accuracy")}
            )
        for other in results[1:]:
            for name, values in results[0].items():
                assert other[name] == pytest.approx(values, rel=1e-3, abs=1e-5), name


class TestData:
    COUNTS = [
        {"prompt": "3+4\n", "completions": ["3+4=2", "#2"], "num_correct": [2, 1], "num_rollouts": [4, 1]},
        {"prompt": "1+1\n", "completions": ["1+1=2", "#2"], "num_correct": [0, 0], "num_rollouts": [4, 0]},
    ]

    @pytest.mark.parametrize("stale", [False, True])
    @pytest.mark.parametrize("eta, expected", [(0, 0.5), (math.inf, 1.0), (2.0, math.log((math.e**2 + 1) / 2) / 2)])
    def test_eta_labels_from_counts(self, base, tmp_path, eta, expected, stale):
        rows = [{**row, "labels": [0.123, 0.123]} if stale else row for row in self.COUNTS]
        trainer = prm_trainer(base, tmp_path, rows, eta=eta)
        labels = [row["step_labels"] for row in trainer.train_dataset]
        assert labels[0] == pytest.approx([expected, 1.0])
        assert labels[1][0] == 0.0 and math.isnan(labels[1][1])  # no rollout, no label

    def test_without_eta_the_labels_are_kept(self, base, tmp_path):
        rows = [{**row, "labels": [0.123, 0.7]} for row in self.COUNTS]
        trainer = prm_trainer(base, tmp_path, rows)
        assert [row["step_labels"] for row in trainer.train_dataset] == [[0.123, 0.7]] * 2

    @staticmethod
    def labelled(eta, name="eta"):
        return [{"prompt": "3+4\n", "completions": ["3+4=2"], "labels": [0.9], name: value} for value in eta]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_labels_bring_their_eta_along(self, base, tmp_path, streaming, caplog):
        """As the labeler writes it: scores mean what labels meant, so the checkpoint has to say with which eta."""
        rows = Dataset.from_list([{**row, **self.labelled([10.0])[0]} for row in self.COUNTS])
        trainer = prm_trainer(base, tmp_path, rows.to_iterable_dataset() if streaming else rows, max_steps=1)
        assert trainer.eta == 10.0 and trainer.args.eta is None and "eta" not in caplog.text
        trainer.train()
        assert logged(trainer, "mean_label") == [pytest.approx(0.9)]  # as they are
        trainer.save_model()
        assert ProcessRewardModel.from_pretrained(tmp_path).eta == 10.0
        trainer.create_model_card()
        assert "with eta = 10, over rollouts" in (tmp_path / "README.md").read_text("utf-8")

    def test_an_eta_that_is_given_makes_the_labels_anew(self, base, tmp_path):
        rows = [{**row, "labels": [0.1, 0.1], "eta": eta} for row, eta in zip(self.COUNTS, (10.0, 2.0), strict=True)]
        trainer = prm_trainer(base, tmp_path, rows, eta=0)
        assert trainer.eta == 0 and trainer.train_dataset[0]["step_labels"] == [0.5, 1.0]

    def test_labels_of_several_etas(self, base, tmp_path):
        rows = self.labelled([2.0, 10.0])
        message = "The labels of the {} dataset must be made with one eta, got rows with 2 and with 10"
        with pytest.raises(ValueError, match=message.format("train")):
            prm_trainer(base, tmp_path, rows)
        with pytest.raises(ValueError, match=message.format("eval")):
            prm_trainer(base, tmp_path, self.labelled([2.0]), rows)
        trainer = prm_trainer(base, tmp_path, Dataset.from_list(rows).to_iterable_dataset(), max_steps=1)
        with pytest.raises(ValueError, match=message.format("train")):
            trainer.train()

    @pytest.mark.parametrize(
        "of_train, of_eval, message",
        [
            ([10.0], [2.0], "made with eta 2, but the model is trained on labels made with eta 10: its metrics"),
            ([None], [2.0], "made with eta 2, but the model is trained on labels of no known eta"),
            ([10.0], [10.0], None),
            ([10.0], [None], None),  # of people, say
        ],
    )
    def test_evaluated_against_labels_of_another_eta(self, base, tmp_path, caplog, of_train, of_eval, message):
        prm_trainer(base, tmp_path, self.labelled(of_train), self.labelled(of_eval))
        assert (message in caplog.text) if message else ("eta" not in caplog.text)

    def test_counts_whose_labels_have_an_unknown_eta(self, base, tmp_path, caplog):
        trainer = prm_trainer(base, tmp_path, [{**row, "labels": [0.1, 0.7]} for row in self.COUNTS])
        assert trainer.eta is None
        assert "The train dataset has rollout counts and `labels`, but does not say with which eta" in caplog.text
        assert "Label the rows anew with `eta` (0 for soft labels, inf for hard ones), or add it" in caplog.text
        caplog.clear()
        prm_trainer(base, tmp_path, self.COUNTS, eta=2.0)
        prm_trainer(base, tmp_path, self.labelled([None]))
        assert "eta" not in caplog.text

    def test_eta_without_counts(self, base, tmp_path):
        message = (
            "`eta` is 2.0, but the train dataset has no rollout counts to label from: it has the columns prompt, "
            "completions, labels. Add `num_correct` and `num_rollouts`"
        )
        with pytest.raises(ValueError, match=message):
            prm_trainer(base, tmp_path, ROWS, eta=2.0)

    def test_counts_without_eta_or_labels(self, base, tmp_path):
        message = "The train dataset has rollout counts and no `labels`. Set `eta` to label it from them"
        with pytest.raises(ValueError, match=message):
            prm_trainer(base, tmp_path, self.COUNTS)

    def test_bools_are_labels(self, base, tmp_path):
        trainer = prm_trainer(base, tmp_path, [{**ROWS[0], "labels": [True, False, True]}])
        assert trainer.train_dataset[0]["step_labels"] == [1.0, 0.0, 1.0]

    def test_messages(self, base, tmp_path):
        tokenizer = build_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}={% endfor %}"
        rows = [{**ROWS[1], "prompt": [{"role": "user", "content": "1+1"}]}]
        args = ERPRMConfig(str(tmp_path), **QUIET)
        dataset = Dataset.from_list(rows)
        trainer = ERPRMTrainer(base, args=args, train_dataset=dataset, processing_class=tokenizer)
        ids = tokenizer("1+1=", add_special_tokens=False)["input_ids"]
        assert trainer.train_dataset[0]["input_ids"][: len(ids)] == ids

    def test_last_step_only(self, base, tmp_path):
        """An outcome reward model; the evaluation still looks at every step."""
        trainer = prm_trainer(base, tmp_path, ROWS, ROWS, train_on_last_step_only=True)
        first, second = trainer.train_dataset["step_labels"]
        assert np.isnan(first[:2]).all() and first[2] == 1.0 and second == [0.2]
        assert trainer.eval_dataset[0]["step_labels"] == [0.9, 0.3, 1.0]

    def test_truncation_warns_and_counts(self, base, tmp_path, caplog):
        # prompt "3 +4 *2 \n", steps "3 +4= 2 \n" and "2 *2= 4 \n", answer "# 4 \n"
        assert len(prm_trainer(base, tmp_path, ROWS, max_length=15).train_dataset[0]["step_ends"]) == 3
        assert "max_length" not in caplog.text
        trainer = prm_trainer(base, tmp_path, ROWS, max_length=14)
        assert (
            "1 steps of the train dataset lie beyond `max_length` (14 tokens) and were dropped together with their "
            "labels."
        ) in caplog.text
        assert trainer.train_dataset["step_labels"][:] == [[0.9, 0.3], [0.2]]
        assert [len(ends) for ends in trainer.train_dataset["step_ends"]] == [2, 1]

    def test_rows_of_which_nothing_remains(self, base, tmp_path, caplog):
        long = {"prompt": "1" + "+1" * 40 + "\n", "completions": ["1+1=2"], "labels": [1.0]}
        unlabelled = {**ROWS[0], "labels": [None, None, None]}
        trainer = prm_trainer(base, tmp_path, [*ROWS, long, unlabelled], max_length=30)
        assert len(trainer.train_dataset) == 2
        assert "2 of 4 rows of the train dataset have no labelled step within `max_length` (30 tokens)" in caplog.text
        with pytest.raises(ValueError, match="No row of the train dataset has a labelled step within `max_length`"):
            prm_trainer(base, tmp_path, [long], max_length=30)

    def test_tokenized_rows_are_taken_as_they_are(self, base, tmp_path):
        rows = [{"input_ids": [3, 4, 5], "step_ends": [1, 2], "step_labels": [0.5, 1.0]}]
        assert prm_trainer(base, tmp_path, rows).train_dataset.to_list() == rows

    def test_streaming_equals_map_style(self, base, tmp_path):
        losses = []
        for streaming in (False, True):
            dataset = Dataset.from_list(ROWS)
            dataset = dataset.to_iterable_dataset() if streaming else dataset
            trainer = prm_trainer(base, tmp_path, dataset, max_steps=3, learning_rate=1e-2)
            trainer.train()
            losses.append(logged(trainer, "loss"))
            assert isinstance(trainer.train_dataset, IterableDataset) is streaming
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        "change, message",
        [
            ({"labels": [0.9, 0.3]}, "Row 1: `labels` must be a list with one label for each of the 3 steps, got 2"),
            ({"labels": [0.9, 1.3, 1.0]}, r"Row 1: label 1 must be in \[0, 1\]"),
            ({"completions": ["3+4=2", " ", "#4"]}, "Row 1: step 1 of `completions` must be a str that is not empty"),
            ({"completions": [], "labels": []}, "Row 1: `completions` must be a list of at least one step"),
            ({"prompt": ""}, "Row 1: `prompt` must not be empty"),
        ],
    )
    def test_bad_rows(self, base, tmp_path, change, message, streaming):
        dataset = Dataset.from_list([ROWS[0], {**ROWS[0], **change}])
        with pytest.raises(ValueError, match=message):
            if streaming:
                dataset = dataset.to_iterable_dataset()
            prm_trainer(base, tmp_path, dataset, max_steps=1, logging_steps=1).train()

    def test_wrong_columns(self, base, tmp_path):
        rows = [{"prompt": "1+1\n", "steps": ["1+1=2"]}]
        with pytest.raises(ValueError, match="need the columns `prompt`, `completions`, `labels`, found .*`steps`"):
            prm_trainer(base, tmp_path, rows)


class TestCheckpoints:
    def test_save_and_load_give_equal_scores(self, base, tmp_path, head):
        trainer = prm_trainer(base, tmp_path, ROWS, max_steps=3, learning_rate=1e-2, **head)
        trainer.train()
        trainer.save_model()
        prm = ProcessRewardModel.from_pretrained(tmp_path)
        prompts, steps = [row["prompt"] for row in ROWS], [row["completions"] for row in ROWS]
        for scores, row in zip(prm.score(prompts, steps), ROWS, strict=True):
            trainer.model.eval()
            assert scores == pytest.approx(sigmoid(log_odds_by_hand(trainer.model, row, head)), abs=1e-5)
        # what is left to the head in the format is resolved in the file
        num_labels = None if head is CAUSAL else head.get("num_labels", 1)
        assert prm.format == dataclasses.replace(trainer.format, num_labels=num_labels)

    def test_a_checkpoint_is_a_prm_and_training_resumes(self, base, tmp_path):
        options = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2}
        whole = prm_trainer(base, tmp_path / "whole", ROWS, max_steps=4, **options)
        whole.train()
        prm = ProcessRewardModel.from_pretrained(tmp_path / "whole" / "checkpoint-2")
        assert len(prm.score(["1+1\n"], [["1+1=2"]])[0]) == 1
        resumed = prm_trainer(base, tmp_path / "resumed", ROWS, max_steps=4, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert logged(resumed, "loss")[-2:] == pytest.approx(logged(whole, "loss")[-2:], abs=1e-6)

    def test_eta_is_saved(self, base, tmp_path):
        trainer = prm_trainer(base, tmp_path, TestData.COUNTS, eta=2.0)
        trainer.save_model()
        assert ProcessRewardModel.from_pretrained(tmp_path).eta == 2.0

    def test_lora_moves_only_adapters_and_the_head(self, base, tmp_path, head):
        peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
        trainer = prm_trainer(base, tmp_path, ROWS, peft_config=peft_config, max_steps=3, learning_rate=1e-2, **head)
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        trainer.train()
        moved = {n for n, value in trainer.model.named_parameters() if not torch.equal(value, before[n])}
        allowed = {n for n in before if "lora_" in n or (head is not CAUSAL and "modules_to_save" in n)}
        assert moved and moved <= allowed
        assert any("lora_B" in name for name in moved)
        if head is not CAUSAL:
            assert any("score.modules_to_save.default.weight" in name for name in moved)
        trainer.save_model()
        assert not (tmp_path / "model.safetensors").exists()
        prm = ProcessRewardModel.from_pretrained(tmp_path)
        trainer.model.eval()
        scores = prm.score([row["prompt"] for row in ROWS], [row["completions"] for row in ROWS])
        expected = [sigmoid(log_odds_by_hand(trainer.model, row, head)).tolist() for row in ROWS]
        assert scores == [pytest.approx(of_row, abs=1e-5) for of_row in expected]

    @pytest.mark.parametrize("task_type", ["CAUSAL_LM", "TOKEN_CLS", None])
    def test_the_kind_of_adapter_follows_the_head(self, base, tmp_path, head, task_type):
        """TRL's command line says CAUSAL_LM whatever the model; the caller's object stays as it is."""
        peft_config = LoraConfig(r=2, target_modules=["q_proj"], task_type=task_type)
        trainer = prm_trainer(base, tmp_path, ROWS, peft_config=peft_config, **head)
        expected = "CAUSAL_LM" if head is CAUSAL else "TOKEN_CLS"
        assert trainer.model.peft_config["default"].task_type == expected
        assert peft_config.task_type == task_type and peft_config.modules_to_save is None

    def test_qlora(self, tmp_path, head):
        """4-bit weights, adapters trained; a token-classification head stays unquantized without being asked."""
        pytest.importorskip("bitsandbytes")

        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
        base, output_dir = tmp_path / "base", tmp_path / "prm"
        build_model(hidden_size=64).save_pretrained(base)  # 4-bit blocks are 64 weights long
        build_tokenizer().save_pretrained(base)
        trainer = ERPRMTrainer(
            str(base),
            args=prm_config(output_dir, max_steps=15, learning_rate=1e-2, **head),
            train_dataset=Dataset.from_list([ROWS[0]]),
            quantization_config=quantization,
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        )
        kinds = {name.split(".")[-1]: type(module).__name__ for name, module in trainer.model.named_modules()}
        assert kinds["k_proj"] == "Linear4bit" and kinds.get("score", "ModulesToSaveWrapper") == "ModulesToSaveWrapper"
        trainer.train()
        losses = logged(trainer, "loss")
        assert losses[-1] < losses[0]
        trainer.save_model()
        prm = ProcessRewardModel.from_pretrained(output_dir, quantization_config=quantization)
        assert quantization.llm_int8_skip_modules is None  # the caller's object stays as it is
        trainer.model.eval()
        expected = sigmoid(log_odds_by_hand(trainer.model, ROWS[0], head)).tolist()
        assert prm.score([ROWS[0]["prompt"]], [ROWS[0]["completions"]])[0] == pytest.approx(expected, abs=1e-4)


class TestCounts:
    def test_counts_and_steps_of_different_lengths(self, base, tmp_path):
        rows = [
            {"prompt": "1+1\n", "completions": ["1+1=2", "#2"], "num_correct": [1, 1], "num_rollouts": [2, 1]},
            {"prompt": "1+1\n", "completions": ["1+1=2", "#2"], "num_correct": [1], "num_rollouts": [2, 1]},
        ]
        with pytest.raises(ValueError, match="Row 1 of the train dataset has 2 steps, but 1 `num_correct` and 2"):
            prm_trainer(base, tmp_path, rows, eta=2.0)

    def test_impossible_counts_name_the_row(self, base, tmp_path):
        rows = [{"prompt": "1+1\n", "completions": ["#2"], "num_correct": [9], "num_rollouts": [2]}]
        with pytest.raises(ValueError, match="Row 0 of the train dataset: `num_correct` must not exceed"):
            prm_trainer(base, tmp_path, rows, eta=2.0)


class TestModel:
    def test_a_loaded_model(self, base, tmp_path):
        model = AutoModelForTokenClassification.from_pretrained(base, num_labels=2)
        id2label = dict(model.config.id2label)
        args = ERPRMConfig(str(tmp_path), num_labels=2, **QUIET)
        dataset = Dataset.from_list(ROWS)
        trainer = ERPRMTrainer(model, args=args, train_dataset=dataset, processing_class=build_tokenizer())
        assert trainer.model is model
        assert model.config.num_labels == 2 and model.config.id2label == id2label

    def test_the_labels_of_a_loaded_model_where_none_are_given(self, base, tmp_path):
        model = AutoModelForTokenClassification.from_pretrained(base, num_labels=2)
        args = ERPRMConfig(str(tmp_path), **QUIET)
        assert args.num_labels == 1
        dataset = Dataset.from_list(ROWS)
        trainer = ERPRMTrainer(model, args=args, train_dataset=dataset, processing_class=build_tokenizer())
        assert trainer.args.num_labels == 2 and trainer.model.score.out_features == 2

    def test_a_checkpoint_keeps_its_format(self, base, tmp_path, head):
        """Training goes on in the format that the checkpoint has, its head included, unless another is named."""
        prm_trainer(base, tmp_path / "first", ROWS, max_steps=1, **{**head, "prompt_separator": "#"}).save_model()
        again = prm_trainer(str(tmp_path / "first"), tmp_path / "again", ROWS)
        assert (again.args.head == "causal_lm") is (head is CAUSAL)
        assert again.format.prompt_separator == "#"
        before = ProcessRewardModel.from_pretrained(tmp_path / "first")
        again.save_model()
        after = ProcessRewardModel.from_pretrained(tmp_path / "again")
        assert after.format == before.format
        assert after.score(["3+4\n"], [["3+4=2"]]) == before.score(["3+4\n"], [["3+4=2"]])  # not a new head
        replaced = prm_trainer(str(tmp_path / "first"), tmp_path / "again", ROWS, prompt_separator="")
        assert replaced.format.prompt_separator == "" and replaced.format.step_tag == before.format.step_tag

    def test_a_checkpoint_of_another_head(self, base, tmp_path):
        prm_trainer(base, tmp_path / "first", ROWS, max_steps=1).save_model()
        message = (
            "The checkpoint has the format 'trl', which is read with the head 'token_classification', but `head` is"
        )
        with pytest.raises(ValueError, match=message):
            prm_trainer(str(tmp_path / "first"), tmp_path / "again", ROWS, head="causal_lm")

    def test_a_field_of_preference_models(self, tmp_path):
        with pytest.raises(ValueError, match="`center_rewards_coefficient` belongs to reward models of preference"):
            prm_config(tmp_path, center_rewards_coefficient=0.1)

    def test_the_new_head_depends_on_the_seed_only(self, base, tmp_path):
        heads = []
        for seed in (1, 1, 2):
            torch.manual_seed(len(heads))
            heads.append(prm_trainer(base, tmp_path, ROWS, seed=seed).model.score.weight.detach())
        assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])

    @pytest.mark.parametrize(
        "architecture, changes, message",
        [
            (AutoModelForCausalLM, {}, "`head='token_classification'` needs a .* model, got Qwen2ForCausalLM. Load"),
            (AutoModelForSequenceClassification, {}, "needs a token-classification model, got Qwen2ForSequenceClass"),
            (AutoModelForTokenClassification, CAUSAL, "needs a causal language model, got Qwen2ForTokenClassific"),
            (AutoModelForTokenClassification, {"num_labels": 1}, "The model has 2 labels, but `num_labels` is 1. Set"),
        ],
    )
    def test_wrong_head(self, base, tmp_path, architecture, changes, message):
        model = architecture.from_pretrained(base)
        args = ERPRMConfig(str(tmp_path), **QUIET, **changes)
        with pytest.raises(ValueError, match=message):
            dataset = Dataset.from_list(ROWS)
            ERPRMTrainer(model, args=args, train_dataset=dataset, processing_class=build_tokenizer())

    def test_a_model_of_three_labels(self, base, tmp_path):
        """What the message says to do, works."""
        model = AutoModelForTokenClassification.from_pretrained(base, num_labels=3)
        model.save_pretrained(tmp_path / "three")
        build_tokenizer().save_pretrained(tmp_path / "three")
        dataset, options = Dataset.from_list(ROWS), {"num_labels": 1, "ignore_mismatched_sizes": True}
        message = "must have 1 label .* or 2 .* to score steps, got Qwen2For.* with 3. Load it with `num_labels=1` and"
        with pytest.raises(ValueError, match=message):
            ERPRMTrainer(model, prm_config(tmp_path), dataset, processing_class=build_tokenizer())
        model = AutoModelForTokenClassification.from_pretrained(tmp_path / "three", **options)
        trainer = ERPRMTrainer(model, prm_config(tmp_path), dataset, processing_class=build_tokenizer())
        assert trainer.model.score.out_features == 1
        with pytest.raises(ValueError, match="give it a new head with `ignore_mismatched_sizes=True`"):
            prm_trainer(str(tmp_path / "three"), tmp_path, ROWS)
        kwargs = {"ignore_mismatched_sizes": True}
        again = prm_trainer(str(tmp_path / "three"), tmp_path, ROWS, model_init_kwargs=kwargs)
        assert again.model.score.out_features == 1

    def test_a_causal_checkpoint_has_no_number_of_labels(self, base, tmp_path):
        prm_trainer(base, tmp_path / "first", ROWS, max_steps=1, **CAUSAL).save_model()
        with pytest.raises(ValueError, match="`num_labels` belongs to .*, got 2 with `head='causal_lm'`"):
            prm_trainer(str(tmp_path / "first"), tmp_path / "again", ROWS, num_labels=2)

    def test_a_tag_that_the_tokenizer_does_not_know(self, base, tmp_path):
        with pytest.raises(ValueError, match="The step tag '@' is not in the tokenizer's vocabulary"):
            prm_trainer(base, tmp_path, ROWS, step_tag="@")
