"""The bridge between cameras that are connected over WebRTC and the broker: each hears what it would hear there.

camera -> <camera>/state (with its path), <camera>/preview, bundle/<hash> -> broker
camera <- <camera>/control, mask, labels, as far as it subscribed         <- broker
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from nodes.buffer import Losses
from nodes.reports import State, read_legend, read_report
from pipeline.errors import BitstreamError, TransportError
from pipeline.transport import CONTROL, STATE, Channel, Delivery, Message

if TYPE_CHECKING:
    from pipeline.transport.webrtc_server import WebRtcServer

_DOWN = ("control", "mask", "labels")
_PREVIEW = Delivery(expiry_s=2, content_type="image/jpeg")
# What is retained is kept, here and at the broker, and names are anybody's where there are no tokens. The camera that
# is gone for longest makes room for another, at the broker too. Bundles do not: a worker may have told of the same one.
_CAMERAS, _BUNDLES, _STATE_BYTES = 4096, 64, 16 << 10
_OFFLINE_S = 1.0
_AT_ONCE = 32  # messages; a channel to a broker takes a bounded number

log = structlog.get_logger()


class Bridge:
    """Carries messages between the cameras at `server` and the broker; `changed` is set when one came, went or wants
    something else.

    `manifests`: bundles' manifests are carried too, as cameras without logins may tell them at the broker.
    """

    def __init__(
        self, server: "WebRtcServer", broker: Channel, *, changed: asyncio.Event, losses: Losses, manifests: bool
    ) -> None:
        self._server, self._broker, self._changed = server, broker, changed
        self._losses, self._manifests = losses, manifests
        self._states: dict[str, bytes] = {}  # what each camera said last, the newest at the end
        self._paths: dict[str, str] = {}  # what was said of the paths of those that are online
        self._bundles: set[str] = set()  # whose manifests were told

    async def run(self) -> None:
        """Carry until cancelled; then cameras that are connected here go offline."""
        try:
            async with asyncio.TaskGroup() as tasks:
                # Pictures have a buffer of their own: they are many, and a state must not be dropped for them.
                for filters in (("+/state", "bundle/+"), ("+/preview",)):
                    tasks.create_task(self._carry_up(self._server.subscribe(*filters)))
                await self._follow(tasks)
        finally:
            await self._say_offline()

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Read at the broker what the cameras want, one topic each, for as long as they want it."""
        carried: dict[str, asyncio.Task[None]] = {}
        while True:
            self._changed.clear()
            wanted = self._wanted()
            for topic in sorted(wanted - carried.keys()):
                carried[topic] = tasks.create_task(self._carry_down(self._broker.subscribe(topic)))
            if gone := [carried.pop(topic) for topic in carried.keys() - wanted]:
                await self._stop(gone)
            await self._tell_paths()
            await self._changed.wait()

    def _wanted(self) -> set[str]:
        topics = {f"{session.camera}/{last}" for session in self._server.sessions() for last in _DOWN}
        return {topic for topic in topics if self._server.wants(topic)}

    async def _stop(self, gone: list[asyncio.Task[None]]) -> None:
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        gone.clear()
        self._broker.subscribe()  # to nothing; with it the broker is told what is read no more

    async def _carry_down(self, messages: AsyncIterator[Message]) -> None:
        async for message in messages:
            try:
                await self._server.publish(message.topic, message.payload, CONTROL)
            except TransportError:
                self._losses.add("downlink")

    async def _carry_up(self, messages: AsyncIterator[Message]) -> None:
        async for message in messages:
            first, _, last = message.topic.partition("/")
            try:
                if last == "preview":
                    await self._broker.publish(message.topic, message.payload, _PREVIEW)
                elif last == "state":
                    await self._carry_state(first, message.payload)
                elif self._manifests:
                    await self._carry_manifest(last, message.payload)
            except BitstreamError as error:
                self._losses.add("bundle" if first == "bundle" else "state")
                log.debug("message of a camera refused", topic=message.topic, reason=str(error))
            except TransportError:
                if last == "preview":  # what is retained goes with the next connection
                    self._losses.add("preview")

    async def _carry_state(self, camera: str, payload: bytes) -> None:
        """Publish what a camera says of itself, or its will, with the way that it is connected."""
        if len(payload) > _STATE_BYTES:
            raise BitstreamError(f"state: {len(payload)} bytes, at most {_STATE_BYTES}")
        online = read_report(State, payload).state == "online"
        await self._make_room(camera)
        self._states.pop(camera, None)
        self._states[camera] = payload
        self._paths.pop(camera, None)
        if online:
            pairs = (each.pair for each in self._server.sessions() if each.camera == camera)
            self._paths[camera] = next(pairs, "")
        told = _told_by_gateway(payload, path=self._paths.get(camera) or None)
        await self._broker.publish(f"{camera}/state", told, STATE)

    async def _tell_paths(self) -> None:
        """Complete what was said before it was known how the camera is connected."""
        for session in self._server.sessions():
            if session.pair and self._paths.get(session.camera) == "":
                with suppress(TransportError):  # it is retained
                    await self._carry_state(session.camera, self._states[session.camera])

    async def _say_offline(self) -> None:
        """Publish for the cameras that are online here what they cannot say themselves any more."""
        cameras = [each.camera for each in self._server.sessions() if each.camera in self._paths]
        with suppress(TimeoutError):
            # At once, since the broker's answer to each may take a round trip.
            few = asyncio.Semaphore(_AT_ONCE)
            async with asyncio.timeout(_OFFLINE_S), asyncio.TaskGroup() as tasks:
                for camera in cameras:
                    tasks.create_task(self._say_gone(camera, few))

    async def _say_gone(self, camera: str, few: asyncio.Semaphore) -> None:
        gone = _told_by_gateway(self._states[camera], path=None, state="offline")
        async with few:
            with suppress(TransportError):
                await self._broker.publish(f"{camera}/state", gone, STATE)

    async def _carry_manifest(self, name: str, payload: bytes) -> None:
        read_legend(name, payload)
        if name not in self._bundles and len(self._bundles) >= _BUNDLES:
            raise BitstreamError(f"bundle: {_BUNDLES} others were told of already")
        self._bundles.add(name)
        await self._broker.publish(f"bundle/{name}", payload, STATE)

    async def _make_room(self, camera: str) -> None:
        """Forget the camera that is gone for longest, where this one is one too many; BitstreamError if none can go."""
        if camera in self._states or len(self._states) < _CAMERAS:
            return
        here = {session.camera for session in self._server.sessions()}
        gone = next((each for each in self._states if each not in here), None)
        # While there is no broker what is to be cleared there would be kept for it, name after name.
        if gone is None or not self._broker.connected:
            raise BitstreamError(f"state: {_CAMERAS} other cameras are known")
        del self._states[gone]
        self._paths.pop(gone, None)
        with suppress(TransportError):  # it is retained
            await self._broker.publish(f"{gone}/state", b"", STATE)


def _told_by_gateway(payload: bytes, **changed: str | None) -> bytes:
    """The JSON of a camera's state with what the gateway knows better, so that it is right after a fallback too."""
    return json.dumps({**json.loads(payload), "transport": "webrtc", **changed}).encode()
