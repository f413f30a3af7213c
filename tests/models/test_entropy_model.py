"""The entropy model: integers equal to the ones that camera and worker compute, and bits that mean something."""

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from pipeline.bundle import Bundle
from pipeline.codec import Latents, encode_latents, quantise
from pipeline.evaluation import estimated_bits
from pipeline.integer_prior import IntegerPrior, load_prior
from pipeline.models.entropy_model import (
    ACTIVATION_UNITS,
    HYPER_LIMIT,
    SCALE_LEVELS,
    SCALE_MAX,
    SCALE_MIN,
    FrozenPrior,
    IntegerConv,
    MeanScaleHyperprior,
    freeze,
    scale_table,
)
from pipeline.models.split_segmenter import SplitSegmenter

LATENTS, HYPER, WIDTH = 24, 8, 12
SIZES = [(4, 6), (23, 30), (1, 1), (5, 3)]
FLUSH_BYTES = 8  # the two coders' states
HEADER_BYTES = 2  # the length that parts the two streams


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_prior(seed: int = 0) -> MeanScaleHyperprior:
    """Weights up to their limits, so that activations, means and scales take all their values."""
    torch.manual_seed(seed)
    prior = MeanScaleHyperprior(LATENTS, HYPER, width=WIDTH)
    with torch.no_grad():
        for layer in (prior.hyper_decoder.up_2, prior.hyper_decoder.up_1, prior.hyper_decoder.predict):
            layer.weight.uniform_(-1.1, 1.1)
            layer.bias.uniform_(-4, 10)
        prior.factorised.biases[0].normal_()
    return prior.eval()


def as_deployed(frozen: FrozenPrior) -> IntegerPrior:
    tables = {f"weight_{i}": weight for i, weight in enumerate(frozen.weights)}
    tables |= {f"bias_{i}": bias for i, bias in enumerate(frozen.biases)}
    return load_prior(tables, hyper_limit=HYPER_LIMIT, scale_levels=SCALE_LEVELS)


def random_hyper(size: tuple[int, int], batch: int = 1) -> Tensor:
    shape = (batch, HYPER, -(-size[0] // 4), -(-size[1] // 4))
    return torch.randint(-HYPER_LIMIT, HYPER_LIMIT + 1, shape, generator=torch.Generator().manual_seed(1)).float()


def assert_equal_to_deployed(prior: MeanScaleHyperprior, z: Tensor, size: tuple[int, int]) -> None:
    deployed = as_deployed(freeze(prior))
    with torch.no_grad():
        means, indexes = prior.hyper_decoder(z, torch.Size(size))
    for i in range(len(z)):
        predicted = deployed.predict(z[i].numpy().astype(np.int16), size)
        assert np.array_equal(indexes[i].numpy(), predicted.indexes)
        assert np.array_equal(means[i].numpy() / ACTIVATION_UNITS, predicted.means)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_torch_and_deployed_prior_find_the_same_integers(size: tuple[int, int], seed: int) -> None:
    prior = random_prior(seed)
    assert_equal_to_deployed(prior, random_hyper(size), size)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_neither_batch_size_nor_threads_change_the_integers(batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    prior = random_prior()
    assert_equal_to_deployed(prior, random_hyper((23, 30), batch), (23, 30))


def test_another_convolution_library_finds_the_same_integers() -> None:
    prior = random_prior()
    with torch.backends.mkldnn.flags(enabled=False):
        assert_equal_to_deployed(prior, random_hyper((23, 30)), (23, 30))


def test_double_precision_finds_the_same_integers() -> None:
    prior, size = random_prior(), torch.Size((23, 30))
    z = random_hyper((23, 30), 2)
    with torch.no_grad():
        single = prior.hyper_decoder(z, size)
        double = prior.hyper_decoder.double()(z.double(), size)
    assert all(torch.equal(a.double(), b) for a, b in zip(single, double, strict=True))


def test_widest_prior_that_an_experiment_may_ask_for_stays_exact() -> None:
    prior = MeanScaleHyperprior(16, 128, width=48)
    with torch.no_grad():
        for layer in (prior.hyper_decoder.up_2, prior.hyper_decoder.up_1, prior.hyper_decoder.predict):
            layer.weight.copy_(layer.weight.sign())
    as_deployed(freeze(prior))  # raises where a sum may reach 2**24


def test_integer_weights_are_clamped_and_their_gradient_is_not_lost() -> None:
    layer = IntegerConv(2, 3, 1)
    with torch.no_grad():
        layer.weight.fill_(0.3)
        layer.weight[0] = 5.0
    assert layer.integer_weight().flatten().tolist() == [127, 127, 38, 38, 38, 38]
    layer(torch.ones(1, 2, 4, 4)).sum().backward()
    assert layer.weight.grad[1:].abs().min() > 0
    assert layer.bias.grad.abs().min() > 0


def test_scales_are_geometric_between_their_ends() -> None:
    table = scale_table()
    assert len(table) == SCALE_LEVELS
    assert table[[0, -1]] == pytest.approx([SCALE_MIN, SCALE_MAX])
    assert np.allclose(np.diff(np.log(table)), np.log(table[1] / table[0]))
    prior = MeanScaleHyperprior(LATENTS, HYPER, width=WIDTH)
    assert prior._scale(torch.arange(SCALE_LEVELS)).numpy() == pytest.approx(table, rel=1e-5)


def test_frozen_probabilities_of_each_channel_sum_to_one(tiny_network: SplitSegmenter) -> None:
    """But for what lies beyond the limit: an untrained density is wide."""
    for prior in (tiny_network.prior, random_prior()):
        pmf = freeze(prior).hyper_pmf
        assert (pmf >= 0).all()
        assert (pmf.sum(1) > 0.99).all()
        assert (pmf.sum(1) < 1 + 1e-4).all()


def test_frozen_probability_is_that_of_the_hyper_likelihood() -> None:
    prior = random_prior()
    z = random_hyper((8, 8))
    with torch.no_grad():
        likelihood = prior._hyper_likelihood(z)
    pmf = freeze(prior).hyper_pmf
    for channel in range(HYPER):
        seen = z[0, channel].long().numpy() + HYPER_LIMIT
        assert likelihood[0, channel].numpy() == pytest.approx(pmf[channel, seen])


def test_freezing_leaves_the_prior_untouched() -> None:
    prior = random_prior()
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    freeze(prior)
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())


def test_density_of_the_hyper_latent_is_trained() -> None:
    """Its bits fall when only it may change."""
    torch.manual_seed(0)
    prior, y = MeanScaleHyperprior(LATENTS, HYPER, width=WIDTH), 3 * torch.randn(4, LATENTS, 16, 16)
    optimiser = torch.optim.Adam(prior.factorised.parameters(), lr=0.05)
    bits = []
    for _ in range(30):
        found = prior(y).z_bits.mean()
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        bits.append(found.item())
    assert bits[-1] < 0.8 * bits[0]


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_bits_are_one_number_per_image(size: tuple[int, int]) -> None:
    coded = random_prior()(torch.randn(3, LATENTS, *size))
    assert coded.y_hat.shape == (3, LATENTS, *size)
    assert coded.y_bits.shape == coded.z_bits.shape == (3,)
    assert (coded.y_bits > 0).all()


def test_y_hat_is_y_rounded_about_its_mean() -> None:
    y = 5 * torch.randn(2, LATENTS, 8, 8)
    with torch.no_grad():
        y_hat = random_prior()(y).y_hat
    assert (y_hat - y).abs().max() <= 0.5 + 1e-3
    assert torch.equal(y_hat * ACTIVATION_UNITS, (y_hat * ACTIVATION_UNITS).round())


def test_hyper_latents_beyond_the_limit_are_clamped_before_they_are_used() -> None:
    prior = random_prior()
    with torch.no_grad():
        prior.hyper_encoder.down[-1].weight.zero_()
        prior.hyper_encoder.down[-1].bias.fill_(500.0)
        far = prior(torch.zeros(1, LATENTS, 4, 4)).y_hat
        prior.hyper_encoder.down[-1].bias.fill_(float(HYPER_LIMIT))
        assert torch.equal(prior(torch.zeros(1, LATENTS, 4, 4)).y_hat, far)


def coded_and_sent(network: SplitSegmenter, bundle: Bundle, scene: tiny.Scene) -> tuple[float, Latents]:
    with torch.no_grad():
        y = network.encode(tiny.images([scene]))
        coded = network.prior(y)
        latents = quantise(y[0].numpy(), network.prior.hyper_encoder(y)[0].numpy(), bundle.tables)
    return float(coded.y_bits + coded.z_bits), latents


def test_estimated_bits_are_within_2_percent_of_the_payload(tiny_network: SplitSegmenter, tiny_bundle: Bundle) -> None:
    for scene in tiny.scenes(6):
        bits, latents = coded_and_sent(tiny_network, tiny_bundle, scene)
        payload = len(encode_latents(latents, tiny_bundle.tables)) - FLUSH_BYTES - HEADER_BYTES
        assert payload > 200
        assert 8 * payload == pytest.approx(bits, rel=0.02)


def test_formula_of_training_and_that_of_evaluation_agree(tiny_network: SplitSegmenter, tiny_bundle: Bundle) -> None:
    for scene in tiny.scenes(3):
        bits, latents = coded_and_sent(tiny_network, tiny_bundle, scene)
        assert estimated_bits(latents, tiny_bundle.tables) == pytest.approx(bits, rel=0.01)


def test_noise_costs_about_as_much_as_rounding(tiny_network: SplitSegmenter) -> None:
    """What is minimised in training, on average over the noise, is near what is sent."""
    torch.manual_seed(0)
    prior = deepcopy(tiny_network.prior)
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(12)))
        sent = prior.eval()(y)
        noisy = prior.train()(y)
    assert noisy.y_bits.mean() == pytest.approx(sent.y_bits.mean().item(), rel=0.05)
