"""An evaluation on disk: candidates, their step scores and what search finds, each computed once and kept.

    output_dir/
      manifest.json                         which candidates: policy, problems and sampling, or a file's content
      candidates-<process>.jsonl            what the policy wrote, a line a problem, as it is sampled
      candidates.jsonl                      the same with steps, answers and verdicts
      scores/NAME/manifest.json             which process reward model
      scores/NAME/scored-<process>.jsonl    step scores, a line a solution, as they are computed
      scores/NAME/step_scores.jsonl         the same in the order of the candidates
      search/HASH/manifest.json             which model, aggregation and options a search has
      search/HASH/found-<process>.jsonl     what beam search and DVTS chose, a line a problem and search

What was sampled does not depend on how it is read: another `answer_how` or `split_how`, or other reference answers,
are no other run. The candidates are then read anew, and those scored that are new by it.

Under `accelerate launch` each process samples, scores and searches its share, by the hash of the prompts, and all get
the same. They meet in the files alone, so it makes no difference how long one waits for another, or whether an earlier
start had another number of processes. Only the main process writes what is not a record.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..arguments import process_state
from ..manifest import MANIFEST_NAME, content_hash, open_run, weights_fingerprint
from ..prm.formats import Prompt
from ..prm.scorer import WINDOW, ProcessRewardModel
from ..rollout import RolloutEngine, SamplingOptions
from ..rollout.recorded import Process, RecordedSampler, SharedRecords, read_when
from .candidates import CandidatePool, make_pool, read_candidates, write_rows
from .recorded_search import RECORDED, RecordedSearch
from .sampling import candidate_rows, check_answers
from .scoring import score_recorded
from .search import SEARCH_METHODS, CurvePoint, curve_point

__all__ = ["EvaluationRun"]


class EvaluationRun:
    """
    What an evaluation samples and computes, kept in a directory; what is there is not computed again.

    Make it before anything is trained in these processes: trainers make accelerate's state anew, and on a CPU without
    the other processes.

    Args:
        output_dir (`str` or `os.PathLike`):
            The directory. With several processes one that all of them can reach.
        answer_how (`str`, *optional*, defaults to `"auto"`):
            How answers are read and compared: as for [`verify_answer`].
        split_how (`str`, *optional*, defaults to `"newline"`):
            How candidates are split into steps: as for [`split_steps`].
        problems_per_chunk (`int`, *optional*, defaults to `64`):
            Problems whose candidates are sampled and recorded together: what a crash loses at most. Results do not
            depend on it. Default: as [`LabelingConfig`].
        solutions_per_chunk (`int`, *optional*, defaults to `1024`):
            The same of scoring, in solutions. Default: as [`score_recorded`].
        process ([`Process`], *optional*):
            This process among the others. Defaults to that of `accelerate launch`.

    Example:

    ```python
    run = EvaluationRun("outputs/evaluation", answer_how="gsm8k")
    pool = run.sample(engine, "my-policy", prompts, answers, num_samples=16, options=SamplingOptions(512))
    scores = {name: run.score(name, ProcessRewardModel.from_pretrained(path)) for name, path in paths.items()}
    ```
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        answer_how: str = "auto",
        split_how: str = "newline",
        problems_per_chunk: int = 64,
        solutions_per_chunk: int = WINDOW,
        process: Process | None = None,
    ):
        self.output_dir = Path(output_dir)
        self.answer_how, self.split_how = answer_how, split_how
        self.problems_per_chunk, self.solutions_per_chunk = problems_per_chunk, solutions_per_chunk
        process = process_state() if process is None else process
        names = ("process_index", "num_processes", "is_main_process")
        self.process = SimpleNamespace(**{name: getattr(process, name) for name in names})  # as it is now

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the report."""
        return self.process.is_main_process

    def read(self, path: str | PathLike[str]) -> CandidatePool:
        """
        Candidates of a file, for which the directory then stands.

        Args:
            path (`str` or `os.PathLike`):
                As for [`read_candidates`].

        Returns:
            [`CandidatePool`].

        Raises:
            `ValueError`: as [`read_candidates`], and if the directory holds another run.
        """
        pool = read_candidates(path, self.answer_how, self.split_how)
        given = content_hash(pool.problem_ids, pool.prompts, pool.completions)
        self._claim(self.output_dir, {"candidates": given}, "evaluation")
        return pool

    def sample(
        self,
        engine: RolloutEngine,
        policy_name: str,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        num_samples: int,
        options: SamplingOptions,
    ) -> CandidatePool:
        """
        Candidates of a policy: those that are recorded, and the others sampled now.

        Args:
            engine ([`RolloutEngine`]):
                The policy.
            policy_name (`str`):
                Name of its weights, by which the run knows it again ([`load_policy_engine`]).
            prompts (`Sequence` of `str` or messages):
                The problems.
            answers (`Sequence[str]`):
                The reference answer of each problem.
            num_samples (`int`):
                M, candidates for each problem.
            options ([`SamplingOptions`]):
                How they are sampled; the same options and seed give the same candidates.

        Returns:
            [`CandidatePool`]: as [`sample_candidates`] gives it, the same in every process. `candidates.jsonl` holds
            its rows.

        Raises:
            `ValueError`: as [`sample_candidates`], and if the directory holds another run. If no candidate is right,
            `candidates.jsonl` holds them as they were sampled.
        """
        check_answers(prompts, answers)
        identity = {
            "policy": policy_name,
            "rows": content_hash(*prompts),
            "settings": {"num_samples": num_samples, **asdict(options)},
        }
        self._claim(self.output_dir, identity, "evaluation")
        sampler = RecordedSampler(engine, self.output_dir, self.process, self.problems_per_chunk)
        records = sampler.sample(prompts, num_samples, options, kind="candidates")
        texts, num_tokens = ([record[name] for record in records] for name in ("texts", "num_tokens_each"))
        path = self.output_dir / "candidates.jsonl"
        rows = candidate_rows(prompts, answers, texts, num_tokens)
        if self.is_main_process:
            write_rows(path, rows)  # before they are judged: whatever is found wrong then can be looked at
        try:
            pool = make_pool(rows, self.answer_how, self.split_how, name=str(path))
        except ValueError as error:
            error.add_note("The candidates are kept: with what was corrected, the same command samples nothing again.")
            raise
        if self.is_main_process:
            write_rows(path, pool.rows())
        return pool

    def score(
        self,
        name: str,
        prm: ProcessRewardModel,
        pool: CandidatePool,
        batch_size: int = 32,
        is_well_formed: Callable[[Prompt, list[str]], bool] | None = None,
    ) -> list[list[list[float] | None]]:
        """
        Step scores of the candidates: those that are recorded, and the others computed now.

        Args:
            name (`str`):
                What the model is called, and the directory of its scores.
            prm ([`ProcessRewardModel`]):
                The model.
            pool ([`CandidatePool`]):
                The candidates, with their prompts.
            batch_size, is_well_formed: as in [`score_candidates`].

        Returns:
            `list[list[list[float] | None]]` of the shape of the pool, the same in every process: a score a step;
            `None`: not scored.

        Raises:
            `ValueError`: as [`score_candidates`], and if the directory holds scores of another model.
        """
        directory = self.output_dir / "scores" / name
        self._claim(directory, _identity(prm), "step scores")
        records = SharedRecords(directory, self.process)
        found = score_recorded(prm, pool, records, batch_size, is_well_formed, name, self.solutions_per_chunk)
        if self.is_main_process:
            rows = [{"problem_id": i, "step_scores": s} for i, s in zip(pool.problem_ids, found, strict=True)]
            write_rows(directory / "step_scores.jsonl", rows)
        return found

    def search(
        self,
        engine: RolloutEngine,
        prm: ProcessRewardModel,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        options: SamplingOptions,
        budgets: Sequence[int],
        aggregation: str = "min",
        is_well_formed: Callable[[Prompt, list[str]], bool] | None = None,
    ) -> list[CurvePoint]:
        """
        What beam search and DVTS come to with a model: what is recorded, and the other problems searched now.

        Args:
            engine, prompts, answers, options: as in [`sample`].
            prm ([`ProcessRewardModel`]):
                Scores the steps.
            budgets (`Sequence[int]`), aggregation (`str`), is_well_formed (`Callable`, *optional*):
                As for [`search_curve`].

        Returns:
            `list[CurvePoint]`: as [`search_curve`], the same in every process.

        Raises:
            `ValueError`: as [`search_curve`].
        """
        how = {"aggregation": aggregation, "split_how": self.split_how}
        identity = {**_identity(prm), **how, "settings": asdict(options)}
        directory = self.output_dir / "search" / content_hash(identity)[:16]  # one for each: none is in another's way
        self._claim(directory, identity, "search")
        searcher = RecordedSearch(engine, prm, SharedRecords(directory, self.process), self.problems_per_chunk)
        points = []
        for method in SEARCH_METHODS:
            for budget in budgets:
                found = searcher.search(prompts, options, method, budget, is_well_formed=is_well_formed, **how)
                of_each = ([of_problem[name] for of_problem in found] for name in RECORDED)
                points.append(curve_point(method, budget, *of_each, answers, self.answer_how))
        return points

    def _claim(self, directory: Path, identity: dict, kind: str) -> None:
        """[`open_run`], in every process: the main one claims the directory, the others find it claimed."""
        if not self.is_main_process:
            read_when(bool, (directory / MANIFEST_NAME).exists)
        open_run(directory, identity, kind=kind)


def _identity(prm: ProcessRewardModel) -> dict[str, Any]:
    """What the scores of a model depend on."""
    return {"prm": weights_fingerprint(prm.model), "format": asdict(prm.format), "prompt_kind": prm.prompt_kind}
