"""Does a change of the network pay, or was it luck? Runs of two experiments with several seeds, level by level.

    python benchmarks/seeds.py --data CAMVID --split 0006R0 \
        --runs K=0,configs/train/compare/decoder-k0.yaml,RUN,RUN,RUN \
        --runs K=3,configs/train/compare/decoder-k3.yaml,RUN,RUN,RUN [--json FILE]
    python benchmarks/seeds.py --json-from FILE

Whole frames, the networks as trained (branches not merged, which is equal to 1e-4), rates as estimated. The difference
is that of the means, with the standard error that the seeds' spread gives it; it says little where the rates differ.
Runs of one seed saw the same frames in the same order: where both variants have the same seeds, differences are taken
pair by pair, and what the seed alone does to both is no part of their error.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Self

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
class Comparison:
    """Two variants on one split: the seeds of the runs of each, and what they give at each level, in that order."""

    split: str
    seeds: dict[str, list[int]]
    levels: list[Level]

    @classmethod
    def read(cls, path: Path) -> Self:
        """What an earlier call wrote; ConfigError where that is something else."""
        try:
            kept = json.loads(path.read_bytes())
            return cls(kept["split"], kept["seeds"], [Level(**level) for level in kept["levels"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: not a comparison; give a file that --json wrote") from error

    @property
    def names(self) -> tuple[str, str]:
        """Those of the two variants."""
        first, second = self.seeds
        return first, second

    @property
    def paired(self) -> bool:
        """Whether each run of one has a run of the same seed in the other."""
        first, second = (sorted(seeds) for seeds in self.seeds.values())
        return first == second

    def gain(self, level: Level) -> "Difference":
        """How much more mIoU the second variant has than the first at a level."""
        first, second = (
            [miou for _, miou in sorted(zip(self.seeds[name], level.miou[name], strict=True))] for name in self.names
        )
        return difference(second, first, paired=self.paired)


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


def seeds_of(one: Variant) -> list[int]:
    """Of each run; ConfigError where runs differ in more than their seeds, or in no seed, or are not at their end."""
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
    return list(seen)


def measured(one: Variant, data: Path, split: str) -> list[list[Measured]]:
    """Of each run, one entry for each level; ConfigError where there are no masks."""
    experiment = load_experiment(one.config)
    if experiment.model.decoder == IMAGE:
        raise ConfigError(f"{one.config}: model.decoder image makes no masks to compare; name others")
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


def difference(these: Sequence[float], others: Sequence[float], *, paired: bool) -> Difference:
    """How much more these are than the others, each two or more; `paired` are the first of both, the second, ..."""
    if paired:
        gains = [this - other for this, other in zip(these, others, strict=True)]
        return Difference(statistics.mean(gains), math.sqrt(statistics.variance(gains) / len(gains)))
    error = math.sqrt(statistics.variance(these) / len(these) + statistics.variance(others) / len(others))
    return Difference(statistics.mean(these) - statistics.mean(others), error)


def as_table(found: Comparison) -> Table:
    """Estimated rate, mean and spread of the mIoU of two variants, and the second's mIoU less the first's."""
    first, second = found.names
    counts = " and ".join(str(len(seeds)) for seeds in found.seeds.values())
    title = f"{found.split}: {counts} seeds{', pair by pair' if found.paired else ''}; rates estimated"
    columns = [column for name in (first, second) for column in (f"{name}: bpp", f"{name}: mIoU, %")]
    table = Table("level", *columns, "difference", title=title)
    for level in found.levels:
        cells = []
        for name in (first, second):
            miou = level.miou[name]
            cells += [
                f"{statistics.mean(level.rate_bpp[name]):.4f}",
                f"{statistics.mean(miou):.2f} (sd {statistics.stdev(miou):.2f})",
            ]
        gain = found.gain(level)
        table.add_row(str(level.quality), *cells, f"{gain.miou:+.2f} (se {gain.error:.2f})")
    return table


def compare(runs: Sequence[str], data: Path, split: str) -> Comparison:
    """Measure the runs of two variants; ConfigError where they cannot be compared."""
    variants = [variant(text) for text in runs]
    if len(variants) != 2 or variants[0].name == variants[1].name:
        raise ConfigError("two variants are compared: give --runs twice, with two names")
    seeds = {one.name: seeds_of(one) for one in variants}
    return Comparison(split, seeds, by_level({one.name: measured(one, data, split) for one in variants}))


def main(
    data: Annotated[Path | None, typer.Option(help="folder of the data set")] = None,
    runs: Annotated[list[str] | None, typer.Option(help="NAME,CONFIG,RUN,RUN...; given twice")] = None,
    split: Annotated[str, typer.Option(help="split or drive")] = "val",
    json_file: JsonFile = None,
    json_from: Annotated[Path | None, typer.Option(help="print what an earlier call wrote, measure nothing")] = None,
) -> None:
    try:
        if json_from is None and (data is None or not runs):
            raise ConfigError("give --data and --runs, or --json-from")
        found = Comparison.read(json_from) if json_from else compare(runs or [], data or Path(), split)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    Console(width=120).print(as_table(found))
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(found), indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
