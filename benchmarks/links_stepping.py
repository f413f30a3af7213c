"""How rate control follows a link that changes: one camera over a link whose rate steps down and up again.

    python benchmarks/links_stepping.py [--data CAMVID] [--uplink webrtc] [--control rule] [--rate 1000 --rate 100 ...]
                                        [--seconds 18] [--json FILE] [--figure FILE]

Sampled at the link itself: how long a packet that comes now would wait for the wire, and what the wire carried, IP
headers in; level and masks as they come out at the far end. A step is over when the queueing delay is under 300 ms to
stay. The camera may send a KEY of the highest level in every frame. Use is what was carried, from 3 s after each step,
of what the link would have allowed, or of those KEYs where that is less.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.links import Bench, bench, plain, write_json
from benchmarks.links_figure import draw
from benchmarks.links_site import WEBRTC
from benchmarks.links_watch import View
from benchmarks.netlab import Way
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.errors import ConfigError, PipelineError
from pipeline.options import FigureFile, JsonFile

RATES = (1000.0, 100.0, 40.0, 400.0)
SETTLED_MS, SETTLE_S, LEAST_USE, LEAST_FPS = 300.0, 3.0, 0.7, 5.0
SAMPLE_S, BIN_S = 0.1, 0.5
_LATE_S = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The link at a time: seconds since the first step, its rate, its queueing delay, bytes carried so far."""

    at_s: float
    rate_kbit_s: float
    queue_ms: float
    carried_bytes: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet that came out at the far end: when, its size, its quality level."""

    at_s: float
    size_bytes: int
    level: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A mask that came out at the far end: when, how long after its capture."""

    at_s: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Trace:
    """All that was seen, by time."""

    samples: tuple[Sample, ...]
    arrivals: tuple[Arrival, ...]
    shown: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One rate of the link: seconds until the queue was short to stay, None if never; from SETTLE_S on the rest.

    `use` is of what the link gives and the video at its best takes, the lesser of the two; `least_fps` of any second.
    """

    rate_kbit_s: float
    settled_s: float | None
    most_queue_ms: float
    use: float
    fps: float
    least_fps: float
    p95_ms: float


def best_of(bundle: Bundle) -> dict[str, str]:
    """Settings that let a camera send a KEY of the highest level in every frame."""
    top = max(level.index for level in bundle.manifest.quality_levels)
    return {"ENCODER__QUALITY": str(top), "ENCODER__THRESHOLD": "100"}


def follow(here: Bench, rates: Sequence[float], *, way: Way, seconds: float, **camera: str) -> Trace:
    """Play the steps to a camera that runs, over this `uplink`, with this `control` and other settings."""
    running, samples = here.start_camera(camera.pop("uplink"), camera.pop("control"), "cam-1", **camera), list[Sample]()
    began_s = time.time()
    for number, rate in enumerate(rates):
        here.lab.change_ways(Way(rate, way.delay_ms, way.jitter_ms, way.loss, way.queue_kib))
        while (at_s := time.time() - began_s) < (number + 1) * seconds:
            up, _ = here.lab.counts()
            samples.append(Sample(at_s, rate, 1000 * here.lab.up.seconds(up.waiting_bytes), up.carried_bytes))
            time.sleep(SAMPLE_S)
    time.sleep(_LATE_S)
    here.end_camera(running, "cam-1")
    return _trace(samples, here.watch.forget("cam-1"), began_s)


def _trace(samples: Sequence[Sample], view: View, began_s: float) -> Trace:
    arrivals = [Arrival(seen.at_ms / 1000 - began_s, len(seen.data), seen.packet.quality) for seen in view.packets]
    shown = [Shown(seen.at_ms / 1000 - began_s, seen.latency_ms) for seen in view.masks]
    return Trace(
        tuple(samples), tuple(one for one in arrivals if one.at_s >= 0), tuple(one for one in shown if one.at_s >= 0)
    )


def steps_of(trace: Trace, *, seconds: float, most_kbit_s: float) -> list[Step]:
    """What is to be told of each step; ConfigError where there are no samples."""
    if not trace.samples:
        raise ConfigError("nothing was sampled: measure for longer")
    groups = itertools.groupby(trace.samples, key=lambda one: int(one.at_s // seconds))
    return [_step(list(samples), trace.shown, number * seconds, most_kbit_s) for number, samples in groups]


def _step(samples: Sequence[Sample], shown: Sequence[Shown], since_s: float, most_kbit_s: float) -> Step:
    late = [one.at_s for one in samples if one.queue_ms >= SETTLED_MS]
    settled = [one for one in samples if one.at_s >= since_s + SETTLE_S]
    first, last = settled[0], settled[-1]
    kbit = (last.carried_bytes - first.carried_bytes) * 8 / 1000
    ours = [one for one in shown if first.at_s <= one.at_s < last.at_s]
    seconds = np.arange(first.at_s, last.at_s, 1.0)
    per_second = np.histogram([one.at_s for one in ours], seconds)[0] if len(seconds) > 1 else np.zeros(1)
    allowed_kbit = min(first.rate_kbit_s, most_kbit_s) * (last.at_s - first.at_s)
    return Step(
        rate_kbit_s=first.rate_kbit_s,
        settled_s=_settled(late, samples[-1].at_s, since_s),
        most_queue_ms=max(one.queue_ms for one in samples),
        use=kbit / allowed_kbit,
        fps=len(ours) / (last.at_s - first.at_s),
        least_fps=float(per_second.min()),
        p95_ms=float(np.percentile([one.latency_ms for one in ours], 95)) if ours else float("nan"),
    )


def _settled(late: Sequence[float], end_s: float, since_s: float) -> float | None:
    """Seconds from a step to the end of the last moment that was late; None where that is the step's end."""
    if not late:
        return 0.0
    return late[-1] - since_s if end_s - late[-1] > SAMPLE_S * 2 else None


def columns_of(trace: Trace) -> dict[str, dict[str, list[float]]]:
    """The same for JSON, field by field, in as many digits as mean something."""
    columns: dict[str, dict[str, list[float]]] = {}
    for name, rows in asdict(trace).items():
        columns[name] = {key: [round(row[key], 2) for row in rows] for key in (rows[0] if rows else ())}
    return columns


def verdicts_of(steps: Sequence[Step]) -> list[str]:
    """What is to hold, and whether it does."""
    slow = [one for one in steps if one.settled_s is None or one.settled_s > SETTLE_S]
    thin = min(steps, key=lambda one: one.rate_kbit_s)
    idle = [one for one in steps if one.use < LEAST_USE]
    return [
        f"queueing delay under {SETTLED_MS:g} ms within {SETTLE_S:g} s of each step: {_answer(slow)}",
        f"at least {LEAST_FPS:g} masks/s at {thin.rate_kbit_s:g} kbit/s: "
        f"{'yes' if thin.fps >= LEAST_FPS else 'no'}, {thin.fps:.1f}, in the worst second {thin.least_fps:.0f}",
        f"use at least {100 * LEAST_USE:g} % of what the link gives and the video takes: {_answer(idle)}",
    ]


def _answer(faults: Sequence[Step]) -> str:
    return "no, not at " + ", ".join(f"{one.rate_kbit_s:g}" for one in faults) + " kbit/s" if faults else "yes"


def table_of(steps: Sequence[Step], title: str) -> Table:
    """All steps, for people."""
    columns = ("kbit/s", "under 300 ms after", "longest queue ms", "use", "masks/s", "least in a second", "p95 ms")
    table = Table(*columns, title=title)
    for one in steps:
        settled = "never" if one.settled_s is None else f"{one.settled_s:.1f} s"
        table.add_row(
            f"{one.rate_kbit_s:g}", settled, f"{one.most_queue_ms:.0f}", f"{100 * one.use:.0f} %", f"{one.fps:.1f}",
            f"{one.least_fps:.0f}", f"{one.p95_ms:.0f}",
        )  # fmt: skip
    return table


def main(
    data: Annotated[Path | None, typer.Option(help="folder of CamVid; without it, the sample")] = None,
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    uplink: Annotated[str, typer.Option(help="mqtt or webrtc")] = WEBRTC,
    control: Annotated[str, typer.Option(help="off, rule or bandit")] = "rule",
    rate: Annotated[list[float] | None, typer.Option(min=1, help="kbit/s of a step; repeat it")] = None,
    seconds: Annotated[float, typer.Option(min=5, help="of each step")] = 18.0,
    rtt_ms: Annotated[float, typer.Option(min=0, help="half of it each way")] = 40.0,
    loss: Annotated[float, typer.Option(min=0, max=100, help="percent, on each way")] = 0.0,
    queue_kib: Annotated[float, typer.Option(min=1, help="that wait for the link at most")] = 64.0,
    json_file: JsonFile = None,
    figure: FigureFile = None,
) -> None:
    way = Way(delay_ms=rtt_ms / 2, loss=loss / 100, queue_kib=queue_kib)
    try:
        loaded = load_bundle(bundle or default_bundle())
        with bench(loaded, data) as here:
            camera = {"uplink": uplink, "control": control, **best_of(loaded)}
            trace = follow(here, rate or RATES, way=way, seconds=seconds, **camera)
            steps = steps_of(trace, seconds=seconds, most_kbit_s=here.footage.most_kbit_s)
            title = f"{here.footage.name} at {here.footage.fps:g} Hz over {uplink}, control {control}, {rtt_ms:g} ms"
            most = f"the video's best takes {here.footage.most_kbit_s:.0f} kbit/s"
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    console = Console(width=150)
    console.print(table_of(steps, title))
    console.print(most, *verdicts_of(steps), sep="\n", soft_wrap=True)
    told: dict[str, Any] = {"title": title, "bundle": loaded.manifest.hash, "notes": [most]}
    told |= {"verdicts": verdicts_of(steps), "steps": [asdict(one) for one in steps], **columns_of(trace)}
    write_json(told, json_file)
    if figure is not None:
        draw(figure, compared=None, followed=plain(told))


if __name__ == "__main__":
    typer.run(main)
