"""`trl_erprm.policy.ppo_config`: defaults, batches of any size with one completion a prompt, bad input."""

import json
import math

import pytest

from tests.tiny import QUIET
from trl_erprm import ProcessPPOConfig
from trl_erprm.policy.step_grpo_config import PER_TOKEN_LOSS_TYPES


def config(tmp_path, **changes):
    return ProcessPPOConfig(str(tmp_path), **{**QUIET, **changes})


def test_defaults(tmp_path):
    args = config(tmp_path)
    assert (args.gamma, args.lam, args.vf_coef, args.cliprange_value, args.beta) == (1.0, 0.95, 0.1, 0.2, 0.05)
    assert (args.epsilon, args.num_iterations, args.num_generations) == (0.2, 4, 1)
    assert (args.kl_in_reward, args.whiten_advantages, args.step_reward_shaping) == (True, True, ["delta"])


@pytest.mark.parametrize("batch", [{}, {"per_device_train_batch_size": 1}, {"per_device_train_batch_size": 3}])
def test_one_completion_a_prompt(tmp_path, batch):
    """GRPOConfig refuses one, and an odd batch that is no multiple of two."""
    args = config(tmp_path, **batch)
    assert args.num_generations == 1 and type(args.num_generations) is int
    assert args.generation_batch_size == batch.get("per_device_train_batch_size", 8)
    assert json.loads(args.to_json_string())["num_generations"] == 1


def test_a_group_still_has_to_fit(tmp_path):
    assert config(tmp_path, num_generations=4).num_generations == 4
    with pytest.raises(ValueError, match=r"generation_batch_size \(8\) must be divisible by num_generations \(3\)"):
        config(tmp_path, num_generations=3)


def test_shaping_is_not_shared(tmp_path):
    first = config(tmp_path)
    first.step_reward_shaping.append("clip")
    assert config(tmp_path).step_reward_shaping == ["delta"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.1}, r"`gamma` must be in \[0, 1\], got 1.1"),
        ({"lam": math.nan}, r"`lam` must be in \[0, 1\], got nan"),
        ({"vf_coef": -1.0}, "`vf_coef` must be a finite number of at least 0, got -1.0"),
        ({"beta": math.inf}, "`beta` must be a finite number"),
        ({"critic_learning_rate": -1e-5}, "`critic_learning_rate` must be"),
        ({"cliprange_value": 0.0}, "`cliprange_value` must be above 0, or None"),
        ({"num_value_warmup_steps": -1}, "`num_value_warmup_steps` must be at least 0, got -1"),
        ({"step_weight": 0.0, "outcome_weight": 0.0}, "both 0: there would be no reward. Set one of them above 0"),
        ({"step_reward_shaping": ["dleta"]}, "`step_reward_shaping` must be one of 'clip', 'delta', got 'dleta'"),
        ({"value_head": "tanh"}, "`value_head` must be one of 'sigmoid', 'linear', got 'tanh'"),
        ({"loss_type": "sum"}, "loss_type='sum' is not known to take an advantage for each token. Set one of 'grpo'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "compares the completions of a group"),
    ],
)
def test_bad_input(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


@pytest.mark.parametrize("loss_type", PER_TOKEN_LOSS_TYPES)
def test_losses_that_take_an_advantage_for_each_token(tmp_path, loss_type):
    assert config(tmp_path, loss_type=loss_type).loss_type == loss_type
