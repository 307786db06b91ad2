"""`trl_erprm.policy.rft_config`: ranges, defaults of the paper, and what each option changes."""

import pytest

from tests.policy.rft_runs import rft_config
from trl_erprm import RFTConfig


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
        ({"keep_models": 0}, "`keep_models` must be at least 1, or None for all of them, got 0"),
        ({"early_stopping_patience": 0}, "`early_stopping_patience` must be at least 1, or None"),
        ({"prompt_order": "slice"}, "`prompt_order` must be one of .* Did you mean 'slices'"),
        ({"vllm_mode": "colocated"}, "`vllm_mode` must be one of .* Did you mean 'colocate'"),
        ({"selection": "bets"}, "`selection` must be one of .* Did you mean 'best'"),
        ({"selection": "threshold"}, '`selection="threshold"` needs `selection_threshold`, got None'),
        ({"selection_threshold": float("nan")}, "`selection_threshold` must be a finite number, got nan"),
        ({"selection_k": 0}, "`selection_k` must be at least 1, got 0"),
        ({"selection_temperature": 0.0}, "`selection_temperature` must be a finite number above 0, got 0.0"),
        ({"deduplicate": "texts"}, "`deduplicate` must be one of 'text', 'equations'"),
        ({"max_per_prompt": 0}, "`max_per_prompt` must be at least 1, or None"),
        ({"carry_optimizer": True, "restart_from_base": True}, "exclude each other"),
    ],
)
def test_config(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        rft_config(tmp_path, **changes)


def test_defaults_of_the_paper(tmp_path):
    config = RFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    assert (config.num_iterations, config.num_samples, config.temperature) == (3, 16, 1.0)
    assert (config.num_train_epochs, config.save_strategy) == (2.0, "no")
    assert (config.selection, config.accumulate_data, config.restart_from_base) == ("best", False, False)
