"""A camera and its gateway at the two ends of an emulated link, all real processes: over MQTT, and over WebRTC."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.links_cuts import BACK_S, held_by
from benchmarks.links_score import sameness
from benchmarks.links_site import MQTT, WEBRTC, Node, Site, wait_until
from benchmarks.links_watch import SeenMask, View, Watch
from benchmarks.netlab import Netlab, Way
from pipeline.bundle import default_bundle, load_bundle

pytestmark = pytest.mark.root

LIMIT_S = 60.0
PERFECT = Way()


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a link, with all but cameras running on the far one."""

    lab: Netlab
    site: Site
    gateway: Node
    watch: Watch


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    folder = tmp_path_factory.mktemp("links")
    with Netlab() as lab, Site(lab, folder, bundle=default_bundle()) as site, Watch(lab.b) as watch:
        gateway = site.gateway()
        site.worker(WORKER__ID="far")
        watch.wait_state("worker/far", "online", limit_s=LIMIT_S, why=site.logs)
        yield Ends(lab, site, gateway, watch)


@dataclass(frozen=True, slots=True)
class Far:
    """One camera beyond the link, named after its uplink, at 25 frames per second."""

    ends: Ends
    name: str
    camera: Node

    @property
    def view(self) -> View:
        return self.ends.watch.view(self.name)

    def link(self, way: Way) -> None:
        self.ends.lab.change_ways(way)

    def wait(self, holds: Callable[[], bool], *, limit_s: float = LIMIT_S) -> None:
        wait_until(holds, lambda: f"{len(self.view.masks)} masks\n{self.ends.site.logs()}", limit_s=limit_s)

    def next(self, count: int, *, limit_s: float = LIMIT_S) -> list[SeenMask]:
        """The next masks of frames that are captured from now on."""
        now_ms, before = time.time() * 1000, len(self.view.masks)

        def found() -> list[SeenMask]:
            return [one for one in self.view.masks[before:] if one.mask.captured_ms >= now_ms]

        self.wait(lambda: len(found()) >= count, limit_s=limit_s)
        return found()[:count]


@pytest.fixture(scope="module", params=[MQTT, WEBRTC])
def started(request: pytest.FixtureRequest, ends: Ends) -> Iterator[Far]:
    ends.lab.change_ways(PERFECT)
    camera = ends.site.camera(request.param, "--name", request.param, "--loop")
    far = Far(ends, request.param, camera)
    far.next(5)
    yield far
    ends.lab.change_ways(PERFECT)
    assert camera.stop() == 0, ends.site.logs()


@pytest.fixture
def far(started: Far) -> Iterator[Far]:
    """The camera over a perfect link, masks coming as they should."""
    started.link(PERFECT)
    started.wait(lambda: all(one.latency_ms < 1000 for one in started.next(5)))
    yield started
    started.link(PERFECT)


def latencies(masks: list[SeenMask]) -> np.ndarray:
    return np.array([one.latency_ms for one in masks])


def test_a_camera_with_rate_control_fits_its_link(ends: Ends) -> None:
    # The first test: cameras of later ones stay on, and this one needs the link for itself.
    ends.lab.change_ways(PERFECT)
    camera = ends.site.camera(WEBRTC, "--name", "fitting", "--loop", RATE__MODE="rule")
    far = Far(ends, "fitting", camera)
    far.next(10)
    far.link(Way(delay_ms=20, rate_kbit_s=40))  # less than half of what it sent
    far.wait(lambda: ends.lab.queue_ms() > 100, limit_s=20)

    def fits() -> bool:
        return bool((latencies(far.next(10)) < 1000).all()) and ends.lab.queue_ms() < 300

    far.wait(fits, limit_s=20)
    assert camera.stop() == 0, ends.site.logs()


def test_masks_come_over_a_long_link_that_loses_packets(far: Far) -> None:
    far.link(Way(delay_ms=40, loss=0.01, rate_kbit_s=1000))
    taken = latencies(far.next(60))
    assert taken.min() > 40
    # Each of them has the way once; a machine that is busy with other tests makes some of them late.
    assert np.median(taken) < 300


def test_masks_are_in_time_again_after_the_link_was_too_thin_for_a_while(far: Far) -> None:
    thin = Way(delay_ms=20, rate_kbit_s=30)
    far.link(thin)
    far.wait(lambda: far.ends.lab.queue_ms() > 500)
    far.link(replace(thin, rate_kbit_s=1000))
    widened_s = time.monotonic()
    far.wait(lambda: bool((latencies(far.next(10)) < 500).all()), limit_s=15)
    assert far.ends.lab.queue_ms() < 500
    assert time.monotonic() - widened_s < 10


def test_after_a_cut_masks_come_again_within_seconds_and_nothing_is_left_behind(far: Far) -> None:
    far.link(Way(delay_ms=40))
    far.next(5)
    before = held_by(far.camera, "camera"), held_by(far.ends.gateway, "gateway")
    far.ends.lab.change(cut=True)
    time.sleep(3)  # nothing to wait for: the cut is what is tested
    far.ends.lab.change(cut=False)
    far.next(1, limit_s=BACK_S)
    far.next(5)
    after = held_by(far.camera, "camera"), held_by(far.ends.gateway, "gateway")
    assert [more.descriptors - less.descriptors <= 3 for less, more in zip(before, after, strict=True)] == [True, True]
    assert far.camera.alive
    assert far.ends.gateway.alive


def test_no_mask_is_corrupted_where_many_packets_are_lost(far: Far) -> None:
    before = far.ends.lab.counts()[0].lost
    far.link(Way(delay_ms=75, jitter_ms=5, loss=0.05, rate_kbit_s=1000))
    masks = far.next(75)
    while far.ends.lab.counts()[0].lost < before + 3:  # by chance fewer of so many
        masks += far.next(25)
    same = sameness(far.view, masks, load_bundle(default_bundle()))
    # A mask can be compared where the KEY of its packet came into the queue; without it there would be no mask.
    assert len(same) == len(masks)
    assert same.min() > 0.995


def test_a_crowd_in_one_process_gets_its_masks(ends: Ends) -> None:
    ends.lab.change_ways(PERFECT)
    crowd = ends.site.crowd(str(default_bundle()), "3", "10", "2")
    assert crowd.process.wait(LIMIT_S) == 0, crowd.log.read_text()
    assert crowd.log.read_text().splitlines()[-1] == str([{"packets": 20, "refused": 0}] * 3).replace("'", '"')
    views = [ends.watch.view(f"crowd-{number}") for number in range(3)]
    wait_until(lambda: all(len(view.masks) > 10 for view in views), ends.site.logs, limit_s=10)
    assert [len(view.packets) for view in views] == [20, 20, 20]


def test_a_program_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import links_site
    from pipeline.errors import ConfigError

    monkeypatch.setattr(links_site, "_SEARCH_PATH", str(tmp_path))
    with Netlab() as lab, pytest.raises(ConfigError, match="apt-get install mosquitto"):
        Site(lab, tmp_path, bundle=default_bundle()).__enter__()
