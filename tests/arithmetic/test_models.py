"""`trl_erprm.arithmetic.models`: tokenizer, models and the policy."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from trl_erprm.arithmetic import STEP_TAG, ArithmeticTask, build_model, build_tokenizer, train_policy
from trl_erprm.manifest import content_hash
from trl_erprm.rollout import Prefix, SamplingOptions, load_engine

SMALL = {"num_train": 60, "num_validation": 20, "num_test": 20}
HARD = ArithmeticTask(modulus=13, operators="+-*", num_operations=2, num_distractors=1, **SMALL)


KNOWN_VOCABULARY = "0b96198fabcf42ea"


class TestTokenizer:
    def test_a_step_is_five_tokens(self):
        tokenizer = build_tokenizer()
        assert tokenizer.tokenize("3+4=2\n", add_special_tokens=False) == ["3", "+4=", "2", "\u010a"]
        assert len(tokenizer("3+4*2\n", add_special_tokens=False)["input_ids"]) == 4

    def test_text_comes_back(self):
        tokenizer = build_tokenizer()
        for text in ("3+4*2\n3+4=2\n2*2=4\n#4", "9-9=0\n", f"1+1=2{STEP_TAG}"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text

    def test_the_ids_do_not_change_between_versions(self):
        """Checkpoints rest on them."""
        tokenizer = build_tokenizer()
        assert len(tokenizer) == 80
        assert content_hash(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))[:16] == KNOWN_VOCABULARY
        for task in (ArithmeticTask(), ArithmeticTask(modulus=10)):
            assert build_tokenizer(task).get_vocab() == tokenizer.get_vocab()

    @pytest.mark.parametrize(
        "changes, num_tokens", [({"num_distractors": 0}, 80 + 3 * 7), ({"modulus": 10}, 81), ({}, 80 + 3 * 7 + 1)]
    )
    def test_what_a_task_has_more_stands_behind(self, changes, num_tokens):
        """A letter is a token, and six more with its operations."""
        tokenizer, basis = build_tokenizer(replace(HARD, **changes)), build_tokenizer().get_vocab()
        assert len(tokenizer) == num_tokens
        assert basis.items() <= tokenizer.get_vocab().items()

    def test_rows_of_a_hard_task(self):
        tokenizer = build_tokenizer(HARD)
        text = "c+4*b\n?3+9*2\n3+9=c\nc*2=b\n#b"
        expected = ["c", "+4", "*b", "\u010a", "?", "3", "+9", "*2", "\u010a"]
        assert tokenizer.tokenize(text)[:9] == expected
        lengths = set()
        for problem in HARD.problems("train"):
            whole = "\n".join([problem, *HARD.solve(problem)])
            ids = tokenizer(whole)["input_ids"]
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == whole
            lengths.add(len(ids))
        assert lengths == {9 + 10}

    def test_the_tag_is_one_token(self):
        assert len(build_tokenizer()(STEP_TAG, add_special_tokens=False)["input_ids"]) == 1

    @pytest.mark.parametrize("task", [None, HARD])
    def test_round_trip_beside_a_model(self, tmp_path, task):
        """transformers picks the tokenizer class of the model type, whatever was saved: ids have to stay."""
        build_model(hidden_size=32, task=task).save_pretrained(tmp_path)
        tokenizer = build_tokenizer(task)
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        for text in ["3+4*2\n", "3+4=2\n2*2=4\n#4", f"0-9=1{STEP_TAG}", "3 x", "c+4\n?3+9\n3+9=c\n#c"]:
            assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
            assert loaded.decode(loaded(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
        names = ("pad_token_id", "eos_token_id", "unk_token_id", "bos_token_id", "padding_side")
        assert [getattr(loaded, n) for n in names] == [getattr(tokenizer, n) for n in names]
        assert len(loaded) == len(tokenizer)


class TestModel:
    def test_seed(self):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = build_model(hidden_size=32)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        second, other = build_model(hidden_size=32), build_model(hidden_size=32, seed=1)
        weights = [m.model.layers[0].mlp.up_proj.weight for m in (first, second, other)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])

    def test_size(self):
        model = build_model()
        assert sum(p.numel() for p in model.parameters()) < 200_000
        assert model.config.vocab_size == len(build_tokenizer())
        wide = build_model(hidden_size=32, num_layers=1, initializer_range=0.5)
        assert (wide.config.hidden_size, len(wide.model.layers)) == (32, 1)
        assert wide.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.5, rel=0.1)
        assert build_model(hidden_size=32, task=HARD).config.vocab_size == len(build_tokenizer(HARD))

    @pytest.mark.parametrize(
        "hidden_size, num_heads, deviation",
        [(32, 4, 0.1), (64, 4, 0.1), (128, 4, 0.1 / math.sqrt(2)), (256, 4, 0.05), (384, 6, 0.1 / math.sqrt(6))],
    )
    def test_shape_and_start_of_wider_models(self, hidden_size, num_heads, deviation):
        model = build_model(hidden_size, num_layers=1)
        assert model.config.num_attention_heads == model.config.num_key_value_heads == num_heads
        assert model.config.initializer_range == pytest.approx(deviation)
        assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert model(torch.tensor([[3, 4]])).logits.shape == (1, 2, 80)

    @pytest.mark.parametrize("num_operations, num_distractors", [(5, 0), (8, 3), (40, 5), (120, 0)])
    def test_rows_of_its_task_fit(self, num_operations, num_distractors):
        task = ArithmeticTask(num_operations=num_operations, num_distractors=num_distractors, **SMALL)
        problem, tokenizer = task.problems("test")[0], build_tokenizer(task)
        num_tokens = len(tokenizer("\n".join([problem, *task.solve(problem)]))["input_ids"])
        room = build_model(hidden_size=8, num_layers=1, task=task).config.max_position_embeddings - num_tokens
        assert room >= num_operations

    @pytest.mark.parametrize("hidden_size, multiple", [(66, 8), (0, 8), (390, 12)])
    def test_widths_that_heads_cannot_share(self, hidden_size, multiple):
        with pytest.raises(ValueError, match=f"`hidden_size` must be a multiple of {multiple} .*got {hidden_size}"):
            build_model(hidden_size)

    @pytest.mark.parametrize("num_layers, message", [(0, "at least 1, got 0"), (2.0, "a whole number, got 2.0")])
    def test_layers_that_cannot_be(self, num_layers, message):
        with pytest.raises(ValueError, match=f"`num_layers` must be {message}"):
            build_model(num_layers=num_layers)


class TestTrainPolicy:
    OPTIONS = {"num_steps": 120, "batch_size": 32, "solutions_per_problem": 2}  # those of the fixture `tiny_policy`

    def test_it_writes_solutions(self, tiny_policy):
        task, path = tiny_policy
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        engine = load_engine("transformers", model=model, tokenizer=tokenizer)
        rows = task.dataset("test", 20)
        groups = engine.generate([Prefix(p) for p in rows["prompt"]], 4, SamplingOptions(max_new_tokens=20, seed=0))
        completions = [(p, c) for p, group in zip(rows["prompt"], groups, strict=True) for c in group]
        well_formed = [task.is_well_formed(p, c.text.splitlines()) for p, c in completions]
        assert np.mean(well_formed) > 0.75
        assert np.mean([c.finish_reason == "stop" for _, c in completions]) > 0.9

    def test_it_is_cached(self, tiny_policy, monkeypatch):
        task, path = tiny_policy

        def train(self):
            raise AssertionError("trained again")

        monkeypatch.setattr(Trainer, "train", train)
        assert str(train_policy(task, path, **self.OPTIONS)) == path
        for other, options in [
            (task, {"num_steps": 121}),
            (task, {"learning_rate": 1e-4}),
            (task, {"batch_size": 16}),
            (task, {"solutions_per_problem": 3}),
            (task, {"seed": 1}),
            (task, {"hidden_size": 32}),
            (task, {"num_layers": 1}),
            (replace(task, num_distractors=1), {}),
            (replace(task, random_error_rate=0.1), {}),
        ]:
            with pytest.raises(ValueError, match="holds a policy that was trained with other arguments"):
                train_policy(other, path, **{**self.OPTIONS, **options})

    def test_a_policy_of_before_is_kept(self, tiny_policy):
        """The record of a policy without what came later is as it was before."""
        task, path = tiny_policy
        record = json.loads((Path(path) / "arithmetic_policy.json").read_text())
        assert record.keys() == {"task", "num_steps", "batch_size", "learning_rate", "solutions_per_problem", "seed"}
        assert "num_distractors" not in record["task"]
        assert str(train_policy(task, path, **self.OPTIONS, device="cpu", bf16=True)) == path  # not what it is

    @staticmethod
    def loss(model, task):
        """Mean loss of the right solutions of held-out problems, in nats a token."""
        tokenizer = build_tokenizer(task)
        prompts = tokenizer([f"{p}\n" for p in task.problems("test")])["input_ids"]
        solutions = tokenizer(["\n".join(task.solve(p)) for p in task.problems("test")])["input_ids"]
        ids = torch.tensor([p + s for p, s in zip(prompts, solutions, strict=True)])
        labels = ids.clone()
        labels[:, : len(prompts[0])] = -100
        with torch.no_grad():
            return model(ids, labels=labels).loss.item()

    def test_a_hard_task_is_learnt(self, tmp_path):
        task = replace(HARD, num_train=2000)
        options = {"num_steps": 300, "batch_size": 32, "learning_rate": 1e-2, "hidden_size": 32, "num_layers": 1}
        losses = []
        for bf16 in (False, True):
            path = train_policy(task, tmp_path / f"policy-{bf16}", device="cpu", bf16=bf16, **options)
            model = AutoModelForCausalLM.from_pretrained(path)
            assert (model.config.hidden_size, len(model.model.layers)) == (32, 1)
            assert model.dtype == torch.float32
            losses.append(self.loss(model, task))
        start = self.loss(build_model(32, 1, task=task), task)
        assert start > 4 and max(losses) < start / 2
        assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.1)

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"num_layers": 0}, "`num_layers` must be at least 1, got 0"),
            ({"hidden_size": 66}, "`hidden_size` must be a multiple of 8"),
            ({"num_steps": 0}, "`num_steps` must be at least 1, got 0"),
            ({"batch_size": -1}, "`batch_size` must be at least 1, got -1"),
            ({"solutions_per_problem": 0.5}, "`solutions_per_problem` must be a whole number, got 0.5"),
            ({"task": replace(HARD, num_train=0)}, "`num_train` must be at least 1, got 0"),
        ],
    )
    def test_values_that_cannot_be(self, tmp_path, monkeypatch, options, message):
        """Said before solutions are drawn."""
        monkeypatch.setattr(ArithmeticTask, "sample_solution", None)
        with pytest.raises(ValueError, match=message):
            train_policy(**{"task": HARD, "output_dir": tmp_path / "policy", **options})
        assert not (tmp_path / "policy").exists()

    def test_device(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match='`device` is "cuda", but torch sees no GPU here'):
            train_policy(HARD, tmp_path / "policy", device="cuda")
        with pytest.raises(ValueError, match="`device` must be one of 'cpu', 'cuda', got 'gpu'"):
            train_policy(HARD, tmp_path / "policy", device="gpu")
        asked = []

        def train(self):
            asked.append(self.args.use_cpu)
            raise KeyboardInterrupt

        monkeypatch.setattr(Trainer, "train", train)
        for device in ("cpu", None):
            with pytest.raises(KeyboardInterrupt):
                train_policy(HARD, tmp_path / "policy", device=device)
        assert asked == [True, False]

    def test_an_interrupted_training_starts_again(self, tmp_path, monkeypatch):
        task = ArithmeticTask(num_operations=2, **SMALL)

        def train(self):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train", train)
            with pytest.raises(KeyboardInterrupt):
                train_policy(task, tmp_path / "policy", num_steps=1)
        train_policy(task, tmp_path / "policy", num_steps=1)
        record = json.loads((tmp_path / "policy" / "arithmetic_policy.json").read_text())
        assert record["num_steps"] == 1 and record["task"]["num_operations"] == 2
