"""The layout of the data channel `messages`."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BitstreamError
from pipeline.transport.webrtc_messages import MESSAGE_BYTES, Envelope, Kind, pack_message, unpack_message

ENVELOPES = [
    Envelope(Kind.PUBLISH, "street/state", b'{"state": "online"}', qos=1, retain=True),
    Envelope(Kind.PUBLISH, "street/preview", bytes(range(256))),
    Envelope(Kind.PUBLISH, "street/state", b"", retain=True),
    Envelope(Kind.SUBSCRIBE, "street/#"),
    Envelope(Kind.UNSUBSCRIBE, "street/control"),
    Envelope(Kind.WILL, "street/state", b"offline", qos=1, retain=True),
    Envelope(Kind.BYE),
    Envelope(Kind.PUBLISH, "straße/state", b"x", qos=2),
]
GOLDEN = bytes.fromhex("01 05 000c") + b"street/state" + b"on"


@pytest.mark.parametrize("envelope", ENVELOPES)
def test_message_comes_out_as_it_went_in(envelope: Envelope) -> None:
    assert unpack_message(pack_message(envelope)) == envelope


def test_bytes_keep_their_meaning() -> None:
    envelope = Envelope(Kind.PUBLISH, "street/state", b"on", qos=1, retain=True)
    assert pack_message(envelope) == GOLDEN
    assert [int(kind) for kind in Kind] == [1, 2, 3, 4, 5]
    assert pack_message(Envelope(Kind.BYE)) == bytes.fromhex("05 00 0000")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes"),
        (b"\x01\x00\x00", "3 bytes"),
        (b"\x01\x00\x00\x01t" + bytes(MESSAGE_BYTES), "bytes"),
        (b"\x00\x00\x00\x01t", "kind 0"),
        (b"\x06\x00\x00\x01t", "kind 6"),
        (b"\x01\x08\x00\x01t", "flags 0x08"),
        (b"\x01\x03\x00\x01t", "QoS 3"),
        (b"\x01\x00\x00\x02t", "topic of 2 bytes"),
        (b"\x01\x00\xff\xfft", "topic of 65535 bytes"),
        (b"\x01\x00\x00\x01\xff", "UTF-8"),
        (b"\x01\x00\x00\x00", "topic of 0 bytes"),
        (b"\x01\x00\x00\x01\x00", "not right"),
        (b"\x01\x00\x01\x00" + bytes([65]) * 256, "256 bytes"),
        (b"\x01\x00\x00\x03a/+", "filter"),
        (b"\x04\x00\x00\x01#", "filter"),
        (b"\x02\x00\x00\x01tx", "may follow"),
        (b"\x02\x01\x00\x01t", "may follow"),
        (b"\x05\x00\x00\x01t", "not right"),
        (b"\x05\x00\x00\x00x", "may follow"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BitstreamError, match=said):
        unpack_message(data)


def test_message_is_at_most_64_kib_in_all() -> None:
    longest = Envelope(Kind.PUBLISH, "a/preview", bytes(MESSAGE_BYTES - 4 - 9))
    assert unpack_message(pack_message(longest)) == longest
    with pytest.raises(BitstreamError, match="65537 bytes"):
        pack_message(Envelope(Kind.PUBLISH, "a/preview", bytes(MESSAGE_BYTES - 4 - 8)))


@pytest.mark.parametrize("envelope", ENVELOPES)
def test_every_truncation_is_refused_or_another_message(envelope: Envelope) -> None:
    data = pack_message(envelope)
    for end in range(len(data)):
        try:
            other = unpack_message(data[:end])
        except BitstreamError:
            continue
        assert other != envelope
        assert pack_message(other) == data[:end]


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_bitstream_error(data: bytes) -> None:
    try:
        envelope = unpack_message(data)
    except BitstreamError:
        return
    assert pack_message(envelope) == data


def test_flipped_bytes_are_a_message_or_a_bitstream_error() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        data = bytearray(pack_message(rng.choice(ENVELOPES)))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            envelope = unpack_message(bytes(data))
        except BitstreamError:
            continue
        assert pack_message(envelope) == bytes(data)
