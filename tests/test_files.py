"""Files that are written whole or not at all."""

import resource
import signal
import stat
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.files import write_whole


def test_it_is_there_with_the_usual_rights_and_nothing_beside_it(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain", tmp_path / "a.png"
    plain.write_bytes(b"")
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [path, plain]


def test_where_there_is_no_room_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"a\.png: cannot be written \(File too large\); make room"):
            write_whole(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone/a\.png: cannot be written \(No such file"):
        write_whole(tmp_path / "gone" / "a.png", b"x")
