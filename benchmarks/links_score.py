"""What a link made of a video: how fast and how often masks came, and how right the viewer's picture was.

The viewer shows each frame that the source had SHOWN_MS after its capture, with the newest mask that has come by then
and is not of a later frame: the frame's own, or where that is late or lost one of before. So every frame counts, also
those that the camera never sent.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.links_video import Footage
from benchmarks.links_watch import SeenMask, View
from pipeline.accuracy import confusion, mean_iou
from pipeline.bundle import Bundle
from pipeline.codec import open_decoder
from pipeline.errors import ConfigError
from pipeline.messages import Decoded, FrameId

SHOWN_MS = 300
# An engine may round otherwise in a batch than alone: a pixel between two classes then falls to the other.
SAME = 0.995


@dataclass(frozen=True, slots=True)
class Score:
    """One camera over a link for some seconds; latencies in ms, shares 0 to 1, accuracies in percent.

    `within` is the share of the source's frames whose own mask came within SHOWN_MS. mIoU is against labels, `best` is
    that of the masks of KEYs of the highest level in every frame, without any delay; `agreement` is the share of pixels
    as in those. `corrupted` masks are not as an undisturbed decoder makes them of the same packets; `checked` could be
    compared.
    """

    frames: int
    masks: int
    fps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    within: float
    miou: float | None
    best: float | None
    agreement: float
    checked: int
    corrupted: int
    same: float


@dataclass(frozen=True, slots=True)
class Span:
    """A time on the machine's clock, ms since 1970."""

    since_ms: float
    until_ms: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.until_ms - self.since_ms) / 1000


def score(view: View, footage: Footage, bundle: Bundle, span: Span) -> Score:
    """Judge what came of the frames of a time; latencies are NaN where nothing did."""
    began_ms = beginning(view)
    ours = [one for one in view.masks if span.since_ms <= one.mask.captured_ms < span.until_ms]
    latencies = np.array([one.latency_ms for one in ours])
    p50_ms, p95_ms, p99_ms = (float(np.percentile(latencies, q)) if ours else float("nan") for q in (50, 95, 99))
    times = captures(footage, span, began_ms)
    shown = shown_places(view.masks, footage, times)
    places, masks = [footage.place(time_ms, began_ms) for time_ms in times], view.masks
    same = sameness(view, ours, bundle)
    return Score(
        frames=len(times),
        masks=len(ours),
        fps=sum(span.since_ms <= one.at_ms < span.until_ms for one in masks) / span.seconds,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        within=int((latencies <= SHOWN_MS).sum()) / len(times),
        miou=_accuracy(masks, shown, footage.labels, places),
        best=None if footage.labels is None else _best(footage, places),
        agreement=_agreement(masks, shown, footage.best.masks, places),
        checked=len(same),
        corrupted=int((same < SAME).sum()),
        same=float(same.mean()) if len(same) else float("nan"),
    )


def beginning(view: View) -> float:
    """When the first frame was captured, ms since 1970; ConfigError where its packet was not seen."""
    first = view.packets[0].packet if view.packets else None
    if first is None or first.id.sequence != 0:
        raise ConfigError("the camera's first packet did not come")
    return first.captured_ms


def captures(footage: Footage, span: Span, began_ms: float) -> list[float]:
    """When the source showed the frames of a time, ms since 1970."""
    step_ms = 1000 / footage.fps
    first, last = (int(np.ceil((at_ms - began_ms) / step_ms)) for at_ms in (span.since_ms, span.until_ms))
    return [began_ms + number * step_ms for number in range(first, last)]


def shown_places(masks: Sequence[SeenMask], footage: Footage, times: Sequence[float]) -> list[int]:
    """Which mask a viewer saw for each frame: its place among the masks; ConfigError where there was none yet."""
    came, captured = [one.at_ms for one in masks], [one.mask.captured_ms for one in masks]
    slack_ms = 500 / footage.fps  # a frame may be captured a little late, never by half the way to the next
    found = [min(bisect_right(came, ms + SHOWN_MS), bisect_right(captured, ms + slack_ms)) - 1 for ms in times]
    if min(found, default=0) < 0:
        raise ConfigError("the first masks came too late: warm up for longer")
    return found


def sameness(view: View, masks: Sequence[SeenMask], bundle: Bundle) -> NDArray[np.float64]:
    """The share of pixels of each mask that are as an undisturbed decoder makes them of the packets that were seen.

    It gets them in their order, which they need not have had: a KEY may come after a WARP that refers to it.
    """
    decoder = open_decoder(bundle, engine="auto", threads=1, labels=False)
    right: dict[FrameId, NDArray[np.uint8]] = {}
    for packet in sorted((seen.packet for seen in view.packets), key=lambda one: (one.id.epoch, one.id.sequence)):
        (decoded,) = decoder.decode([packet])
        if isinstance(decoded, Decoded) and decoded.mask is not None:  # else its KEY never came
            right[decoded.mask.id] = decoded.mask.classes
    pairs = [(one.mask.classes, right[one.mask.id]) for one in masks if one.mask.id in right]
    return np.array([np.mean(came == made) for came, made in pairs])


def _accuracy(
    masks: Sequence[SeenMask], shown: Sequence[int], truth: NDArray[np.uint8] | None, places: Sequence[int]
) -> float | None:
    """Mean IoU in percent; None without labels."""
    if truth is None:
        return None
    classes = int(max(one.mask.classes.max() for one in masks)) + 1
    classes = max(classes, int(truth[truth < 255].max()) + 1)
    matrix = sum(
        count * confusion(truth[place], masks[number].mask.classes, classes)
        for (number, place), count in Counter(zip(shown, places, strict=True)).items()
    )
    return 100 * mean_iou(np.asarray(matrix))


def _best(footage: Footage, places: Sequence[int]) -> float:
    """Mean IoU in percent of the masks that no link has touched."""
    assert footage.labels is not None
    classes = int(max(footage.best.masks.max(), footage.labels[footage.labels < 255].max())) + 1
    pairs = [(footage.labels[place], footage.best.masks[place]) for place in places]
    return 100 * mean_iou(np.sum([confusion(*pair, classes) for pair in pairs], axis=0))


def _agreement(
    masks: Sequence[SeenMask], shown: Sequence[int], best: NDArray[np.uint8], places: Sequence[int]
) -> float:
    """Percent of the pixels that are of the same class as in the best masks."""
    pairs = zip(shown, places, strict=True)
    return 100 * float(np.mean([np.mean(masks[number].mask.classes == best[place]) for number, place in pairs]))
