"""The window of a recording: packets that were sent and whose masks have not come, so many at most.

frames -> [room?] -> encoder -> uplink -> gateway, queue, worker -> <camera>/mask
              ^                    ^                                     |
              |                    +-- none for a while: sent again --+  |
              +------------------------------------------------ window <-+

It holds the source back, so no buffer on the way is ever full, and makes good whatever is lost there.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from nodes.reports import Labels, read_report
from nodes.service import until_connected
from nodes.uplink import Encoded
from pipeline import metrics
from pipeline.errors import BitstreamError, TransportError
from pipeline.keys import key_sequence
from pipeline.mask_image import frame_of
from pipeline.mask_order import frames_after
from pipeline.messages import FrameId, Kind, Packet, Region
from pipeline.transport import Channel

_LONGEST_WAIT = 8  # times the first one

log = structlog.get_logger()


class Window:
    """Keeps what one camera sent of a recording until each frame has its mask, or its labels where there are no masks.

    Where no answer comes for `answer_s` all that lack one are sent again, in order, at first alone, then from the KEY
    on that they refer to; the waits double. After `tries` of these `run` raises TransportError. `resent` packets were
    sent again, `resent_keys` of them though their frames had answers, which come once more.
    """

    def __init__(
        self,
        camera: str,
        channel: Channel,
        *,
        masks: bool = True,
        packets: int = 32,
        answer_s: float = 5.0,
        tries: int = 5,
    ) -> None:
        self._camera, self._channel, self._masks = camera, channel, masks
        self._topic = f"{camera}/{'mask' if masks else 'labels'}"
        self._packets, self._answer_s, self._tries = packets, answer_s, tries
        self._unanswered: dict[FrameId, Encoded] = {}  # oldest first
        self._newest: FrameId | None = None
        self._keys: dict[FrameId, Encoded] = {}  # by frame, the packets of keys that those, or the next ones, refer to
        self._key_asked = False
        self._changed, self._progress = asyncio.Event(), asyncio.Event()
        self.answered = self.resent = self.resent_keys = 0

    async def run(self, send: Callable[[Encoded], Awaitable[None]]) -> None:
        """Take answers, and send again what lacks them, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear())
            tasks.create_task(self._send_again(send))

    async def until_free(self) -> None:
        """Wait until one more packet may be sent."""
        while self._span() >= self._packets:
            await self._change()

    async def until_answered(self) -> None:
        """Wait until every packet has its answer."""
        while self._unanswered:
            await self._change()
        log.info("every frame has its mask", camera=self._camera, frames=self.answered, resent=self.resent)

    def add(self, encoded: Encoded) -> None:
        """Keep a packet that is about to be sent for the first time."""
        packet = encoded.packet
        self._newest = packet.id
        self._unanswered[packet.id] = encoded
        self._keys |= {_key_of(packet, region): encoded for region in packet.regions if region.kind is Kind.KEY}
        self._changed.set()

    def answer(self, frame: FrameId) -> None:
        """Take note that the mask of a frame came; once is enough."""
        if self._unanswered.pop(frame, None) is not None:
            self.answered += 1
            self._forget_keys()
            self._changed.set()
            self._progress.set()

    def want_keys(self) -> None:
        """Take note that a worker lacks a KEY: the next time packets are sent again, theirs are too."""
        self._key_asked = True

    def _span(self) -> int:
        """How many frames there are from the oldest one without an answer to the newest, answered or not."""
        oldest = next(iter(self._unanswered), None)
        return 0 if oldest is None or self._newest is None else frames_after(self._newest, oldest) + 1

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _hear(self) -> None:
        async for message in self._channel.subscribe(self._topic):
            try:
                frame = frame_of(message.payload) if self._masks else _frame_of_labels(message.payload)
            except BitstreamError as error:
                metrics.drop("camera", "answer")
                log.debug("answer refused", camera=self._camera, reason=str(error))
            else:
                self.answer(frame)

    async def _send_again(self, send: Callable[[Encoded], Awaitable[None]]) -> None:
        tries = 0
        while True:
            while not self._unanswered:
                await self._change()
            await until_connected(self._channel)
            self._progress.clear()
            try:
                async with asyncio.timeout(self._answer_s * min(2**tries, _LONGEST_WAIT)):
                    await self._progress.wait()
                tries = 0
                continue
            except TimeoutError:
                if not self._channel.connected:
                    continue
            tries += 1
            if tries > self._tries:
                raise TransportError(self._complaint())
            lacking = self._lacking(with_keys=tries > 1 or self._key_asked)
            log.warning("no masks, packets are sent again", camera=self._camera, packets=len(lacking), tries=tries)
            self.resent += len(lacking)
            self.resent_keys += len(lacking) - len(self._unanswered)
            self._key_asked = False
            for encoded in lacking:
                await send(encoded)

    def _lacking(self, *, with_keys: bool) -> list[Encoded]:
        """The packets without an answer, oldest first; `with_keys`: behind those that they refer to."""
        needed = self._referred_to() if with_keys else set()
        keys = [key for id, key in self._keys.items() if id in needed and key.packet.id not in self._unanswered]
        return [*keys, *self._unanswered.values()]

    def _referred_to(self) -> set[FrameId]:
        packets = [encoded.packet for encoded in self._unanswered.values()]
        return {_key_of(packet, region) for packet in packets for region in packet.regions}

    def _forget_keys(self) -> None:
        """Keep the KEYs that packets without an answer refer to, and the newest of each region."""
        needed, regions = self._referred_to(), set[int]()
        for id, key in reversed(list(self._keys.items())):
            if id not in needed and key.keys <= regions:
                del self._keys[id]
            regions |= key.keys

    def _complaint(self) -> str:
        first, count = next(iter(self._unanswered)), len(self._unanswered)
        return (
            f"{self._camera}: {count} frames have no mask although they were sent {self._tries} times more, the first "
            f"is frame {first.sequence}; see that gateway and workers run, with this bundle, and what they say; "
            f"the camera must be allowed to read {self._topic}"
        )


def _key_of(packet: Packet, region: Region) -> FrameId:
    """The frame of the key that a region of the packet is or refers to."""
    return FrameId(packet.id.epoch, key_sequence(packet, region))


def _frame_of_labels(payload: bytes) -> FrameId:
    labels = read_report(Labels, payload)
    return FrameId(labels.epoch, labels.sequence)
