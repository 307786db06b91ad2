import copy
import math
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from trl_erprm.rollout import Completion, Prefix, SamplingOptions, load_engine
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
