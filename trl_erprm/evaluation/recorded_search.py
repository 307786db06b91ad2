"""Beam search and DVTS shared among processes and recorded as they go, so that no problem is searched twice."""

from collections.abc import Sequence
from typing import Any

from ..manifest import content_hash
from ..prm.formats import Prompt
from ..rollout import RolloutEngine, SamplingOptions
from ..rollout.recorded import Progress, SharedRecords, read_when
from .search import StepScorer, beam_search, diverse_verifier_tree_search

__all__ = ["RECORDED", "RecordedSearch"]

RECORDED = ("text", "num_tokens", "num_prm_calls")
"""What is kept of a search: the chosen solution and what all of them cost ([`SearchResult`])."""


class RecordedSearch:
    """Searches problems, each once, whatever interrupts it.

    What a search chooses depends on its problem alone, up to rounding, so it makes no difference which problems are
    searched together.

    Args:
        engine ([`RolloutEngine`]):
            The policy.
        prm ([`ProcessRewardModel`] or another [`StepScorer`]):
            Scores the steps.
        records ([`SharedRecords`]):
            Where the results are kept (`found-<process>.jsonl`).
        problems_per_chunk (`int`, *optional*, defaults to `64`):
            Problems that are searched and recorded together: what a crash loses at most. Default: as
            [`LabelingConfig`].
    """

    def __init__(self, engine: RolloutEngine, prm: StepScorer, records: SharedRecords, problems_per_chunk: int = 64):
        self.engine = engine
        self.prm = prm
        self.records = records
        self.problems_per_chunk = problems_per_chunk

    def search(
        self, prompts: Sequence[Prompt], options: SamplingOptions, method: str, num_beams: int, **how: Any
    ) -> list[dict[str, Any]]:
        """Searches what is not recorded yet of this process's share, and gives the records of all.

        Args:
            prompts (`Sequence` of `str` or messages):
                The problems.
            options ([`SamplingOptions`]):
                How steps are sampled.
            method (`str`):
                `"beam_search"` or `"dvts"`.
            num_beams (`int`):
                N, beams a round.
            **how:
                As for [`beam_search`]. The same in all calls on these records, as are the options.

        Returns:
            `list[dict]`: for each problem its record, with what [`RECORDED`] names; the same in every process.
        """
        process = self.records.process
        search = beam_search if method == "beam_search" else diverse_verifier_tree_search
        keys = [content_hash(method, num_beams, prompt) for prompt in prompts]
        prompt_of = dict(zip(keys, prompts, strict=True))

        def read() -> dict[str, dict[str, Any]]:
            return {record["search"]: record for record in self.records.read("found") if record["search"] in prompt_of}

        done = read()
        todo = [k for k, prompt in prompt_of.items() if k not in done and self.records.is_own(content_hash(prompt))]
        self.records.start_clock()
        with Progress(f"Search ({method}, {num_beams} beams)", "problem", len(todo), process) as progress:
            for start in range(0, len(todo), self.problems_per_chunk):
                chunk = todo[start : start + self.problems_per_chunk]
                results = search(self.engine, self.prm, [prompt_of[key] for key in chunk], options, num_beams, **how)
                found = [
                    {"search": key, **dict(zip(RECORDED, (r.best_text, r.num_tokens, r.num_prm_calls), strict=True))}
                    for key, r in zip(chunk, results, strict=True)
                ]
                self.records.append("found", found)
                done.update(zip(chunk, found, strict=True))
                progress.update(len(chunk), sum(r.num_tokens for r in results))
        if process.num_processes > 1:
            done = read_when(lambda found: prompt_of.keys() <= found.keys(), read)
        return [done[key] for key in keys]
