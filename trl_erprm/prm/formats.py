"""How a solution is laid out for a process reward model: the one path from text to token ids and step ends.

Training, scoring, reinforcement learning and evaluation all call [`PRMFormat.encode_batch`]; there is no second
tokenization to drift from the first. A format is a small declarative object, saved inside the checkpoint as
`prm_format.json`; the layouts of public process reward models are instances of it ([`FORMATS`]).

Two ways to tokenize:

- `"pieces"`: the prompt, each step and each tag are tokenized **on their own** and the ids are concatenated. A tag can
  never merge with its neighbours, which in other code bases silently masked every label, and the ids of a prefix never
  change when a step is added behind it.
- `"joint"`: the whole text at once, as most public models were trained. Where a tag then merges with its neighbours,
  that is an error, never a label less.
"""

from __future__ import annotations

import dataclasses
import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..arguments import check_path_or_id
from ..choices import check_choice
from .public_models import PUBLIC_MODELS, log_recognized, public_model_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Prompt = str | list[dict]
"""A text, or chat messages (`[{"role": ..., "content": ...}]`)."""

FORMAT_FILE = "prm_format.json"
FORMAT_VERSION = (
    2  # 2: `layout`, `tokenization` and what follows the label tokens; a file of version 1 has the defaults
)
HEADS = ("token_classification", "causal_lm")
LAYOUTS = ("text", "assistant_message", "turns")
TOKENIZATIONS = ("pieces", "joint")
HEAD_MODULES = ("linear", "mlp")
FORMAT_OVERRIDES = (
    "step_tag", "step_joiner", "prompt_separator", "positive_token", "negative_token", "tokenization",
)  # fmt: skip
"""Fields of a format that a trainer's configuration can replace by an argument of the same name."""

# Stands for a message's content while a chat template is rendered; a private-use character that no text holds.
_MARK = "\ue0a7"
# What steps end and begin with, to see before any data whether a tag survives its neighbours.
_STEP_ENDINGS = ("so", "3", ".", ")", "$", "\\]", "=")
_STEP_BEGINNINGS = ("Step 2", "3", "So", "(", "\\[", "$", "- x", "ки")


@dataclass(frozen=True)
class EncodedSolution:
    """
    A prompt and its steps as token ids.

    Args:
        input_ids (`list[int]`):
            Token ids, of length T. They end where the last step kept is read.
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

    Layouts:

    - `"text"`: `prompt + prompt_separator`, then for each step `step + step_tag`, with `step_joiner` between one
    step's tag and the next step. A prompt of chat messages is rendered by the chat template instead, as far as the
      assistant's turn begins.
    - `"assistant_message"`: the same, but all steps and tags are the content of one assistant message, so that a text
      prompt, too, becomes a user message (behind `system_prompt`).
    - `"turns"`: each step is a message of the user, the first behind `prompt + prompt_separator`, and each is
    answered by the assistant with `positive_token`. A step's score is read where that answer is about to be written,
    one token before it, so one forward pass gives the scores of all steps.

    In the first two, a step's score is read at the last token of its tag.

    Args:
        name (`str`):
            Name of the format, for messages and model cards.
        head (`str`):
            `"token_classification"` (one logit, or the second of two) or `"causal_lm"` (the probability of
            `positive_token` against `negative_token`).
        layout (`str`, *optional*, defaults to `"text"`):
            `"text"`, `"assistant_message"` or `"turns"`, as above.
        tokenization (`str`, *optional*, defaults to `"pieces"`):
            `"pieces"` or `"joint"`, as the module describes. Chat layouts are joint.
        step_tag (`str`, *optional*, defaults to `"\n"`):
            Text behind each step; its last token is where the score is read.
        step_joiner (`str`, *optional*, defaults to `""`):
            Text between a tag and the next step.
        prompt_separator (`str`, *optional*, defaults to `""`):
            Text between the prompt and the first step.
        system_prompt (`str`, *optional*):
            System message of the chat layouts, where the prompt brings none.
        positive_token (`str`, *optional*), negative_token (`str`, *optional*):
            The two label tokens of the `causal_lm` head.
        num_labels (`int`, *optional*):
            Outputs of the `token_classification` head of a checkpoint from elsewhere; `None` leaves it to its config.
        head_module (`str`, *optional*, defaults to `"linear"`):
            What the `token_classification` head is: `"linear"`, or `"mlp"` (linear, ReLU, linear).
        key_mapping (`tuple[tuple[str, str], ...]`, *optional*, defaults to `()`):
            Pairs of a regular expression and its replacement that turn a checkpoint's names of weights into ours, in
            which the head is `score`.

    Example:

    ```python
    >>> TRL_TOKEN_CLASSIFICATION.render("1+1?", ["1+1=2", "So 2."])
    '1+1?1+1=2\nSo 2.\n'
    >>> MATH_SHEPHERD.render("1+1?", ["1+1=2", "So 2."])
    '1+1? 1+1=2 ки\nSo 2. ки'

    ```
    """

    name: str
    head: Literal["token_classification", "causal_lm"]
    layout: Literal["text", "assistant_message", "turns"] = "text"
    tokenization: Literal["pieces", "joint"] = "pieces"
    step_tag: str = "\n"
    step_joiner: str = ""
    prompt_separator: str = ""
    system_prompt: str | None = None
    positive_token: str | None = None
    negative_token: str | None = None
    num_labels: int | None = None
    head_module: Literal["linear", "mlp"] = "linear"
    key_mapping: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        check_choice("head", self.head, HEADS)
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("tokenization", self.tokenization, TOKENIZATIONS)
        check_choice("head_module", self.head_module, HEAD_MODULES)
        if self.layout != "turns" and not self.step_tag:
            raise ValueError("`step_tag` must not be empty: the score of a step is read at its last token.")
        if self.layout != "text" and self.tokenization != "joint":
            raise ValueError(
                f"The layout {self.layout!r} goes through a chat template and is tokenized as a whole, got "
                f"`tokenization={self.tokenization!r}`. Set `tokenization='joint'`."
            )
        is_causal = self.head == "causal_lm"
        if (is_causal or self.layout == "turns") and not (self.positive_token and self.negative_token):
            raise ValueError(
                "A `causal_lm` head compares two label tokens: `positive_token` and `negative_token` must both be "
                f"given, got {self.positive_token!r} and {self.negative_token!r}. The paper uses '+' and '-'."
            )
        if self.layout == "turns" and not is_causal:
            raise ValueError("The layout 'turns' is read with the head 'causal_lm', got 'token_classification'.")

    # Text

    def render(self, prompt: Prompt, steps: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        """The text that is tokenized, as far as the last step's tag. Chat messages and layouts need a tokenizer."""
        prompt_text, pieces = self._render(prompt, steps, tokenizer)
        return prompt_text + "".join(text + tag for text, tag in pieces)

    def _render(self, prompt: Prompt, steps: Sequence[str], tokenizer) -> tuple[str, list[tuple[str, str]]]:
        """The prompt's text; and for each step the text before its tag, and the tag."""
        if self.layout == "turns":
            contents = [(self._first_content(prompt) if k == 0 else "") + step for k, step in enumerate(steps)]
            messages = self._messages(prompt)[:-1]
            for content in contents:
                messages += [{"role": "user", "content": content}, {"role": "assistant", "content": _MARK}]
            texts = _apply_chat_template(tokenizer, messages).split(_MARK)
            if len(texts) != len(steps) + 1:
                raise ValueError(
                    f"The chat template writes {len(texts) - 1} answers for {len(steps)} steps. The layout 'turns' "
                    "needs a template that writes every assistant message as it is."
                )
            return "", [(text, self.positive_token) for text in texts[:-1]]
        pieces = [((self.step_joiner if k else "") + step, self.step_tag) for k, step in enumerate(steps)]
        if self.layout == "assistant_message":
            messages = [*self._messages(prompt), {"role": "assistant", "content": _MARK}]
            return _apply_chat_template(tokenizer, messages).split(_MARK)[0] + self.prompt_separator, pieces
        if isinstance(prompt, str):
            return prompt + self.prompt_separator, pieces
        return _apply_chat_template(tokenizer, prompt, add_generation_prompt=True), pieces

    def _messages(self, prompt: Prompt) -> list[dict]:
        """The prompt as messages, behind the system prompt where it brings none."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if self.system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return messages

    def _first_content(self, prompt: Prompt) -> str:
        """What stands before the first step in its message."""
        if not isinstance(prompt, str):
            if prompt[-1]["role"] != "user":
                raise ValueError(
                    f"In the layout 'turns' the first step continues the user's message, but the prompt ends with "
                    f"one of {prompt[-1]['role']!r}. End it with the problem as a user message."
                )
            prompt = prompt[-1]["content"]
        return prompt + self.prompt_separator

    # Tokens

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        steps: Sequence[str],
        max_length: int | None = None,
    ) -> EncodedSolution:
        """[`encode_batch`] for one solution."""
        return self.encode_batch(tokenizer, [prompt], [steps], max_length, name_solution=lambda i: "")[0]

    def encode_batch(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        solutions: Sequence[Sequence[str]],
        max_length: int | None = None,
        name_solution=lambda i: f"Solution {i}: ",
    ) -> list[EncodedSolution]:
        """
        Token ids and step ends of solutions.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of the process reward model.
            prompts (`Sequence` of `str` or `list[dict]`):
                For each solution its prompt: text, or messages for the chat template.
            solutions (`Sequence[Sequence[str]]`):
                The steps of each, in order, none of them empty.
            max_length (`int`, *optional*):
                Most tokens to return for one. Steps that do not fit whole are dropped from the end and counted. Where
                not even the first one fits, `step_ends` is empty and `input_ids` the first `max_length` tokens.
            name_solution (`Callable[[int], str]`, *optional*):
                What to put before a message about the solution of this index.

        Returns:
            `list[EncodedSolution]`.

        Raises:
            `ValueError`: for an empty prompt, no steps, a step without text, or, in joint tokenization, a tag that
            merges with its neighbours.
        """
        rendered = []
        for i, (prompt, steps) in enumerate(zip(prompts, solutions, strict=True)):
            try:
                _check_solution(prompt, steps)
                rendered.append(self._render(prompt, steps, tokenizer))
            except ValueError as error:
                raise ValueError(f"{name_solution(i)}{error}") from error
        encode = self._encode_jointly if self.tokenization == "joint" else self._encode_pieces
        encoded = []
        for i, (input_ids, step_ends) in enumerate(encode(tokenizer, rendered, name_solution)):
            # A chat template writes its own beginning-of-sequence token; to a text it is added, as in TRL.
            if self.layout == "text" and isinstance(prompts[i], str) and tokenizer.bos_token_id is not None:
                input_ids, step_ends = [tokenizer.bos_token_id, *input_ids], [end + 1 for end in step_ends]
            kept = step_ends if max_length is None else [end for end in step_ends if end < max_length]
            input_ids = input_ids[: kept[-1] + 1] if kept else input_ids[:max_length]
            encoded.append(EncodedSolution(input_ids, kept, num_dropped_steps=len(step_ends) - len(kept)))
        return encoded

    def _encode_pieces(self, tokenizer, rendered, name_solution):
        # A piece is tokenized once: prompts come again with each of their solutions, tags with each step.
        texts = {text for prompt, pieces in rendered for text in (prompt, *(t for piece in pieces for t in piece))}
        texts = sorted(texts)
        ids_of = (
            dict(zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True)) if texts else {}
        )
        for prompt, pieces in rendered:
            input_ids, step_ends = list(ids_of[prompt]), []
            for text, tag in pieces:
                input_ids += [*ids_of[text], *ids_of[tag]]
                step_ends.append(len(input_ids) - 1)
            yield input_ids, step_ends

    def _encode_jointly(self, tokenizer, rendered, name_solution):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"The format {self.name!r} is tokenized as a whole and needs a tokenizer that knows character "
                f"offsets, got {type(tokenizer).__name__}. Give a fast tokenizer, or set `tokenization='pieces'`."
            )
        if not rendered:
            return
        texts, spans = [], []  # spans: character range of each tag
        for prompt, pieces in rendered:
            parts, tags, length = [prompt], [], len(prompt)
            for text, tag in pieces:
                parts += [text, tag]
                length += len(text) + len(tag)
                tags.append((length - len(tag), length))
            texts.append("".join(parts))
            spans.append(tags)
        batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        for i, (input_ids, offsets) in enumerate(zip(batch["input_ids"], batch["offset_mapping"], strict=True)):
            offsets = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
            try:
                step_ends = self._positions(offsets, spans[i], texts[i])
            except ValueError as error:
                raise ValueError(f"{name_solution(i)}{error}") from error
            yield list(input_ids), step_ends

    def _positions(self, offsets: np.ndarray, spans: list[tuple[int, int]], text: str) -> list[int]:
        """Where each step is read: the last token of its tag or, in turns, the one before its label token."""
        starts, ends = offsets[:, 0], offsets[:, 1]
        if self.layout == "turns":
            labels = np.searchsorted(starts, [start for start, _ in spans], side="left")
            is_whole = [
                0 < t < len(starts) and starts[t] == start and ends[t] == end and ends[t - 1] <= start
                for t, (start, end) in zip(labels, spans, strict=True)
            ]
            positions = labels - 1
        else:
            positions = np.searchsorted(starts, [end for _, end in spans], side="left") - 1
            next_starts = np.append(starts, len(text))[positions + 1]
            is_whole = [
                (0 <= t and start <= starts[t] and ends[t] <= end)
                # An accent behind the tag without a token of its own was composed with the tag's last letter.
                and not (next_start > end and unicodedata.combining(text[end]))
                for t, next_start, (start, end) in zip(positions, next_starts, spans, strict=True)
            ]
        if not all(is_whole):
            k = is_whole.index(False)
            start, end = spans[k]
            raise ValueError(
                f"the tag {text[start:end]!r} of step {k} merges with its neighbours in this tokenizer (around "
                f"{text[max(start - 10, 0) : end + 10]!r}), so the step would have no place for its score. Choose "
                "another `step_tag` or `step_joiner`, or set `tokenization='pieces'`."
            )
        return positions.tolist()

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Raises a `ValueError` where this tokenizer cannot carry the format: a tag without tokens or made of unknown
        ones, a tag that merges with its neighbours, a label token that is not exactly one token, or label tokens that
        coincide; and for a tokenizer without the chat template that a chat layout needs. Cheap: the trainer and the
        scorer call it at start; `trl_erprm.prm.doctor` looks at real rows besides.
        """
        if self.layout != "turns":
            tag_ids = tokenizer(self.step_tag, add_special_tokens=False)["input_ids"]
            # Some tokenizers drop what they do not know without a token for it, so the tag is also read back; white
            # space aside, which decoders write in their own ways.
            is_whole = "".join(tokenizer.decode(tag_ids).split()) == "".join(self.step_tag.split())
            if not tag_ids or not is_whole or tokenizer.unk_token_id in tag_ids:
                raise ValueError(
                    f"The step tag {self.step_tag!r} is not in the tokenizer's vocabulary (its ids are {tag_ids}). "
                    "Choose a `step_tag` that the tokenizer knows, or add it to the tokenizer and resize the "
                    "embeddings."
                )
        if self.positive_token and self.negative_token:
            positive, negative = self.label_token_ids(tokenizer)
            if positive == negative:
                raise ValueError(
                    f"The label tokens {self.positive_token!r} and {self.negative_token!r} are one and the same token "
                    "of this tokenizer. Choose two that differ."
                )
        if self.layout != "text":
            _check_chat_template(tokenizer)
        if self.tokenization == "joint":
            probes = [[end, begin] for end in _STEP_ENDINGS for begin in _STEP_BEGINNINGS]
            self.encode_batch(tokenizer, ["1 + 1?"] * len(probes), probes, name_solution=_name_probe)

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
        if content.get("format_version") not in range(1, FORMAT_VERSION + 1):
            raise ValueError(
                f"This version reads format versions 1 to {FORMAT_VERSION}, got {content.get('format_version')!r}. "
                "Update trl-erprm, or give `format=`."
            )
        fields = {f.name: content[f.name] for f in dataclasses.fields(cls) if f.name in content}
        fields["key_mapping"] = tuple(tuple(pair) for pair in fields.get("key_mapping", ()))
        return cls(**fields)


def _name_probe(i: int) -> str:
    end, begin = divmod(i, len(_STEP_BEGINNINGS))
    return f"Between steps that end with {_STEP_ENDINGS[end]!r} and begin with {_STEP_BEGINNINGS[begin]!r}, "


def check_prompt(prompt: Prompt) -> None:
    """Raises a `ValueError` where a prompt is neither a text nor chat messages."""
    if not isinstance(prompt, str):
        for message in prompt if isinstance(prompt, list) else [prompt]:
            if not isinstance(message, dict) or not {"role", "content"} <= set(message):
                raise ValueError(
                    "The prompt must be a text or a list of messages with `role` and `content`, got "
                    f"{message!r}. Write it as [{{'role': 'user', 'content': text}}]."
                )


def _check_solution(prompt: Prompt, steps: Sequence[str]) -> None:
    check_prompt(prompt)
    if isinstance(steps, str):
        raise ValueError(
            f"The steps must be a list of texts, got the text {steps[:40]!r}. Split it first, for example with "
            "`split_steps`; `ProcessRewardModel.score_text` does."
        )
    if not prompt:
        raise ValueError("The prompt is empty. A step can only be judged against a problem.")
    if not len(steps):
        raise ValueError("The list of steps is empty: there is nothing to score or to learn from.")
    for k, step in enumerate(steps):
        if not isinstance(step, str):
            raise ValueError(f"Step {k} of {len(steps)} must be a text, got {step!r}.")
        if not step.strip():
            raise ValueError(f"Step {k} of {len(steps)} is empty ({step!r}). Every step needs text.")


def _check_chat_template(tokenizer) -> None:
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "The solution is laid out as chat messages, but the tokenizer has no chat template. Give the prompt as "
            "text with a format of the layout 'text', or a tokenizer with a `chat_template`."
        )


def _apply_chat_template(tokenizer, messages: list[dict], add_generation_prompt: bool = False) -> str:
    _check_chat_template(tokenizer)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)


TRL_TOKEN_CLASSIFICATION = PRMFormat(name="trl", head="token_classification")
"""TRL's layout (`PRMTrainer` of TRL <= 1.13): a newline behind each step carries the label."""

MATH_SHEPHERD = PRMFormat(
    name="math-shepherd",
    head="causal_lm",
    tokenization="joint",
    step_tag=" ки",
    step_joiner="\n",
    prompt_separator=" ",
    positive_token="+",
    negative_token="-",
)
"""Math-Shepherd (arXiv 2312.08935): the tag ` ки` behind each step, and there the probability of `+` against `-`."""

ER_PRM = dataclasses.replace(MATH_SHEPHERD, name="er-prm", step_joiner="", positive_token=" +", negative_token=" -")
"""The released ER-PRM models (arXiv 2412.11006): as Math-Shepherd, without a newline behind the tag, and the label
tokens with the space before them. They were trained on the probability of ` +` against ` -`, which is what is read
here and what their README shows; the evaluation scripts beside it read ` +` in a softmax over the whole vocabulary."""

RLHFLOW = PRMFormat(
    name="rlhflow",
    head="causal_lm",
    layout="turns",
    tokenization="joint",
    step_tag="",
    prompt_separator=" ",
    positive_token="+",
    negative_token="-",
)
"""RLHFlow's Llama-3.1 models: each step is a user's turn, answered with `+`. Their scripts run one forward pass a
step; since a step's score depends on nothing behind it, one pass over the whole conversation gives the same."""

QWEN_MATH_PRM = PRMFormat(
    name="qwen2.5-math-prm",
    head="token_classification",
    layout="assistant_message",
    tokenization="joint",
    step_tag="<extra_0>",
    system_prompt="Please reason step by step, and put your final answer within \\boxed{}.",
    num_labels=2,
    head_module="mlp",
)
"""Qwen2.5-Math-PRM (arXiv 2501.07301): `<extra_0>` behind each step of one assistant message, two labels from a small
multi-layer perceptron."""

SKYWORK_O1 = PRMFormat(
    name="skywork-o1",
    head="token_classification",
    prompt_separator="\n",
    num_labels=1,
    key_mapping=((r"^pretrained_model\.", ""), (r"^v_head\.summary\.", "score.")),
)
"""Skywork-o1-Open-PRM: a newline behind the prompt and behind each step, and there the sigmoid of a value head."""

FORMATS = {f.name: f for f in (TRL_TOKEN_CLASSIFICATION, MATH_SHEPHERD, ER_PRM, RLHFLOW, QWEN_MATH_PRM, SKYWORK_O1)}
"""The known formats by name."""

DEFAULT_FORMATS = {"token_classification": TRL_TOKEN_CLASSIFICATION, "causal_lm": MATH_SHEPHERD}
"""The format that a head gets where none is named. For `causal_lm` it is Math-Shepherd's rather than ER-PRM's own,
which differs in the newline between steps: with it a tag stands apart from the step behind it in every tokenizer."""


def read_saved_format(path: str | os.PathLike, **hub_arguments) -> dict | None:
    """The content of a checkpoint's `prm_format.json`, from a directory or, for a model id, the Hub; or `None`."""
    if Path(path).exists():
        file = Path(path) / FORMAT_FILE
        return json.loads(file.read_text("utf-8")) if file.is_file() else None
    check_path_or_id(str(path))
    from transformers.utils import cached_file

    kinds = ("missing_entries", "connection_errors", "gated_repo")
    quietly = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    file = cached_file(str(path), FORMAT_FILE, **quietly, **hub_arguments)
    return json.loads(Path(file).read_text("utf-8")) if file else None


def format_of_checkpoint(path: str | os.PathLike, saved: dict | None) -> PRMFormat | None:
    """The format of a checkpoint that says what it is: by what it has saved, else as a copy of a published model
    ([`public_model_of`])."""
    if saved is not None:
        return PRMFormat.from_dict(saved)
    if (model_id := public_model_of(path)) is None:
        return None
    log_recognized(str(path), model_id)
    return FORMATS[PUBLIC_MODELS[model_id]]


def load_format(name_or_format: str | PRMFormat | None, head: str = "token_classification") -> PRMFormat:
    """A format by name; a `PRMFormat` is returned as it is, `None` gives the head's default."""
    if isinstance(name_or_format, PRMFormat):
        return name_or_format
    if name_or_format is None:
        return DEFAULT_FORMATS[head]
    check_choice("format", name_or_format, FORMATS)
    return FORMATS[name_or_format]
