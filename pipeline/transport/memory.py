"""A channel inside one process: for tests with a given loss pattern, and for the demo without servers."""

import asyncio
from collections.abc import Callable, Iterable
from functools import cache
from types import TracebackType
from typing import Self

from pipeline.errors import TransportError
from pipeline.transport import LIVE, Delivery, Message
from pipeline.transport.subscription import Readers, Subscription

Loss = Callable[[int], bool] | Iterable[bool]


class MemoryBroker:
    """Where memory channels meet: hands messages on and holds the retained ones, by full topic."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self._channels: list[MemoryChannel] = []

    def join(self, channel: "MemoryChannel") -> None:
        """Let the channel receive."""
        self._channels.append(channel)

    def leave(self, channel: "MemoryChannel") -> None:
        """Let the channel receive no more."""
        self._channels.remove(channel)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Hand the message to every channel; an empty retained one clears what was held."""
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for channel in list(self._channels):
            channel.receive(topic, payload)


@cache
def process_broker(name: str) -> MemoryBroker:
    """Return the broker of that name, the same one for the life of the process."""
    return MemoryBroker()


class MemoryChannel:
    """Channel over a MemoryBroker.

    `loss` says of the n-th QoS 0 message published here (from 0) whether it is lost: a function of n, or a
    sequence of answers after whose end nothing is lost.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        *,
        root: str = "maskcast",
        will: tuple[str, bytes] | None = None,
        buffer: int = 256,
        loss: Loss = (),
        on_drop: Callable[[], None] | None = None,
    ) -> None:
        self._broker = broker
        self._prefix = f"{root}/"
        self._will = will
        self._is_lost = loss if callable(loss) else _pattern(loss)
        self._readers = Readers(limit=buffer, on_drop=on_drop)
        self._unsent: dict[str, bytes] = {}
        self._published = 0
        self._entered = False
        self._ended = False

    async def __aenter__(self) -> Self:
        self._entered = True
        self._broker.join(self)
        for topic, payload in self._broker.retained.items():
            self.receive(topic, payload)
        for topic, payload in self._unsent.items():
            self._broker.publish(self._prefix + topic, payload, retain=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def connected(self) -> bool:
        """Whether the channel is entered and was not aborted."""
        return self._entered

    @property
    def dropped(self) -> int:
        """How many messages were thrown away because their reader was too slow."""
        return self._readers.dropped

    async def wait_connected(self, timeout_s: float) -> None:
        """Return at once when entered; raises TransportError when not, since waiting will not change that."""
        if not self._entered:
            raise TransportError("the memory channel is closed")

    async def publish(self, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        """Hand the message to every reader; raises TransportError when closed.

        Before entering, a retained message waits and any other raises TransportError.
        """
        if not self._entered:
            if self._ended or not delivery.retain:
                raise TransportError("the memory channel is closed")
            self._unsent[topic] = payload
            return
        if not self._loses(delivery):
            self._broker.publish(self._prefix + topic, payload, retain=delivery.retain)
        await asyncio.sleep(0)  # lets readers in the same loop run, as a network would

    def subscribe(self, *filters: str) -> Subscription:
        """Messages that match, beginning with the retained ones; ends when the channel closes."""
        subscription = self._readers.add(filters)
        if self._entered:
            for topic, payload in self._broker.retained.items():
                if topic.startswith(self._prefix):
                    subscription.offer(Message(topic.removeprefix(self._prefix), payload))
        return subscription

    def abort(self) -> None:
        """Die without closing, as a crashed process does: the will is published."""
        alive = self._entered
        self._end()
        if alive and self._will:
            topic, payload = self._will
            self._broker.publish(self._prefix + topic, payload, retain=True)

    def receive(self, topic: str, payload: bytes) -> None:
        """Take a message from the broker, by its full topic."""
        if topic.startswith(self._prefix):
            self._readers.offer(Message(topic.removeprefix(self._prefix), payload))

    def _loses(self, delivery: Delivery) -> bool:
        if delivery.qos > 0:
            return False
        self._published += 1
        return self._is_lost(self._published - 1)

    def _end(self) -> None:
        if self._entered:
            self._entered = False
            self._broker.leave(self)
        self._ended = True
        self._readers.close()


def _pattern(losses: Iterable[bool]) -> Callable[[int], bool]:
    answers = iter(losses)
    return lambda number: next(answers, False)
