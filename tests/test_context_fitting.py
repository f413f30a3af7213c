"""Fitted contexts: fewer bits on frames not seen, near the estimate, whole tables for both kinds of bundle."""

import coding
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.bundle import tables_from
from pipeline.context import estimated_bits
from pipeline.context_fitting import Effort, LevelLatents, fit_context, fit_tables, rounded
from pipeline.integer_prior import load_prior
from pipeline.latent_coding import decode_latents, encode_latents, quantise

torch.set_num_threads(1)
FRAMES, SIZE = 24, (6, 9)
SHORT = Effort(steps=60, batch=4, learning_rate=0.03)


def smooth_latents(seed: int, frames: int = FRAMES, channels: int = 4) -> NDArray[np.float32]:
    """(N, C, h, w): neighbours and channels depend on one another, the last channel never leaves zero."""
    rng = np.random.default_rng(seed)
    y = rng.normal(0, 1, (frames, channels, SIZE[0] + 2, SIZE[1] + 2))
    y = sum(np.roll(y, (i, j), (2, 3)) for i in range(3) for j in range(3))[:, :, 2:, 2:]
    y[:, 1] = y[:, 0] + 0.3 * y[:, 1]
    y[:, -1] *= 0.01
    return y.astype(np.float32)


def mean_bits(symbols: NDArray[np.int16], effort: Effort) -> float:
    """Bits of frames that were not fitted to."""
    half = len(symbols) // 2
    one = fit_context(symbols[:half], None, effort=effort)
    return float(np.mean([estimated_bits(frame, one) for frame in symbols[half:]]))


def test_neighbours_save_bits_on_frames_not_seen() -> None:
    symbols = rounded(smooth_latents(0, 2 * FRAMES), 99)
    assert mean_bits(symbols, SHORT) < 0.75 * mean_bits(symbols, Effort(steps=0))


def test_channels_that_are_always_zero_are_left_out() -> None:
    one = fit_context(rounded(smooth_latents(0), 99), None, effort=SHORT)
    np.testing.assert_array_equal(one.channels, [0, 1, 2])
    nothing = fit_context(np.zeros((3, 4, *SIZE), np.int16), None, effort=SHORT)
    assert nothing.channels.size == 0


def test_the_same_seed_gives_the_same_context() -> None:
    symbols = rounded(smooth_latents(0), 99)
    first, again = (fit_context(symbols, None, effort=Effort(steps=5)) for _ in range(2))
    np.testing.assert_array_equal(first.spread, again.spread)
    np.testing.assert_array_equal(first.bias, again.bias)


@pytest.mark.parametrize("hyper", [False, True], ids=["without a prior", "with a prior"])
def test_tables_code_frames_not_seen_at_every_level_near_the_estimate(hyper: bool) -> None:
    prior = load_prior(coding.stored_prior(), hyper_limit=63, scale_levels=64) if hyper else None
    y = smooth_latents(1, FRAMES + 6, channels=coding.LATENTS)
    z = np.random.default_rng(2).normal(0, 1.5, (len(y), coding.HYPER if hyper else 0, 2, 3)).astype(np.float32)
    gains = (0.3, 4.0)
    levels = [LevelLatents(gain * y[:FRAMES], z[:FRAMES]) for gain in gains]
    stored = fit_tables(levels, prior, hyper_limit=63, effort=SHORT)
    tables = tables_from({**stored, **(coding.stored_prior() if hyper else {})})
    assert tables.levels == 2
    for quality, gain in enumerate(gains):
        coded, estimated = 0, 0.0
        for frame in range(FRAMES, len(y)):
            latents = quantise(gain * y[frame], z[frame], tables, quality)
            body = encode_latents(latents, tables, quality)
            read = decode_latents(body, tables, SIZE, quality)
            np.testing.assert_array_equal(read.symbols, latents.symbols)
            np.testing.assert_array_equal(read.hyper, latents.hyper)
            coded += len(body) - 1  # the end
            hints = latents.prediction if hyper else None
            estimated += estimated_bits(latents.symbols, tables.latent[quality], hints) / 8
            estimated += estimated_bits(latents.hyper, tables.hyper[quality]) / 8 if hyper else 0
        assert coded == pytest.approx(estimated, rel=0.02, abs=4)


def test_without_a_prior_y_is_rounded_about_each_channels_mean() -> None:
    y = smooth_latents(3) + np.float32(2.3)
    z = np.zeros((FRAMES, 0, 2, 3), np.float32)
    tables = tables_from(fit_tables([LevelLatents(y, z)], None, hyper_limit=63, effort=Effort(steps=2)))
    latents = quantise(y[0], z[0], tables, 0)
    assert np.abs(latents.symbols + latents.prediction.means - y[0]).max() <= 0.5 + 0.07
    assert latents.prediction.means.mean() == pytest.approx(2.3, abs=0.2)


def test_there_are_no_more_tables_than_scales_are_needed() -> None:
    z = np.zeros((FRAMES, 0, 2, 3), np.float32)
    small = fit_tables([LevelLatents(0.2 * smooth_latents(3), z)], None, hyper_limit=63, effort=SHORT)
    large = fit_tables([LevelLatents(5 * smooth_latents(3), z)], None, hyper_limit=63, effort=SHORT)
    assert small["cumulative"].nbytes < 0.5 * large["cumulative"].nbytes


def test_a_few_steps_from_a_context_of_nearly_the_same_latents_are_better_than_from_nothing() -> None:
    begun = fit_context(rounded(smooth_latents(0), 99), None, effort=SHORT)
    few, unseen = rounded(1.1 * smooth_latents(5, 4), 99), rounded(1.1 * smooth_latents(6), 99)
    short = Effort(steps=8, batch=4, learning_rate=0.003)
    warm, cold = fit_context(few, None, effort=short, start=begun), fit_context(few, None, effort=short)
    bits = [np.mean([estimated_bits(frame, one) for frame in unseen]) for one in (warm, begun, cold)]
    assert bits[0] < 1.01 * bits[1] < bits[2]


def test_channels_of_the_start_stay_and_new_ones_are_added() -> None:
    begun = fit_context(rounded(smooth_latents(0), 99), None, effort=SHORT)
    symbols = rounded(smooth_latents(0), 99)
    symbols[:, 1], symbols[:, 3] = 0, symbols[:, 0]
    one = fit_context(symbols, None, effort=Effort(steps=0), start=begun)
    np.testing.assert_array_equal(one.channels, [0, 1, 2, 3])
    np.testing.assert_array_equal(one.bias[..., :3], begun.bias)


def test_tables_from_a_start_have_as_many_scales_at_least() -> None:
    z = np.zeros((FRAMES, 0, 2, 3), np.float32)
    tables = tables_from(fit_tables([LevelLatents(5 * smooth_latents(3), z)], None, hyper_limit=63, effort=SHORT))
    calm = [LevelLatents(0.2 * smooth_latents(3), z)]
    again = tables_from(fit_tables(calm, None, hyper_limit=63, effort=Effort(steps=1), start=tables))
    assert again.frequencies.scales == tables.frequencies.scales


@pytest.mark.parametrize(("factor", "grows"), [(1.0, False), (1.1, False), (20.0, True)])
def test_tables_from_a_start_are_others_only_where_those_are_not_enough(factor: float, grows: bool) -> None:
    y, z, few = 0.2 * smooth_latents(3), np.zeros((FRAMES, 0, 2, 3), np.float32), Effort(steps=5)
    start = tables_from(fit_tables([LevelLatents(y, z)], None, hyper_limit=63, effort=SHORT))
    larger = [LevelLatents(factor * y, z)]
    again = tables_from(fit_tables(larger, None, hyper_limit=63, effort=few, start=start)).frequencies
    assert (again.scales > start.frequencies.scales) == grows
    if not grows:
        np.testing.assert_array_equal(again.cumulative, start.frequencies.cumulative)
