"""Where an MQTT broker is and who we are to it, read from a URL."""

from dataclasses import dataclass, field
from urllib.parse import unquote

from pipeline.errors import ConfigError
from pipeline.transport.address import AddressForm, ServerAddress, split_address

_FORM = AddressForm(
    called="MQTT address",
    ports={"mqtt": 1883, "mqtts": 8883},
    tls="mqtts",
    example="mqtt://host:1883 or mqtts://host:8883",
    example_with_secret="mqtt://user:password@host:1883",
    secret="user and password",
    options=("version", "ca"),
)
_VERSIONS = {None, "5", "3.1.1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttAddress(ServerAddress):
    """One broker and our login there."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    version: str | None = None


def parse_mqtt_url(url: str) -> MqttAddress:
    """Read `mqtt[s]://[user[:password]@]host[:port][?version=3.1.1&ca=FILE]`; raises ConfigError.

    User and password are percent-encoded. Without `version` MQTT 5 is tried first, then 3.1.1. The text of an
    error never holds the password.
    """
    split = split_address(url, _FORM)
    parts, version = split.parts, split.options.get("version")
    if version not in _VERSIONS:
        raise ConfigError(f"{split.where}: version {version!r} is not 5 or 3.1.1")
    return MqttAddress(
        host=split.host,
        port=split.port,
        tls=split.tls,
        ca=split.ca,
        user=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        version=version,
    )
