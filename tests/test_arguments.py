"""`trl_erprm.arguments`: loading of rows, prompts and policies, and each error by its message."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from tests.tiny import QUIET
from trl_erprm import ERPRMConfig, RFTConfig
from trl_erprm.arguments import (
    _NOT_IN_RESULTS,
    _SCHEDULE,
    DataArguments,
    ModelArguments,
    get_peft_config,
    load_data,
    load_policy,
    load_prompts,
    load_tokenizer,
    result_arguments,
)

# Data


@pytest.fixture
def rows_path(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?"}) + "\n" for i in range(5)))
    return str(path)


def test_load_data(rows_path):
    rows, eval_rows = load_data(DataArguments(dataset_name="json", dataset_path=rows_path))
    assert rows["prompt"][:] == ["0?", "1?", "2?", "3?", "4?"] and eval_rows is None
    rows, eval_rows = load_data(
        DataArguments(dataset_path=rows_path, num_rows=2, eval_dataset_path=rows_path, num_eval_rows=3)
    )
    assert rows["prompt"][:] == ["0?", "1?"] and eval_rows["prompt"][:] == ["0?", "1?", "2?"]
    rows, eval_rows = load_data(
        DataArguments(dataset_path=rows_path, dataset_split="train[:1]", eval_split="train[3:]", num_rows=99)
    )
    assert rows["prompt"][:] == ["0?"] and eval_rows["prompt"][:] == ["3?", "4?"]


def test_bad_data_arguments():
    for name in ("num_rows", "num_eval_rows"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1 or null, got 0"):
            DataArguments(**{name: 0})
    with pytest.raises(ValueError, match="`num_eval_rows` goes with held-out rows, got 5 without them"):
        DataArguments(num_eval_rows=5)


# Training arguments


def results(**changes):
    return result_arguments(ERPRMConfig(**{"output_dir": "prm", **QUIET, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"output_dir": "elsewhere", "logging_steps": 3, "save_steps": 7, "dataloader_num_workers": 2},
        {"per_device_eval_batch_size": 1, "eval_accumulation_steps": 4, "prediction_loss_only": True},
        {"eval_strategy": "steps", "eval_steps": 5, "eval_delay": 2},
        {"activation_checkpointing": True, "activation_offloading": True},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"padding_free": False, "pad_to_multiple_of": 8, "torch_empty_cache_steps": 10},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 10},
    ],
)
def test_what_takes_less_memory_or_time_is_the_same_run(changes):
    assert results(**changes) == results()


@pytest.mark.parametrize(
    "changes, name, value",
    [
        ({"learning_rate": 2e-6}, "learning_rate", 2e-6),
        ({"seed": 3}, "seed", 3),
        ({"eta": 2.0}, "eta", 2.0),
        ({"max_length": 99}, "max_length", 99),
        ({"positive_token": "good", "head": "causal_lm"}, "positive_token", "good"),
        ({"per_device_train_batch_size": 2}, "train_batch_size", 2),
        ({"gradient_accumulation_steps": 3}, "train_batch_size", 24),
    ],
)
def test_what_changes_results_is_another_run(changes, name, value):
    assert results(**changes)[name] == value != results()[name]


@pytest.mark.parametrize(
    "changes",
    [
        {"load_best_model_at_end": True, "metric_for_best_model": "loss"},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
    ],
)
def test_evaluations_that_decide_about_the_training(changes):
    """When they take place then changes the model that is left."""
    schedule = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 4}
    often, seldom = (results(**schedule, **changes, eval_steps=steps) for steps in (2, 4))
    assert {name for name in often if often[name] != seldom[name]} == {"eval_steps"}


def test_arguments_that_are_left_out_exist():
    known = {field.name for config in (ERPRMConfig, RFTConfig) for field in fields(config)}
    assert {*_NOT_IN_RESULTS, *_SCHEDULE} - known == {"logging_dir"}  # of earlier versions of transformers


# Models


def make_tokenizer(**special_tokens):
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *"0123456789+*=\n#"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


def make_config(**changes):
    return LlamaConfig(
        vocab_size=17,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **{"tie_word_embeddings": False, **changes},
    )


@pytest.fixture
def policy_path(tmp_path):
    path = tmp_path / "policy"
    LlamaForCausalLM(make_config()).save_pretrained(path)
    make_tokenizer(eos_token="<eos>").save_pretrained(path)
    return path


def test_load_policy(policy_path):
    model, tokenizer = load_policy(ModelArguments(model_name_or_path=str(policy_path)))
    saved = LlamaForCausalLM.from_pretrained(policy_path)
    input_ids = torch.tensor([tokenizer("1+2=3")["input_ids"]])
    assert input_ids.shape == (1, 5)
    torch.testing.assert_close(model(input_ids).logits, saved(input_ids).logits)
    assert model.dtype == torch.float32 and not model.training
    assert tokenizer.pad_token == "<eos>"  # it had none


def test_load_policy_in_another_precision_and_place(policy_path):
    model, _ = load_policy(ModelArguments(model_name_or_path=str(policy_path), dtype="bfloat16"), device="meta")
    assert model.dtype == torch.bfloat16 and model.device.type == "meta"


def test_padding_token_of_the_tokenizer_is_kept(policy_path):
    make_tokenizer(eos_token="<eos>", pad_token="<pad>").save_pretrained(policy_path)
    assert load_policy(ModelArguments(model_name_or_path=str(policy_path)))[1].pad_token == "<pad>"


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_a_general_tokenizer_stays_what_was_saved(tmp_path, model_type):
    # for Qwen2, AutoTokenizer would put Qwen2's own rules in the place of these, which keep "1+" whole
    tokenizer = Tokenizer(WordLevel({"<pad>": 0, "1+": 1, "1": 2, "+": 3, "\n": 4}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Split(Regex(r"1\+|[\s\S]"), "isolated")
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    saved.save_pretrained(tmp_path)
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    assert saved("1+\n1")["input_ids"] == [1, 4, 2]
    assert load_tokenizer(tmp_path)("1+\n1")["input_ids"] == [1, 4, 2]


@pytest.fixture
def adapter(policy_path, tmp_path):
    """The path of an adapter, and the policy that it is with its base model."""
    from peft import get_peft_model

    model_args = ModelArguments(
        model_name_or_path=str(policy_path), use_peft=True, lora_r=2, lora_target_modules=["q_proj"]
    )
    model, tokenizer = load_policy(model_args)
    adapted = get_peft_model(model, get_peft_config(model_args))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter"), adapted.eval()


def test_load_an_adapter(adapter):
    """On its base model, as it was stored, and ready to be trained on."""
    path, adapted = adapter
    loaded, _ = load_policy(ModelArguments(model_name_or_path=path))
    input_ids = torch.tensor([[2, 3, 4]])
    torch.testing.assert_close(loaded(input_ids).logits, adapted(input_ids).logits)
    assert not loaded.training
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in adapted.named_parameters() if "lora_" in name}


def test_a_new_adapter_beside_a_stored_one(adapter, tmp_path, monkeypatch):
    """Is refused; the lines that merge the stored one make the policy that a new one can begin from."""
    path, adapted = adapter
    options = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj"]}
    with pytest.raises(ValueError, match="holds a trained adapter, but `use_peft` asks for a new one") as error:
        load_policy(ModelArguments(model_name_or_path=path, **options))
    monkeypatch.chdir(tmp_path)
    lines = str(error.value).partition("\n\n")[2]
    exec("\n".join(line.removeprefix("    ") for line in lines.splitlines()), {})
    merged, _ = load_policy(ModelArguments(model_name_or_path="./merged", **options))
    input_ids = torch.tensor([[2, 3, 4]])
    torch.testing.assert_close(merged(input_ids).logits, adapted(input_ids).logits)


@pytest.mark.parametrize("task_type, is_accepted", [(None, True), ("CAUSAL_LM", True), ("TOKEN_CLS", False)])
def test_an_adapter_of_another_kind_of_model(adapter, task_type, is_accepted):
    path, adapted = adapter
    config = Path(path, "adapter_config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "task_type": task_type}))
    if is_accepted:
        input_ids = torch.tensor([[2, 3, 4]])
        loaded, _ = load_policy(ModelArguments(model_name_or_path=path))
        torch.testing.assert_close(loaded(input_ids).logits, adapted(input_ids).logits)
        return
    for use_peft in (False, True):
        with pytest.raises(ValueError, match=r"must hold the adapter of a causal .* \(TOKEN_CLS\), such"):
            load_policy(ModelArguments(model_name_or_path=path, use_peft=use_peft))


def test_an_adapter_whose_base_model_is_gone(adapter, policy_path):
    policy_path.rename(policy_path.parent / "elsewhere")
    with pytest.raises(FileNotFoundError, match="`base_model_name_or_path` must be an existing directory or a model"):
        load_policy(ModelArguments(model_name_or_path=adapter[0]))


@pytest.mark.parametrize("bits", [4, 8])
def test_load_quantized(policy_path, bits):
    pytest.importorskip("bitsandbytes")
    model, _ = load_policy(ModelArguments(model_name_or_path=str(policy_path), **{f"load_in_{bits}bit": True}))
    assert getattr(model, f"is_loaded_in_{bits}bit")
    assert model.model.layers[0].self_attn.q_proj.weight.dtype in (torch.uint8, torch.int8)


def test_quantization_needs_a_precision_to_compute_in():
    with pytest.raises(ValueError, match="`dtype` must be a precision to compute in .*, got 'auto'"):
        ModelArguments(load_in_4bit=True, dtype="auto")
    with pytest.raises(ValueError, match="8 bit and 4 bit"):
        ModelArguments(load_in_4bit=True, load_in_8bit=True)


def load(path):
    return load_policy(ModelArguments(model_name_or_path=str(path) if path is not None else None))


def test_no_model_named():
    with pytest.raises(ValueError, match="`model_name_or_path` must name a model, got None"):
        load(None)


def test_a_directory_that_is_no_model_names_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match="lacks config.json and weights and a tokenizer; it holds nothing. Pass a"):
        load(tmp_path)
    for index in range(12):
        (tmp_path / f"rows-{index:02}.jsonl").write_text("")
    (tmp_path / "logs").mkdir()
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    assert str(error.value) == (
        "`model_name_or_path` must be a directory with config.json, weights (*.safetensors) and a tokenizer, as "
        f"`save_pretrained` writes them, got {str(tmp_path)!r}, which lacks config.json and weights and a tokenizer; "
        "it holds logs/, rows-00.jsonl, rows-01.jsonl, rows-02.jsonl, rows-03.jsonl, rows-04.jsonl, rows-05.jsonl, "
        "rows-06.jsonl, rows-07.jsonl, rows-08.jsonl and 3 more. Pass a directory written by `save_pretrained`."
    )


def test_a_directory_with_checkpoints_points_to_the_last(policy_path, tmp_path):
    policy_path.rename(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="Did you mean '.*/checkpoint-2'"):
        load(tmp_path)


@pytest.mark.parametrize(("pattern", "missing"), [("*.safetensors", "weights"), ("tokenizer*", "a tokenizer")])
def test_an_incomplete_model(policy_path, pattern, missing):
    for path in policy_path.glob(pattern):
        path.unlink()
    with pytest.raises(ValueError, match=f"which lacks {missing}; it holds config.json"):
        load(policy_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config(policy_path, text):
    (policy_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="must hold a config.json with a model configuration"):
        load(policy_path)


def test_a_reward_model_is_no_policy(policy_path):
    LlamaForTokenClassification(make_config()).save_pretrained(policy_path)
    with pytest.raises(ValueError, match="must be a causal language model, got '.*', which holds a LlamaForToken"):
        load(policy_path)


def test_missing_weights_are_not_made_up(policy_path):
    tied = LlamaForCausalLM(make_config(tie_word_embeddings=True))
    tied.save_pretrained(policy_path)
    make_config().save_pretrained(policy_path)  # says that there is an output layer of its own
    config = json.loads((policy_path / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    with pytest.raises(ValueError, match="must hold all weights of a LlamaForCausalLM, got none for lm_head.weight"):
        load(policy_path)


def test_a_tokenizer_without_end(policy_path):
    for path in policy_path.glob("tokenizer*"):
        path.unlink()
    make_tokenizer().save_pretrained(policy_path)
    with pytest.raises(ValueError, match="must have a padding or an end-of-sequence token, and has neither"):
        load(policy_path)


def test_paths_that_do_not_exist_are_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    for name in (str(tmp_path / "no"), "./no", "../no/more", "~/no-such-model", "outputs/no", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="must be an existing directory or a model on the Hub, got '.*'"):
            load(name)
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ValueError, match="got the file '.*model.safetensors'. Pass the directory that holds it"):
        load(tmp_path / "model.safetensors")


def test_a_name_on_the_hub_is_looked_up_and_a_directory_is_not(monkeypatch, policy_path):
    seen = []

    def from_pretrained(name, **options):
        seen.append({"name": str(name), **options})
        raise OSError("offline")

    for name in ("AutoTokenizer", "PreTrainedTokenizerFast"):
        monkeypatch.setattr(f"trl_erprm.arguments.{name}.from_pretrained", from_pretrained)
    for name in ("org/model", str(policy_path)):
        with pytest.raises(OSError, match="offline"):
            load_policy(ModelArguments(model_name_or_path=name, model_revision="v1"), trust_remote_code=True)
    options = {"revision": "v1", "trust_remote_code": True}
    assert seen == [
        {"name": "org/model", "local_files_only": False, **options},
        {"name": str(policy_path), "local_files_only": True, **options},
    ]


def test_load_prompts_as_text_and_as_chat(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1+1?", "answer": "1+1 = 2\\n#### 2"}\n')
    rows, held_out = load_prompts(DataArguments(dataset_path=str(path)))
    assert held_out is None
    assert (rows["prompt"][0], rows["answer"][0], rows["completions"][0]) == ("1+1?\n", "2", ["1+1 = 2", "#### 2"])

    rows, _ = load_prompts(DataArguments(dataset_path=str(path), prompt_suffix="?"))
    assert rows["prompt"][0] == "1+1?"  # it ends so already

    rows, held_out = load_prompts(
        DataArguments(dataset_path=str(path), eval_dataset_path=str(path), chat=True, system_prompt="Be brief.")
    )
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    assert list(rows["prompt"]) == [messages]
    assert list(held_out["prompt"]) == [messages]
    assert rows["answer"][0] == "2"
    rows, _ = load_prompts(DataArguments(dataset_path=str(path), chat=True))
    assert rows["prompt"][0] == messages[1:]


def test_a_system_prompt_goes_with_chat():
    with pytest.raises(ValueError, match=r"`system_prompt` goes with chat messages, got 'Be brief.' without `chat`"):
        DataArguments(system_prompt="Be brief.")
