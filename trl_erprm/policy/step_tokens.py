"""Which tokens of a completion are which step: through characters, so that policy and PRM may differ in tokenizer.

The PRM judges text. The policy is trained on the token ids that it sampled, which need not be those that its tokenizer
would give for the text: a sampled "a", "b" stays two tokens where the tokenizer would merge them. So the ids are never
encoded anew; what each of them contributes to the text is found out instead, and the steps' character spans are laid
over that.

    completion_ids   [ 4*3 ][ =2\\n ][ 2+1=3 ][ EOS ]
    characters        0..3    3..6    6..11    11..11
    steps            |------- 0 ------|--- 1 --|
    step index         0       0        1       1
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from ..steps import Step, step_end_tokens, step_index_per_token

Span = tuple[int, int]


def decode_with_spans(
    tokenizer: PreTrainedTokenizerBase, completion_ids: Sequence[Sequence[int]]
) -> list[tuple[str, list[Span]]]:
    """
    Decodes completions, and says of each token which characters of the text it stands for.

    Tokens that share a character (the bytes of "é") each get the span of that character. Special tokens, which the
    text does not show, get an empty span.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that `completion_ids` are of.
        completion_ids (`Sequence[Sequence[int]]`):
            Token ids of each completion, without padding.

    Returns:
        `list[tuple[str, list[tuple[int, int]]]]`: for each completion its text, as
        `tokenizer.decode(ids, skip_special_tokens=True)` gives it, and for each token the first character and the one
        after its last.
    """
    texts = [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in completion_ids]
    special = set(tokenizer.all_special_ids)
    plain_ids = [[i for i in ids if i not in special] for ids in completion_ids]
    # Most completions are what the tokenizer would give for their text: then one fast call knows all spans.
    encoded: list[tuple[list[int], list[Span]]] = [([], [])] * len(texts)
    if tokenizer.is_fast and texts:
        batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        encoded = list(zip(batch["input_ids"], batch["offset_mapping"], strict=True))
    decoded = []
    for ids, text, plain, (encoded_ids, offsets) in zip(completion_ids, texts, plain_ids, encoded, strict=True):
        if plain != encoded_ids:
            offsets = _spans_by_stream(tokenizer, plain, text) or _spans_by_prefixes(tokenizer, plain, text)
        decoded.append((text, _with_special_tokens(ids, [tuple(span) for span in offsets], special, len(text))))
    return decoded


def completion_step_indices(
    tokenizer: PreTrainedTokenizerBase,
    completion_ids: Sequence[Sequence[int]],
    texts: Sequence[str],
    steps: Sequence[Sequence[Step]],
) -> list[list[int | None] | None]:
    """
    The step of each token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        completion_ids (`Sequence[Sequence[int]]`):
            Token ids of each completion, without padding.
        texts (`Sequence[str]`):
            The text of each completion that was split into steps: the decoded completion, or a part of it, such as the
            last message after a tool's answer. Of several equal parts, the last is meant.
        steps (`Sequence[Sequence[Step]]`):
            The steps of each text, as [`split_steps`] gives them.

    Returns:
        `list[list[int | None] | None]`: for each completion the step of each token: that of its last character, for a
        token without characters (end of text) that of the token before. `None` for tokens in front of the text.
        Tokens behind it are the last step's. `None` for a completion whose text is not part of what its tokens say.
    """
    found = []
    for spans, text, own_steps in _spans_in_texts(tokenizer, completion_ids, texts, steps):
        if spans is None:
            found.append(None)
            continue
        inside = [i for i, (start, _) in enumerate(spans) if start < len(text)]
        end = inside[-1] + 1 if inside else 0
        indices = step_index_per_token([(max(a, 0), max(b, 0)) for a, b in spans[:end]], own_steps)
        # What lies wholly in front of the text has no characters of it, and is no step's.
        indices = [None if b <= 0 and a < 0 else index for (a, b), index in zip(spans, indices, strict=False)]
        behind = len(own_steps) - 1 if own_steps else None
        found.append(indices + [behind] * (len(spans) - end))
    return found


def completion_step_ends(
    tokenizer: PreTrainedTokenizerBase,
    completion_ids: Sequence[Sequence[int]],
    texts: Sequence[str],
    steps: Sequence[Sequence[Step]],
) -> list[list[int] | None]:
    """
    The token at which each step ends, where a reward for the step is placed.

    Args:
        tokenizer, completion_ids, texts, steps:
            As for [`completion_step_indices`].

    Returns:
        `list[list[int] | None]`: for each completion the position of the last token of each step. Where one token
        holds the end of a step and the beginning of the next, and the step has no token of its own, it is that token.
        `None` for a completion whose text is not part of what its tokens say.
    """
    found = []
    for spans, text, own_steps in _spans_in_texts(tokenizer, completion_ids, texts, steps):
        if spans is None:
            found.append(None)
            continue
        clipped = [(min(max(a, 0), len(text)), min(max(b, 0), len(text))) for a, b in spans]
        ends = step_end_tokens(clipped, own_steps)
        for k, step in enumerate(own_steps):
            if ends[k] is None:
                last = step.start + len(text[step.start : step.end].rstrip())
                ends[k] = next(i for i, (a, b) in enumerate(clipped) if a < last <= b)
        found.append(ends)
    return found


def _spans_in_texts(tokenizer, completion_ids, texts, steps):
    """Spans of each completion's tokens, counted from the beginning of its text; `None` where it is not found."""
    for (decoded, spans), text, own_steps in zip(
        decode_with_spans(tokenizer, completion_ids), texts, steps, strict=True
    ):
        first = decoded.rfind(text)
        yield (None if first < 0 else [(a - first, b - first) for a, b in spans]), text, own_steps


def _with_special_tokens(ids: Sequence[int], spans: list[Span], special: set[int], end: int) -> list[Span]:
    """Puts an empty span where a special token stands: at the beginning of what follows it."""
    remaining, filled, start = list(spans), [], end
    for i in reversed(ids):
        span = (start, start) if i in special else remaining.pop()
        filled.append(span)
        start = span[0]
    return filled[::-1]


def _spans_by_stream(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[Span] | None:
    """Spans from decoding token by token; `None` where the pieces do not add up to the text."""
    if not tokenizer.is_fast:
        return None
    stream = DecodeStream(skip_special_tokens=True)
    try:
        pieces = [stream.step(tokenizer.backend_tokenizer, i) or "" for i in ids]
    except Exception:  # of no class of its own: bytes that are no character, at a place where it cannot wait for more
        return None
    joined = "".join(pieces)
    # Bytes that never became a character are shown as such at the end, which the stream holds back.
    if not text.startswith(joined) or text[len(joined) :].strip("\ufffd"):
        return None
    return _spans_of_pieces(pieces, text)


def _spans_by_prefixes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[Span]:
    """Spans from decoding every beginning: quadratic, for tokenizers that only decode a text as a whole."""
    pieces, end = [], 0
    for k in range(1, len(ids) + 1):
        beginning = tokenizer.decode(list(ids[:k]), skip_special_tokens=True)
        new_end = max(end, len(os.path.commonprefix([beginning, text])))
        pieces.append(text[end:new_end])
        end = new_end
    return _spans_of_pieces(pieces, text)


def _spans_of_pieces(pieces: Sequence[str], text: str) -> list[Span]:
    """Spans of tokens that add a piece each; a token that adds none waits for the character that it is a byte of."""
    spans, end = [], 0
    for piece in pieces:
        start, end = end, end + len(piece)
        spans.append((start, end if piece else min(start + 1, len(text))))
    if spans and end < len(text):
        spans[-1] = (spans[-1][0], len(text))
    return spans
