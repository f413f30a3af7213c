"""Where a gateway takes WebRTC offers and how a way to it is found, read from URLs; imports no WebRTC."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from pipeline.errors import ConfigError
from pipeline.transport.address import AddressForm, ServerAddress, split_address

_FORM = AddressForm(
    called="WebRTC address",
    ports={"webrtc+http": 8090, "webrtc+https": 443},
    tls="webrtc+https",
    example="webrtc+http://host:8090 or webrtc+https://host",
    example_with_secret="webrtc+http://token@host:8090",
    secret="the token",
    options=("ca",),
)
_ICE_SCHEMES = ("stun", "turn", "turns")


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server: `stun:host:port`, `turn[s]:host:port[?transport=udp|tcp]`; TURN has a login."""

    url: str
    username: str | None = None
    credential: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class WebRtcOptions:
    """How an end looks for its way to the other, and when it gives the other up; the token is for a URL without one."""

    token: str | None = field(default=None, repr=False)
    ice_servers: tuple[IceServer, ...] = ()
    relay_only: bool = False  # only through the TURN server, as a network that lets nothing else through needs
    # From the answer to two open channels. Usually ten round trips; where an INIT ACK of each end is lost, aiortc's
    # two ends wait for ever (its INITs carry a tag the second time), and only another attempt helps.
    open_s: float = 10.0
    silence_s: float = 4.0  # nothing heard for so long: the other end is gone; each says something once a second
    packet_bytes: int = 1024 * 1024  # the longest packet


@dataclass(frozen=True, slots=True, kw_only=True)
class WebRtcAddress(ServerAddress):
    """One gateway and our token there."""

    token: str | None = field(default=None, repr=False)

    @property
    def base_url(self) -> str:
        """The address that paths are added to, without the token."""
        return f"{'https' if self.tls else 'http'}://{self}"


def parse_webrtc_url(url: str) -> WebRtcAddress:
    """Read `webrtc+http[s]://[token@]host[:port][?ca=FILE]`; raises ConfigError.

    The token is percent-encoded. The text of an error never holds it.
    """
    split = split_address(url, _FORM)
    parts = split.parts
    if parts.password is not None:
        raise ConfigError(f"{split.where}: one token stands before the @, no user with a password")
    return WebRtcAddress(
        host=split.host,
        port=split.port,
        tls=split.tls,
        ca=split.ca,
        token=None if parts.username is None else check_token(unquote(parts.username), split.where),
    )


def parse_ice_url(url: str) -> IceServer:
    """Read `stun:host[:port]` or `turn[s]:[user:password@]host[:port][?transport=udp|tcp]`; raises ConfigError.

    User and password are percent-encoded. The text of an error never holds them.
    """
    scheme, _, rest = url.partition(":")
    login, _, place = rest.removeprefix("//").rpartition("@")
    host, _, query = place.partition("?")
    if scheme not in _ICE_SCHEMES or not host or "/" in host:
        raise ConfigError("ICE server: write stun:host:3478 or turn:user:password@host:3478?transport=udp")
    if query not in ("", "transport=udp", "transport=tcp") or (query and scheme == "stun"):
        raise ConfigError(f"ICE server {host}: only ?transport=udp or ?transport=tcp may follow, and only for turn")
    if scheme == "turns" and query == "transport=udp":
        raise ConfigError(f"ICE server {host}: turns goes over tcp")
    user, _, password = login.partition(":")
    if (scheme == "stun") != (not login) or (login and not (user and password)):
        raise ConfigError(f"ICE server {host}: turn has user:password@ before the host, stun has not")
    _check_port(host)
    if scheme == "stun":
        return IceServer(f"{scheme}:{place}")
    return IceServer(f"{scheme}:{place}", unquote(user), unquote(password))


def parse_ice_servers(urls: Sequence[str]) -> tuple[IceServer, ...]:
    """Read a stun: and a turn: server at most, since no more would be asked; raises ConfigError."""
    servers = tuple(parse_ice_url(each) for each in urls)
    turn = sum(each.username is not None for each in servers)
    if turn > 1 or len(servers) - turn > 1:
        raise ConfigError("webrtc.ice_servers: one stun: and one turn: server at most, no more would be asked")
    return servers


def _check_port(host: str) -> None:
    _, colon, port = host.partition(":")
    if colon and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"ICE server {host[:80]}: its port is not a number from 1 to 65535 (IPv6 needs a name)")


def check_token(token: str, where: str) -> str:
    """Return the token, if it can be sent; raises ConfigError, which never holds it."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: a token is printable ASCII without spaces")
    return token
