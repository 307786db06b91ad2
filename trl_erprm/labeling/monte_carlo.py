"""Labels steps with Monte-Carlo rollouts: the counts are stored, and the labels made from them.

    prompt    4*3+2 (modulus 7)            answer 0
    step 1    4*3=5       prefix 1 -> 16 rollouts, 11 right -> label V_eta(11/16)
    step 2    5+2=0       prefix 2 -> 16 rollouts, 15 right -> label V_eta(15/16)
    step 3    #0          its own outcome, no rollout       -> label 1

A directory of a run holds

    manifest.json               config, policy and content of the data set: what makes two runs the same; package
                                versions; at the end also engine, counts, tokens and seconds, of all calls together
    solutions-<process>.jsonl   sampled solutions, where the rows had none, a line a prompt
    rollouts-<process>.jsonl    counts, a line a prefix (with adaptive rollouts a line a prefix and round)
    labels.jsonl                the labelled rows, written at the end
    labels.parquet              the same, with `labels_format="parquet"`
    summary.json                what it cost and what came out
    report.md, labels.png       the quality report, see `report.py`

Each process appends to its own two files and reads all of them, so a run that was killed goes on where it stopped,
also with another number of processes.

The parts: `rows.py` (what is given and written), `rollouts.py` (sampling and records), `search.py` (which prefixes),
`intervals.py` (when to stop), `eta_choice.py` and `report.py`.

Departures from the reference code (github.com/hanningzhang/ER-PRM): eta is chosen after the rollouts and need not be
an integer; labels are not rounded; equal prefixes are rolled out once; a rollout without a readable answer counts as
not right, as there, but is counted and reported; one that is cut off at `max_new_tokens` has no answer, even where one
could be read from its text; no row is dropped.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from datasets import Dataset

from trl_erprm.arguments import process_state
from trl_erprm.manifest import content_hash, finish_run, open_run
from trl_erprm.rollout.engine import RolloutEngine, description_of
from trl_erprm.verify import marked_answer, verify_answer

from .config import LabelingConfig
from .eta_choice import chosen_eta
from .report import warnings_of, write_parquet, write_report, write_rows, write_summary
from .rollouts import PrefixCounts, PrefixRoller, Verifier
from .rows import (
    COUNT_COLUMNS,
    INTERVAL_COLUMNS,
    Solution,
    as_dataset,
    check_columns,
    check_row,
    features_of_labelled_rows,
    further_columns,
    intervals_of_counts,
    labels_of_counts,
    prefix_key,
    relabel,
    solution_of_steps,
    solution_of_text,
)

__all__ = ["MonteCarloLabeler", "relabel"]

logger = logging.getLogger(__name__)


class MonteCarloLabeler:
    """Labels the steps of solutions by rolling out every prefix with the reference policy.

    The label of step k is the entropy-regularized value of the prefix that ends with step k; the label of the last
    step is its own outcome. A solution without a readable answer earns no reward: its last step counts 0 right of 1
    with 1 unparsed, hence the label 0, and its `outcome` is None. So solutions without an answer never look good, and
    can still be told from wrong ones. A rollout or a sampled solution that is cut off at `max_new_tokens` has no
    answer: the last number of an unfinished text is an intermediate result.

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

            - `num_solutions`, `num_distinct_solutions` (equal ones of a prompt once), `num_unanswered_solutions`
              (outcome None), `num_truncated_solutions` (sampled, and cut off at `max_new_tokens`),
              `num_empty_solutions` (sampled without a step and left out).
            - `num_prefixes`: steps before the last; `num_unique_prefixes`: equal prefixes once;
              `num_labelled_prefixes`: of these, those with rollouts (all, unless `label_steps` leaves some out);
              `num_skipped_prefixes`, `num_skipped_prompts`: too long for the context window.
            - `num_rollouts`, `num_tokens`: behind the labels, those of an interrupted run included;
              `num_solution_tokens`: tokens of sampled solutions.
            - `unparsed_share`: share of rollouts without a readable answer, in [0, 1], lower is better. Of those that
              are cut off only a marked answer is read ([`~verify.marked_answer`]).
            - `truncated_share`: share of rollouts cut off at `max_new_tokens`, in [0, 1], lower is better.
            - `seconds`: of sampling and verifying behind the labels, of the process that took longest, interrupted
              calls included but for what they had not recorded; `rollouts_per_second`: rollouts over these.
            - `num_new_rollouts`: sampled by this call, in all processes; `seconds_of_call`: its duration.
            - `eta`: of the labels, the chosen one if it was `"auto"`; `max_new_tokens`: as configured.

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
            `label_low`, `label_high` (float, see [`~labeling.intervals.label_interval`]), `num_correct`,
            `num_rollouts`, `num_unparsed` (int), all with one item a step, `answer`, `outcome` (1.0, 0.0 or None),
            `eta` (of the labels, so that whoever is given the rows can turn labels into probabilities),
            `num_duplicates` and `rollouts` where configured, and the further columns. A step without rollouts (too
            long, or left out by `label_steps`) has 0 rollouts and the label None.

        Raises:
            ValueError: if a column is missing, if a prompt, an answer, a step or a solution is empty, if an answer
                cannot be a reference (each with the row), or if `output_dir` holds another run.
            TypeError: if a value has the wrong type, with the row, or if the verifier gives another value than True,
                False or None.
            OSError: if a record cannot be written (a full disk). What was written before is whole.
        """
        started = perf_counter()
        state = process_state()
        if state.num_processes > 1 and output_dir is None:
            raise ValueError(
                f"`output_dir` must be given with {state.num_processes} processes, got None: they share their "
                "rollouts through it. Pass a directory that all of them can reach."
            )
        dataset = as_dataset(dataset)
        source = check_columns(dataset)
        rows = list(dataset)
        self._check_rows(rows, source)

        output_dir = None if output_dir is None else Path(output_dir)
        if output_dir is not None:
            if state.is_main_process and open_run(output_dir, self._identity(rows, source), kind="label"):
                logger.info("Continuing the run in %s.", output_dir)
            state.wait_for_everyone()

        roller = PrefixRoller(self.engine, self.config, self._verify, output_dir, state)
        of_solutions: dict[str, Any] = {"num_solution_tokens": 0, "num_empty_solutions": 0, "num_skipped_prompts": 0}
        if source == "prompt":
            solutions = self._sampled_solutions(rows, roller, of_solutions)
        elif source == "completion":
            how = self.config.split_how
            solutions = [solution_of_text(index, row["completion"], how) for index, row in enumerate(rows)]
        else:
            separator = self.config.step_separator
            solutions = [solution_of_steps(index, row["completions"], separator) for index, row in enumerate(rows)]
        is_right = [
            self._verify(solution.text, rows[solution.row]["answer"], solution.is_truncated) for solution in solutions
        ]

        counts, num_new_rollouts = roller.roll_out(rows, solutions, [bool(right) for right in is_right])
        optional = ["num_duplicates"] if source == "prompt" and self.config.merge_equal_solutions else []
        optional += ["rollouts"] if self.config.keep_rollouts else []
        labelled = self._counted_rows(rows, solutions, is_right, counts, optional)
        eta = self._label(labelled)
        result = Dataset.from_list(labelled, features=features_of_labelled_rows(dataset.features, optional))

        totals, seconds = _totals(rows, solutions, is_right, counts), roller.seconds()
        self.summary = {
            **totals,
            **of_solutions,
            "seconds": seconds,
            "rollouts_per_second": _share(totals["num_rollouts"], seconds),
            "num_new_rollouts": num_new_rollouts,
            "seconds_of_call": perf_counter() - started,
            "eta": eta,
            "max_new_tokens": self.config.max_new_tokens,
        }
        if state.is_main_process:
            self._log_summary()
            if output_dir is not None:
                write_rows(output_dir, labelled)
                if self.config.labels_format == "parquet":
                    write_parquet(output_dir, result, labelled)
                write_summary(output_dir, self.summary)
                finish_run(
                    output_dir,
                    engine=description_of(self.engine),
                    results={**totals, **of_solutions, "seconds": seconds},
                )
                write_report(output_dir, labelled, self.summary)
        state.wait_for_everyone()  # no process may read labels.jsonl before it is there
        return result

    # -----------------------------------------------------------------------------------------------------------------
    # What is given

    def _check_rows(self, rows: list[dict[str, Any]], source: str) -> None:
        if not rows:
            raise ValueError("`dataset` must have at least one row, got none. Check the split and the filters.")
        checked_answers = set()
        for index, row in enumerate(rows):
            check_row(index, row, source)
            answer = row["answer"]
            if answer not in checked_answers and not self._has_own_verifier:
                checked_answers.add(answer)
                try:  # a reference that cannot be read must not be found out after the rollouts are paid for
                    self.verifier("", answer)
                except ValueError as error:
                    raise ValueError(f"Row {index}: {error}") from None

    def _sampled_solutions(
        self, rows: list[dict[str, Any]], roller: PrefixRoller, totals: dict[str, Any]
    ) -> list[Solution]:
        """Solutions of rows that have none. `totals` takes what they cost and how many are missing."""
        sampled = roller.sample_solutions(rows)
        totals["num_solution_tokens"] = sum(record["num_tokens"] for record in sampled.values())
        totals["num_skipped_prompts"] = sum("is_skipped" in record for record in sampled.values())
        solutions = []
        for index, row in enumerate(rows):
            record = sampled[content_hash(row["prompt"])]
            is_truncated = record.get("truncated", [False] * len(record["texts"]))  # not in those of earlier versions
            found = [
                replace(solution_of_text(index, text, self.config.split_how), is_truncated=is_cut)
                for text, is_cut in zip(record["texts"], is_truncated, strict=True)
            ]
            with_steps = [solution for solution in found if solution.steps]
            totals["num_empty_solutions"] += len(found) - len(with_steps)
            if self.config.merge_equal_solutions:
                equal: dict[tuple[str, bool], list[Solution]] = {}
                for solution in with_steps:
                    equal.setdefault((solution.text, solution.is_truncated), []).append(solution)
                with_steps = [replace(of_text[0], num_duplicates=len(of_text)) for of_text in equal.values()]
            solutions += with_steps
        if not solutions:
            raise ValueError(
                f"The policy must write solutions with at least one step, got {totals['num_empty_solutions']} empty "
                f"ones, and {totals['num_skipped_prompts']} prompts too long for the context window. Check the "
                "prompts: a missing line end or chat template often makes a policy end at once."
            )
        return solutions

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

    def _verify(self, text: str, answer: str, is_truncated: bool) -> bool | None:
        if is_truncated and not self._has_own_verifier and marked_answer(text, self.config.verify_how) is None:
            return None
        is_right = self.verifier(text, answer)
        if is_right is not None and not isinstance(is_right, bool | np.bool_):
            raise TypeError(
                f"`verifier` must return True, False or None (no answer can be read), got {is_right!r}. Compare the "
                "reward with a threshold: labels are made from counts of right rollouts."
            )
        return None if is_right is None else bool(is_right)

    # -----------------------------------------------------------------------------------------------------------------
    # What is written

    def _counted_rows(
        self,
        rows: list[dict[str, Any]],
        solutions: Sequence[Solution],
        is_right: Sequence[bool | None],
        counts: Mapping[str, PrefixCounts],
        optional: list[str],
    ) -> list[dict[str, Any]]:
        """The rows that are written, without the labels."""
        counted = []
        none = PrefixCounts()
        for solution, right in zip(solutions, is_right, strict=True):
            row = rows[solution.row]
            of_steps = [counts.get(prefix_key(row, text), none) for text in solution.prefix_texts]
            of_steps.append(PrefixCounts(num_rollouts=1, num_correct=int(right or 0), num_unparsed=int(right is None)))
            more = {"num_duplicates": solution.num_duplicates, "rollouts": [c.texts for c in of_steps]}
            counted.append(
                {
                    "prompt": row["prompt"],
                    "completions": solution.steps,
                    "labels": None,
                    **dict.fromkeys(INTERVAL_COLUMNS),
                    **{name: [getattr(c, name) for c in of_steps] for name in COUNT_COLUMNS},
                    "answer": row["answer"],
                    "outcome": None if right is None else float(right),
                    "eta": None,
                    **{name: more[name] for name in optional},
                    **{name: row[name] for name in further_columns(row, optional)},
                }
            )
        return counted

    def _label(self, rows: list[dict[str, Any]]) -> float:
        """Writes labels, intervals and their eta into the rows; returns eta."""
        config = self.config
        eta = chosen_eta(rows, config.eta, config.eta_criterion, config.eta_validation_share)
        counts = [(row["num_correct"], row["num_rollouts"]) for row in rows]
        made = zip(
            labels_of_counts(counts, eta), *intervals_of_counts(counts, eta, config.interval_level), strict=True
        )
        for row, (labels, low, high) in zip(rows, made, strict=True):
            row.update(labels=labels, label_low=low, label_high=high, eta=eta)
        return eta

    def _log_summary(self) -> None:
        s = self.summary
        logger.info(
            "%d solutions (%d without a readable answer), %d prefixes (%d unique), %d rollouts, %d tokens; %.1f %% of "
            "the rollouts without a readable answer (%.1f %% cut off); %.0f s (%.0f rollouts/s), of which this call "
            "took %.0f s for %d new rollouts.",
            s["num_solutions"],
            s["num_unanswered_solutions"],
            s["num_prefixes"],
            s["num_unique_prefixes"],
            s["num_rollouts"],
            s["num_tokens"],
            100 * s["unparsed_share"],
            100 * s["truncated_share"],
            s["seconds"],
            s["rollouts_per_second"],
            s["seconds_of_call"],
            s["num_new_rollouts"],
        )
        for text in warnings_of(s):
            logger.warning("%s", text)


def _totals(
    rows: Sequence[Mapping[str, Any]],
    solutions: Sequence[Solution],
    is_right: Sequence[bool | None],
    counts: Mapping[str, PrefixCounts],
) -> dict[str, Any]:
    num_rollouts = sum(c.num_rollouts for c in counts.values())
    keys = [prefix_key(rows[solution.row], text) for solution in solutions for text in solution.prefix_texts]
    return {
        "num_solutions": len(solutions),
        "num_distinct_solutions": len({prefix_key(rows[solution.row], solution.text) for solution in solutions}),
        "num_unanswered_solutions": sum(right is None for right in is_right),
        "num_truncated_solutions": sum(solution.is_truncated for solution in solutions),
        "num_prefixes": len(keys),
        "num_unique_prefixes": len(set(keys)),
        "num_labelled_prefixes": sum(c.num_rollouts > 0 for c in counts.values()),
        "num_skipped_prefixes": sum(c.is_skipped for c in counts.values()),
        "num_rollouts": num_rollouts,
        "num_tokens": sum(c.num_tokens for c in counts.values()),
        "unparsed_share": _share(sum(c.num_unparsed for c in counts.values()), num_rollouts),
        "truncated_share": _share(sum(c.num_truncated for c in counts.values()), num_rollouts),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
