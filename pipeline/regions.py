"""A frame as overlapping regions of one size.

image -> split -> crops -> [coded one by one] -> logits by region -> merge -> full logits -> class map -> onto_last
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bitstream import MAX_REGIONS, MAX_SIDE
from pipeline.compiled import compiled
from pipeline.errors import ConfigError

CELL_PX = 16  # one place of the latent
LOGIT_PX = 4
OVERLAP_PX = 32  # camera and worker must agree on it: a packet tells only rows and columns
_LEAST_CELLS = 2


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Part of a padded frame in pixels, all multiples of 16."""

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
class Grid:
    """A frame (height, width) in rows x columns regions, neighbours sharing `overlap_px` pixels or more.

    The frame is padded to multiples of 16. All regions have the same size, so that they can be coded as one batch: the
    overlap grows where the frame cannot be divided evenly. ConfigError where the wire cannot carry the grid, or where
    a region would be below 32 pixels or begin where the one before it does.
    """

    rows: int
    columns: int
    height: int
    width: int
    overlap_px: int = OVERLAP_PX

    def __post_init__(self) -> None:
        name = f"grid {self.rows}x{self.columns} with an overlap of {self.overlap_px} pixels"
        if not (1 <= self.rows <= MAX_SIDE and 1 <= self.columns <= MAX_SIDE and self.count <= MAX_REGIONS):
            raise ConfigError(f"{name}: use 1 to {MAX_SIDE} rows and columns, and at most {MAX_REGIONS} regions")
        if self.overlap_px < 0 or self.height < 1 or self.width < 1:
            raise ConfigError(f"{name} of a {self.width}x{self.height} frame: sizes cannot be negative or nothing")
        for side_px, parts in ((self.height, self.rows), (self.width, self.columns)):
            cells, size = _cells(side_px), self._size(side_px, parts)
            if parts > 1 and (size < _LEAST_CELLS or cells - size < parts - 1):
                raise ConfigError(f"{name}: too much for a {self.width}x{self.height} frame; use fewer regions")

    @property
    def count(self) -> int:
        """How many regions there are."""
        return self.rows * self.columns

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the padded frame in pixels."""
        return _cells(self.height) * CELL_PX, _cells(self.width) * CELL_PX

    @property
    def region_size(self) -> tuple[int, int]:
        """Height and width of every region in pixels."""
        return self._size(self.height, self.rows) * CELL_PX, self._size(self.width, self.columns) * CELL_PX

    @property
    def rectangles(self) -> tuple[Rectangle, ...]:
        """The place of each region in the padded frame, by index: row by row."""
        height, width = self.region_size
        tops = _starts(self.padded_size[0] - height, self.rows)
        lefts = _starts(self.padded_size[1] - width, self.columns)
        return tuple(Rectangle(top, left, height, width) for top in tops for left in lefts)

    def _size(self, side_px: int, parts: int) -> int:
        """Cells of the smallest parts that cover a side with this overlap."""
        return -(-(_cells(side_px) + (parts - 1) * _cells(self.overlap_px)) // parts)


def _cells(pixels: int) -> int:
    return -(-pixels // CELL_PX)


def _starts(room_px: int, parts: int) -> list[int]:
    """Where parts begin that share the room they leave as evenly as cells allow."""
    return [part * (room_px // CELL_PX) // max(1, parts - 1) * CELL_PX for part in range(parts)]


def parse_grid(text: str, *, height: int, width: int, overlap_px: int = OVERLAP_PX) -> Grid:
    """The grid that a manifest calls `2x3` (rows x columns); ConfigError where it is none, or not for this frame."""
    if not (sides := re.fullmatch(r"([0-9]{1,2})x([0-9]{1,2})", text)):
        raise ConfigError(f"grid {text!r}: write rows x columns, such as 2x2")
    return Grid(int(sides[1]), int(sides[2]), height, width, overlap_px)


def split(image: NDArray[np.uint8], grid: Grid) -> list[NDArray[np.uint8]]:
    """Image (H, W, ...) -> the crop of each region, views of one padded frame; ValueError on another size."""
    height, width = image.shape[:2]
    if (height, width) != (grid.height, grid.width):
        raise ValueError(f"image {image.shape}; the grid is for {grid.height}x{grid.width}")
    padded = np.empty((*grid.padded_size, *image.shape[2:]), image.dtype)
    padded[:height, :width] = image
    padded[height:, :width] = image[-1:]
    padded[:, width:] = padded[:, width - 1 : width]
    return [padded[rectangle.at()] for rectangle in grid.rectangles]


def merge(logits: Mapping[int, NDArray[np.float32]], grid: Grid) -> NDArray[np.float32]:
    """Logits (K, h/4, w/4) by region -> those of the padded frame (K, H/4, W/4); ValueError on other sizes.

    In overlaps the region whose largest logit is larger gives all of its logits (Yang et al., ICCD 2019), the first of
    equals. Places of absent regions are 0, which leaves every arg max interpolated next to them as it is. The logits
    of a 1x1 grid are given back themselves.
    """
    height, width = grid.region_size
    shapes = {one.shape for one in logits.values()}
    expected = (max((shape[0] for shape in shapes), default=1), height // LOGIT_PX, width // LOGIT_PX)
    if shapes != {expected} or not set(logits) <= set(range(grid.count)):
        raise ValueError(f"logits {sorted(shapes)} of regions {sorted(logits)}; expected {expected} of {grid.count}")
    if grid.count == 1:
        return logits[0]
    rows, columns = (side // LOGIT_PX for side in grid.padded_size)
    full = np.zeros((expected[0], rows, columns), np.float32)
    largest = np.full((rows, columns), -np.inf, np.float32)
    rectangles = grid.rectangles
    for index in sorted(logits):
        place = rectangles[index].at(LOGIT_PX)
        _paste(np.ascontiguousarray(logits[index], np.float32), full[:, *place], largest[place])
    return full


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
    """Classes (H, W) where a region is present, the last mask (H, W) elsewhere; ValueError on other sizes."""
    if classes.shape != (grid.height, grid.width) or last.shape != classes.shape:
        raise ValueError(f"masks {classes.shape} and {last.shape}; the grid is for {grid.height}x{grid.width}")
    joined = last.copy()
    rectangles = grid.rectangles
    for index in present:
        place = rectangles[index].at()
        joined[place] = classes[place]
    return joined
