"""Hands updates to browsers, by outboxes in which the newest wins: a slow one never builds a backlog."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from nodes.viewer.state import Slot, Update
from pipeline.metrics import drop

_PICTURES = frozenset({"mask", "preview"})
_OF_A_CAMERA = _PICTURES | {"labels", "stats", "rates", "state"}


class Outbox:
    """What one browser has still to get: one place per slot, in the order in which the slots first waited."""

    def __init__(self) -> None:
        self._waiting: dict[Slot, str | bytes] = {}
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, update: Update) -> None:
        """Put one update in its slot's place; what still waited there is dropped, pictures are counted."""
        if update.slot.kind == "gone":
            for kind in _OF_A_CAMERA:
                self._waiting.pop(Slot(kind, update.slot.name), None)
        if update.slot in self._waiting and update.slot.kind in _PICTURES:
            drop("viewer", "slow browser")
        self._waiting[update.slot] = update.payload
        self._filled.set()

    async def take(self) -> str | bytes:
        """The payload that waited longest; waits for one when there is none."""
        await self._filled.wait()
        payload = self._waiting.pop(next(iter(self._waiting)))
        if not self._waiting:
            self._filled.clear()
        return payload


class Feed:
    """The outboxes of the browsers that look on; at most `limit` of them."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._outboxes: set[Outbox] = set()

    def __len__(self) -> int:
        return len(self._outboxes)

    @property
    def full(self) -> bool:
        """Whether no further browser can be taken."""
        return len(self._outboxes) >= self._limit

    @contextmanager
    def join(self, first: Iterable[Update]) -> Iterator[Outbox]:
        """An outbox that holds `first` and gets every update from now on, until the context is left."""
        outbox = Outbox()
        for update in first:
            outbox.put(update)
        self._outboxes.add(outbox)
        try:
            yield outbox
        finally:
            self._outboxes.discard(outbox)

    def send(self, updates: Iterable[Update]) -> None:
        """Put these updates in every outbox; never waits."""
        for update in updates:
            for outbox in self._outboxes:
                outbox.put(update)
