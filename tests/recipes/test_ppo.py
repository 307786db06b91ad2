"""recipes/ppo.py, in this process and on tiny settings."""

from safetensors.torch import load_file

from tests.recipes.commands import CPU, FAST, write_jsonl


def test_embedded_task(recipes, stages_asked_for, prm_path, tmp_path, capsys):
    arguments = ["--config", str(recipes["stages"].CONFIGS / "ppo.yaml"), "--output_dir", str(tmp_path / "run/ppo")]
    arguments += ["--max_steps", "4", "--eval_steps", "2", "--per_device_train_batch_size", "8", *CPU]
    arguments += ["--num_eval_rows", "8", "--per_device_eval_batch_size", "8", "--learning_rate", "1e-6"]
    recipes["ppo"].main(arguments)
    output = capsys.readouterr().out
    assert stages_asked_for == [(tmp_path / "run", 0, "ppo")]
    table = [line.split("│")[1:4] for line in output.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in table] == ["0", "2", "4"]
    assert "Policy: " in output
    # The critic began as the PRM, and at this learning rate it is that still.
    critic = load_file(tmp_path / "run" / "ppo" / "critic" / "model.safetensors")
    prm = load_file(prm_path / "model.safetensors")
    assert (critic["score.weight"] - prm["score.weight"]).abs().max() < 1e-4 < prm["score.weight"].abs().max()
    assert (tmp_path / "run" / "ppo" / "model.safetensors").exists()


def test_own_problems_with_worked_solutions(recipes, tiny_policy, prm_path, tmp_path):
    """Their steps are a column that TRL has another use for; the critic begins as the policy unless told otherwise."""
    problems = write_jsonl(tmp_path / "problems.jsonl", [{"question": "1+1", "answer": "1+1=2\n#### 2"}] * 4)
    recipes["ppo"].main(
        ["--model_name_or_path", tiny_policy[1], "--prm_path", str(prm_path), "--dataset_path", problems,
         "--output_dir", str(tmp_path / "ppo"), "--max_steps", "1", "--per_device_train_batch_size", "4",
         "--max_completion_length", "8", *FAST]
    )  # fmt: skip
    assert (tmp_path / "ppo" / "critic" / "model.safetensors").exists()
