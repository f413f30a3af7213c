"""The channel that a camera's settings name: to the broker, or to a gateway, with the broker behind it if wanted."""

from functools import partial

from nodes.service import Presence
from pipeline.config import CameraSettings, WebRtcSection
from pipeline.errors import ConfigError
from pipeline.transport import Channel, open_channel
from pipeline.transport.fallback import FallbackChannel
from pipeline.transport.webrtc_address import WebRtcOptions, check_token, parse_ice_servers


def transport_of(settings: CameraSettings) -> str:
    """How the camera's packets travel, as its state says it where no gateway knows better.

    What reaches the broker without a gateway went there over MQTT, so that is what a camera that may fall back says.
    """
    url = _url(settings)
    if _is_webrtc(url):
        return settings.mqtt_url.partition(":")[0] if settings.webrtc.fallback else "webrtc"
    return url.partition(":")[0]


def open_uplink(settings: CameraSettings, presence: Presence) -> Channel:
    """Return the channel of the settings, to be entered; raises ConfigError."""
    url, root = _url(settings), settings.mqtt.root
    opening = partial(open_channel, root=root, will=presence.will, client_id=presence.client_id(root))
    if not _is_webrtc(url):
        return opening(url)
    channel = opening(url, camera=settings.camera.name, webrtc=webrtc_options(settings.webrtc))
    return FallbackChannel(channel, partial(opening, settings.mqtt_url)) if settings.webrtc.fallback else channel


def webrtc_options(settings: WebRtcSection) -> WebRtcOptions:
    """What a section says of the way to the gateway; raises ConfigError."""
    servers = parse_ice_servers(settings.ice_servers)
    token = None if settings.token is None else settings.token.get_secret_value()
    if token is not None:
        check_token(token, "webrtc.token")
    if settings.relay_only and not any(each.username for each in servers):
        raise ConfigError("webrtc.relay_only needs a turn: server in webrtc.ice_servers")
    return WebRtcOptions(
        token=token,
        ice_servers=servers,
        relay_only=settings.relay_only,
    )


def _url(settings: CameraSettings) -> str:
    """Where the packets go; it may hold a password."""
    return settings.uplink or settings.mqtt_url


def _is_webrtc(url: str) -> bool:
    return url.startswith("webrtc+")
