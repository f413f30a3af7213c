"""What a camera sees of its scene without a network: whether a frame shows anything new, and whether all is simple.

frame -> means of blocks -> difference from the last frame sent, brightness apart -> largest block against the noise
KEYs  -> bytes, as a share of what is usual at their level -> simple, or not
"""

import math
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

LONGEST_S = 1.0  # without a frame, so that viewers see that the camera lives
_SIDE = 6  # pixels of a block: at 480x360 80x60 of them
_LEAST_GREY = 4.0  # so much of a block's mean is nothing, however quiet the sensor
_TIMES_NOISE = 6.0  # of the deviation that blocks have where nothing moves: one in a thousand million
_MOST_NOISE_GREY = 1.0  # of a block's mean, where pixels have six times as much; what is more is motion
_SETTLE = 0.05  # weight of a new frame in the estimate of the noise
_SIMPLE, _NO_LONGER = 0.85, 0.95  # of the usual bytes
_KEY_WEIGHT = 0.1
_QUIET = 0.6745  # median of |x| over its deviation, for a normal x


class SceneGate:
    """Compares frames with the last one that was sent; keep it on one thread.

    What counts is the block that changed most, so that a small thing that moves in a large picture is seen. How much
    the blocks of a still picture differ is learned from the median block, which what moves leaves alone as long as it
    covers less than half of the picture. A change of brightness of the whole picture counts half: masks hardly see it.
    """

    def __init__(self, *, longest_s: float = LONGEST_S, least_grey: float = _LEAST_GREY) -> None:
        self._longest_s, self._least_grey = longest_s, least_grey
        self._sent: NDArray[np.float32] | None = None
        self._sent_s = -math.inf
        self._noise_grey: float | None = None
        self.change_grey = 0.0

    @property
    def threshold_grey(self) -> float:
        """What the largest difference of a block has to reach, in grey levels."""
        return max(self._least_grey, _TIMES_NOISE * (self._noise_grey or 0.0))

    def changed(self, image: NDArray[np.uint8], now_s: float) -> bool:
        """Whether RGB (H, W, 3) is worth sending; if so it is what the next ones are held against."""
        blocks = self._blocks(image)
        changed = self._differs(blocks)
        if changed or now_s >= self._sent_s + self._longest_s:
            self._sent, self._sent_s = blocks, now_s
            return True
        return False

    def _differs(self, blocks: NDArray[np.float32]) -> bool:
        if self._sent is None or self._sent.shape != blocks.shape:
            return True
        difference = blocks - self._sent
        brightness = float(np.median(difference))
        own = np.abs(difference - brightness)
        noise = min(float(np.median(own)) / _QUIET, _MOST_NOISE_GREY)
        known = noise if self._noise_grey is None else self._noise_grey
        # Down at once, up slowly: while much moves, the median is not noise.
        self._noise_grey = min(noise, known + _SETTLE * (noise - known))
        self.change_grey = float(own.max())
        return max(self.change_grey, abs(brightness) / 2) > self.threshold_grey

    def _blocks(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB (H, W, 3) -> mean greens of blocks (h, w): as good as grey, and three times as fast."""
        height, width = image.shape[:2]
        size = (max(width // _SIDE, 1), max(height // _SIDE, 1))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return np.asarray(small[..., 1], np.float32)


class SimpleScenes:
    """Lowers the level of KEYs to `quality` while a scene is simple: while its KEYs take few bytes for their level.

    `usual_bytes`: of a KEY at each level. On four videos one level less (5 to 4) cost 0.4 to 0.6 percent of the pixels
    where KEYs took under 0.85 of the usual bytes, 0.4 between, and 1.1 above 1.1: what is simple loses less, but within
    three of the four videos the bytes of a frame said nothing of it (correlation -0.1 to 0.1; 0.5 in the car park).
    """

    def __init__(self, usual_bytes: Mapping[int, float], *, quality: int) -> None:
        self._usual, self._quality = usual_bytes, quality
        self.share = 1.0  # of the usual bytes, smoothed
        self.simple = False

    def level(self, wanted: int) -> int:
        """The level of the KEYs to come, where this one is wanted."""
        return min(wanted, self._quality) if self.simple else wanted

    def keyed(self, quality: int, size_bytes: int) -> None:
        """Take note of a KEY."""
        self.share += _KEY_WEIGHT * (size_bytes / max(self._usual[quality], 1.0) - self.share)
        self.simple = self.share < (_NO_LONGER if self.simple else _SIMPLE)
