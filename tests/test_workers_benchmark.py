"""The benchmark of workers: its arithmetic, and a short run with a small bundle, a real Redis and two workers."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.workers import Measured, Plan, Result, measure, notes_of, settings_of, table_of, verdicts_of
from benchmarks.workers_figure import draw, points_of
from benchmarks.workers_floor import Load, Setting
from benchmarks.workers_load import Batch, Costs, Round, costs_of, play
from pipeline.bundle import Bundle
from pipeline.errors import ConfigError
from pipeline.messages import FrameId, Kind, Packet, Region

LOAD = Load(cameras=4, under_way=2, deadline_ms=2000)


def result(workers: int, *, affinity: bool = True, pace: float = 8.0, **changed: float) -> Result:
    made = Result(
        setting=Setting(workers, affinity, pace),
        masks=100,
        rate=100.0 * workers,
        accuracy=70.0,
        same=1.0,
        key_share=0.2,
        warps=400,
        local=0.95,
        fetched=0.05,
        missing=0.0,
        dropped=0,
        buffer_bytes=100.0,
        logit_bytes=40_000.0,
        cores=0.5,
        around_ms=0.5,
    )
    return replace(made, **changed)


def video(*kinds: Kind, labelled: bool = False) -> Round:
    """Packets of these kinds, and of each place a mask of one pixel that is right at even places."""
    ages = [place - max(at for at in range(place + 1) if kinds[at] is Kind.KEY) for place in range(len(kinds))]
    packets = tuple(
        Packet(FrameId(0, place), 0, b"tiny", 0, 1, 1, (Region(kind, 0, age, b"body"),))
        for place, (kind, age) in enumerate(zip(kinds, ages, strict=True))
    )
    masks = np.arange(len(kinds), dtype=np.uint8).reshape(-1, 1, 1)
    truth = masks - masks % 2
    return Round("made up", packets, masks, truth, labelled, len(kinds))


def test_what_a_packet_costs_is_found_from_the_batches_it_was_in() -> None:
    costs = {Kind.KEY: 0.008, Kind.WARP: 0.001}
    counts = [{Kind.KEY: 1}, {Kind.WARP: 8}, {Kind.KEY: 2, Kind.WARP: 6}, {Kind.KEY: 1, Kind.WARP: 3}]
    batches = [Batch(kinds, sum(costs[kind] * count for kind, count in kinds.items())) for kinds in counts]
    found = costs_of(batches, [0.001, 0.003])
    assert found.decode_s == pytest.approx(costs)
    assert found.render_s == pytest.approx(0.002)


def test_without_a_mask_nothing_is_known_of_costs() -> None:
    with pytest.raises(ConfigError, match="measure for longer"):
        costs_of([], [])


def test_cameras_begin_all_over_the_video_each_after_its_key() -> None:
    key, warp = Kind.KEY, Kind.WARP
    played = video(key, warp, warp, key, warp, warp, warp, warp)
    starts = [played.start_of(number, 4) for number in range(4)]
    assert [(one.key_place, one.sequence) for one in starts] == [(0, 0), (0, 2), (3, 1), (3, 3)]
    for start in starts:
        first = played.packet(start.key_place + start.sequence, FrameId(1, start.sequence), captured_ms=5)
        assert first.regions[0].age == start.sequence


def test_a_frame_is_judged_by_the_mask_that_was_shown() -> None:
    played = video(Kind.KEY, Kind.WARP, Kind.WARP, Kind.WARP)
    assert played.accuracy(Counter({(0, 0): 1, (2, 2): 1})) == 100
    assert played.accuracy(Counter({(0, 0): 2, (0, 1): 1, (0, 2): 1})) == 75


def test_emulated_workers_are_measured_beside_a_real_one_and_at_the_pace_of_real_time() -> None:
    plan = Plan((1, 2), 8.0, warm_s=0.2, seconds=1.0)
    scale = [Setting(1, True, 8.0), Setting(2, True, 8.0), Setting(2, False, 8.0)]
    assert list(settings_of(plan)) == [Setting(1, True, 0), Setting(1, True, 1), *scale]
    assert list(settings_of(replace(plan, pace=0))) == [replace(one, pace=0) for one in scale]


def test_it_is_told_where_throughput_falls_and_keys_are_elsewhere() -> None:
    fine = [result(1, pace=0), result(1, pace=1), result(1), result(2), result(2, affinity=False, rate=50, local=0.3)]
    assert [": no" in one for one in verdicts_of(fine)] == [False, False, False]
    almost = result(3, rate=199)
    assert ": yes" in verdicts_of([*fine, almost])[0]
    worse = result(3, rate=150, local=0.8, logit_bytes=4000)
    told = verdicts_of([*fine, worse])
    assert "no, at 3" in told[0]
    assert ": no, 80.0 %" in told[1]
    assert ": no, 40 times" in told[2]


def test_of_too_short_a_run_it_is_said_that_it_tells_nothing() -> None:
    short = [result(1, warps=20, local=0.75, buffer_bytes=0, logit_bytes=0), result(2, buffer_bytes=0, logit_bytes=0)]
    told = verdicts_of(short)
    assert "keys found here, at least 85 %: cannot be told of 20 WARPs, at 1: give it more --seconds" in told
    assert "bytes, at least 50 times fewer: cannot be told, no key was moved: give it more --seconds" in told


def test_only_rows_of_one_pace_are_drawn(tmp_path: Path) -> None:
    results = [result(1, pace=0), result(1, pace=1), result(1), result(2), result(2, affinity=False)]
    told = json.loads(json.dumps({"results": [asdict(one) for one in results]}))
    points = points_of(told)
    assert [(one.workers, one.affinity) for one in points] == [(1, True), (2, True), (2, False)]
    draw(points, tmp_path / "figure.png", title="made up")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_two_workers_share_the_cameras_and_every_mask_is_that_of_one_decoder(tiny_bundle: Bundle) -> None:
    played = play(tiny_bundle, data=None, split="", frames=20, threshold=None, threads=1)
    plan = Plan((1, 2), 4.0, warm_s=0.1, seconds=0.8)
    found = measure(played, tiny_bundle, load=LOAD, plan=plan, threads=1)
    assert [one.setting for one in found.results] == list(settings_of(plan))
    for one in found.results:
        assert one.masks > 10
        assert one.rate > 0
        assert 50 < one.accuracy <= 100
        assert one.same > 0.99
        assert 0 < one.key_share < 1
        assert one.local + one.fetched + one.missing == pytest.approx(1)
        assert one.logit_bytes > 2 * one.buffer_bytes > 0
    assert set(found.costs.decode_s) == {Kind.KEY, Kind.WARP}
    assert found.costs.around_s > 0
    with_affinity = found.results[3]
    assert with_affinity.setting == Setting(2, True, 4.0)
    assert with_affinity.local > 0.6  # the machine may be busy: a worker that is late is helped out


def test_the_table_says_that_workers_are_emulated() -> None:
    results = [result(1, pace=0), result(1, pace=1), result(1), result(2)]
    found = Measured(tuple(results), Costs({Kind.KEY: 0.008}, 0.001))
    assert table_of(results, "made up", "mIoU").row_count == 4
    assert any("EMULATED" in note for note in notes_of(found, LOAD, 2))
    real = Measured(tuple(replace(one, setting=replace(one.setting, pace=0)) for one in results), found.costs)
    assert not any("EMULATED" in note for note in notes_of(real, LOAD, 2))
