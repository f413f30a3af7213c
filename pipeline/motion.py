"""Motion from a key picture to the pictures after it, and logits carried along by it.

camera   key, picture -> [DIS flow from where the last one ended] -> [fit to the grid] -> coefficients -> body
         outline of the key's mask -> [moved] -> where the fit has to be good ---^
worker   body -> coefficients -> flow at the nodes -> [warp] key's logits -> logits
                    of a frame between two keys, from either one -> [fuse] -> logits

Flow runs backward: what is seen at a place of the picture was at that place plus its flow in the key picture.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.class_map import STRIDE
from pipeline.compiled import compiled
from pipeline.flow_coding import FlowGrid, grid_of, node_flow
from pipeline.flow_fitting import fit_flow
from pipeline.regions import CELL_PX

RATE_WEIGHT = 2.5  # px2 of a cell per bit, times age plus 3: the older the key, the less exact motion helps

_AGE_OFFSET = 3
_SHRINK = 3  # the dense flow is that of pictures so many times smaller,
_LEAST_SIDE = 24  # but of this size at least: patches have 8 pixels
_DIS_STEPS = 16
_CALM_GREY = 2.0  # a cell's gradient counts as so much more than it is,
_USUAL_GREY = 10.0  # and this one weighs 1
_GRADIENT_POWER = 0.75
_DOUBT_GREY = 8.0  # a cell that differs so much after the motion weighs half
_EDGELESS, _EDGES = 0.06, 24.0  # of its weight, without edges of the mask, and what the square of their share adds

_OUTSIDE_DOUBT = np.float32(100.0)  # logits are lowered by so much where the source is outside the key's picture,
_STRETCH_DOUBT = np.float32(4.0)  # and by up to so much where many places have one source
_CERTAINTY = np.float32(0.25)  # of two moved masks, by how much the larger largest logit counts more
_MOST_CERTAIN = np.float32(60.0)


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """The motion of a region since its key, as sent and as found.

    coefficients int16 (2, N); flow float32 (2, R, C), what they stand for, px at the nodes; residual float32
    (R - 1, C - 1), by how many grey levels the picture differs, on average over each cell, from the moved key; detail
    float32 (R - 1, C - 1), the picture's gradient, in grey levels, on average over each cell; outline float32
    (R - 1, C - 1), the share of each cell, 0 to 1, at an edge of the moved key's mask, None where that is not known.
    """

    coefficients: NDArray[np.int16]
    flow: NDArray[np.float32]
    residual: NDArray[np.float32]
    detail: NDArray[np.float32]
    outline: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """The motion of a region as it was found, `age` frames from its key: by cell, before it is fitted to the grid.

    flow float32 (R - 1, C - 1, 2) in px, weights (R - 1, C - 1); the others as in Motion.
    """

    age: int
    flow: NDArray[np.float32]
    weights: NDArray[np.float32]
    residual: NDArray[np.float32]
    detail: NDArray[np.float32]
    outline: NDArray[np.float32] | None

    def fitted(self, grid: FlowGrid, *, rate_weight: float = RATE_WEIGHT) -> Motion:
        """As near to what was found as is worth the bits."""
        coefficients = fit_flow(self.flow, self.weights, grid, rate_weight=rate_weight * (self.age + _AGE_OFFSET))
        return Motion(coefficients, node_flow(coefficients, grid), self.residual, self.detail, self.outline)

    def beyond(
        self, expected: NDArray[np.int16], grid: FlowGrid, *, rate_weight: float = RATE_WEIGHT
    ) -> NDArray[np.int16]:
        """Coefficients (2, N) of what is worth adding to the expected ones (2, N)."""
        left = self.flow - _by_cell_of(node_flow(expected, grid))
        return fit_flow(left, self.weights, grid, rate_weight=rate_weight * (self.age + _AGE_OFFSET))


class MotionTracker:
    """Follows the pictures of one region from its key on; keep it on one thread.

    `rate_weight`: times the key's age plus 3, the distance, in px2 over a cell, that a bit must save.
    """

    def __init__(self, height: int, width: int, *, rate_weight: float = RATE_WEIGHT) -> None:
        self._grid = grid_of(height, width)
        self._rate_weight = rate_weight
        self._search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._search.setFinestScale(0)
        self._search.setGradientDescentIterations(_DIS_STEPS)
        self._key: NDArray[np.uint8] | None = None
        self._outline: NDArray[np.float32] | None = None
        self._flow: NDArray[np.float32] | None = None
        self._age = 0

    def start(self, image: NDArray[np.uint8], outline: NDArray[np.float32] | None = None) -> None:
        """Take RGB (H, W, 3) as the key; ValueError on another size.

        `outline` (ceil(H / 16), ceil(W / 16)) is the share of each 16 x 16 pixels at an edge of its mask. With it,
        motion is exact there and costs few bits elsewhere; without it all places count alike.
        """
        size = -(-self._grid.height // CELL_PX), -(-self._grid.width // CELL_PX)
        if outline is not None and outline.shape != size:
            raise ValueError(f"outline {outline.shape}; expected {size}")
        self._key, self._flow, self._age = self._small(image), None, 0
        self._outline = outline

    def track(self, image: NDArray[np.uint8], age: int) -> Motion:
        """The motion to RGB (H, W, 3), `age` >= 1 frames from the key; ValueError without a key."""
        return self.trace(image, age).fitted(self._grid, rate_weight=self._rate_weight)

    def trace(self, image: NDArray[np.uint8], age: int) -> Traced:
        """The same, not fitted yet."""
        if self._key is None or age < 1:
            raise ValueError(f"motion since a key {age} frames ago; there must be one, and one frame at least")
        picture = self._small(image)
        self._flow = self._dense(picture, self._key, age)
        self._age = age
        return self._traced(picture, self._key, self._flow)

    def _dense(self, picture: NDArray[np.uint8], key: NDArray[np.uint8], age: int) -> NDArray[np.float32]:
        """Flow (h, w, 2) between small pictures, searched from where the last one, drawn out to now, ends."""
        start = None if self._flow is None else self._flow * np.float32(age / self._age)
        flow = self._search.calc(picture, key, start)  # type: ignore[arg-type]  # the stubs forget None
        return np.asarray(flow, np.float32)

    def _small(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB (H, W, 3) -> grey (h, w), about a third of it."""
        if image.shape != (self._grid.height, self._grid.width, 3):
            raise ValueError(f"image {image.shape}; expected {self._grid.height}x{self._grid.width}x3")
        height, width = (max(round(side / _SHRINK), _LEAST_SIDE) for side in image.shape[:2])
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return np.asarray(cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA))

    def _traced(self, picture: NDArray[np.uint8], key: NDArray[np.uint8], dense: NDArray[np.float32]) -> Traced:
        """The dense flow (h, w, 2) between the small pictures by cell, and how much each cell matters."""
        grid = self._grid
        scale = np.array([grid.width / picture.shape[1], grid.height / picture.shape[0]], np.float32)
        flow = self._by_cell(dense) * scale
        residual = self._by_cell(_differences(picture, key, dense))
        detail = self._by_cell(_gradients(picture))
        outline = self._moved_outline(dense)
        weights = ((detail + _CALM_GREY) / _USUAL_GREY) ** _GRADIENT_POWER / (1 + (residual / _DOUBT_GREY) ** 2)
        if outline is not None:
            weights *= _EDGELESS + _EDGES * outline**2
        return Traced(self._age, flow, weights, residual, detail, outline)

    def _moved_outline(self, dense: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """The key's outline moved by the dense flow (h, w, 2) of small pictures, by cell."""
        if self._outline is None:
            return None
        across, down = self._grid.width / dense.shape[1] / CELL_PX, self._grid.height / dense.shape[0] / CELL_PX
        x = (dense[..., 0] + np.arange(dense.shape[1], dtype=np.float32) + 0.5) * np.float32(across) - 0.5
        y = (dense[..., 1] + np.arange(dense.shape[0], dtype=np.float32)[:, None] + 0.5) * np.float32(down) - 0.5
        moved = cv2.remap(self._outline, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return self._by_cell(np.asarray(moved, np.float32))

    def _by_cell(self, field: NDArray[np.float32]) -> NDArray[np.float32]:
        """Means of a field (h, w, ...) over the cells (R - 1, C - 1, ...)."""
        cells = (self._grid.columns - 1, self._grid.rows - 1)
        return np.asarray(cv2.resize(field, cells, interpolation=cv2.INTER_AREA))


def _by_cell_of(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flow at the nodes (2, R, C) -> its means over the cells (R - 1, C - 1, 2)."""
    corners = flow[:, 1:, 1:] + flow[:, 1:, :-1] + flow[:, :-1, 1:] + flow[:, :-1, :-1]
    return np.moveaxis(corners / np.float32(4), 0, 2)


def warm_up_tracking() -> None:
    """Compile what the camera runs, or load it from the cache, so that the first frame is not late."""
    tracker, picture = MotionTracker(_LEAST_SIDE, _LEAST_SIDE), np.zeros((_LEAST_SIDE, _LEAST_SIDE, 3), np.uint8)
    tracker.start(picture)
    tracker.track(picture, 1)


def warm_up_warping() -> None:
    """The same for what the worker runs."""
    side = _LEAST_SIDE // STRIDE
    moved = warp(np.zeros((1, side, side), np.float32), np.zeros((2, 9, 9), np.float32), _LEAST_SIDE, _LEAST_SIDE)
    fuse(moved, moved, 0.5)


def _differences(picture: NDArray[np.uint8], key: NDArray[np.uint8], flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grey levels (h, w) by which the picture differs from the key moved by the flow (h, w, 2)."""
    x = flow[..., 0] + np.arange(flow.shape[1], dtype=np.float32)
    y = flow[..., 1] + np.arange(flow.shape[0], dtype=np.float32)[:, None]
    moved = cv2.remap(key, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return cv2.absdiff(moved, picture).astype(np.float32)


def _gradients(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey levels from two pixels before to two after, (h, w)."""
    return np.asarray(cv2.magnitude(*(cv2.Sobel(picture, cv2.CV_32F, *way, ksize=1) for way in ((1, 0), (0, 1)))))


def warp(logits: NDArray[np.float32], flow: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """The key's logits (K, h, w), at stride 4, of a region of so many pixels, moved by the flow (2, R, C) at its nodes.

    What was not in the key's picture, or hidden there, takes the logits of the nearest place that was, all of them
    lowered by as much: so the arg max stands, and where regions overlap, one that has seen the place wins. Raises
    ValueError where the logits do not cover the region.
    """
    if logits.shape[1] * STRIDE < height or logits.shape[2] * STRIDE < width:
        raise ValueError(f"logits {logits.shape} at stride {STRIDE} do not cover {height}x{width} pixels")
    places, doubts = np.empty((2, *logits.shape[1:]), np.float32), np.empty(logits.shape[1:], np.float32)
    _find_sources(flow, height / STRIDE, width / STRIDE, places, doubts)
    moved = np.empty(logits.shape, np.float32)
    _sample(np.ascontiguousarray(logits, np.float32), places, doubts, moved)
    return moved


@compiled
def _find_sources(
    flow: NDArray[np.float32], height: float, width: float, places: NDArray[np.float32], doubts: NDArray[np.float32]
) -> None:
    """Where each place (h, w) of the picture, height x width places large, was: (x, y); and how doubtful that is."""
    rows, columns = doubts.shape
    down, across = (flow.shape[1] - 1) / height, (flow.shape[2] - 1) / width  # cells per place
    for i in range(rows):
        v = min((i + 0.5) * down, flow.shape[1] - 1.0)
        top = min(int(v), flow.shape[1] - 2)
        v -= top
        for j in range(columns):
            u = min((j + 0.5) * across, flow.shape[2] - 1.0)
            left = min(int(u), flow.shape[2] - 2)
            u -= left
            x, along_x, down_x = _blend(flow[0], top, left, u, v)
            y, along_y, down_y = _blend(flow[1], top, left, u, v)
            x, y = j + x / STRIDE, i + y / STRIDE
            # How many places of the key one of the picture comes from; few where what was hidden comes to light.
            area = (1 + along_x * across / STRIDE) * (1 + down_y * down / STRIDE)
            area -= along_y * across / STRIDE * down_x * down / STRIDE
            places[0, i, j], places[1, i, j] = x, y
            outside = x < -0.5 or y < -0.5 or x > columns - 0.5 or y > rows - 0.5
            doubts[i, j] = _OUTSIDE_DOUBT if outside else _STRETCH_DOUBT * min(max(1 - area, 0.0), 1.0)


@compiled
def _blend(flow: NDArray[np.float32], top: int, left: int, u: float, v: float) -> tuple[float, float, float]:
    """Flow (R, C) within the cell that begins at (top, left), and how it changes along it and down, per cell."""
    above = flow[top, left + 1] - flow[top, left]
    below = flow[top + 1, left + 1] - flow[top + 1, left]
    begin, end = flow[top, left] + u * above, flow[top + 1, left] + u * below
    return begin + v * (end - begin), above + v * (below - above), end - begin


@compiled
def _sample(
    logits: NDArray[np.float32], places: NDArray[np.float32], doubts: NDArray[np.float32],
    moved: NDArray[np.float32],
) -> None:  # fmt: skip
    """Logits (K, h, w) at the places (2, h, w), x before y, or the nearest there are, less the doubts."""
    classes, rows, columns = logits.shape
    last_row, last_column = rows - 1, columns - 1
    corners = np.empty((4, columns), np.uint32)  # of a plane, row after row
    shares = np.empty((2, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            x = min(max(places[0, i, j], np.float32(0)), np.float32(last_column))
            y = min(max(places[1, i, j], np.float32(0)), np.float32(last_row))
            left, top = int(x), int(y)
            right, bottom = min(left + 1, last_column), min(top + 1, last_row)
            shares[0, j], shares[1, j] = x - np.float32(left), y - np.float32(top)
            corners[0, j], corners[1, j] = top * columns + left, top * columns + right
            corners[2, j], corners[3, j] = bottom * columns + left, bottom * columns + right
        for k in range(classes):
            plane = logits[k].ravel()
            for j in range(columns):
                a, b, c, d = plane[corners[0, j]], plane[corners[1, j]], plane[corners[2, j]], plane[corners[3, j]]
                upper, lower = a + shares[0, j] * (b - a), c + shares[0, j] * (d - c)
                moved[k, i, j] = upper + shares[1, j] * (lower - upper) - doubts[i, j]


def fuse(one: NDArray[np.float32], other: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Logits (K, h, w) of a frame moved from two keys -> their mean at each place, the first weighing `share` of 1.

    A key counts the more, the larger its largest logit is there: what is doubtful, since it was hidden or outside, was
    lowered by `warp`, and so the key that has seen a place speaks for it.
    """
    fused = np.empty_like(one)
    _fuse(one, other, np.float32(share), fused)
    return fused


@compiled
def _fuse(one: NDArray[np.float32], other: NDArray[np.float32], share: np.float32, fused: NDArray[np.float32]) -> None:
    classes, rows, columns = one.shape
    lead, shares = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for i in range(rows):
        lead[:], shares[:] = one[0, i], other[0, i]
        for k in range(1, classes):
            for j in range(columns):
                lead[j] = max(lead[j], one[k, i, j])
                shares[j] = max(shares[j], other[k, i, j])
        for j in range(columns):
            ahead = min(max(lead[j] - shares[j], -_MOST_CERTAIN), _MOST_CERTAIN)
            weight = share * np.exp(_CERTAINTY * ahead)
            shares[j] = weight / (weight + (np.float32(1) - share))
        for k in range(classes):
            for j in range(columns):
                fused[k, i, j] = other[k, i, j] + shares[j] * (one[k, i, j] - other[k, i, j])
