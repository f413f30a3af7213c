from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.delta import Delta, fuse, join, split
from pipeline.errors import BitstreamError


@given(level=st.integers(0, 255), flow=st.binary(max_size=300), latents=st.binary(max_size=300))
def test_a_body_gives_back_what_was_joined(level: int, flow: bytes, latents: bytes) -> None:
    delta = Delta(level, flow, latents)
    assert split(join(delta)) == delta


@pytest.mark.parametrize("body", [b"", b"\1", b"\1\5abcd", b"\1\x80", b"\1\xff\xff\xff"])
def test_a_body_that_ends_too_early_is_a_bitstream_error(body: bytes) -> None:
    with pytest.raises(BitstreamError):
        split(body)


@given(body=st.binary(max_size=20))
def test_any_bytes_are_one_body_or_a_bitstream_error(body: bytes) -> None:
    with suppress(BitstreamError):
        assert join(split(body)) == body


def test_the_older_the_key_the_more_the_fresh_logits_count() -> None:
    warped, fresh = np.zeros((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32)
    shares = [float(fuse(warped, fresh, age=age).max()) for age in (1, 5, 15, 255)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.52)
    assert shares[-1] == pytest.approx(0.8)
    assert fuse(warped, fresh, age=9).dtype == np.float32


def test_equal_logits_stay_as_they_are() -> None:
    logits = np.random.default_rng(1).normal(size=(5, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(fuse(logits, logits, age=3), logits)
