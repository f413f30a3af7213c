"""Reports of cameras and workers: what is read, what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.reports import LIMIT_BYTES, Legend, State, Stats, read_report
from pipeline.errors import BitstreamError


def test_stats_are_read_and_keys_of_newer_senders_are_passed_over() -> None:
    stats = read_report(Stats, b'{"fps": 25, "drops": {"late": 3}, "share": {"road": 0.5}, "newer": [1]}')
    assert (stats.fps, stats.drops, stats.share, stats.kbit_s) == (25.0, {"late": 3}, {"road": 0.5}, None)


def test_state_is_one_of_three() -> None:
    assert read_report(State, b'{"state": "stopped", "since": 5}').since == 5
    with pytest.raises(BitstreamError, match=r"state: state: .*'online', 'stopped' or 'offline'"):
        read_report(State, b'{"state": "on fire"}')


def test_legend_is_read_from_a_whole_manifest() -> None:
    manifest = {"name": "b", "hash": "00", "grid": "1x1", "classes": [{"name": "sky", "colour": [1, 2, 3]}]}
    legend = read_report(Legend, json.dumps(manifest).encode())
    assert [(look.name, look.colour) for look in legend.classes] == [("sky", (1, 2, 3))]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"fps": NaN}',
        b'{"fps": -1}',
        b'{"fps": 1e999}',
        b'{"drops": {"late": -1}}',
        b'{"share": {"\\u001b[2J": 1}}',
        b'{"share": ' + b"[" * 100_000,
        json.dumps({"drops": {str(n): n for n in range(65)}}).encode(),
        json.dumps({"share": {"x" * 129: 1}}).encode(),
        b" " * LIMIT_BYTES + b"{}",
    ],
    ids=lambda payload: payload[:24].decode("latin-1"),
)
def test_what_is_no_stats_is_refused(payload: bytes) -> None:
    with pytest.raises(BitstreamError):
        read_report(Stats, payload)


@pytest.mark.parametrize("colour", [[1, 2], [1, 2, 256], [-1, 0, 0], "red"])
def test_colour_that_is_none_is_refused(colour: object) -> None:
    manifest = {"hash": "00", "classes": [{"name": "sky", "colour": colour}]}
    with pytest.raises(BitstreamError, match="colour"):
        read_report(Legend, json.dumps(manifest).encode())


@given(st.binary(max_size=200) | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_any_bytes_give_a_report_or_a_bitstream_error(payload: bytes | str) -> None:
    data = payload if isinstance(payload, bytes) else payload.encode()
    for kind in (Stats, State, Legend):
        try:
            read_report(kind, data)
        except BitstreamError:
            continue
