"""`trl_erprm.data.validation`: which rows are stepwise rows, and what is said of others."""

import math

import pytest
from datasets import Dataset

from tests.data.rows import stepwise
from trl_erprm.data import validate_stepwise_rows


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
