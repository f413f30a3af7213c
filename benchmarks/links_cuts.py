"""What cuts of the link leave behind: how soon masks come again after each, and whether anything is lost for good.

    python benchmarks/links_cuts.py [--cuts 50] [--cut-s 30] [--uplink webrtc ...] [--json FILE]

One camera, its gateway and all else at the two ends of an emulated link that carries nothing for a while, again and
again. It is back when a mask of a frame that was captured after the link's return has come. Before the first cut and
after each, of camera and gateway: open descriptors (sockets are among them), threads, resident memory, and asyncio's
tasks, which the node's page tells.
"""

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
from benchmarks.links_site import MQTT, WEBRTC, Node, wait_until
from benchmarks.links_watch import View
from benchmarks.netlab import Way
from pipeline.bundle import default_bundle, load_bundle
from pipeline.errors import ConfigError, PipelineError
from pipeline.options import JsonFile

BACK_S, MORE_DESCRIPTORS, MORE_THREADS, MORE_MB, MORE_TASKS = 5.0, 2.0, 1.0, 10.0, 2.0
_WAIT_S = 60.0
_SETTLED = 5  # cuts after which pools and caches are as large as they get
_TASKS = "maskcast_tasks"
_PORTS = {"camera": 9101, "gateway": 9102}


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    descriptors: int
    threads: int
    resident_mb: float
    tasks: float


@dataclass(frozen=True, slots=True)
class Cut:
    """What was after one cut: seconds until a new mask came, None if none did, and what both processes held."""

    back_s: float | None
    camera: Held
    gateway: Held


@dataclass(frozen=True, slots=True)
class Cuts:
    """All cuts of one uplink; `before` is before the first."""

    uplink: str
    cut_s: float
    before: Cut
    cuts: tuple[Cut, ...]

    @property
    def late(self) -> list[int]:
        """The cuts after which masks came later than they should, or not at all."""
        times = enumerate((one.back_s for one in self.cuts), start=1)
        return [number for number, back_s in times if back_s is None or back_s > BACK_S]

    def growth(self, node: str, what: str) -> float:
        """How much more it is at the end than when pools and caches were filled, medians of a few cuts each."""
        values = [float(getattr(getattr(one, node), what)) for one in self.cuts]
        few = min(_SETTLED, max(1, len(values) // 3))
        return float(np.median(values[-few:]) - np.median(values[few : 2 * few] if len(values) > few else values[:1]))


def held_by(node: Node, name: str) -> Held:
    """What a process holds now."""
    return Held(node.descriptors, node.threads, node.resident_mb, node.metrics(_PORTS[name])[_TASKS])


def cut_again_and_again(here: Bench, uplink: str, *, way: Way, cuts: int, cut_s: float, between_s: float) -> Cuts:
    """Cut the link of one camera so many times; its name is the uplink's."""
    camera = here.start_camera(uplink, OFF, uplink)
    here.lab.change_ways(way)
    time.sleep(between_s)
    before = Cut(0.0, held_by(camera, "camera"), held_by(here.gateway, "gateway"))
    found = []
    for _ in range(cuts):
        here.lab.change(cut=True)
        time.sleep(cut_s)
        here.lab.change(cut=False)
        back_s = _until_back(here.watch.view(uplink))
        time.sleep(between_s)
        found.append(Cut(back_s, held_by(camera, "camera"), held_by(here.gateway, "gateway")))
        here.watch.forget(uplink)
    here.end_camera(camera, uplink)
    return Cuts(uplink, cut_s, before, tuple(found))


def _until_back(view: View) -> float | None:
    """Seconds until a mask comes that was captured from now on."""
    now_ms, seen = time.time() * 1000, len(view.masks)

    def fresh() -> bool:
        return any(one.mask.captured_ms >= now_ms for one in view.masks[seen:])

    try:
        wait_until(fresh, lambda: "no mask after the cut", limit_s=_WAIT_S)
    except ConfigError:
        return None
    return (next(one.at_ms for one in view.masks[seen:] if one.mask.captured_ms >= now_ms) - now_ms) / 1000


def verdicts_of(runs: Sequence[Cuts]) -> list[str]:
    """What is to hold, and whether it does."""
    verdicts = []
    for run in runs:
        times = [one.back_s for one in run.cuts if one.back_s is not None]
        worst = f"{max(times):.1f} s at worst" if times else "never"
        late = f"no, not after cut {', '.join(map(str, run.late))}" if run.late else "yes"
        verdicts.append(
            f"{run.uplink}: masks within {BACK_S:g} s of the return from {len(run.cuts)} cuts of {run.cut_s:g} s: "
            f"{late}, {worst}"
        )
        for node in ("camera", "gateway"):
            limits = {
                "descriptors": MORE_DESCRIPTORS, "threads": MORE_THREADS, "resident_mb": MORE_MB, "tasks": MORE_TASKS
            }  # fmt: skip
            growths = {what: run.growth(node, what) for what in limits}
            leaks = any(growths[what] > limit for what, limit in limits.items())
            told = ", ".join(f"{what} {growth:+.1f}" for what, growth in growths.items())
            verdicts.append(f"{run.uplink}: {node} leaks nothing: {'no' if leaks else 'yes'}; {told}")
    return verdicts


def table_of(run: Cuts) -> Table:
    """The first cuts and the last, for people."""
    columns = ("cut", "back after s", "camera: descriptors", "threads", "MB", "tasks")
    table = Table(*columns, "gateway: descriptors", "threads", "MB", "tasks", title=f"{run.uplink}, {run.cut_s:g} s")
    rows = [(0, run.before), *enumerate(run.cuts, start=1)]
    for number, one in rows if len(rows) <= 12 else rows[:6] + rows[-6:]:
        back = "never" if one.back_s is None else f"{one.back_s:.2f}"
        table.add_row(str(number), back if number else "", *_cells(one.camera), *_cells(one.gateway))
    return table


def _cells(held: Held) -> tuple[str, str, str, str]:
    return str(held.descriptors), str(held.threads), f"{held.resident_mb:.1f}", f"{held.tasks:.0f}"


def main(
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    uplink: Annotated[list[str] | None, typer.Option(help="mqtt or webrtc; repeat it")] = None,
    cuts: Annotated[int, typer.Option(min=1)] = 50,
    cut_s: Annotated[float, typer.Option(min=0.1, help="seconds of each")] = 30.0,
    between_s: Annotated[float, typer.Option(min=0, help="seconds from the return to the next")] = 3.0,
    rtt_ms: Annotated[float, typer.Option(min=0, help="half of it each way")] = 80.0,
    loss: Annotated[float, typer.Option(min=0, max=100, help="percent, on each way")] = 0.0,
    json_file: JsonFile = None,
) -> None:
    way, runs, console = Way(delay_ms=rtt_ms / 2, loss=loss / 100), list[Cuts](), Console(width=150)
    try:
        loaded = load_bundle(bundle or default_bundle())
        for one in uplink or (MQTT, WEBRTC):
            with bench(loaded, None) as here:
                runs.append(cut_again_and_again(here, one, way=way, cuts=cuts, cut_s=cut_s, between_s=between_s))
                console.print(table_of(runs[-1]))
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    title = f"{cuts} cuts of {cut_s:g} s, {between_s:g} s between, round trip {rtt_ms:g} ms, loss {loss:g} %"
    console.print(title, *verdicts_of(runs), sep="\n", soft_wrap=True)
    told = {"title": title, "verdicts": verdicts_of(runs), "runs": [asdict(run) for run in runs]}
    write_json(told, json_file)


if __name__ == "__main__":
    typer.run(main)
