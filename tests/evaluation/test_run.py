"""`trl_erprm.evaluation.run`: what is kept, what is computed again, and what several processes come to together."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from trl_erprm.evaluation.candidates import read_candidates, read_step_scores
from trl_erprm.evaluation.run import EvaluationRun
from trl_erprm.evaluation.sampling import sample_candidates
from trl_erprm.evaluation.scoring import score_candidates
from trl_erprm.evaluation.search import search_curve
from trl_erprm.prm.formats import FORMATS
from trl_erprm.rollout import Completion, SamplingOptions, recorded

PROMPTS = [f"{i}+{i}" for i in range(10)]
ANSWERS = [str(2 * i % 7) for i in range(10)]
OPTIONS = SamplingOptions(16, 0.7, seed=3)


class Policy:
    """Sample k of a problem has two steps and an answer that is k too high; or it is the next step of a search."""

    def __init__(self, fails_after=None):
        self.asked, self.fails_after = [], fails_after

    def generate(self, prefixes, num_samples, options, first_sample=0):
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        self.asked += [p.prompt + p.completion for p in prefixes]
        of_each = range(first_sample, first_sample + num_samples)
        return [[self.completion(p, k, options) for k in of_each] for p in prefixes]

    def completion(self, prefix, k, options):
        answer = (eval(prefix.prompt) + k) % 7
        if not options.stop:
            return Completion(f"{prefix.prompt}=\n\nso\n#{answer}", 5 + k, "stop")
        if prefix.completion:
            return Completion(f"#{answer}", 2, "stop")
        return Completion(f"step {k}", 3, "stop", stop_text=options.stop[0])


class PRM:
    """A score tells the step; writes down what it scored. It goes by its weight."""

    def __init__(self, weight=1.0):
        self.model, self.format, self.prompt_kind = torch.nn.Linear(1, 1), FORMATS["trl"], "text"
        torch.nn.init.constant_(self.model.weight, weight)
        torch.nn.init.zeros_(self.model.bias)
        self.scored = []

    def score(self, prompts, steps, batch_size=32, *, none_if_too_long, show_progress=False):
        pairs = list(zip(prompts, steps, strict=True))
        self.scored += [(prompt, *of_one) for prompt, of_one in pairs]
        return [[number_of(prompt + step) / 100 for step in of_one] for prompt, of_one in pairs]


def number_of(text):
    return sum(ord(letter) * (i + 1) for i, letter in enumerate(text)) % 100


def sampled(run, policy, num_samples=3, options=OPTIONS, answers=ANSWERS, name="policy"):
    return run.sample(policy, name, PROMPTS, answers, num_samples, options)


@pytest.fixture
def run(tmp_path):
    def make(**changes):
        return EvaluationRun(tmp_path / "o", **{"answer_how": "arithmetic", "problems_per_chunk": 2, **changes})

    return make


class TestCandidates:
    def test_they_are_those_of_one_call(self, run, tmp_path):
        pool = sampled(run(), Policy())
        expected = sample_candidates(Policy(), PROMPTS, ANSWERS, 3, OPTIONS, "arithmetic")
        assert pool.rows() == expected.rows() and pool.num_tokens[0] == [5, 6, 7]
        assert read_candidates(tmp_path / "o" / "candidates.jsonl", "arithmetic").rows() == expected.rows()

    def test_a_run_that_was_stopped_goes_on(self, run):
        first, second = Policy(fails_after=6), Policy()
        with pytest.raises(KeyboardInterrupt):
            sampled(run(), first)
        pool = sampled(run(), second)
        assert sorted(first.asked + second.asked) == sorted(PROMPTS) and len(second.asked) == 4
        assert pool.rows() == sample_candidates(Policy(), PROMPTS, ANSWERS, 3, OPTIONS, "arithmetic").rows()
        third = Policy()
        assert sampled(run(), third).rows() == pool.rows() and third.asked == []

    def test_a_mistake_in_how_they_are_read_costs_no_sample(self, run, tmp_path):
        """They are there as they were sampled, and read anew with what was corrected."""
        with pytest.raises(ValueError, match="must hold a right candidate .*`answer_how` is 'boxed'") as caught:
            sampled(run(answer_how="boxed"), Policy())
        assert "samples nothing again" in caught.value.__notes__[0]
        rows = [json.loads(line) for line in (tmp_path / "o" / "candidates.jsonl").read_text().splitlines()]
        assert [row["answer"] for row in rows] == ANSWERS and [row["prompt"] for row in rows] == PROMPTS
        assert rows[1]["candidates"][1] == {"completion": "1+1=\n\nso\n#3", "num_tokens": 6}
        with pytest.raises(ValueError, match="must hold a right candidate"):  # and wrong reference answers
            sampled(run(), Policy(fails_after=0), answers=["9"] * 10)
        pool = sampled(run(split_how="blank_line"), Policy(fails_after=0))
        assert pool.steps[1][1] == ["1+1=", "so\n#3"]
        pool = sampled(run(), Policy(fails_after=0))
        assert pool.steps[1][1] == ["1+1=", "so", "#3"] and pool.is_correct[1].tolist() == [True, False, False]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_samples": 4}, "`settings.num_samples` is 3 there and 4 now"),
            ({"options": SamplingOptions(16, 1.0, seed=3)}, "`settings.temperature` is 0.7 there and 1.0 now"),
            ({"options": SamplingOptions(16, 0.7, seed=4)}, "`settings.seed` is 3 there and 4 now"),
            ({"name": "other"}, "`policy` is 'policy' there and 'other' now"),
        ],
    )
    def test_other_sampling_is_another_run(self, run, changes, message):
        sampled(run(), Policy())
        with pytest.raises(ValueError, match=message):
            sampled(run(), Policy(fails_after=0), **changes)

    def test_of_a_file(self, run, tmp_path):
        path = tmp_path / "given.jsonl"
        rows = [{"prompt": "p", "answer": "2", "candidates": ["a\n\nb\n#2", "\\boxed{3}"]}]
        path.write_text(json.dumps(rows[0]) + "\n")
        pool = run().read(path)
        assert pool.rows() == read_candidates(path, "arithmetic").rows()
        assert run(split_how="blank_line").read(path).steps[0][0] == ["a", "b\n#2"]
        rows[0]["candidates"].pop()
        path.write_text(json.dumps(rows[0]) + "\n")
        with pytest.raises(ValueError, match="holds another run: `candidates` is"):
            run().read(path)

    def test_a_prompt_that_is_too_long(self, run):
        class Short(Policy):
            def generate(self, prefixes, *args, **kwargs):
                raise recorded.PrefixTooLongError("Prefix 1 is too long.", [1])

        with pytest.raises(recorded.PrefixTooLongError, match="Prefix 1 is too long") as caught:
            sampled(run(), Short())
        assert "come from the rows [0, 1]" in caught.value.__notes__[0]


class TestScores:
    def test_each_solution_is_scored_once(self, run, tmp_path):
        pool, prm = sampled(run(), Policy(), num_samples=8), PRM()  # of 8 answers modulo 7 two are equal
        found = run(solutions_per_chunk=4).score("er", prm, pool)
        assert found == score_candidates(PRM(), pool) and len(prm.scored) == len(set(prm.scored)) == 70
        assert read_step_scores(tmp_path / "o" / "scores" / "er" / "step_scores.jsonl", pool) == found
        again = PRM()
        assert run().score("er", again, pool) == found and again.scored == []

    def test_a_run_that_was_stopped_goes_on(self, run):
        class Failing(PRM):
            def score(self, prompts, *args, **kwargs):
                if len(self.scored) >= 12:
                    raise KeyboardInterrupt
                return super().score(prompts, *args, **kwargs)

        pool, first, second = sampled(run(), Policy()), Failing(), PRM()
        with pytest.raises(KeyboardInterrupt):
            run(solutions_per_chunk=4).score("er", first, pool)
        assert run().score("er", second, pool) == score_candidates(PRM(), pool)
        assert len(first.scored) == 12 and len(second.scored) == 18 and not set(first.scored) & set(second.scored)

    def test_what_is_new_by_another_reading_is_scored_then(self, run):
        """Scores depend on the steps, and on which candidates have a readable answer."""
        pool = sampled(run(), Policy())
        pool.answers[0] = [None, None, "1"]  # not scored
        first, second, third = PRM(), PRM(), PRM()
        assert run().score("er", first, pool)[0][:2] == [None, None]
        pool = sampled(run(), Policy())
        assert run().score("er", second, pool) == score_candidates(PRM(), pool)
        assert second.scored == [("0+0", "0+0=", "so", "#0"), ("0+0", "0+0=", "so", "#1")]
        other = sampled(run(split_how="blank_line"), Policy())
        assert run().score("er", third, other) == score_candidates(PRM(), other)
        assert len(third.scored) == 30 and third.scored[0] == ("0+0", "0+0=", "so\n#0")

    def test_another_model_needs_another_name(self, run):
        pool = sampled(run(), Policy())
        run().score("er", PRM(), pool)
        with pytest.raises(ValueError, match="scores/er'? holds another run.*`prm` is"):
            run().score("er", PRM(weight=2.0), pool)
        other = PRM()
        other.prompt_kind = "chat"
        with pytest.raises(ValueError, match="`prompt_kind` is 'text' there and 'chat' now"):
            run().score("er", other, pool)


class TestSearch:
    def search(self, run, policy, prm, **changes):
        given = {"prompts": PROMPTS, "answers": ANSWERS, "options": OPTIONS, "budgets": [4, 8], **changes}
        return run.search(policy, prm, **given)

    def test_it_is_that_of_one_call(self, run):
        points = self.search(run(), Policy(), PRM())
        how = {"budgets": [4, 8], "answer_how": "arithmetic"}
        assert points == search_curve(Policy(), PRM(), PROMPTS, ANSWERS, OPTIONS, **how)
        assert {point.method for point in points} == {"beam_search", "dvts"} and 0 < points[0].accuracy.mean < 1

    def test_a_search_that_was_stopped_goes_on(self, run):
        expected = self.search(run(), whole := Policy(), PRM())
        first, second = Policy(fails_after=30), Policy()
        other = run()
        other.output_dir = other.output_dir / "other"
        with pytest.raises(KeyboardInterrupt):
            self.search(other, first, PRM())
        assert self.search(other, second, PRM()) == expected
        assert 0 < len(second.asked) < len(whole.asked)

    def test_other_answers_and_budgets_search_only_what_is_new(self, run):
        points, policy = self.search(run(), Policy(), PRM()), Policy()
        assert self.search(run(), policy, PRM(), budgets=[8, 4])[0] == points[1]
        right = self.search(run(), policy, PRM(), answers=["0"] * 10)
        assert policy.asked == [] and right[0].accuracy != points[0].accuracy
        assert self.search(run(answer_how="boxed"), policy, PRM())[0].accuracy.mean == 0
        assert self.search(run(), policy, PRM(), budgets=[12])[0].tokens > points[1].tokens and policy.asked

    @pytest.mark.parametrize("changes", [{"aggregation": "last"}, {"options": SamplingOptions(9)}])
    def test_another_search_is_in_no_ones_way(self, run, changes):
        points, policy = self.search(run(), Policy(), PRM()), Policy()
        others = self.search(run(), policy, PRM(), **changes)
        assert policy.asked
        again = Policy(fails_after=0)
        assert (self.search(run(), again, PRM()), self.search(run(), again, PRM(), **changes)) == (points, others)


class TestProcesses:
    @pytest.fixture(autouse=True)
    def patience(self, monkeypatch):
        """One that waits in vain gives up."""
        calls, sleep = [], recorded.sleep

        def wait(seconds):
            calls.append(seconds)
            if len(calls) > 500:
                raise TimeoutError
            sleep(0.002)

        monkeypatch.setattr(recorded, "sleep", wait)

    def runs(self, run, number):
        processes = (
            SimpleNamespace(process_index=i, num_processes=number, is_main_process=i == 0) for i in range(number)
        )
        return [run(process=process) for process in processes]

    def test_three_come_to_what_one_does(self, run, tmp_path):
        def evaluate(one, policy, prm):
            pool = sampled(one, policy)
            scores = one.score("er", prm, pool)
            return pool.rows(), scores, one.search(policy, prm, PROMPTS, ANSWERS, OPTIONS, [4])

        alone = run()
        alone.output_dir = tmp_path / "alone"
        expected = evaluate(alone, Policy(), PRM())
        policies, prms = [Policy() for _ in range(3)], [PRM() for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(evaluate, self.runs(run, 3), policies, prms))
        assert found == [expected] * 3
        shares = [{text for text in policy.asked if text in PROMPTS} for policy in policies]
        assert all(shares) and sum(map(len, shares)) == len(PROMPTS) and set().union(*shares) == set(PROMPTS)
        assert [{prompt for prompt, *_ in prm.scored} for prm in prms] == shares
        for path in ("candidates.jsonl", "scores/er/step_scores.jsonl"):
            assert (tmp_path / "o" / path).read_bytes() == (tmp_path / "alone" / path).read_bytes()
        # another number of processes goes on with what is there
        policy, prm = Policy(fails_after=0), PRM()
        assert evaluate(run(), policy, prm) == expected and prm.scored == []

    def test_all_say_that_it_is_another_run(self, run):
        sampled(run(), Policy())
        for one in self.runs(run, 2):
            with pytest.raises(ValueError, match="`settings.num_samples` is 3 there and 4 now"):
                sampled(one, Policy(fails_after=0), num_samples=4)

    def test_nothing_is_written_before_the_run_is_claimed(self, run, tmp_path):
        with pytest.raises(TimeoutError):
            sampled(self.runs(run, 2)[1], Policy(fails_after=0))
        assert not (tmp_path / "o").exists()
