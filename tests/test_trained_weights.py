"""`trl_erprm.trained_weights`: stored adapters, and weights too coarse for small updates. With trainers: tests/prm and
tests/policy, files of the same name; `load_policy`: test_arguments.py."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from tests.tiny import save_base
from trl_erprm.arguments import process_state
from trl_erprm.trained_weights import check_adapter_of_model, find_adapter, load_adapter_to_train, warn_of_lost_updates

LORA = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA)).save_pretrained(path)
    return str(path)


class TestStoredAdapter:
    def test_what_it_is_on(self, base, adapter):
        assert find_adapter(base) is None
        assert find_adapter(adapter, revision=None, dtype="float32").base_model_name_or_path == base

    def test_a_base_that_is_not_named(self, adapter, tmp_path):
        config = json.loads(Path(adapter, "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
        with pytest.raises(ValueError, match="must name its base model, got `base_model_name_or_path` None"):
            find_adapter(tmp_path)

    def test_a_base_that_is_an_adapter(self, adapter):
        base = AutoModelForCausalLM.from_pretrained(adapter)
        with pytest.raises(ValueError, match="must lie on a whole model, but its base model is an adapter itself"):
            load_adapter_to_train(base, adapter)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_loaded_to_train(self, base, adapter, dtype):
        """The stored weights, exact also on a bfloat16 base, and they alone need gradients."""
        stored = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        loaded = load_adapter_to_train(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)
        assert {name for name, p in loaded.named_parameters() if p.requires_grad} == {
            name for name, _ in stored.named_parameters() if "lora_" in name
        }
        for name, parameter in loaded.named_parameters():
            if "lora_" in name:
                assert torch.equal(parameter, dict(stored.named_parameters())[name])


class TestModelWithAdapter:
    def test_a_new_adapter(self, base):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA))
        check_adapter_of_model(model, None)
        check_adapter_of_model(model.get_base_model(), None)
        with pytest.raises(
            ValueError, match="has an adapter already, .* Leave `peft_config` out .* `model.merge_and_unload"
        ):
            check_adapter_of_model(model, LoraConfig(**LORA))

    def test_loaded_by_transformers(self, adapter):
        model = AutoModelForCausalLM.from_pretrained(adapter)
        with pytest.raises(ValueError, match="leaves frozen: no weight would be trained. Give the adapter's path"):
            check_adapter_of_model(model, None)
        with pytest.raises(ValueError, match="has an adapter already"):
            check_adapter_of_model(model, LoraConfig(**LORA))

    def test_added_by_transformers(self, base):
        """Unlike a loaded one, it is there to be trained."""
        model = AutoModelForCausalLM.from_pretrained(base)
        model.add_adapter(LoraConfig(**LORA))
        assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
        check_adapter_of_model(model, None)
        with pytest.raises(ValueError, match="has an adapter already"):
            check_adapter_of_model(model, LoraConfig(**LORA))
        model.requires_grad_(False)
        with pytest.raises(ValueError, match="leaves frozen: no weight would be trained"):
            check_adapter_of_model(model, None)

    def test_frozen(self, base, adapter):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        with pytest.raises(ValueError, match="is frozen: no weight would be trained. .* is_trainable=True"):
            check_adapter_of_model(model, None)


class TestLostUpdates:
    @pytest.fixture(autouse=True)
    def a_launch(self):
        process_state()  # accelerate's log asks which process this is

    def warning(self, model, caplog, distributed_type=DistributedType.NO, mixed_precision="bf16"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            accelerator = SimpleNamespace(distributed_type=distributed_type, mixed_precision=mixed_precision)
            warn_of_lost_updates(model, accelerator)
        return caplog.text

    @pytest.mark.parametrize("dtype, part", [(torch.bfloat16, 512), (torch.float16, 4096)])
    def test_what_is_said_is_so(self, caplog, dtype, part):
        text = self.warning(nn.Linear(7, 3, dtype=dtype), caplog)
        assert f"24 weights are trained in {str(dtype)[6:]}" in text and f"less than 1/{part} of a weight" in text
        weight = torch.linspace(1, 8, 1001).to(dtype)
        assert torch.equal(weight + (weight.double() * 0.99 / part).to(dtype), weight)
        assert not torch.equal(weight + (weight.double() * 1.01 / part).to(dtype), weight)

    def test_only_of_what_is_trained(self, caplog):
        model = nn.Sequential(nn.Linear(7, 3, dtype=torch.bfloat16).requires_grad_(False), nn.Linear(3, 2))
        assert self.warning(model, caplog) == ""
        model[0].bias.requires_grad_(True)
        assert "3 weights are trained in bfloat16" in self.warning(model, caplog)

    def test_where_float32_is_kept_beside(self, caplog):
        model = nn.Linear(7, 3, dtype=torch.bfloat16)
        assert self.warning(model, caplog, DistributedType.DEEPSPEED) == ""
        assert self.warning(model, caplog, DistributedType.FSDP) == ""
        assert "24 weights" in self.warning(model, caplog, DistributedType.FSDP, "no")
        assert "24 weights" in self.warning(model, caplog, DistributedType.MULTI_GPU)

    def test_adapters_of_a_quantized_base(self, base, caplog):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA)).bfloat16()
        assert "256 weights are trained in bfloat16" in self.warning(model, caplog)  # 2 x (32 + 32) in 2 layers
        model.is_quantized = True
        assert self.warning(model, caplog) == ""
