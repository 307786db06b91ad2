"""`ProcessReward` in each of TRL's trainers that takes `reward_funcs` and runs on a CPU, and on TRL's command line."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import trl

import trl_erprm
from tests.tiny import QUIET, prm_trainer, randomize_head
from trl_erprm import ProcessReward, ProcessRewardModel
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.policy import process_reward as module
from trl_erprm.verify import extract_answer

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # read as the modules below are imported

from trl.experimental.a2po import A2POConfig, A2POTrainer  # noqa: E402
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer  # noqa: E402
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer  # noqa: E402
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer  # noqa: E402

OPTIONS = {
    **QUIET,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "save_strategy": "no",
    "temperature": 1.7,  # the policy has learnt its task: at 1 all completions of a prompt would be the same
}
GROUPED = {"num_generations": 4, "max_completion_length": 24}
# Trainer, its config, options, and the name under which it logs the mean reward.
TRAINERS = {
    "grpo": (trl.GRPOTrainer, trl.GRPOConfig, GROUPED, "reward"),
    "rloo": (trl.RLOOTrainer, trl.RLOOConfig, GROUPED, "reward"),
    "gmpo": (GMPOTrainer, GMPOConfig, GROUPED, "reward"),
    # By default it learns from completions with a reward of 1 only, which no process reward reaches.
    "sdpo": (
        SDPOTrainer,
        SDPOConfig,
        {**GROUPED, "success_reward_threshold": 0.3, "distillation_weight": 0.5},
        "self_distillation/reward_mean",
    ),
    "a2po": (A2POTrainer, A2POConfig, {"max_completion_length": 24, "num_value_samples": 2}, "reward"),
    "online_dpo": (OnlineDPOTrainer, OnlineDPOConfig, {"max_new_tokens": 24, "max_length": 64}, "objective/scores"),
}
WITH_METRICS = ("grpo", "rloo", "gmpo")

TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def prm_path(tiny_policy, tmp_path_factory):
    """A process reward model of random weights: its scores differ from step to step."""
    row = {"prompt": "1+1\n", "completions": ["1+1=2"], "labels": [1.0]}
    folder = tmp_path_factory.mktemp("prm")
    trainer = prm_trainer(tiny_policy[1], folder, [row])
    randomize_head(trainer.model)
    trainer.processing_class.chat_template = TEMPLATE
    trainer.save_model()
    return str(folder)


class Recording(ProcessReward):
    """Keeps what it was asked and what it answered."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def __call__(self, prompts, completions, **kwargs):
        rewards = super().__call__(prompts, completions, **kwargs)
        self.calls.append((list(prompts), list(completions), rewards))
        return rewards


def train(name, tiny_policy, output_dir, rewards, eval_dataset=None, dataset=None, tokenizer=None, **options):
    trainer_class, config_class, own, _ = TRAINERS[name]
    task, policy = tiny_policy
    trainer = trainer_class(
        model=policy,
        reward_funcs=rewards,
        args=config_class(output_dir=str(output_dir), **{**OPTIONS, **own, **options}),
        train_dataset=task.dataset("train", 16) if dataset is None else dataset,
        eval_dataset=eval_dataset,
        processing_class=build_tokenizer() if tokenizer is None else tokenizer,
    )
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    trainer.moved = any((parameter != before[name]).any() for name, parameter in trainer.model.named_parameters())
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("name", TRAINERS)
def test_rewards_reach_the_trainer(name, tiny_policy, prm_path, tmp_path):
    reward = Recording(prm_path, answer_how="arithmetic", reward_if_malformed=0.0)
    trainer = train(name, tiny_policy, tmp_path, [reward])
    prm = ProcessRewardModel.from_pretrained(prm_path)
    for prompts, completions, rewards in reward.calls:
        scores = prm.score_text(prompts, completions)
        has_answer = [extract_answer(completion, "arithmetic") is not None for completion in completions]
        assert rewards == [
            pytest.approx(min(of_one), abs=1e-5) if good else 0.0
            for of_one, good in zip(scores, has_answer, strict=True)
        ]
    assert len({value for _, _, rewards in reward.calls for value in rewards}) > 4  # 0.0 among them
    # A2PO begins with calls of its own, for the value of each prompt.
    last = [mean(rewards) for _, _, rewards in reward.calls[-2:]]
    assert logged(trainer, TRAINERS[name][3]) == [pytest.approx(value, abs=1e-4) for value in last]
    assert trainer.moved


@pytest.mark.parametrize("name", WITH_METRICS)
def test_metrics_are_logged(name, tiny_policy, prm_path, tmp_path):
    task = tiny_policy[0]
    reward = Recording(prm_path, answer_how="arithmetic", aggregation="mean")
    trainer = train(
        name, tiny_policy, tmp_path, [reward], task.dataset("test", 4), eval_strategy="steps", eval_steps=2,
        log_completions=True, per_device_eval_batch_size=8,
    )  # fmt: skip
    assert len(reward.calls) == 4  # two steps, and the four problems of the evaluation four times each
    for k, (prompts, completions, rewards) in enumerate(reward.calls[:2]):
        judgements = reward.judge(prompts, completions)
        assert logged(trainer, "process_reward/num_steps")[k] == pytest.approx(
            mean([len(j.steps) for j in judgements])
        )
        known = [value for value in rewards if value is not None]
        assert logged(trainer, "process_reward/step_score/mean")[k] == pytest.approx(mean(known), abs=1e-6)
        assert logged(trainer, "process_reward/malformed")[k] == pytest.approx(1 - len(known) / 8)
    eval_rewards = [value for _, _, rewards in reward.calls[2:] for value in rewards]
    share = sum(value is None for value in eval_rewards) / 16
    assert logged(trainer, "eval_process_reward/malformed") == [pytest.approx(share)]
    table = trainer._logs["extra"]
    judgements = [j for prompts, completions, _ in reward.calls[-1:] for j in reward.judge(prompts, completions)]
    assert list(table["process_reward/num_steps"])[-8:] == [len(j.steps) for j in judgements]
    assert [len(text.split()) for text in table["process_reward/step_scores"]][-8:] == [
        len(j.step_scores or []) for j in judgements
    ]


def test_two_process_rewards_in_one_job(tiny_policy, prm_path, tmp_path):
    rewards = [
        ProcessReward(prm_path, answer_how="arithmetic", reward_if_malformed=0.0),
        ProcessReward(prm_path, "mean", answer_how="arithmetic", reward_if_malformed=0.0, name="mean_score"),
    ]
    trainer = train("grpo", tiny_policy, tmp_path, rewards, log_completions=True)
    assert logged(trainer, "process_reward/num_steps") == logged(trainer, "mean_score/num_steps")
    lowest, average = logged(trainer, "rewards/process_reward/mean"), logged(trainer, "rewards/mean_score/mean")
    assert len(lowest) == 2 and all(a < b for a, b in zip(lowest, average, strict=True))


@pytest.mark.parametrize("name", ["grpo", "rloo", "online_dpo"])
def test_conversational(name, tiny_policy, prm_path, tmp_path):
    task = tiny_policy[0]
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    rows = task.dataset("train", 16).map(
        lambda row: {"prompt": [{"role": "user", "content": row["prompt"].strip()}], "answer": row["answer"]}
    )
    reward = Recording(prm_path, answer_how="arithmetic", reward_if_malformed=0.0)
    trainer = train(name, tiny_policy, tmp_path, [reward], dataset=rows, tokenizer=tokenizer)
    prm = ProcessRewardModel.from_pretrained(prm_path)
    prompts, completions, rewards = reward.calls[-1]
    assert prompts[0][0]["role"] == "user" and completions[0][0]["role"] == "assistant"
    # Through the template the model reads what it reads of a text.
    scores = prm.score_text(
        [prompt[0]["content"] + "\n" for prompt in prompts], [completion[0]["content"] for completion in completions]
    )
    scored = [(min(s), r) for s, r in zip(scores, rewards, strict=True) if r]
    assert len(scored) > 2 and all(r == pytest.approx(s, abs=1e-5) for s, r in scored)
    assert trainer.moved


def test_none_leaves_a_completion_out_of_its_group(tiny_policy, prm_path, tmp_path):
    """GRPO gives a completion without a reward the advantage 0, and the others a baseline without it."""
    reward = Recording(prm_path, answer_how="arithmetic")
    trainer = train("grpo", tiny_policy, tmp_path, [reward], scale_rewards="none", log_completions=True, max_steps=1)
    rewards = reward.calls[0][2]
    assert None in rewards
    expected = []
    for start in (0, 4):
        group = rewards[start : start + 4]
        known = [value for value in group if value is not None]
        expected += [0.0 if value is None else value - mean(known) for value in group]
    assert list(trainer._logs["advantages"]) == pytest.approx(expected, abs=1e-5)


class TestCommandLine:
    def run(self, tiny_policy, tmp_path, **variables):
        task, policy = tiny_policy
        (tmp_path / "data").mkdir()
        with open(tmp_path / "data" / "train.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in task.dataset("train", 8))
        options = {
            "reward_funcs": "trl_erprm.process_reward", "model_name_or_path": policy, "dtype": "float32",
            "dataset_name": tmp_path / "data", "output_dir": tmp_path / "out", "max_steps": 1, "use_cpu": True,
            "bf16": False, "report_to": "none", "logging_steps": 1, "per_device_train_batch_size": 4,
            "num_generations": 4, "max_completion_length": 24, "save_strategy": "steps", "save_steps": 1,
        }  # fmt: skip
        command = [sys.executable, "-m", "trl.scripts.grpo"]
        command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRL_ERPRM_M")}
        return subprocess.run(
            command, env=environment | variables, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    def test_grpo(self, tiny_policy, prm_path, tmp_path):
        arguments = json.dumps({"answer_how": "arithmetic", "aggregation": "mean", "combine": "weighted_sum"})
        completed = self.run(tiny_policy, tmp_path, TRL_ERPRM_MODEL=prm_path, TRL_ERPRM_OPTIONS=arguments)
        assert completed.returncode == 0, completed.stderr
        state = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
        [entry] = [entry for entry in state["log_history"] if "reward" in entry]
        score, accuracy = entry["process_reward/step_score/mean"], entry["process_reward/accuracy"]
        assert 0 < score < 1
        assert entry["rewards/process_reward/mean"] == pytest.approx((score + accuracy) / 2, abs=1e-5)

    def test_without_the_variable(self, monkeypatch):
        monkeypatch.delenv("TRL_ERPRM_MODEL", raising=False)
        with pytest.raises(ValueError, match="TRL_ERPRM_MODEL is not set. Set it to the directory"):
            trl_erprm.process_reward(["p"], ["c"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("aggregation=mean", "TRL_ERPRM_OPTIONS must hold arguments of `ProcessReward` as a JSON object"),
            ('["mean"]', "as a JSON object, got .* it is a list"),
            ('{"aggregate": "mean"}', "unexpected keyword argument 'aggregate'"),
            ('{"aggregation": "man"}', "Did you mean"),
        ],
    )
    def test_bad_options(self, options, message, prm_path, monkeypatch):
        monkeypatch.setenv("TRL_ERPRM_MODEL", prm_path)
        monkeypatch.setenv("TRL_ERPRM_OPTIONS", options)
        with pytest.raises(ValueError, match=message):
            trl_erprm.process_reward(["p"], ["c"])

    def test_it_is_loaded_once_and_is_what_the_variables_say(self, prm_path, monkeypatch):
        loaded = []
        load = ProcessRewardModel.from_pretrained
        monkeypatch.setattr(
            module.ProcessRewardModel, "from_pretrained", lambda *args, **kwargs: loaded.append(args) or load(*args)
        )
        monkeypatch.setenv("TRL_ERPRM_MODEL", prm_path)
        monkeypatch.setenv("TRL_ERPRM_OPTIONS", '{"answer_how": "arithmetic", "aggregation": "max"}')
        expected = ProcessReward(load(prm_path), "max", answer_how="arithmetic")(["1+1\n"], ["1+1=2\n#2"])
        for _ in range(2):
            assert trl_erprm.process_reward(["1+1\n"], ["1+1=2\n#2"], completion_ids=[[1]]) == expected
        assert len(loaded) == 1

    def test_a_model_from_elsewhere_with_its_format(self, prm_path, tmp_path, monkeypatch):
        shutil.copytree(prm_path, tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "prm_format.json").unlink()
        monkeypatch.setenv("TRL_ERPRM_MODEL", str(tmp_path / "elsewhere"))
        monkeypatch.setenv("TRL_ERPRM_OPTIONS", '{"answer_how": "arithmetic"}')
        with pytest.raises(ValueError, match="for a model from elsewhere, its `format`"):
            trl_erprm.process_reward(["1+1\n"], ["1+1=2\n#2"])
        options = {"answer_how": "arithmetic", "format": "trl", "dtype": "float32", "prompt_as": "problem"}
        monkeypatch.setenv("TRL_ERPRM_OPTIONS", json.dumps({**options, "max_tokens_per_batch": 512}))
        assert trl_erprm.process_reward(["1+1\n"], ["1+1=2\n#2"]) == ProcessReward(prm_path, answer_how="arithmetic")(
            ["1+1\n"], ["1+1=2\n#2"]
        )

    def test_it_can_be_sent_to_another_process(self):
        """AsyncGRPOTrainer scores in a process of its own."""
        assert pickle.loads(pickle.dumps(trl_erprm.process_reward)) is trl_erprm.process_reward
        assert trl_erprm.process_reward.__name__ == "process_reward"
