"""What is seen from the far end of a link: masks as a viewer gets them, packets as they come into the queue.

broker -> masks, states      Redis's MONITOR -> packets      Each with the time when it came, on the machine's clock.
"""

import ast
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.links_site import MQTT_PORT, REDIS_PORT, wait_until
from benchmarks.netlab import Host
from pipeline.bitstream import unpack
from pipeline.errors import ConfigError
from pipeline.mask_image import unpack_mask
from pipeline.messages import Mask, Packet

_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_READ_BYTES = 1 << 16
_ANSWER_S = 10.0


@dataclass(frozen=True, eq=False)
class SeenMask:
    """A mask's bytes, and when they came: ms since 1970."""

    data: bytes
    at_ms: float

    @cached_property
    def mask(self) -> Mask:
        """What the bytes are; unpacked when first asked, since that takes a while."""
        return unpack_mask(self.data)[0]

    @property
    def latency_ms(self) -> float:
        """From capture to arrival."""
        return self.at_ms - self.mask.captured_ms


@dataclass(frozen=True, eq=False)
class SeenPacket:
    """A packet's bytes, and when the gateway put them into the queue: ms since 1970."""

    data: bytes
    at_ms: float

    @cached_property
    def packet(self) -> Packet:
        """What the bytes are."""
        return unpack(self.data)


@dataclass(slots=True)
class View:
    """What was seen of one camera."""

    masks: list[SeenMask] = field(default_factory=list)
    packets: list[SeenPacket] = field(default_factory=list)


class Watch:
    """Sees all cameras from host b, on threads of its own, as a context manager."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._views: dict[str, View] = {}
        self._lock = threading.Lock()
        self.states: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._hear
        self._client.on_subscribe = lambda *_: ready.set()
        with self._host.entered():  # the threads that are started here stay on that host
            self._client.connect("127.0.0.1", MQTT_PORT)
            self._client.subscribe([("maskcast/+/mask", 0), ("maskcast/+/state", 0), ("maskcast/+/+/state", 0)])
            self._client.loop_start()
            self._redis = socket.create_connection(("127.0.0.1", REDIS_PORT), timeout=_ANSWER_S)
        self._redis.settimeout(None)
        self._redis.sendall(b"MONITOR\r\n")
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        if not ready.wait(_ANSWER_S):
            raise ConfigError("the broker did not answer")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        with suppress(OSError):
            self._redis.shutdown(socket.SHUT_RDWR)
        self._reading.join(_ANSWER_S)
        self._redis.close()

    def view(self, camera: str) -> View:
        """What was seen of a camera so far, and what will be."""
        with self._lock:
            return self._views.setdefault(camera, View())

    def forget(self, camera: str) -> View:
        """What was seen of a camera; from now on it is counted anew."""
        with self._lock:
            return self._views.pop(camera, View())

    def wait_masks(self, camera: str, count: int, *, limit_s: float, why: Callable[[], str]) -> None:
        """Wait until so many masks more have come."""
        view = self.view(camera)
        enough = len(view.masks) + count
        wait_until(lambda: len(view.masks) >= enough, why, limit_s=limit_s)

    def wait_state(self, node: str, state: str, *, limit_s: float, why: Callable[[], str]) -> None:
        """Wait until a node such as `cam-1` or `worker/w` says this of itself."""
        topic = f"maskcast/{node}/state"
        wait_until(lambda: self.states.get(topic, {}).get("state") == state, why, limit_s=limit_s)

    def _hear(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        at_ms = time.time() * 1000
        _, camera, *rest = message.topic.split("/")
        if rest == ["mask"]:
            self.view(camera).masks.append(SeenMask(bytes(message.payload), at_ms))
        else:
            self.states[message.topic] = json.loads(message.payload)

    def _read(self) -> None:
        with suppress(OSError), self._redis.makefile("rb", _READ_BYTES) as lines:
            for line in lines:
                if b' "XADD" "maskcast:{' in line:
                    at_ms, camera, packet = read_xadd(line)
                    self.view(camera).packets.append(SeenPacket(packet, at_ms))


def read_xadd(line: bytes) -> tuple[float, str, bytes]:
    """When (ms since 1970) a packet of which camera was put into the queue, from a line of Redis's MONITOR."""
    words = [_unquoted(found) for found in _QUOTED.findall(line.partition(b"] ")[2])]
    fields = words[words.index(b"camera") :]
    return 1000 * float(line[1:].split(b" ", 1)[0]), fields[1].decode(), fields[3]


def _unquoted(text: bytes) -> bytes:
    """Redis writes bytes as Python does."""
    found = ast.literal_eval(f'b"{text.decode("ascii")}"')
    assert isinstance(found, bytes)
    return found


def within(masks: Sequence[SeenMask], since_ms: float, until_ms: float) -> list[SeenMask]:
    """The masks that came from one time to another."""
    return [one for one in masks if since_ms <= one.at_ms < until_ms]
