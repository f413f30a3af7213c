"""Receipt <-> bytes: what a gateway tells a camera of the packets that arrived, so that it can fit its link.

    receipt   epoch u16 | newest sequence u32 | packets u32 | bytes u32 | arrived_ms u64 | held_ms u16

Numbers are big endian, 24 bytes in all. Every receipt stands for itself: it holds totals, so that one that is lost
costs nothing but the news. There is no checksum, since what carries it has one.
"""

import struct
from dataclasses import dataclass

from pipeline.errors import BitstreamError
from pipeline.messages import FrameId

RECEIPT_BYTES = 24
TOTALS = 1 << 32  # packets and bytes are counted modulo this
MAX_HELD_MS = (1 << 16) - 1

_RECEIPT = struct.Struct("!HIIIQH")
_ARRIVED_BITS = 48


@dataclass(frozen=True, slots=True)
class Receipt:
    """What arrived of one epoch of a camera.

    `newest` is the packet with the largest sequence; `packets` and `size_bytes` are how many arrived and what they
    hold, modulo 2**32, those that came twice counted once. `arrived_ms` is when the newest did, by the gateway's wall
    clock, `held_ms` how long ago that was when the receipt left.
    """

    newest: FrameId
    packets: int
    size_bytes: int
    arrived_ms: int
    held_ms: int


def pack_receipt(receipt: Receipt) -> bytes:
    """Raises BitstreamError where a number does not fit, so that whatever is packed can be unpacked."""
    for name, number, bits in (
        ("epoch", receipt.newest.epoch, 16),
        ("sequence", receipt.newest.sequence, 32),
        ("packets", receipt.packets, 32),
        ("bytes", receipt.size_bytes, 32),
        ("arrived_ms", receipt.arrived_ms, _ARRIVED_BITS),
        ("held_ms", receipt.held_ms, 16),
    ):
        if number < 0 or number >> bits:
            raise BitstreamError(f"receipt: {name} {number} does not fit into {bits} bits")
    return _RECEIPT.pack(
        receipt.newest.epoch, receipt.newest.sequence, receipt.packets, receipt.size_bytes, receipt.arrived_ms,
        receipt.held_ms,
    )  # fmt: skip


def unpack_receipt(data: bytes) -> Receipt:
    """Raises BitstreamError, naming the field, where the bytes are not exactly one valid receipt."""
    if len(data) != _RECEIPT.size:
        raise BitstreamError(f"receipt: {len(data)} bytes, not {_RECEIPT.size}")
    epoch, sequence, packets, size_bytes, arrived_ms, held_ms = _RECEIPT.unpack(data)
    if arrived_ms >> _ARRIVED_BITS:
        raise BitstreamError(f"receipt: arrived_ms {arrived_ms} does not fit into {_ARRIVED_BITS} bits")
    return Receipt(FrameId(epoch, sequence), packets, size_bytes, arrived_ms, held_ms)
