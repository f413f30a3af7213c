"""A camera's rate control: what it lets through, what it learns from, and that it keeps to its link."""

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from standins import packet_of

from nodes.rate_control import RateControl
from pipeline.bandit import Bandit
from pipeline.choosing import Chooser, Ruled
from pipeline.errors import BitstreamError
from pipeline.link import LinkState
from pipeline.messages import FrameId, Kind, Packet, Region
from pipeline.operating_points import CostModel, Ladder, OperatingPoint, Sent, points_of
from pipeline.rate_rule import DelayRule
from pipeline.receipts import Receipt, pack_receipt
from pipeline.reward import Reward
from pipeline.stream_encoder import Tried

FPS = 25.0
HEADERS = 100
LEVELS = tuple(
    SimpleNamespace(index=index, rate_bpp=rate)
    for index, rate in enumerate((0.007, 0.0075, 0.01, 0.012, 0.017, 0.03, 0.06, 0.11))
)
MANIFEST = SimpleNamespace(width=480, height=360, quality_levels=LEVELS)


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Fixed:
    """A chooser of one point that notes what it is told."""

    wanted_kbit_s: float | None = None
    earned: Reward | None = None

    def __init__(self, point: OperatingPoint) -> None:
        self.point, self.points = point, (point,)
        self.targets: list[float] = []
        self.frames: list[Sent] = []
        self.stood_s: list[float] = []
        self.unchanged_s: list[float] = []
        self.begun = 0

    def update(self, link: LinkState | None, target_kbit_s: float, now_s: float, *, latency_s: float) -> OperatingPoint:
        self.targets.append(target_kbit_s)
        return self.point

    def sent(self, frame: Sent, now_s: float) -> None:
        self.frames.append(frame)

    def unchanged(self, now_s: float) -> None:
        self.unchanged_s.append(now_s)

    def stood(self, seconds: float) -> None:
        self.stood_s.append(seconds)

    def choose_from(self, points: Sequence[OperatingPoint]) -> None:
        self.point, self.points = points[0], tuple(points)

    def begin_anew(self) -> None:
        self.begun += 1


def control(
    chooser: Chooser, clock: Time, *, rule: DelayRule | None = None, kbit_s: float | None = None
) -> RateControl:
    return RateControl(
        lambda quality, fps: chooser,
        quality=7,
        rule=rule,
        max_kbit_s=kbit_s,
        source_fps=lambda: FPS,
        header_bytes=HEADERS,
        clock=clock,
    )


def sent_of(control: RateControl, clock: Time, *, frames: int, size_bytes: int = 500) -> list[int]:
    """Which frames of a source are let through, each a KEY of one size."""
    passed = []
    for index in range(frames):
        if control.admits():
            control.coded(packet_of(1, sequence=index), size_bytes, ())
            passed.append(index)
        clock.now_s += 1 / FPS
    return passed


@pytest.mark.parametrize(("fps", "every"), [(25, 1), (12.5, 2), (5, 5), (60, 1)])
def test_frames_are_let_through_evenly_at_the_points_rate(fps: float, every: int) -> None:
    clock = Time()
    passed = sent_of(control(Fixed(OperatingPoint(3, 96, fps)), clock, kbit_s=1e5), clock, frames=50)
    assert passed == list(range(0, 50, every))


def test_a_source_of_another_rate_is_chosen_for_anew_at_once() -> None:
    clock, asked = Time(), list[float]()
    source_fps = 25.0

    def choose(quality: int, fps: float) -> Chooser:
        asked.append(fps)
        return Fixed(OperatingPoint(3, 96, fps))

    controlled = RateControl(
        choose, quality=7, rule=None, max_kbit_s=1e5, source_fps=lambda: source_fps, header_bytes=HEADERS, clock=clock
    )
    assert sent_of(controlled, clock, frames=10) == list(range(10))
    source_fps = 0.01
    assert sent_of(controlled, clock, frames=10) == [0]
    source_fps = 25.0
    assert sent_of(controlled, clock, frames=10) == list(range(10))
    assert asked == [25, 0.01, 25]
    assert controlled.max_kbit_s == 1e5


def test_a_frame_that_was_not_sent_after_all_costs_no_turn() -> None:
    clock = Time()
    here = control(Fixed(OperatingPoint(3, 96, 5)), clock, kbit_s=1e5)
    assert here.admits()
    clock.now_s += 1 / FPS
    assert here.admits()
    here.coded(packet_of(1, sequence=1), 500, ())
    clock.now_s += 1 / FPS
    assert not here.admits()


def test_no_more_is_sent_than_the_link_takes_whatever_the_point_promised() -> None:
    clock = Time()
    passed = sent_of(control(Fixed(OperatingPoint(7, 100, 25)), clock, kbit_s=40), clock, frames=500, size_bytes=900)
    kbit_s = len(passed) * (900 + HEADERS) * 8 / 1000 / 20
    assert 36 <= kbit_s <= 41
    assert max(after - before for before, after in itertools.pairwise(passed)) <= 6  # and none in bursts


def test_without_a_rule_no_receipts_are_asked_for_and_the_pinned_rate_holds() -> None:
    clock = Time()
    chooser = Fixed(OperatingPoint(3, 96, 25))
    here = control(chooser, clock, kbit_s=64)
    assert not here.asks_receipts
    assert here.admits()
    here.limit(200)
    here.admits()
    here.limit(None)
    here.admits()
    assert chooser.targets[:2] == [64, 200]
    assert chooser.targets[2] > 1e5


def test_the_pinned_rate_holds_beside_a_rule() -> None:
    clock, chooser = Time(), Fixed(OperatingPoint(3, 96, 25))
    here = control(chooser, clock, rule=DelayRule(start_kbit_s=300), kbit_s=64)
    assert here.asks_receipts
    here.admits()
    assert chooser.targets == [64]


def test_the_chooser_hears_what_was_coded_and_what_warps_were_like() -> None:
    clock, chooser = Time(), Fixed(OperatingPoint(3, 96, 5))
    here = control(chooser, clock, kbit_s=1e5)
    key = replace(packet_of(1, sequence=1), quality=3)
    warp = replace(key, regions=(Region(Kind.WARP, 0, 2, b"flow"),))
    for packet, size_bytes, tried in (
        (key, 700, ()),
        (warp, 75, (Tried(1, 4.0, 98.0),)),
        (warp, 80, (Tried(2, 8.0, 97.0),)),
        (key, 710, (Tried(3, 12.0, None),)),
    ):
        assert here.admits()
        here.coded(packet, size_bytes, tried)
        clock.now_s += 0.25
    assert chooser.frames[0] == Sent(3, True, 700)
    assert chooser.frames[2] == Sent(3, False, 80, predicted=97.0, age_s=0.5, speed_px_s=16.0)
    assert (chooser.frames[3].keyed, chooser.frames[3].predicted) == (True, None)


def test_a_key_is_as_old_as_it_is_however_few_frames_were_sent_since() -> None:
    clock, chooser = Time(), Fixed(OperatingPoint(3, 96, 25))
    here = control(chooser, clock, kbit_s=1e5)
    for sequence in range(3):
        assert here.admits()
        here.coded(packet_of(1, sequence=sequence), 80, (Tried(1, 3.0, 97.0),) if sequence else ())
        for _ in range(25):
            clock.now_s += 1 / FPS
            here.admits()
            here.unchanged()
        clock.now_s += 1 / FPS
    assert [frame.age_s for frame in chooser.frames[1:]] == pytest.approx([26 / FPS, 26 / FPS])
    assert chooser.frames[1].speed_px_s == pytest.approx(3 * FPS / 26)


def test_a_prediction_that_is_not_a_number_tells_nothing() -> None:
    clock, chooser = Time(), Fixed(OperatingPoint(3, 96, 25))
    here = control(chooser, clock, kbit_s=1e5)
    for sequence in range(2):
        here.admits()
        here.coded(packet_of(1, sequence=sequence), 80, (Tried(1, 3.0, math.nan),))
    assert [frame.predicted for frame in chooser.frames] == [None, None]


def test_a_lost_key_is_told_to_the_chooser() -> None:
    chooser = Fixed(OperatingPoint(3, 96, 5))
    here = control(chooser, Time(), kbit_s=64)
    here.admits()
    here.key_lost()
    assert chooser.stood_s == [0.0]


def test_a_time_without_the_link_is_told_to_the_chooser() -> None:
    chooser = Fixed(OperatingPoint(3, 96, 5))
    here = control(chooser, Time(), kbit_s=64)
    here.begin_anew()
    assert not chooser.begun
    here.admits()
    here.begin_anew()
    assert chooser.begun == 1


def test_what_is_heard_before_the_first_frame_does_not_settle_the_frame_rate() -> None:
    asked: list[float] = []

    def choose(quality: int, fps: float) -> Chooser:
        asked.append(fps)
        return Fixed(OperatingPoint(quality, 96, fps))

    source = SimpleNamespace(fps=25.0)  # until the source was opened
    here = RateControl(choose, quality=5, rule=None, max_kbit_s=64, source_fps=lambda: source.fps, clock=Time())
    here.key_lost()
    source.fps = 5.0
    here.admits()
    assert asked == [5.0]


def test_a_frame_that_shows_nothing_new_is_told_to_the_chooser() -> None:
    chooser, clock = Fixed(OperatingPoint(3, 96, 5)), Time()
    control(chooser, clock, kbit_s=64).unchanged()
    assert chooser.unchanged_s == [clock.now_s]


@pytest.mark.parametrize("payload", [b"", bytes(23), bytes(25), b"\xff" * 24])
def test_what_is_no_receipt_is_refused(payload: bytes) -> None:
    with pytest.raises(BitstreamError, match="receipt"):
        control(Fixed(OperatingPoint(3, 96, 5)), Time(), rule=DelayRule()).heard(payload)


def test_a_highest_level_that_is_set_later_holds_from_then_on() -> None:
    made: list[int] = []

    def choose(quality: int, fps: float) -> Chooser:
        made.append(quality)
        return Fixed(OperatingPoint(quality, 96, fps))

    here = RateControl(choose, quality=5, rule=None, max_kbit_s=1000, source_fps=lambda: FPS, clock=Time())
    assert here.point.quality == 5
    here.cap(2)
    assert here.point.quality == 2
    assert made == [5, 2]


def test_a_highest_level_that_is_set_to_what_it_was_leaves_all_that_was_learned() -> None:
    clock, made = Time(), list[Bandit]()

    def choose(quality: int, fps: float) -> Chooser:
        made.append(bandit_of(quality, fps))
        return made[-1]

    here = RateControl(choose, quality=5, rule=None, max_kbit_s=200, source_fps=lambda: FPS, clock=clock)
    sent_of(here, clock, frames=260)  # in the midst of a second
    point, weights, budget = here.point, made[0].model.weights, made[0]._budget
    here.cap(5)
    assert (here._chooser, here.point, len(made)) == (made[0], point, 1)
    here.admits()
    assert made[0].model.weights is weights
    assert made[0]._budget == budget


@pytest.mark.parametrize(("before", "after"), [(5, 2), (2, 5)])
def test_what_was_learned_is_kept_where_another_highest_level_is_set(before: int, after: int) -> None:
    clock = Time()
    here = RateControl(bandit_of, quality=before, rule=None, max_kbit_s=200, source_fps=lambda: FPS, clock=clock)
    fresh = bandit_of(before, FPS).model.weights
    sent_of(here, clock, frames=250)
    bandit = here._chooser
    assert isinstance(bandit, Bandit)
    learned, budget = bandit.model.weights, bandit._budget
    assert abs(learned - fresh).max() > 0.1
    assert budget
    assert here.point.quality == before
    here.cap(after)
    assert here.point.quality <= after
    assert {point.quality for point in bandit.points} == {point.quality for point in bandit_of(after, FPS).points}
    assert (here._chooser.model.weights is learned, here._chooser._budget) == (True, budget)  # type: ignore[attr-defined]
    levels = []
    for _ in range(3):
        sent_of(here, clock, frames=25)
        levels.append(here.point.quality)
    assert levels[-1] == after


@pytest.mark.parametrize("learns", [False, True])
def test_the_best_of_the_points_below_a_new_highest_level_is_set_with_the_next_frame(learns: bool) -> None:
    clock = Time()

    def choose(quality: int, fps: float) -> Chooser:
        bandit = bandit_of(quality, fps)
        return bandit if learns else Ruled(bandit._ladder)

    here = RateControl(choose, quality=7, rule=None, max_kbit_s=1000, source_fps=lambda: FPS, clock=clock)
    sent_of(here, clock, frames=100)
    assert here.point.quality > 3
    here.cap(3)
    assert here.admits()
    assert here.point.quality == 3


def bandit_of(quality: int, fps: float) -> Bandit:
    return Bandit(Ladder(points_of(MANIFEST, fps=fps, max_quality=quality), CostModel(MANIFEST)))  # type: ignore[arg-type]


@dataclass
class Link:
    """A link of one rate: what waits leaves in order, receipts come back after `way_s` each way."""

    kbit_s: float
    way_s: float = 0.04
    free_s: float = 0.0

    def __post_init__(self) -> None:
        self.receipts: deque[tuple[float, Receipt]] = deque()
        self.packets = self.size_bytes = 0

    def send(self, sequence: int, size_bytes: int, now_s: float) -> None:
        self.free_s = max(now_s, self.free_s) + (size_bytes + HEADERS) / (self.kbit_s * 125)
        self.packets, self.size_bytes = self.packets + 1, self.size_bytes + size_bytes
        arrived_s = self.free_s + self.way_s
        receipt = Receipt(FrameId(1, sequence), self.packets, self.size_bytes, round(arrived_s * 1000), 0)
        self.receipts.append((arrived_s + self.way_s, receipt))

    def backlog_s(self, now_s: float) -> float:
        return max(0.0, self.free_s - now_s)


def coded(here: RateControl, sequence: int, keyed: bool) -> tuple[Packet, int, tuple[Tried, ...]]:
    """A frame as an encoder might code it at the point that is set."""
    level = LEVELS[here.point.quality]
    size_bytes = round(level.rate_bpp * 480 * 360 / 8) if keyed else 85
    region = Region(Kind.KEY, 0, 0, b"latents") if keyed else Region(Kind.WARP, 0, sequence % 5, b"flow")
    packet = replace(packet_of(1, sequence=sequence), quality=level.index, regions=(region,))
    return packet, size_bytes, () if keyed else (Tried(sequence % 5, 3.0, 97.0),)


@pytest.mark.parametrize("learns", [False, True])
def test_over_a_link_that_steps_the_queue_is_short_again_within_3_s_and_frames_go_on(learns: bool) -> None:
    clock = Time()

    def choose(quality: int, fps: float) -> Chooser:
        ladder = Ladder(points_of(MANIFEST, fps=fps, max_quality=quality), CostModel(MANIFEST))  # type: ignore[arg-type]
        return Bandit(ladder) if learns else Ruled(ladder)

    here = RateControl(
        choose, quality=7, rule=DelayRule(), max_kbit_s=None, source_fps=lambda: FPS, header_bytes=HEADERS, clock=clock
    )
    link, sequence, late, frames = Link(1000), 0, [], []
    for _ in range(int(60 * FPS)):
        step_s = clock.now_s - 100
        link.kbit_s = 1000 if step_s < 15 else 100 if step_s < 30 else 40 if step_s < 45 else 400
        while link.receipts and link.receipts[0][0] <= clock.now_s:
            here.heard(pack_receipt(link.receipts.popleft()[1]))
        if step_s % 15 > 3:
            late.append(link.backlog_s(clock.now_s))
        if here.admits():
            packet, size_bytes, tried = coded(here, sequence, keyed=here.point.threshold >= 100 or sequence % 5 == 0)
            here.coded(packet, size_bytes, tried)
            here.left(FrameId(1, sequence), size_bytes)
            link.send(sequence, size_bytes, clock.now_s)
            sequence += 1
            frames.append(step_s)
        clock.now_s += 1 / FPS
    assert max(late) < 0.3
    assert sum(33 <= at < 45 for at in frames) >= 5 * 12
