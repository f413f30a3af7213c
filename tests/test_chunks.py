"""Packets cut into chunks and put together: any order, any loss, any bytes."""

import random
import struct
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BitstreamError
from pipeline.transport.chunks import CHUNK_BYTES, Assembler, split

BODY = CHUNK_BYTES - 8
AROUND_MULTIPLES = [size for times in range(5) for size in range(times * BODY - 2, times * BODY + 3) if size >= 0]


def packet_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def assembler(packet_bytes: int = 1 << 20, packets: int = 4) -> Assembler:
    return Assembler(packet_bytes=packet_bytes, packets=packets)


def header(sequence: int, place: int, chunks: int) -> bytes:
    return struct.pack("!IHH", sequence, place, chunks)


@pytest.mark.parametrize("size", [*AROUND_MULTIPLES, 1 << 20])
def test_packet_of_any_size_comes_out_as_it_went_in(size: int) -> None:
    chunks = split(7, packet_of(size))
    assert len(chunks) == max(1, -(-size // BODY))
    assert all(len(chunk) <= CHUNK_BYTES for chunk in chunks)
    into = assembler()
    *before, last = [into.add(chunk) for chunk in chunks]
    assert before == [None] * (len(chunks) - 1)
    assert last == packet_of(size)


def test_header_is_sequence_place_and_number_of_chunks() -> None:
    first, second = split(0x01020304, bytes(BODY) + b"end")
    assert first[:8] == bytes([1, 2, 3, 4, 0, 0, 0, 2])
    assert second == bytes([1, 2, 3, 4, 0, 1, 0, 2]) + b"end"


def test_sequence_begins_anew_after_32_bits() -> None:
    assert split(2**32 + 5, b"x") == split(5, b"x")


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_chunks_may_come_in_any_order(order: tuple[int, ...]) -> None:
    packet = packet_of(2 * BODY + 9)
    chunks, into = split(1, packet), assembler()
    assert [into.add(chunks[place]) for place in order] == [None, None, packet]


def test_packets_may_come_interleaved() -> None:
    packets = {sequence: packet_of(BODY + sequence) for sequence in range(1, 5)}
    into = assembler()
    assert [into.add(split(sequence, packet)[1]) for sequence, packet in packets.items()] == [None] * 4
    assert [into.add(split(sequence, packet)[0]) for sequence, packet in packets.items()] == list(packets.values())


def test_for_one_packet_too_many_the_one_begun_first_is_given_up() -> None:
    into = assembler(packets=2)
    packets = [split(sequence, packet_of(BODY + 1)) for sequence in range(3)]
    for first, _ in packets:
        into.add(first)
    assert into.given_up == 1
    with pytest.raises(BitstreamError, match="given up"):
        into.add(packets[0][1])
    assert [into.add(second) for _, second in packets[1:]] == [packet_of(BODY + 1)] * 2


def test_duplicates_are_refused_before_and_after_the_packet_is_complete() -> None:
    first, second = split(3, packet_of(BODY + 1))
    into = assembler()
    into.add(first)
    with pytest.raises(BitstreamError, match="came before"):
        into.add(first)
    into.add(second)
    for chunk in (first, second):
        with pytest.raises(BitstreamError, match="complete"):
            into.add(chunk)


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (b"", "bytes"),
        (b"1234567", "bytes"),
        (header(1, 0, 1) + bytes(BODY + 1), "bytes"),
        (header(1, 0, 0), "0 chunks"),
        (header(1, 1, 1), "place 1 of 1"),
        (header(1, 0, 6), "6 chunks"),
        (header(1, 65535, 65535), "65535 chunks"),
    ],
)
def test_chunk_with_a_wrong_header_is_refused(chunk: bytes, said: str) -> None:
    with pytest.raises(BitstreamError, match=said):
        assembler(packet_bytes=5 * BODY).add(chunk)


def test_chunk_that_counts_its_packet_s_chunks_otherwise_is_refused() -> None:
    into = assembler()
    into.add(header(1, 0, 2))
    with pytest.raises(BitstreamError, match="3 chunks, 2 before"):
        into.add(header(1, 1, 3))
    assert into.add(header(1, 1, 2) + b"x") == b"x"


def test_packet_longer_than_allowed_is_refused_though_its_chunks_are_few_enough() -> None:
    into = assembler(packet_bytes=100)
    with pytest.raises(BitstreamError, match="101 bytes, at most 100"):
        into.add(split(1, bytes(101))[0])
    assert into.add(split(2, bytes(100))[0]) == bytes(100)


@pytest.mark.parametrize("size", [5 * BODY - 1, 5 * BODY, 64 * BODY])
def test_packet_longer_than_allowed_is_an_error_and_counted_once(size: int) -> None:
    into, errors = assembler(packet_bytes=4 * BODY + 32), 0
    for chunk in split(1, packet_of(size)):
        try:
            assert into.add(chunk) is None
        except BitstreamError:
            errors += 1
    assert (errors, into.too_long) == (1, 1)
    assert into.add(split(2, b"next")[0]) == b"next"


def test_packets_of_which_nothing_came_are_missing_once_four_newer_ones_have_begun() -> None:
    into, missing = assembler(), []
    for sequence in (1, 3, 4, 5, 6, 8, 7, 12, 13, 14, 15, 9):
        into.add(split(sequence, packet_of(BODY + 1))[0])
        missing.append(into.missing)
    assert missing == [0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("first", [2**32 - 3, 2**31, 1000])
def test_few_packets_are_missed_however_far_a_sequence_leaps(first: int) -> None:
    into = assembler()
    for sequence in range(first, first + 10):
        into.add(split(sequence, b"x")[0])
    assert into.missing <= 255
    before = into.missing
    for sequence in (2**30, 2**31 - 1):
        into.add(split(first + sequence, b"x")[0])
    assert into.missing - before <= 2 * 255


def test_newest_packet_is_known_though_packets_come_out_of_order() -> None:
    into = assembler()
    assert into.newest is None
    for sequence, newest in [(2**32 - 2, 2**32 - 2), (1, 1), (2**32 - 1, 1), (0, 1), (2, 2)]:
        into.add(split(sequence, b"x")[0])
        assert into.newest == newest


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=64), max_size=40))
def test_any_bytes_give_a_packet_or_nothing_or_a_bitstream_error(chunks: list[bytes]) -> None:
    into = assembler(packet_bytes=1000)
    for chunk in chunks:
        try:
            packet = into.add(chunk)
        except BitstreamError:
            continue
        assert packet is None or len(packet) <= 1000


def test_whatever_is_lost_doubled_or_disordered_what_comes_out_went_in() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        packets = {sequence: rng.randbytes(rng.randrange(4 * BODY)) for sequence in range(1, 9)}
        chunks = [chunk for sequence, packet in packets.items() for chunk in split(sequence, packet)]
        sent = [chunk for chunk in chunks if rng.random() > 0.1] + rng.sample(chunks, 3)
        rng.shuffle(sent)
        into, out = assembler(packets=3), []
        for chunk in sent:
            try:
                packet = into.add(chunk)
            except BitstreamError:
                continue
            out += [] if packet is None else [packet]
        assert len(out) == len(set(out))
        assert set(out) <= set(packets.values())
