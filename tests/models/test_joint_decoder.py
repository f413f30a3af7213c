"""Joint decoder: latents at stride 16 to logits at stride 4."""

import pytest
import torch

from pipeline.models.joint_decoder import JointDecoder
from pipeline.models.over_parameterised import merge_branches


def decoder(classes: int = 5, width: int = 8, branches: int = 0) -> JointDecoder:
    torch.manual_seed(0)
    return JointDecoder(6, classes, width=width, branch=4, dilations=(1, 2), branches=branches).eval()


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (23, 30)])
@pytest.mark.parametrize(("classes", "width"), [(5, 8), (11, 4), (1, 6)])
def test_logits_are_four_times_as_large_as_the_latents(size: tuple[int, int], classes: int, width: int) -> None:
    y_hat = torch.randn(2, 6, *size)
    assert decoder(classes, width)(y_hat).shape == (2, classes, 4 * size[0], 4 * size[1])


def test_logits_take_both_signs() -> None:
    logits = decoder()(torch.randn(2, 6, 4, 4))
    assert logits.min() < 0 < logits.max()


def test_input_is_left_as_it_was() -> None:
    y_hat = torch.randn(1, 6, 4, 4)
    before = y_hat.clone()
    decoder()(y_hat)
    assert torch.equal(y_hat, before)


@pytest.mark.parametrize("branches", [1, 3])
def test_branches_of_training_merge_into_a_decoder_of_the_plain_ones_size(branches: int) -> None:
    trained, y_hat = decoder(branches=branches), torch.randn(2, 6, 4, 5)
    merged = merge_branches(trained)
    with torch.no_grad():
        assert torch.allclose(merged(y_hat), trained(y_hat), atol=1e-5)
    assert sum(p.numel() for p in trained.parameters()) > sum(p.numel() for p in decoder().parameters())
    kernels = [p.shape for p in merged.parameters() if p.ndim == 4]
    assert kernels == [p.shape for p in decoder().parameters() if p.ndim == 4]


def test_gradient_reaches_every_parameter() -> None:
    made = decoder(branches=2).train()
    made(torch.randn(4, 6, 4, 5)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())
