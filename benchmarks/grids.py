"""What a grid of regions costs and saves: bits, accuracy and times of 1x1 to 3x3, with and without overlap.

    python benchmarks/grids.py --data CAMVID [--split val] [--bundle B] [--level Q] [--json FILE]
    python benchmarks/grids.py --clip FILE [--frames N] ...

Bits are those of the packets, all overhead in; their share is of what a KEY in every frame takes in a 1x1 grid, and the
loss is against its masks: in mIoU where there are labels, and in the share of pixels whose class is another one; both
in percent. Graphs: frames that need them, for one region or for all, since they see whole frames only. Times are
medians over frames without a KEY and with one or more; the policies take turns frame by frame, so that a busy machine
slows all of them alike.
"""

import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.temporal import Image, through, video_of
from benchmarks.temporal_tables import shown
from pipeline.accuracy import confusion, mean_iou
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import Decoder, Encoder, decode_graph, open_decoder, open_encoder
from pipeline.datasets import classes_at
from pipeline.deciding import open_decider
from pipeline.errors import PipelineError
from pipeline.key_policies import EVERY_FRAME, KeyPolicy, at_interval, at_threshold
from pipeline.messages import Frame, FrameId, Kind
from pipeline.options import JsonFile
from pipeline.regions import OVERLAP_PX, Grid
from pipeline.runtime import open_session
from pipeline.video_encoder import VideoEncoder

GRIDS = ((1, 1), (2, 2), (3, 3))
INTERVALS = (2, 4, 6)
THRESHOLDS = (96.0, 95.0, 94.0, 92.0)


@dataclass(frozen=True, slots=True)
class Setting:
    """A grid, its overlap and a policy: every frame (1 frame), a key interval, or a threshold."""

    rows: int
    columns: int
    overlap_px: int
    interval: int | None = None
    threshold: float | None = None

    @property
    def policy(self) -> KeyPolicy:
        if self.threshold is not None:
            return at_threshold(self.threshold)
        return EVERY_FRAME if self.interval is None else at_interval(self.interval)

    @property
    def said(self) -> str:
        if self.threshold is not None:
            return f"threshold {self.threshold:g}"
        return "every frame" if self.interval is None else f"interval {self.interval}"


@dataclass(slots=True, eq=False)
class Way:
    """One setting on its way through the video, and what was counted on it; times by whether there was a KEY."""

    setting: Setting
    encoder: VideoEncoder
    decoder: Decoder
    matrix: NDArray[np.int64]
    total_bytes: int = 0
    differing: list[float] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    camera_ms: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    worker_ms: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})


@dataclass(frozen=True, slots=True)
class Result:
    """One setting: percents, shares from 0 to 1, medians in ms; None where there is nothing to measure."""

    setting: Setting
    miou_loss: float | None
    differing: float
    share: float
    key_share: float
    graph_share: float
    warp_camera_ms: float | None
    key_camera_ms: float | None
    warp_worker_ms: float | None
    key_worker_ms: float | None


def settings_of(intervals: Sequence[int], thresholds: Sequence[float]) -> list[Setting]:
    """All that is compared; the first one is what the others are held against."""
    found = []
    for rows, columns in GRIDS:
        for overlap_px in dict.fromkeys((OVERLAP_PX, 0 if rows * columns > 1 else OVERLAP_PX)):
            place = rows, columns, overlap_px
            found += [Setting(*place), *(Setting(*place, interval=one) for one in intervals)]
            found += [Setting(*place, threshold=one) for one in thresholds]
    return found


def measure(
    images: Sequence[Image], labels: Sequence[Image] | None, bundle: Bundle, ways: Sequence[Way]
) -> list[Result]:
    """All ways on one video, each being a camera of its own."""
    truths: Iterable[Image | None] = itertools.repeat(None) if labels is None else labels
    for sequence, (image, truth) in enumerate(zip(images, truths, strict=False)):
        frame, masks = Frame(FrameId(0, sequence), 0, image), []
        for way in ways:
            masks.append(step(way, frame))
            way.differing.append(100 * float(np.mean(masks[-1] != masks[0])))
            if truth is not None:
                way.matrix += confusion(truth, classes_at(masks[-1], truth.shape), len(bundle.palette))
    return [result_of(way, ways[0]) for way in ways]


def step(way: Way, frame: Frame) -> Image:
    """One frame through camera and worker; gives its classes (H, W)."""
    went = through(way.encoder, way.decoder, frame, camera="")
    way.total_bytes += went.sent_bytes
    way.kinds += went.kinds
    way.camera_ms[Kind.KEY in went.kinds].append(went.camera_ms)
    way.worker_ms[Kind.KEY in went.kinds].append(went.worker_ms)
    return went.classes


def result_of(way: Way, first: Way) -> Result:
    """The figures of one way, beside those of the first."""
    return Result(
        setting=way.setting,
        miou_loss=100 * (mean_iou(first.matrix) - mean_iou(way.matrix)) if way.matrix.any() else None,
        differing=statistics.mean(way.differing),
        share=way.total_bytes / first.total_bytes,
        key_share=way.kinds.count(Kind.KEY) / len(way.kinds),
        graph_share=len(way.camera_ms[True]) / len(way.differing),
        warp_camera_ms=_median(way.camera_ms[False]),
        key_camera_ms=_median(way.camera_ms[True]),
        warp_worker_ms=_median(way.worker_ms[False]),
        key_worker_ms=_median(way.worker_ms[True]),
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def ways_of(bundle: Bundle, settings: Sequence[Setting], *, level: int, engine: str, threads: int) -> list[Way]:
    """A camera and a worker for each setting; they share graphs, so keep them on one thread."""
    height, width, classes = bundle.manifest.height, bundle.manifest.width, len(bundle.palette)
    open_decoder(bundle, engine=engine, threads=threads, labels=False)  # warms up what all workers share
    decode = open_session(decode_graph(bundle, engine), engine=engine, threads=threads)
    decider, encoders = open_decider(bundle, engine=engine), dict[Grid, Encoder]()
    found = []
    for one in settings:
        grid = Grid(one.rows, one.columns, height, width, one.overlap_px)
        if grid not in encoders:
            encoders[grid] = open_encoder(
                bundle, engine=engine, threads=threads, quality=level, grid=grid, outlines=True
            )
        camera = VideoEncoder(encoders[grid], bundle, policy=one.policy, grid=grid, decider=decider)
        worker = Decoder(bundle, decode, overlap_px=one.overlap_px)  # which no packet tells
        found.append(Way(one, camera, worker, np.zeros((classes, classes), np.int64)))
    return found


def table_of(results: Sequence[Result], title: str) -> Table:
    columns = (
        "grid",
        "overlap",
        "policy",
        "mIoU loss",
        "differing",
        "bits",
        "KEYs",
        "graphs",
        "camera ms",
        "worker ms",
    )
    table = Table(*columns, title=title, title_justify="left")
    for one in results:
        table.add_row(
            f"{one.setting.rows}x{one.setting.columns}", str(one.setting.overlap_px), one.setting.said,
            shown(one.miou_loss, 2), shown(one.differing, 2), f"{100 * one.share:.1f} %",
            f"{100 * one.key_share:.0f} %", f"{100 * one.graph_share:.0f} %",
            f"{shown(one.key_camera_ms, 1)} / {shown(one.warp_camera_ms, 1)}",
            f"{shown(one.key_worker_ms, 1)} / {shown(one.warp_worker_ms, 1)}",
        )  # fmt: skip
    return table


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
    json_file: JsonFile = None,
) -> None:
    try:
        loaded = load_bundle(bundle or default_bundle())
        quality = loaded.manifest.default_quality if level is None else level
        video = video_of(loaded, data=data, split=split, clip=clip, frames=frames)
        settings = settings_of(interval or INTERVALS, threshold or THRESHOLDS)
        ways = ways_of(loaded, settings, level=quality, engine=engine, threads=threads)
        results = measure(video.images, video.labels, loaded, ways)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    told = f"{video.name}, {len(video.images)} frames, {loaded.manifest.name} at level {quality}"
    Console(width=150).print(table_of(results, f"{told}; times: with a KEY / without"))
    if json_file is not None:
        described = {"video": video.name, "frames": len(video.images), "bundle": loaded.manifest.hash, "level": quality}
        described |= {"engine": engine, "threads": threads}
        json_file.write_text(json.dumps({**described, "results": [asdict(one) for one in results]}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
