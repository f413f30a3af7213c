"""`maskcast watch`: masks, labels and stats of the cameras in a terminal, or masks saved as PNG.

Message -> Watch.take -> Seen, per camera -> a table that is drawn again and again, or a line per report
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import structlog
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleDimensions
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nodes.reports import Labels, Legends, State, Stats, read_report, told
from nodes.service import Lane, now_ms
from pipeline.config import ViewerSettings
from pipeline.errors import BitstreamError, ConfigError
from pipeline.files import write_whole
from pipeline.mask_image import unpack_mask
from pipeline.mask_order import frames_after
from pipeline.messages import FrameId, Mask, check_camera_name
from pipeline.metrics import drop
from pipeline.transport import Channel, Message, open_channel

_CONNECT_TIMEOUT_S = 10.0
_REFRESH_S = 0.25
_SILENT_S = 5.0  # without a word of any camera, before it is said
_CAMERA_LIMIT = 64
_SHARES_SHOWN = 5
_PICTURE_COLUMNS = 36
_PICTURE_ROWS = 200  # of a picture that is taller a terminal would show nothing that says anything
_HEADING_ROWS = 5
_FACTS_COLUMNS = 84
_KEYS_COLUMNS = 6
_LABELS_COLUMNS = 26
_STALE_MS = 5000
_FRAMES_REMEMBERED = 4096  # of each camera, to tell masks that come again
_STYLES = {"online": "green", "stopped": "yellow", "offline": "bold red", "unknown": "dim"}

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Seen:
    """The newest of one camera; its state is unknown until it says one."""

    name: str
    masks: int = 0
    mask: Mask | None = None
    frames: dict[FrameId, None] = field(default_factory=dict)  # whose masks came, the last of them
    labels: Labels | None = None
    stats: Stats = field(default_factory=Stats)
    state: str = "unknown"
    refused: str | None = None

    @property
    def bundle(self) -> str | None:
        """The beginning of the hash of the bundle that its masks or labels are of, if there were any."""
        if self.mask is not None:
            return self.mask.bundle.hex()
        return None if self.labels is None else self.labels.bundle

    def take(self, mask: Mask) -> bool:
        """Note a mask, the newest one or one that was missing; false where that of its frame came before."""
        if mask.id in self.frames:
            return False
        self.frames[mask.id] = None
        if len(self.frames) > _FRAMES_REMEMBERED:
            del self.frames[next(iter(self.frames))]
        self.masks += 1
        if self.mask is None or self.mask.id.epoch != mask.id.epoch or frames_after(mask.id, self.mask.id) > 0:
            self.mask = mask
        return True


class Watch:
    """What a person at a terminal watches: `camera` or, when that is None, all of them."""

    def __init__(self, *, lane: Lane, camera: str | None = None, save: Path | None = None) -> None:
        self.cameras: dict[str, Seen] = {}
        self.legends = Legends()
        self.masks = 0
        self._lane, self._camera, self._save = lane, camera, save

    @property
    def filters(self) -> tuple[str, ...]:
        """What must be subscribed to."""
        name = self._camera or "+"
        return (f"{name}/mask", f"{name}/labels", f"{name}/stats", f"{name}/state", "bundle/+")

    @property
    def silence(self) -> str:
        """What to say while no camera has been heard of."""
        return f"nothing has been heard of {self._camera or 'any camera'} yet; waiting"

    async def take(self, message: Message) -> str | None:
        """Note one message; gives a line where there is something to say of it. What is wrong is counted."""
        first, _, last = message.topic.partition("/")
        try:
            if last == "mask":
                await self._take_mask(first, message.payload)
            elif last == "labels":
                self._seen(first).labels = read_report(Labels, message.payload)
            elif last == "stats":
                seen = self._seen(first)
                seen.stats = read_report(Stats, message.payload)
                return stats_line(seen)
            elif last == "state":
                return self._take_state(first, message.payload)
            else:
                self.legends.take(last, message.payload)
        except BitstreamError:
            drop("watch", last if last in ("mask", "labels", "stats", "state") else "bundle")
        return None

    async def _take_mask(self, name: str, payload: bytes) -> None:
        mask, camera = await self._lane.run(unpack_mask, payload)
        if camera != name:
            raise BitstreamError(f"mask: camera {camera!r} on the topic of {name!r}")
        seen = self._seen(name)
        if not seen.take(mask):
            drop("watch", "repeated")
            return
        self.masks += 1
        if self._save is not None:
            file = self._save / f"{name}-{mask.id.epoch}-{mask.id.sequence:06}.png"
            await self._lane.run(write_whole, file, payload)

    def _take_state(self, name: str, payload: bytes) -> str | None:
        if not payload:  # an empty retained message is how MQTT forgets one
            self.cameras.pop(name, None)
            return None
        state = read_report(State, payload)
        seen = self._seen(name)
        refused = state.refused is not None and state.refused != seen.refused
        changed, seen.state, seen.refused = seen.state != told(state), told(state), state.refused
        return f"{name}  {seen.state}{f'  refused: {state.refused}' if refused else ''}" if changed or refused else None

    def colours(self, seen: Seen) -> dict[str, str]:
        """Class name -> colour as a terminal takes it, in the order of the class indexes; empty if not known."""
        begin = seen.bundle
        if not begin:
            return {}
        legend = next((legend for bundle, legend in self.legends.items() if bundle.startswith(begin)), None)
        looks = legend.classes if legend else ()
        return {look.name: "rgb({},{},{})".format(*look.colour) for look in looks}

    def _seen(self, name: str) -> Seen:
        if name in self.cameras:
            return self.cameras[name]
        if not is_camera_name(name) or len(self.cameras) >= _CAMERA_LIMIT:
            raise BitstreamError(f"camera {name!r}: not a name, or {_CAMERA_LIMIT} cameras are watched already")
        self.cameras[name] = Seen(name)
        return self.cameras[name]


def is_camera_name(name: str) -> bool:
    """Whether a topic's first part can be a camera."""
    try:
        check_camera_name(name)
    except ConfigError:
        return False
    return True


async def main(
    settings: ViewerSettings,
    *,
    camera: str | None = None,
    save: Path | None = None,
    count: int | None = None,
    console: Console | None = None,
) -> None:
    """Watch until cancelled or until `count` masks have come; raises ConfigError and TransportError."""
    if camera is not None:
        check_camera_name(camera)
    if save is not None:
        make_folder(save)
    channel = open_channel(settings.mqtt_url, root=settings.mqtt.root, on_drop=partial(drop, "watch", "behind"))
    async with Lane("watch") as lane, channel:
        await channel.wait_connected(_CONNECT_TIMEOUT_S)
        watch = Watch(lane=lane, camera=camera, save=save)
        await follow(channel, watch, count=count, console=console or Console())


async def follow(
    channel: Channel, watch: Watch, *, count: int | None, console: Console, clock_ms: Callable[[], int] = now_ms
) -> None:
    """Show what the channel brings: a live table on a terminal, lines elsewhere."""
    if not console.is_terminal:
        with suppress(SystemExit):  # so the console says that nobody reads the lines any more, such as after `head`
            await _take_lines(channel, watch, count=count, console=console)
        return

    def draw() -> Table:
        return table(watch, now_ms=clock_ms(), size=console.size)

    with Live(draw(), console=console, auto_refresh=False) as live:
        async with asyncio.TaskGroup() as tasks:
            drawing = tasks.create_task(_redraw(live, draw))
            await _take_all(channel, watch, count=count, say=None)
            drawing.cancel()
        live.update(draw(), refresh=True)


async def _take_lines(channel: Channel, watch: Watch, *, count: int | None, console: Console) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_warn_of_silence(watch))
        await _take_all(channel, watch, count=count, say=partial(console.print, markup=False, soft_wrap=True))
        waiting.cancel()


async def _warn_of_silence(watch: Watch) -> None:
    await asyncio.sleep(_SILENT_S)
    if not watch.cameras:
        log.warning(watch.silence)


async def _take_all(channel: Channel, watch: Watch, *, count: int | None, say: Callable[[str], None] | None) -> None:
    async for message in channel.subscribe(*watch.filters):
        line = await watch.take(message)
        if line and say:
            say(line)
        if count is not None and watch.masks >= count:
            break
    if say and watch.masks:
        say(f"{watch.masks} {'mask' if watch.masks == 1 else 'masks'} seen")


async def _redraw(live: Live, draw: Callable[[], Table]) -> None:
    while True:
        live.update(draw(), refresh=True)
        await asyncio.sleep(_REFRESH_S)


def table(watch: Watch, *, now_ms: int, size: ConsoleDimensions) -> Table:
    """All cameras, one row each; with labels and small pictures where the terminal is large enough for them."""
    shown = Table(box=SIMPLE_HEAD, header_style="dim", padding=(0, 1, 0, 0), leading=1)
    shown.add_column("camera", overflow="fold")
    shown.add_column("state", no_wrap=True)
    for heading in ("fps", "kbit/s", "p50/p95", "drops", "age"):
        shown.add_column(heading, justify="right", no_wrap=True)
    cameras = [watch.cameras[name] for name in sorted(watch.cameras)]
    room = size.width - _FACTS_COLUMNS
    keyed = room >= _KEYS_COLUMNS and any(seen.stats.key_share is not None for seen in cameras)
    if keyed:
        shown.add_column("keys", justify="right", no_wrap=True)
        room -= _KEYS_COLUMNS
    shown.add_column("share", no_wrap=True)
    crowded = room < _LABELS_COLUMNS and any(largest(seen.stats.share) for seen in cameras)
    labelled = any(seen.labels for seen in cameras) and not crowded
    if labelled:
        shown.add_column("in the picture", max_width=_LABELS_COLUMNS - 2)
        room -= _LABELS_COLUMNS
    pictures = [picture(seen.mask, watch.colours(seen)) for seen in cameras]
    high = sum(1 + len(each.split()) for each in pictures) + _HEADING_ROWS <= size.height
    fits = high and room >= _PICTURE_COLUMNS
    if fits:
        shown.add_column("mask", no_wrap=True)
    for seen, small in zip(cameras, pictures, strict=True):
        keys = [Text(portion(seen.stats.key_share))] if keyed else []
        labels = [Text(", ".join(present(seen)))] if labelled else []
        facts = [*row(seen, now_ms=now_ms), *keys, shares(seen, watch.colours(seen))]
        shown.add_row(*facts, *labels, *([small] if fits else []))
    if not cameras:
        shown.caption = watch.silence
    return shown


def row(seen: Seen, *, now_ms: int) -> list[Text]:
    """The cells of one camera that every table has."""
    stats = seen.stats
    newest = seen.mask or seen.labels
    age_ms = None if newest is None else max(0, now_ms - newest.captured_ms)
    age = "-" if age_ms is None else f"{age_ms / 1000:.1f}s"
    latency = f"{number(stats.latency_p50_ms)}/{number(stats.latency_p95_ms)} ms"
    drops = sum(stats.drops.values())
    return [
        Text(seen.name, style="bold"),
        Text(seen.state.replace(", ", "\n"), style=_STYLES.get(seen.state, "yellow")),
        Text(number(stats.fps, 1)),
        Text(number(stats.kbit_s, 1)),
        Text(latency),
        Text(str(drops), style="yellow" if drops else ""),
        Text(age, style="bold red" if age_ms is not None and age_ms > _STALE_MS else ""),
    ]


def shares(seen: Seen, colours: Mapping[str, str]) -> Text:
    """The classes that cover most of the picture, in their colours, a line each."""
    return Text("\n").join(
        Text.assemble(("\u25a0 ", colours.get(name, "")), f"{share:3.0%} {name}")
        for name, share in largest(seen.stats.share)
    )


def stats_line(seen: Seen) -> str:
    """One report as a line for logs and pipes."""
    stats = seen.stats
    parts = "  ".join(f"{name} {share:.0%}" for name, share in largest(stats.share))
    keys = "" if stats.key_share is None else f"keys {portion(stats.key_share)}  "
    labels = ", ".join(f"{name} {score:.0%}" for name, score in present(seen).items())
    return (
        f"{seen.name}  {seen.state}  {number(stats.fps, 1)} fps  {number(stats.kbit_s, 1)} kbit/s  "
        f"{keys}p50 {number(stats.latency_p50_ms)} ms  p95 {number(stats.latency_p95_ms)} ms  "
        f"drops {sum(stats.drops.values())}  {parts}{'  in the picture: ' * bool(labels)}{labels}"
    ).rstrip()


def picture(mask: Mask | None, colours: Mapping[str, str]) -> Text:
    """The mask in characters that are two pixels high each; empty without a mask or its colours."""
    styles = list(colours.values())
    if mask is None or mask.classes.max() >= len(styles):
        return Text()
    height, width = mask.classes.shape
    rows = max(1, round(_PICTURE_COLUMNS * height / width / 2)) * 2
    if rows > _PICTURE_ROWS:
        return Text()
    down = np.arange(rows) * height // rows
    across = np.arange(_PICTURE_COLUMNS) * width // _PICTURE_COLUMNS
    small = mask.classes[np.ix_(down, across)]  # (rows, columns)
    return Text("\n").join(
        Text.assemble(*(("\u2580", f"{styles[upper]} on {styles[lower]}") for upper, lower in zip(*pair, strict=True)))
        for pair in zip(small[::2].tolist(), small[1::2].tolist(), strict=True)
    )


def largest(share: Mapping[str, float]) -> list[tuple[str, float]]:
    """The classes that cover most of the picture, the largest first."""
    seen = [(name, part) for name, part in share.items() if part >= 0.005]
    return sorted(seen, key=lambda each: -each[1])[:_SHARES_SHOWN]


def present(seen: Seen) -> dict[str, float]:
    """The classes that are said to be in the picture and their scores, the surest first."""
    labels = seen.labels.present() if seen.labels is not None else []
    return {label.name: label.score for label in labels}


def number(value: float | None, digits: int = 0) -> str:
    """The number, or a dash where it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def portion(share: float | None) -> str:
    """A share in percent, or a dash where it is not known."""
    return "-" if share is None else f"{share:.0%}"


def make_folder(folder: Path) -> None:
    """Raises ConfigError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot save masks there ({error.strerror}); name another folder") from error
