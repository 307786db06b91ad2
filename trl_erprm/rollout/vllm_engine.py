"""Rollouts from vLLM in this process.

Each sample is a request of its own with a seed of its own, the hash of seed, prefix and sample number: vLLM gives such
a request its own stream of random numbers, so a sample does not depend on what else is in the batch. Prefix caching is
on, so that the samples of a prefix, and the prefixes of a solution, which begin alike, are read once.

Under `accelerate launch`, every process would start its own vLLM: rather start one server for each GPU and use the
endpoint engine, or one process with `tensor_parallel_size`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .engine import Completion, Prefix, SamplingOptions, check_request, sample_keys
from .rendering import check_window, cut_at_stop, encode, render, request_seed

if TYPE_CHECKING:
    import vllm
    from transformers import PreTrainedTokenizerBase

__all__ = ["VLLMEngine"]


class VLLMEngine:
    """A [`~rollout.engine.RolloutEngine`] on `vllm.LLM`.

    Prompts are handed over as token ids, and the checkpoint's sampling defaults are not applied.

    Args:
        model (`str` or `vllm.LLM`):
            Local directory, or a model on the Hub; or a `vllm.LLM` that is loaded already.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Turns prefixes into tokens. Defaults to vLLM's own for the model.
        progress (`Callable[[int], object]`, *optional*):
            Called after each call with the number of completions that it gave, for example `tqdm.update`.
        **kwargs:
            Arguments of `vllm.LLM`, for example `dtype`, `tensor_parallel_size`, `gpu_memory_utilization` and
            `max_model_len`. Default: those of vLLM, with `enable_prefix_caching=True`.

    Raises:
        ImportError: if vLLM is not installed.
        TypeError: if arguments of `vllm.LLM` are given with one that is loaded.
    """

    def __init__(
        self,
        model: "str | vllm.LLM",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        progress: Callable[[int], object] | None = None,
        **kwargs: Any,
    ):
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                f"The vllm engine needs vLLM, which cannot be imported ({error}). Run `pip install "
                "'trl-erprm[vllm]'`, or use the endpoint engine with a vLLM server in another environment."
            ) from error
        if isinstance(model, str):
            self.llm = LLM(model=model, **{"enable_prefix_caching": True, **kwargs})
        elif kwargs:
            raise TypeError(
                f"`model` must be a name where further arguments are given ({', '.join(sorted(kwargs))}), got a "
                f"{type(model).__name__}. Pass them to vllm.LLM."
            )
        else:
            self.llm = model
        self.tokenizer = self.llm.get_tokenizer() if tokenizer is None else tokenizer
        self.progress = progress
        self._window = self.llm.llm_engine.model_config.max_model_len

    def generate(
        self,
        prefixes: Sequence[Prefix],
        num_samples: int,
        options: SamplingOptions,
        first_sample: int = 0,
    ) -> list[list[Completion]]:
        """Samples completions: see [`~rollout.engine.RolloutEngine.generate`].

        Greedy decoding (`temperature=0`) runs once a prefix; its samples are equal.

        Raises:
            ValueError: if a prefix is empty, if messages are given and the tokenizer has no chat template, or if
                `num_samples` or `first_sample` is out of range.
            PrefixTooLongError: if prefixes and `max_new_tokens` together exceed `max_model_len`.
            RuntimeError: if vLLM gives a request up.
        """
        from vllm import SamplingParams

        check_request(prefixes, num_samples, first_sample)
        if not prefixes:
            return []
        is_greedy = options.temperature == 0
        samples_to_run = 1 if is_greedy else num_samples
        texts = [render(index, prefix, self.tokenizer) for index, prefix in enumerate(prefixes)]
        prompts, params = [], []
        encoded = encode(prefixes, texts, self.tokenizer)
        check_window(list(map(len, encoded)), self._window, options.max_new_tokens)
        for index, ids in enumerate(encoded):
            for key in sample_keys(prefixes[index], options.seed, samples_to_run, first_sample):
                prompts.append({"prompt_token_ids": ids})
                params.append(
                    SamplingParams(
                        max_tokens=options.max_new_tokens,
                        temperature=float(options.temperature),
                        top_p=float(options.top_p),
                        top_k=options.top_k or -1,
                        stop=list(options.stop),
                        seed=None if is_greedy else request_seed(key),
                    )
                )
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        completions = [_completion(output.outputs[0], options) for output in outputs]
        if self.progress is not None:
            self.progress(len(prefixes) * num_samples)
        grouped = [completions[i : i + samples_to_run] for i in range(0, len(completions), samples_to_run)]
        return [group * num_samples for group in grouped] if is_greedy else grouped

    def describe(self) -> dict[str, Any]:
        """Model, revision, dtype and context window, for the manifest of a run."""
        config = self.llm.llm_engine.model_config
        return {
            "model": config.model,
            "revision": config.revision,
            "dtype": str(config.dtype).removeprefix("torch."),
            "context_window": self._window,
        }


def _completion(output: "vllm.CompletionOutput", options: SamplingOptions) -> Completion:
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(
            f"vLLM must finish every request, got one that ended with {output.finish_reason!r}. See its log."
        )
    # vLLM cuts at one stop text; where a token completes two, it need not be the first of them.
    text, stop_text = cut_at_stop(output.text, options.stop)
    if stop_text is not None:
        return Completion(text, len(output.token_ids), "stop", stop_text)
    stop_text = output.stop_reason if isinstance(output.stop_reason, str) else None  # else a token, or none
    return Completion(text, len(output.token_ids), output.finish_reason, stop_text)
