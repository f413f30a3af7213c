"""A packet is its bytes and nothing else is: round trip, limits, damage, and the golden packets."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bitstream import MAX_PACKET_BYTES, pack, unpack
from pipeline.errors import BitstreamError
from pipeline.messages import FrameId, Kind, Packet, Region

GOLDEN = Path(__file__).parent / "golden"
KEY = Packet(
    id=FrameId(epoch=0xBEEF, sequence=7), captured_ms=1_767_225_600_123, bundle=bytes.fromhex("0badcafe"),
    quality=2, rows=1, columns=1,
    regions=(Region(Kind.KEY, 0, 0, b"coded latents"),),
)  # fmt: skip
PACKETS = {
    "key.bin": KEY,
    "key_long_body.bin": replace(
        KEY, id=FrameId(0xFFFF, 0xFFFFFFFF), captured_ms=(1 << 48) - 1, quality=255,
        regions=(Region(Kind.KEY, 0, 0, bytes(range(256))),),
    ),
    "warp.bin": replace(
        KEY, regions=(Region(Kind.WARP, 0, 3, bytes.fromhex("42b8ae0e23474ab0868c4c0b2056f619f188")),)
    ),
    "warp_and_key_2x2.bin": replace(
        KEY, rows=2, columns=2,
        regions=(
            Region(Kind.WARP, 0, 255, b"flow"), Region(Kind.WARP, 1, 3, b""), Region(Kind.KEY, 3, 0, b"\0\0"),
        ),
    ),
    "delta_15x15.bin": replace(
        KEY, id=FrameId(0, 0), captured_ms=0, quality=0, rows=15, columns=15,
        regions=(Region(Kind.DELTA, 62, 1, b"flow and latents"), Region(Kind.DELTA, 63, 2, b"x" * 127)),
    ),
    "receipt.bin": replace(KEY, receipt=True),
    "recorded.bin": replace(KEY, recorded=True),
    "unchanged.bin": replace(KEY, rows=3, columns=5, regions=()),
}  # fmt: skip
SEED = PACKETS["warp_and_key_2x2.bin"]


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    rows, columns = draw(st.integers(1, 15)), draw(st.integers(1, 15))
    indexes = draw(st.sets(st.integers(0, min(rows * columns, 64) - 1), max_size=64))
    regions = []
    for index in sorted(indexes):
        kind = draw(st.sampled_from(Kind))
        age = 0 if kind is Kind.KEY else draw(st.integers(1, 255))
        body = draw(st.binary(max_size=20)) * draw(st.sampled_from([1, 7, 900]))
        regions.append(Region(kind, index, age, body))
    return Packet(
        id=FrameId(draw(st.integers(0, 0xFFFF)), draw(st.integers(0, 0xFFFFFFFF))),
        captured_ms=draw(st.integers(0, (1 << 48) - 1)), bundle=draw(st.binary(min_size=4, max_size=4)),
        quality=draw(st.integers(0, 255)), rows=rows, columns=columns, regions=tuple(regions),
        recorded=draw(st.booleans()), receipt=draw(st.booleans()),
    )  # fmt: skip


def sealed(payload: bytes) -> bytes:
    """The payload with a checksum that is right, so that the inner checks are met."""
    return payload + zlib.crc32(payload).to_bytes(4)


def assert_canonical_or_rejected(data: bytes) -> None:
    try:
        packet = unpack(data)
    except BitstreamError:
        return
    assert pack(packet) == data


@settings(deadline=None)
@given(packets())
def test_a_packet_survives_its_bytes(packet: Packet) -> None:
    assert unpack(pack(packet)) == packet


@pytest.mark.parametrize("name", PACKETS)
def test_golden_packets_keep_their_meaning_and_their_bytes(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    assert unpack(data) == PACKETS[name]
    assert pack(PACKETS[name]) == data


def test_the_overhead_is_26_bytes_and_3_or_4_a_region() -> None:
    assert len(pack(PACKETS["unchanged.bin"])) == 26
    assert len(pack(replace(KEY, regions=(Region(Kind.KEY, 0, 0, bytes(127)),)))) == 26 + 3 + 127
    assert len(pack(replace(KEY, regions=(Region(Kind.KEY, 0, 0, bytes(128)),)))) == 26 + 4 + 128


def test_the_layout_is_that_of_the_contract() -> None:
    header = bytes.fromhex("4d 02 00 0badcafe beef 00000007 019b76daa87b 02 22 03")
    regions = bytes.fromhex("80 ff 04 666c6f77"), bytes.fromhex("81 03 00"), bytes.fromhex("43 00 02 0000")
    assert pack(SEED)[:-4] == header + b"".join(regions)


@pytest.mark.parametrize("name", PACKETS)
def test_truncated_or_extended_packet_is_rejected(name: str) -> None:
    data = pack(PACKETS[name])
    for size in range(len(data)):
        with pytest.raises(BitstreamError):
            unpack(data[:size])
    with pytest.raises(BitstreamError):
        unpack(data + b"\0")


@pytest.mark.parametrize("name", PACKETS)
def test_packet_with_a_flipped_byte_is_rejected(name: str) -> None:
    data = pack(PACKETS[name])
    for at in range(len(data)):
        for flip in (1, 128, 255):
            with pytest.raises(BitstreamError):
                unpack(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])


def test_truncated_packet_with_a_right_checksum_is_rejected() -> None:
    payload = pack(SEED)[:-4]
    for size in range(len(payload)):
        with pytest.raises(BitstreamError):
            unpack(sealed(payload[:size]))


def forged(at: int, *values: int) -> bytes:
    payload = bytearray(pack(SEED)[:-4])
    payload[at : at + len(values)] = values
    return sealed(bytes(payload))


FORGERIES = {
    "another magic": (forged(0, 0x4E), "first byte"),
    "another version": (forged(1, 1), "version 1"),
    "a flag": (forged(2, 4), "flags"),
    "no rows": (forged(20, 0x02), "grid 0x2"),
    "no columns": (forged(20, 0x20), "grid 2x0"),
    "a smaller grid than its regions need": (forged(20, 0x13), "region 3"),
    "fewer regions than it has": (forged(21, 2), "left over"),
    "more regions than it has": (forged(21, 4), "head of a region"),
    "65 regions": (forged(21, 65), "65 regions"),
    "kind 0": (forged(22, 0x00), "kind 0"),
    "a KEY with an age": (forged(22, 0x40), "KEY cannot have age 255"),
    "a WARP without an age": (forged(23, 0), "WARP cannot have age 0"),
    "a DELTA without an age": (forged(22, 0xC0, 0), "DELTA cannot have age 0"),
    "a repeated region": (forged(29, 0x80), "region 0"),
    "regions out of order": (forged(22, 0x82), "region 1"),
    "a size beyond the end": (forged(24, 0x7F), "need 127"),
    "a size of four bytes": (forged(24, 0xFF, 0xFF, 0xFF), "size does not end"),
    "a size in a longer form": (forged(24, 0x84, 0x00), "shortest form"),
    "another checksum": (pack(SEED)[:-1] + b"\0", "checksum"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_packet_is_rejected_and_the_field_is_named(forgery: str) -> None:
    data, field = FORGERIES[forgery]
    with pytest.raises(BitstreamError, match=field):
        unpack(data)


def test_packet_over_its_limit_is_rejected_on_both_sides() -> None:
    largest = MAX_PACKET_BYTES - 26 - 2 - 3
    packet = replace(KEY, regions=(Region(Kind.KEY, 0, 0, bytes(largest)),))
    assert unpack(pack(packet)) == packet
    with pytest.raises(BitstreamError, match="1048577"):
        pack(replace(KEY, regions=(Region(Kind.KEY, 0, 0, bytes(largest + 1)),)))
    with pytest.raises(BitstreamError, match="1048577"):
        unpack(bytes(MAX_PACKET_BYTES + 1))


REGION = KEY.regions[0]
WRONG = {
    "epoch": replace(KEY, id=FrameId(1 << 16, 0)),
    "sequence": replace(KEY, id=FrameId(0, -1)),
    "captured_ms": replace(KEY, captured_ms=1 << 48),
    "quality": replace(KEY, quality=256),
    "bundle": replace(KEY, bundle=b"abc"),
    "grid 16x1": replace(KEY, rows=16),
    "grid 1x0": replace(KEY, columns=0),
    "region 1": replace(KEY, regions=(replace(REGION, index=1),)),
    "region -1": replace(KEY, regions=(replace(REGION, index=-1),)),
    "region 64": replace(KEY, rows=9, columns=9, regions=(replace(REGION, index=64),)),
    "region 0": replace(KEY, rows=2, regions=(REGION, REGION)),
    "age 256": replace(KEY, regions=(replace(REGION, kind=Kind.WARP, age=256),)),
    "65 regions": replace(KEY, rows=15, columns=15, regions=(REGION,) * 65),
    "does not fit into 3 bytes": replace(KEY, regions=(replace(REGION, body=bytes(1 << 21)),)),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_packet_that_could_not_be_unpacked_is_not_packed(field: str) -> None:
    with pytest.raises(BitstreamError, match=field):
        pack(WRONG[field])


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_packet_or_an_error(data: bytes) -> None:
    assert_canonical_or_rejected(data)
    assert_canonical_or_rejected(sealed(b"\x4d\x02" + data))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 22 + 14 - 1), st.integers(0, 255)), max_size=5))
def test_mutated_packet_with_a_right_checksum_is_a_packet_or_an_error(changes: list[tuple[int, int]]) -> None:
    payload = bytearray(pack(SEED)[:-4])
    for at, value in changes:
        payload[at] = value
    assert_canonical_or_rejected(sealed(bytes(payload)))


def test_ten_thousand_mutations_give_a_packet_or_an_error() -> None:
    rng = np.random.default_rng(7)
    originals = [pack(packet) for packet in PACKETS.values()]
    for count in range(10_000):
        mutated = bytearray(originals[count % len(originals)])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(mutated)))
            change = [b"", rng.bytes(1), rng.bytes(3), bytes(mutated[at : at + 4]) * 2][rng.integers(4)]
            mutated[at : at + 1] = change
        assert_canonical_or_rejected(bytes(mutated))
        assert_canonical_or_rejected(sealed(bytes(mutated[:-4])))
