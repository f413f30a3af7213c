"""Options of the commands: those that several share, and long ones."""

import os
from pathlib import Path
from typing import Annotated

import typer


def checked_writable(path: Path | None) -> Path | None:
    """The same path; BadParameter where no file can be written there, so that this is known before hours of work."""
    if path is not None:
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder; name a file in it")
        if not path.parent.is_dir():
            raise typer.BadParameter(f"{path}: there is no folder {path.parent}; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise typer.BadParameter(f"{path} cannot be written; name another file")
    return path


JsonFile = Annotated[Path | None, typer.Option("--json", help="write the figures here too", callback=checked_writable)]
FigureFile = Annotated[Path | None, typer.Option("--figure", help="draw them here, as PNG", callback=checked_writable)]
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
Uplink = Annotated[
    str | None, typer.Option(help="mqtt://host:port of a broker, or webrtc+http://host:port of a gateway")
]
Fast = Annotated[
    bool | None, typer.Option("--fast", help="a file or directory, as fast as its masks come; each frame gets one")
]
DataSet = Annotated[str | None, typer.Option(help="camvid, cityscapes or coco; without it, by what is in the folder")]
MaxFps = Annotated[
    float | None, typer.Option(help="frames per second taken of the source at most; not of recordings (--fast)")
]
