"""What a source's address names, and how it is shown: without what may be secret in it."""

import re
from pathlib import Path
from typing import Literal

from pipeline.errors import SourceError

STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "rtp")  # what comes at its own pace
_LISTENING = frozenset({"udp", "rtp"})  # wait for what is sent to this machine, where no host is named
_EXPECTED = (
    "expected a video file, a directory of images, a device, "
    f"or a stream over {', '.join(STREAMS[:-1])} or {STREAMS[-1]}"
)
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d+)?")  # and port
_QUERY = re.compile(r"\?[^@=&#?/]+=")  # how one begins
# A recorder's user and password may stand in the path.
_LOGIN_IN_PATH = re.compile(r"/[^/]*(user|usr|login|pass|pwd|token|key|secret)\w*[=:].*", re.IGNORECASE)

Kind = Literal["file", "directory", "server", "device"]


def kind_of(url: str) -> Kind:
    """SourceError for an address whose scheme is none of a stream's, or whose host cannot be told."""
    address = _ADDRESS.match(url)
    if address and address[1].lower() in STREAMS:
        host_of(url)
        return "server"
    if url.isdecimal() or url.startswith("/dev/video"):
        return "device"
    if address:
        raise cannot_open(url, "it is of no known kind")
    return "directory" if Path(url).is_dir() else "file"


def shown(url: str) -> str:
    """The address without what may be secret in it, for logs and errors: user, password, queries, RTMP's keys."""
    address = _ADDRESS.match(url)
    if address is None:
        return _shown_name(url)
    before, after = _cut(address[2])
    if "@" in after and ("@" not in before or not _QUERY.match(after)):
        return f"{address[1]}://..."  # a password with a question mark, or what else: who knows where it ends
    plain = before.rpartition("@")[2]  # to the last @: a password may hold a slash
    return f"{address[1]}://{_without_keys(address[1], plain)}"


def _shown_name(name: str) -> str:
    """A file's name; or an address with a slip in it, without what may be a login or a query."""
    before, after = _cut(name)
    if ":" in before and "@" in after:
        return "..."
    if re.search(r":.*@", before):
        return f"...{before[before.rindex('@') :]}"
    if (scheme := before.partition(":")[0]).lower() in STREAMS:
        before = _without_keys(scheme, before)
    return before if "=" in after else before + after


def _cut(rest: str) -> tuple[str, str]:
    """What stands before the first # or ?, and what begins with it."""
    before = re.split(r"[#?]", rest, maxsplit=1)[0]
    return before, rest[len(before) :]


def _without_keys(scheme: str, path: str) -> str:
    """An address without the key that is the end of RTMP's, and without a login in its path."""
    if scheme.lower().startswith("rtmp"):
        path = re.sub(r"/[^/]+/*$", "/...", path)
    return _LOGIN_IN_PATH.sub("/...", path)


def host_of(url: str) -> str:
    """The host of an address, none where UDP or RTP listen at a port.

    SourceError where it cannot be told, as where a password has characters in it that end the host.
    """
    scheme, _, rest = url.partition("://")
    before, after = _cut(rest)
    found = _HOST.fullmatch(before.partition("/")[0].rpartition("@")[2])
    named = found is not None and (found[1] or (found[2] and scheme.lower() in _LISTENING))
    in_login = "@" in after and "@" not in before and not _QUERY.match(after)
    if found is None or not named or in_login:
        raise SourceError(
            f"cannot open {shown(url)}: it names no host; in user and password / ? # @ : have to be percent-encoded, "
            "such as %23 for #"
        )
    return found[1].strip("[]")


def for_library(url: str) -> str:
    """The library knows schemes in small letters only, and listens for RTP only where it is told at which address."""
    scheme, _, rest = url.partition("://")
    return re.sub(r"^rtp://([^/?#]*@)?:", "rtp://0.0.0.0:", f"{scheme.lower()}://{rest}")


def cannot_open(url: str, reason: str) -> SourceError:
    return SourceError(f"cannot open {shown(url)}: {reason}; {_EXPECTED}")
