"""Configuration of [`RFTTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from ..rollout.engine import SamplingOptions
from ..verify import check_answer_convention


@dataclass
class RFTConfig(SFTConfig):
    r"""
    Configuration class for the [`RFTTrainer`].

    It has every field of [`~trl.SFTConfig`] and of [`~transformers.TrainingArguments`], which govern the fine-tuning
    of each iteration; only what is new or has another default is listed.

    Parameters:
        > Parameters that control the iterations

        num_iterations (`int`, *optional*, defaults to `3`):
            Rounds of sampling, selecting and fine-tuning. The paper's RAFT does 3.
        num_samples (`int`, *optional*, defaults to `16`):
            Completions sampled for each prompt in each iteration (the paper's 16).
        prompts_per_iteration (`int`, *optional*):
            How many prompts an iteration uses: the next ones in a seeded shuffle, beginning again when all were used.
            `None`: all of them, each time.

        > Parameters that control the sampling

        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature (the paper's).
        top_p (`float`, *optional*, defaults to `1.0`), top_k (`int`, *optional*, defaults to `0`):
            Nucleus and top-k sampling; the defaults turn both off.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Most tokens of a completion. A completion cut off there is never selected.
        generation_batch_size (`int`, *optional*, defaults to `64`):
            Sequences generated at once. Changes speed and memory, not the samples.

        > Parameters that control the evaluation

        num_eval_samples (`int`, *optional*, defaults to `8`):
            Completions sampled for each held-out prompt: for sampled accuracy, best-of-N, majority and oracle.
        answer_how (`str`, *optional*, defaults to `"auto"`):
            How answers are read and compared ([`verify_answer`]).

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `num_train_epochs`: Defaults to `2` instead of `3`: the paper fine-tunes for 2 epochs an iteration.
    > - `bf16`: Defaults to `True` only where a device supports it, so that a CPU needs no further argument.
    > - `save_strategy`: Defaults to `"no"`: the policy is saved at the end of each iteration.
    """

    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over the selected completions."})
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints within an iteration's fine-tuning."})

    num_iterations: int = field(default=3, metadata={"help": "Rounds of sampling, selecting and fine-tuning."})
    num_samples: int = field(default=16, metadata={"help": "Completions sampled for each prompt."})
    prompts_per_iteration: int | None = field(
        default=None, metadata={"help": "Prompts used in each iteration; all of them where it is not given."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 turns it off."})
    top_k: int = field(default=0, metadata={"help": "Top-k sampling; 0 turns it off."})
    max_completion_length: int = field(default=512, metadata={"help": "Most tokens of a sampled completion."})
    generation_batch_size: int = field(default=64, metadata={"help": "Sequences generated at once."})
    num_eval_samples: int = field(default=8, metadata={"help": "Completions sampled for each held-out prompt."})
    answer_how: str = field(default="auto", metadata={"help": "How answers are read: see `verify_answer`."})

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = is_torch_bf16_gpu_available()
        super().__post_init__()
        for name, least in (
            ("num_iterations", 1),
            ("num_samples", 1),
            ("max_completion_length", 1),
            ("generation_batch_size", 1),
            ("num_eval_samples", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if self.prompts_per_iteration is not None and self.prompts_per_iteration < 1:
            raise ValueError(
                f"`prompts_per_iteration` must be at least 1, or None for all prompts, got "
                f"{self.prompts_per_iteration}."
            )
        check_answer_convention(self.answer_how)
        SamplingOptions(self.max_completion_length, self.temperature, self.top_p, self.top_k)  # checks the ranges
        if self.temperature <= 0:
            raise ValueError(
                f"`temperature` must be above 0 (greedy completions would all be equal), got {self.temperature}."
            )
