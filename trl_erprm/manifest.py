"""The identity of a run on disk: which run a directory holds, and what that run has already paid for.

    output_dir/
      manifest.json       kind and config of the run, package versions, start time      [`open_run`]
                          what it came to and cost, once it is finished                 [`finish_run`]
      rollouts-0.jsonl    results, appended batch by batch                              [`JsonlStore`]

A run that was killed is started again with the same command: [`open_run`] finds its own manifest and says so, the
stores give back what was finished, and only the rest is computed. A run with another config is refused, with the
difference named, so that results of two configs never mix.

What is guaranteed, and how: a manifest is there whole or not at all (written beside, then `os.replace`); a record is
there whole or not at all (it counts only with its line end, and the torn rest of a killed write is cut off before
anything is appended). Only the standard library is used here.
"""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "JsonlStore",
    "checkpoint_to_resume",
    "content_hash",
    "finish_run",
    "last_checkpoint",
    "open_run",
    "weight_files_fingerprint",
    "weights_fingerprint",
    "write_atomically",
]

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"

RECORDED_PACKAGES = (
    "trl-erprm", "torch", "transformers", "trl", "accelerate", "datasets", "peft", "vllm", "scipy", "math-verify"
)  # fmt: skip
"""Distributions whose versions a manifest holds: those that can change a result."""

CHECKPOINT_STATE = "trainer_state.json"

WEIGHT_FILES = ("*.safetensors", "*.gguf", "pytorch_model*.bin", "adapter_model.bin", "consolidated*.pth")

_ABSENT = object()


def content_hash(*parts: Any) -> str:
    """A stable name for content: equal parts have equal hashes, in every process, on every machine, in every version.

    The parts are hashed as one JSON list, with sorted keys, so `("ab", "c")` and `("a", "bc")` differ, as do `1` and
    `"1"`; a tuple equals the list with the same items.

    Args:
        *parts:
            Text, or anything else that JSON can hold: numbers, `None`, lists and dictionaries with string keys.

    Returns:
        `str`: SHA-256 in hexadecimal, 64 characters.

    Raises:
        TypeError: if a part is not JSON. Nothing is converted in silence: a set or an object has no stable text.

    Example:

    ```python
    >>> content_hash("4*3=", 7) == content_hash("4*3=", 7)
    True
    >>> content_hash("ab", "c") == content_hash("a", "bc")
    False

    ```
    """
    try:
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    except TypeError as error:
        raise TypeError(
            f"The parts of `content_hash` must be text, numbers, None, lists or dictionaries with text keys: {error}. "
            "Convert the part to one of these."
        ) from None
    # "surrogatepass": text with half a surrogate pair cannot be written as UTF-8 but still has to have a name.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def weights_fingerprint(model: Any, most: int = 4096) -> str:
    """A short name for the weights of a model, so that a run notices when a model was replaced at the same path.

    Of each parameter at most `most` elements are read, evenly spread: enough for any training to show, and few enough
    to name a model of billions of parameters in a moment.

    Args:
        model (`torch.nn.Module`):
            The model, whole (not split over processes).
        most (`int`, *optional*, defaults to `4096`):
            Elements to read of each parameter.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        sample = parameter.detach().flatten()[:: max(1, parameter.numel() // most)]
        digest.update(sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def weight_files_fingerprint(directory: str | os.PathLike, most: int = 1 << 20) -> str | None:
    """A short name for the weights of a checkpoint that is not loaded here, from its files.

    Of each file at most `most` bytes are read, in blocks evenly spread over it. Neither the directory's name nor the
    times of the files count, so that a copy has the same name.

    Args:
        directory (`str` or `os.PathLike`):
            A local checkpoint.
        most (`int`, *optional*, defaults to `1 << 20`):
            Bytes to read of each file.

    Returns:
        `str` or `None`: 16 hexadecimal digits; None if the directory holds no weights (or is none).
    """
    paths = sorted(path for pattern in WEIGHT_FILES for path in Path(directory).glob(pattern))
    if not paths:
        return None
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        block = 4096
        stride = max(block, size // max(1, most // block))
        with open(path, "rb") as file:
            for start in range(0, size, stride):
                file.seek(start)
                digest.update(file.read(block))
    return digest.hexdigest()[:16]


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes a text file that is seen either as it was or as it is now, never half written.

    The text goes to a hidden file in the same directory, is synced to disk and then renamed.

    Args:
        path (`str` or `os.PathLike`):
            File to create or to replace. Its directory has to exist.
        text (`str`):
            New content, written as UTF-8.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def open_run(output_dir: str | os.PathLike, config: Mapping[str, Any], kind: str) -> bool:
    """Claims a directory for a run, or finds that it already belongs to this run.

    One process claims the directory, before anything else writes to it. Others may call this once it is claimed.

    Args:
        output_dir (`str` or `os.PathLike`):
            Directory of the run. Created, parents included, if it is missing.
        config (`Mapping[str, Any]`):
            Everything that changes the results, and nothing that does not (a batch size, a number of processes): a
            run is continued only where this is equal. Plain JSON values.
        kind (`str`):
            What the run does, for example `"label"`. A directory is never shared between two kinds.

    Returns:
        `bool`: `True` if the directory holds this run already (continue), `False` if it was empty or missing and is
        now claimed (start).

    Raises:
        ValueError: if the directory holds a run of another kind or config (the differing keys are listed with both
            values), if it holds files but no manifest, if its manifest cannot be read, or if the path is a file.

    Example:

    ```python
    >>> import tempfile
    >>> directory = tempfile.TemporaryDirectory()
    >>> open_run(directory.name, {"num_rollouts": 16}, kind="label")
    False
    >>> open_run(directory.name, {"num_rollouts": 16}, kind="label")
    True
    >>> open_run(directory.name, {"num_rollouts": 8}, kind="label")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: `output_dir` ... holds another run: `num_rollouts` is 16 there and 8 now. ...
    >>> directory.cleanup()

    ```
    """
    directory = Path(output_dir)
    try:
        config = json.loads(json.dumps(dict(config)))  # as it will be read back: tuples become lists
    except (TypeError, ValueError) as error:
        raise TypeError(f"`config` must hold plain JSON values: {error}. Convert them, or leave them out.") from None
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"`output_dir` must be a directory, got the file {str(directory)!r}. Pass another path.")

    manifest_path = directory / MANIFEST_NAME
    if manifest_path.exists():
        _check_same_run(directory, _read_manifest(manifest_path), {"kind": kind, "config": config})
        return True

    names = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
    # A kill inside `write_atomically` leaves its temporary file, which is no result.
    others = [name for name in names if name != f".{MANIFEST_NAME}.tmp"]
    if others:
        named = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise ValueError(
            f"`output_dir` must be empty, missing or the directory of an earlier run, got {str(directory)!r}, which "
            f"holds other files ({named}) and no {MANIFEST_NAME}. Pass another `output_dir`."
        )
    directory.mkdir(parents=True, exist_ok=True)
    manifest = {
        "kind": kind,
        "config": config,
        "versions": _package_versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(manifest_path, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return False


def finish_run(output_dir: str | os.PathLike, **found: Any) -> None:
    """Notes in the manifest when the run was last finished, and what it came to: no part of its identity.

    Args:
        output_dir (`str` or `os.PathLike`):
            Directory of the run.
        **found:
            Plain JSON values by name, for example counts and seconds. They replace those of the same name.
    """
    path = Path(output_dir) / MANIFEST_NAME
    manifest = {**_read_manifest(path), "finished": datetime.now(UTC).isoformat(timespec="seconds"), **found}
    write_atomically(path, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def last_checkpoint(directory: str | os.PathLike) -> str | None:
    """The last checkpoint of a trainer that was written whole; `None` if there is none.

    Args:
        directory (`str` or `os.PathLike`):
            Where a trainer of transformers writes `checkpoint-10` and so on. It writes the state of a checkpoint last.
    """
    found = _whole_checkpoints(Path(directory))
    return str(found[-1]) if found else None


def checkpoint_to_resume(output_dir: str | os.PathLike, given: str | None = None) -> str | None:
    """The checkpoint at which a trainer goes on.

    Args:
        output_dir (`str` or `os.PathLike`):
            Directory of the run.
        given (`str`, *optional*):
            The checkpoint that the user names (`resume_from_checkpoint`).

    Returns:
        `str` or `None`: `given`, else [`last_checkpoint`] of `output_dir`.

    Raises:
        ValueError: if `given` is no checkpoint, or was not written whole; those that `output_dir` holds are named.

    Example:

    ```python
    >>> checkpoint_to_resume("outputs/none") is None
    True
    >>> checkpoint_to_resume("outputs/none", given="outputs/none/checkpoint-10")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: `resume_from_checkpoint` must be a whole checkpoint of a trainer, got 'outputs/none/checkpoint-10', ...

    ```
    """
    if given is None:
        return last_checkpoint(output_dir)
    if (Path(given) / CHECKPOINT_STATE).is_file():
        return given
    why = f"which has no {CHECKPOINT_STATE}" if Path(given).is_dir() else "which is no directory"
    found = ", ".join(path.name for path in _whole_checkpoints(Path(output_dir)))
    raise ValueError(
        f"`resume_from_checkpoint` must be a whole checkpoint of a trainer, got {given!r}, {why}. "
        f"{str(output_dir)!r} holds {found or 'none'}. Name one, or leave the option out: a run goes on at its last."
    )


def _whole_checkpoints(directory: Path) -> list[Path]:
    """By step, the last one last."""
    paths = (state.parent for state in directory.glob(f"checkpoint-*/{CHECKPOINT_STATE}"))
    numbered = [path for path in paths if path.name.rpartition("-")[2].isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.rpartition("-")[2]))


class JsonlStore:
    """An append-only file of JSON objects, one a line, that survives being killed at any moment.

    A record counts once its line end is written. What follows the last line end is the rest of an interrupted write:
    [`read`][JsonlStore.read] leaves it out, and the next [`append`][JsonlStore.append] cuts it off first, so that
    nothing is ever glued to it. Damage anywhere else is an error, not something to skip.

    One process writes to a file; others may read it meanwhile.

    Args:
        path (`str` or `os.PathLike`):
            The file. Created by the first append; its directory has to exist.

    Example:

    ```python
    >>> import tempfile
    >>> directory = tempfile.TemporaryDirectory()
    >>> store = JsonlStore(f"{directory.name}/rollouts-0.jsonl")
    >>> store.read()
    []
    >>> store.append([{"prefix": "a", "num_correct": 3}, {"prefix": "b", "num_correct": 0}])
    >>> len(store.read())
    2
    >>> directory.cleanup()

    ```
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends a batch of records with one write and one sync to disk.

        If the write fails (a full disk), the file is cut back to what it was before the error is raised.

        Args:
            records (`Iterable[Mapping[str, Any]]`):
                Objects with plain JSON values. An empty batch changes nothing.

        Raises:
            TypeError: if a record is not a JSON object. Nothing of the batch is written then.
        """
        lines = []
        for record in records:
            if not isinstance(record, Mapping):
                raise TypeError(f"A record must be a dictionary, got {record!r}. Wrap the value in one.")
            # ASCII: no text, not even half a surrogate pair, can then fail to be written or read.
            lines.append(json.dumps(dict(record), separators=(",", ":")) + "\n")
        if not lines:
            return
        is_new = not self.path.exists()
        # Unbuffered: after a failed write nothing may be left in a buffer that closing the file would write again.
        with open(self.path, "a+b", buffering=0) as file:
            end = self._end_of_records(file)
            file.truncate(end)
            try:
                rest = memoryview("".join(lines).encode("ascii"))
                while rest:  # a raw write may take only a part
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
        if is_new:
            _sync_directory(self.path.parent)

    def read(self) -> list[dict[str, Any]]:
        """All complete records, in the order of writing; `[]` where there is no file yet.

        Raises:
            ValueError: if a complete line is not a JSON object, with the number of that line.
        """
        return list(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterates over the complete records without holding all of them in memory."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    logger.info("%s ends in a torn line (number %d), which is left out.", self.path, number)
                    return
                try:
                    record = json.loads(line)
                except ValueError:  # UnicodeDecodeError is one, too
                    record = None
                if not isinstance(record, dict):
                    raise ValueError(
                        f"Line {number} of {str(self.path)!r} must be a JSON object, got {line[:80]!r}. The file was "
                        "damaged by something else than an interrupted write: restore it, or delete the line and what "
                        "it held is computed again."
                    )
                yield record

    @staticmethod
    def _end_of_records(file: Any) -> int:
        """Position after the last line end, 0 if there is none."""
        position = file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - 65_536)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            position = start
        return 0


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config"), dict) or "kind" not in manifest:
        raise ValueError(
            f"{str(path)!r} must be a manifest with `kind` and `config`, which it is not. Pass another `output_dir`, "
            "or delete this one to start over."
        )
    return manifest


def _check_same_run(directory: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found["kind"] != wanted["kind"]:
        raise ValueError(
            f"`output_dir` {str(directory)!r} holds a run of kind {found['kind']!r}, not {wanted['kind']!r}. Pass "
            "another `output_dir`."
        )
    there, now = _flatten(found["config"]), _flatten(wanted["config"])
    differences = [
        f"`{key}` is {_shown(there.get(key, _ABSENT))} there and {_shown(now.get(key, _ABSENT))} now"
        for key in sorted(there.keys() | now.keys())
        # Compared as text: NaN equals NaN, and 1 differs from True.
        if _shown(there.get(key, _ABSENT)) != _shown(now.get(key, _ABSENT))
    ]
    if differences:
        raise ValueError(
            f"`output_dir` {str(directory)!r} holds another run: {'; '.join(differences)}. Pass another `output_dir`, "
            "restore the old values to continue that run, or delete the directory to start over."
        )
    versions = _package_versions()
    changed = [
        f"{name} {version} -> {versions.get(name)}"
        for name, version in found.get("versions", {}).items()
        if versions.get(name) != version
    ]
    if changed:
        logger.warning(
            "The run in %s continues with other package versions (%s): results may differ slightly from those of an "
            "uninterrupted run.",
            directory,
            ", ".join(changed),
        )


def _flatten(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, so that a message names the one value that differs."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{above}{key}."))
        else:
            flat[f"{above}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)


def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _sync_directory(directory: Path) -> None:
    """Makes a new name in a directory survive a power cut. Windows cannot open a directory, and needs no sync."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
