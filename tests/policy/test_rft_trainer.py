"""`trl_erprm.policy.rft_trainer`: selection, what is written, resuming, errors, LoRA, conversations."""

import json
import math
import re
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from tests.rollout.test_transformers_engine import VOCABULARY, make_model, make_tokenizer
from tests.tiny import QUIET
from trl_erprm import RFTConfig, RFTTrainer
from trl_erprm.policy import rft_trainer
from trl_erprm.rollout import Completion
from trl_erprm.rollout.transformers_engine import TransformersEngine
from trl_erprm.verify import verify_answer


def rft_config(output_dir, **changes):
    defaults = {
        "num_iterations": 2,
        "num_samples": 4,
        "max_completion_length": 20,
        "num_eval_samples": 4,
        "answer_how": "arithmetic",
        "generation_batch_size": 16,  # chunks of 16 prompts (training, sampled) or 64 (greedy)
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "num_train_epochs": 1,
        "max_length": 64,
        "logging_steps": 1,
    }
    return RFTConfig(str(output_dir), **{**QUIET, **defaults, **changes})


def is_right(prompts, completions, answer, **kwargs):
    """A reward with the answer at hand: 1 or 0, None where no answer can be read."""
    verdicts = [verify_answer(c, a, "arithmetic") for c, a in zip(completions, answer, strict=True)]
    return [None if verdict is None else float(verdict) for verdict in verdicts]


class ScriptedEngine:
    """Stands in for the engine: the completions of a table, one list a prompt; "…" marks one that is cut off."""

    table: dict[str, list[str]] = {}

    def __init__(self, model, tokenizer, batch_size):
        pass

    def generate(self, prefixes, num_samples, options, first_sample=0):
        groups = [self.table[prefix.prompt][:num_samples] for prefix in prefixes]
        return [[Completion(t.rstrip("…"), 5, "length" if t.endswith("…") else "stop") for t in g] for g in groups]


@pytest.fixture
def scripted(monkeypatch):
    def use(table):
        monkeypatch.setattr(rft_trainer, "TransformersEngine", type("Engine", (ScriptedEngine,), {"table": table}))

    return use


@pytest.fixture
def paid(monkeypatch):
    """Every completion that the real engine makes, as (seed, prompt, sample number)."""
    samples = []
    generate = TransformersEngine.generate

    def counting(self, prefixes, num_samples, options, first_sample=0):
        result = generate(self, prefixes, num_samples, options, first_sample)
        samples.extend((options.seed, str(p.prompt), i) for p in prefixes for i in range(num_samples))
        return result

    monkeypatch.setattr(TransformersEngine, "generate", counting)
    return samples


@pytest.fixture
def make(tiny_policy, tmp_path):
    """A trainer on the tiny policy: `make(reward, prompts, held_out, **config)`."""
    task, policy = tiny_policy

    def make(
        reward=is_right, prompts=24, held_out=8, output_dir=tmp_path / "run", model=policy, peft_config=None, **changes
    ):
        if isinstance(prompts, int):
            prompts = task.dataset("train", prompts)
        if isinstance(held_out, int):
            held_out = task.dataset("test", held_out) if held_out else None
        return RFTTrainer(
            model,
            reward_funcs=reward,
            args=rft_config(output_dir, **changes),
            train_dataset=prompts,
            eval_dataset=held_out,
            peft_config=peft_config,
        )

    return make


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestSelection:
    PROMPTS = Dataset.from_dict({"prompt": ["1+1\n", "2+2\n"], "answer": ["2", "4"]})
    ONCE = {"prompts": PROMPTS, "held_out": None, "num_iterations": 1, "num_samples": 3}

    def selected(self, tmp_path):
        return [
            (r["prompt"], r["completion"], r["reward"])
            for r in read_jsonl(tmp_path / "run/iteration-1/selected.jsonl")
        ]

    def test_the_best_and_the_first_of_equals(self, make, scripted, tmp_path):
        scripted({"1+1\n": ["#0", "#1", "#2"], "2+2\n": ["#3", "#4", "#5"]})
        rewards = {"#0": 0.2, "#1": 0.7, "#2": 0.3, "#3": 0.5, "#4": 0.5, "#5": 0.5}
        [_, record] = make(lambda prompts, completions, **_: [rewards[c] for c in completions], **self.ONCE).train()
        assert self.selected(tmp_path) == [("1+1\n", "#1", 0.7), ("2+2\n", "#3", 0.5)]
        assert record["reward"] == pytest.approx(0.6)
        assert (record["num_selected"], record["num_without_candidate"]) == (2, 0)

    def test_none_is_never_selected(self, make, scripted, tmp_path, caplog):
        scripted({"1+1\n": ["#0", "#1", "#2"], "2+2\n": ["#3", "#4", "#3"]})
        rewards = {"#0": None, "#1": -5.0, "#2": None, "#3": None, "#4": None}
        [_, record] = make(lambda prompts, completions, **_: [rewards[c] for c in completions], **self.ONCE).train()
        assert self.selected(tmp_path) == [("1+1\n", "#1", -5.0)]
        assert record["num_without_candidate"] == 1
        assert "1 of 2 prompts have no completion with a reward." in caplog.text

    def test_what_is_cut_off_is_never_selected(self, make, scripted, tmp_path):
        scripted({"1+1\n": ["#2…", "#1", "#0…"], "2+2\n": ["#4", "#3…", "#4"]})
        rewards = {"#2": 9.0, "#1": 0.1, "#0": 9.0, "#4": 0.2, "#3": 9.0}
        make(lambda prompts, completions, **_: [rewards[c] for c in completions], **self.ONCE).train()
        assert self.selected(tmp_path) == [("1+1\n", "#1", 0.1), ("2+2\n", "#4", 0.2)]
        [record, _] = read_jsonl(tmp_path / "run/iteration-1/samples-0.jsonl")
        [rewards, _] = read_jsonl(tmp_path / "run/iteration-1/samples_rewards-0.jsonl")
        assert record["truncated"] == [True, False, True] and rewards["rewards"] == [None, 0.1, None]

    def test_several_reward_functions_are_added(self, make, scripted, tmp_path):
        scripted({"1+1\n": ["#0", "#1", "#2"], "2+2\n": ["#0", "#1", "#2"]})

        def first(prompts, completions, **_):
            return [{"#0": 1.0, "#1": 0.5, "#2": 3.0}[c] for c in completions]

        def second(prompts, completions, **_):
            return [{"#0": 0.0, "#1": 0.75, "#2": None}[c] for c in completions]

        make([first, second], **self.ONCE).train()
        assert self.selected(tmp_path) == [("1+1\n", "#1", 1.25), ("2+2\n", "#1", 1.25)]

    def test_what_a_reward_function_is_given(self, make, scripted):
        scripted({"1+1\n": ["#0", "#1"], "2+2\n": ["#2", "#3"]})
        calls = []

        def reward(prompts, completions, **columns):
            calls.append((prompts, completions, columns))
            return [1.0] * len(prompts)

        make(reward, **{**self.ONCE, "num_samples": 2}).train()
        assert calls == [(["1+1\n"] * 2 + ["2+2\n"] * 2, ["#0", "#1", "#2", "#3"], {"answer": ["2", "2", "4", "4"]})]

    def test_nothing_selected(self, make, scripted):
        scripted({"1+1\n": ["#0", "#1…", "#2"], "2+2\n": ["#0", "#1", "#2"]})
        trainer = make(lambda prompts, completions, **_: [None] * len(completions), **self.ONCE)
        with pytest.raises(
            ValueError, match="None of 6 completions of 2 prompts got a reward, so there is nothing to"
        ):
            trainer.train()

    def test_nan_is_an_error(self, make, scripted):
        scripted({"1+1\n": ["#0", "#1", "#2"], "2+2\n": ["#0", "#1", "#2"]})

        def broken(prompts, completions, **_):
            return [0.5] * (len(completions) - 1) + [math.nan]

        with pytest.raises(ValueError, match="The reward function 'broken' returned nan. A completion that cannot be"):
            make(broken, **self.ONCE).train()

    def test_wrong_number_of_rewards(self, make, scripted):
        scripted({"1+1\n": ["#0", "#1", "#2"], "2+2\n": ["#0", "#1", "#2"]})

        def short(prompts, completions, **_):
            return [0.5]

        with pytest.raises(ValueError, match="The reward function 'short' returned 1 rewards for 6 completions."):
            make(short, **self.ONCE).train()


class TestEvaluation:
    def test_by_hand(self, make, scripted):
        """Greedy takes the first of each list; best of 4 by a reward that likes high digits."""
        held_out = Dataset.from_dict({"prompt": ["1+1\n", "2+2\n"], "answer": ["2", "4"]})
        prompts = Dataset.from_dict({"prompt": ["3+3\n"], "answer": ["1"]})
        scripted({"1+1\n": ["#1", "#2", "#2", "x"], "2+2\n": ["#4", "#3", "#3", "#0…"], "3+3\n": ["#1"] * 4})

        def high_digit(prompts, completions, **_):
            return [float(c[1:]) if c[1:] else None for c in completions]

        [start, _] = make(high_digit, prompts, held_out, num_iterations=1).train()
        assert start["greedy"] == 0.5  # "#1" is wrong, "#4" is right
        assert start["sampled"] == pytest.approx((2 / 4 + 1 / 4) / 2)
        assert start["best_of_n"] == 1.0
        assert start["majority"] == 0.5
        assert start["oracle"] == 1.0
        assert start["unparsed_share"] == 1 / 8
        assert (start["iteration"], start["num_problems"], start["n"]) == (0, 2, 4)
        assert start["sampled_low"] <= start["sampled"] <= start["sampled_high"]

    def test_without_held_out_prompts(self, make):
        history = make(held_out=0, num_iterations=1).train()
        assert history[0] == {"iteration": 0}
        assert set(history[1]) == {
            "iteration", "reward", "num_selected", "num_without_candidate", "training_loss"
        }  # fmt: skip

    def test_logged(self, make):
        trainer = make(num_iterations=1)
        history = trainer.train()
        entries = [entry for entry in trainer.state.log_history if "rft/iteration" in entry]
        assert entries[-1]["rft/sampled"] == history[-1]["sampled"]
        assert entries[-1]["rft/reward"] == history[-1]["reward"]


class TestLoop:
    def test_the_policy_improves_and_everything_is_written(self, make, tmp_path, tiny_policy):
        trainer = make(prompts=100, held_out=40, num_samples=8, num_train_epochs=2)
        history = trainer.train()
        assert [record["iteration"] for record in history] == [0, 1, 2]
        assert history[2]["sampled"] > history[0]["sampled"] + 0.05
        run = tmp_path / "run"
        assert sorted(p.name for p in run.iterdir()) == [
            "iteration-0", "iteration-1", "iteration-2", "manifest.json"
        ]  # fmt: skip
        evaluated = {"eval_greedy-0.jsonl", "eval_sampled-0.jsonl", "eval_sampled_rewards-0.jsonl", "metrics.json"}
        assert {p.name for p in (run / "iteration-0").iterdir()} == evaluated
        for k in (1, 2):
            assert {p.name for p in (run / f"iteration-{k}").iterdir()} == {
                *evaluated, "samples-0.jsonl", "samples_rewards-0.jsonl", "selected.jsonl", "model",
                "fine_tuning.json",
            }  # fmt: skip
            assert json.loads((run / f"iteration-{k}/metrics.json").read_text()) == history[k]
            assert len(read_jsonl(run / f"iteration-{k}/samples-0.jsonl")) == 100
            assert len(read_jsonl(run / f"iteration-{k}/selected.jsonl")) == history[k]["num_selected"]
        # the saved model is a policy that stands on its own, and the one that the trainer holds
        saved = AutoModelForCausalLM.from_pretrained(run / "iteration-2" / "model").state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())
        tokenizer = AutoTokenizer.from_pretrained(run / "iteration-2" / "model")
        assert (
            tokenizer("3+4=2\n")["input_ids"] == AutoTokenizer.from_pretrained(tiny_policy[1])("3+4=2\n")["input_ids"]
        )

    def test_each_iteration_samples_anew_from_the_current_policy(self, make, tmp_path, paid):
        make(held_out=0).train()
        assert len(paid) == len(set(paid)) == 2 * 24 * 4
        first, second = (read_jsonl(tmp_path / f"run/iteration-{k}/samples-0.jsonl") for k in (1, 2))
        assert [r["completions"] for r in first] != [r["completions"] for r in second]

    def test_loss_is_on_the_completion_only(self, make):
        trainer = make(num_iterations=1)
        trainer.train()
        batch = trainer.data_collator([trainer.train_dataset[0]])
        text = trainer.processing_class.decode([i for i in batch["labels"][0].tolist() if i != -100])
        assert re.fullmatch(r"\d[+*]\d=\d\n\d[+*]\d=\d\n#\d<eos>", text)

    def test_prompts_per_iteration(self, make, tmp_path):
        """A shuffle of the prompts is used up before a prompt comes again."""
        trainer = make(prompts=10, held_out=0, num_iterations=3, prompts_per_iteration=4)
        used = [trainer._prompts_of(k)["prompt"][:] for k in (1, 2, 3)]
        assert [len(prompts) for prompts in used] == [4, 4, 4]
        flat = [prompt for prompts in used for prompt in prompts]
        assert len(set(flat[:10])) == 10 and flat[10:] == flat[:2]
        trainer.train()
        for k in (1, 2, 3):
            assert len(read_jsonl(tmp_path / f"run/iteration-{k}/samples-0.jsonl")) == 4
            selected = {r["prompt"] for r in read_jsonl(tmp_path / f"run/iteration-{k}/selected.jsonl")}
            assert selected <= set(used[k - 1])
        assert (
            make(prompts=10, prompts_per_iteration=10)._prompts_of(2)["prompt"][:]
            == trainer.prompt_dataset["prompt"][:]
        )

    def test_lora(self, make, tmp_path):
        """Only the adapter moves and is saved; a second trainer continues from the adapter of iteration 1."""
        lora = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        trainer = make(peft_config=LoraConfig(**lora), learning_rate=1e-2)
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        history = trainer.train()
        moved = {n for n, value in trainer.model.named_parameters() if not torch.equal(value, before[n])}
        assert moved and all("lora_" in name for name in moved)
        assert (tmp_path / "run/iteration-1/model/adapter_config.json").exists()
        # the second iteration alone, by a trainer that has to load the adapter of the first
        for name in ("metrics.json", "fine_tuning.json", "eval_greedy-0.jsonl", "eval_sampled-0.jsonl"):
            (tmp_path / "run" / "iteration-2" / name).unlink()
        again = make(peft_config=LoraConfig(**lora), learning_rate=1e-2)
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
        [first, *_] = read_jsonl(tmp_path / "run/iteration-1/selected.jsonl")
        assert first["completion"][0]["role"] == "assistant"
        ids = trainer.train_dataset[0]["input_ids"]
        text = first["prompt"][0]["content"] + "\n" + first["completion"][0]["content"] + "<eos>"
        assert tokenizer.decode(ids).strip() == text


def test_columns_that_the_protocol_has_are_not_handed_on(make, scripted):
    """A worked solution's `completions` stay out of the way of those that were sampled; `answer` is handed on."""
    scripted({"1+1\n": ["#2"] * 4})
    rows = Dataset.from_list([{"prompt": "1+1\n", "answer": "2", "completions": ["1+1=2", "#2"], "completion": "x"}])
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((completions, columns))
        return [1.0] * len(completions)

    make(reward, prompts=rows, held_out=0, num_iterations=1).train()
    assert seen == [(["#2"] * 4, {"answer": ["2"] * 4})]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_how": "gsm"}, "gsm8k"),
        ({"top_p": 1.5}, "`top_p` must"),
        ({"top_k": -1}, "`top_k` must"),
    ],
)
def test_options_are_checked_at_once(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        rft_config(tmp_path, **changes)


def test_bf16_is_off_where_no_device_has_it(tmp_path):
    """On a CPU TRL's own default of True is an error; the tests see no GPU."""
    assert RFTConfig(str(tmp_path)).bf16 is False


class Interruption(Exception):
    pass


class TestResuming:
    @pytest.fixture(scope="class")
    @classmethod
    def uninterrupted(cls, tiny_policy, tmp_path_factory):
        task, policy = tiny_policy
        return RFTTrainer(
            policy,
            reward_funcs=is_right,
            args=rft_config(tmp_path_factory.mktemp("whole") / "run"),
            train_dataset=task.dataset("train", 24),
            eval_dataset=task.dataset("test", 8),
        ).train()

    # completions of the uninterrupted run: three evaluations of 8 prompts (1 greedy, 4 sampled), two samplings of 24
    NUM_COMPLETIONS = 3 * 8 * (1 + 4) + 2 * 24 * 4

    def test_a_second_run_reuses_everything(self, make, paid, uninterrupted):
        assert make().train() == uninterrupted
        assert len(paid) == self.NUM_COMPLETIONS
        paid.clear()
        calls = []
        trainer = make(lambda **_: calls.append(1))
        trainer.reward_funcs[0].__name__ = "is_right"
        assert trainer.train() == uninterrupted
        assert paid == [] and calls == []
        assert trainer._weights_of == 2

    def test_the_second_run_holds_the_last_policy(self, make):
        first = make()
        first.train()
        second = make()
        second.train()
        for name, value in first.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[name])

    @pytest.mark.parametrize("nth_call", range(1, 8))
    def test_interrupted_in_the_reward_function(self, make, paid, uninterrupted, nth_call):
        """Call 1 evaluates the start, 2-3 score samples, 4 evaluates, 5-6 score samples, 7 evaluates."""
        calls = []

        def failing(**kwargs):
            calls.append(len(kwargs["completions"]))
            if len(calls) == nth_call:
                raise Interruption
            return is_right(**kwargs)

        failing.__name__ = "is_right"
        with pytest.raises(Interruption):
            make(failing).train()
        assert make().train() == uninterrupted
        # what was sampled was stored before it was scored
        assert len(paid) == self.NUM_COMPLETIONS

    @pytest.mark.parametrize("nth_call", [2, 4, 6, 8, 10])
    def test_interrupted_in_the_engine(self, make, paid, uninterrupted, monkeypatch, nth_call):
        generate, calls = TransformersEngine.generate, []

        def failing(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == nth_call:
                raise Interruption
            return generate(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(TransformersEngine, "generate", failing)
            with pytest.raises(Interruption):
                make().train()
        assert make().train() == uninterrupted
        assert len(paid) == self.NUM_COMPLETIONS

    @pytest.mark.parametrize("iteration", [1, 2])
    @pytest.mark.parametrize("place", ["training_step", "save_model"])
    def test_interrupted_in_fine_tuning(self, make, paid, uninterrupted, monkeypatch, iteration, place):
        """Inside the fine-tuning (at its second batch), and when the policy was trained but not yet saved."""
        method, calls = getattr(RFTTrainer, place), []
        nth_call = 3 * (iteration - 1) + 2 if place == "training_step" else iteration

        def failing(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == nth_call:
                raise Interruption
            return method(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(RFTTrainer, place, failing)
            with pytest.raises(Interruption):
                make().train()
        assert make().train() == uninterrupted
        assert len(paid) == self.NUM_COMPLETIONS

    @pytest.mark.parametrize("iteration", [1, 2])
    def test_the_same_trainer_called_again(self, make, uninterrupted, monkeypatch, iteration):
        """Half-trained weights are never sampled from: the saved ones are loaded, and those of the start are gone."""
        training_step, calls = RFTTrainer.training_step, []

        def failing(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == 3 * (iteration - 1) + 2:
                raise Interruption
            return training_step(self, *args, **kwargs)

        trainer = make()
        monkeypatch.setattr(RFTTrainer, "training_step", failing)
        with pytest.raises(Interruption):
            trainer.train()
        if iteration == 1:
            with pytest.raises(RuntimeError, match="Build the trainer anew and call `train` again"):
                trainer.train()
        else:
            assert trainer.train() == uninterrupted

    def test_random_numbers_of_fine_tuning(self, make, tiny_policy, tmp_path, monkeypatch):
        """With dropout, an interrupted run draws what an uninterrupted one draws."""
        policy = tmp_path / "policy"
        shutil.copytree(tiny_policy[1], policy)
        config = json.loads((policy / "config.json").read_text())
        (policy / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
        expected = make(model=str(policy), held_out=0, output_dir=tmp_path / "whole").train()
        fine_tune, calls = RFTTrainer._fine_tune, []

        def failing(self, *args):
            calls.append(1)
            if len(calls) == 2:
                raise Interruption
            return fine_tune(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(RFTTrainer, "_fine_tune", failing)
            with pytest.raises(Interruption):
                make(model=str(policy), held_out=0).train()
        trainer = make(model=str(policy), held_out=0)
        torch.rand(7)
        assert trainer.train() == expected

    def test_interrupted_in_evaluation(self, make, paid, uninterrupted, monkeypatch):
        """After the samples of the evaluation, before its numbers are written."""

        def failing(*args, **kwargs):
            raise Interruption

        with monkeypatch.context() as patch:
            patch.setattr(rft_trainer, "majority_accuracy", failing)
            with pytest.raises(Interruption):
                make().train()
        assert make().train() == uninterrupted
        assert len(paid) == self.NUM_COMPLETIONS

    def test_batch_sizes_of_sampling_change_nothing(self, make, uninterrupted):
        """Neither for a whole run nor between an interrupted run and its continuation."""
        assert make(generation_batch_size=7).train() == uninterrupted

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"num_samples": 5}, "holds another run: `arguments.num_samples` is 4 there and 5 now"),
            ({"learning_rate": 1e-4}, "`arguments.learning_rate` is 0.001 there and 0.0001 now"),
            ({"seed": 1}, "`arguments.seed` is 42 there and 1 now"),
            ({"prompts": 23}, "holds another run: `prompts` is "),
            ({"held_out": 7}, "holds another run: `held_out_prompts` is "),
            ({"reward": lambda **_: []}, r"`reward_funcs` is \['is_right'\] there and \['<lambda>'\] now"),
        ],
    )
    def test_another_run_is_refused(self, make, paid, changes, message):
        trainer = make(prompts=24, held_out=8)
        rft_trainer.open_run(trainer.args.output_dir, trainer._identity(), kind="rft")
        with pytest.raises(ValueError, match=message):
            make(**changes).train()
        assert paid == []

    def test_other_weights_at_the_same_path_are_refused(self, make, tiny_policy, tmp_path, paid):
        policy = str(tmp_path / "policy")
        shutil.copytree(tiny_policy[1], policy)
        trainer = make(model=policy)
        rft_trainer.open_run(trainer.args.output_dir, trainer._identity(), kind="rft")
        model = AutoModelForCausalLM.from_pretrained(policy)
        model.model.norm.weight.data[0] += 1e-3
        model.save_pretrained(policy)
        with pytest.raises(ValueError, match="holds another run: `model` is "):
            make(model=policy).train()
        assert paid == []

    def test_what_does_not_change_the_numbers_is_no_other_run(self, make):
        trainer = make()
        rft_trainer.open_run(trainer.args.output_dir, trainer._identity(), kind="rft")
        other = make(generation_batch_size=7, logging_steps=5, disable_tqdm=True, dataloader_num_workers=0)
        assert rft_trainer.open_run(other.args.output_dir, other._identity(), kind="rft")


def test_the_tokenizer_is_the_one_that_was_saved(tmp_path):
    """transformers loads a general tokenizer beside a Qwen2 model as Qwen2's, which cuts text otherwise."""
    make_model().save_pretrained(tmp_path / "policy")
    make_tokenizer().save_pretrained(tmp_path / "policy")
    prompts = Dataset.from_dict({"prompt": ["what is 1+1\n"]})
    trainer = RFTTrainer(
        str(tmp_path / "policy"), reward_funcs=is_right, args=rft_config(tmp_path / "run"), train_dataset=prompts
    )
    assert trainer.processing_class("what is 1+1\n")["input_ids"] == [VOCABULARY[c] for c in "what is 1+1\n"]


class TestErrors:
    def test_a_held_out_prompt_among_the_training_prompts(self, make, tiny_policy):
        prompts = tiny_policy[0].dataset("train", 5)
        held_out = Dataset.from_list([*tiny_policy[0].dataset("test", 2), prompts[3]])
        with pytest.raises(ValueError, match="Row 2 of `eval_dataset` is also a training prompt."):
            make(prompts=prompts, held_out=held_out)

    def test_missing_columns(self, make):
        with pytest.raises(ValueError, match="`eval_dataset` needs the columns prompt, answer, but has prompt."):
            make(held_out=Dataset.from_dict({"prompt": ["1+1\n"]}))
        with pytest.raises(ValueError, match="`train_dataset` needs the columns prompt, but has question, answer."):
            make(prompts=Dataset.from_dict({"question": ["1+1\n"], "answer": ["2"]}))

    def test_empty_prompt(self, make):
        with pytest.raises(ValueError, match="Row 1 of `train_dataset` has an empty prompt."):
            make(prompts=Dataset.from_dict({"prompt": ["1+1\n", ""]}))

    def test_no_prompts_and_no_reward(self, tiny_policy, tmp_path):
        with pytest.raises(ValueError, match="`train_dataset` is required"):
            RFTTrainer(tiny_policy[1], reward_funcs=is_right, args=rft_config(tmp_path))
        with pytest.raises(ValueError, match="`reward_funcs` is empty"):
            RFTTrainer(tiny_policy[1], reward_funcs=[], args=rft_config(tmp_path))

    def test_directory_with_other_files(self, make, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.tex").write_text("")
        with pytest.raises(ValueError, match=r"holds other files \(thesis.tex\) and no manifest.json"):
            make().train()

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"num_iterations": 0}, "`num_iterations` must be at least 1, got 0"),
            ({"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
            ({"max_completion_length": 0}, "`max_completion_length` must be at least 1, got 0"),
            ({"generation_batch_size": 0}, "`generation_batch_size` must be at least 1, got 0"),
            ({"num_eval_samples": 0}, "`num_eval_samples` must be at least 1, got 0"),
            ({"prompts_per_iteration": 0}, "`prompts_per_iteration` must be at least 1, or None"),
            ({"temperature": 0.0}, "`temperature` must be above 0"),
        ],
    )
    def test_config(self, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            rft_config(tmp_path, **changes)

    def test_defaults_of_the_paper(self, tmp_path):
        config = RFTConfig(str(tmp_path), use_cpu=True, bf16=False)
        assert (config.num_iterations, config.num_samples, config.temperature) == (3, 16, 1.0)
        assert (config.num_train_epochs, config.save_strategy) == (2.0, "no")
        assert issubclass(RFTTrainer, SFTTrainer)

    @pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "max_completion_length", "seed"])
    def test_sampling_options(self, make, name):
        value = {"temperature": 0.7, "top_p": 0.9, "top_k": 3, "max_completion_length": 9, "seed": 3}[name]
        options = make(**{name: value})._sampling_options(seed=3)
        assert getattr(options, "max_new_tokens" if name == "max_completion_length" else name) == value
