"""Configuration of [`RFTTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from ..choices import check_choice
from ..rollout.engine import SamplingOptions
from ..verify import check_answer_convention
from .selection import DUPLICATE_KEYS, RULES, SelectionRule

PROMPT_ORDERS = ("slices", "resampled")
VLLM_MODES = ("colocate", "server")


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
            How many prompts an iteration uses. `None`: all of them, each time, as in RFT (arXiv 2308.01825).
        prompt_order (`str`, *optional*, defaults to `"slices"`):
            Which prompts those are. `"slices"`: the next ones in a seeded shuffle, beginning again when all were used
            (RAFT, arXiv 2304.06767, takes a new batch of prompts each time). `"resampled"`: a new draw each time.
        restart_from_base (`bool`, *optional*, defaults to `False`):
            Fine-tune the policy of the start in each iteration, on what the policy of the last iteration wrote, as
            STaR (arXiv 2203.14465, section 3.1) and ReST-EM (arXiv 2312.06585) do. The default goes on from the last
            iteration, as RAFT and the paper.
        accumulate_data (`bool`, *optional*, defaults to `False`):
            Fine-tune on what this and all earlier iterations selected, equal solutions of a prompt once. The default
            is what this iteration selected alone, as RAFT.
        carry_optimizer (`bool`, *optional*, defaults to `False`):
            Go on with the optimizer's state of the last iteration, and stretch the learning-rate schedule over all
            iterations. The paper does not say; by default both start afresh, as separate runs of a trainer would.

        > Parameters that control the selection (see `policy/selection.py` for the rules and their sources)

        selection (`str`, *optional*, defaults to `"best"`):
            `"best"` by score (the paper's), `"threshold"`, `"correct"`, `"best_correct"`, `"top_k"` or `"softmax"`.
        selection_threshold (`float`, *optional*):
            Lowest score that is kept: needed for `"threshold"`, a further condition for every other rule.
        selection_k (`int`, *optional*, defaults to `1`):
            Completions of a prompt that `"top_k"` and `"softmax"` keep.
        selection_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of `"softmax"`.
        deduplicate (`str`, *optional*):
            Which completions of a prompt are the same: those of equal `"text"` (but for white space), or of equal
            `"equations"` in equal order (RFT, arXiv 2308.01825, section 3.3). Only the best scored of them competes.
        max_per_prompt (`int`, *optional*):
            Most completions kept of a prompt. `None`: no cap.
        skip_always_solved (`bool`, *optional*, defaults to `False`), skip_never_solved (`bool`, *optional*, defaults \
to `False`):
            Leave out prompts of which every completion, or none, is right.
        reward_weights (`list[float]`, *optional*):
            A weight for each of several reward functions, as in [`~trl.GRPOConfig`]. `None`: all weigh 1.

        > Parameters that control the sampling

        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature (the paper's).
        top_p (`float`, *optional*, defaults to `1.0`), top_k (`int`, *optional*, defaults to `0`):
            Nucleus and top-k sampling; the defaults turn both off.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Most tokens of a completion. A completion cut off there is never selected.
        generation_batch_size (`int`, *optional*, defaults to `64`):
            Sequences generated at once in process. Changes speed and memory, not the samples.
        use_vllm (`bool`, *optional*, defaults to `False`):
            Sample with vLLM through TRL's own generation class, which is given the new weights once an iteration. Its
            samples depend on the number of processes and on where a run was interrupted.
        vllm_mode, vllm_server_base_url, vllm_server_host, vllm_server_port, vllm_server_timeout, vllm_group_port, \
vllm_tensor_parallel_size, vllm_gpu_memory_utilization, vllm_max_model_length, vllm_enable_sleep_mode, vllm_model_impl:
            As in [`~trl.GRPOConfig`], with its defaults.

        > Parameters that control the evaluation

        num_eval_samples (`int`, *optional*, defaults to `8`):
            Completions sampled for each held-out prompt: for sampled accuracy, best-of-N, majority and oracle.
        answer_how (`str`, *optional*, defaults to `"auto"`):
            How answers are read and compared ([`verify_answer`]).
        measure_drift (`bool`, *optional*, defaults to `True`):
            Measure how far the policy has come from the one at the start, on one sample of each held-out prompt. It
            needs the policy of the start on disk, and reads it once an iteration.
        early_stopping_patience (`int`, *optional*):
            Stop after this many iterations in a row without a new best sampled accuracy on the held-out prompts; the
            trainer then holds the best policy. `None`: do all iterations, as the paper.

        > Parameters that bound the disk

        keep_models (`int`, *optional*):
            Policies that are kept: those of this many last iterations, and what is still needed (the start, the best
            one). `None`: all.
        keep_samples (`bool`, *optional*, defaults to `True`):
            Whether the completions that were not selected stay on disk when an iteration is complete.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `num_train_epochs`: Defaults to `2` instead of `3`: the paper fine-tunes for 2 epochs an iteration.
    > - `bf16`: Defaults to `True` only where a device supports it, so that a CPU needs no further argument.
    > - `save_strategy`: Defaults to `"no"`: the policy is saved at the end of each iteration. With `"steps"`, an
    >   interrupted fine-tuning goes on at its last checkpoint; checkpoints are removed when it is complete.
    """

    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over the selected completions."})
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints within an iteration's fine-tuning."})

    num_iterations: int = field(default=3, metadata={"help": "Rounds of sampling, selecting and fine-tuning."})
    num_samples: int = field(default=16, metadata={"help": "Completions sampled for each prompt."})
    prompts_per_iteration: int | None = field(
        default=None, metadata={"help": "Prompts used in each iteration; all of them where it is not given."}
    )
    prompt_order: str = field(
        default="slices", metadata={"help": "'slices' of a shuffle, or 'resampled' in each iteration."}
    )
    restart_from_base: bool = field(
        default=False, metadata={"help": "Fine-tune the policy of the start in each iteration (STaR)."}
    )
    accumulate_data: bool = field(
        default=False, metadata={"help": "Fine-tune on what all iterations so far have selected."}
    )
    carry_optimizer: bool = field(
        default=False, metadata={"help": "Go on with the optimizer and the schedule of the last iteration."}
    )

    selection: str = field(
        default="best", metadata={"help": "Which completions are kept: see `policy/selection.py`.", "choices": RULES}
    )
    selection_threshold: float | None = field(default=None, metadata={"help": "Lowest score that is kept."})
    selection_k: int = field(default=1, metadata={"help": "Completions kept by 'top_k' and 'softmax'."})
    selection_temperature: float = field(default=1.0, metadata={"help": "Temperature of 'softmax'."})
    deduplicate: str | None = field(
        default=None,
        metadata={"help": "What makes completions equal: 'text' or 'equations'.", "choices": [*DUPLICATE_KEYS]},
    )
    max_per_prompt: int | None = field(default=None, metadata={"help": "Most completions kept of a prompt."})
    skip_always_solved: bool = field(default=False, metadata={"help": "Leave out prompts that are always solved."})
    skip_never_solved: bool = field(default=False, metadata={"help": "Leave out prompts that are never solved."})
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each of several reward functions."}
    )

    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 turns it off."})
    top_k: int = field(default=0, metadata={"help": "Top-k sampling; 0 turns it off."})
    max_completion_length: int = field(default=512, metadata={"help": "Most tokens of a sampled completion."})
    generation_batch_size: int = field(default=64, metadata={"help": "Sequences generated at once."})
    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM, through TRL's generation class."})
    vllm_mode: str = field(
        default="colocate",
        metadata={"help": "vLLM in the training processes, or on a server.", "choices": VLLM_MODES},
    )
    vllm_server_base_url: str | None = field(default=None, metadata={"help": "Address of the vLLM server."})
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "Host of the vLLM server."})
    vllm_server_port: int = field(default=8000, metadata={"help": "Port of the vLLM server."})
    vllm_server_timeout: float = field(default=240.0, metadata={"help": "Seconds to wait for the vLLM server."})
    vllm_group_port: int = field(default=51216, metadata={"help": "Port over which the server gets the weights."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs of one colocated vLLM."})
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of the GPU's memory for a colocated vLLM."}
    )
    vllm_max_model_length: int | None = field(default=None, metadata={"help": "Context of a colocated vLLM."})
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "Free a colocated vLLM's memory while the policy is trained."}
    )
    vllm_model_impl: str = field(default="vllm", metadata={"help": "Implementation of the model in vLLM."})

    num_eval_samples: int = field(default=8, metadata={"help": "Completions sampled for each held-out prompt."})
    answer_how: str = field(default="auto", metadata={"help": "How answers are read: see `verify_answer`."})
    measure_drift: bool = field(default=True, metadata={"help": "Measure the distance from the policy at the start."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Iterations without a new best held-out accuracy after which a run stops."}
    )

    keep_models: int | None = field(default=None, metadata={"help": "Policies kept on disk, the last ones."})
    keep_samples: bool = field(default=True, metadata={"help": "Whether completions not selected stay on disk."})

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = is_torch_bf16_gpu_available()
        super().__post_init__()
        for name in (
            "num_iterations",
            "num_samples",
            "max_completion_length",
            "generation_batch_size",
            "num_eval_samples",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name, meaning in (
            ("prompts_per_iteration", "all prompts"),
            ("early_stopping_patience", "all iterations"),
            ("keep_models", "all of them"),
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, or None for {meaning}, got {getattr(self, name)}.")
        check_choice("prompt_order", self.prompt_order, PROMPT_ORDERS)
        check_choice("vllm_mode", self.vllm_mode, VLLM_MODES)
        check_answer_convention(self.answer_how, "answer_how")
        SamplingOptions(self.max_completion_length, self.temperature, self.top_p, self.top_k)  # checks the ranges
        if self.temperature <= 0:
            raise ValueError(
                f"`temperature` must be above 0 (greedy completions would all be equal), got {self.temperature}."
            )
        if self.carry_optimizer and self.restart_from_base:
            raise ValueError(
                "`carry_optimizer` and `restart_from_base` exclude each other: the optimizer's state belongs to other "
                "weights than those of the start. Set one of them."
            )
        self.selection_rule  # noqa: B018 (checks its options)

    @property
    def selection_rule(self) -> SelectionRule:
        """The rule that the options describe."""
        return SelectionRule(
            how=self.selection,
            threshold=self.selection_threshold,
            k=self.selection_k,
            temperature=self.selection_temperature,
            deduplicate=self.deduplicate,
            max_per_prompt=self.max_per_prompt,
            skip_always_solved=self.skip_always_solved,
            skip_never_solved=self.skip_never_solved,
        )
