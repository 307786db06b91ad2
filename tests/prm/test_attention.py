"""`trl_erprm.prm.attention`: batches without padding against one solution at a time."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from trl_erprm.prm.attention import PACKED_SDPA, is_causal, use_packed_attention, why_not_padding_free

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
WINDOW = 4
MODELS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}),
}
LENGTHS = [3, 1, WINDOW, WINDOW + 1, 11]  # below, at and above the window


def build(name, implementation="sdpa"):
    architecture, config, changes = MODELS[name]
    torch.manual_seed(0)
    return architecture._from_config(config(**{**SIZES, **changes}), attn_implementation=implementation).eval()


def checkpoint(model):
    model.train()
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.2x on
    (enable or model.gradient_checkpointing_enable)()


def sequences():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 50, (1, length), generator=generator) for length in LENGTHS]


def packed_inputs():
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return {
        "input_ids": torch.cat(sequences(), dim=1),
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
        "use_cache": False,
    }


def loss(logits):
    return (logits.float().log_softmax(-1) ** 2).mean(-1).sum()


def one_by_one(name):
    """Logits and gradients of transformers' plainest attention, without a batch."""
    model = build(name, "eager")
    logits = torch.cat([model(input_ids=input_ids).logits for input_ids in sequences()], dim=1)
    loss(logits).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", list(MODELS))
def test_position_ids_alone_tell_the_sequences(name):
    expected, _ = one_by_one(name)
    model = build(name)
    use_packed_attention(model)
    inputs = {n: v for n, v in packed_inputs().items() if n in ("input_ids", "position_ids", "use_cache")}
    torch.testing.assert_close(model(**inputs).logits.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", list(MODELS))
def test_packed_is_one_by_one(name, checkpointing):
    expected, expected_gradients = one_by_one(name)
    model = build(name)
    use_packed_attention(model)
    if checkpointing:
        checkpoint(model)
    logits = model(**packed_inputs()).logits
    torch.testing.assert_close(logits.detach(), expected, rtol=1e-5, atol=1e-5)
    loss(logits).backward()
    for parameter, p in model.named_parameters():
        scale = expected_gradients[parameter].abs().max().item()
        torch.testing.assert_close(p.grad, expected_gradients[parameter], rtol=1e-5, atol=1e-5 * max(scale, 1.0))


def test_checkpointing_recomputes_the_packed_attention(monkeypatch):
    """So the case above goes through it twice, with the bounds of the sequences."""
    lengths = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        lengths.append(query.shape[2])
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model = build("qwen2")
    use_packed_attention(model)
    checkpoint(model)
    logits = model(**packed_inputs()).logits
    assert lengths == LENGTHS * 2  # two layers
    loss(logits).backward()
    assert lengths == LENGTHS * 4


@pytest.mark.parametrize("name", list(MODELS))
def test_no_mask_is_made(name, monkeypatch):
    """Of all tokens against all; within a solution only where it is longer than the window."""
    monkeypatch.setattr("trl_erprm.prm.attention.sdpa_mask", None)  # calling it fails
    masks = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query, *args, attn_mask=None, **kwargs):
        masks.append(None if attn_mask is None else len(attn_mask))
        return attention(query, *args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model = build(name)
    use_packed_attention(model)
    model(**packed_inputs())
    assert masks == [n if name == "mistral" and n > WINDOW else None for n in LENGTHS] * 2


class TestWithoutBounds:
    """A model made ready for packed rows is as it was for everything else."""

    @pytest.mark.parametrize("side, with_mask", [("right", True), ("right", False), ("left", True)])
    @pytest.mark.parametrize("name", list(MODELS))
    def test_padded_rows(self, name, side, with_mask):
        """Padding on the right needs no mask: no token sees it."""
        rows = [row[0] for row in sequences()]
        rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
        is_real = rows != 0
        assert is_real.sum(1).tolist() == LENGTHS
        expected = build(name)(input_ids=rows, attention_mask=is_real.long()).logits
        model = build(name)
        use_packed_attention(model)
        logits = model(input_ids=rows, **({"attention_mask": is_real.long()} if with_mask else {})).logits
        torch.testing.assert_close(logits[is_real], expected[is_real], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", list(MODELS))
    def test_one_row(self, name):
        input_ids = sequences()[-1]
        model = build(name)
        use_packed_attention(model)
        expected = build(name)(input_ids=input_ids).logits
        torch.testing.assert_close(model(input_ids=input_ids).logits, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("cache", ["dynamic", "static"])
    @pytest.mark.parametrize("name", list(MODELS))
    def test_generation(self, name, cache):
        input_ids = sequences()[3].expand(2, -1).contiguous()
        mask = torch.ones_like(input_ids)
        mask[1, :2] = 0
        options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        options |= {"return_dict_in_generate": True, "output_logits": True, "cache_implementation": cache}
        expected = build(name).generate(input_ids, **options)
        model = build(name)
        use_packed_attention(model)
        generated = model.generate(input_ids, **options)
        assert torch.equal(generated.sequences, expected.sequences)
        for logits, expected_logits in zip(generated.logits, expected.logits, strict=True):
            torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(expected.logits[0][0], expected.logits[0][1])  # the mask counts

    def test_a_saved_model_is_one_of_sdpa(self, tmp_path):
        model = build("qwen2")
        use_packed_attention(model)
        model.save_pretrained(tmp_path)
        assert PACKED_SDPA not in (tmp_path / "config.json").read_text()
        assert Qwen2ForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_dropout_and_scaling_are_the_models():
    """With a share of the attention dropped in training; and with scores scaled by another factor."""
    model = build("llama")
    use_packed_attention(model)
    before = model(**packed_inputs()).logits
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    torch.testing.assert_close(model(**packed_inputs()).logits, before)  # not in evaluation
    model.train()
    assert not torch.allclose(model(**packed_inputs()).logits, before, atol=1e-2)
    eager = build("llama", "eager")
    for each in (model.eval(), eager):
        for layer in each.model.layers:
            layer.self_attn.scaling = 1.0
    expected = torch.cat([eager(input_ids=input_ids).logits for input_ids in sequences()], dim=1)
    torch.testing.assert_close(model(**packed_inputs()).logits, expected, rtol=1e-5, atol=1e-5)


def bert(**changes):
    sizes = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    return BertForTokenClassification(BertConfig(**{**sizes, "max_position_embeddings": 32, **changes}))


def test_is_causal():
    assert is_causal(build("qwen2")) and is_causal(build("mistral"))
    assert is_causal(GPT2ForTokenClassification(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4)))
    assert not is_causal(bert())
    assert not is_causal(torch.nn.Linear(2, 2))  # nothing says so
    model = build("qwen2")
    model.model.layers[1].self_attn.is_causal = False
    assert not is_causal(model)


class TestWhyNotPaddingFree:
    def test_nothing(self):
        for name in MODELS:
            model = build(name)
            assert why_not_padding_free(model) is None
            use_packed_attention(model)
            assert why_not_padding_free(model) is None

    def test_not_causal(self):
        assert why_not_padding_free(bert()) == "its attention is not causal"

    def test_another_kind_of_layer(self):
        model = build("qwen2")
        model.config.layer_types = ["full_attention", "linear_attention"]
        expected = "it has layers of other kinds than attention (linear_attention)"
        assert why_not_padding_free(model) == expected
        model.config.layer_types = ["full_attention", "sliding_attention"]
        assert why_not_padding_free(model) is None

    def test_another_implementation(self):
        expected = "its attention runs as 'eager', and 'sdpa' or a FlashAttention is needed"
        assert why_not_padding_free(build("qwen2", "eager")) == expected
        model = build("qwen2")
        for name in ("flash_attention_2", "kernels-community/vllm-flash-attn3"):
            model.config._attn_implementation = name  # as if it were installed
            assert why_not_padding_free(model) is None

    def test_attention_that_cannot_be_exchanged(self, monkeypatch):
        monkeypatch.setattr(Qwen2ForCausalLM, "_supports_attention_backend", False)
        assert why_not_padding_free(build("qwen2")) == "its attention cannot be exchanged"


def test_flash_attention_is_left_as_it_is():
    model = build("qwen2")
    use_packed_attention(model)
    assert model.config._attn_implementation == PACKED_SDPA
    model.config._attn_implementation = "flash_attention_2"  # as if it were installed
    use_packed_attention(model)
    assert model.config._attn_implementation == "flash_attention_2"
