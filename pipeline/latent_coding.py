"""Latents of a frame, or of a region <-> bytes: rounded, predicted by the integer prior, coded; equal at both ends.

y, z -> round z -> integer prior -> round y - mean -> coder -> body      body -> coder -> z -> prior -> coder -> y_hat

A level's rows of the tables say how it is coded; latents that a level never uses are silenced before they are coded.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Tables
from pipeline.context import Context
from pipeline.entropy import Reader, Writer, rdoq
from pipeline.errors import BitstreamError
from pipeline.frequency_tables import MAX_SYMBOL, sealed
from pipeline.integer_prior import ACTIVATION_UNITS, Prediction, check_hyper

_HYPER_CELLS = 4  # rows or columns of y to one of z
_AROUND = 1  # cells of z that are sent around those of a region: what the prior makes of its edge depends on them


@dataclass(frozen=True, slots=True)
class Cells:
    """The part of a frame's latent y that is coded: all of it, or a region that begins at whole cells of z."""

    top: int
    left: int
    rows: int
    columns: int

    @property
    def latent(self) -> tuple[slice, slice]:
        """Their rows and columns in y."""
        return slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns)

    def hyper(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """The rows and columns of z that are sent with them, in the z of a y of `size` (h, w)."""
        sides = zip((self.top, self.left), (self.rows, self.columns), hyper_size(size), strict=True)
        down, across = (
            slice(max(first // _HYPER_CELLS - _AROUND, 0), min(-(-(first + count) // _HYPER_CELLS) + _AROUND, whole))
            for first, count, whole in sides
        )
        return down, across


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """Integers of the cells of a frame, all int16: z (Z, hz, wz), y less its predicted mean (C, h, w); the prediction.

    `frame` is the size of all of y.
    """

    hyper: NDArray[np.int16]
    symbols: NDArray[np.int16]
    prediction: Prediction
    cells: Cells
    frame: tuple[int, int]


def quantise(
    y: NDArray[np.float32], z: NDArray[np.float32], tables: Tables, quality: int, cells: Cells | None = None
) -> Latents:
    """Round the encode graph's y (C, h, w) and z (Z, hz, wz), Z = 0 where none is sent; what cannot be sent is clamped.

    Where the level has a lambda, y is rounded with an eye on the bits too: see `entropy.rdoq`.

    y and z are those of the frame; without `cells` all of them are taken. ValueError where the bundle has no such
    quality level.
    """
    _check_level(tables, quality)
    frame = y.shape[1], y.shape[2]
    cells = cells or _all(frame)
    hyper = _rounded(z[:, *cells.hyper(frame)], tables.hyper_limit)
    if tables.hyper:
        hyper = tables.hyper[quality].silenced(hyper)
    prediction = _predict(tables, hyper, frame, cells, quality)
    rest = y[:, *cells.latent] - prediction.means
    if tables.rdoq_lambda[quality]:
        rows, _ = cells.latent
        context = _of_rows(tables.latent[quality], rows.start, rows.stop)
        hints = _hints(tables, prediction)
        symbols = rdoq(rest, context, tables.frequencies, hints, rdoq_lambda=tables.rdoq_lambda[quality])
    else:
        symbols = tables.latent[quality].silenced(_rounded(rest, MAX_SYMBOL))
    return Latents(hyper, symbols, prediction, cells, frame)


def encode_latents(latents: Latents, tables: Tables, quality: int) -> bytes:
    """Code the integers as the body of a KEY region; ValueError where they are not of that level."""
    _check_level(tables, quality)
    writer = Writer(latents.hyper.size + latents.symbols.size)
    if tables.hyper:
        rows, _ = latents.cells.hyper(latents.frame)
        writer.put(latents.hyper, _of_rows(tables.hyper[quality], rows.start, rows.stop), tables.frequencies)
    rows, _ = latents.cells.latent
    context = _of_rows(tables.latent[quality], rows.start, rows.stop)
    writer.put(latents.symbols, context, tables.frequencies, _hints(tables, latents.prediction))
    return writer.finish()


def decode_latents(
    body: bytes, tables: Tables, size: tuple[int, int], quality: int, cells: Cells | None = None
) -> Latents:
    """Read the integers of the cells of a latent of `size` (h, w), of all without them.

    Raises BitstreamError on anything that an encoder cannot have sent.
    """
    if not 0 <= quality < tables.levels:
        raise BitstreamError(unknown_level(tables, quality))
    cells = cells or _all(size)
    reader = Reader(body)
    down, across = cells.hyper(size)
    hyper = np.zeros((0, down.stop - down.start, across.stop - across.start), np.int16)
    if tables.hyper:
        context = _of_rows(tables.hyper[quality], down.start, down.stop)
        hyper = reader.take((hyper.shape[1], hyper.shape[2]), context, tables.frequencies)
        check_hyper(hyper, tables.hyper_limit)
    prediction = _predict(tables, hyper, size, cells, quality)
    context = _of_rows(tables.latent[quality], cells.top, cells.top + cells.rows)
    symbols = reader.take((cells.rows, cells.columns), context, tables.frequencies, _hints(tables, prediction))
    reader.finish()
    return Latents(hyper, symbols, prediction, cells, size)


def _check_level(tables: Tables, quality: int) -> None:
    if not 0 <= quality < tables.levels:
        raise ValueError(unknown_level(tables, quality))


def unknown_level(tables: Tables, quality: int) -> str:
    """What is wrong with a level that the bundle does not have."""
    return f"quality {quality}: the bundle has levels 0 to {tables.levels - 1}"


def _all(frame: tuple[int, int]) -> Cells:
    return Cells(0, 0, *frame)


@lru_cache(maxsize=512)
def _of_rows(context: Context, first: int, end: int) -> Context:
    """The context for these rows of the frame alone: biases are by row."""
    if end - first == context.rows:
        return context
    return replace(context, bias=sealed(context.bias[:, first:end], np.int16))


def _rounded(latent: NDArray[np.float32], limit: int) -> NDArray[np.int16]:
    whole: NDArray[np.float32] = np.floor(latent + np.float32(0.5)).clip(-limit, limit)
    return whole.astype(np.int16)


def hyper_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size of z for a y of `size` (h, w)."""
    return -(-size[0] // _HYPER_CELLS), -(-size[1] // _HYPER_CELLS)


def _predict(
    tables: Tables, hyper: NDArray[np.int16], frame: tuple[int, int], cells: Cells, quality: int
) -> Prediction:
    """What is known of y in the cells before it is read; the same at all places where there is no prior."""
    if tables.prior is not None:
        whole = tables.prior.predict(_filled(hyper, frame, cells), frame)
        means, indexes = (field[:, *cells.latent] for field in (whole.means, whole.indexes))
        return Prediction(np.ascontiguousarray(means), np.ascontiguousarray(indexes))
    shape = (tables.latents, cells.rows, cells.columns)
    offsets = (tables.offsets[quality] / np.float32(ACTIVATION_UNITS))[:, None, None]
    return Prediction(np.broadcast_to(offsets, shape), np.broadcast_to(np.uint8(0), shape))


def _filled(hyper: NDArray[np.int16], frame: tuple[int, int], cells: Cells) -> NDArray[np.int16]:
    """The cells of z that were sent -> those of the frame, the last ones repeated.

    With nothing around them the prior would take a region's border for one of the frame, where z is of another kind:
    keys would take several times the bits.
    """
    margins = [
        (part.start, whole - part.stop) for part, whole in zip(cells.hyper(frame), hyper_size(frame), strict=True)
    ]
    if margins == [(0, 0), (0, 0)]:
        return hyper  # np.pad takes its time even then
    return np.pad(hyper, ((0, 0), *margins), mode="edge")


def _hints(tables: Tables, prediction: Prediction) -> Prediction | None:
    return None if tables.prior is None else prediction


def dequantise(latents: Latents) -> NDArray[np.float32]:
    """The integers -> y_hat float32 (C, h, w), what the joint decoder sees."""
    return latents.symbols + latents.prediction.means
