import logging
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.labeling.test_monte_carlo import CONFIG, BernoulliEngine
from trl_erprm.labeling import MonteCarloLabeler, choose_eta, relabel
from trl_erprm.labeling.estimators import entropy_regularized_value_from_counts
from trl_erprm.labeling.eta_choice import ETAS, label_reliability, ranking_accuracy, validation_rows
from trl_erprm.manifest import content_hash


def labelled(counts, total, prompt="p", outcome=1.0):
    """A row with these counts before the last step."""
    return {
        "prompt": prompt,
        "num_correct": [*counts, int(outcome == 1.0)],
        "num_rollouts": [total] * len(counts) + [1],
        "outcome": outcome,
    }


class TestReliability:
    def test_by_hand(self):
        """Prefixes 0, 2 and 4 right of 4, halves of 2: cov 5/36, var 7/36, so r = 5/7."""
        assert label_reliability([0, 2, 4], [4, 4, 4], eta=0) == pytest.approx(5 / 7, abs=1e-12)
        # eta = inf: halves of the prefix 2 of 4 are hopeless with probability 1/6 each, never both; means are 1/3 and
        # 11/18 of ones: var = m (1 - m) with m = (0 + 5/6 + 1) / 3 = 11/18; product (0 + 4/6 + 1) / 3 = 5/9
        m = 11 / 18
        r = (5 / 9 - m**2) / (m - m**2)
        assert label_reliability([0, 2, 4], [4, 4, 4], eta=math.inf) == pytest.approx(r, abs=1e-12)

    def test_the_mean_over_cuts_is_that_of_drawn_cuts(self):
        rng = np.random.default_rng(0)
        correct, total = np.array([1, 5, 7, 0, 3]), np.array([5, 8, 7, 4, 6])
        drawn = []
        for _ in range(20_000):
            for c, n in zip(correct, total, strict=True):
                outcomes = rng.permutation([1] * c + [0] * (n - c))
                half = n // 2
                pair = [outcomes[:half].sum(), outcomes[half : 2 * half].sum()]
                drawn.append(entropy_regularized_value_from_counts(pair, half, 2.0))
        first, second = np.array(drawn).T
        r = np.cov(first, second)[0, 1] / ((first.var() + second.var()) / 2)
        assert label_reliability(correct, total, 2.0) == pytest.approx(r, abs=0.01)

    @pytest.mark.parametrize("values", [(0.02, 0.1), (0.3, 0.7), (0.9, 0.98)])
    def test_chooses_the_best_where_it_is_known(self, values):
        """Labels of another sample of the same prefixes are at hand here: their correlation is the truth."""
        rng = np.random.default_rng(1)
        p = rng.choice(values, 20_000)
        halves = [rng.binomial(8, p) for _ in range(2)]
        truth = {
            eta: np.corrcoef([entropy_regularized_value_from_counts(c, 8, eta) for c in halves])[0, 1] for eta in ETAS
        }
        chosen = choose_eta([labelled([c], 16) for c in rng.binomial(16, p)])
        assert truth[chosen.eta] > max(truth.values()) - 0.006
        assert max(truth.values()) - min(truth.values()) > 0.015  # so that the choice matters
        for eta in ETAS:
            assert chosen.scores[eta] == pytest.approx(truth[eta], abs=0.03)
        expected = {0.02: lambda eta: eta >= 0, 0.3: lambda eta: abs(eta) <= 2, 0.9: lambda eta: eta <= 0}
        assert expected[values[0]](chosen.eta)

    def test_what_says_nothing_is_left_out(self):
        assert label_reliability([0, 1, 4, 1], [4, 1, 4, 0], eta=0) == label_reliability([0, 4], [4, 4], eta=0) == 1.0
        assert label_reliability([2, 2], [4, 4], eta=0) == pytest.approx(-1)  # halves of 2 of 4 mirror each other
        assert math.isnan(label_reliability([0, 0], [4, 4], eta=0))
        assert math.isnan(label_reliability([], [], eta=0))


class TestRanking:
    # Right solutions keep some hope (p = 0.3); wrong ones are promising until their error.
    HOPE = [labelled([30, 30, 30], 100), labelled([90, 90, 0], 100, outcome=0.0)]

    def test_by_hand(self):
        """Means at eta = 0: 0.3 of the right solution, 0.6 of the wrong one."""
        assert ranking_accuracy(self.HOPE, 0.0) == 0.0
        assert ranking_accuracy(self.HOPE, 10.0) == 1.0
        half = [*self.HOPE, labelled([60, 60, 60], 100, outcome=0.0), labelled([30, 30, 30], 100, outcome=None)]
        assert ranking_accuracy(half, 0.0) == pytest.approx(0.5 / 3)  # a tie with the solution without an answer

    def test_chooses_the_eta_that_orders(self):
        choice = choose_eta(self.HOPE, "ranking")
        assert choice.scores[choice.eta] == 1.0 and choice.eta > 1
        assert choice.eta == min(eta for eta, score in choice.scores.items() if score == 1.0 and eta > 0)
        # The mirror image: one bad step in a right solution.
        mirrored = [labelled([70, 70, 70], 100, outcome=0.0), labelled([10, 10, 100], 100)]
        choice = choose_eta(mirrored, "ranking")
        assert choice.eta < 0 and choice.scores[choice.eta] == 1.0 and choice.scores[10.0] == 0.0

    def test_pairs_are_of_one_prompt(self):
        apart = [self.HOPE[0], {**self.HOPE[1], "prompt": "q"}]
        assert math.isnan(ranking_accuracy(apart, 0.0))
        unlabelled = {**self.HOPE[1], "num_correct": [0, 0, 0, 0], "num_rollouts": [0, 0, 0, 1]}
        assert math.isnan(ranking_accuracy([self.HOPE[0], unlabelled], 0.0))


def test_errors():
    with pytest.raises(ValueError, match="`criterion` must be one of 'reliability', 'ranking', got 'auto'"):
        choose_eta([], "auto")
    with pytest.raises(ValueError, match="must have prefixes with 2 or more rollouts .* got none among 1 solutions"):
        choose_eta([labelled([1], 1)])
    with pytest.raises(ValueError, match="must have prompts with a right and a wrong solution"):
        choose_eta([labelled([1], 4)], "ranking")


def test_ties_go_to_the_eta_nearest_to_0():
    assert choose_eta([labelled([0], 4), labelled([4], 4)]).eta == 0.0


def test_validation_rows_are_those_of_a_share_of_the_prompts():
    given = [{"prompt": f"p{i // 2}"} for i in range(2000)]
    found = validation_rows(given, 0.2)
    assert len(found) == pytest.approx(400, abs=80) and found == validation_rows(given, 0.2)
    assert validation_rows(given, 1.0) == given
    assert {row["prompt"] for row in found} <= {row["prompt"] for row in validation_rows(given, 0.3)}
    assert all(found.count(row) == 2 for row in found)


class TestLabeler:
    GIVEN = [{"prompt": f"p{i}", "completions": ["a", "b", "#1"], "answer": str(i % 2)} for i in range(60)]

    def label(self, tmp_path=None, **changes):
        def probability(prefix):
            return (0.02, 0.15)[int(content_hash(prefix.prompt)[:4], 16) % 2]

        config = replace(CONFIG, num_rollouts=16, eta="auto", prefixes_per_chunk=100, **changes)
        labeler = MonteCarloLabeler(BernoulliEngine(probability), config)
        return labeler.label(self.GIVEN, tmp_path), labeler.summary["eta"]

    def test_labels_are_those_of_the_chosen_eta(self, caplog, tmp_path):
        with caplog.at_level(logging.INFO):
            result, eta = self.label(tmp_path, eta_validation_share=0.5)
        assert eta == choose_eta(validation_rows(list(result), 0.5)).eta
        assert result.to_list() == relabel(result, eta).to_list()
        assert f"eta = {eta:g} has the highest reliability on" in caplog.text
        # eta, and how it was chosen, are free: nothing is sampled again.
        again, other = self.label(tmp_path, eta_validation_share=1.0)
        assert again["num_correct"][:] == result["num_correct"][:]
        assert other == choose_eta(list(result)).eta

    def test_share_and_criterion_decide(self):
        all_rows = list(self.label(eta_validation_share=1.0)[0])
        chosen = {share: self.label(eta_validation_share=share)[1] for share in (0.05, 0.1, 0.3, 1.0)}
        assert chosen == {share: choose_eta(validation_rows(all_rows, share)).eta for share in chosen}
        assert len(set(chosen.values())) > 1
        with pytest.raises(ValueError, match="must have prompts with a right and a wrong solution"):
            self.label(eta_criterion="ranking")


def test_is_read_from_the_command_line():
    from trl_erprm.labeling import LabelingConfig
    from trl_erprm.parsing import StrictParser

    parser = StrictParser(LabelingConfig)
    arguments = ["--eta", "auto", "--eta_criterion", "ranking"]
    assert parser.parse_args_and_config(arguments)[0] == LabelingConfig(eta="auto", eta_criterion="ranking")
    for text, value in (("inf", math.inf), ("-inf", -math.inf), ("2", 2.0), ("-1e-3", -1e-3)):
        [config] = StrictParser(LabelingConfig).parse_args_and_config(["--eta", text])
        assert config.eta == value and isinstance(config.eta, float)
    [config] = StrictParser(LabelingConfig).parse_args_and_config(["--label_tolerance", "0.4"])
    assert config.label_tolerance == 0.4
