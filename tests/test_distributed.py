"""
Each file in accelerate_configs/ trains the PRM, on the CPU with two processes, to the losses and checkpoint of one.

The wrapper is asserted too: on a CPU, accelerate replaces DeepSpeed and FSDP by DDP without a word in several cases,
and the losses would not show it.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tests.distributed.launch import has_compiler, launch, read_result
from tests.distributed.train_prm import METRICS, ROWS
from trl_erprm import ProcessRewardModel

SCRIPT = Path(__file__).parent / "distributed" / "train_prm.py"
# name -> what the run must have been: (distributed type, ZeRO stage, start of the name of the class around the model)
STRATEGIES = {
    "ddp": ("MULTI_CPU", None, "DistributedDataParallel"),
    "zero1": ("DEEPSPEED", 1, "DeepSpeedEngine"),
    "zero2": ("DEEPSPEED", 2, "DeepSpeedEngine"),
    "zero3": ("DEEPSPEED", 3, "DeepSpeedEngine"),
    "fsdp2": ("FSDP", None, "FSDPQwen3For"),
}
WEIGHTED = {"weight_by_rollouts": True, "balance_classes": True}
PADDED = {"padding_free": False}
REBALANCED = {"train_sampling_strategy": "batch_rebalance"}  # processes hold different numbers of solutions
CASES = [
    *((name, "token_classification", {}) for name in STRATEGIES),
    # The causal head reaches into the model by a hook, which is delicate where the weights are split.
    ("zero3", "causal_lm", {}),
    ("fsdp2", "causal_lm", {}),
    ("ddp", "token_classification", WEIGHTED),
    ("ddp", "token_classification", REBALANCED),
    ("zero2", "token_classification", PADDED),
]

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def save_model(folder: Path) -> Path:
    """
    A tiny language model with a tokenizer of single characters.

    Qwen3, since `AutoTokenizer` loads any Qwen2 folder as `Qwen2Tokenizer`, which reads such a tokenizer wrongly.
    """
    torch.manual_seed(0)
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *"0123456789+-= ки\n"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def train(name: str, head: str, model_folder: Path, output_folder: Path, options: dict) -> dict:
    """Four rows an optimizer step: as one batch in one process, as two times one row in two."""
    batch_size, accumulation_steps = (4, 1) if name == "cpu" else (1, 2)
    arguments = (model_folder, output_folder, head, batch_size, accumulation_steps, json.dumps(options))
    return read_result(launch(name, SCRIPT, *arguments))


def load_and_score(folder: Path) -> torch.Tensor:
    prm = ProcessRewardModel.from_pretrained(folder, device="cpu")
    scores = prm.score([row["prompt"] for row in ROWS], [row["completions"] for row in ROWS])
    return torch.tensor([score for solution in scores for score in solution])


@pytest.fixture(scope="module")
def one_process(model_folder, tmp_path_factory):
    """Result and scores of the run in one process, by head and options; each trains once."""
    known = {}

    def run(head: str, options: dict) -> tuple[dict, torch.Tensor]:
        key = head, str(options)
        if key not in known:
            folder = tmp_path_factory.mktemp("cpu")
            result = train("cpu", head, model_folder, folder, options)
            assert (result["distributed_type"], result["num_processes"]) == ("NO", 1)
            assert len(set(result["loss"])) == 4
            known[key] = result, load_and_score(folder)
        return known[key]

    return run


@pytest.mark.parametrize(("name", "head", "options"), CASES)
def test_two_processes_equal_one(name, head, options, model_folder, one_process, tmp_path):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
        if not has_compiler():
            pytest.skip("DeepSpeed on a CPU compiles an extension and finds no C++ compiler (c++, or $CXX)")
    # With and without padding, one process gives the same numbers: it runs without.
    expected, expected_scores = one_process(head, {n: v for n, v in options.items() if n != "padding_free"})
    result = train(name, head, model_folder, tmp_path, options)

    distributed_type, zero_stage, wrapper = STRATEGIES[name]
    assert (result["distributed_type"], result["zero_stage"]) == (distributed_type, zero_stage)
    assert result["wrapper"].startswith(wrapper)
    assert result["num_processes"] == 2
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert result["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    # Metrics are over the solutions of all processes, each counted once, also where one was filled up with another's.
    assert result["num_tokens"] == expected["num_tokens"]
    for metric in ("mean_score", *METRICS):
        assert result[metric] == pytest.approx(expected[metric], rel=1e-3, abs=1e-4, nan_ok=True), metric
    assert result["evaluation"] == pytest.approx(expected["evaluation"], rel=1e-3, abs=1e-4, nan_ok=True)
    assert sum(not math.isnan(value) for value in result["evaluation"].values()) >= 6
    scores = load_and_score(tmp_path)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-5)
    assert scores.std() > 1e-3


def test_single_gpu_config_trains_as_cpu_does(model_folder, one_process, tmp_path):
    """One process on whatever device there is: here the CPU, so the numbers are those of `cpu.yaml`, exactly."""
    expected, expected_scores = one_process("token_classification", {})
    result = read_result(launch("single_gpu", SCRIPT, model_folder, tmp_path, "token_classification", 4, 1))
    assert (result["distributed_type"], result["num_processes"]) == ("NO", 1)
    assert result["loss"] == expected["loss"]
    torch.testing.assert_close(load_and_score(tmp_path), expected_scores, rtol=0, atol=0)
