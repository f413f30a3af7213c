"""What the viewer knows of each camera, gateway and worker, the newest of it, and the messages that tell browsers.

Message -> Wall.take -> Update(slot, payload) -> one Outbox per browser
"""

import json
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from nodes.reports import LEGEND_LIMIT, Labels, Legend, Legends, State, Stats, read_report
from nodes.service import now_ms
from nodes.stats import Order
from nodes.viewer.pictures import MaskPicture, PreviewPicture, read_mask, read_preview
from pipeline.errors import BitstreamError, ConfigError
from pipeline.messages import FrameId, check_camera_name
from pipeline.metrics import drop
from pipeline.transport import Message

FILTERS = ("+/mask", "+/labels", "+/stats", "+/state", "+/preview", "bundle/+")
NODE_FILTERS = ("gateway/+/state", "worker/+/state")
_NODES = 256  # of a kind that are known at most
_RATES, _RATE_EVERY_MS = 128, 500  # data rates kept per camera: more than the minute that the page shows
_BINARY_HEAD = struct.Struct("!I")  # bytes of the JSON header that follows


@dataclass(frozen=True, slots=True)
class Slot:
    """What an update replaces: a newer one for the same slot makes the older one useless."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Update:
    """One message for every browser: text is JSON, bytes are u32 header length, JSON header, picture."""

    slot: Slot
    payload: str | bytes


@dataclass(frozen=True, slots=True)
class Rate:
    """What a camera sent, in kbit/s, and when its statistics said so."""

    at_ms: int
    kbit_s: float


@dataclass(slots=True, eq=False)
class CameraView:
    """The newest of everything of one camera, and its data rates of the last minute.

    `since_ms` is when its state began, if that is known, `counted_ms` when its statistics came. Masks and labels come
    on topics of their own, and each of these has its order.
    """

    name: str
    mask_order: Order
    label_order: Order
    mask: MaskPicture | None = None
    labels: Labels | None = None
    preview: PreviewPicture | None = None
    stats: Stats | None = None
    counted_ms: int | None = None
    rates: deque[Rate] = field(default_factory=lambda: deque(maxlen=_RATES))
    state: State | None = None
    since_ms: int | None = None
    doubtful: bool = False  # whether its state is from before the broker was away, and was not said again


class Wall:
    """The cameras that were heard of, the longest silent first: when there are too many, that one goes."""

    def __init__(
        self,
        *,
        camera_limit: int = 256,
        legend_limit: int = LEGEND_LIMIT,
        now_ms: Callable[[], int] = now_ms,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cameras: dict[str, CameraView] = {}
        self.nodes: dict[str, dict[str, State]] = {"gateway": {}, "worker": {}}  # by kind and name, those online
        self.legends = Legends(legend_limit)
        self._camera_limit = camera_limit
        self._now_ms, self._clock = now_ms, clock
        self._takers: Mapping[str, Callable[[str, bytes], list[Update]]] = {
            "mask": self._take_mask,
            "labels": self._take_labels,
            "preview": self._take_preview,
            "stats": self._take_stats,
            "state": self._take_state,
        }

    def take(self, message: Message) -> list[Update]:
        """Store one message, return what browsers must be told; what is not right is dropped and counted."""
        first, _, last = message.topic.partition("/")
        if first in self.nodes and last.endswith("/state"):
            return self._take_node(self.nodes[first], last.removesuffix("/state"), message.payload)
        take = self._takers.get(last)
        try:
            if take is None:
                return self._take_legend(last, message.payload)
            updates = take(check_camera_name(first), message.payload)
        except (BitstreamError, ConfigError):
            drop("viewer", last if take else "bundle")
            return []
        return self._make_room() + updates

    def lose_touch(self) -> list[Update]:
        """The broker is away; returns what browsers must be told.

        Nobody knows then which gateways and workers are online, and each camera's state is to be said again.
        """
        for camera in self.cameras.values():
            camera.doubtful = camera.state is not None
        if not any(self.nodes.values()):
            return []
        for known in self.nodes.values():
            known.clear()
        return [nodes_update(self.nodes)]

    def forget_doubtful(self) -> list[Update]:
        """What the broker has not said again it does not know any more; returns what browsers must be told."""
        silent = [camera for camera in self.cameras.values() if camera.doubtful]
        for camera in silent:
            camera.state, camera.since_ms, camera.doubtful = None, None, False
        return [state_update(camera) for camera in silent]

    def snapshot(self) -> list[Update]:
        """Everything a browser that just came must be told."""
        updates = [nodes_update(self.nodes), *(legend_update(legend) for legend in self.legends.values())]
        for camera in sorted(self.cameras.values(), key=lambda camera: camera.name):
            updates += [state_update(camera), stats_update(camera)]
            if camera.rates:
                updates.append(rates_update(camera))
            if camera.preview is not None:
                updates.append(preview_update(camera.name, camera.preview))
            if camera.labels is not None:
                updates.append(labels_update(camera.name, camera.labels))
            if camera.mask is not None:
                updates.append(mask_update(camera.mask))
        return updates

    def _take_mask(self, name: str, payload: bytes) -> list[Update]:
        mask = read_mask(payload)
        if mask.camera != name:
            raise BitstreamError(f"mask: camera {mask.camera!r} on the topic of {name!r}")
        camera = self._heard(name)
        if not camera.mask_order.admit(FrameId(mask.epoch, mask.sequence)):
            drop("viewer", "late")
            return []
        camera.mask = mask
        return [mask_update(mask)]

    def _take_labels(self, name: str, payload: bytes) -> list[Update]:
        labels = read_report(Labels, payload)
        camera = self._heard(name)
        if not camera.label_order.admit(FrameId(labels.epoch, labels.sequence)):
            drop("viewer", "late")
            return []
        camera.labels = labels
        return [labels_update(name, labels)]

    def _take_preview(self, name: str, payload: bytes) -> list[Update]:
        preview = read_preview(payload)
        self._heard(name).preview = preview
        return [preview_update(name, preview)]

    def _take_stats(self, name: str, payload: bytes) -> list[Update]:
        stats = read_report(Stats, payload)
        camera = self._heard(name)
        camera.stats = stats
        camera.counted_ms = self._now_ms()
        if stats.kbit_s is not None:
            _keep_rate(camera.rates, Rate(camera.counted_ms, stats.kbit_s))
        return [stats_update(camera)]

    def _take_state(self, name: str, payload: bytes) -> list[Update]:
        if not payload:  # an empty retained message is how MQTT forgets one
            return [gone_update(name)] if self.cameras.pop(name, None) else []
        state = read_report(State, payload)
        camera = self._heard(name)
        if state.state == "online":
            camera.since_ms = state.since
        elif camera.state is None or camera.state.state != state.state:
            camera.since_ms = self._now_ms() if camera.state else None
        camera.state, camera.doubtful = state, False
        return [state_update(camera)]

    def _take_node(self, known: dict[str, State], name: str, payload: bytes) -> list[Update]:
        """What a gateway or worker says of itself; one that is gone is forgotten."""
        before = set(known)
        known.pop(name, None)
        try:
            state = read_report(State, payload) if payload else None
        except BitstreamError:
            drop("viewer", "state")
            state = None
        if state is not None and state.state == "online" and len(known) < _NODES:
            known[name] = state
        return [] if known.keys() == before else [nodes_update(self.nodes)]

    def _take_legend(self, bundle: str, payload: bytes) -> list[Update]:
        legend = self.legends.take(bundle, payload)
        return [] if legend is None else [legend_update(legend)]

    def _heard(self, name: str) -> CameraView:
        """The view of this camera, now the one that was heard of last."""
        camera = self.cameras.pop(name, None)
        if camera is None:
            camera = CameraView(name, Order(clock=self._clock), Order(clock=self._clock))
        self.cameras[name] = camera
        return camera

    def _make_room(self) -> list[Update]:
        """Forget the camera that was silent longest when there are too many."""
        if len(self.cameras) <= self._camera_limit:
            return []
        silent = next(iter(self.cameras))
        del self.cameras[silent]
        drop("viewer", "camera")
        return [gone_update(silent)]


def _keep_rate(rates: deque[Rate], rate: Rate) -> None:
    """Add the newest; of two that are close together the second stands for both."""
    if len(rates) > 1 and abs(rate.at_ms - rates[-2].at_ms) < 2 * _RATE_EVERY_MS:
        rates.pop()
    rates.append(rate)


def mask_update(mask: MaskPicture) -> Update:
    """The PNG as it came, behind what a browser needs to place it."""
    header = {
        "type": "mask",
        "camera": mask.camera,
        "epoch": mask.epoch,
        "sequence": mask.sequence,
        "captured_ms": mask.captured_ms,
        "bundle": mask.bundle,
        "regions": mask.regions,
    }
    return Update(Slot("mask", mask.camera), _binary(header, mask.png))


def labels_update(camera: str, labels: Labels) -> Update:
    return _text("labels", camera, {"camera": camera, "labels": _plain(labels)})


def preview_update(camera: str, preview: PreviewPicture) -> Update:
    header: dict[str, object] = {"type": "preview", "camera": camera}
    if preview.frame is not None:
        header |= {"epoch": preview.frame.epoch, "sequence": preview.frame.sequence}
    return Update(Slot("preview", camera), _binary(header, preview.jpeg))


def stats_update(camera: CameraView) -> Update:
    facts = {"camera": camera.name, "stats": _plain(camera.stats), "at_ms": camera.counted_ms}
    return _text("stats", camera.name, facts)


def rates_update(camera: CameraView) -> Update:
    """What a browser that just came draws before it has seen a minute itself."""
    rates = [[rate.at_ms, rate.kbit_s] for rate in camera.rates]
    return _text("rates", camera.name, {"camera": camera.name, "rates": rates})


def state_update(camera: CameraView) -> Update:
    facts = {"camera": camera.name, "state": _plain(camera.state), "since_ms": camera.since_ms}
    return _text("state", camera.name, facts)


def legend_update(legend: Legend) -> Update:
    return _text("bundle", legend.hash, {"bundle": _plain(legend)})


def gone_update(camera: str) -> Update:
    """The camera was forgotten; in an outbox this takes the place of all that waits of it."""
    return _text("gone", camera, {"camera": camera})


def nodes_update(nodes: Mapping[str, Mapping[str, State]]) -> Update:
    """Which gateways and workers are known to be online."""
    return _text("nodes", "", {kind: sorted(known) for kind, known in nodes.items()})


def viewer_update(*, now_ms: int, connected: bool) -> Update:
    """The viewer's own clock, by which ages are told, and whether it hears the broker."""
    return _text("viewer", "", {"now_ms": now_ms, "connected": connected})


def _text(kind: str, name: str, facts: Mapping[str, object]) -> Update:
    return Update(Slot(kind, name), json.dumps({"type": kind, **facts}))


def _binary(header: Mapping[str, object], picture: bytes) -> bytes:
    head = json.dumps(header, separators=(",", ":")).encode()
    return _BINARY_HEAD.pack(len(head)) + head + picture


def _plain(model: BaseModel | None) -> dict[str, object] | None:
    return model.model_dump() if model is not None else None
