"""What every rollout engine takes and gives: prefixes and sampling options in, completions out.

A *prefix* is a prompt and what is written of its answer so far; it may end in the middle of the answer. A *completion*
is the text that the policy writes after it. Engines differ only in where the model runs, so that labels, evaluation
and fine-tuning are written once:

    engine = load_engine("transformers", model=model, tokenizer=tokenizer)
    prefix = Prefix(prompt="4*3+2", completion="4*3=2\\n")
    samples = engine.generate([prefix], num_samples=16, options=SamplingOptions(max_new_tokens=32))
    samples[0][5].text          completion 5 of prefix 0
"""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from trl_erprm.choices import check_choice
from trl_erprm.manifest import content_hash

__all__ = [
    "Completion",
    "Prefix",
    "PrefixTooLongError",
    "RolloutEngine",
    "SamplingOptions",
    "load_engine",
    "sample_keys",
]

Message = dict[str, Any]

# Name -> (module, class). Loaded when asked for, so that one engine's dependencies are not needed for another.
_ENGINES = {
    "transformers": ("trl_erprm.rollout.transformers_engine", "TransformersEngine"),
    "vllm": ("trl_erprm.rollout.vllm_engine", "VLLMEngine"),
    "endpoint": ("trl_erprm.rollout.endpoint_engine", "EndpointEngine"),
}


@dataclass(frozen=True)
class Prefix:
    """A prompt and the part of its answer that is written so far.

    Attributes:
        prompt (`str` or `list[dict]`):
            Text as it is, or chat messages (`role`, `content`) that the tokenizer's chat template renders.
        completion (`str`, *optional*, defaults to `""`):
            Beginning of the answer. It is put directly behind the prompt, or behind the template's opening of the
            assistant's turn; nothing is inserted, so it ends with a line end where the next step shall begin.

    Raises:
        TypeError: if `prompt` or `completion` has another type.
        ValueError: if `prompt` is a list without messages.
    """

    prompt: str | list[Message]
    completion: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str | list):
            raise TypeError(
                f"`prompt` must be a str or a list of messages, got {type(self.prompt).__name__}. Pass text, or "
                '[{"role": "user", "content": text}].'
            )
        if isinstance(self.prompt, list):
            if not self.prompt:
                raise ValueError("`prompt` must hold at least one message, got an empty list. Pass a user message.")
            for message in self.prompt:
                if not isinstance(message, dict) or "role" not in message or "content" not in message:
                    raise TypeError(
                        f"`prompt` must be a str or a list of messages with `role` and `content`, got the item "
                        f'{message!r}. Pass text, or [{{"role": "user", "content": text}}].'
                    )
        if not isinstance(self.completion, str):
            raise TypeError(
                f"`completion` must be a str, got {type(self.completion).__name__}. Join the steps, for example with "
                "`join_steps`."
            )


@dataclass(frozen=True)
class SamplingOptions:
    """How completions are sampled. These options alone decide: defaults that a checkpoint ships are not applied.

    Attributes:
        max_new_tokens (`int`):
            Most tokens of one completion, at least 1. No default: it depends on the task.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits; 0 is greedy decoding. Default: the paper samples rollouts at temperature 1, where a
            rollout is a draw from the reference policy itself.
        top_p (`float`, *optional*, defaults to `1.0`):
            Keep the smallest set of most probable tokens with at least this probability, in (0, 1]. Default: 1 (off),
            as the values are expectations under the reference policy.
        top_k (`int`, *optional*, defaults to `0`):
            Keep this many of the most probable tokens; 0 is off. Default: off, for the same reason.
        stop (`tuple[str, ...]`, *optional*, defaults to `()`):
            A completion ends before the first of these texts. They are looked for in the completion only, not in the
            prefix.
        seed (`int`, *optional*, defaults to `0`):
            Chooses the completions: see the contract of [`RolloutEngine`].

    Raises:
        ValueError: if a value lies outside its range.
        TypeError: if `stop` is one string, which would be read letter by letter.

    Example:

    ```python
    >>> SamplingOptions(max_new_tokens=64, top_p=1.5)
    Traceback (most recent call last):
        ...
    ValueError: `top_p` must lie in (0, 1], got 1.5. Pass 1.0 to turn it off.

    ```
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _check_whole("max_new_tokens", self.max_new_tokens, 1, "Pass the length of the longest answer you expect.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"`temperature` must be a finite number from 0 up, got {self.temperature}. Pass 0 for greedy "
                "decoding, 1 to sample from the model as it is."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must lie in (0, 1], got {self.top_p}. Pass 1.0 to turn it off.")
        _check_whole("top_k", self.top_k, 0, "Pass 0 to turn it off.")
        _check_whole("seed", self.seed, 0, "Pass a whole number from 0 up.")
        if isinstance(self.stop, str):
            raise TypeError(f"`stop` must be a tuple of texts, got the str {self.stop!r}. Pass ({self.stop!r},).")
        object.__setattr__(self, "stop", tuple(self.stop))  # a list, as a YAML file gives it, is fine
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"`stop` must hold non-empty texts, got {text!r}. Leave it out.")


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote after a prefix.

    Attributes:
        text (`str`):
            The text without special tokens and without the stop text. White space at its beginning is kept:
            `prefix.completion + completion.text` is the answer as the policy wrote it.
        num_tokens (`int`):
            Tokens that were sampled for it, the end-of-sequence token and the tokens of the stop text included: what
            it cost.
        finish_reason (`"stop"` or `"length"`):
            `"length"` if `max_new_tokens` were sampled and neither an end-of-sequence token nor a stop text was among
            them: the answer is cut off. Else `"stop"`.
        stop_text (`str`, *optional*):
            The stop text before which it was cut; `None` where the policy ended it, or the limit. (A server that does
            not say what it stopped at leaves it `None`.) Two completions that differ in it only are equal.
    """

    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    stop_text: str | None = field(default=None, compare=False)


class PrefixTooLongError(ValueError):
    """Prefixes leave no room for `max_new_tokens` in the context window of the model.

    Args:
        message (`str`):
            What does not fit, and what to do.
        indices (`Sequence[int]`):
            The prefixes of the request of which this is known, rising, at least one. An engine that can measure
            prefixes names all of them, one that is told by a server the first.
    """

    def __init__(self, message: str, indices: Sequence[int]):
        super().__init__(message)
        self.indices = list(indices)


@runtime_checkable
class RolloutEngine(Protocol):
    """Samples completions of prefixes.

    The contract, which one test suite runs against every engine:

    - The result has one list a prefix, in the order given, each with `num_samples` completions.
    - **Completion i of a prefix depends only on the model, the options, the prefix and `first_sample + i`**, not on
      which other prefixes are asked for, in which order, in how many calls or processes. So work can be sharded,
      interrupted and continued without changing the result. This holds up to floating-point rounding: the shape of a
      batch changes the last digits of the logits, and so, rarely, a token. (The endpoint engine asks for it with a
      seed a request; [`~rollout.endpoint_engine`] lists which servers do it.) Two engines draw different samples from
      one distribution; greedy decoding is the same everywhere.
    - No prefixes give `[]`. The model's own generation defaults are not applied.
    - If a prefix and `max_new_tokens` do not fit into the context window, [`PrefixTooLongError`] names it, and the
      others can be asked for again.
    """

    def generate(
        self,
        prefixes: Sequence[Prefix],
        num_samples: int,
        options: SamplingOptions,
        first_sample: int = 0,
    ) -> list[list[Completion]]:
        """Samples completions.

        Args:
            prefixes (`Sequence[Prefix]`):
                What to complete. Equal prefixes get equal completions.
            num_samples (`int`):
                Completions of each prefix, at least 1.
            options (`SamplingOptions`):
                How to sample.
            first_sample (`int`, *optional*, defaults to `0`):
                Number of the first sample. `generate(p, 12, o, first_sample=4)` gives the 12 completions that follow
                the 4 of `generate(p, 4, o)`.

        Returns:
            `list[list[Completion]]`: of shape `(len(prefixes), num_samples)`.
        """
        ...


def description_of(engine: RolloutEngine) -> dict[str, Any]:
    """What ran the model, for the manifest of a run: what the engine's `describe` says, and its class.

    An engine may do without `describe`.
    """
    describe = getattr(engine, "describe", None)
    return {"engine": type(engine).__name__, **(describe() if callable(describe) else {})}


def load_engine(name: str, **kwargs: Any) -> RolloutEngine:
    """Makes the engine of this name.

    Args:
        name (`str`):
            - `"transformers"`: a loaded model in this process ([`~rollout.transformers_engine.TransformersEngine`]).
            - `"vllm"`: vLLM in this process ([`~rollout.vllm_engine.VLLMEngine`]).
            - `"endpoint"`: one or more completion servers ([`~rollout.endpoint_engine.EndpointEngine`]).
        **kwargs:
            Arguments of the engine's class, for example `model`, `tokenizer` and `batch_size`.

    Raises:
        ValueError: if there is no engine of this name.

    Example:

    ```python
    >>> load_engine("transformer")
    Traceback (most recent call last):
        ...
    ValueError: `name` must be one of 'transformers', 'vllm', 'endpoint', got 'transformer'. Did you mean
    'transformers'?

    ```
    """
    check_choice("name", name, _ENGINES)
    module, class_name = _ENGINES[name]
    return getattr(importlib.import_module(module), class_name)(**kwargs)


def check_request(prefixes: Sequence[Prefix], num_samples: int, first_sample: int) -> None:
    """Raises `ValueError` or `TypeError` unless these are arguments that [`RolloutEngine.generate`] accepts."""
    _check_whole("num_samples", num_samples, 1, "Ask for at least one completion of each prefix.")
    _check_whole("first_sample", first_sample, 0, "Samples are numbered from 0.")
    if isinstance(prefixes, Prefix | str):
        raise TypeError(f"`prefixes` must be a list of Prefix, got one {type(prefixes).__name__}. Pass [prefix].")
    for index, prefix in enumerate(prefixes):
        if not isinstance(prefix, Prefix):
            raise TypeError(
                f"`prefixes` must be a list of Prefix, got a {type(prefix).__name__} at index {index}. Pass "
                "Prefix(prompt)."
            )


def sample_keys(prefix: Prefix, seed: int, num_samples: int, first_sample: int = 0) -> list[int]:
    """Keys of the random numbers of a prefix's samples, 64 bits each: what makes sampling independent of the batch.

    Args:
        prefix (`Prefix`):
            The prefix, by its content.
        seed (`int`):
            [`SamplingOptions.seed`].
        num_samples (`int`):
            Number of keys.
        first_sample (`int`, *optional*, defaults to `0`):
            Number of the first sample.

    Returns:
        `list[int]`: one key a sample, in [0, 2^64).

    Example:

    ```python
    >>> prefix = Prefix("4*3=")
    >>> sample_keys(prefix, seed=0, num_samples=3)[1:] == sample_keys(prefix, seed=0, num_samples=2, first_sample=1)
    True

    ```
    """
    of_prefix = content_hash(seed, prefix.prompt, prefix.completion)
    return [int(content_hash(of_prefix, first_sample + i)[:16], 16) for i in range(num_samples)]


def _check_whole(name: str, value: Any, minimum: int, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"`{name}` must be a whole number from {minimum} up, got {value!r}. {remedy}")
