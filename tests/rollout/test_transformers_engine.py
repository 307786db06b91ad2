import copy
import gc
import logging
import math
import random
import weakref
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from trl_erprm.rollout import Completion, Prefix, SamplingOptions, load_engine, shared_cache, transformers_engine
from trl_erprm.rollout.shared_cache import (
    NotShareableError,
    SharedPrefixCache,
    shared_prefix_attention,
    why_not_shareable,
)
from trl_erprm.rollout.transformers_engine import TransformersEngine

SPECIAL = ["<pad>", "<eos>", "<end>", "<user>", "<assistant>"]
CHARACTERS = list("0123456789+-*=#abcdefghijklmnopqrstuvwxyz \n")
VOCABULARY = {token: i for i, token in enumerate(SPECIAL + CHARACTERS)}
EOS, END = VOCABULARY["<eos>"], VOCABULARY["<end>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each character."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=SPECIAL[2:],
        chat_template=CHAT_TEMPLATE,
    )


def make_model(seed: int = 0, **changes) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # wide, so that the distributions over tokens are far from uniform
        "eos_token_id": EOS,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    return Qwen2ForCausalLM(Qwen2Config(**{**shape, **changes})).eval()


def fix_logits(model: Qwen2ForCausalLM, logits: torch.Tensor) -> None:
    """Makes a model give the same next-token logits everywhere."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(logits.clone())

        def forward(self, hidden):
            return self.values.expand(*hidden.shape[:-1], -1)

    model.lm_head = Constant()


def follow(model: Qwen2ForCausalLM, successor: dict[str, str]) -> None:
    """Makes a model write, after each token, the one that `successor` names (characters or special tokens)."""
    size = len(VOCABULARY)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()  # attention and MLP add nothing: the last token alone decides
        model.model.embed_tokens.weight.copy_(torch.eye(size, model.config.hidden_size))
        head = torch.zeros(size, model.config.hidden_size)
        for token, following in successor.items():
            head[VOCABULARY[following], VOCABULARY[token]] = 100.0
        model.lm_head.weight.copy_(head)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def engine(tokenizer):
    return TransformersEngine(make_model(), tokenizer)


def options(max_new_tokens=12, **changes):
    return SamplingOptions(max_new_tokens, **changes)


PREFIXES = [
    Prefix("4*3=", "2\n"),
    Prefix("1+1="),
    Prefix("a much longer prompt 12345\n", "x"),
    Prefix("7"),
    Prefix("1+1="),
]


class TestContract:
    """What every engine promises."""

    def test_shape_order_and_types(self, engine):
        result = engine.generate(PREFIXES, 3, options())
        assert [len(of_prefix) for of_prefix in result] == [3] * 5
        assert all(isinstance(c, Completion) and 1 <= c.num_tokens <= 12 for row in result for c in row)
        assert {c.finish_reason for row in result for c in row} <= {"stop", "length"}

    def test_no_prefixes_no_completions(self, engine):
        assert engine.generate([], 4, options()) == []

    def test_a_sample_does_not_depend_on_the_batch(self, tokenizer):
        model = make_model()
        together = TransformersEngine(model, tokenizer).generate(PREFIXES, 5, options())
        assert together[1] == together[4]  # equal prefixes
        for prefix, expected in zip(PREFIXES, together, strict=True):
            assert TransformersEngine(model, tokenizer).generate([prefix], 5, options()) == [expected]
        reversed_order = TransformersEngine(model, tokenizer).generate(PREFIXES[::-1], 5, options())
        assert reversed_order == together[::-1]
        for batch_size in (1, 2, 7):
            assert TransformersEngine(model, tokenizer, batch_size).generate(PREFIXES, 5, options()) == together

    def test_further_samples_continue_the_first(self, engine):
        all_at_once = engine.generate(PREFIXES, 7, options())
        first, rest = engine.generate(PREFIXES, 4, options()), engine.generate(PREFIXES, 3, options(), first_sample=4)
        assert [a + b for a, b in zip(first, rest, strict=True)] == all_at_once

    def test_samples_seeds_and_prefixes_differ(self, engine):
        samples = engine.generate([Prefix("1+1=")], 8, options())[0]
        assert len({c.text for c in samples}) > 4
        assert engine.generate([Prefix("1+1=")], 8, options(seed=1))[0] != samples
        # the same text, divided otherwise: another prefix, another stream
        assert engine.generate([Prefix("1+1", "=")], 8, options())[0] != samples

    def test_the_global_random_state_is_neither_read_nor_changed(self, engine):
        torch.manual_seed(1)
        first = engine.generate(PREFIXES, 2, options())
        state = torch.get_rng_state()
        torch.manual_seed(2)
        assert engine.generate(PREFIXES, 2, options()) == first
        torch.manual_seed(1)
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_longer_limit_only_continues(self, engine):
        short, long = engine.generate(PREFIXES, 4, options(5)), engine.generate(PREFIXES, 4, options(15))
        for a, b in zip(sum(short, []), sum(long, []), strict=True):
            assert b.text.startswith(a.text)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([Prefix("1")], 0), "`num_samples` must be a whole number from 1 up, got 0"),
            (([Prefix("1")], 1.0), "`num_samples` must be a whole number from 1 up, got 1.0"),
        ],
    )
    def test_bad_requests(self, engine, arguments, message):
        with pytest.raises(ValueError, match=message):
            engine.generate(*arguments, options())


class TestGreedy:
    def test_equals_generate(self, engine, tokenizer):
        result = engine.generate(PREFIXES, 2, options(temperature=0))
        for prefix, completions in zip(PREFIXES, result, strict=True):
            ids = torch.tensor([tokenizer(prefix.prompt + prefix.completion)["input_ids"]])
            expected = engine.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
            )[0, ids.shape[1] :]
            assert completions[0].text == tokenizer.decode(expected, skip_special_tokens=True)
            assert completions[0].num_tokens == len(expected)
            assert completions[0] == completions[1]

    def test_runs_once_a_prefix(self, tokenizer):
        given = []
        engine = TransformersEngine(make_model(), tokenizer, progress=given.append)
        rows = []
        forward = engine.model.forward
        engine.model.forward = lambda *a, **k: (rows.append(len(k["input_ids"])), forward(*a, **k))[1]
        engine.generate([Prefix("1"), Prefix("2")], 8, options(temperature=0))
        assert max(rows) == 2
        assert sum(given) == 16


class TestDistribution:
    """The first token is distributed as the options say: Pearson's statistic against its 1-in-1000 bound."""

    NUM_SAMPLES = 4000

    def probabilities(self, engine, tokenizer, prefix):
        ids = torch.tensor([tokenizer(prefix.prompt)["input_ids"]])
        with torch.no_grad():
            return engine.model(input_ids=ids).logits[0, -1].double().softmax(-1)

    def statistic(self, engine, tokenizer, expected, prefix, sampling):
        samples = engine.generate([prefix], self.NUM_SAMPLES, sampling)[0]
        counts = Counter(completion.text for completion in samples)
        ids_by_text: dict[str, list[int]] = {}
        for i in range(len(VOCABULARY)):
            ids_by_text.setdefault(tokenizer.decode([i], skip_special_tokens=True), []).append(i)
        expected_by_text = {t: float(expected[ids].sum()) * self.NUM_SAMPLES for t, ids in ids_by_text.items()}
        assert all(expected_by_text[text] > 0 for text in counts), "a token that was excluded was drawn"
        cells, rest = [], [0.0, 0.0]  # cells with fewer than 5 expected are pooled
        for text, number in expected_by_text.items():
            if number >= 5:
                cells.append((counts[text], number))
            else:
                rest[0] += counts[text]
                rest[1] += number
        if rest[1] > 0:
            cells.append(tuple(rest))
        assert len(cells) > 4
        chi_square = sum((observed - number) ** 2 / number for observed, number in cells)
        degrees = len(cells) - 1
        # Wilson and Hilferty's approximation of the 99.9 % point
        bound = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
        return chi_square, bound

    def warped(self, p, temperature=1.0, top_k=0, top_p=1.0):
        """The definitions, written out."""
        p = (p.log() / temperature).softmax(-1)
        order = p.argsort(descending=True)
        if top_k:
            p[order[top_k:]] = 0
            p = p / p.sum()
        if top_p < 1:
            before = p[order].cumsum(0) - p[order]  # kept until the sum of those before reaches top_p
            p[order[before >= top_p]] = 0
        return p / p.sum()

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"temperature": 0.5},
            {"temperature": 2.0},
            {"top_k": 9},
            {"top_p": 0.8},
            {"temperature": 1.5, "top_k": 20, "top_p": 0.7},
        ],
        ids=str,
    )
    def test_first_token(self, engine, tokenizer, changes):
        prefix = Prefix("4*3=")
        p = self.probabilities(engine, tokenizer, prefix)
        chi_square, bound = self.statistic(engine, tokenizer, self.warped(p, **changes), prefix, options(1, **changes))
        assert chi_square < bound
        if changes:  # and the option matters: the model's own distribution does not fit
            drawn = Counter(c.text for c in engine.generate([prefix], self.NUM_SAMPLES, options(1, **changes))[0])
            plain = Counter(c.text for c in engine.generate([prefix], self.NUM_SAMPLES, options(1))[0])
            assert sum((drawn - plain).values()) > 0.03 * self.NUM_SAMPLES

    def test_positions_are_independent(self, tokenizer):
        """Pairs of tokens of a model that ignores its input fall into a product of distributions."""
        model = make_model(eos_token_id=None)
        logits = torch.full((len(VOCABULARY),), -torch.inf)
        logits[[VOCABULARY[c] for c in "abcd"]] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
        fix_logits(model, logits)
        samples = TransformersEngine(model, tokenizer).generate([Prefix("1")], self.NUM_SAMPLES, options(2))[0]
        counts = Counter(c.text for c in samples)
        chi_square = 0.0
        for first, p in zip("abcd", (0.1, 0.2, 0.3, 0.4), strict=True):
            for second, q in zip("abcd", (0.1, 0.2, 0.3, 0.4), strict=True):
                number = p * q * self.NUM_SAMPLES
                chi_square += (counts[first + second] - number) ** 2 / number
        assert chi_square < 37.7  # 99.9 % point of 15 degrees of freedom
        assert sum(counts.values()) == self.NUM_SAMPLES

    def test_only_one_token_possible(self, tokenizer):
        model = make_model(eos_token_id=None)
        for token in ("<pad>", "\n", "a"):  # the first, the last and one between
            logits = torch.full((len(VOCABULARY),), -torch.inf)
            logits[VOCABULARY[token]] = 3.0
            fix_logits(model, logits)
            samples = TransformersEngine(model, tokenizer).generate([Prefix("1")], 50, options(3))[0]
            assert {c.text for c in samples} == {"" if token == "<pad>" else token * 3}

    def test_logits_that_are_nan_are_an_error(self, tokenizer):
        model = make_model()
        fix_logits(model, torch.full((len(VOCABULARY),), torch.nan))
        with pytest.raises(FloatingPointError, match="must give logits from which a token can be sampled, got nan"):
            TransformersEngine(model, tokenizer).generate([Prefix("1")], 2, options(2))


class TestCheckpointDefaults:
    # What Qwen2.5-Math ships, and more of the kind.
    SHIPPED = {
        "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "max_length": 30,
        "min_p": 0.2, "typical_p": 0.5, "no_repeat_ngram_size": 1, "num_return_sequences": 2, "min_new_tokens": 12,
        "suppress_tokens": [20, 21], "forced_eos_token_id": EOS, "renormalize_logits": True, "num_beams": 2,
    }  # fmt: skip

    def test_do_not_leak(self, tokenizer):
        expected = TransformersEngine(make_model(), tokenizer).generate(PREFIXES, 6, options())
        greedy = TransformersEngine(make_model(), tokenizer).generate(PREFIXES, 1, options(temperature=0))
        model = make_model()
        shipped = GenerationConfig(eos_token_id=EOS, pad_token_id=0, **self.SHIPPED)
        model.generation_config = shipped
        before = copy.deepcopy(shipped)
        engine = TransformersEngine(model, tokenizer)
        assert engine.generate(PREFIXES, 6, options()) == expected
        assert engine.generate(PREFIXES, 1, options(temperature=0)) == greedy
        assert model.generation_config is shipped and shipped == before

    def test_are_put_back_after_an_error(self, tokenizer):
        model = make_model()
        shipped = model.generation_config
        model.train()
        model.model.layers[0].eval()
        model.forward = None
        with pytest.raises(TypeError):
            TransformersEngine(model, tokenizer).generate([Prefix("1")], 1, options())
        assert model.generation_config is shipped
        assert model.training and not model.model.layers[0].training and model.model.layers[1].training

    def test_peft_model(self, tokenizer):
        from peft import LoraConfig, get_peft_model

        model = make_model()
        expected = TransformersEngine(model, tokenizer).generate(PREFIXES, 2, options())
        shipped = model.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=0, top_k=1, do_sample=True)
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"))
        assert TransformersEngine(adapted, tokenizer).generate(PREFIXES, 2, options()) == expected
        assert model.generation_config is shipped
        assert adapted.generation_config.top_k == 1

    def test_dropout_is_off_and_the_mode_is_restored(self, tokenizer):
        model = make_model(attention_dropout=0.9)
        expected = TransformersEngine(model, tokenizer).generate(PREFIXES, 2, options())
        model.train()
        assert TransformersEngine(model, tokenizer).generate(PREFIXES, 2, options()) == expected
        assert model.training


class TestEnd:
    def test_end_of_sequence_token(self, tokenizer):
        model = make_model()
        follow(model, {"1": "a", "a": "b", "b": "<eos>", "<eos>": "c", "2": "b", "3": "c", "c": "c"})
        engine = TransformersEngine(model, tokenizer)
        result = engine.generate([Prefix("1"), Prefix("2"), Prefix("3")], 1, options(5))
        assert result == [
            [Completion("ab", 3, "stop")],
            [Completion("b", 2, "stop")],
            [Completion("ccccc", 5, "length")],
        ]
        # just at the limit
        assert engine.generate([Prefix("1")], 1, options(3)) == [[Completion("ab", 3, "stop")]]
        assert engine.generate([Prefix("1")], 1, options(2)) == [[Completion("ab", 2, "length")]]

    def test_several_end_tokens(self, tokenizer):
        model = make_model()
        follow(model, {"1": "a", "a": "<end>", "<end>": "b", "2": "b", "b": "<eos>"})
        result = TransformersEngine(model, tokenizer).generate([Prefix("1"), Prefix("2")], 1, options(6))
        assert result == [[Completion("ab", 4, "stop")], [Completion("b", 2, "stop")]]  # <end> is special, but no end
        model.generation_config.eos_token_id = [END, EOS]
        result = TransformersEngine(model, tokenizer).generate([Prefix("1"), Prefix("2")], 1, options(6))
        assert result == [[Completion("a", 2, "stop")], [Completion("b", 2, "stop")]]

    def test_the_end_token_of_the_tokenizer_counts_as_well(self, tokenizer):
        model = make_model(eos_token_id=None)
        assert model.generation_config.eos_token_id is None
        follow(model, {"1": "a", "a": "<eos>", "<eos>": "b", "b": "b"})
        assert TransformersEngine(model, tokenizer).generate([Prefix("1")], 1, options(6))[0][0].text == "a"

    def test_padding_is_not_part_of_a_completion(self, tokenizer):
        """A short row next to a long one, also where the padding token is the end token."""
        model = make_model()
        follow(model, {"1": "a", "a": "<eos>", "2": "b", "b": "b"})
        for pad_token in ("<pad>", "<eos>", None):
            own = make_tokenizer()
            own.pad_token = pad_token
            result = TransformersEngine(model, own).generate([Prefix("1"), Prefix("2222")], 1, options(4))
            assert result == [[Completion("a", 2, "stop")], [Completion("bbbb", 4, "length")]]

    def test_stop_text(self, tokenizer):
        model = make_model()
        follow(model, {"1": "a", "a": "b", "b": "c", "c": "\n", "\n": "a", "2": "<eos>", "3": "d", "d": "d"})
        engine = TransformersEngine(model, tokenizer)
        prefixes = [Prefix("1"), Prefix("2"), Prefix("3")]
        for pad_token in ("<pad>", "<eos>"):
            own = make_tokenizer()
            own.pad_token = pad_token
            engine = TransformersEngine(model, own)
            result = engine.generate(prefixes, 1, options(10, stop=("\nab", "xyz")))
            assert [completion.stop_text for [completion] in result] == ["\nab", None, None]
            assert result == [[Completion("abc", 7 - 1, "stop")]] + [
                [Completion("", 1, "stop")],
                [Completion("d" * 10, 10, "length")],
            ]
        # the first one in the text wins, and a stop text at the very limit is a stop
        assert engine.generate([Prefix("1")], 1, options(10, stop=("bc", "\n")))[0] == [Completion("a", 3, "stop")]
        assert engine.generate([Prefix("1")], 1, options(10, stop=("c", "bc")))[0] == [Completion("a", 3, "stop")]
        assert engine.generate([Prefix("1")], 1, options(3, stop=("bc",)))[0] == [Completion("a", 3, "stop")]
        assert engine.generate([Prefix("1")], 1, options(2, stop=("bc",)))[0] == [Completion("ab", 2, "length")]

    def test_stop_text_is_looked_for_in_the_completion_only(self, tokenizer):
        model = make_model()
        follow(model, {"\n": "\n"})
        engine = TransformersEngine(model, tokenizer)
        assert engine.generate([Prefix("1\n\n\n")], 1, options(9, stop=("\n\n",)))[0] == [Completion("", 2, "stop")]

    def test_stop_text_ends_generation(self, tokenizer):
        model = make_model()
        follow(model, {"1": "a", "a": "b", "b": "a"})
        engine = TransformersEngine(model, tokenizer)
        calls = []
        forward = model.forward
        model.forward = lambda *a, **k: (calls.append(1), forward(*a, **k))[1]
        engine.generate([Prefix("1")], 3, options(30, stop=("ba",)))
        assert len(calls) == 3


def unshared(engine: TransformersEngine) -> TransformersEngine:
    """The same engine on transformers' own loop."""
    other = TransformersEngine(engine.model, engine.tokenizer, engine.batch_size)
    other._shares_prefixes = False
    return other


def many_prefixes(count: int, longest: int = 40) -> list[Prefix]:
    """Of different lengths, the last ones with the same tokens as others."""
    rng = random.Random(0)
    prefixes = [Prefix("".join(rng.choices(CHARACTERS, k=rng.randint(1, longest)))) for _ in range(count - 2)]
    text = max((prefix.prompt for prefix in prefixes), key=len)
    return [*prefixes, prefixes[1], Prefix(text[:3], text[3:])]


def watch(model: nn.Module) -> list[torch.Tensor]:
    """The ids that go through the embedding from now on, one tensor a forward pass."""
    seen = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    return seen


class TestSharedPrefixes:
    """Our own loop gives what transformers' loop gives, and takes fewer tokens through the model for it."""

    @pytest.mark.parametrize(
        "sampling",
        [{}, {"temperature": 0, "stop": tuple("123ab")}, {"top_p": 0.9, "stop": ("a1", "b", "\n")}],
        ids=str,
    )
    def test_equals_the_loop_of_transformers(self, tokenizer, sampling, monkeypatch):
        """With rows that end at the limit and before it, and buffers that grow."""
        monkeypatch.setattr(shared_cache, "GROWTH", 4)
        prefixes, model, sampling = many_prefixes(8), make_model(), options(20, **sampling)
        expected = unshared(TransformersEngine(model, tokenizer)).generate(prefixes, 6, sampling)
        lengths = {completion.num_tokens for of_prefix in expected for completion in of_prefix}
        assert min(lengths) < 5 and max(lengths) > 18
        for batch_size in (5, 16, 256):
            for max_written in (0, 1, 1e9):
                monkeypatch.setattr(transformers_engine, "MAX_WRITTEN", max_written)
                engine = TransformersEngine(model, tokenizer, batch_size)
                assert engine.generate(prefixes, 6, sampling) == expected
                assert engine._shares_prefixes

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_other_attention_functions(self, tokenizer, attention):
        model = make_model()
        model.set_attn_implementation(attention)
        engine = TransformersEngine(model, tokenizer)
        assert engine.generate(PREFIXES, 4, options()) == unshared(engine).generate(PREFIXES, 4, options())
        assert model.config._attn_implementation == attention

    def test_learned_positions(self, tokenizer):
        """Up to the last one, while rows that have ended are carried along."""
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(VOCABULARY), n_embd=32, n_layer=2, n_head=2, n_positions=40, initializer_range=0.2,
            eos_token_id=EOS, bos_token_id=EOS,
        )  # fmt: skip
        engine = TransformersEngine(GPT2LMHeadModel(config).eval(), tokenizer, batch_size=16)
        prefixes = [Prefix("1" * 15), Prefix("2" * 15), Prefix("a")]
        result = engine.generate(prefixes, 16, options(25))
        assert engine._shares_prefixes and result == unshared(engine).generate(prefixes, 16, options(25))

    @pytest.mark.parametrize("max_written", [0, 1e9])
    @pytest.mark.parametrize("batch_size", [1, 5, 24, 256])
    def test_a_prefix_is_read_once(self, tokenizer, batch_size, max_written, monkeypatch):
        """Whatever its samples, also if they do not fit into one batch, or if another request has the same tokens."""
        monkeypatch.setattr(transformers_engine, "MAX_WRITTEN", max_written)
        engine = TransformersEngine(make_model(), tokenizer, batch_size)
        prefixes = [*many_prefixes(10), *(Prefix(*texts) for texts in (["12"], ["34"], "12", "34"))]
        seen = watch(engine.model)
        engine.generate(prefixes, 8, options(10))
        texts = {
            prefix.prompt + prefix.completion for prefix in prefixes if len(prefix.prompt + prefix.completion) > 1
        }
        read = [ids for ids in seen if ids.shape[1] > 1]
        assert len(texts) < len(prefixes)
        assert sum(int((ids != tokenizer.pad_token_id).sum()) for ids in read) == sum(map(len, texts))

    def test_rows_that_have_ended_are_taken_out(self, tokenizer):
        """Of 16 rows, 8 write one token and 8 write sixteen: 8 of them go through the model 15 times."""
        model = make_model()
        follow(model, {"1": "<eos>", "2": "b", "b": "b"})
        engine = TransformersEngine(model, tokenizer)
        seen = watch(model)
        result = engine.generate([Prefix("1"), Prefix("2")], 8, options(16))
        assert result == [[Completion("", 1, "stop")] * 8, [Completion("b" * 16, 16, "length")] * 8]
        assert [tuple(ids.shape) for ids in seen] == [(2, 1)] + [(8, 1)] * 15

    def test_rows_that_have_not_ended_are_few_enough_to_carry_on(self, tokenizer):
        """A batch changes once a quarter of it has ended, not with each row."""
        model = make_model()
        follow(model, {"1": "<eos>", "2": "b", "b": "b", "<eos>": "<eos>"})
        seen = watch(model)
        prefixes = [Prefix("1"), *[Prefix("2")] * 7]
        result = TransformersEngine(model, tokenizer).generate(prefixes, 1, options(4))
        assert result == [[Completion("", 1, "stop")]] + [[Completion("bbbb", 4, "length")]] * 7
        assert [len(ids) for ids in seen] == [2, 8, 8, 8]

    @pytest.mark.parametrize(
        ("max_written", "rows_a_pass"), [(1e9, [2] + [2] * 7 + [1] * 2), (0, [2] + [2] * 3 + [1] * 4 + [2] * 3)]
    )
    def test_others_take_their_place(self, tokenizer, max_written, rows_a_pass, monkeypatch):
        """Rows of 8, 4, 4 and 4 tokens, two at a time: others start when one has ended, or when both have ended."""
        monkeypatch.setattr(transformers_engine, "MAX_WRITTEN", max_written)
        model = make_model()
        follow(model, dict(zip("2345678abc", "3456789bcd", strict=True)) | {"9": "<eos>", "d": "<eos>"})
        seen = watch(model)
        result = TransformersEngine(model, tokenizer, batch_size=2).generate(
            [Prefix("2"), *[Prefix("a")] * 3], 1, options(12)
        )
        assert result == [[Completion("3456789", 8, "stop")], *[[Completion("bcd", 4, "stop")]] * 3]
        assert [len(ids) for ids in seen] == rows_a_pass  # the first pass reads both prefixes

    def test_a_row_is_not_longer_for_having_joined_late(self, tokenizer):
        """Each row feeds one token fewer than it writes; what is carried along comes on top, at most a third of it."""
        engine = TransformersEngine(make_model(max_position_embeddings=256), tokenizer, batch_size=32)
        prefixes = [
            prefix for prefix in many_prefixes(8) if prefix.prompt[1:]
        ]  # what has one token is a row that runs
        seen = watch(engine.model)
        result = engine.generate(prefixes, 16, options(40))
        fed = sum(c.num_tokens - 1 for of_prefix in result for c in of_prefix)
        assert fed <= sum(ids.numel() for ids in seen if ids.shape[1] == 1) < fed * 4 / 3

    def test_peft_model(self, tokenizer):
        from peft import LoraConfig, PromptTuningConfig, get_peft_model

        model = make_model()
        config = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, task_type="CAUSAL_LM", init_lora_weights=False)
        engine = TransformersEngine(get_peft_model(model, config), tokenizer)
        result = engine.generate(PREFIXES, 4, options())
        assert engine._shares_prefixes and result == unshared(engine).generate(PREFIXES, 4, options())
        with engine.model.disable_adapter():
            assert engine.generate(PREFIXES, 4, options()) != result
        prompt_tuned = get_peft_model(make_model(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
        assert why_not_shareable(prompt_tuned) == "its adapter puts learned tokens in front of the prompt"

    def test_caches_are_freed_at_once(self, tokenizer, monkeypatch):
        """Not by the garbage collector, which knows nothing of the memory behind a tensor and may wait for long."""
        alive = []

        def noted():
            cache = SharedPrefixCache()
            alive.append(weakref.ref(cache))
            return cache

        monkeypatch.setattr(transformers_engine, "SharedPrefixCache", noted)
        gc.disable()
        try:
            TransformersEngine(make_model(), tokenizer, batch_size=8).generate(PREFIXES, 4, options())
            assert [cache() for cache in alive] == [None]
        finally:
            gc.enable()

    def test_the_attention_function_is_put_back_after_an_error(self, tokenizer):
        model = make_model()
        forward, calls = model.forward, []

        def fail_in_the_third_pass(**inputs):
            calls.append(model.config._attn_implementation)
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return forward(**inputs)

        model.forward = fail_in_the_third_pass
        with pytest.raises(RuntimeError, match="out of memory"):
            TransformersEngine(model, tokenizer).generate(PREFIXES, 2, options())
        assert calls == ["sdpa", shared_cache.ATTENTION, shared_cache.ATTENTION]
        assert model.config._attn_implementation == "sdpa"


class TestSharedPrefixCache:
    def logits_of(self, model, rows):
        """The logits behind each row, computed one by one without a cache."""
        with torch.no_grad():
            return torch.cat([model(input_ids=torch.tensor([row])).logits[:, -1] for row in rows])

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=str)
    def test_logits(self, dtype, tolerance, monkeypatch):
        """Rows leave and join, a prefix goes and another comes, and the buffers grow."""
        monkeypatch.setattr(shared_cache, "GROWTH", 4)
        model = make_model(max_position_embeddings=512, initializer_range=0.1)
        exact, model = copy.deepcopy(model), model.to(dtype)
        generator = torch.Generator().manual_seed(0)

        def ids(count):
            return torch.randint(5, len(VOCABULARY), (count,), generator=generator).tolist()

        def read(prefixes):
            width, cache = max(map(len, prefixes)), DynamicCache(config=model.config)
            model(
                input_ids=torch.tensor([[0] * (width - len(p)) + p for p in prefixes]),
                attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prefixes]),
                position_ids=torch.tensor([[0] * (width - len(p)) + list(range(len(p))) for p in prefixes]),
                past_key_values=cache,
            )
            return cache

        def check_steps(count):
            for _ in range(count):
                for row in rows:
                    row += ids(1)
                with shared_prefix_attention(model):
                    logits = model(
                        input_ids=torch.tensor([row[-1:] for row in rows]),
                        position_ids=torch.tensor([[len(row) - 1] for row in rows]),
                        past_key_values=cache,
                    ).logits[:, -1]
            torch.testing.assert_close(logits.float(), self.logits_of(exact, rows), atol=tolerance, rtol=tolerance)

        with torch.no_grad():
            first, second, third = ids(9), ids(5), ids(2)
            cache = SharedPrefixCache()
            rows = [list(first), list(second), list(second), list(second)]
            cache.rebuild([], [], read([first, second]), [9, 5], [0, 1, 1, 1], [0] * 4)
            check_steps(1)
            check_steps(9)
            assert cache.layers[0].keys.shape[2] == 3 * 4
            # the first prefix goes with its row, two rows of the second stay, and one more of it and of a third come
            rows = [rows[1], rows[3], list(second), list(third), list(third)]
            cache.rebuild([1, 3], [1], read([third]), [5, 2], [0, 0, 0, 1, 1], [10] * 2 + [0] * 3)
            check_steps(1)
            check_steps(2)
            # nobody comes, and the oldest row goes
            rows = rows[2:]
            cache.rebuild([2, 3, 4], [0, 1], None, [5, 2], [0, 1, 1], [3] * 3)
            assert cache.layers[0].keys.shape[2] == 3 + 4  # without the columns that only it had
            check_steps(1)

    def test_numel_per_token(self, tokenizer):
        model = make_model(num_hidden_layers=3)
        cache = SharedPrefixCache()
        assert cache.numel_per_token == 0
        states = DynamicCache(config=model.config)
        model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=states)
        cache.rebuild([], [], states, [3], [0, 0], [0, 0])
        assert cache.numel_per_token == 3 * 2 * 2 * 16  # layers, keys and values, heads, numbers a head


class TestModelsThatDoNotShare:
    """They run as they do anywhere in transformers."""

    def sliding(self):
        return make_model(use_sliding_window=True, sliding_window=4, max_window_layers=1)

    def falcon(self):
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.2}
        return FalconForCausalLM(FalconConfig(vocab_size=len(VOCABULARY), eos_token_id=EOS, bos_token_id=EOS, **shape))

    def softcap(self):
        """Full attention in all layers, with something that only the attention function is told."""
        torch.manual_seed(0)
        config = Gemma2Config(
            vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=32, num_hidden_layers=2, head_dim=16,
            num_attention_heads=2, num_key_value_heads=2, layer_types=["full_attention"] * 2, initializer_range=0.2,
            attn_logit_softcapping=0.5, eos_token_id=EOS, pad_token_id=0, bos_token_id=None,
            query_pre_attn_scalar=1,
        )  # fmt: skip
        return Gemma2ForCausalLM(config)

    def dynamic_rope(self):
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        return make_model(rope_parameters=rope, max_position_embeddings=16)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("sliding", "its cache has layers of other kinds than full attention (DynamicSlidingWindowLayer)"),
            ("falcon", "its attention function cannot be chosen"),
            ("dynamic_rope", "its rotary embedding depends on the longest row of a batch"),
            ("softcap", "its attention takes softcap"),
        ],
    )
    def test_run_in_generate(self, tokenizer, name, reason, caplog):
        model = getattr(self, name)().eval()
        prefixes = [Prefix("4*3="), Prefix("12345+1="), Prefix("7")]
        given = []
        with caplog.at_level(logging.INFO, logger="trl_erprm"):
            engine = TransformersEngine(model, tokenizer, progress=given.append)
            limit = 8 if name == "dynamic_rope" else 12
            result = engine.generate(prefixes, 2, options(limit, temperature=0))
        assert not engine._shares_prefixes
        [message] = [record.getMessage() for record in caplog.records]
        assert message == f"{type(model).__name__} computes each prefix anew for each sample: {reason}."
        assert sum(given) == 6
        for prefix, completions in zip(prefixes, result, strict=True):
            ids = torch.tensor([tokenizer(prefix.prompt)["input_ids"]])
            expected = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(max_new_tokens=limit, eos_token_id=EOS, pad_token_id=0),
            )[0, ids.shape[1] :]
            assert completions[0].text == tokenizer.decode(expected, skip_special_tokens=True)
        assert engine.generate(prefixes, 3, options(8)) == unshared(engine).generate(prefixes, 3, options(8))

    def test_what_is_complete_stays_so(self, tokenizer, monkeypatch):
        """The first row ends with its first token, so that only the second shows what the model does."""
        monkeypatch.setattr(shared_cache, "_NEUTRAL", ("nothing",))
        model = make_model()
        follow(model, {"1": "<eos>", "2": "b", "b": "<eos>"})
        given = []
        engine = TransformersEngine(model, tokenizer, 1, given.append)
        assert engine.generate([Prefix("1"), Prefix("2")], 1, options(3)) == [
            [Completion("", 1, "stop")],
            [Completion("b", 2, "stop")],
        ]
        assert given == [1, 1] and not engine._shares_prefixes

    def test_an_unknown_attention(self):
        query = key = value = torch.zeros(1, 1, 1, 4)
        with pytest.raises(NotShareableError, match="it attends to other keys than those that its cache gives"):
            shared_cache._attention_function(nn.Module(), query, key, value, None)

    def test_several_tokens_a_step(self):
        model, cache = make_model(), SharedPrefixCache()
        states = DynamicCache(config=model.config)
        model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=states)
        cache.rebuild([], [], states, [3], [0], [0])
        with (
            pytest.raises(NotShareableError, match="it runs 2 tokens a row in a step"),
            shared_prefix_attention(model),
        ):
            model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)

    def test_several_devices(self):
        model = make_model()
        model.hf_device_map = {"model": 0, "lm_head": 1}
        assert why_not_shareable(model) == "it lies on several devices"

    def test_a_forward_pass_that_takes_less(self):
        class Older(Qwen2ForCausalLM):
            def forward(self, input_ids, past_key_values=None, position_ids=None):
                return super().forward(input_ids, past_key_values=past_key_values, position_ids=position_ids)

        assert why_not_shareable(Older(make_model().config)) == "its forward pass does not take logits_to_keep"


class TestText:
    def sentencepiece_like(self):
        """Llama's scheme: "▁" for a space, one in front of the first word, which the decoder takes away."""
        words = ["<unk>", "<s>", "</s>", "▁the", "▁cat", "s", "▁", "\n"]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )

    def test_white_space_in_front_of_a_continuation_is_kept(self):
        tokenizer = self.sentencepiece_like()
        assert tokenizer.decode([4, 5]) == "cats"  # the space is gone: what an engine must not rely on
        engine = TransformersEngine(make_model(vocab_size=8, eos_token_id=2), tokenizer)
        assert engine._decode([[4, 5, 3], [5, 4], [7, 4], [], [6, 6, 4]]) == [
            " cats the",
            "s cat",
            "\n cat",
            "",
            "   cat",
        ]

    def test_text_of_prefix_and_completion_is_the_text_of_their_tokens(self, tokenizer):
        engine = TransformersEngine(make_model(), tokenizer)
        prefix = Prefix("4*3=", "2\n")
        ids = torch.tensor([tokenizer("4*3=2\n")["input_ids"]])
        expected = engine.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9
        )
        completion = engine.generate([prefix], 1, options(9, temperature=0))[0][0]
        assert prefix.prompt + prefix.completion + completion.text == tokenizer.decode(
            expected[0], skip_special_tokens=True
        )

    def test_special_tokens_are_left_out(self, tokenizer):
        model = make_model()
        follow(model, {"1": "<user>", "<user>": "a", "a": "<end>", "<end>": "b", "b": "<eos>"})
        assert TransformersEngine(model, tokenizer).generate([Prefix("1")], 1, options(8))[0] == [
            Completion("ab", 5, "stop")
        ]


class TestRendering:
    def ids_given(self, engine, prefix):
        seen = []
        forward = engine.model.forward
        engine.model.forward = lambda **k: (seen.append(k["input_ids"]), forward(**k))[1]
        engine.generate([prefix], 1, options(1))
        engine.model.forward = forward
        return "".join((SPECIAL + CHARACTERS)[i] for i in seen[0][0].tolist())

    def test_text(self, engine):
        assert self.ids_given(engine, Prefix("1+1=", "2\n")) == "1+1=2\n"

    def test_messages(self, engine):
        user = {"role": "user", "content": "1+1"}
        assert self.ids_given(engine, Prefix([user])) == "<user>1+1<end><assistant>"
        # the line end after the last step is kept, though the template trims messages
        assert self.ids_given(engine, Prefix([user], "2\n")) == "<user>1+1<end><assistant>2\n"
        started = [user, {"role": "assistant", "content": "so"}]
        assert self.ids_given(engine, Prefix(started, " 2")) == "<user>1+1<end><assistant>so 2"

    def test_text_and_messages_in_one_call(self, engine):
        messages = Prefix([{"role": "user", "content": "1"}])
        both = engine.generate([Prefix("22"), messages, Prefix("3")], 2, options())
        assert both == [engine.generate([p], 2, options())[0] for p in (Prefix("22"), messages, Prefix("3"))]

    def test_no_chat_template(self):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = None
        engine = TransformersEngine(make_model(), tokenizer)
        with pytest.raises(ValueError, match="Prefix 1 holds messages, and the tokenizer has no chat template. Set"):
            engine.generate([Prefix("1"), Prefix([{"role": "user", "content": "1"}])], 1, options())

    def test_an_end_token_that_the_tokenizer_appends_is_taken_away(self, engine):
        closing = make_tokenizer()
        closing._tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <eos>", special_tokens=[("<eos>", EOS)]
        )
        assert closing("1")["input_ids"][-1] == EOS
        assert self.ids_given(TransformersEngine(engine.model, closing), Prefix("1+1=")) == "1+1="

    def test_context_window(self, engine):
        fits, too_long = Prefix("1" * 52), Prefix("1" * 53)
        assert len(engine.generate([fits], 1, options(12))[0]) == 1
        with pytest.raises(
            ValueError,
            match="Prefix 1 has 53 tokens, and at most 52 fit: the context window of 64 tokens less `max_new_",
        ):
            engine.generate([fits, too_long], 1, options(12))
        with pytest.raises(ValueError, match="Prefix 0 has 1 tokens, and at most 0 fit"):
            engine.generate([Prefix("1")], 1, options(64))

    def test_empty_prefix(self, engine):
        with pytest.raises(ValueError, match="Prefix 0 has no tokens. Pass a prompt that is not empty"):
            engine.generate([Prefix("")], 1, options())


class TestConstruction:
    def test_load_engine(self, tokenizer):
        engine = load_engine("transformers", model=make_model(), tokenizer=tokenizer, batch_size=3)
        assert isinstance(engine, TransformersEngine) and engine.batch_size == 3

    def test_wrapped_model(self, tokenizer):
        class Wrapped(nn.Module):
            def __init__(self, module):
                super().__init__()
                self.module = module

        with pytest.raises(TypeError, match="must be a transformers model that can generate, got Wrapped. Unwrap it"):
            TransformersEngine(Wrapped(make_model()), tokenizer)

    @pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
    def test_batch_size(self, tokenizer, batch_size):
        with pytest.raises(ValueError, match="`batch_size` must be a whole number from 1 up"):
            TransformersEngine(make_model(), tokenizer, batch_size)

    def test_progress_counts_completions_and_batch_size_bounds_batches(self, tokenizer):
        given = []
        engine = TransformersEngine(make_model(), tokenizer, batch_size=4, progress=given.append)
        engine.generate(PREFIXES, 2, options(2))
        assert given == [4, 4, 2]
