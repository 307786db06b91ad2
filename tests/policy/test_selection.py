"""`trl_erprm.policy.selection`: each rule by hand, its limits, and what is said of each completion."""

import math
from collections import Counter

import numpy as np
import pytest

from trl_erprm.policy.selection import (
    REASONS,
    RULES,
    Candidates,
    SelectionRule,
    above_threshold,
    best,
    combine_scores,
    distinct,
    equation_list,
    normalized_text,
    select,
    softmax_sample,
    top_k,
)

SCORES = [0.3, None, 0.9, 0.9, -1.0, 0.5]


class TestRules:
    def test_best(self):
        assert best(SCORES) == [2]
        assert best([None, None]) == best([]) == []

    def test_top_k(self):
        assert top_k(SCORES, 1) == best(SCORES)
        assert top_k(SCORES, 3) == [2, 3, 5]
        assert top_k(SCORES, 99) == [0, 2, 3, 4, 5]
        assert top_k([0.5, 0.5, 0.5], 2) == [0, 1]

    def test_threshold(self):
        assert above_threshold(SCORES, 0.5) == [2, 3, 5]
        assert above_threshold(SCORES, -math.inf) == [0, 2, 3, 4, 5]
        assert above_threshold(SCORES, 0.91) == []

    def test_softmax_draws_with_its_probabilities(self):
        """Of two draws from three: P(i, j) = p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j)."""
        scores, temperature = [0.0, 1.0, 2.0], 0.7
        weights = np.exp(np.array(scores) / temperature)
        p = weights / weights.sum()
        drawn = Counter(tuple(softmax_sample(scores, 2, temperature, seed)) for seed in range(4000))
        for i, j in ((0, 1), (0, 2), (1, 2)):
            expected = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
            assert drawn[i, j] / 4000 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))

    def test_softmax_limits(self):
        assert softmax_sample(SCORES, 3, 1e-6, seed=1) == [2, 3, 5]
        flat = Counter(softmax_sample(SCORES, 1, 1e6, seed)[0] for seed in range(2000))
        assert set(flat) == {0, 2, 3, 4, 5} and min(flat.values()) > 320
        assert softmax_sample(SCORES, 2, 1.0, seed=7) == softmax_sample(SCORES, 2, 1.0, seed=7)
        assert softmax_sample([None], 2, 1.0, seed=7) == []

    def test_distinct(self):
        assert distinct(["a", "b", "a", "b", "c"], [0.1, 0.5, 0.4, 0.5, None]) == [1, 2, 4]

    def test_combined_scores(self):
        assert combine_scores([[1.0, 2.0], [0.5, None]]) == [1.5, None]
        assert combine_scores([[1.0, 2.0], [0.5, 1.0]], weights=[2.0, -1.0]) == [1.5, 3.0]


class TestEqualSolutions:
    def test_text(self):
        assert normalized_text("1 +  1=2\n\n#2 ") == normalized_text("1 + 1=2\n#2")
        assert normalized_text("1+1=2") != normalized_text("1 +1=2")

    @pytest.mark.parametrize(
        "text, equations",
        [
            ("He pays 3 * $2 = $6.", ("3*2=6",)),
            ("<<3*2=6>>6 and <<6/4=1.5>>1.5.", ("3*2=6", "6/4=1.5")),
            ("2+3=5\n5*1,000=5,000\n#5000", ("2+3=5", "5*1000=5000")),
            ("(1 + 2) × 3 = -9", ("(1+2)×3=-9",)),
            ("x = 4", ("x = 4",)),
            ("", ("",)),
        ],
    )
    def test_equations(self, text, equations):
        assert equation_list(text) == equations

    def test_the_order_of_equations_makes_a_difference(self):
        assert equation_list("1+1=2, 2+2=4") != equation_list("2+2=4, 1+1=2")


def pool(scores, correct=None, texts=None, truncated=()):
    texts = texts or [f"{i}+0={i}" for i in range(len(scores))]
    return Candidates(texts, scores, [i in truncated for i in range(len(scores))], correct)


def kept(candidates, *args, **kwargs):
    return [i for i, r in enumerate(select(candidates, SelectionRule(*args, **kwargs))) if r == "kept"]


class TestSelect:
    def test_each_rule(self):
        candidates = pool([0.3, 0.9, 0.5, 0.7], correct=[True, False, True, None])
        assert kept(candidates) == [1]
        assert kept(candidates, "threshold", threshold=0.5) == [1, 2, 3]
        assert kept(candidates, "correct") == [0, 2]
        assert kept(candidates, "best_correct") == [2]
        assert kept(candidates, "top_k", k=2) == [1, 3]
        assert kept(candidates, "softmax", k=2, temperature=1e-6) == [1, 3]

    @pytest.mark.parametrize("how", RULES)
    def test_truncated_and_unscored_are_never_kept(self, how):
        """Whatever their scores and answers."""
        candidates = pool([9.0, None, 0.1], correct=[True, True, True], truncated=[0])
        reasons = select(candidates, SelectionRule(how, threshold=0.0, k=3))
        assert reasons == ["truncated", "no_score", "kept"]
        assert select(pool([None, None], [True, True]), SelectionRule(how, threshold=0.0)) == ["no_score"] * 2

    def test_every_reason(self):
        seen = set()
        for rule, candidates in (
            (SelectionRule(), pool([1.0, None, 0.5, 0.7], truncated=[3])),
            (SelectionRule("correct", skip_always_solved=True), pool([1.0], [True])),
            (SelectionRule(skip_never_solved=True), pool([1.0], [None])),
            (SelectionRule("correct", threshold=0.5), pool([1.0, 0.2, 1.0], [True, True, False])),
            (
                SelectionRule("top_k", k=3, deduplicate="text", max_per_prompt=1),
                pool([1, 2, 3], texts=["a", "b", "a"]),
            ),
        ):
            seen.update(select(candidates, rule))
        assert seen == set(REASONS)

    def test_always_and_never_solved(self):
        always, never, some = ([True, True], [False, None], [True, False])
        for correct, skips in ((always, "skip_always_solved"), (never, "skip_never_solved")):
            assert kept(pool([0.1, 0.2], correct)) == [1]
            assert kept(pool([0.1, 0.2], correct), **{skips: True}) == []
        assert kept(pool([0.1, 0.2], some), skip_always_solved=True, skip_never_solved=True) == [1]

    def test_duplicates_do_not_take_places(self):
        """The two best are the same solution: the third takes the second place."""
        candidates = pool([0.9, 0.8, 0.7], texts=["1+1=2\n", " 1+1=2", "so 2"])
        assert kept(candidates, "top_k", k=2) == [0, 1]
        assert kept(candidates, "top_k", k=2, deduplicate="text") == [0, 2]
        by_words = pool([0.5, 0.9], texts=["First 1+1=2.", "Then 1 + 1 = 2."])
        assert kept(by_words, "top_k", k=2, deduplicate="text") == [0, 1]
        assert kept(by_words, "top_k", k=2, deduplicate="equations") == [1]

    def test_cap(self):
        candidates = pool([0.1, 0.9, 0.5], [True, True, True])
        assert kept(candidates, "correct", max_per_prompt=2) == [1, 2]
        assert kept(candidates, "correct", max_per_prompt=9) == [0, 1, 2]

    def test_the_seed_of_a_draw(self):
        candidates = pool([0.5] * 8)
        draws = {tuple(select(candidates, SelectionRule("softmax"), seed)) for seed in range(30)}
        assert len(draws) > 4 and all(draw.count("kept") == 1 for draw in draws)

    def test_without_verdicts(self):
        with pytest.raises(ValueError, match="The rule 'best_correct' compares answers, but `is_correct` is missing"):
            select(pool([0.5]), SelectionRule("best_correct"))
