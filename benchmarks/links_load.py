"""Whether WebRTC keeps up where the link is no limit: one camera at 25 frames per second, and twenty into one gateway.

    python benchmarks/links_load.py [--cameras 20] [--fps 10] [--seconds 20] [--workers 1] [--json FILE]

All on one host, over its loopback: nothing is emulated. The one camera is the node itself. The many are one process
with as many connections that sends packets encoded before, stamped with the present time, since a few cores cannot
encode for twenty cameras. Told apart: from capture into the work queue, which is what camera, WebRTC and gateway take,
and from capture to mask, which the worker adds to.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.links import OFF, Bench, bench, write_json
from benchmarks.links_crowd import name_of
from benchmarks.links_score import Span
from benchmarks.links_site import WEBRTC
from benchmarks.links_watch import View
from pipeline.bundle import default_bundle, load_bundle
from pipeline.errors import ConfigError, PipelineError
from pipeline.options import JsonFile

ONE_MS, MANY_MS = 60.0, 150.0
_WARM_S, _LATE_S, _START_S = 5.0, 2.0, 120.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of so many cameras' packets: percentiles in ms, from capture into the queue and to the mask.

    Missing are packets that never came into the queue, and those without mask.
    """

    cameras: int
    fps: float
    packets: int
    queued_p50_ms: float
    queued_p95_ms: float
    mask_p50_ms: float
    mask_p95_ms: float
    mask_p99_ms: float
    missing_packets: int
    missing_masks: int
    cores: float


def one_camera(here: Bench, *, seconds: float) -> Result:
    """The node itself, with the sample at its own rate."""
    camera = here.start_camera(WEBRTC, OFF, "cam-1", near=True)
    time.sleep(_WARM_S)
    span, cores = _watched(seconds)
    time.sleep(_LATE_S)
    here.end_camera(camera, "cam-1")
    view = here.watch.forget("cam-1")
    sequences = [seen.packet.id.sequence for seen in view.packets if _in(span, seen.packet.captured_ms)]
    sent = max(sequences) - min(sequences) + 1 if sequences else 0
    return result_of([view], span, sent=sent, cores=cores)


def many_cameras(here: Bench, *, cameras: int, fps: float, seconds: float) -> Result:
    """A crowd; all that it sends is counted, the first second and the last are not timed."""
    words = (str(here.bundle.path), str(cameras), f"{fps:g}", f"{seconds + 2:g}")
    crowd = here.site.crowd(*words)
    here.watch.wait_masks(name_of(0), 1, limit_s=_START_S, why=here.site.logs)
    time.sleep(1)
    span, cores = _watched(seconds)
    if crowd.process.wait(_START_S) != 0:
        raise ConfigError(f"the crowd failed: {crowd.log.read_text()[-2000:]}")
    time.sleep(_LATE_S)
    told = json.loads(crowd.log.read_text().splitlines()[-1])
    views = [here.watch.forget(name_of(camera)) for camera in range(cameras)]
    return result_of(views, span, sent=sum(one["packets"] + one["refused"] for one in told), cores=cores, all=True)


def _watched(seconds: float) -> tuple[Span, float]:
    """A time that passes, and how many cores all programs of this machine kept busy in it."""
    since_s, before_s = time.time(), _busy_s()
    time.sleep(seconds)
    until_s = time.time()
    return Span(1000 * since_s, 1000 * until_s), (_busy_s() - before_s) / (until_s - since_s)


def _busy_s() -> float:
    """Seconds that all cores together have worked, since the machine was started."""
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _in(span: Span, at_ms: float) -> bool:
    return span.since_ms <= at_ms < span.until_ms


def result_of(views: Sequence[View], span: Span, *, sent: int, cores: float, all: bool = False) -> Result:
    """The figures of cameras that sent so many packets within a time, or in all; ConfigError where nothing came."""
    queued = [seen for view in views for seen in view.packets]
    masks = [seen for view in views for seen in view.masks]
    timed = [one.at_ms - one.packet.captured_ms for one in queued if _in(span, one.packet.captured_ms)]
    shown = [one.latency_ms for one in masks if _in(span, one.mask.captured_ms)]
    if not timed or not shown:
        raise ConfigError("nothing came while it was measured")
    came = (len(queued), len(masks)) if all else (len(timed), len(shown))
    (queued_p50, queued_p95), (p50, p95, p99) = np.percentile(timed, (50, 95)), np.percentile(shown, (50, 95, 99))
    return Result(
        cameras=len(views),
        fps=len(timed) / span.seconds / len(views),
        packets=sent,
        queued_p50_ms=float(queued_p50),
        queued_p95_ms=float(queued_p95),
        mask_p50_ms=float(p50),
        mask_p95_ms=float(p95),
        mask_p99_ms=float(p99),
        missing_packets=sent - came[0],
        missing_masks=sent - came[1],
        cores=cores,
    )


def verdicts_of(one: Result, many: Result) -> list[str]:
    """What is to hold, and whether it does."""
    lost = one.missing_masks
    return [
        f"one camera: p95 from capture to mask under {ONE_MS:g} ms: {_yes(one.mask_p95_ms < ONE_MS)}, "
        f"{one.mask_p95_ms:.0f} ms; nothing lost: {_yes(lost == 0)}, {lost} of {one.packets}",
        f"{many.cameras} cameras: p95 under {MANY_MS:g} ms: into the queue {_yes(many.queued_p95_ms < MANY_MS)}, "
        f"{many.queued_p95_ms:.0f} ms; to the mask {_yes(many.mask_p95_ms < MANY_MS)}, {many.mask_p95_ms:.0f} ms",
    ]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def table_of(results: Sequence[Result], title: str) -> Table:
    """Both, for people."""
    columns = ("cameras", "fps each", "packets", "into queue p50 / p95 ms", "mask p50 / p95 / p99 ms")
    table = Table(*columns, "never queued", "without mask", "cores busy", title=title)
    for one in results:
        table.add_row(
            str(one.cameras), f"{one.fps:.1f}", str(one.packets), f"{one.queued_p50_ms:.0f} / {one.queued_p95_ms:.0f}",
            f"{one.mask_p50_ms:.0f} / {one.mask_p95_ms:.0f} / {one.mask_p99_ms:.0f}", str(one.missing_packets),
            str(one.missing_masks), f"{one.cores:.2f}",
        )  # fmt: skip
    return table


def main(
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    cameras: Annotated[int, typer.Option(min=1, max=64)] = 20,
    fps: Annotated[float, typer.Option(min=0.1, help="of each of many cameras")] = 10.0,
    seconds: Annotated[float, typer.Option(min=1, help="for each")] = 20.0,
    workers: Annotated[int, typer.Option(min=1, max=16)] = 1,
    json_file: JsonFile = None,
) -> None:
    try:
        loaded = load_bundle(bundle or default_bundle())
        with bench(loaded, None) as here:
            for number in range(1, workers):
                here.site.worker(WORKER__ID=f"more-{number}", HEALTH__PORT="0")
                here.watch.wait_state(f"worker/more-{number}", "online", limit_s=_START_S, why=here.site.logs)
            one = one_camera(here, seconds=seconds)
            many = many_cameras(here, cameras=cameras, fps=fps, seconds=seconds)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    cores, verdicts = len(os.sched_getaffinity(0)), verdicts_of(one, many)
    title = f"WebRTC over loopback, {loaded.manifest.name}, {workers} worker(s), {cores} cores for everything"
    note = (
        f"the {many.cameras} cameras are one process that sends packets encoded before, stamped with the present time"
    )
    console = Console(width=150)
    console.print(table_of((one, many), title))
    console.print(note, *verdicts, sep="\n", soft_wrap=True)
    told = {"title": title, "bundle": loaded.manifest.hash, "notes": [note], "verdicts": verdicts}
    write_json(told | {"results": [asdict(one), asdict(many)]}, json_file)


if __name__ == "__main__":
    typer.run(main)
