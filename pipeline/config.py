"""Settings of the nodes: one frozen model per process, read once in `main`; an unknown key is an error.

Precedence: command line, environment (`MASKCAST_<SECTION>__<FIELD>`), file (YAML), default.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from pipeline.errors import ConfigError
from pipeline.settings_sections import (
    CameraSection,
    DecoderSection,
    DemoSection,
    EncoderSection,
    GatewaySection,
    HealthSection,
    LogSection,
    MqttSection,
    PreviewSection,
    QueueSection,
    RateSection,
    SceneSection,
    Section,
    SourceSection,
    ViewerSection,
    WebRtcGatewaySection,
    WebRtcSection,
    WorkerSection,
)

# Whoever reads settings gets their sections here too.
__all__ = [
    "SETTINGS",
    "CameraSection",
    "CameraSettings",
    "DecoderSection",
    "DemoSection",
    "DemoSettings",
    "EncoderSection",
    "GatewaySection",
    "GatewaySettings",
    "HealthSection",
    "LogSection",
    "MqttSection",
    "NodeSettings",
    "PreviewSection",
    "QueueSection",
    "RateSection",
    "SceneSection",
    "SourceSection",
    "ViewerSection",
    "ViewerSettings",
    "WebRtcGatewaySection",
    "WebRtcSection",
    "WorkerSection",
    "WorkerSettings",
    "keys",
    "kind_of",
    "load_settings",
    "variables",
]

_PREFIX = "MASKCAST_"
_LONGEST = 1 << 20  # bytes of a file with settings
# Kubernetes puts each service's address into the environment: MASKCAST_REDIS_PORT for `maskcast-redis`.
_SERVICE_ADDRESS = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$")


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
_UPLINK = Field(
    None,
    pattern=r"^(mqtts?|memory|webrtc\+https?)://",
    description="where packets go: mqtt://host:port or mqtts://host:port of a broker, webrtc+http://host:port or "
    "webrtc+https://host:port of a gateway; null: mqtt_url",
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
    uplink: str | None = _UPLINK
    mqtt: MqttSection = MqttSection()
    webrtc: WebRtcSection = WebRtcSection()
    camera: CameraSection = CameraSection()
    source: SourceSection = SourceSection()
    encoder: EncoderSection = EncoderSection()
    rate: RateSection = RateSection()
    scene: SceneSection = SceneSection()
    preview: PreviewSection = PreviewSection()
    health: HealthSection = HealthSection(port=9101)

    @property
    def rate_controlled(self) -> bool:
        """Whether a link's rate decides on what is sent."""
        return self.rate.mode != "off" or self.rate.max_kbit_s is not None

    @model_validator(mode="after")
    def _without_contradictions(self) -> "CameraSettings":
        if self.webrtc.fallback and not (self.uplink or "").startswith("webrtc+"):
            raise ValueError(
                "webrtc.fallback is for an uplink over WebRTC: give uplink a webrtc+http:// or webrtc+https:// "
                "address, or leave webrtc.fallback out"
            )
        if not self.rate_controlled:
            return self
        if self.source.fast:
            raise ValueError("source.fast sends every frame of a recording: leave out rate.mode and rate.max_kbit_s")
        if self.encoder.price is not None:
            raise ValueError(
                "encoder.price weighs bits itself: leave rate.mode off and rate.max_kbit_s unset, or the price"
            )
        if self.encoder.lookahead:
            raise ValueError(
                "encoder.lookahead lets frames wait: set it to 0, or leave rate.mode off and rate.max_kbit_s unset"
            )
        return self


class GatewaySettings(NodeSettings):
    mqtt_url: str = _MQTT_URL
    redis_url: str = _REDIS_URL
    mqtt: MqttSection = MqttSection()
    queue: QueueSection = QueueSection()
    gateway: GatewaySection = GatewaySection()
    webrtc: WebRtcGatewaySection = WebRtcGatewaySection()
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
    source: SourceSection = SourceSection(loop=True, max_fps=10.0)
    encoder: EncoderSection = EncoderSection()
    preview: PreviewSection = PreviewSection(enabled=True, max_fps=10.0)
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
        merged = _merge(merged, _ruled_out(values))
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
    known = ", ".join(SETTINGS)
    raise ConfigError(f"{file}: cannot tell which node it is for; say it by --node, or add a section, {known}")


def variables(kind: type[NodeSettings]) -> Iterator[str]:
    """The names of the environment variables this node obeys."""
    for name in keys(kind):
        yield _PREFIX + name.replace(".", "__").upper()


def keys(model: type[BaseModel]) -> Iterator[str]:
    """The keys of a node's settings, such as `source.url`."""
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            yield from (f"{name}.{key}" for key in section.model_fields)
        else:
            yield name


def _read_file(file: Path) -> Values:
    try:
        values = yaml.load(_text_of(file), Loader=_Once)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: sections with fields are needed, not a {type(values).__name__}")
    if wrong := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"{file}: {wrong[0]!r} is no section; put the name of one there")
    return values


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(_LONGEST + 1)  # of a device there may be no end
        if len(content) > _LONGEST:
            raise ConfigError(f"{file} is longer than {_LONGEST} bytes; name a YAML file with settings")
        return content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; name a YAML file with settings") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 from byte {error.start} on; save it as UTF-8") from error


class _Once(yaml.SafeLoader):
    """Reads YAML in which each key stands once: of two the first would be lost without a word."""

    def get_single_node(self) -> yaml.Node | None:
        found: yaml.Node | None = super().get_single_node()
        _check_keys(found, set())
        return found


def _check_keys(node: yaml.Node | None, checked: set[int]) -> None:
    if id(node) in checked or not isinstance(node, yaml.CollectionNode):
        return
    checked.add(id(node))
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, value) for value in node.value]
    seen = dict[tuple[str, str], yaml.Node]()
    for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
        if seen.setdefault((key.tag, key.value), key) is not key:
            raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
    for _, value in pairs:
        _check_keys(value, checked)


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
        if upper.startswith(_PREFIX) and upper not in known and not _is_service(upper, environment[name]):
            raise ConfigError(f"environment: unknown variable {name}{_nearest(upper, known)}")


def _is_service(name: str, value: str) -> bool:
    """Whether that is how Kubernetes tells of a service: its plain port is a whole address, as ours never is."""
    found = _SERVICE_ADDRESS.search(name)
    return found is not None and (found[0] != "_PORT" or "://" in value)


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


def _ruled_out(values: Values) -> Values:
    """What a layer's values say of layers below it: a threshold takes the place of a price."""
    encoder = values.get("encoder")
    if isinstance(encoder, Mapping) and encoder.get("threshold") is not None and "price" not in encoder:
        return {"encoder": {"price": None}}
    return {}


def _sentence(kind: type[NodeSettings], error: ValidationError, layers: Mapping[str, Values]) -> str:
    """The first fault: which layer, which key, what is wrong; or which keys contradict each other."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    said = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return said
    fields = [part for part in fault["loc"] if isinstance(part, str)]  # the other parts are places in a list
    layer = [name for name, values in layers.items() if _holds(values, fields)][-1]
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{layer}: unknown key {key}{_nearest(key, set(keys(kind)) | set(kind.model_fields))}"
    if fault["type"] == "model_type":
        example = next(name for name in keys(kind) if name.startswith(f"{key}."))
        return f"{layer}: {key}: this is a section; set its fields, such as {example}"
    if fault["type"] == "string_pattern_mismatch" and (told := _description(kind, fields)):
        return f"{layer}: {key}: not of its form; {told}"
    return f"{layer}: {key}: {said[:1].lower()}{said[1:]}"


def _description(model: type[BaseModel], path: Sequence[str]) -> str | None:
    """What the field at this path is told to be, if that is told; keys of a mapping are no fields."""
    for name in path[:-1]:
        section = model.model_fields[name].annotation
        if not (isinstance(section, type) and issubclass(section, Section)):
            return None
        model = section
    return model.model_fields[path[-1]].description


def _holds(values: Any, path: Sequence[str]) -> bool:
    if not path:
        return True
    return isinstance(values, Mapping) and path[0] in values and _holds(values[path[0]], path[1:])


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known)[:40])}"
