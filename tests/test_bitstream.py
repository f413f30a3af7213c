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
    "bidirectional.bin": replace(
        KEY,
        regions=(
            Region(Kind.KEY, 0, 3, b"coded latents"), Region(Kind.WARP, 0, 1, b"flow"), Region(Kind.BACK, 0, 3, b""),
        ),
    ),
    "receipt.bin": replace(KEY, receipt=True),
    "recorded.bin": replace(KEY, recorded=True),
    "unchanged.bin": replace(KEY, rows=3, columns=5, regions=()),
}  # fmt: skip
SEED, AHEAD = PACKETS["warp_and_key_2x2.bin"], PACKETS["bidirectional.bin"]
K, W, B, D = Kind.KEY, Kind.WARP, Kind.BACK, Kind.DELTA


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    return draw(st.binary(max_size=20)) * draw(st.sampled_from([1, 7, 900]))


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    """Of any grid, version 2."""
    rows, columns = draw(st.integers(1, 15)), draw(st.integers(1, 15))
    indexes = draw(st.sets(st.integers(0, min(rows * columns, 64) - 1), max_size=64))
    regions = []
    for index in sorted(indexes):
        kind = draw(st.sampled_from([K, W, D]))
        age = 0 if kind is K else draw(st.integers(1, 255))
        regions.append(Region(kind, index, age, draw(bodies())))
    return Packet(
        id=FrameId(draw(st.integers(0, 0xFFFF)), draw(st.integers(0, 0xFFFFFFFF))),
        captured_ms=draw(st.integers(0, (1 << 48) - 1)), bundle=draw(st.binary(min_size=4, max_size=4)),
        quality=draw(st.integers(0, 255)), rows=rows, columns=columns, regions=tuple(regions),
        recorded=draw(st.booleans()), receipt=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def bidirectional_packets(draw: st.DrawFn) -> Packet:
    """Of a whole frame, version 3: a BACK to the KEY of its own frame, or some of KEY ahead, WARP, BACK."""
    kinds = draw(st.sampled_from([(), (K,), (B,), (K, W), (K, B), (W, B), (K, W, B)]))
    regions = tuple(Region(kind, 0, draw(st.integers(1, 255)), draw(bodies())) for kind in kinds)
    own = Region(B, 0, 0, draw(bodies()))
    return replace(draw(packets()), rows=1, columns=1, regions=regions or (own,))


def sealed(payload: bytes) -> bytes:
    """The payload with a checksum that is right, so that the inner checks are met."""
    return payload + zlib.crc32(payload).to_bytes(4)


def assert_canonical_or_rejected(data: bytes) -> None:
    try:
        packet = unpack(data)
    except BitstreamError:
        return
    assert pack(packet) == data


def is_read(data: bytes) -> bool:
    try:
        unpack(data)
    except BitstreamError:
        return False
    return True


@settings(deadline=None)
@given(packets())
def test_a_packet_survives_its_bytes(packet: Packet) -> None:
    assert unpack(pack(packet)) == packet
    assert pack(packet)[1] == 2


@settings(deadline=None)
@given(bidirectional_packets())
def test_a_packet_of_a_frame_before_its_key_survives_its_bytes(packet: Packet) -> None:
    assert unpack(pack(packet)) == packet
    assert pack(packet)[1] == 3


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


def test_the_layout_of_a_bidirectional_packet_is_that_of_the_contract() -> None:
    header = bytes.fromhex("4d 03 00 0badcafe beef 00000007 019b76daa87b 02 11 03")
    regions = (
        bytes.fromhex("40 03 0d") + b"coded latents",
        bytes.fromhex("80 01 04 666c6f77"),
        bytes.fromhex("00 03 00"),
    )
    assert pack(AHEAD)[:-4] == header + b"".join(regions)
    assert pack(replace(AHEAD, regions=(Region(B, 0, 0, b""),)))[:-4] == header[:-1] + bytes.fromhex("01 00 00 00")


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


@pytest.mark.parametrize("whole", [SEED, AHEAD], ids=["grid", "bidirectional"])
def test_truncated_packet_with_a_right_checksum_is_rejected(whole: Packet) -> None:
    payload = pack(whole)[:-4]
    for size in range(len(payload)):
        with pytest.raises(BitstreamError):
            unpack(sealed(payload[:size]))


def forged(at: int, *values: int) -> bytes:
    payload = bytearray(pack(SEED)[:-4])
    payload[at : at + len(values)] = values
    return sealed(bytes(payload))


def together(*regions: Region, version: int = 3, grid: int = 0x11) -> bytes:
    """A packet of these regions, whether they go together or not."""
    head = bytearray(pack(KEY)[:22])
    head[1], head[20], head[21] = version, grid, len(regions)
    sent = [bytes([one.kind << 6 | one.index, one.age, len(one.body)]) + one.body for one in regions]
    return sealed(bytes(head) + b"".join(sent))


AHEAD_KEY, WARP, BACK = Region(K, 0, 3, b"key"), Region(W, 0, 1, b"flow"), Region(B, 0, 3, b"flow")
UNFIT = {
    "a BACK in a grid": ((replace(BACK, index=1),), 0x12, "BACK is of whole frames only, not of a grid of 2"),
    "a BACK of age 0 in a grid": ((replace(BACK, age=0),), 0x31, "BACK is of whole frames only"),
    "a KEY ahead in a grid": ((AHEAD_KEY,), 0x21, "KEY cannot have age 3"),
    "a KEY ahead, a WARP and a BACK in a grid": ((AHEAD_KEY, WARP, BACK), 0x12, "region 0: KEY cannot have age 3"),
    "a WARP after its BACK": ((BACK, WARP), 0x11, "region 0: .* out of order"),
    "a KEY ahead after its BACK": ((BACK, AHEAD_KEY), 0x11, "region 0: .* out of order"),
    "a KEY ahead after its WARP": ((WARP, AHEAD_KEY, BACK), 0x11, "region 0: .* out of order"),
    "two BACKs": ((WARP, BACK, BACK), 0x11, "region 0: .* repeated"),
    "two WARPs and a BACK": ((WARP, WARP, BACK), 0x11, "region 0: .* repeated"),
    "two KEYs ahead": ((AHEAD_KEY, AHEAD_KEY), 0x11, "region 0: .* repeated"),
    "a WARP and a BACK of age 0": ((WARP, replace(BACK, age=0)), 0x11, "region 0: "),
    "a KEY ahead and a BACK of age 0": ((AHEAD_KEY, replace(BACK, age=0)), 0x11, "region 0: "),
    "a KEY of its own frame and a BACK": ((replace(AHEAD_KEY, age=0), BACK), 0x11, "region 0: "),
    "a DELTA and a BACK": ((Region(D, 0, 1, b""), BACK), 0x11, "region 0: "),
    "a WARP without an age beside a BACK": ((replace(WARP, age=0), BACK), 0x11, "WARP cannot have age 0"),
    "a second region of a whole frame": ((BACK, replace(BACK, index=1)), 0x11, "region 1: outside the grid"),
}


FORGERIES = {
    "another magic": (forged(0, 0x4E), "first byte"),
    "version 1": (forged(1, 1), "version 1, only 2 and 3"),
    "version 4": (forged(1, 4), "version 4, only 2 and 3"),
    "version 3 of a grid": (forged(1, 3), "version 3, but its regions are of another"),
    "version 3 of a KEY": (together(replace(AHEAD_KEY, age=0)), "version 3, but"),
    "version 3 of a WARP": (together(WARP), "version 3, but"),
    "version 3 of no region": (together(), "version 3, but"),
    "version 2 with a KEY ahead": (together(AHEAD_KEY, WARP, version=2), "version 2, but its regions are of another"),
    "version 2 with a BACK": (together(WARP, BACK, version=2), "version 2, but"),
    "version 2 with a BACK of age 0": (together(replace(BACK, age=0), version=2), "version 2, but"),
    "a flag": (forged(2, 4), "flags"),
    "no rows": (forged(20, 0x02), "grid 0x2"),
    "no columns": (forged(20, 0x20), "grid 2x0"),
    "a smaller grid than its regions need": (forged(20, 0x13), "region 3"),
    "fewer regions than it has": (forged(21, 2), "left over"),
    "more regions than it has": (forged(21, 4), "head of a region"),
    "65 regions": (forged(21, 65), "65 regions"),
    "a KEY with an age": (forged(22, 0x40), "KEY cannot have age 255"),
    "a WARP without an age": (forged(23, 0), "WARP cannot have age 0"),
    "a DELTA without an age": (forged(22, 0xC0, 0), "DELTA cannot have age 0"),
    "a repeated region": (forged(29, 0x80), "region 0"),
    "regions out of order": (forged(22, 0x82), "region 1"),
    "a size beyond the end": (forged(24, 0x7F), "need 127"),
    "a size of four bytes": (forged(24, 0xFF, 0xFF, 0xFF), "size does not end"),
    "a size in a longer form": (forged(24, 0x84, 0x00), "shortest form"),
    "another checksum": (pack(SEED)[:-1] + b"\0", "checksum"),
    **{name: (together(*regions, grid=grid), field) for name, (regions, grid, field) in UNFIT.items()},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_packet_is_rejected_and_the_field_is_named(forgery: str) -> None:
    data, field = FORGERIES[forgery]
    with pytest.raises(BitstreamError, match=field):
        unpack(data)


def test_regions_that_go_together_are_read() -> None:
    """So that what is wrong with the others is not how they were made."""
    data = together(AHEAD_KEY, WARP, BACK)
    assert unpack(data).regions == (AHEAD_KEY, WARP, BACK)
    assert pack(unpack(data)) == data


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
    "WARP cannot have age 256": replace(KEY, regions=(replace(REGION, kind=W, age=256),)),
    "KEY cannot have age 256": replace(KEY, regions=(replace(REGION, age=256),)),
    "KEY cannot have age -1": replace(KEY, regions=(replace(REGION, age=-1),)),
    "BACK cannot have age 256": replace(KEY, regions=(WARP, replace(BACK, age=256))),
    "BACK cannot have age -1": replace(KEY, regions=(replace(BACK, age=-1),)),
    "65 regions": replace(KEY, rows=15, columns=15, regions=(REGION,) * 65),
    "does not fit into 3 bytes": replace(KEY, regions=(replace(REGION, body=bytes(1 << 21)),)),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_packet_that_could_not_be_unpacked_is_not_packed(field: str) -> None:
    with pytest.raises(BitstreamError, match=field):
        pack(WRONG[field])


@pytest.mark.parametrize("name", UNFIT)
def test_regions_that_do_not_go_together_are_not_packed(name: str) -> None:
    regions, grid, field = UNFIT[name]
    with pytest.raises(BitstreamError, match=field):
        pack(replace(KEY, rows=grid >> 4, columns=grid & 15, regions=regions))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_packet_or_an_error(data: bytes) -> None:
    assert_canonical_or_rejected(data)
    for version in (b"\x02", b"\x03"):
        assert_canonical_or_rejected(sealed(b"\x4d" + version + data))


@settings(deadline=None)
@given(
    st.sampled_from([SEED, AHEAD, replace(AHEAD, regions=(WARP, BACK))]),
    st.lists(st.tuples(st.integers(0, 22 + 14 - 1), st.integers(0, 255)), max_size=5),
)
def test_mutated_packet_with_a_right_checksum_is_a_packet_or_an_error(
    seed: Packet, changes: list[tuple[int, int]]
) -> None:
    payload = bytearray(pack(seed)[:-4])
    for at, value in changes:
        payload[at] = value
    assert_canonical_or_rejected(sealed(bytes(payload)))


@settings(deadline=None)
@given(
    st.lists(st.builds(Region, st.sampled_from(Kind), st.just(0), st.integers(0, 3), st.binary(max_size=2)), max_size=4)
)
def test_of_any_regions_of_a_frame_those_are_packed_that_can_be_unpacked(regions: list[Region]) -> None:
    packet = replace(KEY, regions=tuple(regions))
    read = [data for version in (2, 3) if (data := together(*regions, version=version)) and is_read(data)]
    try:
        data = pack(packet)
    except BitstreamError:
        assert not read
    else:
        assert read == [data]


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
