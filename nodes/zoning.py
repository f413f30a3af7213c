"""What a worker knows of the zones of cameras: cameras name them in their states."""

from collections.abc import Mapping

from nodes.reports import State, read_report
from pipeline.errors import BitstreamError
from pipeline.metrics import drop
from pipeline.transport import Channel
from pipeline.zones import Polygon

_CAMERAS = 1024  # with zones; a stranger may make up names without end
_NONE: Mapping[str, Polygon] = {}


class CameraZones:
    """The zones of each camera, by their names, as its state said them last."""

    def __init__(self, *, limit: int = _CAMERAS) -> None:
        self._limit = limit
        self._zones: dict[str, Mapping[str, Polygon]] = {}  # of cameras that have any, the newest last

    async def listen(self, channel: Channel) -> None:
        """Take what cameras say of themselves until cancelled."""
        async for message in channel.subscribe("+/state"):
            self.hear(message.topic.partition("/")[0], message.payload)

    def hear(self, camera: str, payload: bytes) -> None:
        """Take a camera's state; one that is none is counted, and changes nothing."""
        try:
            zones = read_report(State, payload).zones if payload else None  # an empty one is how MQTT forgets it
        except BitstreamError:
            drop("worker", "state")
            return
        self._zones.pop(camera, None)
        if zones:
            self._zones[camera] = zones
        if len(self._zones) > self._limit:
            del self._zones[next(iter(self._zones))]

    def of(self, camera: str) -> Mapping[str, Polygon]:
        """The zones of that camera, which may be none."""
        return self._zones.get(camera, _NONE)
