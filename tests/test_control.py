"""Control messages: what a camera obeys, and that it ignores everything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.control import Control, read_control
from pipeline.errors import BitstreamError

LEVELS = frozenset({0, 2})


@pytest.mark.parametrize(
    ("payload", "control"),
    [
        (b'{"key": [0, 3]}', Control(key=(0, 3))),
        (b'{"quality": 2}', Control(quality=2)),
        (b'{"pause": true}', Control(pause=True)),
        (b'{"pause": false, "quality": 0}', Control(pause=False, quality=0)),
        (b'{"max_kbit_s": 200}', Control(max_kbit_s=200)),
        (b'{"max_kbit_s": null}', Control(max_kbit_s=None)),
    ],
)
def test_the_messages_of_the_contract_are_read(payload: bytes, control: Control) -> None:
    assert read_control(payload, levels=LEVELS) == control


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"pause",
        b"[]",
        b"null",
        b'{"pause": 1}',
        b'{"pause": "true"}',
        b'{"quality": 1}',
        b'{"quality": 2.0}',
        b'{"quality": -1}',
        b'{"max_kbit_s": 9.9}',
        b'{"max_kbit_s": "200"}',
        b'{"max_kbit_s": NaN}',
        b'{"key": [64]}',
        b'{"key": [' + b"0," * 64 + b"0]}",
        b'{"reboot": true}',
        b'{"pause": true}' + b" " * 5000,
        b"\xff\xfe",
    ],
)
def test_anything_else_is_refused(payload: bytes) -> None:
    with pytest.raises(BitstreamError, match="control"):
        read_control(payload, levels=LEVELS)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_control_or_an_error(payload: bytes) -> None:
    try:
        read_control(payload, levels=LEVELS)
    except BitstreamError as error:
        assert "\n" not in str(error)
