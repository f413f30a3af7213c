"""The values that travel."""

import dataclasses

import pytest

from pipeline.errors import ConfigError
from pipeline.messages import FrameId, Kind, check_camera_name


@pytest.mark.parametrize("name", ["a", "cam-1", "0_front", "x" * 63])
def test_good_camera_names_pass(name: str) -> None:
    assert check_camera_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "_a", "Cam", "a b", "a/b", "a+", "x" * 64, "é", "a\n", "bundle", "worker"])
def test_bad_camera_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="camera name"):
        check_camera_name(name)


def test_the_numbers_on_the_wire_stay() -> None:
    assert {kind.name: kind.value for kind in Kind} == {"BACK": 0, "KEY": 1, "WARP": 2, "DELTA": 3}


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FrameId(1, 2).sequence = 3  # type: ignore[misc]
