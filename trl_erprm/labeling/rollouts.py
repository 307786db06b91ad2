"""Rolls out prefixes and samples solutions: in rounds, shared among processes, recorded so that nothing is paid twice.

A record of `rollouts-<process>.jsonl` holds the counts of samples `first_sample` to `first_sample + num_rollouts - 1`
of one prefix:

    {"prefix": <hash>, "first_sample": 4, "num_rollouts": 4, "num_correct": 3, "num_unparsed": 0, ...}

and the first of those that are recorded together the `seconds` that they took.

Sample i of a prefix depends on the seed, the prefix and i only (the engine's contract), and whether a prefix needs
another round depends on its own counts only. So it makes no difference when a run is interrupted, how prefixes are
grouped into calls, or how many processes share them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from trl_erprm.manifest import JsonlStore, content_hash
from trl_erprm.rollout.engine import Completion, Prefix, PrefixTooLongError, RolloutEngine, SamplingOptions

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
    num_unparsed: int = 0
    num_truncated: int = 0
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
class _Task:
    key: PrefixKey
    prefix: Prefix
    answer: str
    row: int  # of the data set, the first one with this prefix


class PrefixRoller:
    """Samples on behalf of [`~labeling.monte_carlo.MonteCarloLabeler`].

    Args:
        engine (`RolloutEngine`):
            Where the reference policy runs.
        config (`LabelingConfig`):
            Settings.
        verify (`Callable[[str, str], bool | None]`):
            Gives whether a whole answer is right, or None if it cannot be read.
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
        self.engine = engine
        self.config = config
        self.verify = verify
        self.output_dir = output_dir
        self.state = state
        self._narrow: dict[tuple[int, int], bool] = {}
        self._seconds = 0.0  # of this call and process
        self._last_stored = perf_counter()

    # -----------------------------------------------------------------------------------------------------------------
    # Solutions

    def sample_solutions(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Sampled solutions by the hash of the prompt. Equal prompts share theirs."""
        tasks: dict[str, _Task] = {}
        for index, row in enumerate(rows):
            key = content_hash(row["prompt"])
            tasks.setdefault(key, _Task(key, Prefix(row["prompt"]), row["answer"], index))

        def read() -> dict[str, dict[str, Any]]:
            return {
                record["prompt"]: record
                for record in _read_all(self.output_dir, "solutions")
                if record["prompt"] in tasks and (self.config.skip_long_prefixes or not record.get("is_skipped"))
            }

        done = read()
        pending = [task for key, task in tasks.items() if key not in done and self._is_own(key)]
        n = self.config.solutions_per_prompt
        with _Progress("Solutions", "solution", len(pending) * n, self.state) as progress:
            for chunk in self._chunks(pending):
                completions = self._generate(chunk, n, self.config.solution_options())
                records = []
                for task, of_prompt in zip(chunk, completions, strict=True):
                    num_tokens = sum(completion.num_tokens for completion in of_prompt or [])
                    texts = [completion.text for completion in of_prompt or []]
                    records.append({"prompt": task.key, "texts": texts, "num_tokens": num_tokens})
                    if of_prompt is None:
                        records[-1]["is_skipped"] = True
                    progress.update(n, num_tokens)
                self._store("solutions", records)
                done.update((record["prompt"], record) for record in records)
        if self.state.num_processes > 1:
            done = _read_when(lambda found: tasks.keys() <= found.keys(), read)
        return {key: done[key] for key in tasks}

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
                tasks.setdefault(key, _Task(key, Prefix(row["prompt"], text), row["answer"], solution.row))

        counts = self._read_counts(tasks)
        num_before = sum(c.num_rollouts for c in counts.values())
        self.state.wait_for_everyone()  # nobody appends before all have read: what is new is told from what was there
        self._last_stored = perf_counter()
        num_done = sum(map(self._is_complete, counts.values()))
        if num_done and self.state.is_main_process:
            logger.info("%d of %d prefixes are rolled out already.", num_done, len(tasks))

        # A search asks for one prefix after another, so the prefixes of a problem stay in one process then.
        if self.config.label_steps == "all":
            own = [index for index in range(len(solutions)) if any(map(self._is_own, keys[index]))]
        else:
            shares = [content_hash(rows[s.row]["prompt"], rows[s.row]["answer"]) for s in solutions]
            own = [index for index, key in enumerate(shares) if self._is_own(key)]

        def pending() -> list[_Task]:
            found = {key for i in own for key in self._next(keys[i], counts, is_right[i])}
            if self.config.label_steps == "all":
                found = set(filter(self._is_own, found))
            # Long ones first, so that a chunk holds prefixes of like length and the time left is not underestimated.
            in_order = [task for key, task in tasks.items() if key in found]
            return sorted(in_order, key=lambda task: -_length(task.prefix))

        with _Progress("Rollouts", "rollout", 0, self.state) as progress:
            while todo := pending():
                progress.extend(
                    sum(self.config.num_rollouts - counts.get(t.key, PrefixCounts()).num_rollouts for t in todo)
                )
                self._complete(todo, counts, progress)
        if self.state.num_processes > 1:
            counts = _read_when(
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

    def _complete(self, tasks: Sequence[_Task], counts: dict[PrefixKey, PrefixCounts], progress: "_Progress") -> None:
        """Rolls out the prefixes, in rounds where the rollouts are adaptive, until each is complete."""
        most = self.config.num_rollouts
        while tasks:
            first = min(counts.get(task.key, PrefixCounts()).num_rollouts for task in tasks)
            round_ = [task for task in tasks if counts.get(task.key, PrefixCounts()).num_rollouts == first]
            n = most - first if self.config.label_tolerance is None else self.config.rollouts_per_round
            n = min(n, most - first)
            for chunk in self._chunks(round_):
                completions = self._generate(chunk, n, self.config.rollout_options(), first)
                records = []
                for task, of_prefix in zip(chunk, completions, strict=True):
                    new = PrefixCounts(is_skipped=True) if of_prefix is None else self._count(task, of_prefix)
                    records.append(new.record(task.key, first, self.config.keep_rollouts))
                self._store("rollouts", records)
                for task, record in zip(chunk, records, strict=True):
                    of_task = counts.setdefault(task.key, PrefixCounts())
                    of_task.add(record)
                    progress.update(record["num_rollouts"], record["num_tokens"])
                    if self._is_complete(of_task):
                        progress.extend(of_task.num_rollouts - most)
            tasks = [task for task in tasks if not self._is_complete(counts[task.key])]

    def _count(self, task: _Task, completions: list[Completion]) -> PrefixCounts:
        counts = PrefixCounts(num_rollouts=len(completions))
        known: dict[str, bool | None] = {}  # rollouts of one prefix are often equal, and math-verify is slow
        for completion in completions:
            if completion.text not in known:
                known[completion.text] = self.verify(task.prefix.completion + completion.text, task.answer)
            is_right = known[completion.text]
            counts.num_correct += bool(is_right)
            counts.num_unparsed += is_right is None
            counts.num_truncated += completion.finish_reason == "length"
            counts.num_tokens += completion.num_tokens
            if self.config.keep_rollouts:
                counts.texts.append(completion.text)
        return counts

    def _generate(
        self, tasks: Sequence[_Task], num_samples: int, options: SamplingOptions, first_sample: int = 0
    ) -> list[list[Completion] | None]:
        """Completions of each prefix, None where it is too long and shall be skipped."""
        results: dict[int, list[Completion] | None] = {}
        rest = list(range(len(tasks)))
        while rest:
            prefixes = [tasks[index].prefix for index in rest]
            try:
                completions = self.engine.generate(prefixes, num_samples, options, first_sample=first_sample)
            except ValueError as error:
                if not (isinstance(error, PrefixTooLongError) and self.config.skip_long_prefixes):
                    error.add_note(
                        f"These prefixes, in order, come from the rows {[tasks[index].row for index in rest]}."
                    )
                    raise
                too_long = [rest[number] for number in error.indices]
                logger.info("Prefixes of rows %s are skipped: %s", [tasks[index].row for index in too_long], error)
                results.update(dict.fromkeys(too_long))
                rest = [index for index in rest if index not in results]
            else:
                results.update(zip(rest, completions, strict=True))
                break
        return [results[index] for index in range(len(tasks))]

    # -----------------------------------------------------------------------------------------------------------------
    # Records

    def _read_counts(self, tasks: Mapping[PrefixKey, _Task]) -> dict[PrefixKey, PrefixCounts]:
        """Counts by prefix, from the records of all processes, also of an earlier start with more of them."""
        pieces: dict[PrefixKey, dict[int, dict[str, Any]]] = {}
        for record in _read_all(self.output_dir, "rollouts"):
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
        if self.output_dir is None:
            return self._seconds
        of_processes: dict[str, float] = {}
        for kind in ("solutions", "rollouts"):
            for process, record in _read_with_process(self.output_dir, kind):
                of_processes[process] = of_processes.get(process, 0.0) + record.get("seconds", 0.0)
        return max(of_processes.values(), default=0.0)

    def _store(self, kind: str, records: list[dict[str, Any]]) -> None:
        """Appends the records of a chunk. The first one holds what it took: no write of its own that could be lost."""
        now = perf_counter()
        records[0]["seconds"] = round(now - self._last_stored, 6)
        self._seconds += now - self._last_stored
        self._last_stored = now
        if self.output_dir is None:
            return
        path = self.output_dir / f"{kind}-{self.state.process_index}.jsonl"
        try:
            JsonlStore(path).append(records)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{len(records)} new records could not be written ({error.strerror or error}). What was written "
                "before is whole. Free space or correct the permissions, and start the same command again: it "
                "continues, and samples only these anew",
                str(path),
            ) from error

    def _is_own(self, key: str) -> bool:
        """The part of this process: by the hash of the content, so that it does not depend on what is done already."""
        return int(key[:16], 16) % self.state.num_processes == self.state.process_index

    def _chunks(self, tasks: Sequence[_Task]) -> Iterator[Sequence[_Task]]:
        size = self.config.prefixes_per_chunk
        return (tasks[start : start + size] for start in range(0, len(tasks), size))


class _Progress:
    """A bar with items a second, tokens a second and the time left: of the main process, and only if there is work.

    The total is the most that may come; what adaptive rollouts save is taken off it as they stop.
    """

    def __init__(self, description: str, unit: str, total: int, state: PartialState):
        self.is_shown = state.is_main_process
        self.description, self.unit = description, unit
        self.num_tokens = 0
        self.started = perf_counter()
        self.bar: tqdm | None = None
        self.extend(total)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def extend(self, number: int) -> None:
        if not self.is_shown or not number:
            return
        if self.bar is None:
            self.bar = tqdm(total=0, desc=self.description, unit=self.unit)
        self.bar.total += number

    def update(self, number: int, num_tokens: int) -> None:
        self.num_tokens += num_tokens
        if self.bar is not None:
            seconds = max(perf_counter() - self.started, 1e-9)
            self.bar.set_postfix_str(f"{self.num_tokens / seconds:,.0f} tokens/s", refresh=False)
            self.bar.update(number)


def _length(prefix: Prefix) -> int:
    of_prompt = prefix.prompt if isinstance(prefix.prompt, str) else str(prefix.prompt)
    return len(of_prompt) + len(prefix.completion)


def _read_all(output_dir: Path | None, kind: str) -> Iterator[dict[str, Any]]:
    """The records of all processes, also of an earlier start with more of them."""
    if output_dir is not None:
        yield from (record for _, record in _read_with_process(output_dir, kind))


def _read_with_process(output_dir: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records, and the number of the process that wrote each."""
    for path in sorted(output_dir.glob(f"{kind}-*.jsonl")):
        for record in JsonlStore(path):
            yield path.stem.removeprefix(f"{kind}-"), record


def _read_when(is_complete: Callable[[Any], bool], read: Callable[[], Any]) -> Any:
    """What all processes have written, once it is complete.

    Not a barrier: one of torch.distributed times out after minutes, and the shares of long runs differ by more. If
    another process dies, the launcher ends this one.
    """
    delay = 0.05
    while not is_complete(found := read()):
        sleep(delay)
        delay = min(2 * delay, 10.0)  # seconds
    return found
