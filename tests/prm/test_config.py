"""`trl_erprm.prm.config`: defaults, the format that the fields describe, and values that are refused."""

import dataclasses
import math
import re

import pytest
from trl import RewardConfig, TrlParser

from tests.tiny import QUIET
from trl_erprm import ERPRMConfig
from trl_erprm.prm.formats import ER_PRM, FORMAT_OVERRIDES, FORMATS, MATH_SHEPHERD, TRL_TOKEN_CLASSIFICATION


def config(tmp_path, **changes):
    return ERPRMConfig(str(tmp_path), **{**QUIET, **changes})


def test_defaults(tmp_path):
    ours, theirs = config(tmp_path), RewardConfig(str(tmp_path), **QUIET)
    assert (ours.learning_rate, ours.num_train_epochs) == (1e-6, 1)  # the paper's
    assert (ours.head, ours.loss_type, ours.num_labels) == ("token_classification", "soft_cross_entropy", 1)
    assert ours.eta is None and ours.padding_free is None and ours.max_length == theirs.max_length
    assert not (ours.train_on_last_step_only or ours.weight_by_rollouts or ours.balance_classes)
    # nothing else differs from TRL without being listed in the docstring
    different = {
        f.name for f in dataclasses.fields(RewardConfig) if getattr(ours, f.name) != getattr(theirs, f.name)
    } - {"logging_dir"}
    assert different == {"learning_rate", "num_train_epochs"}
    for name in different:
        assert f"`{name}`: Defaults to" in ERPRMConfig.__doc__


@pytest.mark.parametrize("available", [False, True])
def test_bf16_where_a_device_supports_it(tmp_path, monkeypatch, available):
    monkeypatch.setattr("trl_erprm.prm.config.is_torch_bf16_gpu_available", lambda: available)
    assert ERPRMConfig(str(tmp_path), use_cpu=True, report_to="none").bf16 is available
    assert config(tmp_path, bf16=False).bf16 is False


def test_every_field_is_documented():
    new = {f.name for f in dataclasses.fields(ERPRMConfig)} - {f.name for f in dataclasses.fields(RewardConfig)}
    headings = " ".join(line for line in ERPRMConfig.__doc__.splitlines() if line.rstrip().endswith("):"))
    assert new <= set(re.findall(r"\w+", headings)) and len(new) > 8
    assert all(f.metadata.get("help") for f in dataclasses.fields(ERPRMConfig) if f.name in new)


def test_format_of_the_head(tmp_path):
    assert config(tmp_path).build_format() is TRL_TOKEN_CLASSIFICATION
    assert config(tmp_path, head="causal_lm").build_format() is MATH_SHEPHERD
    assert config(tmp_path, head="causal_lm", format="er-prm").build_format() is ER_PRM


@pytest.mark.parametrize("name", list(FORMATS))
def test_head_and_labels_of_the_format(tmp_path, name):
    """A format alone is enough: what head it is read with, and with how many labels, comes with it."""
    built = config(tmp_path, format=name)
    assert built.build_format() is FORMATS[name]
    assert built.head == FORMATS[name].head
    if built.head == "causal_lm":
        assert built.num_labels is None
    else:
        assert built.num_labels == (2 if name == "qwen2.5-math-prm" else 1)


def test_num_labels_is_kept(tmp_path):
    assert config(tmp_path, num_labels=2).num_labels == 2
    assert config(tmp_path, format="qwen2.5-math-prm", num_labels=1).num_labels == 1


@pytest.mark.parametrize("name", FORMAT_OVERRIDES)
def test_each_format_field_is_replaced(tmp_path, name):
    value = "pieces" if name == "tokenization" else "§"
    built = config(tmp_path, head="causal_lm", **{name: value}).build_format()
    assert built == dataclasses.replace(MATH_SHEPHERD, **{name: value}) != MATH_SHEPHERD


def test_an_empty_text_replaces_too(tmp_path):
    assert config(tmp_path, head="causal_lm", prompt_separator="").build_format().prompt_separator == ""


@pytest.mark.parametrize(
    "options, expected",
    [
        ([], {"head": "token_classification", "padding_free": None, "weight_by_rollouts": False}),
        (["--format", "er-prm"], {"head": "causal_lm", "format": "er-prm"}),
        (["--padding_free", "false"], {"padding_free": False}),
        (["--padding_free", "true"], {"padding_free": True}),
        (["--weight_by_rollouts", "--balance_classes"], {"weight_by_rollouts": True, "balance_classes": True}),
        (["--tokenization", "pieces", "--head", "causal_lm"], {"tokenization": "pieces"}),
        (["--num_labels", "2", "--eta", "inf"], {"num_labels": 2, "eta": math.inf}),
    ],
)
def test_command_line(tmp_path, options, expected):
    quiet = [text for name, value in QUIET.items() for text in (f"--{name}", str(value))]
    [args] = TrlParser(ERPRMConfig).parse_args_and_config(["--output_dir", str(tmp_path), *quiet, *options])
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("eta", [-2.0, 0, 0.1, math.inf, -math.inf])
def test_eta(tmp_path, eta):
    assert config(tmp_path, eta=eta).eta == eta


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"head": "lm"}, "`head` must be one of 'token_classification', 'causal_lm', got 'lm'"),
        ({"loss_type": "mae"}, "`loss_type` must be one of 'soft_cross_entropy', 'mse', got 'mae'"),
        ({"num_labels": 3}, "`num_labels` must be 1 .* or 2 .*, got 3"),
        (
            {"num_labels": 2, "head": "causal_lm"},
            "`num_labels` belongs to `head='token_classification'`, got 2 with `head='causal_lm'`, .* Leave `num_l",
        ),
        ({"num_labels": 1, "format": "er-prm"}, "`num_labels` belongs to .*, got 1 with `head='causal_lm'`"),
        ({"label_smoothing_factor": 0.3}, "`label_smoothing_factor` must be 0, got 0.3: labels are used as they are,"),
        ({"eta": math.nan}, "`eta` must be finite or one of inf, -inf, got nan"),
        (
            {"format": "er-prm", "head": "token_classification"},
            "The format 'er-prm' is read with the head 'causal_lm', but `head` is 'token_class",
        ),
        ({"format": "trl", "head": "causal_lm"}, "The format 'trl' is read with the head 'token_classification'"),
        ({"format": "tlr"}, "`format` must be one of 'trl', 'math-shepherd', .*, got 'tlr'. Did you mean 'trl'"),
        ({"tokenization": "whole"}, "`tokenization` must be one of 'pieces', 'joint', got 'whole'"),
        ({"format": "rlhflow", "tokenization": "pieces"}, "The layout 'turns' goes through a chat template"),
        ({"step_tag": ""}, "`step_tag` must not be empty"),
    ],
)
def test_values_are_checked(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)
