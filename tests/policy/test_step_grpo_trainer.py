"""StepGRPOTrainer: equal to GRPOTrainer where it should be, and advantages by hand where it differs."""

import math

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.tiny import QUIET, prm_trainer, randomize_head
from trl_erprm import AnswerReward, ProcessReward, ProcessRewardModel, StepGRPOConfig, StepGRPOTrainer
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.policy import step_grpo_trainer as module
from trl_erprm.policy.advantages import (
    clip_step_rewards,
    delta_step_rewards,
    min_form_advantages,
    reward_to_go_advantages,
    soft_advantages,
)
from trl_erprm.policy.process_reward import Judgement
from trl_erprm.policy.step_grpo_config import PER_TOKEN_LOSS_TYPES
from trl_erprm.steps import split_steps

OPTIONS = {
    **QUIET,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 24,
    "logging_steps": 1,
    "save_strategy": "no",
    "temperature": 1.7,  # the policy has learnt its task: at 1 all completions of a prompt would be the same
}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


class StepRules(ProcessReward):
    """Judges as the embedded task does, without a model: 1 for a right step, 0 for a wrong one."""

    def __init__(self, task, **options):
        super().__init__(prm=None, answer_how="arithmetic", reward_if_malformed=0.0, **options)
        self.task = task

    def _scores(self, prompts, steps):
        return [[float(v) for v in self.task.check_steps(p, s)] for p, s in zip(prompts, steps, strict=True)]


@pytest.fixture(scope="module")
def prm_path(tiny_policy, tmp_path_factory):
    """A process reward model of random weights: its scores differ from step to step."""
    row = {"prompt": "1+1\n", "completions": ["1+1=2"], "labels": [1.0]}
    trainer = prm_trainer(tiny_policy[1], tmp_path_factory.mktemp("prm"), [row])
    randomize_head(trainer.model)
    trainer.processing_class.chat_template = TEMPLATE
    trainer.save_model()
    return trainer.args.output_dir


class Recording(StepGRPOTrainer):
    """Keeps what it generated, with the texts."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.outputs = []

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self.texts = list(prompts), list(completions), completion_ids_list
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.outputs.append((*self.texts, output))
        return output


def build(tiny_policy, output_dir, rewards, dataset=None, trainer_class=Recording, tokenizer=None, **options):
    task, policy = tiny_policy
    evaluation = options.pop("eval_dataset", None)
    config_class = GRPOConfig
    if trainer_class is not GRPOTrainer:
        config_class, options = StepGRPOConfig, {"advantage_estimator": "min_form", **options}
    return trainer_class(
        model=policy,
        reward_funcs=rewards,
        args=config_class(str(output_dir), **{**OPTIONS, **options}),
        train_dataset=task.dataset("train", 16) if dataset is None else dataset,
        eval_dataset=evaluation,
        processing_class=build_tokenizer() if tokenizer is None else tokenizer,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def padded(scores):
    most = max(map(len, scores))
    return torch.tensor([row + [math.nan] * (most - len(row)) for row in scores])


ESTIMATES = {
    "reward_to_go": ({}, lambda s: reward_to_go_advantages(s, 4)),
    "clip": (
        {"step_reward_shaping": ["clip"], "clip_threshold": 0.45},
        lambda s: reward_to_go_advantages(clip_step_rewards(s, 0.45), 4),
    ),
    "clip, delta": (
        {"step_reward_shaping": ["clip", "delta"], "clip_threshold": 0.45},
        lambda s: reward_to_go_advantages(delta_step_rewards(clip_step_rewards(s, 0.45)), 4),
    ),
    "reward_to_go, batch": ({"scale_rewards": "batch"}, lambda s: reward_to_go_advantages(s, 4, "batch")),
    "reward_to_go, none": ({"scale_rewards": False}, lambda s: reward_to_go_advantages(s, 4, "none")),
    "min_form": ({"min_form_temperature": 0.03}, lambda s: min_form_advantages(s, 4, 0.03)),
    "soft_advantage": ({"eta": 3.0, "beta": 1 / 3}, lambda s: soft_advantages(s, 4, 3.0)),
}


class TestOutcome:
    @pytest.mark.parametrize("max_completion_length", [24, 4])  # whole solutions, and cut within the first step
    def test_losses_equal_those_of_grpo(self, tiny_policy, prm_path, tmp_path, max_completion_length):
        results = []
        for trainer_class in (GRPOTrainer, StepGRPOTrainer):
            reward = ProcessReward(prm_path, require_answer=False)
            options = {} if trainer_class is GRPOTrainer else {"advantage_estimator": "outcome"}
            trainer = build(
                tiny_policy, tmp_path, [reward, AnswerReward("arithmetic")], trainer_class=trainer_class,
                max_steps=5, max_completion_length=max_completion_length, beta=0.05, **options,
            )  # fmt: skip
            trainer.train()
            results.append((losses(trainer), weights(trainer)))
        (expected, expected_weights), (actual, actual_weights) = results
        assert len(expected) == 5 and len(set(expected)) > 1
        assert actual == expected
        assert all(torch.equal(actual_weights[name], expected_weights[name]) for name in expected_weights)


class TestAdvantages:
    @pytest.mark.parametrize("name", ESTIMATES)
    def test_by_hand(self, name, tiny_policy, prm_path, tmp_path):
        options, estimate = ESTIMATES[name]
        estimator = "reward_to_go" if "clip" in name else name.partition(",")[0]
        reward = ProcessReward(prm_path, answer_how="arithmetic")
        trainer = build(tiny_policy, tmp_path, reward, advantage_estimator=estimator, **options)
        trainer.train()
        tokenizer = build_tokenizer()
        num_unscored = 0
        for prompts, completions, ids, output in trainer.outputs:
            judgements = reward.judge(prompts, completions)
            scores = [judgement.step_scores or [] for judgement in judgements]
            num_unscored += sum(not row for row in scores)
            expected = estimate(padded(scores))
            actual = output["advantages"]
            assert actual.shape == output["completion_ids"].shape
            for i, row in enumerate(ids):
                # In the embedded task's tokenizer each step ends with the token of its line end.
                step, per_token = 0, []
                for token in row:
                    known = step < len(scores[i])
                    per_token.append(expected[i, min(step, len(scores[i]) - 1)].item() if scores[i] else 0.0)
                    step += known and step + 1 < len(scores[i]) and tokenizer.decode([token]) == "\n"
                assert actual[i, : len(row)].tolist() == pytest.approx(per_token, abs=1e-6)
                assert (actual[i, len(row) :] == 0).all()
        assert num_unscored > 0  # completions without an answer were among them, and got 0

    def test_weights(self, tiny_policy, prm_path, tmp_path):
        outputs = []
        for outcome_weight, step_weight in [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)]:
            reward = ProcessReward(prm_path, answer_how="arithmetic")
            rewards = [reward, AnswerReward("arithmetic")]
            weighted = {"outcome_weight": outcome_weight, "step_weight": step_weight, "max_steps": 1}
            trainer = build(tiny_policy, tmp_path, rewards, **weighted)
            trainer.train()
            outputs.append(trainer.outputs[0][-1]["advantages"])
        outcome, steps, mixed = outputs
        assert (outcome == outcome[:, :1]).all() and outcome.abs().sum() > 0
        assert not torch.equal(steps, steps[:, :1].expand_as(steps))
        torch.testing.assert_close(mixed, 0.5 * outcome + 2.0 * steps)

    @pytest.mark.parametrize("others, expected", [([], 0.0), ([AnswerReward("arithmetic")], 1.0)])
    def test_outcome_weight_by_default(self, others, expected, tiny_policy, tmp_path):
        assert build(tiny_policy, tmp_path, [StepRules(tiny_policy[0]), *others]).outcome_weight == expected
        trainer = build(tiny_policy, tmp_path, [StepRules(tiny_policy[0]), *others], outcome_weight=0.25)
        assert trainer.outcome_weight == 0.25

    def test_malformed_completions_are_one_bad_step(self, tiny_policy, tmp_path):
        """With a reward for them; without one they get no advantage (test_by_hand)."""
        trainer = build(tiny_policy, tmp_path, StepRules(tiny_policy[0]), max_steps=6)
        trainer.train()
        seen = 0
        for prompts, completions, ids, output in trainer.outputs:
            judgements = trainer.process_reward.judge(prompts, completions)
            scores = [j.step_scores if j.malformed is None else [0.0] for j in judgements]
            expected = min_form_advantages(padded(scores), 4)
            for i, judgement in enumerate(judgements):
                if judgement.malformed:
                    assert output["advantages"][i, : len(ids[i])].tolist() == pytest.approx(
                        [expected[i, 0].item()] * len(ids[i]), abs=1e-6
                    )
                    seen += expected[i, 0].item() < 0
        assert seen > 0

    def test_conversational_prompts(self, tiny_policy, prm_path, tmp_path):
        tokenizer = build_tokenizer()
        tokenizer.chat_template = TEMPLATE
        texts = tiny_policy[0].dataset("train", 16)["prompt"]
        conversations = Dataset.from_dict({"prompt": [[{"role": "user", "content": p.strip()}] for p in texts]})
        reward = ProcessReward(prm_path, answer_how="arithmetic")
        trainer = build(tiny_policy, tmp_path, reward, dataset=conversations, tokenizer=tokenizer)
        trainer.train()
        assert trainer.state.log_history[0]["step_advantages/unmapped_share"] == 0
        for prompts, completions, _, output in trainer.outputs:
            assert completions[0][0]["role"] == "assistant"
            scores = padded([j.step_scores or [] for j in reward.judge(prompts, completions)])
            expected = min_form_advantages(scores, 4).nan_to_num()[:, 0]
            torch.testing.assert_close(output["advantages"][:, 0], expected)
            assert (expected != 0).any()

    def test_text_that_is_not_what_the_tokens_say(self, tiny_policy, prm_path, tmp_path, monkeypatch):
        reward = ProcessReward(prm_path, answer_how="arithmetic")
        trainer = build(tiny_policy, tmp_path, reward)
        monkeypatch.setattr(module, "completion_text", lambda completion: completion + "!")
        trainer.train()
        assert trainer.state.log_history[0]["step_advantages/unmapped_share"] == 1.0
        assert all((output["advantages"] == 0).all() for *_, output in trainer.outputs)

    def test_logged_metrics(self, tiny_policy, prm_path, tmp_path):
        reward = ProcessReward(prm_path, answer_how="arithmetic")
        trainer = build(tiny_policy, tmp_path, reward, step_weight=3.0)
        trainer.train()
        for entry, (prompts, completions, _, _) in zip(trainer.state.log_history, trainer.outputs, strict=False):
            scores = padded([j.step_scores or [] for j in reward.judge(prompts, completions)])
            expected = min_form_advantages(scores, 4)
            expected = expected[~expected.isnan()]
            assert entry["step_advantages/mean"] == pytest.approx(expected.mean().item(), abs=1e-6)
            assert entry["step_advantages/std"] == pytest.approx(expected.std(correction=0).item(), abs=1e-6)

    def test_evaluation_with_one_completion_a_prompt(self, tiny_policy, prm_path, tmp_path):
        """Nothing to compare with: no advantage, and no division by zero."""
        held_out = tiny_policy[0].dataset("test", 8)
        reward = ProcessReward(prm_path, answer_how="arithmetic")
        options = {"num_generations_eval": 1, "per_device_eval_batch_size": 8, "eval_dataset": held_out}
        trainer = build(tiny_policy, tmp_path, reward, **options)
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == 0.0
        prompts, completions, _, output = trainer.outputs[0]
        rewards = [value for value in reward(prompts, completions) if value is not None]
        assert metrics["eval_reward"] == pytest.approx(sum(rewards) / len(rewards))
        assert (output["advantages"] == 0).all()

    def test_nothing_judged(self, tiny_policy, prm_path, tmp_path):
        reward = ProcessReward(prm_path, answer_how="boxed")  # there is no \boxed{} in this task
        trainer = build(tiny_policy, tmp_path, [reward, AnswerReward("arithmetic")])
        trainer.train()
        outputs = [output["advantages"] for *_, output in trainer.outputs]
        assert all(torch.equal(a, a[:, :1].expand_as(a)) for a in outputs)  # the outcome's alone
        assert any((a != 0).any() for a in outputs)

    def test_scored_once(self, tiny_policy, prm_path, tmp_path, monkeypatch):
        reward = ProcessReward(prm_path, answer_how="arithmetic")
        calls = []
        score = reward.prm.score
        monkeypatch.setattr(reward.prm, "score", lambda *a, **k: (calls.append(len(a[0])), score(*a, **k))[1])
        build(tiny_policy, tmp_path, reward).train()
        assert len(calls) == 2


def batch(trainer, advantages):
    """The inputs of one loss: what was generated, with these advantages."""
    *_, output = trainer.outputs[0]
    old = output["completion_mask"] * -0.5
    return {**output, "advantages": advantages, "old_per_token_logps": old, "sampling_per_token_logps": old}


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", PER_TOKEN_LOSS_TYPES)
class TestLossTypes:
    def trainer(self, tiny_policy, tmp_path, loss_type, level):
        trainer = build(
            tiny_policy, tmp_path, StepRules(tiny_policy[0]), max_steps=1, loss_type=loss_type, delta=1.5,
            importance_sampling_level=level, off_policy_mask_threshold=50.0, epsilon_high=0.3,
        )  # fmt: skip
        trainer.train()
        return trainer

    def test_one_value_for_all_tokens_is_an_advantage_of_the_completion(self, tiny_policy, tmp_path, loss_type, level):
        trainer = self.trainer(tiny_policy, tmp_path, loss_type, level)
        advantages = torch.linspace(-1.0, 1.0, 8)
        whole = trainer._compute_loss(trainer.model, batch(trainer, advantages))
        tokens = trainer.outputs[0][-1]["completion_ids"].size(1)
        by_token = trainer._compute_loss(trainer.model, batch(trainer, advantages[:, None].expand(8, tokens)))
        assert whole.item() != 0
        torch.testing.assert_close(by_token, whole)

    def test_each_token_has_its_own(self, tiny_policy, tmp_path, loss_type, level):
        """The losses of two halves of the tokens add up to the loss of both, and differ."""
        trainer = self.trainer(tiny_policy, tmp_path, loss_type, level)
        mask = trainer.outputs[0][-1]["completion_mask"].float()
        first = torch.where(torch.arange(mask.size(1)) < 6, mask, 0.0)
        values = [trainer._compute_loss(trainer.model, batch(trainer, a)).item() for a in (first, mask - first, mask)]
        assert values[0] != pytest.approx(values[1])
        assert values[0] + values[1] == pytest.approx(values[2], rel=1e-4)


class TestTraining:
    def test_truncated_completions_can_be_masked(self, tiny_policy, tmp_path):
        """Every completion is cut off: there are advantages, and nothing is learnt from them."""
        trainer = build(
            tiny_policy, tmp_path, StepRules(tiny_policy[0], require_answer=False),
            max_completion_length=7, mask_truncated_completions=True, max_steps=1,
        )  # fmt: skip
        before = weights(trainer)
        trainer.train()
        output = trainer.outputs[0][-1]
        assert (output["advantages"] != 0).any() and output["completion_mask"].sum() == 0
        assert all(torch.equal(before[name], parameter) for name, parameter in weights(trainer).items())

    def test_steps_alone_teach_the_task(self, tiny_policy, tmp_path):
        """No reward for answers: only which steps are right. Accuracy is measured on other problems."""
        task = tiny_policy[0]
        trainer = build(
            tiny_policy, tmp_path, [StepRules(task), AnswerReward("arithmetic")],
            trainer_class=StepGRPOTrainer, dataset=task.dataset("train"), eval_dataset=task.dataset("test"),
            max_steps=30, per_device_train_batch_size=128, num_generations=8, temperature=1.0,
            outcome_weight=0.0, reward_weights=[1.0, 0.0], num_generations_eval=4, per_device_eval_batch_size=160,
        )  # fmt: skip
        before = trainer.evaluate()["eval_rewards/answer_reward/mean"]
        trainer.train()
        after = trainer.evaluate()["eval_rewards/answer_reward/mean"]
        assert before < 0.75 and after > before + 0.1


class TestErrors:
    @pytest.mark.parametrize("number", [0, 2])
    def test_number_of_process_rewards(self, number, tiny_policy, tmp_path):
        task = tiny_policy[0]
        rewards = [AnswerReward("arithmetic"), *(StepRules(task, name=f"rules_{i}") for i in range(number))]
        with pytest.raises(ValueError, match=f"exactly one ProcessReward.*it holds {number} among {1 + number}"):
            build(tiny_policy, tmp_path, rewards)

    def test_nan_score(self, tiny_policy, tmp_path, monkeypatch):
        rules = StepRules(tiny_policy[0])
        monkeypatch.setattr(rules, "_scores", lambda prompts, steps: [[math.nan] * len(s) for s in steps])
        with pytest.raises(ValueError, match="nan"):
            build(tiny_policy, tmp_path, rules).train()

    def test_a_group_of_one(self, tiny_policy, tmp_path):
        with pytest.raises(ValueError, match="at least 2 generations"):
            build(tiny_policy, tmp_path, StepRules(tiny_policy[0]), num_generations=1)

    @pytest.mark.parametrize("given, saved", [(None, 10.0), (10.0, None), (10.0, 10.0)])
    def test_eta_is_that_of_the_process_reward_model(self, given, saved, tiny_policy, prm_path, tmp_path, caplog):
        prm = ProcessRewardModel.from_pretrained(prm_path)
        prm.eta = saved
        options = {"advantage_estimator": "soft_advantage", "beta": 0.1, "eta": given}
        trainer = build(tiny_policy, tmp_path, ProcessReward(prm), **options)
        scores = torch.tensor([[0.9], [0.1], [0.1], [0.1]])
        assert torch.equal(trainer._estimate(scores, 4), soft_advantages(scores, 4, 10.0))
        assert "log-ratio" not in caplog.text  # 0.1 is 1 / eta

    @pytest.mark.parametrize(
        "given, saved, message",
        [
            (None, None, "`eta` must be given for 'soft_advantage' with this process reward model"),
            (1.0, 10.0, "`eta` is 1, but the process reward model was trained with eta = 10"),
            (0.0, math.inf, "`eta` is 0, but the process reward model was trained with eta = inf"),
        ],
    )
    def test_unknown_or_contradictory_eta(self, given, saved, message, tiny_policy, prm_path, tmp_path):
        prm = ProcessRewardModel.from_pretrained(prm_path)
        prm.eta = saved
        with pytest.raises(ValueError, match=message):
            build(tiny_policy, tmp_path, ProcessReward(prm), advantage_estimator="soft_advantage", eta=given)
        build(tiny_policy, tmp_path, ProcessReward(prm), eta=given)  # the others do not ask for it

    @pytest.mark.parametrize(
        "beta, eta, direction",
        [(0.0, 2.0, "past the optimum"), (1.0, 2.0, "back to the reference"), (0.5, 2.0, None), (0.1, 10.0, None)],
    )
    def test_beta_and_eta(self, beta, eta, direction, tiny_policy, tmp_path, caplog):
        build(
            tiny_policy, tmp_path, StepRules(tiny_policy[0]), advantage_estimator="soft_advantage", eta=eta, beta=beta
        )
        warned = [r.message for r in caplog.records if "log-ratio" in r.message]
        assert len(warned) == (direction is not None)
        if direction:
            assert f"`beta` is 1 / eta = {1 / eta:g}; here `beta` is {beta:g}" in warned[0] and direction in warned[0]


def test_judgements_of_an_empty_text(tiny_policy, tmp_path):
    """A completion of no tokens, as a server may return one: no step, no score, no token."""
    rules = StepRules(tiny_policy[0])
    trainer = build(tiny_policy, tmp_path, rules)
    trainer._judged = (
        ["", "1+1=2"],
        [rules.judge(["1+1\n"], [""])[0], Judgement(split_steps("1+1=2"), [0.5])],
        [
            [],
            trainer.processing_class("1+1=2")["input_ids"],
        ],
    )
    scores, index = trainer._scores_and_tokens(torch.zeros(2, 3, dtype=torch.long))
    assert scores == [[0.0], [0.5]]
    assert index.tolist() == [[-1, -1, -1], [0, 0, 0]]
