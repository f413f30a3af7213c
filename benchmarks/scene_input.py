"""What fitting the input to the scene saves and costs: frames dropped, simple frames at lower levels, smaller pictures.

    python benchmarks/scene_input.py [--clip FILE ...] [--data CAMVID] [--frames N] [--every 3] [--json FILE]

All frames are KEYs. Agreement, in percent of the pixels, is with a mask of the highest level from the whole picture;
where a frame is dropped the last mask stands. `--every` thins out the frames of the tables on levels and sizes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.footage import Coders, Footage, open_coders
from benchmarks.rate_control import videos_of
from pipeline.bundle import default_bundle, load_bundle
from pipeline.deciding import usual_bytes
from pipeline.errors import PipelineError
from pipeline.options import JsonFile
from pipeline.scene import SceneGate

LEVELS, SIZES, QUARTER = (3, 4, 5, 6), (1.0, 1.5, 2.0), 0.25


@dataclass(frozen=True, slots=True)
class Gated:
    """Shares in percent of frames dropped and of bytes saved; agreement in percent with all frames, and without."""

    video: str
    dropped: float
    saved: float
    whole: float
    gated: float


@dataclass(frozen=True, slots=True)
class Simple:
    """What a level less costs the quarter of the frames with the fewest bytes, and with the most; their correlation."""

    video: str
    level: int
    usual: float
    simple_loss: float
    busy_loss: float
    correlation: float


@dataclass(frozen=True, slots=True)
class Sized:
    """A level from a picture so many times smaller and back: mean bytes of KEYs, agreement in percent."""

    video: str
    size: float
    level: int
    key_bytes: float
    agreement: float


def gated(footage: Footage, level: int) -> Gated:
    """With every frame that shows nothing new left out."""
    gate, frames = SceneGate(), range(len(footage))
    sent = [gate.changed(footage.image(frame), frame / footage.fps) for frame in frames]
    newest = [max(one for one in range(frame + 1) if sent[one]) for frame in frames]
    size = np.array([footage.key_bytes(frame, level) for frame in frames])
    fresh = [footage.agreement(footage.mask(frame, 0, level), frame) for frame in frames]
    shown = [footage.agreement(footage.mask(at, 0, level), frame) for frame, at in zip(frames, newest, strict=True)]
    saved = 100 * (1 - size[sent].sum() / size.sum())
    return Gated(footage.name, 100 * (1 - float(np.mean(sent))), saved, float(np.mean(fresh)), float(np.mean(shown)))


def simple(footage: Footage, coders: Coders, level: int, frames: Sequence[int]) -> Simple:
    """Whether the bytes of a KEY tell what one level less costs."""
    usual = usual_bytes(coders.bundle.manifest, level)
    share = np.array([footage.key_bytes(frame, level) for frame in frames]) / usual
    loss = fresh(footage, level, frames) - fresh(footage, level - 1, frames)
    low, high = np.quantile(share, (QUARTER, 1 - QUARTER))
    related = float(np.corrcoef(share, loss)[0, 1])
    quarters = float(loss[share <= low].mean()), float(loss[share >= high].mean())
    return Simple(footage.name, level, float(share.mean()), *quarters, related)


def fresh(footage: Footage, level: int, frames: Sequence[int]) -> NDArray[np.float64]:
    """Agreement (N,) of KEYs of a level, in percent."""
    return np.array([footage.agreement(footage.mask(frame, 0, level), frame) for frame in frames])


def sized(footage: Footage, coders: Coders, size: float, frames: Sequence[int]) -> list[Sized]:
    """All levels from pictures so many times smaller, which the bundle's input size makes large again."""
    images = [shrunk(footage.image(frame), size) for frame in frames]
    small, found = Footage(footage.name, images, fps=footage.fps, coders=coders), []
    for level in LEVELS:
        masks = [small.mask(at, 0, level) for at in range(len(frames))]
        agreement = [footage.agreement(mask, frame) for mask, frame in zip(masks, frames, strict=True)]
        key_bytes = np.mean([small.key_bytes(at, level) for at in range(len(frames))])
        found.append(Sized(footage.name, size, level, float(key_bytes), float(np.mean(agreement))))
    return found


def shrunk(image: NDArray[np.uint8], size: float) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    small = cv2.resize(image, (round(width / size), round(height / size)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def table_of(rows: Sequence[Gated] | Sequence[Simple] | Sequence[Sized], title: str) -> Table:
    table = Table(*asdict(rows[0]), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in asdict(row).values()))
    return table


def main(
    clip: Annotated[list[Path] | None, typer.Option(help="a video; repeat it")] = None,
    data: Annotated[Path | None, typer.Option(help="folder of CamVid: its val run too")] = None,
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    frames: Annotated[int, typer.Option(min=8, help="of each video, at most")] = 400,
    every: Annotated[int, typer.Option(min=1, help="of levels and sizes, one frame in so many")] = 3,
    json_file: JsonFile = None,
) -> None:
    try:
        coders = open_coders(load_bundle(bundle or default_bundle()))
        footages = videos_of(clip or [], data, coders, frames=frames)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    level = coders.bundle.manifest.default_quality
    some = {footage: range(0, len(footage), every) for footage in footages}
    gates = [gated(footage, level) for footage in footages]
    simples = [simple(footage, coders, level, some[footage]) for footage in footages]
    sizes = [row for footage in footages for size in SIZES for row in sized(footage, coders, size, some[footage])]
    console = Console(width=140)
    console.print(table_of(gates, f"frames that show nothing new left out, level {level}, percent"))
    console.print(table_of(simples, "one level less: percent lost, by what a KEY takes"))
    console.print(table_of(sizes, "smaller pictures"))
    if json_file is not None:
        rows = {"gate": gates, "simple": simples, "size": sizes}
        found = {name: [asdict(one) for one in each] for name, each in rows.items()}
        json_file.write_text(json.dumps({"bundle": coders.bundle.manifest.hash, **found}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
