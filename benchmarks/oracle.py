"""The most that any trigger could save: KEYs and WARPs as a camera would choose them that knew every mask beforehand.

    python benchmarks/oracle.py --data CAMVID [--split val] [--bundle B] [--level Q] [--json FILE]
    python benchmarks/oracle.py --clip FILE [--frames N] ...

Whole frames. For each price of a byte the sequence of kinds, ages and levels is found that is best of all there are
(dynamic programming over all frames), by bytes and by the pixels that differ from a KEY of `level` in every frame.
Beside it the best of all fixed intervals, of any level up to that: what lies between the two is to be gained by
deciding well. Bytes of packets, all overhead in; masks at the logits' stride of 4.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.footage import Footage, Image, open_coders
from benchmarks.targets import TARGETS, least_at
from benchmarks.temporal import video_of
from benchmarks.temporal_tables import shown
from pipeline.accuracy import confusion, mean_iou
from pipeline.bitstream import pack
from pipeline.bundle import default_bundle, load_bundle
from pipeline.codec import check_quality
from pipeline.datasets import classes_at
from pipeline.errors import PipelineError
from pipeline.messages import FrameId, Kind, Packet, Region
from pipeline.options import JsonFile

INTERVALS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
LONGEST_AGE = 12
PRICES = tuple(float(one) for one in np.geomspace(0.3, 60, 24))  # percent of the pixels for 1000 bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """What a frame is: a KEY, of age 0, or a WARP of the KEY so many frames before; the KEY's level."""

    age: int
    level: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one choice: bytes of the packet, percent of the pixels that differ."""

    sent_bytes: int
    differing: float


Costs = Sequence[Mapping[Choice, Cost]]
"""By frame, what each choice costs; those that the frame cannot have are not there."""


@dataclass(frozen=True, slots=True)
class Point:
    """One sequence: its share of the bytes of a KEY in every frame, the pixels that differ, in percent; mIoU lost."""

    name: str
    share: float
    differing: float
    miou_loss: float | None


def costs_of(footage: Footage, level: int, *, longest_age: int) -> list[dict[Choice, Cost]]:
    """What each frame costs as a KEY of each level up to this one, or as a WARP of one of those before."""
    found = []
    for frame in range(len(footage)):
        fresh, own = footage.mask(frame, 0, level), dict[Choice, Cost]()
        for age, one in itertools.product(range(min(frame, longest_age) + 1), range(level + 1)):
            body = footage.moved(frame, age, one).body_bytes if age else footage.key_bytes(frame, one)
            differing = 100 * float(np.mean(footage.mask(frame, age, one) != fresh))
            own[Choice(age, one)] = Cost(packet_bytes(body), differing)
        found.append(own)
    return found


def packet_bytes(body_bytes: int) -> int:
    """Of a packet with one region."""
    return len(pack(Packet(FrameId(0, 0), 0, bytes(4), 0, 1, 1, (Region(Kind.KEY, 0, 0, bytes(body_bytes)),))))


def best(costs: Costs, price: float) -> list[Choice]:
    """The choices, frame by frame, whose sum of pixels that differ and of bytes, at a price per 1000, is least."""
    ways: list[dict[Choice, tuple[float, Choice | None]]] = []
    for own in costs:
        before = ways[-1] if ways else {}
        cheapest = min(before, key=lambda one: before[one][0]) if before else None
        now: dict[Choice, tuple[float, Choice | None]] = {}
        for choice, cost in own.items():
            come_from = cheapest if choice.age == 0 else Choice(choice.age - 1, choice.level)
            if come_from is not None and come_from not in before:
                continue
            so_far = 0.0 if come_from is None else before[come_from][0]
            now[choice] = (so_far + cost.differing + price * cost.sent_bytes / 1000, come_from)
        ways.append(now)
    chosen = [min(ways[-1], key=lambda one: ways[-1][one][0])]
    for way in reversed(ways):
        _, come_from = way[chosen[-1]]
        chosen += [come_from] if come_from else []
    return chosen[::-1]


def at_interval(frames: int, interval: int, level: int) -> list[Choice]:
    return [Choice(frame % interval, level) for frame in range(frames)]


def point_of(
    name: str, choices: Sequence[Choice], costs: Costs, footage: Footage, labels: Sequence[Image] | None, level: int
) -> Point:
    """What a sequence costs, beside a KEY of `level` in every frame."""
    spent = [own[choice] for own, choice in zip(costs, choices, strict=True)]
    whole = sum(own[Choice(0, level)].sent_bytes for own in costs)
    every = [Choice(0, level)] * len(costs)
    loss = None if labels is None else miou_of(every, footage, labels) - miou_of(choices, footage, labels)
    share = sum(one.sent_bytes for one in spent) / whole
    return Point(name, share, float(np.mean([one.differing for one in spent])), loss)


def miou_of(choices: Sequence[Choice], footage: Footage, labels: Sequence[Image]) -> float:
    """In percent, of masks enlarged to the labels."""
    classes = len(footage.bundle.palette)
    matrix = np.zeros((classes, classes), np.int64)
    for frame, (choice, truth) in enumerate(zip(choices, labels, strict=True)):
        matrix += confusion(truth, classes_at(footage.mask(frame, choice.age, choice.level), truth.shape), classes)
    return 100 * mean_iou(matrix)


def tables_of(fixed: Sequence[Point], free: Sequence[Point], title: str) -> tuple[Table, Table]:
    every = Table("sequence", "bits", "differ", "mIoU lost", title=title, title_justify="left")
    for one in (*fixed, *free):
        every.add_row(one.name, f"{100 * one.share:.1f} %", f"{one.differing:.2f} %", shown(one.miou_loss, 2))
    sums = Table("bits", "best fixed interval", "knowing all", "to gain")
    for share, _ in TARGETS:
        ours, most = (least_at(((one.share, one.differing) for one in points), share) for points in (fixed, free))
        gain = None if ours is None or most is None else ours - most
        sums.add_row(f"{100 * share:.0f} %", *(shown(one, 2) for one in (ours, most, gain)))
    return every, sums


def main(
    data: Annotated[Path | None, typer.Option(help="folder of CamVid")] = None,
    split: Annotated[str, typer.Option(help="whose frames follow one another in time: val, or a drive")] = "val",
    clip: Annotated[Path | None, typer.Option(help="clip, or directory of images, without labels")] = None,
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    level: Annotated[int | None, typer.Option(help="level all is held against; without it, the default")] = None,
    frames: Annotated[int, typer.Option(min=2, help="no more than so many")] = 200,
    engine: Annotated[str, typer.Option()] = "auto",
    json_file: JsonFile = None,
) -> None:
    try:
        loaded = load_bundle(bundle or default_bundle())
        top = check_quality(loaded, loaded.manifest.default_quality if level is None else level)
        video = video_of(loaded, data=data, split=split, clip=clip, frames=frames)
        footage = Footage(video.name, video.images, fps=25.0, coders=open_coders(loaded, engine=engine))
        costs = costs_of(footage, top, longest_age=LONGEST_AGE)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    count = len(video.images)
    fixed = [
        point_of(f"level {one}, interval {n}", at_interval(count, n, one), costs, footage, video.labels, top)
        for one, n in itertools.product(range(top + 1), INTERVALS)
    ]
    free = [
        point_of(f"knowing all, price {price:.2g}", best(costs, price), costs, footage, video.labels, top)
        for price in PRICES
    ]
    title = f"{video.name}, {count} frames, {loaded.manifest.name}, held against level {top}"
    Console(width=150).print(*tables_of(fixed, free, title))
    if json_file is not None:
        described = {"video": video.name, "frames": count, "bundle": loaded.manifest.hash, "level": top}
        points = {"fixed": [asdict(one) for one in fixed], "knowing_all": [asdict(one) for one in free]}
        json_file.write_text(json.dumps({**described, **points}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
