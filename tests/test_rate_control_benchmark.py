"""A simulated camera's footage is what the codec makes, and a run counts what was sent and seen."""

import numpy as np
import pytest

from benchmarks.footage import Footage, open_coders
from benchmarks.link_kinds import HELD_OUT, STEPS_KBIT_S, TRAINING, the_steps
from benchmarks.link_traces import Way, stepping
from benchmarks.rate_control import FIXED, Result, choosers_of, result_of, table_of, windows
from benchmarks.simulated_camera import Constant, Outcome, SimulatedCamera
from pipeline.bundle import default_bundle, load_bundle
from pipeline.class_map import STRIDE
from pipeline.codec import open_decoder
from pipeline.key_policies import at_interval
from pipeline.messages import Decoded, Frame, FrameId
from pipeline.operating_points import OperatingPoint
from pipeline.streets import render_street
from pipeline.video_encoder import open_video_encoder

FRAMES, LEVEL = 12, 4


@pytest.fixture(scope="module")
def footage() -> Footage:
    bundle = load_bundle(default_bundle())
    coders, size = open_coders(bundle), {"width": bundle.manifest.width, "height": bundle.manifest.height}
    images = [frame.image for frame in render_street(5, **size, frames=2 * FRAMES, fps=8.0)][FRAMES:]  # not at rest
    return Footage("street", images, fps=25.0, coders=coders)


def test_keys_and_warps_are_what_camera_and_worker_make(footage: Footage) -> None:
    bundle, level = load_bundle(default_bundle()), footage.top  # whose edges WARPs of all levels go by there
    encoder = open_video_encoder(bundle, threads=1, quality=level, policy=at_interval(30))
    decoder = open_decoder(bundle, threads=1, labels=False)
    for number in range(4):
        packet = encoder.encode(Frame(FrameId(0, number), 0, footage.image(number)))
        (decoded,) = decoder.decode([packet])
        assert isinstance(decoded, Decoded)
        assert decoded.mask is not None
        body_bytes = footage.moved(number, number, level).body_bytes if number else footage.key_bytes(0, level)
        assert len(packet.regions[0].body) == body_bytes
        small = decoded.mask.classes[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        assert np.mean(small == footage.mask(number, number, level)) > 0.98


def test_the_highest_level_agrees_with_itself_and_frames_come_round(footage: Footage) -> None:
    assert footage.agreement(footage.mask(3, 0, footage.top), 3) == 100
    assert footage.key_bytes(3, LEVEL) == footage.key_bytes(3 + FRAMES, LEVEL)


def run(footage: Footage, point: OperatingPoint, *, rate_kbit_s: float, loss: float = 0.0) -> Outcome:
    way = Way(delay_ms=40, loss=loss, queue_kib=64)
    trace = stepping([(0.0, rate_kbit_s)], way)
    return SimulatedCamera(footage, Constant(point), trace, seconds=8, seed=1).run()


def test_a_run_counts_bytes_and_lateness(footage: Footage) -> None:
    found = run(footage, OperatingPoint(LEVEL, 100.0, 12.5), rate_kbit_s=1000.0)
    usual = np.mean([footage.key_bytes(frame, LEVEL) for frame in range(FRAMES)]) + 134
    assert found.kbit_s[1:].mean() == pytest.approx(12.5 * usual / 125, rel=0.1)
    assert 0.08 < np.median(found.latencies_s) < 0.11
    assert len(found.rewards) == 8


def test_viewers_see_less_on_thin_and_on_lossy_links(footage: Footage) -> None:
    point = OperatingPoint(6, 100.0, 25.0)
    good, thin, lossy = (
        run(footage, point, rate_kbit_s=rate, loss=loss) for rate, loss in ((1000.0, 0), (25.0, 0), (1000.0, 0.2))
    )
    assert good.agreement[25:].mean() > thin.agreement[25:].mean()
    assert good.agreement[25:].mean() > lossy.agreement[25:].mean()
    assert good.rewards[1:].mean() > thin.rewards[1:].mean()


def test_every_chooser_runs_and_has_its_row(footage: Footage) -> None:
    choosers, results = choosers_of(footage, open_coders(load_bundle(default_bundle()))), list[Result]()
    trace = TRAINING["walk"](1, 40)
    ruled = SimulatedCamera(footage, choosers["rule"](), trace, seconds=40).run()
    for name in ("rule", "bandit"):
        found = SimulatedCamera(footage, choosers[name](), trace, seconds=40).run()
        results.append(result_of(found, ruled, name=name, link="walk", video="street", seed=1))
    assert results[0].least == 1
    assert results[1].least > 0.9
    assert len(choosers) == 2 + len(FIXED)
    assert table_of(results).row_count == 2


def test_windows_are_means_of_thirty_seconds() -> None:
    assert windows(np.arange(31.0)) == pytest.approx([14.5, 15.5])


def test_links_are_the_same_for_the_same_seed_and_cover_the_time() -> None:
    for kind in (*TRAINING.values(), *HELD_OUT.values()):
        assert list(kind(3, 60)) == list(kind(3, 60)) != list(kind(4, 60))
        assert kind(3, 60)[0].at_s == 0
    assert [step.up.rate_kbit_s for step in the_steps()] == list(STEPS_KBIT_S)
