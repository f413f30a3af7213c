"""DELTA regions: a cheap latent of the frame itself, whose logits are averaged with those warped from the key.

    body   level u8 | size of the coded flow varint | coded flow | coded latents, as in a KEY of that level

For what moved too much to warp and too little for a new key: errors of a coarse latent and of an old key are mostly not
the same ones, so that the average is better than either. Nothing later refers to it; without its key it is a mask of
its own, at its own level.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bitstream import pack_varint, unpack_varint
from pipeline.errors import BitstreamError

_LEAST_SHARE, _SHARE_PER_FRAME, _LARGEST_SHARE = 0.5, 0.02, 0.8


@dataclass(frozen=True, slots=True)
class Delta:
    """What a body holds: the level of the latents, the coded flow from the key, the coded latents."""

    level: int
    flow: bytes
    latents: bytes


def join(delta: Delta) -> bytes:
    """The body of a DELTA region."""
    return bytes([delta.level]) + pack_varint(len(delta.flow)) + delta.flow + delta.latents


def split(body: bytes) -> Delta:
    """What the body of a DELTA region holds; BitstreamError where it ends before it should."""
    if not body:
        raise BitstreamError("region: a DELTA without a body")
    size, at = unpack_varint(body, 1)
    if at + size > len(body):
        raise BitstreamError(f"region: {len(body) - at} bytes of a DELTA, its flow alone needs {size}")
    return Delta(body[0], body[at : at + size], body[at + size :])


def fuse(warped: NDArray[np.float32], fresh: NDArray[np.float32], *, age: int) -> NDArray[np.float32]:
    """Logits (K, h, w) warped from a key of `age` frames ago, and those of the DELTA's own latents -> their average.

    The older the key, the more the fresh ones count. Fitted by hand to CamVid val with the bundle camvid-holdout, keys
    of levels 4 and 6, DELTAs of levels 0 to 2, ages 1 to 19; between 0.4 and 0.8 little depends on it.
    """
    share = np.float32(min(_LEAST_SHARE + _SHARE_PER_FRAME * age, _LARGEST_SHARE))
    return warped + share * (fresh - warped)
