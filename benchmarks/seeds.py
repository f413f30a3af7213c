"""Does a change of the network pay, or was it luck? Runs of two experiments with several seeds, level by level.

    python benchmarks/seeds.py --data CAMVID --split 0006R0 \
        --runs K=0,configs/train/compare/decoder-k0.yaml,RUN,RUN,RUN \
        --runs K=3,configs/train/compare/decoder-k3.yaml,RUN,RUN,RUN [--json FILE]

Whole frames, the networks as trained (branches not merged, which is equal to 1e-4), rates as estimated. The difference
is that of the means, with the standard error that the seeds' spread gives it; it says little where the rates differ.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.checkpoint import schedule_of
from pipeline.errors import ConfigError, PipelineError
from pipeline.experiment import load_experiment
from pipeline.layouts import LAYOUTS, network_size
from pipeline.measuring import Measured, measure
from pipeline.models.assembly import IMAGE
from pipeline.options import JsonFile
from pipeline.training import load_trained


@dataclass(frozen=True, slots=True)
class Variant:
    """One experiment, and the runs of it that differ in their seeds alone."""

    name: str
    config: Path
    runs: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """One quality level: estimated bits per pixel and mIoU in % of each run, by variant."""

    quality: int
    rate_bpp: dict[str, list[float]]
    miou: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more mIoU, in %, and the standard error of that."""

    miou: float
    error: float


def variant(text: str) -> Variant:
    """`NAME,CONFIG,RUN,RUN...`; ConfigError where fewer than two runs are named."""
    name, *paths = text.split(",")
    if len(paths) < 3:
        raise ConfigError(f"runs {text!r}: write NAME,CONFIG,RUN,RUN with two runs or more")
    return Variant(name, Path(paths[0]), tuple(map(Path, paths[1:])))


def check_seeds(one: Variant) -> None:
    """ConfigError where runs differ in more than their seeds, or in no seed, or have not come to their end."""
    ours, seen = load_experiment(one.config).schedule.model_dump(), dict[int, Path]()
    for run in one.runs:
        schedule, done = schedule_of(run)
        theirs = schedule.model_dump()
        other = [key for key in ours if key != "seed" and theirs[key] != ours[key]]
        if other:
            raise ConfigError(f"run {run}: it had another schedule.{other[0]} than {one.config} says; name its own")
        if done < schedule.epochs:
            raise ConfigError(f"run {run}: {done} of {schedule.epochs} epochs are done; train it to its end")
        if schedule.seed in seen:
            raise ConfigError(f"runs {seen[schedule.seed]} and {run} have one seed, {schedule.seed}; name others")
        seen[schedule.seed] = run


def measured(one: Variant, data: Path, split: str) -> list[list[Measured]]:
    """Of each run, one entry for each level; ConfigError where there are no masks."""
    experiment = load_experiment(one.config)
    if experiment.model.decoder == IMAGE:
        raise ConfigError(f"{one.config}: model.decoder image makes no masks to compare; name others")
    check_seeds(one)
    layout = LAYOUTS[experiment.data.dataset]
    frames, classes = layout.frames(data, split), len(layout.classes(data).classes)
    size = network_size(experiment.data, frames)
    networks = (load_trained(experiment, run, classes) for run in one.runs)
    return [measure(network, frames, split, classes=classes, size=size) for network in networks]


def by_level(found: dict[str, list[list[Measured]]]) -> list[Level]:
    """The same, level by level; ConfigError where one has more levels than another."""
    counts = {len(run) for runs in found.values() for run in runs}
    if len(counts) > 1:
        raise ConfigError(f"runs of {' and '.join(map(str, sorted(counts)))} quality levels cannot be compared")
    return [
        Level(
            quality,
            {name: [run[quality].rate_bpp for run in runs] for name, runs in found.items()},
            {name: [100 * run[quality].miou for run in runs] for name, runs in found.items()},
        )
        for quality in range(*counts)
    ]


def difference(these: Sequence[float], others: Sequence[float]) -> Difference:
    """How much more these are than the others, each two or more."""
    error = math.sqrt(statistics.variance(these) / len(these) + statistics.variance(others) / len(others))
    return Difference(statistics.mean(these) - statistics.mean(others), error)


def as_table(levels: Sequence[Level], first: str, second: str, title: str) -> Table:
    """Estimated rate, mean and spread of the mIoU of two variants, and the second's mIoU less the first's."""
    columns = [column for name in (first, second) for column in (f"{name}: bpp", f"{name}: mIoU, %")]
    table = Table("level", *columns, "difference", title=title)
    for level in levels:
        cells = []
        for name in (first, second):
            miou = level.miou[name]
            cells += [
                f"{statistics.mean(level.rate_bpp[name]):.4f}",
                f"{statistics.mean(miou):.2f} (sd {statistics.stdev(miou):.2f})",
            ]
        gain = difference(level.miou[second], level.miou[first])
        table.add_row(str(level.quality), *cells, f"{gain.miou:+.2f} (se {gain.error:.2f})")
    return table


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set")],
    runs: Annotated[list[str], typer.Option(help="NAME,CONFIG,RUN,RUN...; given twice")],
    split: Annotated[str, typer.Option(help="split or drive")] = "val",
    json_file: JsonFile = None,
) -> None:
    try:
        variants = [variant(text) for text in runs]
        if len(variants) != 2 or variants[0].name == variants[1].name:
            raise ConfigError("two variants are compared: give --runs twice, with two names")
        levels = by_level({one.name: measured(one, data, split) for one in variants})
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    first, second = (one.name for one in variants)
    seeds = " and ".join(str(len(one.runs)) for one in variants)
    Console(width=120).print(as_table(levels, first, second, f"{split}: {seeds} seeds; rates estimated"))
    if json_file is not None:
        json_file.write_text(
            json.dumps({"split": split, "levels": [asdict(level) for level in levels]}, indent=2) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
