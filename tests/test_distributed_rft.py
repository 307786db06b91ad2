"""
Rejection-sampling fine-tuning gives the same numbers with one process and with two, however the weights are split.

Two iterations, so that a policy that was split and trained samples, is trained again, and is measured against the one
at the start, whose weights are read back into the split model.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launch import has_compiler, launch, read_result
from tests.distributed.train_rft import NUM_PROMPTS, NUM_SAMPLES
from trl_erprm.policy.rft_run import Records

SCRIPT = Path(__file__).parent / "distributed" / "train_rft.py"
# name -> what the model was wrapped in while it was trained
STRATEGIES = {
    "ddp": "DistributedDataParallel",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
    "fsdp2": "FSDPQwen2ForCausalLM",
}

pytestmark = pytest.mark.distributed


def check_deepspeed(name: str) -> None:
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
        if not has_compiler():
            pytest.skip("DeepSpeed on a CPU compiles an extension and finds no C++ compiler (c++, or $CXX)")


def assert_same(history: list[dict], expected: list[dict]) -> None:
    assert len(history) == len(expected) == 3
    for record, other in zip(history, expected, strict=True):
        assert record["reasons"] == other["reasons"] if "reasons" in other else "reasons" not in record
        numbers = {name: value for name, value in record.items() if name != "reasons"}
        others = {name: value for name, value in other.items() if name != "reasons"}
        assert numbers == pytest.approx(others, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def one_process(tiny_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    result = read_result(launch("cpu", SCRIPT, tiny_policy[1], folder, 8))
    assert result["num_processes"] == 1
    history = result["history"]
    assert history[1]["kl_to_start"] > 0.005  # else it would not show which weights were read
    assert len(result["losses"]) == 6
    return result, folder


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_equal_one(name, tiny_policy, one_process, tmp_path):
    check_deepspeed(name)
    expected, expected_folder = one_process
    result = read_result(launch(name, SCRIPT, tiny_policy[1], tmp_path / "run", 4))
    assert (result["num_processes"], result["wrappers"]) == (2, [STRATEGIES[name]])
    assert result["zero_stage"] == (int(name[-1]) if name.startswith("zero") else None)
    assert_same(result["history"], expected["history"])
    assert result["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    # both processes have sampled, and together what one samples
    records = Records(tmp_path / "run" / "iteration-2", "eval_sampled")
    assert len(records.files()) == 2
    for folder in (tmp_path / "run", expected_folder):
        rows = json.loads((folder / "iteration-2" / "selection.json").read_text())
        assert sum(rows["reasons"].values()) == NUM_PROMPTS * NUM_SAMPLES
    # the policy is saved whole, after each iteration and in the end
    for path in ("iteration-1/model", "iteration-2/model", "."):
        saved, other = (
            load_file(folder / path / "model.safetensors") for folder in (tmp_path / "run", expected_folder)
        )
        # transformers writes a tied head beside the embeddings where FSDP splits them
        tied = {"lm_head.weight": other["model.embed_tokens.weight"]} if name == "fsdp2" else {}
        other = {**other, **tied}
        assert saved.keys() == other.keys()
        for tensor_name, tensor in saved.items():
            torch.testing.assert_close(tensor, other[tensor_name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["zero3"])
def test_a_run_of_one_process_goes_on_in_two(name, tiny_policy, one_process, tmp_path):
    """Interrupted after an iteration: its weights are read into the split model, and nothing is sampled twice."""
    check_deepspeed(name)
    expected, folder = one_process
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "iteration-2")
    before = (tmp_path / "run" / "iteration-1" / "samples.parquet").stat().st_mtime_ns
    result = read_result(launch(name, SCRIPT, tiny_policy[1], tmp_path / "run", 4))
    assert_same(result["history"], expected["history"])
    assert (tmp_path / "run" / "iteration-1" / "samples.parquet").stat().st_mtime_ns == before
