"""`trl_erprm.data.loading`: files, directories, splits, and what cannot be loaded."""

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from trl_erprm.data import load_rows, to_prompt_rows


@pytest.fixture
def load(tmp_path):
    return lambda *args, **kwargs: load_rows(*args, cache_dir=str(tmp_path / "cache"), **kwargs)


ROWS = [{"prompt": "x?", "answer": str(i)} for i in range(5)]


def test_json_lines(load, tmp_path):
    text = "\n".join(map(json.dumps, ROWS))
    (tmp_path / "rows.jsonl").write_text(text)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write(text)
    (tmp_path / "rows.data").write_text(text)
    assert load("json", tmp_path / "rows.jsonl").to_list() == ROWS
    assert load("json", str(tmp_path / "rows.jsonl.gz")).to_list() == ROWS
    assert load(None, tmp_path / "rows.jsonl.gz").to_list() == ROWS
    assert load(str(tmp_path / "rows.jsonl")).to_list() == ROWS
    assert load("json", tmp_path / "rows.data").to_list() == ROWS


def test_json_array_and_parquet(load, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    assert load("json", tmp_path / "rows.json").to_list() == ROWS
    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert load("parquet", tmp_path / "rows.parquet").to_list() == ROWS
    assert load(None, tmp_path / "rows.parquet").to_list() == ROWS


def test_split_of_a_file(load, tmp_path):
    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert load(None, tmp_path / "rows.parquet", split="train[:2]").to_list() == ROWS[:2]
    assert load(None, tmp_path / "rows.parquet", split="test").to_list() == ROWS  # a file is one split


def test_directories(load, tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    splits = DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])})
    splits.save_to_disk(tmp_path / "dict")
    (tmp_path / "files").mkdir()
    Dataset.from_list(ROWS).to_parquet(tmp_path / "files" / "train.parquet")
    assert load(None, tmp_path / "saved").to_list() == ROWS
    assert load(str(tmp_path / "saved"), split="test").to_list() == ROWS
    assert load(None, tmp_path / "dict").to_list() == ROWS
    assert load(None, tmp_path / "dict", split="test").to_list() == ROWS[:1]
    assert load(None, tmp_path / "files").to_list() == ROWS
    with pytest.raises(ValueError, match=r"`split` must be one of `test`, `train`, which .* holds, got 'validation'"):
        load(None, tmp_path / "dict", split="validation")
    with pytest.raises(ValueError, match=r"without a slice for a directory .* save_to_disk, got 'train\[:2\]'"):
        load(None, tmp_path / "dict", split="train[:2]")


def test_what_cannot_be_loaded(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="must be an existing file or directory, got '.*nothing.jsonl'"):
        load("json", tmp_path / "nothing.jsonl")
    for name in ("json", None):
        with pytest.raises(ValueError, match=f"must name a file or a directory where `dataset_name` is {name!r}"):
            load(name)
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(ValueError, match="must be one of `.json`, .*, got 'rows.txt'.*--dataset_name json"):
        load(None, tmp_path / "rows.txt")
    (tmp_path / "empty.csv").write_text("prompt,answer\n")
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("empty.csv", "empty.jsonl"):
        with pytest.raises(ValueError, match=f"{name}` holds no row in the split 'train'"):
            load(None, tmp_path / name)


def test_rows_of_a_read_only_directory_can_be_converted(load, tmp_path):
    Dataset.from_list([{"question": "x?", "answer": "#### 1"}]).save_to_disk(tmp_path / "saved")
    before = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert len(to_prompt_rows(load(None, tmp_path / "saved"))) == 1
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == before  # nothing is written there
