"""Gains: one factor per level and channel, higher levels finer, each image at its own level."""

import pytest
import torch

from pipeline.models.gains import Gains

LEVELS, LATENTS, HYPER = 4, 6, 3


def random_gains() -> Gains:
    torch.manual_seed(0)
    gains = Gains(LEVELS, LATENTS, HYPER)
    with torch.no_grad():
        for table in (gains.log_gain, gains.log_inverse, gains.log_hyper):
            table.normal_()
    return gains


@pytest.mark.parametrize("levels", [1, 4, 8])
def test_gains_start_rising_from_level_to_level_up_to_one(levels: int) -> None:
    y, quality = torch.ones(levels, LATENTS, 1, 1), torch.arange(levels)
    factors = Gains(levels, LATENTS, HYPER).scale(y, quality)[:, 0, 0, 0]
    assert factors[-1] == 1
    assert (factors.diff() > 0).all()
    assert Gains(levels, LATENTS, HYPER).levels == levels


def test_at_the_start_unscaling_undoes_scaling_at_every_level() -> None:
    gains, y, quality = Gains(LEVELS, LATENTS, HYPER), torch.randn(LEVELS, LATENTS, 3, 5), torch.arange(LEVELS)
    assert torch.allclose(gains.unscale(gains.scale(y, quality), quality), y, atol=1e-6)
    assert torch.equal(gains.hyper(quality), torch.ones(LEVELS, HYPER, 1, 1))


def test_each_image_of_a_batch_has_its_own_level() -> None:
    gains, y = random_gains(), torch.randn(5, LATENTS, 3, 5)
    quality = torch.tensor([3, 0, 0, 2, 1])
    for operation in (gains.scale, gains.unscale):
        together = operation(y, quality)
        for i in range(5):
            assert torch.equal(together[i : i + 1], operation(y[i : i + 1], quality[i : i + 1]))


def test_each_channel_has_its_own_factor() -> None:
    gains, quality = random_gains(), torch.tensor([2])
    y = torch.ones(1, LATENTS, 2, 2)
    assert torch.equal(gains.scale(y, quality)[0, :, 0, 0], gains.log_gain[2].exp())
    assert torch.equal(gains.unscale(y, quality)[0, :, 1, 1], gains.log_inverse[2].exp())
    assert torch.equal(gains.hyper(quality).flatten(), gains.log_hyper[2].exp())


def test_only_the_levels_of_a_batch_learn_from_it() -> None:
    gains, quality = random_gains(), torch.tensor([1, 3])
    y = torch.randn(2, LATENTS, 2, 2)
    (gains.unscale(gains.scale(y, quality), quality).square().sum() + gains.hyper(quality).sum()).backward()
    for table in (gains.log_gain, gains.log_inverse, gains.log_hyper):
        assert (table.grad[[1, 3]] != 0).all()
        assert not table.grad[[0, 2]].any()
