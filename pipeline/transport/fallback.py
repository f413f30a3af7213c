"""A channel over two: the first while it can be had, the second while it cannot."""

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Self

import structlog

from pipeline.errors import ConfigError, TransportError
from pipeline.transport import LIVE, Channel, Delivery, Message
from pipeline.transport.reconnecting import Reconnecting
from pipeline.transport.subscription import Readers, Subscription

AFTER_S = 10.0  # without the first channel until the second is used
BACK_S = 5.0  # that the first channel holds until it is used again
AGAIN_S = 30.0
_GAP_S = 0.2  # without connection between the two, so that whoever sends notices that something may be lost
_POLL_S = 0.1

log = structlog.get_logger(__name__)


class FallbackChannel:
    """Channel that uses `first`, and one that `open_second` makes while the first had no connection for `after_s`.

    The first goes on reconnecting meanwhile; once it has held for `back_s` it is used again, and the second is closed.
    Retained messages go to both. Once the second was used they are sent again with each change and every `again_s`,
    over the channel in use: what the other's far side says of its end, as with a will, may come after ours.

    Entering raises ConfigError for either channel; later a second that cannot be entered is tried again in `again_s`.
    """

    def __init__(
        self,
        first: Channel,
        open_second: Callable[[], Channel],
        *,
        buffer: int = 256,
        on_drop: Callable[[], None] | None = None,
        after_s: float = AFTER_S,
        back_s: float = BACK_S,
        again_s: float = AGAIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first, self._open_second = first, open_second
        self._next = open_second()  # now: settings that are wrong are to be known at the start
        self._after_s, self._back_s, self._again_s = after_s, back_s, again_s
        self._clock = clock
        self._readers = Readers(limit=buffer, on_drop=on_drop)
        self._wanted: list[weakref.ref[Subscription]] = []
        self._retained: dict[str, tuple[bytes, Delivery]] = {}
        self._second: Channel | None = None
        self._active: Channel | None = first
        self._dropped = 0  # by channels that are closed
        self._reported = ""  # why the second could not be entered
        self._reading = False  # what is wanted: from entering until leaving
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        if isinstance(self._next, Reconnecting):
            await self._next.check()  # now, and not only when it is needed
        await self._first.__aenter__()
        await self._group.__aenter__()
        self._reading = True
        for wanted in self._wanted:
            self._read(self._first, wanted)
        self._task = self._group.create_task(self._choose(), name="fallback")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        self._reading = False
        self._readers.close()
        try:
            await self._first.__aexit__(None, None, None)
        finally:
            # The body's own error goes up as it is, not inside a group.
            await self._group.__aexit__(None, None, None)

    @property
    def connected(self) -> bool:
        """Whether messages can leave right now, over either channel."""
        return self._active is not None and self._active.connected

    @property
    def dropped(self) -> int:
        """How many messages were thrown away because their reader was too slow."""
        second = 0 if self._second is None else self._second.dropped
        return self._readers.dropped + self._first.dropped + second + self._dropped

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait for a connection of either channel; raises TransportError when time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._until(lambda: self.connected)
        except TimeoutError as error:
            raise TransportError(f"neither of two channels was connected in {timeout_s:g} s") from error

    async def publish(self, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        """Send one message over the channel in use; raises TransportError when it cannot leave now.

        A retained one goes to both channels, which keep it for their connections.
        """
        if delivery.retain:
            self._retained[topic] = (payload, delivery)
            await self._publish_to_both(topic, payload, delivery)
        elif self._active is None:
            raise TransportError("the uplink is changing from one channel to the other")
        else:
            await self._active.publish(topic, payload, delivery)

    def subscribe(self, *filters: str) -> Subscription:
        """Messages that match, from both channels; ends when this one closes."""
        subscription = self._readers.add(filters)
        wanted = weakref.ref(subscription)
        self._wanted = [each for each in self._wanted if each() is not None] + [wanted]
        for channel in (self._first, self._second):
            if channel is not None and self._reading:
                self._read(channel, wanted)
        return subscription

    def _read(self, channel: Channel, wanted: weakref.ref[Subscription]) -> None:
        """Begin to hand on what a channel brings."""
        if (subscription := wanted()) is not None:
            self._group.create_task(_hand_on(channel.subscribe(*subscription.filters), wanted))

    async def _publish_to_both(self, topic: str, payload: bytes, delivery: Delivery) -> None:
        failure: TransportError | None = None
        for channel in (self._first, self._second):
            try:
                if channel is not None:
                    await channel.publish(topic, payload, delivery)
            except TransportError as error:
                failure = error if channel is self._active else failure
        if failure is not None:
            raise failure

    async def _choose(self) -> None:
        """Use the second channel whenever the first cannot be had for long."""
        await self._until_steady(lambda: not self._first.connected, self._after_s)
        while True:
            async with AsyncExitStack() as closing:
                second = await self._entered(closing)
                await self._serve(second)
            log.info("the gateway is there again")
            self._dropped += second.dropped
            self._second, self._next = None, self._open_second()
            await self._use(self._first, lambda: not self._first.connected, self._after_s)

    async def _entered(self, closing: AsyncExitStack) -> Channel:
        """Enter the second channel: now, or later where it cannot be and the first is still not there."""
        while True:
            try:
                second = await closing.enter_async_context(self._next)
            except (ConfigError, TransportError) as error:
                self._report(str(error))
            else:
                log.warning("no connection to the gateway, falling back to the broker", after_s=self._after_s)
                self._reported = ""
                return second
            self._next = self._open_second()
            await self._until_steady(lambda: not self._first.connected, max(self._again_s, self._after_s))

    def _report(self, reason: str) -> None:
        """Say why the second channel is not there, once for each new reason."""
        if reason != self._reported:
            log.warning("no connection to the gateway, and none to the broker can be tried", reason=reason)
        self._reported = reason

    async def _serve(self, second: Channel) -> None:
        """Use the second channel until the first can be had."""
        self._second = second
        for wanted in self._wanted:
            self._read(second, wanted)
        await self._use(second, lambda: self._first.connected, self._back_s)
        self._active = None
        await asyncio.sleep(_GAP_S)

    async def _use(self, channel: Channel, over: Callable[[], bool], for_s: float) -> None:
        """Use a channel until `over` has held for so long."""
        async with asyncio.TaskGroup() as tasks:
            saying = tasks.create_task(self._say_again(channel))
            await asyncio.sleep(0)  # that we are there is said before anything else leaves
            self._active = channel
            await self._until_steady(over, for_s)
            saying.cancel()

    async def _say_again(self, channel: Channel) -> None:
        while True:
            for topic, (payload, delivery) in list(self._retained.items()):
                with suppress(TransportError):  # the next time comes
                    await channel.publish(topic, payload, delivery)
            await asyncio.sleep(self._again_s)

    async def _until_steady(self, holds: Callable[[], bool], for_s: float) -> None:
        """Wait until the condition has held for so long."""
        since_s = self._clock()
        while self._clock() - since_s < for_s:
            await asyncio.sleep(_POLL_S)
            if not holds():
                since_s = self._clock()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110 - a channel has no signal for the loss of its connection
            await asyncio.sleep(_POLL_S)


async def _hand_on(messages: AsyncIterator[Message], wanted: weakref.ref[Subscription]) -> None:
    """Give what a channel brings to a subscription, until one of them has ended."""
    async for message in messages:
        subscription = wanted()
        if subscription is None or subscription.closed:
            return
        subscription.offer(message)
