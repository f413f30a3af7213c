"""Two hosts and the link between them on one machine, for tests and benchmarks: rate, delay, jitter, loss, cuts.

host a, 10.77.0.1 == up ==> host b, 10.77.0.2; b == down ==> a      (`netlab_link` is the link, a process of its own)

The hosts are network namespaces that see nothing but each other, so labs never meet, and all have the same addresses.
Kernels without netem do, since the link is in user space; root and /dev/net/tun are needed.
"""

import json
import os
import re
import secrets
import select
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.netlab_link import HOSTS, Counts, Way, entered, remove_host
from pipeline.errors import ConfigError

__all__ = ["Counts", "Host", "Netlab", "Way"]

_NEEDS = "the network lab needs root, /dev/net/tun and the program ip (Debian: iproute2)"
_ANSWER_S, _STOP_S = 10.0, 10.0
_NAME = re.compile(r"mklab-(\d+)-[0-9a-f]{6}-[ab]")
_NAMES = Path("/run/netns")
_CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")  # of the namespace of the thread that opens it


@dataclass(frozen=True, slots=True)
class Host:
    """One end of the link: the name of its namespace, its address."""

    name: str
    address: str

    def start(self, words: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
        """Start a program on this host; `how` as Popen has it, and its process is the program's own."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *words], **how)

    def entered(self) -> AbstractContextManager[None]:
        """Be here with this thread for a while, to open sockets and to start threads, which then stay here."""
        return entered(self.name)


class Netlab:
    """A lab, as a context manager; its hosts are `a` and `b`, its link is perfect until it is changed.

    Entering raises ConfigError where rights or programs are missing. When it is left, or this process dies, what
    still runs on its hosts is killed.
    """

    def __init__(self, *, seed: int = 0) -> None:
        name = f"mklab-{os.getpid()}-{secrets.token_hex(3)}"
        self.a, self.b = Host(f"{name}-a", HOSTS[0]), Host(f"{name}-b", HOSTS[1])
        self.up = self.down = Way()
        self._seed = seed

    def __enter__(self) -> Self:
        _check_rights()
        _remove_stale()
        link = Path(__file__).with_name("netlab_link.py")
        words = [sys.executable, "-I", str(link), self.a.name, self.b.name, str(self._seed)]
        pipe = subprocess.PIPE
        # A session of its own: an interrupt from the keyboard is not for the link.
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        try:
            self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process.stdin and process.stdout and process.stderr
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)
        process.stdout.close()
        process.stderr.close()
        for host in (self.a, self.b):
            if (_NAMES / host.name).exists():
                remove_host(host.name)

    def change(self, **fields: Any) -> None:
        """Change fields of both ways, such as `rate_kbit_s=100`, at once: when this returns it is done."""
        self.change_ways(replace(self.up, **fields), replace(self.down, **fields))

    def change_ways(self, up: Way, down: Way | None = None) -> None:
        """Make the link go so from a to b, and so from b to a, or the same."""
        self.up, self.down = up, down or up
        self._ask({"up": asdict(self.up), "down": asdict(self.down)})

    def use_congestion(self, name: str) -> None:
        """Let TCP connections that begin from now on control congestion this way; ConfigError where it cannot be."""
        for host in (self.a, self.b):
            try:
                with host.entered():
                    _CONGESTION.write_text(name)
            except OSError as error:
                allowed = _CONGESTION.with_name("tcp_allowed_congestion_control").read_text().strip()
                raise ConfigError(
                    f"TCP congestion control {name!r} is not allowed here; these are: {allowed}"
                ) from error

    @property
    def congestion(self) -> str:
        """How TCP connections control congestion."""
        with self.a.entered():
            return _CONGESTION.read_text().strip()

    def counts(self) -> tuple[Counts, Counts]:
        """What was carried up, and down, since the lab was entered."""
        return self._ask({})

    def queue_ms(self) -> float:
        """How long a packet that goes up now would wait for the wire."""
        up, _ = self.counts()
        return 1000 * self.up.seconds(up.waiting_bytes)

    def _ask(self, order: dict[str, Any]) -> tuple[Counts, Counts]:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> tuple[Counts, Counts]:
        assert self._process.stdout and self._process.stderr
        readable, _, _ = select.select([self._process.stdout], [], [], _ANSWER_S)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            self._process.kill()
            why = self._process.stderr.read().decode(errors="replace").strip() or "it does not answer"
            raise ConfigError(f"{_NEEDS}; its link ended: {why.splitlines()[-1]}")
        up, down = (Counts(**each) for each in json.loads(line))
        return up, down


def _check_rights() -> None:
    have = {
        "root": os.geteuid() == 0,
        "/dev/net/tun": Path("/dev/net/tun").exists(),
        "ip": shutil.which("ip") is not None,
    }
    if missing := [name for name, there in have.items() if not there]:
        raise ConfigError(f"{_NEEDS}; here it lacks {' and '.join(missing)}")


def _remove_stale() -> None:
    """Remove the hosts of labs whose process was killed together with their link."""
    for path in _NAMES.glob("mklab-*"):
        found = _NAME.fullmatch(path.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            remove_host(path.name)
