"""`trl_erprm.policy.generalized_advantages`: by hand, against a naive loop, limits, and what is skipped."""

import math
import random

import pytest
import torch

from trl_erprm.policy.generalized_advantages import (
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    masked_moments,
    place_rewards,
    whiten,
)


def naive(rewards, values, mask, gamma, lam):
    """One completion: the sum over l of (gamma lambda)^l delta_{t+l}, over the tokens that count."""
    own = [t for t in range(len(mask)) if mask[t]]
    advantages, returns = [0.0] * len(mask), [0.0] * len(mask)
    for i, t in enumerate(own):
        for length, j in enumerate(range(i, len(own))):
            after = values[own[j + 1]] if j + 1 < len(own) else 0.0
            advantages[t] += (gamma * lam) ** length * (rewards[own[j]] + gamma * after - values[own[j]])
        returns[t] = advantages[t] + values[t]
    return advantages, returns


def random_batch(seed, rows=5, tokens=9):
    draw = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, tokens, generator=draw, dtype=torch.float64)
    mask = torch.rand(rows, tokens, generator=draw) < torch.rand(rows, 1, generator=draw)
    mask[0] = False  # a completion left out
    mask[1] = True
    return rewards, values, mask.long()


class TestGeneralizedAdvantages:
    def test_by_hand(self):
        """gamma 0.5, lambda 0.5. deltas: 1 + 0.5 * 4 - 2 = 1; 0 + 0.5 * 8 - 4 = 0; 16 + 0 - 8 = 8.

        A_3 = 8; A_2 = 0 + 0.25 * 8 = 2; A_1 = 1 + 0.25 * 2 = 1.5.
        """
        advantages, returns = generalized_advantages(
            torch.tensor([[1.0, 0.0, 16.0]]), torch.tensor([[2.0, 4.0, 8.0]]), torch.ones(1, 3), gamma=0.5, lam=0.5
        )
        assert advantages.tolist() == [[1.5, 2.0, 8.0]]
        assert returns.tolist() == [[3.5, 6.0, 16.0]]

    def test_a_token_that_the_policy_did_not_write_is_skipped(self):
        """The case above with a tool's answer in the middle and padding behind, of whatever value and reward."""
        mask = torch.tensor([[1, 1, 0, 0, 1, 0]])
        rewards = torch.tensor([[1.0, 0.0, 99.0, -7.0, 16.0, 5.0]])
        values = torch.tensor([[2.0, 4.0, 99.0, math.nan, 8.0, 3.0]])
        advantages, returns = generalized_advantages(rewards, values, mask, gamma=0.5, lam=0.5)
        assert advantages.tolist() == [[1.5, 2.0, 0.0, 0.0, 8.0, 0.0]]
        assert returns.tolist() == [[3.5, 6.0, 0.0, 0.0, 16.0, 0.0]]

    @pytest.mark.parametrize("seed", range(20))
    def test_equals_the_naive_loop(self, seed):
        draw = random.Random(seed)
        gamma, lam = draw.choice([0.0, 0.9, 1.0, draw.random()]), draw.choice([0.0, 0.95, 1.0, draw.random()])
        rewards, values, mask = random_batch(seed)
        advantages, returns = generalized_advantages(rewards, values, mask, gamma, lam)
        for row in range(len(rewards)):
            expected = naive(rewards[row].tolist(), values[row].tolist(), mask[row].tolist(), gamma, lam)
            torch.testing.assert_close(advantages[row].tolist(), expected[0])
            torch.testing.assert_close(returns[row].tolist(), expected[1])

    def test_limits(self):
        """lambda 1: the return is the rewards to come, whatever the critic says. lambda 0: one token ahead."""
        rewards, values, mask = random_batch(3)
        _, returns = generalized_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
        to_come = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
        torch.testing.assert_close(returns, to_come)
        _, returns = generalized_advantages(rewards, values, mask, gamma=1.0, lam=0.0)
        torch.testing.assert_close(returns[1, :-1], rewards[1, :-1] + values[1, 1:])

    def test_a_perfect_critic_leaves_no_advantage(self):
        rewards, _, mask = random_batch(4)
        values = (rewards * mask).flip(1).cumsum(1).flip(1)
        advantages, _ = generalized_advantages(rewards, values, mask, gamma=1.0, lam=0.5)
        torch.testing.assert_close(advantages, torch.zeros_like(advantages))

    def test_defaults_are_those_of_ppo(self):
        rewards, values, mask = random_batch(5)
        torch.testing.assert_close(
            generalized_advantages(rewards, values, mask), generalized_advantages(rewards, values, mask, 1.0, 0.95)
        )

    def test_no_tokens(self):
        advantages, returns = generalized_advantages(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0))
        assert advantages.shape == returns.shape == (2, 0)


class TestPlaceRewards:
    MASK = torch.tensor([[0, 1, 1, 0, 1, 0]])

    @pytest.mark.parametrize(
        ("positions", "expected"),
        [
            ([1, 4], [0, 1, 0, 0, 2, 0]),
            ([1, -1], [0, 1, 0, 0, 2, 0]),  # -1: the last own token, not padding
            ([3, 5], [0, 0, 1, 0, 2, 0]),  # on a skipped token: the own one before it
            ([0, 4], [0, 1, 0, 0, 2, 0]),  # nothing before it: the first own one
            ([2, 2], [0, 0, 3, 0, 0, 0]),  # two steps that end in one token
        ],
    )
    def test_position(self, positions, expected):
        assert place_rewards([[1.0, 2.0]], [positions], self.MASK).tolist() == [expected]

    def test_nothing_to_place(self):
        placed = place_rewards([[], [1.0]], [[], [-1]], torch.tensor([[1, 1], [0, 0]]))
        assert placed.tolist() == [[0, 0], [0, 0]]  # the second row has no token of its own


class TestMoments:
    def test_masked_moments(self):
        mean, variance = masked_moments(torch.tensor([1.0, 2.0, 6.0, 50.0]), torch.tensor([1, 1, 1, 0]))
        assert (mean.item(), variance.item()) == (3.0, pytest.approx(14 / 3))

    def test_far_from_zero(self):
        """A sum of squares in single precision would lose this variance."""
        _, variance = masked_moments(torch.tensor([1e4, 1e4 + 1]), torch.ones(2))
        assert variance.item() == pytest.approx(0.25)

    def test_no_value_counts(self):
        assert all(math.isnan(moment) for moment in masked_moments(torch.ones(2), torch.zeros(2)))

    def test_over_processes(self):
        """`reduce` gives sums over all processes: the first one's values are then counted with those of the other."""
        own, others = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 8.0])
        mean = 4.0
        of_others = iter([torch.tensor([10.0, 2.0]), ((others - mean) ** 2).sum()])
        found = masked_moments(own, torch.ones(2), lambda sums: sums + next(of_others))
        torch.testing.assert_close(found, masked_moments(torch.cat([own, others]), torch.ones(4)))


class TestWhiten:
    def test_mean_and_deviation(self):
        advantages, _, mask = random_batch(6)
        whitened = whiten(advantages, mask)
        counted = whitened[mask.bool()]
        assert counted.mean().item() == pytest.approx(0, abs=1e-12)
        assert counted.std(correction=0).item() == pytest.approx(1, rel=1e-6)
        assert (whitened[~mask.bool()] == 0).all()

    def test_equal_advantages_become_zero(self):
        assert whiten(torch.full((1, 3), 0.3), torch.ones(1, 3)).tolist() == [[0, 0, 0]]


class TestExplainedVariance:
    RETURNS = torch.tensor([0.0, 1.0, 2.0, 77.0])
    MASK = torch.tensor([1, 1, 1, 0])

    @pytest.mark.parametrize(
        ("values", "expected"),
        [([0.5, 1.5, 2.5, 0.0], 1.0), ([1.0, 1.0, 1.0, 0.0], 0.0), ([2.0, 1.0, 0.0, 0.0], -3.0)],
    )
    def test_by_hand(self, values, expected):
        found = explained_variance(self.RETURNS, torch.tensor(values), self.MASK)
        assert found.item() == pytest.approx(expected)

    def test_returns_that_do_not_vary(self):
        assert math.isnan(explained_variance(torch.ones(3), torch.zeros(3), torch.ones(3)).item())


class TestClippedValueLoss:
    @pytest.mark.parametrize(
        ("value", "old", "target", "loss", "is_clipped"),
        [
            (0.6, 0.5, 1.0, 0.08, False),  # within the range
            (0.9, 0.5, 1.0, 0.045, True),  # (0.7 - 1)^2 / 2: going on earns nothing
            (0.9, 0.5, 0.0, 0.405, False),  # away from the target: the true error, which leads back
            (0.1, 0.5, 0.0, 0.045, True),
        ],
    )
    def test_by_hand(self, value, old, target, loss, is_clipped):
        value = torch.tensor(value, requires_grad=True)
        found, clipped = clipped_value_loss(value, torch.tensor(old), torch.tensor(target), 0.2)
        assert (found.item(), clipped.item()) == (pytest.approx(loss), is_clipped)
        found.backward()
        assert (value.grad == 0).item() == is_clipped

    def test_without_a_range(self):
        found, clipped = clipped_value_loss(torch.tensor(0.9), torch.tensor(0.5), torch.tensor(1.0), None)
        assert (found.item(), clipped.item()) == (pytest.approx(0.005), False)
