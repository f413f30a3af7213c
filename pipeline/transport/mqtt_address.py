"""Where an MQTT broker is and who we are to it, read from a URL."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pipeline.errors import ConfigError

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_OPTIONS = {"version", "ca"}
_VERSIONS = {None, "5", "3.1.1"}


@dataclass(frozen=True, slots=True)
class MqttAddress:
    """One broker and our login there; its text is host:port, so a log never shows the password."""

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    version: str | None = None
    ca: Path | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the checks for `mqtts`, reading the trusted certificates from disk; raises ConfigError."""
        if not self.tls:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"certificate file {self.ca}: {reason}; name a PEM file") from error


def parse_mqtt_url(url: str) -> MqttAddress:
    """Read `mqtt[s]://[user[:password]@]host[:port][?version=3.1.1&ca=FILE]`; raises ConfigError.

    User and password are percent-encoded. Without `version` MQTT 5 is tried first, then 3.1.1. The text of an
    error never holds the password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError as error:
        raise ConfigError(
            "MQTT address: host or port cannot be read; write mqtt://user:password@host:1883, "
            "with / ? # @ : in user and password percent-encoded"
        ) from error
    if parts.scheme not in _PORTS or not host:
        raise ConfigError("MQTT address: write mqtt://host:1883 or mqtts://host:8883")
    if parts.path not in ("", "/") or parts.fragment:
        raise ConfigError(f"MQTT address of {host}: nothing may follow the port but ?version= and ?ca=")
    options = _options(parts, host)
    return MqttAddress(
        host=host,
        port=_PORTS[parts.scheme] if port is None else port,
        user=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        tls=parts.scheme == "mqtts",
        version=options.get("version"),
        ca=Path(options["ca"]) if "ca" in options else None,
    )


def _options(parts: SplitResult, host: str) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError(f"MQTT address of {host}: unknown option {name!r}; there are version and ca")
    if options.get("version") not in _VERSIONS:
        raise ConfigError(f"MQTT address of {host}: version {options['version']!r} is not 5 or 3.1.1")
    return options
