"""Rolls out prefixes and samples solutions: in rounds, shared among processes, recorded so that nothing is paid twice.

A record of `rollouts-<process>.jsonl` holds the counts of samples `first_sample` to `first_sample + num_rollouts - 1`
of one prefix:

    {"prefix": <hash>, "first_sample": 4, "num_rollouts": 4, "num_correct": 3, "num_unparsed": 0, ...}

and the first of those that are recorded together the `seconds` that they took.

A completion that was cut off at `max_new_tokens` has no answer unless it marks one ([`~verify.marked_answer`]): the
last number of an unfinished solution is an intermediate result. It counts as truncated, and without a marked answer as
not right and unparsed. A verifier of one's own is asked all the same.

Sample i of a prefix depends on the seed, the prefix and i only (the engine's contract), and whether a prefix needs
another round depends on its own counts only. So it makes no difference when a run is interrupted, how prefixes are
grouped into calls, or how many processes share them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from trl_erprm.manifest import content_hash
from trl_erprm.rollout.engine import Completion, Prefix, RolloutEngine
from trl_erprm.rollout.recorded import Progress, RecordedSampler, Task, read_when

from .config import LabelingConfig
from .intervals import is_narrow_enough
from .rows import PrefixKey, Solution, prefix_key
from .search import next_prefixes

__all__ = ["PrefixCounts", "PrefixRoller", "Verifier"]

logger = logging.getLogger(__name__)

Verifier = Callable[[str, str], bool | None]


@dataclass
class PrefixCounts:
    """What the rollouts of a prefix came to."""

    num_rollouts: int = 0
    num_correct: int = 0
    num_unparsed: int = 0  # those that were cut off among them
    num_truncated: int = 0  # cut off at `max_new_tokens`
    num_tokens: int = 0
    is_skipped: bool = False  # too long for the context window
    texts: list[str] = field(default_factory=list)  # with `keep_rollouts`

    def add(self, record: Mapping[str, Any]) -> None:
        for name in ("num_rollouts", "num_correct", "num_unparsed", "num_truncated", "num_tokens"):
            setattr(self, name, getattr(self, name) + record[name])
        self.is_skipped |= record.get("is_skipped", False)
        self.texts += record.get("texts", [])

    def record(self, key: PrefixKey, first_sample: int, keep_rollouts: bool) -> dict[str, Any]:
        optional = {"is_skipped": self.is_skipped, "texts": keep_rollouts}
        values = {name: value for name, value in asdict(self).items() if optional.get(name, True)}
        return {"prefix": key, "first_sample": first_sample, **values}


@dataclass(frozen=True)
class _Task(Task):
    answer: str


class PrefixRoller(RecordedSampler):
    """Samples on behalf of [`~labeling.monte_carlo.MonteCarloLabeler`].

    Args:
        engine (`RolloutEngine`):
            Where the reference policy runs.
        config (`LabelingConfig`):
            Settings.
        verify (`Callable[[str, str, bool], bool | None]`):
            Gives whether a whole answer is right, or None if it cannot be read; its last argument says whether the
            answer was cut off.
        output_dir (`Path`, *optional*):
            Directory of the run. Without it nothing is stored.
        state (`PartialState`):
            This process among the others.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        config: LabelingConfig,
        verify: Verifier,
        output_dir: Path | None,
        state: PartialState,
    ):
        super().__init__(engine, output_dir, state, config.prefixes_per_chunk, config.skip_long_prefixes)
        self.config = config
        self.verify = verify
        self.state = state
        self._narrow: dict[tuple[int, int], bool] = {}

    # -----------------------------------------------------------------------------------------------------------------
    # Solutions

    def sample_solutions(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Sampled solutions by the hash of the prompt. Equal prompts share theirs."""
        prompts = [row["prompt"] for row in rows]
        sampled = self.sample(prompts, self.config.solutions_per_prompt, self.config.solution_options())
        return {record["prompt"]: record for record in sampled}

    # -----------------------------------------------------------------------------------------------------------------
    # Rollouts

    def roll_out(
        self, rows: Sequence[Mapping[str, Any]], solutions: Sequence[Solution], is_right: Sequence[bool]
    ) -> tuple[dict[PrefixKey, PrefixCounts], int]:
        """Counts of the prefixes that were rolled out, and the number of rollouts that were sampled now.

        Args:
            rows (`Sequence[Mapping]`):
                The rows that the solutions answer.
            solutions (`Sequence[Solution]`):
                What to label.
            is_right (`Sequence[bool]`):
                Whether each solution is right.
        """
        tasks: dict[PrefixKey, _Task] = {}
        keys: list[list[PrefixKey]] = []  # of each solution
        for solution in solutions:
            row = rows[solution.row]
            keys.append([prefix_key(row, text) for text in solution.prefix_texts])
            for key, text in zip(keys[-1], solution.prefix_texts, strict=True):
                tasks.setdefault(key, _Task(key, Prefix(row["prompt"], text), solution.row, row["answer"]))

        counts = self._read_counts(tasks)
        num_before = sum(c.num_rollouts for c in counts.values())
        self.state.wait_for_everyone()  # nobody appends before all have read: what is new is told from what was there
        self.records.start_clock()
        num_done = sum(map(self._is_complete, counts.values()))
        if num_done and self.state.is_main_process:
            logger.info("%d of %d prefixes are rolled out already.", num_done, len(tasks))

        # A search asks for one prefix after another, so the prefixes of a problem stay in one process then.
        if self.config.label_steps == "all":
            own = [index for index in range(len(solutions)) if any(map(self.records.is_own, keys[index]))]
        else:
            shares = [content_hash(rows[s.row]["prompt"], rows[s.row]["answer"]) for s in solutions]
            own = [index for index, key in enumerate(shares) if self.records.is_own(key)]

        def pending() -> list[_Task]:
            found = {key for i in own for key in self._next(keys[i], counts, is_right[i])}
            if self.config.label_steps == "all":
                found = set(filter(self.records.is_own, found))
            # Long ones first, so that a chunk holds prefixes of like length and the time left is not underestimated.
            in_order = [task for key, task in tasks.items() if key in found]
            return sorted(in_order, key=lambda task: -_length(task.prefix))

        with Progress("Rollouts", "rollout", 0, self.process) as progress:
            while todo := pending():
                progress.extend(
                    sum(self.config.num_rollouts - counts.get(t.key, PrefixCounts()).num_rollouts for t in todo)
                )
                self._complete(todo, counts, progress)
        if self.state.num_processes > 1:
            counts = read_when(
                lambda found: not any(self._next(k, found, r) for k, r in zip(keys, is_right, strict=True)),
                lambda: self._read_counts(tasks),
            )
        return counts, sum(c.num_rollouts for c in counts.values()) - num_before

    def _next(self, keys: Sequence[PrefixKey], counts: Mapping[PrefixKey, PrefixCounts], is_right: bool) -> list:
        """Keys of the prefixes of a solution to roll out next."""
        is_hopeless = []
        for key in keys:
            known = counts.get(key)
            is_complete = known is not None and self._is_complete(known)
            is_hopeless.append(known.num_correct == 0 if is_complete else None)
        return [keys[index] for index in next_prefixes(self.config.label_steps, is_hopeless, is_right)]

    def _is_complete(self, c: PrefixCounts) -> bool:
        """Whether a prefix needs no further rollout."""
        if c.is_skipped or c.num_rollouts >= self.config.num_rollouts:
            return True
        if self.config.label_tolerance is None or c.num_rollouts == 0:
            return False
        pair = (c.num_correct, c.num_rollouts)
        if pair not in self._narrow:
            self._narrow[pair] = is_narrow_enough(
                *pair, self.config.eta, self.config.label_tolerance, self.config.interval_level
            )
        return self._narrow[pair]

    def _complete(self, tasks: Sequence[_Task], counts: dict[PrefixKey, PrefixCounts], progress: Progress) -> None:
        """Rolls out the prefixes, in rounds where the rollouts are adaptive, until each is complete."""
        most = self.config.num_rollouts
        while tasks:
            first = min(counts.get(task.key, PrefixCounts()).num_rollouts for task in tasks)
            round_ = [task for task in tasks if counts.get(task.key, PrefixCounts()).num_rollouts == first]
            n = most - first if self.config.label_tolerance is None else self.config.rollouts_per_round
            n = min(n, most - first)
            for chunk in self.chunks(round_):
                completions = self.generate(chunk, n, self.config.rollout_options(), first)
                records = []
                for task, of_prefix in zip(chunk, completions, strict=True):
                    new = PrefixCounts(is_skipped=True) if of_prefix is None else self._count(task, of_prefix)
                    records.append(new.record(task.key, first, self.config.keep_rollouts))
                self.records.append("rollouts", records)
                for task, record in zip(chunk, records, strict=True):
                    of_task = counts.setdefault(task.key, PrefixCounts())
                    of_task.add(record)
                    progress.update(record["num_rollouts"], record["num_tokens"])
                    if self._is_complete(of_task):
                        progress.extend(of_task.num_rollouts - most)
            tasks = [task for task in tasks if not self._is_complete(counts[task.key])]

    def _count(self, task: _Task, completions: list[Completion]) -> PrefixCounts:
        counts = PrefixCounts(num_rollouts=len(completions))
        known: dict[tuple[str, bool], bool | None] = {}  # those of a prefix are often equal, and math-verify is slow
        for completion in completions:
            is_truncated = completion.finish_reason == "length"
            key = completion.text, is_truncated
            if key not in known:
                known[key] = self.verify(task.prefix.completion + completion.text, task.answer, is_truncated)
            is_right = known[key]
            counts.num_correct += bool(is_right)
            counts.num_unparsed += is_right is None
            counts.num_truncated += is_truncated
            counts.num_tokens += completion.num_tokens
            if self.config.keep_rollouts:
                counts.texts.append(completion.text)
        return counts

    # -----------------------------------------------------------------------------------------------------------------
    # Records

    def _read_counts(self, tasks: Mapping[PrefixKey, _Task]) -> dict[PrefixKey, PrefixCounts]:
        """Counts by prefix, from the records of all processes, also of an earlier start with more of them."""
        pieces: dict[PrefixKey, dict[int, dict[str, Any]]] = {}
        for record in self.records.read("rollouts"):
            if record["prefix"] in tasks and (self.config.skip_long_prefixes or not record.get("is_skipped")):
                # Samples are named by prefix and number: those that are recorded twice are the same.
                pieces.setdefault(record["prefix"], {}).setdefault(record["first_sample"], record)
        counts: dict[PrefixKey, PrefixCounts] = {}
        for key, of_prefix in pieces.items():
            total = PrefixCounts()
            while (record := of_prefix.pop(total.num_rollouts, None)) is not None:
                total.add(record)
            counts[key] = total
        return counts

    def seconds(self) -> float:
        """Seconds of sampling and verifying, of all calls: those of the process that took longest."""
        return self.records.seconds(("solutions", "rollouts"))


def _length(prefix: Prefix) -> int:
    of_prompt = prefix.prompt if isinstance(prefix.prompt, str) else str(prefix.prompt)
    return len(of_prompt) + len(prefix.completion)
