"""Noise taken out of the pictures of a camera that stands still, before they are encoded: masks flicker less.

picture, what was given last -> [noise, light of all] -> [which textures are at rest, all around?] -+-> share -> [mean]
                                                      -> [which cells are of something new] -------+

A smooth place tells nothing of motion: a road looks alike while the camera drives along it. So it counts as still only
where the textures around it are, and where there are none, those of all the picture. What is new shows in the mean of
a cell, where noise is a quarter of what it is in a pixel: what moves, comes or goes is given as it is, at once; but
what differs from its background by less than noise does fades into it, as a dark coat may at night.
"""

from collections.abc import Callable
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled

_CELL = 4  # pixels of a cell, in either direction
_STEP = 2  # cells, in either direction: one in so many tells enough of light and noise, and of what is around

# Grey levels where noise changes the calmest cells by up to _USUAL_GREY; where it does more, they grow with it.
_USUAL_GREY = 1.15
_CALM_QUANTILE = 0.1  # share of the cells that are the calmest, of those that change at all
_MOST_NOISE = 4.0  # times the usual; where all of the picture changes by more, it counts as new, noise or not
_NEW_GREY = (3.0, 7.0)  # change of a cell's mean: below it is noise, above it is all new
_NEW_DETAIL_GREY = (4.0, 12.0)  # the same for the mean of its pixels' changes
_MOVES_GREY = (2.0, 6.0)  # mean of the changes, beyond a share of the texture: below a cell is at rest, above it moves
_NO_TEXTURE_GREY = 1.0  # from cell to cell; noise makes so much

_MOST_TEXTURE_GREY = 20.0  # more counts as so much: one strong edge is not all there is
_TEXTURE_SHARE = 0.25  # of a texture trembles though it is at rest
_AROUND_CELLS = 10.0  # standard deviation of what counts as around a cell
_LITTLE_GREY = 0.02  # texture of all the picture counts like so much around, on average: far from any, it decides
_REST_SHARE = (0.7, 0.95)  # of the textures around that are at rest: below no mean is taken, above in full
_LEAST_SHARE = 0.05  # of the new picture where nothing is new: two thirds of the mean are of the last 20 pictures

Image = NDArray[np.uint8]
Cells = NDArray[np.float32]
Sums = NDArray[np.int16]
Scalar = TypeVar("Scalar", bound=np.generic)


def picture_filter(*, noise_reduction: bool) -> Callable[[Image], Image]:
    """What each picture of one opened source goes through, in their order: noise reduction where it is asked for."""
    return NoiseReduction() if noise_reduction else lambda picture: picture


def compile_loops() -> None:
    """Compile what noise reduction calls, which takes seconds once on a machine, before a picture waits for it."""
    reduce_noise, picture = NoiseReduction(), np.zeros((_CELL, _CELL, 3), np.uint8)
    for _ in range(2):
        reduce_noise(picture)


class NoiseReduction:
    """Averages each place over time while it and the textures around it are at rest: for one scene, on one thread.

    It keeps the first picture, and what it gives: do not write to them.
    """

    def __init__(self) -> None:
        self._mean, self._given = np.empty((0, 0, 3), np.float32), np.empty((0, 0, 3), np.uint8)

    def __call__(self, picture: Image) -> Image:
        """RGB uint8 (H, W, 3) -> the same with less noise; the first, or one of another size, as it is."""
        picture = np.require(picture, requirements=("C", "W"))  # the loops are compiled for no other arrays
        if self._given.shape != picture.shape:
            self._mean, self._given = picture.astype(np.float32), picture
            return picture
        share, light = self._shares(picture)
        self._given = np.empty_like(picture)
        _blend(_flat(self._mean), _flat(picture), share, light, _flat(self._given))
        return self._given

    def _shares(self, picture: Image) -> tuple[Cells, NDArray[np.float32]]:
        """Of each pixel (H, W) how much of the picture is taken, and by what all became lighter (3,).

        Where more than half of the picture changes alike, that counts as the light of all: the rest follows late, and
        a change of texture alone that is no larger is not seen in that picture.
        """
        rows, columns = -(-picture.shape[0] // _CELL), -(-picture.shape[1] // _CELL)
        grey, change, to_and_fro = (np.empty((rows, columns), np.float32) for _ in range(3))
        gone = np.empty((rows, columns, 3), np.float32)
        _compare(_flat(picture), _flat(self._given), grey, gone, change, to_and_fro)
        across, down = (cv2.Sobel(grey, cv2.CV_32F, *way, scale=0.25) for way in ((1, 0), (0, 1)))
        texture = np.asarray(cv2.magnitude(across, down), np.float32)
        noise = _noise(to_and_fro, texture)
        light = np.median(gone[::_STEP, ::_STEP].reshape(-1, 3), axis=0).astype(np.float32)
        gone -= light
        change = np.maximum(change - np.abs(light).max(), 0)
        new = np.maximum(_new(gone, noise), _between(change, _NEW_DETAIL_GREY, noise))
        new = np.maximum(cv2.dilate(new, np.ones((3, 3), np.uint8)), _LEAST_SHARE)
        share = 1 - _at_rest(texture, change, noise) * (1 - new)
        return np.asarray(cv2.resize(share, picture.shape[1::-1]), np.float32), light


def _flat(picture: NDArray[Scalar]) -> NDArray[Scalar]:
    """(H, W, 3) -> (H, 3 W), the same values in the same place."""
    return picture.reshape(picture.shape[0], -1)


def _noise(to_and_fro: Cells, texture: Cells) -> float:
    """How strong noise is, by the cells (h, w) that change least to and fro; 1 is what is usual or less.

    Smooth cells that do not change at all are of a mask or a white sky, where no noise is to be seen.
    """
    seen = ((to_and_fro > 0) | (texture > _NO_TEXTURE_GREY))[::_STEP, ::_STEP]
    calm = float(np.quantile(to_and_fro[::_STEP, ::_STEP][seen], _CALM_QUANTILE)) if seen.any() else 0.0
    return min(max(calm / _USUAL_GREY, 1.0), _MOST_NOISE)


def _new(gone: Cells, noise: float) -> Cells:
    """Of what the means of cells are gone by (h, w, 3): 0 where that is noise, 1 where all is new (h, w)."""
    low, high = _NEW_GREY
    beyond = low * (noise - 1)  # noise raises the lower limit; from there to all is no further than without
    return _between(_largest(np.abs(gone)), (low + beyond, high + beyond), 1.0)


def _at_rest(texture: Cells, change: Cells, noise: float) -> Cells:
    """Of cells' textures (h, w) and changes (h, w): 1 where the textures around are at rest, 0 where they move."""
    texture = np.clip(texture - _NO_TEXTURE_GREY * noise, 0, _MOST_TEXTURE_GREY)
    still = texture * (1 - _between(change - _TEXTURE_SHARE * texture, _MOVES_GREY, noise))
    of_picture = still.sum() / texture.sum() if texture.any() else 1.0
    around = (_around(still) + _LITTLE_GREY * of_picture) / (_around(texture) + _LITTLE_GREY)
    return _between(around, _REST_SHARE, 1.0)


def _around(cells: Cells) -> Cells:
    """Of each cell the mean (h, w) of those around it, found at a lower resolution: it is a wide one."""
    size = tuple(-(-one // _STEP) for one in cells.shape[::-1])
    few = cv2.GaussianBlur(cv2.resize(cells, size, interpolation=cv2.INTER_AREA), (0, 0), _AROUND_CELLS / _STEP)
    return np.asarray(cv2.resize(few, cells.shape[::-1]), np.float32)


def _between(values: Cells, limits: tuple[float, float], scale: float) -> Cells:
    """0 up to the lower limit, 1 from the higher on, both times `scale`, and straight between them."""
    low, high = limits
    found: Cells = np.clip((values - low * scale) / ((high - low) * scale), 0, 1).astype(np.float32)
    return found


def _largest(colours: Cells) -> Cells:
    """Of the three colours of each cell: (h, w, 3) -> (h, w)."""
    red, green, blue = cv2.split(colours)
    return np.asarray(cv2.max(cv2.max(red, green), blue), np.float32)


@compiled
def _compare(picture: Image, given: Image, grey: Cells, gone: Cells, change: Cells, to_and_fro: Cells) -> None:
    """Of flat pictures (H, 3 W) the cells (h, w): `grey`, and three of what changed since what was given.

    `gone` (h, w, 3) are changes of the means; `change` means of the pixels' changes, of the colour that changes most;
    `to_and_fro` what there is of these beyond that of the mean, as by noise.
    """
    height, width = picture.shape
    rows, columns = grey.shape
    sums = np.zeros((3, 3 * _CELL * (columns + 1)), np.int16)  # there is always a cell after the last one
    for i in range(rows):
        top, bottom = _CELL * i, min(_CELL * (i + 1), height)
        _sum_cells(picture[top:bottom], given[top:bottom], sums)
        for j in range(columns):
            pixels = np.float32((bottom - top) * min(_CELL, width // 3 - _CELL * j))
            value, most, most_fro = np.int32(0), np.int32(0), np.int32(0)
            for k in range(3):
                x = 3 * _CELL * j + k
                value += sums[0, x]
                gone[i, j, k] = sums[1, x] / pixels
                most = max(most, np.int32(sums[2, x]))
                most_fro = max(most_fro, np.int32(sums[2, x]) - abs(np.int32(sums[1, x])))
            grey[i, j], change[i, j], to_and_fro[i, j] = value / (3 * pixels), most / pixels, most_fro / pixels


@compiled
def _sum_cells(picture: Image, given: Image, sums: Sums) -> None:
    """Of a row of cells (n, 3 W) the sums (3, 3 W and more) of the cells that begin at each pixel.

    Of the values, of their changes since what was given, and of the sizes of those. In loops of nothing but int16 the
    compiler takes many values at once.
    """
    sums[:] = 0
    for y in range(picture.shape[0]):
        for x in range(picture.shape[1]):
            value = np.int16(picture[y, x])
            change = np.int16(value - np.int16(given[y, x]))
            sums[0, x] += value
            sums[1, x] += change
            sums[2, x] += max(change, np.int16(-change))
    for k in range(3):
        of_kind = sums[k]
        for x in range(picture.shape[1]):  # of 3 * _CELL values
            of_kind[x] += of_kind[x + 3]
        for x in range(picture.shape[1]):
            of_kind[x] += of_kind[x + 6]


@compiled
def _blend(mean: Cells, picture: Image, share: Cells, light: Cells, given: Image) -> None:
    """Make the mean (H, 3 W) lighter (3,) and move it by its share (H, W) to the picture, in place; round it."""
    height, width = picture.shape
    lighter, shares = np.empty(width, np.float32), np.empty(width, np.float32)
    for x in range(width):
        lighter[x] = light[x % 3]
    for y in range(height):
        for x in range(share.shape[1]):
            shares[3 * x] = shares[3 * x + 1] = shares[3 * x + 2] = share[y, x]
        for x in range(width):
            lit = mean[y, x] + lighter[x]
            lit += shares[x] * (np.float32(picture[y, x]) - lit)
            lit = min(max(lit, np.float32(0)), np.float32(255))
            mean[y, x] = lit
            given[y, x] = np.uint8(np.int32(lit + np.float32(0.5)))
