"""
Each file in accelerate_configs/ trains, on the CPU with two processes, to the losses and checkpoint of one process.

The wrapper is asserted too: on a CPU, accelerate replaces DeepSpeed and FSDP by DDP without a word in several cases,
and the losses would not show it.
"""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification

from tests.distributed.launch import has_compiler, launch, read_result

SCRIPT = Path(__file__).parent / "distributed" / "train_reward.py"
GLOBAL_BATCH_SIZE = 4
# name -> what the run must have been: (distributed type, ZeRO stage, class that wraps the model)
STRATEGIES = {
    "ddp": ("MULTI_CPU", None, "DistributedDataParallel"),
    "zero1": ("DEEPSPEED", 1, "DeepSpeedEngine"),
    "zero2": ("DEEPSPEED", 2, "DeepSpeedEngine"),
    "zero3": ("DEEPSPEED", 3, "DeepSpeedEngine"),
    "fsdp2": ("FSDP", None, "FSDPQwen2ForSequenceClassification"),
}

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A tiny Qwen2 with a score head and a tokenizer of single characters."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *"0123456789+="])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        num_labels=1,
    )
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def train(name: str, model_folder: Path, output_folder: Path) -> dict:
    num_processes = 1 if name == "cpu" else 2
    completed = launch(
        name, SCRIPT, model_folder, output_folder, GLOBAL_BATCH_SIZE // num_processes, num_processes=num_processes
    )
    return read_result(completed)


def load_and_score(folder: Path) -> torch.Tensor:
    """Scores that the checkpoint in `folder` gives to fixed token ids; every weight must be in it."""
    model, info = Qwen2ForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 15).reshape(3, 4)).logits


@pytest.fixture(scope="module")
def one_process(model_folder, tmp_path_factory) -> tuple[dict, torch.Tensor]:
    folder = tmp_path_factory.mktemp("cpu")
    result = train("cpu", model_folder, folder)
    assert (result["distributed_type"], result["num_processes"]) == ("NO", 1)
    assert len(set(result["loss"])) == 4
    return result, load_and_score(folder)


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_equal_one(name, model_folder, one_process, tmp_path):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
        if not has_compiler():
            pytest.skip("DeepSpeed on a CPU compiles an extension and finds no C++ compiler (c++, or $CXX)")
    expected, expected_scores = one_process
    result = train(name, model_folder, tmp_path)

    assert (result["distributed_type"], result["zero_stage"], result["wrapper"]) == STRATEGIES[name]
    assert result["num_processes"] == 2
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert result["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    scores = load_and_score(tmp_path)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores, load_and_score(model_folder), atol=1e-2), (
        "the checkpoint holds untrained weights"
    )
