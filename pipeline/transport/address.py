"""What the addresses of brokers and gateways share: host, port and the checks of TLS, read from a URL."""

import ipaddress
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One server; its text is host:port, so that a log never shows a secret."""

    host: str
    port: int
    tls: bool = False
    ca: Path | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the checks of a connection, None without TLS; reads the certificates from disk, raises ConfigError."""
        if not self.tls:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"certificate file {self.ca}: {reason}; name a PEM file") from error


@dataclass(frozen=True, slots=True)
class AddressForm:
    """How an address is written: what it is called, the port each scheme stands for, examples, options after a `?`.

    `tls` is the scheme whose connections are checked.
    """

    called: str
    ports: Mapping[str, int]
    tls: str
    example: str
    example_with_secret: str
    secret: str
    options: Sequence[str]


@dataclass(frozen=True, slots=True)
class SplitAddress:
    """The parts of an address of the right form; `where` begins a sentence about it."""

    parts: SplitResult
    host: str
    port: int
    tls: bool
    options: Mapping[str, str]
    where: str

    @property
    def ca(self) -> Path | None:
        """The file that `?ca=` names."""
        return Path(self.options["ca"]) if "ca" in self.options else None


def split_address(url: str, form: AddressForm) -> SplitAddress:
    """Take an address apart; raises ConfigError, whose text never holds what is secret."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError as error:
        raise ConfigError(
            f"{form.called}: host or port cannot be read; write {form.example_with_secret}, "
            f"with / ? # @ : in {form.secret} percent-encoded"
        ) from error
    if parts.scheme not in form.ports or not host:
        raise ConfigError(f"{form.called}: write {form.example}")
    where = f"{form.called} of {host}"
    if port == 0:
        raise ConfigError(f"{where}: port 0 is none; write 1 to 65535, or leave it out for {form.ports[parts.scheme]}")
    if parts.path not in ("", "/") or parts.fragment:
        raise ConfigError(f"{where}: nothing may follow the port but {_joined(f'?{name}=' for name in form.options)}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in form.options:
            verb = "is" if len(form.options) == 1 else "are"
            raise ConfigError(f"{where}: unknown option {name!r}; there {verb} {_joined(form.options)}")
    tls = parts.scheme == form.tls
    if "ca" in options and not tls:
        raise ConfigError(f"{where}: ?ca= checks nothing over {parts.scheme}://, only {form.tls}:// has certificates")
    return SplitAddress(parts, host, form.ports[parts.scheme] if port is None else port, tls, options, where)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, or an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _joined(names: Iterable[str]) -> str:
    return " and ".join(names)
