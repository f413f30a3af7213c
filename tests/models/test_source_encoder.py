"""Source encoder and hyper encoder: sizes, and that the finest features arrive without being pooled."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.backbone import FeatureSpec
from pipeline.models.source_encoder import HyperEncoder, SourceEncoder

SPECS = (FeatureSpec(3, 4), FeatureSpec(5, 8), FeatureSpec(7, 16))


def encoder() -> SourceEncoder:
    torch.manual_seed(0)
    return SourceEncoder(SPECS, width=16, latents=6).eval()


def features(rows: int, columns: int) -> tuple[Tensor, ...]:
    """Feature maps of an image of rows x columns latents."""
    generator = torch.Generator().manual_seed(1)
    sizes = [(spec.channels, rows * 16 // spec.stride, columns * 16 // spec.stride) for spec in SPECS]
    return tuple(torch.randn(2, *size, generator=generator) for size in sizes)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (23, 30)])
def test_latents_are_at_stride_16(size: tuple[int, int]) -> None:
    assert encoder()(features(*size)).shape == (2, 6, *size)


@pytest.mark.parametrize("at", range(len(SPECS)))
def test_finer_features_are_rearranged_and_weighed(at: int) -> None:
    conv, x = encoder().reduce[at][0], features(2, 3)[at]  # type: ignore[index]
    moved = F.pixel_unshuffle(x, 16 // SPECS[at].stride)
    torch.testing.assert_close(conv(x), F.conv2d(moved, conv.weight.flatten(1)[:, :, None, None]))


@pytest.mark.parametrize("place", range(len(SPECS)))
def test_every_single_feature_reaches_the_latents(place: int) -> None:
    maps = [f.requires_grad_() for f in features(2, 2)]
    encoder()(tuple(maps)).pow(2).sum().backward()
    assert (maps[place].grad != 0).float().mean() > 0.9


def test_pixels_of_one_latent_are_told_apart() -> None:
    """Pooling would not notice two of them changing places."""
    maps = features(1, 1)
    swapped = maps[0].clone()
    swapped[..., 0, 0], swapped[..., 3, 3] = maps[0][..., 3, 3], maps[0][..., 0, 0]
    with torch.no_grad():
        assert not torch.allclose(encoder()(maps), encoder()((swapped, *maps[1:])), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (4, 8), (5, 9), (23, 30), (6, 7)])
def test_hyper_latents_are_a_quarter_rounded_up(size: tuple[int, int]) -> None:
    z = HyperEncoder(6, 3)(torch.randn(2, 6, *size))
    assert z.shape == (2, 3, -(-size[0] // 4), -(-size[1] // 4))


def test_hyper_encoder_leaves_its_input_as_it_was() -> None:
    y = torch.randn(1, 6, 4, 4)
    before = y.clone()
    HyperEncoder(6, 3)(y)
    assert torch.equal(y, before)
