"""A frame as a grid of regions: which latents are each one's own, and the windows, overlapping, that show them.

image -> [encode graph] -> latents of each core -> [coded one by one] -> put together -> [decode graph] -> windows
windows, new or warped -> merge -> full logits -> class map -> onto_last

Only whole frames go through the graphs: of a crop they would see a frame with borders where there are none. Cores
begin where cells of the hyper latent do, so that none is sent for two regions' sake but those around a core.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.bitstream import MAX_REGIONS, MAX_SIDE
from pipeline.compiled import compiled
from pipeline.errors import ConfigError

CELL_PX = 16  # one place of the latent
HYPER_PX = 64  # and of the hyper latent
LOGIT_PX = 4
OVERLAP_PX = 32  # camera and worker must agree on it: a packet tells only rows and columns


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Part of a padded frame in pixels."""

    top: int
    left: int
    height: int
    width: int

    def at(self, stride: int = 1) -> tuple[slice, slice]:
        """Its rows and columns in a map of this stride: 1 for pixels, 4 for logits, 16 for latents."""
        return (
            slice(self.top // stride, (self.top + self.height) // stride),
            slice(self.left // stride, (self.left + self.width) // stride),
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where one region lies in the padded frame: all sides multiples of 16, but of `picture`.

    core: what is its own, no two regions share any; window: the core and so much of its neighbours as shall overlap;
    picture: the window as far as the frame has pixels.
    """

    core: Rectangle
    window: Rectangle
    picture: Rectangle


@dataclass(frozen=True, slots=True)
class Grid:
    """A frame (height, width) in rows x columns regions whose windows reach `overlap_px` pixels into their neighbours.

    The frame is padded to multiples of 16; cores begin at multiples of 64, so that they differ a little in size.
    ConfigError where the wire cannot carry the grid, or where there are more rows or columns than such cells.
    """

    rows: int
    columns: int
    height: int
    width: int
    overlap_px: int = OVERLAP_PX

    def __post_init__(self) -> None:
        name = f"grid {self.rows}x{self.columns}"
        if not (1 <= self.rows <= MAX_SIDE and 1 <= self.columns <= MAX_SIDE and self.count <= MAX_REGIONS):
            raise ConfigError(f"{name}: use 1 to {MAX_SIDE} rows and columns, and at most {MAX_REGIONS} regions")
        if self.height < 1 or self.width < 1 or self.overlap_px < 0 or self.overlap_px % CELL_PX:
            raise ConfigError(f"{name} of a {self.width}x{self.height} frame, overlap {self.overlap_px}: no such sizes")
        most = -(-self.height // HYPER_PX), -(-self.width // HYPER_PX)
        if self.rows > most[0] or self.columns > most[1]:
            raise ConfigError(f"{name}: a {self.width}x{self.height} frame has at most {most[0]}x{most[1]} regions")

    @property
    def count(self) -> int:
        """How many regions there are."""
        return self.rows * self.columns

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the padded frame in pixels."""
        return -(-self.height // CELL_PX) * CELL_PX, -(-self.width // CELL_PX) * CELL_PX

    @property
    def places(self) -> tuple[Place, ...]:
        """Where each region lies, by index: row by row."""
        return _places(self)


@lru_cache(maxsize=64)
def _places(grid: Grid) -> tuple[Place, ...]:
    height, width = grid.padded_size
    rows, columns = _cuts(height, grid.rows), _cuts(width, grid.columns)
    found = []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            y0, y1 = max(top - grid.overlap_px, 0), min(bottom + grid.overlap_px, height)
            x0, x1 = max(left - grid.overlap_px, 0), min(right + grid.overlap_px, width)
            core = Rectangle(top, left, bottom - top, right - left)
            picture = Rectangle(y0, x0, min(y1, grid.height) - y0, min(x1, grid.width) - x0)
            found.append(Place(core, Rectangle(y0, x0, y1 - y0, x1 - x0), picture))
    return tuple(found)


def _cuts(side_px: int, parts: int) -> list[int]:
    """Where parts begin that are as equal as whole cells of the hyper latent allow, and where the last one ends."""
    cells = -(-side_px // HYPER_PX)
    return [*((2 * part * cells + parts) // (2 * parts) * HYPER_PX for part in range(parts)), side_px]


def parse_grid(text: str, *, height: int, width: int) -> Grid:
    """The grid that a manifest calls `2x3` (rows x columns); ConfigError where it is none, or not for this frame."""
    if not (sides := re.fullmatch(r"([0-9]{1,2})x([0-9]{1,2})", text)):
        raise ConfigError(f"grid {text!r}: write rows x columns, such as 2x2")
    return Grid(int(sides[1]), int(sides[2]), height, width)


def split(image: NDArray[np.uint8], grid: Grid) -> list[NDArray[np.uint8]]:
    """Image (H, W, ...) -> the picture of each region, a view; ValueError on another size."""
    if image.shape[:2] != (grid.height, grid.width):
        raise ValueError(f"image {image.shape}; expected {grid.height}x{grid.width}")
    return [image[place.picture.at()] for place in grid.places]


def merge(logits: Mapping[int, NDArray[np.float32]], grid: Grid) -> NDArray[np.float32]:
    """Logits (K, h/4, w/4) of windows by region -> those of the padded frame (K, H/4, W/4); ValueError on other sizes.

    In overlaps the region whose largest logit is larger gives all of its logits (Yang et al., ICCD 2019), the first of
    equals. Places of absent regions are 0, which leaves every arg max interpolated next to them as it is. The logits
    of a 1x1 grid are given back themselves.
    """
    classes = _check_windows(logits, grid)
    if grid.count == 1:
        return logits[0]
    rows, columns = (side // LOGIT_PX for side in grid.padded_size)
    full = np.zeros((classes, rows, columns), np.float32)
    largest = np.full((rows, columns), -np.inf, np.float32)
    for index in sorted(logits):
        place = grid.places[index].window.at(LOGIT_PX)
        _paste(np.ascontiguousarray(logits[index], np.float32), full[:, *place], largest[place])
    return full


def _check_windows(logits: Mapping[int, NDArray[np.float32]], grid: Grid) -> int:
    """How many classes the logits are of; ValueError unless they are those of windows, as many in each."""
    if not logits:
        raise ValueError("no logits to merge; expected those of one region or more")
    classes = max(one.shape[0] for one in logits.values())
    for index, one in logits.items():
        if not 0 <= index < grid.count:
            raise ValueError(f"logits of region {index}; expected 0 to {grid.count - 1}")
        window = grid.places[index].window
        expected = classes, window.height // LOGIT_PX, window.width // LOGIT_PX
        if one.shape != expected:
            raise ValueError(f"logits {one.shape} of region {index}; expected {expected}")
    return classes


@compiled
def _paste(logits: NDArray[np.float32], full: NDArray[np.float32], largest: NDArray[np.float32]) -> None:
    """Logits (K, h, w) into full (K, h, w) where their largest exceeds that of what is there (h, w)."""
    classes, rows, columns = logits.shape
    best = np.empty(columns, np.float32)
    for i in range(rows):
        best[:] = logits[0, i]
        for k in range(1, classes):
            for j in range(columns):
                best[j] = max(best[j], logits[k, i, j])
        for k in range(classes):
            for j in range(columns):
                full[k, i, j] = logits[k, i, j] if best[j] > largest[i, j] else full[k, i, j]
        for j in range(columns):
            largest[i, j] = max(best[j], largest[i, j])


def onto_last(
    classes: NDArray[np.uint8], last: NDArray[np.uint8], *, present: Collection[int], grid: Grid
) -> NDArray[np.uint8]:
    """Classes (H, W) in the cores of regions present, the last mask (H, W) elsewhere; ValueError on other sizes."""
    if classes.shape != (grid.height, grid.width) or last.shape != classes.shape:
        raise ValueError(f"masks {classes.shape} and {last.shape}; expected {grid.height}x{grid.width}")
    joined = last.copy()
    for index in present:
        core = grid.places[index].core.at()
        joined[core] = classes[core]
    return joined


def warm_up_merging() -> None:
    """Compile what the worker runs, or load it from the cache, so that the first frame is not late."""
    grid = Grid(1, 2, HYPER_PX, 2 * HYPER_PX)
    sizes = ((place.window.height // LOGIT_PX, place.window.width // LOGIT_PX) for place in grid.places)
    merge({index: np.zeros((1, *size), np.float32) for index, size in enumerate(sizes)}, grid)
