"""Packets <-> chunks of a data channel: what is longer than one message goes in several and is put together again.

Every chunk has a header, so the two ends need no agreement on where a packet begins.
"""

import struct
from collections import deque
from dataclasses import dataclass, field

from pipeline.errors import BitstreamError

CHUNK_BYTES = 16 * 1024  # header in: the most that every browser takes in one message
_HEADER = struct.Struct("!IHH")  # sequence, chunk, chunks
_BODY_BYTES = CHUNK_BYTES - _HEADER.size
_SEQUENCES = 2**32
_REMEMBERED = 64  # packets that are done, so that a chunk which comes again begins none


def split(sequence: int, packet: bytes) -> list[bytes]:
    """Cut a packet into chunks, the n-th with its place; the sequence counts packets modulo 2^32."""
    bodies = [packet[at : at + _BODY_BYTES] for at in range(0, len(packet), _BODY_BYTES)] or [b""]
    return [_HEADER.pack(sequence % _SEQUENCES, place, len(bodies)) + body for place, body in enumerate(bodies)]


@dataclass(slots=True)
class _Parts:
    """A packet of which not all has come."""

    chunks: int
    bodies: dict[int, bytes] = field(default_factory=dict)  # by place


class Assembler:
    """Puts packets together from chunks that come in any order; `packets` at a time, each at most `packet_bytes`.

    For one more the packet that was begun first is given up: late is worse than lost.
    """

    def __init__(self, *, packet_bytes: int, packets: int = 4) -> None:
        self.given_up = 0
        self.newest: int | None = None
        self._packet_bytes, self._packets = packet_bytes, packets
        self._most_chunks = max(-(-packet_bytes // _BODY_BYTES), 1)
        self._begun: dict[int, _Parts] = {}  # by sequence, oldest first
        self._done: deque[int] = deque(maxlen=_REMEMBERED)

    def add(self, chunk: bytes) -> bytes | None:
        """Return the packet that this chunk completes, if any; raises BitstreamError for one that is of no use."""
        sequence, place, chunks = self._header(chunk)
        if sequence in self._done:
            raise BitstreamError(f"chunk {place} of packet {sequence}: the packet is complete, or was given up")
        parts = self._begun.get(sequence) or self._begin(sequence, chunks)
        if chunks != parts.chunks:
            raise BitstreamError(f"chunk {place} of packet {sequence}: {chunks} chunks, {parts.chunks} before")
        if place in parts.bodies:
            raise BitstreamError(f"chunk {place} of packet {sequence}: came before")
        parts.bodies[place] = chunk[_HEADER.size :]
        return self._complete(sequence, parts) if len(parts.bodies) == chunks else None

    def _header(self, chunk: bytes) -> tuple[int, int, int]:
        if not _HEADER.size <= len(chunk) <= CHUNK_BYTES:
            raise BitstreamError(f"chunk: {len(chunk)} bytes, {_HEADER.size} to {CHUNK_BYTES} are right")
        sequence, place, chunks = _HEADER.unpack_from(chunk)
        if not 1 <= chunks <= self._most_chunks:
            raise BitstreamError(f"chunk of packet {sequence}: {chunks} chunks, 1 to {self._most_chunks} are right")
        if place >= chunks:
            raise BitstreamError(f"chunk of packet {sequence}: place {place} of {chunks}")
        return sequence, place, chunks

    def _begin(self, sequence: int, chunks: int) -> _Parts:
        if len(self._begun) >= self._packets:
            oldest = next(iter(self._begun))
            del self._begun[oldest]
            self._done.append(oldest)
            self.given_up += 1
        self._begun[sequence] = parts = _Parts(chunks)
        return parts

    def _complete(self, sequence: int, parts: _Parts) -> bytes:
        del self._begun[sequence]
        self._done.append(sequence)
        packet = b"".join(parts.bodies[place] for place in range(parts.chunks))
        if len(packet) > self._packet_bytes:
            raise BitstreamError(f"packet {sequence}: {len(packet)} bytes, at most {self._packet_bytes}")
        if self.newest is None or (sequence - self.newest) % _SEQUENCES < _SEQUENCES // 2:
            self.newest = sequence
        return packet
