"""Opens what a source's address names, file, directory, stream or device, and gives its pictures."""

import errno
import itertools
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.errors import ConfigError, SourceError
from pipeline.source_addresses import Kind, cannot_open, for_library, host_of, kind_of, shown

_UNTIMED = frozenset({"h264", "hevc", "m4v", "mjpeg", "mpjpeg"})  # formats in which the library guesses a stream's rate
_JPEG = b"\xff\xd8\xff"
# Markers with a length behind them, and the end: not those within a scan, its stuffed bytes, or what fills up.
_MARKER, _END = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])"), b"\xd9"
_IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
_DAMAGED_PACKETS = 100  # in a row; so many are no scratch, it is the wrong file
_UNTIL_FIRST = 1000  # the same before the first picture: a stream may be met long before its next key frame

_UPRIGHT = (1, 0, 0, 1)  # a, b, c, d of a matrix that leaves pictures as they are

Matrix = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a source gives: its size in pixels, a file's as its pictures are turned, and its rate, where it is known."""

    width: int
    height: int
    fps: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """uint8 RGB (H, W, 3) as the source has it, upright, and its time since the source's start."""

    image: NDArray[np.uint8]
    time_s: float


@dataclass(slots=True, eq=False)
class Damage:
    """What of a source could not be read so far: how many packets of its video, and why not the last of them."""

    packets: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A source that can be read, once."""

    origin: Origin
    pictures: Iterator[Picture]
    damage: Damage = field(default_factory=Damage)


def image_files(path: Path) -> list[Path]:
    """The images of a directory, by their names without the suffix: so that their packets have the same order.

    SourceError where it cannot be looked into.
    """
    try:
        images = [file for file in path.iterdir() if file.suffix.lower() in _IMAGES]
    except OSError as error:
        raise cannot_open(str(path), _reason(error)) from error
    return sorted(images, key=lambda file: (file.stem, file.suffix))


def fit(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """RGB (H, W, 3) -> (height, width, 3), where `size` is (width, height); one that fits is returned as it is."""
    height, width, _ = image.shape
    if (width, height) == size:
        return image
    smaller = width >= size[0] and height >= size[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=how).astype(np.uint8, copy=False)


@contextmanager
def open_source(url: str, *, fps: float, timeout_s: float, decode_threads: int) -> Iterator[Opened]:
    """Open a source until the context is left; `fps` is for directories.

    It and reading raise SourceError; ConfigError where it is a recording on a web server, which is none for a camera.
    """
    kind = kind_of(url)
    if kind == "directory":
        yield _directory(Path(url), fps=fps)
        return
    with _container(url, kind, timeout_s=timeout_s) as container:
        if not container.streams.video:
            raise cannot_open(url, "it has no video")
        if kind == "server" and url.lower().startswith("http") and container.duration:  # as fast as the line is
            raise ConfigError(
                f"cannot open {shown(url)}: it is a recording or a picture, no stream; download it, and name the file"
            )
        stream = container.streams.video[0]
        stream.thread_type = "AUTO" if kind == "file" else "SLICE"  # frame threads would delay what is live
        stream.thread_count = decode_threads
        rate = float(stream.average_rate or fps)
        guessed = kind == "server" and (container.format.name in _UNTIMED or not stream.average_rate)
        origin = Origin(stream.width, stream.height, None if guessed else rate)
        damage = Damage()
        pictures = _pictures(url, container, stream, rate, damage)
        if kind == "file" and (first := next(pictures, None)) is not None:  # it alone tells whether pictures are turned
            height, width, _ = first.image.shape
            origin, pictures = replace(origin, width=width, height=height), itertools.chain([first], pictures)
        yield Opened(origin, pictures, damage)


def _container(url: str, kind: Kind, *, timeout_s: float) -> InputContainer:
    began_s = time.monotonic()
    try:
        if kind == "server":
            tcp = {"rtsp_transport": "tcp"} if url.lower().startswith("rtsp") else {}
            return av.open(for_library(url), options={**tcp, "fflags": "nobuffer"}, timeout=timeout_s)
        if kind == "device":
            return av.open(f"/dev/video{url}" if url.isdecimal() else url, format="v4l2")
        return av.open(url)
    except (av.FFmpegError, OSError) as error:
        if kind == "server" and time.monotonic() - began_s >= timeout_s:  # the library says it of the data
            raise SourceError(f"cannot open {shown(url)}: it did not answer in {timeout_s:g} s") from error
        if kind == "server":
            # An input/output error is what the library calls it where a host has no address.
            unresolved = _unresolved(url) if error.errno == errno.EIO else None
            raise SourceError(f"cannot open {shown(url)}: {unresolved or _reason(error)}") from error
        raise cannot_open(url, _reason(error)) from error


def _unresolved(url: str) -> str | None:
    """What to say where an address's host has none."""
    host = host_of(url)
    try:
        if host:
            socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        return f"no address is known of {host} ({_reason(error)})"
    return None


def damage_of(url: str, opened: Opened) -> str | None:
    """What to say of a file that was read to its end: None where all of it could be read."""
    if not opened.damage.packets:
        return None
    return f"{shown(url)} is damaged, so that pictures are missing: {opened.damage.reason}; repair it"


def _pictures(
    url: str, container: InputContainer, stream: VideoStream, fps: float, damage: Damage
) -> Iterator[Picture]:
    """Damaged packets are counted and passed over, not without end. Without time stamps, pictures come at the rate."""
    damaged, count, first_s, matrix = 0, 0, None, _UPRIGHT
    packets, converter = container.demux(stream), VideoReformatter()
    while True:
        try:
            frames = next(packets).decode()
            damaged = 0
        except StopIteration:
            return
        except av.InvalidDataError as error:
            damaged += 1
            damage.packets, damage.reason = damage.packets + 1, _reason(error)
            if damaged >= (_DAMAGED_PACKETS if count else _UNTIL_FIRST):
                raise SourceError(f"{shown(url)} is damaged: {_reason(error)}") from error
            continue
        except (av.FFmpegError, OSError) as error:
            said = "nothing came any more" if isinstance(error, av.ExitError) else _reason(error)  # its timeout
            raise SourceError(f"{shown(url)} cannot be read any further: {said}") from error
        for frame in frames:
            if frame.is_corrupt and count:  # at the beginning it may refer to what was cut off before it
                damage.packets, damage.reason = damage.packets + 1, "a picture is incomplete"
            at_s = count / fps if frame.time is None else frame.time
            if count == 0:
                matrix = _display_matrix(frame)
            count += 1
            first_s = at_s if first_s is None else first_s
            # One converter for all: that of a frame, with a thread per core, lives as long as the frame.
            image = np.asarray(converter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
            yield Picture(_upright(image, matrix), at_s - first_s)


def _display_matrix(frame: VideoFrame) -> Matrix:
    """Where the source says its points go, (x, y) to (ax + cy, bx + dy): phones write how they were held.

    Asked once for all frames: one whose side data was looked at is in a cycle, and stays until that is collected.
    """
    told = cast(SideDataContainer, frame.side_data).get(Type.DISPLAYMATRIX)  # the library's stub has another type
    if told is None:
        return _UPRIGHT
    a, b, _, c, d = np.frombuffer(told, np.int32)[:5].tolist()
    return a, b, c, d


def _upright(image: NDArray[np.uint8], matrix: Matrix) -> NDArray[np.uint8]:
    """RGB (H, W, 3) mirrored, and turned by quarters."""
    across, across_to_down, down_to_across, down = matrix
    if abs(across_to_down) > abs(across):
        image = cv2.transpose(image).astype(np.uint8, copy=False)
        across, down = down_to_across, across_to_down
    return image if across >= 0 and down >= 0 else _flipped(image, across=across < 0, down=down < 0)


def _flipped(image: NDArray[np.uint8], *, across: bool, down: bool) -> NDArray[np.uint8]:
    return np.asarray(cv2.flip(image, -1 if across and down else int(across)), np.uint8)


def _directory(path: Path, *, fps: float) -> Opened:
    files = image_files(path)
    if not files:
        raise cannot_open(str(path), f"it holds none of {', '.join(sorted(_IMAGES))}")
    height, width, _ = _image(files[0]).shape
    pictures = (Picture(_image(file), index / fps) for index, file in enumerate(files))
    return Opened(Origin(width, height, fps), pictures)


def _image(file: Path) -> NDArray[np.uint8]:
    """RGB (H, W, 3)."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {file}: {_reason(error)}; repair it or take it out of the directory") from error
    if content.startswith(_JPEG) and _ends_early(content):
        raise SourceError(f"cannot read {file}: it ends too early; repair it or take it out of the directory")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise SourceError(f"cannot read {file}: it is not an image; repair it or take it out of the directory")
    return np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)


def _ends_early(jpeg: bytes) -> bool:
    """Whether the picture's end is missing; what follows it, such as a phone's video, is not looked at (T.81, B.1)."""
    at = 2
    while found := _MARKER.search(jpeg, at):
        if found[1] == _END:
            return False
        at = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2])
    return True


def _reason(error: Exception) -> str:
    """What the library says, without the address, which is in our own sentence."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or error).lower()
