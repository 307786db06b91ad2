"""`trl_erprm.data.prompt_rows`: each layout by hand, real rows, and rows that cannot be read."""

import logging

import pytest
from datasets import Dataset, DatasetDict

from trl_erprm.data import load_rows, strip_calculator_marks, to_prompt_rows, to_stepwise_rows
from trl_erprm.steps import step_texts
from trl_erprm.verify import verify_answer


def test_gsm8k():
    row = {
        "question": "How many clips?",
        "answer": "He sold 48/2 = <<48/2=24>>24.\nIn all <<48+24=72>>72.\n#### 1,072",
        "id": 7,
    }
    assert to_prompt_rows(Dataset.from_list([row]))[0] == {
        "prompt": "How many clips?",
        "answer": "1,072",
        "solution": "He sold 48/2 = 24.\nIn all 72.\n#### 1,072",
        "completions": ["He sold 48/2 = 24.", "In all 72.", "#### 1,072"],
        "id": 7,
    }


def test_gsm8k_with_the_answer_alone():
    row = to_prompt_rows(Dataset.from_list([{"question": "2+3?", "answer": " 5 "}]))[0]
    assert row == {"prompt": "2+3?", "answer": "5", "solution": None, "completions": None}


def test_calculator_marks():
    assert strip_calculator_marks("a <<1+1=2>>2, 3 << 4 >> 5, x < y") == "a 2, 3  5, x < y"


def test_math():
    solution = "We add.\nSo $x = \\boxed{\\frac{1}{2}}$."
    row = to_prompt_rows(Dataset.from_list([{"problem": "x?", "solution": solution, "level": "Level 1"}]))[0]
    assert row == {
        "prompt": "x?",
        "answer": "\\frac{1}{2}",
        "solution": solution,
        "completions": ["We add.", "So $x = \\boxed{\\frac{1}{2}}$."],
        "level": "Level 1",
    }


def test_math_with_a_column_answer():
    rows = to_prompt_rows(Dataset.from_list([{"problem": "x?", "solution": "So \\boxed{1}.", "answer": "2"}]))
    assert rows[0]["answer"] == "2"  # the column wins
    rows = to_prompt_rows(Dataset.from_list([{"problem": "x?", "answer": 2}]))
    assert rows[0] == {"prompt": "x?", "answer": "2"}


def test_split_how_moves_the_steps():
    dataset = Dataset.from_list([{"problem": "x?", "solution": "We add. It\nis $a. B$. So \\boxed{1}."}])
    assert to_prompt_rows(dataset)[0]["completions"] == ["We add. It", "is $a. B$. So \\boxed{1}."]
    assert to_prompt_rows(dataset, split_how="sentence")[0]["completions"] == [
        "We add.",
        "It\nis $a. B$.",
        "So \\boxed{1}.",
    ]
    with pytest.raises(ValueError, match="Did you mean 'sentence'"):
        to_prompt_rows(dataset, split_how="sentences")


def test_trl_prompts():
    messages = [{"role": "user", "content": "x?"}]
    assert to_prompt_rows(Dataset.from_list([{"prompt": messages}]))[0] == {"prompt": messages}
    assert to_prompt_rows(Dataset.from_list([{"prompt": "x?", "answer": 3.5}]))[0] == {"prompt": "x?", "answer": "3.5"}
    row = to_prompt_rows(Dataset.from_list([{"prompt": "x?", "completions": ["a", "b"], "answer": None}]))[0]
    assert row == {"prompt": "x?", "answer": None, "completions": ["a", "b"]}


@pytest.mark.parametrize(
    "solution, answer, steps",
    [
        ("$\\frac12$", "$\\frac12$", None),
        ("\\boxed{7}", "7", None),
        ("1+1=2\n#### 2", "2", ["1+1=2", "#### 2"]),
        ("We add them: \\boxed{7}.", "7", ["We add them: \\boxed{7}."]),
        ("We find that it holds.", None, ["We find that it holds."]),
        (None, None, None),
    ],
)
def test_trl_solutions(solution, answer, steps):
    features = Dataset.from_list([{"prompt": "x?", "solution": ""}]).features
    row = to_prompt_rows(Dataset.from_list([{"prompt": "x?", "solution": solution}], features=features))[0]
    assert row == {"prompt": "x?", "answer": answer, "solution": solution, "completions": steps}


def test_prompt_columns_of_no_layout():
    with pytest.raises(
        ValueError,
        match=r"of no prompt layout: found `a`, `question`. Accepted: TRL: `prompt`; GSM8K: `question`, `answer`; "
        r"MATH: `problem`, `solution`; MATH, answers only: `problem`, `answer`. Rename",
    ):
        to_prompt_rows(Dataset.from_list([{"question": "x?", "a": "1"}]))


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "x?", "answer": "first\nsecond"}, "Row 1: the column `answer` is a solution of several lines"),
        ({"question": "x?", "answer": "first\n#### none"}, "Row 1: the column `answer` has no number after `####`"),
        ({"question": " ", "answer": "#### 1"}, "Row 1: the column `question` must be a str that is not empty"),
        ({"question": "x?", "answer": None}, "Row 1: the column `answer` must be a str that is not empty, got None"),
        ({"problem": "x?", "solution": "so 5"}, r"Row 1: there is no answer: .* no \\boxed"),
        ({"prompt": ""}, "Row 1: `prompt` must not be empty, got ''"),
        ({"prompt": None}, "Row 1: `prompt` must be a str or a list of messages, got None"),
    ],
)
def test_unreadable_prompt_rows(row, message, caplog):
    good = {"question": "x?", "answer": "#### 1", "problem": "x?", "solution": "\\boxed{1}", "prompt": "x?"}
    dataset = Dataset.from_list([{name: good[name] for name in row}, row])
    with pytest.raises(ValueError, match=message + ".*in the layout .*skip_unreadable=True"):
        to_prompt_rows(dataset)
    with caplog.at_level(logging.WARNING):
        assert len(to_prompt_rows(dataset, skip_unreadable=True)) == 1
    assert "1 of 2 rows could not be read and are left out. The first: Row 1:" in caplog.text


def test_all_rows_unreadable():
    dataset = Dataset.from_list([{"question": "x?", "answer": "a\nb"}] * 3)
    rows = to_prompt_rows(dataset, skip_unreadable=True)
    assert len(rows) == 0 and rows.column_names == ["prompt", "answer", "solution", "completions"]


def test_row_numbers_beyond_the_first_batch():
    dataset = Dataset.from_list([{"question": "x?", "answer": "#### 1"}] * 1_500 + [{"question": "x?", "answer": ""}])
    with pytest.raises(ValueError, match="Row 1500:"):
        to_prompt_rows(dataset)


@pytest.mark.parametrize("convert", [to_prompt_rows, to_stepwise_rows])
def test_datasets_of_another_type(convert):
    splits = DatasetDict({"train": Dataset.from_list([{"prompt": "x?"}])})
    with pytest.raises(TypeError, match="datasets.Dataset, got DatasetDict. Choose one of its splits: `train`"):
        convert(splits)
    with pytest.raises(TypeError, match=r"got list. Make one by Dataset.from_list\(rows\)"):
        convert([{"prompt": "x?"}])


def test_real_gsm8k(shared_data, tmp_path):
    dataset = load_rows("json", shared_data / "gsm8k" / "train.jsonl", cache_dir=str(tmp_path))
    rows = to_prompt_rows(dataset)
    assert len(rows) == 7_473
    for row in rows:
        assert verify_answer(row["solution"], row["answer"], how="gsm8k") is True
        assert row["completions"] == step_texts(row["solution"]) and len(row["completions"]) > 1
        assert "<<" not in row["solution"]
        assert row["completions"][-1] == f"#### {row['answer']}"
