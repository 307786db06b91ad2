"""Rollouts from a transformers model in this process.

Sampling is independent of the batch: see [`~rollout.token_sampling`].

There are two loops. Decoders of text whose layers all have full attention run in our own: each prefix goes through the
model once, whatever the number of its samples, its keys and values stay in one place for all of them
([`~rollout.shared_cache.SharedPrefixCache`]), rows that have ended are taken out, and others take their place. All
other models run in `model.generate`, which works for every architecture: greedily, on logits in which the chosen token
is put on top.

Measured and left out (CPU, transformers 5.23, 16 rollouts a prefix; `benchmarks/rollouts.py` has what is gained):

- transformers' continuous batching (`generate_batch`): 80 times the time of plain `generate` a rollout, and it draws
  all samples from one stream.
- A prefix read once, and its cache repeated for each row: as fast with the shape of Qwen2.5-0.5B and 32 rows a batch,
  2 to 10 times slower with the tiny model and 256 rows, and 16 times the memory.
- Reading the beginning that different prefixes share only once: in batches of prefixes of sampled GSM8K solutions,
  longest first, 13 % of the tokens are such a beginning (77 % if a batch held the prefixes of few solutions), and all
  reading of prefixes is but a tenth of the tokens that go through the model.
"""

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from .engine import Completion, Prefix, SamplingOptions, check_request, sample_keys
from .rendering import check_window, cut_at_stop, encode, render
from .shared_cache import NotShareableError, SharedPrefixCache, base_model, shared_prefix_attention, why_not_shareable
from .token_sampling import InverseTransformSampler, SampledTokenOnTop, uniform_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TransformersEngine"]

logger = logging.getLogger(__name__)

ENDED_SHARE = 0.25
"""Share of the rows of a batch that have to end before it changes. Until then they are carried along; a change costs a
copy of the cache. Our own runs: from 1/8 to 1/2 within a tenth of each other."""

MAX_WRITTEN = 2
"""How much a full batch may have written for others to join it: numbers in its cache, in parameters of the model. All
rows write into the same columns, so those who join have as many empty ones as the oldest row has tokens. That is cheap
where it is the weights that take time, and dear in a small model with long rows. Our own runs on a CPU, in comparison
to batches that run until all rows have ended: 1.4 times the speed at 0.006 (numbers a parameter), 1.05 times at 0.4 to
1.6, 0.9 times at 3 to 30, 0.6 times at 120."""


@dataclass(eq=False, slots=True)
class _Encoded:
    """A prefix as the model reads it. Prefixes of equal tokens are one object."""

    ids: np.ndarray  # int32: a list would take ten times the memory

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class _Row:
    """A sample of a prefix, on its way."""

    index: int  # of the prefix in the request
    sample: int
    prefix: _Encoded
    key: int
    tokens: list[int] = field(default_factory=list)
    has_ended: bool = False


class TransformersEngine:
    """A [`~rollout.engine.RolloutEngine`] on a loaded causal language model.

    Prefixes are sorted by length and left-padded in batches. During generation the model is in evaluation mode, its
    generation defaults are set aside (checkpoints ship, for example, `top_p`, `top_k` and `repetition_penalty`) and
    its attention function may be another; all is put back afterwards, also after an error.

    Departure from `continue_final_message`: the beginning of an answer is put behind the generation prompt of the chat
    template as it is. Rendered as a message it would be trimmed by many templates, and the line end that closes the
    last step be lost. A prompt that itself ends with an assistant message is rendered with `continue_final_message`.

    Args:
        model (`PreTrainedModel`):
            The policy, on the device where it shall run; a PEFT model is fine. It must be the module itself: unwrap a
            model that accelerate, DDP, FSDP or DeepSpeed has wrapped (`accelerator.unwrap_model`), and gather sharded
            parameters, as processes make different numbers of batches.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        batch_size (`int`, *optional*, defaults to `256`):
            Sequences generated at once. Results do not depend on it (up to rounding). Default: our own runs, where a
            small model is as fast as it gets from about 256 sequences a batch on; lower it if memory runs out.
        progress (`Callable[[int], object]`, *optional*):
            Called with the number of completions whenever there are new ones, for example `tqdm.update`.

    Raises:
        TypeError: if the model is wrapped or cannot generate.
        ValueError: if `batch_size` is below 1.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int = 256,
        progress: Callable[[int], object] | None = None,
    ):
        if not hasattr(model, "generate") or not hasattr(model, "config"):
            raise TypeError(
                f"`model` must be a transformers model that can generate, got {type(model).__name__}. Unwrap it "
                "first: `accelerator.unwrap_model(model)`."
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a whole number from 1 up, got {batch_size!r}. Pass at least 1.")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.progress = progress
        self._anchor_id, self._anchor_text = _find_anchor(tokenizer)
        self._stop_tokens: dict[tuple[str, ...], torch.Tensor] = {}
        self._pad_id = tokenizer.pad_token_id
        if self._pad_id is None:
            self._pad_id = 0 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self._shares_prefixes = True
        if reason := why_not_shareable(model):
            self._set_aside_sharing(reason)
        self._num_parameters = sum(parameter.numel() for parameter in model.parameters())

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
            PrefixTooLongError: if prefixes and `max_new_tokens` together exceed the context window of the model.
            FloatingPointError: if the model gives logits from which nothing can be sampled (nan or all -inf).
        """
        check_request(prefixes, num_samples, first_sample)
        if not prefixes:
            return []
        is_greedy = options.temperature == 0
        samples_to_run = 1 if is_greedy else num_samples
        encoded = self._encode(prefixes, options)
        completions: list[list[Completion | None]] = [[None] * samples_to_run for _ in prefixes]
        # Longest first: if memory runs out, it does at once. Those of equal tokens stand next to each other.
        order = sorted(range(len(prefixes)), key=lambda i: (-len(encoded[i]), encoded[i].ids.tobytes()))

        def rows() -> Iterator[_Row]:
            for index in order:
                keys = sample_keys(prefixes[index], options.seed, samples_to_run, first_sample)
                for sample, key in enumerate(keys):
                    if completions[index][sample] is None:
                        yield _Row(index, sample, encoded[index], key)

        with _evaluation_mode(self.model), _no_generation_defaults(self.model) as defaults, torch.no_grad():
            end_ids = self._end_ids(defaults)
            for ended in self._run(rows, options, end_ids):
                for row, completion in zip(ended, self._completions(ended, options, end_ids), strict=True):
                    completions[row.index][row.sample] = completion
                if self.progress is not None:
                    self.progress(len(ended) * (num_samples if is_greedy else 1))
        return [of_prefix * num_samples for of_prefix in completions] if is_greedy else completions

    def describe(self) -> dict[str, Any]:
        """Model, revision (of a model from the Hub) and dtype, for the manifest of a run."""
        config = self.model.config
        return {
            "model": config.name_or_path,
            "revision": getattr(config, "_commit_hash", None),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def _run(
        self, rows: Callable[[], Iterator[_Row]], options: SamplingOptions, end_ids: list[int]
    ) -> Iterator[list[_Row]]:
        """Gives rows as they end. `rows()` are those that have no completion yet."""
        if self._shares_prefixes:
            try:
                yield from self._run_shared(rows(), options, end_ids)
                return
            except NotShareableError as error:  # at the first token, if at all
                self._set_aside_sharing(str(error))
        waiting = rows()
        while batch := list(islice(waiting, self.batch_size)):
            self._run_generate(batch, options, end_ids)
            yield batch

    def _set_aside_sharing(self, reason: str) -> None:
        self._shares_prefixes = False
        logger.info("%s computes each prefix anew for each sample: %s.", type(self.model).__name__, reason)

    # Our own loop

    def _run_shared(
        self, waiting: Iterator[_Row], options: SamplingOptions, end_ids: list[int]
    ) -> Iterator[list[_Row]]:
        """
        Rows come in, run until a share of them has ended, and make room for others.

        `running` holds the rows of the batch, those of a prefix next to each other, and `prefixes` their prefixes in
        the same order. Each pass of the inner loop feeds each row its last token.
        """
        device = self.model.device
        sampler = InverseTransformSampler(options)
        can_end = self._can_end_stop_text(options.stop).tolist() if options.stop else None
        cache = SharedPrefixCache()
        running: list[_Row] = []
        prefixes: list[_Encoded] = []
        logits_behind: dict[_Encoded, torch.Tensor] = {}  # (V,): what the first token of a row is drawn from
        uniforms = torch.empty(0, options.max_new_tokens, device=device)
        while True:
            kept = [i for i, row in enumerate(running) if not row.has_ended]
            columns = max((len(running[i].tokens) for i in kept), default=0)
            is_joinable = self.batch_size * columns * cache.numel_per_token <= MAX_WRITTEN * self._num_parameters
            new = list(islice(waiting, self.batch_size - len(kept))) if is_joinable else []
            running = [running[i] for i in kept] + new
            if not running:
                return

            prefixes_before, prefixes = prefixes, list(dict.fromkeys(row.prefix for row in running))
            if not new and prefixes_before[-1] is not prefixes[-1]:
                prefixes.append(prefixes_before[-1])  # some of its rows may still wait
            group = {prefix: i for i, prefix in enumerate(prefixes)}
            kept_prefixes = [i for i, prefix in enumerate(prefixes_before) if prefix in group]
            states = None
            if new_prefixes := prefixes[len(kept_prefixes) :]:
                states, logits = self._read(new_prefixes)
                logits_behind.update(zip(new_prefixes, logits, strict=True))
            cache.rebuild(
                kept,
                kept_prefixes,
                states,
                prefix_lengths=[len(prefix) for prefix in prefixes],
                group_of_row=[group[row.prefix] for row in running],
                num_written=[max(0, len(row.tokens) - 1) for row in running],
            )
            numbers = uniform_numbers([row.key for row in new], options.max_new_tokens)
            uniforms = torch.cat([uniforms[kept], numbers.to(device)])
            if new:
                logits = torch.stack([logits_behind[row.prefix] for row in new])
                self._write(new, sampler.draw(logits, uniforms[len(kept) :, :1]), options, end_ids, can_end)
                logits_behind = {prefixes[-1]: logits_behind[prefixes[-1]].clone()}  # as above

            num_tokens = torch.tensor([[len(row.tokens)] for row in running], device=device)
            lengths = torch.tensor([[len(row.prefix)] for row in running], device=device)
            tokens = torch.tensor([[row.tokens[-1]] for row in running], device=device)
            with shared_prefix_attention(self.model):
                while sum(row.has_ended for row in running) < ENDED_SHARE * len(running):
                    logits = self.model(
                        input_ids=tokens,
                        position_ids=lengths + num_tokens - 1,
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=1,
                    ).logits[:, -1]
                    tokens = sampler.draw(logits, uniforms.gather(1, num_tokens))
                    self._write(running, tokens, options, end_ids, can_end)
                    # No further than the limit, which only rows that have ended would pass.
                    num_tokens = (num_tokens + 1).clamp_(max=options.max_new_tokens - 1)
            sampler.check()
            yield [row for row in running if row.has_ended]

    def _read(self, prefixes: list[_Encoded]) -> tuple[DynamicCache, torch.Tensor]:
        """Keys and values of prefixes, left-padded, and the logits behind them, `(len(prefixes), V)`."""
        input_ids, attention_mask = self._left_padded(prefixes)
        cache = DynamicCache(config=base_model(self.model).config)
        logits = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(dim=1) - 1).clamp_(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return cache, logits

    def _write(
        self,
        rows: list[_Row],
        tokens: torch.Tensor,
        options: SamplingOptions,
        end_ids: list[int],
        can_end_stop_text: list[bool] | None,
    ) -> None:
        """Adds a token to each row that has not ended, and notes which rows end with it."""
        may_stop = []
        for row, [token] in zip(rows, tokens.tolist(), strict=True):
            if row.has_ended:
                continue
            row.tokens.append(token)
            if token in end_ids or len(row.tokens) == options.max_new_tokens:
                row.has_ended = True
            elif can_end_stop_text is not None and can_end_stop_text[token]:
                may_stop.append(row)
        if may_stop:
            for row, text in zip(may_stop, self._decode([row.tokens for row in may_stop]), strict=True):
                row.has_ended = any(stop in text for stop in options.stop)

    # The loop of transformers

    def _run_generate(self, rows: list[_Row], options: SamplingOptions, end_ids: list[int]) -> None:
        input_ids, attention_mask = self._left_padded([row.prefix for row in rows])
        width = input_ids.shape[1]
        sampler, processors = InverseTransformSampler(options), LogitsProcessorList()
        if options.temperature > 0:
            uniforms = uniform_numbers([row.key for row in rows], options.max_new_tokens).to(self.model.device)
            processors.append(SampledTokenOnTop(sampler, uniforms, width))
        stop = None
        if options.stop:
            stop = _StopTextCriteria(options.stop, width, end_ids, self._can_end_stop_text(options.stop), self._decode)
        sequences = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=GenerationConfig(
                max_new_tokens=options.max_new_tokens,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                eos_token_id=end_ids or None,
                pad_token_id=self._pad_id,
                bos_token_id=self.tokenizer.bos_token_id,
            ),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([] if stop is None else [stop]),
        )
        sampler.check()

        new_ids = sequences[:, width:].cpu()
        is_end = torch.isin(new_ids, torch.tensor(end_ids, dtype=new_ids.dtype))
        num_tokens = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, new_ids.shape[1])
        if stop is not None:
            num_tokens = torch.minimum(num_tokens, stop.num_tokens)  # what follows is padding
        for row, ids, count in zip(rows, new_ids.tolist(), num_tokens.tolist(), strict=True):
            row.tokens = ids[:count]

    # What both need

    def _left_padded(self, prefixes: list[_Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, both `(len(prefixes), longest)`."""
        width = max(map(len, prefixes))
        input_ids = torch.full((len(prefixes), width), self._pad_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for i, prefix in enumerate(prefixes):
            input_ids[i, width - len(prefix) :] = torch.from_numpy(prefix.ids)
            attention_mask[i, width - len(prefix) :] = 1
        return input_ids.to(self.model.device), attention_mask.to(self.model.device)

    def _completions(self, rows: list[_Row], options: SamplingOptions, end_ids: list[int]) -> list[Completion]:
        has_end = [row.tokens[-1] in end_ids for row in rows]
        texts = self._decode([row.tokens[:-1] if end else row.tokens for row, end in zip(rows, has_end, strict=True)])
        completions = []
        for row, text, is_finished in zip(rows, texts, has_end, strict=True):
            text, stop_text = cut_at_stop(text, options.stop)
            reason = "stop" if is_finished or stop_text is not None else "length"
            completions.append(Completion(text, len(row.tokens), reason, stop_text))
        return completions

    def _encode(self, prefixes: Sequence[Prefix], options: SamplingOptions) -> list[_Encoded]:
        """Token ids of the prefixes, each checked against the context window."""
        known: dict[bytes, _Encoded] = {}
        encoded = []
        for start in range(0, len(prefixes), 1024):  # not all at once, since a tokenizer's output takes much room
            part = prefixes[start : start + 1024]
            texts = [render(index, prefix, self.tokenizer) for index, prefix in enumerate(part, start)]
            for ids in encode(part, texts, self.tokenizer, first_index=start):
                array = np.array(ids, dtype=np.int32)
                encoded.append(known.setdefault(array.tobytes(), _Encoded(array)))
        window = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        check_window([len(ids) for ids in encoded], window, options.max_new_tokens)
        return encoded

    def _end_ids(self, defaults: GenerationConfig | None) -> list[int]:
        """End-of-sequence tokens: those of the checkpoint (chat models have several) and the tokenizer's."""
        found = set()
        for ids in (getattr(defaults, "eos_token_id", None), self.tokenizer.eos_token_id):
            if ids is not None:
                found.update(ids if isinstance(ids, list | tuple) else [ids])
        return sorted(found)

    def _decode(self, token_lists: list[list[int]]) -> list[str]:
        """Texts of continuations, with the white space that they begin with.

        A SentencePiece decoder drops the space in front of the first token that it is given. So a token with a known
        text is put in front of each continuation, and its text taken away again.
        """
        if self._anchor_id is not None:
            token_lists = [[self._anchor_id, *ids] for ids in token_lists]
        texts = self.tokenizer.batch_decode(token_lists, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text[len(self._anchor_text) :] for text in texts]

    def _can_end_stop_text(self, stop: tuple[str, ...]) -> torch.Tensor:
        """Bool tensor `(vocab,)`: True for tokens that can complete one of the stop texts, on the model's device.

        Only after such a token is a row decoded to look for a stop text.
        """
        if stop not in self._stop_tokens:
            size = max(len(self.tokenizer), self.model.config.get_text_config().vocab_size)
            # Each token twice, as the first may lose a space in front of it. U+FFFD: a part of a character.
            texts = self.tokenizer.batch_decode(
                [[i, i] for i in range(len(self.tokenizer))],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
            last = {text[-1] for text in stop} | {"\ufffd"}
            can_end = torch.zeros(size, dtype=torch.bool)
            can_end[: len(texts)] = torch.tensor([not last.isdisjoint(text) for text in texts])
            self._stop_tokens[stop] = can_end
        return self._stop_tokens[stop].to(self.model.device)


class _StopTextCriteria(StoppingCriteria):
    """Ends a row once its completion holds one of the stop texts.

    transformers' `stop_strings` also match a text that began in the prefix, which a step separator often does.
    """

    def __init__(
        self,
        stop: tuple[str, ...],
        prefix_length: int,
        end_ids: list[int],
        can_end_stop_text: torch.Tensor,
        decode: Callable[[list[list[int]]], list[str]],
    ):
        self.stop = stop
        self.prefix_length = prefix_length
        self.end_ids = torch.tensor(end_ids, dtype=torch.long, device=can_end_stop_text.device)
        self.can_end_stop_text = can_end_stop_text
        self.decode = decode
        self.is_finished: torch.Tensor | None = None  # (B,)
        self.num_tokens: torch.Tensor | None = None  # (B,) tokens until the stop text was complete

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        tokens = input_ids[:, -1]
        if self.is_finished is None:
            self.is_finished = torch.zeros_like(tokens, dtype=torch.bool)
            self.num_tokens = torch.full((len(tokens),), torch.iinfo(torch.long).max)
        candidates = (self.can_end_stop_text[tokens] & ~self.is_finished).nonzero().squeeze(1)
        has_stopped = torch.zeros_like(self.is_finished)
        if len(candidates):
            texts = self.decode(input_ids[candidates, self.prefix_length :].tolist())
            rows = [row for row, text in zip(candidates.tolist(), texts, strict=True) if self._is_in(text)]
            has_stopped[rows] = True
            self.num_tokens[rows] = input_ids.shape[1] - self.prefix_length
        self.is_finished |= has_stopped | torch.isin(tokens, self.end_ids)
        return has_stopped

    def _is_in(self, text: str) -> bool:
        return any(stop in text for stop in self.stop)


def _find_anchor(tokenizer: "PreTrainedTokenizerBase") -> tuple[int | None, str]:
    """A token that decodes to plain letters or digits, and its text. `(None, "")` if there is none."""
    special = set(tokenizer.all_special_ids)
    for start in range(0, len(tokenizer), 1024):
        ids = [i for i in range(start, min(start + 1024, len(tokenizer))) if i not in special]
        texts = tokenizer.batch_decode(
            [[i] for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for i, text in zip(ids, texts, strict=True):
            if text.isascii() and text.isalnum():
                return i, text
    return None, ""


@contextlib.contextmanager
def _evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Turns dropout off, and puts every module back into the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        # Not `model.train()`, which would also switch modules that were in evaluation mode.
        for module in training:
            module.training = True


@contextlib.contextmanager
def _no_generation_defaults(model: torch.nn.Module) -> Iterator[GenerationConfig | None]:
    """Sets aside the generation defaults of a checkpoint, and yields them.

    `generate` fills every option that is not given from `model.generation_config`, today's options and those of later
    versions; and PEFT copies the config between its wrapper and the model. So it is replaced wherever it is held.
    """
    holders = [
        module for module in model.modules() if isinstance(vars(module).get("generation_config"), GenerationConfig)
    ]
    kept = [module.generation_config for module in holders]
    defaults = copy.deepcopy(kept[0]) if kept else None
    for module in holders:
        module.generation_config = GenerationConfig()
    try:
        yield defaults
    finally:
        for module, config in zip(holders, kept, strict=True):
            module.generation_config = config
