"""`trl_erprm.policy.ppo_trainer`: rewards and values at their tokens, what trains, what is saved, bad input."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

from tests.tiny import QUIET, prm_trainer, save_base
from trl_erprm import ProcessPPOConfig, ProcessPPOTrainer, ProcessReward
from trl_erprm.policy.critic import load_critic
from trl_erprm.policy.generalized_advantages import explained_variance, generalized_advantages, whiten

PROMPTS = ["3*4=\n", "2+1-5=\n", "7-2=\n", "1+1=\n"]
# A token for each character; a step ends with its newline.
COMPLETIONS = {
    "3*4=\n": "3\n22\n#1",  # tokens 3 | \n | 2 | 2 | \n | # | 1 | end: steps end at 1, 4, 7
    "2+1-5=\n": "8\n#8",  # 8 | \n | # | 8 | end: steps end at 1, 4
    "7-2=\n": "55",  # no answer: malformed
    "1+1=\n": "2\n#2",
}
SCORES = {"3": 0.5, "22": 0.875, "#1": 0.25, "8": 0.75, "#8": 1.0, "2": 0.125, "#2": 0.625}
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


_ARGUMENTS_OF_THE_TRAINER = ("critic", "peft_config", "quantization_config", "eval_dataset")


class ScriptedPRM:
    def score(self, prompts, steps, batch_size, none_if_too_long):
        return [[SCORES[step] for step in solution] for solution in steps]


def outcome(completions, **kwargs):
    """1 for an answer below 2, 0 for another, `None` without one."""
    return [float(c[-1] < "2") if "#" in c else None for c in completions]


def rollout(prompts, trainer):
    tokenizer = trainer.processing_class

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    completion_ids = [[*ids(COMPLETIONS[prompt]), tokenizer.eos_token_id] for prompt in prompts]
    return {"prompt_ids": [ids(prompt) for prompt in prompts], "completion_ids": completion_ids, "logprobs": None}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def no_notice_of_rollout_func(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture
def build(base, tmp_path):
    """A trainer on given completions; keywords of the configuration and of the trainer together."""

    def build(rewards=None, model=None, rollout_func=rollout, prompts=PROMPTS, output="run", **changes):
        ours = {name: changes.pop(name) for name in _ARGUMENTS_OF_THE_TRAINER if name in changes}
        defaults = {
            "per_device_train_batch_size": 4, "max_completion_length": 12, "beta": 0.0, "num_iterations": 1,
            "whiten_advantages": False, "lam": 1.0, "learning_rate": 1e-2, "max_steps": 2, "save_strategy": "no",
            "logging_steps": 1, "shuffle_dataset": False,
        }  # fmt: skip
        return ProcessPPOTrainer(
            model=model or base,
            reward_funcs=rewards or ProcessReward(ScriptedPRM(), answer_how="arithmetic"),
            args=ProcessPPOConfig(str(tmp_path / output), **{**QUIET, **defaults, **changes}),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            rollout_func=rollout_func,
            **ours,
        )

    return build


def roll_out(trainer, prompts=PROMPTS):
    trainer.model.train()
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in prompts])


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model, before):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# With gamma = lambda = 1 and no KL, the returns are the rewards to come: what is placed where can be read off them.


class TestRewards:
    def test_delta_without_outcome(self, build):
        """From each step on, the rewards add up to that step's score; behind the last one is nothing."""
        returns = roll_out(build())["returns"]
        torch.testing.assert_close(returns[0], torch.tensor([0.5, 0.5, 0.875, 0.875, 0.875, 0.25, 0.25, 0.25]))
        torch.testing.assert_close(returns[1, :5], torch.tensor([0.75, 0.75, 1.0, 1.0, 1.0]))
        assert (returns[1, 5:] == 0).all()

    def test_delta_with_outcome(self, build):
        """The last step is left to the outcome, at the last token: both weigh one half."""
        rewards = [ProcessReward(ScriptedPRM(), answer_how="arithmetic"), outcome]
        trainer = build(rewards, reward_weights=[0.0, 1.0])
        assert (trainer.step_weight, trainer.outcome_weight) == (0.5, 0.5)
        returns = roll_out(trainer)["returns"]
        steps = torch.tensor([0.5, 0.5, 0.875, 0.875, 0.875, 0.0, 0.0, 0.0])
        torch.testing.assert_close(returns[0], 0.5 * steps + 0.5)  # answer 1: outcome 1
        torch.testing.assert_close(returns[1, :5], torch.tensor([0.375, 0.375, 0.0, 0.0, 0.0]))  # answer 8: outcome 0

    def test_raw_scores(self, build):
        returns = roll_out(build(step_reward_shaping=[], step_weight=2.0))["returns"]
        torch.testing.assert_close(returns[0], torch.tensor([3.25, 3.25, 2.25, 2.25, 2.25, 0.5, 0.5, 0.5]))

    def test_clip_then_delta(self, build):
        returns = roll_out(build(step_reward_shaping=["clip", "delta"], clip_threshold=0.75))["returns"]
        torch.testing.assert_close(returns[0], torch.tensor([-0.25, -0.25, 0, 0, 0, -0.5, -0.5, -0.5]))

    def test_malformed_is_left_out(self, build):
        """No step can be judged and nothing else rewards it: it teaches neither network."""
        trainer = build()
        output = roll_out(trainer)
        assert output["value_mask"][2].sum() == output["advantages"][2].abs().sum() == 0
        assert output["value_mask"][[0, 1, 3]].sum(1).tolist() == [8, 5, 5]
        assert trainer._metrics["train"]["completions/unrewarded_share"] == [0.25]

    def test_malformed_with_a_price(self, build):
        price = ProcessReward(ScriptedPRM(), answer_how="arithmetic", reward_if_malformed=-0.25)
        output = roll_out(build(price))
        torch.testing.assert_close(output["returns"][2, :3], torch.full((3,), -0.25))

    def test_a_function_without_weight_rewards_nothing(self, build):
        """It returns a number for every completion, but the other one has none for the third."""

        def watched(completions, **kwargs):
            return [1.0] * len(completions)

        output = roll_out(build([watched, outcome], reward_weights=[0.0, 1.0]))
        assert output["value_mask"].sum(1).tolist() == [8, 5, 0, 5]

    def test_without_process_reward(self, build):
        trainer = build(outcome)
        assert (trainer.step_weight, trainer.outcome_weight) == (0.0, 1.0)
        output = roll_out(trainer)
        assert output["returns"][:, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
        assert output["value_mask"].sum(1).tolist() == [8, 5, 0, 5]

    def test_discount(self, build):
        returns = roll_out(build(gamma=0.5))["returns"]
        # 8\n#8: 0.75 - 1 at token 1, 1 at token 4
        torch.testing.assert_close(returns[1, :5], torch.tensor([-0.125 + 0.0625, -0.25 + 0.125, 0.25, 0.5, 1.0]))

    def test_tokens_of_tools_are_skipped(self, build):
        def with_tool(prompts, trainer):
            output = rollout(prompts, trainer)
            return {**output, "env_mask": [[1, 0, 0] + [1] * (len(ids) - 3) for ids in output["completion_ids"]]}

        output = roll_out(build(rollout_func=with_tool))
        assert output["value_mask"][0].tolist() == [1, 0, 0, 1, 1, 1, 1, 1]
        torch.testing.assert_close(output["returns"][0], torch.tensor([0.5, 0, 0, 0.875, 0.875, 0.25, 0.25, 0.25]))
        # the end of a step on a skipped token is paid for at the own token before it
        torch.testing.assert_close(output["returns"][1, :5], torch.tensor([0.75, 0.0, 0.0, 1.0, 1.0]))

    def test_truncated(self, build):
        """A completion cut off ends there: its reward is what it got. `mask_truncated_completions` leaves it out."""

        def cut(prompts, trainer):
            output = rollout(prompts, trainer)
            return {**output, "completion_ids": [ids[:-1] for ids in output["completion_ids"]]}

        output = roll_out(build(rollout_func=cut))
        torch.testing.assert_close(output["returns"][1, :4], torch.tensor([0.75, 0.75, 1.0, 1.0]))
        masked = roll_out(build(rollout_func=cut, mask_truncated_completions=True))
        assert masked["value_mask"].sum() == masked["advantages"].abs().sum() == 0

    def test_infinite_reward(self, build):
        def broken(completions, **kwargs):
            return [math.inf] * len(completions)

        with pytest.raises(ValueError, match="'broken' returned an infinite reward. Return a finite one, or None"):
            roll_out(build(broken))

    def test_table_of_completions(self, build):
        """It shows the mean advantage of each completion, not the zeros of groups of one."""
        trainer = build()
        output = roll_out(trainer)
        expected = output["advantages"].sum(1) / output["value_mask"].sum(1).clamp(min=1)
        torch.testing.assert_close(torch.tensor(list(trainer._logs["advantages"])), expected)
        assert expected[0] != 0


class TestAdvantages:
    def test_estimation_and_whitening(self, build):
        plain, whitened = build(lam=0.9, gamma=0.99), build(lam=0.9, gamma=0.99, whiten_advantages=True)
        output, white = roll_out(plain), roll_out(whitened)
        rewards = torch.zeros_like(output["returns"])
        for row, positions, values in ((0, (1, 4, 7), (-0.375, 0.625, 0.25)), (1, (1, 4), (-0.25, 1.0)),
                                       (3, (1, 4), (-0.5, 0.625))):  # fmt: skip
            rewards[row, positions] = torch.tensor(values)
        expected, _ = generalized_advantages(rewards, output["old_values"], output["value_mask"], 0.99, 0.9)
        torch.testing.assert_close(output["advantages"], expected)
        torch.testing.assert_close(white["advantages"], whiten(expected, output["value_mask"]))

    def test_metrics(self, build):
        trainer = build()
        output = roll_out(trainer)
        logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        counted = output["value_mask"].bool()
        assert logged["returns/mean"] == pytest.approx(output["returns"][counted].mean().item())
        assert logged["returns/std"] == pytest.approx(output["returns"][counted].std(correction=0).item())
        assert logged["values/mean"] == pytest.approx(output["old_values"][counted].mean().item())
        assert logged["advantages/mean"] == pytest.approx(output["advantages"][counted].mean().item(), abs=1e-7)
        expected = explained_variance(output["returns"], output["old_values"], output["value_mask"])
        assert logged["explained_variance"] == pytest.approx(expected.item())
        assert logged["step_rewards/mean"] == pytest.approx((0.5 + 0.75 + 0.125) / 3)
        assert logged["completions/unmapped_share"] == 0

    def test_text_that_the_tokens_do_not_say(self, build, monkeypatch):
        """Its steps have no tokens: their rewards are lost, and that is logged."""
        trainer = build([ProcessReward(ScriptedPRM(), answer_how="arithmetic"), outcome])
        decode = type(trainer.processing_class).batch_decode

        def other_text(ids, **kwargs):
            return [text.replace("8\n#8", "3\n#1") for text in decode(trainer.processing_class, ids, **kwargs)]

        monkeypatch.setattr(trainer.processing_class, "batch_decode", other_text, raising=False)
        output = roll_out(trainer)
        assert trainer._metrics["train"]["completions/unmapped_share"] == [pytest.approx(1 / 3)]
        # of the outcome alone, which has the process reward in it (min: 0.25)
        torch.testing.assert_close(output["returns"][1, :5], torch.full((5,), 0.5 * 1.25))


class TestValues:
    def test_of_the_state_before_each_token(self, build, base):
        trainer = build()
        output = roll_out(trainer)
        ids = trainer.processing_class("3*4=\n3\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
        prompt_length = ids.size(1) - 2
        logits = trainer.critic.eval()(input_ids=ids).logits[0, :, 0]
        expected = logits[prompt_length - 1 :].sigmoid()  # of the prompt, of prompt + "3", of prompt + "3\n"
        torch.testing.assert_close(output["old_values"][0, :3], expected)

    def test_linear_head(self, build):
        sigmoid, linear = build(), build(value_head="linear")
        values = roll_out(linear)["old_values"]
        torch.testing.assert_close(roll_out(sigmoid)["old_values"], values.sigmoid())

    def test_value_loss_by_hand(self, build):
        """Half the mean squared error over the tokens of all completions, whatever micro-batch they lie in."""
        trainer = build(vf_coef=0.5, max_steps=1)
        trainer.train()
        fresh = build(vf_coef=0.5)
        output = roll_out(fresh)
        counted = output["value_mask"].bool()
        error = (output["old_values"] - output["returns"])[counted].square().sum() / 2
        num_tokens = 8 + 5 + 3 + 5  # the malformed completion's tokens divide, too, as in the policy's loss
        assert history(trainer, "loss/value") == [pytest.approx((error / num_tokens).item(), rel=1e-5)]
        policy_loss = -(output["advantages"].sum() / num_tokens).item()  # the ratio is 1 in the first update
        assert history(trainer, "loss/policy") == [pytest.approx(policy_loss, rel=1e-4)]
        assert history(trainer, "loss") == [pytest.approx(policy_loss + 0.5 * (error / num_tokens).item(), rel=1e-4)]

    def test_accumulation(self, build):
        whole = build(num_iterations=2)
        parts = build(num_iterations=2, per_device_train_batch_size=1, gradient_accumulation_steps=4)
        for trainer in (whole, parts):
            trainer.train()
        assert history(parts, "loss") == pytest.approx(history(whole, "loss"), rel=1e-4)
        for first, second in zip(whole.critic.parameters(), parts.critic.parameters(), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)

    def test_clipping(self, build):
        """In the second round on the same completions a value may not move further than the range."""
        shares = {}
        for cliprange in (1e-4, None):
            trainer = build(num_iterations=2, cliprange_value=cliprange)
            trainer.train()
            shares[cliprange] = history(trainer, "clip_ratio/value")
        assert shares[1e-4][0] == 0 < shares[1e-4][1]
        assert shares[None] == [0, 0]


class TestDistanceToTheReference:
    @pytest.fixture
    def away(self, base):
        """The policy, moved away from the checkpoint that the reference is loaded from."""
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            model.model.norm.weight.mul_(torch.rand(model.model.norm.weight.shape, generator=generator) + 0.5)
        return model

    def test_in_the_reward(self, build, away):
        trainer = build(model=away, beta=0.5)
        output = roll_out(trainer)
        log_ratio = output["old_per_token_logps"] - output["ref_per_token_logps"]
        assert log_ratio[0].abs().max() > 0.1
        paid = (0.5 * log_ratio * output["value_mask"]).flip(1).cumsum(1).flip(1) * output["value_mask"]
        free = roll_out(build(model=away, beta=0.0))["returns"]
        torch.testing.assert_close(output["returns"], free - paid, rtol=1e-5, atol=1e-5)
        counted = output["value_mask"].bool()
        assert trainer._metrics["train"]["kl"] == [pytest.approx(log_ratio[counted].mean().item())]

    def test_in_the_loss(self, build, away):
        losses = {}
        for name, options in {"free": {"beta": 0.0}, "reward": {"beta": 0.5}, "loss": {"beta": 0.5}}.items():
            trainer = build(model=away, kl_in_reward=name == "reward", **options)
            output = roll_out(trainer)
            trainer.current_gradient_accumulation_steps = 1
            fixed = {**output, "advantages": torch.zeros_like(output["advantages"])}
            losses[name] = trainer._compute_loss(trainer.policy_and_critic, fixed).item()
            losses[name] -= trainer.args.vf_coef * trainer._metrics["train"]["loss/value"][-1]
        # k3 at each token, over all tokens of the batch
        ratio = output["ref_per_token_logps"] - trainer._old_per_token_logps(output)
        k3 = ((ratio.exp() - ratio - 1) * output["completion_mask"]).sum() / output["completion_mask"].sum()
        assert losses["free"] == pytest.approx(0, abs=1e-6) and losses["reward"] == pytest.approx(0, abs=1e-6)
        assert losses["loss"] == pytest.approx(0.5 * k3.item(), rel=1e-4) and k3 > 0.01


class TestTraining:
    def test_both_learn(self, build):
        trainer = build()
        before = snapshot(trainer.model), snapshot(trainer.critic)
        trainer.train()
        assert moved(trainer.model, before[0]) and moved(trainer.critic, before[1])
        assert trainer.model is trainer.policy_and_critic.policy  # the wrapper was put aside again

    def test_value_warmup(self, build):
        trainer = build(num_value_warmup_steps=2, max_steps=3)
        policy, critic = snapshot(trainer.model), snapshot(trainer.critic)
        trainer.args.max_steps = 2
        trainer.train()
        assert moved(trainer.model, policy) == set() and "score.weight" in moved(trainer.critic, critic)
        assert history(trainer, "loss/policy") == [0, 0]
        longer = build(num_value_warmup_steps=2, max_steps=3)
        longer.train()
        assert moved(longer.model, policy)

    def test_learning_rate_of_the_critic(self, build):
        still = build(critic_learning_rate=0.0)
        policy, critic = snapshot(still.model), snapshot(still.critic)
        still.train()
        assert moved(still.model, policy) and moved(still.critic, critic) == set()
        own = build(critic_learning_rate=0.5)
        own.create_optimizer(own.policy_and_critic)
        rates = {id(p): group["lr"] for group in own.optimizer.param_groups for p in group["params"]}
        assert {rates[id(p)] for p in own.critic.parameters()} == {0.5}
        assert {rates[id(p)] for p in own.model.parameters()} == {0.01}

    def test_learning_rate_needs_an_own_optimizer(self, build):
        trainer = build(critic_learning_rate=0.5)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="needs an optimizer that the trainer makes. Leave the optimizer out"):
            trainer.create_optimizer()

    def test_adapters(self, build):
        trainer = build(peft_config=LORA)
        policy, critic = snapshot(trainer.model), snapshot(trainer.critic)
        trainer.train()
        assert {name.split(".lora_")[0].split(".")[-1] for name in moved(trainer.model, policy)} == {
            "q_proj",
            "v_proj",
        }
        of_critic = moved(trainer.critic, critic)
        assert any("score" in name for name in of_critic) and any("lora_" in name for name in of_critic)
        assert all("lora_" in name or "score.modules_to_save" in name for name in of_critic)

    def test_full_critic_beside_adapters(self, build):
        trainer = build(peft_config=LORA, critic_use_peft=False)
        critic = snapshot(trainer.critic)
        trainer.train()
        assert "model.layers.0.mlp.up_proj.weight" in moved(trainer.critic, critic)

    def test_quantized(self, build):
        """4-bit weights under the adapters of both networks; the critic's new head is in full precision."""
        pytest.importorskip("bitsandbytes")
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        trainer = build(peft_config=LORA, quantization_config=quantization)
        for model in (trainer.model, trainer.critic):
            assert model.base_model.model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
        critic = snapshot(trainer.critic)
        trainer.train()
        assert any("score.modules_to_save" in name for name in moved(trainer.critic, critic))

    def test_reward_improves(self, build):
        """From its own samples: a policy that is paid for the digit 1 learns to write it."""

        def ones(completions, **kwargs):
            return [completion.count("1") / 12 for completion in completions]

        trainer = build(
            ones, rollout_func=None, per_device_train_batch_size=32, num_generations=8, max_steps=30, beta=0.01,
            num_iterations=3, learning_rate=1e-2, lam=0.95, whiten_advantages=True, eval_dataset=Dataset.from_list(
                [{"prompt": prompt} for prompt in PROMPTS]
            ), per_device_eval_batch_size=4, num_generations_eval=1,
        )  # fmt: skip
        before = trainer.evaluate()["eval_rewards/ones/mean"]
        trainer.train()
        assert before < 0.15 and trainer.evaluate()["eval_rewards/ones/mean"] > before + 0.3


class TestSaving:
    @pytest.mark.parametrize("adapters", [None, LORA], ids=["full", "lora"])
    def test_resumed_training_is_the_same(self, build, tmp_path, adapters):
        options = {"max_steps": 4, "num_iterations": 2, "lam": 0.9, "peft_config": adapters, "beta": 0.1}
        whole = build(save_strategy="steps", save_steps=2, **options)
        whole.train()
        resumed = build(output="resumed", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        for first, second in ((whole.model, resumed.model), (whole.critic, resumed.critic)):
            assert moved(second, snapshot(first)) == set()
        assert history(resumed, "loss") == history(whole, "loss")

    def test_files_of_the_policy(self, build, base, tmp_path):
        """As of a policy alone; the critic lies beside them, and is one that the next run can begin with."""
        trainer = build()
        trainer.train()
        trainer.save_model()
        saved, plain = load_file(tmp_path / "run" / "model.safetensors"), load_file(f"{base}/model.safetensors")
        assert set(saved) == set(plain)
        again = build(model=str(tmp_path / "run"), critic=str(tmp_path / "run" / "critic"), output="again")
        assert moved(again.critic, snapshot(trainer.critic)) == set()
        assert moved(again.model, snapshot(trainer.model)) == set()

    def test_saved_adapters_begin_a_critic(self, build, tmp_path):
        trainer = build(peft_config=LORA)
        trainer.train()
        trainer.save_model()
        saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
        assert all("lora_" in name for name in saved)
        again = build(critic=str(tmp_path / "run" / "critic"), output="again")
        ids = torch.arange(10)[None]
        torch.testing.assert_close(
            again.critic.eval()(input_ids=ids).logits, trainer.critic.eval()(input_ids=ids).logits
        )

    def test_best_model(self, build, tmp_path):
        """At the end both networks are those of the best checkpoint."""
        trainer = build(
            save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
            metric_for_best_model="eval_num_tokens", greater_is_better=False, max_steps=2,
            per_device_eval_batch_size=4, eval_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        )  # fmt: skip
        trainer.train()
        assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
        best = load_file(tmp_path / "run" / "checkpoint-1" / "critic" / "model.safetensors")
        torch.testing.assert_close(trainer.critic.score.weight.data, best["score.weight"], rtol=0, atol=0)

    def test_checkpoint_without_critic(self, build, tmp_path):
        trainer = build(save_strategy="steps", save_steps=1, max_steps=1)
        trainer.train()
        (tmp_path / "run" / "checkpoint-1" / "critic").rename(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match="has no folder 'critic': it is no checkpoint of ProcessPPOTrainer"):
            build().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))

    @pytest.mark.parametrize("adapters", [None, LORA], ids=["full", "lora"])
    def test_names_sent_to_vllm(self, build, base, adapters):
        """vLLM is given `trainer.model`, whose parameters are the policy's and nothing else."""
        trainer = build(peft_config=adapters)
        trainer.train()
        sender = object.__new__(VLLMGeneration)
        sender.model, sender.accelerator, sender._dist, sender.mode = (
            trainer.model, trainer.accelerator, trainer._dist, "server"
        )  # fmt: skip
        names = {name for name, _ in sender._iter_named_params()}
        plain = AutoModelForCausalLM.from_pretrained(base)
        assert names == {name for name, _ in plain.named_parameters()}


class TestCritic:
    def test_from_the_policy(self, base, build):
        """Its body is the policy's, its head is new, and the same for the same seed."""
        first, second = build(), build()
        body = {n: p for n, p in first.model.named_parameters() if n.startswith("model.")}
        for name, parameter in first.critic.named_parameters():
            if name in body:
                assert torch.equal(parameter, body[name]) and parameter is not body[name]
        torch.testing.assert_close(first.critic.score.weight, second.critic.score.weight, rtol=0, atol=0)
        assert first.critic.score.weight.abs().sum() > 0

    def test_from_a_policy_in_memory(self, base, build):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.config._name_or_path = ""
        with torch.no_grad():
            model.model.norm.weight.fill_(0.5)
        trainer = ProcessPPOTrainer(
            model=model,
            reward_funcs=outcome,
            args=build().args,
            train_dataset=Dataset.from_list([{"prompt": "1+1=\n"}]),
            processing_class=build().processing_class,
        )
        assert trainer.critic.model.norm.weight.unique().tolist() == [0.5]

    def test_other_vocabulary(self, build, base, tmp_path):
        folder = Path(save_base(tmp_path / "other"))
        tokens = (folder / "tokenizer.json").read_text()
        assert '"+": 13' in tokens and '"-": 14' in tokens
        swapped = tokens.replace('"+": 13', '"+": 99').replace('"-": 14', '"-": 13').replace('"+": 99', '"+": 14')
        (folder / "tokenizer.json").write_text(swapped)
        with pytest.raises(
            ValueError, match=r"2 of the policy's \d+ tokens have another id, or none, in .*'\+', 13 here, 14"
        ):
            build(critic=str(folder))

    def test_too_few_embeddings(self, build, base):
        small = load_critic(None, AutoModelForCausalLM.from_pretrained(base), build().processing_class)
        small.resize_token_embeddings(20)
        with pytest.raises(ValueError, match="embeds 20 tokens where the policy's tokenizer has"):
            build(critic=small)

    def test_more_labels(self, build, base):
        policy = AutoModelForCausalLM.from_pretrained(base)
        with pytest.raises(ValueError, match="A critic is a token classifier with one label, got a Qwen2ForCausalLM"):
            build(critic=policy)


class TestBadInput:
    def test_fsdp(self, build, monkeypatch):
        original = GRPOTrainer.__init__

        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.is_fsdp_enabled = True

        monkeypatch.setattr(GRPOTrainer, "__init__", init)
        with pytest.raises(ValueError, match="does not save and resume .* under FSDP. Launch with ZeRO"):
            build()

    def test_no_reward(self, base, build):
        with pytest.raises(
            ValueError, match="`reward_funcs` is empty: there would be no reward. Give a ProcessReward"
        ):
            ProcessPPOTrainer(base, [], args=build().args, train_dataset=Dataset.from_list([{"prompt": "1"}]))

    def test_process_reward_without_weight(self, build):
        with pytest.raises(ValueError, match="whose own outcome weighs 0: there would be no reward"):
            build(step_weight=0.0)

    def test_steps_wanted_without_process_reward(self, build):
        with pytest.raises(ValueError, match="want rewards of steps, but no reward function is a ProcessReward"):
            build(outcome, step_weight=0.5)

    def test_two_process_rewards(self, build):
        with pytest.raises(ValueError, match="holds 2 ProcessRewards, and the steps .* by one. Keep one"):
            build([ProcessReward(ScriptedPRM()), ProcessReward(ScriptedPRM(), name="other")])

    def test_the_scoring_model_as_critic(self, base, build):
        class PRM(ScriptedPRM):
            model = load_critic(None, AutoModelForCausalLM.from_pretrained(base), build().processing_class)

        with pytest.raises(
            ValueError, match="the very model that the ProcessReward scores with, and would be trained"
        ):
            build(ProcessReward(PRM()), critic=PRM.model)

    def test_adapters_without_configuration(self, build):
        with pytest.raises(ValueError, match="`critic_use_peft=True` .* there is no `peft_config`"):
            build(critic_use_peft=True)

    def test_a_process_reward_model_has_no_linear_values(self, build, tmp_path, base):
        rows = [{"prompt": "1+1=\n", "completions": ["2"], "labels": [0.5]}] * 2
        prm_trainer(base, tmp_path / "prm", rows, max_steps=1).save_model()
        with pytest.raises(ValueError, match="value_head='linear' .* log-odds, not values"):
            build(critic=str(tmp_path / "prm"), value_head="linear")
