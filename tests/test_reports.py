"""Reports of cameras and workers: what is read, what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.reports import LIMIT_BYTES, Labels, Legend, Legends, State, Stats, read_report
from pipeline.errors import BitstreamError


def test_stats_are_read_and_keys_of_newer_senders_are_passed_over() -> None:
    stats = read_report(Stats, b'{"fps": 25, "drops": {"late": 3}, "share": {"road": 0.5}, "newer": [1]}')
    assert (stats.fps, stats.drops, stats.share, stats.kbit_s) == (25.0, {"late": 3}, {"road": 0.5}, None)


def test_state_is_one_of_three() -> None:
    assert read_report(State, b'{"state": "stopped", "since": 5}').since == 5
    with pytest.raises(BitstreamError, match=r"state: state: .*'online', 'stopped' or 'offline'"):
        read_report(State, b'{"state": "on fire"}')


def labels_of(**changed: object) -> bytes:
    facts = {"epoch": 7, "sequence": 5, "captured_ms": 1, "bundle": "0a0b0c0d", "labels": [], **changed}
    return json.dumps(facts).encode()


def test_labels_are_present_from_one_half_the_surest_first() -> None:
    scores = {"sky": 0.5, "road": 1, "car": 0.4999, "tree": 0}
    labels = read_report(Labels, labels_of(labels=[{"name": n, "score": s} for n, s in scores.items()]))
    assert [label.name for label in labels.present()] == ["road", "sky"]
    assert [label.name for label in labels.labels] == list(scores)


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": [{"name": "sky", "score": 1.01}]},
        {"labels": [{"name": "sky", "score": float("nan")}]},
        {"labels": [{"name": "\u001b[2J", "score": 1}]},
        {"labels": [{"name": "sky", "score": 1}] * 257},
        {"labels": {"sky": 1}},
        {"epoch": 1 << 16},
        {"sequence": -1},
        {"captured_ms": 1 << 48},
    ],
)
def test_what_is_no_labels_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(BitstreamError, match=r"labels: "):
        read_report(Labels, labels_of(**changed))


def manifest_of(bundle: str, name: str = "b") -> bytes:
    return json.dumps({"name": name, "hash": bundle, "classes": []}).encode()


def test_legends_are_those_told_of_last() -> None:
    legends = Legends(2)
    for bundle in ("a", "b", "a", "c"):
        assert legends.take(bundle, manifest_of(bundle)) == legends[bundle]
    assert list(legends) == ["a", "c"]


def test_a_legend_is_replaced_and_forgotten() -> None:
    legends = Legends()
    legends.take("a", manifest_of("a"))
    legends.take("a", manifest_of("a", "newer"))
    assert [legend.name for legend in legends.values()] == ["newer"]
    assert legends.take("a", b"") is None
    assert not legends
    assert legends.take("never told of", b"") is None


@pytest.mark.parametrize("payload", [manifest_of("other"), b"{", b"[]"])
def test_what_is_no_legend_of_its_topic_is_refused_and_the_last_one_kept(payload: bytes) -> None:
    legends = Legends()
    legends.take("a", manifest_of("a"))
    with pytest.raises(BitstreamError):
        legends.take("a", payload)
    assert list(legends) == ["a"]


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
        b'{"drops": {"late": 9007199254740992}}',
        b'{"drops": {"late": ' + b"9" * 4300 + b"}}",
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
    for kind in (Stats, State, Legend, Labels):
        try:
            read_report(kind, data)
        except BitstreamError:
            continue
