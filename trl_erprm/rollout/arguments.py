"""Which engine a recipe samples with, on the command line, and the loading of what it names.

parser = StrictParser((ScriptArguments, EngineArguments, ModelArguments, DataArguments))
script_args, engine_args, model_args, data_args = parser.parse_args_and_config()
engine, policy_name = load_policy_engine(engine_args, model_args, device)
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from trl import ModelConfig

from trl_erprm.arguments import check_model_name, load_policy, load_tokenizer
from trl_erprm.manifest import weight_files_fingerprint, weights_fingerprint

from .engine import RolloutEngine, load_engine

__all__ = ["EngineArguments", "load_policy_engine", "name_of_weights"]


@dataclass
class EngineArguments:
    """Where the policy runs ([`load_engine`]).

    Parameters:
        engine (`str`, *optional*, defaults to `"transformers"`):
            `"transformers"` (in this process), `"vllm"` (in this process, by vLLM) or `"endpoint"` (on servers).
        generation_batch_size (`int`, *optional*, defaults to `256`):
            Sequences generated at once by the engine `transformers`. No effect on results. Default: our own choice.
        endpoint_url (`list[str]`, *optional*):
            Addresses of completion servers; goes with `engine="endpoint"`.
        endpoint_model (`str`, *optional*):
            Name under which they serve the policy; goes with `engine="endpoint"`.
        engine_kwargs (`dict`, *optional*):
            Further arguments of the engine's class.

    Raises:
        ValueError: if an argument of servers is given without them, or lacks with them, or the batch is empty.
    """

    _argument_group_name = "engine"  # heading in --help

    engine: Literal["transformers", "vllm", "endpoint"] = field(
        default="transformers", metadata={"help": "Where the policy runs that is sampled from."}
    )
    generation_batch_size: int = field(
        default=256,
        metadata={"help": "Sequences generated at once (engine transformers). No effect on results."},
    )
    endpoint_url: list[str] | None = field(
        default=None, metadata={"help": "Addresses of completion servers, such as http://node1:8000/v1."}
    )
    endpoint_model: str | None = field(default=None, metadata={"help": "Name under which they serve the policy."})
    engine_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": """Further arguments of the engine, as JSON: '{"max_concurrency": 256}'."""}
    )

    def __post_init__(self) -> None:
        if self.generation_batch_size < 1:
            raise ValueError(
                f"`generation_batch_size` must be at least 1, got {self.generation_batch_size}. Leave it out for the "
                "default."
            )
        is_endpoint = self.engine == "endpoint"
        for name in ("endpoint_url", "endpoint_model"):
            if bool(getattr(self, name)) is not is_endpoint:
                raise ValueError(
                    f"`{name}` goes with `engine: endpoint`, got {getattr(self, name)!r} with {self.engine!r}. "
                    + ("Name the servers and the model that they serve." if is_endpoint else "Set `engine: endpoint`.")
                )


def load_policy_engine(
    engine_args: EngineArguments, model_args: ModelConfig, device: str | torch.device
) -> tuple[RolloutEngine, str]:
    """Loads the policy, or its tokenizer alone where it runs elsewhere, and the engine that samples from it.

    Args:
        engine_args ([`EngineArguments`]):
            Which engine.
        model_args ([`ModelArguments`]):
            Which policy. With `engine="endpoint"` the model may be left out: prompts are then sent as text.
        device (`str` or `torch.device`):
            Where the model goes with `engine="transformers"`.

    Returns:
        `tuple[RolloutEngine, str]`: the engine, and the name of its policy, by which a run knows it again.

    Raises:
        FileNotFoundError, ValueError: as [`load_policy`].
    """
    name, further = model_args.model_name_or_path, engine_args.engine_kwargs or {}
    if engine_args.engine != "transformers":
        tokenizer = None
        if name or engine_args.engine == "vllm":  # to an endpoint without a tokenizer go prompts as text
            tokenizer = load_tokenizer(check_model_name(model_args), revision=model_args.model_revision)
        if engine_args.engine == "vllm":
            further = {"dtype": model_args.dtype or "auto", "revision": model_args.model_revision, **further}
            policy_name = f"vllm {name_of_weights(name, model_args.model_revision)}"
            return load_engine("vllm", model=name, tokenizer=tokenizer, **further), policy_name
        served = {"base_url": engine_args.endpoint_url, "model": engine_args.endpoint_model}
        policy_name = f"endpoint {name_of_weights(engine_args.endpoint_model)}"
        return load_engine("endpoint", **served, tokenizer=tokenizer, **further), policy_name
    model, tokenizer = load_policy(model_args, device=device)
    further = {"batch_size": engine_args.generation_batch_size, **further}
    policy_name = f"{name} ({weights_fingerprint(model)})"  # whatever the revision: these weights
    return load_engine("transformers", model=model, tokenizer=tokenizer, **further), policy_name


def name_of_weights(name: str, revision: str = "main") -> str:
    """Name of weights that are not loaded here, with a fingerprint of their files if these are on this machine."""
    if fingerprint := weight_files_fingerprint(name):
        return f"{name} ({fingerprint})"
    return name if revision == "main" else f"{name}@{revision}"
