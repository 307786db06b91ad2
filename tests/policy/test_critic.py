"""`trl_erprm.policy.critic`: the heads that become a critic's, and its values. What trains it: test_ppo_trainer.py."""

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.tiny import HEADS, prm_trainer, randomize_head, save_base
from trl_erprm import ProcessRewardModel
from trl_erprm.arguments import load_tokenizer
from trl_erprm.policy.critic import PolicyAndCritic, load_critic
from trl_erprm.prm.heads import step_log_odds


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("head", HEADS)
def test_from_a_process_reward_model(base, tmp_path, head):
    """Whatever its head was, the critic's logit is the log-odds that the PRM's score is made of."""
    rows = [{"prompt": "1+1=\n", "completions": ["2"], "labels": [0.5]}] * 2
    trainer = prm_trainer(base, tmp_path / "prm", rows, max_steps=1, **HEADS[head])
    randomize_head(trainer.model)
    trainer.save_model()
    prm = ProcessRewardModel.from_pretrained(tmp_path / "prm")
    policy = AutoModelForCausalLM.from_pretrained(base)
    critic = load_critic(str(tmp_path / "prm"), policy, prm.tokenizer, dtype=torch.float32).eval()
    assert critic.config.num_labels == 1
    ids = torch.arange(3, 15)[None]
    expected = step_log_odds(prm.model, {"input_ids": ids}, torch.ones_like(ids).bool(), prm._label_token_ids)
    torch.testing.assert_close(critic(input_ids=ids).logits[0, :, 0], expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("head", HEADS)
def test_from_an_adapter(base, tmp_path, head):
    """It is merged, and the critic, unless it gets adapters of its own, is trained in full."""
    rows = [{"prompt": "1+1=\n", "completions": ["2"], "labels": [0.5]}] * 2
    adapter = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    prm_trainer(base, tmp_path, rows, peft_config=adapter, **HEADS[head]).save_model()
    prm = ProcessRewardModel.from_pretrained(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(base)
    critic = load_critic(str(tmp_path), policy, prm.tokenizer, dtype=torch.float32).eval()
    ids = torch.arange(3, 15)[None]
    expected = step_log_odds(prm.model, {"input_ids": ids}, torch.ones_like(ids).bool(), prm._label_token_ids)
    torch.testing.assert_close(critic(input_ids=ids).logits[0, :, 0], expected, rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in critic.parameters())


def test_a_saved_head_of_the_policy_is_not_asked_of_the_critic(base):
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    critic = load_critic(None, AutoModelForCausalLM.from_pretrained(base), load_tokenizer(base), config)
    assert {"score", "classifier"} == set(critic.modules_to_save)
    assert config.modules_to_save == ["lm_head"]  # the policy's is left as it is


def test_one_module_for_both(base):
    """The policy answers as alone; the values are of the states before each of the last tokens."""
    policy = AutoModelForCausalLM.from_pretrained(base).eval()
    critic = load_critic(None, policy, load_tokenizer(base)).eval()
    both = PolicyAndCritic(policy, critic)
    inputs = {"input_ids": torch.arange(3, 15)[None], "attention_mask": torch.ones(1, 12, dtype=torch.long)}
    outputs, values = both(**inputs, num_values=4)
    assert torch.equal(outputs.logits, policy(**inputs).logits) and torch.equal(both(**inputs).logits, outputs.logits)
    assert torch.equal(values, critic(**inputs).logits[:, 7:11, 0])
    alone, again = both(**inputs, num_values=4, with_policy=False)
    assert alone is None and torch.equal(again, values)
    assert both.config is policy.config and not hasattr(both, "nowhere")


def test_the_head_beside_adapters_is_float32(base):
    """So that small updates of a bfloat16 critic's head are not lost; values need no autocast."""
    policy = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = LoraConfig(r=4, target_modules=["q_proj"])
    critic = load_critic(None, policy, load_tokenizer(base), config, dtype=torch.bfloat16).eval()
    trained = {name: p for name, p in critic.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32} and any("score" in name for name in trained)
    assert critic.base_model.model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    plain = load_critic(None, policy, load_tokenizer(base), dtype=torch.bfloat16).eval()
    with torch.no_grad():
        plain.score.weight.copy_(critic.score.weight)
        plain.score.bias.copy_(critic.score.bias)
    ids = torch.arange(3, 15)[None]
    torch.testing.assert_close(critic(input_ids=ids).logits, plain(input_ids=ids).logits.float(), rtol=2e-2, atol=2e-2)
