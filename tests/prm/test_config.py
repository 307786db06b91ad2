"""`trl_erprm.prm.config`: defaults, the format that the fields describe, and values that are refused."""

import dataclasses
import math
import re

import pytest
from trl import RewardConfig

from tests.tiny import QUIET
from trl_erprm import ERPRMConfig
from trl_erprm.prm.formats import ER_PRM, TRL_TOKEN_CLASSIFICATION


def config(tmp_path, **changes):
    return ERPRMConfig(str(tmp_path), **{**QUIET, **changes})


def test_defaults(tmp_path):
    ours, theirs = config(tmp_path), RewardConfig(str(tmp_path), **QUIET)
    assert (ours.learning_rate, ours.num_train_epochs) == (1e-6, 1)  # the paper's
    assert (ours.head, ours.loss_type, ours.num_labels) == ("token_classification", "soft_cross_entropy", 1)
    assert ours.eta is None and not ours.train_on_last_step_only
    # nothing else differs from TRL without being listed in the docstring
    different = {
        f.name for f in dataclasses.fields(RewardConfig) if getattr(ours, f.name) != getattr(theirs, f.name)
    } - {"logging_dir"}
    assert different == {"learning_rate", "num_train_epochs"}
    for name in different:
        assert f"`{name}`: Defaults to" in ERPRMConfig.__doc__


def test_every_field_is_documented():
    new = {f.name for f in dataclasses.fields(ERPRMConfig)} - {f.name for f in dataclasses.fields(RewardConfig)}
    headings = " ".join(line for line in ERPRMConfig.__doc__.splitlines() if line.rstrip().endswith("):"))
    assert new <= set(re.findall(r"\w+", headings)) and len(new) > 8
    assert all(f.metadata.get("help") for f in dataclasses.fields(ERPRMConfig) if f.name in new)


def test_format_of_the_head(tmp_path):
    assert config(tmp_path).build_format() is TRL_TOKEN_CLASSIFICATION
    assert config(tmp_path, head="causal_lm").build_format() is ER_PRM
    assert config(tmp_path, head="causal_lm", format="er-prm").build_format() is ER_PRM


@pytest.mark.parametrize("name", ["step_tag", "step_joiner", "prompt_separator", "positive_token", "negative_token"])
def test_each_format_field_is_replaced(tmp_path, name):
    built = config(tmp_path, head="causal_lm", **{name: "§"}).build_format()
    assert built == dataclasses.replace(ER_PRM, **{name: "§"})


def test_an_empty_text_replaces_too(tmp_path):
    assert config(tmp_path, head="causal_lm", prompt_separator="").build_format().prompt_separator == ""


@pytest.mark.parametrize("eta", [-2.0, 0, 0.1, math.inf, -math.inf])
def test_eta(tmp_path, eta):
    assert config(tmp_path, eta=eta).eta == eta


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"head": "lm"}, "`head` must be one of 'token_classification', 'causal_lm', got 'lm'"),
        ({"loss_type": "mae"}, "`loss_type` must be one of 'soft_cross_entropy', 'mse', got 'mae'"),
        ({"num_labels": 3}, "`num_labels` must be 1 .* or 2 .*, got 3"),
        ({"eta": math.nan}, "`eta` must be finite or one of inf, -inf, got nan"),
        ({"format": "er-prm"}, "The format 'er-prm' is read with the head 'causal_lm', but `head` is 'token_class"),
        ({"format": "trl", "head": "causal_lm"}, "The format 'trl' is read with the head 'token_classification'"),
        ({"format": "tlr"}, "`format` must be one of 'trl', 'er-prm', got 'tlr'. Did you mean 'trl'"),
        ({"step_tag": ""}, "`step_tag` must not be empty"),
    ],
)
def test_values_are_checked(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)
