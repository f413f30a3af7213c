"""The video of `links`: what a camera plays, what is right in each of its frames, and which frame a packet is of."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.bitstream import pack
from pipeline.bundle import Bundle
from pipeline.codec import open_decoder, open_encoder
from pipeline.datasets import camvid, scaled
from pipeline.errors import ConfigError, PipelineError
from pipeline.messages import Frame, FrameId
from pipeline.sources import fit, open_source
from pipeline.video import sample_path

CAMVID_FPS, SAMPLE_FPS = 15.0, 25.0
Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Footage:
    """N frames at a rate: a source's address, labels (N, H, W) if there are any, and the best masks.

    Those are what a link without limits could bring.
    """

    name: str
    url: str
    fps: float
    best: "Best"
    labels: Image | None

    @property
    def words(self) -> tuple[str, ...]:
        """How a camera is told to play it, again and again."""
        return ("--source", self.url, "--loop")

    @property
    def most_kbit_s(self) -> float:
        """What a camera can send of it at most, headers of the network left out."""
        return self.best.packet_bytes * self.fps * 8 / 1000

    def place(self, captured_ms: float, began_ms: float) -> int:
        """Which frame is shown at a time, if frame 0 was first shown when it began."""
        return round((captured_ms - began_ms) * self.fps / 1000) % len(self.best.masks)


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """What a KEY of the highest level in every frame gives: masks (N, H, W), and its packets' mean size."""

    masks: Image
    packet_bytes: float


def camvid_footage(bundle: Bundle, data: Path, folder: Path, *, split: str = "val") -> Footage:
    """The labelled frames of a split, which follow one another in time; `folder` is for links to them.

    Raises ConfigError.
    """
    run = scaled(camvid(data, split), (bundle.manifest.height, bundle.manifest.width))
    listed = (data / "splits" / f"{split}.txt").read_text().split()[::2]
    for number, name in enumerate(listed):
        (folder / f"{number:04}{Path(name).suffix}").symlink_to((data / name).resolve())
    return Footage(f"camvid {split}", str(folder), CAMVID_FPS, best_of(bundle, run.images), np.stack(run.labels))


def sample_footage(bundle: Bundle, *, frames: int = 1000) -> Footage:
    """The clip that comes with maskcast; it is shown whole, `frames` is for tests of this module."""
    size = (bundle.manifest.width, bundle.manifest.height)
    with open_source(str(sample_path()), fps=SAMPLE_FPS, timeout_s=5.0, decode_threads=1) as opened:
        images = [fit(one.image, size) for one in itertools.islice(opened.pictures, frames)]
        return Footage("samples/street.mp4", "sample", opened.origin.fps, best_of(bundle, images), None)


def best_of(bundle: Bundle, images: Sequence[Image]) -> Best:
    """Encode and decode each image by itself, at the highest level."""
    level = max(level.index for level in bundle.manifest.quality_levels)
    encoder = open_encoder(bundle, engine="auto", threads=1, quality=level)
    decoder = open_decoder(bundle, engine="auto", threads=1, labels=False)
    masks, sizes = [], []
    for number, image in enumerate(images):
        packet = encoder.encode(Frame(FrameId(0, number), 0, image))
        (decoded,) = decoder.decode([packet])
        if isinstance(decoded, PipelineError):
            raise decoded
        if decoded.mask is None:
            raise ConfigError("the bundle makes no masks; use another")
        masks.append(decoded.mask.classes)
        sizes.append(len(pack(packet)))
    return Best(np.stack(masks), float(np.mean(sizes)))
