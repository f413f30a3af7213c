"""Packets whose keys may be elsewhere: such a key is fetched from the queue's server, or asked of its camera.

packets -> keys here? --yes-------------------------------------> [lane: Decoder] -> masks
               +--no--> queue's server --found--> [lane: Decoder] --^
                              +--not there--> KeyRequest on <camera>/control; a WARP is lost

A key is what a packet says it is: what was fetched is decoded only if epoch, sequence, bundle and grid are those that
are named, and goes the same way into the same buffer as one that came by itself. The buffer has the camera's name; a
recording that stepped back has another, with / and a number. Of a recording nothing is decoded without its keys.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import structlog

from nodes.service import Lane
from pipeline import metrics
from pipeline.bitstream import MAX_REGIONS, unpack
from pipeline.codec import Decoder
from pipeline.errors import BitstreamError, MissingKey, PipelineError, TransportError
from pipeline.keys import Stream, key_sequence, stream_of
from pipeline.messages import Decoded, KeyRequest, Kind, Packet, Region
from pipeline.transport import CONTROL, Channel
from pipeline.work_queue import WorkQueue

_FETCH_S = 0.25  # a key that takes longer is missing now: masks of other cameras wait for it
_SEND_S = 0.25
_ASK_AGAIN_S = 0.5
_ANY = -1  # instead of a sequence

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class KeyName:
    """Which key a region refers to, and under which name it is held."""

    holder: str
    stream: Stream
    region: int
    sequence: int

    @property
    def camera(self) -> str:
        """Whose key it is."""
        return self.holder.partition("/")[0]

    def is_of(self, packet: Packet) -> bool:
        """Whether the packet holds the key."""
        keys = {(one.index, key_sequence(packet, one)) for one in packet.regions if one.kind is Kind.KEY}
        return stream_of(packet) == self.stream and (self.region, self.sequence) in keys


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """A key as a packet with that one region, and the name under which it is to be held."""

    holder: str
    packet: Packet


class KeyRequests:
    """Asks cameras for keys: for each that is missing once, then again after a while.

    A region that refers to another key shows that its camera sent one since, so that one is asked for at once:
    where answers get lost too, no time is.
    """

    def __init__(self, channel: Channel, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._channel, self._clock = channel, clock
        self._asked: dict[KeyName, float] = {}

    async def ask(self, keys: Iterable[KeyName]) -> None:
        """Ask for these keys, unless that was done just now."""
        now_s = self._clock()
        self._asked = {key: at_s for key, at_s in self._asked.items() if now_s - at_s < _ASK_AGAIN_S}
        regions: dict[str, set[int]] = {}
        for key in keys:
            if key not in self._asked:
                self._asked[key] = now_s
                regions.setdefault(key.camera, set()).add(key.region)
        try:
            async with asyncio.timeout(_SEND_S):
                for camera, indexes in regions.items():
                    await self._send(KeyRequest(camera, tuple(sorted(indexes))))
        except (TransportError, TimeoutError) as error:
            log.debug("keys not asked for", cameras=sorted(regions), reason=str(error))  # they will be missed again

    async def _send(self, request: KeyRequest) -> None:
        await self._channel.publish(f"{request.camera}/control", pack_key_request(request), CONTROL)
        metrics.KEY_REQUESTS.inc(len(request.regions))


def pack_key_request(request: KeyRequest) -> bytes:
    """The request as a message on its camera's control topic; `read_control` reads it."""
    return json.dumps({"key": request.regions}).encode()


class FetchingDecoder:
    """A decoder, on its lane, that finds keys wherever they are."""

    def __init__(self, decoder: Decoder, lane: Lane, *, queue: WorkQueue, requests: KeyRequests) -> None:
        self._decoder, self._lane = decoder, lane
        self._queue, self._requests = queue, requests

    async def decode(self, packets: Sequence[Packet], cameras: Sequence[str]) -> list[Decoded | PipelineError]:
        """One result per packet, in their order, as from Decoder.decode; never longer than a moment for keys.

        `cameras` says under which names their keys are held.
        """
        referring = sum(region.kind is not Kind.KEY for packet in packets for region in packet.regions)
        absent = await self._find_keys(packets, cameras, referring) if referring else []
        results = await self._lane.run(self._decoder.decode, packets, cameras)
        results = [_whole(*each) for each in zip(packets, results, strict=True)]
        _count(packets, results)
        lost = [at for at, result in enumerate(results) if isinstance(result, MissingKey)]
        if absent or lost:
            # Without the KEYs, of which some could not be decoded.
            left = [at for at, packet in enumerate(packets) if not _is_key(packet)]
            keys = await self._missing([packets[at] for at in left], [cameras[at] for at in left], to_ask=True)
            await self._requests.ask([*keys, *(key for at in lost for key in _not_in(cameras[at], packets[at]))])
        return results

    async def _find_keys(self, packets: Sequence[Packet], cameras: Sequence[str], referring: int) -> list[KeyName]:
        """Decode the keys that are not here, and count where those of so many regions were; returns those not found."""
        missing = await self._missing(packets, cameras)
        fetched = await self._fetch(set(missing))
        for start in range(0, len(fetched), len(packets)):  # no batch larger than those it is warm for
            part = fetched[start : start + len(packets)]
            await self._lane.run(self._decoder.decode, [each.packet for each in part], [each.holder for each in part])
        absent = await self._missing(packets, cameras) if fetched else missing
        found = len(set(missing).difference(absent))  # a key that serves several regions is fetched once
        metrics.KEY_LOOKUPS.labels("local").inc(referring - found - len(absent))
        metrics.KEY_LOOKUPS.labels("fetched").inc(found)
        metrics.KEY_LOOKUPS.labels("missing").inc(len(absent))
        return absent

    async def _missing(
        self, packets: Sequence[Packet], cameras: Sequence[str], *, to_ask: bool = False
    ) -> list[KeyName]:
        """The keys that are not here; `to_ask`: but for those that a newer one, which is here, stands in for."""
        regions = await self._lane.run(self._decoder.missing, packets, cameras)
        return [
            _name_of(camera, packet, region)
            for camera, packet, found in zip(cameras, packets, regions, strict=True)
            for region in found
            if not (to_ask and _is_shown_without(packet, region, found))
        ]

    async def _fetch(self, keys: Collection[KeyName]) -> list[Fetched]:
        """Those of the keys that the queue's server has; none that is asked for twice."""
        found: list[Fetched] = []
        try:
            async with asyncio.timeout(_FETCH_S):
                for holder in sorted({key.holder for key in keys}):
                    wanted = [key for key in keys if key.holder == holder]
                    kept = await self._queue.fetch_keys(wanted[0].camera, {key.region for key in wanted})
                    packets = [packet for each in kept.values() for packet in _opened(each)]
                    found += [Fetched(holder, packet) for packet in packets if any(key.is_of(packet) for key in wanted)]
        except (TransportError, TimeoutError) as error:
            metrics.RETRIES.labels("queue").inc()
            log.debug("keys not fetched", reason=str(error))
        return found


def _whole(packet: Packet, result: Decoded | PipelineError) -> Decoded | PipelineError:
    """The result; of a recording only where no key was missing: its camera sends the packet again, with its keys."""
    if packet.recorded and isinstance(result, Decoded) and result.missing:
        regions = ", ".join(map(str, result.missing))
        return MissingKey(f"keys of regions {regions}, sequence {packet.id.sequence}, are not here")
    return result


def _is_shown_without(packet: Packet, region: Region, missing: Sequence[Region]) -> bool:
    """Whether a live frame is shown by the KEY after it: that before it, which is missing, none refers to again."""
    backs = [each for each in packet.regions if each.kind is Kind.BACK]
    return region.kind is Kind.WARP and bool(backs) and not packet.recorded and not set(backs) & set(missing)


def _is_key(packet: Packet) -> bool:
    return all(region.kind is Kind.KEY for region in packet.regions)


def _name_of(holder: str, packet: Packet, region: Region) -> KeyName:
    return KeyName(holder, stream_of(packet), region.index, key_sequence(packet, region))


def _not_in(holder: str, packet: Packet) -> list[KeyName]:
    """Any key of each region that a packet leaves out: a worker that never showed it has no mask that could stand."""
    indexes = set(range(min(packet.rows * packet.columns, MAX_REGIONS)))
    indexes -= {region.index for region in packet.regions}
    return [KeyName(holder, stream_of(packet), index, _ANY) for index in sorted(indexes)]


def _opened(stored: Iterable[bytes]) -> Iterable[Packet]:
    """What the server holds as packets; what is none, a stranger's, is passed over."""
    for data in stored:
        try:
            yield unpack(data)
        except BitstreamError as error:
            log.debug("stored key refused", reason=str(error))


def _count(packets: Sequence[Packet], results: Sequence[Decoded | PipelineError]) -> None:
    kinds = Counter(
        region.kind
        for packet, result in zip(packets, results, strict=True)
        if isinstance(result, Decoded)
        for region in packet.regions
    )
    for kind, count in kinds.items():
        metrics.DECODED_REGIONS.labels(kind.name.lower()).inc(count)
