"""Sampling that is independent of the batch: a stream of random numbers for each sample.

`torch.multinomial` draws from one stream for the whole batch, so that a sample changes with every other row. Here each
sample has its own stream: SplitMix64 (Steele, Lea and Flood, 2014), keyed by the hash of seed, prefix and sample
number ([`~rollout.engine.sample_keys`]), gives one uniform number for each position ([`uniform_numbers`]). The token
is then chosen by inverting the cumulative distribution at that number ([`InverseTransformSampler`]).
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .engine import SamplingOptions

__all__ = ["InverseTransformSampler", "SampledTokenOnTop", "uniform_numbers"]


class InverseTransformSampler:
    """Chooses tokens: temperature, top-k and top-p, then inversion; at temperature 0 the likeliest.

    In float32, as float64 would double the traffic of the largest array of a step. Over 150,000 tokens the cumulative
    probability is then off by 1e-7 on a CPU (torch adds up in float64 there) and about 1e-5 at worst on a GPU (block
    by block), far below sampling error.
    """

    def __init__(self, options: SamplingOptions):
        self.is_greedy = options.temperature == 0
        self.failed: torch.Tensor | bool = (
            False  # read by `check`: not in every step, as a GPU would have to be awaited
        )
        self.warpers = LogitsProcessorList()  # the order is that of `generate`
        if options.temperature not in (0, 1):
            self.warpers.append(TemperatureLogitsWarper(float(options.temperature)))
        if options.top_k > 0:
            self.warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            self.warpers.append(TopPLogitsWarper(options.top_p))

    def draw(self, logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Tokens `(B, 1)` from logits `(B, V)` and uniform numbers `(B, 1)`."""
        if self.is_greedy:
            return logits.argmax(dim=-1, keepdim=True)
        probabilities = self.warpers(None, logits.float()).softmax(dim=-1)
        cumulative = probabilities.cumsum(dim=-1)
        total = cumulative[:, -1:]
        self.failed |= ~torch.isfinite(total).all()
        # Against the total instead of 1, so that rounding of the sum cannot lead past the last token; and below it,
        # as the product may round up to it.
        target = torch.minimum(uniforms * total, total * (1 - 2**-23))
        tokens = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[1] - 1)
        # A parallel sum need not rise monotonically in its last digit: a token that was filtered out is never taken.
        is_excluded = probabilities.gather(1, tokens) == 0
        # As good as always there is none, and the search for the likeliest costs a third of all this. An accelerator
        # is not asked: that would wait for it at each token.
        if logits.device.type == "cpu" and not is_excluded.any():
            return tokens
        return torch.where(is_excluded, probabilities.argmax(dim=-1, keepdim=True), tokens)

    def check(self) -> None:
        if bool(self.failed):
            raise FloatingPointError(
                "The model must give logits from which a token can be sampled, got nan or only -inf. Check the "
                "weights and the dtype of the model; float16 overflows where bfloat16 does not."
            )


class SampledTokenOnTop(LogitsProcessor):
    """Hands the tokens of a sampler to a `generate` that runs greedily."""

    def __init__(self, sampler: InverseTransformSampler, uniforms: torch.Tensor, prefix_length: int):
        self.sampler = sampler
        self.uniforms = uniforms  # (B, max_new_tokens)
        self.prefix_length = prefix_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # `generate` may compute a step that it then takes back, hence the clamp.
        position = min(input_ids.shape[1] - self.prefix_length, self.uniforms.shape[1] - 1)
        return scores.scatter(1, self.sampler.draw(scores, self.uniforms[:, position : position + 1]), torch.inf)


def uniform_numbers(keys: Sequence[int], count: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), float32 of shape `(len(keys), count)`: SplitMix64, one stream a key.

    Number t of a stream is a hash of `key + (t + 1) * gamma`, so the whole matrix is computed at once, and a number
    does not depend on how many are asked for.
    """
    positions = np.arange(1, count + 1, dtype=np.uint64)
    z = np.array(keys, dtype=np.uint64)[:, None] + positions * np.uint64(
        0x9E3779B97F4A7C15
    )  # wraps around at 2^64, as it should
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    # The upper 24 bits: as many as float32 holds exactly.
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))
