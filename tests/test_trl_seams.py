"""Where we reach into TRL and transformers: each method that we override or call, and each helper that is not public.

A TRL release that moves one of these fails here first, by name. The lists are complete: an override, a private call or
a private import without an entry fails, too. Run against the oldest and the newest supported TRL.
"""

import ast
import inspect
import textwrap
from pathlib import Path

import pytest
import trl
from transformers import Trainer
from trl import GRPOTrainer, RewardTrainer, SFTTrainer

import trl_erprm
from trl_erprm import ERPRMTrainer, ProcessPPOTrainer, RFTTrainer, StepGRPOTrainer
from trl_erprm.prm import model_card

# Parent's parameters, in order, of every method that we override. We call it with them or are called with them.
OVERRIDDEN = {
    ERPRMTrainer: {
        "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
        "_set_signature_columns_if_needed": ["self"],
        "_get_num_items_in_batch": ["self", "batch_samples", "device"],
        "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
        "log": ["self", "logs", "start_time"],
        "evaluation_loop": [
            "self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"
        ],
        "predict": ["self", "test_dataset", "ignore_keys", "metric_key_prefix"],
        "create_model_card": ["self", "model_name", "dataset_name", "tags"],
        "_save": ["self", "output_dir", "state_dict"],
    },
    RFTTrainer: {
        "_prepare_dataset": [
            "self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"
        ],
        "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
        "training_step": ["self", "args", "kwargs"],
        "create_optimizer": ["self", "model"],
        "create_scheduler": ["self", "num_training_steps", "optimizer"],
        "_get_train_sampler": ["self", "train_dataset"],
        "log": ["self", "logs", "start_time"],
        "save_model": ["self", "output_dir", "_internal_call"],
    },
    StepGRPOTrainer: {
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_get_train_sampler": ["self", "dataset"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_generate_and_score_completions": ["self", "inputs"],
    },
    ProcessPPOTrainer: {
        "_prepare_for_training": ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"],
        "create_optimizer": ["self", "model"],
        "_save": ["self", "output_dir", "state_dict"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_load_best_model": ["self"],
        "_get_train_sampler": ["self", "dataset"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_generate_and_score_completions": ["self", "inputs"],
        "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
        "_compute_loss": ["self", "model", "inputs"],
    },
}  # fmt: skip

# Of these, the parent may have more: we pass each by name.
INIT_PARAMETERS = {
    ERPRMTrainer: {
        "model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class", "compute_metrics",
        "callbacks", "optimizers", "peft_config",
    },
    RFTTrainer: {
        "model", "args", "train_dataset", "processing_class", "callbacks", "quantization_config", "peft_config"
    },
    StepGRPOTrainer: {"model", "reward_funcs", "args"},
    ProcessPPOTrainer: {"model", "reward_funcs", "args", "quantization_config", "peft_config"},
}  # fmt: skip

# Methods whose signature we narrow: `RFTTrainer.train()` runs all iterations and resumes by itself.
NARROWED = {(RFTTrainer, "train")}

# Methods of which we read the first parameters, and pass the others on as they come.
PASSED_ON = {(ProcessPPOTrainer, "_get_per_token_logps_and_entropies")}

# Class attributes of the parents that we set.
ATTRIBUTES = {
    ERPRMTrainer: {"loss_is_scaled_for_ga", "_tag_names", "_name", "_paper"},
    RFTTrainer: {"_tag_names", "_name", "_paper"},
    StepGRPOTrainer: {"_tag_names", "_name", "_paper"},
    ProcessPPOTrainer: {"_tag_names", "_name", "_paper"},
}

# Private members of the parents that we use without defining them: what they are called with, None for data.
PRIVATE_MEMBERS = {
    ERPRMTrainer: {
        "_metrics": None,
        "_prepare_inputs": ["self", "inputs"],
        "_signature_columns": None,
        "_total_train_tokens": None,
        "_tp_size": None,
    },
    RFTTrainer: {"_save": ["self", "output_dir", "state_dict"], "_train_batch_size": None},
    StepGRPOTrainer: {"_metrics": None, "_tokenizer": None},
    ProcessPPOTrainer: {
        "_is_vlm": None,
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
        "_load_scaler": ["self", "checkpoint"],
        "_logs": None,
        "_metrics": None,
        "_move_model_to_device": ["self", "model", "device"],
        "_tokenizer": None,
    },
}

# Public data of the parents that no documentation promises.
UNDOCUMENTED_MEMBERS = {
    ERPRMTrainer: {"hub_model_id"},
    RFTTrainer: {"model_wrapped", "lr_scheduler", "completion_only_loss"},
    StepGRPOTrainer: {"num_generations", "num_generations_eval"},
    ProcessPPOTrainer: {
        "beta",
        "callback_handler",
        "current_gradient_accumulation_steps",
        "model_wrapped",
        "reward_func_names",
        "reward_weights",
    },
}

# What we import from places of TRL that are not its top level: the parameters that we rely on.
PRIVATE_IMPORTS = {
    ("trl.data_utils", "get_dataset_column_names"): ["dataset"],
    ("trl.generation.vllm_generation", "VLLMGeneration"): [
        "model", "accelerator", "processing_class", "mode", "server_base_url", "server_host", "server_port",
        "server_timeout", "group_port", "tensor_parallel_size", "gpu_memory_utilization", "max_model_length",
        "max_num_seqs", "enable_sleep_mode", "model_impl", "trust_remote_code", "max_completion_length", "logprobs",
    ],
    ("trl.models.utils", "unwrap_model_for_generation"): ["model", "accelerator", "gather_deepspeed3_params"],
    ("trl.trainer.utils", "create_model_from_path"): ["model_id", "architecture", "kwargs"],
    ("trl.trainer.utils", "disable_dropout_in_model"): ["model"],
    ("trl.trainer.utils", "get_config_model_id"): ["config"],
    ("trl.trainer.utils", "pad"): ["tensors", "padding_value", "padding_side", "pad_to_multiple_of"],
}  # fmt: skip

TRAINERS = [ERPRMTrainer, RFTTrainer, StepGRPOTrainer, ProcessPPOTrainer]
PARENTS = {
    ERPRMTrainer: RewardTrainer,
    RFTTrainer: SFTTrainer,
    StepGRPOTrainer: GRPOTrainer,
    ProcessPPOTrainer: GRPOTrainer,
}


def parent_member(trainer, name):
    """The member as the parents of a class have it, or None."""
    for cls in trainer.__mro__[1:-1]:
        if name in vars(cls):
            return vars(cls)[name]
    return None


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("trainer", TRAINERS)
class TestTrainers:
    def test_parent(self, trainer):
        parent = PARENTS[trainer]
        assert trainer.__bases__ == (parent,) and issubclass(parent, Trainer)

    def test_the_list_is_complete(self, trainer):
        """Every member of the class body that a parent has, too."""
        known = {name: parent_member(trainer, name) for name in vars(trainer)}
        methods = {name for name, member in known.items() if inspect.isfunction(member) and name != "__init__"}
        assert methods == set(OVERRIDDEN[trainer])
        others = {n for n, m in known.items() if m is not None and not inspect.isfunction(m) and n[:2] != "__"}
        assert others <= ATTRIBUTES[trainer]

    def test_signatures_of_the_parent(self, trainer):
        for name, expected in OVERRIDDEN[trainer].items():
            found = parameters(parent_member(trainer, name))
            assert (found[: len(expected)] if (trainer, name) in PASSED_ON else found) == expected, name

    def test_our_signatures(self, trainer):
        """Ours take what the parent's take, under the same names, so that the parent can call them."""
        for name, expected in OVERRIDDEN[trainer].items():
            if (trainer, name) in PASSED_ON:
                expected = [*expected, "args", "kwargs"]
            if (trainer, name) not in NARROWED:
                assert parameters(vars(trainer)[name]) == expected, name

    def test_init(self, trainer):
        assert set(parameters(parent_member(trainer, "__init__"))) >= INIT_PARAMETERS[trainer]

    def test_attributes(self, trainer):
        for name in ATTRIBUTES[trainer] & set(vars(trainer)):
            # `_paper` is read by the base trainer, which does not define it
            assert parent_member(trainer, name) is not None or name == "_paper", name
        assert "_paper" in inspect.getsource(inspect.getmodule(trainer.__mro__[2]))

    def test_private_members_that_we_use(self, trainer):
        tree = ast.parse(textwrap.dedent(inspect.getsource(trainer)))
        own = {*vars(trainer)} - {n for n in vars(trainer) if parent_member(trainer, n) is not None}
        used, assigned = set(), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                if node.attr.startswith("_"):
                    (assigned if isinstance(node.ctx, ast.Store) else used).add(node.attr)
        sources = "".join(inspect.getsource(cls) for cls in trainer.__mro__[1:-1])
        used -= own | set(OVERRIDDEN[trainer])
        # what only we assign is ours
        used -= {name for name in assigned if f"self.{name}" not in sources}
        assert used == set(PRIVATE_MEMBERS[trainer])
        for name, expected in PRIVATE_MEMBERS[trainer].items():
            if expected is None:
                assert f"self.{name} = " in sources or f"self.{name}: " in sources, name
            else:
                assert parameters(parent_member(trainer, name))[: len(expected)] == expected, name

    def test_undocumented_members_that_we_use(self, trainer):
        sources = "".join(inspect.getsource(cls) for cls in trainer.__mro__[1:-1])
        for name in UNDOCUMENTED_MEMBERS[trainer]:
            assert f"self.{name}" in inspect.getsource(trainer) and f"self.{name} = " in sources, name


def test_helpers_that_are_not_public():
    found = {}
    for path in sorted(Path(trl_erprm.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trl."):
                found.update({(node.module, alias.name): path.name for alias in node.names})
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("trl.") for alias in node.names), path
    assert set(found) == set(PRIVATE_IMPORTS), found
    for (module, name), expected in PRIVATE_IMPORTS.items():
        function = getattr(__import__(module, fromlist=[name]), name)
        names = parameters(inspect.unwrap(function))
        assert [n for n in names if n in expected] == expected, name


def test_the_trainer_calls_what_we_override():
    """A method that the parent no longer calls would be overridden in vain."""
    for trainer in TRAINERS:
        sources = "".join(inspect.getsource(cls) for cls in PARENTS[trainer].__mro__[:-1])
        for name in set(OVERRIDDEN[trainer]) - {"train", "predict"}:  # which users call
            assert f"self.{name}(" in sources or f"=self.{name}," in sources, name


def test_the_quick_start_of_the_model_card():
    """`prm/model_card.py` replaces this part of TRL's template, which ends where the next one begins."""
    template = (Path(trl.__file__).parent / "templates" / RewardTrainer._template_file).read_text("utf-8")
    headings = [line for line in template.splitlines() if line.startswith("## ")]
    assert headings[:2] == ["## Quick start", "## Training procedure"]
    assert len(model_card._QUICK_START.findall(template)) == 1
    assert "pipeline(model=" not in model_card._QUICK_START.sub("", template)
