"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ..wording import counted
from .comparison import MAJORITY, headline_pairs
from .paired import holm

__all__ = ["RFT_METRICS", "check_rft_rows", "comparison_table", "rft_table"]

RFT_METRICS = {
    "greedy": "Greedy",
    "sampled": "Sampled",
    "best_of_n": "Best of {n} by PRM",
    "majority": "Majority of {n}",
    "oracle": "Oracle of {n}",
}
"""Metrics of an iteration, in the order of the columns, and how they are called; `{n}` is the number of candidates."""


def rft_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    r"""Table of a rejection-sampling run: a row an iteration, accuracies in per cent.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            One row an iteration, the starting policy first. Keys; further ones are ignored:

            - `iteration` (`int`): 0 is the starting policy.
            - `greedy`: accuracy of greedy decoding, as all that follow a share in [0, 1], higher is better, or `None`
              if it was not measured.
            - `sampled`, `sampled_low`, `sampled_high`: accuracy of one sampled completion and the ends of its 95 %
              interval ([`sampled_accuracy`]).
            - `best_of_n`: accuracy of the best of n completions by PRM score ([`best_of_n_accuracy`]).
            - `majority`: accuracy of the majority vote of n completions ([`majority_accuracy`]).
            - `oracle`: share of problems that one of n completions solves ([`pass_at_n`]).
            - `n` (`int`): completions a problem; the same in all rows.
            - `num_problems` (`int`): held-out problems; the same in all rows.

    Returns:
        `rich.table.Table`: for `rich.print`.

    Raises:
        ValueError: if there is no row, a key is missing, a metric is not in [0, 1], or `n` or `num_problems` changes.

    Example:

    ```python
    >>> import rich
    >>> row = {"iteration": 0, "greedy": 0.46, "sampled": 0.47, "sampled_low": 0.44, "sampled_high": 0.5}
    >>> row |= {"best_of_n": 0.62, "majority": 0.56, "oracle": 0.93, "n": 8, "num_problems": 200}
    >>> rft_table([row]).row_count
    1

    ```
    """
    rows = check_rft_rows(rows)
    n = rows[0]["n"]
    table = Table(
        title="Accuracy by iteration, in per cent",
        caption=f"{counted(rows[0]['num_problems'], 'held-out problem')}; in brackets: 95 % interval",
    )
    table.add_column("Iteration", justify="right", no_wrap=True)
    for name in RFT_METRICS.values():
        heading = name.format(n=n).replace(" of ", "\nof ")  # so that the table keeps within 80 columns
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = {metric: _percent(row[metric]) for metric in RFT_METRICS}
        if row["sampled_low"] is not None and row["sampled_high"] is not None:
            cells["sampled"] += f" [{_percent(row['sampled_low'])}, {_percent(row['sampled_high'])}]"
        table.add_row(str(row["iteration"]), *map(Text, cells.values()))  # `Text`: brackets are no markup
    return table


def comparison_table(metrics: Mapping[str, Any]) -> Table:
    r"""Table of scorers compared on one pool: accuracy with interval, and the difference from majority vote.

    Args:
        metrics (`Mapping[str, Any]`):
            What [`~evaluation.comparison.compare_scorers`] gives.

    Returns:
        `rich.table.Table`: a row a scorer, best first, then the baselines; for `rich.print`. Accuracies in per cent,
        differences in points; *p* is McNemar's, corrected (Holm) for the number of scorers, as in `report.html`.

    Example:

    ```python
    >>> from trl_erprm.evaluation.candidates import make_pool
    >>> from trl_erprm.evaluation.comparison import compare_scorers
    >>> pool = make_pool([{"answer": "4", "candidates": ["5", "4"]}])
    >>> comparison_table(compare_scorers(pool, {"a": [[[0.1], [0.9]]]})).row_count
    4

    ```
    """
    n, how = metrics["num_candidates"], metrics["aggregation"]
    scorers = set(metrics["scorers"])
    pairs = [pair for pair in headline_pairs(metrics) if pair["second"] == MAJORITY and pair["first"] in scorers]
    corrected = holm([pair["p_value"] for pair in pairs])
    against_majority = {pair["first"]: (pair, p_value) for pair, p_value in zip(pairs, corrected, strict=True)}
    table = Table(
        title=f"Best of {n} by {how} of the step scores, in per cent",
        caption=f"{counted(metrics['num_problems'], 'problem')}; in brackets: 95 % interval",
    )
    table.add_column("Chosen by", overflow="fold")
    for heading in ("Right", "Points above\nmajority vote", "p (Holm)"):
        table.add_column(heading, justify="right", no_wrap=True)
    curves = {
        name: (scorer["aggregation"], scorer["aggregations"][scorer["aggregation"]]["best_of_n"])
        for name, scorer in metrics["scorers"].items()
    }
    for name, (own, curve) in sorted(curves.items(), key=lambda entry: -entry[1][1]["accuracy"][-1]):
        (pair, p_value), name = against_majority[name], name if own == how else f"{name} ({own})"
        low, high = (f"{100 * pair[key]:+.1f}" for key in ("low", "high"))
        difference = f"{100 * pair['difference']:+.1f} [{low}, {high}]"
        table.add_row(*map(Text, (name, _with_interval(curve, -1), difference, f"{p_value:.3f}")))
    table.add_section()
    for name, curve in ((MAJORITY, metrics["majority"]), ("oracle (pass@n)", metrics["oracle"])):
        table.add_row(*map(Text, (name, _with_interval(curve, -1), "", "")))
    random = {key: [value] for key, value in metrics["random"].items()}
    table.add_row(*map(Text, ("one at random", _with_interval(random, -1), "", "")))
    return table


def _with_interval(curve: Mapping[str, Sequence[float]], index: int) -> str:
    mean, low, high = (_percent(curve[key][index]) for key in ("accuracy", "low", "high"))
    return f"{mean} [{low}, {high}]"


def check_rft_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows in the order of their iterations, if they are what [`rft_table`] describes; else raises `ValueError`.

    Example:

    ```python
    >>> check_rft_rows([{"iteration": 0}])
    Traceback (most recent call last):
        ...
    ValueError: A row must have the keys 'iteration', 'n', 'num_problems', 'greedy', 'sampled', 'best_of_n',
    'majority', 'oracle', 'sampled_low', 'sampled_high'; row 0 lacks 'n', ...

    ```
    """
    if not rows:
        raise ValueError("`rows` must hold at least one iteration, got none. Evaluate the policy first.")
    shares = (*RFT_METRICS, "sampled_low", "sampled_high")
    keys = ("iteration", "n", "num_problems", *shares)
    for index, row in enumerate(rows):
        missing = [key for key in keys if key not in row]
        if missing:
            raise ValueError(
                f"A row must have the keys {', '.join(map(repr, keys))}; row {index} lacks "
                f"{', '.join(map(repr, missing))}. Give a metric that was not measured the value None."
            )
        for key in shares:
            if row[key] is not None and not 0 <= row[key] <= 1:
                raise ValueError(
                    f"`{key}` must be a share in [0, 1] or None, got {row[key]!r} in row {index}. Pass 0.62, not 62."
                )
        interval = [row[key] for key in ("sampled_low", "sampled", "sampled_high")]
        if None not in interval and interval != sorted(interval):
            raise ValueError(
                f"`sampled_low`, `sampled` and `sampled_high` must ascend, got {', '.join(map(str, interval))} in row "
                f"{index}. Take all three from `sampled_accuracy`."
            )
        for key in ("n", "num_problems"):
            if row[key] != rows[0][key]:
                raise ValueError(
                    f"`{key}` must be the same in all rows, got {rows[0][key]!r} in row 0 and {row[key]!r} in row "
                    f"{index}. Accuracies are comparable only on the same problems and number of candidates."
                )
    return sorted(rows, key=lambda row: row["iteration"])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
