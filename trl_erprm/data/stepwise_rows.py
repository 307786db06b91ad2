"""Stepwise rows: the readers of public step-labelled data."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from datasets import Dataset, Value

from ..labeling.estimators import check_eta, entropy_regularized_value_from_counts
from .layouts import Row, column_names, convert_rows, listed, recognize_layout, required_text
from .validation import STEPWISE_COLUMNS, check_stepwise_row, is_no_label

STEP_TAG = "ки"
"""Math-Shepherd's step tag, a token of its own in LLaMA's vocabulary, which ER-PRM's released data took over."""

STEPWISE_LAYOUTS: dict[str, tuple[str, ...]] = {
    "TRL stepwise": STEPWISE_COLUMNS,
    "rollout counts": ("prompt", "completions", "num_correct", "num_rollouts"),
    "PRM800K, flat": ("prompt", "completions", "ratings"),
    "PRM800K": ("question", "label"),
    "Math-Shepherd": ("input", "label"),
    "ER-PRM": ("text", "value"),
    "OpenRLHF": ("input", "value"),
    "OmegaPRM (math-aps)": ("question", "reasoning_steps"),
}
"""Columns by which [`to_stepwise_rows`] recognizes each layout, in the order of preference."""

_FIRST_STEP = re.compile(r"(?<!\S)Step 1 ?:")


def to_stepwise_rows(
    dataset: Dataset, neutral_label: float = 1.0, skip_unreadable: bool = False, eta: float | None = None
) -> Dataset:
    """Turns step-labelled data into stepwise rows: `prompt`, `completions`, `labels`, validated.

    Layouts, recognized by their columns:

    - **TRL stepwise** (`prompt`, `completions`, `labels`): True is 1.0, False 0.0, NaN None. Where `num_correct` and
      `num_rollouts` are there as well, the labels stay as they are; [`relabel`] makes them anew.
    - **Rollout counts** without labels (`prompt`, `completions`, `num_correct`, `num_rollouts`, one number a step):
      labelled at `eta`, which the column `eta` then holds. A step without a rollout has no label.
    - **Math-Shepherd** (`input`, `label`): the prompt ends where `Step 1:` begins; a step ends at the tag ` ки`, for
      which `label` has `+` (1.0) or `-` (0.0). Steps keep their `Step k:` and their calculator marks.
    - **ER-PRM** (`text`, `value`, the format that its repository trains on): the text as in Math-Shepherd, and one
      value in [0, 1] for each tag. The last step may lack its tag, as its conversion script writes it.
    - **OpenRLHF** (`input`, `value`, what its `train_prm` reads with `--placeholder_token ки`): the text as in
      Math-Shepherd, and for each tag `"+"` (1.0), `"-"` (0.0) or a number in [0, 1].
    - **PRM800K** (raw: `question`, `label`): one row along the chosen completions (or the human's, which have no
      rating: None), and one row for each further rated completion, in which only that last step has a label. So no
      rating is lost, and none counts twice.
    - **PRM800K, flat** (`prompt`, `completions`, `ratings`).
    - **OmegaPRM (math-aps)** (`question`, `reasoning_steps` with `solution_prefix` and `mc_value`): one row for each
      leaf of the tree of prefixes. A value shared by several leaves is the label in the first row only, else None.

    Args:
        dataset (`Dataset`):
            Rows of one of these layouts.
        neutral_label (`float`, *optional*, defaults to `1.0`):
            Label of PRM800K's rating 0, in [0, 1]. Ratings 1 and -1 are 1.0 and 0.0. Default: "Let's Verify Step by
            Step" (arXiv 2305.20050), whose scores count neutral steps as positive.
        skip_unreadable (`bool`, *optional*, defaults to `False`):
            Leave out rows that cannot be read, and log how many and why as a warning, instead of raising.
        eta (`float`, *optional*):
            Entropy parameter of the labels of rows that have rollout counts and no labels: 0 makes soft ones, `inf`
            hard ones. Rows with labels have no use for it.

    Returns:
        `Dataset`: rows in order; `labels` are float64, so 0.9 stays 0.9. The other columns are kept. Where the data
        holds a reference answer, it is in `answer`.

    Raises:
        ValueError: if the columns are of no layout, if there are rollout counts without labels and `eta` is not
            given, or at the first row that cannot be read (with its number).
        TypeError: if `dataset` is not a `Dataset`.

    Example:

    ```python
    >>> text = "2+3+4? Step 1: 2+3=5 ки\\nStep 2: 5+4=9 ки"
    >>> to_stepwise_rows(Dataset.from_list([{"text": text, "value": [0.9, 1.0]}]))[0]
    {'prompt': '2+3+4?', 'completions': ['Step 1: 2+3=5', 'Step 2: 5+4=9'], 'labels': [0.9, 1.0]}

    ```
    """
    if not 0.0 <= neutral_label <= 1.0:
        raise ValueError(
            f"`neutral_label` must be in [0, 1], got {neutral_label!r}. Pass 1.0 to count neutral steps as good, "
            "0.0 as bad."
        )
    columns = column_names(dataset)
    layout = recognize_layout(columns, STEPWISE_LAYOUTS, "stepwise")
    if layout == "rollout counts":
        if eta is None:
            raise ValueError(
                f"The rows have rollout counts and no `labels` (found {listed(sorted(columns))}), but `eta`, at which "
                "they would be labelled, is not given. Set `eta`: 0 for soft labels, inf for hard ones, or a number "
                "between."
            )
        eta = check_eta(eta)
    readers: dict[str, Callable[[Row], list[Row]]] = {
        "TRL stepwise": _read_trl_stepwise,
        "rollout counts": partial(_read_counts, eta=eta),
        "PRM800K, flat": partial(_read_prm800k_flat, neutral_label=neutral_label),
        "PRM800K": partial(_read_prm800k, neutral_label=neutral_label),
        "Math-Shepherd": _read_math_shepherd,
        "ER-PRM": partial(_read_values, text_column="text"),
        "OpenRLHF": partial(_read_values, text_column="input"),
        "OmegaPRM (math-aps)": _read_math_aps,
    }
    # Where each layout holds a reference answer under another name than `answer`.
    answer_columns = {"PRM800K, flat": "gold_answer", "PRM800K": "question", "OmegaPRM (math-aps)": "final_answer"}
    features: dict[str, Any] = {
        "prompt": dataset.features["prompt"] if "prompt" in columns else Value("string"),
        "completions": [Value("string")],
        "labels": [Value("float64")],
    }
    consumed = set(STEPWISE_LAYOUTS[layout]) - {"num_correct", "num_rollouts"}
    if layout == "rollout counts":
        features["eta"] = Value("float64")
    if answer_columns.get(layout) in columns and "answer" not in columns:
        features["answer"] = Value("string")

    def read_and_check(row: Row) -> list[Row]:
        rows = readers[layout](row)
        for stepwise_row in rows:
            check_stepwise_row(stepwise_row)
        return rows

    return convert_rows(dataset, read_and_check, features, consumed, layout, skip_unreadable)


def _read_trl_stepwise(row: Row) -> list[Row]:
    check_stepwise_row(row)
    labels = [None if is_no_label(label) else float(label) for label in row["labels"]]
    return [{"prompt": row["prompt"], "completions": row["completions"], "labels": labels}]


def _read_counts(row: Row, eta: float) -> list[Row]:
    steps, counts = row["completions"], (row["num_correct"], row["num_rollouts"])
    for name, of_steps in zip(("num_correct", "num_rollouts"), counts, strict=True):
        if not isinstance(of_steps, list) or len(of_steps) != len(steps or ()):
            got = f"{len(of_steps)} numbers" if isinstance(of_steps, list) else repr(of_steps)
            raise ValueError(
                f"`{name}` must be a list with one number for each of the {len(steps or ())} steps, got {got}"
            )
    try:
        values = entropy_regularized_value_from_counts(*counts, eta)
    except (TypeError, ValueError) as error:
        raise ValueError(str(error).removesuffix(".")) from None
    labels = [None if is_no_label(value) else value for value in values.tolist()]
    return [{"prompt": row["prompt"], "completions": steps, "labels": labels, "eta": eta}]


def _read_math_shepherd(row: Row) -> list[Row]:
    text, labelled = required_text(row, "input"), required_text(row, "label")
    prompt, steps, is_tagged = _split_tagged(text)
    # `label` is `input` with + or - in place of each tag: walk along both.
    labels: list[float | None] = []
    position = 0
    for piece in text.split(STEP_TAG)[:-1]:
        position += len(piece)
        mark = labelled[position : position + 1]
        if labelled[position - len(piece) : position] != piece or mark not in ("+", "-"):
            raise ValueError(
                "the column `label` does not follow the column `input`: expected the same text with + or - in place "
                f"of the tag number {len(labels) + 1}, got {labelled[max(position - 30, 0) : position + 10]!r}"
            )
        labels.append(1.0 if mark == "+" else 0.0)
        position += 1
    return [{"prompt": prompt, "completions": steps, "labels": labels if is_tagged else [*labels, None]}]


def _read_values(row: Row, text_column: str) -> list[Row]:
    text, values = required_text(row, text_column), row["value"]
    if not isinstance(values, list):
        raise ValueError(f"the column `value` must be a list with one number for each step, got {values!r}")
    prompt, steps, is_tagged = _split_tagged(text)
    labels = [_label_of_mark(value, i) if isinstance(value, str) else value for i, value in enumerate(values)]
    if not is_tagged and text_column == "input" and len(labels) == len(steps) - 1:
        labels.append(None)  # OpenRLHF labels tags: what follows the last one has no label
    if len(labels) != len(steps):
        raise ValueError(
            f"the column `value` must have one number for each step, got {len(values)} for {len(steps)} steps (text "
            f"with {text.count(STEP_TAG)} tags {STEP_TAG!r})"
        )
    return [{"prompt": prompt, "completions": steps, "labels": labels}]


def _label_of_mark(mark: str, i: int) -> float:
    if mark not in ("+", "-"):
        raise ValueError(f"value {i} must be '+', '-' or a number in [0, 1], got {mark!r}")
    return 1.0 if mark == "+" else 0.0


def _split_tagged(text: str) -> tuple[str, list[str], bool]:
    """Prompt, steps, and whether the last step has its tag."""
    pieces = text.split(STEP_TAG)
    is_tagged = not pieces[-1].strip()
    if is_tagged:
        pieces.pop()
    if not pieces:
        raise ValueError(f"the text has no step, got {text[:80]!r}")
    # The last "Step 1:" before the first tag: the problem itself may speak of a "Step 1:".
    starts = [match.start() for match in _FIRST_STEP.finditer(pieces[0])]
    if not starts:
        raise ValueError(
            f"no `Step 1:` stands before the first tag {STEP_TAG!r}, so the prompt's end is unknown, got {text[:80]!r}"
        )
    prompt, pieces[0] = pieces[0][: starts[-1]].strip(), pieces[0][starts[-1] :]
    return prompt, [piece.strip() for piece in pieces], is_tagged


def _read_prm800k_flat(row: Row, neutral_label: float) -> list[Row]:
    ratings = row["ratings"]
    if not isinstance(ratings, list):
        raise ValueError(f"the column `ratings` must be a list with one rating for each step, got {ratings!r}")
    labels = [_label_of_rating(rating, neutral_label) for rating in ratings]
    new_row = {"prompt": row["prompt"], "completions": row["completions"], "labels": labels}
    return [{**new_row, "answer": row.get("gold_answer")}]


def _read_prm800k(row: Row, neutral_label: float) -> list[Row]:
    question, label = row["question"], row["label"]
    if not isinstance(question, Mapping) or "problem" not in question:
        raise ValueError(f"the column `question` must hold `problem`, got {question!r}")
    if not isinstance(label, Mapping) or not label.get("steps"):
        raise ValueError("the column `label` holds no `steps`, as for a problem that the labeler rejected")
    steps: list[str] = []
    labels: list[float | None] = []
    alternatives: list[tuple[list[str], list[float | None]]] = []
    for step in label["steps"]:
        completions = step.get("completions") or []
        chosen, human = step.get("chosen_completion"), step.get("human_completion")
        rated = [(str(c["text"]).strip(), _label_of_rating(c["rating"], neutral_label)) for c in completions]
        if chosen is not None:
            if not 0 <= chosen < len(rated):
                raise ValueError(f"`chosen_completion` must be an index into {len(rated)} completions, got {chosen}")
            following = rated.pop(chosen)
        elif human:
            following = (str(human["text"]).strip(), None)
        else:  # the solution ends here, at an error or given up
            following = rated.pop(0) if rated else None
        alternatives += [([*steps, t], [*[None] * len(steps), value]) for t, value in rated if value is not None]
        if following is None:
            break
        steps.append(following[0])
        labels.append(following[1])
        if chosen is None and not human:
            break
    problem, answer = question["problem"], question.get("ground_truth_answer")
    return [
        {"prompt": problem, "completions": completions, "labels": values, "answer": answer}
        for completions, values in [(steps, labels), *alternatives]
    ]


def _label_of_rating(rating: Any, neutral_label: float) -> float | None:
    if rating is None:
        return None
    if rating not in (-1, 0, 1):
        raise ValueError(f"a rating must be 1, 0, -1 or None, got {rating!r}")
    return {1: 1.0, 0: neutral_label, -1: 0.0}[int(rating)]


def _read_math_aps(row: Row) -> list[Row]:
    question, nodes = required_text(row, "question"), row["reasoning_steps"]
    if not isinstance(nodes, list) or not all(isinstance(node, Mapping) and "mc_value" in node for node in nodes):
        raise ValueError("the column `reasoning_steps` must be a list of `solution_prefix` and `mc_value`")
    values: dict[str, float] = {}  # of each prefix of a solution, the question taken away
    for node in nodes:
        prefix = node["solution_prefix"]
        if not prefix.startswith(question):
            raise ValueError(f"a `solution_prefix` does not begin with the question, got {prefix[:80]!r}")
        if prefix[len(question) :].strip():  # else it is the root: the question without a step
            values.setdefault(prefix[len(question) :], node["mc_value"])
    prefixes = sorted(values, key=len)
    parents: dict[str, str] = {}
    for i, prefix in enumerate(prefixes):
        parents[prefix] = next((p for p in reversed(prefixes[:i]) if prefix.startswith(p)), "")
    inner = set(parents.values())
    is_labelled: set[str] = set()
    rows: list[Row] = []
    for leaf in (prefix for prefix in values if prefix not in inner):
        path = [leaf]
        while parents[path[0]]:
            path.insert(0, parents[path[0]])
        rows.append(
            {
                "prompt": question,
                "completions": [prefix[len(parents[prefix]) :].strip() for prefix in path],
                "labels": [None if prefix in is_labelled else values[prefix] for prefix in path],
                "answer": row.get("final_answer"),
            }
        )
        is_labelled.update(path)
    if not rows:
        raise ValueError("the column `reasoning_steps` holds no step after the question")
    return rows
