"""What the model card of a process reward model says beyond TRL's: how to score with it, and what its scores mean."""

from __future__ import annotations

import dataclasses
import json
import re

from .formats import PRMFormat

# The part of TRL's card that shows how to use a model; what it shows does not work for step scores.
_QUICK_START = re.compile(r"^## Quick start\n.*?(?=^## )", re.MULTILINE | re.DOTALL)


def add_to_model_card(
    card: str, model_id: str, format: PRMFormat, num_labels: int | None, eta: float | None, loss_type: str
) -> str:
    """
    TRL's model card with its quick start replaced by how to score steps, and a section about format and labels.

    Args:
        card (`str`):
            Text of the card.
        model_id (`str`):
            Id or directory under which the model will be loaded.
        format ([`PRMFormat`]):
            Its layout.
        num_labels (`int`, *optional*):
            Outputs of its head, where that classifies tokens.
        eta (`float`, *optional*):
            Entropy parameter of its labels; `None` where they came as they were.
        loss_type (`str`):
            Its loss.

    Returns:
        `str`: the card.
    """
    quick_start = f"""## Quick start

```python
from trl_erprm import ProcessRewardModel

prm = ProcessRewardModel.from_pretrained({json.dumps(model_id)})
prm.score(["What is 1 + 1 + 1?"], [["1 + 1 = 2.", "2 + 1 = 3."]])  # a score in [0, 1] for each step
```

"""
    section = f"""## What the scores mean

{_meaning(eta)}

| | |
|---|---|
{_table(format, num_labels, eta, loss_type)}

A prompt and its steps are laid out as

```text
{_shown(format)}
```

`prm_format.json` in this repository holds the layout, so that `from_pretrained` needs no hint.

"""
    if _QUICK_START.search(card):
        return _QUICK_START.sub(lambda match: quick_start + section, card, count=1)
    return card + "\n" + quick_start + section


def _meaning(eta: float | None) -> str:
    if eta is None:
        return (
            "A step's score estimates the label that its training data gave it, in [0, 1]. Steps are scored in the "
            "context of the steps before them."
        )
    return (
        "A step's score estimates the entropy-regularized value of the solution so far, "
        f"V = (1/eta) log E[exp(eta * outcome)] with eta = {eta:g}, over rollouts of the policy that labelled the "
        "data (0: the mean outcome, the probability of success; inf: whether any rollout succeeds). "
        "`trl_erprm.success_probability(score, eta)` turns it into a probability of success."
    )


def _table(format: PRMFormat, num_labels: int | None, eta: float | None, loss_type: str) -> str:
    head = format.head
    if head == "token_classification":
        head += f", {num_labels} label{'s' if num_labels != 1 else ''} ({format.head_module})"
    else:
        head += f", {format.positive_token!r} against {format.negative_token!r}"
    rows = {
        "Format": f"`{format.name}`",
        "Head": f"`{head}`",
        "eta": "labels used as given" if eta is None else f"{eta:g}",
        "Loss": f"`{loss_type}`",
    }
    default = {f.name: f.default for f in dataclasses.fields(format)}
    for name in ("layout", "tokenization", "step_tag", "step_joiner", "prompt_separator", "system_prompt"):
        value = getattr(format, name)
        if value != default[name] or name == "step_tag":
            rows[f"`{name}`"] = f"`{value!r}`"
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _shown(format: PRMFormat) -> str:
    """The layout of two steps, with special characters made visible."""
    if format.layout == "turns":
        lines = [f"user: PROMPT{format.prompt_separator}STEP 1", f"assistant: {format.positive_token}"]
        return "\n".join([*lines, "user: STEP 2", f"assistant: {format.positive_token}"])
    if format.layout == "assistant_message":
        steps = f"STEP 1{format.step_tag}{format.step_joiner}STEP 2{format.step_tag}"
        return "\n".join([f"system: {format.system_prompt}", "user: PROMPT", f"assistant: {steps}"]).replace(
            "\t", "\\t"
        )
    return repr(format.render("PROMPT", ["STEP 1", "STEP 2"]))[1:-1]
