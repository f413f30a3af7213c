"""The whole network: padding before, enlarging behind, levels in between; its parts are of test_assembly.py."""

import pytest
import tiny
import torch
import torch.nn.functional as F

from pipeline.models.entropy_model import NoBottleneck
from pipeline.models.split_segmenter import SplitSegmenter, levels_like, pad_to_stride, upsample


@pytest.mark.parametrize(("size", "padded"), [((16, 32), (16, 32)), ((17, 31), (32, 32)), ((1, 1), (16, 16))])
def test_sizes_are_padded_up_to_the_stride(size: tuple[int, int], padded: tuple[int, int]) -> None:
    assert pad_to_stride(torch.zeros(2, 3, *size), 16).shape == (2, 3, *padded)


def test_padding_repeats_the_last_row_and_column() -> None:
    image = torch.rand(1, 3, 18, 20)
    padded = pad_to_stride(image, 16)
    assert torch.equal(padded[..., :18, :20], image)
    assert torch.equal(padded[..., 18:, :20], image[..., -1:, :].expand(1, 3, 14, 20))
    assert torch.equal(padded[..., :18, 20:], image[..., -1:].expand(1, 3, 18, 12))


def test_image_that_fits_is_not_copied() -> None:
    image = torch.rand(1, 3, 32, 48)
    assert pad_to_stride(image, 16) is image


def test_logits_are_enlarged_four_times_and_the_padding_is_cut_off() -> None:
    logits = torch.randn(2, 5, 8, 12)
    expected = F.interpolate(logits, size=(32, 48), mode="bilinear", align_corners=False)
    assert torch.allclose(upsample(logits, 30, 41), expected[..., :30, :41], atol=1e-6)


def test_half_precision_logits_are_enlarged_in_float32() -> None:
    assert upsample(torch.randn(1, 5, 4, 4).bfloat16(), 16, 16).dtype == torch.float32


def test_one_level_for_each_image_of_a_batch() -> None:
    quality = levels_like(torch.zeros(3, 3, 16, 16), 5)
    assert quality.tolist() == [5, 5, 5]
    assert quality.dtype == torch.int64


def test_levels_are_those_of_the_prior_and_one_without(tiny_network: SplitSegmenter) -> None:
    assert tiny_network.levels == tiny.LEVELS
    assert SplitSegmenter(torch.nn.Identity(), NoBottleneck(), torch.nn.Identity()).levels == 1


@torch.no_grad()
def test_the_camera_sends_what_the_network_codes_and_the_cloud_decodes_it(tiny_network: SplitSegmenter) -> None:
    images, quality = tiny.images(tiny.scenes(4)), torch.tensor([0, 1, 2, 1])
    found = tiny_network(images, quality)
    coded = tiny_network.prior(tiny_network.encode(images), quality)
    assert torch.equal(found.coded.y_hat, coded.y_hat)
    assert torch.equal(found.coded.y_bits, coded.y_bits)
    assert torch.equal(found.output, tiny_network.decoder(coded.y_hat))
    assert found.output.shape == (4, tiny.CLASSES, tiny.HEIGHT // 4, tiny.WIDTH // 4)


@torch.no_grad()
def test_what_is_encoded_does_not_know_of_levels(tiny_network: SplitSegmenter) -> None:
    """One pass of the encoder serves all of them."""
    images = tiny.images(tiny.scenes(2))
    y = tiny_network.encode(images)
    scaled = [tiny_network.prior.analyse(y, levels_like(y, level))[0] for level in range(tiny.LEVELS)]
    assert all(torch.allclose(one / scaled[-1], (one / scaled[-1]).mean(), rtol=1e-3) for one in scaled)
