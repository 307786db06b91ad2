"""`trl_erprm.prm.trainer` in training: batches without padding, sampling by length, weights, resuming, adapters."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tests.prm.by_hand import ROWS, log_odds_by_hand, logged, random_rows
from tests.prm.format_bases import save_base_for, solutions
from tests.tiny import CAUSAL, HEADS, prm_trainer, randomize_head, save_base, sigmoid
from trl_erprm import ProcessRewardModel
from trl_erprm.arithmetic import build_model, build_tokenizer
from trl_erprm.prm.attention import PACKED_SDPA

MANY = random_rows(24)
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(params=list(HEADS))
def head(request):
    return HEADS[request.param]


def trained_weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def assert_close(actual, expected, rel=1e-5):
    """Each weight by the size of the largest of its matrix."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() <= rel * value.abs().max() + 1e-8 * bool(rel), name


def record_inputs(trainer):
    """The keyword arguments of each call of the model."""
    calls = []
    trainer.model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True)
    return calls


class TestPaddingFree:
    OPTIONS = {"max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "adam_epsilon": 1e-3}

    def both(self, base, tmp_path, rows=MANY, peft=False, **options):
        """The trainers after training padded and packed, and what their models were called with."""
        trainers = []
        for padding_free in (False, True):
            trainer = prm_trainer(
                base, tmp_path / str(padding_free), rows, peft_config=LoraConfig(**LORA) if peft else None,
                padding_free=padding_free, **{**self.OPTIONS, **options},
            )  # fmt: skip
            randomize_head(trainer.model)
            trainer.calls = record_inputs(trainer)
            trainer.before = trained_weights(trainer)
            trainer.train()
            trainers.append(trainer)
        return trainers

    def check(self, padded, packed):
        for name in ("loss", "step_auroc", "mean_score", "num_tokens"):
            assert logged(packed, name) == pytest.approx(logged(padded, name), rel=1e-5), name
        assert logged(packed, "grad_norm") == pytest.approx(logged(padded, "grad_norm"), rel=1e-4)
        before, after = padded.before, trained_weights(padded)
        assert any((after[name] - before[name]).abs().max() > 1e-3 for name in before)
        assert_close(trained_weights(packed), after)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
            {"activation_checkpointing": True},
            {"pad_to_multiple_of": 16},
            {"loss_type": "mse", "balance_classes": True},
        ],
        ids=lambda options: next(iter(options), "plain"),
    )
    def test_equals_padding(self, base, tmp_path, head, options):
        padded, packed = self.both(base, tmp_path, **head, **options)
        self.check(padded, packed)
        for of_padded, of_packed in zip(padded.calls, packed.calls, strict=True):
            batch_size, longest = of_padded["input_ids"].shape
            assert batch_size > 1 and "position_ids" not in of_padded
            lengths = of_packed["cu_seq_lens_q"].diff()[:batch_size]
            assert of_packed["input_ids"].shape[0] == 1
            total = int(lengths.sum())
            if "pad_to_multiple_of" in options:
                assert longest % 16 == of_packed["input_ids"].shape[1] % 16 == 0
                assert 0 <= of_packed["input_ids"].shape[1] - total < 16
            else:
                assert of_packed["input_ids"].shape[1] == total < batch_size * longest

    def test_lora(self, base, tmp_path, head):
        padded, packed = self.both(base, tmp_path, peft=True, **head)
        self.check(padded, packed)
        assert packed.calls[0]["input_ids"].shape[0] == 1

    def test_a_solution_does_not_see_another(self, base, tmp_path, head):
        """Scores within a row of four, one of which is exchanged: the scores of the others stay bit for bit."""
        trainer = prm_trainer(base, tmp_path, MANY, **head)
        randomize_head(trainer.model)
        rows = [MANY[i] for i in (0, 1, 2, 3)]
        encoded = trainer._prepare_dataset(
            Dataset.from_list([*rows, MANY[5]]), trainer.processing_class, trainer.args, "eval"
        ).to_list()
        scores = []
        for second in (encoded[1], encoded[4]):
            batch = trainer.data_collator([encoded[0], second, encoded[2], encoded[3]])
            assert batch["input_ids"].shape[0] == 1
            _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
            scores.append(outputs["step_scores"])
        for i, row in enumerate(rows):
            known = [k for k, label in enumerate(row["labels"]) if label is not None]
            expected = sigmoid(log_odds_by_hand(trainer.model, row, head))[known]
            if i != 1:
                assert scores[0][i, known].tolist() == pytest.approx(expected, abs=1e-5)
                assert torch.equal(scores[0][i, known], scores[1][i, known])

    @pytest.mark.parametrize("padding_free, is_packed", [(None, True), (True, True), (False, False)])
    def test_on_where_the_model_can(self, base, tmp_path, padding_free, is_packed):
        trainer = prm_trainer(base, tmp_path, ROWS, padding_free=padding_free)
        assert trainer.padding_free is trainer.data_collator.padding_free is is_packed
        assert trainer.model.config._attn_implementation == (PACKED_SDPA if is_packed else "sdpa")

    def test_a_model_that_cannot(self, base, tmp_path, caplog):
        options = {"model_init_kwargs": {"attn_implementation": "eager"}, "max_steps": 2, "learning_rate": 1e-2}
        message = (
            "`padding_free=True`, but Qwen2ForTokenClassification cannot take batches without padding: its attention "
            "runs as 'eager', and 'sdpa' or a FlashAttention is needed. Leave `padding_free` out"
        )
        with pytest.raises(ValueError, match=message):
            prm_trainer(base, tmp_path, ROWS, padding_free=True, **options)
        trainer = prm_trainer(base, tmp_path, ROWS, **options)
        assert not trainer.padding_free and not trainer.data_collator.padding_free and not caplog.text
        trainer.train()
        other = prm_trainer(base, tmp_path, ROWS, **{**options, "model_init_kwargs": None})
        other.train()
        assert other.padding_free
        assert logged(trainer, "loss") == pytest.approx(logged(other, "loss"), rel=1e-5)

    def test_the_model_generates_as_before(self, base, tmp_path):
        """Left padding, a cache, a batch: after training with learning rate 0, token for token."""
        tokenizer = build_tokenizer()
        prompts = ["3+4*2\n", "1\n", "2*3+1-4\n3+4=2\n"]
        inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        options |= {"return_dict_in_generate": True, "output_logits": True}
        trainer = prm_trainer(base, tmp_path, ROWS, max_steps=1, learning_rate=0.0, **CAUSAL)
        trainer.train()
        assert trainer.padding_free
        expected = AutoModelForCausalLM.from_pretrained(base).generate(**inputs, **options)
        actual = trainer.model.eval().generate(**inputs, **options)
        assert torch.equal(actual.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(actual.logits), torch.stack(expected.logits), rtol=1e-5, atol=1e-5)

    def test_the_checkpoint_does_not_know_of_it(self, base, tmp_path):
        trainer = prm_trainer(base, tmp_path, ROWS, max_steps=1)
        trainer.train()
        trainer.save_model()
        assert PACKED_SDPA not in (tmp_path / "config.json").read_text("utf-8")
        assert AutoModelForTokenClassification.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


class TestSampling:
    def lengths(self, trainer):
        """Of the solutions in each batch that the model is given."""
        calls = record_inputs(trainer)
        trainer.train()
        return [call["cu_seq_lens_q"].diff().tolist() for call in calls]

    def test_group_by_length(self, base, tmp_path, monkeypatch):
        import transformers.trainer as module

        given = []
        init = module.LengthGroupedSampler.__init__

        def record(self, *args, lengths=None, **kwargs):
            given.append(lengths)
            init(self, *args, lengths=lengths, **kwargs)

        monkeypatch.setattr(module.LengthGroupedSampler, "__init__", record)
        rows, ranges = random_rows(64), {}
        for strategy in ("random", "group_by_length"):
            trainer = prm_trainer(
                base, tmp_path, rows, rows, per_device_train_batch_size=4, learning_rate=0.0,
                train_sampling_strategy=strategy,
            )  # fmt: skip
            batches = self.lengths(trainer)
            assert sorted(n for batch in batches for n in batch) == sorted(trainer.train_dataset["length"])
            ranges[strategy] = np.mean([max(batch) - min(batch) for batch in batches])
            assert math.isfinite(trainer.evaluate()["eval_loss"])
        assert ranges["group_by_length"] < ranges["random"] / 2
        # from the column that was made for it, not from a second pass over the tokens
        assert [list(lengths) for lengths in given] == [trainer.train_dataset["length"][:]] * 2

    def test_batch_rebalance(self, base, tmp_path):
        """Micro-batches of unequal numbers of solutions; all steps of an epoch add up to the same loss."""
        rows, totals, sizes = random_rows(32), {}, {}
        for strategy in ("random", "batch_rebalance"):
            trainer = prm_trainer(
                base, tmp_path, rows, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=0.0,
                train_sampling_strategy=strategy, logging_steps=4,
            )  # fmt: skip
            randomize_head(trainer.model)
            sums = []
            compute_loss = trainer.compute_loss

            def record(model, inputs, compute_loss=compute_loss, sums=sums, **kwargs):
                loss = compute_loss(model, inputs, **kwargs)
                sums.append(loss.item() * float(kwargs["num_items_in_batch"]))
                return loss

            trainer.compute_loss = record
            sizes[strategy] = {len(batch) for batch in self.lengths(trainer)}
            totals[strategy] = sum(sums)
            [entry] = [entry for entry in trainer.state.log_history if "loss" in entry]
            totals[strategy, "brier_score"] = entry["brier_score"]
        assert sizes["random"] == {4} and len(sizes["batch_rebalance"]) > 1
        assert totals["batch_rebalance"] == pytest.approx(totals["random"], rel=1e-4)
        assert totals["batch_rebalance", "brier_score"] == pytest.approx(totals["random", "brier_score"], rel=1e-5)


class TestWeights:
    # The outcome of the first is known: its last step weighs 8, as the best-known step of all.
    ROWS = [
        {**ROWS[0], "num_rollouts": [4, 2, 1], "outcome": 1.0},
        {**ROWS[1], "num_rollouts": [8], "outcome": None},
    ]
    LABELS = np.array([0.9, 0.3, 1.0, 0.2])
    ROLLOUTS = np.array([4.0, 2.0, 8.0, 8.0])

    def balance(self, labels, weights):
        mean = (labels * weights).sum() / weights.sum()
        return labels / (2 * mean) + (1 - labels) / (2 * (1 - mean))

    def step_losses(self, trainer, head):
        scores = sigmoid(np.concatenate([log_odds_by_hand(trainer.model, row, head) for row in self.ROWS]))
        return -self.LABELS * np.log(scores) - (1 - self.LABELS) * np.log(1 - scores)

    @pytest.mark.parametrize("padding_free", [False, True])
    @pytest.mark.parametrize("by_rollouts, balanced", [(True, False), (False, True), (True, True)])
    def test_two_rows_by_hand(self, base, tmp_path, head, padding_free, by_rollouts, balanced):
        trainer = prm_trainer(
            base, tmp_path, self.ROWS, self.ROWS, max_steps=1, learning_rate=0.0, padding_free=padding_free,
            weight_by_rollouts=by_rollouts, balance_classes=balanced, **head,
        )  # fmt: skip
        randomize_head(trainer.model)
        losses = self.step_losses(trainer, head)
        weights = self.ROLLOUTS if by_rollouts else np.ones(4)
        if balanced:
            weights = weights * self.balance(self.LABELS, weights)
        expected = (weights * losses).sum() / weights.sum()
        assert abs(expected - losses.mean()) > 1e-3
        trainer.train()
        assert logged(trainer, "loss") == [pytest.approx(expected, rel=1e-4)]
        # in evaluation, and in the metrics, every step counts once
        assert trainer.evaluate()["eval_loss"] == pytest.approx(losses.mean(), rel=1e-4)
        assert logged(trainer, "mean_label") == [pytest.approx(self.LABELS.mean())]
        assert "step_weights" not in trainer.eval_dataset.column_names

    def test_with_labels_from_counts(self, base, tmp_path):
        rows = [
            {**row, "labels": [0.5] * len(row["labels"]), "num_correct": [1] * len(row["labels"])} for row in self.ROWS
        ]
        trainer = prm_trainer(base, tmp_path, rows, eta=0, weight_by_rollouts=True, balance_classes=True)
        labels = np.array([1 / 4, 1 / 2, 1, 1 / 8])
        assert np.concatenate(trainer.train_dataset["step_labels"][:]) == pytest.approx(labels)
        expected = self.ROLLOUTS * self.balance(labels, self.ROLLOUTS)
        assert np.concatenate(trainer.train_dataset["step_weights"][:]) == pytest.approx(expected)

    def test_last_step_only(self, base, tmp_path):
        """Balanced among the steps that are learnt from: 0.5 and 0.2."""
        rows = [{**self.ROWS[0], "labels": [0.9, 0.3, 0.5]}, self.ROWS[1]]
        trainer = prm_trainer(base, tmp_path, rows, train_on_last_step_only=True, balance_classes=True)
        expected = self.balance(np.array([0.5, 0.2]), np.ones(2))
        assert [weights[-1] for weights in trainer.train_dataset["step_weights"]] == pytest.approx(expected)

    def test_accumulation_1x4_equals_4x1(self, base, tmp_path, head):
        """The weights of all micro-batches are counted before the first is run."""
        rng = np.random.default_rng(0)
        rows = [{**row, "num_rollouts": rng.integers(1, 17, len(row["labels"])).tolist()} for row in MANY]
        results = []
        for batch_size, accumulation in ((4, 1), (1, 4), (2, 2)):
            trainer = prm_trainer(
                base, tmp_path, rows, max_steps=3, learning_rate=1e-3, adam_epsilon=1e-3,
                per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
                weight_by_rollouts=True, balance_classes=True, **head,
            )  # fmt: skip
            trainer.train()
            results.append((logged(trainer, "loss"), trained_weights(trainer)))
        for losses, weights in results[1:]:
            assert losses == pytest.approx(results[0][0], rel=1e-4)
            assert_close(weights, results[0][1], rel=1e-4)

    def test_a_label_of_0_9_stays_0_9(self, base, tmp_path, head):
        """A weight is one of a whole step: it moves how much a step counts, not what its best score is."""
        row = {"prompt": "3+4*2\n", "completions": ["3+4=2", "2*2=3"], "labels": [0.9, 0.3], "num_rollouts": [2, 3]}
        options = {"balance_classes": True, "weight_by_rollouts": True}
        trainer = prm_trainer(base, tmp_path, [row], max_steps=60, learning_rate=1e-2, **options, **head)
        trainer.train()
        trainer.model.eval()
        assert sigmoid(log_odds_by_hand(trainer.model, row, head)).tolist() == pytest.approx([0.9, 0.3], abs=0.02)

    @pytest.mark.parametrize(
        "rows, options, message",
        [
            (MANY, {"weight_by_rollouts": True}, "`weight_by_rollouts` needs the column `num_rollouts`, but the tr"),
            ([{**ROWS[1], "labels": [1.0]}], {"balance_classes": True}, "the mean label of the train dataset is 1.0"),
            ("stream", {"balance_classes": True, "max_steps": 1}, "which a streaming train dataset does not allow"),
            ("stream", {"weight_by_rollouts": True, "max_steps": 1}, "which a streaming train dataset does not allow"),
        ],
    )
    def test_errors(self, base, tmp_path, rows, options, message):
        rows = Dataset.from_list(self.ROWS).to_iterable_dataset() if rows == "stream" else rows
        with pytest.raises(ValueError, match=message):
            prm_trainer(base, tmp_path, rows, **options)


@pytest.fixture(scope="module")
def base_with_dropout(tmp_path_factory):
    path = tmp_path_factory.mktemp("dropout")
    model = build_model(hidden_size=32)
    model.config.attention_dropout, model.config.classifier_dropout = 0.2, 0.3
    model.save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return str(path)


class TestResume:
    @pytest.mark.parametrize(
        "head, peft, sampling, dropout",
        [
            ("one_label", False, "random", True),
            ("two_labels", False, "group_by_length", True),
            ("causal_lm", False, "random", False),
            ("one_label", True, "group_by_length", False),
            ("causal_lm", True, "random", True),
        ],
    )
    def test_bit_for_bit(self, base_with_dropout, tmp_path, head, peft, sampling, dropout):
        """Six steps in two epochs at once, and the last three from a checkpoint in the middle of the first."""

        def build(output_dir):
            peft_config = LoraConfig(**LORA, lora_dropout=0.1 if dropout else 0.0) if peft else None
            return prm_trainer(
                base_with_dropout, output_dir, MANY[:16], peft_config=peft_config, max_steps=6, save_strategy="steps",
                save_steps=3, learning_rate=1e-2, lr_scheduler_type="cosine", per_device_train_batch_size=2,
                gradient_accumulation_steps=2, train_sampling_strategy=sampling, disable_dropout=not dropout,
                **HEADS[head],
            )  # fmt: skip

        whole = build(tmp_path / "whole")
        whole.train()
        torch.manual_seed(99)  # the random state is part of the checkpoint
        resumed = build(tmp_path / "resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        for name in ("loss", "grad_norm", "learning_rate", "num_tokens", "brier_score", "mean_score"):
            assert len(logged(whole, name)) == 6
            assert logged(resumed, name)[3:] == logged(whole, name)[3:], name
        assert len(set(logged(whole, "num_tokens"))) == 6
        for (name, ours), (_, theirs) in zip(
            resumed.model.named_parameters(), whole.model.named_parameters(), strict=True
        ):
            assert torch.equal(ours, theirs), name
        ours, theirs = resumed.optimizer.state_dict()["state"], whole.optimizer.state_dict()["state"]
        assert ours.keys() == theirs.keys() and len(theirs) > 1
        for parameter in theirs:
            for name, value in theirs[parameter].items():
                assert torch.equal(ours[parameter][name], value)

    def test_the_checkpoint_is_a_prm(self, base, tmp_path, head):
        """Each checkpoint of a run, by itself, gives the scores that the model had then."""
        trainer = prm_trainer(
            base, tmp_path, ROWS, ROWS, max_steps=2, learning_rate=1e-2, save_strategy="steps", save_steps=1, **head
        )
        trainer.train()
        scores = [
            ProcessRewardModel.from_pretrained(tmp_path / f"checkpoint-{step}").score(
                [row["prompt"] for row in ROWS], [row["completions"] for row in ROWS]
            )
            for step in (1, 2)
        ]
        trainer.model.eval()
        expected = [sigmoid(log_odds_by_hand(trainer.model, row, head)).tolist() for row in ROWS]
        assert scores[1] == [pytest.approx(of_row, abs=1e-5) for of_row in expected]
        assert scores[0][0] != pytest.approx(scores[1][0], abs=1e-4)


class TestAdapters:
    def test_modules_to_save_of_the_user_are_kept(self, base, tmp_path, head):
        """And "score" is added once, whether it was named or not."""
        expected_head = set() if head is CAUSAL else {"score"}
        for given in (None, ["model.norm"], [*expected_head], ["model.norm", *expected_head]):
            peft_config = LoraConfig(**LORA, modules_to_save=given and list(given))
            trainer = prm_trainer(base, tmp_path, ROWS, peft_config=peft_config, **head)
            saved = [n for n, m in trainer.model.named_modules() if type(m).__name__ == "ModulesToSaveWrapper"]
            expected = sorted({*(given or []), *expected_head})
            assert sorted(name.removeprefix("base_model.model.") for name in saved) == expected
            assert peft_config.modules_to_save == given

    def test_mlp_head(self, tmp_path):
        """The head of Qwen2.5-Math-PRM, two layers, is trained whole beside the adapter, saved and loaded."""
        base = save_base_for("qwen2.5-math-prm", tmp_path / "base")
        rows = solutions()
        trainer = prm_trainer(
            base, tmp_path / "prm", rows, peft_config=LoraConfig(**LORA), max_steps=2, learning_rate=1e-2,
            format="qwen2.5-math-prm", max_length=256,
        )  # fmt: skip
        before = trained_weights(trainer)
        head = {name for name in before if ".score." in name}
        assert len(head) == 4  # two matrices and their biases
        trainer.train()
        moved = {name for name, value in trained_weights(trainer).items() if not torch.equal(value, before[name])}
        assert head <= moved and any("lora_B" in name for name in moved)
        assert all("lora_" in name for name in set(before) - head)
        expected = trainer.predict(Dataset.from_list(rows)).predictions
        trainer.save_model()
        assert not (tmp_path / "prm" / "model.safetensors").exists()
        prm = ProcessRewardModel.from_pretrained(tmp_path / "prm")
        scores = prm.score([row["prompt"] for row in rows], [row["completions"] for row in rows])
        for i, of_row in enumerate(scores):
            assert of_row == pytest.approx(expected[i, : len(of_row)], abs=1e-5)


class TestActivationOffloading:
    def test_reaches_the_context_of_trl(self, base, tmp_path, monkeypatch):
        """
        TRL's context manager is made for our model and entered at every step. What it does is not seen here: it needs
        an accelerator, and raises on a machine without one.
        """
        made, entered = [], []

        class Context(contextlib.nullcontext):
            def __enter__(self):
                entered.append(self)

        def make(model, **kwargs):
            made.append(model)
            return Context()

        monkeypatch.setattr("trl.trainer.reward_trainer.get_act_offloading_ctx_manager", make)
        for offloading in (False, True):
            trainer = prm_trainer(base, tmp_path, MANY, max_steps=2, activation_offloading=offloading)
            trainer.train()
            assert made == ([trainer.model] if offloading else [])
            assert len(entered) == (2 if offloading else 0)


class TestPushToHub:
    @pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
    def test_what_is_uploaded(self, base, tmp_path, monkeypatch, peft):
        """Every file that `from_pretrained` needs, as TRL uploads it; nothing leaves this machine."""
        from huggingface_hub import HfApi, RepoUrl

        uploads = []

        def create_repo(self, repo_id, **kwargs):
            return RepoUrl(f"https://huggingface.co/someone/{repo_id.split('/')[-1]}")

        def upload_folder(self, *, repo_id, folder_path, **kwargs):
            from pathlib import Path

            files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir() if path.is_file()}
            uploads.append((repo_id, files, kwargs))

        monkeypatch.setattr(HfApi, "create_repo", create_repo)
        monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
        trainer = prm_trainer(
            base, tmp_path / "my-prm", ROWS, max_steps=1, eta=None, hub_model_id="someone/my-prm",
            peft_config=LoraConfig(**LORA) if peft else None,
        )  # fmt: skip
        trainer.train()
        trainer.push_to_hub(dataset_name="someone/steps")
        [(repo_id, files, kwargs)] = uploads
        assert repo_id == "someone/my-prm" and kwargs["commit_message"] == "End of training"
        weights = (
            {"adapter_model.safetensors", "adapter_config.json"} if peft else {"model.safetensors", "config.json"}
        )
        assert {"prm_format.json", "README.md", "tokenizer.json", *weights} <= set(files)
        assert json.loads(files["prm_format.json"])["name"] == "trl"
        card = files["README.md"].decode()
        assert 'ProcessRewardModel.from_pretrained("someone/my-prm")' in card
        assert "process-reward-model" in card and "someone/steps" in card and "pipeline(" not in card
        # what was uploaded is a process reward model
        folder = tmp_path / "downloaded"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        prm = ProcessRewardModel.from_pretrained(folder)
        trainer.model.eval()
        [scores] = prm.score([ROWS[0]["prompt"]], [ROWS[0]["completions"]])
        assert scores == pytest.approx(sigmoid(log_odds_by_hand(trainer.model, ROWS[0], {})), abs=1e-5)
