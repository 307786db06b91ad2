"""`grpo.py` and `ppo.py` that are started again: a run that was interrupted, one that is complete, and another one."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.recipes.commands import CPU, write_jsonl

LORA = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj"]
# A round of sampling is two steps in each: so many were trained on the same completions as were sampled at once.
ROUND = {"grpo": ["--num_generations", "4"], "ppo": ["--critic", "policy"]}


@pytest.fixture
def command(recipes, tiny_policy, prm_path, tmp_path):
    """Runs a recipe on problems of its own, four steps unless told otherwise; returns what `output_dir` holds."""
    task, policy = tiny_policy
    prompts = write_jsonl(tmp_path / "prompts.jsonl", task.dataset("train", 12).to_list())

    def command(name, output, *more):
        recipes[name].main(
            ["--model_name_or_path", policy, "--prm_path", str(prm_path), "--dataset_path", prompts,
             "--eval_dataset_path", prompts, "--num_eval_rows", "4", "--num_generations_eval", "1",
             "--per_device_eval_batch_size", "4", "--eval_strategy", "steps", "--eval_steps", "1",
             "--output_dir", str(tmp_path / output), "--max_steps", "4", "--per_device_train_batch_size", "8",
             "--num_iterations", "2", "--learning_rate", "1e-3", "--temperature", "1.7", "--logging_steps", "1",
             "--max_completion_length", "20", "--answer_how", "arithmetic", "--save_strategy", "steps",
             "--save_steps", "2", "--dataloader_pin_memory", "false", *ROUND[name], *CPU, *more]
        )  # fmt: skip
        return tmp_path / output

    return command


def interrupted(directory, target, step=2):
    """A copy of a run as a kill after `step` has left it."""
    shutil.copytree(directory, target)
    for path in target.iterdir():
        if path.name not in ("manifest.json", f"checkpoint-{step}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def weights(directory):
    return {
        f"{path.relative_to(directory)}/{name}": tensor
        for path in Path(directory).rglob("*.safetensors")
        if "checkpoint" not in str(path.relative_to(directory))
        for name, tensor in load_file(path).items()
    }


def logged(directory):
    """What was logged at each step, without times."""
    history = json.loads((directory / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in e.items() if not re.search("runtime|_second|step_time|profiling", k)} for e in history]


@pytest.mark.parametrize(("name", "more"), [("grpo", []), ("grpo", LORA), ("ppo", []), ("ppo", LORA)])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(command, tmp_path, name, more, capsys):
    whole = command(name, "whole", *more)
    evaluated = [entry["step"] for entry in logged(whole) if "eval_reward" in entry]
    assert evaluated == [0, 1, 2, 3, 4]
    interrupted(whole, tmp_path / "cut")
    capsys.readouterr()
    resumed = command(name, "cut", *more)
    assert f"The run goes on at {resumed / 'checkpoint-2'}." in capsys.readouterr().out.replace("\n", "")
    assert len(logged(resumed)) == len(logged(whole))
    for now, before in zip(logged(resumed), logged(whole), strict=True):
        assert now == before
    expected, found = weights(whole), weights(resumed)
    assert found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in expected)
    # It was trained at all, and again after the interruption.
    before = weights(whole / "checkpoint-2")
    assert any((expected[name] != before[name]).any() for name in expected)


def test_between_two_rounds_of_sampling_a_run_goes_on_with_a_warning(command, tmp_path, caplog):
    whole = command("grpo", "whole", "--save_steps", "1")
    interrupted(whole, tmp_path / "cut", step=3)
    command("grpo", "cut", "--save_steps", "1")
    [warning] = [record.message for record in caplog.records if "rounds of sampling" in record.message]
    assert "Step 3 lies between two rounds" in warning
    assert len(weights(tmp_path / "cut")) == len(weights(whole))


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_complete_run_is_not_trained_again(recipes, command, name, monkeypatch, capsys):
    directory = command(name, "run", "--max_steps", "2")
    metrics = json.loads((directory / "metrics.json").read_text())
    assert 0 <= metrics["eval_rewards/answer_reward/mean"] <= 1 and "train_loss" in metrics
    written = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    capsys.readouterr()
    command(name, "run", "--max_steps", "2")
    assert "holds this policy already" in " ".join(capsys.readouterr().out.split())
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == written
    command(
        name, "run", "--max_steps", "2", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"
    )
    assert "holds this policy already" in " ".join(capsys.readouterr().out.split())  # with less memory
    for more, difference in (
        (["--max_steps", "3"], "`arguments.max_steps` is 2 there and 3 now"),
        (["--max_steps", "2", "--aggregation", "mean"], "`rewards.process_reward.aggregation` is 'min' there"),
        (["--max_steps", "2", "--num_rows", "6"], "`rows` is "),
        (["--max_steps", "2", *LORA], "`model` is "),
    ):
        with pytest.raises(ValueError, match=f"holds another run: .*{re.escape(difference)}"):
            command(name, "run", *more)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == written


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_named_checkpoint(recipes, command, tmp_path, name, monkeypatch):
    missing = str(tmp_path / "checkpoint-7")
    with monkeypatch.context() as patch:
        patch.setattr(recipes[name], "load_policy", None)  # it is said before
        with pytest.raises(ValueError, match=f"`resume_from_checkpoint` must be .*'{missing}', which is no directory"):
            command(name, "run", "--resume_from_checkpoint", missing)
    assert not (tmp_path / "run").exists()
    first = command(name, "first", "--max_steps", "2")
    second = command(name, "second", "--resume_from_checkpoint", str(first / "checkpoint-2"))
    steps = [entry["step"] for entry in logged(second) if "loss" in entry]
    assert steps == [1, 2, 3, 4] and not (second / "checkpoint-2").exists()


def test_rft_goes_on_by_itself(recipes, tmp_path):
    with pytest.raises(ValueError, match="`resume_from_checkpoint` is not for this recipe, got 'checkpoint-2'"):
        recipes["rft"].main(["--output_dir", str(tmp_path), "--resume_from_checkpoint", "checkpoint-2", *CPU])
