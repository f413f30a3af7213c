"""Looks at the pictures that arrive, without decoding a pixel: what it is, whose it is, how large it is.

Masks go to the browsers as they came, so what is let through here is what a browser is asked to decode.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import BitstreamError
from pipeline.mask_image import REGIONS, parse_regions
from pipeline.messages import FrameId

MASK_LIMIT_BYTES = 4 << 20
PREVIEW_LIMIT_BYTES = 1 << 20
SIDE_LIMIT_PIXELS = 8192
_SEGMENT_LIMIT = 256  # of a JPEG, before its frame

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK_HEAD = struct.Struct("!I4s")  # body bytes, type
_CHECKSUM = struct.Struct("!I")
_PNG_HEADER = struct.Struct("!IIBBBBB")  # width, height, depth, colour type, compression, filter, interlace
_INDEXED = 3
_NUMBER_LIMITS = {"epoch": 1 << 16, "sequence": 1 << 32, "captured_ms": 1 << 48}  # the packet's field sizes

_JPEG_MARKER = struct.Struct("!BBH")  # 0xFF, marker, segment bytes
_JPEG_COMMENT, _PREVIEW_FRAME = 0xFE, re.compile(rb"maskcast (\d{1,5}) (\d{1,10})")  # epoch, sequence
_JPEG_FRAME = struct.Struct("!BHH")  # depth, height, width
_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class MaskPicture:
    """One mask as published: an indexed PNG, and what its tEXt chunks say; `regions` is empty where they do not."""

    camera: str
    epoch: int
    sequence: int
    captured_ms: int
    bundle: str
    width: int
    height: int
    regions: str
    png: bytes


def read_mask(png: bytes) -> MaskPicture:
    """Check one published mask and read its tEXt chunks; raises BitstreamError."""
    if len(png) > MASK_LIMIT_BYTES:
        raise BitstreamError(f"mask: {len(png)} bytes, at most {MASK_LIMIT_BYTES} are taken")
    chunks = list(_chunks(png))
    width, height = _indexed_size(chunks)
    texts = dict(_text(body) for kind, body in chunks if kind == b"tEXt")
    return MaskPicture(
        camera=_field(texts, "camera"),
        epoch=_number(texts, "epoch"),
        sequence=_number(texts, "sequence"),
        captured_ms=_number(texts, "captured_ms"),
        bundle=_field(texts, "bundle").lower(),
        width=width,
        height=height,
        regions=_regions(texts),
        png=png,
    )


@dataclass(frozen=True, slots=True, eq=False)
class PreviewPicture:
    """A preview as published, and the frame that it is of, where it says so."""

    frame: FrameId | None
    jpeg: bytes


def read_preview(jpeg: bytes) -> PreviewPicture:
    """Raises BitstreamError unless this is a JPEG of a size that a browser can show."""
    if len(jpeg) > PREVIEW_LIMIT_BYTES:
        raise BitstreamError(f"preview: {len(jpeg)} bytes, at most {PREVIEW_LIMIT_BYTES} are taken")
    if not jpeg.startswith(b"\xff\xd8\xff"):
        raise BitstreamError("preview: not a JPEG")
    at, frame, segments = 2, None, 0
    while segments < _SEGMENT_LIMIT and at + _JPEG_MARKER.size + _JPEG_FRAME.size <= len(jpeg):
        lead, marker, size = _JPEG_MARKER.unpack_from(jpeg, at)
        if lead != 0xFF or size < 2:
            break
        if marker in _JPEG_FRAME_MARKERS:
            _, height, width = _JPEG_FRAME.unpack_from(jpeg, at + _JPEG_MARKER.size)
            _check_size("preview", width, height)
            return PreviewPicture(frame, jpeg)
        if marker == _JPEG_COMMENT and (said := _PREVIEW_FRAME.fullmatch(jpeg, at + _JPEG_MARKER.size, at + 2 + size)):
            frame = _frame_of(int(said[1]), int(said[2]))
        at, segments = at + 2 + size, segments + 1
    raise BitstreamError("preview: a JPEG without a frame")


def _frame_of(epoch: int, sequence: int) -> FrameId | None:
    fits = epoch < _NUMBER_LIMITS["epoch"] and sequence < _NUMBER_LIMITS["sequence"]
    return FrameId(epoch, sequence) if fits else None


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and body of each chunk, up to IEND, which must be the end of the bytes."""
    if not png.startswith(_PNG_SIGNATURE):
        raise BitstreamError("mask: not a PNG")
    at, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        if at + _CHUNK_HEAD.size > len(png):
            raise BitstreamError("mask: the PNG ends early")
        size, kind = _CHUNK_HEAD.unpack_from(png, at)
        start, end = at + _CHUNK_HEAD.size, at + _CHUNK_HEAD.size + size
        if end + _CHECKSUM.size > len(png):
            raise BitstreamError(f"mask: chunk {kind!r} ends early")
        if zlib.crc32(png[at + 4 : end]) != _CHECKSUM.unpack_from(png, end)[0]:
            raise BitstreamError(f"mask: chunk {kind!r} is damaged")
        yield kind, png[start:end]
        at = end + _CHECKSUM.size
    if at != len(png):
        raise BitstreamError(f"mask: {len(png) - at} bytes after the end of the PNG")


def _indexed_size(chunks: list[tuple[bytes, bytes]]) -> tuple[int, int]:
    """Width and height of an indexed PNG that has a palette and pixels."""
    kind, header = chunks[0]
    if kind != b"IHDR" or len(header) != _PNG_HEADER.size:
        raise BitstreamError("mask: the PNG does not begin with its header")
    width, height, _, colour_type, *_ = _PNG_HEADER.unpack(header)
    if colour_type != _INDEXED:
        raise BitstreamError("mask: not an indexed PNG")
    _check_size("mask", width, height)
    if not {b"PLTE", b"IDAT"} <= {kind for kind, _ in chunks}:
        raise BitstreamError("mask: a PNG without palette or pixels")
    return width, height


def _check_size(what: str, width: int, height: int) -> None:
    if not (0 < width <= SIDE_LIMIT_PIXELS and 0 < height <= SIDE_LIMIT_PIXELS):
        raise BitstreamError(f"{what}: {width} x {height} pixels, at most {SIDE_LIMIT_PIXELS} a side")


def _text(body: bytes) -> tuple[str, str]:
    keyword, _, text = body.partition(b"\0")
    return keyword.decode("latin-1"), text.decode("latin-1")


def _field(texts: dict[str, str], name: str) -> str:
    text = texts.get(name, "")
    if not 0 < len(text) <= 64:
        raise BitstreamError(f"mask: tEXt {name} is missing or too long")
    return text


def _regions(texts: dict[str, str]) -> str:
    """How each region was coded; those who sent masks before regions were told say nothing."""
    text = texts.get(REGIONS, "")
    if text:
        parse_regions(text)
    return text


def _number(texts: dict[str, str], name: str) -> int:
    text = _field(texts, name)
    if not (text.isascii() and text.isdecimal()) or int(text) >= _NUMBER_LIMITS[name]:
        raise BitstreamError(f"mask: tEXt {name} is {text!r}, not a number in range")
    return int(text)
