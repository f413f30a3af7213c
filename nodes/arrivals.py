"""What arrived of each camera that wants to know it, and the receipts that tell it.

packet -> Arrivals.note -> due at once, or 50 ms after the last receipt -> Receipts.run -> <camera>/receipt
"""

import asyncio
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

from nodes.service import now_ms
from pipeline.errors import TransportError
from pipeline.mask_order import frames_after
from pipeline.messages import FrameId
from pipeline.receipts import MAX_HELD_MS, TOTALS, Receipt, pack_receipt
from pipeline.transport import Channel, Delivery

EVERY_S = 0.05
FORGET_S = 60.0
_CAMERAS = 4096  # names are anybody's where the broker asks for no login
_WINDOW = 1024  # sequences back to which it is known whether a packet came before
_EPOCH_OVER_S = 10.0  # for so long packets of the last epoch may still be under way
_RECEIPT = Delivery(expiry_s=1, content_type="application/octet-stream")


@dataclass(slots=True, eq=False)
class Account:
    """What arrived of one camera's epoch: bit i of `seen` stands for the packet i before the newest."""

    newest: FrameId
    heard_s: float
    arrived_s: float = 0.0
    arrived_ms: int = 0
    packets: int = 0
    size_bytes: int = 0
    seen: int = 0
    told_s: float = float("-inf")
    waiting: bool = False  # for its receipt
    last_epoch: int | None = None
    epoch_since_s: float = float("-inf")

    def note(self, frame: FrameId, size_bytes: int, now_s: float) -> bool:
        """Count a packet, unless it came before; whether it is the newest."""
        self.heard_s = now_s
        if frame.epoch != self.newest.epoch:
            if frame.epoch == self.last_epoch and now_s - self.epoch_since_s < _EPOCH_OVER_S:
                return False
            self._begin(frame, now_s)
        ahead = frames_after(frame, self.newest)
        if ahead <= -_WINDOW:
            self._begin(frame, now_s)  # the camera drew the same epoch again
            ahead = 0
        if ahead > 0:
            self.seen = self.seen << ahead & (1 << _WINDOW) - 1 if ahead < _WINDOW else 0
            self.newest = frame
        bit = 1 << max(0, -ahead)
        if self.seen & bit:
            return False
        self.seen |= bit
        self.packets, self.size_bytes = (self.packets + 1) % TOTALS, (self.size_bytes + size_bytes) % TOTALS
        return bit == 1

    def receipt(self, now_s: float) -> Receipt:
        """What there is to tell now."""
        held_ms = round(1000 * (now_s - self.arrived_s))
        return Receipt(self.newest, self.packets, self.size_bytes, self.arrived_ms, min(MAX_HELD_MS, max(0, held_ms)))

    def _begin(self, frame: FrameId, now_s: float) -> None:
        self.last_epoch = self.newest.epoch if self.newest.epoch != frame.epoch else self.last_epoch
        self.newest, self.epoch_since_s = frame, now_s
        self.seen = self.packets = self.size_bytes = 0


class Arrivals:
    """The accounts of the cameras, and whose receipt is due when: each at most once in EVERY_S.

    A camera that is silent for FORGET_S is forgotten, and the one silent longest where there are too many.
    """

    def __init__(self, *, cameras: int = _CAMERAS) -> None:
        self._limit = cameras
        self._accounts: dict[str, Account] = {}  # the one heard of last at the end
        self._due: list[tuple[float, str]] = []  # a heap; each camera that waits once

    def __len__(self) -> int:
        return len(self._accounts)

    def note(self, camera: str, frame: FrameId, *, size_bytes: int, now_s: float, now_ms: int) -> None:
        """Take note of a packet that arrived now; its camera gets a receipt for it."""
        account = self._accounts.pop(camera, None) or Account(frame, now_s)
        self._accounts[camera] = account
        if account.note(frame, size_bytes, now_s):
            account.arrived_s, account.arrived_ms = now_s, now_ms
        if not account.waiting:
            account.waiting = True
            heapq.heappush(self._due, (max(now_s, account.told_s + EVERY_S), camera))
        self._forget(now_s)

    @property
    def next_s(self) -> float | None:
        """When the next receipt is due, by the clock of `note`."""
        return self._due[0][0] if self._due else None

    def take(self, now_s: float) -> tuple[str, Receipt] | None:
        """The camera whose receipt is due, and that receipt."""
        while self._due and self._due[0][0] <= now_s:
            camera = heapq.heappop(self._due)[1]
            account = self._accounts.get(camera)
            if account is not None and account.waiting:
                account.waiting, account.told_s = False, now_s
                return camera, account.receipt(now_s)
        return None

    def _forget(self, now_s: float) -> None:
        while len(self._accounts) > self._limit or now_s - next(iter(self._accounts.values())).heard_s > FORGET_S:
            del self._accounts[next(iter(self._accounts))]


class Receipts:
    """Answers the packets that came over one channel."""

    def __init__(
        self,
        channel: Channel,
        *,
        on_loss: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._channel, self._on_loss = channel, on_loss
        self._clock, self._wall_ms = clock, wall_ms
        self._arrivals = Arrivals()
        self._noted = asyncio.Event()

    def note(self, camera: str, frame: FrameId, *, size_bytes: int) -> None:
        """Take note of a packet that arrived now and wants a receipt."""
        now_s, wall_ms = self._clock(), self._wall_ms()
        self._arrivals.note(camera, frame, size_bytes=size_bytes, now_s=now_s, now_ms=wall_ms)
        self._noted.set()

    async def run(self) -> None:
        """Send receipts as they become due, until cancelled."""
        while True:
            self._noted.clear()
            while (due := self._arrivals.take(self._clock())) is not None:
                await self._send(*due)
            next_s = self._arrivals.next_s
            wait_s = None if next_s is None else max(0.0, next_s - self._clock())
            try:
                async with asyncio.timeout(wait_s):
                    await self._noted.wait()
            except TimeoutError:
                continue

    async def _send(self, camera: str, receipt: Receipt) -> None:
        try:
            await self._channel.publish(f"{camera}/receipt", pack_receipt(receipt), _RECEIPT)
        except TransportError:
            self._on_loss()
