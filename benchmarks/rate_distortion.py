"""Rate against accuracy of everything, in one run, on real bytes: table, BD-rates, JSON and figure.

    python benchmarks/rate_distortion.py --data CAMVID --split 0006R0 --bundle JD=bundles/camvid-holdout \
        [--bundle "SE + SD/D=BUNDLE" ...] [--network NAME=GRAPH.onnx] [--json FILE] [--figure FILE]

The first bundle is compared with all others, each other one with the bundles after it; each is measured at all its
quality levels. The network, image uint8 (B, H, W, 3) -> logits (B, K, H/4, W/4), runs behind every image codec, and on
the untouched frames as the ceiling. Frames are brought to the size that a bundle or the network takes, masks back.

  bpp         bundles: whole packets. Image codecs: what benchmarks/image_codecs.py counts, the parameter sets of HEVC
              and AV1 once per run, which favours them; `alone_bpp` in the JSON has them in every frame.
  cloud ms    packet or file in, class map of the frame's size out: entropy or image decoding, the network, arg max.
  network ms  of these, the graph alone.
  edge ms     image in, packet or file out; where the network takes another size, a bundle's camera brings frames to it,
              of an image codec the cloud. The image codecs are set for few bits, not for speed.
Times are medians with all systems taking turns frame by frame, each at its middle setting: only ratios mean much.
Parameters and MACs are the cloud graph's; image decoders and the entropy model's small tables are not counted.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.image_codecs import Image, Setting, open_codecs, settings
from benchmarks.onnx_cost import graph_cost, picture_size
from benchmarks.rate_distortion_figure import draw
from benchmarks.systems import BUNDLE, CEILING, CODEC, Comparison, Measured, System, Times, compare
from pipeline.accuracy import confusion, mean_iou
from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle, load_bundle
from pipeline.class_map import class_map
from pipeline.codec import Decoder, decode_graph, open_decoder, open_encoder
from pipeline.datasets import Labelled, camvid, classes_at
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluation import evaluate
from pipeline.messages import Frame, FrameId
from pipeline.options import FigureFile, JsonFile
from pipeline.runtime import Precision, Session, open_session
from pipeline.sources import fit

_WARM, _RAW_BPP, _UNTIMED = 4, 24.0, Times(0.0, 0.0, None)


@dataclass(slots=True)
class Stopwatch:
    """A session that notes how long each run took."""

    session: Session
    ms: list[float] = field(default_factory=list)

    def run(self, *inputs: Any) -> list[Any]:
        start = time.perf_counter()
        outputs: list[Any] = self.session.run(*inputs)
        self.ms.append(1000 * (time.perf_counter() - start))
        return outputs


@dataclass(frozen=True, slots=True)
class Way:
    """One system's way through edge and cloud, for timing; `network` is the cloud's graph."""

    encode: Callable[[Image], Any] | None  # None: the frame itself goes to the cloud
    decode: Callable[[Any], Any]
    network: Stopwatch


@dataclass(frozen=True, slots=True)
class Network:
    """A graph from picture to logits, and the height and width of the pictures that it takes."""

    session: Session
    size: tuple[int, int]

    def masks(self, images: Sequence[Image]) -> list[Image]:
        """Class maps (H, W) of images (H, W, 3) of any size."""
        return [self._mask(image) for image in images]

    def _mask(self, image: Image) -> Image:
        height, width = self.size
        (logits,) = self.session.run(fit(image, (width, height))[None])
        return classes_at(class_map(logits[0], height, width), image.shape[:2])


def score(masks: Sequence[Image], data: Labelled, classes: int) -> float:
    pairs = zip(data.labels, masks, strict=True)
    return mean_iou(np.sum([confusion(truth, mask, classes) for truth, mask in pairs], axis=0))


def measure_bundle(bundle: Bundle, data: Labelled, *, split: str, engine: str) -> tuple[Measured, ...]:
    """All quality levels of a bundle, lowest rate first."""
    points = []
    for level in sorted(bundle.manifest.quality_levels, key=lambda one: one.rate_bpp):
        result = evaluate(bundle, data, split=split, engine=engine, quality=level.index)
        points.append(Measured(f"level {level.index}", result.miou, result.rate_bpp, result.rate_bpp))
    return tuple(points)


def measure_codec(setting: Setting, network: Network, data: Labelled, classes: int) -> Measured:
    """One setting of an image codec with the network behind it."""
    size = data.images[0].shape[:2]
    with ThreadPoolExecutor(2) as pool:
        files = list(pool.map(setting.encode, data.images))
        images = list(pool.map(setting.decode, files, itertools.repeat(size)))
    miou = score(network.masks(images), data, classes)
    bits = 8 / (len(files) * size[0] * size[1])
    alone = bits * sum(map(len, files))
    once = [setting.codec.once_bytes(file) for file in files]
    stream = alone - bits * (sum(once) - max(once))
    return Measured(f"q {setting}", miou, stream, alone, "half size" if setting.half else "full size")


def bundle_way(bundle: Bundle, frame: tuple[int, int], *, engine: str, threads: int) -> Way:
    """The bundle at its default level, for frames of that size, with its decode graph on a stopwatch."""
    encoder = open_encoder(bundle, engine=engine, threads=threads)
    open_decoder(bundle, engine=engine, threads=threads)  # as nodes do it: warms the tables, keeps BLAS on one thread
    network = Stopwatch(open_session(decode_graph(bundle, engine), engine=engine, threads=threads))
    decoder, size = Decoder(bundle, network), (bundle.manifest.width, bundle.manifest.height)
    return Way(
        lambda image: pack(encoder.encode(Frame(FrameId(0, 0), 0, fit(image, size)))),
        lambda packet: classes_at(_decoded(decoder, packet), frame),
        network,
    )


def _decoded(decoder: Decoder, data: bytes) -> Image:
    """The class map (H, W) of a packet."""
    (result,) = decoder.decode([unpack(data)])
    if isinstance(result, PipelineError):
        raise result
    if result.mask is None:
        raise ConfigError("a bundle that makes no masks cannot be compared; name another")
    return result.mask.classes


def codec_way(setting: Setting, network: Network, watch: Stopwatch, size: tuple[int, int]) -> Way:
    """An image codec with the network behind it, which runs on the stopwatch."""
    return Way(setting.encode, lambda file: network.masks([setting.decode(file, size)]), watch)


def take_times(ways: dict[str, Way], images: Sequence[Image]) -> dict[str, Times]:
    """Medians by system; all take turns on each image, and the first images, which warm caches, do not count."""
    rows: dict[str, list[Times]] = {name: [] for name in ways}
    for image, (name, way) in itertools.product(images, ways.items()):
        start = time.perf_counter()
        data = way.encode(image) if way.encode else image
        middle = time.perf_counter()
        way.decode(data)
        cloud_ms, edge_ms = 1000 * (time.perf_counter() - middle), 1000 * (middle - start)
        rows[name].append(Times(cloud_ms, way.network.ms[-1], edge_ms if way.encode else None))
    return {name: _median(row[min(_WARM, len(row) // 2) :]) for name, row in rows.items()}


def _median(row: Sequence[Times]) -> Times:
    edge = [one.edge_ms for one in row if one.edge_ms is not None]
    return Times(
        statistics.median(one.cloud_ms for one in row),
        statistics.median(one.network_ms for one in row),
        statistics.median(edge) if edge else None,
    )


@dataclass(frozen=True, slots=True)
class Run:
    """What is the same for every system of a run."""

    data: Labelled
    split: str
    engine: str
    threads: int

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.data.images[0].shape[:2]
        return height, width


def bundle_systems(run: Run, bundles: dict[str, Bundle], ways: dict[str, Way]) -> list[System]:
    """Every bundle measured at all its levels; its way is added to `ways`, to be timed later."""
    systems = []
    for name, bundle in bundles.items():
        ways[name] = bundle_way(bundle, run.size, engine=run.engine, threads=run.threads)
        points = measure_bundle(bundle, run.data, split=run.split, engine=run.engine)
        cost = graph_cost(bundle.graph("decode"), size=bundle.latent_size, axes=(2, 3))
        systems.append(System(name, BUNDLE, f"bundle {bundle.manifest.hash[:8]}", cost, points, _UNTIMED))
    return systems


def codec_systems(run: Run, name: str, graph: Path, ways: dict[str, Way]) -> list[System]:
    """The uncompressed network `name`, and every image codec followed by it."""
    size = picture_size(graph)
    cost = graph_cost(graph, size=size, axes=(1, 2))
    # Scored in float32, the best that it can do; timed in whatever type is fastest.
    exact = Network(open_session(graph, engine=run.engine, precision=Precision.FLOAT32), size)
    watch = Stopwatch(open_session(graph, engine=run.engine, threads=run.threads))
    timed = Network(watch, size)
    (logits,) = exact.session.run(np.zeros((1, *size, 3), np.uint8))
    classes = logits.shape[1]
    ceiling = score(exact.masks(run.data.images), run.data, classes)
    ways[name] = Way(None, lambda image: timed.masks([image]), watch)
    systems = [
        System(
            name, CEILING, graph.name, cost, (Measured("frames as they are", ceiling, _RAW_BPP, _RAW_BPP),), _UNTIMED
        )
    ]
    for codec in open_codecs().values():
        sweep = settings(codec)
        ways[codec.name] = codec_way(sweep[len(sweep) // 2], timed, watch, run.size)
        points = [measure_codec(one, exact, run.data, classes) for one in track(sweep, codec.name, transient=True)]
        points.sort(key=lambda point: point.rate_bpp)
        systems.append(System(codec.name, CODEC, codec.encoder, cost, tuple(points), _UNTIMED))
    return systems


def print_systems(systems: Sequence[System], run: Run, console: Console) -> None:
    height, width = run.size
    title = f"{run.split}: {len(run.data.images)} frames, {width}x{height}, {run.engine}, {run.threads} threads"
    columns = ("setting", "bpp", "mIoU, %", "cloud parameters", "cloud MACs", "cloud ms", "network ms", "edge ms")
    table = Table("system", *columns, title=title)
    for system in systems:
        times, cost = system.times, system.cost
        edge = "" if times.edge_ms is None else f"{times.edge_ms:.1f}"
        whole = [f"{cost.parameters / 1e6:.2f} M", f"{cost.macs / 1e9:.2f} G", f"{times.cloud_ms:.1f}"]
        for first, point in zip(itertools.chain([True], itertools.repeat(False)), system.points, strict=False):
            row = [point.setting, f"{point.rate_bpp:.4f}", f"{100 * point.miou:.2f}"]
            rest = [*whole, f"{times.network_ms:.1f}", edge] if first else []
            table.add_row(system.name if first else "", *row, *rest, end_section=point is system.points[-1])
    console.print(table)


def print_comparisons(comparisons: Sequence[Comparison], console: Console) -> None:
    columns = (
        "bits at equal mIoU",
        "over mIoU, %",
        "mIoU at equal bits",
        "cloud parameters",
        "cloud ms",
        "not to be said",
    )
    table = Table("system", "against", *columns, title="one against the other (BD, Pareto fronts, monotone cubics)")
    for one in comparisons:
        rate = "" if one.rate_change is None else f"{100 * one.rate_change:+.1f} %"
        over = "" if one.miou_range is None else " to ".join(f"{100 * edge:.1f}" for edge in one.miou_range)
        miou = "" if one.miou_change is None else f"{100 * one.miou_change:+.2f}"
        shares = ("" if share is None else f"{100 * share:.1f} %" for share in (one.parameter_share, one.time_share))
        table.add_row(one.system, one.against, rate, over, miou, *shares, one.why)
    console.print(table)


def named(values: Sequence[str]) -> dict[str, Path]:
    """NAME=PATH arguments; ConfigError on another form or a name given twice."""
    pairs = [value.partition("=") for value in values]
    wrong = next((value for value, pair in zip(values, pairs, strict=True) if not (pair[0] and pair[2])), None)
    if wrong is not None:
        raise ConfigError(f"system {wrong!r}: write NAME=PATH, such as JD=bundles/camvid")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ConfigError("two systems have one name; give each its own")
    return {name: Path(path) for name, _, path in pairs}


def measure(run: Run, bundles: dict[str, Path], network: dict[str, Path], *, timed_frames: int) -> list[System]:
    """All systems, with times taken at the end, all in turns."""
    ways: dict[str, Way] = {}
    if taken := bundles.keys() & {*network, *(open_codecs() if network else ())}:
        raise ConfigError(f"system {min(taken)!r}: the network or an image codec is called so; rename one of them")
    systems = bundle_systems(run, {name: load_bundle(path) for name, path in bundles.items()}, ways)
    for name, graph in network.items():
        systems += codec_systems(run, name, graph, ways)
    times = take_times(ways, run.data.images[:timed_frames])
    return [replace(system, times=times[system.name]) for system in systems]


def main(
    data: Annotated[Path, typer.Option(help="folder of CamVid")],
    bundle: Annotated[list[str], typer.Option(help="NAME=FOLDER; repeat it, the system to compare first")],
    network: Annotated[str | None, typer.Option(help="NAME=GRAPH.onnx, run behind the image codecs")] = None,
    split: Annotated[str, typer.Option(help="train, val, trainval, test or a drive")] = "val",
    engine: Annotated[str, typer.Option()] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="of the sessions that are timed")] = 2,
    timed_frames: Annotated[int, typer.Option(min=2)] = 40,
    json_file: JsonFile = None,
    figure: FigureFile = None,
) -> None:
    av.logging.set_level(av.logging.PANIC)
    console = Console(width=150)
    try:
        run = Run(camvid(data, split), split, engine, threads)
        systems = measure(run, named(bundle), named([network] if network else []), timed_frames=timed_frames)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    comparisons = compare(systems)
    print_systems(systems, run, console)
    if comparisons:
        print_comparisons(comparisons, console)
    if json_file is not None:
        told = {
            "split": split,
            "frames": len(run.data.images),
            "size": run.size,
            "engine": engine,
            "threads": threads,
            "systems": [asdict(one) for one in systems],
            "comparisons": [asdict(one) for one in comparisons],
        }
        json_file.write_text(json.dumps(told, indent=2) + "\n")
    if figure is not None:
        draw(systems, figure, title=f"CamVid {split}, {run.size[1]}x{run.size[0]}, {len(run.data.images)} frames")


if __name__ == "__main__":
    typer.run(main)
