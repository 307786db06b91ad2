"""recipes/grpo.py, in this process and on tiny settings."""

import json

from tests.recipes.commands import CPU


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
