"""`trl_erprm.evaluation.candidates`: every layout, and each thing that does not fit by its message."""

import gzip
import json
import math

import pytest

from trl_erprm.evaluation.candidates import (
    answer_classes,
    check_step_scores,
    make_pool,
    pool_notes,
    read_candidates,
    read_step_scores,
    write_rows,
)


def candidate(answer, is_correct, steps=("a", "b")):
    return {
        "completion": "\n".join(steps),
        "steps": list(steps),
        "extracted_answer": answer,
        "is_correct": is_correct,
    }


ROWS = [
    {"problem_id": "p0", "prompt": "1+1?", "answer": "2", "candidates": [candidate("2", True), candidate("3", False)]},
    {"problem_id": "p1", "prompt": "2+2?", "answer": "4", "candidates": [candidate("5", False), candidate("4", True)]},
    {
        "problem_id": "p2",
        "prompt": "3+3?",
        "answer": "6",
        "candidates": [candidate("7", False), candidate(None, None)],
    },
]
SCORES = [
    {"problem_id": "p0", "step_scores": [[0.1, 0.2], [0.3, 0.4]]},
    {"problem_id": "p1", "step_scores": [[0.5, 0.6], None]},
    {"problem_id": "p2", "step_scores": [[0.7, 0.8], [0.9, 1]]},
]


def write(path, rows):
    opened = gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else open(path, "w", encoding="utf-8")
    with opened as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return path


def changed(rows, row, **changes):
    return [{**entry, **changes} if index == row else entry for index, entry in enumerate(rows)]


@pytest.fixture
def pool():
    return make_pool(ROWS)


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.jsonl.gz", "pool.parquet"])
def test_candidates_in_every_format(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".parquet"):
        parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        write(path, ROWS)
    pool = read_candidates(path)
    assert pool.is_correct.tolist() == [[True, False], [False, True], [False, False]]
    assert pool.problem_ids == ["p0", "p1", "p2"] and pool.prompts[1] == "2+2?" and pool.references == ["2", "4", "6"]
    assert pool.answers == [["2", "3"], ["5", "4"], ["7", None]]
    assert pool.classes == [[0, 1], [0, 1], [0, None]]
    assert pool.steps[0] == [["a", "b"], ["a", "b"]] and (pool.has_ids, pool.has_steps) == (True, True)


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.jsonl.gz", "scores.parquet"])
def test_scores_in_every_format_and_in_any_order(tmp_path, pool, name):
    path, rows = tmp_path / name, SCORES[::-1]
    if name.endswith(".parquet"):
        parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        write(path, rows)
    found = read_step_scores(path, pool)
    assert found == [[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], None], [[0.7, 0.8], [0.9, 1.0]]]


def test_scores_without_ids_go_by_row(tmp_path, pool):
    rows = [{"step_scores": row["step_scores"]} for row in SCORES]
    assert read_step_scores(write(tmp_path / "s.jsonl", rows), pool) == read_step_scores(
        write(tmp_path / "t.jsonl", SCORES), pool
    )


def test_what_is_not_given_is_made_of_the_completion():
    texts = ["so\n#### 0.5", "#### 1/2", "I do not know what it could be"]
    pool = make_pool([{"question": "1/4+1/4?", "answer": "1/2", "candidates": texts}])
    assert pool.is_correct.tolist() == [[True, True, False]]
    assert pool.answers == [["0.5", "1/2", None]]
    assert pool.classes == [[0, 0, None]]
    assert pool.steps == [[["so", "#### 0.5"], ["#### 1/2"], [texts[2]]]]
    assert pool.prompts == ["1/4+1/4?"] and pool.problem_ids == ["0"]
    assert (pool.has_ids, pool.has_steps) == (False, False)


def test_splitting_and_reading_follow_the_options():
    row = {"answer": "3", "candidates": ["a\n\nb\n#3"]}
    pool = make_pool([row], answer_how="arithmetic", split_how="blank_line")
    assert pool.steps == [[["a", "b\n#3"]]] and pool.answers == [["3"]]


def test_written_rows_read_back(tmp_path, pool):
    write_rows(tmp_path / "pool.jsonl", pool.rows())
    again = read_candidates(tmp_path / "pool.jsonl")
    assert again.rows() == pool.rows() and again.classes == pool.classes
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]


@pytest.mark.parametrize(
    ("answers", "how", "expected"),
    [
        (["1/2", "0.5", "\\frac{1}{2}", "2"], "auto", [0, 0, 0, 1]),
        (["70,000", "70000", "7000", "\\$70000"], "auto", [0, 0, 1, 0]),
        (["x+1", "1+x", "x"], "auto", [0, 0, 1]),
        (["18", "18.0", "18 eggs"], "gsm8k", [0, 0, 0]),
        (["3", "03", "-3"], "arithmetic", [0, 0, 1]),
        (["c", "12", "c", "d"], "arithmetic", [0, 1, 0, 2]),
        ([None, "", "4", None], "auto", [None, None, 0, None]),
        (["Evelyn", "Evelyn", "Adam"], "auto", [0, 0, 1]),
    ],
)
def test_equal_answers_share_a_class(answers, how, expected):
    assert answer_classes(answers, how) == expected


def test_notes_name_the_rows(pool):
    notes = pool_notes(pool)
    assert notes[0].startswith("1 of 3 problems has no right candidate (row 2 p2): no selection can solve it")
    assert notes[1].startswith("1 of 6 candidates has no readable answer (row 2 p2): it casts no vote.")
    assert len(notes) == 2
    torn = make_pool(changed(ROWS, 0, candidates=[candidate("2", True), candidate("2.0", False)]))
    assert pool_notes(torn)[-1].startswith("In 1 problem (row 0 p0) candidates with equal answers have different")
    fine = make_pool(ROWS[:2])
    assert pool_notes(fine) == []


def test_many_rows_are_counted_rather_than_listed():
    right, wrong = [candidate("2", True)], [candidate("3", False)]
    pool = make_pool([{"candidates": right}, *({"candidates": wrong} for _ in range(8))])
    assert "(rows 1, 2, 3, 4, 5 and 3 more): no selection can solve them" in pool_notes(pool)[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "pool must hold at least one problem, got none"),
        (changed(ROWS, 2, candidates=[candidate("6", True)]), r"got 2 in row 0 and 1 in pool, row 2 \(p2\)"),
        (changed(ROWS, 1, candidates=[]), r"row 1 \(p1\) must have a list `candidates` with at least one, got \[\]"),
        (changed(ROWS, 1, candidates=None), "row 1 .* got None. The columns are 'problem_id', 'prompt'"),
        (changed(ROWS, 1, candidates=[3, 4]), r"row 1 \(p1\), candidate 0, must be a text or an object, got 3"),
        (
            changed(ROWS, 1, candidates=[candidate("1", True), {"text": "x"}]),
            r"row 1 \(p1\), candidate 1, must have a `completion` or `steps`, got 'text'",
        ),
        (
            changed(ROWS, 0, answer=None, candidates=["1", "2"]),
            r"row 0 \(p0\), candidate 0, must have a verdict `is_correct`, or the problem an `answer`",
        ),
        (
            changed(ROWS, 0, candidates=[candidate("1", "yes"), candidate("1", True)]),
            r"row 0 \(p0\), candidate 0, must have true, false or null as `is_correct`, got 'yes'",
        ),
        (changed(ROWS, 2, problem_id="p0"), r"pool, row 2 \(p0\) has the `problem_id` of row 0"),
        (
            [{"candidates": [candidate("1", False)] * 2}] * 3,
            "must hold a right candidate for some problem, got none among 6.*`answer_how` is 'auto'",
        ),
    ],
)  # fmt: skip
def test_bad_candidates(rows, message):
    with pytest.raises(ValueError, match=message):
        make_pool(rows, name="pool")


@pytest.mark.parametrize("how", ["arithmetic", "gsm8k"])
def test_answers_of_another_convention_are_named(how):
    rows = changed(ROWS, 1, candidates=[candidate("3", True), candidate("x+1", False)])
    with pytest.raises(ValueError, match=rf"row 1 \(p1\), candidate 1, has the `extracted_answer` 'x\+1'.*{how}"):
        make_pool(rows, how, name="pool")
    assert make_pool(rows, "auto").classes[1] == [0, 1]
    rows = changed(ROWS, 1, candidates=[candidate("3", True), candidate("", False)])  # no answer is no error
    assert make_pool(rows, how).classes[1] == [0, None]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "must hold the scores of 3 problems, got none: it is empty"),
        (SCORES[:2], "one row for each of 3 problems, got 2. It lacks p2. Give the file"),
        ([*SCORES, {"problem_id": "p3", "step_scores": []}], r"row 3 \(p3\) is for other candidates"),
        (changed(SCORES, 1, problem_id="q1"), r"scores.jsonl, row 1 \(q1\) is for other candidates: no problem"),
        (changed(SCORES, 1, problem_id="p0"), r"row 1 \(p0\) has the `problem_id` of row 0"),
        ([{"step_scores": row["step_scores"]} for row in SCORES[:2]], "one row for each of 3 problems, got 2. Give"),
        (changed(SCORES, 1, step_scores=[[0.5, 0.6]]), r"row 1 \(p1\) has scores of 1 candidates, but .* has 2"),
        (changed(SCORES, 1, step_scores=None), r"row 1 \(p1\) must have a list `step_scores`, got the columns"),
        (
            changed(SCORES, 1, step_scores=[[0.5, 0.6], [0.1, 0.2, 0.3]]),
            r"row 1 \(p1\), candidate 1, has 3 scores for 2 steps",
        ),
        (changed(SCORES, 1, step_scores=[[0.5, 0.6], []]), r"row 1 \(p1\), candidate 1, has 0 scores for 2 steps"),
        (
            changed(SCORES, 2, step_scores=[[0.5, math.nan], [0.1, 0.2]]),
            r"row 2 \(p2\), candidate 0, step 1 has the score nan, which is no finite number",
        ),
        (changed(SCORES, 2, step_scores=[[0.5, math.inf], [0.1, 0.2]]), "candidate 0, step 1 has the score inf"),
        (changed(SCORES, 2, step_scores=[[0.5, None], [0.1, 0.2]]), "candidate 0, step 1 has the score None"),
        (changed(SCORES, 2, step_scores=[[0.5, True], [0.1, 0.2]]), "candidate 0, step 1 has the score True"),
        (changed(SCORES, 2, step_scores=[0.5, 0.1]), "candidate 0, must have a list with a score for each step"),
    ],
)  # fmt: skip
def test_bad_scores(tmp_path, pool, rows, message):
    with pytest.raises(ValueError, match=message):
        read_step_scores(write(tmp_path / "scores.jsonl", rows), pool)


def test_rows_of_a_shuffled_file_are_named_as_they_stand_in_it(tmp_path, pool):
    rows = [SCORES[2], SCORES[0], {**SCORES[1], "step_scores": [[0.5], None]}]
    with pytest.raises(ValueError, match=r"row 2 \(p1\), candidate 0, has 1 scores for 2 steps"):
        read_step_scores(write(tmp_path / "scores.jsonl", rows), pool)


def test_lengths_are_checked_where_the_file_has_the_steps():
    """Steps that were split here need not be those that were scored elsewhere."""
    pool = make_pool([{"answer": "2", "candidates": ["a\nb\n#### 2"]}])
    assert check_step_scores([[[0.5, 0.6]]], pool) == [[[0.5, 0.6]]]


def test_a_candidate_without_steps_has_no_score():
    pool = make_pool([{"candidates": [candidate("2", True), candidate("2", True, steps=())]}])
    assert check_step_scores([[[0.5, 0.6], []]], pool) == [[[0.5, 0.6], None]]


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jsonl' must be a file .*but there is none"):
        read_candidates(tmp_path / "none.jsonl")
    (tmp_path / "pool.csv").write_text("a,b")
    with pytest.raises(ValueError, match="must end with one of .jsonl, .jsonl.gz, .parquet"):
        read_candidates(tmp_path / "pool.csv")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl must hold at least one problem, got none"):
        read_candidates(tmp_path / "empty.jsonl")
    (tmp_path / "torn.jsonl").write_text(json.dumps(ROWS[0]) + '\n\n{"problem_id": "p1", "candi')
    with pytest.raises(ValueError, match=r"torn.jsonl, line 3 must be a JSON object, got '\{\"problem_id"):
        read_candidates(tmp_path / "torn.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="list.jsonl, line 1 must be a JSON object, got"):
        read_candidates(tmp_path / "list.jsonl")
    whole = write(tmp_path / "pool.jsonl.gz", ROWS * 50).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) - 20])
    with pytest.raises(ValueError, match="cut.jsonl.gz cannot be read behind row"):
        read_candidates(tmp_path / "cut.jsonl.gz")
    (tmp_path / "none.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="none.parquet must be a Parquet file"):
        read_candidates(tmp_path / "none.parquet")


def test_real_candidates_are_read_as_they_are(shared_data):
    directory = shared_data / "bon_gsm8k"
    if not directory.is_dir():
        pytest.skip(f"no {directory}")
    pool = read_candidates(directory / "candidates.jsonl.gz")
    assert pool.is_correct.shape == (100, 32) and pool.is_correct.sum() == 2936
    third = dict(zip(pool.answers[2], pool.classes[2], strict=True))
    assert third["70,000"] == third["70000"] != third["65000"] and third["195,000"] == third["195000"]
    notes = pool_notes(pool)
    assert notes[0].startswith("3 of 100 problems have no right candidate (rows 62 gsm8k_062, 87 gsm8k_087, 89 gsm8k")
    scores = read_step_scores(directory / "step_scores_qwen_prm.jsonl.gz", pool)
    assert [len(s) for s in scores[7]] == [len(s) for s in pool.steps[7]]
