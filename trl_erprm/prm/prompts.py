"""Which part of a prompt a process reward model reads: the chat as it is, or the problem alone.

A policy is often asked in chat messages, with a system prompt of its own, while most process reward models were
trained on problems as text. Laid out by a chat template, or behind another system prompt than their own, the problem
is something that these models have never seen; they score it all the same, and nothing says so. So a checkpoint says
which kind of prompt it was trained on (`prompt_kind` in `prm_format.json`), and prompts are turned into that kind.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..arguments import process_state
from ..choices import check_choice
from .formats import PRMFormat, Prompt, check_prompt
from .public_models import public_model_of

logger = logging.getLogger(__name__)

PROMPT_KINDS = ("text", "chat")
PROMPT_READINGS = ("auto", "chat", "problem")
"""Values of `prompt_as`."""

NUM_ROWS_LOOKED_AT = 16
"""Enough to tell the line break that all prompts end with from one that a single prompt ends with."""

PromptKind = Literal["text", "chat"]
PromptReading = Literal["auto", "chat", "problem"]


def check_prompt_reading(prompt_as: str) -> None:
    """Raises a `ValueError`, naming `prompt_as`, where it is none of [`PROMPT_READINGS`]."""
    check_choice("prompt_as", prompt_as, PROMPT_READINGS)


class TrainedPrompts(NamedTuple):
    """
    The prompts that a process reward model was trained on.

    Args:
        kind (`str`, *optional*):
            `"text"` or `"chat"`; `None` where it is not known.
        ending (`str`, *optional*, defaults to `""`):
            White space that the texts end with, such as the line break before the first step: chat messages and
            problems from elsewhere lack it.
    """

    kind: PromptKind | None = None
    ending: str = ""


def trained_prompts(saved: Mapping[str, Any] | None, path: str | os.PathLike | None) -> TrainedPrompts:
    """
    What a model was trained on, by what its checkpoint has saved.

    Published models ([`public_model_of`]) bring no such file. All of them were trained on problems as text: their
    cards show it laid out as text, or as one user message, with no system prompt but the format's own. Of any other
    model without the file it is not known, whichever format it is read in.

    Args:
        saved (`Mapping[str, Any]`, *optional*):
            Contents of its `prm_format.json`.
        path (`str` or `os.PathLike`, *optional*):
            Its directory or id; `None` for a model that was not loaded from one.

    Raises:
        `ValueError`: for a `prompt_kind` that there is not.

    Example:

    ```python
    >>> trained_prompts({"prompt_kind": "text", "prompt_ending": "\\n"}, "outputs/prm")
    TrainedPrompts(kind='text', ending='\\n')
    >>> trained_prompts(None, "Qwen/Qwen2.5-Math-PRM-7B").kind
    'text'
    >>> trained_prompts(None, "org/own-prm")
    TrainedPrompts(kind=None, ending='')

    ```
    """
    if saved is None:
        is_published = path is not None and public_model_of(path) is not None
        return TrainedPrompts("text" if is_published else None)
    kind = saved.get("prompt_kind")
    if kind is not None:
        check_choice("prompt_kind", kind, PROMPT_KINDS)
    return TrainedPrompts(kind, saved.get("prompt_ending") or "")


def prompts_of_dataset(dataset: Dataset | IterableDataset) -> TrainedPrompts:
    """
    The prompts of stepwise rows, by the first [`NUM_ROWS_LOOKED_AT`]. Of rows without prompts, such as encoded ones,
    and of no rows at all, the kind is not known.
    """
    prompts = [row.get("prompt") for row in dataset.take(NUM_ROWS_LOOKED_AT)]
    if not prompts or prompts[0] is None:
        return TrainedPrompts()
    if not all(isinstance(prompt, str) for prompt in prompts):
        return TrainedPrompts("chat")
    endings = {prompt[len(prompt.rstrip()) :] for prompt in prompts}
    return TrainedPrompts("text", endings.pop() if len(endings) == 1 else "")


def problem_text(prompt: Prompt) -> str:
    """
    The problem of a prompt: a text is the problem itself; of messages it is the text of the user's last one.

    Raises:
        `ValueError`: for messages of which none is the user's, or whose last one has no text.

    Example:

    ```python
    >>> problem_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}])
    '1+1?'

    ```
    """
    if isinstance(prompt, str):
        return prompt
    check_prompt(prompt)
    of_user = [message["content"] for message in prompt if message["role"] == "user"]
    content = of_user[-1] if of_user else None
    if isinstance(content, list):  # content blocks, as TRL writes them for vision-language models
        content = "".join(block["text"] for block in content if block.get("type") == "text")
    if not content:
        raise ValueError(
            f"the problem is the text of the user's last message, but of the roles "
            f"{', '.join(repr(message['role']) for message in prompt)} "
            + ("none is the user's." if not of_user else "the user's last message has no text.")
            + " Give `prompt_as='chat'` if the process reward model is to read the whole chat."
        )
    return content


class PromptReader:
    """
    Turns prompts into what a process reward model was trained on, and logs once what it does.

    Args:
        format ([`PRMFormat`]):
            The model's layout.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, which has a chat template or has none.
        prompt_kind (`str`, *optional*), prompt_ending (`str`, *optional*, defaults to `""`):
            What the model was trained on, as in [`TrainedPrompts`].

    Example:

    ```python
    >>> from types import SimpleNamespace
    >>> from trl_erprm.prm.formats import FORMATS
    >>> reader = PromptReader(FORMATS["trl"], SimpleNamespace(chat_template=None), "text", prompt_ending=":")
    >>> reader.read([[{"role": "user", "content": "1+1?"}], "2+2?"])
    ['1+1?:', '2+2?:']

    ```
    """

    def __init__(
        self,
        format: PRMFormat,
        tokenizer: PreTrainedTokenizerBase,
        prompt_kind: PromptKind | None = None,
        prompt_ending: str = "",
    ):
        if prompt_kind is not None:
            check_choice("prompt_kind", prompt_kind, PROMPT_KINDS)
        self.format = format
        self.tokenizer = tokenizer
        self.prompt_kind = prompt_kind
        self.prompt_ending = prompt_ending
        self._logged: set[str] = set()

    def reading(self, prompt_as: PromptReading = "auto") -> Literal["chat", "problem"]:
        """
        What is read of chats, `"chat"` or `"problem"`: for `"auto"`, what the model was trained on. Where that is not
        known, the chat, unless the tokenizer has no template to lay one out with.
        """
        check_prompt_reading(prompt_as)
        if prompt_as != "auto":
            return prompt_as
        if self.prompt_kind is None:
            return "chat" if self._has_template else "problem"
        return "chat" if self.prompt_kind == "chat" else "problem"

    def check(self, prompt_as: PromptReading = "auto") -> None:
        """Raises a `ValueError` where chats are to be read and the tokenizer has no template to lay them out with."""
        if self.reading(prompt_as) == "chat" and not self._has_template:
            why = "`prompt_as='chat'` was given" if prompt_as == "chat" else "it was trained on chat messages"
            raise ValueError(
                f"The process reward model is to read prompts as chats ({why}), but its tokenizer has no chat "
                "template. Put the `chat_template.jinja` that it was trained with into its directory, or give "
                "`prompt_as='problem'`."
            )

    def read(self, prompts: Sequence[Prompt], prompt_as: PromptReading = "auto") -> list[Prompt]:
        """
        The prompts as they are to be laid out.

        Args:
            prompts (`Sequence` of `str` or messages):
                Prompts of either kind.
            prompt_as (`str`, *optional*, defaults to `"auto"`):
                `"chat"`: chats as they are. `"problem"`: of chats the text of the user's last message
                ([`problem_text`]). `"auto"`: what the model was trained on ([`reading`]). A text for a model that
                reads chats is one user message. A problem for a model that reads texts gets the white space that the
                model's own prompts end with (`prompt_ending`), whether it comes from a chat or is a text that does
                not end in white space; other texts are left as they are.

        Raises:
            `ValueError`: for a chat without a problem (with its number), and as [`check`].
        """
        reading = self.reading(prompt_as)
        are_texts = [isinstance(prompt, str) for prompt in prompts]
        # In the other layouts a text becomes a user message anyhow.
        as_message = self.format.layout == "text" and "chat" in (self.prompt_kind, prompt_as)
        if as_message or not all(are_texts):
            self.check(prompt_as)
        as_message = as_message and self._has_template
        self._log(prompt_as, reading, are_texts, as_message)
        read: list[Prompt] = []
        for i, prompt in enumerate(prompts):
            if reading == "problem" and not are_texts[i]:
                try:
                    prompt = problem_text(prompt)
                    prompt = prompt if prompt.endswith(self.prompt_ending) else prompt + self.prompt_ending
                except ValueError as error:
                    raise ValueError(f"{f'Prompt {i}: ' if len(prompts) > 1 else ''}{error}") from error
            elif reading == "problem" and prompt and not prompt[-1].isspace():  # an empty one is an error elsewhere
                prompt += self.prompt_ending  # else the first step is glued to the problem
            if as_message and isinstance(prompt, str) and prompt:
                prompt = [{"role": "user", "content": prompt.rstrip()}]  # no line break before an answer of its own
            read.append(prompt)
        return read

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def _log(self, prompt_as: PromptReading, reading: str, are_texts: Sequence[bool], as_message: bool) -> None:
        trained = {
            "text": "was trained on problems as text",
            "chat": "was trained on chat messages",
            None: "does not say whether it was trained on text or on chats",
        }[self.prompt_kind]
        chosen = f"(`prompt_as={prompt_as!r}`)"
        if not all(are_texts):
            if reading == "problem":
                read = f"Of chats it reads the text of the user's last message {chosen}."
                if self.prompt_kind is None and not self._has_template:
                    trained += ", and its tokenizer has no chat template"
            else:
                read = f"It reads chats as they are {chosen}."
                if self.prompt_kind is None and prompt_as == "auto":
                    read += " Give `prompt_as='problem'` if it was trained on text."
            is_expected = prompt_as != "auto" or self.prompt_kind == "chat"
            self._log_once(f"The process reward model {trained}. {read}", is_expected)
        if any(are_texts) and as_message:
            read = f"It reads a text as one user message {chosen}."
            self._log_once(f"The process reward model {trained}. {read}", prompt_as == "chat")

    def _log_once(self, message: str, is_expected: bool) -> None:
        if message not in self._logged:
            self._logged.add(message)
            if process_state().is_main_process:
                logger.log(logging.INFO if is_expected else logging.WARNING, message)
