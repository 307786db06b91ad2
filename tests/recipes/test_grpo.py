"""recipes/grpo.py, in this process and on tiny settings."""

import json

from tests.recipes.commands import CPU, write_jsonl


def test_embedded_task(recipes, stages_asked_for, tmp_path, capsys):
    arguments = ["--config", str(recipes["stages"].CONFIGS / "grpo.yaml"), "--output_dir", str(tmp_path / "run/grpo")]
    arguments += ["--max_steps", "4", "--eval_steps", "2", "--per_device_train_batch_size", "16", *CPU]
    arguments += ["--num_eval_rows", "8", "--per_device_eval_batch_size", "8"]
    recipes["grpo"].main(arguments)
    output = capsys.readouterr().out
    assert stages_asked_for == [(tmp_path / "run", 0, "grpo")]
    table = [line.split("│")[1:4] for line in output.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in table] == ["0", "2", "4"]
    assert all(float(row[1].split("[")[0]) % 12.5 == 0 for row in table)  # shares of eight problems
    assert "Policy: " in output
    config = json.loads((tmp_path / "run" / "grpo" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert (tmp_path / "run" / "grpo" / "model.safetensors").exists()


def run(recipes, tiny_policy, prm_path, tmp_path, rows, *more):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows)
    recipes["grpo"].main(
        ["--model_name_or_path", tiny_policy[1], "--prm_path", str(prm_path), "--dataset_path", prompts,
         "--eval_dataset_path", prompts, "--output_dir", str(tmp_path / "grpo"), "--max_steps", "1",
         "--per_device_train_batch_size", "4", "--num_generations", "4", "--max_completion_length", "20",
         "--per_device_eval_batch_size", "4", "--num_generations_eval", "1", "--answer_how", "arithmetic",
         "--save_strategy", "steps", "--save_steps", "1", *CPU, *more]
    )  # fmt: skip
    state = json.loads((tmp_path / "grpo" / "checkpoint-1" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "eval_reward" in entry]


def test_no_evaluation_where_none_is_wanted(recipes, tiny_policy, prm_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipes["grpo"].StepGRPOTrainer, "evaluate", None)
    rows = tiny_policy[0].dataset("train", 4).to_list()
    more = ["--eval_on_start", "false", "--eval_strategy", "no"]
    assert run(recipes, tiny_policy, prm_path, tmp_path, rows, *more) == []
    output = capsys.readouterr().out
    assert "Policy: " in output and "accuracy [95 %]" not in output
    assert not any(name.startswith("eval") for name in json.loads((tmp_path / "grpo" / "metrics.json").read_text()))


def test_rows_without_answers(recipes, tiny_policy, prm_path, tmp_path, capsys):
    """They are trained on and evaluated by the process reward alone."""
    rows = [{"prompt": prompt} for prompt in tiny_policy[0].dataset("train", 4)["prompt"]]
    [evaluation] = run(recipes, tiny_policy, prm_path, tmp_path, rows)
    assert "eval_rewards/process_reward/mean" in evaluation and "eval_rewards/answer_reward/mean" not in evaluation
    assert evaluation["eval_reward"] == evaluation["eval_rewards/process_reward/mean"]
    output = capsys.readouterr().out
    assert "Policy: " in output and "accuracy [95 %]" not in output
