"""Rows from a file, a local directory or the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from .layouts import listed

_BUILDER_OF_SUFFIX = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_COMPRESSION_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")


def load_rows(
    dataset_name: str | None = None,
    dataset_path: str | Path | None = None,
    split: str = "train",
    config: str | None = None,
    cache_dir: str | None = None,
) -> Dataset:
    """Loads one split from a file, a local directory or the Hugging Face Hub.

    Only a name that is neither a local path nor a file format is looked up on the Hub: nothing is downloaded unless
    the user names a dataset there.

    Args:
        dataset_name (`str`, *optional*):
            A file format (`"json"`, `"parquet"`, `"csv"`) for the file at `dataset_path`, a local path, or a dataset
            on the Hub.
        dataset_path (`str` or `Path`, *optional*):
            File (`.json`, `.jsonl`, `.parquet`, `.csv`, also compressed, as `.jsonl.gz`), directory written by
            `save_to_disk`, or directory of data files.
        split (`str`, *optional*, defaults to `"train"`):
            Split, with a slice if wanted (`"train[:20]"`). A file or a saved `Dataset` is one split, whose name is
            ignored.
        config (`str`, *optional*):
            Configuration of a dataset on the Hub (`"main"` for `openai/gsm8k`).
        cache_dir (`str`, *optional*):
            Where `datasets` keeps its Arrow files.

    Returns:
        `Dataset`: the rows, at least one.

    Raises:
        FileNotFoundError: if `dataset_path` does not exist.
        ValueError: if neither a name nor a path is given, if the format of the file is unknown, or if there are no
            rows.
    """
    if dataset_path is None and dataset_name is not None and Path(dataset_name).exists():
        dataset_name, dataset_path = None, dataset_name
    if dataset_path is None:
        if dataset_name is None or dataset_name in _BUILDER_OF_SUFFIX.values():
            raise ValueError(
                f"`dataset_path` must name a file or a directory where `dataset_name` is {dataset_name!r}, got None. "
                "Pass `--dataset_name json --dataset_path rows.jsonl`, or the name of a dataset on the Hub."
            )
        dataset = _load_dataset(dataset_name, config, split=split, cache_dir=cache_dir)
    else:
        dataset = _load_local(Path(dataset_path), dataset_name, split, cache_dir)
    if dataset is None or len(dataset) == 0:
        raise ValueError(f"`{dataset_path or dataset_name}` holds no row in the split {split!r}. Choose another.")
    return dataset


def _load_local(path: Path, dataset_name: str | None, split: str, cache_dir: str | None) -> Dataset | None:
    if not path.exists():
        raise FileNotFoundError(
            f"`dataset_path` must be an existing file or directory, got {str(path)!r}. Check the path, which is "
            f"relative to {Path.cwd()}."
        )
    split_name, _, sliced = split.partition("[")
    if path.is_dir():
        if not (path / "state.json").exists() and not (path / "dataset_dict.json").exists():
            return _load_dataset(str(path), split=split, cache_dir=cache_dir)
        if sliced:
            raise ValueError(
                f"`split` must be without a slice for a directory written by save_to_disk, got {split!r}. Save the "
                "rows that are wanted, or pass a file."
            )
        saved = load_from_disk(str(path))
        if not isinstance(saved, DatasetDict):
            return saved
        if split_name not in saved:
            raise ValueError(f"`split` must be one of {listed(sorted(saved))}, which {path} holds, got {split!r}.")
        return saved[split_name]
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSION_SUFFIXES]
    builder = dataset_name or _BUILDER_OF_SUFFIX.get(suffixes[-1] if suffixes else "")
    if builder not in _BUILDER_OF_SUFFIX.values():
        raise ValueError(
            f"the format of `dataset_path` must be one of {listed(_BUILDER_OF_SUFFIX)} (or compressed, as "
            f".jsonl.gz), got {path.name!r} with `dataset_name` {dataset_name!r}. Name the format: `--dataset_name "
            "json`."
        )
    return _load_dataset(builder, data_files={split_name: str(path)}, split=split, cache_dir=cache_dir)


def _load_dataset(*args: Any, **kwargs: Any) -> Dataset | None:
    """`datasets.load_dataset`, with `None` for no rows, of which it makes various errors."""
    try:
        return load_dataset(*args, **kwargs)
    except StopIteration:
        return None
    except ValueError as error:
        if "corresponds to no data" in str(error):
            return None
        raise
