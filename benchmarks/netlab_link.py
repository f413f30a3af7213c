"""The process that is `netlab`'s link: it moves IP packets between two TUN devices, late, few and some never.

host a -> TUN -> queue, drained at a rate -> delay line -> TUN -> host b, and the same back

It runs by itself, with the standard library alone, so that nothing in a test holds up packets. Each line of JSON on
its standard input changes one or both directions, and is answered by a line of counts; at the input's end it ends
what still runs on its hosts, and removes them.
"""

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

HOSTS = ("10.77.0.1", "10.77.0.2")
MTU = 1400
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
_BURST = 64  # packets taken from one device before the other has its turn
_WAITING = 10_000  # packets a host may have sent before the link, on a machine that stalls, takes them
_READ_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Way:
    """One direction of the link.

    Kbit/s with IP headers in (0: no limit), ms one way, share of packets lost on the wire, KiB that wait for it at
    most. Jitter is up to so many ms more or less, each packet by itself, so they overtake one another; without it
    they keep their order. Cut: nothing passes, what is under way is lost.
    """

    rate_kbit_s: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    queue_kib: float = 64.0
    cut: bool = False

    def seconds(self, size_bytes: int) -> float:
        """How long the wire is busy with so many bytes."""
        return size_bytes * 8 / (1000 * self.rate_kbit_s) if self.rate_kbit_s else 0.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What one direction did so far: packets and bytes delivered, packets lost, and refused by a full queue.

    `carried_bytes` went over the wire, what was lost on it too; `waiting_bytes` wait for it now.
    """

    packets: int = 0
    bytes: int = 0
    lost: int = 0
    refused: int = 0
    carried_bytes: int = 0
    waiting_bytes: int = 0


class Direction:
    """One way of the link: a bounded queue that drains at a rate, then a delay line; times are seconds of one clock."""

    def __init__(self, way: Way, rng: random.Random) -> None:
        self.way, self._rng = way, rng
        self._queue: deque[bytes] = deque()  # the first one is on the wire
        self._queued_bytes = 0
        self._sent_s = 0.0  # when the first one will have left
        self._line: list[tuple[float, int, bytes]] = []  # when each arrives, by that and the order
        self._order = 0
        self._packets = self._bytes = self._lost = self._refused = self._carried_bytes = 0

    @property
    def counts(self) -> Counts:
        """What was counted so far."""
        sums = self._packets, self._bytes, self._lost, self._refused
        return Counts(*sums, self._carried_bytes, self._queued_bytes)

    @property
    def next_s(self) -> float | None:
        """When there is something to do again; None: never."""
        times = [self._sent_s] if self._queue else []
        return min(times + [arrival_s for arrival_s, *_ in self._line[:1]], default=None)

    def change(self, way: Way, now_s: float) -> None:
        """Be another way from now on, for what waits and what is on the wire too."""
        self._drain(now_s)
        if self._queue:
            left = way.seconds(1) / self.way.seconds(1) if self.way.rate_kbit_s else 0.0
            self._sent_s = now_s + left * (self._sent_s - now_s)
        self.way = way
        self._drain(now_s)

    def offer(self, packet: bytes, now_s: float) -> None:
        """Take a packet, or not."""
        self._drain(now_s)
        if self.way.cut:
            self._lost += 1
        elif self._queue and self._queued_bytes + len(packet) > 1024 * self.way.queue_kib:
            self._refused += 1
        else:
            if not self._queue:
                self._sent_s = now_s + self.way.seconds(len(packet))
            self._queue.append(packet)
            self._queued_bytes += len(packet)
            self._drain(now_s)

    def due(self, now_s: float) -> list[bytes]:
        """The packets that have arrived by now."""
        self._drain(now_s)
        arrived = []
        while self._line and self._line[0][0] <= now_s:
            packet = heapq.heappop(self._line)[2]
            if self.way.cut:
                self._lost += 1
                continue
            self._packets += 1
            self._bytes += len(packet)
            arrived.append(packet)
        return arrived

    def _drain(self, now_s: float) -> None:
        """Queue -> delay line, as far as the wire has got by now; it loses no time when we are late."""
        while self._queue and self._sent_s <= now_s:
            packet = self._queue.popleft()
            self._queued_bytes -= len(packet)
            self._carried_bytes += len(packet)
            if self._rng.random() < self.way.loss:
                self._lost += 1
            else:
                delay_ms = self.way.delay_ms + self.way.jitter_ms * self._rng.uniform(-1, 1)
                heapq.heappush(self._line, (self._sent_s + max(0.0, delay_ms) / 1000, self._order, packet))
                self._order += 1
            if self._queue:
                self._sent_s += self.way.seconds(len(self._queue[0]))


@contextmanager
def entered(host: str) -> Iterator[None]:
    """Be on a host with this thread: the sockets it opens, and the threads and processes it starts, stay there."""
    home, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{host}", os.O_RDONLY)
    try:
        _enter(there)
        yield
    finally:
        _enter(home)
        os.close(there)
        os.close(home)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")


def ip(*words: str) -> None:
    """Run iproute2's command."""
    subprocess.run(["ip", *words], check=True)


def make_host(name: str, address: str, peer: str) -> int:
    """Make a namespace with one link in it; the descriptor of its TUN device."""
    ip("netns", "add", name)
    with entered(name):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"link0", _IFF_TUN | _IFF_NO_PI))
    ip("-n", name, "link", "set", "lo", "up")
    ip("-n", name, "link", "set", "link0", "addrgenmode", "none")  # no packets but those of programs
    ip("-n", name, "addr", "add", f"{address}/32", "peer", f"{peer}/32", "dev", "link0")
    ip("-n", name, "link", "set", "link0", "mtu", str(MTU), "txqueuelen", str(_WAITING), "up")
    return device


def remove_host(name: str) -> None:
    """Kill what runs on a host, and remove it."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in map(int, found.stdout.split()):
        with suppress(ProcessLookupError):
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def carry(devices: tuple[int, int], ways: tuple[Direction, Direction]) -> None:
    """Carry packets both ways, and obey standard input until it ends."""
    orders = os.fdopen(0, "rb", buffering=0)
    readable: list[int] = []
    while True:
        now_s = time.monotonic()
        for device, way in zip(devices, ways, strict=True):
            if device in readable:
                _take(device, way, now_s)
        for device, way in zip(reversed(devices), ways, strict=True):
            for packet in way.due(now_s):
                with suppress(OSError):  # the host is being removed, or its queue is full
                    os.write(device, packet)
        if 0 in readable:
            line = orders.readline()
            if not line:
                return
            _obey(json.loads(line), ways)
        times = [at_s for way in ways if (at_s := way.next_s) is not None]
        wait_s = max(0.0, min(times) - time.monotonic()) if times else None
        readable, _, _ = select.select([*devices, 0], [], [], wait_s)


def _take(device: int, way: Direction, now_s: float) -> None:
    with suppress(BlockingIOError):
        for _ in range(_BURST):
            way.offer(os.read(device, _READ_BYTES), now_s)


def _obey(order: dict[str, dict[str, Any]], ways: tuple[Direction, Direction]) -> None:
    """Change what is named, `up` or `down`, and tell the counts."""
    for name, way in zip(("up", "down"), ways, strict=True):
        if name in order:
            way.change(replace(way.way, **order[name]), time.monotonic())
    print(json.dumps([asdict(way.counts) for way in ways]), flush=True)


def main(first: str, second: str, seed: str) -> None:
    """Make both hosts, say so, and be their link until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the input's end is what ends us, with all cleaned up
    with suppress(OSError):  # a late link is an imprecise one, but works
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    rng = random.Random(int(seed))
    try:
        devices = make_host(first, *HOSTS), make_host(second, *reversed(HOSTS))
        ways = Direction(Way(), rng), Direction(Way(), rng)
        _obey({}, ways)
        carry(devices, ways)
    finally:
        remove_host(first)
        remove_host(second)


if __name__ == "__main__":
    main(*sys.argv[1:])
