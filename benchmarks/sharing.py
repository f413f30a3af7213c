"""What it costs that all quality levels share one network: beside networks that learned for one rate alone.

    python benchmarks/sharing.py --data CAMVID --shared BUNDLE --alone BUNDLE [--alone BUNDLE ...] \
        [--split val] [--split 0006R0] [--json FILE]

`--shared` has all levels, each `--alone` the one whose bits weigh as those of a level there
(`configs/train/compare/shared.yaml`, `single-*.yaml`). Whole frames, bits of packets. At equal bits means against the
curve through the levels of the shared network; where that does not reach as far, there is no such figure.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.bd_rate import NoOverlap, Point, bd_miou, pareto_front
from pipeline.bundle import Bundle, load_bundle
from pipeline.datasets import Labelled, camvid
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluation import evaluate
from pipeline.options import JsonFile
from pipeline.restoring import network_of


@dataclass(frozen=True, slots=True)
class Compared:
    """One level on one split: bits per pixel and mIoU (0..1) of both, and how much more it is alone, if that is known.

    `gain` is in mIoU (0..1) at the bits of the network that learned alone.
    """

    split: str
    level: int
    shared: Point
    alone: Point
    gain: float | None


def level_of(alone: Bundle, shared: Bundle) -> int:
    """The level of the shared network that a network of one level learned for; ConfigError where there is none."""
    weights, theirs = network_of(alone).rate, network_of(shared).rate
    if len(weights) != 1:
        raise ConfigError(f"bundle {alone.path}: {len(weights)} quality levels; name one that learned for one rate")
    if weights[0] not in theirs:
        known = ", ".join(f"{weight:g}" for weight in theirs)
        raise ConfigError(f"bundle {alone.path}: its bits weigh {weights[0]:g}, those of {shared.path} {known}")
    return theirs.index(weights[0])


def compare(curve: Sequence[Point], alone: Point, *, split: str, level: int) -> Compared:
    """One network that learned alone beside the curve of all levels of the shared one."""
    front = pareto_front(curve)
    gain: float | None = alone.miou - front[-1].miou  # where more bits no longer help
    if not front[-1].rate_bpp < alone.rate_bpp <= max(one.rate_bpp for one in curve):
        try:
            gain = bd_miou(front, [alone]).value
        except NoOverlap:
            gain = None
    return Compared(split, level, curve[level], alone, gain)


def points_of(bundle: Bundle, frames: Labelled, split: str) -> list[Point]:
    """What each level makes of the frames, the cheapest first."""
    found = (evaluate(bundle, frames, split=split, quality=level) for level in range(bundle.tables.levels))
    return [Point(one.rate_bpp, one.miou) for one in found]


def as_table(found: Sequence[Compared]) -> Table:
    columns = ("level", "all: bpp", "mIoU, %", "alone: bpp", "mIoU, %", "alone, at equal bits")
    table = Table("split", *columns, title="one network for all rates, and for one alone")
    for one in found:
        points = [text for at in (one.shared, one.alone) for text in (f"{at.rate_bpp:.4f}", f"{100 * at.miou:.2f}")]
        gain = "out of reach" if one.gain is None else f"{100 * one.gain:+.2f}"
        table.add_row(one.split, str(one.level), *points, gain)
    return table


def main(
    data: Annotated[Path, typer.Option(help="folder of CamVid")],
    shared: Annotated[Path, typer.Option(help="bundle of all rates")],
    alone: Annotated[list[Path], typer.Option(help="bundle of one of them; repeatable")],
    split: Annotated[list[str] | None, typer.Option(help="split or drive; repeatable")] = None,
    json_file: JsonFile = None,
) -> None:
    try:
        whole, singles = load_bundle(shared), [load_bundle(path) for path in alone]
        levels = [level_of(one, whole) for one in singles]
        found = []
        for name in split or ["val"]:
            frames = camvid(data, name)
            curve = points_of(whole, frames, name)
            for level, single in zip(levels, singles, strict=True):
                (point,) = points_of(single, frames, name)
                found.append(compare(curve, point, split=name, level=level))
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    Console(width=120).print(as_table(found))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
