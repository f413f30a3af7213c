"""What choosing operating points is worth: rule, bandit and fixed points on simulated links, held against true masks.

    python benchmarks/rate_control.py [--clip FILE ...] [--data CAMVID] [--seconds 120] [--json FILE] [--figure PNG]
    python benchmarks/rate_control.py --fit        prints the first weights of the bandit, from the training links

Without a video the sample is used. Rewards are those of pipeline/reward.py, but by true agreement with a fresh mask of
the highest level at every frame of the source, and by when masks really came. Every video meets every link; seeds of
the links differ between fitting and measuring, and two kinds of links are in the latter alone.
"""

import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.footage import Coders, Footage, open_coders
from benchmarks.link_kinds import HELD_OUT, STEP_S, STEPS_KBIT_S, TRAINING, the_steps
from benchmarks.rate_control_figure import Line, draw
from benchmarks.simulated_camera import Constant, Outcome, SimulatedCamera
from pipeline.bandit import FEATURES, Bandit
from pipeline.bundle import default_bundle, load_bundle
from pipeline.choosing import Chooser, Ruled
from pipeline.datasets import camvid
from pipeline.errors import PipelineError
from pipeline.operating_points import CostModel, Ladder, OperatingPoint, points_of
from pipeline.options import FigureFile, JsonFile
from pipeline.sources import fit, open_source
from pipeline.video import sample_path

FIXED = (OperatingPoint(5, 98.0, 25.0), OperatingPoint(3, 94.0, 25.0), OperatingPoint(3, 96.0, 12.5))
FLOOR, WINDOW_S = 0.95, 30
START_S = 2  # until the first masks are there
CAMVID_FPS = 15.0
MEASURED_SEEDS, FITTED_SEEDS = 200, 1  # the first of each

Choosers = dict[str, Callable[[], Chooser]]


@dataclass(frozen=True, slots=True)
class Result:
    """One chooser on one link with one video; rewards, agreement in percent; latency of masks in ms.

    `below`: share of the windows of 30 s in which the reward is under 95 % of the rule's; `least`: its least multiple
    of the rule's in such a window. `correlation`: of rewards as the camera measures them with the true ones.
    """

    video: str
    link: str
    held_out: bool
    seed: int
    chooser: str
    reward: float
    agreement: float
    p95_ms: float
    kbit_s: float
    below: float
    least: float
    correlation: float | None


def choosers_of(footage: Footage, coders: Coders) -> Choosers:
    """What is compared, the rule first."""
    manifest = coders.bundle.manifest
    points = points_of(manifest, fps=footage.fps)

    def ladder() -> Ladder:
        return Ladder(points, CostModel(manifest))

    choosers: Choosers = {"rule": lambda: Ruled(ladder()), "bandit": lambda: Bandit(ladder())}
    for point in FIXED:
        fps = min(point.fps, footage.fps)
        name = f"level {point.quality}, {point.threshold:g} %, {point.fps:g} fps at most"
        choosers[name] = lambda point=point, fps=fps: Constant(OperatingPoint(point.quality, point.threshold, fps))
    return choosers


def compare(footage: Footage, choosers: Choosers, *, seconds: int, seeds: int) -> Iterator[Result]:
    """Everything on every link."""
    for (link, kind), number in itertools.product({**TRAINING, **HELD_OUT}.items(), range(seeds)):
        seed, ruled = MEASURED_SEEDS + number, None
        trace = kind(seed, seconds)
        for name, opened in choosers.items():
            found = SimulatedCamera(footage, opened(), trace, seconds=seconds, seed=seed).run()
            ruled = ruled or found
            yield result_of(found, ruled, name=name, link=link, video=footage.name, seed=seed)


def result_of(found: Outcome, ruled: Outcome, *, name: str, link: str, video: str, seed: int) -> Result:
    """The figures of one run, beside the rule's on the same link."""
    own, of_rule = (windows(one.rewards[START_S:]) for one in (found, ruled))
    start = round(START_S * len(found.agreement) / len(found.rewards))
    return Result(
        video=video,
        link=link,
        held_out=link in HELD_OUT,
        seed=seed,
        chooser=name,
        reward=float(found.rewards[START_S:].mean()),
        agreement=float(found.agreement[start:].mean()),
        p95_ms=1000 * float(np.percentile(found.latencies_s, 95)),
        kbit_s=float(found.kbit_s.mean()),
        below=float(np.mean(own < FLOOR * of_rule)),
        least=float(np.min(own / of_rule)),
        correlation=correlation(found),
    )


def windows(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over 30 s, from every second on."""
    return np.convolve(rewards, np.ones(WINDOW_S) / WINDOW_S, "valid")


def correlation(found: Outcome) -> float | None:
    """Of measured with true rewards, over seconds; None for a chooser that measures none."""
    known = np.isfinite(found.measured)
    known[:START_S] = False
    if known.sum() < START_S:
        return None
    return float(np.corrcoef(found.measured[known], found.rewards[known])[0, 1])


def fitted(footages: Sequence[Footage], coders: Coders, *, seconds: int, seeds: int) -> NDArray[np.float64]:
    """Means (F,) of what bandits learn on the training links that know nothing at first."""
    learned = []
    for footage, kind, seed in itertools.product(footages, TRAINING.values(), range(seeds)):
        points = points_of(coders.bundle.manifest, fps=footage.fps)
        bandit = Bandit(Ladder(points, CostModel(coders.bundle.manifest)), prior=[0.0] * len(FEATURES))
        trace = kind(FITTED_SEEDS + seed, seconds)
        SimulatedCamera(footage, bandit, trace, seconds=seconds, seed=FITTED_SEEDS + seed).run()
        learned.append(bandit.model.weights)
    return np.mean(learned, axis=0)


def table_of(results: Sequence[Result]) -> Table:
    """Means over videos and seeds, by link and chooser."""
    columns = ("reward", "against rule", "agreement", "p95 ms", "kbit/s", "windows below 95 %", "least", "correlation")
    table = Table("link", "chooser", *columns, title_justify="left")
    names = list(dict.fromkeys(one.chooser for one in results))
    for link, name in itertools.product(dict.fromkeys(one.link for one in results), names):
        found = [one for one in results if (one.link, one.chooser) == (link, name)]
        ruled = [one for one in results if (one.link, one.chooser) == (link, names[0])]
        known = [one.correlation for one in found if one.correlation is not None]
        gains = [one.reward - other.reward for one, other in zip(found, ruled, strict=True)]
        table.add_row(
            link + (" (held out)" if found[0].held_out else ""),
            name,
            f"{statistics.mean(one.reward for one in found):.2f}",
            f"{statistics.mean(gains):+.2f}",
            f"{statistics.mean(one.agreement for one in found):.2f}",
            f"{statistics.mean(one.p95_ms for one in found):.0f}",
            f"{statistics.mean(one.kbit_s for one in found):.0f}",
            f"{100 * statistics.mean(one.below for one in found):.1f} %",
            f"{min(one.least for one in found):.3f}",
            f"{statistics.mean(known):.2f}" if known else "-",
            end_section=name == names[-1],
        )
    return table


def lines_of(footage: Footage, choosers: Choosers) -> list[Line]:
    """Rule and bandit on the steps of the figure."""
    seconds, lines = round(STEP_S * len(STEPS_KBIT_S)), []
    for name in ("rule", "bandit"):
        found = SimulatedCamera(footage, choosers[name](), the_steps(), seconds=seconds).run()
        lines.append(Line(name, found.kbit_s, found.targets, 1000 * found.queues_s, found.rewards))
    return lines


def videos_of(clips: Sequence[Path], data: Path | None, coders: Coders, *, frames: int) -> list[Footage]:
    """The videos that are named, or the sample."""
    manifest, found = coders.bundle.manifest, []
    for clip in clips or ([] if data else [sample_path()]):
        with open_source(str(clip), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
            pictures = itertools.islice(opened.pictures, frames)
            images = [fit(one.image, (manifest.width, manifest.height)) for one in pictures]
            found.append(Footage(clip.stem, images, fps=opened.origin.fps, coders=coders))
    if data is not None:
        images = [fit(one, (manifest.width, manifest.height)) for one in camvid(data, "val").images[:frames]]
        found.append(Footage("camvid val", images, fps=CAMVID_FPS, coders=coders))
    return found


def main(
    clip: Annotated[list[Path] | None, typer.Option(help="a video; repeat it")] = None,
    data: Annotated[Path | None, typer.Option(help="folder of CamVid: its val run too")] = None,
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    seconds: Annotated[int, typer.Option(min=40, help="of each link")] = 120,
    seeds: Annotated[int, typer.Option(min=1, help="links of each kind")] = 2,
    frames: Annotated[int, typer.Option(min=2, help="of each video, at most")] = 400,
    fit_weights: Annotated[bool, typer.Option("--fit", help="print the bandit's first weights instead")] = False,
    json_file: JsonFile = None,
    figure: FigureFile = None,
) -> None:
    console = Console(width=160)
    try:
        coders = open_coders(load_bundle(bundle or default_bundle()))
        footages = videos_of(clip or [], data, coders, frames=frames)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    if fit_weights:
        weights = fitted(footages, coders, seconds=seconds, seeds=seeds)
        console.print("PRIOR_WEIGHTS = (" + ", ".join(f"{weight:.2f}" for weight in weights) + ")")
        return
    results = []
    for footage in footages:
        results += list(compare(footage, choosers_of(footage, coders), seconds=seconds, seeds=seeds))
    console.print(table_of(results))
    if json_file is not None:
        described = {"bundle": coders.bundle.manifest.hash, "seconds": seconds, "seeds": seeds}
        json_file.write_text(json.dumps({**described, "results": [asdict(one) for one in results]}, indent=2) + "\n")
    if figure is not None:
        draw(lines_of(footages[0], choosers_of(footages[0], coders)), figure, steps=list(STEPS_KBIT_S), step_s=STEP_S)


if __name__ == "__main__":
    typer.run(main)
