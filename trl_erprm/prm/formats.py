"""How a solution is laid out for a process reward model: the one path from text to token ids and step ends.

Training, scoring, reinforcement learning and evaluation all call [`PRMFormat.encode`]; there is no second tokenization
to drift from the first. A format is a small declarative object, saved inside the checkpoint as `prm_format.json`.

Every piece (the prompt, each step, each tag) is tokenized **on its own** and the ids are concatenated. So a tag can
never merge with its neighbours, which in joint tokenization silently masks every label (a known fault of several PRM
code bases), and the ids of a prefix never change when a step is added behind it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..choices import check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Prompt = str | list[dict]
"""A text, or chat messages (`[{"role": ..., "content": ...}]`)."""

FORMAT_FILE = "prm_format.json"
FORMAT_VERSION = 1
HEADS = ("token_classification", "causal_lm")


@dataclass(frozen=True)
class EncodedSolution:
    """
    A prompt and its steps as token ids.

    Args:
        input_ids (`list[int]`):
            Token ids, of length T.
        step_ends (`list[int]`):
            For each step kept, the position (0 to T - 1) at which its score is read; increasing.
        num_dropped_steps (`int`):
            Steps that did not fit into `max_length`, cut from the end.
    """

    input_ids: list[int]
    step_ends: list[int]
    num_dropped_steps: int = 0


@dataclass(frozen=True)
class PRMFormat:
    r"""
    How a prompt and its steps are rendered, and where and how a step's score is read.

    The text of a solution is `prompt + prompt_separator`, then for each step `step + step_tag`, with `step_joiner`
    between one step's tag and the next step. The score of a step is read at the last token of its tag.

    Args:
        name (`str`):
            Name of the format, for messages and model cards.
        head (`str`):
            `"token_classification"` (one logit, or the second of two) or `"causal_lm"` (the probability of
            `positive_token` against `negative_token`).
        step_tag (`str`, *optional*, defaults to `"\n"`):
            Text behind each step; its last token is where the score is read.
        step_joiner (`str`, *optional*, defaults to `""`):
            Text between a tag and the next step.
        prompt_separator (`str`, *optional*, defaults to `""`):
            Text between the prompt and the first step.
        positive_token (`str`, *optional*), negative_token (`str`, *optional*):
            The two label tokens of the `causal_lm` head.

    Example:

    ```python
    >>> TRL_TOKEN_CLASSIFICATION.render("1+1?", ["1+1=2", "So 2."])
    '1+1?1+1=2\nSo 2.\n'
    >>> ER_PRM.render("1+1?", ["1+1=2", "So 2."])
    '1+1? 1+1=2 ки\nSo 2. ки'

    ```
    """

    name: str
    head: Literal["token_classification", "causal_lm"]
    step_tag: str = "\n"
    step_joiner: str = ""
    prompt_separator: str = ""
    positive_token: str | None = None
    negative_token: str | None = None

    def __post_init__(self):
        check_choice("head", self.head, HEADS)
        if not self.step_tag:
            raise ValueError("`step_tag` must not be empty: the score of a step is read at its last token.")
        if self.head == "causal_lm" and not (self.positive_token and self.negative_token):
            raise ValueError(
                "A `causal_lm` head compares two label tokens: `positive_token` and `negative_token` must both be "
                f"given, got {self.positive_token!r} and {self.negative_token!r}. The paper uses '+' and '-'."
            )

    # Text

    def _pieces(self, steps: Sequence[str]) -> list[tuple[str, str]]:
        """Each step's text with what stands before it, and its tag."""
        return [((self.step_joiner if k else "") + step, self.step_tag) for k, step in enumerate(steps)]

    def render(self, prompt: Prompt, steps: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        """The text that [`encode`] tokenizes, piece by piece. A tokenizer is needed for chat messages only."""
        return self._render_prompt(prompt, tokenizer) + "".join(text + tag for text, tag in self._pieces(steps))

    def _render_prompt(self, prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None) -> str:
        if isinstance(prompt, str):
            return prompt + self.prompt_separator
        if tokenizer is None or not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "The prompt is a list of chat messages, but the tokenizer has no chat template. Give the prompt as "
                "text, or a tokenizer with a `chat_template`."
            )
        return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)

    # Tokens

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        steps: Sequence[str],
        max_length: int | None = None,
    ) -> EncodedSolution:
        """
        Token ids and step ends of a solution.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of the process reward model.
            prompt (`str` or `list[dict]`):
                Text, or messages for the chat template.
            steps (`Sequence[str]`):
                The steps, in order, none of them empty.
            max_length (`int`, *optional*):
                Most tokens to return. Steps that do not fit whole are dropped from the end and counted; the prompt
                is never cut.

        Returns:
            [`EncodedSolution`].

        Raises:
            `ValueError`: for an empty prompt, no steps, or a step without text.
        """
        if not prompt:
            raise ValueError("The prompt is empty. A step can only be judged against a problem.")
        if not steps:
            raise ValueError("The list of steps is empty: there is nothing to score or to learn from.")
        for k, step in enumerate(steps):
            if not step.strip():
                raise ValueError(f"Step {k} of {len(steps)} is empty ({step!r}). Every step needs text.")
        input_ids = tokenizer(self._render_prompt(prompt, tokenizer), add_special_tokens=False)["input_ids"]
        # A chat template writes its own beginning-of-sequence token.
        if isinstance(prompt, str) and tokenizer.bos_token_id is not None:
            input_ids = [tokenizer.bos_token_id, *input_ids]
        input_ids, step_ends = list(input_ids), []
        pieces = self._pieces(steps)
        tag_ids = tokenizer(self.step_tag, add_special_tokens=False)["input_ids"]
        text_ids = tokenizer([text for text, _ in pieces], add_special_tokens=False)["input_ids"]
        for ids in text_ids:
            if max_length is not None and len(input_ids) + len(ids) + len(tag_ids) > max_length:
                break
            input_ids += [*ids, *tag_ids]
            step_ends.append(len(input_ids) - 1)
        return EncodedSolution(input_ids, step_ends, num_dropped_steps=len(steps) - len(step_ends))

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Raises a `ValueError` where this tokenizer cannot carry the format: a tag without tokens or made of unknown
        ones, a label token that is not exactly one token, or label tokens that coincide.
        """
        tag_ids = tokenizer(self.step_tag, add_special_tokens=False)["input_ids"]
        # Some tokenizers drop what they do not know without a token for it, so the tag is also read back; white space
        # aside, which decoders write in their own ways.
        is_whole = "".join(tokenizer.decode(tag_ids).split()) == "".join(self.step_tag.split())
        if not tag_ids or not is_whole or tokenizer.unk_token_id in tag_ids:
            raise ValueError(
                f"The step tag {self.step_tag!r} is not in the tokenizer's vocabulary (its ids are {tag_ids}). Choose "
                "a `step_tag` that the tokenizer knows, or add it to the tokenizer and resize the embeddings."
            )
        if self.head == "causal_lm" and self.label_token_ids(tokenizer)[0] == self.label_token_ids(tokenizer)[1]:
            raise ValueError(
                f"The label tokens {self.positive_token!r} and {self.negative_token!r} are one and the same token of "
                "this tokenizer. Choose two that differ."
            )

    def label_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
        """The ids of the positive and the negative label token (`causal_lm` head)."""
        ids = []
        for name in ("positive_token", "negative_token"):
            token = getattr(self, name)
            token_ids = tokenizer(token, add_special_tokens=False)["input_ids"]
            # SentencePiece writes a word-boundary mark before a text; the token itself comes last, as in " +".
            if len(token_ids) == 2 and tokenizer.decode(token_ids[:1]).strip() == "":
                token_ids = token_ids[1:]
            if len(token_ids) != 1 or token_ids[0] == tokenizer.unk_token_id:
                raise ValueError(
                    f"`{name}` {token!r} must be exactly one known token, but this tokenizer gives {token_ids}. "
                    "Choose another label token."
                )
            ids.append(token_ids[0])
        return ids[0], ids[1]

    # Files

    def save(self, directory: str | os.PathLike, **extra) -> None:
        """Writes `prm_format.json` into a checkpoint; `extra` (for example `eta`) is stored beside the format."""
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self), **extra}
        (Path(directory) / FORMAT_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def from_dict(cls, content: dict) -> PRMFormat:
        """The format of a `prm_format.json` content; keys that are not the format's own are left aside."""
        if content.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"This version reads format version {FORMAT_VERSION}, got {content.get('format_version')!r}. Update "
                "trl-erprm, or give `format=`."
            )
        return cls(**{f.name: content[f.name] for f in dataclasses.fields(cls) if f.name in content})


TRL_TOKEN_CLASSIFICATION = PRMFormat(name="trl", head="token_classification")
"""TRL's layout (`PRMTrainer` of TRL <= 1.13): a newline behind each step carries the label."""

ER_PRM = PRMFormat(
    name="er-prm",
    head="causal_lm",
    step_tag=" ки",
    step_joiner="\n",
    prompt_separator=" ",
    positive_token="+",
    negative_token="-",
)
"""The layout of Math-Shepherd (arXiv 2312.08935) and ER-PRM (arXiv 2412.11006): the tag ` ки` behind each step, and
there the probability of `+` against `-`."""

FORMATS = {f.name: f for f in (TRL_TOKEN_CLASSIFICATION, ER_PRM)}
"""The known formats by name."""

DEFAULT_FORMATS = {"token_classification": TRL_TOKEN_CLASSIFICATION, "causal_lm": ER_PRM}
"""The format that a head gets where none is named."""


def load_format(name_or_format: str | PRMFormat | None, head: str = "token_classification") -> PRMFormat:
    """A format by name; a `PRMFormat` is returned as it is, `None` gives the head's default."""
    if isinstance(name_or_format, PRMFormat):
        return name_or_format
    if name_or_format is None:
        return DEFAULT_FORMATS[head]
    check_choice("format", name_or_format, FORMATS)
    return FORMATS[name_or_format]
