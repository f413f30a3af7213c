"""Which channel a camera's settings name, and what its state says of it."""

import asyncio
from functools import partial

import pytest
import structlog
from channels import LIMIT_S, until
from servers import free_port

from nodes import uplinks
from nodes.offers import taking_offers
from nodes.presence import Presence
from nodes.uplinks import far_side_of, open_uplink, transport_of, webrtc_options
from pipeline.config import CameraSettings, WebRtcGatewaySection, load_settings
from pipeline.errors import ConfigError
from pipeline.transport import STATE, Channel
from pipeline.transport.fallback import FallbackChannel
from pipeline.transport.memory import MemoryChannel, process_broker
from pipeline.transport.mqtt import MqttChannel
from pipeline.transport.webrtc import WebRtcChannel

PRESENCE = Presence(topic="cam-1/state", bundle="ab", width=480, height=360, transport="webrtc", since=1)


def settings(**values: object) -> CameraSettings:
    return load_settings(CameraSettings, None, {key.replace("__", "."): value for key, value in values.items()})


@pytest.mark.parametrize(
    ("values", "kind", "transport"),
    [
        ({}, MqttChannel, "mqtt"),
        ({"mqtt_url": "mqtts://broker"}, MqttChannel, "mqtts"),
        ({"mqtt_url": "memory://"}, MemoryChannel, "memory"),
        ({"uplink": "mqtt://other"}, MqttChannel, "mqtt"),
        ({"uplink": "mqtts://other", "mqtt_url": "mqtt://broker"}, MqttChannel, "mqtts"),
        ({"uplink": "webrtc+http://gateway:8090"}, WebRtcChannel, "webrtc"),
        ({"uplink": "webrtc+https://token@gateway"}, WebRtcChannel, "webrtc"),
        # The gateway says webrtc of what it hands on; what comes to the broker otherwise came over MQTT.
        ({"uplink": "webrtc+https://gateway", "webrtc__fallback": True}, FallbackChannel, "mqtt"),
    ],
)
def test_each_address_gives_its_channel(values: dict[str, object], kind: type[Channel], transport: str) -> None:
    assert isinstance(open_uplink(settings(**values), PRESENCE), kind)
    assert transport_of(settings(**values)) == transport


@pytest.mark.parametrize("uplink", ["mqtt://a:b:c", "webrtc+http://", "webrtc+http://a:b@gateway", "webrtc+http://g/x"])
def test_a_wrong_address_is_an_error_at_the_start(uplink: str) -> None:
    with pytest.raises(ConfigError):
        open_uplink(settings(uplink=uplink), PRESENCE)


def test_a_wrong_broker_to_fall_back_to_is_an_error_at_the_start() -> None:
    values = {"uplink": "webrtc+http://gateway", "webrtc__fallback": True, "mqtt_url": "mqtt://broker/path"}
    with pytest.raises(ConfigError, match="broker"):
        open_uplink(settings(**values), PRESENCE)


def test_the_options_are_those_of_the_section_and_no_log_shows_the_token() -> None:
    servers = ["stun:stun.example:3478", "turn:cam:secret@turn.example:3478"]
    section = settings(webrtc__token="hidden", webrtc__ice_servers=servers, webrtc__relay_only=True).webrtc
    options = webrtc_options(section)
    assert (options.token, options.relay_only) == ("hidden", True)
    assert [server.url for server in options.ice_servers] == ["stun:stun.example:3478", "turn:turn.example:3478"]
    assert (options.ice_servers[1].username, options.ice_servers[1].credential) == ("cam", "secret")
    assert "hidden" not in repr(options)
    assert "secret" not in repr(options)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"webrtc__relay_only": True, "webrtc__ice_servers": ["stun:host"]}, "relay_only"),
        ({"webrtc__ice_servers": ["turn:host"]}, "ICE server"),
        ({"webrtc__ice_servers": ["stun:host", "stun:other"]}, "one stun: and one turn:"),
        ({"webrtc__ice_servers": ["turn:a:b@host?transport=udp", "turn:a:b@host?transport=tcp"]}, "one turn:"),
        ({"webrtc__token": "from-a-file\n"}, r"webrtc\.token"),
    ],
)
@pytest.mark.parametrize("uplink", ["webrtc+http://gateway", "mqtt://broker"])
def test_options_that_cannot_work_are_an_error_at_the_start(values: dict[str, object], named: str, uplink: str) -> None:
    with pytest.raises(ConfigError, match=named):
        open_uplink(settings(uplink=uplink, **values), PRESENCE)


@pytest.mark.parametrize("values", [{}, {"uplink": "mqtt://other"}, {"uplink": "memory://"}])
def test_a_way_back_for_an_uplink_that_is_not_webrtc_is_an_error_at_the_start(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"webrtc\.fallback"):
        open_uplink(settings(webrtc__fallback=True, **values), PRESENCE)


@pytest.mark.parametrize(
    ("values", "waited_for"),
    [
        ({}, "the broker"),
        ({"uplink": "mqtts://other"}, "the broker"),
        ({"uplink": "webrtc+http://gateway"}, "the gateway"),
        ({"uplink": "webrtc+http://gateway", "webrtc__fallback": True}, "the gateway or the broker"),
    ],
)
def test_what_a_camera_waits_for_is_where_its_uplink_goes(values: dict[str, object], waited_for: str) -> None:
    assert far_side_of(settings(**values)) == waited_for


@pytest.mark.parametrize(
    "values",
    [
        {"uplink": "webrtc+http://secret@gateway"},
        {"uplink": "webrtc+http://192.0.2.7:81", "webrtc__token": "secret"},
        {"uplink": "webrtc+http://gateway", "webrtc__token": "secret", "webrtc__fallback": True},
    ],
)
def test_a_token_that_others_can_read_on_the_way_is_told_once_and_not_shown(values: dict[str, object]) -> None:
    with structlog.testing.capture_logs() as logs:
        open_uplink(settings(**values), PRESENCE)
    (warning,) = logs
    assert warning["log_level"] == "warning"
    assert "webrtc+https" in warning["event"]
    assert "secret" not in str(warning)


@pytest.mark.parametrize(
    "values",
    [
        {"uplink": "webrtc+http://gateway"},
        {"uplink": "webrtc+https://secret@gateway"},
        {"uplink": "webrtc+http://secret@127.0.0.1:8090"},
        {"uplink": "webrtc+http://secret@[::1]:8090"},
        {"uplink": "webrtc+http://localhost", "webrtc__token": "secret"},
        {"uplink": "mqtt://broker", "webrtc__token": "secret"},
    ],
)
def test_a_token_that_nobody_can_read_needs_no_warning(values: dict[str, object]) -> None:
    with structlog.testing.capture_logs() as logs:
        open_uplink(settings(**values), PRESENCE)
    assert not logs


async def test_while_no_gateway_is_there_the_broker_is_used_and_when_it_is_there_the_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uplinks, "FallbackChannel", partial(FallbackChannel, after_s=0.2, back_s=0.2))
    name, port = f"fallback-{free_port()}", free_port()
    values = {"uplink": f"webrtc+http://127.0.0.1:{port}", "mqtt_url": f"memory://{name}", "webrtc__fallback": True}
    retained = process_broker(name).retained
    async with open_uplink(settings(**values), PRESENCE) as uplink, MemoryChannel(process_broker(name)) as broker:
        packets = broker.subscribe("cam-1/latent")
        await uplink.publish("cam-1/state", b"{}", STATE)
        await uplink.wait_connected(LIMIT_S)
        await uplink.publish("cam-1/latent", b"packet")
        async with asyncio.timeout(LIMIT_S):
            assert (await anext(packets)).payload == b"packet"
        await until(lambda: retained.get("maskcast/cam-1/state") == b"{}")
        offers = WebRtcGatewaySection(port=port)
        async with taking_offers(offers, packet_bytes=65_536, changed=lambda: None) as server:
            arriving = server.subscribe("cam-1/latent")
            async with asyncio.timeout(LIMIT_S):
                came = asyncio.ensure_future(anext(arriving))
                while not came.done():
                    await asyncio.wait({came}, timeout=0.05)
                    if uplink.connected:
                        await uplink.publish("cam-1/latent", b"over webrtc")
            assert came.result().payload == b"over webrtc"
