"""Beside a policy that is split over processes, the process reward model stays whole and gives the scores of one."""

from pathlib import Path

import pytest

from tests.distributed.launch import has_compiler, launch, read_result
from tests.test_distributed import STRATEGIES, save_model
from tests.tiny import prm_trainer, randomize_head
from trl_erprm import ProcessReward

SCRIPT = Path(__file__).parent / "distributed" / "grpo_process_reward.py"

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    policy = save_model(tmp_path_factory.mktemp("policy"))
    row = {"prompt": "1+1=", "completions": ["1+1=2"], "labels": [1.0]}
    trainer = prm_trainer(str(policy), tmp_path_factory.mktemp("prm"), [row])
    randomize_head(trainer.model)
    trainer.save_model()
    return policy, Path(trainer.args.output_dir)


@pytest.mark.parametrize("name", ["ddp", "zero3", "fsdp2"])
def test_rewards_of_processes_equal_those_of_one(name, folders, tmp_path):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
        if not has_compiler():
            pytest.skip("DeepSpeed on a CPU compiles an extension and finds no C++ compiler (c++, or $CXX)")
    result = read_result(launch(name, SCRIPT, *folders, tmp_path))
    distributed_type, zero_stage, wrapper = STRATEGIES[name]
    assert (result["distributed_type"], result["zero_stage"]) == (distributed_type, zero_stage)
    assert result["wrapper"].startswith(wrapper) and result["num_processes"] == 2

    reward = ProcessReward(folders[1], require_answer=False, device="cpu")
    num_parameters = sum(parameter.numel() for parameter in reward.prm.model.parameters())
    assert result["num_parameters"] == [num_parameters, num_parameters]
    assert [len(calls) for calls in result["calls"]] == [8, 8]
    for calls in result["calls"]:
        prompts, completions, rewards = map(list, zip(*calls, strict=True))
        assert len(set(completions)) > 4
        assert rewards == pytest.approx(reward(prompts, completions), abs=1e-5)
    # What is logged is over both processes.
    first = [calls[:4] for calls in result["calls"]]
    rewards = [value for calls in first for _, _, value in calls if value is not None]
    assert result["reward"][0] == pytest.approx(sum(rewards) / len(rewards), abs=1e-5)
    num_steps = [len(j.steps) for calls in first for j in reward.judge(*map(list, list(zip(*calls, strict=True))[:2]))]
    assert result["num_steps"][0] == pytest.approx(sum(num_steps) / len(num_steps), abs=1e-5)
    assert all(norm > 0 for norm in result["grad_norm"])  # rewards differ within groups, so the policy learns
