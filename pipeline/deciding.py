"""What a camera knows of a WARP before it is sent, and how well the bundle's graph `decide` says it will do.

Candidate -> [describe] -> maps, facts -> [decide graph] -> predicted agreement, percent of the pixels
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle, Manifest
from pipeline.errors import ConfigError
from pipeline.motion import Motion
from pipeline.runtime import Precision, Session, open_session

GRAPH = "decide"
MAPS = 6  # residual, detail, misfit, strain, what was not seen, speed
FACTS = 6  # age, twice; bytes of the flow; how busy the key is; rates of its level and of ours
PLACES = (6, 8)  # rows and columns of the maps, whatever the region's size

_GREY = 10.0
_CALM_GREY = 2.0  # a cell's detail counts as so much more than it is
_SPEED_PX = 20.0
_LARGEST = 4.0  # of an entry of the maps
_BYTES = 100.0
_LONGEST_AGE = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """The WARP that a frame could be: its motion since its key, `age` frames ago, and the bytes that code it.

    Of the key: the bytes of its body, and the level it was coded at. `quality` is the level of the fresh mask that
    this is held against, as a rule that of the key; `size` the region's height and width in pixels.
    """

    motion: Motion
    age: int
    flow_bytes: int
    key_bytes: int
    key_quality: int
    quality: int
    size: tuple[int, int]


Predictor = Callable[[Candidate], float]
"""The share of pixels, 0 to 100, that would have the same class in the mask it gives as in a fresh one."""


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """What the network is shown of a candidate: maps float32 (MAPS, 6, 8) and facts float32 (FACTS,)."""

    maps: NDArray[np.float32]
    facts: NDArray[np.float32]


def linear_agreement(candidate: Candidate) -> float:
    """A plain guess at the agreement, for bundles that bring no better one.

    The residual is in grey levels, the gradient in px from node to node; the length of the flow says nothing more.
    Fitted, without labels, to the agreement with fresh masks of the bundle camvid-holdout at level 6: CamVid val, two
    clips of street and car park, two rendered streets, a key at every 5th frame and ages 1 to 12, least absolute
    differences, each video with the same weight. Its rank correlation with the agreement is 0.8 to 0.95 within a
    moving camera's video, and 0.4 in the car park, where masks change although nothing moves.
    """
    flow, residual = candidate.motion.flow, candidate.motion.residual
    gradient = float(np.abs(np.diff(flow, axis=1)).mean() + np.abs(np.diff(flow, axis=2)).mean())
    doubt = 0.21 * candidate.age + 0.77 * float(residual.mean()) + 0.134 * gradient + 0.0133 * candidate.flow_bytes
    return min(max(99.6 - doubt, 0.0), 100.0)


def describe(candidate: Candidate, manifest: Manifest) -> Sight:
    """What the network sees of a candidate, by the rates of the bundle's levels."""
    return Sight(_maps(candidate), _facts(candidate, manifest))


def _maps(candidate: Candidate) -> NDArray[np.float32]:
    found, (height, width) = candidate.motion, candidate.size
    flow = found.flow
    rows, columns = found.residual.shape
    middle = (flow[:, 1:, 1:] + flow[:, 1:, :-1] + flow[:, :-1, 1:] + flow[:, :-1, :-1]) / 4  # (2, R - 1, C - 1)
    down = (flow[:, 1:] - flow[:, :-1]) * np.float32(rows / height)  # per px
    across = (flow[:, :, 1:] - flow[:, :, :-1]) * np.float32(columns / width)
    down, across = (down[:, :, 1:] + down[:, :, :-1]) / 2, (across[:, 1:] + across[:, :-1]) / 2
    area = (1 + across[0]) * (1 + down[1]) - across[1] * down[0]
    x = middle[0] + (np.arange(columns, dtype=np.float32) + 0.5) * (width / columns)
    y = middle[1] + (np.arange(rows, dtype=np.float32)[:, None] + 0.5) * (height / rows)
    outside = (x < 0) | (y < 0) | (x > width) | (y > height)
    cells = [
        found.residual / _GREY,
        found.detail / _GREY,
        found.residual / (found.detail + _CALM_GREY),
        np.sqrt((down**2 + across**2).sum(0)),
        np.where(outside, 1, np.clip(1 - area, 0, 1)),
        np.hypot(*middle) / _SPEED_PX,
    ]
    maps = [cv2.resize(cell.astype(np.float32), PLACES[::-1], interpolation=cv2.INTER_AREA) for cell in cells]
    return np.asarray(np.minimum(np.stack(maps), np.float32(_LARGEST)))


def _facts(candidate: Candidate, manifest: Manifest) -> NDArray[np.float32]:
    key, ours = (usual_bytes(manifest, level) for level in (candidate.key_quality, candidate.quality))
    pixels = manifest.height * manifest.width
    share = candidate.size[0] * candidate.size[1] / pixels  # of the frame
    return np.array(
        [
            math.log1p(candidate.age),
            candidate.age / _LONGEST_AGE,
            candidate.flow_bytes / _BYTES,
            math.log(max(candidate.key_bytes, 1) / (key * share)),
            math.log(key / pixels),
            math.log(ours / key),
        ],
        np.float32,
    )


def usual_bytes(manifest: Manifest, quality: int) -> float:
    """Of a whole frame as KEY of this level, as measured at export, or of the nearest level that was."""
    nearest = min(manifest.quality_levels, key=lambda level: abs(level.index - quality))
    return max(nearest.rate_bpp * manifest.height * manifest.width / 8, 1.0)


class Decider:
    """Asks the bundle's graph; keep it on one thread."""

    def __init__(self, session: Session, manifest: Manifest) -> None:
        self._session, self._manifest = session, manifest

    def __call__(self, candidate: Candidate) -> float:
        """The predicted agreement, 0 to 100."""
        return float(self.compare([candidate])[0])

    def compare(self, candidates: Sequence[Candidate]) -> NDArray[np.float32]:
        """The predicted agreement of N candidates that share one motion, 0 to 100: (N,)."""
        maps = np.repeat(_maps(candidates[0])[None], len(candidates), axis=0)
        facts = np.stack([_facts(one, self._manifest) for one in candidates])
        (agreement,) = self._session.run(maps, facts)  # (N, 1)
        return np.asarray(agreement[:, 0], np.float32)


def open_decider(bundle: Bundle, *, engine: str = "auto") -> Decider | None:
    """What the bundle's graph says, ready and warm, or None without one; ConfigError where it is of another kind."""
    if not bundle.has_graph(GRAPH):
        return None
    # So small a graph runs on one thread; by the camera's own engine, since a second one takes 20 MB of its memory.
    session = open_session(bundle.graph(GRAPH), engine=engine, threads=1, precision=Precision.FLOAT32)
    blank = np.zeros((1, MAPS, *PLACES), np.float32), np.zeros((1, FACTS), np.float32)
    try:
        (agreement,) = session.run(*blank)
    except ValueError as error:
        raise ConfigError(f"bundle {bundle.path}: graph {GRAPH} was given {error}; train it again") from error
    if agreement.shape != (1, 1):
        raise ConfigError(
            f"bundle {bundle.path}: graph {GRAPH} gives {agreement.shape}, not one number; train it again"
        )
    return Decider(session, bundle.manifest)
