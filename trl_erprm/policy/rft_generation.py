"""Where the completions of [`RFTTrainer`] come from: the policy in this process, or vLLM with the policy's weights.

Both take prompts and give completions, a list a prompt. In process, completion i of a prompt depends on the weights,
the options, the prompt and i alone, so that the number of processes and interruptions change nothing. vLLM draws from
streams of its own: what was sampled stays as it is, but another number of processes would sample something else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..rollout.engine import Completion, Prefix, SamplingOptions
from ..rollout.rendering import encode, render

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from .rft_config import RFTConfig


class VLLMPolicyEngine:
    """
    Completions from vLLM, colocated or on a server, through TRL's [`~trl.generation.vllm_generation.VLLMGeneration`].

    All processes call [`generate`] together, each with as many prompts as the others (TRL gathers them).

    Args:
        model (`nn.Module`):
            The policy, whose weights vLLM is given.
        accelerator ([`~accelerate.Accelerator`]):
            Of the trainer.
        tokenizer (`PreTrainedTokenizerBase`):
            Of the policy.
        args ([`RFTConfig`]):
            Where vLLM runs, and how much it may take.
    """

    def __init__(
        self, model: nn.Module, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, args: RFTConfig
    ):
        from trl.generation.vllm_generation import VLLMGeneration

        self.tokenizer = tokenizer
        self._weights_of: Any = None
        self._generation = VLLMGeneration(
            model=model,
            accelerator=accelerator,
            processing_class=tokenizer,
            mode=args.vllm_mode,
            server_base_url=args.vllm_server_base_url,
            server_host=args.vllm_server_host,
            server_port=args.vllm_server_port,
            group_port=args.vllm_group_port,
            server_timeout=args.vllm_server_timeout,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.vllm_max_model_length,
            max_num_seqs=args.generation_batch_size,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            model_impl=args.vllm_model_impl,
            trust_remote_code=args.trust_remote_code,
            max_completion_length=args.max_completion_length,
            logprobs=None,  # not looked at
        )

    def use_weights(self, name: Any) -> None:
        """Hands the policy's weights to vLLM, unless it has those of this name."""
        if self._weights_of != name:
            self._generation.sync_weights()
            self._weights_of = name

    def generate(
        self, prompts: Sequence[str | list[dict]], num_samples: int, options: SamplingOptions
    ) -> list[list[Completion]]:
        """`num_samples` completions of each prompt. `options.seed` has no meaning here."""
        generation = self._generation
        generation.temperature, generation.top_p = options.temperature, options.top_p
        generation.top_k, generation.max_completion_length = options.top_k, options.max_new_tokens
        prefixes = [Prefix(prompt) for prompt in prompts]
        texts = [render(index, prefix, self.tokenizer) for index, prefix in enumerate(prefixes)]
        ids = encode(prefixes, texts, self.tokenizer)
        _, completion_ids, _, _ = generation.generate(
            prompts=[of_prompt for of_prompt in ids for _ in range(num_samples)],
            images=None,
            num_generations=num_samples,
        )
        completions = [self._completion(list(of_completion)) for of_completion in completion_ids]
        return [completions[i : i + num_samples] for i in range(0, len(completions), num_samples)]

    def _completion(self, ids: list[int]) -> Completion:
        """vLLM ends a completion with an end token or at the limit."""
        is_cut = len(ids) >= self._generation.max_completion_length and ids[-1] != self.tokenizer.eos_token_id
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(text, len(ids), "length" if is_cut else "stop")


def plan_chunks(
    todo: Sequence[int], chunk_size: int, process_index: int, num_processes: int, needs_equal_batches: bool
) -> list[tuple[list[int], int]]:
    """
    What a process samples: chunks of prompts, dealt out in turn.

    Args:
        todo (`Sequence[int]`):
            Prompts that have no completions yet; the same in every process.
        chunk_size (`int`):
            Most prompts at once; fewer where that gives each process some.
        process_index (`int`), num_processes (`int`):
            Which process of how many.
        needs_equal_batches (`bool`):
            Whether all processes sample together: each then gets as many chunks as the others, all of one size.

    Returns:
        `list[tuple[list[int], int]]`: prompts, and how many of them are this process's; the rest only fill up.

    Example:

    ```python
    >>> plan_chunks([3, 4, 5, 6, 7], 2, process_index=1, num_processes=2, needs_equal_batches=False)
    [([5, 6], 2)]
    >>> plan_chunks([3, 4, 5, 6, 7], 2, process_index=1, num_processes=2, needs_equal_batches=True)
    [([5, 6], 2), ([3, 3], 0)]

    ```
    """
    chunk_size = max(1, min(chunk_size, math.ceil(len(todo) / num_processes)))
    chunks = [list(todo[i : i + chunk_size]) for i in range(0, len(todo), chunk_size)]
    if not needs_equal_batches:
        return [(chunk, len(chunk)) for chunk in chunks[process_index::num_processes]]
    chunks += [[] for _ in range(-len(chunks) % num_processes)]
    return [
        (chunk + [todo[0]] * (chunk_size - len(chunk)), len(chunk)) for chunk in chunks[process_index::num_processes]
    ]


def sample_record(index: int, completions: list[Completion]) -> dict:
    """What is stored of the completions of a prompt."""
    return {
        "index": index,
        "completions": [completion.text for completion in completions],
        "num_tokens": [completion.num_tokens for completion in completions],
        "truncated": [completion.finish_reason == "length" for completion in completions],
    }
