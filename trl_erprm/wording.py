"""Words that agree with a number, for reports and the terminal."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 problem`, `2,000 problems`.

    Args:
        number (`int`):
            How many.
        noun (`str`):
            What one of them is called.
        plural (`str`, *optional*):
            What several are called; `None`: the noun with an s.

    Example:

    ```python
    >>> counted(1, "problem"), counted(1234, "problem"), counted(0, "reply", "replies")
    ('1 problem', '1,234 problems', '0 replies')

    ```
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
