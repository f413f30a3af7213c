"""What a camera is told on its control topic (docs/wire.md, section 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, model_validator

from pipeline.errors import BitstreamError

_LIMIT_BYTES = 4096
_NAME_LIMIT = 32  # characters of a field's name that are repeated to whoever sent it

RegionIndex = Annotated[StrictInt, Field(ge=0, le=63)]


class Control(BaseModel):
    """One message on the control topic; what it does not name stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[tuple[RegionIndex, ...], Field(max_length=64)] | None = None
    quality: Annotated[StrictInt, Field(ge=0, le=255)] | None = None
    pause: StrictBool | None = None
    max_fps: Annotated[float, Field(strict=True, ge=0.01, le=1000)] | None = None  # null: all that the source has
    max_kbit_s: Annotated[float, Field(strict=True, ge=10, le=1e6)] | None = None  # null: no limit

    @model_validator(mode="after")
    def _nothing_is_no_value(self) -> "Control":
        for name in self.model_fields_set & {"key", "quality", "pause"}:
            if getattr(self, name) is None:
                raise ValueError(f"{name}: null is for max_fps and max_kbit_s only")
        return self


@dataclass(frozen=True, slots=True)
class InForce:
    """What holds in a camera of all that it can be told, in the words of its control topic."""

    quality: int
    pause: bool
    max_fps: float | None
    max_kbit_s: float | None


def read_control(payload: bytes, *, levels: frozenset[int], unfit: Mapping[str, str]) -> Control:
    """Raises BitstreamError for anything but a control message with a quality level of the bundle.

    `unfit`: fields that this camera cannot be given a value of, and why.
    """
    if len(payload) > _LIMIT_BYTES:
        raise BitstreamError(f"control: {len(payload)} bytes, at most {_LIMIT_BYTES}")
    try:
        control = Control.model_validate_json(payload)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in fault["loc"])
        named = f"{field[:_NAME_LIMIT]!a}: " if field else ""
        raise BitstreamError(f"control: {named}{fault['msg']}") from error
    if control.quality is not None and control.quality not in levels:
        known = ", ".join(str(level) for level in sorted(levels))
        raise BitstreamError(f"control: quality {control.quality} is not a level of the bundle, which has {known}")
    for field, reason in unfit.items():
        if getattr(control, field) is not None:
            raise BitstreamError(f"control: {reason}")
    return control
