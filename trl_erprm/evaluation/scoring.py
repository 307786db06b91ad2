"""A pool of candidates scored by a process reward model, and the names by which scorers go.

Scores are in the form of [`~evaluation.candidates.read_step_scores`], so that those computed here and those from
elsewhere are compared alike.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ..manifest import content_hash
from ..prm.formats import Prompt
from ..prm.scorer import WINDOW
from ..rollout.recorded import Progress, SharedRecords, read_when
from .candidates import FILE_FORMATS, CandidatePool

__all__ = ["CandidateScorer", "score_candidates", "score_recorded", "scorer_paths"]


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
    judged = _judged(pool, is_well_formed)
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


def score_recorded(
    prm: CandidateScorer,
    pool: CandidatePool,
    records: SharedRecords,
    batch_size: int = 32,
    is_well_formed: Callable[[Prompt, list[str]], bool] | None = None,
    name: str = "candidates",
    solutions_per_chunk: int = WINDOW,
) -> list[list[list[float] | None]]:
    """[`score_candidates`], shared among processes and recorded as it goes, so that no solution is scored twice.

    A record is called by prompt and steps. So candidates that are read or split in another way, or added, are scored
    as far as they are new; equal candidates are scored once.

    Args:
        prm, pool, batch_size, is_well_formed: as in [`score_candidates`].
        records ([`SharedRecords`]):
            Where the scores of this model are kept (`scored-<process>.jsonl`).
        name (`str`, *optional*, defaults to `"candidates"`):
            What the progress bar says is scored.
        solutions_per_chunk (`int`, *optional*, defaults to `1024`):
            Solutions that are scored and recorded together: what a crash loses at most. Default: as many as
            [`ProcessRewardModel.score`] orders by length at a time, so that chunks cost nothing.

    Returns:
        As [`score_candidates`], the same in every process.

    Raises:
        ValueError: as [`score_candidates`].
        OSError: if a record cannot be written.
    """
    judged = _judged(pool, is_well_formed)
    keys = [content_hash(pool.prompts[i], pool.steps[i][j]) for i, j in judged]
    place_of = dict(zip(keys, judged, strict=True))

    def read() -> dict[str, list[float] | None]:
        return {r["solution"]: r["step_scores"] for r in records.read("scored") if r["solution"] in place_of}

    done = read()
    # Candidates of a problem stay in one process, since the model reads their prompt once.
    is_own = [records.is_own(content_hash(prompt)) for prompt in pool.prompts]
    todo = [key for key, (i, _) in place_of.items() if is_own[i] and key not in done]
    records.start_clock()
    with Progress(f"Scoring {name}", "solution", len(todo), records.process) as progress:
        for start in range(0, len(todo), solutions_per_chunk):
            chunk = todo[start : start + solutions_per_chunk]
            places = [place_of[key] for key in chunk]
            scored = prm.score(
                [pool.prompts[i] for i, _ in places],
                [pool.steps[i][j] for i, j in places],
                batch_size=batch_size,
                none_if_too_long=True,
                show_progress=False,
            )
            records.append("scored", [{"solution": k, "step_scores": s} for k, s in zip(chunk, scored, strict=True)])
            done.update(zip(chunk, scored, strict=True))
            progress.update(len(chunk))
    if records.process.num_processes > 1:
        done = read_when(lambda found: place_of.keys() <= found.keys(), read)
    found: list[list[list[float] | None]] = [[None] * pool.num_candidates for _ in range(pool.num_problems)]
    for (i, j), key in zip(judged, keys, strict=True):
        found[i][j] = done[key]
    return found


def _judged(pool: CandidatePool, is_well_formed: Callable[[Prompt, list[str]], bool] | None) -> list[tuple[int, int]]:
    """Problem and number of each candidate that can be judged; raises where there is no prompt to judge by."""
    if None in pool.prompts:
        raise ValueError(
            f"Problem {pool.prompts.index(None)} has no `prompt`, which a reward model has to read. Add a column "
            "`prompt` to the candidates."
        )
    return [
        (i, j)
        for i in range(pool.num_problems)
        for j, steps in enumerate(pool.steps[i])
        if steps and pool.answers[i][j] is not None and (not is_well_formed or is_well_formed(pool.prompts[i], steps))
    ]


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
