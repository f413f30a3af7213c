"""Flow <-> bytes: motion as few integers, global motion first, then what ever finer grids add; whole numbers only.

    flow at the nodes (2, R, C) = sum of coefficient x step x shape      coefficients (2, N) <-> coder <-> body

Nodes lie about 15 pixels apart, from border to border. The first six shapes are 1, x, y, xy, x2 and y2 over the whole
region, the others are tents: those of a grid of every eighth node, then those of the nodes half way between, along the
rows, along the columns, and so on down to single nodes. So a coefficient says by how much a node differs from what the
coarser ones make of it, and is mostly zero. How probable that is follows from coefficients already coded: those beside
it in its grid, in the way of `context`, and the coarser ones around it, by a hint.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.context import PLACES, Context
from pipeline.entropy import Reader, Writer
from pipeline.errors import BitstreamError
from pipeline.frequency_tables import FRACTIONS, TOTAL, FrequencyTables, check_tables, sealed
from pipeline.integer_prior import Prediction

STEPS_PX = (1, 2, 3, 4, 6, 8, 12, 16)  # of the coefficients: the global ones, then grid by grid
GLOBAL_SHAPES = 6
COARSE = 8  # nodes from one to the next of the coarsest grid
MAX_SIDE_PX = 8192

_COARSE_PX = 120  # about so far apart are the nodes of the coarsest grid
_AXES = (2, 1, 2, 1, 2, 1)  # along which each finer grid lies half way between the nodes there are: 2 rows, 1 columns
_UNIT = 64  # flow is summed in 1/64 px: whole after six halvings
_ACTIVITY = 16  # a coefficient of 1, as a hint to finer grids
_ACTIVITY_LIMIT = 4  # coefficients count as no larger than this in it

# Weights in 1/16 of a table, fitted to coefficients of clips, DAVIS and rendered streets. Pairs are dx, dy; _SPREAD is
# by place, by what speaks, and by what it speaks for.
_HEAD_BIAS = (320, *(440, 470, 401, 436, 346, 380), *(380, 338, 434, 371, 374, 349))
_BIAS = ((297, 235), (207, 140), (219, 161), (194, 144), (187, 129), (129, 76), (77, 12))
_HINT = (51, 79)
_SPREAD = (((0, 30), (0, 0)), ((22, -5), (0, 24)), ((10, -7), (-3, 10)), ((15, -2), (4, 22)), ((3, -5), (-4, 4)))

_USUAL_GRIDS = 6  # the number that is cheapest to send
_TABLES = 32
_EVEN_ODDS = 20  # the table by which a coefficient is as often zero as not; from one to the next, odds grow by 2**0.5
_EVEN_TAIL = 18  # the table by which a magnitude is as often the last as not; odds grow by 2**0.25
_LARGEST_ENTRY = 60
_INT16 = (-(1 << 15), (1 << 15) - 1)
_QUARTER_POWERS = (65536, 77936, 92682, 110218)  # 2**(k / 4) in 1/65536


def _odds(quarters: int) -> int:
    """2**(quarters / 4) in 1/65536."""
    return (_QUARTER_POWERS[quarters % 4] << 16) >> 16 - quarters // 4


def _frequencies(table: int) -> list[int]:
    """Of 0, 1, -1, 2, -2, ... and the escape, summing to TOTAL: geometric, but for zero."""
    odds, tail = _odds(2 * (table - _EVEN_ODDS)), _odds(table - _EVEN_TAIL)
    beyond = TOTAL * odds // (TOTAL + odds)  # of all values not listed yet
    sides: list[int] = []
    while len(sides) < _LARGEST_ENTRY and beyond > 2:
        side = max(beyond * TOTAL // (TOTAL + tail) // 2, 1)
        sides.append(side)
        beyond -= 2 * side
    escape = max(beyond, 1)
    return [TOTAL - 2 * sum(sides) - escape, *(side for side in sides for _ in range(2)), escape]


def _tables() -> FrequencyTables:
    rows = [_frequencies(table) for table in range(_TABLES)]
    cumulative = np.full((_TABLES, 2 * _LARGEST_ENTRY + 3), TOTAL, np.uint32)
    for bounds, frequencies in zip(cumulative, rows, strict=True):
        bounds[: len(frequencies) + 1] = [0, *itertools.accumulate(frequencies)]
    sizes = np.array([len(frequencies) for frequencies in rows], np.int32)
    # No means are predicted, so that of each scale's tables only the first is ever used.
    return check_tables(np.repeat(cumulative, FRACTIONS, axis=0), np.repeat(sizes, FRACTIONS))


TABLES = _tables()
_HEAD = 1 + 2 * GLOBAL_SHAPES  # symbols: how many grids follow, then the global coefficients
_HEAD_CONTEXT = Context(
    planes=_HEAD,
    channels=sealed(np.arange(_HEAD), np.int32),
    bias=sealed(np.array([_HEAD_BIAS, np.zeros(_HEAD)])[:, None], np.int16),
    hint=sealed(np.zeros((2, _HEAD)), np.int16),
    spread=sealed(np.zeros((2, _HEAD, len(PLACES), _HEAD)), np.int16),
)


def _context(bias: tuple[int, int], rows: int) -> Context:
    """How probable the coefficients (2, rows, w) of one grid are."""
    spread = np.array(_SPREAD).transpose(1, 0, 2)  # (from, place, to)
    return Context(
        planes=2,
        channels=sealed(np.arange(2), np.int32),
        bias=sealed(np.array([bias, (0, 0)])[:, None].repeat(rows, axis=1), np.int16),
        hint=sealed(np.array([_HINT, (0, 0)]), np.int16),
        spread=sealed(np.array([spread, np.zeros_like(spread)]), np.int16),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Tents:
    """The nodes (h, w) that one grid adds, between those there are along `axis` of (2, h, w), None: the first ones."""

    shape: tuple[int, int]
    axis: int | None
    context: Context
    step_px: int


@dataclass(frozen=True, slots=True, eq=False)
class FlowGrid:
    """Where the R x C nodes of a region lie, and the shapes that N coefficients stand for."""

    height: int
    width: int
    rows: int
    columns: int
    polynomials: NDArray[np.int64]  # (6, R, C) in 1/64
    tents: tuple[Tents, ...]

    @property
    def coefficients(self) -> int:
        """N, for each of dx and dy."""
        return GLOBAL_SHAPES + sum(h * w for h, w in (tents.shape for tents in self.tents))

    def split(self, coefficients: NDArray[np.int16]) -> Iterator[NDArray[np.int16]]:
        """Coefficients (2, N) -> views (2, 1, 6) of the global ones, then (2, h, w) of each grid."""
        at = 0
        for shape in ((1, GLOBAL_SHAPES), *(tents.shape for tents in self.tents)):
            end = at + shape[0] * shape[1]
            yield coefficients[:, at:end].reshape(2, *shape)
            at = end


@lru_cache(maxsize=64)
def grid_of(height: int, width: int) -> FlowGrid:
    """The grid of a region of that size in pixels; ValueError where a side is not 1 to MAX_SIDE_PX."""
    if not (1 <= height <= MAX_SIDE_PX and 1 <= width <= MAX_SIDE_PX):
        raise ValueError(f"flow for {height}x{width} pixels; sides must be 1 to {MAX_SIDE_PX}")
    down, across = max(round(height / _COARSE_PX), 1), max(round(width / _COARSE_PX), 1)
    rows, columns = COARSE * down + 1, COARSE * across + 1
    return FlowGrid(height, width, rows, columns, _polynomials(rows, columns), tuple(_all_tents(down, across)))


def _polynomials(rows: int, columns: int) -> NDArray[np.int64]:
    """1, x, y, xy, x2, y2 at the nodes, x and y from -1 to 1, in 1/64: (6, R, C)."""
    y, x = np.meshgrid(*(((2 * np.arange(n) - n + 1) * _UNIT) // (n - 1) for n in (rows, columns)), indexing="ij")
    one = np.full_like(x, _UNIT)
    return np.array([one, x, y, x * y // _UNIT, x * x // _UNIT, y * y // _UNIT], np.int64)


def _all_tents(down: int, across: int) -> Iterator[Tents]:
    sides = [down + 1, across + 1]
    for axis, bias, step_px in zip((None, *_AXES), _BIAS, STEPS_PX[1:], strict=True):
        added = sides.copy()
        if axis is not None:
            added[axis - 1] -= 1
            sides[axis - 1] += added[axis - 1]
        yield Tents((added[0], added[1]), axis, _context(bias, added[0]), step_px)


def encode_flow(coefficients: NDArray[np.int16], grid: FlowGrid) -> bytes:
    """Code coefficients int16 (2, N); ValueError where they are not of the grid."""
    if coefficients.shape != (2, grid.coefficients):
        raise ValueError(f"coefficients {coefficients.shape}; the grid has {grid.coefficients}")
    common, *blocks = grid.split(coefficients)
    used = max((number for number, block in enumerate(blocks, 1) if block.any()), default=0)
    writer, activity = Writer(1 + coefficients.size), _flat(grid)
    head = np.append(np.int16(used - _USUAL_GRIDS), common)
    writer.put(head.reshape(-1, 1, 1), _HEAD_CONTEXT, TABLES)
    for tents, block in zip(grid.tents[:used], blocks, strict=False):
        activity = _refined(activity, tents.axis)
        writer.put(block, tents.context, TABLES, _hint(activity, tents.axis))
        activity = _noted(activity, tents.axis, block)
    return writer.finish()


def decode_flow(body: bytes, grid: FlowGrid) -> NDArray[np.int16]:
    """Mirror of encode_flow; raises BitstreamError unless the bytes are exactly what encodes some coefficients."""
    coefficients = np.zeros((2, grid.coefficients), np.int16)
    common, *blocks = grid.split(coefficients)
    reader, activity = Reader(body), _flat(grid)
    head = reader.take((1, 1), _HEAD_CONTEXT, TABLES).ravel()
    used = int(head[0]) + _USUAL_GRIDS
    if not 0 <= used <= len(blocks):
        raise BitstreamError(f"flow: {used} grids, there are {len(blocks)}")
    common[:] = head[1:].reshape(common.shape)
    for tents, block in zip(grid.tents[:used], blocks, strict=False):
        activity = _refined(activity, tents.axis)
        block[:] = reader.take(tents.shape, tents.context, TABLES, _hint(activity, tents.axis))
        activity = _noted(activity, tents.axis, block)
    reader.finish()
    if used and not blocks[used - 1].any():
        raise BitstreamError(f"flow: nothing in the last of {used} grids")
    return coefficients


def node_flow(coefficients: NDArray[np.int16], grid: FlowGrid) -> NDArray[np.float32]:
    """Coefficients (2, N) -> (dx, dy) in pixels at the nodes, float32 (2, R, C); the same on every machine."""
    common, *blocks = grid.split(coefficients.astype(np.int64))
    flow = _flat(grid)
    for tents, block in zip(grid.tents, blocks, strict=True):
        flow = _refined(flow, tents.axis)
        _newest(flow, tents.axis)[:] += block * (tents.step_px * _UNIT)
    flow += STEPS_PX[0] * np.tensordot(common[:, 0], grid.polynomials, 1)  # (2, R, C)
    return flow.astype(np.float32) / np.float32(_UNIT)


def opposite(coefficients: NDArray[np.int16], age: int, other_age: int) -> NDArray[np.int16]:
    """The coefficients (2, N) of motion to a key on the other side in time, if it went on as it does to this one.

    `age` >= 1: how many frames this key is away, `other_age`: how many that one is. Halves are rounded down.
    """
    moved = -((2 * coefficients.astype(np.int64) * other_age + age) // (2 * age))
    return np.clip(moved, *_INT16).astype(np.int16)


def added(coefficients: NDArray[np.int16], more: NDArray[np.int16]) -> NDArray[np.int16]:
    """The sum of two sets of coefficients (2, N), within 16 bits."""
    return np.clip(coefficients.astype(np.int64) + more, *_INT16).astype(np.int16)


def _flat(grid: FlowGrid) -> NDArray[np.int64]:
    return np.zeros((2, *grid.tents[0].shape), np.int64)


def _refined(field: NDArray[np.int64], axis: int | None) -> NDArray[np.int64]:
    """The field (2, h, w) with a place more between any two along the axis, half way between them in value."""
    if axis is None:
        return field
    long = np.moveaxis(field, axis, 0)  # (n, ...)
    refined = np.empty((2 * len(long) - 1, *long.shape[1:]), np.int64)
    refined[::2] = long
    refined[1::2] = long[:-1] + long[1:] >> 1
    return np.moveaxis(refined, 0, axis)


def _newest(field: NDArray[np.int64], axis: int | None) -> NDArray[np.int64]:
    """The places (2, h, w), within the field, that the last refinement brought: a view."""
    return field if axis is None else field[:, :, 1::2] if axis == 2 else field[:, 1::2]


def _hint(activity: NDArray[np.int64], axis: int | None) -> Prediction:
    """What coarser grids say about the coefficients of the newest places."""
    index = np.ascontiguousarray(np.minimum(_newest(activity, axis), 255), np.uint8)
    return Prediction(np.zeros(index.shape, np.float32), index)


def _noted(activity: NDArray[np.int64], axis: int | None, block: NDArray[np.int16]) -> NDArray[np.int64]:
    """The activity with that of a grid's coefficients; from grid to grid it counts half."""
    activity = activity >> 1
    _newest(activity, axis)[:] += np.minimum(np.abs(block.astype(np.int64)), _ACTIVITY_LIMIT) * _ACTIVITY
    return activity
