"""The order in which the masks of one camera leave, whichever workers made them: each frame asks for its turn.

decoded -> turn? --MINE--> publish -> the broker has it -> end of the turn
                 --OVER--> drop: a newer frame had its turn
                 --WAIT--> ask again: another worker is publishing

Two workers that serve one camera never publish its masks out of order, unless the broker is behind for longer than
TURN_S: others wait for the end of a turn no longer than that, since the worker may have died. One that only stalled
asks again before it sends what it held. If it did die, whoever is given its job again takes the turn over, so the mask
is not lost; those before it in the same batch are, where masks of the batch that were published already would otherwise
come twice and time run backwards. One mask is published twice only if its worker died, or lost the queue's server for
as long as a job is held, after publishing it and before answering the job.

Recordings, whose frames are all waited for, take no turns. Of each the newest frame is known whose mask is out, the
recording's position, and the next frame is the one after it.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from pipeline.messages import SEQUENCES, FrameId

TURN_S = 0.6  # as long as it takes until a worker that is silent counts as dead
FORGET_S = 60.0  # of an order that nobody asks for, and of an epoch that is over: a camera may draw it again
POSITION_LASTS_S = 3600.0  # a recording may stand still for long


class Turn(IntEnum):
    """What a frame is told; the script in `redis_streams` answers with these numbers."""

    OVER = 0
    MINE = 1
    WAIT = 2


@dataclass(frozen=True, slots=True)
class Position:
    """How far a recording is: its newest frame whose mask is out, since when, and the epochs that ended before it.

    The time is in ms of the same clock as that of `Job.queued_ms`.
    """

    frame: FrameId
    at_ms: int
    over: frozenset[int] = frozenset()


def frames_after(frame: FrameId, other: FrameId) -> int:
    """How many frames one is after another of its epoch, negative if before; sequences wrap at 2**32."""
    return (frame.sequence - other.sequence + SEQUENCES // 2) % SEQUENCES - SEQUENCES // 2


@dataclass(slots=True, eq=False)
class MaskOrder:
    """The order of one camera, as the queue in memory keeps it; times are in seconds, of any clock."""

    _last: FrameId | None = None
    _entry: str | None = None  # the job of that frame, while its turn has not ended
    _worker: str = ""
    _taken_s: float = 0.0
    _lasts_s: float = FORGET_S
    _over: dict[int, float] = field(default_factory=dict)  # epochs, and when they ended

    def take(self, frame: FrameId, *, entry: str, worker: str, now_s: float) -> Turn:
        """Ask for the turn of a frame that came with this job, for the worker that would publish it."""
        if self._last is None or now_s - self._taken_s >= FORGET_S:
            self._last, self._entry, self._over = None, None, {}
        elif entry != self._entry if frame == self._last else self._is_over(frame, self._last, now_s):
            return Turn.OVER
        elif self._entry is not None and worker != self._worker and now_s - self._taken_s < TURN_S:
            return Turn.WAIT
        elif frame.epoch != self._last.epoch:
            self._end_epoch(self._last.epoch, now_s)
        self._last, self._entry, self._worker, self._taken_s = frame, entry, worker, now_s
        self._lasts_s = FORGET_S
        return Turn.MINE

    def end(self, entry: str) -> None:
        """Say that the job is answered; of jobs whose turn is not the last one nothing is known any more."""
        if entry == self._entry:
            self._entry = None

    def advance(self, frame: FrameId, *, now_s: float) -> None:
        """Say that the mask of a recording's frame is out; one that is not newer changes nothing."""
        if self._last is not None and frame.epoch == self._last.epoch:
            if frames_after(frame, self._last) <= 0:
                return
        elif self._last is not None:
            if self._is_over(frame, self._last, now_s):
                return
            self._end_epoch(self._last.epoch, now_s)
        self._last, self._entry, self._taken_s, self._lasts_s = frame, None, now_s, POSITION_LASTS_S

    def position(self, *, now_s: float) -> Position | None:
        """How far the recording is, if that is known."""
        if self._last is None or now_s - self._taken_s >= POSITION_LASTS_S:
            return None
        return Position(self._last, int(self._taken_s * 1000), frozenset(self._over))

    def is_forgotten(self, *, now_s: float) -> bool:
        """Whether nobody asked for so long that a new order is as good."""
        return now_s - self._taken_s >= self._lasts_s

    def _end_epoch(self, epoch: int, now_s: float) -> None:
        self._over = {one: at_s for one, at_s in self._over.items() if now_s - at_s < FORGET_S} | {epoch: now_s}

    def _is_over(self, frame: FrameId, last: FrameId, now_s: float) -> bool:
        if frame.epoch == last.epoch:
            return frames_after(frame, last) < 0
        return now_s - self._over.get(frame.epoch, -FORGET_S) < FORGET_S
