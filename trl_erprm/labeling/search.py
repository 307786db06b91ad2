"""Which prefixes of a solution to roll out: all, those up to the first hopeless one, or a binary search for it.

A prefix is *hopeless* if none of its rollouts is right. The first hopeless prefix ends with the first error, if an
error is never repaired.

Both shortcuts leave steps without a label (None), and the labels that remain are a biased selection:

- `until_hopeless` labels no step behind the first hopeless one. What is left out is nearly always wrong, so the mean
  label rises and the model sees fewer wrong steps, and none late in a wrong solution. A prefix of small success
  probability p is taken for hopeless with probability (1 - p)^N.
- `first_error` is the binary search of OmegaPRM (arXiv 2406.06592, section 3.2). It assumes that an error is never
  repaired, and labels about log2 of the steps, near the first error mostly. As there, solutions with a right answer
  are not searched: of them only steps are labelled that a wrong solution of the same problem shares, and the last.

Departure from OmegaPRM: no tree of states and no priority queue; the given solutions are searched, each by itself,
sharing equal prefixes. A pure function.
"""

from collections.abc import Sequence

from trl_erprm.choices import check_choice

__all__ = ["LABEL_STEPS", "next_prefixes"]

LABEL_STEPS = ("all", "until_hopeless", "first_error")


def next_prefixes(label_steps: str, is_hopeless: Sequence[bool | None], is_right: bool) -> list[int]:
    """The prefixes of a solution to roll out next, `[]` when it is finished.

    Args:
        label_steps (`str`):
            `"all"`, `"until_hopeless"` or `"first_error"`.
        is_hopeless (`Sequence[bool | None]`):
            What is known of each prefix, from the first step on and without the last; None: not rolled out yet.
        is_right (`bool`):
            Whether the answer of the solution is right.

    Returns:
        `list[int]`: indices into `is_hopeless`.

    Example: five steps, the error is in the third: two of four prefixes are rolled out to find it.

    ```python
    >>> next_prefixes("first_error", [None, None, None, None], is_right=False)
    [2]
    >>> next_prefixes("first_error", [None, None, True, None], is_right=False)
    [1]
    >>> next_prefixes("first_error", [None, False, True, None], is_right=False)
    []

    ```
    """
    check_choice("label_steps", label_steps, LABEL_STEPS)
    if label_steps == "all":
        return [index for index, known in enumerate(is_hopeless) if known is None]
    if label_steps == "until_hopeless":
        for index, known in enumerate(is_hopeless):
            if known is None:
                return [index]
            if known:
                return []
        return []
    if is_right:
        return []
    first, end = 0, len(is_hopeless)  # the first hopeless prefix is in [first, end]; the whole solution is hopeless
    while first < end:
        middle = (first + end) // 2
        if is_hopeless[middle] is None:
            return [middle]
        first, end = (first, middle) if is_hopeless[middle] else (middle + 1, end)
    return []
