"""Packet <-> bytes: the container, its limits and checks; every byte that comes in is taken for hostile.

    packet   magic u8 | version u8 | flags u8 | bundle 4 bytes | epoch u16 | sequence u32 | captured_ms u48
             | quality u8 | rows << 4 or columns u8 | regions u8 | region* | CRC-32 u32 of all bytes before it
    region   kind << 6 or index u8 | age u8 | size varint | body

The version is 2, or 3 where frames refer to a KEY that came before its own frame (`is_bidirectional`). Of the flags
bit 0 says that the packet is of a recording, bit 1 that the camera wants a receipt for it; the others are 0. Numbers
are big endian; a varint is unsigned LEB128, at most 3 bytes, in its shortest form. So a packet has one form only: what
unpacks packs to the same bytes.
"""

import itertools
import struct
import zlib
from collections.abc import Sequence

from pipeline.errors import BitstreamError
from pipeline.messages import FrameId, Kind, Packet, Region

MAGIC = 0x4D
VERSION, BIDIRECTIONAL = 2, 3
MAX_PACKET_BYTES = 1 << 20
MAX_REGIONS = 64
MAX_SIDE = 15  # rows or columns of the grid
MAX_AGE = 255
RECORDED, RECEIPT = 1, 2  # the flags that are known

_HEADER = struct.Struct("!BBB4sHI6sBBB")
_REGION = struct.Struct("!BB")
_CHECKSUM = struct.Struct("!I")
_VARINT_BYTES = 3
_ORDER = (Kind.KEY, Kind.WARP, Kind.BACK)  # of what is said of one region


def pack(packet: Packet) -> bytes:
    """Raises BitstreamError where the packet breaks a limit, so that whatever is packed can be unpacked."""
    _check_header(packet)
    _check_regions(packet.regions, packet.rows * packet.columns)
    version = BIDIRECTIONAL if is_bidirectional(packet) else VERSION
    head = _HEADER.pack(
        MAGIC, version, RECORDED * packet.recorded | RECEIPT * packet.receipt, packet.bundle, packet.id.epoch,
        packet.id.sequence, packet.captured_ms.to_bytes(6), packet.quality, packet.rows << 4 | packet.columns,
        len(packet.regions),
    )  # fmt: skip
    data = head + b"".join(_pack_region(region) for region in packet.regions)
    if len(data) + _CHECKSUM.size > MAX_PACKET_BYTES:
        raise BitstreamError(f"packet: {len(data) + _CHECKSUM.size} bytes, at most {MAX_PACKET_BYTES}")
    return data + _CHECKSUM.pack(zlib.crc32(data))


def unpack(data: bytes) -> Packet:
    """Raises BitstreamError, naming the field, where the bytes are not exactly one valid packet."""
    payload = _checked(data)
    _, version, flags, bundle, epoch, sequence, captured, quality, grid, count = _HEADER.unpack_from(payload)
    if flags & ~(RECORDED | RECEIPT):
        raise BitstreamError(f"packet: flags {flags:#04x} are not known")
    if count > MAX_REGIONS:
        raise BitstreamError(f"packet: {count} regions, at most {MAX_REGIONS}")
    regions, at = [], _HEADER.size
    for _ in range(count):
        region, at = _unpack_region(payload, at)
        regions.append(region)
    if at != len(payload):
        raise BitstreamError(f"packet: {len(payload) - at} bytes left over after the last region")
    packet = Packet(
        id=FrameId(epoch, sequence), captured_ms=int.from_bytes(captured), bundle=bundle, quality=quality,
        rows=grid >> 4, columns=grid & 15, regions=tuple(regions), recorded=bool(flags & RECORDED),
        receipt=bool(flags & RECEIPT),
    )  # fmt: skip
    _check_header(packet)
    _check_regions(packet.regions, packet.rows * packet.columns)
    if (version == BIDIRECTIONAL) != is_bidirectional(packet):
        raise BitstreamError(f"packet: version {version}, but its regions are of another")
    return packet


def is_bidirectional(packet: Packet) -> bool:
    """Whether the packet brings a KEY ahead of its frame, or refers to one that came so."""
    return any(_looks_ahead(region) for region in packet.regions)


def _looks_ahead(region: Region) -> bool:
    return region.kind is Kind.BACK or (region.kind is Kind.KEY and region.age > 0)


def _checked(data: bytes) -> bytes:
    """All bytes before the checksum, once size, magic, version and checksum are right."""
    smallest = _HEADER.size + _CHECKSUM.size
    if not smallest <= len(data) <= MAX_PACKET_BYTES:
        raise BitstreamError(f"packet: {len(data)} bytes, must be {smallest} to {MAX_PACKET_BYTES}")
    if data[0] != MAGIC:
        raise BitstreamError(f"packet: first byte is {data[0]:#04x}, not {MAGIC:#04x}")
    if data[1] not in (VERSION, BIDIRECTIONAL):
        raise BitstreamError(f"packet: version {data[1]}, only {VERSION} and {BIDIRECTIONAL} can be read")
    payload = data[: -_CHECKSUM.size]
    if _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0] != zlib.crc32(payload):
        raise BitstreamError("packet: checksum is wrong")
    return payload


def _check_header(packet: Packet) -> None:
    if len(packet.bundle) != 4:
        raise BitstreamError(f"packet: bundle has {len(packet.bundle)} bytes, not 4")
    if not (1 <= packet.rows <= MAX_SIDE and 1 <= packet.columns <= MAX_SIDE):
        raise BitstreamError(f"packet: grid {packet.rows}x{packet.columns} is not within 1x1 to 15x15")
    for name, number, bits in (
        ("epoch", packet.id.epoch, 16),
        ("sequence", packet.id.sequence, 32),
        ("captured_ms", packet.captured_ms, 48),
        ("quality", packet.quality, 8),
    ):
        if number < 0 or number >> bits:
            raise BitstreamError(f"packet: {name} {number} does not fit into {bits} bits")


def _check_regions(regions: Sequence[Region], cells: int) -> None:
    if len(regions) > MAX_REGIONS:
        raise BitstreamError(f"packet: {len(regions)} regions, at most {MAX_REGIONS}")
    after = 0
    for index, parts in itertools.groupby(regions, key=lambda region: region.index):
        if not after <= index < min(cells, MAX_REGIONS):
            raise BitstreamError(f"region {index}: outside the grid, repeated or out of order")
        _check_parts(index, tuple(parts), cells)
        after = index + 1


def _check_parts(index: int, parts: Sequence[Region], cells: int) -> None:
    """What is said of one region: one thing, or of a whole frame a KEY that comes ahead, a WARP and a BACK."""
    for region in parts:
        ages = range(MAX_AGE + 1) if _looks_ahead(region) or region.kind is Kind.KEY else range(1, MAX_AGE + 1)
        if region.age not in ages or (region.kind is Kind.KEY and region.age and cells > 1):
            raise BitstreamError(f"region {index}: {region.kind.name} cannot have age {region.age}")
        if region.kind is Kind.BACK and cells > 1:
            raise BitstreamError(f"region {index}: BACK is of whole frames only, not of a grid of {cells} regions")
    alone = any(region.age == 0 or region.kind is Kind.DELTA for region in parts)
    if len(parts) > 1 and (alone or not _in_order([region.kind for region in parts])):
        raise BitstreamError(f"region {index}: outside the grid, repeated or out of order")


def _in_order(kinds: Sequence[Kind]) -> bool:
    """Whether each kind comes once at most, and before those that may refer to it."""
    places = [_ORDER.index(kind) for kind in kinds]
    return all(place < later for place, later in itertools.pairwise(places))


def _pack_region(region: Region) -> bytes:
    head = _REGION.pack(region.kind << 6 | region.index, region.age)
    return head + pack_varint(len(region.body)) + region.body


def _unpack_region(data: bytes, at: int) -> tuple[Region, int]:
    """The region at offset at, and the offset after it."""
    if at + _REGION.size > len(data):
        raise BitstreamError(f"packet: ends at byte {len(data)}, inside the head of a region")
    head, age = _REGION.unpack_from(data, at)
    index = head & 63
    size, start = unpack_varint(data, at + _REGION.size)
    if start + size > len(data):
        raise BitstreamError(f"region {index}: {len(data) - start} bytes, need {size}")
    return Region(Kind(head >> 6), index, age, data[start : start + size]), start + size


def pack_varint(number: int) -> bytes:
    """Unsigned LEB128 of at most 3 bytes; BitstreamError where the number needs more."""
    if number >> 7 * _VARINT_BYTES:
        raise BitstreamError(f"region: a size of {number} does not fit into {_VARINT_BYTES} bytes")
    coded = bytearray()
    while number > 127:
        coded.append(number & 127 | 128)
        number >>= 7
    coded.append(number)
    return bytes(coded)


def unpack_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at offset at, and the offset after it; BitstreamError where there is none."""
    number = 0
    for place, byte in enumerate(data[at : at + _VARINT_BYTES]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            if byte == 0 and place > 0:
                raise BitstreamError("region: size is not in its shortest form")
            return number, at + place + 1
    raise BitstreamError(f"region: size does not end within {_VARINT_BYTES} bytes")
