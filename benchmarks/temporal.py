"""What WARPs save and cost: every frame a KEY, fixed key intervals, thresholds and prices by the predicted agreement.

    python benchmarks/temporal.py --data CAMVID [--split val] [--bundle B] [--level Q] [--key-level Q ...]
        [--lookahead N ...] [--json FILE]
    python benchmarks/temporal.py --clip FILE [--frames N] ...

Whole frames. With a lookahead frames wait, at most so many, for the KEY after them and refer to that too. Bits are
those of the packets, all overhead in; their share is of what a KEY in every frame takes at the level that all is held
against. KEYs may be of a lower one: that too saves bits, alone or together with WARPs; a price chooses the level
itself. The loss is in mIoU where there are labels, else in the share of pixels whose class is that of the fresh mask;
both in percent. Times are from frame to bytes and from bytes to class map: means over all frames, and medians by kind
where none waits; policies take turns frame by frame, so that a busy machine slows all of them alike.
"""

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.targets import TARGETS, least_at
from pipeline.accuracy import VOID, confusion, mean_iou
from pipeline.bidirectional import BidirectionalEncoder
from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import Decoder, Encoder, check_quality, open_decoder, open_encoder
from pipeline.datasets import camvid, classes_at
from pipeline.deciding import GRAPH, Decider, open_decider
from pipeline.errors import ConfigError, PipelineError
from pipeline.key_policies import EVERY_FRAME, KeyPolicy, at_interval, at_price, at_threshold
from pipeline.keys import KeyBuffers
from pipeline.messages import Frame, FrameId, Kind, Packet
from pipeline.region_decoder import HeldKey
from pipeline.sources import fit, open_source
from pipeline.stream_encoder import StreamEncoder
from pipeline.video_encoder import VideoEncoder

INTERVALS = (2, 3, 4, 6, 10)
THRESHOLDS = (98.0, 97.0, 96.0, 95.0, 94.0, 92.0, 90.0)
PRICES = (1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0, 30.0, 40.0)
EVERY, INTERVAL, THRESHOLD, MOVING, PRICE = "every frame", "interval", "threshold", "moving threshold", "price"
FAMILIES = (INTERVAL, THRESHOLD, MOVING, PRICE)
_KINDS = (Kind.KEY, Kind.WARP)
_HEAD_BYTES = 4  # of a region that is a KEY: kind, age and a size of two bytes
Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """Frames of the bundle's size in the order of time, and their labels, of any size, if there are any."""

    name: str
    images: Sequence[Image]
    labels: Sequence[Image] | None


@dataclass(frozen=True, slots=True)
class Setting:
    """One policy: its family, the value that it was given, the level of its KEYs, of a price the highest."""

    family: str
    value: float
    level: int
    lookahead: int = 0  # frames that wait for the next KEY

    def __str__(self) -> str:
        waiting = f", lookahead {self.lookahead}" if self.lookahead else ""
        return self.family if self.family == EVERY else f"{self.family} {self.value:g}{waiting}"

    @property
    def policy(self) -> KeyPolicy:
        match self.family:
            case "interval":
                return at_interval(int(self.value))
            case "threshold":
                return at_threshold(self.value)
            case "moving threshold":
                return at_threshold(self.value, moving=True)
            case "price":
                return at_price(self.value)
        return EVERY_FRAME


def by_kind() -> dict[Kind, list[float]]:
    return {kind: [] for kind in _KINDS}


@dataclass(slots=True, eq=False)
class Way:
    """One policy on its way through the video, and what was counted on it: bytes and ms by kind."""

    setting: Setting
    encoder: StreamEncoder
    matrix: NDArray[np.int64]
    agreed: list[float] = field(default_factory=list)
    sizes: dict[Kind, list[float]] = field(default_factory=by_kind)
    camera_ms: list[float] = field(default_factory=list)
    worker_ms: list[float] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)  # of the masks


@dataclass(frozen=True, slots=True)
class OfKind:
    """What the frames of one kind were: their share, mean bytes, median ms; no ms where frames wait for others."""

    share: float
    size_bytes: float
    camera_ms: float | None
    worker_ms: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """One policy: accuracies in percent, bytes of packets, mean ms a frame, and each kind; None without labels."""

    setting: Setting
    miou: float | None
    agreement: float
    loss: float
    total_bytes: int
    share: float
    camera_ms: float
    worker_ms: float
    kinds: dict[str, OfKind]


def settings_of(
    bundle: Bundle,
    level: int,
    key_levels: Sequence[int],
    *,
    intervals: Sequence[int],
    thresholds: Sequence[float],
    prices: Sequence[float],
    lookaheads: Sequence[int] = (),
) -> list[Setting]:
    """All that is compared, what it is held against first; prices where the bundle has a prediction of its own."""
    settings = [Setting(EVERY, 1, level)]
    for one in dict.fromkeys((level, *key_levels)):
        settings += [Setting(EVERY, 1, one)] if one != level else []
        settings += [Setting(INTERVAL, value, one) for value in intervals]
        settings += [Setting(family, value, one) for family in (THRESHOLD, MOVING) for value in thresholds]
        for ahead in dict.fromkeys(lookaheads):
            settings += [Setting(INTERVAL, value, one, ahead) for value in intervals]
            settings += [Setting(THRESHOLD, value, one, ahead) for value in thresholds]
    priced = [Setting(PRICE, value, level, ahead) for ahead in (0, *dict.fromkeys(lookaheads)) for value in prices]
    return settings + (priced if bundle.has_graph(GRAPH) else [])


def measure(video: Video, bundle: Bundle, settings: Sequence[Setting], *, engine: str, threads: int) -> list[Result]:
    """Every policy on one video; all are held against the first one."""
    encoders = {
        level: open_encoder(bundle, engine=engine, threads=threads, quality=level, outlines=True)
        for level in {one.level for one in settings}
    }
    keys = KeyBuffers[HeldKey](cameras=len(settings), idle_s=math.inf)  # they take turns, and that takes its time
    decoder = open_decoder(bundle, engine=engine, threads=threads, labels=False, keys=keys)
    classes, decider = len(bundle.palette), open_decider(bundle)
    ways = [
        Way(one, coder(one, copy(encoders[one.level]), bundle, decider), np.zeros((classes, classes), np.int64))
        for one in settings  # levels may change, so each has its own
    ]
    compared = _Compared(video.labels, classes)
    for sequence, image in enumerate(video.images):
        frame = Frame(FrameId(0, sequence), 0, image)
        for way in ways:
            step(way, frame, decoder, compared, last=sequence + 1 == len(video.images))
    return [result_of(way, ways[0]) for way in ways]


def coder(setting: Setting, encoder: Encoder, bundle: Bundle, decider: Decider | None) -> StreamEncoder:
    """The camera's half of one policy."""
    if not setting.lookahead:
        return VideoEncoder(encoder, bundle, policy=setting.policy, decider=decider)
    return BidirectionalEncoder(encoder, bundle, policy=setting.policy, lookahead=setting.lookahead, decider=decider)


@dataclass(slots=True, eq=False)
class _Compared:
    """What masks are held against: labels, and those of the first policy, whose frames never wait."""

    labels: Sequence[Image] | None
    classes: int
    fresh: dict[int, Image] = field(default_factory=dict)  # by sequence

    def note(self, way: Way, sequence: int, mask: Image) -> None:
        """Add a mask (H, W) to what was counted on its way."""
        way.agreed.append(100 * float(np.mean(mask == self.fresh.setdefault(sequence, mask))))
        if self.labels is not None:
            truth = self.labels[sequence]
            way.matrix += confusion(truth, classes_at(mask, truth.shape), self.classes)


def step(way: Way, frame: Frame, decoder: Decoder, compared: _Compared, *, last: bool) -> None:
    """One frame through camera and worker, each policy being a camera of its own; after the last one none waits."""
    sent, camera_ms = timed(lambda: [pack(one) for one in (*way.encoder.packets(frame), *_rest(way.encoder, last))])
    way.camera_ms.append(camera_ms)
    for data in sent:
        packet = unpack(data)
        (decoded,), worker_ms = timed(lambda data=data: decoder.decode([unpack(data)], [repr(way.setting)]))
        if isinstance(decoded, PipelineError):
            raise decoded
        if decoded.mask is None:
            raise ConfigError("the bundle makes no masks; use another")
        (kind,) = {region.shows for region in packet.regions if region.shows is not None}
        early = sum(len(region.body) + _HEAD_BYTES for region in packet.regions if region.shows is None)
        way.kinds.append(kind)
        way.sizes[kind].append(len(data) - early)
        if early:
            way.sizes[Kind.KEY].append(early)
        way.worker_ms.append(worker_ms)
        compared.note(way, packet.id.sequence, decoded.mask.classes)


def _rest(encoder: StreamEncoder, last: bool) -> tuple[Packet, ...]:
    return encoder.flush() if last else ()


@dataclass(frozen=True, slots=True, eq=False)
class Went:
    """What became of one frame: its classes (H, W), the packet's bytes and kinds, ms at camera and worker."""

    classes: Image
    sent_bytes: int
    kinds: tuple[Kind, ...]
    camera_ms: float
    worker_ms: float


def through(encoder: VideoEncoder, decoder: Decoder, frame: Frame, *, camera: str) -> Went:
    """One frame from pixels to bytes to mask; what is wrong with the packet is raised."""
    sent, camera_ms = timed(lambda: pack(encoder.encode(frame)))
    (decoded,), worker_ms = timed(lambda: decoder.decode([unpack(sent)], [camera]))
    if isinstance(decoded, PipelineError):
        raise decoded
    if decoded.mask is None:
        raise ConfigError("the bundle makes no masks; use another")
    kinds = tuple(region.kind for region in unpack(sent).regions)
    return Went(decoded.mask.classes, len(sent), kinds, camera_ms, worker_ms)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the milliseconds that it took."""
    start = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - start)


def result_of(way: Way, every: Way) -> Result:
    """The figures of one policy, beside those of a KEY in every frame."""
    total, whole = (int(sum(map(sum, one.sizes.values()))) for one in (way, every))
    labelled = bool(way.matrix.any())
    miou = 100 * mean_iou(way.matrix) if labelled else None
    agreement = statistics.mean(way.agreed)
    return Result(
        setting=way.setting,
        miou=miou,
        agreement=agreement,
        loss=100 * mean_iou(every.matrix) - miou if miou is not None else 100 - agreement,
        total_bytes=total,
        share=total / whole,
        camera_ms=statistics.mean(way.camera_ms),
        worker_ms=statistics.mean(way.worker_ms),
        kinds={kind.name: of_kind(way, kind) for kind in _KINDS if kind in way.kinds},
    )


def of_kind(way: Way, kind: Kind) -> OfKind:
    """Bytes of a KEY are its own, whichever packet brought it."""
    count = way.kinds.count(kind)
    times = [
        None if way.setting.lookahead else statistics.median(itertools.compress(ms, [one is kind for one in way.kinds]))
        for ms in (way.camera_ms, way.worker_ms)
    ]
    return OfKind(count / len(way.kinds), sum(way.sizes[kind]) / count, *times)


def loss_at(results: Sequence[Result], family: str, level: int, share: float, lookahead: int = 0) -> float | None:
    """The least loss of a family of policies, with KEYs of a level, for at most this share of the bits.

    A KEY in every frame is of every family.
    """
    of_level = [one for one in results if one.setting.level == level]
    members = [
        one for one in of_level if (one.setting.family, one.setting.lookahead) in ((family, lookahead), (EVERY, 0))
    ]
    return least_at(((one.share, one.loss) for one in members), share)


def table_of(results: Sequence[Result], title: str) -> Table:
    columns = ("policy", "level", "mIoU", "agreement", "loss", "bits", "KEY / WARP")
    table = Table(*columns, "bytes", "camera ms", "worker ms", "both, a frame", title=title, title_justify="left")
    for one in results:
        found = [one.kinds.get(kind.name) for kind in _KINDS]
        table.add_row(
            str(one.setting), str(one.setting.level), shown(one.miou, 2), shown(one.agreement, 2),
            shown(one.loss, 2), f"{100 * one.share:.1f} %",
            " / ".join("-" if of is None else f"{100 * of.share:.0f} %" for of in found),
            " / ".join("-" if of is None else f"{of.size_bytes:.0f}" for of in found),
            " / ".join("-" if of is None else shown(of.camera_ms, 1) for of in found),
            " / ".join("-" if of is None else shown(of.worker_ms, 1) for of in found),
            f"{one.camera_ms:.1f} + {one.worker_ms:.1f}",
        )  # fmt: skip
    return table


def targets_of(results: Sequence[Result]) -> Table:
    """What each family loses at least where the targets lie, found with hindsight; and with KEYs of which level."""
    levels = list(dict.fromkeys(one.setting.level for one in results))
    there = {(one.setting.family, one.setting.lookahead) for one in results if one.setting.family != EVERY}
    families = sorted(there, key=lambda one: (one[1], FAMILIES.index(one[0])))
    names = [f"{family}, lookahead {ahead}" if ahead else family for family, ahead in families]
    table = Table("bits, at most", "loss, at most", *names, title="least loss (level of KEYs)", title_justify="left")
    for share, limit in TARGETS:
        cells = []
        for family, ahead in families:
            # A price chooses levels itself, up to the one that all is held against.
            tried = levels[:1] if family == PRICE else levels
            found = [(loss_at(results, family, one, share, ahead), one) for one in tried]
            least = min(((loss, one) for loss, one in found if loss is not None), default=None)
            cells.append("-" if least is None else f"{least[0]:.2f} ({least[1]})")
        table.add_row(f"{100 * share:.0f} %", f"{limit:.1f}", *cells)
    return table


def shown(value: float | None, digits: int) -> str:
    """A figure of a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def video_of(bundle: Bundle, *, data: Path | None, split: str, clip: Path | None, frames: int) -> Video:
    """The first frames of a split or of a clip; ConfigError unless exactly one of the two is named."""
    size = (bundle.manifest.width, bundle.manifest.height)
    if clip is not None and data is None:
        with open_source(str(clip), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
            return Video(clip.stem, [fit(one.image, size) for one in itertools.islice(opened.pictures, frames)], None)
    if data is None or clip is not None:
        raise ConfigError("name one video: --data with a folder of CamVid, or --clip with a file")
    labelled = camvid(data, split)
    if all((one == VOID).all() for one in labelled.labels):
        raise ConfigError(f"data {data}: {split} has no labels; name another split")
    images = [fit(image, size) for image in labelled.images[:frames]]
    return Video(f"camvid {split}", images, labelled.labels[:frames])


def main(
    data: Annotated[Path | None, typer.Option(help="folder of CamVid")] = None,
    split: Annotated[str, typer.Option(help="whose frames follow one another in time: val, or a drive")] = "val",
    clip: Annotated[Path | None, typer.Option(help="clip, or directory of images, without labels")] = None,
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    level: Annotated[int | None, typer.Option(help="level all is held against; without it, the default")] = None,
    key_level: Annotated[list[int] | None, typer.Option(help="another level for KEYs; repeat it")] = None,
    frames: Annotated[int, typer.Option(min=2, help="no more than so many")] = 400,
    interval: Annotated[list[int] | None, typer.Option(help="fixed key interval; repeat it")] = None,
    threshold: Annotated[list[float] | None, typer.Option(help="threshold, 0 to 100; repeat it")] = None,
    price: Annotated[list[float] | None, typer.Option(help="percent of the pixels for 1000 bytes; repeat it")] = None,
    lookahead: Annotated[list[int] | None, typer.Option(help="frames that wait for the next KEY; repeat it")] = None,
    engine: Annotated[str, typer.Option()] = "auto",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    try:
        loaded = load_bundle(bundle or default_bundle())
        quality = loaded.manifest.default_quality if level is None else level
        video = video_of(loaded, data=data, split=split, clip=clip, frames=frames)
        for one in (quality, *(key_level or ())):
            check_quality(loaded, one)
        settings = settings_of(
            loaded,
            quality,
            key_level or (),
            intervals=interval or INTERVALS,
            thresholds=threshold or THRESHOLDS,
            prices=price or PRICES,
            lookaheads=lookahead or (),
        )
        results = measure(video, loaded, settings, engine=engine, threads=threads)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    console = Console(width=170)
    frame_bytes = results[0].total_bytes / len(video.images)
    told = f"{video.name}, {len(video.images)} frames, {loaded.manifest.name} at level {quality}"
    title = f"{told}: {frame_bytes:.0f} bytes a frame if every frame is a KEY; times: KEY / WARP"
    console.print(table_of(results, title), targets_of(results))
    if json_file is not None:
        described = {"video": video.name, "frames": len(video.images), "bundle": loaded.manifest.hash, "level": quality}
        described |= {"engine": engine, "threads": threads, "frame_bytes": frame_bytes}
        json_file.write_text(json.dumps({**described, "results": [asdict(one) for one in results]}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
