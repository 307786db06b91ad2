"""What a config of the study and its arguments may be: everything else is refused at once, with what is accepted."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from benchmarks.study import __main__ as command
from benchmarks.study import checks, policies, prms
from benchmarks.study.config import read_config
from benchmarks.study.units import Unit
from trl_erprm import ERPRMConfig, LabelingConfig, RFTConfig, StepGRPOConfig

STUDY = Path(__file__).resolve().parents[2] / "benchmarks" / "study"
LONGER = {"difficulties": ["default"], "labels": ["soft"], "num_train_epochs": 9}
SMALL = yaml.safe_load((STUDY / "small.yaml").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["soft", "er"]}, "`labels` must be one of"),
        ({"labels": ["hard"], "policy_labels": ["hard"]}, "soft missing in"),
        ({"policy_labels": ["soft", "er-5"]}, "er-5 missing in"),
        ({"seed": [1]}, "holds seed, but a study has"),
        ({"difficulties": {"default": {"modulus": 37, "policy_steps": 1}}}, "`modulus` must be from 3 to 36"),
        ({"best_of_n": {**SMALL["best_of_n"], "sizes": [8], "num_candidates": 4}}, "must not exceed"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(STUDY / "small.yaml", **changes)


def test_a_config_without_a_setting_names_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("seeds: [0]\n")
    with pytest.raises(ValueError, match="misses best_of_n, difficulties"):
        read_config(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 3}, r"`seeds` must be a list of int, got 3\. Write \[3\]"),
        ({"seeds": []}, "`seeds` must hold at least one int"),
        ({"seeds": [0, 0]}, "`seeds` must hold each once, got 0 more than once"),
        ({"seeds": ["a"]}, "`seeds` must be a list of int, got 'a' in it"),
        ({"seeds": [-1]}, "`seeds` must be at least 0 each, got -1"),
        ({"num_rollouts": []}, "`num_rollouts` must hold at least one int"),
        ({"num_rollouts": [8, 0]}, "`num_rollouts` must be at least 1 each, got 0"),
        ({"num_rollouts": [8, 8]}, "`num_rollouts` must hold each once"),
        ({"labels": "soft"}, "`labels` must be a list of str, got 'soft'"),
        ({"labels": [1]}, "`labels` must be a list of str, got 1 in it"),
        ({"labels": [*SMALL["labels"], "hard"]}, "`labels` must hold each once, got hard"),
        ({"labels": [*SMALL["labels"], "er-2.0"]}, "holds 'er-2' and 'er-2.0', which are the same"),
        ({"labels": ["soft", "er-1.2.3"]}, "`labels` must be one of .*, got 'er-1.2.3'"),
        ({"labels": ["soft", "er-0"]}, "holds 'er-0', but .* eta above 0: say 'soft'"),
        ({"labels": ["soft", "er-0.0"]}, "holds 'er-0.0', but"),
        ({"policy_labels": ["soft", "soft"]}, "`policy_labels` must hold each once, got soft"),
        ({"difficulties": {}}, "`difficulties` must hold at least one"),
        ({"difficulties": {"a": None}}, "`difficulties.a` must hold names and values, got None"),
        ({"difficulties": {5: {}}}, "`difficulties` must be a list of str, got 5 in it"),
        ({"difficulties": {"a": {"modulus": "five"}}}, "The difficulty 'a': `modulus` must be an integer, got 'five'"),
        ({"difficulties": {"a": {"operators": 1}}}, "`operators` must be text, got 1"),
        ({"difficulties": {"a": {"random_error_rate": None}}}, "`random_error_rate` must be a number, got None"),
        ({"difficulties": {"a": {"policy_steps": 0}}}, "`policy_steps` must be an integer above 0, got 0"),
        ({"difficulties": {"a": {"policy_learning_rate": "1e-3"}}}, r"number above 0, got '1e-3'.*write 1\.0e-3"),
        ({"best_of_n": {**SMALL["best_of_n"], "sizes": []}}, "`best_of_n.sizes` must hold at least one int"),
        ({"best_of_n": {**SMALL["best_of_n"], "sizes": [4, 4]}}, "`best_of_n.sizes` must hold each once"),
        ({"best_of_n": {**SMALL["best_of_n"], "aggregations": ["minimum"]}}, "`best_of_n.aggregations` must be one"),
        ({"best_of_n": {**SMALL["best_of_n"], "num_problems": 0}}, "`best_of_n.num_problems` must be at least 1"),
        ({"best_of_n": {**SMALL["best_of_n"], "size": [4]}}, "`best_of_n` holds size, .* Did you mean 'sizes'?"),
        ({"best_of_n": {"sizes": [4]}}, "`best_of_n` misses num_problems, num_candidates, aggregations"),
        ({"prm": None}, "misses prm|`prm` must hold"),
        ({"prm": []}, r"`prm` must hold names and values, got \[\]"),
        ({"prm": {"learning_rat": 1}}, "holds learning_rat, .*fields of ERPRMConfig. Did you mean 'learning_rate'"),
        ({"prm": {"num_prompts": 1}}, "`prm` holds num_prompts"),
        ({"rft": {"num_sample": 1}}, "num_sample, .*RFTConfig and num_eval_problems. Did you mean 'num_samples'"),
        ({"rft": {}}, "`rft` misses num_eval_problems"),
        ({"grpo": {**SMALL["grpo"], "num_iteration": 1}}, "`grpo` holds num_iteration, .*StepGRPOConfig"),
        ({"grpo": {"num_eval_problems": 1}}, "`grpo` misses eval_steps"),
        ({"labeling": {**SMALL["labeling"], "temperatur": 1}}, "`labeling` holds temperatur, .*LabelingConfig"),
        ({"labeling": {"temperature": 1.0}}, "`labeling` misses num_prompts"),
        ({"labeling": {**SMALL["labeling"], "eta": 1.0}}, "`labeling` holds eta, but the study sets that itself"),
        ({"prm": {"seed": 1, "bf16": True}}, "`prm` holds bf16, seed, but the study sets that itself"),
        ({"prm": {"learning_rate": "1e-3"}}, r"`prm.learning_rate` must be float, got '1e-3'.*write 1\.0e-3"),
        ({"prm": {"per_device_train_batch_size": 6.5}}, r"`prm.per_device_train_batch_size` must be int, got 6\.5"),
        ({"labeling": {"num_prompts": 0}}, "`labeling.num_prompts` must be at least 1 each, got 0"),
        ({"longer_training": {"labels": ["soft"]}}, "`longer_training` misses difficulties, num_train_epochs"),
        ({"longer_training": {**LONGER, "labels": ["er-5"]}}, "`longer_training.labels` must be one of .*'er-5'"),
        ({"longer_training": {**LONGER, "labels": ["hard"]}}, "`longer_training.labels` must hold 'soft'"),
        ({"longer_training": {**LONGER, "difficulties": ["x"]}}, "`longer_training.difficulties` must be one of"),
        ({"longer_training": {**LONGER, "num_train_epochs": 6}}, "must be above `prm.num_train_epochs`, got 6 and 6"),
        ({"rft": {"num_eval_problems": 9, "num_samples": True}}, "`rft.num_samples` must be int, got True"),
    ],
)  # fmt: skip
def test_values_that_no_study_can_have(changes, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    with pytest.raises(ValueError, match=message):
        read_config(path)


def test_a_study_without_policies():
    assert read_config(STUDY / "small.yaml", policy_labels=[]).policy_labels == []


def test_what_the_study_sets_itself_is_refused(tmp_path, monkeypatch):
    """The names that are refused are those that its units hand to the config classes."""
    config = read_config(STUDY / "small.yaml", output_dir=str(tmp_path))
    unit = Unit("prm", "default", 0, "soft", 8)
    (unit.directory(tmp_path) / "labels").mkdir(parents=True)
    (unit.directory(tmp_path) / "labels" / "labels.jsonl").write_text("")
    monkeypatch.setattr(prms, "train_policy", lambda *_, **__: None)
    for module, name, section, of_class, work in (
        (prms, "LabelingConfig", "labeling", LabelingConfig, prms.make_labels),
        (prms, "ERPRMConfig", "prm", ERPRMConfig, prms.train_prm),
        (policies, "RFTConfig", "rft", RFTConfig, policies.run_rft),
        (policies, "StepGRPOConfig", "grpo", StepGRPOConfig, policies.run_grpo),
    ):
        asked = []

        def ask(*args, _asked=asked, **kwargs):
            _asked.append(set(kwargs) | ({"output_dir"} if args else set()))
            raise InterruptedError

        monkeypatch.setattr(module, name, ask)
        with pytest.raises(InterruptedError):
            work(config, unit)
        assert asked[0] - getattr(config, section).keys() == set(checks._OF_STUDY[section]), section
        assert asked[0] <= {field.name for field in fields(of_class)}


# Arguments


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("prm", {"loss_type": "hinge"}, "`prm` of default seed 0 prm soft-8: "),
        ("prm", {"lr_scheduler_type": "cosin"}, "`prm` of default seed 0 prm soft-8: "),
        ("labeling", {"temperature": -1.0}, "`labeling` of default seed 0 labels: "),
        ("rft", {"num_samples": 0}, "`rft` of default seed 0 rft soft-8: "),
        ("grpo", {"advantage_estimator": "mean"}, "`grpo` of default seed 0 grpo soft-8: "),
    ],
)
def test_what_a_trainer_refuses_is_told_before_any_work(section, change, message, tmp_path, capsys):
    path, root = tmp_path / "config.yaml", tmp_path / "study"
    path.write_text(yaml.safe_dump({**SMALL, section: {**SMALL[section], **change}}))
    with pytest.raises(SystemExit, match="2"):
        command.main(["--config", str(path), "--output_dir", str(root)])
    error = capsys.readouterr().err
    assert message in error and repr(next(iter(change.values()))).strip("'") in error
    assert not list(root.rglob("*"))  # no task was begun


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no file"),
        ("", "must hold the names and values of a study, got None"),
        ("seeds: [0", "is not YAML"),
        ("- 1\n", r"must hold the names and values of a study, got [1]"),
        ("seeds: [0]\n", "misses best_of_n"),
        ("1: 2\nx: 3\n", "holds 1, x, but a study has"),
        (yaml.safe_dump({**SMALL, "difficulties": {"a": {"modulus": 37}}}), "The difficulty 'a': `modulus` must be"),
        (yaml.safe_dump({**SMALL, "labels": ["soft", "erm"]}), "`labels` must be one of"),
    ],
)
def test_bad_files_end_with_a_message(content, message, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    root = tmp_path / "study"
    with pytest.raises(SystemExit, match="2"):
        command.main(["--config", str(path), "--output_dir", str(root)])
    error = capsys.readouterr().err
    assert message in error and "usage: python -m benchmarks.study" in error
    assert not root.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "argument --jobs: must be a whole number of at least 1, got 0"),
        (["--jobs", "-1"], "argument --jobs: must be a whole number of at least 1, got -1"),
        (["--jobs", "two"], "argument --jobs: must be a whole number of at least 1, got two"),
        (["--seeds", "1", "1"], "`seeds` must hold each once, got 1 more than once"),
        (["--seeds", "-1"], "`seeds` must be at least 0 each, got -1"),
        (["--parts", "prm"], "--parts must be of labels,prms"),
    ],
)
def test_bad_arguments_end_with_a_message(arguments, message, tmp_path, capsys):
    root = tmp_path / "study"
    with pytest.raises(SystemExit, match="2"):
        command.main(["--config", str(STUDY / "small.yaml"), "--output_dir", str(root), *arguments])
    assert message in capsys.readouterr().err
    assert not root.exists()
