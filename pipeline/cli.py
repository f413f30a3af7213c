"""The maskcast command: every node, and the offline tools."""

import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from pipeline import config, training_commands
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.bundle_table import print_manifest
from pipeline.cancellation import without_interrupts
from pipeline.errors import BitstreamError, BundleMismatch, ConfigError, PipelineError, SourceError
from pipeline.keys import key_sequence
from pipeline.messages import Kind, Packet, Region
from pipeline.options import (
    BundleFolder,
    ConfigFile,
    DataSet,
    Engine,
    Fast,
    Grid,
    JsonFile,
    KeyInterval,
    Lookahead,
    MaxFps,
    Price,
    Quality,
    Source,
    Threshold,
    Uplink,
)
from pipeline.progress import counting, progress

app = typer.Typer(
    name="maskcast",
    help="Many cameras to live semantic masks over thin links.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Check settings files, print their schema.", no_args_is_help=True)
app.add_typer(config_app, name="config")

S = TypeVar("S", bound=config.NodeSettings)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"maskcast {metadata.version('maskcast')}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; exits 0 when done, 1 when the work failed, 2 when the call or the settings are wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if not debug:
        sys.excepthook = without_interrupts
    try:
        app([word for word in words if word != "--debug"])
    except PipelineError as error:
        if debug:
            raise
        print(f"maskcast: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, (ConfigError, SourceError, BundleMismatch)) else 1)
    except OSError as error:  # a file or folder that the call named
        if debug:
            raise
        named = "" if error.filename is None else f"{error.filename}: "
        print(
            f"maskcast: {named}{error.strerror}; see that it may be read or written, and room is left", file=sys.stderr
        )
        sys.exit(1)
    sys.exit(0)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="show the version and end", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Many cameras to live semantic masks over thin links."""


@app.command()
def demo(
    config_file: ConfigFile = None,
    source: Source = None,
    port: Annotated[int | None, typer.Option(help="port of the page")] = None,
    host: Annotated[str | None, typer.Option(help="address of the page; 0.0.0.0: all of this machine")] = None,
    cameras: Annotated[int | None, typer.Option(help="cameras that play the source")] = None,
    bundle: BundleFolder = None,
    max_fps: MaxFps = None,
    open_page: Annotated[bool | None, typer.Option("--open/--no-open", help="open the page in a browser")] = None,
) -> None:
    """Run all nodes in one process, without servers, and show the masks on a page."""
    from nodes import demo as node

    overrides = {
        "source.url": source,
        "viewer.port": port,
        "viewer.host": host,
        "demo.cameras": cameras,
        "source.max_fps": max_fps,
        "demo.open_page": open_page,
        "bundle": bundle,
    }
    _run(node.main, config.load_settings(config.DemoSettings, config_file, overrides))


@app.command()
def camera(
    config_file: ConfigFile = None,
    source: Source = None,
    name: Annotated[str | None, typer.Option(help="name of the camera: a-z, 0-9, - and _")] = None,
    uplink: Uplink = None,
    bundle: BundleFolder = None,
    quality: Quality = None,
    key_interval: KeyInterval = None,
    threshold: Threshold = None,
    price: Price = None,
    grid: Grid = None,
    lookahead: Lookahead = None,
    max_fps: MaxFps = None,
    loop: Annotated[bool | None, typer.Option("--loop", help="begin a file again at its end")] = None,
    fast: Fast = None,
) -> None:
    """Encode a video source and publish its packets."""
    from nodes import camera as node
    from pipeline.key_policies import key_policy

    if fast and max_fps is not None:
        raise ConfigError("--fast plays every frame of a recording; leave out --max-fps")
    if threshold is not None and price is not None:  # in settings a price goes before the usual threshold
        key_policy(threshold=threshold, price=price)
    overrides = {
        "source.url": source,
        "source.loop": loop,
        "source.max_fps": max_fps,
        "source.fast": fast,
        "camera.name": name,
        "uplink": uplink,
        "encoder.quality": quality,
        "encoder.key_interval": key_interval,
        "encoder.threshold": threshold,
        "encoder.price": price,
        "encoder.grid": grid,
        "encoder.lookahead": lookahead,
        "bundle": bundle,
    }
    _run(node.main, config.load_settings(config.CameraSettings, config_file, overrides))


@app.command()
def gateway(config_file: ConfigFile = None) -> None:
    """Take packets from the uplink to the queue."""
    from nodes import gateway as node

    _run(node.main, config.load_settings(config.GatewaySettings, config_file, {}))


@app.command()
def worker(config_file: ConfigFile = None, bundle: BundleFolder = None) -> None:
    """Decode packets from the queue and publish their masks."""
    from nodes import worker as node

    _run(node.main, config.load_settings(config.WorkerSettings, config_file, {"bundle": bundle}))


@app.command()
def viewer(
    config_file: ConfigFile = None,
    port: Annotated[int | None, typer.Option(help="port of the page")] = None,
) -> None:
    """Serve the page that shows the masks."""
    from nodes import viewer as node

    _run(node.main, config.load_settings(config.ViewerSettings, config_file, {"viewer.port": port}))


@app.command()
def encode(
    source: Annotated[Path, typer.Option("--input", help="clip, or directory of images")],
    output: Annotated[Path, typer.Option(help="folder for the packet files")],
    bundle: BundleFolder = None,
    quality: Quality = None,
    key_interval: KeyInterval = None,
    threshold: Threshold = None,
    price: Price = None,
    grid: Grid = None,
    lookahead: Lookahead = None,
    noise_reduction: Annotated[
        bool, typer.Option("--noise-reduction", help="average over time what stands still, for a fixed camera")
    ] = False,
    engine: Engine = "auto",
) -> None:
    """Encode each frame to a packet file of the same stem; each one is a KEY unless an option says otherwise."""
    from pipeline.bidirectional import open_stream_encoder
    from pipeline.key_policies import key_policy
    from pipeline.recording import encode_files

    policy = key_policy(key_interval=key_interval, threshold=threshold, price=price)
    loaded = _bundle(bundle)
    encoder = open_stream_encoder(
        loaded, engine=engine, quality=quality, policy=policy, grid=grid, lookahead=lookahead or 0
    )
    packets = encode_files(encoder, loaded, source, output, noise_reduction=noise_reduction)
    written = list(progress(packets, "encoding"))
    total = sum(one.bytes for one in written)
    print(f"{len(written)} packets, {total} bytes, {total / max(1, len(written)):.0f} a frame, in {output}")


@app.command()
def decode(
    source: Annotated[Path, typer.Option("--input", help="folder of packet files")],
    output: Annotated[Path, typer.Option(help="folder for the masks")],
    bundle: BundleFolder = None,
    engine: Engine = "auto",
    hysteresis: Annotated[float, typer.Option(min=0, max=4, help="as a worker's decoder.hysteresis, for video")] = 0.0,
) -> None:
    """Decode each packet file to an indexed PNG of the same stem."""
    from pipeline.codec import open_decoder
    from pipeline.keys import KeyBuffers
    from pipeline.recording import decode_files

    loaded = _bundle(bundle)
    # No key grows old: decoding may be paused for any time.
    decoder = open_decoder(loaded, engine=engine, keys=KeyBuffers(idle_s=math.inf), hysteresis=hysteresis)
    written = list(progress(decode_files(decoder, loaded, source, output), "decoding"))
    print(f"{len(written)} masks in {output}")


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="folder of the data set")],
    bundle: BundleFolder = None,
    dataset: DataSet = None,
    split: Annotated[str, typer.Option(help="train, val, or what else it has: test, a drive, a city")] = "val",
    quality: Quality = None,
    all_levels: Annotated[
        bool, typer.Option("--all-levels", help="a row for each quality level; JSON: a list")
    ] = False,
    engine: Engine = "auto",
    json_file: JsonFile = None,
) -> None:
    """Measure accuracy, real rate and time per stage of a bundle.

    Frames are brought to the bundle's size and masks back to theirs; rates are in bits per pixel of the frames.
    """
    from pipeline import evaluation
    from pipeline.layouts import layout_of

    if all_levels and quality is not None:
        raise ConfigError("--quality names one level and --all-levels all of them; give only one of the two")
    loaded = _bundle(bundle)
    frames = layout_of(data, dataset).frames(data, split)
    levels = [one.index for one in loaded.manifest.quality_levels] if all_levels else [quality]
    measured = []
    for level in levels:
        with counting(split if level is None else f"{split} at level {level}", len(frames)) as told:
            measured.append(
                evaluation.measure(loaded, frames, split=split, engine=engine, quality=level, progress=told)
            )
    if all_levels:
        print(evaluation.levels_as_text(measured, loaded))
    else:
        print(evaluation.measured_as_text(measured[0], loaded))
    if json_file is not None:
        figures = [evaluation.measured_as_json(one, loaded) for one in measured]
        json_file.write_text(json.dumps(figures if all_levels else figures[0], indent=2) + "\n")


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="bundle folder, or packet file")]) -> None:
    """Show what is in a bundle or a packet."""
    from pipeline.bitstream import unpack

    if path.is_dir():
        print_manifest(load_bundle(path))
        return
    if not path.is_file():
        raise ConfigError(f"{path}: no such bundle folder or packet file")
    try:
        packet = unpack(path.read_bytes())
    except BitstreamError as error:
        raise BitstreamError(f"{path}: {error}; name a bundle folder, or a file of maskcast encode") from error
    table = Table("field", "value", title=path.name, title_justify="left")
    for field, value in (
        ("bundle", packet.bundle.hex()),
        ("epoch", packet.id.epoch),
        ("sequence", packet.id.sequence),
        ("captured_ms", packet.captured_ms),
        ("quality", packet.quality),
        ("grid", f"{packet.rows}x{packet.columns}"),
        *((f"region {region.index}", _described(packet, region)) for region in packet.regions),
        ("packet bytes", path.stat().st_size),
    ):
        table.add_row(field, str(value))
    Console().print(table)


def _described(packet: Packet, region: Region) -> str:
    """What one region is, for a person."""
    of = f" of the KEY in sequence {key_sequence(packet, region)}" if region.age else ""
    if region.shows is None:
        of = f" of sequence {key_sequence(packet, region)}, ahead of it"
    if region.kind is Kind.BACK and not region.age:
        of = " to the KEY of this frame, which came ahead of it"
    return f"{region.kind.name}{of}, age {region.age}, {len(region.body)} bytes"


@app.command()
def watch(
    camera_name: Annotated[str | None, typer.Option("--camera", help="this camera only")] = None,
    save: Annotated[Path | None, typer.Option(help="folder to save the masks to, as PNG")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="stop after so many masks")] = None,
    config_file: ConfigFile = None,
) -> None:
    """Show masks and statistics in the terminal, or save the masks."""
    from nodes import watch as node

    settings = config.load_settings(config.ViewerSettings, config_file, {})
    _run(partial(node.main, camera=camera_name, save=save, count=count), settings)


@config_app.command("validate")
def validate(
    file: Annotated[Path, typer.Argument(help="YAML file of a node")],
    node: Annotated[str | None, typer.Option(help="of this node; without it, what its sections tell")] = None,
) -> None:
    """Check a settings file; says which key is wrong."""
    kind = node or config.kind_of(file)
    config.load_settings(_settings_of(kind), file, {})
    print(f"{file}: valid settings of the {kind} node")


@config_app.command("schema")
def schema(node: Annotated[str, typer.Argument(help="camera, gateway, worker, viewer or demo")]) -> None:
    """Print the JSON schema of a node's settings."""
    print(json.dumps(_settings_of(node).model_json_schema(), indent=2))


def _settings_of(node: str) -> type[config.NodeSettings]:
    if node not in config.SETTINGS:
        raise ConfigError(f"node {node!r} is unknown; use one of {', '.join(config.SETTINGS)}")
    return config.SETTINGS[node]


def _run(node: Any, settings: config.NodeSettings) -> NoReturn:
    from nodes import service

    sys.exit(service.run(node, settings, debug="--debug" in sys.argv))


def _bundle(folder: Path | None) -> Bundle:
    return load_bundle(folder or default_bundle())


training_commands.add_to(app)

if __name__ == "__main__":
    main()
