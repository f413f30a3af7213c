"""What a channel gives its readers: a bounded buffer of the messages that match their filters."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self
from weakref import WeakSet

from pipeline.transport import Message


def matches(wanted: str, topic: str) -> bool:
    """Whether the filter means the topic; `+` is one level, `#` the rest and the level above it."""
    filters, levels = wanted.split("/"), topic.split("/")
    for at, level in enumerate(filters):
        if level == "#":
            return True
        if at >= len(levels) or level not in ("+", levels[at]):
            return False
    return len(filters) == len(levels)


class Subscription:
    """An async iterator over matching messages; when its buffer is full the oldest is dropped and counted."""

    def __init__(self, filters: tuple[str, ...], *, limit: int, on_drop: Callable[[], None]) -> None:
        self.filters = filters
        self.dropped = 0
        self._limit = limit
        self._on_drop = on_drop
        self._messages: deque[Message] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    def offer(self, message: Message) -> None:
        """Buffer the message if it matches."""
        if self._closed or not any(matches(wanted, message.topic) for wanted in self.filters):
            return
        if len(self._messages) >= self._limit:
            self._messages.popleft()
            self.dropped += 1
            self._on_drop()
        self._messages.append(message)
        self._changed.set()

    def close(self) -> None:
        """Take no more; the reader still gets what is buffered, then its loop ends."""
        self._closed = True
        self._changed.set()

    @property
    def closed(self) -> bool:
        """Whether it takes no more messages."""
        return self._closed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        while not self._messages:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._messages.popleft()


class Readers:
    """The subscriptions of one channel; one that its reader forgot is forgotten here too."""

    def __init__(self, *, limit: int, on_drop: Callable[[], None] | None) -> None:
        self.dropped = 0
        self._limit = limit
        self._on_drop = on_drop
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._closed = False

    def add(self, filters: tuple[str, ...]) -> Subscription:
        """Return a new subscription; one that ends at once when the readers are closed."""
        subscription = Subscription(filters, limit=self._limit, on_drop=self._count_drop)
        self._subscriptions.add(subscription)
        if self._closed:
            subscription.close()
        return subscription

    def offer(self, message: Message) -> None:
        """Give the message to each subscription that it matches."""
        for subscription in self._subscriptions:
            subscription.offer(message)

    def filters(self) -> set[str]:
        """Return what is being read now."""
        return {wanted for each in self._subscriptions if not each.closed for wanted in each.filters}

    def close(self) -> None:
        """End all subscriptions."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()

    def _count_drop(self) -> None:
        self.dropped += 1
        if self._on_drop:
            self._on_drop()
