"""Advantage estimators: values by hand, naive loops, and the properties that each is chosen for."""

import math

import pytest
import torch

from trl_erprm.policy.advantages import (
    advantages_per_token,
    clip_step_rewards,
    delta_step_rewards,
    min_form_advantages,
    reward_to_go_advantages,
    soft_advantages,
)

NAN = float("nan")


def random_scores(num_groups=3, num_generations=4, most_steps=6, seed=0, share_unscored=0.2):
    """Scores of completions with different numbers of steps, NaN behind the last; some rows have none at all."""
    generator = torch.Generator().manual_seed(seed)
    n = num_groups * num_generations
    scores = torch.rand(n, most_steps, generator=generator, dtype=torch.float64)
    num_steps = torch.randint(1, most_steps + 1, (n,), generator=generator)
    num_steps[torch.rand(n, generator=generator) < share_unscored] = 0
    return scores.masked_fill(torch.arange(most_steps) >= num_steps[:, None], NAN)


def rows(scores):
    """Lists without the NaN."""
    return [[x for x in row.tolist() if not math.isnan(x)] for row in scores]


def padded(lists, size):
    return torch.tensor([row + [NAN] * (size - len(row)) for row in lists], dtype=torch.float64)


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-9, atol=1e-12)


class TestShaping:
    def test_clip(self):
        shaped = clip_step_rewards(torch.tensor([[0.75, 0.25, NAN]]), threshold=0.5)
        assert_equal(shaped, torch.tensor([[0.0, -0.25, NAN]]))

    def test_clipped_rewards_never_pay_for_more_steps(self):
        scores = random_scores()
        assert (clip_step_rewards(scores, 0.5).nan_to_num() <= 0).all()

    def test_delta_by_hand(self):
        shaped = delta_step_rewards(torch.tensor([[0.75, 0.5, 0.25], [0.5, 1.0, NAN], [0.5, NAN, NAN]]))
        assert_equal(shaped, torch.tensor([[0.25, 0.5, 0.0], [0.5, 0.0, NAN], [0.0, NAN, NAN]]))

    def test_delta_telescopes_to_the_own_score(self):
        scores = random_scores(share_unscored=0.0)
        for row, shaped in zip(rows(scores), rows(delta_step_rewards(scores)), strict=True):
            for k in range(len(row) - 1):
                assert sum(shaped[k:]) == pytest.approx(row[k])

    def test_delta_ignores_a_repeated_step(self):
        """The return of the first step is its own score, however often the second is said again."""
        short, long = torch.tensor([[0.9, 0.8, 0.5]]), torch.tensor([[0.9, 0.8, 0.8, 0.8, 0.5]])
        assert delta_step_rewards(short).sum() == pytest.approx(delta_step_rewards(long).sum().item())


class TestRewardToGo:
    @pytest.mark.parametrize("seed", range(5))
    def test_against_a_loop(self, seed):
        scores, size = random_scores(seed=seed), 4
        expected = []
        for start in range(0, len(scores), size):
            group = rows(scores[start : start + size])
            rewards = [r for row in group for r in row]
            mean = sum(rewards) / len(rewards) if rewards else 0.0
            std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / max(len(rewards) - 1, 1))
            for row in group:
                normalized = [(r - mean) / (std + 1e-4) for r in row]
                expected.append([sum(normalized[k:]) for k in range(len(row))])
        assert_equal(reward_to_go_advantages(scores, size), padded(expected, scores.size(1)))

    def test_scaled_by_hand(self):
        nothing, more = [NAN, NAN], [[0.5, 0.5], [0.5, 0.5]]
        rewards = torch.tensor([[0.8, 0.2], [0.6, NAN], *more, nothing, nothing], dtype=torch.float64)
        # less the mean of the group, 8/15: 4/15, -5/15 and 1/15
        returns = padded([[-1 / 15, -5 / 15], [1 / 15], [0, 0], [0, 0], [], []], 2)
        of_group = math.sqrt((16 + 25 + 1) / 225 / 2)
        seven = [0.8, 0.2, 0.6, 0.5, 0.5, 0.5, 0.5]
        of_batch = math.sqrt(sum((r - 3.6 / 7) ** 2 for r in seven) / 6)
        assert_equal(reward_to_go_advantages(rewards, 2, "none"), returns)
        assert_equal(reward_to_go_advantages(rewards, 2, "group"), returns / (of_group + 1e-4))
        assert_equal(reward_to_go_advantages(rewards, 2), returns / (of_group + 1e-4))
        assert_equal(reward_to_go_advantages(rewards, 2, "batch"), returns / (of_batch + 1e-4))
        with pytest.raises(ValueError, match="`scale_rewards` must be one of 'group', 'batch', 'none', got 'groups'"):
            reward_to_go_advantages(rewards, 2, "groups")

    @pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
    def test_single_steps_are_scaled_as_the_outcomes_of_grpo(self, scale_rewards):
        """Completions of one step: `step_weight` and `outcome_weight` then weigh advantages of one size."""
        rewards = random_scores(most_steps=1, share_unscored=0.0).squeeze(1)
        groups = rewards.view(-1, 4)
        std = groups.std(dim=1, keepdim=True) if scale_rewards == "group" else rewards.std()
        expected = (groups - groups.mean(dim=1, keepdim=True)) / (1.0 if scale_rewards == "none" else std + 1e-4)
        assert_equal(reward_to_go_advantages(rewards[:, None], 4, scale_rewards), expected.reshape(-1, 1))

    def test_groups_do_not_mix(self):
        scores = random_scores(num_groups=2, share_unscored=0.0)
        changed = scores.clone()
        changed[4:] *= 0.5
        assert_equal(reward_to_go_advantages(scores, 4)[:4], reward_to_go_advantages(changed, 4)[:4])

    def test_splitting_a_good_step_pays(self):
        """What the docstring warns of, and what shaping is for."""
        whole = torch.tensor([[0.9, 0.9], [0.1, 0.1]])
        split = torch.tensor([[0.9, 0.9, 0.9, 0.9], [0.1, 0.1, NAN, NAN]])
        assert reward_to_go_advantages(split, 2)[0, 0] > reward_to_go_advantages(whole, 2)[0, 0]


class TestMinForm:
    @pytest.mark.parametrize("seed", range(5))
    def test_against_a_loop(self, seed):
        scores, size, temperature = random_scores(seed=seed), 4, 0.2
        expected = []
        for start in range(0, len(scores), size):
            returns = []
            for row in rows(scores[start : start + size]):
                weights = [math.exp(-x / temperature) for x in row]
                parts = [w / sum(weights) * x for w, x in zip(weights, row, strict=True)]
                returns.append([sum(parts[k:]) for k in range(len(row))])
            for i, own in enumerate(returns):
                others = [r for j, r in enumerate(returns) if j != i and r]
                baseline = [sum(r[k] for r in others if k < len(r)) / max(len(others), 1) for k in range(len(own))]
                expected.append([g - b for g, b in zip(own, baseline, strict=True)] if others else [0.0] * len(own))
        assert_equal(min_form_advantages(scores, size, temperature), padded(expected, scores.size(1)))

    def test_first_step_carries_the_soft_minimum(self):
        from trl_erprm.prm.aggregation import aggregate

        scores = random_scores(share_unscored=0.0)
        advantages = min_form_advantages(scores, 4, temperature=0.1)
        minima = torch.tensor([[aggregate(row, "softmin(0.1)")] for row in rows(scores)], dtype=torch.float64).view(
            -1, 4
        )
        others = (minima.sum(1, keepdim=True) - minima) / 3
        assert_equal(advantages[:, 0], (minima - others).flatten())

    def test_splitting_a_good_step_does_not_pay(self):
        whole = torch.tensor([[0.9, 0.2, 0.9], [0.1, 0.1, 0.1]])
        split = torch.tensor([[0.9, 0.9, 0.9, 0.2, 0.9], [0.1, 0.1, 0.1, NAN, NAN]])
        gain = min_form_advantages(split, 2, 0.01)[0, 0] - min_form_advantages(whole, 2, 0.01)[0, 0]
        assert abs(gain) < 1e-6

    def test_blame_reaches_the_worst_step_and_not_beyond(self):
        bad_in_the_middle = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
        advantages = min_form_advantages(bad_in_the_middle, 2, 0.01)
        assert advantages[0, 0] < -0.9 and advantages[0, 1] < -0.6
        assert advantages[1, 0] > 0.9

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, NAN])
    def test_temperature(self, temperature):
        with pytest.raises(ValueError, match="soft minimum must be a finite number above 0"):
            min_form_advantages(torch.ones(2, 2), 2, temperature)


class TestSoftAdvantage:
    @pytest.mark.parametrize("eta", [-3.0, 0.5, 1.0, 10.0])
    def test_against_a_loop(self, eta):
        values, size = random_scores(seed=3), 4
        expected = []
        for start in range(0, len(values), size):
            group = rows(values[start : start + size])
            first = [row[0] for row in group if row]
            prompt_value = math.log(sum(math.exp(eta * v) for v in first) / len(first)) / eta if first else 0.0
            for row in group:
                expected.append([b - a for a, b in zip([prompt_value, *row], row, strict=False)])
        assert_equal(soft_advantages(values, size, eta), padded(expected, values.size(1)))

    def test_bellman_identity(self):
        """exp(eta A) has mean 1 over the first steps of a group: the best policy's probabilities add up to one."""
        values, eta = random_scores(share_unscored=0.0), 4.0
        ratios = torch.exp(eta * soft_advantages(values, 4, eta)[:, 0]).view(-1, 4)
        torch.testing.assert_close(ratios.mean(1), torch.ones(3, dtype=torch.float64))

    @pytest.mark.parametrize("eta, limit", [(0.0, 1e-6), (math.inf, 1e4), (-math.inf, -1e4)])
    def test_limits(self, eta, limit):
        values = random_scores(seed=1)
        actual, near = soft_advantages(values, 4, eta), soft_advantages(values, 4, limit)
        torch.testing.assert_close(actual, near, equal_nan=True, rtol=0, atol=2e-4)

    def test_repeated_steps_change_no_sum(self):
        short = torch.tensor([[0.4, 0.9, NAN, NAN], [0.5, 0.2, NAN, NAN]])
        long = torch.tensor([[0.4, 0.4, 0.4, 0.9], [0.5, 0.2, NAN, NAN]])
        sums = [soft_advantages(v, 2, 2.0).nansum(1) for v in (short, long)]
        torch.testing.assert_close(*sums)


@pytest.mark.parametrize(
    "estimate",
    [
        lambda s, g: reward_to_go_advantages(s, g),
        lambda s, g: reward_to_go_advantages(s, g, "batch"),
        lambda s, g: reward_to_go_advantages(s, g, "none"),
        lambda s, g: min_form_advantages(s, g),
        lambda s, g: soft_advantages(s, g, 1.0),
    ],
    ids=["reward_to_go", "reward_to_go, batch", "reward_to_go, none", "min_form", "soft_advantage"],
)
class TestAll:
    def test_an_unscored_completion_changes_nothing_for_the_others(self, estimate):
        scores = random_scores(num_groups=1, num_generations=3, share_unscored=0.0)
        with_unscored = torch.cat([scores, torch.full((1, scores.size(1)), NAN, dtype=torch.float64)])
        actual = estimate(with_unscored, 4)
        assert_equal(actual[:3], estimate(scores, 3))
        assert actual[3].isnan().all()

    def test_steps_stay_where_they_were(self, estimate):
        scores = random_scores()
        assert torch.equal(estimate(scores, 4).isnan(), scores.isnan())

    def test_group_size(self, estimate):
        with pytest.raises(ValueError, match="12 completions cannot be groups of 5. Gather"):
            estimate(random_scores(), 5)

    def test_nothing_scored(self, estimate):
        assert estimate(torch.full((4, 2), NAN), 4).isnan().all()

    def test_a_group_of_one(self, estimate):
        """In evaluation, with `num_generations_eval=1`: no comparison, and no division by zero."""
        assert estimate(torch.tensor([[0.5]]), 1).abs().item() < 1e-6


class TestPerToken:
    def test_tokens_take_their_step(self):
        advantages = torch.tensor([[0.5, -0.5], [0.25, NAN], [NAN, NAN]])
        index = torch.tensor([[-1, 0, 0, 1], [0, 0, -1, -1], [-1, -1, -1, -1]])
        expected = torch.tensor([[0.0, 0.5, 0.5, -0.5], [0.25, 0.25, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
        assert_equal(advantages_per_token(advantages, index), expected)

    def test_no_step_at_all(self):
        assert torch.equal(advantages_per_token(torch.zeros(2, 0), torch.full((2, 3), -1)), torch.zeros(2, 3))
