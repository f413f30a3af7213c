"""Packet <-> bytes: the container, its limits and checks; every byte that comes in is taken for hostile.

    packet   magic u8 | version u8 | flags u8 | bundle 4 bytes | epoch u16 | sequence u32 | captured_ms u48
             | quality u8 | rows << 4 or columns u8 | regions u8 | region* | CRC-32 u32 of all bytes before it
    region   kind << 6 or index u8 | age u8 | size varint | body

Of the flags bit 0 says that the packet is of a recording, bit 1 that the camera wants a receipt for it; the others are
0. Numbers are big endian; a varint is unsigned LEB128, at most 3 bytes, in its shortest form. So a packet has one form
only: what unpacks packs to the same bytes.
"""

import struct
import zlib
from collections.abc import Sequence

from pipeline.errors import BitstreamError
from pipeline.messages import FrameId, Kind, Packet, Region

MAGIC = 0x4D
VERSION = 2
MAX_PACKET_BYTES = 1 << 20
MAX_REGIONS = 64
MAX_SIDE = 15  # rows or columns of the grid
MAX_AGE = 255
RECORDED, RECEIPT = 1, 2  # the flags that are known

_HEADER = struct.Struct("!BBB4sHI6sBBB")
_REGION = struct.Struct("!BB")
_CHECKSUM = struct.Struct("!I")
_VARINT_BYTES = 3


def pack(packet: Packet) -> bytes:
    """Raises BitstreamError where the packet breaks a limit, so that whatever is packed can be unpacked."""
    _check_header(packet)
    _check_regions(packet.regions, packet.rows * packet.columns)
    head = _HEADER.pack(
        MAGIC, VERSION, RECORDED * packet.recorded | RECEIPT * packet.receipt, packet.bundle, packet.id.epoch,
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
    _, _, flags, bundle, epoch, sequence, captured, quality, grid, count = _HEADER.unpack_from(payload)
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
    return packet


def _checked(data: bytes) -> bytes:
    """All bytes before the checksum, once size, magic, version and checksum are right."""
    smallest = _HEADER.size + _CHECKSUM.size
    if not smallest <= len(data) <= MAX_PACKET_BYTES:
        raise BitstreamError(f"packet: {len(data)} bytes, must be {smallest} to {MAX_PACKET_BYTES}")
    if data[0] != MAGIC:
        raise BitstreamError(f"packet: first byte is {data[0]:#04x}, not {MAGIC:#04x}")
    if data[1] != VERSION:
        raise BitstreamError(f"packet: version {data[1]}, only {VERSION} can be read")
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
    for region in regions:
        if not after <= region.index < min(cells, MAX_REGIONS):
            raise BitstreamError(f"region {region.index}: outside the grid, repeated or out of order")
        if not 0 <= region.age <= MAX_AGE or (region.age == 0) != (region.kind is Kind.KEY):
            raise BitstreamError(f"region {region.index}: {region.kind.name} cannot have age {region.age}")
        after = region.index + 1


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
    if head >> 6 == 0:
        raise BitstreamError(f"region {index}: kind 0 is not known")
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
