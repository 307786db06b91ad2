"""`trl_erprm.prm.prefix_sharing`: scores stay the same, and what solutions have in common is run once."""

import itertools

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    FalconMambaConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from tests.tiny import HEADS, prm_trainer, randomize_head, save_base
from trl_erprm import ProcessRewardModel
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.prm import prefix_sharing
from trl_erprm.prm.attention import use_packed_attention
from trl_erprm.prm.formats import EncodedSolution
from trl_erprm.prm.prefix_sharing import (
    ACCELERATOR_PASS_COST as PASS_COST,
)
from trl_erprm.prm.prefix_sharing import (
    common_prefix_length,
    cut_batches,
    is_worth_sharing,
    plan_sharing,
    why_not_shareable,
)

# Two prompts with several solutions and one with one, mixed. Both solutions of `OTHER` have the same first step.
LONG = "1+2+3+4+5+6+7+8+9+8+7+6+5+4+3+2\n"
OTHER = "9-8-7-6-5-4-3-2\n"
PROMPTS = [LONG, OTHER, LONG, "1+1\n", OTHER, LONG, LONG]
STEPS = [["1+2=3", "#3"], ["9-8=1", "#1"], ["3+3=6"] * 4, ["#2"], ["9-8=1", "1-7=4", "#4"], ["#9"], ["1+2=4", "#4"]]
ROWS = [{"prompt": "1+1\n", "completions": ["#2"], "labels": [1.0]}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def checkpoints(base, tmp_path_factory):
    paths = {}
    for name, head in HEADS.items():
        paths[name] = tmp_path_factory.mktemp(name)
        trainer = prm_trainer(base, paths[name], ROWS, **head)
        randomize_head(trainer.model)
        trainer.save_model()
    return paths


def score_and_count(prm, *args, **kwargs):
    """Scores, and the shape (rows, width) of the input of each pass."""
    shapes = []

    def record(module, args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))

    hook = prm.model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        return prm.score(*args, **kwargs), shapes
    finally:
        hook.remove()


def count_tokens(text):
    return len(build_tokenizer()(text)["input_ids"])


def check_sharing_changes_nothing(prm, prompts=PROMPTS, steps=STEPS, **kwargs):
    """Returns the shapes of the passes without and with sharing."""
    plain, plain_shapes = score_and_count(prm, prompts, steps, share_prompts=False, **kwargs)
    shared, shared_shapes = score_and_count(prm, prompts, steps, share_prompts=True, **kwargs)
    for scores, expected in zip(shared, plain, strict=True):
        assert scores == pytest.approx(expected, abs=1e-5)
    assert torch.tensor(sum(plain, [])).std() > 1e-2  # else an exchange would not show
    assert sum(rows for rows, _ in shared_shapes) > sum(rows for rows, _ in plain_shapes)  # a row more for each prefix
    return plain_shapes, shared_shapes


def tiny_model(config_class, attn_implementation="sdpa", **changes):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
    if config_class is not GPT2Config:
        sizes |= {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
    config = config_class(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **{**sizes, **changes})
    model = AutoModelForTokenClassification.from_config(config, attn_implementation=attn_implementation)
    for name, parameter in model.named_parameters():
        if name.startswith(("score.", "classifier.")):
            parameter.data.normal_()
    return ProcessRewardModel(model, tokenizer, "trl")


class TestScores:
    @pytest.mark.parametrize("name", list(HEADS))
    def test_the_common_beginning_is_paid_once(self, checkpoints, name):
        prm = ProcessRewardModel.from_pretrained(checkpoints[name])
        encoded = prm.format.encode_batch(prm.tokenizer, PROMPTS, STEPS)
        after_long = len(encoded[5].input_ids) - len(prm.tokenizer("#9" + prm.format.step_tag)["input_ids"])
        after_other = encoded[1].step_ends[0]  # the first step is the same, but its score must still be read
        plain, shared = check_sharing_changes_nothing(prm, batch_size=1)  # no padding: all tokens count
        num_tokens = sum(rows * width for rows, width in plain)
        assert num_tokens == sum(len(one.input_ids) for one in encoded)
        assert sum(rows * width for rows, width in shared) == num_tokens - 3 * after_long - after_other
        assert {(1, after_long), (1, after_other)} <= set(shared)

    @pytest.mark.parametrize("limits", [{"batch_size": 2}, {"batch_size": 32}, {"max_tokens_per_batch": 40}])
    @pytest.mark.parametrize("name", list(HEADS))
    def test_batches_of_a_group(self, checkpoints, name, limits):
        _, shared = check_sharing_changes_nothing(ProcessRewardModel.from_pretrained(checkpoints[name]), **limits)
        assert all(rows <= limits.get("batch_size", 32) for rows, _ in shared)
        assert all(rows == 1 or rows * width <= limits.get("max_tokens_per_batch", 1e9) for rows, width in shared)
        assert any(rows > 1 for rows, _ in shared)

    @pytest.mark.parametrize(
        ("config_class", "changes"),
        [
            (LlamaConfig, {"attn_implementation": "eager"}),
            (MistralConfig, {"sliding_window": 8}),  # shorter than the prompts and than what follows
            (MistralConfig, {"sliding_window": 8, "attn_implementation": "eager"}),
            (MistralConfig, {"sliding_window": 100}),
            (Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
            (Gemma2Config, {"attn_implementation": "eager", "sliding_window": 8}),
            (GPT2Config, {}),  # learned positions
        ],
    )
    def test_architectures(self, config_class, changes):
        prm = tiny_model(config_class, **changes)
        assert prm.model.config._attn_implementation == changes.get("attn_implementation", "sdpa")
        check_sharing_changes_nothing(prm)

    @pytest.mark.parametrize("name", ["one_label", "causal_lm"])
    def test_adapters(self, base, tmp_path, name):
        peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        prm_trainer(base, tmp_path, ROWS, peft_config=peft_config, **HEADS[name]).save_model()
        prm = ProcessRewardModel.from_pretrained(tmp_path)
        assert type(prm.model).__name__.startswith("PeftModel")
        randomize_head(prm.model.base_model.model)
        check_sharing_changes_nothing(prm)

    def test_prompts_of_messages(self, checkpoints):
        prm = ProcessRewardModel.from_pretrained(checkpoints["one_label"])
        prm.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}#{% endfor %}"
        prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        _, shared = check_sharing_changes_nothing(prm, prompts=prompts, prompt_as="chat")
        assert (1, count_tokens(LONG + "#")) in shared

    def test_in_many_windows(self, checkpoints, monkeypatch):
        monkeypatch.setattr("trl_erprm.prm.scorer.WINDOW", 4)
        order = sorted(range(len(PROMPTS)), key=lambda i: PROMPTS[i])
        prompts, steps = [PROMPTS[i] for i in order] * 2, [STEPS[i] for i in order] * 2
        prm = ProcessRewardModel.from_pretrained(checkpoints["two_labels"])
        check_sharing_changes_nothing(prm, prompts=prompts, steps=steps, batch_size=2)

    def test_the_default_shares_where_it_saves(self, checkpoints, monkeypatch):
        prm = ProcessRewardModel.from_pretrained(checkpoints["one_label"])
        assert score_and_count(prm, PROMPTS, STEPS)[1] == score_and_count(prm, PROMPTS, STEPS, share_prompts=False)[1]
        prompts, steps = ["1+2+3+4\n" * 16] * 32, [["1+2=3"]] * 32
        plain, plain_shapes = score_and_count(prm, prompts, steps, share_prompts=False)
        scores, shapes = score_and_count(prm, prompts, steps)
        length = count_tokens("1+2+3+4\n" * 16) + count_tokens("1+2=3\n")
        assert plain_shapes == [(32, length)] and shapes == [(1, length - 1), (32, 1)]
        assert sum(scores, []) == pytest.approx(sum(plain, []), abs=1e-5)
        monkeypatch.setattr(prefix_sharing, "MIN_SAVING", 0.99)
        assert score_and_count(prm, prompts, steps)[1] == plain_shapes

    def test_the_prefix_is_stored_for_one_row(self, checkpoints, monkeypatch):
        """Whatever runs against it, the cache stays as the prefix left it: no copy for each row."""
        prm, caches = ProcessRewardModel.from_pretrained(checkpoints["one_label"]), []
        make = prefix_sharing.PrefixCache.of.__func__

        def recording(cls, *args):
            caches.append((make(cls, *args), len(args[0])))
            return caches[-1][0]

        monkeypatch.setattr(prefix_sharing.PrefixCache, "of", classmethod(recording))
        prm.score(PROMPTS, STEPS, batch_size=2, share_prompts=True)
        assert len(caches) == 2
        for cache, length in caches:
            assert [layer.keys.shape[::2] for layer in cache.layers] == [(1, length)] * 2


class TestWhoCannot:
    @pytest.mark.parametrize(
        ("config_class", "reason"),
        [
            (Qwen3NextConfig, r"it has layers of other kinds than attention \(linear_attention\)"),
            (FalconMambaConfig, "its attention is not causal"),  # it has none
        ],
    )
    def test_other_layers(self, config_class, reason):
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_experts": 2,
            "vocab_size": 32,
        }
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_experts_per_tok": 1}
        model = AutoModelForCausalLM.from_config(config_class(**sizes, **heads))
        assert pytest.raises(AssertionError, check_shareable, model).match(reason)

    def test_packed_attention(self, checkpoints):
        """It would align the queries with the prefix instead of what follows it."""
        prm = ProcessRewardModel.from_pretrained(checkpoints["one_label"])
        expected = prm.score(PROMPTS, STEPS, share_prompts=False)
        use_packed_attention(prm.model)
        with pytest.raises(
            ValueError, match="This model cannot share prompts: its attention runs as 'packed_sdpa', and one of sdpa"
        ):
            prm.score(PROMPTS, STEPS, share_prompts=True)
        prompts, steps = ["1+2+3+4\n" * 16] * 32, [["1+2=3"]] * 32
        assert len(score_and_count(prm, prompts, steps)[1]) == 1  # the default does not share
        for scores, others in zip(prm.score(PROMPTS, STEPS), expected, strict=True):
            assert scores == pytest.approx(others, abs=1e-5)


def check_shareable(model):
    reason = why_not_shareable(model)
    assert reason is None, reason


def solution(*input_ids, first_end):
    return EncodedSolution(list(input_ids), [first_end, len(input_ids) - 1])


class TestCommonPrefix:
    def test_by_hand(self):
        a, b = solution(5, 6, 7, 8, 9, first_end=3), solution(5, 6, 7, 1, 9, first_end=3)
        assert common_prefix_length([a, b]) == 3
        assert common_prefix_length([a, b, solution(5, 6, 9, 9, first_end=3)]) == 2
        assert common_prefix_length([a, solution(4, 6, 7, 8, 9, first_end=3)]) == 0

    def test_step_ends_stay_behind_it(self):
        a = solution(5, 6, 7, 8, 9, first_end=2)
        assert common_prefix_length([a, a, a]) == 2
        assert common_prefix_length([a, solution(5, 6, 7, 8, 9, first_end=1)]) == 1
        assert common_prefix_length([solution(5, 6, first_end=0)] * 2) == 0  # a prompt of no tokens


class TestCutBatches:
    def test_by_hand(self):
        assert cut_batches([], 4) == ([], 0)
        assert cut_batches([7], 4) == ([slice(0, 1)], 7 + PASS_COST)
        # One long row among short ones pays for a pass of its own, if it is long enough.
        assert cut_batches([10 + PASS_COST, 10, 10], 4) == ([slice(0, 1), slice(1, 3)], 30 + 3 * PASS_COST)
        assert cut_batches([9 + PASS_COST // 2, 10, 10], 4) == ([slice(0, 3)], 27 + 3 * (PASS_COST // 2) + PASS_COST)

    @pytest.mark.parametrize(("batch_size", "max_tokens"), [(1, None), (3, None), (3, 700), (8, 500), (8, 1)])
    def test_against_all_cuts(self, batch_size, max_tokens):
        for seed in range(10):
            lengths = sorted(torch.randint(1, 900, (8,), generator=torch.Generator().manual_seed(seed)).tolist())[::-1]
            best = None
            for cuts in itertools.product([False, True], repeat=7):
                bounds = [0, *(k + 1 for k, cut in enumerate(cuts) if cut), 8]
                parts = [lengths[a:b] for a, b in itertools.pairwise(bounds)]
                if all(
                    len(part) == 1
                    or (len(part) <= batch_size and (max_tokens is None or len(part) * part[0] <= max_tokens))
                    for part in parts
                ):
                    cost = sum(len(part) * part[0] + PASS_COST for part in parts)
                    best = cost if best is None else min(best, cost)
            batches, cost = cut_batches(lengths, batch_size, max_tokens)
            assert cost == best == sum((b.stop - b.start) * lengths[b.start] + PASS_COST for b in batches)
            assert [i for b in batches for i in range(b.start, b.stop)] == list(range(8))


class TestPlan:
    PROMPTS = ["a", "b", "a", "b", "c"]

    @pytest.fixture
    def encoded(self):
        def row(prompt, prompt_length, i):
            return solution(*[prompt] * prompt_length, *range(100 + 10 * i, 110 + 10 * i), first_end=prompt_length + 4)

        return {0: row(1, 2000, 0), 1: row(2, 20, 1), 2: row(1, 2000, 2), 3: row(2, 20, 3), 4: row(3, 2000, 4)}

    def test_who_shares(self, encoded):
        assert plan_sharing(encoded, self.PROMPTS, False, 32) == [([0, 1, 2, 3, 4], 0)]
        assert plan_sharing(encoded, self.PROMPTS, True, 32) == [([0, 2], 2000), ([1, 3], 20), ([4], 0)]
        assert plan_sharing(encoded, self.PROMPTS, None, 32) == [([0, 2], 2000), ([1, 3, 4], 0)]
        del encoded[2]  # without steps, or too long
        assert plan_sharing(encoded, self.PROMPTS, True, 32) == [([1, 3], 20), ([0, 4], 0)]
        assert plan_sharing({}, [], None, 32) == [([], 0)]

    def test_worth(self):
        assert is_worth_sharing([1200] * 32, 1000, batch_size=32)
        assert not is_worth_sharing([210] * 32, 10, batch_size=32)  # short prompts
        assert is_worth_sharing([1200] * 2, 1000, batch_size=32, pass_cost=100)
        assert not is_worth_sharing([1200] * 2, 1000, batch_size=32, pass_cost=1000)
        assert not is_worth_sharing([300] * 2, 100, batch_size=32)  # a pass more for 100 tokens
        # What padding within the group costs counts: with others, these rows would have none.
        assert is_worth_sharing([400] * 8, 120, batch_size=8)
        assert not is_worth_sharing([250, 300, 350, 400, 400, 450, 500, 550], 120, batch_size=8)
        # A budget makes passes of their own of both ways alike.
        assert not is_worth_sharing([210] * 32, 10, batch_size=32, max_tokens=1)
