import math

import numpy as np
import pytest
import torch

from trl_erprm.rollout import SamplingOptions
from trl_erprm.rollout.token_sampling import InverseTransformSampler, uniform_numbers


def test_uniform_numbers():
    """SplitMix64's published first outputs for the state 1234567, and uniformity over streams and positions."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    drawn = uniform_numbers([1234567], 4)
    np.testing.assert_array_equal(drawn[0], [np.float32((n >> 40) * 2.0**-24) for n in expected])
    u = uniform_numbers(range(1000), 1000).numpy()  # neighbouring keys
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1
    for axis in (0, 1):
        assert np.abs(u.mean(axis=axis) - 0.5).max() < 4.5 * math.sqrt(1 / 12 / 1000)
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.15 and abs(np.corrcoef(u[0], u[1])[0, 1]) < 0.15
    np.testing.assert_array_equal(uniform_numbers([5], 3)[0], u[5, :3])


def drawn(probabilities: list[float], uniform: float, **options) -> int:
    sampler = InverseTransformSampler(SamplingOptions(1, **options))
    token = sampler.draw(torch.tensor([probabilities]).log(), torch.tensor([[uniform]]))
    sampler.check()
    return int(token)


class TestInverseTransformSampler:
    @pytest.mark.parametrize(
        ("uniform", "token"), [(0.0, 1), (0.249, 1), (0.251, 3), (0.749, 3), (0.751, 4), (1 - 2**-24, 4)]
    )
    def test_the_cumulative_distribution_is_inverted(self, uniform, token):
        """Tokens 0 and 2 are impossible, also where the cumulative distribution stands still at the number."""
        assert drawn([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], uniform) == token

    def test_options(self):
        of = [0.1, 0.5, 0.4]
        assert drawn(of, 0.05) == 0
        assert drawn(of, 0.05, top_k=2) == drawn(of, 0.05, top_p=0.8) == 1
        assert drawn(of, 0.999, temperature=0) == 1
        # p^(1/T) with T = 1/2: 0.01, 0.25, 0.16 of 0.42
        assert [drawn(of, u, temperature=0.5) for u in (0.02, 0.03, 0.61, 0.63)] == [0, 1, 1, 2]

    def test_logits_from_which_nothing_can_be_drawn(self):
        with pytest.raises(FloatingPointError, match="must give logits from which a token can be sampled"):
            drawn([math.nan, 0.5], 0.5)

    def test_an_impossible_token_gives_way_to_the_likeliest(self, monkeypatch):
        """Where a parallel sum does not rise in its last digit, the search may end on a token of probability 0."""
        monkeypatch.setattr(torch, "searchsorted", lambda *args, **kwargs: torch.tensor([[1], [1]]))
        sampler = InverseTransformSampler(SamplingOptions(1))
        probabilities = torch.tensor([[0.3, 0.0, 0.7], [0.3, 0.1, 0.6]])
        assert sampler.draw(probabilities.log(), torch.tensor([[0.3], [0.35]])).tolist() == [[2], [1]]
