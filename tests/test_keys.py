"""Keys of regions: the one that a region names is found or reported missing, whatever the channel does to packets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, MissingKey
from pipeline.keys import KeyBuffer, KeyBuffers, KeyTable, is_whole, key_sequence, stands_alone, stream_of
from pipeline.messages import FrameId, Kind, Packet, Region

WRAP = 1 << 32


def packet(sequence: int, *regions: Region, epoch: int = 7, rows: int = 2, columns: int = 2) -> Packet:
    return Packet(
        id=FrameId(epoch, sequence % WRAP), captured_ms=0, bundle=b"abcd", quality=0, rows=rows, columns=columns,
        regions=regions,
    )  # fmt: skip


def warp(index: int, age: int) -> Region:
    return Region(Kind.WARP, index, age, b"flow")


def key(index: int, *, ahead: int = 0) -> Region:
    """Of the packet's frame, or of one so many frames ahead."""
    return Region(Kind.KEY, index, ahead, b"latents")


def back(age: int) -> Region:
    return Region(Kind.BACK, 0, age, b"flow" if age else b"")


def frame(sequence: int, *regions: Region) -> Packet:
    """A packet whose frame is one region."""
    return packet(sequence, *regions, rows=1, columns=1)


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
    missing = keys.missing(packet(12, key(0), warp(1, 2), warp(2, 2), Region(Kind.DELTA, 3, 1, b"")))
    assert [region.index for region in missing] == [2, 3]


def test_a_key_that_comes_ahead_is_that_of_its_own_frame(keys: KeyBuffer[str]) -> None:
    keys.put(frame(11), 0, "fourteen", ahead=3)
    for sequence, age in ((11, 3), (12, 2), (13, 1), (14, 0)):
        assert keys.get(frame(sequence), back(age)) == "fourteen"
    assert keys.get(frame(16), warp(0, 2)) == "fourteen"
    for sequence, other in ((11, back(2)), (11, back(0)), (12, warp(0, 1)), (14, warp(0, 3))):
        with pytest.raises(
            MissingKey, match=f"region 0: the key of epoch 7, sequence {key_sequence(frame(sequence), other)}"
        ):
            keys.get(frame(sequence), other)
    newest = keys.newest(frame(12), 0)
    assert newest is not None and newest.id == FrameId(7, 14)


def test_between_two_keys_both_are_found(keys: KeyBuffer[str]) -> None:
    keys.put(frame(10), 0, "ten")
    keys.put(frame(11), 0, "fourteen", ahead=3)
    found = [[keys.get(frame(11 + at), one) for one in (warp(0, 1 + at), back(3 - at))] for at in range(3)]
    assert found == [["ten", "fourteen"]] * 3


def test_a_frame_that_a_key_ahead_has_overtaken_finds_both_of_its_own(keys: KeyBuffer[str]) -> None:
    keys.put(frame(10), 0, "ten")
    for sequence, name in ((11, "fourteen"), (15, "eighteen")):
        keys.put(frame(sequence), 0, name, ahead=3)
    assert [keys.get(frame(17), one) for one in (warp(0, 3), back(1))] == ["fourteen", "eighteen"]
    assert [keys.get(frame(13), one) for one in (warp(0, 3), back(1))] == ["ten", "fourteen"]  # it was late
    keys.put(frame(19), 0, "twenty-two", ahead=3)
    assert len(keys) == 3
    with pytest.raises(MissingKey):
        keys.get(frame(13), warp(0, 3))
    keys.put(frame(26), 0, "twenty-six")
    assert len(keys) == 2


def test_a_key_that_comes_ahead_twice_or_late_pushes_nothing_out(keys: KeyBuffer[str]) -> None:
    for sequence, ahead in ((10, 0), (11, 3), (11, 3), (15, 3), (11, 3), (5, 2), (6, 3)):
        keys.put(frame(sequence), 0, str(sequence + ahead), ahead=ahead)
    assert len(keys) == 3
    assert [keys.get(frame(12), one) for one in (warp(0, 2), back(2))] == ["10", "14"]
    assert [keys.get(frame(16), one) for one in (warp(0, 2), back(2))] == ["14", "18"]


def test_sequences_of_keys_ahead_wrap(keys: KeyBuffer[str]) -> None:
    keys.put(frame(WRAP - 2), 0, "one", ahead=3)
    assert [keys.get(frame(at), back(1 - at)) for at in (-2, -1, 0, 1)] == ["one"] * 4
    assert keys.get(frame(5), warp(0, 4)) == "one"
    assert key_sequence(frame(WRAP - 1), back(255)) == 254
    assert key_sequence(frame(1), warp(0, 2)) == WRAP - 1


def test_a_key_that_the_packet_brings_is_not_missing(keys: KeyBuffer[str]) -> None:
    between = frame(11, key(0, ahead=3), warp(0, 1), back(3))
    assert keys.missing(between) == (warp(0, 1),)
    assert keys.missing(frame(11, key(0, ahead=2), warp(0, 1), back(3))) == (warp(0, 1), back(3))
    assert keys.missing(frame(12, warp(0, 2), back(2))) == (warp(0, 2), back(2))
    assert keys.missing(frame(14, back(0))) == (back(0),)
    keys.put(frame(10), 0, "ten")
    assert keys.missing(between) == ()
    assert keys.missing(frame(12, warp(0, 2), back(2))) == (back(2),)
    keys.put(between, 0, "fourteen", ahead=3)
    assert keys.missing(frame(12, warp(0, 2), back(2))) == keys.missing(frame(14, back(0))) == ()
    assert keys.missing(packet(5, key(0), key(2))) == ()


@pytest.mark.parametrize(
    ("sent", "whole", "alone"),
    [
        (frame(5, key(0)), True, True),
        (frame(5, warp(0, 1)), True, False),
        (frame(5), False, False),
        (frame(5, key(0, ahead=3)), False, False),
        (frame(5, key(0, ahead=3), warp(0, 1)), True, False),
        (frame(5, key(0, ahead=3), back(3)), True, True),
        (frame(5, key(0, ahead=3), warp(0, 1), back(3)), True, True),
        (frame(5, key(0, ahead=3), warp(0, 1), back(4)), True, False),
        (frame(5, warp(0, 1), back(3)), True, False),
        (frame(5, back(3)), True, False),
        (frame(5, back(0)), True, False),
        (packet(5, key(0), key(1), key(2), key(3)), True, True),
        (packet(5, key(0), warp(1, 2), key(2), key(3)), True, False),
        (packet(5, key(0), key(1), key(2)), False, False),
        (packet(5), False, False),
    ],
)
def test_what_a_packet_shows_and_whether_it_needs_others(sent: Packet, whole: bool, alone: bool) -> None:
    assert (is_whole(sent), stands_alone(sent)) == (whole, alone)


def test_cameras_do_not_share_keys_and_the_least_lately_used_goes(clock: Clock) -> None:
    buffers: KeyBuffers[str] = KeyBuffers(cameras=2, idle_s=60, clock=clock)
    buffers.of("a").put(packet(0), 0, "a")
    buffers.of("b").put(packet(0), 0, "b")
    assert buffers.of("a").get(packet(1), warp(0, 1)) == "a"
    buffers.of("c").put(packet(0), 0, "c")
    assert len(buffers) == 2
    assert len(buffers.of("a")) == 1
    assert len(buffers.of("b")) == 0


def test_a_recording_that_steps_back_again_and_again_takes_no_other_cameras_place(clock: Clock) -> None:
    buffers: KeyBuffers[str] = KeyBuffers(cameras=32, idle_s=60, clock=clock)
    buffers.of("other").put(packet(0), 0, "key")
    for steps_back in range(100):
        buffers.of(f"recording/{steps_back}").put(packet(0), 0, "key")
    assert len(buffers) == 1 + 16
    assert [len(buffers.of(name)) for name in ("other", "recording/99", "recording/84")] == [1, 1, 1]


def test_silent_cameras_are_forgotten(clock: Clock) -> None:
    buffers: KeyBuffers[str] = KeyBuffers(cameras=9, idle_s=60, clock=clock)
    for clock.now_s, camera in ((0.0, "a"), (50.0, "b"), (70.0, "c")):
        buffers.of(camera)
    assert len(buffers) == 2
    clock.now_s = 200.0
    assert len(buffers.of("b")) == 0 and len(buffers) == 1


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([1, 2]),
            st.integers(0, 12),
            st.integers(0, 1),
            st.sampled_from([0, 0, 3]),
        )
    )
)
def test_memory_is_bounded_whatever_comes(arrivals: Sequence[tuple[int, int, int, int, int]]) -> None:
    keys: KeyBuffer[None] = KeyBuffer(clock=Clock())
    for epoch, rows, sequence, index, ahead in arrivals:
        keys.put(packet(sequence, epoch=epoch, rows=rows), index, None, ahead=ahead)
        assert len(keys) <= 2 * 2 * 3  # streams, regions, generations


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
                assert region in keys.missing(come)
            else:
                assert (stream_of(found), found.id.sequence, index) == (stream_of(come), named, region.index)
                assert region not in keys.missing(come)


@st.composite
def bidirectional_channels(draw: st.DrawFn) -> list[Packet]:
    """Packets as they come, of frames between KEYs; the KEY ahead is in the first of them, its own frame says so."""
    sent, sequence = [frame(draw(st.sampled_from([0, 5, WRAP - 8])), key(0))], 0
    start = sent[0].id.sequence
    for between in draw(st.lists(st.integers(0, 5), min_size=1, max_size=7)):
        at, last = start + sequence, between + 1
        for age in range(1, last):
            told = warp(0, age), back(last - age)
            sent.append(frame(at + age, *((key(0, ahead=last - age), *told) if age == 1 else told)))
        sent.append(frame(at + last, back(0) if between else key(0)))
        sequence += last
    arrivals: list[Arrival] = []
    for place, one in enumerate(sent):
        copies = draw(st.sampled_from([0, 1, 1, 1, 2]))
        arrivals += [Arrival(place + draw(st.sampled_from([0, 0, 0, 2, 6])), one) for _ in range(copies)]
    return [arrival.sent for arrival in sorted(arrivals, key=lambda arrival: arrival.place)]


@settings(max_examples=100, deadline=None)
@given(bidirectional_channels())
def test_no_loss_repetition_or_order_leads_from_a_frame_between_to_a_wrong_key(come: list[Packet]) -> None:
    keys: KeyBuffer[int] = KeyBuffer(clock=Clock())
    for one in come:
        lacking = keys.missing(one)
        for region in one.regions:
            sign = -1 if region.kind is Kind.WARP else 1
            named = (one.id.sequence + sign * region.age) % WRAP
            if region.kind is Kind.KEY:
                keys.put(one, 0, named, ahead=region.age)
                continue
            try:
                assert keys.get(one, region) == named
            except MissingKey:
                assert (
                    region in lacking or one.regions[0].kind is Kind.KEY
                )  # late, it pushed out one that is older still
            else:
                assert region not in lacking


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
            table = table.request(region.index for region in keys.missing(sent))
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


def test_a_key_sent_ahead_counts_from_its_own_frame_on() -> None:
    table = KeyTable().sent(frame(5, key(0, ahead=3), warp(0, 1), back(3)))
    assert table.age(frame(10), 0) == 2
    assert [bool(table.due(frame(sequence))) for sequence in (8, 9)] == [True, False]


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
