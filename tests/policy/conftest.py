"""What the tests of `RFTTrainer` share."""

import pytest

from tests.policy.rft_runs import ScriptedEngine, is_right, rft_config
from trl_erprm import RFTTrainer
from trl_erprm.policy import rft_trainer
from trl_erprm.rollout.transformers_engine import TransformersEngine


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
def make_rft(tiny_policy, tmp_path):
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
