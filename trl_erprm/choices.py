"""One message for every option that has to be one of a few names."""

import difflib
from collections.abc import Iterable


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Raises `ValueError`, with the nearest known name, unless `value` is one of `choices`.

    Args:
        argument (`str`):
            Name of the argument, for the message.
        value (`object`):
            What was given for it.
        choices (`Iterable[str]`):
            What is accepted.

    Example:

    ```python
    >>> check_choice("how", "lats", ["first", "last"])
    Traceback (most recent call last):
        ...
    ValueError: `how` must be one of 'first', 'last', got 'lats'. Did you mean 'last'?

    ```
    """
    choices = list(choices)
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else "Choose one of them."
    raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, choices))}, got {value!r}. {hint}")
