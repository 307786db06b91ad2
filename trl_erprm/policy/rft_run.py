"""What an iteration of [`RFTTrainer`] leaves on disk, read and written prompt by prompt.

    iteration-<k>/
      manifest.json                the run and the iteration that the directory belongs to
      samples-<process>.jsonl      completions while they are sampled, one line a prompt     [`Records`]
      scores-<process>.jsonl       their scores
      samples.parquet              every completion with its scores and what became of it    [`write_selection`]
      selection.parquet            the completions that were kept
      selection.json               counts and means of the selection; its being there says that it is complete
      model/                       the policy after the iteration
      fine_tuning.json             its being there says that the policy is complete
      eval_greedy-*, eval_sampled-*, eval_scores-*    completions on held-out prompts, as above
      metrics.json                 written last: the iteration is complete

Nothing here holds more than a few thousand completions in memory, whatever the number of prompts: eight bytes a prompt
say where its line begins.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from ..manifest import JsonlStore, content_hash, write_atomically
from .selection import REASONS, Candidates, SelectionRule, normalized_text, select

ROWS_AT_ONCE = 8192
"""Completions that are held before they are written: a row group of the Parquet file, a few MB."""

MOST_BINS = 10

_OFFSET_BITS = 48  # of a position: the rest says in which file


class Records:
    """
    Records of prompts, a JSON line each, in one file for each process, whatever their number was when they were made.

    Args:
        directory (`Path`):
            Where the files are.
        name (`str`):
            What they are called: `<name>-<process>.jsonl`.
    """

    def __init__(self, directory: Path, name: str):
        self.directory, self.name = directory, name

    def store(self, process_index: int) -> JsonlStore:
        """The file that a process appends to. A record's first key is `index`."""
        return JsonlStore(self.directory / f"{self.name}-{process_index}.jsonl")

    def files(self) -> list[Path]:
        """All files, in the order of their names."""
        return sorted(self.directory.glob(f"{self.name}-*.jsonl"))

    def positions(self, num_prompts: int) -> np.ndarray:
        """
        Where the record of each prompt begins, -1 for those without one.

        Returns:
            `np.ndarray` of shape `(num_prompts,)`: int64, for [`read`].

        Raises:
            `ValueError`: where a complete line is no record of one of these prompts.
        """
        positions = np.full(num_prompts, -1, dtype=np.int64)
        for path in self.files():
            number, offset = int(path.stem.rpartition("-")[2]), 0  # the process
            with open(path, "rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # the rest of an interrupted write
                    positions[_index_of(line, path, num_prompts)] = (number << _OFFSET_BITS) | offset
                    offset += len(line)
        return positions

    def read(self, positions: Iterable[int]) -> Iterator[dict]:
        """The records that begin at these positions, in this order."""
        with ExitStack() as stack:
            files: dict[int, BinaryIO] = {}
            for position in map(int, positions):
                number = position >> _OFFSET_BITS
                if number not in files:
                    files[number] = stack.enter_context(open(self.store(number).path, "rb"))
                file = files[number]
                file.seek(position & ((1 << _OFFSET_BITS) - 1))
                yield json.loads(file.readline())

    def remove(self) -> None:
        """Deletes the files."""
        for path in self.files():
            path.unlink()


def _index_of(line: bytes, path: Path, num_prompts: int) -> int:
    """The prompt that a record belongs to, without parsing all of it."""
    start, end = len(b'{"index":'), line.find(b",")
    if line.startswith(b'{"index":') and line[start:end].isdigit() and int(line[start:end]) < num_prompts:
        return int(line[start:end])
    raise ValueError(
        f"{str(path)!r} must hold records of the run's {num_prompts} prompts, got {line[:80]!r}. It belongs to "
        "another run or was damaged: delete the iteration's directory, and what it held is computed again."
    )


def as_completion(prompt: str | list[dict], text: str) -> str | list[dict]:
    """A completion in the type of its prompt, as TRL pairs them."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def write_selection(
    directory: Path, prompts: Dataset, indices: Sequence[int], scorers: Sequence[str], rule: SelectionRule, seed: int
) -> dict:
    """
    Selects among the completions of each prompt, and writes what was kept and what became of the others.

    Args:
        directory (`Path`):
            Of the iteration, with the records `samples` and `scores` of every prompt.
        prompts ([`~datasets.Dataset`]):
            All prompts, with the column `prompt`.
        indices (`Sequence[int]`):
            Which of them the iteration used.
        scorers (`Sequence[str]`):
            A name for each scorer: a column of `samples.parquet`.
        rule ([`SelectionRule`]):
            Which completions to keep.
        seed (`int`):
            Of a draw, if the rule draws.

    Returns:
        `dict`: what is in `selection.json`: `num_selected` and `num_prompts_selected`, `num_without_candidate`
        (prompts of which no completion has a score), the mean `reward` of what was kept, and `reasons`, counts of
        completions.

    Raises:
        `ValueError`: where nothing was kept, with a histogram of the scores.
    """
    samples, scores = Records(directory, "samples"), Records(directory, "scores")
    pairs = zip(
        samples.read(samples.positions(len(prompts))[list(indices)]),
        scores.read(scores.positions(len(prompts))[list(indices)]),
        strict=True,
    )
    reasons, totals = Counter(dict.fromkeys(REASONS, 0)), Counter()
    reward_sum = 0.0
    with (
        _ParquetFile(directory / "samples.parquet", _samples_schema(scorers)) as all_rows,
        _ParquetFile(directory / "selection.parquet", _selection_schema(prompts)) as kept_rows,
    ):
        for sample, score in pairs:
            index = sample["index"]
            candidates = Candidates(
                sample["completions"], score["scores"], sample["truncated"], score.get("is_correct")
            )
            of_prompt = select(candidates, rule, seed=_seed_of(seed, index) if rule.how == "softmax" else 0)
            reasons.update(of_prompt)
            totals["without_candidate"] += all(s is None for s in score["scores"])
            totals["prompts_selected"] += "kept" in of_prompt
            prompt = prompts[index]["prompt"]
            for i, (text, reason) in enumerate(zip(sample["completions"], of_prompt, strict=True)):
                row = {
                    "index": index,
                    "sample": i,
                    "completion": text,
                    "num_tokens": sample["num_tokens"][i],
                    "is_truncated": sample["truncated"][i],
                    "is_correct": None if candidates.is_correct is None else candidates.is_correct[i],
                    **{f"score/{name}": of[i] for name, of in zip(scorers, score["by_scorer"], strict=True)},
                    "score": score["scores"][i],
                    "reason": reason,
                }
                all_rows.add(row)
                if reason == "kept":
                    reward_sum += row["score"]
                    kept = {"index": index, "sample": i, "score": row["score"], "prompt": prompt}
                    kept_rows.add({**kept, "completion": as_completion(prompt, text)})
        if not reasons["kept"]:
            all_rows.close()  # whole, so that the scores can be counted, and looked at
            raise ValueError(_nothing_selected(directory / "samples.parquet", rule, reasons, len(indices)))
    summary = {
        "reward": reward_sum / reasons["kept"],
        "num_selected": reasons["kept"],
        "num_prompts_selected": totals["prompts_selected"],
        "num_without_candidate": totals["without_candidate"],
        "reasons": {name: count for name, count in reasons.items() if count},
    }
    write_atomically(directory / "selection.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _seed_of(seed: int, index: int) -> int:
    return int(content_hash(seed, index)[:16], 16)


def _samples_schema(scorers: Sequence[str]) -> pa.Schema:
    return pa.schema(
        [("index", pa.int64()), ("sample", pa.int32()), ("completion", pa.string()), ("num_tokens", pa.int32())]
        + [("is_truncated", pa.bool_()), ("is_correct", pa.bool_())]
        + [(f"score/{name}", pa.float64()) for name in scorers]
        + [("score", pa.float64()), ("reason", pa.string())]
    )


def _selection_schema(prompts: Dataset) -> pa.Schema:
    prompt = prompts.features.arrow_schema.field("prompt").type
    is_text = isinstance(prompts[0]["prompt"], str)
    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.schema(
        [("index", pa.int64()), ("sample", pa.int32()), ("score", pa.float64())]
        + [("prompt", prompt), ("completion", pa.string() if is_text else message)]
    )


class _ParquetFile:
    """A Parquet file that is written row group by row group, and there whole or not at all."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.schema, self.rows = path, schema, []
        self.temporary = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> _ParquetFile:
        self.writer = pq.ParquetWriter(self.temporary, self.schema)
        return self

    def add(self, row: dict) -> None:
        self.rows.append(row)
        if len(self.rows) >= ROWS_AT_ONCE:
            self._write()

    def _write(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows = []

    def close(self) -> None:
        self._write()
        self.writer.close()
        with open(self.temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.path)

    def __exit__(self, kind: type | None, error: Any, trace: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.writer.close()
            self.temporary.unlink(missing_ok=True)


def _nothing_selected(path: Path, rule: SelectionRule, reasons: Counter, num_prompts: int) -> str:
    named = ", ".join(f"{count} {name}" for name, count in reasons.items() if count)
    return (
        f"No completion was selected of {sum(reasons.values())} completions of {num_prompts} prompts by the rule "
        f"{rule.how!r}: {named}. {_histogram(path)} A completion has no score where a reward function gives None (no "
        "step, no readable answer), and is truncated at `max_completion_length`. Look at the completions in "
        f"{str(path)!r}; then change the rule, the reward function or the policy in a run of its own."
    )


def _histogram(path: Path) -> str:
    """The scores in at most ten bins, as text; read from disk in parts."""
    parts = [batch.column("score").drop_null() for batch in pq.ParquetFile(path).iter_batches(columns=["score"])]
    scores = pa.chunked_array(parts, type=pa.float64())
    if not len(scores):
        return "None of them has a score."
    low, high = (bound.as_py() for bound in pc.min_max(scores).values())
    if low == high:
        return f"Scores: all {len(scores)} are {low:g}."
    counts, edges = np.histogram(scores.to_numpy(), bins=MOST_BINS, range=(low, high))
    bins = zip(edges[:-1], edges[1:], counts, strict=True)
    return "Scores: " + ", ".join(f"{count} in {a:.3g} to {b:.3g}" for a, b, count in bins if count) + "."


def training_rows(directories: Sequence[Path], cache: Path) -> Dataset:
    """
    What is fine-tuned on: the selections of one or more iterations, equal solutions of a prompt once.

    Args:
        directories (`Sequence[Path]`):
            Of the iterations, the oldest first; of equal solutions the first stays.
        cache (`Path`):
            Where the rows are kept while they are used: they are read from disk, not held in memory.

    Returns:
        [`~datasets.Dataset`]: the columns `prompt` and `completion`.
    """
    paths = [directory / "selection.parquet" for directory in directories]
    if len(paths) > 1:
        paths = [_without_repetitions(paths, cache / "training.parquet")]
    return Dataset.from_parquet(str(paths[0]), columns=["prompt", "completion"], cache_dir=str(cache))


def _without_repetitions(paths: Sequence[Path], target: Path) -> Path:
    seen: set[str] = set()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _ParquetFile(target, pq.read_schema(paths[0])) as file:
        for path in paths:
            for batch in pq.ParquetFile(path).iter_batches():
                for row in batch.to_pylist():
                    text = row["completion"]
                    text = text if isinstance(text, str) else text[-1]["content"]
                    key = content_hash(row["index"], normalized_text(text))
                    if key not in seen:
                        seen.add(key)
                        file.add(row)
    return target


def remove_directory(directory: Path) -> None:
    """Deletes a directory; a name of its own first, so that half a directory is never taken for a whole one."""
    if directory.exists():
        doomed = directory.with_name(f".{directory.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        directory.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
