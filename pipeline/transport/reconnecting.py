"""What the channels over a network share: one task that holds a connection, or waits to try again."""

import asyncio
import random
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from pipeline.errors import TransportError
from pipeline.transport.address import ServerAddress
from pipeline.transport.subscription import Readers

Address = TypeVar("Address", bound=ServerAddress)

STEADY_S = 10.0  # a connection that held this long was a good one: back-off begins anew


@dataclass(frozen=True, slots=True)
class Retry:
    """Seconds between attempts: they double from the first to the ceiling; another time where we are not wanted."""

    first_s: float = 0.1
    ceiling_s: float = 5.0
    refused_s: float = 15.0

    def full_s(self, attempt: int) -> float:
        """The longest wait before an attempt, of which there were so many in a row."""
        return min(self.ceiling_s, self.first_s * 2.0 ** min(attempt, 16))


class Reconnecting(ABC, Generic[Address]):
    """Base of a channel to `far`, such as "the broker"; entering does not wait for a connection."""

    def __init__(
        self,
        address: Address,
        far: str,
        *,
        buffer: int,
        on_drop: Callable[[], None] | None,
        retry: Retry,
        rng: random.Random | None,
        clock: Callable[[], float],
    ) -> None:
        self._address, self._far = address, far
        self._retry = retry
        self._rng, self._clock = rng or random.Random(), clock
        self._readers = Readers(limit=buffer, on_drop=on_drop)
        self._tls: ssl.SSLContext | None = None
        self._ready = asyncio.Event()
        self._reported = ""
        self._closed = False
        self._group = asyncio.TaskGroup()

    async def check(self) -> None:
        """Raise ConfigError where entering would: for certificates that cannot be read. Connects to nothing."""
        await asyncio.to_thread(self._address.tls_context)

    async def __aenter__(self) -> Self:
        self._tls = await asyncio.to_thread(self._address.tls_context)
        await self._group.__aenter__()
        self._task = self._group.create_task(self._run(), name=f"channel to {self._address}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._readers.close()
        try:
            await self._leave()
        finally:
            self._task.cancel()
            # The body's own error goes up as it is, not inside a group.
            await self._group.__aexit__(None, None, None)

    @property
    def dropped(self) -> int:
        """How many messages were thrown away because their reader was too slow."""
        return self._readers.dropped

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait for the connection; raises TransportError, with the last known reason, when time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError as error:
            reason = self._reported or "no answer"
            raise TransportError(
                f"no connection to {self._far} at {self._address} in {timeout_s:g} s: {reason}"
            ) from error

    @abstractmethod
    async def _run(self) -> None:
        """Connect, and reconnect, until cancelled."""

    async def _leave(self) -> None:
        """Tell the far side, if there is something to tell; the connection is up still."""
