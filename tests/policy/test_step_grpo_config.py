"""StepGRPOConfig: defaults, and what it refuses by name."""

import dataclasses
import math

import pytest
from trl import GRPOConfig

from tests.tiny import QUIET
from trl_erprm import StepGRPOConfig
from trl_erprm.policy import step_grpo_config


def config(tmp_path, **options):
    return StepGRPOConfig(str(tmp_path), **QUIET, **options)


def test_defaults_differ_from_grpo_only_where_documented(tmp_path, monkeypatch):
    own = {f.name: f for f in dataclasses.fields(StepGRPOConfig)}
    for f in dataclasses.fields(GRPOConfig):
        assert own[f.name].default == f.default, f.name
    monkeypatch.setattr(step_grpo_config, "is_torch_bf16_gpu_available", lambda: True)
    assert StepGRPOConfig(str(tmp_path), use_cpu=True, report_to="none").bf16 is True
    monkeypatch.setattr(step_grpo_config, "is_torch_bf16_gpu_available", lambda: False)
    assert StepGRPOConfig(str(tmp_path), use_cpu=True, report_to="none").bf16 is False


def test_every_field_is_documented():
    new = {f.name for f in dataclasses.fields(StepGRPOConfig)} - {f.name for f in dataclasses.fields(GRPOConfig)}
    assert len(new) == 7 and StepGRPOConfig.advantage_estimator == "reward_to_go"
    for name in new:
        assert f"        {name} (`" in StepGRPOConfig.__doc__, name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"advantage_estimator": "min-form"}, "`advantage_estimator` must be one of .*Did you mean 'min_form'"),
        (
            {"advantage_estimator": "reward_to_go", "step_reward_shaping": ["clips"]},
            "`step_reward_shaping` must be one of 'clip', 'delta', got 'clips'",
        ),
        (
            {"advantage_estimator": "min_form", "step_reward_shaping": ["clip"]},
            "shapes the rewards that 'reward_to_go' adds up; 'min_form' adds up none",
        ),
        ({"scale_rewards": "groups"}, "`scale_rewards` must be one of 'group', 'batch', 'none', got 'groups'"),
        ({"eta": math.nan}, "`eta` must be finite or one of inf, -inf, got nan"),
        ({"min_form_temperature": 0.0}, "`min_form_temperature` must be a finite number above 0, got 0.0"),
        ({"outcome_weight": -1.0}, "`outcome_weight` must be a finite number of at least 0, got -1.0"),
        ({"step_weight": math.inf}, "`step_weight` must be a finite number of at least 0, got inf"),
        ({"loss_type": "new"}, "loss_type='new' is not known to take an advantage for each token. Set one of 'grpo'"),
        ({"num_generations": 1}, "at least 2 generations"),
    ],
)
def test_errors(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)
