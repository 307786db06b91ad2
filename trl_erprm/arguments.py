"""What the recipes share: arguments that name a model and data, and the loading of what they name.

parser = StrictParser((ScriptArguments, RFTConfig, ModelArguments, DataArguments))
script_args, training_args, model_args, data_args = parser.parse_args_and_config()
prompts, held_out = load_prompts(data_args)
policy, tokenizer = load_policy(model_args)
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, TrainingArguments
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_erprm.data import load_rows, to_prompt_rows
from trl_erprm.parsing import StrictParser
from trl_erprm.trained_weights import (
    check_adapter_of_policy,
    find_adapter,
    lines_to_merge_policy,
    load_adapter_to_train,
    new_adapter_error,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DataArguments",
    "ModelArguments",
    "StrictParser",
    "check_model_name",
    "check_path_or_id",
    "get_peft_config",
    "get_quantization_config",
    "load_data",
    "load_policy",
    "load_prompts",
    "load_tokenizer",
    "process_state",
    "result_arguments",
]


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


@dataclass
class ModelArguments(ModelConfig):
    """Which model to start from, and how: precision, attention, LoRA, quantization.

    All fields are those of [`~trl.ModelConfig`]; [`get_peft_config`] and [`get_quantization_config`] turn them into
    the configurations that trainers take. `trust_remote_code` is a field of TRL's trainer configurations, and a
    parameter of [`load_policy`].
    """

    _argument_group_name = "model"  # heading in --help

    def __post_init__(self) -> None:
        super().__post_init__()
        # The parent turns a list of one into a string, which PEFT takes for a pattern of whole paths ("all-linear"
        # aside): ["q_proj"] would match nothing.
        modules = self.lora_target_modules
        if isinstance(modules, str) and modules != "all-linear" and re.fullmatch(r"[\w.]+", modules):
            self.lora_target_modules = [modules]
        if self.load_in_4bit and self.dtype in ("auto", None):
            raise ValueError(
                f"`dtype` must be a precision to compute in where `load_in_4bit` is set, got {self.dtype!r}. Choose "
                "bfloat16, float16 or float32."
            )


@dataclass
class DataArguments:
    """Which rows to read: a local file, a directory, or a dataset on the Hugging Face Hub.

    Parameters:
        dataset_name (`str`, *optional*):
            A file format (`"json"`, `"parquet"`, `"csv"`) for the file at `dataset_path`, a local path, or a dataset
            on the Hub.
        dataset_path (`str`, *optional*):
            File (`.json`, `.jsonl`, `.parquet`, `.csv`, also compressed) or directory.
        dataset_config (`str`, *optional*):
            Configuration of a dataset on the Hub (`"main"` for `openai/gsm8k`).
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split, with a slice if wanted (`"train[:20]"`). A file is one split, whose name is ignored.
        num_rows (`int`, *optional*):
            Read at most this many rows, the first ones; all of them if `None`.
        eval_dataset_path (`str`, *optional*):
            File or directory with the held-out rows.
        eval_split (`str`, *optional*):
            Split with the held-out rows, of `eval_dataset_path` if given (`"test"` by default there), else of the
            dataset above. If neither is given, there are no held-out rows.
        num_eval_rows (`int`, *optional*):
            Read at most this many held-out rows, the first ones; all of them if `None`.
        prompt_suffix (`str`, *optional*, defaults to a newline):
            Put behind a prompt that is text and does not end with it, so that the solution starts on a line of its
            own. Chat prompts have no use for it.
        chat (`bool`, *optional*, defaults to `False`):
            Turn prompts that are text into chat messages, for models with a chat template.
        system_prompt (`str`, *optional*):
            System message before each prompt; goes with `chat`.
    """

    _argument_group_name = "data"  # heading in --help

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Format ('json', 'parquet', 'csv') of `dataset_path`, a local path, or a dataset on the Hub."
        },
    )
    dataset_path: str | None = field(default=None, metadata={"help": "File or directory with the rows."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "Split, such as 'train' or 'train[:20]'."})
    num_rows: int | None = field(default=None, metadata={"help": "Read at most this many rows."})
    eval_dataset_path: str | None = field(default=None, metadata={"help": "File or directory with held-out rows."})
    eval_split: str | None = field(default=None, metadata={"help": "Split with held-out rows."})
    num_eval_rows: int | None = field(default=None, metadata={"help": "Read at most this many held-out rows."})
    prompt_suffix: str = field(default="\n", metadata={"help": "Put behind each text prompt that lacks it."})
    chat: bool = field(default=False, metadata={"help": "Turn text prompts into chat messages (instruct models)."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message of each chat prompt."})

    def __post_init__(self) -> None:
        if self.system_prompt is not None and not self.chat:
            raise ValueError(
                f"`system_prompt` goes with chat messages, got {self.system_prompt!r} without `chat`. Set "
                "`chat: true`, or write the text into the prompts."
            )
        for name in ("num_rows", "num_eval_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1 or null, got {value}. Leave it out to read all rows.")
        if self.num_eval_rows is not None and self.eval_dataset_path is None and self.eval_split is None:
            raise ValueError(
                f"`num_eval_rows` goes with held-out rows, got {self.num_eval_rows} without them. Name them by "
                "`eval_dataset_path` or `eval_split`."
            )


def process_state() -> PartialState:
    """The processes of this launch; call it before anything else asks accelerate.

    Departure from `PartialState()`: without a GPU, accelerate finds the other processes only if it is told that they
    run on the CPU; else each takes itself for the only one, and all of them write to the same files.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


# What is printed, evaluated, saved or sent, and with how much memory and how fast it goes: a run continues when these
# differ. Of the batch, only its whole size counts, not how accumulation and processes share it.
_NOT_IN_RESULTS = frozenset(
    "output_dir logging_dir logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_level "
    "log_level_replica log_on_each_node report_to run_name project trackio_space_id disable_tqdm push_to_hub "
    "hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision dataset_num_proc "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context dataloader_in_order trackio_bucket_id trackio_static_space_id debug "
    "save_total_limit save_only_model save_on_each_node enable_jit_checkpoint generation_batch_size "
    "resume_from_checkpoint eval_on_start eval_accumulation_steps eval_do_concat_batches eval_use_gather_object "
    "prediction_loss_only batch_eval_metrics include_for_metrics include_num_input_tokens_seen do_train do_eval "
    "do_predict skip_memory_metrics local_rank ddp_timeout ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers "
    "ddp_find_unused_parameters ddp_static_graph deepspeed fsdp fsdp_config torch_empty_cache_steps torch_compile "
    "torch_compile_backend torch_compile_mode padding_free pad_to_multiple_of gradient_checkpointing "
    "gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs activation_offloading "
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps".split()
)
# When the model is evaluated and saved: of no matter, unless the evaluations decide about the training.
_SCHEDULE = frozenset("eval_strategy eval_steps eval_delay save_strategy save_steps".split())


def result_arguments(args: TrainingArguments) -> dict[str, Any]:
    """The training arguments that change results, by which a run recognizes its directory ([`open_run`]).

    Args:
        args ([`~transformers.TrainingArguments`]):
            Arguments of any trainer.

    Returns:
        `dict[str, Any]`: plain JSON values. Left out is what only changes what is printed, evaluated, saved or sent,
        or how much memory and time it takes, so that a run that ended for want of memory can go on with less.
        `train_batch_size` is the number of rows of an optimizer step, over devices, accumulation and processes.
    """
    left_out = _NOT_IN_RESULTS
    if not (args.load_best_model_at_end or args.lr_scheduler_type == "reduce_lr_on_plateau"):
        left_out = left_out | _SCHEDULE
    chosen = {name: value for name, value in args.to_dict().items() if name not in left_out}
    for name in chosen:
        if name.endswith("_token"):  # `to_dict` hides them as if they were secret: `positive_token` is none
            chosen[name] = getattr(args, name)
    chosen["train_batch_size"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return json.loads(json.dumps(chosen, default=str))


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def load_data(data_args: DataArguments) -> tuple[Dataset, Dataset | None]:
    """Reads the rows that the arguments name, as they are: `to_prompt_rows` or `to_stepwise_rows` converts them.

    Args:
        data_args ([`DataArguments`]):
            Where the rows are.

    Returns:
        `tuple[Dataset, Dataset | None]`: rows, and held-out rows if the arguments name some.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: as [`load_rows`], for example if neither a name nor a path is given.
    """
    rows = load_rows(
        data_args.dataset_name, data_args.dataset_path, split=data_args.dataset_split, config=data_args.dataset_config
    )
    rows = _first(rows, data_args.num_rows)
    if data_args.eval_dataset_path is not None:
        # the format of this file may be another than that of the training rows: it is read from the file's name
        eval_rows = load_rows(dataset_path=data_args.eval_dataset_path, split=data_args.eval_split or "test")
    elif data_args.eval_split is not None:
        eval_rows = load_rows(
            data_args.dataset_name, data_args.dataset_path, split=data_args.eval_split, config=data_args.dataset_config
        )
    else:
        return rows, None
    return rows, _first(eval_rows, data_args.num_eval_rows)


def load_prompts(data_args: DataArguments, split_how: str = "newline") -> tuple[Dataset, Dataset | None]:
    """Reads prompt rows ([`to_prompt_rows`]), as chat messages if the arguments ask for them.

    Args:
        data_args ([`DataArguments`]):
            Where the rows are.
        split_how (`str`, *optional*, defaults to `"newline"`):
            How worked solutions are split into steps.

    Returns:
        `tuple[Dataset, Dataset | None]`: rows with `prompt`, `answer` where there is one, and what belongs to worked
        solutions; and held-out rows if the arguments name some.
    """

    def prepared(rows: Dataset) -> Dataset:
        rows = to_prompt_rows(rows, split_how=split_how)
        if not isinstance(rows[0]["prompt"], str):
            return rows
        if data_args.chat:
            system = [{"role": "system", "content": data_args.system_prompt}] if data_args.system_prompt else []
            prompts = [[*system, {"role": "user", "content": prompt}] for prompt in rows["prompt"]]
        else:
            suffix = data_args.prompt_suffix
            prompts = [prompt if prompt.endswith(suffix) else prompt + suffix for prompt in rows["prompt"]]
        return rows.add_column("_prompt", prompts).remove_columns("prompt").rename_column("_prompt", "prompt")

    rows, eval_rows = load_data(data_args)
    return prepared(rows), None if eval_rows is None else prepared(eval_rows)


def _first(rows: Dataset, num_rows: int | None) -> Dataset:
    return rows if num_rows is None else rows.select(range(min(num_rows, len(rows))))


def load_policy(
    model_args: ModelConfig,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    r"""Loads a causal language model and its tokenizer, in the precision and quantization that the arguments ask for.

    For a local directory nothing is downloaded (but a directory that holds an adapter names its base model, which is
    loaded from where it says). Any other `model_name_or_path` is looked up on the Hugging Face Hub.

    Args:
        model_args ([`ModelArguments`] or [`~trl.ModelConfig`]):
            `model_name_or_path` is needed. `use_peft` and what belongs to it are left to the trainer, but a stored
            adapter goes without: a new one would take its place.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run model code that the checkpoint brings along.
        device (`str` or `torch.device`, *optional*):
            Where the model goes. `None`: it stays on the CPU, or where quantization puts it. A quantized model is not
            moved.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`: model in evaluation mode, a [`~peft.PeftModel`] that can be
        trained on where the directory holds an adapter; tokenizer with a padding token (the end-of-sequence token
        where it had none, as in TRL).

    Raises:
        FileNotFoundError: if a local path does not exist, that of an adapter's base model included.
        ValueError: if no model is named, a directory holds no model or another kind of model, weights are missing, an
            adapter is one of another kind of model, or `use_peft` asks for a new adapter beside a stored one.
    """
    name = check_model_name(model_args)
    is_local, is_adapter = _check_model_path(name)
    if is_local:
        name = str(Path(name).expanduser())
    where: dict[str, Any] = {
        "revision": model_args.model_revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": is_local and not is_adapter,
    }
    tokenizer = load_tokenizer(name, **where)
    adapter, whole = find_adapter(name, revision=model_args.model_revision), name
    if adapter is not None:
        check_adapter_of_policy(name, adapter)
        whole = adapter.base_model_name_or_path
        if model_args.use_peft:
            raise new_adapter_error(name, "use_peft", lines_to_merge_policy(name, whole))
        check_path_or_id(whole, "base_model_name_or_path")
        where |= {"revision": adapter.revision, "local_files_only": Path(whole).is_dir()}
    quantization_config = get_quantization_config(model_args)
    options = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation, **where}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    model, info = AutoModelForCausalLM.from_pretrained(whole, output_loading_info=True, **options)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"{whole!r} must hold all weights of a {type(model).__name__}, got none for {_listed(missing, 5)}: "
            "they would be random. Check that it is a causal language model and was saved whole."
        )
    if adapter is not None:
        model = load_adapter_to_train(model, name, revision=model_args.model_revision)
    if device is not None and quantization_config is None:
        model.to(device)
    return model.eval(), tokenizer


def check_model_name(model_args: ModelConfig) -> str:
    """`model_name_or_path`, if it names something that exists or may be a model on the Hub; else raises."""
    name = model_args.model_name_or_path
    if not name:
        raise ValueError(
            f"`model_name_or_path` must name a model, got {name!r}. Pass a local directory or a model on the Hub."
        )
    check_path_or_id(name, "model_name_or_path")
    return name


def check_path_or_id(name: str, argument: str = "path") -> None:
    """Raises `FileNotFoundError` for a local path that does not exist, before it is looked for on the Hub.

    Example:

    ```python
    >>> check_path_or_id("org/model", "prm_path")  # may be on the Hub
    >>> check_path_or_id("./outputs/no-prm", "prm_path")
    Traceback (most recent call last):
        ...
    FileNotFoundError: `prm_path` must be an existing directory or a model on the Hub, got './outputs/no-prm', which...

    ```
    """
    path = Path(name).expanduser()
    if path.exists():
        return
    # "org/model" is a name on the Hub; "outputs/policy" beside an existing folder outputs/ is a path
    is_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if is_path or (path.parts and Path(path.parts[0]).is_dir()):
        raise FileNotFoundError(
            f"`{argument}` must be an existing directory or a model on the Hub, got {name!r}, which does not exist. "
            f"Check the path, which is relative to {Path.cwd()}."
        )


def load_tokenizer(path: str | os.PathLike[str], **kwargs: Any) -> "PreTrainedTokenizerBase":
    r"""Loads a tokenizer as it was saved, with a padding token.

    Departure from `AutoTokenizer`: for some model types, Qwen2 among them, transformers 5 replaces a tokenizer that
    was saved as a general one (class `TokenizersBackend`, formerly `PreTrainedTokenizerFast`) by the class of the
    model type, and with it the rules by which text is cut: the same text then gives other tokens. Here a local
    directory's own `tokenizer.json` holds.

    Args:
        path (`str` or `os.PathLike`):
            Local directory, or a model on the Hub.
        **kwargs:
            Further arguments of `from_pretrained`.

    Returns:
        `PreTrainedTokenizerBase`: with the end-of-sequence token for padding where it had no padding token, as in TRL.

    Raises:
        ValueError: if it has neither.
    """
    config_path = Path(path) / "tokenizer_config.json"
    saved = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    auto_class = PreTrainedTokenizerFast if saved.get("tokenizer_class") == "TokenizersBackend" else AutoTokenizer
    tokenizer = auto_class.from_pretrained(path, **kwargs)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer of {str(path)!r} must have a padding or an end-of-sequence token, and has neither. "
                "Set `tokenizer.pad_token` and save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
# Heads with which a checkpoint is no policy, though its body would load into one and get a random head.
_OTHER_HEADS = ("ForTokenClassification", "ForSequenceClassification", "ForMaskedLM", "ForQuestionAnswering")


def _check_model_path(name: str) -> tuple[bool, bool]:
    """Raises unless `name` is a directory with a causal language model or may be a model on the Hub.

    Returns whether it is local, and whether it is an adapter.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return False, False
    expected = "config.json, weights (*.safetensors) and a tokenizer, as `save_pretrained` writes them"
    if not path.is_dir():
        raise ValueError(
            f"`model_name_or_path` must be a directory with {expected}, got the file {name!r}. Pass the "
            "directory that holds it."
        )
    contents = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    is_adapter = (path / "adapter_config.json").exists()
    missing = []
    if not is_adapter and not (path / "config.json").exists():
        missing.append("config.json")
    if not any(True for pattern in _WEIGHTS for _ in path.glob(pattern)):
        missing.append("weights")
    if not any((path / file).exists() for file in _TOKENIZER_FILES):
        missing.append("a tokenizer")
    if missing:
        nested = [entry for entry in sorted(path.iterdir()) if (entry / "config.json").exists()]
        advice = f"Did you mean {str(nested[-1])!r}?" if nested else "Pass a directory written by `save_pretrained`."
        raise ValueError(
            f"`model_name_or_path` must be a directory with {expected}, got {name!r}, which lacks "
            f"{' and '.join(missing)}; it holds {_listed(contents, 10) or 'nothing'}. {advice}"
        )
    if not is_adapter:
        try:
            architectures = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or []
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{name!r} must hold a config.json with a model configuration, got a file that is none ({error}). "
                "Save the model again."
            ) from error
        if architectures and all(architecture.endswith(_OTHER_HEADS) for architecture in architectures):
            raise ValueError(
                f"`model_name_or_path` must be a causal language model, got {name!r}, which holds a "
                f"{architectures[0]}. If it is a reward model, name it as such, and here the policy."
            )
    return True, is_adapter


def _listed(names: Sequence[str], most: int) -> str:
    listed = ", ".join(names[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")
