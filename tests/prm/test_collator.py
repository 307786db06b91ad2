"""`trl_erprm.prm.collator`: batches of encoded solutions."""

import math

import pytest
import torch

from trl_erprm.prm.collator import StepDataCollator

NAN = math.nan
ROWS = [
    {"input_ids": [5, 6, 7, 8], "step_ends": [1, 3], "step_labels": [0.9, 0.3]},
    {"input_ids": [9, 10], "step_ends": [1], "step_labels": [0.25]},
]


def test_by_hand():
    batch = StepDataCollator(pad_token_id=2)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    torch.testing.assert_close(
        batch["per_token_labels"], torch.tensor([[NAN, 0.9, NAN, 0.3], [NAN, 0.25, NAN, NAN]]), equal_nan=True
    )
    assert set(batch) == {"input_ids", "attention_mask", "per_token_labels"}


def test_labels_are_not_rounded():
    batch = StepDataCollator(pad_token_id=0)(ROWS)
    assert batch["per_token_labels"].dtype == torch.float32
    assert batch["per_token_labels"][0, 1].item() == pytest.approx(0.9, abs=1e-7)
    # as integers, the hardest case: a row of whole labels beside one of soft labels
    rows = [{**ROWS[0], "step_labels": [1, 0]}, {**ROWS[1], "step_labels": [0.5]}]
    labels = StepDataCollator(pad_token_id=0)(rows)["per_token_labels"]
    assert labels[~labels.isnan()].tolist() == [1.0, 0.0, 0.5]


def test_a_pad_token_inside_a_row_is_not_padding():
    rows = [{"input_ids": [2, 5, 2], "step_ends": [2], "step_labels": [1.0]}, ROWS[0]]
    assert StepDataCollator(pad_token_id=2)(rows)["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_pad_to_multiple_of():
    batch = StepDataCollator(pad_token_id=0, pad_to_multiple_of=8)(ROWS)
    assert all(tensor.shape == (2, 8) for tensor in batch.values())
    assert batch["per_token_labels"][:, 4:].isnan().all()


def test_steps_without_a_label():
    batch = StepDataCollator(pad_token_id=0)([{**ROWS[0], "step_labels": [NAN, 0.3]}])
    assert (~batch["per_token_labels"].isnan()).tolist() == [[False, False, False, True]]


def test_single_step_and_single_row():
    batch = StepDataCollator(pad_token_id=0)([{"input_ids": [5], "step_ends": [0], "step_labels": [1.0]}])
    assert batch["per_token_labels"].tolist() == [[1.0]]
    batch = StepDataCollator(pad_token_id=0)([{"input_ids": [5, 6], "step_ends": [], "step_labels": []}])
    assert batch["per_token_labels"].isnan().all()


def test_more_labels_than_steps():
    with pytest.raises((RuntimeError, IndexError)):
        StepDataCollator(pad_token_id=0)([{**ROWS[0], "step_labels": [0.1, 0.2, 0.3]}])
