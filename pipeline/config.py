"""Settings of the nodes: one frozen model per process, read once in `main`; an unknown key is an error.

Precedence: command line, environment (`MASKCAST_<SECTION>__<FIELD>`), file (YAML), default.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from pipeline.errors import ConfigError
from pipeline.messages import check_camera_name

_PREFIX = "MASKCAST_"
# Kubernetes puts each service's address into the environment: MASKCAST_REDIS_PORT for `maskcast-redis`.
_SERVICE_ADDRESS = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$")

Engine = Literal["auto", "onnxruntime", "openvino"]
Port = Annotated[int, Field(ge=0, le=65535)]
CameraName = Annotated[str, AfterValidator(check_camera_name)]
Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")]


class _Section(BaseModel):
    # A device is a number: `url: 0` is as good as `url: "0"`.
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class LogSection(_Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level written")
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: coloured lines on a terminal, JSON elsewhere"
    )


class HealthSection(_Section):
    host: str = Field("127.0.0.1", description="address that /healthz, /readyz and /metrics listen on")
    port: Port = Field(0, description="TCP port of that page; 0: none")


class MqttSection(_Section):
    root: Topic = Field("maskcast", description="first part of every topic")


class QueueSection(_Section):
    shards: int = Field(16, ge=1, le=1024, description="streams the cameras are spread over, same on all nodes")
    shard_packets: int = Field(
        1000, ge=16, le=1_000_000, description="packets one shard holds at most; the oldest go first"
    )


class SourceSection(_Section):
    url: str = Field(
        "sample",
        description="video file, directory of images, rtsp:// address, device (/dev/video0 or 0), or: sample",
    )
    loop: bool = Field(False, description="begin a file or directory again at its end")
    fast: bool = Field(False, description="play a file as a recording: every frame gets its mask, as fast as they come")
    fps: float = Field(25.0, gt=0, le=1000, description="frames per second of a directory of images")
    start_s: float = Field(0.0, ge=0, description="seconds of a file or directory to pass over at the start")
    mirror: bool = Field(False, description="swap left and right")
    timeout_s: float = Field(5.0, gt=0, le=300, description="seconds an rtsp server may take to answer")
    retry_max_s: float = Field(
        30.0, ge=0.1, le=3600, description="seconds at most before a lost live source is opened again"
    )
    decode_threads: int = Field(1, ge=1, le=64, description="threads that decode the video")


class CameraSection(_Section):
    name: CameraName = Field("cam-1", description="name of this camera: a-z, 0-9, - and _")
    buffer_packets: int = Field(
        4,
        ge=1,
        le=1000,
        description="packets that wait for the uplink at most; the oldest that none refers to goes first",
    )
    window_packets: int = Field(
        32, ge=1, le=60, description="packets of a recording (source.fast) that are sent before their masks come"
    )
    answer_s: float = Field(5.0, gt=0, le=600, description="seconds without a mask until they are sent again, at first")
    tries: int = Field(5, ge=1, le=1000, description="times that they are sent again, after twice as long each time")


class _EngineSection(_Section):
    engine: Engine = Field("auto", description="auto: openvino where it is installed, else onnxruntime")
    threads: int = Field(0, ge=0, le=256, description="threads of the engine; 0: as many as it likes")


class EncoderSection(_EngineSection):
    quality: int | None = Field(
        None, ge=0, le=255, description="quality level of the bundle; null: the bundle's default level"
    )
    key_interval: int = Field(
        30,
        ge=1,
        le=256,
        description="frames from one KEY to the next at most, WARPs of it between; 1: every frame is a KEY",
    )
    threshold: float | None = Field(
        96.0,
        ge=0,
        le=100,
        description="a KEY sooner where a WARP should match in less than so many percent of the pixels; null: never",
    )
    price: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="percent of the pixels that 1000 bytes are worth, such as 8; then there is no threshold",
    )
    grid: str | None = Field(
        None,
        pattern=r"^[0-9]{1,2}x[0-9]{1,2}$",
        description="rows x columns of regions, such as 2x2, each KEY or WARP by itself; null: the bundle's own",
    )


class DecoderSection(_EngineSection):
    pass


class PreviewSection(_Section):
    enabled: bool = Field(False, description="publish small pictures too; off, since pixels stay at the edge")
    max_fps: float = Field(5.0, gt=0, le=60, description="pictures per second at most")
    max_width: int = Field(480, ge=16, le=4096, description="width in pixels at most")
    jpeg_quality: int = Field(60, ge=1, le=100, description="JPEG quality, 1 to 100")


class GatewaySection(_Section):
    buffer_packets: int = Field(
        256,
        ge=1,
        le=100_000,
        description="packets a sender holds while the queue is away; the oldest WARP goes first",
    )
    senders: int = Field(2, ge=1, le=64, description="packets under way to the queue at the same time")
    packet_bytes: int = Field(65_536, ge=1024, le=1 << 20, description="bytes of a packet at most; larger are refused")


class WorkerSection(_Section):
    id: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9_.-]{0,62})?$")] = Field(
        "", description="name of this worker, one of its kind; empty: made from host and process"
    )
    batch: int = Field(8, ge=1, le=256, description="packets decoded in one pass at most")
    wait_s: float = Field(1.0, gt=0, le=60, description="longest wait for a packet in one claim, in seconds")
    deadline_ms: int = Field(
        2000,
        ge=0,
        le=3_600_000,
        description="ms since capture after which a packet is passed over; 0: never",
    )
    rle: bool = Field(False, description="publish the compact form of each mask too, on <camera>/mask/rle")
    labels: Literal["auto", "off"] = Field(
        "auto", description="auto: publish which classes are in the picture, where the bundle can tell; off: never"
    )
    stats_s: float = Field(1.0, ge=0.1, le=60, description="seconds between two statistics of a camera")


class ViewerSection(_Section):
    host: str = Field("127.0.0.1", description="address the page listens on; 0.0.0.0: all of this machine")
    port: Port = Field(8080, description="TCP port of the page; 0: any free port")
    browsers: int = Field(64, ge=1, le=10_000, description="browsers that may look on at the same time")


class DemoSection(_Section):
    cameras: int = Field(2, ge=1, le=16, description="cameras that play the source, each a little different")
    open_page: bool = Field(True, description="open the page, if started from a desktop's terminal")


class NodeSettings(BaseSettings):
    """What every process has; made by `load_settings`, which merges the layers and names the one at fault."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        env_parse_none_str="null",
    )

    log: LogSection = LogSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


_MQTT_URL = Field(
    "mqtt://localhost:1883",
    pattern=r"^(mqtts?|memory)://",
    description="broker: mqtt://host:port or mqtts://host:port, user:password@ before the host where needed",
)
_REDIS_URL = Field(
    "redis://localhost:6379",
    pattern=r"^rediss?://",
    description="queue: redis://host:port or rediss://host:port, user:password@ before the host where needed",
)
_BUNDLE = Field(None, description="folder of the trained model; null: the first of bundles/")


class CameraSettings(NodeSettings):
    bundle: Path | None = _BUNDLE
    mqtt_url: str = _MQTT_URL
    mqtt: MqttSection = MqttSection()
    camera: CameraSection = CameraSection()
    source: SourceSection = SourceSection()
    encoder: EncoderSection = EncoderSection()
    preview: PreviewSection = PreviewSection()
    health: HealthSection = HealthSection(port=9101)


class GatewaySettings(NodeSettings):
    mqtt_url: str = _MQTT_URL
    redis_url: str = _REDIS_URL
    mqtt: MqttSection = MqttSection()
    queue: QueueSection = QueueSection()
    gateway: GatewaySection = GatewaySection()
    health: HealthSection = HealthSection(port=9102)


class WorkerSettings(NodeSettings):
    bundle: Path | None = _BUNDLE
    mqtt_url: str = _MQTT_URL
    redis_url: str = _REDIS_URL
    mqtt: MqttSection = MqttSection()
    queue: QueueSection = QueueSection()
    worker: WorkerSection = WorkerSection()
    decoder: DecoderSection = DecoderSection()
    health: HealthSection = HealthSection(port=9103)


class ViewerSettings(NodeSettings):
    mqtt_url: str = _MQTT_URL
    mqtt: MqttSection = MqttSection()
    viewer: ViewerSection = ViewerSection()


class DemoSettings(NodeSettings):
    bundle: Path | None = _BUNDLE
    demo: DemoSection = DemoSection()
    source: SourceSection = SourceSection(loop=True)
    encoder: EncoderSection = EncoderSection()
    preview: PreviewSection = PreviewSection(enabled=True)
    worker: WorkerSection = WorkerSection()
    decoder: DecoderSection = DecoderSection()
    viewer: ViewerSection = ViewerSection()


SETTINGS: Mapping[str, type[NodeSettings]] = {
    "camera": CameraSettings,
    "gateway": GatewaySettings,
    "worker": WorkerSettings,
    "viewer": ViewerSettings,
    "demo": DemoSettings,
}

S = TypeVar("S", bound=NodeSettings)
Values = Mapping[str, Any]


def load_settings(kind: type[S], file: Path | None, overrides: Mapping[str, object]) -> S:
    """Merge file, environment and `overrides` ("source.url" -> value or None); raises ConfigError."""
    _check_variables(os.environ)
    layers = {
        str(file): {} if file is None else _read_file(file),
        "environment": _read_environment(kind),
        "command line": _nested(overrides),
    }
    merged = _defaults(kind)
    for values in layers.values():
        merged = _merge(merged, values)
    try:
        return kind(**merged)
    except ValidationError as error:
        raise ConfigError(_sentence(kind, error, layers)) from error


def kind_of(file: Path) -> str:
    """The node a file is for, by the section only that node has; raises ConfigError when it has none."""
    sections = _read_file(file)
    for kind in ("demo", *SETTINGS):  # a demo has sections of the others
        if kind in sections:
            return kind
    raise ConfigError(f"{file}: cannot tell which node it is for; it needs a section {', '.join(SETTINGS)}")


def variables(kind: type[NodeSettings]) -> Iterator[str]:
    """The names of the environment variables this node obeys."""
    for name in keys(kind):
        yield _PREFIX + name.replace(".", "__").upper()


def keys(model: type[BaseModel]) -> Iterator[str]:
    """The keys of a node's settings, such as `source.url`."""
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, _Section):
            yield from (f"{name}.{key}" for key in section.model_fields)
        else:
            yield name


def _read_file(file: Path) -> Values:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; name a YAML file with settings") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: sections with fields are needed, not a {type(values).__name__}")
    return values


def _read_environment(kind: type[NodeSettings]) -> Values:
    try:
        return EnvSettingsSource(kind)()
    except SettingsError as error:
        raise ConfigError(f"environment: {error}") from error


def _check_variables(environment: Mapping[str, str]) -> None:
    """Refuse what no node knows; variables of other nodes pass, since nodes may share one environment."""
    known = {name for kind in SETTINGS.values() for name in variables(kind)}
    for name in sorted(environment):
        upper = name.upper()
        if upper.startswith(_PREFIX) and upper not in known and not _SERVICE_ADDRESS.search(upper):
            raise ConfigError(f"environment: unknown variable {name}{_nearest(upper, known)}")


def _defaults(kind: type[NodeSettings]) -> dict[str, Any]:
    """What a half-given section is completed with: `source: {url: x}` keeps this node's `loop`."""
    return kind().model_dump()


def _nested(overrides: Mapping[str, object]) -> Values:
    values: dict[str, Any] = {}
    for key, value in overrides.items():
        section, _, field = key.rpartition(".")
        if value is not None:
            (values.setdefault(section, {}) if section else values)[field] = value
    return values


def _merge(below: Values, above: Values) -> dict[str, Any]:
    """Values of `above` win; a section is merged field by field, an empty one is left alone."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if not isinstance(old, Mapping):
            merged[key] = value
        elif value is not None:
            merged[key] = _merge(old, value) if isinstance(value, Mapping) else value
    return merged


def _sentence(kind: type[NodeSettings], error: ValidationError, layers: Mapping[str, Values]) -> str:
    """The first fault: which layer, which key, what is wrong."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = [str(part) for part in fault["loc"]]
    layer = [name for name, values in layers.items() if _holds(values, path)][-1]
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return f"{layer}: unknown key {key}{_nearest(key, set(keys(kind)) | set(kind.model_fields))}"
    if fault["type"] == "model_type":
        example = next(name for name in keys(kind) if name.startswith(f"{key}."))
        return f"{layer}: {key}: this is a section; set its fields, such as {example}"
    return f"{layer}: {key}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"


def _holds(values: Any, path: Sequence[str]) -> bool:
    if not path:
        return True
    return isinstance(values, Mapping) and path[0] in values and _holds(values[path[0]], path[1:])


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known)[:40])}"
