"""The comparison of systems and its figure, on made-up points; the measuring itself takes minutes and is not tested."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.onnx_cost import Cost
from benchmarks.rate_distortion import Network, Stopwatch, Way, named, take_times
from benchmarks.rate_distortion_figure import draw
from benchmarks.systems import BUNDLE, CEILING, CODEC, Measured, System, Times, compare
from pipeline.errors import ConfigError


def system(name: str, kind: str, factor: float) -> System:
    """A curve of three points whose rates are `factor` times those of the first bundle."""
    points = [(0.01 * factor, 0.58), (0.04 * factor, 0.65), (0.15 * factor, 0.68)]
    measured = tuple(Measured(f"q {i}", miou, rate, rate) for i, (rate, miou) in enumerate(points))
    return System(name, kind, "made up", Cost(1000, 10**6), measured, Times(3.0, 2.0, None))


SYSTEMS = [
    system("JD", BUNDLE, 1),
    system("JSDE", BUNDLE, 1.25),
    system("network", CEILING, 100),
    system("JPEG", CODEC, 20),
    system("HEVC", CODEC, 8),
    system("AV1", CODEC, 5),
]


def test_the_first_bundle_is_compared_with_all_that_send_bits() -> None:
    changes = {one.against: one.rate_change for one in compare(SYSTEMS)}
    expected = {"JSDE": -0.2, "JPEG": -0.95, "HEVC": -0.875, "AV1": -0.8, "best of HEVC, AV1": -0.8}
    assert changes == pytest.approx(expected)


def test_another_bundle_is_compared_with_those_after_it() -> None:
    third = replace(system("SE + SD/D", BUNDLE, 2.5), cost=Cost(4000, 10**7), times=Times(12.0, 9.0, None))
    found = {(one.system, one.against): one for one in compare([*SYSTEMS, third])}
    assert found["JSDE", "SE + SD/D"].rate_change == pytest.approx(-0.5)
    shares = {(one.parameter_share, one.time_share) for names, one in found.items() if names[1] == "SE + SD/D"}
    assert shares == {(0.25, 0.25)}
    assert found["JD", "best of HEVC, AV1"].time_share is None
    assert not any(names[0] not in ("JD", "JSDE") for names in found)


def test_what_cannot_be_compared_says_why() -> None:
    far = System("far", CODEC, "", Cost(1, 1), (Measured("q", 0.2, 9.0, 9.0),), Times(1.0, 1.0, 1.0))
    (one,) = compare([SYSTEMS[0], far])
    assert (one.rate_change, one.miou_range, one.miou_change) == (None, None, None)
    assert "nothing in common: mIoU 0.2000" in one.why
    assert "9.0000 bpp" in one.why


@pytest.mark.parametrize("systems", [SYSTEMS, SYSTEMS[:1], [SYSTEMS[0], SYSTEMS[3]]], ids=["all", "alone", "two"])
def test_the_figure_is_a_png(systems: list[System], tmp_path: Path) -> None:
    draw(systems, tmp_path / "figure.png", title="made up")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_systems_are_named_one_by_one() -> None:
    assert named(["JD=a/b", "SE + SD/D=c=d"]) == {"JD": Path("a/b"), "SE + SD/D": Path("c=d")}
    for wrong in (["JD"], ["=a"], ["JD="], ["JD=a", "JD=b"]):
        with pytest.raises(ConfigError):
            named(wrong)


class Doubling:
    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        return [2 * batch]


def test_systems_take_turns_on_every_image() -> None:
    turns: list[str] = []

    def way(name: str, *, encodes: bool) -> Way:
        watch = Stopwatch(Doubling())
        return Way(
            (lambda image: image) if encodes else None, lambda data: (turns.append(name), watch.run(data)), watch
        )

    times = take_times({"a": way("a", encodes=True), "b": way("b", encodes=False)}, [np.zeros((4, 4, 3), np.uint8)] * 3)
    assert turns == ["a", "b"] * 3
    assert times["a"].edge_ms is not None
    assert times["b"].edge_ms is None
    assert times["a"].network_ms <= times["a"].cloud_ms


class Halves:
    """Logits (1, 2, 2, 3) of pictures of 8 x 12 pixels: the right half is of class 1."""

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        assert batch.shape == (1, 8, 12, 3)
        right = np.array([[-1.0, 1.0, 1.0]] * 2, np.float32)
        return [np.stack([-right, right])[None]]


@pytest.mark.parametrize("size", [(8, 12), (16, 24), (10, 9)])
def test_a_network_sees_frames_at_its_own_size(size: tuple[int, int]) -> None:
    network = Network(Halves(), (8, 12))
    (mask,) = network.masks([np.zeros((*size, 3), np.uint8)])
    assert mask.shape == size
    assert mask[:, 0].tolist() == [0] * size[0]
    assert mask[:, -1].tolist() == [1] * size[0]
