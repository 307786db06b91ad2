"""recipes/ppo.py, in this process and on tiny settings."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.tiny import prm_trainer, randomize_head

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]


@pytest.fixture
def recipe(monkeypatch):
    """The recipe and the stages, imported as `python recipes/ppo.py` finds them."""
    monkeypatch.syspath_prepend(str(RECIPES))
    before = set(sys.modules)
    yield importlib.import_module("ppo"), importlib.import_module("stages")
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == RECIPES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def prm_path(tiny_policy, tmp_path_factory):
    row = {"prompt": "1+1\n", "completions": ["1+1=2"], "labels": [1.0]}
    trainer = prm_trainer(tiny_policy[1], tmp_path_factory.mktemp("prm"), [row])
    randomize_head(trainer.model)
    trainer.save_model()
    return Path(trainer.args.output_dir)


def test_embedded_task(recipe, tiny_policy, prm_path, tmp_path, monkeypatch, capsys):
    ppo, stages = recipe
    task, policy = tiny_policy
    asked = []

    def prepare(root, seed, last):
        asked.append((root, seed))
        return stages.PreparedTask(task, Path(policy), tmp_path, prm_path)

    monkeypatch.setattr(stages, "prepare", prepare)
    arguments = ["--config", str(stages.CONFIGS / "ppo.yaml"), "--output_dir", str(tmp_path / "run" / "ppo")]
    arguments += ["--max_steps", "4", "--eval_steps", "2", "--per_device_train_batch_size", "8", *CPU]
    arguments += ["--num_eval_rows", "8", "--per_device_eval_batch_size", "8", "--learning_rate", "1e-6"]
    ppo.main(arguments)
    output = capsys.readouterr().out
    assert asked == [(tmp_path / "run", 0)]
    table = [line.split("│")[1:4] for line in output.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in table] == ["0", "2", "4"]
    assert "Policy: " in output
    # The critic began as the PRM, and at this learning rate it is that still.
    critic = load_file(tmp_path / "run" / "ppo" / "critic" / "model.safetensors")
    prm = load_file(prm_path / "model.safetensors")
    assert (critic["score.weight"] - prm["score.weight"]).abs().max() < 1e-4 < prm["score.weight"].abs().max()
    assert (tmp_path / "run" / "ppo" / "model.safetensors").exists()


def test_own_problems_with_worked_solutions(recipe, tiny_policy, prm_path, tmp_path):
    """Their steps are a column that TRL has another use for; the critic begins as the policy unless told otherwise."""
    row = {"question": "1+1", "answer": "1+1=2\n#### 2"}
    problems = tmp_path / "problems.jsonl"
    problems.write_text((json.dumps(row) + "\n") * 4)
    recipe[0].main(
        ["--model_name_or_path", tiny_policy[1], "--prm_path", str(prm_path), "--dataset_path", str(problems),
         "--output_dir", str(tmp_path / "ppo"), "--max_steps", "1", "--per_device_train_batch_size", "4",
         "--max_completion_length", "8", "--activation_checkpointing", "false", *CPU]
    )  # fmt: skip
    assert (tmp_path / "ppo" / "critic" / "model.safetensors").exists()


@pytest.mark.parametrize("given", [None, '{"max_steps": 3}'])
def test_guards_reach_the_reward(recipe, tiny_policy, prm_path, tmp_path, monkeypatch, given):
    found = []

    def stop(*args, guards, **kwargs):
        found.append(guards)
        raise InterruptedError

    monkeypatch.setattr(recipe[0], "ProcessReward", stop)
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"prompt": "1+1", "answer": "2"}) + "\n")
    arguments = ["--model_name_or_path", tiny_policy[1], "--prm_path", str(prm_path), "--dataset_path", str(problems)]
    arguments += ["--output_dir", str(tmp_path / "ppo"), *CPU] + (["--guards", given] if given else [])
    with pytest.raises(InterruptedError):
        recipe[0].main(arguments)
    assert found == [given and {"max_steps": 3}]


def test_without_arguments(recipe, tmp_path, monkeypatch):
    ppo, stages = recipe
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ppo.py"])

    def prepare(root, *rest):
        raise InterruptedError(str(root))

    monkeypatch.setattr(stages, "prepare", prepare)
    with pytest.raises(InterruptedError, match="^outputs/arithmetic$"):
        ppo.main()


def test_without_a_prm(recipe, tmp_path):
    with pytest.raises(ValueError, match="`prm_path` is missing.*recipes/configs/arithmetic/ppo.yaml"):
        recipe[0].main(["--output_dir", str(tmp_path), "--model_name_or_path", "policy"])
