"""What WARPs save and cost: every frame a KEY, fixed key intervals, thresholds and prices by the predicted agreement.

    python benchmarks/temporal.py --data CAMVID [--split val] [--bundle B] [--level Q] [--key-level Q ...]
        [--lookahead N ...] [--noise-reduction] [--hysteresis LOGITS] [--json FILE]
    python benchmarks/temporal.py --clip FILE [--frames N] ...

Whole frames. With a lookahead frames wait, at most so many, for the KEY after them and refer to that too. Bits are
those of the packets, all overhead in; their share is of what a KEY in every frame takes at the level that all is held
against. KEYs may be of a lower one: that too saves bits, alone or together with WARPs; a price chooses the level
itself. The loss is in mIoU where there are labels, else in the share of pixels whose class is that of the fresh mask;
both in percent. Changed are the pixels whose class differs from the frame before. Times are from frame to bytes and
from bytes to class map: means over all frames, and medians by kind where none waits; policies take turns frame by
frame, so that a busy machine slows all of them alike. With noise reduction every policy gets the pictures without
their noise, also the one that all is held against; the time that it takes is told by itself. With `--hysteresis 0.5`
all masks are held to those before them, as workers do it where they are told to.
"""

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.temporal_tables import (
    EVERY,
    INTERVAL,
    KINDS,
    MOVING,
    PRICE,
    THRESHOLD,
    OfKind,
    Result,
    Setting,
    table_of,
    targets_of,
)
from pipeline.accuracy import VOID, confusion, mean_iou
from pipeline.bidirectional import BidirectionalEncoder
from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import Decoder, Encoder, check_quality, open_decoder, open_encoder
from pipeline.datasets import camvid, classes_at
from pipeline.deciding import GRAPH, Decider, open_decider
from pipeline.errors import ConfigError, PipelineError
from pipeline.keys import KeyBuffers
from pipeline.messages import Frame, FrameId, Kind, Packet
from pipeline.noise_reduction import NoiseReduction
from pipeline.options import JsonFile
from pipeline.region_decoder import HeldKey
from pipeline.sources import fit, open_source
from pipeline.stream_encoder import StreamEncoder
from pipeline.video_encoder import VideoEncoder

INTERVALS = (2, 3, 4, 6, 10)
THRESHOLDS = (98.0, 97.0, 96.0, 95.0, 94.0, 92.0, 90.0)
PRICES = (1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0, 30.0, 40.0)
_HEAD_BYTES = 4  # of a region that is a KEY: kind, age and a size of two bytes
Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """Frames of the bundle's size in the order of time, and their labels, of any size, if there are any."""

    name: str
    images: Sequence[Image]
    labels: Sequence[Image] | None
    noise_reduction_ms: float | None = None  # median of a picture, where its noise was reduced


def by_kind() -> dict[Kind, list[float]]:
    return {kind: [] for kind in KINDS}


@dataclass(slots=True, eq=False)
class Way:
    """One policy on its way through the video, and what was counted on it: bytes and ms by kind."""

    setting: Setting
    encoder: StreamEncoder
    matrix: NDArray[np.int64]
    agreed: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)
    mask: Image | None = None  # the last one
    sizes: dict[Kind, list[float]] = field(default_factory=by_kind)
    camera_ms: list[float] = field(default_factory=list)
    worker_ms: list[float] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)  # of the masks


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


def measure(
    video: Video,
    bundle: Bundle,
    settings: Sequence[Setting],
    *,
    engine: str,
    threads: int,
    hysteresis: float = 0.0,
) -> list[Result]:
    """Every policy on one video; all are held against the first one."""
    encoders = {
        level: open_encoder(bundle, engine=engine, threads=threads, quality=level, outlines=True)
        for level in {one.level for one in settings}
    }
    keys = KeyBuffers[HeldKey](cameras=len(settings), idle_s=math.inf)  # they take turns, and that takes its time
    decoder = open_decoder(bundle, engine=engine, threads=threads, labels=False, keys=keys, hysteresis=hysteresis)
    classes, decider = len(bundle.palette), open_decider(bundle, engine=engine)
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
        if way.mask is not None:
            way.changed.append(100 * float(np.mean(mask != way.mask)))
        way.mask = mask
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
        changed=statistics.mean(way.changed) if way.changed else None,
        loss=100 * mean_iou(every.matrix) - miou if miou is not None else 100 - agreement,
        total_bytes=total,
        share=total / whole,
        camera_ms=statistics.mean(way.camera_ms),
        worker_ms=statistics.mean(way.worker_ms),
        kinds={kind.name: of_kind(way, kind) for kind in KINDS if kind in way.kinds},
    )


def of_kind(way: Way, kind: Kind) -> OfKind:
    """Bytes of a KEY are its own, whichever packet brought it."""
    count = way.kinds.count(kind)
    times = [
        None if way.setting.lookahead else statistics.median(itertools.compress(ms, [one is kind for one in way.kinds]))
        for ms in (way.camera_ms, way.worker_ms)
    ]
    return OfKind(count / len(way.kinds), sum(way.sizes[kind]) / count, *times)


def without_noise(video: Video) -> Video:
    """The same as a camera with `source.noise_reduction` sees it."""
    reduce_noise, images, times_ms = NoiseReduction(), [], []
    for image in video.images:
        began_s = time.perf_counter()
        images.append(reduce_noise(image))
        times_ms.append(1000 * (time.perf_counter() - began_s))
    return replace(video, images=images, noise_reduction_ms=statistics.median(times_ms))


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
    noise_reduction: Annotated[
        bool, typer.Option("--noise-reduction", help="of all pictures, as source.noise_reduction")
    ] = False,
    hysteresis: Annotated[
        float, typer.Option(min=0, max=4, help="of all masks, as a worker's decoder.hysteresis")
    ] = 0.0,
    engine: Annotated[str, typer.Option()] = "auto",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    json_file: JsonFile = None,
) -> None:
    try:
        loaded = load_bundle(bundle or default_bundle())
        quality = loaded.manifest.default_quality if level is None else level
        video = video_of(loaded, data=data, split=split, clip=clip, frames=frames)
        video = without_noise(video) if noise_reduction else video
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
        results = measure(video, loaded, settings, engine=engine, threads=threads, hysteresis=hysteresis)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    console = Console(width=170)
    frame_bytes = results[0].total_bytes / len(video.images)
    told = f"{video.name}, {len(video.images)} frames, {loaded.manifest.name} at level {quality}"
    title = f"{told}: {frame_bytes:.0f} bytes a frame if every frame is a KEY; times: KEY / WARP"
    console.print(table_of(results, title), targets_of(results))
    if video.noise_reduction_ms is not None:
        console.print(f"noise reduction: {video.noise_reduction_ms:.1f} ms a picture, in none of the times above")
    if json_file is not None:
        described = {"video": video.name, "frames": len(video.images), "bundle": loaded.manifest.hash, "level": quality}
        described |= {"engine": engine, "threads": threads, "frame_bytes": frame_bytes}
        described |= {"noise_reduction_ms": video.noise_reduction_ms, "hysteresis": hysteresis}
        json_file.write_text(json.dumps({**described, "results": [asdict(one) for one in results]}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
