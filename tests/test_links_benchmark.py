"""The benchmarks of links: their arithmetic, on made-up masks and samples; `test_links` runs what they run."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.links import Result, Setting, plain, settings_of, table_of, verdicts_of, write_json
from benchmarks.links_crowd import starts_of
from benchmarks.links_cuts import Cut, Cuts, Held
from benchmarks.links_cuts import table_of as table_of_cuts
from benchmarks.links_cuts import verdicts_of as verdicts_of_cuts
from benchmarks.links_figure import draw
from benchmarks.links_load import result_of
from benchmarks.links_load import verdicts_of as verdicts_of_load
from benchmarks.links_score import Score, Span, beginning, captures, score, shown_places
from benchmarks.links_stepping import Arrival, Sample, Shown, Trace, columns_of, steps_of
from benchmarks.links_stepping import verdicts_of as verdicts_of_steps
from benchmarks.links_video import Best, Footage, sample_footage
from benchmarks.links_watch import SeenMask, SeenPacket, View, read_xadd
from pipeline.bitstream import pack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.errors import ConfigError
from pipeline.mask_image import pack_mask
from pipeline.messages import FrameId, Kind, Mask, Packet, Region

PALETTE = np.array([(0, 0, 0), (255, 255, 255), (9, 9, 9)], np.uint8)
BEGAN_MS = 1_700_000_000_000
FPS = 10.0


def mask(place: int, *, late_ms: float, classes: int = 0) -> SeenMask:
    """The mask of the frame of a place, all of one class."""
    made = np.full((4, 4), classes, np.uint8)
    captured_ms = BEGAN_MS + 100 * place
    return SeenMask(
        pack_mask(Mask(FrameId(3, place), captured_ms, b"tiny", made), "cam", PALETTE), captured_ms + late_ms
    )


def packet(sequence: int, *, kind: Kind = Kind.KEY, age: int = 0) -> Packet:
    return Packet(FrameId(3, sequence), BEGAN_MS + 100 * sequence, b"tiny", 2, 1, 1, (Region(kind, 0, age, b"body"),))


def footage(classes: list[int], *, labels: bool = False) -> Footage:
    """Frames whose best masks are all of one class each."""
    masks = np.stack([np.full((4, 4), each, np.uint8) for each in classes])
    return Footage("made up", "nowhere", FPS, Best(masks, 1000.0), masks if labels else None)


def view(*masks: SeenMask) -> View:
    first = packet(0)
    return View(list(masks), [SeenPacket(pack(first), BEGAN_MS)])


SPAN = Span(BEGAN_MS, BEGAN_MS + 1000)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle())


# What a viewer sees


def test_a_frame_is_shown_with_its_own_mask_where_that_came_in_time() -> None:
    masks = [mask(place, late_ms=50) for place in range(10)]
    times = captures(footage([0] * 10), SPAN, BEGAN_MS)
    assert times == [BEGAN_MS + 100 * place for place in range(10)]
    assert shown_places(masks, footage([0] * 10), times) == list(range(10))


def test_a_frame_whose_mask_is_late_or_lost_is_shown_with_the_one_before() -> None:
    masks = [mask(0, late_ms=50), mask(1, late_ms=350), mask(3, late_ms=299)]
    times = captures(footage([0] * 10), Span(BEGAN_MS, BEGAN_MS + 400), BEGAN_MS)
    assert shown_places(masks, footage([0] * 10), times) == [0, 0, 1, 2]


def test_a_frame_that_has_no_mask_yet_needs_a_longer_warm_up() -> None:
    with pytest.raises(ConfigError, match="warm up"):
        shown_places([mask(5, late_ms=50)], footage([0] * 10), [float(BEGAN_MS)])


def test_frames_are_found_again_when_the_video_begins_anew() -> None:
    made = footage([0] * 4)
    assert [made.place(BEGAN_MS + 100 * number + 20, BEGAN_MS) for number in range(6)] == [0, 1, 2, 3, 0, 1]


def test_a_score_counts_the_frames_that_the_source_had(bundle: Bundle) -> None:
    right = [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    masks = [mask(place, late_ms=50, classes=right[place]) for place in (0, 1, 2, 3, 4)]
    masks += [mask(5, late_ms=450, classes=1), mask(8, late_ms=100, classes=0)]
    found = score(view(*masks), footage(right, labels=True), bundle, SPAN)
    assert (found.frames, found.masks) == (10, 7)
    assert found.within == pytest.approx(0.6)
    assert found.p50_ms == pytest.approx(50, abs=1)
    assert found.p95_ms > 300
    # Frames 0 to 4 and 8 are right; 5 is shown as 4, 6 as 4, 7 as 5 by then, 9 as 8.
    assert found.agreement == pytest.approx(80.0)
    assert found.best == pytest.approx(100.0)
    assert found.miou is not None and 50 < found.miou < 90
    assert (found.checked, found.corrupted) == (0, 0)  # those are no packets of the bundle


def test_a_link_that_carries_nothing_has_a_score_too(bundle: Bundle) -> None:
    found = score(view(mask(0, late_ms=50)), footage([0] * 10), bundle, Span(BEGAN_MS + 500, BEGAN_MS + 1000))
    assert (found.masks, found.within, found.miou) == (0, 0.0, None)
    assert found.agreement == 100.0
    assert plain(asdict(found))["p95_ms"] is None


def test_the_first_packet_tells_when_the_video_began() -> None:
    assert beginning(view()) == BEGAN_MS
    with pytest.raises(ConfigError, match="first packet"):
        beginning(View([], [SeenPacket(pack(packet(3)), BEGAN_MS)]))


def test_the_sample_has_its_best_masks(bundle: Bundle) -> None:
    made = sample_footage(bundle, frames=2)
    assert made.best.masks.shape == (2, bundle.manifest.height, bundle.manifest.width)
    assert made.most_kbit_s == pytest.approx(made.best.packet_bytes * 25 * 8 / 1000)
    assert made.words == ("--source", "sample", "--loop")


def test_a_packet_is_read_from_what_redis_tells_of_its_commands() -> None:
    line = rb'+1700000000.250000 [0 127.0.0.1:6] "XADD" "maskcast:{3}:frames" "MAXLEN" "~" "1000" "*" '
    line += rb'"camera" "cam-1" "packet" "M\x01\"\\\r\n\a \xff"' + b"\r\n"
    assert read_xadd(line) == (1_700_000_000_250.0, "cam-1", b'M\x01"\\\r\n\a \xff')


# MQTT against WebRTC


def row(uplink: str, p95_ms: float) -> Result:
    found = Score(300, 290, 14.5, 90.0, p95_ms, 300.0, 0.9, 70.0, 79.0, 96.0, 290, 0, 1.0)
    return Result(Setting(uplink, "off", 150, 0.05, 256, 64), found, 90.0, 0)


def test_every_link_is_measured_with_both_uplinks_one_after_the_other() -> None:
    settings = settings_of(["20/0", "150/5"], [64, 256], ["mqtt", "webrtc"], ["off"], 64)
    assert len(settings) == 8
    assert [one.uplink for one in settings[:2]] == ["mqtt", "webrtc"]
    assert settings[-1].link == "150/5"
    assert (settings[-1].way.delay_ms, settings[-1].way.loss, settings[-1].way.rate_kbit_s) == (75, 0.05, 256)


@pytest.mark.parametrize("link", ["abc", "150", "150/5/1", "150/x"])
def test_a_link_that_is_none_is_named(link: str) -> None:
    with pytest.raises(ConfigError, match=f"--link {link}: write .* such as 150/5"):
        settings_of((link,), (256.0,), ("mqtt",), ("off",), 64.0)


def test_what_is_written_is_json_with_rows_of_numbers_on_one_line(tmp_path: Path) -> None:
    told = {"title": "[1, 2]", "rows": [1, 2.5, -3e-07], "nothing": float("nan")}
    write_json(told, tmp_path / "told.json")
    text = (tmp_path / "told.json").read_text()
    assert "[ 1, 2.5, -3e-07 ]" in text
    assert json.loads(text) == told | {"nothing": None}


def test_the_verdict_says_how_many_times_longer_mqtt_takes() -> None:
    told = verdicts_of([row("mqtt", 400.0), row("webrtc", 160.0)])
    assert told == [
        "150/5 at 256 kbit/s, control off: p95 400 ms over MQTT, 160 over WebRTC (2.50)",
        "corrupted masks: 0 of 580 that were compared",
    ]
    assert table_of([row("mqtt", float("nan"))], "a title", "mIoU").row_count == 1


# A link that steps


def trace(queue_ms: list[float], *, rate: float = 100.0, carried_kbit_s: float = 80.0) -> Trace:
    """A step per ten samples of a tenth of a second each, and five masks per second."""
    times = [0.1 * number for number in range(len(queue_ms))]
    samples = [
        Sample(at_s, rate, ms, round(carried_kbit_s * 125 * at_s)) for at_s, ms in zip(times, queue_ms, strict=True)
    ]
    shown = [Shown(at_s, 120.0) for at_s in np.arange(0, times[-1], 0.2)]
    return Trace(tuple(samples), (Arrival(0.1, 500, 3), Arrival(0.4, 60, 3)), tuple(shown))


def test_a_step_is_over_when_the_queue_stays_short() -> None:
    (step,) = steps_of(
        trace([10.0] * 5 + [900.0] * 10 + [299.0] * 2 + [301.0] + [50.0] * 62), seconds=8, most_kbit_s=500
    )
    assert step.settled_s == pytest.approx(1.7)
    assert step.most_queue_ms == 900.0
    assert step.use == pytest.approx(0.8, abs=0.02)
    assert step.fps == pytest.approx(5, abs=0.3)


def test_a_step_whose_queue_is_long_at_its_end_is_never_over() -> None:
    first, second = steps_of(trace([10.0] * 80 + [800.0] * 80), seconds=8, most_kbit_s=500)
    assert first.settled_s == 0.0
    assert second.settled_s is None
    told = verdicts_of_steps([first, second])
    assert told[0].endswith("no, not at 100 kbit/s")


def test_use_is_of_what_the_link_gives_and_the_video_takes() -> None:
    (wide,) = steps_of(trace([0.0] * 80, rate=1000), seconds=8, most_kbit_s=100)
    (thin,) = steps_of(trace([0.0] * 80, rate=200), seconds=8, most_kbit_s=500)
    assert wide.use == pytest.approx(0.8, abs=0.02)
    assert thin.use == pytest.approx(0.4, abs=0.02)
    assert verdicts_of_steps([wide])[2].endswith("the video takes: yes")
    assert verdicts_of_steps([wide, thin])[2].endswith("no, not at 200 kbit/s")


# Cuts


def run(back_s: list[float | None], descriptors: list[int]) -> Cuts:
    cuts = [
        Cut(back, Held(count, 9, 300.0, 13.0), Held(11, 2, 150.0, 5.0))
        for back, count in zip(back_s, descriptors, strict=True)
    ]
    return Cuts("webrtc", 30.0, cuts[0], tuple(cuts))


def test_a_cut_that_is_not_recovered_from_in_time_is_named() -> None:
    told = verdicts_of_cuts([run([1.0, 6.0, None, 2.0], [12] * 4)])
    assert "no, not after cut 2, 3, 6.0 s at worst" in told[0]
    assert verdicts_of_cuts([run([1.0, 2.0], [12] * 2)])[0].endswith("yes, 2.0 s at worst")


def test_descriptors_that_grow_are_a_leak_and_those_that_swing_are_not() -> None:
    leaking = run([1.0] * 50, list(range(12, 62)))
    assert leaking.growth("camera", "descriptors") == 40
    assert "leaks nothing: no" in verdicts_of_cuts([leaking])[1]
    swinging = run([1.0] * 50, [12, 13] * 25)
    assert "leaks nothing: yes" in verdicts_of_cuts([swinging])[1]
    assert "leaks nothing: yes" in verdicts_of_cuts([swinging])[2]


def test_of_many_cuts_the_first_and_the_last_are_shown() -> None:
    assert table_of_cuts(run([1.0] * 50, [12] * 50)).row_count == 12
    assert table_of_cuts(run([1.0, None], [12] * 2)).row_count == 3


# Load


def test_cameras_of_a_crowd_begin_all_over_the_video() -> None:
    packets = [packet(n) if n % 5 == 0 else packet(n, kind=Kind.WARP, age=n % 5) for n in range(20)]
    assert starts_of(packets, 4) == [0, 5, 10, 15]
    assert starts_of(packets, 8) == [0, 0, 5, 5, 10, 10, 15, 15]
    bunched = [packet(n) if n == 0 or n >= 15 else packet(n, kind=Kind.WARP, age=n) for n in range(20)]
    assert starts_of(bunched, 4) == [0, 0, 0, 15]


def test_what_never_came_is_counted() -> None:
    packets = [SeenPacket(pack(packet(n)), BEGAN_MS + 100 * n + 20) for n in range(9)]
    seen = View([mask(n, late_ms=40) for n in range(8)], packets)
    found = result_of([seen], SPAN, sent=10, cores=1.0)
    assert (found.missing_packets, found.missing_masks) == (1, 2)
    assert found.queued_p95_ms == pytest.approx(20)
    assert found.mask_p95_ms == pytest.approx(40)
    assert found.fps == pytest.approx(9)
    one = replace(found, missing_masks=0)
    assert verdicts_of_load(one, replace(found, cameras=20, mask_p95_ms=170.0)) == [
        "one camera: p95 from capture to mask under 60 ms: yes, 40 ms; nothing lost: yes, 0 of 10",
        "20 cameras: p95 under 150 ms: into the queue yes, 20 ms; to the mask no, 170 ms",
    ]


# The figure


@pytest.mark.parametrize("parts", [("compared", "followed"), ("compared",), ("followed",)])
def test_the_figure_shows_what_was_told(tmp_path: Path, parts: tuple[str, ...]) -> None:
    compared = {"title": "links", "results": [asdict(row("mqtt", float("nan"))), asdict(row("webrtc", 160.0))]}
    followed = {"title": "a step", **columns_of(trace([10.0] * 80))}
    told = {}
    for name, one in (("compared", compared), ("followed", followed)):
        write_json(one, tmp_path / f"{name}.json")
        told[name] = json.loads((tmp_path / f"{name}.json").read_text()) if name in parts else None
    draw(tmp_path / "links.png", **told)
    assert (tmp_path / "links.png").read_bytes().startswith(b"\x89PNG")
