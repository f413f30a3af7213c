"""Settings: complete files, precedence, and one sentence for every mistake."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import (
    SETTINGS,
    CameraSettings,
    DemoSettings,
    GatewaySettings,
    NodeSettings,
    WorkerSettings,
    _Once,
    keys,
    kind_of,
    load_settings,
    variables,
)
from pipeline.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs" / "nodes"
KINDS = sorted(SETTINGS)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in SETTINGS.values():
        for name in variables(kind):
            monkeypatch.delenv(name, raising=False)


def sentence(*args: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    file = folder / "node.yaml"
    file.write_text(text)
    return file


def descriptions(model: type[BaseModel]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found |= {f"{name}.{key}": text for key, text in descriptions(section).items()}
        else:
            found[name] = field.description
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_of_each_node_holds_every_field_with_its_default(kind: str) -> None:
    settings = SETTINGS[kind]
    values = yaml.safe_load((CONFIGS / f"{kind}.yaml").read_text())
    assert values == settings().model_dump(mode="json")
    assert load_settings(settings, CONFIGS / f"{kind}.yaml", {}) == settings()


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_of_each_node_explains_each_field_in_the_line_above_it(kind: str) -> None:
    lines = [line.strip() for line in (CONFIGS / f"{kind}.yaml").read_text().splitlines()]
    explained = {f"# {text}": name for name, text in descriptions(SETTINGS[kind]).items()}
    comments = {line: after.partition(":")[0] for line, after in pairwise(lines)}
    for comment, name in explained.items():
        above = next(line for line in comments if line.startswith(comment))
        assert comments[above] == name.rpartition(".")[2]


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_description_and_a_place_in_the_schema(kind: str) -> None:
    assert all(descriptions(SETTINGS[kind]).values())
    assert set(SETTINGS[kind].model_json_schema()["properties"]) == set(SETTINGS[kind].model_fields)


def test_no_file_lies_in_the_folder_that_is_not_a_nodes() -> None:
    assert sorted(file.stem for file in CONFIGS.iterdir()) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_nodes_file_is_known_for_what_it_is(kind: str) -> None:
    assert kind_of(CONFIGS / f"{kind}.yaml") == kind


def test_a_file_that_could_be_any_nodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which node"):
        kind_of(written(tmp_path, "mqtt_url: mqtt://b\n"))


def test_command_line_wins_over_environment_over_file_over_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "source: {url: file, fps: 5, timeout_s: 9}\n")
    monkeypatch.setenv("MASKCAST_SOURCE__URL", "environment")
    monkeypatch.setenv("MASKCAST_SOURCE__FPS", "6.5")
    source = load_settings(CameraSettings, file, {"source.url": "line"}).source
    assert (source.url, source.fps, source.timeout_s, source.loop) == ("line", 6.5, 9.0, False)


def test_an_option_that_was_not_given_changes_nothing() -> None:
    assert load_settings(CameraSettings, None, {"source.url": None, "bundle": None}) == CameraSettings()


def test_a_half_given_section_keeps_the_nodes_own_defaults(tmp_path: Path) -> None:
    settings = load_settings(DemoSettings, written(tmp_path, "source: {url: clip.mp4}\npreview:\n"), {})
    assert settings.source.loop
    assert settings.preview.enabled


def test_the_three_addresses_have_variables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKCAST_MQTT_URL", "mqtt://a:b@broker:1")
    monkeypatch.setenv("MASKCAST_REDIS_URL", "redis://queue")
    monkeypatch.setenv("MASKCAST_BUNDLE", "/bundles/one")
    settings = load_settings(WorkerSettings, None, {})
    assert settings.mqtt_url == "mqtt://a:b@broker:1"
    assert settings.redis_url == "redis://queue"
    assert settings.bundle == Path("/bundles/one")


def test_an_empty_variable_and_null_mean_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKCAST_CAMERA__NAME", "")
    monkeypatch.setenv("MASKCAST_ENCODER__QUALITY", "null")
    assert load_settings(CameraSettings, None, {}) == CameraSettings()


def test_a_device_may_be_given_as_a_number(tmp_path: Path) -> None:
    assert load_settings(CameraSettings, written(tmp_path, "source: {url: 0}"), {}).source.url == "0"


def test_a_variable_of_another_node_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKCAST_CAMERA__NAME", "cam-7")
    monkeypatch.setenv("MASKCAST_REDIS_PORT_6379_TCP_ADDR", "10.0.0.1")  # Kubernetes says these by itself
    monkeypatch.setenv("MASKCAST_REDIS_PORT", "tcp://10.0.0.1:6379")
    monkeypatch.setenv("MASKCAST_REDIS_PORT_6379_TCP", "tcp://10.0.0.1:6379")
    monkeypatch.setenv("MASKCAST_REDIS_PORT_6379_TCP_PORT", "6379")
    monkeypatch.setenv("MASKCAST_REDIS_PORT_6379_TCP_PROTO", "tcp")
    monkeypatch.setenv("MASKCAST_VIEWER_SERVICE_PORT", "8080")
    monkeypatch.setenv("MASKCAST_VIEWER_SERVICE_PORT_WEB_PORT", "8080")
    assert load_settings(GatewaySettings, None, {}) == GatewaySettings()


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("MASKCAST_SOURCE__FSP", "MASKCAST_SOURCE__FPS"),
        ("MASKCAST_SORCE__FPS", "MASKCAST_SOURCE__FPS"),
        ("MASKCAST_REDIS_URI", "MASKCAST_REDIS_URL"),
        ("maskcast_source__fsp", "MASKCAST_SOURCE__FPS"),
        ("MASKCAST_VIEWER_PORT", "MASKCAST_VIEWER__PORT"),
    ],
)
def test_a_misspelt_variable_is_named_and_the_right_one_too(
    variable: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    text = sentence(GatewaySettings, None, {})
    assert variable in text
    assert meant in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("source: {fsp: 3}", ["source.fsp", "source.fps"]),
        ("sources: {fps: 3}", ["sources", "did you mean source?"]),
        ("source: {fps: fast}", ["source.fps", "number"]),
        ("source: {fps: 0}", ["source.fps", "greater than 0"]),
        ("source: street.mp4", ["source", "section"]),
        ("mqtt_url: localhost", ["mqtt_url"]),
        ("log: {level: loud}", ["log.level", "'debug'"]),
        ("encoder: {engine: tflite}", ["encoder.engine", "onnxruntime"]),
        ("health: {port: 99999}", ["health.port", "65535"]),
        ("[1, 2]", ["sections"]),
        ("on: {url: 0}", ["True is no section"]),
        ("1: {url: 0}", ["1 is no section"]),
        ("a: b: c", ["not YAML"]),
        ("a: \x07", ["not YAML"]),
        ("[a]: 1", ["not YAML"]),
        ("log: {level: info}\nsource: {}\nlog: {}", ["'log' is there twice", "line 3"]),
        ("source: {url: a.mp4, loop: true, url: b.mp4}", ["'url' is there twice"]),
        ("#" * (1 << 20) + "\n", ["longer than 1048576 bytes"]),
    ],
)
def test_a_wrong_file_is_named_with_the_key(text: str, parts: list[str], tmp_path: Path) -> None:
    file = written(tmp_path, text)
    found = sentence(CameraSettings, file, {})
    for part in [str(file), *parts]:
        assert part in found


@pytest.mark.parametrize(
    ("text", "overrides", "named"),
    [
        ("source: {fast: true}", {"rate.mode": "rule"}, "source.fast"),
        ("source: {fast: true}", {"rate.max_kbit_s": 64}, "source.fast"),
        ("rate: {mode: bandit}", {"encoder.price": 8}, "encoder.price"),
        ("encoder: {lookahead: 3}", {"rate.mode": "rule"}, "encoder.lookahead"),
        ("rate: {max_kbit_s: 64}", {"encoder.lookahead": 3}, "encoder.lookahead"),
        ("uplink: mqtt://broker", {"webrtc.fallback": True}, "webrtc.fallback"),
    ],
)
def test_sections_that_contradict_each_other_are_named(
    text: str, overrides: dict[str, object], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever layers they come from; each by itself is right."""
    file = written(tmp_path, text)
    load_settings(CameraSettings, file, {})
    found = sentence(CameraSettings, file, overrides)
    assert found.startswith(f"{named} ")
    for key, value in overrides.items():
        monkeypatch.setenv("MASKCAST_" + key.replace(".", "__").upper(), str(value))
    assert sentence(CameraSettings, file, {}) == found


@pytest.mark.parametrize("kind", [CameraSettings, DemoSettings])
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"encoder.grid": "2x2"}, "lookahead is for whole frames: set it to 0, or grid to 1x1"),
        ({"encoder.key_interval": 1}, "lookahead is for frames between KEYs: set it to 0, or key_interval above 1"),
    ],
)
def test_what_a_lookahead_is_not_for_is_said(kind: type[NodeSettings], other: dict[str, object], said: str) -> None:
    assert sentence(kind, None, {"encoder.lookahead": 3, **other}) == f"command line: encoder: {said}"
    load_settings(kind, None, other)


def test_a_threshold_of_a_higher_layer_takes_the_place_of_a_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "encoder: {price: 8, threshold: 97}")
    assert load_settings(CameraSettings, file, {}).encoder.price == 8
    encoder = load_settings(CameraSettings, file, {"encoder.threshold": 95.0}).encoder
    assert (encoder.threshold, encoder.price) == (95, None)
    monkeypatch.setenv("MASKCAST_ENCODER__THRESHOLD", "94")
    encoder = load_settings(CameraSettings, file, {}).encoder
    assert (encoder.threshold, encoder.price) == (94, None)
    assert load_settings(CameraSettings, file, {"encoder.price": 20.0}).encoder.price == 20
    monkeypatch.setenv("MASKCAST_ENCODER__THRESHOLD", "null")
    assert load_settings(CameraSettings, file, {}).encoder.price == 8


def test_a_price_is_for_frames_between_keys() -> None:
    said = sentence(CameraSettings, None, {"encoder.price": 8.0, "encoder.key_interval": 1})
    assert said == "command line: encoder: price is for frames between KEYs: leave it out, or set key_interval above 1"


@pytest.mark.parametrize("servers", [[], ["stun:host"]])
def test_a_way_through_a_relay_only_needs_one(servers: list[str]) -> None:
    said = sentence(CameraSettings, None, {"webrtc.relay_only": True, "webrtc.ice_servers": servers})
    assert said == "command line: webrtc: relay_only needs a turn: server in ice_servers"
    load_settings(CameraSettings, None, {"webrtc.relay_only": True, "webrtc.ice_servers": ["turns:a:b@host"]})


def test_a_lookahead_goes_with_one_region() -> None:
    load_settings(CameraSettings, None, {"encoder.lookahead": 3, "encoder.grid": "1x1"})


def test_a_rate_is_controlled_by_its_mode_or_its_limit() -> None:
    for overrides, controlled in (({}, False), ({"rate.mode": "rule"}, True), ({"rate.max_kbit_s": 64}, True)):
        assert load_settings(CameraSettings, None, overrides).rate_controlled is controlled


def test_what_to_do_about_a_contradiction_is_said() -> None:
    said = "encoder.lookahead lets frames wait: set it to 0, or leave rate.mode off and rate.max_kbit_s unset"
    assert sentence(CameraSettings, None, {"encoder.lookahead": 3, "rate.mode": "bandit"}) == said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in sentence(CameraSettings, tmp_path / "none.yaml", {})


def test_the_layer_at_fault_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "source: {fps: 3}")
    assert sentence(CameraSettings, file, {"source.fps": -1}).startswith("command line: source.fps")
    monkeypatch.setenv("MASKCAST_SOURCE__FPS", "-1")
    assert sentence(CameraSettings, file, {}).startswith("environment: source.fps")


@pytest.mark.parametrize("name", ["", "Cam", "a b", "-a", "a/b", "a" * 64])
def test_a_name_that_no_topic_can_hold_is_refused(name: str) -> None:
    assert "camera name" in sentence(CameraSettings, None, {"camera.name": name})


def test_a_password_does_not_get_into_the_error() -> None:
    assert "secret" not in sentence(CameraSettings, None, {"mqtt_url": "http://user:secret@host"})


def test_a_token_is_not_shown_and_gets_into_no_error() -> None:
    settings = load_settings(CameraSettings, None, {"webrtc.token": "secret"})
    assert settings.webrtc.token is not None
    assert settings.webrtc.token.get_secret_value() == "secret"
    assert "secret" not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    assert "secret" not in sentence(CameraSettings, None, {"webrtc.token": ["secret"]})
    assert "secret" not in sentence(CameraSettings, None, {"uplink": "webrtc://secret@host:8090"})


@pytest.mark.parametrize(
    "uplink", ["mqtt://a:b@broker", "mqtts://broker", "memory://", "webrtc+http://t@gate:8090", "webrtc+https://gate"]
)
def test_an_uplink_of_each_kind_is_taken(uplink: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKCAST_UPLINK", uplink)
    assert load_settings(CameraSettings, None, {}).uplink == uplink


def test_ice_servers_are_a_list_in_a_file_and_a_text_with_commas_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = ("stun:stun.example:3478", "turn:cam:secret@turn.example:3478?transport=tcp")
    file = written(tmp_path, f"webrtc: {{ice_servers: ['{servers[0]}', '{servers[1]}']}}")
    assert load_settings(CameraSettings, file, {}).webrtc.ice_servers == servers
    monkeypatch.setenv("MASKCAST_WEBRTC__ICE_SERVERS", ", ".join(servers))
    assert load_settings(GatewaySettings, None, {}).webrtc.ice_servers == servers


def test_zones_are_a_mapping_in_a_file_and_json_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "camera: {zones: {door: [[0.1, 0.4], [0.3, 0.4], [0.3, 1]]}}")
    zones = {"door": ((0.1, 0.4), (0.3, 0.4), (0.3, 1.0))}
    assert load_settings(CameraSettings, file, {}).camera.zones == zones
    monkeypatch.setenv("MASKCAST_CAMERA__ZONES", '{"door": [[0.1, 0.4], [0.3, 0.4], [0.3, 1]]}')
    assert load_settings(CameraSettings, None, {}).camera.zones == zones


def test_a_zone_that_is_none_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, "camera: {zones: {Front Door: [[0.1, 0.4], [0.3, 0.4], [0.3, 1]]}}")
    assert sentence(CameraSettings, file, {}).startswith(f"{file}: camera.zones: 'Front Door' is no name of a zone")


@pytest.mark.parametrize("server", ["stun.example", "http://u:secret@h", "webrtc:u:secret@h"])
def test_what_is_no_ice_server_is_refused_by_its_place_in_the_list(server: str) -> None:
    text = sentence(CameraSettings, None, {"webrtc.ice_servers": ["stun:a", server]})
    assert text.startswith("command line: webrtc.ice_servers.1: ")
    assert "secret" not in text


def test_settings_cannot_be_changed() -> None:
    settings = CameraSettings()
    with pytest.raises(ValidationError):
        settings.mqtt_url = "mqtt://other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.source.fps = 3.0  # type: ignore[misc]


@pytest.mark.parametrize("kind", KINDS)
def test_each_variable_sets_its_field(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: type[NodeSettings] = SETTINGS[kind]
    for name, key in zip(variables(model), keys(model), strict=True):
        value = model()
        for part in key.split("."):
            value = getattr(value, part)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        monkeypatch.setenv(name, "null" if value is None else text)
    assert load_settings(model, None, {}) == model()


def test_an_off_without_quotes_is_off(tmp_path: Path) -> None:
    assert load_settings(CameraSettings, written(tmp_path, "rate:\n  mode: off\n"), {}).rate.mode == "off"


def test_a_file_of_another_encoding_is_told_so_and_what_is_merged_may_be_said_again(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(b"log: {level: info}  # \xff")
    assert "is not UTF-8 from byte 22 on; save it as UTF-8" in sentence(CameraSettings, file, {})
    file.write_text("encoder: &one {quality: 1}\nscene: &two {<<: {longest_s: 1}, longest_s: 2}\n")
    assert load_settings(CameraSettings, file, {}).scene.longest_s == 2
    base = "encoder: &one {quality: 1}\nsource: &two {<<: {mirror: true}, mirror: false}\n"
    assert yaml.load(base + "a: &a {<<: *two, loop: true}\nb: {<<: *a, loop: false}\n", Loader=_Once)["b"] == {
        "mirror": False,
        "loop": False,
    }
