"""A receipt is its 24 bytes and nothing else is."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BitstreamError
from pipeline.messages import FrameId
from pipeline.receipts import MAX_HELD_MS, RECEIPT_BYTES, TOTALS, Receipt, pack_receipt, unpack_receipt

RECEIPT = Receipt(
    FrameId(epoch=0xBEEF, sequence=7), packets=5, size_bytes=4321, arrived_ms=1_767_225_600_123, held_ms=50
)
LARGEST = Receipt(FrameId(0xFFFF, 0xFFFFFFFF), TOTALS - 1, TOTALS - 1, (1 << 48) - 1, MAX_HELD_MS)
SMALLEST = Receipt(FrameId(0, 0), 0, 0, 0, 0)

receipts = st.builds(
    Receipt,
    newest=st.builds(FrameId, st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)),
    packets=st.integers(0, TOTALS - 1),
    size_bytes=st.integers(0, TOTALS - 1),
    arrived_ms=st.integers(0, (1 << 48) - 1),
    held_ms=st.integers(0, MAX_HELD_MS),
)


def assert_one_form_or_rejected(data: bytes) -> None:
    try:
        receipt = unpack_receipt(data)
    except BitstreamError:
        return
    assert pack_receipt(receipt) == data


@given(receipts)
def test_a_receipt_survives_its_bytes(receipt: Receipt) -> None:
    assert unpack_receipt(pack_receipt(receipt)) == receipt


@pytest.mark.parametrize("receipt", [RECEIPT, LARGEST, SMALLEST])
def test_a_receipt_takes_24_bytes(receipt: Receipt) -> None:
    assert len(pack_receipt(receipt)) == RECEIPT_BYTES == 24
    assert unpack_receipt(pack_receipt(receipt)) == receipt


def test_the_layout_is_that_of_the_contract() -> None:
    assert pack_receipt(RECEIPT) == bytes.fromhex("beef 00000007 00000005 000010e1 0000019b76daa87b 0032")


@pytest.mark.parametrize("receipt", [RECEIPT, LARGEST, SMALLEST])
def test_truncated_or_extended_receipt_is_rejected(receipt: Receipt) -> None:
    data = pack_receipt(receipt)
    for wrong in [data[:size] for size in range(len(data))] + [data + b"\0", data * 2]:
        with pytest.raises(BitstreamError, match=f"{len(wrong)} bytes, not 24"):
            unpack_receipt(wrong)


@pytest.mark.parametrize("first", [1, 0x80, 0xFF])
def test_an_arrival_beyond_48_bits_is_rejected(first: int) -> None:
    data = bytearray(pack_receipt(RECEIPT))
    data[15] = first
    with pytest.raises(BitstreamError, match="arrived_ms"):
        unpack_receipt(bytes(data))


WRONG = {
    "epoch": replace(RECEIPT, newest=FrameId(1 << 16, 0)),
    "sequence": replace(RECEIPT, newest=FrameId(0, -1)),
    "packets": replace(RECEIPT, packets=TOTALS),
    "bytes": replace(RECEIPT, size_bytes=TOTALS),
    "arrived_ms": replace(RECEIPT, arrived_ms=1 << 48),
    "held_ms 65536": replace(RECEIPT, held_ms=MAX_HELD_MS + 1),
    "held_ms -1": replace(RECEIPT, held_ms=-1),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_receipt_that_does_not_fit_is_not_packed(field: str) -> None:
    with pytest.raises(BitstreamError, match=field):
        pack_receipt(WRONG[field])


@given(st.binary(max_size=60))
def test_any_bytes_give_a_receipt_or_an_error(data: bytes) -> None:
    assert_one_form_or_rejected(data)


def test_ten_thousand_random_and_mutated_receipts_give_a_receipt_or_an_error() -> None:
    rng = random.Random(7)
    for count in range(10_000):
        data = bytearray(rng.randbytes(RECEIPT_BYTES) if count % 2 else pack_receipt(LARGEST))
        at = rng.randrange(RECEIPT_BYTES)
        data[at : at + 1] = rng.choice([b"", rng.randbytes(1), rng.randbytes(1), rng.randbytes(3)])
        assert_one_form_or_rejected(bytes(data))
