"""What the camera tells the decision network: sizes, meaning, and a guess where a bundle has none."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.bundle import Bundle
from pipeline.deciding import (
    FACTS,
    MAPS,
    PLACES,
    Candidate,
    Decider,
    describe,
    linear_agreement,
    open_decider,
)
from pipeline.motion import Motion, MotionTracker
from pipeline.streets import render_street

LEVELS = [SimpleNamespace(index=0, rate_bpp=0.01), SimpleNamespace(index=3, rate_bpp=0.08)]
RESIDUAL, DETAIL, MISFIT, STRAIN, UNSEEN, SPEED = range(MAPS)


def manifest(height: int = 120, width: int = 160) -> SimpleNamespace:
    return SimpleNamespace(height=height, width=width, quality_levels=LEVELS)


def motion(flow: np.ndarray | None = None, *, residual: float = 0.0, detail: float = 5.0) -> Motion:
    """Of 8 x 10 cells, 15 and 16 px large; the flow is 0 or as given, (2, 9, 11)."""
    flow = np.zeros((2, 9, 11)) if flow is None else flow
    cells = np.ones((8, 10), np.float32)
    return Motion(np.zeros((2, 1), np.int16), flow.astype(np.float32), residual * cells, detail * cells)


def candidate(found: Motion, **changed: object) -> Candidate:
    usual = {"age": 3, "flow_bytes": 40, "key_bytes": 192, "key_quality": 3, "quality": 3, "size": (120, 160)}
    return Candidate(found, **{**usual, **changed})  # type: ignore[arg-type]


def maps_of(found: Motion) -> np.ndarray:
    return describe(candidate(found), manifest()).maps  # type: ignore[arg-type]


def facts_of(**changed: object) -> np.ndarray:
    return describe(candidate(motion(), **changed), manifest()).facts  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(120, 160), (360, 480), (72, 500), (24, 24)])
def test_a_region_of_any_size_is_described_in_one_size(size: tuple[int, int]) -> None:
    first, *_, last = render_street(3, width=size[1], height=size[0], frames=3)
    tracker = MotionTracker(*size)
    tracker.start(first.image)
    sight = describe(candidate(tracker.track(last.image, 2), size=size), manifest(*size))  # type: ignore[arg-type]
    assert sight.maps.shape == (MAPS, *PLACES)
    assert sight.facts.shape == (FACTS,)
    assert sight.maps.dtype == sight.facts.dtype == np.float32
    assert np.isfinite(sight.maps).all()


def test_where_nothing_moves_only_detail_is_seen() -> None:
    maps = maps_of(motion())
    assert (maps[[RESIDUAL, MISFIT, STRAIN, UNSEEN, SPEED]] == 0).all()
    assert (maps[DETAIL] > 0).all()


def test_a_residual_counts_for_more_where_there_is_no_detail() -> None:
    rough, smooth = maps_of(motion(residual=4, detail=20)), maps_of(motion(residual=4, detail=0))
    np.testing.assert_allclose(rough[RESIDUAL], smooth[RESIDUAL])
    assert (rough[MISFIT] < smooth[MISFIT] / 5).all()


def test_a_pan_has_speed_everywhere_no_strain_and_one_border_that_was_not_seen() -> None:
    flow = np.zeros((2, 9, 11))
    flow[0] = 40.0  # px to the right in the key: what is at the right border now was not in it
    maps = maps_of(motion(flow))
    assert (maps[SPEED] > 1).all()
    assert (maps[STRAIN] == 0).all()
    assert (maps[UNSEEN][:, -1] > 0.5).all()
    assert (maps[UNSEEN][:, :5] == 0).all()


def test_where_many_places_have_one_source_something_was_not_seen() -> None:
    x = np.linspace(-80, 80, 11)
    flow = np.zeros((2, 9, 11))
    flow[0] = -0.5 * x  # the picture twice as wide as the key's
    maps = maps_of(motion(flow))
    np.testing.assert_allclose(maps[UNSEEN], 0.5, atol=1e-3)
    np.testing.assert_allclose(maps[STRAIN], 0.5, atol=1e-3)


def test_facts_say_how_old_how_large_and_how_busy_against_what_is_usual() -> None:
    usual = facts_of(key_bytes=192)  # 0.08 bpp of 120 x 160 pixels
    assert usual[3] == pytest.approx(0, abs=1e-6)
    assert facts_of(key_bytes=384)[3] == pytest.approx(np.log(2), abs=1e-6)
    assert facts_of(age=9)[0] > usual[0]
    assert facts_of(flow_bytes=90)[2] > usual[2]


def test_a_region_is_as_busy_as_its_share_of_the_frame_says() -> None:
    assert facts_of(size=(60, 80), key_bytes=48)[3] == pytest.approx(0, abs=1e-6)


def test_a_cheaper_key_is_told_apart_from_the_usual() -> None:
    assert facts_of()[5] == 0
    assert facts_of(key_quality=0, key_bytes=24)[5] == pytest.approx(np.log(8), abs=1e-6)


def test_a_level_that_was_not_measured_counts_as_the_nearest() -> None:
    np.testing.assert_allclose(facts_of(key_quality=4, quality=4), facts_of())


class FixedSession:
    """Stands in for a graph: gives the number of each row."""

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        count = len(inputs[0])
        assert [one.shape for one in inputs] == [(count, MAPS, *PLACES), (count, FACTS)]
        return [80 + np.arange(count, dtype=np.float32)[:, None]]


def test_candidates_that_share_a_motion_are_compared_in_one_look() -> None:
    decider = Decider(FixedSession(), manifest())  # type: ignore[arg-type]
    found = motion()
    assert decider.compare([candidate(found), candidate(found, age=9)]).tolist() == [80, 81]
    assert decider(candidate(found)) == 80


def test_a_bundle_without_the_graph_does_not_decide(tiny_bundle: Bundle) -> None:
    assert open_decider(tiny_bundle) is None


def test_the_plain_guess_falls_with_age_residual_and_bytes_and_stays_a_percentage() -> None:
    usual = linear_agreement(candidate(motion()))
    assert 0 < linear_agreement(candidate(motion(), age=9)) < usual < 100
    assert linear_agreement(candidate(motion(residual=3))) < usual
    assert linear_agreement(candidate(motion(), flow_bytes=90)) < usual
    assert linear_agreement(candidate(motion(residual=500))) == 0
