"""The decision network: a percentage for each candidate, on its own, in the units of what it was shown."""

import pytest
import torch

from pipeline.models.temporal import DecisionNetwork, settle


@pytest.fixture
def network() -> DecisionNetwork:
    torch.manual_seed(0)
    return DecisionNetwork(4, 3, width=8)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1)])
def test_maps_of_any_size_give_one_percentage(network: DecisionNetwork, size: tuple[int, int]) -> None:
    percent = network(torch.randn(5, 4, *size), torch.randn(5, 3))
    assert percent.shape == (5, 1)
    assert ((percent > 0) & (percent < 100)).all()


def test_an_untrained_network_says_what_is_usual(network: DecisionNetwork) -> None:
    percent = network(torch.randn(50, 4, 6, 8), torch.randn(50, 3))
    assert 90 < percent.mean() < 98


def test_gradient_reaches_every_parameter(network: DecisionNetwork) -> None:
    network(torch.randn(4, 4, 6, 8), torch.randn(4, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_batch_gives_what_its_candidates_give_alone(network: DecisionNetwork) -> None:
    maps, facts = torch.randn(3, 4, 6, 8), torch.randn(3, 3)
    alone = torch.cat([network(maps[i : i + 1], facts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(maps, facts), alone, rtol=1e-5, atol=1e-4)


def test_settled_the_unit_of_a_fact_does_not_matter(network: DecisionNetwork) -> None:
    maps, facts = torch.randn(64, 4, 6, 8), torch.randn(64, 3)
    settle(network, maps, facts)
    plain = network(maps, facts)
    settle(network, 10 * maps + 3, 1000 * facts - 7)
    torch.testing.assert_close(network(10 * maps + 3, 1000 * facts - 7), plain, rtol=1e-3, atol=1e-2)


def test_what_never_varied_does_not_become_large(network: DecisionNetwork) -> None:
    maps, facts = torch.zeros(16, 4, 6, 8), torch.zeros(16, 3)
    settle(network, maps, facts)
    assert network(maps, facts).isfinite().all()
    assert (network.map_scale[1] > 0).all()
