"""The latents of a whole frame, put together from those of its regions: the graphs know only whole frames.

fresh latents as they are | those of a key, moved by the flow since then | where nothing is known, the nearest -> y_hat
"""

from collections.abc import Mapping
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.regions import CELL_PX, Grid, Place


def assemble(latents: Mapping[int, NDArray[np.float32]], grid: Grid) -> NDArray[np.float32]:
    """Latents (C, h, w) of cores by region -> those of the frame (C, H/16, W/16); ValueError where there are none.

    Places of regions that are not there take the latents of the nearest place that is. Zeros would be far worse: they
    are what the graphs see around a frame, and the joint decoder takes a mean over all of it too.
    """
    if not latents:
        raise ValueError("no latents to put together")
    if grid.count == 1:
        return latents[0]
    height, width = (side // CELL_PX for side in grid.padded_size)
    channels = len(next(iter(latents.values())))
    whole = np.zeros((channels, height, width), np.float32)
    for index, one in latents.items():
        whole[:, *grid.places[index].core.at(CELL_PX)] = one
    if len(latents) == grid.count:
        return whole
    return whole[:, *_nearest(grid, frozenset(latents))]


@lru_cache(maxsize=64)
def _nearest(grid: Grid, known: frozenset[int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each place of the latent, row and column of the nearest place in a region that is known."""
    height, width = (side // CELL_PX for side in grid.padded_size)
    unknown = np.ones((height, width), np.uint8)
    for index in known:
        unknown[grid.places[index].core.at(CELL_PX)] = 0
    _, labels = cv2.distanceTransformWithLabels(unknown, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    rows, columns = np.nonzero(unknown == 0)
    at = np.zeros(labels.max() + 1, np.intp)
    at[labels[rows, columns]] = np.arange(len(rows))
    return rows[at[labels]], columns[at[labels]]


def move(latents: NDArray[np.float32], flow: NDArray[np.float32], place: Place) -> NDArray[np.float32]:
    """A key's latents (C, h, w) of a core, moved by the flow (2, R, C) at the nodes of the region's picture.

    What was not in the core takes the latents of the nearest place that was.
    """
    _, rows, columns = latents.shape
    core, picture = place.core, place.picture
    x = _nodes(core.left - picture.left, columns, flow.shape[2] - 1, picture.width)
    y = _nodes(core.top - picture.top, rows, flow.shape[1] - 1, picture.height)
    across, down = np.meshgrid(x, y)
    dx, dy = (cv2.remap(one, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for one in flow)
    left, right, u = _between(np.arange(columns, dtype=np.float32) + dx / CELL_PX, columns)
    top, bottom, v = _between(np.arange(rows, dtype=np.float32)[:, None] + dy / CELL_PX, rows)
    upper = latents[:, top, left] + u * (latents[:, top, right] - latents[:, top, left])
    lower = latents[:, bottom, left] + u * (latents[:, bottom, right] - latents[:, bottom, left])
    moved: NDArray[np.float32] = upper + v * (lower - upper)
    return moved


def _nodes(first_px: int, count: int, cells: int, side_px: int) -> NDArray[np.float32]:
    """Where the middles of places lie among the nodes of a side, from 0 to `cells`."""
    middles = first_px + CELL_PX * (np.arange(count) + 0.5)
    return (middles * (cells / side_px)).astype(np.float32)


def _between(places: NDArray[np.float32], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Of places (h, w) along one side: the whole ones before and after, 0 to count - 1, and the share of the latter."""
    inside = places.clip(0, count - 1)
    before = inside.astype(np.intp)
    return before, np.minimum(before + 1, count - 1), inside - before.astype(np.float32)
