"""Zones: parts of a camera's picture that have names, as polygons, and how much of each every class covers.

Corners are fractions of the picture's width and height, from the top left, so that they hold at any size.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

_ZONES, _CORNERS = 16, 32  # of a camera, and of a zone, at most
_DIGITS = 4  # of a fraction: finer than a pixel, and short in a state
_LEAST = 1e-4  # of the picture: a zone of a pixel or two would say nothing
_KEPT = 256  # zones whose pixels are known, 250 kB each at most
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_EXAMPLE = '{"door": [[0.1, 0.4], [0.3, 0.4], [0.3, 1]]}'  # YAML too

Corner = tuple[float, float]
Polygon = tuple[Corner, ...]


def read_zones(value: object) -> dict[str, Polygon]:
    """The zones that settings or a state name; text is JSON. ValueError says in one sentence what is not right."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"that is no JSON, such as {_EXAMPLE}") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"write names with their corners, such as {_EXAMPLE}")
    if len(value) > _ZONES:
        raise ValueError(f"{len(value)} zones, {_ZONES} at most are taken")
    for name in value:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a zone: a-z, 0-9, - and _, 63 characters at most")
    return {name: _polygon(name, corners) for name, corners in value.items()}


def _polygon(name: str, corners: object) -> Polygon:
    """The corners, rounded; ValueError unless they enclose something."""
    if not isinstance(corners, Sequence) or not 3 <= len(corners) <= _CORNERS or not all(map(_is_corner, corners)):
        raise ValueError(f"{name}: write 3 to {_CORNERS} corners, x and y of each from 0 to 1, such as {_EXAMPLE}")
    polygon = tuple((round(float(x), _DIGITS), round(float(y), _DIGITS)) for x, y in corners)
    xs, ys = np.array(polygon).T
    if abs(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1)) / 2 < _LEAST:
        raise ValueError(f"{name}: its corners enclose nothing; give them in the order in which an outline passes them")
    return polygon


def _is_corner(value: object) -> bool:
    """Whether that is x and y, each a number from 0 to 1."""
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each <= 1 for each in value)
    )


Zones = Annotated[Mapping[str, Polygon], BeforeValidator(read_zones)]


@dataclass(frozen=True, slots=True, eq=False)
class _Inside:
    """The pixels of a zone: the box around them, and which of its pixels they are, bool (h, w)."""

    box: tuple[slice, slice]
    pixels: NDArray[np.bool_]


def zone_share(classes: NDArray[np.uint8], polygon: Polygon, *, count: int) -> NDArray[np.float64]:
    """The part of a zone's pixels per class, (count,), of a mask (H, W); zeros where no pixel's centre is inside."""
    height, width = classes.shape
    inside = _inside(polygon, height, width)
    found = np.bincount(classes[inside.box][inside.pixels], minlength=count)
    share: NDArray[np.float64] = found / max(1, found.sum())
    return share


@lru_cache(maxsize=_KEPT)
def _inside(polygon: Polygon, height: int, width: int) -> _Inside:
    """The pixels whose centres lie inside: those that an odd number of the outline's edges have on their right."""
    xs, ys = np.arange(width) + 0.5, np.arange(height) + 0.5
    corners = np.array(polygon) * (width, height)
    odd = np.zeros((height, width), np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        rows = np.flatnonzero((ys >= y0) != (ys >= y1))
        crossed = x0 + (ys[rows] - y0) * (x1 - x0) / (y1 - y0) if rows.size else np.empty(0)  # (rows,)
        odd[rows] ^= xs < crossed[:, None]
    box = _box(odd)
    return _Inside(box, odd[box].copy())


def _box(pixels: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns that have any of these pixels, from the first to the last."""
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    if not rows.size:
        return slice(0), slice(0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
