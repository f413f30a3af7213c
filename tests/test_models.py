"""What every network in MODELS must do, whatever it is made of."""

import pytest
import tiny
import torch
from torch import Tensor

from pipeline.models import MODELS
from pipeline.models.split_segmenter import Segmented, SplitSegmenter

SIZES = [(64, 96), (16, 16), (70, 50), (33, 17), (15, 100)]
# compressai's bookkeeping for tables of its own, which are not used: freeze() reads the density itself.
NOT_LEARNED = {"prior.factorised.quantiles"}  # frozen: nothing reads it


@pytest.fixture(params=MODELS, scope="module")
def network(request: pytest.FixtureRequest) -> SplitSegmenter:
    """In eval mode, with settled batch norms and a hyper latent that is not all zero: y and z do not fade."""
    torch.manual_seed(0)
    made = MODELS[request.param](tiny.CLASSES, **tiny.SIZES)
    tiny.settle_batch_norms(made, pictures((64, 96), 8))
    with torch.no_grad():
        made.prior.hyper_encoder.down[-1].weight.mul_(50)
    return made.eval()


def pictures(size: tuple[int, int], count: int) -> Tensor:
    """Noise over a gradient: RGB (count, 3, H, W) in 0..255."""
    generator = torch.Generator().manual_seed(size[0])
    ramp = torch.linspace(0, 200, size[1]) * torch.rand(count, 3, 1, 1, generator=generator)
    return ramp + 55 * torch.rand(count, 3, *size, generator=generator)


@torch.no_grad()
def seen(network: SplitSegmenter, images: Tensor) -> Segmented:
    return network(images)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_have_the_images_size_whatever_it_is(network: SplitSegmenter, size: tuple[int, int]) -> None:
    found = seen(network, pictures(size, 2))
    assert found.logits.shape == (2, tiny.CLASSES, *size)
    assert found.coded.y_hat.shape == (2, tiny.SIZES["latents"], -(-size[0] // 16), -(-size[1] // 16))
    assert found.coded.y_bits.shape == found.coded.z_bits.shape == (2,)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_latents_are_what_encode_gives(network: SplitSegmenter, size: tuple[int, int]) -> None:
    images = pictures(size, 2)
    with torch.no_grad():
        assert torch.equal(network.prior(network.encode(images)).y_hat, seen(network, images).coded.y_hat)


def test_everything_is_finite(network: SplitSegmenter) -> None:
    for images in (pictures((64, 96), 2), torch.zeros(1, 3, 64, 96), torch.full((1, 3, 64, 96), 255.0)):
        found = seen(network, images)
        assert all(t.isfinite().all() for t in (found.logits, found.coded.y_bits, found.coded.z_bits))


def test_gradient_reaches_every_parameter(network: SplitSegmenter) -> None:
    network.train()
    found = network(pictures((64, 96), 4))
    (found.logits.square().mean() + 1e-3 * (found.coded.y_bits + found.coded.z_bits).mean()).backward()
    dead = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    spoilt = {n for n, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()}
    network.zero_grad()
    network.eval()
    assert dead == NOT_LEARNED
    assert not spoilt


def test_segmentation_alone_reaches_the_first_layer_through_the_rounding(network: SplitSegmenter) -> None:
    found = network(pictures((64, 96), 2))
    found.logits.square().mean().backward()
    gradient = network.backbone.stem[0].weight.grad
    network.zero_grad()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("size", [(64, 96), (33, 50)], ids=str)
def test_an_image_is_seen_the_same_alone_and_in_a_batch(network: SplitSegmenter, size: tuple[int, int]) -> None:
    images = pictures(size, 3)
    with torch.no_grad():
        together = network.encode(images)
        for i in range(3):
            alone = network.encode(images[i : i + 1])[0]
            assert torch.allclose(together[i], alone, atol=1e-4)
        logits = network.decoder(together)
        assert torch.allclose(logits[1], network.decoder(together[1:2])[0], atol=1e-4)


def test_eval_mode_has_no_noise_and_training_has(network: SplitSegmenter) -> None:
    images = pictures((64, 96), 2)
    assert torch.equal(seen(network, images).coded.y_bits, seen(network, images).coded.y_bits)
    with torch.no_grad():
        y = network.encode(images)
        a, b = (network.prior.train()(y).y_bits for _ in range(2))
    network.eval()
    assert not torch.equal(a, b)


def test_image_is_left_as_it_was(network: SplitSegmenter) -> None:
    images = pictures((64, 96), 1)
    before = images.clone()
    seen(network, images)
    assert torch.equal(images, before)


def test_state_survives_saving(network: SplitSegmenter) -> None:
    other = type(network)(tiny.CLASSES, **tiny.SIZES).eval()
    other.load_state_dict(network.state_dict())
    images = pictures((64, 96), 1)
    assert torch.equal(seen(other, images).logits, seen(network, images).logits)
