"""A pool of candidates scored by a process reward model, and the names by which scorers go.

Scores are in the form of [`~evaluation.candidates.read_step_scores`], so that those computed here and those from
elsewhere are compared alike.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ..prm.formats import Prompt
from .candidates import FILE_FORMATS, CandidatePool

__all__ = ["CandidateScorer", "score_candidates", "scorer_paths"]


class CandidateScorer(Protocol):
    """What is asked of a process reward model: [`ProcessRewardModel`] is one."""

    def score(
        self,
        prompts: Sequence[Prompt],
        steps: Sequence[Sequence[str]],
        batch_size: int,
        *,
        none_if_too_long: bool,
        show_progress: bool,
    ) -> list[list[float] | None]:
        """Scores of the steps of each solution, or `None` for one that is too long."""
        ...


def score_candidates(
    prm: CandidateScorer,
    pool: CandidatePool,
    batch_size: int = 32,
    is_well_formed: Callable[[Prompt, list[str]], bool] | None = None,
    show_progress: bool = False,
) -> list[list[list[float] | None]]:
    """Step scores of all candidates of a pool.

    A candidate that cannot be judged has none, so that it is never chosen before one that can: one without steps,
    without an answer, malformed, or too long for the model. Solutions with a step skipped would win under min.

    Args:
        prm ([`ProcessRewardModel`] or another [`CandidateScorer`]):
            Scores the steps.
        pool ([`CandidatePool`]):
            The candidates, with their prompts.
        batch_size (`int`, *optional*, defaults to `32`):
            Most candidates in a forward pass. Default: that of [`ProcessRewardModel.score`].
        is_well_formed (`Callable`, *optional*):
            `is_well_formed(prompt, steps) -> bool`, a check that the task allows; `None`: none.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar, in candidates.

    Returns:
        `list[list[list[float] | None]]` of the shape of the pool: a score a step; `None`: not scored.

    Raises:
        ValueError: if a problem has no prompt, with its number; and as [`ProcessRewardModel.score`].

    Example:

    ```python
    >>> from trl_erprm.evaluation.candidates import make_pool
    >>> class PRM:
    ...     def score(self, prompts, steps, batch_size, *, none_if_too_long, show_progress):
    ...         return [[0.9] * len(of_one) for of_one in steps]
    >>> pool = make_pool([{"prompt": "1+1", "answer": "2", "candidates": ["1+1=2\\n#2", "1+1="]}], "arithmetic")
    >>> score_candidates(PRM(), pool)
    [[[0.9, 0.9], None]]

    ```
    """
    if None in pool.prompts:
        raise ValueError(
            f"Problem {pool.prompts.index(None)} has no `prompt`, which a reward model has to read. Add a column "
            "`prompt` to the candidates."
        )
    judged = [
        (i, j)
        for i in range(pool.num_problems)
        for j, steps in enumerate(pool.steps[i])
        if steps and pool.answers[i][j] is not None and (not is_well_formed or is_well_formed(pool.prompts[i], steps))
    ]
    scored = prm.score(
        [pool.prompts[i] for i, _ in judged],
        [pool.steps[i][j] for i, j in judged],
        batch_size=batch_size,
        none_if_too_long=True,
        show_progress=show_progress,
    )
    found: list[list[list[float] | None]] = [[None] * pool.num_candidates for _ in range(pool.num_problems)]
    for (i, j), scores in zip(judged, scored, strict=True):
        found[i][j] = scores
    return found


def scorer_paths(texts: Sequence[str] | None, argument: str) -> dict[str, str]:
    """Path of each scorer by its name, from `"name=path"` or a path alone.

    Args:
        texts (`Sequence[str]`, *optional*):
            What was given: files of step scores, or directories of models. A path alone is called after the directory,
            or after the file without `step_scores_` and its ending; a `step_scores.jsonl` after the folder it is in.
        argument (`str`):
            Name of the argument, for the message.

    Returns:
        `dict[str, str]`: in the order given.

    Raises:
        ValueError: if two have one name, or a name has a slash.

    Example:

    ```python
    >>> scorer_paths(["er=outputs/prm", "outputs/prm-soft"], "prm_path")
    {'er': 'outputs/prm', 'prm-soft': 'outputs/prm-soft'}
    >>> scorer_paths(["a/step_scores_qwen.jsonl.gz", "scores/er/step_scores.jsonl"], "step_scores")
    {'qwen': 'a/step_scores_qwen.jsonl.gz', 'er': 'scores/er/step_scores.jsonl'}

    ```
    """
    paths: dict[str, str] = {}
    for text in texts or ():
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = _name_of(Path(text)), text
        if name in paths or "/" in name:
            raise ValueError(
                f"`{argument}` must give each a name of its own without a slash, got {name!r} for {path!r}"
                + (f" and for {paths[name]!r}" if name in paths else "")
                + f". Write {name.replace('/', '-')}-2={path}."
            )
        paths[name] = path
    return paths


def _name_of(path: Path) -> str:
    ending = next((ending for ending in FILE_FORMATS if path.name.endswith(ending)), None)
    if ending is None:
        return path.resolve().name
    name = path.name.removesuffix(ending)
    return path.resolve().parent.name if name == "step_scores" else name.removeprefix("step_scores_")
