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
_MOST_CHUNKS = -(-(1 << 20) // _BODY_BYTES)  # of the longest packet that there is, whatever this end takes
_PASSED_OVER = 256  # so far behind a new packet others are looked for: where more are lost the link is given up


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

    For one more the packet that was begun first is given up: late is worse than lost. `missing` are those of which
    nothing had come when so many newer ones had; `too_long` those that this end does not take.
    """

    def __init__(self, *, packet_bytes: int, packets: int = 4) -> None:
        self.given_up = self.missing = self.too_long = 0
        self.newest: int | None = None
        self._packet_bytes, self._packets = packet_bytes, packets
        self._most_chunks = max(-(-packet_bytes // _BODY_BYTES), 1)
        self._begun: dict[int, _Parts] = {}  # by sequence, oldest first
        self._done: deque[int] = deque(maxlen=_REMEMBERED)
        self._refused: deque[int] = deque(maxlen=_REMEMBERED)
        self._awaited: dict[int, None] = {}  # passed over by a newer one, oldest first

    def add(self, chunk: bytes) -> bytes | None:
        """Return the packet that this chunk completes, if any; raises BitstreamError for one that is of no use.

        A packet that is too long is an error once: the rest of it is passed over.
        """
        sequence, place, chunks = _header(chunk)
        if sequence in self._refused:
            return None
        if sequence in self._done:
            raise BitstreamError(f"chunk {place} of packet {sequence}: the packet is complete, or was given up")
        parts = self._begun.get(sequence) or self._begin(sequence, chunks)
        if chunks != parts.chunks:
            raise BitstreamError(f"chunk {place} of packet {sequence}: {chunks} chunks, {parts.chunks} before")
        if place in parts.bodies:
            raise BitstreamError(f"chunk {place} of packet {sequence}: came before")
        parts.bodies[place] = chunk[_HEADER.size :]
        return self._complete(sequence, parts) if len(parts.bodies) == chunks else None

    def _begin(self, sequence: int, chunks: int) -> _Parts:
        self._note(sequence)
        if chunks > self._most_chunks:
            self.too_long += 1
            self._refused.append(sequence)
            raise BitstreamError(f"packet {sequence}: {chunks} chunks, at most {self._most_chunks} here")
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
            self.too_long += 1
            raise BitstreamError(f"packet {sequence}: {len(packet)} bytes, at most {self._packet_bytes}")
        return packet

    def _note(self, sequence: int) -> None:
        """Take note that something of a packet has come, and so of those before it that have not."""
        self._awaited.pop(sequence, None)
        ahead = sequence if self.newest is None else (sequence - self.newest) % _SEQUENCES
        if self.newest is not None and ahead >= _SEQUENCES // 2:
            return
        self.newest = sequence
        for back in range(min(ahead, _PASSED_OVER) - 1, 0, -1):
            self._awaited[(sequence - back) % _SEQUENCES] = None
        for each in list(self._awaited):
            if (sequence - each) % _SEQUENCES >= self._packets:
                del self._awaited[each]
                self.missing += 1


def _header(chunk: bytes) -> tuple[int, int, int]:
    """Sequence, place and number of chunks; raises BitstreamError for what is no chunk of any packet."""
    if not _HEADER.size <= len(chunk) <= CHUNK_BYTES:
        raise BitstreamError(f"chunk: {len(chunk)} bytes, {_HEADER.size} to {CHUNK_BYTES} are right")
    sequence, place, chunks = _HEADER.unpack_from(chunk)
    if not 1 <= chunks <= _MOST_CHUNKS:
        raise BitstreamError(f"chunk of packet {sequence}: {chunks} chunks, 1 to {_MOST_CHUNKS} are right")
    if place >= chunks:
        raise BitstreamError(f"chunk of packet {sequence}: place {place} of {chunks}")
    return sequence, place, chunks
