"""The channel that a camera's settings name: to the broker, or to a gateway, with the broker behind it if wanted."""

from functools import partial

import structlog

from nodes.presence import Presence
from pipeline.config import CameraSettings, WebRtcSection
from pipeline.transport import Channel, open_channel
from pipeline.transport.address import is_loopback
from pipeline.transport.fallback import FallbackChannel
from pipeline.transport.webrtc_address import (
    WebRtcAddress,
    WebRtcOptions,
    check_token,
    parse_ice_servers,
    parse_webrtc_url,
)

log = structlog.get_logger()


def transport_of(settings: CameraSettings) -> str:
    """How the camera's packets travel, as its state says it where no gateway knows better.

    What reaches the broker without a gateway went there over MQTT, so that is what a camera that may fall back says.
    """
    if goes_over_webrtc(settings):
        return settings.mqtt_url.partition(":")[0] if settings.webrtc.fallback else "webrtc"
    return _url(settings).partition(":")[0]


def goes_over_webrtc(settings: CameraSettings) -> bool:
    """Whether packets go to a gateway over WebRTC, at least while it can be reached."""
    return _url(settings).startswith("webrtc+")


def far_side_of(settings: CameraSettings) -> str:
    """What the camera waits for while its uplink is not connected."""
    if not goes_over_webrtc(settings):
        return "the broker"
    return "the gateway or the broker" if settings.webrtc.fallback else "the gateway"


def open_uplink(settings: CameraSettings, presence: Presence) -> Channel:
    """Return the channel of the settings, to be entered; raises ConfigError, for what only WebRTC needs too."""
    url, root, options = _url(settings), settings.mqtt.root, webrtc_options(settings.webrtc)
    opening = partial(open_channel, root=root, will=presence.will, client_id=presence.client_id(root))
    if goes_over_webrtc(settings):
        channel = opening(url, camera=settings.camera.name, webrtc=options)
        _warn_of_readable_token(parse_webrtc_url(url), options)
        return FallbackChannel(channel, partial(opening, settings.mqtt_url)) if settings.webrtc.fallback else channel
    return opening(url)


def webrtc_options(settings: WebRtcSection) -> WebRtcOptions:
    """What a section says of the way to the gateway; raises ConfigError."""
    servers = parse_ice_servers(settings.ice_servers)
    token = None if settings.token is None else settings.token.get_secret_value()
    if token is not None:
        check_token(token, "webrtc.token")
    return WebRtcOptions(
        token=token,
        ice_servers=servers,
        relay_only=settings.relay_only,
    )


def _url(settings: CameraSettings) -> str:
    """Where the packets go; it may hold a password."""
    return settings.uplink or settings.mqtt_url


def _warn_of_readable_token(gateway: WebRtcAddress, options: WebRtcOptions) -> None:
    if (gateway.token or options.token) and not gateway.tls and not is_loopback(gateway.host):
        log.warning("others on the way to the gateway can read the token: use webrtc+https://", address=str(gateway))
