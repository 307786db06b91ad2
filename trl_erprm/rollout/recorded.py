"""Sampling that is shared among processes and recorded as it goes, so that nothing is paid for twice.

    candidates-<process>.jsonl    what each process has finished, appended chunk by chunk

Each process appends to a file of its own and reads all of them, so a run that was killed goes on where it stopped,
also with another number of processes. Completion i of a prompt depends on the seed, the prompt and i only (the
engine's contract), so it makes no difference when a run is interrupted, how prompts are grouped into calls, or how
many processes share them.

The labeler's rollouts (`labeling/rollouts.py`) and the evaluation (`evaluation/run.py`) both rest on this.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, Protocol, TypeVar

from tqdm.auto import tqdm

from trl_erprm.manifest import JsonlStore, content_hash

from .engine import Completion, Message, Prefix, PrefixTooLongError, RolloutEngine, SamplingOptions

__all__ = ["Process", "Progress", "RecordedSampler", "SharedRecords", "Task", "read_when"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Process(Protocol):
    """This process among the others: [`~accelerate.PartialState`] is one."""

    process_index: int
    num_processes: int
    is_main_process: bool


class SharedRecords:
    """Records that the processes of a run share: each appends to a file of its own and reads all of them.

    Args:
        directory (`Path`, *optional*):
            Where the files are. Without it nothing is stored.
        process ([`Process`]):
            This process among the others.

    Example:

    ```python
    >>> from tempfile import TemporaryDirectory
    >>> from types import SimpleNamespace
    >>> directory = TemporaryDirectory()
    >>> first, second = (SharedRecords(Path(directory.name), SimpleNamespace(process_index=i)) for i in range(2))
    >>> first.append("scores", [{"key": "a"}])
    >>> second.append("scores", [{"key": "b"}])
    >>> [record["key"] for record in first.read("scores")]
    ['a', 'b']
    >>> directory.cleanup()

    ```
    """

    def __init__(self, directory: Path | None, process: Process):
        self.directory = directory
        self.process = process
        self._seconds = 0.0  # of this call and process
        self._last_append = perf_counter()

    def append(self, kind: str, records: list[dict[str, Any]]) -> None:
        """Appends the records of a chunk. The first one holds what it took: no write of its own that could be lost.

        Raises:
            OSError: if they cannot be written (a full disk). What was written before is whole.
        """
        now = perf_counter()
        records[0]["seconds"] = round(now - self._last_append, 6)
        self._seconds += now - self._last_append
        self._last_append = now
        if self.directory is None:
            return
        path = self.directory / f"{kind}-{self.process.process_index}.jsonl"
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

    def read(self, kind: str) -> Iterator[dict[str, Any]]:
        """The records of all processes, also of an earlier start with more of them."""
        yield from (record for _, record in self._read_with_process(kind))

    def is_own(self, key: str) -> bool:
        """Whether a key, a [`content_hash`], is of this process's part, which does not depend on what is done."""
        return int(key[:16], 16) % self.process.num_processes == self.process.process_index

    def start_clock(self) -> None:
        """What the next records take is counted from now."""
        self._last_append = perf_counter()

    def seconds(self, kinds: Sequence[str]) -> float:
        """Seconds behind the records, of all calls: those of the process that took longest."""
        if self.directory is None:
            return self._seconds
        of_processes: dict[str, float] = {}
        for kind in kinds:
            for process, record in self._read_with_process(kind):
                of_processes[process] = of_processes.get(process, 0.0) + record.get("seconds", 0.0)
        return max(of_processes.values(), default=0.0)

    def _read_with_process(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.directory is not None:
            for path in sorted(self.directory.glob(f"{kind}-*.jsonl")):
                for record in JsonlStore(path):
                    yield path.stem.removeprefix(f"{kind}-"), record


@dataclass(frozen=True)
class Task:
    """A prefix to sample from."""

    key: str
    prefix: Prefix
    row: int  # of the data set, the first one with this prefix


class RecordedSampler:
    """Samples completions of prompts, each once, whatever interrupts it.

    Args:
        engine ([`RolloutEngine`]):
            Where the policy runs.
        directory (`Path`, *optional*):
            Directory of the run. Without it nothing is stored, and there can be one process only.
        process ([`Process`]):
            This process among the others.
        prefixes_per_chunk (`int`, *optional*, defaults to `64`):
            Prefixes that are handed to the engine and recorded together: what a crash loses at most. Results do not
            depend on it. Default: as [`LabelingConfig`].
        skip_long_prefixes (`bool`, *optional*, defaults to `False`):
            Whether a prefix that leaves no room in the context window gets no completion, rather than being an error.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        directory: Path | None,
        process: Process,
        prefixes_per_chunk: int = 64,
        skip_long_prefixes: bool = False,
    ):
        self.engine = engine
        self.process = process
        self.records = SharedRecords(directory, process)
        self.prefixes_per_chunk = prefixes_per_chunk
        self.skip_long_prefixes = skip_long_prefixes

    def sample(
        self,
        prompts: Sequence[str | list[Message]],
        num_samples: int,
        options: SamplingOptions,
        kind: str = "solutions",
    ) -> list[dict[str, Any]]:
        """Samples what is not recorded yet of this process's share, and gives the records of all.

        Args:
            prompts (`Sequence` of `str` or messages):
                What to complete. Equal prompts share their completions.
            num_samples (`int`):
                Completions of each prompt.
            options ([`SamplingOptions`]):
                How they are sampled.
            kind (`str`, *optional*, defaults to `"solutions"`):
                What the files and the progress bar call them.

        Returns:
            `list[dict]`: for each prompt its record, the same in every process: `prompt` (its hash), `texts`,
            `truncated` (which were cut off), `num_tokens` (of all), `num_tokens_each`, and `is_skipped` where it was
            too long.

        Raises:
            PrefixTooLongError: for a prompt that is too long, unless those are skipped, with its row as a note.
            OSError: if a record cannot be written.
        """
        tasks: dict[str, Task] = {}
        keys = [content_hash(prompt) for prompt in prompts]
        for row, (key, prompt) in enumerate(zip(keys, prompts, strict=True)):
            tasks.setdefault(key, Task(key, Prefix(prompt), row))

        def read() -> dict[str, dict[str, Any]]:
            return {
                record["prompt"]: record
                for record in self.records.read(kind)
                if record["prompt"] in tasks and (self.skip_long_prefixes or not record.get("is_skipped"))
            }

        done = read()
        pending = [task for key, task in tasks.items() if key not in done and self.records.is_own(key)]
        self.records.start_clock()
        with Progress(kind.capitalize(), kind[:-1], len(pending) * num_samples, self.process) as progress:
            for chunk in self.chunks(pending):
                completions = self.generate(chunk, num_samples, options)
                records = []
                for task, of_prompt in zip(chunk, completions, strict=True):
                    lengths = [completion.num_tokens for completion in of_prompt or []]
                    texts = [completion.text for completion in of_prompt or []]
                    cut = [completion.finish_reason == "length" for completion in of_prompt or []]
                    record = {"prompt": task.key, "texts": texts, "truncated": cut, "num_tokens": sum(lengths)}
                    records.append(record | {"num_tokens_each": lengths})
                    if of_prompt is None:
                        records[-1]["is_skipped"] = True
                    progress.update(num_samples, sum(lengths))
                self.records.append(kind, records)
                done.update((record["prompt"], record) for record in records)
        if self.process.num_processes > 1:
            done = read_when(lambda found: tasks.keys() <= found.keys(), read)
        return [done[key] for key in keys]

    def generate(
        self, tasks: Sequence[Task], num_samples: int, options: SamplingOptions, first_sample: int = 0
    ) -> list[list[Completion] | None]:
        """Completions of each prefix, None where it is too long and shall be skipped."""
        results: dict[int, list[Completion] | None] = {}
        rest = list(range(len(tasks)))
        while rest:
            prefixes = [tasks[index].prefix for index in rest]
            try:
                completions = self.engine.generate(prefixes, num_samples, options, first_sample=first_sample)
            except ValueError as error:
                if not (isinstance(error, PrefixTooLongError) and self.skip_long_prefixes):
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

    def chunks(self, tasks: Sequence[T]) -> Iterator[Sequence[T]]:
        """The tasks, as many at a time as are recorded together."""
        size = self.prefixes_per_chunk
        return (tasks[start : start + size] for start in range(0, len(tasks), size))


class Progress:
    """A bar with items a second, tokens a second and the time left: of the main process, and only if there is work.

    The total is the most that may come; what adaptive rollouts save is taken off it as they stop.
    """

    def __init__(self, description: str, unit: str, total: int, process: Process):
        self.is_shown = process.is_main_process
        self.description, self.unit = description, unit
        self.num_tokens = 0
        self.started = perf_counter()
        self.bar: tqdm | None = None
        self.extend(total)

    def __enter__(self) -> "Progress":
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

    def update(self, number: int, num_tokens: int = 0) -> None:
        self.num_tokens += num_tokens
        if self.bar is not None:
            if self.num_tokens:
                seconds = max(perf_counter() - self.started, 1e-9)
                self.bar.set_postfix_str(f"{self.num_tokens / seconds:,.0f} tokens/s", refresh=False)
            self.bar.update(number)


def read_when(is_complete: Callable[[T], bool], read: Callable[[], T]) -> T:
    """What all processes have written, once it is complete.

    Not a barrier: one of torch.distributed times out after minutes, and the shares of long runs differ by more. If
    another process dies, the launcher ends this one.
    """
    delay = 0.05
    while not is_complete(found := read()):
        sleep(delay)
        delay = min(2 * delay, 10.0)  # seconds
    return found
