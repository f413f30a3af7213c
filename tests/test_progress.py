"""How far a command is: items pass through, and lines come now and then where no terminal is."""

import pytest

from pipeline.progress import counting, progress


def test_items_are_passed_on_as_they_are() -> None:
    assert list(progress(iter("abc"), "coding")) == ["a", "b", "c"]


def test_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: now_s)
    with counting("val", 100) as told:
        for done in range(1, 13):
            now_s += 1.0
            told(done)
    with counting("clip", None) as told:
        now_s += 5.0
        told(7)
    assert capsys.readouterr().err == "val: 5 of 100\nval: 10 of 100\nclip: 7\n"
