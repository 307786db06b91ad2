"""PPO on two processes trains policy and critic to the losses and weights of one, saves both, and resumes both."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launch import has_compiler, launch, read_result
from tests.distributed.train_ppo import METRICS, train
from tests.tiny import CAUSAL, prm_trainer, save_base

SCRIPT = Path(__file__).parent / "distributed" / "train_ppo.py"
STRATEGIES = {
    "ddp": ("MULTI_CPU", None, "DistributedDataParallel"),
    "zero2": ("DEEPSPEED", 2, "DeepSpeedEngine"),
    "zero3": ("DEEPSPEED", 3, "DeepSpeedEngine"),
}

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def prm(base, tmp_path_factory):
    """With a causal head, which becomes the critic's."""
    folder = tmp_path_factory.mktemp("prm")
    rows = [{"prompt": "1+1=\n", "completions": ["2"], "labels": [0.5]}] * 2
    prm_trainer(base, folder, rows, max_steps=1, **CAUSAL).save_model()
    return str(folder)


def weights(folder: Path, adapters: str) -> dict[str, torch.Tensor]:
    """Of the policy, and of the critic under names of its own."""
    policy, critic = (
        ("adapter_model", "critic/adapter/adapter_model") if adapters == "lora" else ("model", "critic/model")
    )
    of_critic = load_file(folder / f"{critic}.safetensors")
    return load_file(folder / f"{policy}.safetensors") | {f"critic.{name}": w for name, w in of_critic.items()}


@pytest.mark.parametrize(
    ("name", "adapters", "critic", "is_resumed"),
    [("ddp", "full", "policy", False), ("zero2", "full", "policy", True), ("zero3", "lora", "prm", False)],
)
def test_two_processes_equal_one(name, adapters, critic, is_resumed, base, prm, tmp_path):
    """Four completions a step: as one batch in one process, as two times one in two."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
        if not has_compiler():
            pytest.skip("DeepSpeed on a CPU compiles an extension and finds no C++ compiler (c++, or $CXX)")
    critic_folder = prm if critic == "prm" else ""
    trainer, expected = train(base, str(tmp_path / "one"), 4, 1, adapters, critic_folder)
    assert trainer.accelerator.num_processes == 1
    assert len(set(expected["loss"])) == 4 and expected["clip_ratio/value"][1] > 0
    expected_weights = weights(tmp_path / "one", adapters)

    arguments = (base, tmp_path / "run", 1, 2, adapters, critic_folder)
    result = read_result(launch(name, SCRIPT, *arguments))
    distributed_type, zero_stage, wrapper = STRATEGIES[name]
    assert (result["distributed_type"], result["zero_stage"]) == (distributed_type, zero_stage)
    assert result["wrapper"].startswith(wrapper) and result["num_processes"] == 2
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4, abs=1e-6)
    assert result["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert result["eval_reward"] == pytest.approx(expected["eval_reward"]) and len(result["eval_reward"]) == 2
    for metric in set(METRICS) - {"clip_ratio/value"}:  # of which each micro-batch has its own share
        assert (result[metric][1] is None) == (expected[metric][1] is None), metric
        found, of_one = ([v for v in values[metric] if v is not None] for values in (result, expected))
        assert found == pytest.approx(of_one, rel=1e-3, abs=1e-5), metric

    found = weights(tmp_path / "run", adapters)
    # From DeepSpeed a policy with tied embeddings is saved with both names of the one weight.
    assert set(found) - {"lm_head.weight"} == set(expected_weights)
    for weight, values in expected_weights.items():
        torch.testing.assert_close(found[weight], values, rtol=1e-3, atol=1e-4, msg=weight)
    if is_resumed:
        arguments = (base, tmp_path / "resumed", *arguments[2:], tmp_path / "run" / "checkpoint-2")
        resumed = read_result(launch(name, SCRIPT, *arguments))
        assert resumed["loss"] == result["loss"]
        for weight, values in weights(tmp_path / "resumed", adapters).items():
            torch.testing.assert_close(found[weight], values, rtol=0, atol=0, msg=weight)
