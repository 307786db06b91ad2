"""`trl_erprm.data.stepwise_rows`: each layout by hand, real rows, and rows that cannot be read."""

import json
import logging
import math

import pytest
from datasets import Dataset

from tests.data.rows import stepwise
from trl_erprm.data import load_rows, to_stepwise_rows, validate_stepwise_rows


def test_trl_stepwise():
    dataset = Dataset.from_list([stepwise(labels=[True, False], id=1), stepwise(labels=[True, None], id=2)])
    rows = to_stepwise_rows(dataset)
    assert rows["labels"][:] == [[1.0, 0.0], [1.0, None]] and rows["id"][:] == [1, 2]
    rows = to_stepwise_rows(Dataset.from_list([stepwise(labels=[0.9, math.nan])]))
    assert rows["labels"][:] == [[0.9, None]]


def test_soft_labels_keep_all_their_digits():
    labels = [0.1, 0.9]
    assert to_stepwise_rows(Dataset.from_list([stepwise(labels=labels)]))[0]["labels"] == labels  # not float32


def test_stepwise_messages():
    messages = [{"role": "user", "content": "x?"}]
    assert to_stepwise_rows(Dataset.from_list([stepwise(prompt=messages)]))[0]["prompt"] == messages


def counted(**changes):
    row = stepwise(num_correct=[2, 0], num_rollouts=[4, 0], outcome=1.0, **changes)
    del row["labels"]
    return row


@pytest.mark.parametrize(
    "eta, expected", [(0, 0.5), (math.inf, 1.0), (-math.inf, 0.0), (2, math.log((1 + math.exp(2)) / 2) / 2)]
)
def test_rollout_counts(eta, expected):
    [row] = to_stepwise_rows(Dataset.from_list([counted()]), eta=eta)
    assert row.pop("labels") == [pytest.approx(expected), None]  # without a rollout, there is no label
    assert row == {**counted(), "eta": eta}
    validate_stepwise_rows({**row, "labels": [expected, None]})


def test_rollout_counts_need_eta():
    message = r"The rows have rollout counts and no `labels` \(found .*`num_correct`.*\), but `eta`.* not given. Set"
    with pytest.raises(ValueError, match=message):
        to_stepwise_rows(Dataset.from_list([counted()]))
    with pytest.raises(ValueError, match="`eta` must be finite or one of inf, -inf, got nan"):
        to_stepwise_rows(Dataset.from_list([counted()]), eta=math.nan)


def test_labels_beside_rollout_counts_stay():
    row = {**counted(), "labels": [0.123, 0.7], "eta": 3.0}
    assert to_stepwise_rows(Dataset.from_list([row]), eta=0)[0] == row


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_correct": [2]}, "Row 1: `num_correct` must be a list with one number for each of the 2 steps, got 1 n"),
        ({"num_rollouts": None}, "Row 1: `num_rollouts` must be a list with one number .* 2 steps, got None"),
        ({"num_correct": [5, 0]}, "Row 1: `num_correct` must not exceed `num_rollouts`, got 5 of 4"),
        ({"completions": ["a", ""]}, "Row 1: step 1 of `completions` must be a str that is not empty"),
    ],
)
def test_unreadable_rollout_counts(changes, message):
    dataset = Dataset.from_list([counted(), {**counted(), **changes}])
    with pytest.raises(ValueError, match=message):
        to_stepwise_rows(dataset, eta=1)
    assert len(to_stepwise_rows(dataset, eta=1, skip_unreadable=True)) == 1


def test_math_shepherd():
    text = "2+3+4? Step 1: 2+3=<<2+3=5>>5 ки\nStep 2: 5+4=-8 ки\nStep 3: The answer is: -8 ки"
    label = "2+3+4? Step 1: 2+3=<<2+3=5>>5 +\nStep 2: 5+4=-8 -\nStep 3: The answer is: -8 -"
    rows = to_stepwise_rows(Dataset.from_list([{"input": text, "label": label, "task": "GSM8K"}]))
    assert rows[0] == {
        "prompt": "2+3+4?",
        "completions": ["Step 1: 2+3=<<2+3=5>>5", "Step 2: 5+4=-8", "Step 3: The answer is: -8"],
        "labels": [1.0, 0.0, 0.0],
        "task": "GSM8K",
    }


def test_math_shepherd_last_step_without_a_tag_has_no_label():
    row = {"input": "x? Step 1: a ки Step 2: b", "label": "x? Step 1: a + Step 2: b"}
    rows = to_stepwise_rows(Dataset.from_list([row]))
    assert rows[0]["completions"] == ["Step 1: a", "Step 2: b"]
    assert rows[0]["labels"] == [1.0, None]


def test_problem_that_speaks_of_a_step():
    rows = to_stepwise_rows(Dataset.from_list([{"text": "Is Step 1: a right? Step 1: yes ки", "value": [0.5]}]))
    assert rows[0]["prompt"] == "Is Step 1: a right?" and rows[0]["completions"] == ["Step 1: yes"]


def test_er_prm():
    text = "2+3+4? Step 1: 2+3=5 ки\nStep 2: 5+4=9. The answer is: 9"
    expected = {
        "prompt": "2+3+4?",
        "completions": ["Step 1: 2+3=5", "Step 2: 5+4=9. The answer is: 9"],
        "labels": [0.813, 1.0],
    }
    # As its README shows it, and as its conversion script writes it.
    for end in (" ки\n", ""):
        assert to_stepwise_rows(Dataset.from_list([{"text": text + end, "value": [0.813, 1.0]}]))[0] == expected


@pytest.mark.parametrize(
    "values, expected", [(["+", "-"], [1.0, 0.0]), ([0.813, 1], [0.813, 1.0]), ([1, 0], [1.0, 0.0])]
)
def test_openrlhf(values, expected):
    text = "2+3+4? Step 1: 2+3=5 ки\nStep 2: 5+4=8 ки"
    assert to_stepwise_rows(Dataset.from_list([{"input": text, "value": values, "id": 3}]))[0] == {
        "prompt": "2+3+4?",
        "completions": ["Step 1: 2+3=5", "Step 2: 5+4=8"],
        "labels": expected,
        "id": 3,
    }


def test_openrlhf_labels_tags():
    """What follows the last tag is a step without a label, as in Math-Shepherd."""
    row = {"input": "x? Step 1: a ки Step 2: b", "value": ["-"]}
    assert to_stepwise_rows(Dataset.from_list([row]))[0]["labels"] == [0.0, None]


RAW_PRM800K = {
    "question": {"problem": "2+3+4?", "ground_truth_answer": "9"},
    "label": {
        "steps": [
            {
                "completions": [{"text": "2+3=6", "rating": -1}, {"text": " 2+3=5", "rating": 1}],
                "human_completion": None,
                "chosen_completion": 1,
            },
            {
                "completions": [{"text": "Hm.", "rating": 0}, {"text": "unrated", "rating": None}],
                "human_completion": {"text": "Now add 4.", "rating": None},
                "chosen_completion": None,
            },
            {
                "completions": [{"text": "5+4=8", "rating": -1}, {"text": "5+4=7", "rating": -1}],
                "human_completion": None,
                "chosen_completion": None,
            },
        ]
    },
    "generation": 5,
}


def test_prm800k():
    rows = to_stepwise_rows(Dataset.from_list([RAW_PRM800K]))
    assert [(row["completions"], row["labels"]) for row in rows] == [
        (["2+3=5", "Now add 4.", "5+4=8"], [1.0, None, 0.0]),  # ends at the error
        (["2+3=6"], [0.0]),
        (["2+3=5", "Hm."], [None, 1.0]),
        (["2+3=5", "Now add 4.", "5+4=7"], [None, None, 0.0]),
    ]
    assert {(row["prompt"], row["answer"], row["generation"]) for row in rows} == {("2+3+4?", "9", 5)}
    ratings = [c["rating"] for s in RAW_PRM800K["label"]["steps"] for c in s["completions"] if c["rating"] is not None]
    assert sum(label is not None for row in rows for label in row["labels"]) == len(ratings)


def test_prm800k_flat():
    row = stepwise(ratings=[1, 0, -1, None], completions=list("abcd"), gold_answer="9", final_answer="8")
    del row["labels"]
    rows = to_stepwise_rows(Dataset.from_list([row]))
    assert rows[0]["labels"] == [1.0, 1.0, 0.0, None]
    assert rows[0]["answer"] == "9" and rows[0]["final_answer"] == "8"


def test_neutral_label_moves_the_labels():
    row = stepwise(ratings=[0, -1])
    del row["labels"]
    assert to_stepwise_rows(Dataset.from_list([row]), neutral_label=0.25)[0]["labels"] == [0.25, 0.0]
    assert to_stepwise_rows(Dataset.from_list([RAW_PRM800K]), neutral_label=0.25)[2]["labels"] == [None, 0.25]
    with pytest.raises(ValueError, match=r"`neutral_label` must be in \[0, 1\], got -1"):
        to_stepwise_rows(Dataset.from_list([row]), neutral_label=-1)


def test_math_aps():
    prefixes = [("x?", 0.5), ("x?\n\nA", 0.75), ("x?\n\nA B", 1.0), ("x?\n\nA C", 0.0), ("x?\n\nD", 0.25)]
    row = {
        "question": "x?",
        "final_answer": "9",
        "reasoning_steps": [{"solution_prefix": prefix, "mc_value": value} for prefix, value in prefixes],
    }
    rows = to_stepwise_rows(Dataset.from_list([row]))
    assert [(row["completions"], row["labels"]) for row in rows] == [
        (["A", "B"], [0.75, 1.0]),
        (["A", "C"], [None, 0.0]),  # the value of A counts once
        (["D"], [0.25]),
    ]
    assert rows["answer"][:] == ["9"] * 3


def test_stepwise_columns_of_no_layout():
    with pytest.raises(
        ValueError,
        match=r"of no stepwise layout: found `completions`, `prompt`. Accepted: TRL stepwise: `prompt`, "
        r"`completions`, `labels`; rollout counts: `prompt`, .*; PRM800K, flat: .*; Math-Shepherd: `input`, `label`; "
        r"ER-PRM: `text`, `value`; .*",
    ):
        to_stepwise_rows(Dataset.from_list([{"prompt": "x?", "completions": ["a"]}]))


@pytest.mark.parametrize(
    "row, message",
    [
        (stepwise(labels=[0.5]), "Row 1: `labels` must be a list with one label for each .*, got 1 labels"),
        (stepwise(labels=[0.5, 1.5]), r"Row 1: label 1 must be in \[0, 1\], .*, got 1.5"),
        (stepwise(completions=["a", " "]), "Row 1: step 1 of `completions` must be a str that is not empty"),
        (stepwise(prompt=" "), "Row 1: `prompt` must not be empty, got ' '"),
        ({"input": "x? Step 1: a ки", "label": "x? Step 1: a ?"}, "Row 1: the column `label` does not follow"),
        ({"input": "x? Step 1: a ки", "label": "x? Step 1: b +"}, "Row 1: .*in place of the tag number 1"),
        ({"input": "x? a ки", "label": "x? a +"}, "Row 1: no `Step 1:` stands before the first tag"),
        ({"input": "x? Step 1: ки ки", "label": "x? Step 1: + +"}, "Row 1: step 1 of `completions` must be a str"),
        ({"input": "Step 1: a ки", "label": "Step 1: a +"}, "Row 1: `prompt` must not be empty"),
        ({"text": "x? Step 1: a ки Step 2: b ки", "value": [1.0]}, "Row 1: .* got 1 for 2 steps"),
        ({"text": "x? Step 1: a ки", "value": [-0.1]}, "Row 1: label 0 must be in"),
        ({"text": "x? Step 1: a ки Step 2: b", "value": [1.0]}, "Row 1: .* got 1 for 2 steps"),
        ({"input": "x? Step 1: a ки Step 2: b ки", "value": [1.0]}, "Row 1: .* got 1 for 2 steps .*with 2 tags"),
        ({"input": "x? Step 1: a ки", "value": [1.0, 0.0]}, "Row 1: .* got 2 for 1 steps"),
        ({"input": "x? Step 1: a ки", "value": [1.5]}, "Row 1: label 0 must be in .*, got 1.5"),
        ({"input": "x? Step 1: a ки", "value": None}, "Row 1: the column `value` must be a list .*, got None"),
        ({"input": "x? a ки", "value": [1.0]}, "Row 1: no `Step 1:` stands before the first tag"),
        ({"text": "x? Step 1: a ки", "value": None}, "Row 1: the column `value` must be a list .*, got None"),
        ({"prompt": "x?", "completions": ["a"], "ratings": [2]}, "Row 1: a rating must be 1, 0, -1 or None, got 2"),
        ({"prompt": "x?", "completions": ["a"], "ratings": None}, "Row 1: the column `ratings` must be a list"),
    ],
)
def test_unreadable_stepwise_rows(row, message, caplog):
    good = {"input": "x? Step 1: a ки", "text": "x? Step 1: a ки", "label": "x? Step 1: a +", "value": [1.0]}
    good |= stepwise(ratings=[1, 0])
    dataset = Dataset.from_list([{name: good[name] for name in row}, row])
    with pytest.raises(ValueError, match=message + ".*skip_unreadable=True"):
        to_stepwise_rows(dataset)
    with caplog.at_level(logging.WARNING):
        assert len(to_stepwise_rows(dataset, skip_unreadable=True)) == 1
    assert "1 of 2 rows could not be read" in caplog.text


def test_unknown_marks():
    good, bad = ({"input": "x? Step 1: a ки", "value": [mark]} for mark in "+?")
    with pytest.raises(ValueError, match=r"Row 1: value 0 must be '\+', '-' or a number in \[0, 1\], got '\?'"):
        to_stepwise_rows(Dataset.from_list([good, bad]))
    assert to_stepwise_rows(Dataset.from_list([good, bad]), skip_unreadable=True)["labels"][:] == [[1.0]]


def test_unreadable_prm800k_rows():
    features = Dataset.from_list([RAW_PRM800K]).features
    for label, message in [
        ({"steps": []}, "holds no `steps`"),
        (
            {
                "steps": [
                    {"completions": [{"text": "a", "rating": 1}], "human_completion": None, "chosen_completion": 3}
                ]
            },
            "must be an index into 1 completions, got 3",
        ),
    ]:
        dataset = Dataset.from_list([{**RAW_PRM800K, "label": label}], features=features)
        with pytest.raises(ValueError, match="Row 0: .*" + message):
            to_stepwise_rows(dataset)


def ratings_of_raw_prm800k(rows):
    completions = [c for row in rows for step in row["label"]["steps"] for c in step["completions"] or []]
    return sum(completion["rating"] is not None for completion in completions)


def nodes_of_math_aps(rows):
    return sum(len({s["solution_prefix"] for s in row["reasoning_steps"]} - {row["question"]}) for row in rows)


@pytest.mark.parametrize(
    "file, count_labels",
    [
        ("omegaprm_trees/samples_math-shepherd.jsonl", lambda rows: sum(row["input"].count("ки") for row in rows)),
        ("omegaprm_trees/samples_prm800k.jsonl", ratings_of_raw_prm800k),
        ("omegaprm_trees/samples_math-aps.jsonl", nodes_of_math_aps),
        ("prm800k/step_ratings.jsonl", lambda rows: sum(len(row["ratings"]) for row in rows)),
    ],
)
def test_real_stepwise_data_keeps_every_label_once(file, count_labels, shared_data, tmp_path):
    path = shared_data / file
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = to_stepwise_rows(load_rows("json", path, cache_dir=str(tmp_path)))
    validate_stepwise_rows(rows)
    assert sum(label is not None for row in rows for label in row["labels"]) == count_labels(raw) > 20


def test_real_math_shepherd(shared_data, tmp_path):
    path = shared_data / "omegaprm_trees" / "samples_math-shepherd.jsonl"
    rows = to_stepwise_rows(load_rows("json", path, cache_dir=str(tmp_path)))
    assert [row["completions"][0][:8] for row in rows] == ["Step 1: "] * 7
    assert rows[0]["labels"] == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert rows[0]["prompt"].endswith("clarinet lessons in a year?")
