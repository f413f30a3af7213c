"""Control messages: what a camera obeys, and that it ignores everything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.control import Control, read_control
from pipeline.errors import BitstreamError

LEVELS = frozenset({0, 2})
UNFIT = {"max_fps": "max_fps is not for a recording"}


@pytest.mark.parametrize(
    ("payload", "control"),
    [
        (b'{"key": [0, 3]}', Control(key=(0, 3))),
        (b'{"quality": 2}', Control(quality=2)),
        (b'{"pause": true}', Control(pause=True)),
        (b'{"pause": false, "quality": 0}', Control(pause=False, quality=0)),
        (b'{"max_kbit_s": 200}', Control(max_kbit_s=200)),
        (b'{"max_kbit_s": null}', Control(max_kbit_s=None)),
        (b'{"max_fps": null}', Control(max_fps=None)),
    ],
)
def test_the_messages_of_the_contract_are_read(payload: bytes, control: Control) -> None:
    assert read_control(payload, levels=LEVELS, unfit=UNFIT) == control


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
        b'{"quality": null}',
        b'{"pause": null}',
        b'{"key": null}',
        b'{"max_kbit_s": 9.9}',
        b'{"max_kbit_s": "200"}',
        b'{"max_kbit_s": NaN}',
        b'{"max_fps": 0}',
        b'{"max_fps": 1001}',
        b'{"max_fps": 5}',
        b'{"key": [64]}',
        b'{"key": [' + b"0," * 64 + b"0]}",
        b'{"reboot": true}',
        b'{"pause": true}' + b" " * 5000,
        b"\xff\xfe",
    ],
)
def test_anything_else_is_refused(payload: bytes) -> None:
    with pytest.raises(BitstreamError, match="control"):
        read_control(payload, levels=LEVELS, unfit=UNFIT)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"pause", "control: Invalid JSON: expected value at line 1 column 1"),
        (b'{"pause": 1}', "control: 'pause': Input should be a valid boolean"),
        (b'{"key": [0, 64]}', "control: 'key.1': Input should be less than or equal to 63"),
        (b'{"quality": 1}', "control: quality 1 is not a level of the bundle, which has 0, 2"),
        (b'{"max_fps": 5}', "control: max_fps is not for a recording"),
        (b'{"pause": null}', "control: Value error, pause: null is for max_fps and max_kbit_s only"),
        (b'{"re\\nboot": 1}', "control: 're\\nboot': Extra inputs are not permitted"),
        (b'{"' + b"x" * 3000 + b'": 1}', f"control: '{'x' * 32}': Extra inputs are not permitted"),
    ],
)
def test_what_is_refused_is_said_with_the_field_and_the_reason(payload: bytes, said: str) -> None:
    with pytest.raises(BitstreamError) as refused:
        read_control(payload, levels=LEVELS, unfit=UNFIT)
    assert str(refused.value) == said


def test_a_limit_is_taken_where_the_camera_can_keep_it() -> None:
    assert read_control(b'{"max_fps": 5}', levels=LEVELS, unfit={}) == Control(max_fps=5)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_control_or_an_error(payload: bytes) -> None:
    try:
        read_control(payload, levels=LEVELS, unfit=UNFIT)
    except BitstreamError as error:
        assert "\n" not in str(error)
