"""`trl_erprm.policy.shared_base`: one copy of the base, the scores of a model alone, and a policy that trains."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.policy.rft_runs import rft_config
from tests.tiny import CAUSAL, prm_trainer
from trl_erprm import ProcessReward, ProcessRewardModel, RFTTrainer
from trl_erprm.policy.shared_base import PRM_ADAPTER, share_base

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "lora_dropout": 0.3}
ROWS = [{"prompt": "1+1\n", "completions": ["1+1=2", "#2"], "labels": [1.0, 0.2]}] * 4
PROMPTS, STEPS = ["1+1\n", "3+4\n"], [["1+1=2", "#2"], ["3+4=8"]]


@pytest.fixture(scope="module")
def prm_path(tiny_policy, tmp_path_factory):
    """A process reward model as an adapter on the tiny policy."""
    path = tmp_path_factory.mktemp("prm")
    config = {"peft_config": LoraConfig(**LORA), "max_steps": 6, "learning_rate": 3e-2, **CAUSAL}
    trainer = prm_trainer(tiny_policy[1], path, ROWS, **config)
    trainer.train()
    trainer.save_model()
    return str(path)


@pytest.fixture
def policy(tiny_policy):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_policy[1]), LoraConfig(**LORA))
    with torch.no_grad():  # an adapter that changes what the model says
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


def test_scores_are_those_of_the_model_alone(policy, prm_path, tiny_policy):
    alone = ProcessRewardModel.from_pretrained(prm_path, device="cpu").score(PROMPTS, STEPS)
    ids = torch.tensor([[5, 6, 7]])
    policy.train()
    before = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    said = policy.eval()(input_ids=ids).logits
    shared = share_base(policy, prm_path)
    policy.train()
    chats = [[{"role": "user", "content": prompt.strip()}] for prompt in PROMPTS]  # of which it reads what it learnt
    for prompts in (PROMPTS, chats):
        for ours, theirs in zip(shared.score(prompts, STEPS), alone, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)
    # the two adapters differ, so it does matter which is in place
    base = ProcessRewardModel(policy, shared.tokenizer, shared.format)
    assert abs(base.score(PROMPTS, STEPS)[0][0] - alone[0][0]) > 1e-3
    # the policy is as it was: mode, what is trained, and what it says
    policy.train()
    shared.score(PROMPTS, STEPS)
    assert policy.training and policy.active_adapter == "default"
    after = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    assert {name: value for name, value in after.items() if PRM_ADAPTER not in name} == before
    assert not any(value for name, value in after.items() if PRM_ADAPTER in name)
    torch.testing.assert_close(policy.eval()(input_ids=ids).logits, said)


def test_the_base_is_in_memory_once(policy, prm_path, tiny_policy):
    shared = share_base(policy, prm_path)
    base = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_policy[1]).parameters())
    adapter = sum(p.numel() for name, p in policy.named_parameters() if ".default." in name)
    storages = {p.data_ptr(): p.numel() for p in [*policy.parameters(), *shared.model.parameters()]}
    assert sum(storages.values()) == base + 2 * adapter
    assert sum(p.numel() for p in shared.model.parameters()) == base + adapter


def test_a_run(policy, prm_path, tiny_policy, tmp_path):
    """The policy's adapter trains, the other does not move, and only the policy's is saved; a second run resumes."""
    task, _ = tiny_policy

    def trainer(policy):
        return RFTTrainer(
            policy,
            reward_funcs=ProcessReward(share_base(policy, prm_path), answer_how="arithmetic"),
            args=rft_config(tmp_path / "run", num_iterations=1, learning_rate=1e-2),
            train_dataset=task.dataset("train", 8),
            eval_dataset=task.dataset("test", 4),
        )

    first = trainer(policy)
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    history = first.train()
    moved = {name for name, value in policy.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all(".default." in name for name in moved)
    files = {path.name for path in Path(tmp_path / "run/iteration-1/model").iterdir()}
    assert "adapter_model.safetensors" in files and PRM_ADAPTER not in files
    (tmp_path / "run/iteration-1/metrics.json").unlink()
    fresh = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_policy[1]), LoraConfig(**LORA))
    fresh.load_state_dict({n: v for n, v in before.items() if PRM_ADAPTER not in n}, strict=False)
    assert trainer(fresh).train() == history


class TestErrors:
    def test_no_adapter(self, policy, tiny_policy):
        with pytest.raises(ValueError, match="must hold the adapter of a process reward model .* and does not. Train"):
            share_base(policy, tiny_policy[1])

    def test_another_head(self, policy, tiny_policy, tmp_path):
        lora = LoraConfig(**{**LORA, "task_type": "TOKEN_CLS"}, modules_to_save=["score"])
        prm_trainer(tiny_policy[1], tmp_path, ROWS, peft_config=lora).save_model()
        with pytest.raises(ValueError, match="has the head 'token_classification', which the policy's base model d"):
            share_base(policy, tmp_path)

    def test_another_base(self, policy, prm_path):
        policy.peft_config["default"].base_model_name_or_path = "another/model"
        with pytest.raises(ValueError, match="was trained on '.*', but the policy's base model is 'another/model'"):
            share_base(policy, prm_path)

    def test_no_peft_model(self, prm_path, tiny_policy):
        with pytest.raises(ValueError, match="`policy` must be a PEFT model with the adapter 'default', got Qwen2For"):
            share_base(AutoModelForCausalLM.from_pretrained(tiny_policy[1]), prm_path)
