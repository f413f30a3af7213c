"""Regions of a latent are coded each alone, by the same tables as the whole of it."""

from dataclasses import replace

import coding
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bundle import Tables, tables_from
from pipeline.errors import BitstreamError
from pipeline.latent_coding import Cells, decode_latents, dequantise, encode_latents, hyper_size, quantise

COLUMNS = 11
SIZE = (coding.ROWS, COLUMNS)
PRIOR = {prior: tables_from(coding.stored_tables(prior=prior)) for prior in (True, False)}


@st.composite
def cells(draw: st.DrawFn) -> Cells:
    top, left = 4 * draw(st.integers(0, 1)), 4 * draw(st.integers(0, 2))
    return Cells(top, left, draw(st.integers(1, SIZE[0] - top)), draw(st.integers(1, SIZE[1] - left)))


def latents(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.normal(0, 3, (coding.LATENTS, *SIZE)).astype(np.float32)
    return y, rng.normal(0, 2, (coding.HYPER, *hyper_size(SIZE))).astype(np.float32)


def coded(seed: int, tables: Tables, part: Cells | None, quality: int = 2) -> tuple[np.ndarray, bytes]:
    y, z = latents(seed)
    made = quantise(y, z, tables, quality, part)
    return dequantise(made), encode_latents(made, tables, quality)


@pytest.mark.parametrize("prior", [True, False], ids=["prior", "no prior"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), part=cells())
def test_a_region_is_read_as_it_was_written_with_nothing_of_the_others(prior: bool, seed: int, part: Cells) -> None:
    y_hat, body = coded(seed, PRIOR[prior], part)
    read = decode_latents(body, PRIOR[prior], SIZE, 2, part)
    np.testing.assert_array_equal(dequantise(read), y_hat)
    y, _ = latents(seed)
    assert np.abs(y_hat - y[:, *part.latent]).max() <= 0.5


@pytest.mark.parametrize("prior", [True, False], ids=["prior", "no prior"])
def test_a_region_that_is_the_whole_is_coded_like_the_whole(prior: bool) -> None:
    whole, body = coded(1, PRIOR[prior], None)
    same, again = coded(1, PRIOR[prior], Cells(0, 0, *SIZE))
    np.testing.assert_array_equal(whole, same)
    assert body == again


def test_the_hyper_latent_of_a_region_comes_with_a_cell_around_it_where_the_frame_has_one() -> None:
    assert Cells(0, 0, 8, 8).hyper((23, 30)) == (slice(0, 3), slice(0, 3))
    assert Cells(8, 12, 8, 12).hyper((23, 30)) == (slice(1, 5), slice(2, 7))
    assert Cells(16, 20, 7, 10).hyper((23, 30)) == (slice(3, 6), slice(4, 8))
    assert Cells(0, 0, 23, 30).hyper((23, 30)) == (slice(0, 6), slice(0, 8))


def test_where_the_hyper_latent_is_all_alike_a_region_is_predicted_as_in_the_whole_frame() -> None:
    """What is not sent of it is taken to be like the nearest that is."""
    y, z = latents(3)
    z[:] = z[:, :1, :1]
    whole, part = quantise(y, z, PRIOR[True], 2), Cells(0, 4, 4, 4)
    one = quantise(y, z, PRIOR[True], 2, part)
    np.testing.assert_array_equal(one.prediction.means, whole.prediction.means[:, *part.latent])
    np.testing.assert_array_equal(one.prediction.indexes, whole.prediction.indexes[:, *part.latent])


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=80), part=cells())
def test_any_bytes_are_latents_of_a_region_or_a_bitstream_error(body: bytes, part: Cells) -> None:
    try:
        read = decode_latents(body, PRIOR[True], SIZE, 2, part)
    except BitstreamError:
        return
    assert encode_latents(read, PRIOR[True], 2) == body


@pytest.mark.parametrize("prior", [True, False], ids=["prior", "no prior"])
@pytest.mark.parametrize("part", [None, Cells(4, 4, 2, 5)], ids=["whole", "part"])
def test_a_level_with_a_lambda_takes_fewer_bytes_and_is_read_as_any_other(prior: bool, part: Cells | None) -> None:
    plain = PRIOR[prior]
    thrifty = replace(plain, rdoq_lambda=(0.0, 0.0, 0.3))
    sizes = []
    for tables in (plain, thrifty):
        y_hat, body = coded(3, tables, part)
        np.testing.assert_array_equal(dequantise(decode_latents(body, plain, SIZE, 2, part)), y_hat)
        sizes.append(len(body))
    assert sizes[1] < 0.95 * sizes[0]
    for level in (0, 1):
        assert coded(3, thrifty, part, level)[1] == coded(3, plain, part, level)[1]
