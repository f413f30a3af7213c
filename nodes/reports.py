"""What cameras and workers report as JSON: bounded, checked, and open to keys of newer senders."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from pipeline.errors import BitstreamError
from pipeline.zones import Zones

LIMIT_BYTES = 256 << 10
LEGEND_LIMIT = 64


def _printable(text: str) -> str:
    """Names end up in terminals, where control characters do things."""
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


Name = Annotated[str, Field(max_length=128), AfterValidator(_printable)]
Sentence = Annotated[str, Field(max_length=256), AfterValidator(_printable)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Shade = Annotated[int, Field(ge=0, le=255)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]  # as JavaScript counts exactly; Python would not print any number


class _Report(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class KindRate(_Report):
    """How many regions of one kind come in a second, and their bits."""

    regions_s: NotNegative = 0.0
    kbit_s: NotNegative = 0.0


class Stats(_Report):
    """What `<camera>/stats` says once a second.

    `share` is the part of the pixels (0 to 1) per class name, `zones` the same of each zone of the camera.
    """

    fps: NotNegative | None = None
    kbit_s: NotNegative | None = None
    latency_p50_ms: NotNegative | None = None
    latency_p95_ms: NotNegative | None = None
    drops: Annotated[dict[Name, Count], Field(max_length=64)] = {}
    share: Annotated[dict[Name, NotNegative], Field(max_length=256)] = {}
    zones: Annotated[dict[Name, dict[Name, NotNegative]], Field(max_length=64)] = {}
    key_share: NotNegative | None = None
    kinds: Annotated[dict[Name, KindRate], Field(max_length=8)] = {}


class InForce(_Report):
    """What holds in a camera of all that it can be told on its control topic."""

    quality: Count | None = None
    pause: bool | None = None
    max_fps: NotNegative | None = None
    max_kbit_s: NotNegative | None = None


class State(_Report):
    """What `<camera>/state` says; `since` is when the camera started (ms), whatever its state is now.

    `refused`: why it did not do what its control topic told it last.
    """

    state: Literal["online", "stopped", "offline"]
    bundle: Name | None = None
    width: Count | None = None
    height: Count | None = None
    fps: NotNegative | None = None
    source_width: Count | None = None
    source_height: Count | None = None
    source: Name | None = None
    transport: Name | None = None
    path: Name | None = None
    since: Count | None = None
    control: InForce | None = None
    refused: Sentence | None = None
    zones: Zones | None = None


def told(state: State) -> str:
    """A camera's state in words for people."""
    paused = state.control is not None and state.control.pause
    more = {"waiting": ", no source yet", "lost": ", source lost"}.get(state.source or "", ", paused" if paused else "")
    return state.state + (more if state.state == "online" else "")


class Label(_Report):
    """How sure a worker is that one class is in the picture."""

    name: Name
    score: Annotated[FiniteFloat, Field(ge=0, le=1)]


class Labels(_Report):
    """What `<camera>/labels` says of one frame: the score of every class, in the order of their indexes."""

    epoch: Annotated[int, Field(ge=0, lt=1 << 16)]
    sequence: Annotated[int, Field(ge=0, lt=1 << 32)]
    captured_ms: Annotated[int, Field(ge=0, lt=1 << 48)]
    bundle: Name = ""
    labels: Annotated[tuple[Label, ...], Field(max_length=256)]

    def present(self, *, least_score: float = 0.5) -> list[Label]:
        """The classes that are more likely in the picture than not, the surest first."""
        return sorted((label for label in self.labels if label.score >= least_score), key=lambda label: -label.score)


class ClassLook(_Report):
    """How one class is called and coloured (RGB)."""

    name: Name
    colour: tuple[Shade, Shade, Shade]


class Legend(_Report):
    """The part of a bundle's manifest that a picture's legend needs."""

    name: Name = ""
    hash: Name
    classes: Annotated[tuple[ClassLook, ...], Field(max_length=256)]


R = TypeVar("R", bound=_Report)


def read_report(kind: type[R], payload: bytes) -> R:
    """Raises BitstreamError for bytes that are not such a report."""
    name = kind.__name__.lower()
    if len(payload) > LIMIT_BYTES:
        raise BitstreamError(f"{name}: {len(payload)} bytes, at most {LIMIT_BYTES} are taken")
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise BitstreamError(f"{name}: {field or 'report'}: {fault['msg']}") from error


def read_legend(bundle: str, payload: bytes) -> Legend:
    """What came on the topic of a bundle; BitstreamError for what is no legend, or that of another bundle."""
    legend = read_report(Legend, payload)
    if legend.hash != bundle:
        raise BitstreamError(f"bundle: manifest of {legend.hash!r} on the topic of {bundle!r}")
    return legend


class Legends(Mapping[str, Legend]):
    """The legends of bundles by hash, of those that were told of last, so many at most."""

    def __init__(self, limit: int = LEGEND_LIMIT) -> None:
        self._limit, self._told = limit, dict[str, Legend]()

    def __getitem__(self, bundle: str) -> Legend:
        return self._told[bundle]

    def __iter__(self) -> Iterator[str]:
        return iter(self._told)

    def __len__(self) -> int:
        return len(self._told)

    def take(self, bundle: str, payload: bytes) -> Legend | None:
        """Keep what came on the topic of a bundle; an empty retained message, how MQTT forgets one, gives None.

        Raises BitstreamError for what is no legend, or that of another bundle.
        """
        if not payload:
            self._told.pop(bundle, None)
            return None
        legend = read_legend(bundle, payload)
        self._told.pop(bundle, None)
        self._told[bundle] = legend
        if len(self._told) > self._limit:
            del self._told[next(iter(self._told))]
        return legend
