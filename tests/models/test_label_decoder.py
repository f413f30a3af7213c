"""The label decoder: one logit per class, whatever the picture's size, and each picture on its own."""

import pytest
import torch

from pipeline.models.label_decoder import LabelDecoder


@pytest.fixture
def decoder() -> LabelDecoder:
    torch.manual_seed(0)
    return LabelDecoder(16, 5, width=8)


@pytest.mark.parametrize("size", [(4, 6), (23, 30), (1, 1)])
def test_a_picture_of_any_size_gives_one_logit_per_class(decoder: LabelDecoder, size: tuple[int, int]) -> None:
    assert decoder.eval()(torch.randn(3, 16, *size)).shape == (3, 5)


def test_evidence_has_the_places_of_the_latents_and_is_pooled_to_the_logits(decoder: LabelDecoder) -> None:
    y_hat = torch.randn(2, 16, 5, 7)
    evidence = decoder.eval().evidence(y_hat)
    assert evidence.shape == (2, 5, 5, 7)
    torch.testing.assert_close(decoder.pool(evidence), decoder(y_hat))


def test_gradient_reaches_every_parameter(decoder: LabelDecoder) -> None:
    decoder.train()(torch.randn(4, 16, 6, 7)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_a_batch_gives_what_its_pictures_give_alone(decoder: LabelDecoder) -> None:
    y_hat = torch.randn(3, 16, 6, 7)
    together = decoder.eval()(y_hat)
    alone = torch.cat([decoder(one[None]) for one in y_hat])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_something_small_counts_as_the_mean_alone_would_not_let_it(decoder: LabelDecoder) -> None:
    empty = torch.zeros(1, 16, 24, 32)
    small = empty.clone()
    small[0, :, 11, 13] = 8.0
    with torch.no_grad():
        near, far = decoder.eval()(empty), decoder(small)
    assert (far - near).abs().max() > 0.1
