"""`trl_erprm.prm.dataset`: labels from rollout counts, weights of steps, encoded rows, streaming, truncation."""

import logging
import math

import numpy as np
import pytest
from datasets import Dataset

from tests.prm.by_hand import ROWS
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.prm.dataset import encode_dataset, encode_rows, label_rows, step_weighting
from trl_erprm.prm.formats import load_format

NAN = math.nan
FORMAT = load_format("trl")
COLUMNS = ["prompt", "completions", "labels"]
# `outcome` is known of the first solution only.
COUNTED = [
    {"prompt": "3+4\n", "completions": ["3+4=2", "#2"], "labels": [0.5, 1.0], "num_rollouts": [4, 1], "outcome": 1.0},
    {
        "prompt": "1+1\n",
        "completions": ["1+1=2", "#2"],
        "labels": [0.25, 0.0],
        "num_rollouts": [8, 1],
        "outcome": None,
    },
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(params=[False, True], ids=["map_style", "streaming"])
def as_dataset(request):
    def build(rows):
        dataset = Dataset.from_list(rows)
        return dataset.to_iterable_dataset() if request.param else dataset

    return build


def weights_by_hand(rows, by_rollouts, balanced):
    """The definition in `ERPRMConfig`, step by step."""
    weights = []
    for row in rows:
        of_row = [float(n) for n in row["num_rollouts"]] if by_rollouts else [1.0] * len(row["labels"])
        if by_rollouts and row["outcome"] is not None:
            of_row[-1] = float(max(n for other in rows for n in other["num_rollouts"]))
        weights.append(of_row)
    if not balanced:
        return weights
    pairs = [
        (w, v) for row, of_row in zip(rows, weights, strict=True) for w, v in zip(of_row, row["labels"], strict=True)
    ]
    mean = sum(w * v for w, v in pairs) / sum(w for w, _ in pairs)
    return [
        [w * (v / (2 * mean) + (1 - v) / (2 * (1 - mean))) for w, v in zip(of_row, row["labels"], strict=True)]
        for row, of_row in zip(rows, weights, strict=True)
    ]


def ones(row):
    return [1.0] * len(row["labels"])


class TestLabelRows:
    ROWS = [
        {
            "prompt": "a",
            "completions": ["b", "c"],
            "num_correct": [2, 0],
            "num_rollouts": [4, 0],
            "labels": [0.1, 0.1],
        },
        {"prompt": "a", "completions": ["b"], "num_correct": [3], "num_rollouts": [3], "labels": [0.1]},
    ]

    @pytest.mark.parametrize(
        "eta, expected",
        [(0.0, 0.5), (math.inf, 1.0), (-math.inf, 0.0), (2.0, math.log((1 + math.e**2) / 2) / 2)],
    )
    def test_by_hand(self, as_dataset, eta, expected):
        first, second = list(label_rows(as_dataset(self.ROWS), eta))
        assert first["labels"][0] == pytest.approx(expected)
        assert math.isnan(first["labels"][1])  # no rollout, no label
        assert second["labels"] == [1.0]
        assert first["num_correct"] == [2, 0]

    def test_errors_name_dataset_and_row(self, as_dataset):
        rows = [self.ROWS[0], {**self.ROWS[1], "num_rollouts": [3, 3]}]
        with pytest.raises(ValueError, match="Row 1 of the test dataset has 1 steps, but 1 `num_correct` and 2"):
            list(label_rows(as_dataset(rows), 0.0, name="test"))
        rows = [self.ROWS[0], {**self.ROWS[1], "num_rollouts": [2]}]
        with pytest.raises(ValueError, match="Row 1 of the test dataset: `num_correct` must not exceed"):
            list(label_rows(as_dataset(rows), 0.0, name="test"))


class TestStepWeighting:
    def test_nothing_to_weight(self):
        assert step_weighting(Dataset.from_list(COUNTED), False, False) is None

    @pytest.mark.parametrize("by_rollouts, balanced", [(True, False), (False, True), (True, True)])
    def test_by_hand(self, by_rollouts, balanced):
        weights_of = step_weighting(Dataset.from_list(COUNTED), by_rollouts, balanced)
        expected = weights_by_hand(COUNTED, by_rollouts, balanced)
        for row, of_row in zip(COUNTED, expected, strict=True):
            assert weights_of(row) == pytest.approx(of_row)

    def test_rollouts_in_numbers(self):
        """The last step of the first solution is known from its outcome: as certain as the 8 rollouts elsewhere."""
        weights_of = step_weighting(Dataset.from_list(COUNTED), True, False)
        assert [weights_of(row) for row in COUNTED] == [[4.0, 8.0], [8.0, 1.0]]

    @pytest.mark.parametrize("outcome", [None, NAN])
    def test_an_outcome_that_is_not_known(self, outcome):
        weights_of = step_weighting(Dataset.from_list(COUNTED), True, False)
        assert weights_of({**COUNTED[0], "outcome": outcome}) == [4.0, 1.0]
        assert weights_of({**COUNTED[0], "outcome": 0.0}) == [4.0, 8.0]

    def test_balance_in_numbers(self):
        """Mean label 1/4: a good step counts 2, a bad one 2/3, so each kind has half of the total of 4."""
        rows = [{"prompt": "a", "completions": ["b"] * 4, "labels": [1.0, 0.0, 0.0, 0.0]}]
        weights = step_weighting(Dataset.from_list(rows), False, True)(rows[0])
        assert weights == pytest.approx([2.0, 2 / 3, 2 / 3, 2 / 3])

    @pytest.mark.parametrize("by_rollouts", [False, True])
    @pytest.mark.parametrize("last_step_only", [False, True])
    @pytest.mark.parametrize("soft", [False, True])
    def test_good_and_bad_have_the_same_share(self, by_rollouts, last_step_only, soft):
        """A step of label V is V of a good and 1 - V of a bad one; the weight of all steps stays what it was."""
        rng = np.random.default_rng(0)
        rows = [
            {
                "prompt": "a",
                "completions": ["b"] * n,
                "labels": [None if rng.random() < 0.2 else float(v if soft else v > 0.2) for v in rng.random(n) ** 3],
                "num_rollouts": rng.integers(0, 9, n).tolist(),
                "outcome": [None, 0.0, 1.0][rng.integers(3)],
            }
            for n in rng.integers(1, 6, 20)
        ]
        weights = {}
        for balanced in (False, True):
            weights_of = step_weighting(Dataset.from_list(rows), by_rollouts, balanced, last_step_only) or ones
            weights[balanced] = np.concatenate([weights_of(row) for row in rows])
        labels = np.array([label for row in rows for label in row["labels"]], dtype=float)
        is_last = np.array([k == len(row["labels"]) - 1 for row in rows for k in range(len(row["labels"]))])
        is_learnt = ~np.isnan(labels) & (is_last | (not last_step_only))
        assert not weights[True][~is_learnt].any()
        labels, before, after = labels[is_learnt], weights[False][is_learnt], weights[True][is_learnt]
        assert after.sum() == pytest.approx(before.sum())
        if not soft:
            assert (after * labels).sum() == pytest.approx((after * (1 - labels)).sum())
            assert not (before * labels).sum() == pytest.approx((before * (1 - labels)).sum(), rel=0.1)

    def test_scores_of_labels_stay_the_best(self):
        """Whole steps are weighted, both terms of their cross-entropy alike, so its minimum stays at the label."""
        rows = [{"prompt": "a", "completions": ["b"] * 2, "labels": [0.9, 0.1]}, COUNTED[0]]
        weights = step_weighting(Dataset.from_list(rows).select_columns(COLUMNS), False, True)(rows[0])
        scores = np.linspace(0.01, 0.99, 99)
        for weight, label in zip(weights, (0.9, 0.1), strict=True):
            losses = -weight * (label * np.log(scores) + (1 - label) * np.log(1 - scores))
            assert scores[np.argmin(losses)] == pytest.approx(label)

    def test_streaming(self):
        stream = Dataset.from_list(COUNTED).to_iterable_dataset()
        message = "`{0}` looks at all labels before training, which a streaming train dataset .* set `{0}=False`"
        with pytest.raises(ValueError, match=message.format("weight_by_rollouts")):
            step_weighting(stream, True, True)
        with pytest.raises(ValueError, match=message.format("balance_classes")):
            step_weighting(stream, False, True)

    def test_no_counts(self):
        message = "needs the column `num_rollouts`, but the train dataset has prompt, completions, labels"
        with pytest.raises(ValueError, match=message):
            step_weighting(Dataset.from_list(ROWS), True, False)

    @pytest.mark.parametrize("counts", [[4], [4, 1, 1], [4, -1], [4, None], None])
    def test_not_a_count_for_each_step(self, counts):
        """One count for all steps would else be broadcast."""
        rows = [COUNTED[0], {**COUNTED[1], "num_rollouts": counts}]
        message = "Row 1 of the train dataset: `weight_by_rollouts` needs `num_rollouts` for each of the 2 steps"
        with pytest.raises(ValueError, match=message):
            step_weighting(Dataset.from_list(rows), True, False)

    @pytest.mark.parametrize("label", [0.0, 1.0])
    def test_one_class_only(self, label):
        rows = [{**row, "labels": [label, None]} for row in COUNTED]
        message = (
            f"`balance_classes` weighs good steps against bad ones, but the mean label of the train dataset is {label}"
        )
        with pytest.raises(ValueError, match=message):
            step_weighting(Dataset.from_list(rows), False, True)

    def test_no_labels(self):
        rows = [{**row, "labels": [None, NAN]} for row in COUNTED]
        with pytest.raises(
            ValueError, match="the mean label of the train dataset is None. Set `balance_classes=False`"
        ):
            step_weighting(Dataset.from_list(rows), False, True)

    def test_rows_that_are_not_stepwise(self):
        dataset = Dataset.from_list(ROWS).remove_columns("labels")
        with pytest.raises(ValueError, match="The dataset is not stepwise: .*`labels` missing"):
            step_weighting(dataset, False, True)
        with pytest.raises(ValueError, match=r"Row 1: label 0 must be in \[0, 1\]"):
            step_weighting(Dataset.from_list([ROWS[0], {**ROWS[1], "labels": [7.0]}]), False, True)


class TestEncodeRows:
    def columns(self, rows):
        return {name: [row[name] for row in rows] for name in rows[0]}

    def test_by_hand(self, tokenizer):
        encoded = encode_rows(self.columns(ROWS), FORMAT, tokenizer)
        texts = ["3+4*2\n3+4=2\n2*2=4\n#4\n", "1+1\n1+1=2\n"]
        assert encoded["input_ids"] == [tokenizer(text)["input_ids"] for text in texts]
        newline = tokenizer("\n")["input_ids"][0]
        for ids, ends, row in zip(encoded["input_ids"], encoded["step_ends"], ROWS, strict=True):
            assert [t for t, token in enumerate(ids) if token == newline][1:] == ends
            assert len(ends) == len(row["completions"])
        assert encoded["step_labels"] == [row["labels"] for row in ROWS]
        assert encoded["length"] == [len(ids) for ids in encoded["input_ids"]]
        assert encoded["num_dropped_steps"] == [0, 0]
        assert set(encoded) == {"input_ids", "step_ends", "step_labels", "length", "num_dropped_steps"}

    def test_optional_columns(self, tokenizer):
        weights_of = step_weighting(Dataset.from_list(COUNTED), True, False)
        encoded = encode_rows(self.columns(COUNTED), FORMAT, tokenizer, weights_of=weights_of)
        assert encoded["outcome"] == [1.0, None]
        assert encoded["step_weights"] == [[4.0, 8.0], [8.0, 1.0]]

    def test_last_step_only(self, tokenizer):
        encoded = encode_rows(self.columns(ROWS), FORMAT, tokenizer, last_step_only=True)
        first, second = encoded["step_labels"]
        assert np.isnan(first[:2]).all() and first[2] == 1.0 and second == [0.2]

    def test_the_last_step_is_known_before_truncation(self, tokenizer):
        """What is cut off takes the only label with it: the step before it does not become the last."""
        encoded = encode_rows(self.columns(ROWS), FORMAT, tokenizer, max_length=14, last_step_only=True)
        assert len(encoded["step_labels"][0]) == 2 and np.isnan(encoded["step_labels"][0]).all()

    def test_a_step_its_label_and_its_weight_are_dropped_together(self, tokenizer):
        rows = [{**row, "num_rollouts": [5, 6, 7][: len(row["labels"])], "outcome": None} for row in ROWS]
        weights_of = step_weighting(Dataset.from_list(rows), True, False)
        for max_length, kept in ((15, 3), (14, 2), (12, 2), (11, 2), (6, 1)):
            encoded = encode_rows(self.columns(rows), FORMAT, tokenizer, max_length=max_length, weights_of=weights_of)
            kept = sum(end < max_length for end in encode_rows(self.columns(rows), FORMAT, tokenizer)["step_ends"][0])
            assert len(encoded["step_ends"][0]) == kept
            assert encoded["step_labels"][0] == ROWS[0]["labels"][:kept]
            assert encoded["step_weights"][0] == [5.0, 6.0, 7.0][:kept]
            assert encoded["num_dropped_steps"][0] == 3 - kept
            assert encoded["length"][0] == len(encoded["input_ids"][0]) <= max_length

    def test_messages_name_the_row(self, tokenizer):
        rows = self.columns([ROWS[0], {**ROWS[1], "completions": [" "]}])
        with pytest.raises(ValueError, match="Row 1: Step 0 of 1 is empty"):
            encode_rows(rows, FORMAT, tokenizer)


class TestEncodeDataset:
    def encode(self, dataset, tokenizer, **options):
        return encode_dataset(dataset, FORMAT, tokenizer, columns=COLUMNS, **options)

    def test_streaming_equals_map_style(self, tokenizer):
        dataset = Dataset.from_list(ROWS * 3)
        streamed = list(self.encode(dataset.to_iterable_dataset(), tokenizer, max_length=14))
        assert streamed == list(self.encode(dataset, tokenizer, max_length=14))
        assert set(streamed[0]) == {"input_ids", "step_ends", "step_labels", "length"}

    def test_what_was_cut_off_is_reported(self, tokenizer, as_dataset, caplog):
        with caplog.at_level(logging.WARNING):
            list(self.encode(as_dataset(ROWS * 2), tokenizer, name="eval", max_length=15))
            assert not caplog.text
            encoded = list(self.encode(as_dataset(ROWS * 2), tokenizer, name="eval", max_length=14))
        assert [row["step_labels"] for row in encoded] == [[0.9, 0.3], [0.2]] * 2
        assert "the eval dataset" in caplog.text
        assert "`max_length` (14 tokens) and were dropped together with their labels" in " ".join(caplog.text.split())
        assert "2 steps" in caplog.text

    def test_rows_of_which_nothing_remains(self, tokenizer, caplog):
        rows = [*ROWS, {**ROWS[0], "labels": [None, None, None]}]
        assert len(self.encode(Dataset.from_list(rows), tokenizer)) == 2
        assert "1 of 3 rows of the train dataset have no labelled step" in caplog.text
        # a streaming dataset keeps them: a batch without labels has loss 0
        streamed = list(self.encode(Dataset.from_list(rows).to_iterable_dataset(), tokenizer))
        assert np.isnan(streamed[2]["step_labels"]).all()

    def test_errors_name_dataset_and_row(self, tokenizer, as_dataset):
        rows = [ROWS[0], {**ROWS[0], "labels": [0.9, 1.3, 1.0]}]
        with pytest.raises(ValueError, match=r"Row 1: label 1 must be in \[0, 1\]"):
            list(self.encode(as_dataset(rows), tokenizer))

    def test_rows_beyond_the_first_batch_are_named_by_their_number(self, tokenizer, as_dataset):
        """`datasets` maps a thousand rows at a time."""
        rows = [ROWS[1]] * 1001 + [{**ROWS[1], "labels": [-1.0]}]
        with pytest.raises(ValueError, match="Row 1001: label 0"):
            list(self.encode(as_dataset(rows), tokenizer))

    def test_a_tag_that_merges_names_dataset_and_row(self, as_dataset):
        """An error that only tokens show, in a row that is otherwise fine."""
        from tests.tokenizers import merging_tokenizer

        format = load_format("math-shepherd")
        rows = [{"prompt": "a", "completions": [step], "labels": [1.0]} for step in ["b"] * 1001 + ["b."]]
        with pytest.raises(ValueError, match="Row 1001 of the train dataset: the tag ' ки' of step 0 merges"):
            list(encode_dataset(as_dataset(rows), format, merging_tokenizer(), columns=COLUMNS))

    def test_several_processes(self, tokenizer, monkeypatch):
        num_procs = []
        map_rows = Dataset.map
        monkeypatch.setattr(
            Dataset, "map", lambda self, *a, **kw: (num_procs.append(kw.get("num_proc")), map_rows(self, *a, **kw))[1]
        )
        dataset = Dataset.from_list(ROWS * 2)
        weights_of = step_weighting(dataset, False, True)
        one = self.encode(dataset, tokenizer, weights_of=weights_of)
        two = self.encode(dataset, tokenizer, weights_of=weights_of, num_proc=2)
        assert one.to_list() == two.to_list()
        assert num_procs == [None, 2]
