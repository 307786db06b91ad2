"""`trl_erprm.prm.heads`: log-odds against plain forward passes, and that only step ends are projected."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from tests.tiny import save_base
from trl_erprm.prm.heads import new_head_is_expected, project_only, step_log_odds

INPUT_IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 0, 0, 0]])
INPUTS = {"input_ids": INPUT_IDS, "attention_mask": (INPUT_IDS != 0).long()}
IS_STEP_END = torch.tensor([[0, 0, 1, 0, 0, 1], [0, 1, 1, 0, 0, 0]]).bool()
POSITIVE, NEGATIVE = 13, 14


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def causal(base):
    return AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.mark.parametrize("num_labels", [1, 2])
def test_token_classification_by_hand(base, num_labels):
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=num_labels).eval()
    logits = model(**INPUTS).logits
    rows = torch.stack([logits[0, 2], logits[0, 5], logits[1, 1], logits[1, 2]])  # row-major order
    expected = rows[:, 0] if num_labels == 1 else rows[:, 1] - rows[:, 0]
    log_odds = step_log_odds(model, INPUTS, IS_STEP_END)
    torch.testing.assert_close(log_odds, expected)
    assert log_odds.shape == (4,) and expected.unique().numel() == 4
    if num_labels == 2:
        torch.testing.assert_close(log_odds.sigmoid(), rows.softmax(-1)[:, 1])


def test_causal_by_hand(causal):
    logits = causal(**INPUTS).logits
    rows = torch.stack([logits[0, 2], logits[0, 5], logits[1, 1], logits[1, 2]])
    log_odds = step_log_odds(causal, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE))
    torch.testing.assert_close(log_odds, rows[:, POSITIVE] - rows[:, NEGATIVE])
    torch.testing.assert_close(log_odds.sigmoid(), rows[:, [NEGATIVE, POSITIVE]].softmax(-1)[:, 1])
    assert log_odds.unique().numel() == 4


def test_project_only_gives_the_full_logits_at_the_step_ends(causal):
    full = causal(**INPUTS).logits
    with project_only(causal.get_output_embeddings(), IS_STEP_END):
        selected = causal(**INPUTS).logits
    assert selected.shape == (4, full.shape[-1])
    torch.testing.assert_close(selected, full[IS_STEP_END])


def test_the_vocabulary_meets_step_ends_only(causal):
    """The memory that the hook saves: rows that reach the `lm_head`, 4 instead of 12."""
    rows = []
    causal.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    step_log_odds(causal, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE))
    assert rows == [4]
    causal(**INPUTS)
    assert rows == [4, 12]


def test_gradients_are_those_of_the_full_logits(causal):
    full = causal(**INPUTS).logits[IS_STEP_END]
    (full[:, POSITIVE] - full[:, NEGATIVE]).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in causal.named_parameters() if p.grad is not None}
    causal.zero_grad()
    step_log_odds(causal, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE)).square().sum().backward()
    for name, p in causal.named_parameters():
        if name in expected:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-5)


def test_the_hook_is_removed_also_after_an_error(causal):
    before = causal(**INPUTS).logits
    with pytest.raises(RuntimeError, match="out of memory"):
        with project_only(causal.get_output_embeddings(), IS_STEP_END):
            raise RuntimeError("out of memory")
    assert not causal.lm_head._forward_pre_hooks
    torch.testing.assert_close(causal(**INPUTS).logits, before)
    wrong_shape = IS_STEP_END[:, :3]
    with pytest.raises(IndexError):
        step_log_odds(causal, INPUTS, wrong_shape, (POSITIVE, NEGATIVE))
    assert not causal.lm_head._forward_pre_hooks


@pytest.mark.parametrize("label_token_ids", [None, (POSITIVE, NEGATIVE)])
def test_no_step_end(base, label_token_ids):
    architecture = AutoModelForCausalLM if label_token_ids else AutoModelForTokenClassification
    model = architecture.from_pretrained(base).eval()
    log_odds = step_log_odds(model, INPUTS, torch.zeros_like(IS_STEP_END), label_token_ids)
    assert log_odds.shape == (0,)
    log_odds.sum().backward()  # a process without a step end must still take part in the backward pass


def test_half_precision_ends_in_float32(base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    assert step_log_odds(model, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE)).dtype == torch.float32


def test_a_wrapped_model_is_entered_through_its_wrapper(causal):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, **inputs):
            self.calls += 1
            return self.module(**inputs)

    wrapper = Wrapper(causal)
    log_odds = step_log_odds(wrapper, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE), causal)
    assert wrapper.calls == 1
    torch.testing.assert_close(log_odds, step_log_odds(causal, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE)))


def test_a_new_head_is_not_reported(base, caplog):
    from transformers.modeling_layers import GenericForTokenClassification

    before = vars(GenericForTokenClassification).copy()
    with new_head_is_expected():
        AutoModelForTokenClassification.from_pretrained(base)
    assert "MISSING" not in caplog.text and "newly initialized" not in caplog.text
    for name in ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected"):
        assert getattr(GenericForTokenClassification, name, None) == before.get(name)
    assert AutoTokenizer.from_pretrained(base).vocab_size > POSITIVE
