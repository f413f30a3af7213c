"""What a decision network learns from: warps of keys in videos without labels, and how well their masks agreed."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import motion
from pipeline.bundle import Bundle
from pipeline.class_map import class_map
from pipeline.codec import Encoder
from pipeline.deciding import FACTS, MAPS, PLACES, Candidate, Sight, describe
from pipeline.errors import ConfigError, SourceError
from pipeline.experiment import Approaches, DecideSamples, Street
from pipeline.flow_coding import encode_flow, grid_of
from pipeline.latent_coding import Latents, dequantise, encode_latents, quantise
from pipeline.motion import MotionTracker
from pipeline.outlining import Outliner, edges_of
from pipeline.runtime import Session
from pipeline.sources import Opened, fit, open_source
from pipeline.streets import render_street

Image = NDArray[np.uint8]
_MOST_FRAMES = 1200  # of one video, in memory
_CACHED = 256  # frames' logits; half a megabyte each


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """RGB frames (H, W, 3) of the bundle's size in the order of time."""

    name: str
    images: Sequence[Image]


@dataclass(frozen=True, slots=True, eq=False)
class Fresh:
    """What a worker makes of a KEY, logits (K, h4, w4); the bytes of its body; and what the camera knows of its edges,
    (h, w), None where the bundle has no graph for that."""

    logits: NDArray[np.float32]
    body_bytes: int
    outline: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """N warps: maps (N, M, h, w), facts (N, F), and the agreement (N,) with fresh masks in percent; float32."""

    maps: NDArray[np.float32]
    facts: NDArray[np.float32]
    agreement: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.agreement)


def check_sources(sources: Sequence[Path]) -> None:
    """SourceError unless all of them can be opened: to be told so after minutes of other videos would be late."""
    for source in sources:
        with _opened(source):
            pass


def _opened(source: Path) -> AbstractContextManager[Opened]:
    return open_source(str(source), fps=25.0, timeout_s=5.0, decode_threads=1)


def read_video(source: Path, size: tuple[int, int]) -> Video:
    """A clip or a folder of images for a bundle of `size` (width, height); SourceError where it cannot be read."""
    with _opened(source) as opened:
        images = [fit(one.image, size) for one in islice(opened.pictures, _MOST_FRAMES)]
    if not images:
        raise SourceError(f"source {source}: there is no picture in it; name another")
    return Video(source.stem, images)


def render_video(street: Street, size: tuple[int, int]) -> Video:
    """A street for a bundle of `size` (width, height), as bright as it says."""
    frames = render_street(street.seed, width=size[0], height=size[1], frames=street.frames, fps=street.fps)
    images = [cv2.convertScaleAbs(frame.image, alpha=street.light).astype(np.uint8, copy=False) for frame in frames]
    return Video(f"street {street.seed}", images)


def approach(image: Image, settings: Approaches, rng: np.random.Generator) -> Video:
    """A picture (H, W, 3) as a camera would see it that comes nearer, or stands; each frame has noise of its own."""
    height, width = image.shape[:2]
    growth = 1 + rng.uniform(0, settings.fastest)
    towards = np.array([width, height]) * rng.uniform(0.35, 0.65, 2)
    noise, images = rng.uniform(0, settings.noise), []
    for frame in range(settings.frames):
        scale = growth**frame
        moved = np.array([[scale, 0, (1 - scale) * towards[0]], [0, scale, (1 - scale) * towards[1]]])
        seen = cv2.warpAffine(image, moved, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        noisy = seen + rng.normal(0, noise, seen.shape)
        images.append(noisy.round().clip(0, 255).astype(np.uint8))
    return Video("approach", images)


class Worker:
    """A camera and a worker of one bundle: frames to logits, logits to how well they agree."""

    def __init__(self, bundle: Bundle, encoder: Encoder, decode: Session, *, outliner: Outliner | None = None) -> None:
        self.bundle = bundle
        self._encoder, self._decode, self._outliner = encoder, decode, outliner

    def fresh(self, image: Image, level: int) -> Fresh:
        """A frame RGB (H, W, 3) as a KEY of that level."""
        tables = self.bundle.tables
        y, z = self._encoder.analysed(image, level)
        latents = quantise(y, z, tables, level)
        outline = None if self._outliner is None else self._outliner(y, level)
        return Fresh(self._logits(latents, level), len(encode_latents(latents, tables, level)), outline)

    def edges(self, image: Image, level: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A frame's y (C, h, w) at that level, and the edges (h, w) of the mask that a KEY of it gives."""
        y, z = self._encoder.analysed(image, level)
        return y, edges_of(self._logits(quantise(y, z, self.bundle.tables, level), level))

    def _logits(self, latents: Latents, level: int) -> NDArray[np.float32]:
        """(K, h4, w4) of what a KEY carries."""
        (logits,) = self._decode.run(dequantise(latents)[None], np.array([level], np.int64))  # (1, K, h4, w4)
        own: NDArray[np.float32] = logits[0].copy()
        return own

    def agreement(self, logits: NDArray[np.float32], fresh: Fresh) -> float:
        """Percent of the pixels whose class is that of the fresh mask."""
        size = self.bundle.manifest.height, self.bundle.manifest.width
        return 100 * float(np.mean(class_map(logits, *size) == class_map(fresh.logits, *size)))


def watch(worker: Worker, video: Video, settings: DecideSamples, rng: np.random.Generator) -> Samples:
    """What keys at random frames and levels give later on; ConfigError where the video has fewer than two frames."""
    if len(video.images) < 2:
        raise ConfigError(f"source {video.name}: one frame is no video; name a longer one")
    watcher = _Watcher(worker, video, settings, rng)
    found = [one for _ in range(settings.keys) for one in watcher.key()]
    sights = [sight for sight, _ in found]
    return Samples(
        np.array([sight.maps for sight in sights], np.float32).reshape(-1, MAPS, *PLACES),
        np.array([sight.facts for sight in sights], np.float32).reshape(-1, FACTS),
        np.array([agreement for _, agreement in found], np.float32),
    )


def watch_approaches(
    worker: Worker, pictures: Video, approaches: Approaches, settings: DecideSamples, rng: np.random.Generator
) -> Samples:
    """What `watch` gives of one key in a video of each of some pictures, together."""
    chosen = rng.permutation(len(pictures.images))[: approaches.pictures]
    once = settings.model_copy(update={"keys": 1})
    parts = [watch(worker, approach(pictures.images[one], approaches, rng), once, rng) for one in chosen]
    return Samples(
        np.concatenate([part.maps for part in parts]),
        np.concatenate([part.facts for part in parts]),
        np.concatenate([part.agreement for part in parts]),
    )


class _Watcher:
    """Draws keys from one video, and shows what can be made of them."""

    def __init__(self, worker: Worker, video: Video, settings: DecideSamples, rng: np.random.Generator) -> None:
        self._worker, self._images, self._settings, self._rng = worker, video.images, settings, rng
        self._size = worker.bundle.manifest.height, worker.bundle.manifest.width
        self._levels = sorted(one.index for one in worker.bundle.manifest.quality_levels)
        self._fresh = lru_cache(maxsize=_CACHED)(lambda index, level: worker.fresh(video.images[index], level))

    def key(self) -> Iterator[tuple[Sight, float]]:
        """One key, as it is at cheaper levels, then warped to some of the frames after it."""
        level, index = int(self._rng.choice(self._levels)), int(self._rng.integers(len(self._images) - 1))
        cheaper = [int(one) for one in self._rng.permutation([one for one in self._levels if one < level])]
        yield from self._at_once(index, level, cheaper[: self._settings.fresh])
        own = cheaper[0] if cheaper and self._rng.random() < self._settings.cheaper else level
        yield from self._later(index, level, own)

    def _at_once(self, index: int, level: int, cheaper: Sequence[int]) -> Iterator[tuple[Sight, float]]:
        """The frame itself at these levels: of no age and no motion."""
        for own in cheaper:
            key, tracker = self._fresh(index, own), MotionTracker(*self._size)
            tracker.start(self._images[index], key.outline)
            still = tracker.track(self._images[index], 1)
            yield self._seen(Candidate(still, 0, 0, key.body_bytes, own, level, self._size), key.logits, index)

    def _later(self, start: int, level: int, own: int) -> Iterator[tuple[Sight, float]]:
        """Frames after a key of level `own`, held against masks of `level`; frames in between may be lost."""
        key, step = self._fresh(start, own), int(self._rng.integers(1, self._settings.steps + 1))
        tracker, grid = MotionTracker(*self._size), grid_of(*self._size)
        tracker.start(self._images[start], key.outline)
        for age, index in enumerate(range(start + step, len(self._images), step)[: self._settings.longest_age], 1):
            found = tracker.track(self._images[index], age)
            if self._rng.random() >= self._settings.share:
                continue
            flow_bytes = len(encode_flow(found.coefficients, grid))
            warped = motion.warp(key.logits, found.flow, *self._size)
            candidate = Candidate(found, age, flow_bytes, key.body_bytes, own, level, self._size)
            yield self._seen(candidate, warped, index)

    def _seen(self, candidate: Candidate, logits: NDArray[np.float32], index: int) -> tuple[Sight, float]:
        """What the camera knows of a candidate, and how well its logits agree with the frame's own mask."""
        agreement = self._worker.agreement(logits, self._fresh(index, candidate.quality))
        return describe(candidate, self._worker.bundle.manifest), agreement
