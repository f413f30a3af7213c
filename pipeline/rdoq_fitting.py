"""What a bit weighs when a bundle's latents are rounded, level by level: as much as its masks bear (entropy.rdoq).

images -> encode graph -> y -+-------------- decode graph -> masks, as near as the level gets -+
                             +-> lambda -> rounded -> coded -> decode graph -> masks ----------+-> pixels moved, bytes

No labels are looked at: rounding moves some of the masks' pixels anyway, and may move a few more, if a mixture with the
level below would move still more for as many bytes. At low levels it would not, and latents are rounded to the nearest.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from safetensors.numpy import load_file, save

from pipeline.bundle import TABLES, Bundle, copy_content, seal
from pipeline.codec import Decoder, Encoder, open_encoder
from pipeline.errors import ConfigError
from pipeline.latent_coding import dequantise, encode_latents, quantise
from pipeline.runtime import open_session

LAMBDAS = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08)
TOLERANCE = 0.05  # how many more pixels may move, as a share of those that move anyway
MARGIN = 0.02  # how many fewer must move than in a mixture with the level below, as a share
PLAIN_LEVELS = 2  # at the top, for masks as near as can be; thrift there would also tear the ladder of rates apart
_ENGINE = "onnxruntime"  # which computes in float32


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a lambda makes of the frames: bytes of each on average, share (0..1) of the pixels that rounding moves."""

    rdoq_lambda: float
    frame_bytes: float
    moved: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """One quality level: rounded to the nearest, and as thriftily as its masks bear."""

    quality: int
    nearest: Rounding
    chosen: Rounding


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Latents of a frame at one level, y (C, h, w) and z (Z, hz, wz), and the mask (H, W) of them as they are."""

    y: NDArray[np.float32]
    z: NDArray[np.float32]
    mask: NDArray[np.uint8]


def fit(
    bundle: Bundle,
    images: Sequence[NDArray[np.uint8]],
    *,
    tolerance: float = TOLERANCE,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Fitted]:
    """Of each level the largest of LAMBDAS up to which at most so many more pixels move; 0 where that does not pay.

    `images` are RGB frames (H, W, 3) of the bundle's size. The PLAIN_LEVELS highest levels have 0 in any case.
    `progress` is told how many levels are done. ConfigError where the bundle makes no masks or there are no images.
    """
    if not images:
        raise ConfigError("no images to measure on; name a folder or clip that has some")
    # Masks by the graph in floats, whatever is quicker here: what is fitted must not depend on the machine.
    decoder = Decoder(bundle, open_session(bundle.graph("decode"), engine=_ENGINE))
    encoder = open_encoder(bundle, engine=_ENGINE)
    below: Rounding | None = None
    for quality in range(bundle.tables.levels):
        seen = [_seen(encoder, decoder, image, quality) for image in images]
        nearest = thrifty = _measured(bundle, decoder, seen, quality, 0.0)
        for rdoq_lambda in LAMBDAS if 0 < quality < bundle.tables.levels - PLAIN_LEVELS else ():
            tried = _measured(bundle, decoder, seen, quality, rdoq_lambda)
            if tried.moved > (1 + tolerance) * nearest.moved:
                break
            thrifty = tried
        yield Fitted(quality, nearest, thrifty if below and pays(thrifty, nearest, below) else nearest)
        progress(quality + 1)
        below = nearest


def pays(thrifty: Rounding, nearest: Rounding, below: Rounding) -> bool:
    """Whether a level, rounded thriftily, moves fewer pixels than a mixture of it and the level below would.

    Of as many bytes as it takes, and between the two as a power of the bytes, all rounded to the nearest.
    """
    if not (below.frame_bytes < nearest.frame_bytes and 0 < nearest.moved < below.moved):
        return False
    slope = math.log(below.moved / nearest.moved) / math.log(nearest.frame_bytes / below.frame_bytes)
    mixed = nearest.moved * (nearest.frame_bytes / thrifty.frame_bytes) ** slope
    return bool(thrifty.moved <= (1 - MARGIN) * mixed)


def write(bundle: Bundle, fitted: Sequence[Fitted], folder: Path) -> Bundle:
    """Write the bundle with these lambdas to a folder, which may be its own; load it again.

    What its manifest says of rates and accuracies stays, to be measured anew. Packets of the old bundle are not the
    new one's, though they would be read in the same way: the hash covers the tables.
    """
    copy_content(bundle, folder)
    stored = load_file(folder / TABLES)
    lambdas = np.zeros(bundle.tables.levels, np.float32)
    for one in fitted:
        lambdas[one.quality] = one.chosen.rdoq_lambda
    (folder / TABLES).write_bytes(save({**stored, "rdoq_lambda": lambdas}))
    return seal(bundle.manifest, folder)


def as_table(fitted: Sequence[Fitted]) -> Table:
    """The figures for a person; bytes are those of the latents, without headers."""
    table = Table("quality", "lambda", "bytes a frame", "", "pixels moved by rounding", "")
    for column in table.columns:
        column.justify = "right"
    for one in fitted:
        each = (one.nearest, one.chosen)
        sizes, moved = ([f"{x.frame_bytes:.0f}" for x in each], [f"{100 * x.moved:.2f} %" for x in each])
        table.add_row(str(one.quality), f"{one.chosen.rdoq_lambda:g}", *sizes, *moved)
    return table


def _measured(bundle: Bundle, decoder: Decoder, seen: Sequence[_Seen], quality: int, rdoq_lambda: float) -> Rounding:
    tables = replace(bundle.tables, rdoq_lambda=(rdoq_lambda,) * bundle.tables.levels)
    sizes, moved = [], []
    for one in seen:
        coded = quantise(one.y, one.z, tables, quality)
        sizes.append(len(encode_latents(coded, tables, quality)))
        moved.append(np.mean(_mask(decoder, dequantise(coded), quality) != one.mask))
    return Rounding(rdoq_lambda, float(np.mean(sizes)), float(np.mean(moved)))


def _seen(encoder: Encoder, decoder: Decoder, image: NDArray[np.uint8], quality: int) -> _Seen:
    y, z = encoder.analysed(image, quality)
    return _Seen(y, z, _mask(decoder, y, quality))


def _mask(decoder: Decoder, y: NDArray[np.float32], quality: int) -> NDArray[np.uint8]:
    (mask,) = decoder.class_maps(y[None], np.array([quality], np.int64))
    return mask
