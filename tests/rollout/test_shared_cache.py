import copy
import gc
import logging
import random
import weakref

import pytest
import torch
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
    Qwen2ForCausalLM,
)

from tests.rollout.test_transformers_engine import (
    CHARACTERS,
    EOS,
    PREFIXES,
    VOCABULARY,
    follow,
    make_model,
    make_tokenizer,
    options,
)
from trl_erprm.rollout import Completion, Prefix, shared_cache, transformers_engine
from trl_erprm.rollout.shared_cache import (
    NotShareableError,
    SharedPrefixCache,
    shared_prefix_attention,
    why_not_shareable,
)
from trl_erprm.rollout.transformers_engine import TransformersEngine


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


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
