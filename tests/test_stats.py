"""What a worker keeps of a camera: its order, its clock, its statistics."""

import numpy as np
import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from nodes.stats import Cameras, CameraStats, CaptureClock, MaskFacts, Order
from pipeline import metrics
from pipeline.messages import FrameId, Kind, Packet, Region


def admitted(*ids: tuple[int, int]) -> list[bool]:
    order = Order()
    return [order.admit(FrameId(*each)) for each in ids]


def test_frames_in_order_pass() -> None:
    assert admitted((1, 0), (1, 1), (1, 5)) == [True, True, True]


def test_a_frame_that_is_older_or_the_same_does_not_pass() -> None:
    assert admitted((1, 5), (1, 5), (1, 4), (1, 6)) == [True, False, False, True]


def test_a_new_epoch_begins_anew_and_the_old_one_is_over() -> None:
    assert admitted((1, 90), (2, 0), (1, 91), (2, 1), (3, 0), (1, 99), (2, 2)) == [
        True, True, False, True, True, False, False,
    ]  # fmt: skip


def test_an_epoch_that_is_drawn_again_is_believed_after_a_while() -> None:
    now_s = 0.0
    order = Order(clock=lambda: now_s)
    assert [order.admit(FrameId(*each)) for each in ((1, 90), (2, 0), (1, 0))] == [True, True, False]
    now_s = 30.0
    assert order.admit(FrameId(2, 1))
    now_s = 61.0
    assert order.admit(FrameId(1, 0))
    now_s = 122.0
    assert order.admit(FrameId(1, 0))  # the same epoch again, of a camera that was silent


def test_what_is_refused_does_not_keep_an_order_alive() -> None:
    now_s = 0.0
    order = Order(clock=lambda: now_s)
    assert order.admit(FrameId(1, 90_000))
    admitted_at = []
    for sequence in range(100):
        now_s = float(sequence)
        if order.admit(FrameId(1, sequence)):
            admitted_at.append(sequence)
    assert admitted_at == list(range(60, 100))


def test_sequences_wrap() -> None:
    assert admitted((1, 2**32 - 1), (1, 0), (1, 2**32 - 1)) == [True, True, False]


def test_epochs_that_are_over_are_bounded() -> None:
    order = Order(clock=lambda: 0.0)
    for epoch in range(1000):
        assert order.admit(FrameId(epoch, 0))
    assert len(order._over) < 20


def heard(clock: CaptureClock, captured_ms: int, *, now_ms: int) -> int:
    """The age of a packet that just came."""
    clock.learn(captured_ms, now_ms=now_ms)
    return clock.age_ms(captured_ms, now_ms=now_ms)


def ages(clock: CaptureClock, *, behind_ms: int, at_ms: range) -> list[int]:
    """Ages of packets whose true age is 20 ms, of a camera whose clock is behind by so much."""
    return [heard(clock, now - 20 - behind_ms, now_ms=now) for now in at_ms]


def test_the_age_of_a_packet_is_the_time_since_capture() -> None:
    clock = CaptureClock("cam-1", deadline_ms=2000)
    assert heard(clock, 1000, now_ms=1030) == 30
    assert heard(clock, 1000, now_ms=9000) == 8000
    assert heard(clock, 9000, now_ms=9001) == 1
    assert clock.offset_ms == 0


def test_a_clock_that_is_ahead_is_found_out_at_once() -> None:
    clock = CaptureClock("cam-1", deadline_ms=2000)
    assert ages(clock, behind_ms=-60_000, at_ms=range(10**9, 10**9 + 400, 40)) == [0] * 10
    assert clock.offset_ms == 20 - 60_000


def test_a_clock_that_is_behind_is_found_out_after_a_while() -> None:
    clock = CaptureClock("cam-1", deadline_ms=2000)
    with capture_logs() as lines:
        found = ages(clock, behind_ms=10_000, at_ms=range(10**9, 10**9 + 8000, 40))
    assert found[0] == 10_020
    assert found[-1] == 0
    assert [line["behind_ms"] for line in lines] == [10_020]


def test_a_clock_that_is_set_right_is_believed_again() -> None:
    clock = CaptureClock("cam-1", deadline_ms=2000)
    ages(clock, behind_ms=10_000, at_ms=range(10**9, 10**9 + 8000, 40))
    assert clock.offset_ms == 10_020
    assert ages(clock, behind_ms=0, at_ms=range(10**9 + 8000, 10**9 + 8200, 40))[-1] == 0
    assert clock.offset_ms == 20
    ages(clock, behind_ms=-60_000, at_ms=range(10**9 + 9000, 10**9 + 9200, 40))
    assert ages(clock, behind_ms=0, at_ms=range(10**9 + 10_000, 10**9 + 18_000, 40))[-1] == 20
    assert clock.offset_ms == 0


def test_a_clock_that_was_a_little_ahead_is_believed_again_after_a_minute() -> None:
    clock = CaptureClock("cam-1", deadline_ms=2000)
    ages(clock, behind_ms=-1500, at_ms=range(10**9, 10**9 + 4000, 40))
    assert clock.offset_ms == 20 - 1500
    found = ages(clock, behind_ms=0, at_ms=range(10**9 + 4000, 10**9 + 70_000, 40))
    assert (found[0], found[-1]) == (1500, 20)
    assert clock.offset_ms == 0


def test_a_clock_that_is_behind_is_found_out_whatever_the_jitter() -> None:
    clock, rng = CaptureClock("cam-1", deadline_ms=2000), np.random.default_rng(0)
    for now in range(10**9, 10**9 + 8000, 40):
        heard(clock, now - 3_600_000 - int(rng.integers(700)), now_ms=now)
    assert 3_600_000 <= clock.offset_ms < 3_600_100


def test_a_workers_clock_that_is_set_back_meanwhile_costs_no_more_than_another_while() -> None:
    clock = CaptureClock("cam-1", deadline_ms=2000)
    ages(clock, behind_ms=7_200_000, at_ms=range(10**9, 10**9 + 3000, 40))
    back = 10**9 + 3000 - 3_600_000
    found = [heard(clock, 10**9 + n * 40 - 7_200_000, now_ms=back + n * 40) for n in range(200)]
    assert (found[0], found[-1]) == (3_603_000, 0)
    assert sum(age > 0 for age in found) <= 6000 // 40


def test_of_many_late_packets_not_every_age_is_kept_and_a_backlog_is_still_told_from_a_wrong_clock() -> None:
    wrong, backlog, most = CaptureClock("cam-1", deadline_ms=2000), CaptureClock("cam-2", deadline_ms=2000), 0
    for now in range(10**9, 10**9 + 6500):
        heard(wrong, now - 20 - 10_000, now_ms=now)
        heard(backlog, now - 2500 - (now - 10**9) // 20, now_ms=now)
        most = max(most, len(wrong._late), len(backlog._late))
    assert (wrong.offset_ms, backlog.offset_ms) == (10_020, 0)
    assert most <= 512


def test_a_backlog_that_is_cleared_soon_is_not_taken_for_a_wrong_clock() -> None:
    clock = CaptureClock("cam-1", deadline_ms=2000)
    now = 10**9
    for number in range(1000):  # half a minute of packets, dropped within a second
        now += 1
        heard(clock, 10**9 - 40_000 + 40 * number, now_ms=now)
    assert heard(clock, now - 30, now_ms=now) == 30
    assert clock.offset_ms == 0


@pytest.mark.parametrize("growth", [0.1, 0.15, 0.5])
def test_a_backlog_that_grows_is_not_taken_for_a_wrong_clock(growth: float) -> None:
    clock = CaptureClock("cam-1", deadline_ms=2000)
    for number in range(1000):  # each second of packets takes a little more than a second to come
        heard(clock, 10**9 - 2500 + 40 * number, now_ms=10**9 + int(40 * number * (1 + growth)))
        assert clock.offset_ms == 0


def test_without_a_deadline_nothing_is_late() -> None:
    clock = CaptureClock("cam-1", deadline_ms=0)
    assert ages(clock, behind_ms=10_000, at_ms=range(10**9, 10**9 + 9000, 40))[-1] == 10_020


def packet_of(*kinds: Kind, body_bytes: int = 100) -> Packet:
    """A packet of a 2x2 grid, its first regions of these kinds."""
    regions = tuple(Region(kind, index, 0, bytes(body_bytes)) for index, kind in enumerate(kinds))
    return Packet(FrameId(7, 1), 1000, bytes(4), 0, rows=2, columns=2, regions=regions)


def test_a_summary_has_the_fields_of_the_contract() -> None:
    stats = CameraStats(["road", "sky"])
    for latency_ms in range(1, 26):
        stats.take(packet_of(Kind.KEY, Kind.WARP), size_bytes=500)
        stats.mask(MaskFacts(latency_ms, np.array([0.25, 0.75])))
    stats.drops["late"] += 2
    assert stats.summary(0.5) == {
        "fps": 50.0,
        "kbit_s": 200.0,
        "latency_p50_ms": 13.0,
        "latency_p95_ms": 23.8,
        "drops": {"late": 2},
        "share": {"road": 0.25, "sky": 0.75},
        "zones": {},
        "key_share": 0.5,
        "kinds": {
            "absent": {"regions_s": 100.0, "kbit_s": 0.0},
            "key": {"regions_s": 50.0, "kbit_s": 40.0},
            "warp": {"regions_s": 50.0, "kbit_s": 40.0},
        },
        "masks": 25,
    }


def test_shares_of_zones_are_averages_over_the_masks_that_had_them() -> None:
    stats = CameraStats(["road", "sky"])
    half, door = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    stats.mask(MaskFacts(1, half))  # before the camera's zones were known
    stats.mask(MaskFacts(1, half, {"door": door}))
    stats.mask(MaskFacts(1, half, {"door": half, "gate": door}))
    facts = stats.summary(1.0)
    assert facts["share"] == {"road": 0.5, "sky": 0.5}
    assert facts["zones"] == {"door": {"road": 0.75, "sky": 0.25}, "gate": {"road": 1.0, "sky": 0.0}}


def test_while_no_mask_comes_the_last_one_stands() -> None:
    stats, door = CameraStats(["road", "sky"]), {"door": np.array([1.0, 0.0])}
    assert stats.summary(1.0)["share"] == {"road": 0.0, "sky": 0.0}
    stats.mask(MaskFacts(1, np.array([0.25, 0.75]), door))
    first, silent = stats.summary(1.0), stats.summary(1.0)
    assert (silent["share"], silent["zones"]) == (first["share"], first["zones"])
    assert (silent["masks"], silent["share"]) == (0, {"road": 0.25, "sky": 0.75})
    stats.mask(MaskFacts(1, np.array([1.0, 0.0])))  # its camera started again, without the zone
    assert stats.summary(1.0)["zones"] == {}


def test_regions_and_their_bytes_are_told_by_kind() -> None:
    stats = CameraStats(["road"])
    stats.take(packet_of(Kind.KEY, Kind.WARP, Kind.WARP, body_bytes=500), size_bytes=1540)
    stats.take(packet_of(Kind.WARP, Kind.WARP, Kind.WARP, Kind.WARP, body_bytes=250), size_bytes=1045)
    facts = stats.summary(0.5)
    assert facts["kinds"] == {
        "absent": {"regions_s": 2.0, "kbit_s": 0.0},
        "key": {"regions_s": 2.0, "kbit_s": 8.0},
        "warp": {"regions_s": 12.0, "kbit_s": 32.0},
    }
    assert (facts["key_share"], facts["kbit_s"]) == (0.1429, 41.36)


def frame_of(*regions: tuple[Kind, int, int]) -> Packet:
    """A packet of a whole frame: kind, age and bytes of its regions."""
    told = tuple(Region(kind, 0, age, bytes(body_bytes)) for kind, age, body_bytes in regions)
    return Packet(FrameId(7, 1), 1000, bytes(4), 0, rows=1, columns=1, regions=told)


def test_a_frame_between_two_keys_counts_once_and_as_a_warp() -> None:
    """The KEY that comes ahead counts with its own frame, its bytes are those of a KEY."""
    stats = CameraStats(["road"])
    for packet, size_bytes in (
        (frame_of((Kind.KEY, 0, 1000)), 1030),
        (frame_of((Kind.KEY, 3, 1200), (Kind.WARP, 1, 100), (Kind.BACK, 3, 20)), 1360),
        (frame_of((Kind.WARP, 2, 60), (Kind.BACK, 2, 40)), 140),
        (frame_of((Kind.WARP, 3, 30), (Kind.BACK, 1, 50)), 120),
        (frame_of((Kind.BACK, 0, 0)), 30),
    ):
        stats.take(packet, size_bytes=size_bytes)
    facts = stats.summary(1.0)
    assert facts["kinds"] == {
        "key": {"regions_s": 2.0, "kbit_s": 17.6},
        "warp": {"regions_s": 3.0, "kbit_s": 2.4},
    }
    assert (facts["key_share"], facts["kbit_s"]) == (0.4, 21.44)


def test_kinds_that_did_not_come_are_not_told() -> None:
    stats = CameraStats(["road"])
    stats.take(packet_of(*[Kind.KEY] * 4), size_bytes=400)
    assert stats.summary(1.0)["kinds"] == {"key": {"regions_s": 4.0, "kbit_s": 3.2}}
    assert stats.summary(1.0)["kinds"] == {}


def test_an_interval_begins_anew_but_latency_looks_back_and_drops_add_up() -> None:
    stats = CameraStats(["road"])
    stats.take(packet_of(Kind.KEY), size_bytes=500)
    stats.mask(MaskFacts(30.0, np.array([1.0])))
    stats.drops["late"] += 1
    stats.summary(1.0)
    empty = stats.summary(1.0)
    assert (empty["fps"], empty["kbit_s"], empty["masks"]) == (0.0, 0.0, 0)
    assert (empty["latency_p50_ms"], empty["drops"]) == (30.0, {"late": 1})
    for _ in range(4):
        last = stats.summary(1.0)
    assert last["latency_p50_ms"] is None


def test_silent_cameras_are_not_spoken_of_and_then_forgotten() -> None:
    now_s = 0.0
    cameras = Cameras(["road"], deadline_ms=2000, clock=lambda: now_s)
    first = cameras.of("cam-1")
    assert cameras.of("cam-1") is first
    assert list(cameras.heard_of_late()) == ["cam-1"]
    now_s = 10.0
    assert cameras.heard_of_late() == {}
    assert cameras.of("cam-1") is first
    now_s = 100.0
    cameras.heard_of_late()
    assert cameras.of("cam-1") is not first


def test_a_stranger_who_makes_up_names_does_not_fill_the_memory() -> None:
    now_s = 0.0
    cameras = Cameras(["road"], deadline_ms=2000, clock=lambda: now_s)
    honest = cameras.of("honest")
    for number in range(3000):
        now_s += 0.001
        honest.heard_s = now_s
        cameras.of(f"stranger-{number}")
    assert len(cameras.heard_of_late()) == 1024
    assert cameras.of("honest") is honest
    assert "stranger-0" not in cameras


def test_a_camera_that_is_forgotten_is_no_label_any_more() -> None:
    now_s = 0.0
    cameras = Cameras(["road"], deadline_ms=2000, limit=1, clock=lambda: now_s)
    for name in ("gone-1", "gone-2"):
        cameras.of(name)
        metrics.MASKS.labels(name).inc()
    now_s = 100.0
    assert b"gone-1" not in generate_latest()
    assert b"gone-2" in generate_latest()
    assert cameras.heard_of_late() == {}
    assert b"gone-2" not in generate_latest()


@pytest.mark.parametrize("elapsed_s", [0.9, 1.0, 1.1])
def test_a_rate_is_per_second_of_the_interval_as_it_was(elapsed_s: float) -> None:
    stats = CameraStats(["road"])
    for _ in range(10):
        stats.mask(MaskFacts(1.0, np.array([1.0])))
    assert stats.summary(elapsed_s)["fps"] == pytest.approx(10 / elapsed_s, abs=0.01)
