"""Where in a picture classes meet: what a camera learns of its KEYs' masks from the bundle's graph `outline`.

A camera never sees a mask. But the latents that it codes show where one has edges, and only there motion matters: bits
spent on the flow of an empty road change no pixel of a WARP.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.errors import ConfigError
from pipeline.regions import CELL_PX, LOGIT_PX
from pipeline.runtime import Precision, Session, open_session

GRAPH = "outline"


class Outliner:
    """Asks the bundle's graph; keep it on one thread."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, y: NDArray[np.float32], quality: int) -> NDArray[np.float32]:
        """Latents (C, h, w) of a level, as the encode graph gives them -> the share of each place, 0 to 1, that lies
        at an edge of its mask (h, w)."""
        (outline,) = self._session.run(y[None], np.array([quality], np.int64))  # (1, h, w)
        return np.asarray(outline[0], np.float32)


def open_outliner(bundle: Bundle, *, engine: str = "auto") -> Outliner | None:
    """What the bundle's graph says, ready and warm, or None without one; ConfigError where it is of another kind."""
    if not bundle.has_graph(GRAPH):
        return None
    # So small a graph runs on one thread; by the camera's own engine, since a second one takes 20 MB of its memory.
    outliner = Outliner(open_session(bundle.graph(GRAPH), engine=engine, threads=1, precision=Precision.FLOAT32))
    blank = np.zeros((bundle.tables.latents, *bundle.latent_size), np.float32)
    try:
        found = outliner(blank, bundle.tables.levels - 1)
    except ValueError as error:
        raise ConfigError(f"bundle {bundle.path}: graph {GRAPH} was given {error}; train it again") from error
    if found.shape != bundle.latent_size:
        raise ConfigError(f"bundle {bundle.path}: graph {GRAPH} gives {found.shape}, not one number per place")
    return outliner


def edges_of(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (K, 4h, 4w) -> the share of each place (h, w) at an edge: with another class beside, above or below."""
    classes = logits.argmax(0)
    edge = np.zeros(classes.shape, bool)
    for axis in (0, 1):
        before, after = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        differs = classes[before] != classes[after]
        edge[before] |= differs
        edge[after] |= differs
    step = CELL_PX // LOGIT_PX
    rows, columns = (side // step for side in edge.shape)
    share: NDArray[np.float32] = edge.reshape(rows, step, columns, step).mean((1, 3), dtype=np.float32)
    return share
