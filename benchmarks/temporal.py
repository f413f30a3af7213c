"""What WARPs save and what they cost: every frame a KEY, fixed key intervals, thresholds on the predicted agreement.

    python benchmarks/temporal.py --data CAMVID [--split val] [--bundle B] [--level Q] [--json FILE]
    python benchmarks/temporal.py --clip FILE [--frames N] ...

Whole frames. Bits are those of the packets, all overhead in; their share is of what a KEY in every frame takes. The
loss is in mIoU where there are labels, else in the share of pixels whose class is that of the fresh mask; both in
percent. Times are medians from frame to bytes and from bytes to class map, for a KEY and for a WARP; the policies take
turns frame by frame, so that a busy machine slows all of them alike.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.accuracy import VOID, confusion, mean_iou
from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import Decoder, open_decoder, open_encoder
from pipeline.datasets import camvid
from pipeline.errors import ConfigError, PipelineError
from pipeline.messages import Frame, FrameId, Kind
from pipeline.sources import fit, open_source
from pipeline.video_encoder import EVERY_FRAME, KeyPolicy, VideoEncoder, at_interval, at_threshold

TARGETS = ((0.40, 0.5), (0.27, 1.0), (0.15, 2.5))  # share of the bits, loss in percent
INTERVALS = (2, 3, 4, 6, 10)
THRESHOLDS = (96.0, 95.0, 94.0, 93.0, 92.0, 90.0, 88.0)
EVERY, INTERVAL, THRESHOLD = "every frame", "interval", "threshold"
Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """Frames of the bundle's size in the order of time, and their labels if there are any."""

    name: str
    images: Sequence[Image]
    labels: Sequence[Image] | None


@dataclass(frozen=True, slots=True)
class Setting:
    """One policy: its family, and the value that it was given."""

    family: str
    value: float

    @property
    def policy(self) -> KeyPolicy:
        if self.family == EVERY:
            return EVERY_FRAME
        return at_interval(int(self.value)) if self.family == INTERVAL else at_threshold(self.value)


@dataclass(slots=True, eq=False)
class Way:
    """One policy on its way through the video, and what was counted on it."""

    setting: Setting
    encoder: VideoEncoder
    matrix: NDArray[np.int64]
    agreed: list[float] = field(default_factory=list)
    sizes: dict[Kind, list[int]] = field(default_factory=lambda: {Kind.KEY: [], Kind.WARP: []})
    camera_ms: dict[Kind, list[float]] = field(default_factory=lambda: {Kind.KEY: [], Kind.WARP: []})
    worker_ms: dict[Kind, list[float]] = field(default_factory=lambda: {Kind.KEY: [], Kind.WARP: []})


@dataclass(frozen=True, slots=True)
class Result:
    """One policy: accuracies in percent, bytes of packets, medians of ms; None where there is nothing to measure."""

    setting: Setting
    miou: float | None
    agreement: float
    loss: float
    total_bytes: int
    share: float
    key_share: float
    key_bytes: float | None
    warp_bytes: float | None
    key_camera_ms: float | None
    warp_camera_ms: float | None
    key_worker_ms: float | None
    warp_worker_ms: float | None


def measure(
    video: Video, bundle: Bundle, settings: Sequence[Setting], *, level: int, engine: str, threads: int
) -> list[Result]:
    """Every policy on one video, the one with a KEY in every frame first."""
    encoder = open_encoder(bundle, engine=engine, threads=threads, quality=level)
    decoder = open_decoder(bundle, engine=engine, threads=threads, labels=False)
    classes = len(bundle.palette)
    ways = [
        Way(one, VideoEncoder(encoder, bundle, policy=one.policy), np.zeros((classes, classes), np.int64))
        for one in (Setting(EVERY, 1), *settings)
    ]
    labels: Iterable[Image | None] = itertools.repeat(None) if video.labels is None else video.labels
    for sequence, (image, truth) in enumerate(zip(video.images, labels, strict=False)):
        frame, fresh = Frame(FrameId(0, sequence), 0, image), None
        for way in ways:
            mask = step(way, frame, decoder)
            fresh = mask if fresh is None else fresh
            way.agreed.append(100 * float(np.mean(mask == fresh)))
            if truth is not None:
                way.matrix += confusion(truth, mask, classes)
    return [result_of(way, ways[0]) for way in ways]


def step(way: Way, frame: Frame, decoder: Decoder) -> Image:
    """One frame through camera and worker, each policy being a camera of its own; gives its classes (H, W)."""
    sent, encode_ms = timed(lambda: pack(way.encoder.encode(frame)))
    (decoded,), decode_ms = timed(lambda: decoder.decode([unpack(sent)], [f"{way.setting}"]))
    if isinstance(decoded, PipelineError):
        raise decoded
    if decoded.mask is None:
        raise ConfigError("the bundle makes no masks; use another")
    kind = unpack(sent).regions[0].kind
    way.sizes[kind].append(len(sent))
    way.camera_ms[kind].append(encode_ms)
    way.worker_ms[kind].append(decode_ms)
    return decoded.mask.classes


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the milliseconds that it took."""
    start = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - start)


def result_of(way: Way, every: Way) -> Result:
    """The figures of one policy, beside those of a KEY in every frame."""
    total, whole = (sum(map(sum, one.sizes.values())) for one in (way, every))
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
        key_share=len(way.sizes[Kind.KEY]) / len(way.agreed),
        key_bytes=_mean(way.sizes[Kind.KEY]),
        warp_bytes=_mean(way.sizes[Kind.WARP]),
        key_camera_ms=_median(way.camera_ms[Kind.KEY]),
        warp_camera_ms=_median(way.camera_ms[Kind.WARP]),
        key_worker_ms=_median(way.worker_ms[Kind.KEY]),
        warp_worker_ms=_median(way.worker_ms[Kind.WARP]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def loss_at(results: Sequence[Result], family: str, share: float) -> float | None:
    """The loss of a family of policies at this share of the bits, between its neighbours there; None outside them.

    A KEY in every frame, with no loss, is of both families.
    """
    points = sorted((one.share, one.loss) for one in results if one.setting.family in (family, EVERY))
    if not points[0][0] <= share <= points[-1][0]:
        return None
    return float(np.interp(share, [x for x, _ in points], [y for _, y in points]))


def table_of(results: Sequence[Result], title: str) -> Table:
    columns = (
        "policy",
        "mIoU",
        "agreement",
        "loss",
        "bits",
        "KEYs",
        "KEY bytes",
        "WARP bytes",
        "camera ms",
        "worker ms",
    )
    table = Table(*columns, title=title, title_justify="left")
    for one in results:
        table.add_row(
            one.setting.family if one.setting.family == EVERY else f"{one.setting.family} {one.setting.value:g}",
            _shown(one.miou, 2), _shown(one.agreement, 2), _shown(one.loss, 2), f"{100 * one.share:.1f} %",
            f"{100 * one.key_share:.0f} %", _shown(one.key_bytes, 0), _shown(one.warp_bytes, 0),
            f"{_shown(one.key_camera_ms, 1)} / {_shown(one.warp_camera_ms, 1)}",
            f"{_shown(one.key_worker_ms, 1)} / {_shown(one.warp_worker_ms, 1)}",
        )  # fmt: skip
    return table


def targets_of(results: Sequence[Result]) -> Table:
    """What each family loses where the targets lie."""
    table = Table("bits", "loss, at most", INTERVAL, THRESHOLD)
    for share, limit in TARGETS:
        losses = (loss_at(results, family, share) for family in (INTERVAL, THRESHOLD))
        table.add_row(f"{100 * share:.0f} %", f"{limit:.1f}", *(_shown(loss, 2) for loss in losses))
    return table


def _shown(value: float | None, digits: int) -> str:
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
    if {image.shape[1::-1] for image in labelled.images} != {size} or all(
        (one == VOID).all() for one in labelled.labels
    ):
        raise ConfigError(f"data {data}: not labelled frames of {size[0]}x{size[1]} pixels, which the bundle takes")
    return Video(f"camvid {split}", labelled.images[:frames], labelled.labels[:frames])


def main(
    data: Annotated[Path | None, typer.Option(help="folder of CamVid")] = None,
    split: Annotated[str, typer.Option(help="whose frames follow one another in time: val, or a drive")] = "val",
    clip: Annotated[Path | None, typer.Option(help="clip, or directory of images, without labels")] = None,
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    level: Annotated[int | None, typer.Option(help="quality level; without it, the bundle's default")] = None,
    frames: Annotated[int, typer.Option(min=2, help="no more than so many")] = 400,
    interval: Annotated[list[int] | None, typer.Option(help="fixed key interval; repeat it")] = None,
    threshold: Annotated[list[float] | None, typer.Option(help="threshold, 0 to 100; repeat it")] = None,
    engine: Annotated[str, typer.Option()] = "auto",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    settings = [Setting(INTERVAL, one) for one in interval or INTERVALS]
    settings += [Setting(THRESHOLD, one) for one in threshold or THRESHOLDS]
    try:
        loaded = load_bundle(bundle or default_bundle())
        quality = loaded.manifest.default_quality if level is None else level
        video = video_of(loaded, data=data, split=split, clip=clip, frames=frames)
        results = measure(video, loaded, settings, level=quality, engine=engine, threads=threads)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    console = Console(width=150)
    rate_bpp = 8 * results[0].total_bytes / (len(video.images) * loaded.manifest.width * loaded.manifest.height)
    told = f"{video.name}, {len(video.images)} frames, {loaded.manifest.name} at level {quality}"
    title = f"{told}: {rate_bpp:.4f} bits per pixel if every frame is a KEY; times: KEY / WARP"
    console.print(table_of(results, title), targets_of(results))
    if json_file is not None:
        described = {"video": video.name, "frames": len(video.images), "bundle": loaded.manifest.hash, "level": quality}
        described |= {"engine": engine, "threads": threads, "rate_bpp": rate_bpp}
        json_file.write_text(json.dumps({**described, "results": [asdict(one) for one in results]}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
