"""Proves on real rows, before any run, that a format, a tokenizer and a dataset fit together.

    python -m trl_erprm.prm.doctor --model Qwen/Qwen2.5-Math-7B --dataset rows.jsonl --format trl --max_length 1024

It needs only the model's tokenizer and config, never its weights. It prints every check with its result, what is wrong
with which rows, and some rows token by token with their labels.

The format is `--format`, else that of the checkpoint's prm_format.json, else that of a known public model, else the
default of `--head`, with the same overrides as in training. The rows are of any layout that `recipes/prm.py` reads.

Exit code: 0 if no error was found (with --strict: no warning either), 1 if one was, 2 if there was nothing to look at:
a wrong argument, no such file, no such model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from transformers import AutoConfig

from ..arguments import load_tokenizer
from ..data import STEPWISE_LAYOUTS, load_rows, to_stepwise_rows, validate_stepwise_rows
from ..parsing import StrictParser
from ..wording import counted
from .collator import StepDataCollator
from .config import ERPRMConfig
from .dataset import encode_rows, label_rows
from .formats import (
    FORMAT_OVERRIDES,
    HEADS,
    EncodedSolution,
    PRMFormat,
    format_of_checkpoint,
    load_format,
    read_saved_format,
)

MOST_ROWS_NAMED = 10
MOST_ROWS_WITH_PREFIXES = 500  # every prefix of a row is tokenized, which takes longer than all else together
OUR_FAULT = "This is a fault of trl-erprm, not of the row: please report it."
REFUSALS = (TypeError, ValueError, TemplateError)  # what formats, readers and chat templates raise for bad rows


@dataclass(frozen=True)
class Finding:
    """What is not as it should be: `severity` is `"error"` or `"warning"`, `row` a row's number where it is one's."""

    severity: str
    message: str
    row: int | None = None


@dataclass
class Check:
    """One check: its name, what it looked at (`detail`) and what it found."""

    name: str
    detail: str = ""
    findings: list[Finding] = field(default_factory=list)

    def error(self, message: str, row: int | None = None) -> None:
        self.findings.append(Finding("error", message, row))

    def warn(self, message: str, row: int | None = None) -> None:
        self.findings.append(Finding("warning", message, row))


@dataclass
class CheckedRow:
    """A row, and what scoring and training make of it."""

    number: int
    prompt: Any
    steps: list[str]
    labels: list[float | None]
    scored: EncodedSolution  # all steps
    trained: dict[str, Any]  # as the trainer's dataset holds it, cut at `max_length`
    batch: dict[str, Any]  # of this row alone


@dataclass
class Diagnosis:
    """The checks in order, and the rows that could be encoded."""

    checks: list[Check]
    rows: list[CheckedRow]

    @property
    def counts(self) -> dict[str, int]:
        """What training gets: rows, steps and labels, after the cut at `max_length`."""
        labels = [label for row in self.rows for label in row.trained["step_labels"]]
        num_rows = sum(not np.isnan(row.trained["step_labels"]).all() for row in self.rows)
        return {"rows": num_rows, "steps": len(labels), "labels": int((~np.isnan(labels)).sum())}

    def findings(self, severity: str) -> list[Finding]:
        return [finding for check in self.checks for finding in check.findings if finding.severity == severity]


def diagnose(
    format: PRMFormat, tokenizer, rows, max_length: int | None = None, config=None, row_numbers=None
) -> Diagnosis:
    """Runs all checks on stepwise rows (`prompt`, `completions`, `labels`). What is wrong is a finding, never an
    exception. `max_length` is that of training; `config`, the model's, shows whether its head, vocabulary and context
    fit. Findings name rows by `row_numbers`, by default 0, 1, ..."""
    steps_check = Check("steps = step ends = labels")
    numbered = zip(range(len(rows)) if row_numbers is None else row_numbers, rows, strict=True)
    checked = _encode(format, tokenizer, numbered, max_length, steps_check)
    checks = [
        check_tokenizer(format, tokenizer),
        check_steps(checked, steps_check),
        check_tokens_read(format, tokenizer, checked),
        check_neighbours(format, tokenizer, checked),
        check_truncation(checked, max_length),
        check_ids(tokenizer, checked),
        check_labels(checked),
        check_tags_in_steps(format, checked),
    ]
    return Diagnosis(checks if config is None else [*checks, check_config(format, config, checked)], checked)


def _training_ids(format, tokenizer, rows: Sequence[Mapping], max_length: int | None) -> list[dict[str, Any]]:
    """Rows as [`ERPRMTrainer`]'s dataset holds them."""
    columns = {name: [row[name] for row in rows] for name in STEPWISE_LAYOUTS["TRL stepwise"]}
    encoded = encode_rows(columns, format, tokenizer, max_length, name_row=lambda i: "")
    return [{name: values[i] for name, values in encoded.items()} for i in range(len(rows))]


def _scoring_ids(format, tokenizer, rows: Sequence[Mapping]) -> list[EncodedSolution]:
    """Rows as [`ProcessRewardModel.score`] runs them through the model."""
    prompts, solutions = [row["prompt"] for row in rows], [row["completions"] for row in rows]
    return format.encode_batch(tokenizer, prompts, solutions, name_solution=lambda i: "")


def _each(encode: Callable[[list], list], items: list, batch_size: int = 64) -> Iterator[Any]:
    """What `encode` makes of each item, and of one that it refuses its `ValueError`: no item hides another."""
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        try:
            yield from encode(batch)
        except REFUSALS as error:
            yield from [ValueError(str(error))] if len(batch) == 1 else _each(encode, batch, 1)


def _encode(format, tokenizer, numbered, max_length, check: Check) -> list[CheckedRow]:
    """The rows that can be encoded; what is wrong with the others goes to `check`."""
    valid, checked = [], []
    for number, row in numbered:
        try:
            validate_stepwise_rows(row)
            valid.append((number, row))
        except ValueError as error:
            check.error(str(error), number)
    rows = [row for _, row in valid]
    scored = _each(lambda batch: _scoring_ids(format, tokenizer, batch), rows)
    trained = _each(lambda batch: _training_ids(format, tokenizer, batch, max_length), rows)
    collator = StepDataCollator(pad_token_id=0)
    for (number, row), whole, one in zip(valid, scored, trained, strict=True):
        if isinstance(whole, ValueError) or isinstance(one, ValueError):
            check.error(str(whole if isinstance(whole, ValueError) else one), number)
            continue
        num_steps, ends, kept = len(row["completions"]), whole.step_ends, one["step_ends"]
        num_kept, num_labels = num_steps - one["num_dropped_steps"], len(one["step_labels"])
        if len(ends) != num_steps or ends != sorted(set(ends)) or not num_kept == len(kept) == num_labels:
            what = (
                f"{num_steps} steps have {len(set(ends))} step ends, the {num_kept} of training {len(kept)} step ends"
            )
            check.error(f"{what} and {num_labels} labels. {OUR_FAULT}", number)
            continue
        labels = [None if label is None or math.isnan(label) else float(label) for label in row["labels"]]
        checked.append(CheckedRow(number, row["prompt"], row["completions"], labels, whole, one, collator([one])))
    return checked


def check_tokenizer(format: PRMFormat, tokenizer) -> Check:
    """Tag and label tokens are known, and the tag stands apart between typical steps."""
    check = Check("tokenizer carries the format", "layout of chat turns, without a tag")
    if format.layout != "turns":
        ids = tokenizer(format.step_tag, add_special_tokens=False)["input_ids"]
        check.detail = f"the tag {format.step_tag!r} is {ids}"
    try:
        format.check_tokenizer(tokenizer)
        format.encode(tokenizer, "1 + 1?", ["1 + 1 = 2."])  # is there a chat template, if one is needed?
        if format.head == "causal_lm":
            positive, negative = format.label_token_ids(tokenizer)
            check.detail += f", {format.positive_token!r} is {positive}, {format.negative_token!r} is {negative}"
    except REFUSALS as error:
        check.error(str(error))
    return check


def check_steps(rows: Sequence[CheckedRow], check: Check) -> Check:
    """Each step has a step end of its own, and in the batch its label at it. `check` has what `_encode` found."""
    for row in rows:
        labelled = zip(row.trained["step_ends"], row.labels, strict=False)
        expected = [end for end, label in labelled if label is not None]
        marks = np.flatnonzero(row.batch["is_step_end"][0].numpy()).tolist()
        if marks != expected:
            check.error(f"the batch has labels at the tokens {marks}, not at {expected}. {OUR_FAULT}", row.number)
    num_steps, num_ends = sum(len(row.steps) for row in rows), sum(len(row.scored.step_ends) for row in rows)
    num_labels = sum(label is not None for row in rows for label in row.labels)
    check.detail = f"{num_steps:,} steps, {num_ends:,} step ends, {num_labels:,} labels in {len(rows):,} rows"
    return check


def check_tokens_read(format: PRMFormat, tokenizer, rows: Sequence[CheckedRow]) -> Check:
    """The token at each step end is the last of the tag; in turns, the token behind it is the label token."""
    in_turns = format.layout == "turns"
    check, seen = Check("label follows the token read" if in_turns else "token read ends the tag"), Counter()
    label = tokenizer(format.positive_token, add_special_tokens=False)["input_ids"][-1:] if in_turns else []
    for row in rows:
        ids = row.scored.input_ids
        if in_turns:  # the ids end where the last step is read; the label token behind it is only in the text
            ids = tokenizer(format.render(row.prompt, row.steps, tokenizer), add_special_tokens=False)["input_ids"]
        for k, end in enumerate(row.scored.step_ends):
            token = ids[end + 1 : end + 2] if in_turns else ids[end : end + 1]
            text = f"{_decode(tokenizer, token)!r} {token}"
            seen[text] += 1
            if not (token == label if in_turns else _ends_tag(tokenizer, ids[: end + 1], format.step_tag)):
                wanted = format.positive_token if in_turns else f"the end of {format.step_tag!r}"
                check.error(
                    f"{'behind' if in_turns else 'at the end of'} step {k} is {text}, not {wanted}", row.number
                )
                break
    check.detail = ", ".join(f"{text} at {count:,} steps" for text, count in seen.most_common(5))
    return check


def _ends_tag(tokenizer, ids: list[int], tag: str) -> bool:
    """Whether the ids end with the tag, and the last of them with nothing before it. White space counts only where the
    tag is nothing else: decoders write it in their own ways."""
    text, last = _decode(tokenizer, ids[-16:]), _decode(tokenizer, ids[-1:])
    if tag.strip():
        text, last, tag = ("".join(part.split()) for part in (text, last, tag))
    return text.endswith(tag) and (tag.endswith(last) or "\ufffd" in last)  # "\ufffd": some bytes of a character


def check_neighbours(format: PRMFormat, tokenizer, rows: Sequence[CheckedRow]) -> Check:
    """In pieces no tag can merge: in how many rows would it have, in one text? Jointly, do prefixes keep their ids?"""
    check = Check("tag survives its neighbours", "by construction, tokenized in pieces")
    joint = dataclasses.replace(format, tokenization="joint")

    def encode(batch):
        return joint.encode_batch(tokenizer, [prompt for prompt, _ in batch], [steps for _, steps in batch])

    if format.tokenization == "pieces":
        if tokenizer.is_fast:
            results = zip(rows, _each(encode, [(row.prompt, row.steps) for row in rows]), strict=True)
            lost = [row.number for row, result in results if isinstance(result, ValueError)]
            check.detail += f"; as one text, tags would merge away in {len(lost):,} of {len(rows):,} rows"
            check.detail += f" (first: row {lost[0]})" if lost else ""
        return check
    for row in rows[:MOST_ROWS_WITH_PREFIXES]:
        prefixes = _each(encode, [(row.prompt, row.steps[:k]) for k in range(1, len(row.steps))])
        for k, prefix in enumerate(prefixes, 1):
            if isinstance(prefix, ValueError) or prefix.input_ids != row.scored.input_ids[: len(prefix.input_ids)]:
                advice = "Choose another `step_joiner`, or `tokenization='pieces'`."
                check.warn(f"appending step {k} changes ids before it, and so scores a little. {advice}", row.number)
                break
    num_rows = min(len(rows), MOST_ROWS_WITH_PREFIXES)
    check.detail = f"no tag merges, tokenized as one text; prefixes change in {len(check.findings)} of {num_rows} rows"
    return check


def check_truncation(rows: Sequence[CheckedRow], max_length: int | None) -> Check:
    """What `max_length` removes."""
    check, lengths = Check("truncation"), [len(row.scored.input_ids) for row in rows]
    if rows:
        median, most, longest = (int(n) for n in np.quantile(lengths, [0.5, 0.9, 1], method="higher"))
        check.detail = f"tokens a row: median {median:,}, 90 % up to {most:,}, longest {longest:,}"
    cut = [row for row in rows if row.trained["num_dropped_steps"]]
    num_steps = sum(row.trained["num_dropped_steps"] for row in cut)
    num_labels = sum(label is not None for row in cut for label in row.labels[len(row.trained["step_ends"]) :])
    if max_length is not None:
        what = f"{num_steps:,} steps ({num_labels:,} labels) off {len(cut):,} rows" if cut else "nothing"
        check.detail += f"; `max_length` {max_length:,} cuts {what}"
    if rows and not any(row.trained["step_ends"] for row in rows):
        check.error(f"no row keeps a step within {max_length:,} tokens. Raise `max_length`, for example to {longest}.")
        return check
    for row in cut:
        check.warn("loses steps" if row.trained["step_ends"] else "loses all steps and is left out", row.number)
    return check


def check_ids(tokenizer, rows: Sequence[CheckedRow]) -> Check:
    """Training reads each step behind the ids that scoring reads it behind, and no text begins with BOS twice."""
    check, bos = Check("training ids = scoring ids"), tokenizer.bos_token_id
    for row in rows:
        trained, scored, ends = row.trained["input_ids"], row.scored.input_ids, row.trained["step_ends"]
        if trained != scored[: len(trained)] or ends != row.scored.step_ends[: len(ends)]:
            differences = (i for i, (a, b) in enumerate(zip(trained, scored, strict=False)) if a != b)
            position = next(differences, min(len(trained), len(scored)))
            check.error(f"training and scoring differ from token {position} on. {OUR_FAULT}", row.number)
        if bos is not None and scored[:2] == [bos, bos]:
            what = f"begins with {tokenizer.bos_token!r} twice: one is added, one stands in the prompt."
            check.error(f"{what} Take that one out, or give the prompt as chat messages.", row.number)
    num_bos = sum(row.scored.input_ids[0] == bos for row in rows)
    check.detail = f"{sum(len(row.trained['input_ids']) for row in rows):,} tokens; "
    check.detail += f"{num_bos:,} rows begin with {tokenizer.bos_token!r}" if bos is not None else "no BOS token"
    return check


def check_labels(rows: Sequence[CheckedRow]) -> Check:
    """Labels reach the batch unrounded, and are not all alike."""
    check = Check("labels", "none")
    for row in rows:
        given = np.array(row.labels[: len(row.trained["step_ends"])], dtype=np.float64)  # None is NaN
        batched = row.batch["step_labels"][0].numpy()
        if given.shape != batched.shape or not np.allclose(given, batched, rtol=0, atol=1e-6, equal_nan=True):
            check.error(f"the labels {given.tolist()} become {batched.tolist()}. {OUR_FAULT}", row.number)
        if all(label is None for label in row.labels):
            check.warn("has no label and is left out", row.number)
    num_steps = sum(len(row.labels) for row in rows)
    labels = np.array([label for row in rows for label in row.labels if label is not None])
    if not len(labels):
        check.error("no step has a label: there is nothing to learn. Give `labels`, or rollout counts and `eta`.")
        return check
    share = float((labels > 0.5).mean())
    if labels.min() == labels.max():
        check.warn(f"all labels are {labels[0]:g}: a constant fits them. Look where they come from.")
    elif not 0.05 <= share <= 0.95:
        side = "above 0.5" if share > 0.5 else "at most 0.5"
        check.warn(f"{max(share, 1 - share):.1%} of the labels are {side}. Consider `balance_classes`.")
    fifths = " | ".join(f"{count:,}" for count in np.histogram(labels, bins=5, range=(0, 1))[0])
    check.detail = f"{labels.min():.3g} to {labels.max():.3g}, mean {labels.mean():.3f}, in fifths of 0 to 1: {fifths}"
    check.detail += f"; {num_steps - len(labels):,} of {num_steps:,} steps have none"
    return check


def check_tags_in_steps(format: PRMFormat, rows: Sequence[CheckedRow]) -> Check:
    """No step holds the tag: code that splits a text at its tags would see more steps."""
    check = Check("steps are free of the tag", "no tag in this layout")
    if format.layout == "turns":
        return check
    tag = format.step_tag.strip() or format.step_tag
    for row in rows:
        if any(tag in step for step in row.steps):
            check.warn(f"a step holds {tag!r}; code that splits at tags miscounts it, ours does not", row.number)
    check.detail = f"{tag!r} stands in a step of {len(check.findings):,} rows"
    return check


def check_config(format: PRMFormat, config, rows: Sequence[CheckedRow]) -> Check:
    """The checkpoint's head is the one that the format reads; its embeddings and context hold the rows."""
    name = (getattr(config, "architectures", None) or ["no architecture"])[0]
    check = Check("model's head and sizes", name)
    has_classifier = name.endswith(("ForTokenClassification", "ForSequenceClassification"))
    if format.head == "causal_lm" and has_classifier:
        what = f"the format reads label tokens, but a {name} has no language-model head."
        check.error(f"{what} Name a causal language model, or a format of the head 'token_classification'.")
    elif has_classifier:
        check.detail += f" with {config.num_labels} labels"
        accepted = [format.num_labels] if format.num_labels else [1, 2]
        if config.num_labels not in accepted:
            what = f"the format reads a head with {' or '.join(map(str, accepted))} labels, got {config.num_labels}."
            check.error(f"{what} Name another model or format.")
    elif format.head == "token_classification" and name.endswith("ForCausalLM"):
        check.detail += ", a language model: training gives it a new head"
    sizes = config.get_text_config()
    num_embeddings, context = (getattr(sizes, n, None) for n in ("vocab_size", "max_position_embeddings"))
    check.detail += f"; {num_embeddings or 'unknown'} embeddings, a context of {context or 'unknown'} tokens"
    for row in rows:
        if num_embeddings and max(row.scored.input_ids) >= num_embeddings:
            what = f"has the token id {max(row.scored.input_ids)}, but there are {num_embeddings} embeddings."
            check.error(f"{what} Resize them (`resize_token_embeddings`).", row.number)
        if context and len(row.trained["input_ids"]) > context:
            check.warn(f"is longer than the context of {context} tokens. Lower `max_length`.", row.number)
    return check


def _decode(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


# ---------------------------------------------------------------------------------------------------------------------
# Command line


@dataclass
class DoctorArguments:
    """What to look at."""

    model: str = field(metadata={"help": "Directory or id of the model; its tokenizer and config are read."})
    dataset: str = field(metadata={"help": "File, directory or id of the dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    split: str = field(default="train", metadata={"help": "Split; a file has only one."})
    num_rows: int | None = field(default=10_000, metadata={"help": "Look at the first so many rows; null: all."})
    max_length: int | None = field(default=ERPRMConfig.max_length, metadata={"help": "As in training; null: no cut."})
    show_rows: int = field(default=3, metadata={"help": "Rows to show token by token."})
    strict: bool = field(default=False, metadata={"help": "Exit with 1 for warnings, too."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that the model's repository brings."})

    def __post_init__(self):
        for option, name in (("model", self.model), ("dataset", self.dataset)):
            path = Path(name).expanduser()
            in_folder = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
            is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or in_folder or ".json" in name
            if is_path and not path.exists():
                advice = f"Check the path, which is relative to {Path.cwd()}."
                raise ValueError(f"`{option}` must be an existing path or a name on the Hub, got {name!r}. {advice}")
        for name in ("num_rows", "max_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1 or null, got {value}. Leave it out for its default.")


FormatArguments = dataclasses.make_dataclass(
    "FormatArguments",
    [
        (f.name, f.type, field(default=f.default, metadata=f.metadata))
        for f in dataclasses.fields(ERPRMConfig)
        if f.name in ("format", "head", *FORMAT_OVERRIDES, "eta")
    ],
    namespace={"build_format": ERPRMConfig.build_format, "__doc__": "Arguments of training that matter here."},
)


def resolve_format(model: str, args: FormatArguments) -> tuple[PRMFormat, str]:
    """The format, and where it is from."""
    if args.format is not None:
        base, source = load_format(args.format), "given"
    else:
        saved = read_saved_format(model)
        found = format_of_checkpoint(model, saved)
        base = found or load_format(None, args.head or HEADS[0])
        source = "the checkpoint's" if saved else "known for this model" if found else "default of the head"
    return dataclasses.replace(args, format=base, head=args.head or base.head).build_format(), source


def read_rows(args: DoctorArguments, eta: float | None) -> tuple[list[Mapping], list[int], Check]:
    """Stepwise rows, their numbers in the dataset, and what is wrong with the rows that cannot be read."""
    dataset = load_rows(args.dataset, split=args.split, config=args.dataset_config)
    total, columns = len(dataset), set(dataset.column_names)
    dataset = dataset.select(range(min(total, args.num_rows or total)))
    check, numbers = Check("rows can be read"), list(range(len(dataset)))
    has_counts, needed = {"num_correct", "num_rollouts"} <= columns, STEPWISE_LAYOUTS["TRL stepwise"]
    if eta is not None:
        needed = ("prompt", "completions")
        if not has_counts:
            got = ", ".join(sorted(columns))
            raise ValueError(f"`eta` needs `num_correct` and `num_rollouts`, got the columns {got}. Leave `eta` out.")
    elif has_counts and "labels" not in columns:
        raise ValueError("The rows have rollout counts but no `labels`. Give `eta` to label them (0: soft labels).")
    if not columns.issuperset(needed):
        stepwise = to_stepwise_rows(dataset.add_column("_row", numbers), skip_unreadable=True)
        for i, number in enumerate(sorted(set(numbers) - set(stepwise["_row"]))):
            message = "cannot be read either"
            if i < MOST_ROWS_NAMED:  # what is wrong with it? Of all rows it would take a while
                [refusal] = _each(lambda one: to_stepwise_rows(dataset.select(one)), [number])
                message = str(refusal).removeprefix("Row 0: ").partition(" The rows were read")[0]
            check.error(message, number)
        dataset, numbers = stepwise, list(stepwise["_row"])
    rows = list(dataset)
    if eta is not None:
        labelled = list(_each(lambda batch: list(label_rows(Dataset.from_list(batch), eta)), rows))
        for number, row in zip(numbers, labelled, strict=True):
            if isinstance(row, ValueError):
                check.error(str(row).removeprefix("Row 0 of the train dataset").removeprefix(":").strip(), number)
        kept = [i for i, row in enumerate(labelled) if not isinstance(row, ValueError)]
        rows, numbers = [labelled[i] for i in kept], [numbers[i] for i in kept]
    check.detail = f"{len(rows):,} stepwise rows from {min(total, args.num_rows or total):,} of {total:,}"
    return rows, numbers, check


def load_config(model: str, trust_remote_code: bool = False):
    """The model's config; an adapter has that of its base model."""
    directory = Path(model)
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        model = json.loads((directory / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)


def print_report(console: Console, diagnosis: Diagnosis) -> None:
    """The table of checks, and what they found."""
    table = Table(box=None, padding=(0, 1), show_header=False)
    for check in diagnosis.checks:
        severities = {finding.severity for finding in check.findings}
        mark = "[red]✗" if "error" in severities else "[yellow]!" if severities else "[green]✓"
        table.add_row(mark, check.name, Text(check.detail, "dim"))
    console.print(table)
    for check in diagnosis.checks:
        groups: dict[tuple[str, str], list[str]] = {}
        for finding in check.findings:
            rows = groups.setdefault((finding.severity, finding.message), [])
            rows += [] if finding.row is None else [str(finding.row)]
        for (severity, message), rows in list(groups.items())[:MOST_ROWS_NAMED]:
            more = f" and {len(rows) - MOST_ROWS_NAMED:,} more" if len(rows) > MOST_ROWS_NAMED else ""
            where = f"row{'s' * (len(rows) > 1)} {', '.join(rows[:MOST_ROWS_NAMED])}{more}: " if rows else ""
            text = Text(f"{severity}: ", "red" if severity == "error" else "yellow").append(f"{check.name}: {where}")
            console.print(text.append(message, "default"))
        if len(groups) > MOST_ROWS_NAMED:
            console.print(f"  and {len(groups) - MOST_ROWS_NAMED} more findings of this check")


def print_row(console: Console, format: PRMFormat, tokenizer, row: CheckedRow) -> None:
    """A row token by token, a line a step; at the token that is read stands the label, red for 0 to green for 1."""
    ids, ends = row.scored.input_ids, row.scored.step_ends
    texts = []
    for i in range(len(ids)):  # with the tokens before it: by itself it may lose its space, or be half a character
        before, text = (_decode(tokenizer, ids[max(i - 6, 0) : end]).rstrip("\ufffd") for end in (i, i + 1))
        texts.append(text.removeprefix(before) if text.startswith(before) else _decode(tokenizer, ids[i : i + 1]))
    # The prompt's tokens are those that it has with another first step, too.
    [other] = _each(lambda steps: [format.encode(tokenizer, row.prompt, steps).input_ids], ["☃"])
    other = [] if isinstance(other, ValueError) else other
    start = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), 0)
    grid = Table.grid("", Column(overflow="fold"), padding=(0, 2))
    grid.add_row("prompt", _tokens(texts[:start]))
    for k, (begin, end) in enumerate(zip([start, *(end + 1 for end in ends)], ends, strict=False)):
        is_cut, label = k >= len(row.trained["step_ends"]), row.labels[k]
        line = _tokens(texts[begin:end], "dim strike" if is_cut else "")
        shown = f"[{'none' if label is None else f'{label:.2f}'}{',cut' if is_cut else ''}]"
        red, green = (0, 0) if label is None else (min(1, 2 - 2 * label), min(1, 2 * label))
        style = "dim" if label is None or is_cut else f"bold black on rgb({int(230 * red)},{int(200 * green)},60)"
        grid.add_row(f"step {k}", line.append(" ").append(_visible(texts[end]) + shown, style))
    console.print(f"\nrow {row.number}: {counted(len(ids), 'token')}, {counted(len(row.steps), 'step')}", style="bold")
    console.print(grid)


def _tokens(texts: Sequence[str], style: str = "") -> Text:
    """Tokens with a space between them, their own spaces made visible; of more than 80, the first and the last."""
    shown = [_visible(text) for text in texts]
    if len(shown) > 80:
        shown[40:-20] = [f"… {len(shown) - 60:,} tokens …"]
    return Text(" ").join(Text(text, style) for text in shown)


def _visible(text: str) -> str:
    signs = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    return "".join(signs.get(c) or (c if c.isprintable() else repr(c)[1:-1]) for c in text) or "·"


@contextmanager
def _naming(option: str, value: str, needed: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Says of other libraries' errors which option they are about."""
    try:
        yield
    except errors as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"`{option}` must be {needed}, got {value!r}. {reason}") from error


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    disable_progress_bars()
    how = {"prog": "python -m trl_erprm.prm.doctor", "description": __doc__}
    try:
        args, format_args = StrictParser((DoctorArguments, FormatArguments), **how).parse_args_and_config(argv)
        format, source = resolve_format(args.model, format_args)
        with _naming("model", args.model, "a directory or id of a model, with its tokenizer", (OSError, ValueError)):
            tokenizer = load_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
            config = load_config(args.model, args.trust_remote_code)
        with _naming("dataset", args.dataset, "rows that can be loaded", (OSError, DatasetsError)):
            rows, numbers, reading = read_rows(args, format_args.eta)
    except (ValueError, OSError) as error:
        print(f"doctor: {error}", file=sys.stderr)
        return 2
    diagnosis = diagnose(format, tokenizer, rows, args.max_length, config, numbers)
    diagnosis.checks.insert(0, reading)
    console = Console(highlight=False)
    console.print(Text(f"{args.model}\n{args.dataset}", "bold"), overflow="fold")
    console.print(Text(f"format {format.name!r} ({source}): {format.head}, {format.layout}, {format.tokenization}\n"))
    print_report(console, diagnosis)
    for row in diagnosis.rows[: args.show_rows]:
        print_row(console, format, tokenizer, row)
    errors, warnings = len(diagnosis.findings("error")), len(diagnosis.findings("warning"))
    counts = ", ".join(f"{count:,} {name}" for name, count in diagnosis.counts.items())
    counts += f" to train on; errors: {errors:,}, warnings: {warnings:,}"
    console.print(f"\n{counts}", style="red" if errors else "yellow" if warnings else "green")
    return int(errors > 0 or (args.strict and warnings > 0))


if __name__ == "__main__":
    sys.exit(main())
