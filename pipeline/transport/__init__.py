"""Channels carry whole byte messages by topic; what is in them is not their concern.

A topic is the part below the root, such as `cam-1/latent`; a filter may use MQTT's `+` and `#`.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import urlsplit

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.transport.webrtc_address import WebRtcOptions


@dataclass(frozen=True, slots=True)
class Message:
    """One message that arrived: its topic below the root, and its bytes."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a message is to travel; the defaults are those of live data (newest wins, loss allowed)."""

    qos: int = 0
    retain: bool = False
    expiry_s: int | None = None
    content_type: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


LIVE = Delivery()
STATE = Delivery(qos=1, retain=True)
CONTROL = Delivery(qos=1)


class Channel(Protocol):
    """An async context manager: entering connects (and goes on reconnecting), leaving closes in order."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def connected(self) -> bool:
        """Whether messages can leave right now."""
        ...

    @property
    def dropped(self) -> int:
        """How many messages arrived and were thrown away because their reader was too slow."""
        ...

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait for the first or next connection; raises TransportError when the time is over."""
        ...

    async def publish(self, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        """Send one message; raises TransportError when there is no connection (the message is then not sent).

        The newest retained message of each topic is kept and sent again on each connect, so one that is
        published while there is no connection is not an error: it goes out with the next.
        """
        ...

    def subscribe(self, *filters: str) -> AsyncIterator[Message]:
        """Messages that match, from now on; ends when the channel closes.

        Bounded: when the reader is too slow the oldest is dropped and counted.
        """
        ...


def open_channel(
    url: str,
    *,
    root: str = "maskcast",
    will: tuple[str, bytes] | None = None,
    client_id: str | None = None,
    buffer: int = 256,
    on_drop: Callable[[], None] | None = None,
    camera: str | None = None,
    webrtc: "WebRtcOptions | None" = None,
) -> Channel:
    """Return the channel for an `mqtt[s]://`, `webrtc+http[s]://` or `memory://` address; raises ConfigError.

    It is to be entered. The will is a retained message that others get when this channel dies without closing.
    Channels of one `memory://` name meet in this process. The buffer is in messages, per subscription. WebRTC is for
    cameras only: `camera` is the name of the one that it is for.
    """
    from pipeline.transport.memory import MemoryChannel, process_broker
    from pipeline.transport.mqtt import MqttChannel

    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        broker = process_broker(urlsplit(f"//{rest}").netloc)
        return MemoryChannel(broker, root=root, will=will, buffer=buffer, on_drop=on_drop)
    if scheme in ("mqtt", "mqtts"):
        return MqttChannel(url, root=root, will=will, client_id=client_id, buffer=buffer, on_drop=on_drop)
    if scheme in ("webrtc+http", "webrtc+https"):
        return _webrtc_channel(url, camera=camera, will=will, options=webrtc, buffer=buffer, on_drop=on_drop)
    raise ConfigError(
        f"channel address of kind {scheme[:20]!r}: write mqtt://host:1883, mqtts://host:8883, "
        "webrtc+http://host:8090 or memory://"
    )


def _webrtc_channel(
    url: str,
    *,
    camera: str | None,
    will: tuple[str, bytes] | None,
    options: "WebRtcOptions | None",
    buffer: int,
    on_drop: Callable[[], None] | None,
) -> Channel:
    from pipeline.transport.webrtc import WebRtcChannel
    from pipeline.transport.webrtc_address import WebRtcOptions

    if camera is None:
        raise ConfigError("only a camera can speak WebRTC: give this node an mqtt:// address")
    return WebRtcChannel(
        url, camera=camera, will=will, options=options or WebRtcOptions(), buffer=buffer, on_drop=on_drop
    )
