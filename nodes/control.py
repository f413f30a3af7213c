"""What a camera is told on its control topic (docs/wire.md, section 2)."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from pipeline.errors import BitstreamError

_LIMIT_BYTES = 4096

RegionIndex = Annotated[StrictInt, Field(ge=0, le=63)]


class Control(BaseModel):
    """One message on the control topic; what it does not name stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[tuple[RegionIndex, ...], Field(max_length=64)] | None = None
    quality: Annotated[StrictInt, Field(ge=0, le=255)] | None = None
    pause: StrictBool | None = None
    max_kbit_s: Annotated[float, Field(strict=True, ge=10, le=1e6)] | None = None  # null: no limit


def read_control(payload: bytes, *, levels: frozenset[int]) -> Control:
    """Raises BitstreamError for anything but a control message with a quality level of the bundle."""
    if len(payload) > _LIMIT_BYTES:
        raise BitstreamError(f"control: {len(payload)} bytes, at most {_LIMIT_BYTES}")
    try:
        control = Control.model_validate_json(payload)
    except ValidationError as error:
        raise BitstreamError(f"control: {error.errors()[0]['msg']}") from error
    if control.quality is not None and control.quality not in levels:
        raise BitstreamError(f"control: quality {control.quality} is not a level of the bundle")
    return control
