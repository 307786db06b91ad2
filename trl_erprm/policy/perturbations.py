"""What a policy could do to a solution without solving anything better, to see what a reward makes of it.

Each perturbation is a pure function of a solution's steps and their scores, by which it knows the best and the worst
step, as a policy in training finds out. It leaves the last step at the end, where the answer stands, unless its name
says otherwise.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trl_erprm.steps import check_split_mode, step_texts

__all__ = ["FILLER", "PERTURBATIONS", "Perturbation", "join_as", "perturb"]

FILLER = "Let us check that all of this is right."
"""A step that claims nothing, and so has nothing to be scored low for."""

EMPTY = "..."
"""A step without a letter or a digit."""

NUM_ADDED = 3
"""Steps that are added where one would hardly move a mean. Our choice."""

_MARKER = re.compile(r"^[\s#>*_-]*\bStep \d{1,4} ?:[\s*_]*")

Steps = Sequence[str]
Scores = Sequence[float]


@dataclass(frozen=True)
class Perturbation:
    """
    One way to change a solution.

    Args:
        apply (`Callable`):
            `apply(steps, step_scores, filler) -> list[str]`: other steps.
        description (`str`):
            What it does, in a few words.
        min_steps (`int`, *optional*, defaults to `1`):
            Fewest steps of a solution to which it can be done.
    """

    apply: Callable[[Steps, Scores, str], list[str]]
    description: str
    min_steps: int = 1


def join_as(steps: Steps, split_how: str) -> str:
    """
    A text that [`split_steps`] cuts into these steps again: numbered anew in the mode `"step_marker"`, each with a
    capital and a full stop in the mode `"sentence"`.

    Example:

    ```python
    >>> join_as(["Step 1: a", "b"], "step_marker")
    'Step 1: a\\nStep 2: b'

    ```
    """
    check_split_mode(split_how, "split_how")
    if split_how == "newline":
        return "\n".join(steps)
    if split_how == "blank_line":
        return "\n\n".join(steps)
    if split_how == "step_marker":
        return "\n".join(f"Step {k}: {_MARKER.sub('', step)}" for k, step in enumerate(steps, 1))
    return " ".join(map(_as_sentence, steps))


def perturb(name: str, text: str, step_scores: Scores, split_how: str = "newline", filler: str = FILLER) -> str | None:
    """
    A solution, changed.

    Args:
        name (`str`):
            One of [`PERTURBATIONS`].
        text (`str`):
            The solution.
        step_scores (`Sequence[float]`):
            A score for each of its steps.
        split_how (`str`, *optional*, defaults to `"newline"`):
            How it is split into steps ([`split_steps`]).
        filler (`str`, *optional*):
            The step that claims nothing.

    Returns:
        `str` or `None`: the changed text; `None` where nothing can be changed: too few steps, or steps that cannot be
        written so that they are split again as meant.

    Example:

    ```python
    >>> perturb("repeat_best", "1+1=2\\n2+2=5\\n#5", [0.9, 0.1, 0.5])
    '1+1=2\\n1+1=2\\n1+1=2\\n1+1=2\\n2+2=5\\n#5'
    >>> perturb("skip_worst", "1+1=2\\n2+2=5\\n#5", [0.9, 0.1, 0.5])
    '1+1=2\\n#5'
    >>> perturb("first_and_last", "1+1=2\\n#2", [0.9, 0.5]) is None
    True

    ```
    """
    steps = step_texts(text, split_how)
    perturbation = PERTURBATIONS[name]
    if len(steps) < perturbation.min_steps:
        return None
    if name == "last_line_break":
        return text.rstrip() if text != text.rstrip() else text + "\n"
    if split_how == "step_marker":  # numbers are given anew, so they are no part of a step here
        steps = [_MARKER.sub("", step) for step in steps]
    changed = perturbation.apply(steps, step_scores, filler)
    if name == "blank_lines":
        changed_text = ("\n" * (NUM_ADDED + 1)).join(changed)
    else:
        changed_text = join_as(changed, split_how)
        if changed == steps or len(step_texts(changed_text, split_how)) != len(changed):
            return None
    return changed_text


def _as_sentence(step: str) -> str:
    if len(step_texts(step, "sentence")) > 1:  # of several merged steps
        step = re.sub(r"[.!?]+(?=\s)", ";", step)
    step = step[:1].upper() + step[1:]
    return step if step.endswith((".", "!", "?")) else f"{step}."


def _best(scores: Scores) -> int:
    return max(range(len(scores)), key=lambda k: scores[k])


def _parts(step: str, num_parts: int) -> list[str]:
    """A step cut into parts of about equal length, at white space where there is some near the cut."""
    if num_parts == 1 or len(step) < 2:
        return [step]
    middle = len(step) // num_parts
    near = max(middle // 2, 1)
    spaces = [match.start() for match in re.finditer(r"\s", step) if abs(match.start() - middle) <= near]
    cut = min(spaces, key=lambda at: abs(at - middle), default=middle) or middle
    rest = step[cut:].strip()
    return [step[:cut].strip(), *(_parts(rest, num_parts - 1) if rest else [])]


def _without(steps: Steps, index: int) -> list[str]:
    return [*steps[:index], *steps[index + 1 :]]


PERTURBATIONS = {
    "filler": Perturbation(
        lambda steps, scores, filler: [*steps[:-1], filler, steps[-1]], "a step that claims nothing, before the last"
    ),
    "filler_at_end": Perturbation(
        lambda steps, scores, filler: [*steps, filler], "a step that claims nothing, behind the last"
    ),
    "empty_steps": Perturbation(
        lambda steps, scores, filler: [*steps[:-1], *[EMPTY] * NUM_ADDED, steps[-1]],
        f"{NUM_ADDED} steps without a letter or digit, before the last",
    ),
    "blank_lines": Perturbation(
        lambda steps, scores, filler: list(steps), f"{NUM_ADDED} blank lines between steps", min_steps=2
    ),
    "last_line_break": Perturbation(
        lambda steps, scores, filler: list(steps), "the last line break dropped, or one added"
    ),
    "repeat_each": Perturbation(
        lambda steps, scores, filler: [step for step in steps for _ in range(2)], "each step twice"
    ),
    "repeat_last": Perturbation(
        lambda steps, scores, filler: [*steps, *[steps[-1]] * NUM_ADDED], f"the last step {NUM_ADDED} times more"
    ),
    "repeat_best": Perturbation(
        lambda steps, scores, filler: [
            step for k, step in enumerate(steps) for _ in range(NUM_ADDED + 1 if k == _best(scores) else 1)
        ],
        f"the step with the highest score {NUM_ADDED} times more",
    ),
    "split_each": Perturbation(
        lambda steps, scores, filler: [*(part for step in steps[:-1] for part in _parts(step, 2)), steps[-1]],
        "each step but the last cut in two",
        min_steps=2,
    ),
    "split_best": Perturbation(
        lambda steps, scores, filler: [
            part
            for k, step in enumerate(steps)
            for part in _parts(step, NUM_ADDED + 1 if k == _best(scores[:-1]) else 1)
        ],
        f"the step with the highest score, the last aside, cut in {NUM_ADDED + 1}",
        min_steps=2,
    ),
    "merge_all": Perturbation(lambda steps, scores, filler: [" ".join(steps)], "all steps in one", min_steps=2),
    "merge_all_but_last": Perturbation(
        lambda steps, scores, filler: [" ".join(steps[:-1]), steps[-1]], "all steps but the last in one", min_steps=3
    ),
    "skip_worst": Perturbation(
        lambda steps, scores, filler: _without(steps, min(range(len(steps) - 1), key=lambda k: scores[k])),
        "without the step with the lowest score, the last aside",
        min_steps=2,
    ),
    "first_and_last": Perturbation(
        lambda steps, scores, filler: [steps[0], steps[-1]], "the first and the last step only", min_steps=3
    ),
    "last_only": Perturbation(lambda steps, scores, filler: [steps[-1]], "the last step only", min_steps=2),
    "drop_answer": Perturbation(lambda steps, scores, filler: list(steps[:-1]), "without the last step", min_steps=2),
}
"""The perturbations by name."""
