"""StepGRPO on two processes: groups that lie on both, and losses equal to GRPOTrainer's to the last bit."""

import math
from pathlib import Path

import pytest
import torch

from tests.distributed.launch import has_compiler, launch, read_result
from tests.test_distributed import STRATEGIES, save_model
from tests.tiny import prm_trainer, randomize_head
from trl_erprm.policy.advantages import min_form_advantages

SCRIPT = Path(__file__).parent / "distributed" / "train_grpo.py"

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    policy = save_model(tmp_path_factory.mktemp("policy"))
    row = {"prompt": "1+1=", "completions": ["1+1=2"], "labels": [1.0]}
    trainer = prm_trainer(str(policy), tmp_path_factory.mktemp("prm"), [row])
    randomize_head(trainer.model)
    trainer.save_model()
    return policy, Path(trainer.args.output_dir)


@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_groups_lie_on_both_processes(name, folders, tmp_path):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
        if not has_compiler():
            pytest.skip("DeepSpeed on a CPU compiles an extension and finds no C++ compiler (c++, or $CXX)")
    result = read_result(launch(name, SCRIPT, *folders, tmp_path, *(["equality"] if name == "ddp" else [])))
    distributed_type, zero_stage, wrapper = STRATEGIES[name]
    assert (result["distributed_type"], result["zero_stage"]) == (distributed_type, zero_stage)
    assert result["wrapper"].startswith(wrapper) and result["num_processes"] == 2

    if name == "ddp":
        assert len(result["grpo"]) == 5 and len(set(result["grpo"])) > 1
        assert result["outcome"] == result["grpo"]

    for step, (first, second) in enumerate(zip(*result["generated"], strict=True)):
        scores = [row or [] for part in (first, second) for row in part["step_scores"]]
        assert len(scores) == 8 and len({row[0] for row in scores if row}) > 4
        most = max(map(len, scores))
        padded = torch.tensor([row + [math.nan] * (most - len(row)) for row in scores])
        expected = min_form_advantages(padded, 8)
        actual = first["first_advantages"] + second["first_advantages"]
        assert actual == pytest.approx(expected[:, 0].nan_to_num().tolist(), abs=1e-6)
        assert result["mean"][step] == pytest.approx(expected[~expected.isnan()].mean().item(), abs=1e-6)
    assert all(norm > 0 for norm in result["grad_norm"])
