"""`trl_erprm.prm.scorer`: in which precision a process reward model is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from tests.tiny import prm_trainer, save_base
from trl_erprm import ProcessRewardModel
from trl_erprm.prm import scorer

ROWS = [{"prompt": "3+4*2\n", "completions": ["3+4=2", "2*2=4", "#4"], "labels": [0.9, 0.3, 1.0]}]
PROMPTS, STEPS = [ROWS[0]["prompt"]], [ROWS[0]["completions"]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    ("dtype", "device", "config", "expected"),
    [
        ("auto", "cuda", {"dtype": "float32"}, torch.bfloat16),
        ("auto", "cuda:1", {}, torch.bfloat16),  # its config does not say
        (None, "cuda", {"dtype": "float32"}, torch.bfloat16),
        ("auto", "cuda", {"dtype": "float16"}, "auto"),
        ("auto", "cuda", {"dtype": "float32", "quantization_config": {"load_in_4bit": True}}, "auto"),
        ("float32", "cuda", {"dtype": "float32"}, "float32"),
        (torch.float16, "cuda", {"dtype": "float32"}, torch.float16),
        ("auto", "cpu", {"dtype": "float32"}, "auto"),
        ("auto", None, {"dtype": "float32"}, "auto"),  # here without a GPU
    ],
)
def test_float32_is_halved_on_a_gpu(dtype, device, config, expected, base, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    content = json.loads((Path(base) / "config.json").read_text())
    content = {name: value for name, value in content.items() if name != "dtype"} | config
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert scorer._precision(dtype, device, {}, str(tmp_path)) == expected
    is_changed = expected is torch.bfloat16
    assert [("loaded in bfloat16" in record.message) for record in caplog.records] == [True] * is_changed
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)  # an older GPU
    assert scorer._precision(dtype, device, {}, str(tmp_path)) == ("auto" if is_changed else expected)


@pytest.mark.parametrize("is_adapter", [False, True])
def test_the_precision_of_what_is_loaded(is_adapter, base, tmp_path, monkeypatch):
    """Of an adapter it is that of its base model; what the adapter brings stays float32."""
    peft_config = LoraConfig(r=2, target_modules=["q_proj"]) if is_adapter else None
    prm_trainer(base, tmp_path, ROWS, peft_config=peft_config).save_model()
    asked = []

    def halved(dtype, device, model_init_kwargs, path, **hub_arguments):
        asked.append((dtype, torch.device(device).type, path))
        return torch.bfloat16

    expected = ProcessRewardModel.from_pretrained(tmp_path, device="cpu").score(PROMPTS, STEPS)
    monkeypatch.setattr(scorer, "_precision", halved)
    prm = ProcessRewardModel.from_pretrained(tmp_path, device="cpu")
    assert asked == [("auto", "cpu", base if is_adapter else str(tmp_path))]
    assert prm.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert prm.score(PROMPTS, STEPS)[0] == pytest.approx(expected[0], abs=0.02)


def test_on_the_cpu_the_precision_is_the_checkpoints(base, tmp_path):
    path = tmp_path / "prm"
    prm_trainer(base, path, ROWS).save_model()
    assert ProcessRewardModel.from_pretrained(path, device="cpu").model.dtype == torch.float32
    prm = ProcessRewardModel.from_pretrained(path, device="cpu", dtype="bfloat16")
    shutil.copytree(path, tmp_path / "half")
    prm.model.save_pretrained(tmp_path / "half")
    assert ProcessRewardModel.from_pretrained(tmp_path / "half", device="cpu").model.dtype == torch.bfloat16
