"""The entropy model: integers equal to the ones that camera and worker compute, and bits that mean something."""

import math
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from pipeline.integer_prior import IntegerPrior, load_prior
from pipeline.models.entropy_model import (
    ACTIVATION_UNITS,
    HYPER_LIMIT,
    MOST_BITS,
    SCALE_LEVELS,
    SCALE_MAX,
    SCALE_MIN,
    FrozenPrior,
    IntegerConv,
    MeanScaleHyperprior,
    NoBottleneck,
    _gaussian_bits,
    freeze,
    scale_table,
)
from pipeline.models.split_segmenter import SplitSegmenter, levels_like

LATENTS, HYPER, WIDTH, LEVELS = 24, 8, 12, 3
SIZES = [(4, 6), (23, 30), (1, 1), (5, 3)]
LEVEL_0 = torch.zeros(8, dtype=torch.int64)
HYPER_PLACES = 2  # of a tiny frame


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_prior(seed: int = 0) -> MeanScaleHyperprior:
    """Weights up to their limits, so that activations, means and scales take all their values."""
    torch.manual_seed(seed)
    prior = MeanScaleHyperprior(LATENTS, HYPER, width=WIDTH, levels=LEVELS)
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


def test_freezing_leaves_the_prior_untouched() -> None:
    prior = random_prior()
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    freeze(prior)
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())


def test_density_of_the_hyper_latent_is_trained() -> None:
    """Its bits fall when only it may change."""
    torch.manual_seed(0)
    prior, y = MeanScaleHyperprior(LATENTS, HYPER, width=WIDTH), 3 * torch.randn(4, LATENTS, 16, 16)
    learning = [p for p in prior.factorised.parameters() if p.requires_grad]
    optimiser, bits = torch.optim.Adam(learning, lr=0.05), []
    for _ in range(30):
        found = prior(y, LEVEL_0[:4]).z_bits.mean()
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        bits.append(found.item())
    assert bits[-1] < 0.8 * bits[0]


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_bits_are_one_number_per_image(size: tuple[int, int]) -> None:
    coded = random_prior()(torch.randn(3, LATENTS, *size), torch.tensor([0, 2, 1]))
    assert coded.y_hat.shape == (3, LATENTS, *size)
    assert coded.y_bits.shape == coded.z_bits.shape == (3,)
    assert (coded.y_bits > 0).all()
    assert (coded.z_bits > 0).all()


@pytest.mark.parametrize("level", range(LEVELS))
def test_y_hat_is_y_rounded_about_its_mean_in_steps_of_its_level(level: int) -> None:
    prior, y, quality = random_prior(), 5 * torch.randn(2, LATENTS, 8, 8), LEVEL_0[:2] + level
    with torch.no_grad():
        scaled, _ = prior.analyse(y, quality)
        y_hat = prior(y, quality).y_hat / prior.gains.unscale(torch.ones_like(y), quality)  # as coded
    assert (y_hat - scaled).abs().max() <= 0.5 + 1e-3
    sixteenths = y_hat * ACTIVATION_UNITS
    assert torch.allclose(sixteenths, sixteenths.round(), atol=1e-2)


def test_an_image_is_coded_the_same_alone_and_beside_others_of_other_levels(tiny_network: SplitSegmenter) -> None:
    quality = torch.tensor([2, 0, 1, 2])
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(4)))
        together = tiny_network.prior(y, quality)
        for i in range(4):
            alone = tiny_network.prior(y[i : i + 1], quality[i : i + 1])
            assert torch.equal(alone.y_hat[0], together.y_hat[i])
            assert alone.y_bits.item() == pytest.approx(together.y_bits[i].item())
            assert alone.z_bits.item() == pytest.approx(together.z_bits[i].item())


def test_a_higher_level_costs_more_and_is_nearer_to_y(tiny_network: SplitSegmenter) -> None:
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(6)))
        coded = [tiny_network.prior(y, levels_like(y, level)) for level in range(tiny.LEVELS)]
    for lower, higher in pairwise(coded):
        assert (higher.y_bits > lower.y_bits).all()
        assert (higher.y_hat - y).square().mean() < (lower.y_hat - y).square().mean()


@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_a_larger_gain_costs_more(tiny_network: SplitSegmenter, factor: float) -> None:
    prior = deepcopy(tiny_network.prior)
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(4)))
        before = prior(y, levels_like(y, 1)).y_bits
        prior.gains.log_gain[1] += math.log(factor)
        prior.gains.log_inverse[1] -= math.log(factor)
        assert (prior(y, levels_like(y, 1)).y_bits > before).all()


def test_a_larger_hyper_gain_costs_more(tiny_network: SplitSegmenter) -> None:
    """One density serves all levels, cut into finer steps."""
    prior = deepcopy(tiny_network.prior)
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(4)))
        before = prior(y, levels_like(y, 1)).z_bits
        prior.gains.log_hyper[1] += math.log(2.0)
        after = prior(y, levels_like(y, 1)).z_bits
    symbols = HYPER_PLACES * tiny.MODEL["hyper_latents"]
    assert (after > before).all()
    assert ((after - before) / symbols < 1.5).all()  # a bit per symbol where the density is flat


def test_likelihoods_of_all_hyper_latents_sum_to_one_at_any_gain(tiny_network: SplitSegmenter) -> None:
    prior, planes = tiny_network.prior, tiny.MODEL["hyper_latents"]
    every = torch.arange(-2000.0, 2001.0).expand(1, planes, 1, -1)
    for gain in (0.5, 1.0, 3.0):
        with torch.no_grad():
            total = prior._hyper_likelihood(every, torch.full((1, planes, 1, 1), gain)).sum(3)
        assert torch.allclose(total, torch.ones_like(total), atol=1e-3)


@torch.no_grad()
def test_bits_of_y_are_those_of_its_whole_steps_under_their_gaussians(tiny_network: SplitSegmenter) -> None:
    prior, y = tiny_network.prior, tiny_network.encode(tiny.images(tiny.scenes(3)))
    quality = torch.arange(3)
    scaled, z = prior.analyse(y, quality)
    means, indexes = prior.hyper_decoder((z + 0.5).floor(), y.shape[-2:])
    symbols = (scaled - means / ACTIVATION_UNITS + 0.5).floor().double()
    normal = torch.distributions.Normal(0.0, torch.from_numpy(scale_table())[indexes.long()])
    mass = normal.cdf(0.5 - symbols.abs()) - normal.cdf(-0.5 - symbols.abs())
    expected = -mass.clamp_min(2**-24).log2().sum((1, 2, 3))
    assert prior(y, quality).y_bits.tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_training_bits_have_the_value_of_the_rounded_ones(tiny_network: SplitSegmenter) -> None:
    """Noise moves the gradient alone: what training reports is what rounding costs."""
    prior = deepcopy(tiny_network.prior)
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(6)))
        quality = torch.arange(6) % tiny.LEVELS
        rounded, noisy = prior.eval()(y, quality), prior.train()(y, quality)
    assert torch.equal(noisy.y_bits, rounded.y_bits)
    assert torch.equal(noisy.z_bits, rounded.z_bits)
    assert torch.equal(noisy.y_hat, rounded.y_hat)


def test_training_gradient_is_moved_by_noise(tiny_network: SplitSegmenter) -> None:
    prior = deepcopy(tiny_network.prior).train()
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(4)))

    def slope() -> Tensor:
        leaf = y.clone().requires_grad_()
        prior(leaf, LEVEL_0[:4]).y_bits.sum().backward()
        return leaf.grad

    torch.manual_seed(0)
    first, second = slope(), slope()
    torch.manual_seed(0)
    assert torch.equal(slope(), first)
    assert not torch.equal(second, first)


def test_a_step_down_the_gradient_of_the_bits_saves_bits(tiny_network: SplitSegmenter) -> None:
    prior = deepcopy(tiny_network.prior).train()
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(6)))
    quality = torch.arange(6) % tiny.LEVELS
    leaf, bits = y.clone().requires_grad_(), []
    optimiser = torch.optim.Adam([leaf], lr=0.1)
    for _ in range(20):
        coded = prior(leaf, quality)
        optimiser.zero_grad()
        (coded.y_bits + coded.z_bits).sum().backward()
        optimiser.step()
        bits.append((coded.y_bits + coded.z_bits).sum().item())
    assert bits[-1] < 0.95 * bits[0]


def test_gradient_of_the_bits_reaches_y_both_gains_and_both_densities() -> None:
    torch.manual_seed(0)
    prior = MeanScaleHyperprior(LATENTS, HYPER, width=WIDTH, levels=LEVELS)
    y = (4 * torch.randn(LEVELS, LATENTS, 8, 8)).requires_grad_()
    coded = prior(y, torch.arange(LEVELS))
    (coded.y_bits + coded.z_bits).sum().backward()
    assert (y.grad != 0).float().mean() > 0.9
    assert (prior.gains.log_gain.grad != 0).all()
    assert (prior.gains.log_hyper.grad != 0).all()
    assert prior.gains.log_inverse.grad is None  # no matter of bits
    for name, parameter in prior.named_parameters():
        if parameter.requires_grad and name != "gains.log_inverse":
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
            assert parameter.grad.isfinite().all(), name


def test_gradient_of_y_hat_passes_the_rounding() -> None:
    prior, y = random_prior(), torch.randn(2, LATENTS, 4, 4).requires_grad_()
    prior(y, LEVEL_0[:2] + 1).y_hat.sum().backward()
    assert (y.grad != 0).all()
    assert (prior.gains.log_inverse.grad[1] != 0).any()


def test_hyper_latents_beyond_the_limit_are_clamped_before_they_are_used() -> None:
    prior, nothing = random_prior(), torch.zeros(1, LATENTS, 4, 4)
    with torch.no_grad():
        prior.hyper_encoder.down[-1].weight.zero_()
        prior.hyper_encoder.down[-1].bias.fill_(500.0)
        far = prior(nothing, LEVEL_0[:1])
        prior.hyper_encoder.down[-1].bias.fill_(float(HYPER_LIMIT))
        at_limit = prior(nothing, LEVEL_0[:1])
    assert torch.equal(at_limit.y_hat, far.y_hat)
    assert torch.equal(at_limit.z_bits, far.z_bits)


def test_bits_stay_finite_however_far_the_latents_are() -> None:
    prior, y = random_prior().train(), (1e4 * torch.randn(2, LATENTS, 4, 4)).requires_grad_()
    coded = prior(y, LEVEL_0[:2])
    (coded.y_bits + coded.z_bits).sum().backward()
    assert coded.y_bits.isfinite().all()
    assert coded.z_bits.isfinite().all()
    assert y.grad.isfinite().all()


def test_without_a_bottleneck_latents_pass_for_no_bits() -> None:
    y = torch.randn(3, LATENTS, 4, 4)
    coded = NoBottleneck()(y, LEVEL_0[:3])
    assert coded.y_hat is y
    assert coded.y_bits.tolist() == coded.z_bits.tolist() == [0, 0, 0]


FAR = 5.35  # scales: from about here on MOST_BITS are not enough


@pytest.mark.parametrize("scale", [SCALE_MIN, 1.0, SCALE_MAX])
def test_bits_and_slopes_of_symbols_are_those_of_exact_gaussians(scale: float) -> None:
    """Each by itself, wherever MOST_BITS are enough."""
    found, exact = [], []
    for kind, bits_of in ((torch.float32, _gaussian_bits), (torch.float64, exact_bits)):
        distance = torch.linspace(0, 0.5 + 5.2 * scale, 400, dtype=kind).view(-1, 1, 1, 1).requires_grad_()
        scales = torch.full_like(distance, scale).detach().requires_grad_()
        bits = bits_of(distance, scales, torch.full_like(distance, 0.0))
        bits.sum().backward()
        (found if kind == torch.float32 else exact).extend(t.double() for t in (bits, distance.grad, scales.grad))
    enough = exact[0] < MOST_BITS - 0.1
    assert enough.sum() > 300
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours[enough], theirs[enough], atol=1e-2, rtol=1e-3)


def exact_bits(y: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
    distance = (y - mean).abs()
    upper, lower = (0.5 * torch.erfc((distance - half) / scale / math.sqrt(2)) for half in (0.5, -0.5))
    return -(upper - lower).log2().flatten(1).sum(1)


@pytest.mark.parametrize("scale", [SCALE_MIN, 1.0, SCALE_MAX])
def test_a_symbol_far_from_its_mean_wants_to_come_nearer_and_to_have_a_larger_scale(scale: float) -> None:
    """Without a hole on the way out, where neither had a gradient and symbols ran away."""
    way = 0.5 + scale * torch.cat([torch.linspace(4.5, 6.5, 500), torch.tensor([60.0, 6e4])])
    y = way.view(-1, 1, 1, 1).clone().requires_grad_()
    scales = torch.full_like(y, scale).detach().requires_grad_()
    bits = _gaussian_bits(y, scales, torch.zeros_like(y))
    bits.sum().backward()
    assert (y.grad > 0).all()
    assert (scales.grad < 0).all()
    assert (bits[way > 0.5 + FAR * scale] == MOST_BITS).all()
    assert y.grad[-2:].max() < y.grad[:500].min()  # of a few that are very far not all of the gradient


@pytest.mark.parametrize(("start", "sign"), [(-1.0, -1.0), (5.0, 1.0)])
def test_a_scale_out_of_bounds_comes_back_where_symbols_ask_for_it(start: float, sign: float) -> None:
    torch.manual_seed(0)
    prior = MeanScaleHyperprior(LATENTS, HYPER, width=WIDTH)
    bias = prior.hyper_decoder.predict.bias
    with torch.no_grad():
        bias[LATENTS:] = start
    sizes = {-1.0: (0.8, 0.0), 1.0: (0.6, 1e3)}[sign]  # the first asks for another scale; at 0.8 it is rounded to 1
    for size, expected in zip(sizes, (sign, 0.0), strict=True):
        prior.zero_grad()
        prior(torch.full((1, LATENTS, 4, 4), size), LEVEL_0[:1]).y_bits.sum().backward()
        assert bias.grad[LATENTS:].sign().tolist() == [expected] * LATENTS


def test_a_prior_begins_with_the_means_and_scales_of_what_it_is_to_code() -> None:
    torch.manual_seed(0)
    prior, spread = MeanScaleHyperprior(LATENTS, HYPER, width=WIDTH, levels=LEVELS), torch.logspace(-2, 2, LATENTS)
    y = 3 + spread[:, None, None] * torch.randn(4, LATENTS, 16, 16)
    level = torch.ones(4, dtype=torch.int64)
    scaled, z = prior.analyse(y, level)
    before = prior(y, level).y_bits.mean().item()
    prior.begin_with(y)
    mean, index = prior.hyper_decoder(torch.zeros_like(z), y.shape[-2:])
    torch.testing.assert_close(mean[0, :, 0, 0] / ACTIVATION_UNITS, scaled.mean((0, 2, 3)), rtol=0, atol=0.07)
    found, expected = prior._scale(index)[0, :, 0, 0], scaled.std((0, 2, 3)).clamp(SCALE_MIN, SCALE_MAX)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)  # a step between scales
    assert prior(y, level).y_bits.mean().item() < 0.5 * before
