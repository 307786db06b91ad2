"""`trl_erprm.prm.collator`: batches of encoded solutions, padded and laid end to end."""

import math

import pytest
import torch

from trl_erprm.prm.collator import StepDataCollator

NAN = math.nan
ROWS = [
    {"input_ids": [5, 6, 7, 8], "step_ends": [1, 3], "step_labels": [0.9, 0.3]},
    {"input_ids": [9, 10], "step_ends": [1], "step_labels": [0.25]},
]


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def padding_free(request):
    return request.param


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


class TestPadded:
    def test_by_hand(self):
        batch = StepDataCollator(pad_token_id=2)(ROWS)
        assert_equal(batch["input_ids"], [[5, 6, 7, 8], [9, 10, 2, 2]])
        assert_equal(batch["attention_mask"], [[1, 1, 1, 1], [1, 1, 0, 0]])
        assert_equal(batch["is_step_end"], [[False, True, False, True], [False, True, False, False]])
        assert_equal(batch["step_labels"], [[0.9, 0.3], [0.25, NAN]])
        assert set(batch) == {"input_ids", "attention_mask", "is_step_end", "step_labels"}

    def test_a_pad_token_inside_a_row_is_not_padding(self):
        rows = [{"input_ids": [2, 5, 2], "step_ends": [2], "step_labels": [1.0]}, ROWS[0]]
        assert_equal(StepDataCollator(pad_token_id=2)(rows)["attention_mask"], [[1, 1, 1, 0], [1, 1, 1, 1]])

    def test_pad_to_multiple_of(self):
        batch = StepDataCollator(pad_token_id=0, pad_to_multiple_of=8)(ROWS)
        assert all(batch[name].shape == (2, 8) for name in ("input_ids", "attention_mask", "is_step_end"))
        assert_equal(batch["attention_mask"].sum(1), [4, 2])
        assert not batch["is_step_end"][:, 4:].any()
        assert batch["step_labels"].shape == (2, 2)  # steps are no tokens


class TestPacked:
    def test_by_hand(self):
        batch = StepDataCollator(pad_token_id=2, padding_free=True)(ROWS)
        assert_equal(batch["input_ids"], [[5, 6, 7, 8, 9, 10]])
        assert_equal(batch["position_ids"], [[0, 1, 2, 3, 0, 1]])
        assert_equal(batch["is_step_end"], [[False, True, False, True, False, True]])
        assert_equal(batch["step_labels"], [[0.9, 0.3], [0.25, NAN]])
        for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
            assert batch[name].tolist() == [0, 4, 6] and batch[name].dtype == torch.int32
        assert batch["max_length_q"] == batch["max_length_k"] == 4
        lengths = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
        assert set(batch) == {"input_ids", "position_ids", "is_step_end", "step_labels", *lengths}

    @pytest.mark.parametrize("multiple, num_tokens", [(8, 8), (4, 8), (6, 6), (1, 6)])
    def test_pad_to_multiple_of(self, multiple, num_tokens):
        """The filling is a sequence of its own: no solution's tokens, positions or step ends change."""
        batch = StepDataCollator(pad_token_id=2, padding_free=True, pad_to_multiple_of=multiple)(ROWS)
        filling = num_tokens - 6
        assert_equal(batch["input_ids"], [[5, 6, 7, 8, 9, 10] + [2] * filling])
        assert_equal(batch["position_ids"], [[0, 1, 2, 3, 0, 1, *range(filling)]])
        assert_equal(batch["is_step_end"], [[False, True, False, True, False, True] + [False] * filling])
        assert batch["cu_seq_lens_q"].tolist() == [0, 4, 6] + [8] * bool(filling)

    def test_the_longest_may_be_the_filling(self):
        batch = StepDataCollator(pad_token_id=2, padding_free=True, pad_to_multiple_of=16)(ROWS)
        assert batch["cu_seq_lens_k"].tolist() == [0, 4, 6, 16] and batch["max_length_k"] == 10


class TestBoth:
    def test_labels_are_not_rounded(self, padding_free):
        collator = StepDataCollator(pad_token_id=0, padding_free=padding_free)
        batch = collator(ROWS)
        assert batch["step_labels"].dtype == torch.float32
        assert batch["step_labels"][0, 0].item() == pytest.approx(0.9, abs=1e-7)
        # as integers, the hardest case: a row of whole labels beside one of soft labels
        labels = collator([{**ROWS[0], "step_labels": [1, 0]}, {**ROWS[1], "step_labels": [0.5]}])["step_labels"]
        assert labels[~labels.isnan()].tolist() == [1.0, 0.0, 0.5]

    def test_steps_without_a_label(self, padding_free):
        batch = StepDataCollator(pad_token_id=0, padding_free=padding_free)([{**ROWS[0], "step_labels": [NAN, 0.3]}])
        assert_equal(batch["is_step_end"], [[False, False, False, True]])
        assert_equal(batch["step_labels"], [[NAN, 0.3]])

    def test_marks_and_labels_are_in_one_order(self, padding_free):
        """The labels that are no NaN are, in row-major order, the marks: which `compute_loss` relies on."""
        rows = [
            {"input_ids": [10 * i + k for k in range(4)], "step_ends": [0, 2, 3][: 1 + i],
             "step_labels": [10 * i / 100, NAN if i == 2 else (10 * i + 2) / 100, (10 * i + 3) / 100][: 1 + i]}
            for i in range(3)
        ]  # fmt: skip
        batch = StepDataCollator(pad_token_id=99, padding_free=padding_free)(rows)
        labels = batch["step_labels"]
        read = batch["input_ids"][batch["is_step_end"]]  # each token is 100 times its label
        torch.testing.assert_close(labels[~labels.isnan()], read / 100)
        assert len(read) == 5

    def test_single_step_and_single_row(self, padding_free):
        collator = StepDataCollator(pad_token_id=0, padding_free=padding_free)
        batch = collator([{"input_ids": [5], "step_ends": [0], "step_labels": [1.0]}])
        assert_equal(batch["step_labels"], [[1.0]])
        assert_equal(batch["is_step_end"], [[True]])
        batch = collator([{"input_ids": [5, 6], "step_ends": [], "step_labels": []}])
        assert batch["step_labels"].shape == (1, 0) and not batch["is_step_end"].any()

    def test_weights_and_outcomes(self, padding_free):
        rows = [
            {**ROWS[0], "step_weights": [2.0, 0.5], "outcome": 1.0, "length": 4},
            {**ROWS[1], "step_weights": [4.0], "outcome": None, "length": 2},
        ]
        batch = StepDataCollator(pad_token_id=0, padding_free=padding_free)(rows)
        assert_equal(batch["step_weights"], [[2.0, 0.5], [4.0, NAN]])
        assert_equal(batch["outcomes"], [1.0, NAN])
        assert "length" not in batch

    def test_more_labels_than_steps(self, padding_free):
        with pytest.raises((RuntimeError, IndexError)):
            StepDataCollator(pad_token_id=0, padding_free=padding_free)([{**ROWS[0], "step_labels": [0.1, 0.2, 0.3]}])
