"""The values that travel between the stages; all of them frozen.

Frame -> Encoder -> Packet -> bytes == uplink == queue ==> bytes -> Packet -> Decoder -> Mask -> screen
           ^                                                                   |
           +----------------------------- KeyRequest ---------------------------+
"""

import re
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

_CAMERA_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_TAKEN = frozenset({"bundle", "worker"})  # topics of their own


def check_camera_name(name: str) -> str:
    """Return the name; ConfigError when it is not `[a-z0-9][a-z0-9_-]{0,62}`, or taken (docs/wire.md, section 2)."""
    if name in _TAKEN:
        raise ConfigError(f"camera name {name!r}: the topics under it are those of {name}s; use another name")
    if not _CAMERA_NAME.fullmatch(name):
        raise ConfigError(
            f"camera name {name!r}: use 1 to 63 of a-z, 0-9, '-' and '_', beginning with a letter or a digit"
        )
    return name


class Kind(IntEnum):
    """How a region is coded; the numbers are on the wire."""

    BACK = 0  # body: flow from a key that belongs to this frame or a later one (bidirectional coding)
    KEY = 1  # body: latents
    WARP = 2  # body: flow from the region's key
    DELTA = 3  # kept free: no version sends it


SEQUENCES = 1 << 32  # of an epoch; then they begin at 0 again


@dataclass(frozen=True, slots=True)
class FrameId:
    """Names one frame of one camera for ever."""

    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture at the bundle's size: uint8 RGB (H, W, 3)."""

    id: FrameId
    captured_ms: int
    image: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Region:
    """One coded region; `age` is the packet's sequence minus that of the key it is (0) or refers to.

    Of a BACK, and of a KEY that comes ahead of its own frame, it is that frame's sequence minus the packet's.
    """

    kind: Kind
    index: int
    age: int
    body: bytes

    @property
    def shows(self) -> Kind | None:
        """How its part of the frame comes about: as KEY, or moved, as WARP; None of a KEY that comes ahead."""
        if self.kind is Kind.KEY and self.age:
            return None
        if self.kind is Kind.BACK:
            return Kind.WARP if self.age else Kind.KEY
        return self.kind


@dataclass(frozen=True, slots=True)
class Packet:
    """One frame of one camera as it travels; `bundle` is the first 4 bytes of the bundle's hash.

    `recorded`: it is of a recording, of which every frame gets its mask, however late. `receipt`: the camera wants to
    know that it arrived.
    """

    id: FrameId
    captured_ms: int
    bundle: bytes
    quality: int
    rows: int
    columns: int
    regions: tuple[Region, ...]
    recorded: bool = False
    receipt: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Class index per pixel, uint8 (H, W), of one frame, and how each of its regions was coded.

    `kinds` holds rows x columns kinds, row by row, as `Region.shows` tells them, so that none is BACK; None: the region
    was not in the packet, its last mask stands. It is empty where that is not known.
    """

    id: FrameId
    captured_ms: int
    bundle: bytes
    classes: NDArray[np.uint8]
    rows: int = 1
    columns: int = 1
    kinds: tuple[Kind | None, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """How sure it is that each class is in the picture, float32 (K,) in 0..1, of one frame."""

    id: FrameId
    captured_ms: int
    bundle: bytes
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What one packet was decoded to: a mask, scores or both, as the bundle has graphs for them.

    `missing`: the regions whose keys were not there, so that their last mask stands.
    """

    mask: Mask | None
    scores: Scores | None
    missing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """The one message back: these regions of the camera need a new key."""

    camera: str
    regions: tuple[int, ...]
