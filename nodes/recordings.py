"""Recordings at a worker: of each, frames go on in order and once, whoever had those before; the others are held here.

position            passed
    |-- under way here --|-- next: goes on --|-- too early: held, until the frames before come or their masks are out

Of a frame at or before the position the mask is out. If its packet was queued after that, its camera has not seen the
mask, as when the broker died with it: then it is published again.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

from nodes.answers import Answers
from pipeline.errors import TransportError
from pipeline.mask_order import Position, Turn, frames_after
from pipeline.messages import FrameId, Packet
from pipeline.work_queue import HOLD_S, Job, WorkQueue

_HELD = 1024  # packets
_LOOKS = 64  # recordings that the queue is asked about for one batch
_HELD_S = 0.8 * HOLD_S  # then the queue would give them to another worker; their camera sends them again
_LOST_S = 6.0  # without a position, which the queue's server lost: by then the camera has sent what it misses
_NOT_KNOWN_MS = 1 << 62
_KEY_TRIES = 3  # the queue's server may have been slow to give a key
_FORGET_S = 120.0  # longer than the keys of a silent camera are kept
_KNOWN = 1024  # recordings; names are anybody's

REPEATED, EARLY = "repeated", "early"  # reasons of losses


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A packet that is being worked on, and the job it came with."""

    job: Job
    packet: Packet


@dataclass(slots=True, eq=False)
class Recording:
    """How far one recording is, as far as it is known here, and what is held of it, with the time since when."""

    used_s: float
    position: Position | None = None
    passed: FrameId | None = None
    held: dict[Ticket, float] = field(default_factory=dict)
    decoded: FrameId | None = None
    steps_back: int = 0
    lacked: tuple[FrameId, int] | None = None  # the frame whose key was missing last, and how often
    looked: int = 0  # the number of the last look at the queue that was for this one too

    def learn(self, position: Position) -> None:
        """Take what the queue says, unless it is known here that the recording is further."""
        own = self.position
        # Of epochs that ended long ago the queue knows nothing: another one is newer, unless known here as over.
        other = own is not None and own.frame.epoch != position.frame.epoch and position.frame.epoch not in own.over
        if own is None or other or own.frame.epoch in position.over or _is_at_or_before(own.frame, position.frame):
            self.position = position

    def forgotten(self) -> None:
        """Say that the queue knows no position: what is sent again then was queued after ours, and is not over."""
        if self.position is not None:
            self.position = replace(self.position, at_ms=0)

    def advance(self, frame: FrameId) -> None:
        """Say that the mask of a frame is out, published here just now."""
        over: frozenset[int] = frozenset()
        if self.position is not None:
            if _is_at_or_before(frame, self.position.frame):
                return
            over = self.position.over | ({self.position.frame.epoch} - {frame.epoch})
        self.position = Position(frame, _NOT_KNOWN_MS, over)

    def turn(self, ticket: Ticket, passed: FrameId | None = None) -> Turn:
        """Whether a frame is next, too early, or over, after those that passed."""
        frame, position = ticket.packet.id, self.position
        if position is not None and self.is_over(frame):
            unseen = frame.epoch not in position.over and ticket.job.queued_ms > position.at_ms
            return Turn.MINE if unseen else Turn.OVER
        newest = passed or (position.frame if position else None)
        if newest is None or newest.epoch != frame.epoch:
            return Turn.MINE if frame.sequence == 0 else Turn.WAIT
        return Turn.MINE if frames_after(frame, newest) == 1 else Turn.WAIT

    def is_over(self, frame: FrameId) -> bool:
        """Whether the frame's mask is out, or its epoch over."""
        position = self.position
        return position is not None and (frame.epoch in position.over or _is_at_or_before(frame, position.frame))

    def take(self, room: int) -> list[Ticket]:
        """Of what is held, what may go on now; it has passed then."""
        if self.passed and self.is_over(self.passed):
            self.passed = None  # others are further
        taken: list[Ticket] = []
        for ticket in self.in_order():
            if len(taken) < room and self.turn(ticket, self.passed) is Turn.MINE:
                taken.append(ticket)
                del self.held[ticket]
                if not self.is_over(ticket.packet.id):
                    self.passed = ticket.packet.id
        return taken

    def in_order(self) -> list[Ticket]:
        """What is held, by sequence, the epoch that came first before others."""
        epochs = dict.fromkeys(ticket.packet.id.epoch for ticket in self.held)
        ranks = {epoch: rank for rank, epoch in enumerate(epochs)}
        return sorted(self.held, key=lambda each: (ranks[each.packet.id.epoch], each.packet.id.sequence))

    def begin_with_first(self) -> None:
        """Take the first frame that is held for the next one: nobody knows of any before it."""
        first = self.in_order()[0].packet.id
        self.position = Position(FrameId(first.epoch, first.sequence - 1), 0)


class Recordings:
    """The recordings that a worker serves."""

    def __init__(self, *, queue: WorkQueue, answers: Answers, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue, self._answers, self._clock = queue, answers, clock
        self._known: dict[str, Recording] = {}
        self._looks = 0

    @property
    def waiting(self) -> bool:
        """Whether packets are held."""
        return any(each.held for each in self._known.values())

    def hold(self, tickets: Iterable[Ticket]) -> None:
        """Keep packets until they may go on."""
        for ticket in tickets:
            self._of(ticket).held[ticket] = self._clock()

    async def next(self, room: int) -> list[Ticket]:
        """Return up to so many of the packets that may be decoded now; settle those that are of no more use."""
        taken: list[Ticket] = []
        if waiting := [camera for camera, each in self._known.items() if each.held]:
            if await self.look(asked := self._longest_not_asked(waiting)):
                self._begin_lost(asked)
            for camera in waiting:
                if found := self._known[camera].take(room - len(taken)):
                    taken += found
                    self._known[camera] = self._known.pop(camera)  # next time others come first
            await self._settle()
        return taken

    async def look(self, cameras: Collection[str]) -> bool:
        """Learn from the queue how far these recordings are; false where it is away and what is known must do."""
        try:
            found = await self._queue.positions(cameras)
        except TransportError as error:
            self._answers.lost_queue(error)
            return False
        for camera in set(cameras).intersection(self._known):
            if camera in found:
                self._known[camera].learn(found[camera])
            else:
                self._known[camera].forgotten()
        return True

    def _longest_not_asked(self, cameras: Sequence[str]) -> list[str]:
        """So many of the cameras that the queue was not asked about for longest; they count as asked about."""
        asked = sorted(cameras, key=lambda camera: self._known[camera].looked)[:_LOOKS]
        self._looks += 1
        for camera in asked:
            self._known[camera].looked = self._looks
        return asked

    def turn(self, ticket: Ticket) -> Turn:
        """Whether a mask may be published now, as far as is known here."""
        return self._of(ticket).turn(ticket)

    def advance(self, ticket: Ticket) -> None:
        """Say that the mask of the packet is out."""
        self._of(ticket).advance(ticket.packet.id)

    def stop(self, ticket: Ticket) -> None:
        """Say that a packet that passed comes to nothing here, so that those behind it are too early."""
        self._of(ticket).passed = None

    def try_again(self, ticket: Ticket) -> bool:
        """Hold a packet again whose key was not found, unless that was tried before; whether it is held."""
        recording, frame = self._of(ticket), ticket.packet.id
        tries = recording.lacked[1] + 1 if recording.lacked and recording.lacked[0] == frame else 1
        recording.lacked, recording.passed = (frame, tries), None
        if tries < _KEY_TRIES:
            self.hold([ticket])
        return tries < _KEY_TRIES

    def keys_under(self, ticket: Ticket) -> str:
        """The name under which a decoder is to hold the keys of a packet that is decoded next.

        A decoder keeps the newest keys of a name. Where a recording steps back they are too new, so it gets another.
        """
        recording, frame = self._of(ticket), ticket.packet.id
        if recording.decoded is not None and _is_at_or_before(frame, recording.decoded):
            recording.steps_back += 1
        recording.decoded = frame
        return f"{ticket.job.camera}/{recording.steps_back}" if recording.steps_back else ticket.job.camera

    def _begin_lost(self, cameras: Iterable[str]) -> None:
        """Let those of these recordings go on whose positions were lost."""
        for each in (self._known[camera] for camera in cameras):
            if each.held and each.position is None and self._clock() - min(each.held.values()) > _LOST_S:
                each.begin_with_first()

    async def _settle(self) -> None:
        """Answer what is over, what was held for too long, and the newest of what is too much."""
        now_s, known = self._clock(), self._known.values()
        over = [ticket for each in known for ticket in each.held if each.turn(ticket) is Turn.OVER]
        await self._answer(over, REPEATED)
        early = [one for each in known for one, since_s in each.held.items() if now_s - since_s > _HELD_S]
        await self._answer(early, EARLY)
        if sum(len(each.held) for each in known) > _HELD:
            await self._answer(self._excess(), EARLY)

    def _excess(self) -> list[Ticket]:
        """What is held beyond the bound: the last of the recordings of which most is held."""
        ranked = [each for one in self._known.values() if one.held for each in enumerate(one.in_order())]
        return [ticket for _, ticket in sorted(ranked, key=itemgetter(0))[_HELD:]]

    async def _answer(self, tickets: Sequence[Ticket], reason: str) -> None:
        for ticket in tickets:
            del self._known[ticket.job.camera].held[ticket]
            self._answers.lose(ticket.job.camera, reason)
        await self._answers.acknowledge([ticket.job for ticket in tickets])

    def _of(self, ticket: Ticket) -> Recording:
        now_s, camera = self._clock(), ticket.job.camera
        if camera not in self._known:
            self._make_room(now_s)
        recording = self._known.setdefault(camera, Recording(now_s))
        recording.used_s = now_s
        return recording

    def _make_room(self, now_s: float) -> None:
        """Forget recordings that were silent for long, and beyond so many any of which nothing is held."""
        idle = [name for name, each in self._known.items() if not each.held]
        old = [name for name in idle if now_s - self._known[name].used_s >= _FORGET_S]
        for name in old or idle[: len(self._known) - _KNOWN + 1 if len(self._known) >= _KNOWN else 0]:
            del self._known[name]


def _is_at_or_before(frame: FrameId, other: FrameId) -> bool:
    """Whether a frame is the other one, or before it in the same epoch."""
    return frame.epoch == other.epoch and frames_after(frame, other) <= 0
