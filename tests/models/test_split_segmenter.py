"""Padding and enlarging around the network; what every network must do is in test_models.py."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.models.split_segmenter import pad_to_stride, upsample


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
