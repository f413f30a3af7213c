"""What more workers bring: masks per second from one to eight of them, and what the global key buffer moves for it.

    python benchmarks/workers.py [--data CAMVID] [--bundle B] [--workers N ...] [--quick] [--json FILE] [--figure FILE]

Cameras play one video, each from another place on, at a camera's usual settings; each has a bounded number of packets
under way and sends the next when one is answered: more than the workers can do, less than makes frames late. The queue
is a redis-server of our own, the workers are processes. Without affinity every shard is everybody's.

Where cores are too few the time to decode and to render is emulated: measured once, then slept on the worker's lanes,
with masks that a real decoder made before; all else is real. Several such workers still want more Python than the
cores have, so their time runs slower (--pace): sleeps, the age of frames and how long jobs wait before another worker
takes them are stretched alike, and rates are in the workers' own time. The first row is one worker that decodes for
real, the second the same one emulated.

Accuracy is mIoU where there are labels, else the share of pixels whose class is that of a KEY in every frame; a frame
without a mask shows the last one of its camera. Bytes: the KEYs that were stored in and fetched from the buffer. With
logits in their stead each of these would be K x h x w numbers, of two bytes each here.
"""

import asyncio
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.workers_figure import draw, points_of
from benchmarks.workers_floor import Crew, Floor, Load, Moment, Setting, redis_server
from benchmarks.workers_load import Costs, Round, costs_of, play
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.errors import PipelineError
from pipeline.messages import Kind
from pipeline.options import FigureFile, JsonFile
from pipeline.regions import LOGIT_PX

LOCAL, FEWER_BYTES = 0.85, 50  # what is to be reached with affinity
ENOUGH = 40  # WARPs of a row, of which a share can be told
NOISE = 0.97  # of the row before: a row is seconds long, and throughput that is no less has not fallen
LOGIT_BYTES = 2  # float16
COUNTS = (1, 2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured: rates in the workers' own time, shares 0 to 1, accuracy in percent, bytes per mask.

    `same` is the share of pixels as an undisturbed decoder makes them; `cores` is what this machine was kept busy
    with, the decoders of real workers in.
    """

    setting: Setting
    masks: int
    rate: float
    accuracy: float
    same: float
    key_share: float
    warps: int
    local: float
    fetched: float
    missing: float
    dropped: int
    buffer_bytes: float
    logit_bytes: float
    cores: float
    around_ms: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rows are measured: how many workers, at what pace, and for so many seconds, after `warm_s` of their time.

    By then they have met, cameras have gone to where there is room, and keys have come.
    """

    counts: Sequence[int]
    pace: float
    warm_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All rows, and what one worker's packets and masks cost for real."""

    results: tuple[Result, ...]
    costs: Costs


def settings_of(plan: Plan) -> Iterator[Setting]:
    """All rows; of emulated ones the first is real, the second at the pace of real time."""
    if plan.pace:
        yield from (Setting(1, True, 0), Setting(1, True, 1))
    for count in plan.counts:
        for affinity in (True, False)[: 1 if count == 1 else 2]:
            yield Setting(count, affinity, plan.pace)


def measure(video: Round, bundle: Bundle, *, load: Load, plan: Plan, threads: int) -> Measured:
    """All rows, one after the other; what emulated workers cost was measured in the first two."""
    results: list[Result] = []
    costs = None
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        masks = Path(folder) / "masks.npy"
        np.save(masks, video.masks)
        with Crew(max(plan.counts), bundle=bundle, masks=masks, threads=threads) as crew:
            for number, setting in enumerate(settings_of(plan)):
                floor = Floor(setting, load, video, epoch=number)
                run = floor.run(
                    url, crew.pipes, costs, warm_s=plan.warm_s * (setting.pace or 1.0), seconds=plan.seconds
                )
                before, after = asyncio.run(run)
                results.append(result_of(setting, floor, before, after, bundle=bundle))
                costs = costs or costs_of(after.tally.batches, after.tally.rendered_s)
                if setting.pace == 1:
                    costs = replace(costs, around_s=results[-1].around_ms / 1000)
    return Measured(tuple(results), costs)


def result_of(setting: Setting, floor: Floor, before: Moment, after: Moment, *, bundle: Bundle) -> Result:
    """The figures of one row, of what was counted between two moments."""
    masks, elapsed_s = max(1, after.masks - before.masks), after.at_s - before.at_s
    lookups, regions = after.tally.lookups - before.tally.lookups, after.tally.regions - before.tally.regions
    drops, looked = after.tally.drops - before.tally.drops, max(1, lookups.total())
    height, width = bundle.manifest.height // LOGIT_PX, bundle.manifest.width // LOGIT_PX
    moved = after.stored_bytes - before.stored_bytes + after.tally.fetched_bytes - before.tally.fetched_bytes
    keys = after.stored - before.stored + lookups["fetched"]
    return Result(
        setting=setting,
        masks=masks,
        rate=masks * (setting.pace or 1.0) / elapsed_s,
        accuracy=floor.accuracy(),
        same=floor.same(),
        key_share=regions[Kind.KEY.name.lower()] / max(1, regions.total()),
        warps=lookups.total(),
        local=lookups["local"] / looked,
        fetched=lookups["fetched"] / looked,
        missing=lookups["missing"] / looked,
        dropped=drops.total(),
        buffer_bytes=moved / masks,
        logit_bytes=keys * LOGIT_BYTES * len(bundle.palette) * height * width / masks,
        cores=(after.cpu_s - before.cpu_s) / elapsed_s,
        around_ms=1000 * (after.tally.cpu_s - before.tally.cpu_s) / masks,
    )


def verdicts_of(results: Sequence[Result]) -> list[str]:
    """What is to hold with affinity, and whether it does."""
    rows = scale_of(results, affinity=True)
    falls = [str(after.setting.workers) for one, after in itertools.pairwise(rows) if after.rate < NOISE * one.rate]
    fallen = f"no, at {', '.join(falls)}" if falls else "yes"
    few = min(rows, key=lambda row: row.warps)
    local = min(row.local for row in rows)
    found = f"{'yes' if local >= LOCAL else 'no'}, {100 * local:.1f} %"
    if few.warps < ENOUGH:
        found = f"cannot be told of {few.warps} WARPs, at {few.setting.workers}: give it more --seconds"
    fewer = min((row.logit_bytes / row.buffer_bytes for row in rows if row.buffer_bytes), default=None)
    moved = "cannot be told, no key was moved: give it more --seconds"
    if fewer is not None:
        moved = f"{'yes' if fewer >= FEWER_BYTES else 'no'}, {fewer:.0f} times"
    return [
        f"throughput never falls by {100 * (1 - NOISE):.0f} % or more when a worker is added: {fallen}",
        f"keys found here, at least {100 * LOCAL:.0f} %: {found}",
        f"bytes, at least {FEWER_BYTES} times fewer: {moved}",
    ]


def scale_of(results: Sequence[Result], *, affinity: bool) -> list[Result]:
    """The rows that can be held against one another, by rising number of workers; one is with affinity or without."""
    pace = results[-1].setting.pace
    found = [one for one in results if one.setting.pace == pace]
    return [one for one in found if one.setting.affinity == affinity or one.setting.workers == 1]


def table_of(results: Sequence[Result], title: str, accuracy: str) -> Table:
    columns = ("workers", "affinity", "decoding", "masks/s", "speed-up", accuracy, "KEY", "local / fetched / missing")
    table = Table(*columns, "dropped", "bytes/mask", "as logits", "cores", title=title, title_justify="left")
    for column in table.columns[3:]:
        column.justify = "right"
    base = scale_of(results, affinity=True)[0]
    for one in results:
        setting = one.setting
        compared = setting.pace == base.setting.pace
        table.add_row(
            str(setting.workers), "on" if setting.affinity else "off", decoding(setting), f"{one.rate:.0f}",
            f"{one.rate / base.rate:.2f}" if compared else "", f"{one.accuracy:.2f}", f"{100 * one.key_share:.1f} %",
            f"{100 * one.local:.1f} / {100 * one.fetched:.1f} / {100 * one.missing:.1f} %", str(one.dropped),
            f"{one.buffer_bytes:.0f}", f"{one.logit_bytes:.0f}", f"{one.cores:.2f}",
        )  # fmt: skip
    return table


def decoding(setting: Setting) -> str:
    """How a row was decoded, in a word or two."""
    return "real" if not setting.pace else "emulated" + (f", 1/{setting.pace:g} pace" if setting.pace != 1 else "")


def notes_of(found: Measured, load: Load, cores: int) -> list[str]:
    """What has to be known to read the table."""
    results, costs = found.results, found.costs
    decode = ", ".join(f"{kind.name} {1000 * cost_s:.2f}" for kind, cost_s in costs.decode_s.items())
    differ = 100 * (1 - min(one.same for one in results if not one.setting.pace))
    notes = [
        f"{load.cameras} cameras, {load.under_way} packets under way of each, "
        f"deadline {load.deadline_ms or 'no'} ms; {cores} cores",
        f"one worker, decoding for real: ms to decode {decode}; to render a mask {1000 * costs.render_s:.2f}; "
        f"of its pixels {differ:.2f} % are not as an undisturbed decoder makes them",
    ]  # fmt: skip
    if results[-1].setting.pace:
        real, emulated, slow = results[:3]
        notes += [
            "EMULATED, since cores are too few: workers sleep for these times, their masks are from a decoder that "
            "ran before; queue, Redis, processes and keys are real",
            f"at the slower pace the {emulated.around_ms:.2f} ms of Python around each mask are stretched too; this "
            f"machine spends {max(one.cores for one in results[2:]):.1f} of its cores on the emulated rows at most",
            f"one worker makes {real.rate:.0f} masks/s for real, emulated {emulated.rate:.0f} "
            f"({emulated.rate / real.rate:.2f}), at the slower pace {slow.rate:.0f} ({slow.rate / real.rate:.2f})",
        ]
    return notes


def main(
    data: Annotated[Path | None, typer.Option(help="folder of CamVid; without it, the sample")] = None,
    split: Annotated[str, typer.Option(help="whose frames follow one another in time: val, or a drive")] = "val",
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    workers: Annotated[list[int] | None, typer.Option(min=1, max=64, help="how many; repeat it")] = None,
    cameras: Annotated[int, typer.Option(min=1, max=1000)] = 16,
    under_way: Annotated[int, typer.Option(min=1, help="packets of a camera that are not answered yet")] = 2,
    deadline_ms: Annotated[int, typer.Option(min=0, help="as a worker's; 0: nothing is late")] = 2000,
    frames: Annotated[int, typer.Option(min=2, help="of the video, no more than so many")] = 150,
    threshold: Annotated[float | None, typer.Option(min=0, max=100, help="of a KEY; without it, a camera's")] = None,
    emulate: Annotated[bool | None, typer.Option(help="without it, where workers outnumber cores")] = None,
    pace: Annotated[float, typer.Option(min=1, help="emulated workers are slower by so much")] = 8.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="for each row, after 1.5 s of the workers' time")] = 6.0,
    quick: Annotated[bool, typer.Option(help="1, 2, 4 and 8 workers, half the time")] = False,
    json_file: JsonFile = None,
    figure: FigureFile = None,
) -> None:
    cores = len(os.sched_getaffinity(0))
    counts = sorted({1, *(workers or ((1, 2, 4, 8) if quick else COUNTS))})
    emulated = max(counts) > cores if emulate is None else emulate
    seconds = seconds / 2 if quick else seconds
    plan = Plan(counts, pace if emulated else 0.0, warm_s=1.5, seconds=seconds)
    load = Load(cameras, under_way, deadline_ms)
    try:
        loaded = load_bundle(bundle or default_bundle())
        video = play(loaded, data=data, split=split, frames=frames, threshold=threshold, threads=1)
        found = measure(video, loaded, load=load, plan=plan, threads=1)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    console, accuracy = Console(width=150), "mIoU" if video.labelled else "agreement"
    results, notes = found.results, notes_of(found, load, cores)
    title = f"{video.name}, {len(video.packets)} frames, {loaded.manifest.name}, {load.cameras} cameras"
    title += ", workers emulated" if plan.pace else ""
    console.print(table_of(results, title, accuracy))
    console.print(*notes, *verdicts_of(results), sep="\n", soft_wrap=True)
    told = {"title": title, "bundle": loaded.manifest.hash, "accuracy": accuracy, "load": asdict(load), "notes": notes}
    told |= {"verdicts": verdicts_of(results), "results": [asdict(one) for one in results]}
    if json_file is not None:
        json_file.write_text(json.dumps(told, indent=2) + "\n")
    if figure is not None:
        draw(points_of(told), figure, title=title)


if __name__ == "__main__":
    typer.run(main)
