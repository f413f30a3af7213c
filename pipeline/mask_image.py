"""Mask <-> bytes: an indexed PNG that any program opens, and a compact form of runs for programs.

The PNG has 1, 2, 4 or 8 bits a pixel, as few as the palette needs, and the chunks IHDR, PLTE, tEXt (camera,
epoch, sequence, captured_ms, bundle), IDAT, IEND in this order. Where it is known how the regions were coded, one
more tEXt, `regions`, follows bundle: rows x columns, a space and a letter per region, row by row, such as `2x2 KW-D`.
Further tEXt chunks there are passed over.

The compact form, big endian:

    magic 0x4E u8 | version 1 u8 | bundle 4 bytes | epoch u16 | sequence u32 | captured_ms u48
    | width u16 | height u16 | zlib of (class u8 | run length varint)*

Runs go row by row and across the ends of rows; a varint is unsigned LEB128, at most 4 bytes, in its shortest
form.
"""

import re
import struct
import zlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BitstreamError, ConfigError
from pipeline.messages import FrameId, Kind, Mask, check_camera_name

MAX_PIXELS = 1 << 24
MAX_PNG_BYTES = 32 << 20
MAX_RUN_BYTES = 1 << 20  # uncompressed; bounds the time that unpacking takes

REGIONS = "regions"  # the text chunk, and the property of a message

RLE_MAGIC = 0x4E
RLE_VERSION = 1

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct("!I4s")  # size, type
_CRC = struct.Struct("!I")
_IHDR = struct.Struct("!IIBBBBB")  # width, height, bits, colour type, compression, filter, interlace
_INDEXED = 3
_UP = 2  # PNG's filter type "difference to the row above", in every row
_TEXT = ("camera", "epoch", "sequence", "captured_ms", "bundle")
_LETTERS: dict[Kind | None, str] = {Kind.KEY: "K", Kind.WARP: "W", Kind.DELTA: "D", None: "-"}
_LETTERED = {letter: kind for kind, letter in _LETTERS.items()}
_GRID = re.compile(r"([1-9]|1[0-5])x([1-9]|1[0-5]) ([KWD-]+)")  # as large as a packet's
_MOST_CHUNKS = 24  # room for texts of newer senders

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
    texts = list(zip(_TEXT, values, strict=True))
    if mask.kinds:
        texts.append((REGIONS, regions_of(mask)))
    bodies = [
        _IHDR.pack(width, height, depth, _INDEXED, 0, 0, 0),
        palette.tobytes(),
        *(f"{key}\0{value}".encode() for key, value in texts),
        _deflate(_filter_rows(_pack_rows(mask.classes, depth))),
        b"",
    ]
    chunks = [_pack_chunk(kind, body) for kind, body in zip(_kinds(len(texts)), bodies, strict=True)]
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


def frame_of(data: bytes) -> FrameId:
    """Which frame a mask is of that pack_mask wrote, its pixels not looked at; raises BitstreamError."""
    _, _, *text, _, _ = _unpack_chunks(data)
    mask, _ = _identified(text, np.empty((0, 0), np.uint8))
    return mask.id


def _identified(text: list[bytes], classes: NDArray[np.uint8]) -> tuple[Mask, str]:
    pairs = [body.decode("latin-1").partition("\0") for body in text]
    if tuple(key for key, _, _ in pairs[: len(_TEXT)]) != _TEXT:
        raise BitstreamError(f"mask: the text chunks do not begin with {', '.join(_TEXT)}")
    camera, epoch, sequence, captured_ms, bundle = (value for _, _, value in pairs[: len(_TEXT)])
    try:
        check_camera_name(camera)
    except ConfigError as error:
        raise BitstreamError(f"mask: {error}") from error
    frame = FrameId(_number(epoch, "epoch"), _number(sequence, "sequence"))
    if len(bundle) != 8 or not set(bundle) <= set("0123456789abcdef"):
        raise BitstreamError("mask: bundle is not 8 hex digits")
    mask = Mask(frame, _number(captured_ms, "captured_ms"), bytes.fromhex(bundle), classes)
    _check_identity(mask)
    for key, _, value in pairs[len(_TEXT) :]:
        if key == REGIONS:
            mask = _with_regions(mask, value)
    return mask, camera


def regions_of(mask: Mask) -> str:
    """How the regions were coded, such as `2x2 KW-D`, empty if not known; BitstreamError where it cannot be so."""
    if not mask.kinds:
        return ""
    text = f"{mask.rows}x{mask.columns} {''.join(_LETTERS[kind] for kind in mask.kinds)}"
    parse_regions(text)
    return text


def parse_regions(text: str) -> tuple[tuple[int, int], tuple[Kind | None, ...]]:
    """Rows and columns, and the kind of each region, row by row, from what regions_of wrote, but for the empty text.

    Raises BitstreamError.
    """
    found = _GRID.fullmatch(text)
    if not found or len(found[3]) != int(found[1]) * int(found[2]):
        raise BitstreamError(f"mask: regions {text[:16]!r} are not rows x columns and a letter of KWD- for each")
    return (int(found[1]), int(found[2])), tuple(_LETTERED[letter] for letter in found[3])


def _with_regions(mask: Mask, text: str) -> Mask:
    (rows, columns), kinds = parse_regions(text)
    return replace(mask, rows=rows, columns=columns, kinds=kinds)


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
    """The bodies of the chunks that pack_mask writes, and of a few more texts."""
    if len(data) > MAX_PNG_BYTES or not data.startswith(_SIGNATURE):
        raise BitstreamError("mask: not a PNG, or one that is too large")
    chunks, at = [b""], len(_SIGNATURE)
    while not chunks[-1].startswith(b"IEND") and len(chunks) <= _MOST_CHUNKS:
        chunk, at = _unpack_chunk(data, at)
        chunks.append(chunk)
    del chunks[0]
    if [chunk[:4] for chunk in chunks] != _kinds(len(chunks) - len(_kinds(0))):
        raise BitstreamError("mask: the PNG has other chunks than a mask")
    if at != len(data) or chunks[-1] != b"IEND":
        raise BitstreamError("mask: bytes in or after the PNG's last chunk")
    return [chunk[4:] for chunk in chunks]


def _unpack_chunk(data: bytes, at: int) -> tuple[bytes, int]:
    """Kind and body of the chunk at this offset, joined, and the offset after it."""
    start = at + _CHUNK.size
    if start + _CRC.size > len(data):
        raise BitstreamError("mask: the PNG ends early")
    size, kind = _CHUNK.unpack_from(data, at)
    end = start + size + _CRC.size
    if end > len(data):
        raise BitstreamError(f"mask: no whole chunk {kind!r} at byte {at}")
    chunk = data[at + 4 : start + size]
    if data[start + size : end] != _CRC.pack(zlib.crc32(chunk)):
        raise BitstreamError(f"mask: checksum of chunk {kind!r} is wrong")
    return chunk, end


def _kinds(texts: int) -> list[bytes]:
    """The kinds of the chunks of a mask with so many texts."""
    return [b"IHDR", b"PLTE", *[b"tEXt"] * texts, b"IDAT", b"IEND"]
