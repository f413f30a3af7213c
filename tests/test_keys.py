"""Keys of regions: the one that a region names is found or reported missing, whatever the channel does to packets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, MissingKey
from pipeline.keys import KeyBuffer, KeyBuffers, KeyTable, stream_of
from pipeline.messages import FrameId, Kind, Packet, Region

WRAP = 1 << 32


def packet(sequence: int, *regions: Region, epoch: int = 7, rows: int = 2, columns: int = 2) -> Packet:
    return Packet(
        id=FrameId(epoch, sequence % WRAP), captured_ms=0, bundle=b"abcd", quality=0, rows=rows, columns=columns,
        regions=regions,
    )  # fmt: skip


def warp(index: int, age: int) -> Region:
    return Region(Kind.WARP, index, age, b"flow")


def key(index: int) -> Region:
    return Region(Kind.KEY, index, 0, b"latents")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(clock: Clock) -> KeyBuffer[str]:
    return KeyBuffer(idle_s=60, clock=clock)


def test_a_region_finds_the_key_it_names(keys: KeyBuffer[str]) -> None:
    keys.put(packet(10), 3, "ten")
    assert keys.get(packet(265), warp(3, 255)) == "ten"
    for other in (warp(3, 254), warp(2, 255)):
        with pytest.raises(MissingKey, match=f"region {other.index}"):
            keys.get(packet(265), other)


def test_a_region_overtaken_by_a_newer_key_finds_its_own(keys: KeyBuffer[str]) -> None:
    keys.put(packet(10), 0, "ten")
    keys.put(packet(14), 0, "fourteen")
    assert keys.get(packet(13), warp(0, 3)) == "ten"
    assert keys.get(packet(15), warp(0, 1)) == "fourteen"


def test_a_late_key_replaces_no_newer_one(keys: KeyBuffer[str]) -> None:
    for sequence in (10, 14, 6):
        keys.put(packet(sequence), 0, str(sequence))
    assert keys.get(packet(15), warp(0, 5)) == "10"
    with pytest.raises(MissingKey):
        keys.get(packet(7), warp(0, 1))
    newest = keys.newest(packet(15), 0)
    assert newest is not None and newest.id == FrameId(7, 14)


def test_a_late_key_takes_its_place_before_the_newest(keys: KeyBuffer[str]) -> None:
    for sequence in (10, 14, 12):
        keys.put(packet(sequence), 0, str(sequence))
    assert keys.get(packet(13), warp(0, 1)) == "12"
    assert keys.get(packet(15), warp(0, 1)) == "14"


def test_a_key_that_comes_twice_pushes_nothing_out(keys: KeyBuffer[str]) -> None:
    for sequence in (10, 14, 14, 10, 14):
        keys.put(packet(sequence), 0, str(sequence))
    assert len(keys) == 2
    assert keys.get(packet(13), warp(0, 3)) == "10"


def test_sequences_wrap(keys: KeyBuffer[str]) -> None:
    for sequence in (WRAP - 2, WRAP, WRAP - 1):
        keys.put(packet(sequence), 0, str(sequence - WRAP))
    assert keys.get(packet(WRAP + 2), warp(0, 2)) == "0"
    assert keys.get(packet(WRAP + 2), warp(0, 3)) == "-1"
    with pytest.raises(MissingKey):
        keys.get(packet(0), warp(0, 2))


@pytest.mark.parametrize(
    "other",
    [packet(11, epoch=8), packet(11, rows=4, columns=1), replace(packet(11), bundle=b"efgh")],
    ids=["epoch", "grid", "bundle"],
)
def test_another_epoch_grid_or_bundle_finds_nothing(keys: KeyBuffer[str], other: Packet) -> None:
    keys.put(packet(10), 0, "ten")
    with pytest.raises(MissingKey):
        keys.get(other, warp(0, 1))
    assert keys.newest(other, 0) is None
    keys.put(other, 0, "other")
    assert keys.get(packet(11), warp(0, 1)) == "ten"  # what is still under way is served
    keys.put(packet(0, epoch=9), 0, "third")
    with pytest.raises(MissingKey):
        keys.get(packet(11), warp(0, 1))


def test_a_new_run_that_drew_the_same_epoch_is_locked_out_for_a_while_only(keys: KeyBuffer[str], clock: Clock) -> None:
    for sequence in (1000, 1010):
        keys.put(packet(sequence), 0, "old run")
    for clock.now_s in (30.0, 61.0):
        keys.put(packet(3), 0, "new run")
    assert keys.get(packet(4), warp(0, 1)) == "new run"
    with pytest.raises(MissingKey):
        keys.get(packet(1011), warp(0, 1))


def test_keys_in_use_stay(keys: KeyBuffer[str], clock: Clock) -> None:
    keys.put(packet(0), 0, "zero")
    for at in range(1, 6):
        clock.now_s = 50.0 * at
        assert keys.get(packet(at), warp(0, at)) == "zero"
    clock.now_s += 61
    with pytest.raises(MissingKey):
        keys.get(packet(6), warp(0, 6))
    assert len(keys) == 0


def test_a_stream_that_keys_come_of_stays(keys: KeyBuffer[str], clock: Clock) -> None:
    for clock.now_s, sequence in ((0.0, 0), (50.0, 1), (100.0, 2)):
        keys.put(packet(sequence), 0, str(sequence))
    assert keys.get(packet(3), warp(0, 2)) == "1"


def test_of_three_streams_the_one_that_keys_last_came_of_stays(keys: KeyBuffer[str]) -> None:
    for sequence, epoch in ((0, 7), (0, 8), (1, 7), (0, 9)):
        keys.put(packet(sequence, epoch=epoch), 0, str(epoch))
    assert keys.get(packet(2), warp(0, 1)) == "7"
    with pytest.raises(MissingKey):
        keys.get(packet(1, epoch=8), warp(0, 1))


def test_a_region_off_the_grid_is_not_kept(keys: KeyBuffer[str]) -> None:
    for index, rows in ((4, 2), (-1, 2), (64, 15)):
        with pytest.raises(ValueError, match="region"):
            keys.put(packet(0, rows=rows, columns=rows), index, "off")


def test_regions_without_their_keys_are_named(keys: KeyBuffer[str]) -> None:
    keys.put(packet(10), 1, "ten")
    assert keys.missing(packet(12, key(0), warp(1, 2), warp(2, 2), Region(Kind.DELTA, 3, 1, b""))) == (2, 3)


def test_cameras_do_not_share_keys_and_the_least_lately_used_goes(clock: Clock) -> None:
    buffers: KeyBuffers[str] = KeyBuffers(cameras=2, idle_s=60, clock=clock)
    buffers.of("a").put(packet(0), 0, "a")
    buffers.of("b").put(packet(0), 0, "b")
    assert buffers.of("a").get(packet(1), warp(0, 1)) == "a"
    buffers.of("c").put(packet(0), 0, "c")
    assert len(buffers) == 2
    assert len(buffers.of("a")) == 1
    assert len(buffers.of("b")) == 0


def test_silent_cameras_are_forgotten(clock: Clock) -> None:
    buffers: KeyBuffers[str] = KeyBuffers(cameras=9, idle_s=60, clock=clock)
    for clock.now_s, camera in ((0.0, "a"), (50.0, "b"), (70.0, "c")):
        buffers.of(camera)
    assert len(buffers) == 2
    clock.now_s = 200.0
    assert len(buffers.of("b")) == 0 and len(buffers) == 1


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 2]), st.integers(0, 12), st.integers(0, 1))))
def test_memory_is_bounded_whatever_comes(arrivals: Sequence[tuple[int, int, int, int]]) -> None:
    keys: KeyBuffer[None] = KeyBuffer(clock=Clock())
    for epoch, rows, sequence, index in arrivals:
        keys.put(packet(sequence, epoch=epoch, rows=rows), index, None)
        assert len(keys) <= 2 * 2 * 2  # streams, regions, generations


@dataclass(frozen=True)
class Arrival:
    place: int  # in the order of arrival
    sent: Packet


@st.composite
def channels(draw: st.DrawFn) -> tuple[list[Packet], list[Packet]]:
    """Packets as a camera sent them, and as they come: some lost, some twice, some late by up to 6 places."""
    table, sent = KeyTable(longest_age=draw(st.integers(0, 9))), []
    start, grid = draw(st.sampled_from([0, 5, WRAP - 8])), 2
    for at in range(draw(st.integers(1, 40))):
        epoch, sequence = (7, start + at) if at < 25 else (8, at - 25)
        grid = draw(st.sampled_from([1, 2])) if draw(st.integers(0, 9)) == 0 else grid
        head = packet(sequence, epoch=epoch, rows=grid)
        chosen = table.due(head) | draw(st.sets(st.integers(0, 2 * grid - 1), max_size=1))
        regions = [
            key(index) if index in chosen else warp(index, (head.id.sequence - table.sequences[index]) % WRAP)
            for index in range(2 * grid)
        ]
        sent.append(replace(head, regions=tuple(regions)))
        table = table.sent(sent[-1])
    arrivals: list[Arrival] = []
    for place, one in enumerate(sent):
        copies = draw(st.sampled_from([0, 1, 1, 1, 2]))
        arrivals += [Arrival(place + draw(st.sampled_from([0, 0, 0, 2, 6])), one) for _ in range(copies)]
    return sent, [arrival.sent for arrival in sorted(arrivals, key=lambda arrival: arrival.place)]


@settings(max_examples=100, deadline=None)
@given(channels())
def test_no_loss_repetition_or_order_leads_to_a_wrong_key(channel: tuple[list[Packet], list[Packet]]) -> None:
    keys: KeyBuffer[tuple[Packet, int]] = KeyBuffer(clock=Clock())
    for come in channel[1]:
        for region in come.regions:
            if region.kind is Kind.KEY:
                keys.put(come, region.index, (come, region.index))
                continue
            named = (come.id.sequence - region.age) % WRAP
            try:
                found, index = keys.get(come, region)
            except MissingKey:
                assert region.index in keys.missing(come)
            else:
                assert (stream_of(found), found.id.sequence, index) == (stream_of(come), named, region.index)
                assert region.index not in keys.missing(come)


@settings(max_examples=100, deadline=None)
@given(channels())
def test_of_the_two_newest_keys_that_came_each_is_found(channel: tuple[list[Packet], list[Packet]]) -> None:
    """Against a model that keeps all."""
    keys: KeyBuffer[FrameId] = KeyBuffer(clock=Clock())
    came: list[Packet] = []
    for come in (packet for packet in channel[1] if packet.id.epoch == 7 and packet.rows == 2):
        came.append(come)
        for region in come.regions:
            if region.kind is Kind.KEY:
                keys.put(come, region.index, come.id)
        for index in range(4):
            sequences = {(one.id.sequence + 100) % WRAP for one in came if one.regions[index].kind is Kind.KEY}
            for shifted in sorted(sequences)[-2:]:
                assert keys.get(packet(shifted - 90), warp(index, 10)) == FrameId(7, (shifted - 100) % WRAP)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=60))
def test_a_camera_that_is_asked_recovers_with_the_next_packet(comes: Sequence[bool]) -> None:
    keys: KeyBuffer[None] = KeyBuffer(clock=Clock())
    table, lacking = KeyTable(), [False]
    for at, arrives in enumerate([*comes, True, True]):
        head = packet(at)
        due = table.due(head)
        sent = replace(head, regions=tuple(key(i) if i in due else warp(i, at - table.sequences[i]) for i in range(4)))
        table = table.sent(sent)
        if arrives:
            lacking.append(bool(keys.missing(sent)))
            table = table.request(keys.missing(sent))
            for index in due:
                keys.put(sent, index, None)
        elif due:
            lacking.append(False)  # a key was lost with it: the next packet may lack it
    assert not any(before and now for before, now in pairwise(lacking))
    assert not lacking[-1]


def test_everything_is_due_at_first_and_nothing_after_it_was_sent() -> None:
    table = KeyTable()
    assert table.due(packet(0)) == {0, 1, 2, 3}
    table = table.sent(packet(0, key(0), key(1), key(3)))
    assert table.due(packet(1)) == {2}
    assert table.sent(packet(1, warp(0, 1), key(2))).due(packet(2)) == set()


def test_ages_count_on_when_sequences_begin_again() -> None:
    table = KeyTable().sent(packet(WRAP - 2, key(0), key(2)))
    assert [table.age(packet(sequence), 2) for sequence in (WRAP - 1, 0, 5)] == [1, 2, 7]


def test_what_was_asked_for_is_due_until_it_is_sent() -> None:
    table = KeyTable().sent(packet(0, *map(key, range(4)))).request([1, 3, 63])
    assert table.due(packet(1)) == {1, 3}
    assert table.sent(packet(1, key(1), warp(3, 1))).due(packet(2)) == {3}


@pytest.mark.parametrize(("longest_age", "age"), [(0, 1), (9, 10), (255, 256)])
def test_a_key_of_the_longest_age_is_due_in_the_next_packet(longest_age: int, age: int) -> None:
    table = KeyTable(longest_age=longest_age).sent(packet(WRAP - 3, key(0), key(1), key(2), key(3)))
    if longest_age:
        assert table.due(packet(WRAP - 3 + age - 1)) == set()
    assert table.due(packet(WRAP - 3 + age)) == {0, 1, 2, 3}


@pytest.mark.parametrize("sequence", [0, WRAP - 5])
def test_a_sequence_that_does_not_rise_makes_everything_due(sequence: int) -> None:
    table = KeyTable().sent(packet(0, *map(key, range(4))))
    assert table.due(packet(sequence)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "other",
    [
        packet(1, epoch=8),
        packet(1, rows=4, columns=1),
        replace(packet(1), bundle=b"efgh"),
        replace(packet(1), quality=1),
    ],
    ids=["epoch", "grid", "bundle", "quality"],
)
def test_another_epoch_grid_bundle_or_quality_makes_everything_due(other: Packet) -> None:
    table = KeyTable().sent(packet(0, *map(key, range(4))))
    assert table.due(other) == {0, 1, 2, 3}
    changed = table.sent(replace(other, regions=(key(0), key(1), key(2), key(3))))
    assert changed.due(replace(other, id=FrameId(other.id.epoch, 2))) == set()
    assert changed.due(packet(2)) == {0, 1, 2, 3}


def test_keys_of_another_grid_count_for_nothing() -> None:
    table = KeyTable().sent(packet(0, *map(key, range(4)))).sent(packet(1, key(2), rows=4, columns=1))
    assert table.due(packet(2, rows=4, columns=1)) == {0, 1, 3}


@pytest.mark.parametrize("longest_age", [-1, 256])
def test_an_age_that_no_packet_carries_is_refused(longest_age: int) -> None:
    with pytest.raises(ConfigError, match="0 to 255"):
        KeyTable(longest_age=longest_age)
