"""A video as a simulated camera has it: what each frame takes as KEY of each level, or as WARP of an earlier one.

Everything is made by the bundle itself, when it is first asked for, and kept: so that hours of a camera on a simulated
link take seconds. Masks are those at the logits' stride of 4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import motion
from pipeline.bundle import Bundle
from pipeline.class_map import STRIDE
from pipeline.codec import Decoder, Encoder, decode_graph, open_decoder, open_encoder
from pipeline.deciding import Candidate, Predictor, linear_agreement, open_decider
from pipeline.flow_coding import encode_flow, grid_of
from pipeline.messages import Frame, FrameId
from pipeline.motion import Motion, MotionTracker
from pipeline.runtime import Session, open_session

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What a camera knows of a WARP: its body's bytes, predicted agreement in percent, mean flow per frame in px."""

    body_bytes: int
    predicted: float
    speed_px: float


@dataclass(frozen=True, slots=True, eq=False)
class Coders:
    """A bundle's two halves and its prediction, ready to run."""

    bundle: Bundle
    encoder: Encoder
    decoder: Decoder
    masks: Session
    predict: Predictor


def open_coders(bundle: Bundle, *, engine: str = "auto") -> Coders:
    """On one thread each; ConfigError as opening them."""
    motion.warm_up_tracking()
    encoder = open_encoder(bundle, engine=engine, threads=1, outlines=True)
    decoder = open_decoder(bundle, engine=engine, threads=1, labels=False)
    masks = open_session(decode_graph(bundle, engine), engine=engine, threads=1)
    return Coders(bundle, encoder, decoder, masks, open_decider(bundle, engine=engine) or linear_agreement)


class Footage:
    """Images (H, W, 3) of the bundle's size, over and over again; frames are numbered from 0 without end."""

    def __init__(self, name: str, images: Sequence[Image], *, fps: float, coders: Coders) -> None:
        self.name, self.fps = name, fps
        self._images, self._coders = images, coders
        self._levels = coders.bundle.tables.levels
        self.top = self._levels - 1
        self._keys: dict[tuple[int, int], tuple[int, NDArray[np.float16]]] = {}  # body bytes, logits (K, h, w)
        self._outlines: dict[int, NDArray[np.float32] | None] = {}  # of each frame as a KEY of the highest level
        self._chains: dict[int, tuple[Iterator[Motion], list[Motion]]] = {}
        self._moved: dict[tuple[int, int, int], Moved] = {}
        self._masks: dict[tuple[int, int, int], Image] = {}
        self._grid = grid_of(*images[0].shape[:2])

    def __len__(self) -> int:
        return len(self._images)

    @property
    def bundle(self) -> Bundle:
        """What it was made by."""
        return self._coders.bundle

    def image(self, frame: int) -> Image:
        return self._images[frame % len(self)]

    def key_bytes(self, frame: int, level: int) -> int:
        """Of the body of a KEY."""
        return self._key(frame % len(self), level)[0]

    def moved(self, frame: int, age: int, level: int) -> Moved:
        """A frame as WARP of the KEY `age` >= 1 frames before it, which is of this level."""
        name = (frame % len(self), age, level)
        if name not in self._moved:
            self._moved[name] = self._as_warp(*name)
        return self._moved[name]

    def mask(self, frame: int, age: int, level: int) -> Image:
        """Classes (h, w) of a frame as KEY, age 0, or as WARP of the KEY so many frames before it."""
        name = (frame % len(self), age, level)
        if name not in self._masks:
            logits = self._key((frame - age) % len(self), level)[1].astype(np.float32)
            if age:
                logits = motion.warp(logits, self._motion(frame - age, age).flow, *self._images[0].shape[:2])
            height, width = (side // STRIDE for side in self._images[0].shape[:2])
            self._masks[name] = logits[:, :height, :width].argmax(axis=0).astype(np.uint8)
        return self._masks[name]

    def agreement(self, shown: Image, frame: int) -> float:
        """Percent of the pixels of a mask that are as in that of the frame as a KEY of the highest level."""
        return 100 * float(np.mean(shown == self.mask(frame, 0, self.top)))

    def _key(self, frame: int, level: int) -> tuple[int, NDArray[np.float16]]:
        if (frame, level) not in self._keys:
            self._coders.encoder.quality = level
            packet = self._coders.encoder.encode(Frame(FrameId(0, frame), 0, self._images[frame]))
            if level == self.top:
                self._outlines[frame] = self._coders.encoder.outline
            y_hat = self._coders.decoder.y_hat(packet)[None]
            (logits,) = self._coders.masks.run(y_hat, np.array([level]))
            self._keys[frame, level] = len(packet.regions[0].body), logits[0].astype(np.float16)
        return self._keys[frame, level]

    def _motion(self, key: int, age: int) -> Motion:
        key %= len(self)
        if key not in self._chains:
            self._chains[key] = self._follow(key), []
        chain, found = self._chains[key]
        while len(found) < age:
            found.append(next(chain))
        return found[age - 1]

    def _follow(self, key: int) -> Iterator[Motion]:
        tracker = MotionTracker(*self._images[0].shape[:2])
        self._key(key, self.top)
        tracker.start(self._images[key], self._outlines[key])
        age = 0
        while True:
            age += 1
            yield tracker.track(self._images[(key + age) % len(self)], age)

    def _as_warp(self, frame: int, age: int, level: int) -> Moved:
        found = self._motion(frame - age, age)
        body_bytes, size = len(encode_flow(found.coefficients, self._grid)), self._images[0].shape[:2]
        key_bytes = self.key_bytes(frame - age, level)
        candidate = Candidate(found, age, body_bytes, key_bytes, level, level, (size[0], size[1]))
        speed_px = float(np.hypot(*found.flow).mean()) / age
        return Moved(body_bytes, self._coders.predict(candidate), speed_px)
