"""MQTT against WebRTC over thin, long and lossy links: how fast masks come, how many in time, how right the picture is.

    python benchmarks/links.py [--data CAMVID] [--link 150/5 ...] [--rate 256 ...] [--uplink webrtc ...]
                               [--control off ...] [--seconds 20] [--json FILE]

One camera at one end of an emulated link (`netlab`; root is needed), and all else at the other, each a process of its
own. A link is given as round trip in ms, half of it each way, and loss in percent, on each way, such as 150/5; its
rate is that of each way. The camera starts over a perfect link; when its first masks have come the link becomes what
it is to be, and after a while it is measured. With `--control rule` the camera fits its rate to the link, with `off`
it sends what its settings make of the video.

How MQTT's latency is to be read: it runs over TCP, whose bytes arrive in order, so that one lost segment holds up all
that come after it until it was sent again. QoS 0 changes nothing about that. Over WebRTC what is lost stays lost.
"""

import json
import math
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.links_score import SHOWN_MS, Score, Span, score
from benchmarks.links_site import MQTT, WEBRTC, Node, Site, wait_until
from benchmarks.links_video import Footage, camvid_footage, sample_footage
from benchmarks.links_watch import Watch
from benchmarks.netlab import Netlab, Way
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.errors import ConfigError, PipelineError
from pipeline.options import JsonFile

LINKS, RATES, OFF = ("20/0", "80/1", "150/5"), (64, 256, 1000), "off"
FIRST_MASKS = 5
_START_S, _LATE_S = 60.0, 3.0
_ROW = re.compile(r"\[[-+.eE0-9,\s]+\]")
_NOTE = "links: round trip ms / loss on each way in %, half the delay each way; queue {:g} KiB; TCP congestion {}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: what carries the packets, over which link, and whether the camera fits its rate to it."""

    uplink: str
    control: str
    rtt_ms: float
    loss: float
    rate_kbit_s: float
    queue_kib: float

    @property
    def way(self) -> Way:
        """The link, which is the same both ways."""
        return Way(self.rate_kbit_s, self.rtt_ms / 2, loss=self.loss, queue_kib=self.queue_kib)

    @property
    def link(self) -> str:
        """As it is given on the command line."""
        return f"{self.rtt_ms:g}/{100 * self.loss:g}"


@dataclass(frozen=True, slots=True)
class Result:
    """A row, and what was measured: kbit/s that the link took from the camera, IP headers in, and refused packets."""

    setting: Setting
    score: Score
    sent_kbit_s: float
    refused: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How each row is measured."""

    warm_s: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Both ends of a link, with a gateway and a worker that are ready, and what a camera is to play."""

    lab: Netlab
    site: Site
    gateway: Node
    watch: Watch
    bundle: Bundle
    footage: Footage

    def start_camera(self, uplink: str, control: str, name: str, *, near: bool = False, **settings: str) -> Node:
        """Start a camera over a perfect link, or near all else, and wait until masks come."""
        self.lab.change_ways(Way())
        words, settings = ("--name", name, *self.footage.words), {"SOURCE__FPS": f"{self.footage.fps:g}"} | settings
        if control != OFF:
            settings["RATE__MODE"] = control
        if near:
            settings["HEALTH__PORT"] = "0"
        camera, view = self.site.camera(uplink, *words, near=near, **settings), self.watch.view(name)
        wait_until(lambda: len(view.masks) >= FIRST_MASKS or not camera.alive, self.site.logs, limit_s=_START_S)
        if not camera.alive:
            raise ConfigError(f"the camera ended: {camera.log.read_text()[-2000:]}")
        return camera

    def end_camera(self, camera: Node, name: str) -> None:
        """Stop a camera, over a perfect link again."""
        self.lab.change_ways(Way())
        camera.stop()
        self.watch.wait_state(name, "stopped", limit_s=_START_S, why=self.site.logs)


@contextmanager
def bench(bundle: Bundle, data: Path | None, *, congestion: str | None = None) -> Iterator[Bench]:
    """Make all that a measurement needs, with a TCP of this kind, or the machine's own; raises ConfigError."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        footage = sample_footage(bundle) if data is None else camvid_footage(bundle, data, folders[0])
        lab = stack.enter_context(Netlab())
        if congestion is not None:
            lab.use_congestion(congestion)
        site = stack.enter_context(Site(lab, folders[1], bundle=bundle.path))
        watch = stack.enter_context(Watch(lab.b))
        gateway = site.gateway()
        site.worker(WORKER__ID="far")
        watch.wait_state("worker/far", "online", limit_s=_START_S, why=site.logs)
        yield Bench(lab, site, gateway, watch, bundle, footage)


def measure(here: Bench, setting: Setting, plan: Plan, *, name: str) -> Result:
    """One row, with a camera of its own."""
    camera = here.start_camera(setting.uplink, setting.control, name)
    here.lab.change_ways(setting.way)
    time.sleep(plan.warm_s)
    before, since_s = here.lab.counts()[0], time.time()
    time.sleep(plan.seconds)
    after, until_s = here.lab.counts()[0], time.time()
    time.sleep(_LATE_S)  # for what is still under way
    here.end_camera(camera, name)
    span = Span(1000 * since_s, 1000 * until_s)
    found = score(here.watch.forget(name), here.footage, here.bundle, span)
    sent_bytes = after.carried_bytes - before.carried_bytes
    return Result(setting, found, sent_bytes * 8 / 1000 / span.seconds, after.refused - before.refused)


def _pair(link: str) -> tuple[float, float]:
    try:
        rtt_ms, loss = link.split("/")
        return float(rtt_ms), float(loss)
    except ValueError as error:
        raise ConfigError(f"--link {link}: write round trip in ms and loss in percent, such as 150/5") from error


def settings_of(
    links: Sequence[str], rates: Sequence[float], uplinks: Sequence[str], controls: Sequence[str], queue_kib: float
) -> list[Setting]:
    """All rows; those that are held against one another follow one another, so that they see the same machine."""
    pairs = [_pair(link) for link in links]
    return [
        Setting(uplink, control, rtt_ms, loss / 100, rate, queue_kib)
        for control in controls
        for rtt_ms, loss in pairs
        for rate in rates
        for uplink in uplinks
    ]


def table_of(results: Sequence[Result], title: str, accuracy: str) -> Table:
    """All rows, for people."""
    columns = ("link", "kbit/s", "control", "uplink", "masks/s", "p50 ms", "p95 ms", "p99 ms", f"in {SHOWN_MS} ms")
    table = Table(*columns, accuracy, "agreement", "corrupted", "sent kbit/s", "refused", title=title)
    for column in table.columns[4:]:
        column.justify = "right"
    for one in results:
        setting, found = one.setting, one.score
        table.add_row(
            setting.link, f"{setting.rate_kbit_s:g}", setting.control, setting.uplink, f"{found.fps:.1f}",
            *(_whole(ms) for ms in (found.p50_ms, found.p95_ms, found.p99_ms)), f"{100 * found.within:.1f} %",
            "" if found.miou is None else f"{found.miou:.2f}", f"{found.agreement:.2f}",
            f"{found.corrupted} of {found.checked}", f"{one.sent_kbit_s:.0f}", str(one.refused),
        )  # fmt: skip
    return table


def line_of(one: Result) -> str:
    """A row while others are still being measured."""
    setting, found = one.setting, one.score
    link = f"{setting.link} at {setting.rate_kbit_s:g} kbit/s, control {setting.control}, {setting.uplink}"
    return f"{link}: {found.fps:.1f} masks/s, p95 {_whole(found.p95_ms)} ms, {100 * found.within:.0f} % in time"


def _whole(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"


def verdicts_of(results: Sequence[Result]) -> list[str]:
    """How many times longer MQTT's p95 is, link by link, and whether any mask was corrupted."""
    found = {one.setting: one for one in results}
    verdicts = []
    for setting, mqtt in found.items():
        other = next((one for one in results if _rivals(setting, one.setting)), None)
        if setting.uplink == MQTT and other is not None:
            times = mqtt.score.p95_ms / other.score.p95_ms
            verdicts.append(
                f"{setting.link} at {setting.rate_kbit_s:g} kbit/s, control {setting.control}: "
                f"p95 {_whole(mqtt.score.p95_ms)} ms over MQTT, {_whole(other.score.p95_ms)} over WebRTC ({times:.2f})"
            )
    corrupted, checked = (sum(getattr(one.score, name) for one in results) for name in ("corrupted", "checked"))
    return [*verdicts, f"corrupted masks: {corrupted} of {checked} that were compared"]


def _rivals(mqtt: Setting, other: Setting) -> bool:
    """Whether two rows are the same but for the uplink."""
    return other.uplink == WEBRTC and asdict(mqtt) | {"uplink": WEBRTC} == asdict(other)


def plain(value: Any) -> Any:
    """The same without NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(told: dict[str, Any], path: Path | None) -> None:
    """Write what was measured, where that is wanted; long rows of numbers take one line each."""
    if path is not None:
        path.write_text(_ROW.sub(lambda row: " ".join(row[0].split()), json.dumps(plain(told), indent=2)) + "\n")


def main(
    data: Annotated[Path | None, typer.Option(help="folder of CamVid; without it, the sample")] = None,
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    link: Annotated[list[str] | None, typer.Option(help="round trip ms / loss %, such as 150/5; repeat it")] = None,
    rate: Annotated[list[float] | None, typer.Option(min=1, help="kbit/s; repeat it")] = None,
    uplink: Annotated[list[str] | None, typer.Option(help="mqtt or webrtc; repeat it")] = None,
    control: Annotated[list[str] | None, typer.Option(help="off, rule or bandit; repeat it")] = None,
    queue_kib: Annotated[float, typer.Option(min=1, help="that wait for the link at most")] = 64.0,
    congestion: Annotated[str | None, typer.Option(help="of TCP, such as cubic; without it, the machine's own")] = None,
    warm_s: Annotated[float, typer.Option(min=0)] = 5.0,
    seconds: Annotated[float, typer.Option(min=1, help="for each row")] = 20.0,
    json_file: JsonFile = None,
) -> None:
    console, plan, results = Console(width=170), Plan(warm_s, seconds), list[Result]()
    try:
        settings = settings_of(link or LINKS, rate or RATES, uplink or (MQTT, WEBRTC), control or (OFF,), queue_kib)
        loaded = load_bundle(bundle or default_bundle())
        with bench(loaded, data, congestion=congestion) as here:
            title = f"{here.footage.name} at {here.footage.fps:g} Hz, {loaded.manifest.name}, {seconds:g} s each"
            notes = [_NOTE.format(queue_kib, here.lab.congestion)]
            for number, setting in enumerate(settings):
                results.append(measure(here, setting, plan, name=f"cam-{number}"))
                console.print(f"{number + 1} of {len(settings)}: {line_of(results[-1])}", soft_wrap=True)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    best = next((one.score.best for one in results if one.score.best is not None), None)
    notes += [f"mIoU of KEYs of the highest level in every frame, no link between: {best:.2f}"] if best else []
    console.print(table_of(results, title, "mIoU"))
    console.print(*notes, *verdicts_of(results), sep="\n", soft_wrap=True)
    told = {"title": title, "bundle": loaded.manifest.hash, "notes": notes, "verdicts": verdicts_of(results)}
    write_json(told | {"results": [asdict(one) for one in results]}, json_file)


if __name__ == "__main__":
    typer.run(main)
