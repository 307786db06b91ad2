"""`trl_erprm.policy.prompt_order`: prompts come in the order in which a run without interruption meets them."""

import pytest
from trl.trainer.utils import RepeatSampler

from trl_erprm.policy.prompt_order import EpochSampler


def repeat_sampler(shuffle=True):
    return RepeatSampler(range(7), mini_repeat_count=2, batch_size=3, repeat_count=2, shuffle=shuffle, seed=3)


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_the_order_of_an_epoch(epochs):
    """As of one generator over all epochs, whether a run goes on at the start or in the middle of one."""
    one_run = repeat_sampler()
    orders = [list(one_run) for _ in range(3)]
    assert orders[0] != orders[1] != orders[2]
    for epoch in (epochs, epochs + 0.4):
        resumed = EpochSampler(repeat_sampler(), lambda at=epoch: at)
        assert list(resumed) == orders[epochs] and len(resumed) == len(orders[0])
        assert list(resumed) == orders[epochs]  # asked again in the same epoch


def test_before_the_first_epoch():
    assert list(EpochSampler(repeat_sampler(), lambda: None)) == list(repeat_sampler())


def test_without_shuffling():
    assert list(EpochSampler(repeat_sampler(False), lambda: 5.0)) == list(repeat_sampler(False))


def test_the_generator_is_where_accelerate_looks_for_it():
    assert EpochSampler(sampler := repeat_sampler(), lambda: 0).generator is sampler.generator
