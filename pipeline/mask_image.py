"""Mask <-> bytes: an indexed PNG that any program opens, and a compact form of runs for programs.

The PNG has 1, 2, 4 or 8 bits a pixel, as few as the palette needs, and the chunks IHDR, PLTE, tEXt (camera,
epoch, sequence, captured_ms, bundle), IDAT, IEND in this order.

The compact form, big endian:

    magic 0x4E u8 | version 1 u8 | bundle 4 bytes | epoch u16 | sequence u32 | captured_ms u48
    | width u16 | height u16 | zlib of (class u8 | run length varint)*

Runs go row by row and across the ends of rows; a varint is unsigned LEB128, at most 4 bytes, in its shortest
form.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BitstreamError, ConfigError
from pipeline.messages import FrameId, Mask, check_camera_name

MAX_PIXELS = 1 << 24
MAX_PNG_BYTES = 32 << 20
MAX_RUN_BYTES = 1 << 20  # uncompressed; bounds the time that unpacking takes

RLE_MAGIC = 0x4E
RLE_VERSION = 1

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct("!I4s")  # size, type
_CRC = struct.Struct("!I")
_IHDR = struct.Struct("!IIBBBBB")  # width, height, bits, colour type, compression, filter, interlace
_INDEXED = 3
_UP = 2  # PNG's filter type "difference to the row above", in every row
_TEXT = ("camera", "epoch", "sequence", "captured_ms", "bundle")
_CHUNKS = [b"IHDR", b"PLTE", *[b"tEXt"] * len(_TEXT), b"IDAT", b"IEND"]

_RLE = struct.Struct("!BB4sHI6sHH")  # magic, version, bundle, epoch, sequence, captured_ms, width, height
_VARINT_BYTES = 4


def pack_mask(mask: Mask, camera: str, palette: NDArray[np.uint8]) -> bytes:
    """Mask (H, W) -> PNG with palette (K, 3) and the frame's identity as text.

    Raises ConfigError for a wrong camera name, BitstreamError where mask, identity or palette break a limit.
    """
    height, width = _checked_shape(mask)
    colours = len(palette)
    if palette.dtype != np.uint8 or palette.shape != (colours, 3) or not 1 <= colours <= 256:
        raise BitstreamError(f"mask: palette is {palette.dtype} {palette.shape}, not uint8 (1..256, 3)")
    _check_classes(mask.classes, colours)
    depth = _bit_depth(colours)
    identity = (mask.id.epoch, mask.id.sequence, mask.captured_ms)
    values = [check_camera_name(camera), *(str(number) for number in identity), mask.bundle.hex()]
    bodies = [
        _IHDR.pack(width, height, depth, _INDEXED, 0, 0, 0),
        palette.tobytes(),
        *(f"{key}\0{value}".encode() for key, value in zip(_TEXT, values, strict=True)),
        _deflate(_filter_rows(_pack_rows(mask.classes, depth))),
        b"",
    ]
    chunks = [_pack_chunk(kind, body) for kind, body in zip(_CHUNKS, bodies, strict=True)]
    return _SIGNATURE + b"".join(chunks)


def unpack_mask(data: bytes) -> tuple[Mask, str]:
    """Mask and camera name from what pack_mask wrote; raises BitstreamError for any other bytes."""
    header, palette, *text, pixels, _ = _unpack_chunks(data)
    if len(header) != _IHDR.size:
        raise BitstreamError(f"mask: the header has {len(header)} bytes, not {_IHDR.size}")
    width, height, depth, *form = _IHDR.unpack(header)
    _check_size(width, height)
    colours, rest = divmod(len(palette), 3)
    if rest or not 1 <= colours <= 256 or depth != _bit_depth(colours) or form != [_INDEXED, 0, 0, 0]:
        raise BitstreamError("mask: not an indexed PNG with as few bits as its palette needs")
    row_bytes = (width * depth + 7) // 8
    raw = _inflate(pixels, height * (row_bytes + 1))
    if len(raw) != height * (row_bytes + 1):
        raise BitstreamError(f"mask: {len(raw)} bytes of pixels, need {height * (row_bytes + 1)}")
    classes = _unpack_rows(_unfilter_rows(raw, height), depth, width)
    _check_classes(classes, colours)
    return _identified(text, classes)


def _identified(text: list[bytes], classes: NDArray[np.uint8]) -> tuple[Mask, str]:
    pairs = [body.decode("latin-1").partition("\0") for body in text]
    if tuple(key for key, _, _ in pairs) != _TEXT:
        raise BitstreamError(f"mask: the text chunks are not {', '.join(_TEXT)}")
    camera, epoch, sequence, captured_ms, bundle = (value for _, _, value in pairs)
    try:
        check_camera_name(camera)
    except ConfigError as error:
        raise BitstreamError(f"mask: {error}") from error
    frame = FrameId(_number(epoch, "epoch"), _number(sequence, "sequence"))
    if len(bundle) != 8 or not set(bundle) <= set("0123456789abcdef"):
        raise BitstreamError("mask: bundle is not 8 hex digits")
    mask = Mask(frame, _number(captured_ms, "captured_ms"), bytes.fromhex(bundle), classes)
    _check_identity(mask)
    return mask, camera


def _number(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15 and str(int(text)) == text):
        raise BitstreamError(f"mask: {field} is not a whole number")
    return int(text)


def pack_mask_rle(mask: Mask) -> bytes:
    """Mask (H, W) -> compact form; raises BitstreamError where the mask breaks a limit."""
    height, width = _checked_shape(mask)
    if max(height, width) >> 16:
        raise BitstreamError(f"mask: {width}x{height} does not fit into 16 bits")
    head = _RLE.pack(
        RLE_MAGIC, RLE_VERSION, mask.bundle, mask.id.epoch, mask.id.sequence,
        mask.captured_ms.to_bytes(6), width, height,
    )  # fmt: skip
    runs = _pack_runs(mask.classes.ravel())
    if len(runs) > MAX_RUN_BYTES:
        raise BitstreamError(f"mask: {len(runs)} bytes of runs, at most {MAX_RUN_BYTES}")
    return head + zlib.compress(runs)


def unpack_mask_rle(data: bytes) -> Mask:
    """Mask from what pack_mask_rle wrote; raises BitstreamError for any other bytes."""
    if len(data) < _RLE.size:
        raise BitstreamError(f"mask: {len(data)} bytes, the header alone needs {_RLE.size}")
    magic, version, bundle, epoch, sequence, captured, width, height = _RLE.unpack_from(data)
    if (magic, version) != (RLE_MAGIC, RLE_VERSION):
        raise BitstreamError(f"mask: magic and version are {magic:#04x}, {version}, not {RLE_MAGIC:#04x}, 1")
    _check_size(width, height)
    runs = _inflate(data[_RLE.size :], MAX_RUN_BYTES)
    classes = _unpack_runs(runs, height * width).reshape(height, width)
    return Mask(FrameId(epoch, sequence), int.from_bytes(captured), bundle, classes)


def _pack_runs(classes: NDArray[np.uint8]) -> bytes:
    """Classes (N,) -> (class, run length)*."""
    starts = np.flatnonzero(np.diff(classes, prepend=classes[:1] ^ 1))  # (R,)
    lengths = np.diff(starts, append=classes.size)  # (R,)
    groups = lengths[:, None] >> np.arange(0, 7 * _VARINT_BYTES, 7)  # (R, 4) what is left at each 7 bits
    used = groups > 0
    coded = groups & 127 | (groups > 127) * 128
    cells = np.column_stack([classes[starts], coded]).astype(np.uint8)  # (R, 5)
    coded_bytes: NDArray[np.uint8] = cells[np.column_stack([np.ones(len(starts), bool), used])]
    return coded_bytes.tobytes()


def _unpack_runs(runs: bytes, pixels: int) -> NDArray[np.uint8]:
    """(class, run length)* -> classes (N,); nothing of size N is made before the lengths add up to it."""
    data = np.frombuffer(runs, np.uint8)
    ends = np.flatnonzero(data < 128)  # bytes that end a varint, unless they are classes
    if not ends.size or ends[-1] != data.size - 1:
        raise BitstreamError("mask: the runs end inside a run length")
    nearest = ends[np.searchsorted(ends, np.arange(data.size))]  # for each byte, the first end from it on
    after = (nearest + 1).tolist()
    found, at = [], 0
    while at + 1 < data.size:
        found.append(at)
        at = after[at + 1]
    if at != data.size:
        raise BitstreamError("mask: the runs end after a class")
    starts = np.array(found)  # (R,)
    lengths = _run_lengths(data, starts, nearest[starts + 1])
    if lengths.sum() != pixels:
        raise BitstreamError(f"mask: runs of {lengths.sum()} pixels, need {pixels}")
    classes: NDArray[np.uint8] = np.repeat(data[starts], lengths)
    return classes


def _run_lengths(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The varints (R,) that follow the classes at starts (R,) and end at ends (R,)."""
    if (ends - starts).max() > _VARINT_BYTES or (data[ends] == 0).any():
        raise BitstreamError("mask: a run length is zero, too long or not in its shortest form")
    lengths = np.zeros(starts.size, np.int64)
    for place in range(_VARINT_BYTES):
        at = starts + 1 + place
        here = at <= ends
        lengths[here] |= (data[at[here]] & 127).astype(np.int64) << 7 * place
    return lengths


def _checked_shape(mask: Mask) -> tuple[int, int]:
    """Height and width, once they, the dtype and the identity are within the limits."""
    if mask.classes.dtype != np.uint8 or mask.classes.ndim != 2:
        raise BitstreamError(f"mask: classes are {mask.classes.dtype} {mask.classes.shape}, not uint8 (H, W)")
    height, width = mask.classes.shape
    _check_size(width, height)
    _check_identity(mask)
    return height, width


def _check_size(width: int, height: int) -> None:
    if not (width and height) or width * height > MAX_PIXELS:
        raise BitstreamError(f"mask: {width}x{height} is not within 1 to {MAX_PIXELS} pixels")


def _check_identity(mask: Mask) -> None:
    fits = not (mask.id.epoch >> 16 or mask.id.sequence >> 32 or mask.captured_ms >> 48)
    if not fits or len(mask.bundle) != 4:
        raise BitstreamError("mask: epoch, sequence, captured_ms or bundle is out of range")


def _check_classes(classes: NDArray[np.uint8], colours: int) -> None:
    if classes.max() >= colours:
        raise BitstreamError(f"mask: class {classes.max()} has none of the {colours} colours")


def _bit_depth(colours: int) -> int:
    return next(depth for depth in (1, 2, 4, 8) if colours <= 1 << depth)


def _pack_rows(classes: NDArray[np.uint8], depth: int) -> NDArray[np.uint8]:
    """Classes (H, W) -> rows (H, ceil(W * depth / 8)), the leftmost pixel in the highest bits."""
    height, width = classes.shape
    pixels = 8 // depth
    rows = np.zeros((height, -(-width // pixels)), np.uint8)
    for place in range(pixels):
        column = classes[:, place::pixels]
        rows[:, : column.shape[1]] |= column << np.uint8(8 - depth * (place + 1))
    return rows


def _unpack_rows(rows: NDArray[np.uint8], depth: int, width: int) -> NDArray[np.uint8]:
    """Rows (H, ceil(W * depth / 8)) -> classes (H, W)."""
    pixels = 8 // depth
    classes = np.empty((rows.shape[0], rows.shape[1] * pixels), np.uint8)
    for place in range(pixels):
        classes[:, place::pixels] = rows >> np.uint8(8 - depth * (place + 1)) & np.uint8((1 << depth) - 1)
    return np.ascontiguousarray(classes[:, :width])


def _filter_rows(rows: NDArray[np.uint8]) -> bytes:
    """Rows (H, B) -> filter type and difference to the row above, (H, 1 + B)."""
    filtered = np.full((rows.shape[0], rows.shape[1] + 1), _UP, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered.tobytes()


def _unfilter_rows(raw: bytes, height: int) -> NDArray[np.uint8]:
    filtered = np.frombuffer(raw, np.uint8).reshape(height, -1)
    if (filtered[:, 0] != _UP).any():
        raise BitstreamError("mask: a row has another filter than 'up'")
    return np.add.accumulate(filtered[:, 1:], axis=0, dtype=np.uint8)


def _deflate(raw: bytes) -> bytes:
    """Compress for speed: on masks 'up' and Z_RLE take the time of level 1 and 3/4 of its bytes."""
    compressor = zlib.compressobj(level=3, strategy=zlib.Z_RLE)
    return compressor.compress(raw) + compressor.flush()


def _inflate(data: bytes, limit: int) -> bytes:
    """At most `limit` bytes from exactly one zlib stream."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise BitstreamError(f"mask: {error}") from error
    if len(raw) > limit or not stream.eof or stream.unused_data:
        raise BitstreamError("mask: the compressed bytes are too many, cut short, or not all of one stream")
    return raw


def _pack_chunk(kind: bytes, body: bytes) -> bytes:
    return _CHUNK.pack(len(body), kind) + body + _CRC.pack(zlib.crc32(kind + body))


def _unpack_chunks(data: bytes) -> list[bytes]:
    """The bodies of exactly the chunks that pack_mask writes."""
    if len(data) > MAX_PNG_BYTES or not data.startswith(_SIGNATURE):
        raise BitstreamError("mask: not a PNG, or one that is too large")
    bodies, at = [], len(_SIGNATURE)
    for kind in _CHUNKS:
        end = at + _CHUNK.size + _CRC.size
        if end > len(data):
            raise BitstreamError(f"mask: the PNG ends before chunk {kind.decode()}")
        size, found = _CHUNK.unpack_from(data, at)
        if found != kind or end + size > len(data):
            raise BitstreamError(f"mask: no whole chunk {kind.decode()} at byte {at}")
        body = data[at + _CHUNK.size : at + _CHUNK.size + size]
        at = end + size
        if data[at - _CRC.size : at] != _CRC.pack(zlib.crc32(kind + body)):
            raise BitstreamError(f"mask: checksum of chunk {kind.decode()} is wrong")
        bodies.append(body)
    if at != len(data) or bodies[-1]:
        raise BitstreamError("mask: bytes in or after the PNG's last chunk")
    return bodies
