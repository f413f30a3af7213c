"""Options that several commands share."""

import os
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer


def can_be_written(path: Path | None) -> Path | None:
    """What takes hours should not end with a file that cannot be written: so it is told before."""
    if path is not None:
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder; name a file in it")
        if not path.parent.is_dir():
            raise typer.BadParameter(f"{path}: there is no folder {path.parent}; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise typer.BadParameter(f"{path} cannot be written; name another file")
    return path


def show_version(wanted: bool) -> None:
    """Print the version of the package, as installed, and end."""
    if wanted:
        print(f"maskcast {metadata.version('maskcast')}")
        raise typer.Exit


JsonFile = Annotated[Path | None, typer.Option("--json", help="write the figures here too", callback=can_be_written)]
FigureFile = Annotated[Path | None, typer.Option("--figure", help="draw them here, as PNG", callback=can_be_written)]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with the node's settings")]
BundleFolder = Annotated[Path | None, typer.Option("--bundle", help="folder of the trained model")]
Engine = Annotated[str, typer.Option(help="auto, openvino or onnxruntime")]
Quality = Annotated[int | None, typer.Option(help="quality level of the bundle; without it, its default")]
KeyInterval = Annotated[
    int | None, typer.Option(help="frames from one KEY to the next at most, WARPs of it between; 1: only KEYs")
]
Lookahead = Annotated[
    int | None,
    typer.Option(help="frames that wait for the KEY after them and refer to it too: fewer bits, masks that much later"),
]
Threshold = Annotated[
    float | None,
    typer.Option(help="a KEY sooner where a WARP should match in less than so many percent of the pixels"),
]
Price = Annotated[
    float | None,
    typer.Option(
        help="in place of a threshold: percent of the pixels that 1000 bytes are worth, such as 8; more saves more"
    ),
]
Grid = Annotated[str | None, typer.Option(help="rows x columns of regions, such as 2x2; without it, the bundle's")]
Source = Annotated[str | None, typer.Option(help="video file, directory, rtsp:// or another stream, or device")]
Fast = Annotated[
    bool | None, typer.Option("--fast", help="a file or directory, as fast as its masks come; each frame gets one")
]
Version = Annotated[
    bool, typer.Option("--version", help="show the version and end", is_eager=True, callback=show_version)
]
DataSet = Annotated[str | None, typer.Option(help="camvid, cityscapes or coco; without it, as the folder looks")]
MaxFps = Annotated[
    float | None, typer.Option(help="frames per second taken of the source at most; not of recordings (--fast)")
]
