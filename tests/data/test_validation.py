"""`trl_erprm.data.validation`: which rows are stepwise rows, with which eta they were made, what is said of others."""

import json
import math

import pytest
from datasets import Dataset

from tests.data.rows import stepwise
from trl_erprm.data import (
    check_eta_of_labels,
    eta_of_labels,
    load_rows,
    to_stepwise_rows,
    validate_stepwise_rows,
)


@pytest.mark.parametrize(
    "changes", [{}, {"labels": [True, False]}, {"labels": [None, math.nan]}, {"labels": [0, 1]}, {"extra": 1}]
)
def test_valid_rows(changes):
    row = stepwise(**changes)
    assert validate_stepwise_rows(row) is None
    assert validate_stepwise_rows([row, row]) is None
    assert validate_stepwise_rows(Dataset.from_list([row, row])) is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": [1.0]}, "`labels` must be a list with one label for each of the 2 steps, got 1 labels"),
        ({"labels": None}, "`labels` must be a list with one label for each of the 2 steps, got None"),
        ({"labels": [1.0, 1.01]}, r"label 1 must be in \[0, 1\], a bool, or None for no label, got 1.01"),
        ({"labels": [-0.01, 1.0]}, r"label 0 must be in \[0, 1\].*got -0.01"),
        ({"labels": [math.inf, 1.0]}, r"label 0 must be in \[0, 1\].*got inf"),
        ({"prompt": ""}, "`prompt` must not be empty"),
        ({"prompt": [{"role": "user", "content": ""}]}, "`prompt` must not be empty"),
        ({"completions": []}, r"`completions` must be a list of at least one step, got \[\]"),
        ({"completions": ["a", "\n"]}, r"step 1 of `completions` must be a str that is not empty, got '\\n'"),
    ],
)
def test_invalid_rows(changes, message):
    row = stepwise(**changes)
    with pytest.raises(ValueError, match="^" + message):
        validate_stepwise_rows(row)
    with pytest.raises(ValueError, match="^Row 17: " + message):
        validate_stepwise_rows(row, row_number=17)
    with pytest.raises(ValueError, match="^Row 1: " + message):
        validate_stepwise_rows([stepwise(), row])
    if not isinstance(row["prompt"], list):
        with pytest.raises(ValueError, match="^Row 1: " + message):
            validate_stepwise_rows(Dataset.from_list([stepwise(), row]))


def test_missing_columns():
    row = {"prompt": "x?", "completions": ["a"], "ratings": [1]}
    message = (
        "the columns `prompt`, `completions`, `labels`, found `completions`, `prompt`, `ratings`: `labels` missing"
    )
    for rows in (row, [row], Dataset.from_list([row])):
        with pytest.raises(ValueError, match=message + ".*to_stepwise_rows"):
            validate_stepwise_rows(rows)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "values, expected",
    [([2.0, 2.0], 2.0), ([0, 0], 0.0), (["inf", "inf"], math.inf), ([-math.inf] * 2, -math.inf), ([None] * 2, None)],
)
def test_eta_of_labels(values, expected, streaming):
    dataset = Dataset.from_list([stepwise(eta=value) for value in values])
    assert eta_of_labels(dataset.to_iterable_dataset() if streaming else dataset) == expected
    without = Dataset.from_list([stepwise()])
    assert eta_of_labels(without.to_iterable_dataset() if streaming else without) is None


@pytest.mark.parametrize(
    "values, shown", [([2.0, 10.0], ("2", "10")), ([None, 0.0], ("none", "0")), (["inf", "2"], ("inf", "2"))]
)
def test_several_etas(values, shown):
    rows = [stepwise(eta=value) for value in values]
    message = "The labels of the eval dataset must be made with one eta, got rows with {} and with {} in the column"
    with pytest.raises(ValueError, match=message.format(*shown) + ".* Set `eta`"):
        eta_of_labels(Dataset.from_list(rows), "eval")
    eta = eta_of_labels(Dataset.from_list(rows).to_iterable_dataset())
    with pytest.raises(ValueError, match=message.format(*shown)):
        check_eta_of_labels(rows[1], eta, "eval")


@pytest.mark.parametrize("value", ["soon", math.nan, True])
def test_a_column_eta_that_means_something_else(value):
    message = "The column `eta` of the train dataset must hold the eta .*, a number, got .* Rename the column"
    with pytest.raises(ValueError, match=message):
        eta_of_labels(Dataset.from_list([stepwise(eta=value)]))


def test_several_etas_in_a_file(tmp_path):
    """Of which one is text, as JSON has no infinity."""
    rows = [stepwise(eta=value) for value in (2.0, 2.0, "inf")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = to_stepwise_rows(load_rows(dataset_path=tmp_path / "rows.jsonl", cache_dir=str(tmp_path / "cache")))
    with pytest.raises(ValueError, match="must be made with one eta, got rows with 2 and with inf"):
        eta_of_labels(dataset)
