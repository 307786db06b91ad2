"""recipes/grpo.py, in this process and on tiny settings."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.tiny import prm_trainer, randomize_head

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def recipe(monkeypatch):
    """The recipe and the stages, imported as `python recipes/grpo.py` finds them."""
    monkeypatch.syspath_prepend(str(RECIPES))
    before = set(sys.modules)
    yield importlib.import_module("grpo"), importlib.import_module("stages")
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
    grpo, stages = recipe
    task, policy = tiny_policy
    asked = []

    def prepare(root, seed, last):
        asked.append((root, seed))
        return stages.PreparedTask(task, Path(policy), tmp_path, prm_path)

    monkeypatch.setattr(stages, "prepare", prepare)
    arguments = ["--config", str(stages.CONFIGS / "grpo.yaml"), "--output_dir", str(tmp_path / "run" / "grpo")]
    arguments += ["--max_steps", "4", "--eval_steps", "2", "--per_device_train_batch_size", "16", "--use_cpu", "true"]
    arguments += ["--num_eval_rows", "8", "--per_device_eval_batch_size", "8", "--disable_tqdm", "true"]
    grpo.main(arguments)
    output = capsys.readouterr().out
    assert asked == [(tmp_path / "run", 0)]
    table = [line.split("│")[1:4] for line in output.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in table] == ["0", "2", "4"]
    assert all(float(row[1].split("[")[0]) % 12.5 == 0 for row in table)  # shares of eight problems
    assert "Policy: " in output
    config = json.loads((tmp_path / "run" / "grpo" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert (tmp_path / "run" / "grpo" / "model.safetensors").exists()


def test_without_arguments(recipe, tmp_path, monkeypatch):
    grpo, stages = recipe
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["grpo.py"])

    def prepare(root, seed, last):
        raise InterruptedError(str(root))

    monkeypatch.setattr(stages, "prepare", prepare)
    with pytest.raises(InterruptedError, match="^outputs/arithmetic$"):
        grpo.main()


def test_without_a_prm(recipe, tmp_path):
    with pytest.raises(ValueError, match="`prm_path` is missing.*recipes/configs/arithmetic/grpo.yaml"):
        recipe[0].main(["--output_dir", str(tmp_path), "--model_name_or_path", "policy"])


def test_guards(recipe):
    stages = recipe[1]
    assert stages.guards_of('{"max_steps": 3}') == stages.guards_of({"max_steps": 3}) == {"max_steps": 3}
    assert stages.guards_of(None) is None
    with pytest.raises(ValueError, match="`guards` must be JSON such as .* got '{\"max_steps\": 3'"):
        stages.guards_of('{"max_steps": 3')
