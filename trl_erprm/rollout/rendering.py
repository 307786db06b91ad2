"""From a prefix to what a model reads, and from what it wrote to a completion: what the engines share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .engine import Prefix, PrefixTooLongError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_window", "cut_at_stop", "encode", "render", "request_seed"]


def render(index: int, prefix: Prefix, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of a prefix, messages rendered by the chat template.

    The beginning of an answer goes behind the generation prompt of the template as it is; a prompt that itself ends
    with an assistant message is rendered with `continue_final_message` (as in
    [`~rollout.transformers_engine.TransformersEngine`], which says why).

    Args:
        index (`int`):
            Number of the prefix, for the message.
        prefix (`Prefix`):
            What to render.
        tokenizer (`PreTrainedTokenizerBase`):
            Whose chat template is used.

    Raises:
        ValueError: if the prefix holds messages and the tokenizer has no chat template.
    """
    if isinstance(prefix.prompt, str):
        return prefix.prompt + prefix.completion
    if not tokenizer.chat_template:
        raise ValueError(
            f"Prefix {index} holds messages, and the tokenizer has no chat template. Set `tokenizer.chat_template`, "
            "or pass prompts as text."
        )
    continues = prefix.prompt[-1]["role"] == "assistant"
    opening = tokenizer.apply_chat_template(
        prefix.prompt, tokenize=False, add_generation_prompt=not continues, continue_final_message=continues
    )
    return opening + prefix.completion


def encode(
    prefixes: Sequence[Prefix], texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", first_index: int = 0
) -> list[list[int]]:
    """Token ids of rendered prefixes.

    Prompts that are text get the tokenizer's special tokens; a chat template has written them already. An
    end-of-sequence token that some tokenizers put behind every text is left out: nothing would be continued after it.

    Args:
        prefixes (`Sequence[Prefix]`):
            The prefixes.
        texts (`Sequence[str]`):
            What [`render`] made of them.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer of the policy.
        first_index (`int`, *optional*, defaults to `0`):
            Number of the first prefix, for the message.

    Raises:
        ValueError: if a prefix has no tokens.
    """
    closes_texts = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
    encoded: list[list[int]] = [[]] * len(texts)
    for is_text in (True, False):  # one call for many texts: a call costs 0.1 ms
        indices = [index for index, prefix in enumerate(prefixes) if isinstance(prefix.prompt, str) is is_text]
        if indices:
            batch = tokenizer([texts[index] for index in indices], add_special_tokens=is_text)["input_ids"]
            for index, ids in zip(indices, batch, strict=True):
                encoded[index] = ids[:-1] if is_text and closes_texts else ids
    for index, ids in enumerate(encoded, first_index):
        if not ids:
            raise ValueError(f"Prefix {index} has no tokens. Pass a prompt that is not empty.")
    return encoded


def check_window(lengths: Sequence[int], window: int | None, max_new_tokens: int) -> None:
    """Raises [`~rollout.engine.PrefixTooLongError`] unless each prefix leaves room for `max_new_tokens` in the context
    window.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each prefix.
        window (`int`, *optional*):
            Most tokens of a prefix and its completion; None if it is not known.
        max_new_tokens (`int`):
            Most tokens of a completion.
    """
    if window is None:
        return
    room = max(0, window - max_new_tokens)
    if too_long := [index for index, length in enumerate(lengths) if length > room]:
        first, *others = too_long
        raise PrefixTooLongError(
            f"Prefix {first} has {lengths[first]} tokens, and at most {room} fit: the context window of {window} "
            f"tokens less `max_new_tokens`={max_new_tokens}"
            + (f" ({len(others)} other prefixes do not fit either)" if others else "")
            + ". Lower `max_new_tokens`, or leave out what does not fit.",
            too_long,
        )


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """The text before the first of the stop texts, and that stop text, `None` where there is none.

    Example:

    ```python
    >>> cut_at_stop("4*3=5\\n\\n5+2", ("#", "\\n\\n"))
    ('4*3=5', '\\n\\n')

    ```
    """
    cuts = [(position, one) for one in stop if (position := text.find(one)) >= 0]
    if not cuts:
        return text, None
    position, first = min(cuts, key=lambda cut: cut[0])
    return text[:position], first


def request_seed(key: int) -> int:
    """Seed of a request from the key of a sample ([`~rollout.engine.sample_keys`]).

    31 bits: a non-negative seed for every server, be its seeds 32 or 64 bits, signed or not. (llama.cpp has 32 bits,
    of which all ones mean "random".)
    """
    return key >> 33
