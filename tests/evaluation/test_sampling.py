"""`trl_erprm.evaluation.sampling`: whose completions become which candidate, and what is judged of them."""

import pytest

from trl_erprm.evaluation.candidates import read_candidates, write_rows
from trl_erprm.evaluation.sampling import sample_candidates
from trl_erprm.rollout import Completion, Prefix, SamplingOptions

OPTIONS = SamplingOptions(16, 0.7, seed=3)


class Policy:
    """Answers each problem once right, then one too high; writes down what it was asked."""

    def __init__(self):
        self.asked = []

    def generate(self, prefixes, num_samples, options, first_sample=0):
        self.asked.append((list(prefixes), num_samples, options))
        return [
            [Completion(f"{p.prompt}=?\n#{eval(p.prompt) + k}", 5 + k, "stop") for k in range(num_samples)]
            for p in prefixes
        ]


def test_candidates_of_each_problem():
    policy = Policy()
    pool = sample_candidates(policy, ["1+1", "2+3"], ["2", "6"], 3, OPTIONS, "arithmetic")
    assert policy.asked == [([Prefix("1+1"), Prefix("2+3")], 3, OPTIONS)]
    assert pool.prompts == ["1+1", "2+3"] and pool.references == ["2", "6"] and pool.problem_ids == ["0", "1"]
    assert pool.answers == [["2", "3", "4"], ["5", "6", "7"]]
    assert pool.is_correct.tolist() == [[True, False, False], [False, True, False]]
    assert pool.num_tokens == [[5, 6, 7], [5, 6, 7]]
    assert pool.steps[1][0] == ["2+3=?", "#5"]


def test_how_answers_and_steps_are_read():
    arguments = (Policy(), ["1+1"], ["2"], 2, OPTIONS)
    assert sample_candidates(*arguments, "arithmetic", "blank_line").steps[0][0] == ["1+1=?\n#2"]
    with pytest.raises(ValueError, match="The sampled candidates must hold a right candidate .*got none among 2"):
        sample_candidates(*arguments, "boxed")


def test_what_is_kept_is_read_again(tmp_path):
    pool = sample_candidates(Policy(), ["1+1", "2+3"], ["2", "6"], 3, OPTIONS, "arithmetic")
    write_rows(tmp_path / "candidates.jsonl", pool.rows())
    again = read_candidates(tmp_path / "candidates.jsonl", "arithmetic")
    assert again.rows() == pool.rows() and again.has_steps


@pytest.mark.parametrize(
    ("prompts", "answers", "found"), [([], [], "got 0 for 0 problems"), (["1+1"], ["2", "3"], "got 2 for 1 problem")]
)
def test_an_answer_for_each_problem(prompts, answers, found):
    with pytest.raises(ValueError, match=f"`answers` must hold one answer a problem, {found}"):
        sample_candidates(Policy(), prompts, answers, 2, OPTIONS)
