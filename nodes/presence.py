"""What a node says of itself on its state topic (docs/wire.md, section 2): that it is there, and with what."""

import json
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Literal

from nodes.control import InForce
from pipeline.errors import TransportError
from pipeline.transport import STATE, Channel
from pipeline.zones import Polygon


@dataclass(frozen=True, slots=True)
class Presence:
    """What a node says of itself on its state topic; `since` is when it started, in ms since 1970."""

    topic: str
    transport: str
    since: int
    bundle: str | None = None
    width: int | None = None  # of the bundle, as the next
    height: int | None = None
    fps: float | None = None
    source_width: int | None = None
    source_height: int | None = None
    source: Literal["waiting", "ok", "lost"] | None = None  # of a camera: whether anything comes from it
    control: InForce | None = None  # of a camera: what holds of all that it can be told
    refused: str | None = None  # why it did not do what it was told last
    zones: Mapping[str, Polygon] | None = None  # of a camera: parts of its picture, by their names

    def payload(self, state: Literal["online", "stopped", "offline"]) -> bytes:
        """The JSON of docs/wire.md, section 2."""
        facts = asdict(self)
        del facts["topic"]
        return json.dumps({"state": state, **facts}).encode()

    def client_id(self, root: str) -> str:
        """Who the node is to the broker: its next session takes over, and ends, one that a dead link left behind."""
        return f"{root}/{self.topic.removesuffix('/state')}".replace("/", ".")

    @property
    def will(self) -> tuple[str, bytes]:
        """What the broker says for the node when it dies."""
        return self.topic, self.payload("offline")


def node_name(given: str = "") -> str:
    """The name of a gateway or worker: as given, else one of its own from host and process."""
    return given or re.sub(r"[^a-z0-9_.-]", "-", f"{socket.gethostname()}-{os.getpid()}".lower())


@asynccontextmanager
async def announced(channel: Channel, presence: Presence) -> AsyncIterator[Callable[[Presence], Awaitable[None]]]:
    """Say `online` now, and `stopped` when the context is left; the channel says it again on each connect.

    Gives a function that says `online` anew, with facts that were not known before.
    """

    async def renew(changed: Presence) -> None:
        nonlocal presence
        presence = changed
        await tell(channel, presence.topic, presence.payload("online"))

    await renew(presence)
    try:
        yield renew
    finally:
        await tell(channel, presence.topic, presence.payload("stopped"))


async def tell(channel: Channel, topic: str, payload: bytes) -> None:
    """Publish a retained message; while the broker is away the channel keeps it for the next connection."""
    with suppress(TransportError):
        await channel.publish(topic, payload, STATE)
