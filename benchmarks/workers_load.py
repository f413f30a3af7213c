"""What the workers of `workers` are loaded with: the packets of a video, their masks, and what each of them costs.

video -> VideoEncoder -> packets -> Decoder -> masks by place
                            +--> cameras that play them round and round, each from another place on
real worker -> Batch -> Costs -> emulated workers
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.accuracy import VOID, confusion, mean_iou
from pipeline.bundle import Bundle
from pipeline.codec import Decoder, open_decoder, open_encoder
from pipeline.config import EncoderSection
from pipeline.datasets import camvid, scaled
from pipeline.errors import ConfigError, PipelineError
from pipeline.key_policies import key_policy
from pipeline.messages import Frame, FrameId, Kind, Packet
from pipeline.sources import fit, open_source
from pipeline.video import sample_path
from pipeline.video_encoder import open_video_encoder

Images = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Batch:
    """How many packets of each kind were decoded together, and the seconds that took."""

    kinds: Mapping[Kind, int]
    took_s: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that a worker takes on average: to decode a packet of a kind, to render a mask, and for all else."""

    decode_s: Mapping[Kind, float]
    render_s: float
    around_s: float = 0.0


def costs_of(batches: Sequence[Batch], rendered_s: Sequence[float]) -> Costs:
    """What packets cost, by least squares over the batches that they came in; ConfigError where there are none."""
    kinds = [kind for kind in Kind if any(kind in batch.kinds for batch in batches)]
    if not kinds or not rendered_s:
        raise ConfigError("the worker made no mask in the time it had: measure for longer")
    counts = np.array([[batch.kinds.get(kind, 0) for kind in kinds] for batch in batches])
    costs, *_ = np.linalg.lstsq(counts, np.array([batch.took_s for batch in batches]), rcond=None)
    return Costs(dict(zip(kinds, np.maximum(costs, 0).tolist(), strict=True)), statistics.mean(rendered_s))


@dataclass(frozen=True, slots=True)
class Start:
    """A camera's first frame, `sequence` places after its key, whose own place is that of sequence 0."""

    key_place: int
    sequence: int


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """A video as it is played: packets, masks (P, H, W) of an undisturbed decoder, and the truth they are held against.

    The truth (P, H, W) is labels, or the masks of a KEY in every frame.
    """

    name: str
    packets: tuple[Packet, ...]
    masks: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    labelled: bool
    classes: int
    _matrices: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict)

    def start_of(self, camera: int, cameras: int) -> "Start":
        """Where the n-th of so many cameras begins: they are evenly spread, so that no moment has more KEYs."""
        place = camera * len(self.packets) // cameras
        age = self.packets[place].regions[0].age
        return Start(place - age, age)

    def packet(self, place: int, id: FrameId, *, captured_ms: int) -> Packet:
        """The packet of a place as one of this frame and time."""
        return replace(self.packets[place % len(self.packets)], id=id, captured_ms=captured_ms)

    def accuracy(self, shown: dict[tuple[int, int], int]) -> float:
        """Percent, of how often the mask of a place was shown at a place: mean IoU, or pixels of the same class."""
        for pair in shown:
            if pair not in self._matrices:
                self._matrices[pair] = confusion(self.truth[pair[1]], self.masks[pair[0]], self.classes)
        matrix = sum((count * self._matrices[pair] for pair, count in shown.items()), np.zeros((), np.int64))
        return 100 * (mean_iou(matrix) if self.labelled else float(np.trace(matrix) / matrix.sum()))


def play(bundle: Bundle, *, data: Path | None, split: str, frames: int, threshold: float | None, threads: int) -> Round:
    """A split of CamVid, or the sample without one, at a camera's usual settings or another threshold.

    Raises ConfigError.
    """
    size, engine = (bundle.manifest.width, bundle.manifest.height), "auto"
    images, labels, name = _video(size, data=data, split=split, frames=frames)
    usual = EncoderSection()
    policy = key_policy(key_interval=usual.key_interval, threshold=usual.threshold if threshold is None else threshold)
    encoder = open_video_encoder(bundle, engine=engine, threads=threads, policy=policy, grid="1x1")
    packets = tuple(encoder.encode(Frame(FrameId(0, n), 0, image)) for n, image in enumerate(images))
    decoder = open_decoder(bundle, engine=engine, threads=threads, labels=False)
    masks = np.stack([_mask(decoder, packet) for packet in packets])  # (P, H, W)
    truth = np.stack(labels) if labels is not None else _fresh(bundle, images, decoder, engine=engine, threads=threads)
    return Round(name, packets, masks, truth, labels is not None, len(bundle.palette))


def _video(size: tuple[int, int], *, data: Path | None, split: str, frames: int) -> tuple[Images, Images | None, str]:
    if data is None:
        with open_source(str(sample_path()), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
            pictures = itertools.islice(opened.pictures, frames)
            return [fit(one.image, size) for one in pictures], None, "samples/street.mp4"
    run = scaled(camvid(data, split), (size[1], size[0]))
    if any((one == VOID).all() for one in run.labels):
        raise ConfigError(f"data {data}: frames of {split} have no labels; name another split")
    return run.images[:frames], run.labels[:frames], f"camvid {split}"


def _mask(decoder: Decoder, packet: Packet, camera: str = "") -> NDArray[np.uint8]:
    (decoded,) = decoder.decode([packet], [camera])
    if isinstance(decoded, PipelineError):
        raise decoded
    if decoded.mask is None:
        raise ConfigError("the bundle makes no masks; use another")
    return decoded.mask.classes


def _fresh(bundle: Bundle, images: Images, decoder: Decoder, *, engine: str, threads: int) -> NDArray[np.uint8]:
    """The masks (P, H, W) of a KEY in every frame."""
    encoder = open_encoder(bundle, engine=engine, threads=threads)
    frames = [Frame(FrameId(0, number), 0, image) for number, image in enumerate(images)]
    return np.stack([_mask(decoder, encoder.encode(frame), "fresh") for frame in frames])
