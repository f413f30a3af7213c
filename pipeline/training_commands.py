"""The commands that make bundles: train, export, refine, resize, adapt, train-labels, train-decide.

Each imports what is heavy itself; all but refine need torch.
"""

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.bundle_table import print_manifest
from pipeline.errors import ConfigError
from pipeline.options import DataSet, JsonFile

if TYPE_CHECKING:
    from pipeline.refining import Refined

ConfigFile = Annotated[Path, typer.Option("--config", help="file of configs/train/")]
Data = Annotated[Path, typer.Option(help="folder of the data set")]


def add_to(app: typer.Typer) -> None:
    """Give the command line its training commands."""
    app.command()(train)
    app.command()(export)
    app.command()(refine)
    app.command()(resize)
    app.command()(adapt)
    app.command("train-labels")(train_labels)
    app.command("train-decide")(train_decide)


def train(
    config_file: ConfigFile,
    data: Data,
    run: Annotated[Path, typer.Option(help="folder for checkpoints; resumes what is there")],
    backbone: Annotated[Path | None, typer.Option(help="file of the backbone's published weights")] = None,
    teacher: Annotated[list[Path] | None, typer.Option(help="a teacher's weights or ONNX file; repeatable")] = None,
    unlabelled: Annotated[list[Path] | None, typer.Option(help="images or a clip without labels; repeatable")] = None,
    start: Annotated[Path | None, typer.Option(help="run or bundle whose weights to begin with")] = None,
    camera: Annotated[Path | None, typer.Option(help="run or bundle whose camera alone to begin with")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder that keeps soft labels for several runs")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="in place of the experiment's schedule.seed")] = None,
) -> None:
    """Train the network of an experiment; goes on from its last checkpoint."""
    _need_torch()
    from pipeline import training
    from pipeline.experiment import load_experiment
    from pipeline.material import Folders

    folders = Folders(
        data=data,
        backbone=backbone,
        run=run,
        teachers=tuple(teacher or ()),
        unlabelled=tuple(unlabelled or ()),
        start=start,
        camera=camera,
        cache=cache,
    )
    experiment = load_experiment(config_file)
    for progress in training.train(experiment if seed is None else experiment.with_seed(seed), folders):
        print(training.describe(progress), flush=True)


def export(
    config_file: ConfigFile,
    data: Data,
    run: Annotated[Path, typer.Option(help="folder of the training run")],
    bundle: Annotated[Path | None, typer.Option(help="folder to write the bundle to")] = None,
    licence: Annotated[str, typer.Option(help="licence of the weights, which may differ from that of the code")] = "",
    measure_on: Annotated[str, typer.Option(help="split that the manifest's rates and mIoU are measured on")] = "val",
    hyper: Annotated[bool, typer.Option(help="send the hyper latent; without it neighbours alone predict")] = True,
    whole: Annotated[Path | None, typer.Option(help="instead: one ONNX file in which no latent is coded")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder that kept the run's soft labels, as train had it")] = None,
) -> None:
    """Write the bundle of a trained network, and measure what its manifest says."""
    _need_torch()
    from pipeline.experiment import load_experiment
    from pipeline.publish import Origin, publish, publish_whole

    command = f"maskcast train, then maskcast export, with {config_file}, whose head has the whole commands"
    origin = Origin(load_experiment(config_file), data=data, run=run, licence=licence, command=command, cache=cache)
    if whole is not None and bundle is not None:
        raise ConfigError("export writes --bundle FOLDER or --whole FILE, not both at once; leave one out")
    if whole is not None:
        publish_whole(origin, whole)
        print(f"{whole}: {whole.stat().st_size} bytes")
        return
    if bundle is None or not licence:
        raise ConfigError("export needs --bundle FOLDER and --licence TEXT, or --whole FILE")
    print_manifest(publish(origin, bundle, split=measure_on, hyper=hyper, tell=_say))


def refine(
    bundle: Annotated[Path, typer.Option(help="folder of the trained model; gets what is fitted")],
    data: Data,
    dataset: DataSet = None,
    split: Annotated[str, typer.Option(help="frames to fit to, of those that it was trained on")] = "train",
    without_drive: Annotated[
        list[str] | None, typer.Option(help="drive of that split to leave out; repeatable")
    ] = None,
    measure_on: Annotated[str, typer.Option(help="split that the manifest's rates and mIoU are measured on")] = "val",
    smoothing: Annotated[
        float | None, typer.Option(min=0, max=2, help="of the masks' logits, 4 pixels each; without it, as it is")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder for the new bundle; without it, the bundle's own")] = None,
) -> None:
    """Fit to a bundle what export fits at its end: thrifty rounding of latents, and a decode graph in 8-bit integers.

    For bundles that were exported before there was such; no labels are looked at but to measure. The new bundle has
    another hash: cameras and workers must get it together.
    """
    _need("refine", "onnx", "ml_dtypes", remedy="pip install onnx ml_dtypes")
    from pipeline.bundle import load_bundle
    from pipeline.layouts import layout_of
    from pipeline.refining import refine_and_measure

    loaded = load_bundle(bundle)
    layout = layout_of(data, dataset)
    learned, shown = layout.frames(data, split, without_drives=without_drive or ()), layout.frames(data, measure_on)
    refined = refine_and_measure(
        loaded, learned, shown, output or bundle, split=measure_on, smoothing=smoothing, tell=_say
    )
    _print_refined(refined)


def resize(
    bundle: Annotated[Path, typer.Option(help="folder of the trained model to begin with")],
    size: Annotated[str, typer.Option(help="of the new one, such as 768x432 for pictures of 16:9")],
    data: Data,
    output: Annotated[Path, typer.Option(help="folder for the new bundle")],
    dataset: DataSet = None,
    split: Annotated[str, typer.Option(help="frames to fit to, of those that it was trained on")] = "train",
    without_drive: Annotated[
        list[str] | None, typer.Option(help="drive of that split to leave out; repeatable")
    ] = None,
    measure_on: Annotated[str, typer.Option(help="split that the manifest's rates and mIoU are measured on")] = "val",
) -> None:
    """Bring a bundle to pictures of another size, without training.

    Width and height differ from its own by multiples of 64. Larger pictures have better masks for more bits and time;
    of another shape, wider pictures are not squeezed.
    """
    _need_torch()
    from pipeline.bundle import load_bundle
    from pipeline.layouts import layout_of
    from pipeline.resizing import resize_and_measure

    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"size {size}: expected width x height in pixels, such as 640x432")
    layout, loaded = layout_of(data, dataset), load_bundle(bundle)
    learned, shown = layout.frames(data, split, without_drives=without_drive or ()), layout.frames(data, measure_on)
    made = resize_and_measure(loaded, (int(width), int(height)), learned, shown, output, split=measure_on, tell=_say)
    _print_refined(made)


def adapt(
    bundle: Annotated[Path, typer.Option(help="folder of the trained model to begin with")],
    source: Annotated[Path, typer.Option(help="the site's video, or a folder of its images in the order of time")],
    teacher: Annotated[list[Path], typer.Option(help="a teacher's weights or ONNX file; repeatable")],
    output: Annotated[Path, typer.Option(help="folder to write the tuned bundle to")],
    minutes: Annotated[float, typer.Option(min=0.01, help="how long to train")] = 10.0,
    json_file: JsonFile = None,
) -> None:
    """Tune a bundle to one site's video without labels; shows agreement with the teachers and bits, before and after.

    A fifth of the video, in two stretches, is not trained on but measured on. Ends with 1 where that shows no gain.
    """
    _need_torch()
    from rich.console import Console

    from pipeline import adapting
    from pipeline.agreement import as_table

    site = adapting.Site(bundle=bundle, source=source, teachers=tuple(teacher), output=output)
    result = adapting.adapt(site, budget=adapting.Budget(minutes=minutes), tell=_say)
    title = f"{source.name}, with its teachers, on {result.held} frames not trained on"
    Console().print(as_table(result.before, result.after, title))
    print(f"{output}: {result.bundle.manifest.hash}, after {result.steps} steps on {result.learned} frames")
    if json_file is not None:
        json_file.write_text(json.dumps(adapting.as_json(result), indent=2) + "\n")
    if result.fault is not None:
        _say(f"maskcast: {output} is no better than {bundle}: {result.fault}; give --minutes more")
        raise typer.Exit(1)


def train_labels(
    config_file: ConfigFile,
    data: Data,
    network: Annotated[Path, typer.Option(help="run of the trained segmentation network")],
    bundle: Annotated[Path, typer.Option(help="bundle that was exported from that run; gets a graph for labels")],
    run: Annotated[Path, typer.Option(help="folder for the label decoder's weights")],
    output: Annotated[Path | None, typer.Option(help="folder for the new bundle; without it, the bundle's own")] = None,
) -> None:
    """Train what says which classes are in a picture, from the latents of a trained network, into its bundle."""
    _need_torch()
    from pipeline.label_export import train_into_bundle

    for line in train_into_bundle(config_file, data=data, network=network, run=run, bundle=bundle, output=output):
        print(line, flush=True)


def train_decide(
    config_file: ConfigFile,
    source: Annotated[list[Path], typer.Option(help="clip, or folder of images in the order of time; repeatable")],
    bundle: Annotated[Path, typer.Option(help="bundle whose masks the videos get; gets the two graphs")],
    run: Annotated[Path, typer.Option(help="folder for the networks' weights")],
    held: Annotated[list[Path] | None, typer.Option(help="clip or folder that is only measured on; repeatable")] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(
            help="folder of more images, in any order, the first 1200, to learn edges and approaches from; repeatable"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder for the new bundle; without it, the bundle's own")] = None,
) -> None:
    """Train what a camera decides by, from videos without labels, into a bundle.

    That is where masks have edges, so that motion is exact there, and how well a warped mask will do.
    """
    _need_torch()
    from pipeline.decide_export import Watched, train_into_bundle

    watched = Watched(tuple(source), tuple(held or ()), tuple(pictures or ()))
    for line in train_into_bundle(config_file, watched, run=run, bundle=bundle, output=output):
        print(line, flush=True)


def _print_refined(refined: "Refined") -> None:
    from rich.console import Console

    from pipeline import rdoq_fitting
    from pipeline.codec import DECODE_INT8

    Console().print(rdoq_fitting.as_table(refined.levels))
    if refined.int8_moved is not None:
        kept = "kept" if refined.bundle.has_graph(DECODE_INT8) else "left out"
        print(f"8-bit integers change the class of {100 * refined.int8_moved:.2f} % of the pixels: {kept}")
    print_manifest(refined.bundle)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _need_torch() -> None:
    _need("training", "torch", "compressai", remedy="pip install 'maskcast[train]'")
    warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", FutureWarning)  # of what compressai imports


def _need(what: str, *packages: str, remedy: str) -> None:
    """ConfigError where the package was installed without what this needs."""
    missing = next((name for name in packages if importlib.util.find_spec(name) is None), None)
    if missing:
        raise ConfigError(f"{what} needs {missing}; {remedy}")
