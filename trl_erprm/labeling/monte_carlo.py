"""Labels steps with Monte-Carlo rollouts: the counts are stored, and the labels made from them.

    prompt    4*3+2 (modulus 7)            answer 0
    step 1    4*3=5       prefix 1 -> 16 rollouts, 11 right -> label V_eta(11/16)
    step 2    5+2=0       prefix 2 -> 16 rollouts, 15 right -> label V_eta(15/16)
    step 3    #0          its own outcome, no rollout       -> label 1

A directory of a run holds

    manifest.json               config, policy and content of the data set: what makes two runs the same
    solutions-<process>.jsonl   sampled solutions, where the rows had none, a line a prompt
    rollouts-<process>.jsonl    counts, a line a prefix
    labels.jsonl                the labelled rows, written at the end
    summary.json                what it cost and what came out

Each process appends to its own two files and reads all of them, so a run that was killed goes on where it stopped,
also with another number of processes.

Departures from the reference code (github.com/hanningzhang/ER-PRM): eta is chosen after the rollouts and need not be
an integer; labels are not rounded; equal prefixes are rolled out once; a rollout without a readable answer counts as
not right, as there, but is counted and reported; no row is dropped.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from trl_erprm.arguments import process_state
from trl_erprm.manifest import JsonlStore, content_hash, open_run, write_atomically
from trl_erprm.rollout.engine import Completion, Prefix, RolloutEngine
from trl_erprm.steps import join_steps, split_steps
from trl_erprm.verify import verify_answer

from .config import LabelingConfig
from .estimators import check_eta, entropy_regularized_value_from_counts

__all__ = ["MonteCarloLabeler", "relabel"]

logger = logging.getLogger(__name__)

Verifier = Callable[[str, str], bool | None]

# Above this share of rollouts without a readable answer, or cut off at the length limit, a warning is logged: the
# labels then measure the settings as much as the steps. Our own choice.
WARNING_SHARE = 0.05

_COUNT_COLUMNS = ("num_correct", "num_rollouts", "num_unparsed")
_WRITTEN_COLUMNS = ("prompt", "completions", "labels", *_COUNT_COLUMNS, "answer", "outcome")


@dataclass(frozen=True)
class _Solution:
    row: int  # of the data set
    steps: list[str]
    prefix_texts: list[str]  # the answer up to and with step 1 .. n-1: what is rolled out
    text: str  # the whole answer


@dataclass
class _Counts:
    num_rollouts: int = 0
    num_correct: int = 0
    num_unparsed: int = 0
    num_truncated: int = 0
    num_tokens: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + record[name])


class MonteCarloLabeler:
    """Labels the steps of solutions by rolling out every prefix with the reference policy.

    The label of step k is the entropy-regularized value of the prefix that ends with step k; the label of the last
    step is its own outcome. A solution without a readable answer earns no reward: its last step counts 0 right of 1
    with 1 unparsed, hence the label 0, and its `outcome` is None. So solutions without an answer never look good, and
    can still be told from wrong ones.

    Under `accelerate launch` the prefixes are divided among the processes by the hash of their content.

    Args:
        engine (`RolloutEngine`):
            Where the reference policy runs.
        config (`LabelingConfig`, *optional*):
            Settings. Defaults to `LabelingConfig()`.
        verifier (`Callable[[str, str], bool | None]`, *optional*):
            Called with the whole answer (the prefix and its rollout) and the reference answer; gives whether it is
            right, or None if no answer can be read. Defaults to [`~verify.verify_answer`] with `config.verify_how`.
        policy_name (`str`, *optional*):
            Name and revision of the policy. It is part of the identity of a run, so that rollouts of two policies
            never mix in one directory: pass it wherever `output_dir` is used.

    Attributes:
        summary (`dict` or `None`):
            After [`label`][MonteCarloLabeler.label], the counts that `summary.json` holds as well:

            - `num_solutions`, `num_unanswered_solutions` (outcome None), `num_empty_solutions` (sampled without a step
              and left out).
            - `num_prefixes`: steps that needed rollouts; `num_unique_prefixes`: those rolled out.
            - `num_rollouts`, `num_tokens`: behind the labels, those of an interrupted run included;
              `num_solution_tokens`: tokens of sampled solutions.
            - `unparsed_share`: share of rollouts without a readable answer, in [0, 1], lower is better.
            - `length_limit_share`: share of rollouts cut off at `max_new_tokens`, in [0, 1], lower is better.
            - `num_new_rollouts`: sampled by this call, in all processes; `seconds`: duration of this call;
              `rollouts_per_second`: the quotient.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from trl_erprm.rollout import Completion
    >>> class Oracle:  # an engine that always writes the right answer
    ...     def generate(self, prefixes, num_samples, options, first_sample=0):
    ...         return [[Completion("#6", 2, "stop")] * num_samples for _ in prefixes]
    >>> rows = Dataset.from_list([{"prompt": "4+2\\n", "completions": ["4+2=5", "#5"], "answer": "6"}])
    >>> config = LabelingConfig(num_rollouts=4, verify_how="arithmetic")
    >>> MonteCarloLabeler(Oracle(), config).label(rows)["labels"][0]
    [1.0, 0.0]

    ```
    """

    def __init__(
        self,
        engine: RolloutEngine,
        config: LabelingConfig | None = None,
        verifier: Verifier | None = None,
        policy_name: str | None = None,
    ):
        if not isinstance(engine, RolloutEngine):
            raise TypeError(
                f"`engine` must have a method `generate` as RolloutEngine has, got {type(engine).__name__}. Make one "
                'with load_engine("transformers", model=model, tokenizer=tokenizer).'
            )
        self.engine = engine
        self.config = LabelingConfig() if config is None else config
        self._has_own_verifier = verifier is not None
        self.verifier = partial(verify_answer, how=self.config.verify_how) if verifier is None else verifier
        self.policy_name = policy_name
        self.summary: dict[str, Any] | None = None

    def label(self, dataset: Dataset | Sequence[Mapping[str, Any]], output_dir: str | Path | None = None) -> Dataset:
        """Labels every row, continuing an interrupted run of the same rows, config and policy.

        Args:
            dataset (`Dataset` or list of dictionaries):
                Rows with `prompt` (text or messages) and `answer` (text), and one of `completions` (the steps),
                `completion` (text, split into steps) or neither: then `solutions_per_prompt` solutions are sampled
                first. All rows are checked before anything is sampled. Further columns are carried along.
            output_dir (`str` or `Path`, *optional*):
                Directory of the run; needed with more than one process. Without it nothing is stored.

        Returns:
            `Dataset`: one row a solution, the same in every process, with `prompt`, `completions`, `labels` (float),
            `num_correct`, `num_rollouts`, `num_unparsed` (int), all with one item a step, `answer`, `outcome` (1.0,
            0.0 or None) and the further columns.

        Raises:
            ValueError: if a column is missing, if a prompt, an answer, a step or a solution is empty, if an answer
                cannot be a reference (each with the row), or if `output_dir` holds another run.
            TypeError: if a value has the wrong type, with the row, or if the verifier gives another value than True,
                False or None.
        """
        started = perf_counter()
        state = process_state()
        if state.num_processes > 1 and output_dir is None:
            raise ValueError(
                f"`output_dir` must be given with {state.num_processes} processes, got None: they share their "
                "rollouts through it. Pass a directory that all of them can reach."
            )
        dataset = _as_dataset(dataset)
        source = _check_columns(dataset)
        rows = list(dataset)
        self._check_rows(rows, source)

        output_dir = None if output_dir is None else Path(output_dir)
        if output_dir is not None:
            if state.is_main_process and open_run(output_dir, self._identity(rows, source), kind="label"):
                logger.info("Continuing the run in %s.", output_dir)
            state.wait_for_everyone()

        num_solution_tokens = num_empty = 0
        if source == "prompt":
            sampled = self._sample_solutions(rows, output_dir, state)
            num_solution_tokens = sum(record["num_tokens"] for record in sampled.values())
            solutions = []
            for index, row in enumerate(rows):
                texts = sampled[content_hash(row["prompt"])]["texts"]
                found = [self._split(index, text) for text in texts]
                solutions += [solution for solution in found if solution.steps]
                num_empty += sum(not solution.steps for solution in found)
            if not solutions:
                raise ValueError(
                    f"The policy must write solutions with at least one step, got {num_empty} empty ones. Check the "
                    "prompts: a missing line end or chat template often makes a policy end at once."
                )
        elif source == "completion":
            solutions = [self._split(index, row["completion"]) for index, row in enumerate(rows)]
        else:
            solutions = [self._given(index, row["completions"]) for index, row in enumerate(rows)]

        counts, num_new_rollouts = self._roll_out(rows, solutions, output_dir, state)
        labelled, outcomes = self._labelled_rows(rows, solutions, counts)
        features = Features(
            {
                "prompt": dataset.features["prompt"],
                "completions": List(Value("string")),
                "labels": List(Value("float64")),
                **{name: List(Value("int64")) for name in _COUNT_COLUMNS},
                "answer": Value("string"),
                "outcome": Value("float64"),
                **{name: dataset.features[name] for name in _further_columns(dataset.column_names)},
            }
        )
        result = Dataset.from_list(labelled, features=features)

        seconds = perf_counter() - started
        num_rollouts = sum(c.num_rollouts for c in counts.values())
        self.summary = {
            "num_solutions": len(solutions),
            "num_unanswered_solutions": sum(outcome is None for outcome in outcomes),
            "num_empty_solutions": num_empty,
            "num_prefixes": sum(len(solution.prefix_texts) for solution in solutions),
            "num_unique_prefixes": len(counts),
            "num_rollouts": num_rollouts,
            "num_tokens": sum(c.num_tokens for c in counts.values()),
            "num_solution_tokens": num_solution_tokens,
            "unparsed_share": _share(sum(c.num_unparsed for c in counts.values()), num_rollouts),
            "length_limit_share": _share(sum(c.num_truncated for c in counts.values()), num_rollouts),
            "num_new_rollouts": num_new_rollouts,
            "seconds": seconds,
            "rollouts_per_second": _share(num_new_rollouts, seconds),
        }
        if state.is_main_process:
            self._log_summary()
            if output_dir is not None:
                lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in labelled)
                write_atomically(output_dir / "labels.jsonl", "".join(lines))
                write_atomically(output_dir / "summary.json", json.dumps(self.summary, indent=2) + "\n")
        state.wait_for_everyone()  # no process may read labels.jsonl before it is there
        return result

    # -----------------------------------------------------------------------------------------------------------------
    # Rows and solutions

    def _check_rows(self, rows: list[dict[str, Any]], source: str) -> None:
        if not rows:
            raise ValueError("`dataset` must have at least one row, got none. Check the split and the filters.")
        checked_answers = set()
        for index, row in enumerate(rows):
            try:
                Prefix(row["prompt"])
            except (TypeError, ValueError) as error:
                raise type(error)(f"Row {index}: {error}") from None
            if isinstance(row["prompt"], str) and not row["prompt"].strip():
                raise ValueError(f"Row {index}: `prompt` must not be empty, got {row['prompt']!r}. Leave the row out.")
            answer = row["answer"]
            if not isinstance(answer, str):
                raise (ValueError if answer is None else TypeError)(
                    f"Row {index}: `answer` must be the text of the reference answer, got {answer!r}. Leave the row "
                    "out, or convert the answer with str()."
                )
            if not answer.strip():
                raise ValueError(f"Row {index}: `answer` must not be empty, got {answer!r}. Leave the row out.")
            if answer not in checked_answers and not self._has_own_verifier:
                checked_answers.add(answer)
                try:  # a reference that cannot be read must not be found out after the rollouts are paid for
                    self.verifier("", answer)
                except ValueError as error:
                    raise ValueError(f"Row {index}: {error}") from None
            if source == "completions":
                _check_steps(index, row["completions"])
            elif source == "completion":
                if not isinstance(row["completion"], str):
                    raise TypeError(
                        f"Row {index}: `completion` must be a str, got {type(row['completion']).__name__}. For "
                        "messages, pass the content of the assistant's message."
                    )
                if not row["completion"].strip():
                    raise ValueError(
                        f"Row {index}: `completion` must not be empty, got {row['completion']!r}. Leave the row out."
                    )

    def _given(self, row: int, steps: list[str]) -> _Solution:
        separator = self.config.step_separator
        prefix_texts = [_continuable(join_steps(steps[:k], separator) + separator) for k in range(1, len(steps))]
        return _Solution(row, list(steps), prefix_texts, join_steps(steps, separator))

    def _split(self, row: int, text: str) -> _Solution:
        steps = split_steps(text, self.config.split_how)
        # Cut from the text itself: the policy continues what was written, with its white space.
        prefix_texts = [_continuable(text[: step.end]) for step in steps[:-1]]
        return _Solution(row, [step.text for step in steps], prefix_texts, text)

    def _identity(self, rows: list[dict[str, Any]], source: str) -> dict[str, Any]:
        columns = ["prompt", "answer"] + ([] if source == "prompt" else [source])
        name = None
        if self._has_own_verifier:
            name = getattr(self.verifier, "__qualname__", type(self.verifier).__qualname__)
        return {
            **self.config.identity(),
            "verifier": name,
            "policy_name": self.policy_name,
            "dataset": content_hash([content_hash([row[column] for column in columns]) for row in rows]),
            "num_rows": len(rows),
        }

    # -----------------------------------------------------------------------------------------------------------------
    # Sampling

    def _sample_solutions(
        self, rows: list[dict[str, Any]], output_dir: Path | None, state: PartialState
    ) -> dict[str, dict[str, Any]]:
        """Sampled solutions by the hash of the prompt. Equal prompts share theirs."""
        done = {record["prompt"]: record for record in _read_all(output_dir, "solutions")}
        wanted = {content_hash(row["prompt"]): Prefix(row["prompt"]) for row in rows}
        pending = _own_share({key: prefix for key, prefix in wanted.items() if key not in done}, state)
        store = None if output_dir is None else JsonlStore(output_dir / f"solutions-{state.process_index}.jsonl")
        n = self.config.solutions_per_prompt
        with _progress_bar("Solutions", "solution", len(pending) * n, state) as bar:
            for chunk in self._chunks(pending):
                completions = self.engine.generate([prefix for _, prefix in chunk], n, self.config.solution_options())
                records = [
                    {
                        "prompt": key,
                        "texts": [completion.text for completion in of_prompt],
                        "num_tokens": sum(completion.num_tokens for completion in of_prompt),
                    }
                    for (key, _), of_prompt in zip(chunk, completions, strict=True)
                ]
                if store is not None:
                    store.append(records)
                done.update((record["prompt"], record) for record in records)
                bar.update(len(chunk) * n)
        if state.num_processes > 1:
            records = _read_when(
                lambda records: wanted.keys() <= {record["prompt"] for record in records}, output_dir, "solutions"
            )
            done = {record["prompt"]: record for record in records}
        return {key: done[key] for key in wanted}

    def _roll_out(
        self,
        rows: list[dict[str, Any]],
        solutions: list[_Solution],
        output_dir: Path | None,
        state: PartialState,
    ) -> tuple[dict[str, _Counts], int]:
        """Counts of every prefix by its key, and the number of rollouts that were sampled for it now."""
        wanted: dict[str, tuple[Prefix, str, int]] = {}
        for solution in solutions:
            row = rows[solution.row]
            for text in solution.prefix_texts:
                key = _prefix_key(row, text)
                wanted.setdefault(key, (Prefix(row["prompt"], text), row["answer"], solution.row))

        records = _read_all(output_dir, "rollouts")
        complete = self._complete(records, wanted)
        num_before = sum(c.num_rollouts for c in _tally(records, wanted).values())
        pending = _own_share({key: value for key, value in wanted.items() if key not in complete}, state)
        # Long ones first, so that a chunk holds prefixes of like length and the time left is not underestimated.
        pending = dict(sorted(pending.items(), key=lambda item: -_length(item[1][0])))
        state.wait_for_everyone()  # nobody appends before all have read: what is new is told from what was there
        if complete and state.is_main_process:
            logger.info("%d of %d prefixes are rolled out already.", len(complete), len(wanted))

        store = None if output_dir is None else JsonlStore(output_dir / f"rollouts-{state.process_index}.jsonl")
        n = self.config.num_rollouts
        new_records = []
        with _progress_bar("Rollouts", "rollout", len(pending) * n, state) as bar:
            for chunk in self._chunks(pending):
                try:
                    completions = self.engine.generate(
                        [prefix for _, (prefix, _, _) in chunk], n, self.config.rollout_options()
                    )
                except ValueError as error:
                    error.add_note(
                        f"These prefixes, in order, come from the rows {[row for _, (_, _, row) in chunk]}."
                    )
                    raise
                of_chunk = [
                    {"prefix": key, "first_sample": 0, **vars(self._count(prefix, answer, of_prefix))}
                    for (key, (prefix, answer, _)), of_prefix in zip(chunk, completions, strict=True)
                ]
                if store is not None:
                    store.append(of_chunk)
                new_records += of_chunk
                bar.update(len(chunk) * n)
        if state.num_processes > 1:
            records = _read_when(
                lambda records: len(self._complete(records, wanted)) == len(wanted), output_dir, "rollouts"
            )
        else:
            records = records + new_records
        counts = _tally(records, wanted)
        return counts, sum(c.num_rollouts for c in counts.values()) - num_before

    def _complete(self, records: Iterable[Mapping[str, Any]], wanted: Mapping[str, Any]) -> set[str]:
        """Keys of the prefixes that need no further rollout."""
        return {key for key, c in _tally(records, wanted).items() if c.num_rollouts >= self.config.num_rollouts}

    def _chunks(self, pending: dict[str, Any]) -> Iterable[list[tuple[str, Any]]]:
        items = list(pending.items())
        size = self.config.prefixes_per_chunk
        return (items[start : start + size] for start in range(0, len(items), size))

    def _count(self, prefix: Prefix, answer: str, completions: list[Completion]) -> _Counts:
        counts = _Counts(num_rollouts=len(completions))
        known: dict[str, bool | None] = {}  # rollouts of one prefix are often equal, and math-verify is slow
        for completion in completions:
            if completion.text not in known:
                known[completion.text] = self._verify(prefix.completion + completion.text, answer)
            is_right = known[completion.text]
            counts.num_correct += bool(is_right)
            counts.num_unparsed += is_right is None
            counts.num_truncated += completion.finish_reason == "length"
            counts.num_tokens += completion.num_tokens
        return counts

    def _verify(self, text: str, answer: str) -> bool | None:
        is_right = self.verifier(text, answer)
        if is_right is not None and not isinstance(is_right, bool | np.bool_):
            raise TypeError(
                f"`verifier` must return True, False or None (no answer can be read), got {is_right!r}. Compare the "
                "reward with a threshold: labels are made from counts of right rollouts."
            )
        return None if is_right is None else bool(is_right)

    # -----------------------------------------------------------------------------------------------------------------
    # Results

    def _labelled_rows(
        self, rows: list[dict[str, Any]], solutions: list[_Solution], counts: dict[str, _Counts]
    ) -> tuple[list[dict[str, Any]], list[float | None]]:
        labelled = []
        outcomes: list[float | None] = []
        for solution in solutions:
            row = rows[solution.row]
            of_steps = [counts[_prefix_key(row, text)] for text in solution.prefix_texts]
            is_right = self._verify(solution.text, row["answer"])
            of_steps.append(
                _Counts(num_rollouts=1, num_correct=int(is_right or 0), num_unparsed=int(is_right is None))
            )
            outcomes.append(None if is_right is None else float(is_right))
            labelled.append(
                {
                    "prompt": row["prompt"],
                    "completions": solution.steps,
                    "labels": None,
                    **{name: [getattr(c, name) for c in of_steps] for name in _COUNT_COLUMNS},
                    "answer": row["answer"],
                    "outcome": outcomes[-1],
                    **{name: row[name] for name in _further_columns(row)},
                }
            )
        labels = _labels([(row["num_correct"], row["num_rollouts"]) for row in labelled], self.config.eta)
        for row, of_row in zip(labelled, labels, strict=True):
            row["labels"] = of_row
        return labelled, outcomes

    def _log_summary(self) -> None:
        s = self.summary
        logger.info(
            "%d solutions (%d without a readable answer), %d prefixes (%d unique), %d rollouts, %d tokens; %.1f %% of "
            "the rollouts without a readable answer, %.1f %% at the length limit; %d new rollouts in %.0f s (%.0f/s).",
            s["num_solutions"],
            s["num_unanswered_solutions"],
            s["num_prefixes"],
            s["num_unique_prefixes"],
            s["num_rollouts"],
            s["num_tokens"],
            100 * s["unparsed_share"],
            100 * s["length_limit_share"],
            s["num_new_rollouts"],
            s["seconds"],
            s["rollouts_per_second"],
        )
        if s["unparsed_share"] > WARNING_SHARE:
            logger.warning(
                "%.1f %% of the rollouts have no readable answer and count as not right, which lowers all labels. "
                "Check `verify_how`, `max_new_tokens` and the prompt.",
                100 * s["unparsed_share"],
            )
        if s["length_limit_share"] > WARNING_SHARE:
            logger.warning(
                "%.1f %% of the rollouts are cut off at `max_new_tokens`=%d. Raise it, or set `stop` if the policy "
                "goes on after its answer.",
                100 * s["length_limit_share"],
                self.config.max_new_tokens,
            )
        if s["num_empty_solutions"]:
            logger.warning(
                "%d of the sampled solutions are empty and were left out, %d remain.",
                s["num_empty_solutions"],
                s["num_solutions"],
            )


def relabel(dataset: Dataset, eta: float) -> Dataset:
    """Makes the labels anew from the stored counts, for another `eta` and without a rollout.

    Args:
        dataset (`Dataset`):
            Rows labelled by rollouts, with `num_correct` and `num_rollouts` (one item a step).
        eta (`float`):
            The new eta; see [`~labeling.estimators.entropy_regularized_value_from_counts`].

    Returns:
        `Dataset`: the same rows with new `labels`. A step with 0 rollouts has the label None.

    Raises:
        ValueError: if the counts are missing, or differ in length within a row (with the row), or if `eta` is nan.

    Example:

    ```python
    >>> rows = Dataset.from_list([{"completions": ["a", "b"], "num_correct": [8, 1], "num_rollouts": [16, 1]}])
    >>> relabel(rows, eta=0)["labels"][0]
    [0.5, 1.0]
    >>> relabel(rows, eta=float("inf"))["labels"][0]
    [1.0, 1.0]

    ```
    """
    eta = check_eta(eta)
    missing = [name for name in ("num_correct", "num_rollouts") if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"`dataset` must have the columns num_correct and num_rollouts, got {', '.join(dataset.column_names)}. "
            "Labels without counts cannot be changed to another eta: label the rows with MonteCarloLabeler."
        )
    counts = list(zip(dataset["num_correct"], dataset["num_rollouts"], strict=True))
    for index, (correct, total) in enumerate(counts):
        if correct is None or total is None or len(correct) != len(total):
            raise ValueError(
                f"Row {index}: `num_correct` and `num_rollouts` must have one item a step, got {correct} and {total}. "
                "Correct the row, or leave it out."
            )
    columns = dataset.column_names
    if "labels" in columns:
        dataset = dataset.remove_columns("labels")
    else:
        columns = [*columns, "labels"]
    dataset = dataset.add_column("labels", _labels(counts, eta), feature=List(Value("float64")))
    return dataset.select_columns(columns)  # in the order that they had


def _labels(counts: Sequence[tuple[Sequence[int], Sequence[int]]], eta: float) -> list[list[float | None]]:
    """Labels of many rows from their (num_correct, num_rollouts), with one call of the estimator."""
    correct = np.array([c for of_row, _ in counts for c in of_row], dtype=np.int64)
    total = np.array([n for _, of_row in counts for n in of_row], dtype=np.int64)
    values = iter(entropy_regularized_value_from_counts(correct, total, eta).tolist())
    return [[None if math.isnan(v) else v for v in islice(values, len(of_row))] for of_row, _ in counts]


def _as_dataset(dataset: Any) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, Sequence) and all(isinstance(row, Mapping) for row in dataset) and dataset:
        return Dataset.from_list([dict(row) for row in dataset])
    raise TypeError(
        f"`dataset` must be a datasets.Dataset or a list of rows, got {type(dataset).__name__}. Choose a split of a "
        "DatasetDict; load a streamed data set with streaming=False."
    )


def _check_columns(dataset: Dataset) -> str:
    """The column that holds the solutions: "completions", "completion", or "prompt" if they have to be sampled."""
    columns = dataset.column_names
    missing = [name for name in ("prompt", "answer") if name not in columns]
    if missing:
        raise ValueError(
            "`dataset` must have the columns prompt, answer and, for solutions that are there already, completions "
            f"(steps) or completion (text), got {', '.join(columns)}; {' and '.join(missing)} "
            "missing. Rename the columns."
        )
    found = [name for name in ("completions", "completion") if name in columns]
    if len(found) == 2:
        raise ValueError(
            "`dataset` must have one of the columns completions and completion, got both. Remove the one that shall "
            "not be labelled."
        )
    return found[0] if found else "prompt"


def _check_steps(row: int, steps: Any) -> None:
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise TypeError(
            f"Row {row}: `completions` must be a list of step texts, got {steps!r}. For text that has to be split, "
            "name the column `completion`."
        )
    if not steps:
        raise ValueError(f"Row {row}: `completions` must have at least one step, got []. Leave the row out.")
    for number, step in enumerate(steps):
        if not step.strip():
            raise ValueError(
                f"Row {row}: no step of `completions` may be empty, got {step!r} as step {number}. Remove the step."
            )


def _further_columns(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if name not in _WRITTEN_COLUMNS and name != "completion"]


def _continuable(text: str) -> str:
    """Without spaces at the end: a tokenizer puts them in front of the next word, where the policy expects them."""
    return text.rstrip(" \t")


def _prefix_key(row: Mapping[str, Any], text: str) -> str:
    # With the answer: the same rollouts are right for one answer and wrong for another.
    return content_hash(row["prompt"], text, row["answer"])


def _length(prefix: Prefix) -> int:
    of_prompt = prefix.prompt if isinstance(prefix.prompt, str) else str(prefix.prompt)
    return len(of_prompt) + len(prefix.completion)


def _own_share(pending: dict[str, Any], state: PartialState) -> dict[str, Any]:
    """The part of this process: by the hash of the content, so that it does not depend on what is done already."""
    return {
        key: value for key, value in pending.items() if int(key[:16], 16) % state.num_processes == state.process_index
    }


def _read_all(output_dir: Path | None, kind: str) -> list[dict[str, Any]]:
    """The records of all processes, also of an earlier start with more of them."""
    if output_dir is None:
        return []
    return [record for path in sorted(output_dir.glob(f"{kind}-*.jsonl")) for record in JsonlStore(path)]


def _read_when(
    is_complete: Callable[[list[dict[str, Any]]], bool], output_dir: Path | None, kind: str
) -> list[dict[str, Any]]:
    """The records of all processes, once they are complete.

    Not a barrier: one of torch.distributed times out after minutes, and the shares of long runs differ by more. If
    another process dies, the launcher ends this one.
    """
    delay = 0.05
    while not is_complete(records := _read_all(output_dir, kind)):
        sleep(delay)
        delay = min(2 * delay, 10.0)  # seconds
    return records


def _tally(records: Iterable[Mapping[str, Any]], wanted: Mapping[str, Any]) -> dict[str, _Counts]:
    """Counts by prefix. A sample that is recorded twice counts once: samples are named by prefix and number."""
    counts: dict[str, _Counts] = {}
    seen = set()
    for record in records:
        name = (record["prefix"], record["first_sample"])
        if record["prefix"] in wanted and name not in seen:
            seen.add(name)
            counts.setdefault(record["prefix"], _Counts()).add(record)
    return counts


def _progress_bar(description: str, unit: str, total: int, state: PartialState) -> tqdm:
    """On the main process only, and only if there is work. It shows the share of the main process."""
    return tqdm(total=total, desc=description, unit=unit, disable=not state.is_main_process or total == 0)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
