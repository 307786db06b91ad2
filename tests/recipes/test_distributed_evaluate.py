"""`recipes/evaluate.py` under `accelerate launch`: two processes sample, score and search what one does."""

import json

import pytest

from tests.distributed.launch import launch
from tests.recipes.commands import RECIPES, read_jsonl, write_jsonl
from tests.tiny import prm_trainer, randomize_head, save_base

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def prm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prm") / "er"
    rows = [{"prompt": "1+1\n", "completions": ["1+1=2", "#2"], "labels": [1.0, 1.0]}]
    trainer = prm_trainer(save_base(tmp_path_factory.mktemp("base")), folder, rows)
    randomize_head(trainer.model)
    trainer.save_model()
    return folder


def test_two_processes_come_to_what_one_does(recipes, tiny_policy, prm, tmp_path):
    task, policy = tiny_policy
    problems = write_jsonl(tmp_path / "problems.jsonl", task.dataset("test", 12).to_list())
    arguments = ["--model_name_or_path", policy, "--dataset_path", problems, "--prm_path", f"er={prm}"]
    arguments += ["--num_samples", "4", "--max_completion_length", "20", "--answer_how", "arithmetic"]
    arguments += ["--search_budgets", "4"]
    completed = launch("ddp", RECIPES / "evaluate.py", *arguments, "--output_dir", tmp_path / "ddp")
    assert completed.stdout.count("Report: ") == 1
    recipes["evaluate"].main([*arguments, "--output_dir", str(tmp_path / "one")])
    [search] = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one" / "search").iterdir()]
    for kind in ("candidates", "scores/er/scored", f"{search}/found"):
        shares = [read_jsonl(tmp_path / "ddp" / f"{kind}-{i}.jsonl") for i in range(2)]
        assert all(shares) and sum(map(len, shares)) == len(read_jsonl(tmp_path / "one" / f"{kind}-0.jsonl"))
    candidates, alone = (read_jsonl(tmp_path / name / "candidates.jsonl") for name in ("ddp", "one"))
    assert candidates == alone
    scores, alone = (read_jsonl(tmp_path / name / "scores/er/step_scores.jsonl") for name in ("ddp", "one"))
    for of_problem, of_alone in zip(scores, alone, strict=True):
        for steps, others in zip(of_problem["step_scores"], of_alone["step_scores"], strict=True):
            assert steps == (others and pytest.approx(others, abs=1e-5))
    metrics, alone = (json.loads((tmp_path / name / "metrics.json").read_text("utf-8")) for name in ("ddp", "one"))
    assert metrics["search"] == alone["search"] and metrics["majority"] == alone["majority"]
