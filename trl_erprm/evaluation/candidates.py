"""Pools of candidates with their verdicts, and step scores computed elsewhere: reading and checking.

**Candidates**, JSONL (`.jsonl`, `.jsonl.gz`) or Parquet, a row a problem:

    {"problem_id": "gsm8k_000", "prompt": "Janet's ducks ...", "answer": "18", "candidates": [
        {"completion": "...", "steps": ["...", "..."], "extracted_answer": "18", "is_correct": true}, ...]}

`problem_id` may be left out, and everything else that can be had from the rest: `steps` are split from `completion`,
`extracted_answer` is read from it, `is_correct` is the comparison of that answer with `answer`. A candidate may be
its completion alone, as text; one with `num_tokens` says what it cost.

**Step scores**, the same formats, a row a problem, a list a candidate and a number a step (`null`: not scored):

    {"problem_id": "gsm8k_000", "step_scores": [[0.98, 0.91], null, ...]}

Rows are matched by `problem_id` where both files have it, else by their order. Nothing is dropped or repaired: what
does not fit is an error that names the file and the row (counted from 0).
"""

import gzip
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..steps import step_texts
from ..verify import arithmetic_value, check_answer_convention, extract_answer, verify_answer
from ..wording import counted

__all__ = [
    "FILE_FORMATS",
    "CandidatePool",
    "StepScores",
    "answer_classes",
    "check_step_scores",
    "make_pool",
    "pool_notes",
    "read_candidates",
    "read_step_scores",
    "write_rows",
]

StepScores = Sequence[Sequence[Sequence[float] | None]]
"""For every candidate of every problem a score a step; `None` where a candidate was not scored."""

FILE_FORMATS = (".jsonl", ".jsonl.gz", ".parquet")
"""Endings of the files that are read."""

_AS_WRITTEN = {"arithmetic": "#{}", "gsm8k": "#### {}"}  # conventions that not every answer fits


@dataclass(frozen=True)
class CandidatePool:
    """M candidates for each of P problems.

    Attributes:
        problem_ids (`list[str]`): a name for each problem; its row number where the file gave none.
        prompts (`list`): text or messages; `None` where the file gave none.
        references (`list[str | None]`): reference answers.
        completions (`list[list[str]]`): texts; the steps, one a line, where only steps were given.
        steps (`list[list[list[str]]]`): steps of each candidate; empty where it has none.
        answers (`list[list[str | None]]`): final answers; `None` where none could be read.
        classes (`list[list[int | None]]`): the same number for answers of one problem that are equal by value.
        is_correct (`np.ndarray` of `bool`, shape `(P, M)`): verdicts; False, too, where there is no answer.
        num_tokens (`list[list[int]]` or `None`): tokens that each candidate took, where the file says so.
        has_ids (`bool`): whether `problem_ids` are the file's.
        has_steps (`bool`): whether `steps` are the file's, so that step scores can be held against them.
    """

    problem_ids: list[str]
    prompts: list[Any]
    references: list[str | None]
    completions: list[list[str]]
    steps: list[list[list[str]]]
    answers: list[list[str | None]]
    classes: list[list[int | None]]
    is_correct: np.ndarray
    num_tokens: list[list[int]] | None
    has_ids: bool
    has_steps: bool

    @property
    def num_problems(self) -> int:
        return self.is_correct.shape[0]

    @property
    def num_candidates(self) -> int:
        return self.is_correct.shape[1]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of a candidates file, as [`read_candidates`] reads them."""
        return [
            {
                "problem_id": self.problem_ids[i],
                "prompt": self.prompts[i],
                "answer": self.references[i],
                "candidates": [
                    {
                        "completion": self.completions[i][j],
                        "steps": self.steps[i][j],
                        "extracted_answer": self.answers[i][j],
                        "is_correct": bool(self.is_correct[i, j]),
                    }
                    | ({} if self.num_tokens is None else {"num_tokens": self.num_tokens[i][j]})
                    for j in range(self.num_candidates)
                ],
            }
            for i in range(self.num_problems)
        ]


def read_candidates(
    path: str | os.PathLike[str], answer_how: str = "auto", split_how: str = "newline"
) -> CandidatePool:
    """Reads a file of candidates.

    Args:
        path (`str` or `os.PathLike`):
            `.jsonl`, `.jsonl.gz` or `.parquet`.
        answer_how (`str`, *optional*, defaults to `"auto"`):
            How answers are read and compared where the file does not say: as for [`verify_answer`].
        split_how (`str`, *optional*, defaults to `"newline"`):
            How completions are split where the file has no steps: as for [`split_steps`].

    Returns:
        [`CandidatePool`].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty or of another format, a row lacks something, two rows have one `problem_id`,
            or problems differ in their number of candidates. The message names the file and the row.
    """
    return make_pool(_read_rows(path), answer_how, split_how, name=str(path))


def make_pool(
    rows: Sequence[Mapping[str, Any]], answer_how: str = "auto", split_how: str = "newline", name: str = "rows"
) -> CandidatePool:
    """[`read_candidates`] of rows in memory.

    Args:
        rows (`Sequence[Mapping]`):
            Rows as the module describes them.
        answer_how, split_how: as in [`read_candidates`].
        name (`str`, *optional*, defaults to `"rows"`):
            What messages call them.

    Returns:
        [`CandidatePool`].

    Raises:
        ValueError: as [`read_candidates`].

    Example:

    ```python
    >>> candidates = ["2+2=4\\n#### 4", "I guess\\n#### 4.0", "#### 5"]
    >>> pool = make_pool([{"prompt": "2+2?", "answer": "4", "candidates": candidates}], "gsm8k")
    >>> pool.is_correct.tolist(), pool.classes, pool.steps[0][0]
    ([[True, True, False]], [[0, 0, 1]], ['2+2=4', '#### 4'])

    ```
    """
    check_answer_convention(answer_how, "answer_how")
    if not rows:
        raise ValueError(f"{name} must hold at least one problem, got none. Check the path, and what wrote the file.")
    ids = [row.get("problem_id") for row in rows]
    has_ids = all(problem_id is not None for problem_id in ids)
    if has_ids:
        _check_unique(name, ids)
    problems = []
    for row, problem in enumerate(rows):
        where = _where(name, row, problem.get("problem_id"))
        problems.append(_read_problem(problem, where, answer_how, split_how))
        number, first = len(problems[-1]["completions"]), len(problems[0]["completions"])
        if number != first:
            raise ValueError(
                f"{name} must hold equally many candidates a problem, got {first} in row 0 and {number} in {where}. "
                "Accuracy at n means nothing else: cut all to the smallest number, or sample the missing ones."
            )
    is_correct = np.array([problem["is_correct"] for problem in problems], dtype=bool)
    if not is_correct.any():
        raise ValueError(
            f"{name} must hold a right candidate for some problem, got none among {is_correct.size}. Check how "
            f"answers are read (`answer_how` is {answer_how!r}) and the reference answers."
        )
    columns = {key: [problem[key] for problem in problems] for key in problems[0]}
    return CandidatePool(
        problem_ids=[str(problem_id) if has_ids else str(row) for row, problem_id in enumerate(ids)],
        prompts=columns["prompt"],
        references=columns["reference"],
        completions=columns["completions"],
        steps=columns["steps"],
        answers=columns["answers"],
        classes=[answer_classes(answers, answer_how) for answers in columns["answers"]],
        is_correct=is_correct,
        num_tokens=None if any(None in of_problem for of_problem in columns["num_tokens"]) else columns["num_tokens"],
        has_ids=has_ids,
        has_steps=all(columns["has_steps"]),
    )


def answer_classes(answers: Sequence[str | None], answer_how: str = "auto") -> list[int | None]:
    """Numbers of answers such that answers that are equal by value have one number.

    Args:
        answers (`Sequence[str | None]`):
            Final answers of the candidates of one problem, as [`extract_answer`] gives them.
        answer_how (`str`, *optional*, defaults to `"auto"`):
            How they were read: integers and letters compare as such with `"arithmetic"`, numbers without their unit
            with `"gsm8k"`, and everything as [`verify_answer`] does otherwise.

    Returns:
        `list[int | None]`: numbers from 0 in the order in which the answers are first seen; `None` for `None`.

    Example:

    ```python
    >>> answer_classes(["1/2", "3", "0.5", None, "\\\\frac{1}{2}"])
    [0, 1, 0, None, 0]

    ```
    """
    found: dict[str, int] = {}
    representatives: list[str] = []
    classes: list[int | None] = []
    for answer in answers:
        if answer is None or not answer.strip():
            classes.append(None)
            continue
        if answer not in found:
            equal = (k for k, other in enumerate(representatives) if _are_equal(answer, other, answer_how))
            found[answer] = next(equal, len(representatives))
            if found[answer] == len(representatives):
                representatives.append(answer)
        classes.append(found[answer])
    return classes


def read_step_scores(path: str | os.PathLike[str], pool: CandidatePool) -> list[list[list[float] | None]]:
    """Reads a file of step scores for the candidates of a pool.

    Args:
        path (`str` or `os.PathLike`):
            `.jsonl`, `.jsonl.gz` or `.parquet`.
        pool ([`CandidatePool`]):
            The candidates that were scored.

    Returns:
        `list[list[list[float] | None]]` of the shape of the pool, in its order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty, lacks a column, is for other candidates (other problems, or other numbers of
            candidates or steps), or holds a score that is no finite number. The message names the file and the row.
    """
    name, rows = str(path), _read_rows(path)
    if not rows:
        scored = counted(pool.num_problems, "problem")
        raise ValueError(f"{name} must hold the scores of {scored}, got none: it is empty.")
    for row, scored in enumerate(rows):
        if not isinstance(scored.get("step_scores"), list):
            raise ValueError(
                f"{_where(name, row, scored.get('problem_id'))} must have a list `step_scores`, got the columns "
                f"{', '.join(map(repr, scored))}."
            )
    ids = [scored.get("problem_id") for scored in rows]
    if pool.has_ids and all(problem_id is not None for problem_id in ids):
        ids = [str(problem_id) for problem_id in ids]
        _check_unique(name, ids)
        known = {problem_id: row for row, problem_id in enumerate(pool.problem_ids)}
        for row, problem_id in enumerate(ids):
            if problem_id not in known:
                raise ValueError(
                    f"{_where(name, row, problem_id)} is for other candidates: no problem among them is called so. "
                    "Give the file that was made from these candidates."
                )
        _check_number_of_rows(name, len(rows), pool, missing=[i for i in pool.problem_ids if i not in set(ids)])
        rows_of_file = sorted(range(len(rows)), key=lambda row: known[ids[row]])
    else:
        _check_number_of_rows(name, len(rows), pool, missing=[])
        rows_of_file = list(range(len(rows)))
    return check_step_scores([rows[row]["step_scores"] for row in rows_of_file], pool, name, rows_of_file)


def check_step_scores(
    step_scores: StepScores, pool: CandidatePool, name: str = "step_scores", row_numbers: Sequence[int] | None = None
) -> list[list[list[float] | None]]:
    """Step scores that fit the candidates of a pool; else raises.

    Args:
        step_scores (`StepScores` of the shape of the pool):
            A list a candidate; `None`, or an empty list for a candidate without steps: not scored.
        pool ([`CandidatePool`]):
            The candidates.
        name (`str`, *optional*, defaults to `"step_scores"`):
            What messages call them.
        row_numbers (`Sequence[int]`, *optional*):
            Row of each problem in the file they come from, for the messages.

    Returns:
        `list[list[list[float] | None]]`: as floats; `None` in place of an empty list.

    Raises:
        ValueError: as [`read_step_scores`].
    """
    _check_number_of_rows(name, len(step_scores), pool, missing=[])
    row_numbers = range(len(step_scores)) if row_numbers is None else row_numbers
    checked = []
    for problem, (row, of_problem) in enumerate(zip(row_numbers, step_scores, strict=True)):
        where = _where(name, row, pool.problem_ids[problem] if pool.has_ids else None)
        if len(of_problem) != pool.num_candidates:
            raise ValueError(
                f"{where} has scores of {len(of_problem)} candidates, but the problem has {pool.num_candidates}: it "
                "is for other candidates. Give the file that was made from these, null for one that was not scored."
            )
        checked.append(
            [
                _check_candidate(scores, f"{where}, candidate {index},", pool.steps[problem][index], pool.has_steps)
                for index, scores in enumerate(of_problem)
            ]
        )
    return checked


def pool_notes(pool: CandidatePool) -> list[str]:
    """What a reader of results on these candidates should know; each note names the rows.

    Example:

    ```python
    >>> rows = [{"answer": "4", "candidates": ["4", "5"]}, {"answer": "7", "candidates": ["5", "8"]}]
    >>> pool_notes(make_pool(rows))[0]
    '1 of 2 problems has no right candidate (row 1): no selection can solve it, and it counts as wrong everywhere.'

    ```
    """
    notes = []
    hopeless = np.flatnonzero(~pool.is_correct.any(axis=1)).tolist()
    if hopeless:
        has, it, counts = ("has", "it", "it counts") if len(hopeless) == 1 else ("have", "them", "they count")
        notes.append(
            f"{len(hopeless)} of {pool.num_problems} problems {has} no right candidate ({_rows_named(pool, hopeless)})"
            f": no selection can solve {it}, and {counts} as wrong everywhere."
        )
    unread = [row for row, classes in enumerate(pool.classes) if None in classes]
    if unread:
        number = sum(classes.count(None) for classes in pool.classes)
        have, cast = ("has", "it casts") if number == 1 else ("have", "they cast")
        notes.append(
            f"{number} of {pool.is_correct.size} candidates {have} no readable answer ({_rows_named(pool, unread)}): "
            f"{cast} no vote."
        )
    torn = [row for row in range(pool.num_problems) if _verdicts_differ(pool.classes[row], pool.is_correct[row])]
    if torn:
        notes.append(
            f"In {counted(len(torn), 'problem')} ({_rows_named(pool, torn)}) candidates "
            "with equal answers have different verdicts: a vote for such an answer is judged by its first voter."
        )
    return notes


def write_rows(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as JSONL, whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(temporary, path)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} must be a file ({', '.join(FILE_FORMATS)}), but there is none.")
    if not path.name.endswith(FILE_FORMATS):
        raise ValueError(
            f"{str(path)!r} must end with one of {', '.join(FILE_FORMATS)}. Convert the file, or rename it."
        )
    if path.suffix == ".parquet":
        return _read_parquet(path)
    return list(_read_jsonl(path))


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    row = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise ValueError(
                        f"{path}, line {number} must be a JSON object, got {line[:60]!r} ({error}). The file may have "
                        "been cut off: write it again."
                    ) from None
                if not isinstance(value, dict):
                    raise ValueError(f"{path}, line {number} must be a JSON object, got {line[:60]!r}.")
                yield value
                row += 1
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read behind row {row} ({error}). Write or fetch the file again.") from None


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        return parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise ValueError(f"{path} must be a Parquet file: {error}. Write or fetch the file again.") from None


# ---------------------------------------------------------------------------------------------------------------------
# Candidates


def _read_problem(problem: Mapping[str, Any], where: str, answer_how: str, split_how: str) -> dict[str, Any]:
    candidates = problem.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        raise ValueError(
            f"{where} must have a list `candidates` with at least one, got {candidates!r}. The columns are "
            f"{', '.join(map(repr, problem))}."
        )
    reference = problem.get("answer")
    names = ("completions", "steps", "answers", "is_correct", "num_tokens", "has_steps")
    read: dict[str, list] = {name: [] for name in names}
    for index, candidate in enumerate(candidates):
        candidate = {"completion": candidate} if isinstance(candidate, str) else candidate
        which = f"{where}, candidate {index},"
        if not isinstance(candidate, Mapping):
            raise ValueError(f"{which} must be a text or an object, got {candidate!r}.")
        completion, steps = candidate.get("completion"), candidate.get("steps")
        if not isinstance(completion, str) and not isinstance(steps, list):
            raise ValueError(f"{which} must have a `completion` or `steps`, got {', '.join(map(repr, candidate))}.")
        text = completion if isinstance(completion, str) else "\n".join(steps)
        answer = candidate.get("extracted_answer")
        if "extracted_answer" not in candidate:
            answer = extract_answer(text, answer_how)
        elif answer is not None and str(answer).strip() and answer_how in _AS_WRITTEN:
            if extract_answer(_AS_WRITTEN[answer_how].format(answer), answer_how) is None:
                raise ValueError(
                    f"{which} has the `extracted_answer` {answer!r}, which is none as `answer_how={answer_how!r}` "
                    "writes them. Name the convention of the file, 'auto' for any."
                )
        verdict = candidate.get("is_correct")
        if "is_correct" not in candidate:
            if reference is None:
                raise ValueError(
                    f"{which} must have a verdict `is_correct`, or the problem an `answer` to compare with; got "
                    "neither."
                )
            verdict = verify_answer(text, str(reference), answer_how)
        if verdict not in (True, False, None):
            raise ValueError(f"{which} must have true, false or null as `is_correct`, got {verdict!r}.")
        read["completions"].append(text)
        read["steps"].append(steps if isinstance(steps, list) else step_texts(text, split_how))
        read["answers"].append(None if answer is None else str(answer))
        read["is_correct"].append(bool(verdict))
        read["num_tokens"].append(candidate.get("num_tokens"))
        read["has_steps"].append(isinstance(steps, list))
    prompt = next((problem[key] for key in ("prompt", "question", "problem") if problem.get(key) is not None), None)
    return {
        **read,
        "has_steps": all(read["has_steps"]),
        "prompt": prompt,
        "reference": None if reference is None else str(reference),
    }


def _are_equal(answer: str, other: str, answer_how: str) -> bool:
    if answer_how == "arithmetic":
        return arithmetic_value(answer) == arithmetic_value(other)
    if answer_how == "gsm8k":
        return verify_answer(f"#### {answer}", other, how="gsm8k") is True
    return verify_answer(f"\\boxed{{{answer}}}", other, how="boxed") is True


def _verdicts_differ(classes: Sequence[int | None], is_correct: np.ndarray) -> bool:
    verdicts: dict[int, bool] = {}
    return any(
        verdicts.setdefault(of_answer, bool(verdict)) != verdict
        for of_answer, verdict in zip(classes, is_correct, strict=True)
        if of_answer is not None
    )


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def _check_candidate(scores: Any, where: str, steps: list[str], has_steps: bool) -> list[float] | None:
    if scores is None:
        return None
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise ValueError(f"{where} must have a list with a score for each step, or null, got {scores!r}.")
    if has_steps and len(scores) != len(steps):
        raise ValueError(
            f"{where} has {len(scores)} scores for {len(steps)} steps. Every step needs one: give the file that was "
            "made from these candidates."
        )
    for step, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(
                f"{where} step {step} has the score {score!r}, which is no finite number. Find out where it arose (a "
                "model that diverged, half precision), or give null for the whole candidate."
            )
    return [float(score) for score in scores] or None


def _check_number_of_rows(name: str, number: int, pool: CandidatePool, missing: Sequence[str]) -> None:
    if number != pool.num_problems or missing:
        lacks = f" It lacks {_listed(missing)}." if missing else ""
        raise ValueError(
            f"{name} must hold one row for each of {counted(pool.num_problems, 'problem')}, got {number}.{lacks} Give "
            "the file that was made from these candidates."
        )


def _check_unique(name: str, ids: Sequence[Any]) -> None:
    first: dict[Any, int] = {}
    for row, problem_id in enumerate(ids):
        if first.setdefault(problem_id, row) != row:
            raise ValueError(
                f"{_where(name, row, problem_id)} has the `problem_id` of row {first[problem_id]}. A problem stands "
                "in one row, with all of its candidates."
            )


def _where(name: str, row: int, problem_id: Any) -> str:
    return f"{name}, row {row}" + (f" ({problem_id})" if problem_id is not None else "")


def _rows_named(pool: CandidatePool, rows: Sequence[int]) -> str:
    names = [str(row) if pool.problem_ids[row] == str(row) else f"{row} {pool.problem_ids[row]}" for row in rows]
    return f"{'row' if len(rows) == 1 else 'rows'} {_listed(names)}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
