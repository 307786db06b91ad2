"""Rollouts from a transformers model in this process.

Sampling is independent of the batch. `torch.multinomial` draws from one stream for the whole batch, so that a sample
changes with every other row. Here each sample has its own stream: SplitMix64 (Steele, Lea and Flood, 2014), keyed by
the hash of seed, prefix and sample number, gives one uniform number for each position, all of a batch computed at once
before it is generated. The token is then chosen by inverting the cumulative distribution at that number. `generate`
itself runs greedily and is handed logits in which the chosen token is on top, so caches, stopping and every
architecture work as they do anywhere in transformers.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .engine import Completion, Prefix, SamplingOptions, check_request, sample_keys

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TransformersEngine"]


class TransformersEngine:
    """A [`~rollout.engine.RolloutEngine`] on a loaded causal language model.

    Prefixes are sorted by length, left-padded in batches and completed by `model.generate` with its KV cache. During
    generation the model is in evaluation mode and its generation defaults are set aside (checkpoints ship, for
    example, `top_p`, `top_k` and `repetition_penalty`); both are put back afterwards, also after an error.

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
            Called after each batch with the number of completions that it gave, for example `tqdm.update`.

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
        # Some tokenizers close every text with an end token, after which nothing would be continued.
        self._closes_texts = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
        self._stop_tokens: dict[tuple[str, ...], torch.Tensor] = {}

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
            ValueError: if a prefix is empty, if a prefix and `max_new_tokens` together exceed the context window of
                the model (with the index of the prefix), if messages are given and the tokenizer has no chat template,
                or if `num_samples` or `first_sample` is out of range.
            FloatingPointError: if the model gives logits from which nothing can be sampled (nan or all -inf).
        """
        check_request(prefixes, num_samples, first_sample)
        if not prefixes:
            return []
        is_greedy = options.temperature == 0
        samples_to_run = 1 if is_greedy else num_samples
        prefix_ids = self._encode(prefixes, options)
        keys = np.array(
            [key for prefix in prefixes for key in sample_keys(prefix, options.seed, samples_to_run, first_sample)],
            dtype=np.uint64,
        )

        # Longest first: if memory runs out, it does at once. The sort is stable, so samples of a prefix stay together.
        of_prefix = np.repeat(np.arange(len(prefixes)), samples_to_run)
        lengths = np.array([len(ids) for ids in prefix_ids])[of_prefix]
        order = np.argsort(-lengths, kind="stable")
        completions: list[Completion | None] = [None] * len(order)
        with _evaluation_mode(self.model), _no_generation_defaults(self.model) as defaults:
            end_ids = self._end_ids(defaults)
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                batch = self._generate_batch(
                    [prefix_ids[of_prefix[row]] for row in rows], None if is_greedy else keys[rows], options, end_ids
                )
                for row, completion in zip(rows, batch, strict=True):
                    completions[row] = completion
                if self.progress is not None:
                    self.progress(len(rows) * (num_samples if is_greedy else 1))
        grouped = [completions[i : i + samples_to_run] for i in range(0, len(completions), samples_to_run)]
        return [group * num_samples for group in grouped] if is_greedy else grouped

    def _generate_batch(
        self, prefix_ids: list[list[int]], keys: np.ndarray | None, options: SamplingOptions, end_ids: list[int]
    ) -> list[Completion]:
        device = self.model.device
        pad_id = self.tokenizer.pad_token_id
        if pad_id is None:
            pad_id = end_ids[0] if end_ids else 0
        width = max(map(len, prefix_ids))
        input_ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in prefix_ids])
        attention_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prefix_ids])

        sampler = None
        if keys is not None:
            uniforms = torch.from_numpy(_uniform_numbers(keys, options.max_new_tokens)).to(device)
            sampler = _InverseTransformSampler(uniforms, width, options)
        stop = None
        if options.stop:
            stop = _StopTextCriteria(options.stop, width, end_ids, self._can_end_stop_text(options.stop), self._decode)
        sequences = self.model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=GenerationConfig(
                max_new_tokens=options.max_new_tokens,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                eos_token_id=end_ids or None,
                pad_token_id=pad_id,
                bos_token_id=self.tokenizer.bos_token_id,
            ),
            logits_processor=LogitsProcessorList([] if sampler is None else [sampler]),
            stopping_criteria=StoppingCriteriaList([] if stop is None else [stop]),
        )
        if sampler is not None and bool(sampler.failed):
            raise FloatingPointError(
                "The model must give logits from which a token can be sampled, got nan or only -inf. Check the "
                "weights and the dtype of the model; float16 overflows where bfloat16 does not."
            )

        new_ids = sequences[:, width:].cpu()
        num_tokens = torch.full((len(new_ids),), new_ids.shape[1])
        is_end = torch.isin(new_ids, torch.tensor(end_ids, dtype=new_ids.dtype))
        has_end = is_end.any(dim=1)
        end = torch.where(has_end, is_end.int().argmax(dim=1), num_tokens)  # (B,) tokens of the text, the end left out
        num_tokens = torch.where(has_end, end + 1, num_tokens)
        if stop is not None:
            num_tokens = torch.minimum(num_tokens, stop.num_tokens)  # what follows is padding, cut off with the text
        token_lists = [ids[:n] for ids, n in zip(new_ids.tolist(), end.tolist(), strict=True)]
        completions = []
        for text, count, is_finished in zip(
            self._decode(token_lists), num_tokens.tolist(), has_end.tolist(), strict=True
        ):
            cuts = [position for s in options.stop if (position := text.find(s)) >= 0]
            if cuts:
                text = text[: min(cuts)]
            completions.append(Completion(text, count, "stop" if is_finished or cuts else "length"))
        return completions

    def _encode(self, prefixes: Sequence[Prefix], options: SamplingOptions) -> list[list[int]]:
        """Token ids of the prefixes, each checked against the context window."""
        is_text = [isinstance(prefix.prompt, str) for prefix in prefixes]
        texts = [self._render(index, prefix) for index, prefix in enumerate(prefixes)]
        prefix_ids: list[list[int]] = [[]] * len(texts)
        # A chat template has written the special tokens already. One call for many texts: a call costs 0.1 ms.
        for add_special_tokens in (True, False):
            indices = [index for index, of_text in enumerate(is_text) if of_text is add_special_tokens]
            if not indices:
                continue
            batch = self.tokenizer([texts[index] for index in indices], add_special_tokens=add_special_tokens)
            for index, ids in zip(indices, batch["input_ids"], strict=True):
                prefix_ids[index] = ids[:-1] if add_special_tokens and self._closes_texts else ids
        window = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for index, ids in enumerate(prefix_ids):
            if not ids:
                raise ValueError(f"Prefix {index} has no tokens. Pass a prompt that is not empty.")
            if window is not None and len(ids) > window - options.max_new_tokens:
                raise ValueError(
                    f"Prefix {index} has {len(ids)} tokens, and at most {max(0, window - options.max_new_tokens)} "
                    f"fit: the context window of {window} tokens less `max_new_tokens`={options.max_new_tokens}. "
                    "Lower `max_new_tokens`, or leave this prefix out."
                )
        return prefix_ids

    def _render(self, index: int, prefix: Prefix) -> str:
        if isinstance(prefix.prompt, str):
            return prefix.prompt + prefix.completion
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"Prefix {index} holds messages, and the tokenizer has no chat template. Set "
                "`tokenizer.chat_template`, or pass prompts as text."
            )
        continues = prefix.prompt[-1]["role"] == "assistant"
        opening = self.tokenizer.apply_chat_template(
            prefix.prompt, tokenize=False, add_generation_prompt=not continues, continue_final_message=continues
        )
        return opening + prefix.completion

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


class _InverseTransformSampler(LogitsProcessor):
    """Puts the sampled token of each row on top of the logits: temperature, top-k and top-p, then inversion.

    In float32, as float64 would double the traffic of the largest array of a step. Over 150,000 tokens the cumulative
    probability is then off by 1e-7 on a CPU (torch adds up in float64 there) and about 1e-5 at worst on a GPU (block
    by block), far below sampling error.
    """

    def __init__(self, uniforms: torch.Tensor, prefix_length: int, options: SamplingOptions):
        self.uniforms = uniforms  # (B, max_new_tokens)
        self.prefix_length = prefix_length
        self.failed = torch.zeros((), dtype=torch.bool, device=uniforms.device)  # read once, after generation
        self.warpers = LogitsProcessorList()  # the order is that of `generate`
        if options.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(options.temperature)))
        if options.top_k > 0:
            self.warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            self.warpers.append(TopPLogitsWarper(options.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = self.warpers(input_ids, scores)  # (B, V)
        # `generate` may compute a step that it then takes back, hence the clamp.
        position = min(input_ids.shape[1] - self.prefix_length, self.uniforms.shape[1] - 1)
        probabilities = scores.softmax(dim=-1)
        cumulative = probabilities.cumsum(dim=-1)
        total = cumulative[:, -1:]
        self.failed |= ~torch.isfinite(total).all()
        # Against the total instead of 1, so that rounding of the sum cannot lead past the last token; and below it,
        # as the product may round up to it.
        target = torch.minimum(self.uniforms[:, position : position + 1] * total, total * (1 - 2**-23))
        tokens = torch.searchsorted(cumulative, target, right=True).clamp_(max=scores.shape[1] - 1)
        # A parallel sum need not rise monotonically in its last digit: a token that was filtered out is never taken.
        is_excluded = probabilities.gather(1, tokens) == 0
        tokens = torch.where(is_excluded, probabilities.argmax(dim=-1, keepdim=True), tokens)
        return scores.scatter_(1, tokens, torch.inf)


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


def _uniform_numbers(keys: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float32 of shape `(len(keys), count)`: SplitMix64, one stream a key.

    Number t of a stream is a hash of `key + (t + 1) * gamma`, so the whole matrix is computed at once, and a number
    does not depend on how many are asked for.
    """
    positions = np.arange(1, count + 1, dtype=np.uint64)
    z = keys[:, None] + positions * np.uint64(0x9E3779B97F4A7C15)  # wraps around at 2^64, as it should
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    # The upper 24 bits: as many as float32 holds exactly.
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


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
