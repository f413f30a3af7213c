"""The outline network: one number per place, whatever the unit of a level's latents is."""

import torch

from pipeline.models.outline import OutlineNetwork, settle_outline

LATENTS, SIZE = 5, (6, 8)


def test_it_says_a_share_of_each_place() -> None:
    network = OutlineNetwork(LATENTS, 3, width=8)
    said = network(torch.randn(4, LATENTS, *SIZE), torch.tensor([0, 1, 2, 0])).detach()
    assert said.shape == (4, *SIZE)
    assert ((said > 0) & (said < 1)).all()
    assert 0.05 < float(said.mean()) < 0.25  # as edges usually are, before it has learned anything


def test_latents_of_a_level_count_in_their_own_spread() -> None:
    network, y = OutlineNetwork(LATENTS, 2, width=8), torch.randn(20, LATENTS, *SIZE)
    levels, gains = torch.tensor([0, 1] * 10), torch.tensor([1.0, 50.0])
    settle_outline(network, y * gains[levels][:, None, None, None], levels)
    same = torch.randn(1, LATENTS, *SIZE)
    low, high = (network(same * gains[level], torch.tensor([level])) for level in (0, 1))
    torch.testing.assert_close(low, high, atol=0.02, rtol=0)


def test_a_level_without_frames_is_taken_as_the_nearest_that_has_some() -> None:
    network, y = OutlineNetwork(LATENTS, 4, width=8), 3 * torch.randn(20, LATENTS, *SIZE)
    settle_outline(network, y, torch.tensor([1] * 10 + [3] * 10))
    torch.testing.assert_close(network.spread[0], network.spread[1])
    assert not torch.equal(network.spread[0], network.spread[3])
    assert 2 < float(network.spread.mean()) < 4
