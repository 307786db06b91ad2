"""`trl_erprm.policy.rft_trainer`: the loop, what is written, LoRA, conversations, errors."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTTrainer

from tests.policy.rft_runs import is_right, read_parquet, rft_config, selected
from trl_erprm import RFTTrainer
from trl_erprm.policy import rft_trainer


class OnTrainEnd(TrainerCallback):
    """Does something whenever a fine-tuning is complete."""

    def __init__(self, action):
        self.action = action

    def on_train_end(self, *args, **kwargs):
        self.action()


class TestEvaluation:
    def test_by_hand(self, make_rft, scripted):
        """Greedy takes the first of each list; best of 4 by a reward that likes high digits."""
        held_out = Dataset.from_dict({"prompt": ["1+1\n", "2+2\n"], "answer": ["2", "4"]})
        prompts = Dataset.from_dict({"prompt": ["3+3\n"], "answer": ["1"]})
        scripted({"1+1\n": ["#1", "#2", "#2", "x"], "2+2\n": ["#4", "#3", "#3", "#0…"], "3+3\n": ["#1"] * 4})

        def high_digit(prompts, completions, **_):
            return [float(c[1:]) if c[1:] else None for c in completions]

        [start, _] = make_rft(high_digit, prompts, held_out, num_iterations=1).train()
        assert start["greedy"] == 0.5  # "#1" is wrong, "#4" is right
        assert start["sampled"] == pytest.approx((2 / 4 + 1 / 4) / 2)
        assert start["best_of_n"] == 1.0
        assert start["majority"] == 0.5
        assert start["oracle"] == 1.0
        assert start["unparsed_share"] == 1 / 8
        assert (start["iteration"], start["num_problems"], start["n"]) == (0, 2, 4)
        assert start["sampled_low"] <= start["sampled"] <= start["sampled_high"]

    def test_without_held_out_prompts(self, make_rft):
        history = make_rft(held_out=0, num_iterations=1).train()
        assert history[0] == {"iteration": 0}
        assert set(history[1]) == {
            "iteration", "reward", "num_selected", "num_prompts_selected", "num_without_candidate", "reasons",
            "training_loss", "num_steps",
        }  # fmt: skip

    def test_logged(self, make_rft, tmp_path):
        """What trackers get, by the step that they get it at: one count over all iterations, also in a second run."""

        class Tracker(TrainerCallback):
            def __init__(self):
                self.seen = []

            def on_log(self, args, state, control, logs, **kwargs):
                self.seen += [(state.global_step, name) for name in ("loss", "rft/sampled") if name in logs]

        trainer, tracker = make_rft(), Tracker()
        trainer.add_callback(tracker)
        history = trainer.train()
        whole = [(0, "rft/sampled"), *((i, "loss") for i in (1, 2, 3)), (3, "rft/sampled")]
        whole += [*((i, "loss") for i in (4, 5, 6)), (6, "rft/sampled")]
        assert tracker.seen == whole
        entries = [entry for entry in trainer.state.log_history if "rft/iteration" in entry]
        assert [entry["rft/sampled"] for entry in entries] == [record["sampled"] for record in history]
        assert entries[-1]["rft/reasons/kept"] == history[-1]["reasons"]["kept"] == 24
        assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3, 4, 5, 6]
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert history[2]["training_loss"] == pytest.approx(sum(losses[3:]) / 3, rel=1e-5)
        (tmp_path / "run/iteration-2/metrics.json").unlink()
        again, tracker = make_rft(), Tracker()
        again.add_callback(tracker)
        again.train()
        assert tracker.seen == [(6, "rft/sampled")]


class TestLoop:
    def test_the_policy_improves_and_everything_is_written(self, make_rft, tmp_path, tiny_policy):
        trainer = make_rft(prompts=100, held_out=40, num_samples=8, num_train_epochs=2)
        history = trainer.train()
        assert [record["iteration"] for record in history] == [0, 1, 2]
        assert history[2]["sampled"] > history[0]["sampled"] + 0.05
        run = tmp_path / "run"
        assert sorted(p.name for p in run.iterdir()) == [
            "iteration-0", "iteration-1", "iteration-2", "manifest.json"
        ]  # fmt: skip
        evaluated = {"eval_greedy-0.jsonl", "eval_sampled-0.jsonl", "eval_scores-0.jsonl", "metrics.json"}
        evaluated |= {"manifest.json", "model"}
        assert {p.name for p in (run / "iteration-0").iterdir()} == {*evaluated, "start.json"}
        for k in (1, 2):
            assert {p.name for p in (run / f"iteration-{k}").iterdir()} == {
                *evaluated, "samples.parquet", "selection.parquet", "selection.json", "fine_tuning.json"
            }  # fmt: skip
            assert json.loads((run / f"iteration-{k}/metrics.json").read_text()) == history[k]
            samples = read_parquet(run / f"iteration-{k}/samples.parquet")
            assert [(row["index"], row["sample"]) for row in samples] == [(i, j) for i in range(100) for j in range(8)]
            kept = [row["completion"] for row in samples if row["reason"] == "kept"]
            assert kept == [text for _, text, _ in selected(run, k)] and len(kept) == history[k]["num_selected"]
            assert Counter(row["reason"] for row in samples) == history[k]["reasons"]
            assert all(row["score/is_right"] == row["score"] for row in samples if not row["is_truncated"])
        # the saved model is a policy that stands on its own, and the one that the trainer holds
        saved = AutoModelForCausalLM.from_pretrained(run / "iteration-2" / "model").state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())
        tokenizer = AutoTokenizer.from_pretrained(run / "iteration-2" / "model")
        assert (
            tokenizer("3+4=2\n")["input_ids"] == AutoTokenizer.from_pretrained(tiny_policy[1])("3+4=2\n")["input_ids"]
        )

    def test_each_iteration_samples_anew_from_the_current_policy(self, make_rft, tmp_path, paid):
        make_rft(held_out=0).train()
        assert len(paid) == len(set(paid)) == 2 * 24 * 4
        first, second = (read_parquet(tmp_path / f"run/iteration-{k}/samples.parquet") for k in (1, 2))
        assert [r["completion"] for r in first] != [r["completion"] for r in second]

    def test_loss_is_on_the_completion_only(self, make_rft):
        trainer = make_rft(num_iterations=1)
        trainer.train()
        batch = trainer.data_collator([trainer.train_dataset[0]])
        text = trainer.processing_class.decode([i for i in batch["labels"][0].tolist() if i != -100])
        assert re.fullmatch(r"\d[+*]\d=\d\n\d[+*]\d=\d\n#\d<eos>", text)

    def test_prompts_per_iteration(self, make_rft, tmp_path):
        """A shuffle of the prompts is used up before a prompt comes again."""
        trainer = make_rft(prompts=10, held_out=0, num_iterations=3, prompts_per_iteration=4)
        used = [[trainer.prompt_dataset[i]["prompt"] for i in trainer._prompts_of(k)] for k in (1, 2, 3)]
        assert [len(prompts) for prompts in used] == [4, 4, 4]
        flat = [prompt for prompts in used for prompt in prompts]
        assert len(set(flat[:10])) == 10 and flat[10:] == flat[:2]
        trainer.train()
        for k in (1, 2, 3):
            assert len(read_parquet(tmp_path / f"run/iteration-{k}/samples.parquet")) == 4 * 4
            assert {prompt for prompt, _, _ in selected(tmp_path / "run", k)} <= set(used[k - 1])
        assert make_rft(prompts=10, prompts_per_iteration=10)._prompts_of(2) == list(range(10))

    def test_resampled_prompts(self, make_rft):
        trainer = make_rft(prompts=20, prompts_per_iteration=8, prompt_order="resampled")
        first, second = trainer._prompts_of(1), trainer._prompts_of(2)
        assert len(set(first)) == len(set(second)) == 8
        assert set(first) != set(second) and set(first) & set(second)  # 4.5 in common are to be expected

    def test_never_trains_on_a_held_out_prompt(self, make_rft, tmp_path, tiny_policy, monkeypatch):
        """Of what the optimizer sees, token by token."""
        seen, training_step = set(), RFTTrainer.training_step

        def watching(self, model, inputs, *args):
            for ids in inputs["input_ids"].tolist():
                seen.add(self.processing_class.decode(ids, skip_special_tokens=True).splitlines()[0] + "\n")
            return training_step(self, model, inputs, *args)

        monkeypatch.setattr(RFTTrainer, "training_step", watching)
        make_rft(accumulate_data=True).train()
        assert len(seen) > 20 and seen <= set(tiny_policy[0].dataset("train", 24)["prompt"])
        assert not seen & set(tiny_policy[0].dataset("test", 8)["prompt"])

    def test_restart_from_base(self, make_rft, monkeypatch):
        """Each fine-tuning begins with the weights of the start; by default with those of the iteration before."""
        begun, train = [], SFTTrainer.train

        def watching(self, *args, **kwargs):
            begun.append(self.model.model.norm.weight.detach().clone())
            return train(self, *args, **kwargs)

        monkeypatch.setattr(SFTTrainer, "train", watching)
        make_rft(held_out=0, restart_from_base=True).train()
        make_rft(held_out=0, output_dir=make_rft().args.output_dir + "-on").train()
        assert torch.equal(begun[0], begun[1]) and torch.equal(begun[0], begun[2])
        assert not torch.equal(begun[2], begun[3])

    def test_accumulate_data(self, make_rft, scripted):
        """The second iteration learns from both selections, the solution that both have once."""
        prompts = Dataset.from_dict({"prompt": ["1+1\n", "2+2\n"]})

        def reward(prompts, completions, **_):
            return [1.0] * len(completions)

        rows = {}
        for accumulate in (True, False):
            scripted({"1+1\n": ["#2"] * 4, "2+2\n": ["#4"] * 4})
            config = {"accumulate_data": accumulate, "prompts": prompts, "held_out": 0, "reward": reward}
            trainer = make_rft(output_dir=f"{make_rft().args.output_dir}-{accumulate}", **config)
            trainer.add_callback(OnTrainEnd(lambda: scripted({"1+1\n": ["#2"] * 4, "2+2\n": ["#5"] * 4})))
            trainer.train()
            rows[accumulate] = sorted(trainer.processing_class.batch_decode(trainer.train_dataset["input_ids"][:]))
        assert rows[False] == ["1+1\n#2<eos>", "2+2\n#5<eos>"]
        assert rows[True] == ["1+1\n#2<eos>", "2+2\n#4<eos>", "2+2\n#5<eos>"]

    def test_carry_optimizer(self, make_rft, monkeypatch):
        """The moments go on, and one schedule falls over both iterations; interrupted between them, too."""

        def rates(trainer):
            return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]

        trainer = make_rft(held_out=0, carry_optimizer=True, lr_scheduler_type="linear")
        trainer.train()
        assert rates(trainer) == pytest.approx([1e-3 * (6 - i) / 6 for i in range(6)])
        fresh = make_rft(held_out=0, output_dir=trainer.args.output_dir + "-fresh", lr_scheduler_type="linear")
        fresh.train()
        assert rates(fresh) == pytest.approx(2 * [1e-3 * (3 - i) / 3 for i in range(3)])
        states = torch.load(f"{trainer.args.output_dir}/iteration-2/optimizer.pt", weights_only=True)["state"]
        assert {int(state["step"]) for state in states.values()} == {6}
        run = Path(trainer.args.output_dir)
        for name in ("metrics.json", "fine_tuning.json"):
            (run / "iteration-2" / name).unlink()
        again = make_rft(held_out=0, carry_optimizer=True, lr_scheduler_type="linear")
        again.train()
        for name, value in trainer.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name])

    def test_early_stopping(self, make_rft, monkeypatch):
        """Two iterations in a row without a new best: the run ends, and the trainer holds the best policy."""
        accuracies = iter([0.3, 0.5, 0.4, 0.5, 0.9])

        def metrics(*args):
            return {"sampled": next(accuracies)}

        monkeypatch.setattr(rft_trainer, "held_out_metrics", metrics)
        trainer = make_rft(num_iterations=4, early_stopping_patience=2, keep_models=1)
        history = trainer.train()
        assert [record["sampled"] for record in history] == [0.3, 0.5, 0.4, 0.5]
        run = Path(trainer.args.output_dir)
        best = AutoModelForCausalLM.from_pretrained(run / "iteration-1" / "model").state_dict()
        assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())
        assert {path.parent.name for path in run.glob("*/model")} == {"iteration-0", "iteration-1", "iteration-3"}

    def test_what_is_kept_on_disk(self, make_rft, tmp_path):
        history = make_rft(keep_models=1, keep_samples=False).train()
        names = {k: {p.name for p in (tmp_path / f"run/iteration-{k}").iterdir()} for k in range(3)}
        rest = {"manifest.json", "metrics.json", "fine_tuning.json", "selection.json", "selection.parquet"}
        assert names == {0: {"manifest.json", "metrics.json", "start.json", "model"}, 1: rest, 2: {*rest, "model"}}
        again = make_rft(keep_models=2)  # what is kept is no other run, and what is gone is not needed
        assert again.train() == history

    def test_lora(self, make_rft, tmp_path):
        """Only the adapter moves and is saved; a second trainer continues from the adapter of iteration 1."""
        lora = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        trainer = make_rft(peft_config=LoraConfig(**lora), learning_rate=1e-2)
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        history = trainer.train()
        moved = {n for n, value in trainer.model.named_parameters() if not torch.equal(value, before[n])}
        assert moved and all("lora_" in name for name in moved)
        assert (tmp_path / "run/iteration-1/model/adapter_config.json").exists()
        # the second iteration alone, by a trainer that has to load the adapter of the first
        for path in (tmp_path / "run" / "iteration-2").glob("[!m]*"):
            path.unlink()
        (tmp_path / "run" / "iteration-2" / "metrics.json").unlink()
        again = make_rft(peft_config=LoraConfig(**lora), learning_rate=1e-2)
        assert again.train() == history
        for name, value in again.model.named_parameters():
            torch.testing.assert_close(value, dict(trainer.model.named_parameters())[name])

    def test_conversational_prompts(self, tiny_policy, tmp_path):
        task, policy = tiny_policy
        tokenizer = AutoTokenizer.from_pretrained(policy)
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}"
            "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
            "{% else %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
        )
        rows = [
            {"prompt": [{"role": "user", "content": row["prompt"].strip()}], "answer": row["answer"]}
            for row in task.dataset("train", 16)
        ]
        seen = []

        def reward(prompts, completions, answer, **_):
            seen.extend(zip(prompts, completions, strict=True))
            return is_right(prompts, [c[0]["content"] for c in completions], answer)

        trainer = RFTTrainer(
            policy,
            reward_funcs=reward,
            args=rft_config(tmp_path / "run", num_iterations=1),
            train_dataset=Dataset.from_list(rows[:12]),
            eval_dataset=Dataset.from_list(rows[12:]),
            processing_class=tokenizer,
        )
        [start, record] = trainer.train()
        assert record["num_selected"] == 12 and start["unparsed_share"] < 0.5
        assert all(p[0]["role"] == "user" and c[0]["role"] == "assistant" for p, c in seen)
        [first, *_] = read_parquet(tmp_path / "run/iteration-1/selection.parquet")
        assert first["completion"][0]["role"] == "assistant"
        ids = trainer.train_dataset[0]["input_ids"]
        text = first["prompt"][0]["content"] + "\n" + first["completion"][0]["content"] + "<eos>"
        assert tokenizer.decode(ids).strip() == text


def test_the_tokenizer_is_the_one_that_was_saved(tmp_path):
    """transformers loads a general tokenizer beside a Qwen2 model as Qwen2's, which cuts text otherwise."""
    from tests.rollout.test_transformers_engine import VOCABULARY, make_model, make_tokenizer

    make_model().save_pretrained(tmp_path / "policy")
    make_tokenizer().save_pretrained(tmp_path / "policy")
    prompts = Dataset.from_dict({"prompt": ["what is 1+1\n"]})
    trainer = RFTTrainer(
        str(tmp_path / "policy"), reward_funcs=is_right, args=rft_config(tmp_path / "run"), train_dataset=prompts
    )
    assert trainer.processing_class("what is 1+1\n")["input_ids"] == [VOCABULARY[c] for c in "what is 1+1\n"]


class TestErrors:
    def test_a_held_out_prompt_among_the_training_prompts(self, make_rft, tiny_policy):
        prompts = tiny_policy[0].dataset("train", 5)
        held_out = Dataset.from_list([*tiny_policy[0].dataset("test", 2), prompts[3]])
        with pytest.raises(ValueError, match="Row 2 of `eval_dataset` is also a training prompt."):
            make_rft(prompts=prompts, held_out=held_out)

    def test_missing_columns(self, make_rft):
        with pytest.raises(ValueError, match="`eval_dataset` needs the columns prompt, answer, but has prompt."):
            make_rft(held_out=Dataset.from_dict({"prompt": ["1+1\n"]}))
        with pytest.raises(ValueError, match="`train_dataset` needs the columns prompt, but has question, answer."):
            make_rft(prompts=Dataset.from_dict({"question": ["1+1\n"], "answer": ["2"]}))

    def test_empty_prompt(self, make_rft):
        with pytest.raises(ValueError, match="Row 1 of `train_dataset` has an empty prompt."):
            make_rft(prompts=Dataset.from_dict({"prompt": ["1+1\n", ""]}))

    def test_no_prompts_and_no_reward(self, tiny_policy, tmp_path):
        with pytest.raises(ValueError, match="`train_dataset` is required"):
            RFTTrainer(tiny_policy[1], reward_funcs=is_right, args=rft_config(tmp_path))
        with pytest.raises(ValueError, match="`reward_funcs` is empty"):
            RFTTrainer(tiny_policy[1], reward_funcs=[], args=rft_config(tmp_path))

    def test_directory_with_other_files(self, make_rft, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.tex").write_text("")
        with pytest.raises(ValueError, match=r"holds other files \(thesis.tex\) and no manifest.json"):
            make_rft().train()

    @pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "max_completion_length", "seed"])
    def test_sampling_options(self, make_rft, name):
        value = {"temperature": 0.7, "top_p": 0.9, "top_k": 3, "max_completion_length": 9, "seed": 3}[name]
        options = make_rft(**{name: value})._sampling_options(seed=3)
        assert getattr(options, "max_new_tokens" if name == "max_completion_length" else name) == value
