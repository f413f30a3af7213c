"""The context model in floats: the same as the integers it becomes, causal, and trainable where it begins."""

import coding
import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import context
from pipeline.context import Context, estimated_bits, expect, load_context, stored_context
from pipeline.frequency_tables import laplace_mass
from pipeline.models import context_model
from pipeline.models.context_model import ContextModel, Hints, laplace_bits

CHANNELS, ROWS, WIDTH = 5, 4, 6
SHAPE = (CHANNELS, ROWS, WIDTH)


def made_up_model(seed: int = 0, size: float = 0.1) -> ContextModel:
    torch.manual_seed(seed)
    model = ContextModel(CHANNELS, ROWS)
    with torch.no_grad():
        model.bias[0].uniform_(1, 3)
        model.bias[1].uniform_(-1, 1)
        model.hint.normal_(0, 0.03)
        model.spread.normal_(0, size)
    return model


def as_context(model: ContextModel) -> Context:
    """Frozen, stored and loaded again."""
    frozen = model.freeze()
    channels = np.arange(CHANNELS, dtype=np.int32)
    made = Context(CHANNELS, channels, frozen.bias, frozen.hint, frozen.spread)
    return load_context(stored_context(made, "some"), "some")


def as_hints(seed: int) -> Hints:
    said = coding.prediction(seed, SHAPE)
    return Hints(torch.from_numpy(said.indexes.astype(np.float32))[None], torch.from_numpy(said.means)[None])


def drawn(seed: int, spread: float = 1.0) -> np.ndarray:
    return coding.symbols(seed, SHAPE, coding.context(0, planes=CHANNELS, rows=ROWS), spread)


def test_both_forms_mean_the_same_by_their_constants() -> None:
    assert context_model.PLACES == context.PLACES
    assert (context_model.MAGNITUDE_LIMIT, context_model.VALUE_LIMIT) == (context.MAGNITUDE_LIMIT, context.VALUE_LIMIT)
    assert context_model.SCALE_UNITS == 1 << context.SCALE_BITS
    assert context_model.MEAN_UNITS == 1 << context.MEAN_BITS
    assert context_model.HINT_UNITS == 1 << context.HINT_BITS


@pytest.mark.parametrize("hinted", [False, True])
def test_frozen_context_expects_what_the_model_expects(hinted: bool) -> None:
    model, symbols = made_up_model(), drawn(1, 3)
    hints = as_hints(2) if hinted else None
    said = coding.prediction(2, SHAPE) if hinted else None
    with torch.no_grad():
        scales, means = model.expect(torch.from_numpy(symbols.astype(np.float32))[None], hints)
    integer_scales, integer_means = expect(symbols, as_context(model), said)
    np.testing.assert_allclose(integer_scales, scales[0].numpy(), rtol=0.15)
    np.testing.assert_allclose(integer_means, means[0].numpy(), atol=0.2)


def test_bits_are_those_of_the_frozen_context() -> None:
    model, symbols = made_up_model(), drawn(3, 0.6)
    with torch.no_grad():
        bits = float(model(torch.from_numpy(symbols.astype(np.float32))[None]).sum())
    assert estimated_bits(symbols, as_context(model)) == pytest.approx(bits, rel=0.02)


def test_bits_are_the_logarithm_of_the_mass_and_never_flat() -> None:
    distances = torch.tensor([-3.0, -0.5, 0.2, 0.5, 7.0], dtype=torch.float64)
    scales = torch.tensor([0.3, 1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    exact = -np.log2(laplace_mass(distances.numpy(), scales.numpy()))
    np.testing.assert_allclose(laplace_bits(distances, scales).numpy(), exact, rtol=1e-6)
    far = torch.tensor([900.0], requires_grad=True)
    laplace_bits(far, torch.tensor([0.05])).sum().backward()
    assert far.grad is not None
    assert 0 < float(far.grad) < 100


def test_nothing_is_expected_from_what_comes_later() -> None:
    """Change one symbol: only itself, channels behind it at its place, and places behind it may notice."""
    model, symbols = made_up_model(), torch.from_numpy(drawn(4).astype(np.float32))[None]
    other = symbols.clone()
    channel, row, column = 2, 1, 3
    other[0, channel, row, column] += 1
    with torch.no_grad():
        before, after = (torch.stack(model.expect(one)) for one in (symbols, other))
    noticed: Tensor = (before != after).any(0)[0]  # (C, h, w)
    assert noticed[channel + 1 :, row, column].all()
    assert noticed[:, row, column + 1].all()
    assert noticed[:, row + 1, column - 1 : column + 2].all()
    assert int(noticed.sum()) == 2 + 4 * CHANNELS


def test_weights_too_large_for_16_bits_are_shrunk() -> None:
    model = made_up_model(size=100.0)
    with torch.no_grad():
        model.hint.fill_(1e4)
        model.bias.fill_(-1e6)
    as_context(model)  # load_context refuses sums beyond 16 bits


def test_every_weight_is_reached_by_the_gradient() -> None:
    model = made_up_model()
    model(torch.from_numpy(drawn(5, 2.0).astype(np.float32))[None], as_hints(6)).sum().backward()
    assert (model.bias.grad != 0).all()
    assert (model.hint.grad != 0).all()
    assert ((model.spread.grad != 0) == (model.causal != 0)).all()


def test_training_begins_at_the_spread_of_the_symbols_or_at_the_hints() -> None:
    symbols = torch.from_numpy(np.stack([drawn(seed, 3.0) for seed in range(20)]).astype(np.float32)) + 2
    model = ContextModel(CHANNELS, ROWS)
    model.start_from(symbols, hinted=False)
    with torch.no_grad():
        scales, means = model.expect(symbols)
        assert means.mean() == pytest.approx(2, abs=0.3)
        assert scales.mean() == pytest.approx(3, rel=0.2)
        model = ContextModel(CHANNELS, ROWS)
        model.start_from(symbols, hinted=True)
        scales, _ = model.expect(symbols, Hints(torch.full_like(symbols, 63.0), torch.zeros_like(symbols)))
        assert scales.max() == context_model.SCALE_MAX  # 64 / sqrt(2), which is more than there are tables for


def test_a_frozen_context_is_resumed_to_the_same_integers() -> None:
    model, again = made_up_model(), ContextModel(CHANNELS, ROWS)
    frozen = model.freeze()
    again.resume_from(frozen, np.arange(CHANNELS))
    for name in ("bias", "hint", "spread"):
        np.testing.assert_array_equal(getattr(again.freeze(), name), getattr(frozen, name))


def test_channels_that_a_frozen_context_has_not_stay_as_they_are() -> None:
    frozen, wider = made_up_model().freeze(), ContextModel(CHANNELS + 2, ROWS)
    with torch.no_grad():
        wider.bias.fill_(0.5)
    places = np.array([0, 2, 3, 5, 6])
    wider.resume_from(frozen, places)
    made = wider.freeze()
    np.testing.assert_array_equal(made.bias[..., places], frozen.bias)
    np.testing.assert_array_equal(made.hint[..., places], frozen.hint)
    np.testing.assert_array_equal(made.spread[:, places[:, None], :, places], frozen.spread.transpose(1, 3, 0, 2))
    assert (made.bias[..., [1, 4]] != 0).all()
    assert not made.spread[:, [1, 4]].any()
    assert not made.spread[..., [1, 4]].any()
