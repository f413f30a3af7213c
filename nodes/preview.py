"""Small pictures of the frames, for people; off by default, since pixels stay at the edge."""

import time
from collections.abc import Callable

import cv2

from pipeline.messages import Frame, FrameId
from pipeline.thinning import Thinning


class Preview:
    """Small JPEGs of some of the frames, `max_fps` at most."""

    def __init__(
        self,
        *,
        max_fps: float,
        max_width: int,
        jpeg_quality: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_fps, self._max_width, self._quality = max_fps, max_width, jpeg_quality
        self._thinning, self._clock = Thinning(), clock

    def picture(self, frame: Frame, shape: tuple[int, int] | None = None) -> bytes | None:
        """The frame as JPEG when the next picture is due, else None.

        Frames are stretched to the bundle's size: with the width and height of their source as `shape` it looks again
        as that does.
        """
        if not self._thinning.takes(self._clock(), self._max_fps):
            return None
        image = frame.image
        height, width, _ = image.shape
        across, down = shape or (width, height)
        wide = min(width, self._max_width)
        size = (wide, max(1, round(wide * down / across)))
        if size != (width, height):
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(image.dtype, copy=False)
        _, jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        return _of_frame(jpeg.tobytes(), frame.id)


def _of_frame(jpeg: bytes, frame: FrameId) -> bytes:
    """The same with a comment that says of which frame it is (T.81, B.2.4.5), so that its mask can be laid over it."""
    comment = f"maskcast {frame.epoch} {frame.sequence}".encode()
    return jpeg[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2) + comment + jpeg[2:]
