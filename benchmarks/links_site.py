"""A camera and all else on the two ends of an emulated link, each a process as an operator runs it.

host a: camera == up ==> host b: mosquitto, redis-server, gateway, worker; who watches sits on b too (`links_watch`)
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

from benchmarks.netlab import Host, Netlab
from pipeline.errors import ConfigError

MQTT, WEBRTC = "mqtt", "webrtc"
MQTT_PORT, REDIS_PORT, WEBRTC_PORT = 1883, 6379, 8090
_ROOT = Path(__file__).resolve().parent.parent
_START_S, _STOP_S, _POLL_S = 60.0, 15.0, 0.05
# Debian installs mosquitto where only the administrator's PATH looks.
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


@dataclass(frozen=True, slots=True)
class Node:
    """One process on a host, and the file its output goes to."""

    host: Host
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    @property
    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def threads(self) -> int:
        """How many threads it has."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    @property
    def resident_mb(self) -> float:
        """Resident memory in MB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def metrics(self, port: int) -> dict[str, float]:
        """The values of its page by name and labels, as the page writes them."""
        with self.host.entered(), urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def stop(self) -> int:
        """Ask it to stop, and wait until it has; its exit code."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_S)


class Site:
    """Servers, gateway and workers on b, as a context manager, and cameras on a; raises ConfigError."""

    def __init__(self, lab: Netlab, folder: Path, *, bundle: Path) -> None:
        self.lab, self._folder = lab, folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MASKCAST_")},
            "PYTHONPATH": str(_ROOT),
            "OMP_NUM_THREADS": "1",
            "MASKCAST_BUNDLE": str(bundle),
            "MASKCAST_REDIS_URL": f"redis://127.0.0.1:{REDIS_PORT}",
            "MASKCAST_ENCODER__THREADS": "1",
            "MASKCAST_DECODER__THREADS": "1",
        }
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        try:
            self._start_servers()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in reversed(self.nodes):
            if node.alive:
                node.process.kill()
            node.process.wait(_STOP_S)

    def gateway(self, **settings: str) -> Node:
        """Start a gateway that cameras reach both ways."""
        webrtc = {"WEBRTC__HOST": self.lab.b.address, "WEBRTC__PORT": str(WEBRTC_PORT)}
        return self._node(self.lab.b, "gateway", settings=webrtc | settings)

    def worker(self, **settings: str) -> Node:
        """Start a worker."""
        return self._node(self.lab.b, "worker", settings=settings)

    def camera(self, uplink: str, *words: str, near: bool = False, **settings: str) -> Node:
        """Start a camera on a, or near all else, on b, such as `camera(MQTT, "--loop", SOURCE__FPS="15")`."""
        host = self.lab.b if near else self.lab.a
        return self._node(host, "camera", "--uplink", self.address(uplink), *words, settings=settings)

    def crowd(self, *words: str) -> Node:
        """Start `links_crowd` near the gateway."""
        script = Path(__file__).with_name("links_crowd.py")
        command = [sys.executable, str(script), self.address(WEBRTC), *words]
        return self._start(self.lab.b, "crowd", command)

    def address(self, uplink: str) -> str:
        """What a camera is told to send to, over MQTT or WEBRTC."""
        far = self.lab.b.address
        return f"mqtt://{far}:{MQTT_PORT}" if uplink == MQTT else f"webrtc+http://{far}:{WEBRTC_PORT}"

    def logs(self) -> str:
        """What the nodes wrote, to tell why something did not work."""
        return "\n".join(f"== {node.log.name}\n{node.log.read_text()}" for node in self.nodes[2:])

    def _node(self, host: Host, *words: str, settings: dict[str, str]) -> Node:
        near = "127.0.0.1" if host == self.lab.b else self.lab.b.address
        settings = {"MQTT_URL": f"mqtt://{near}:{MQTT_PORT}"} | settings
        return self._start(host, words[0], [sys.executable, "-m", "pipeline.cli", *words], settings)

    def _start_servers(self) -> None:
        config = self._folder / "mosquitto.conf"
        # Run by root, it would else give up the rights to read its own folder.
        lines = [f"listener {MQTT_PORT} 0.0.0.0", "persistence false", "set_tcp_nodelay true", "user root"]
        config.write_text("\n".join([*lines, "allow_anonymous true"]) + "\n")
        redis = ["--bind", "127.0.0.1", "--port", str(REDIS_PORT), "--dir", str(self._folder), "--save", ""]
        self._start(self.lab.b, "mosquitto", [_program("mosquitto"), "-c", str(config)])
        self._start(self.lab.b, "redis", [_program("redis-server"), *redis])
        for node, port in zip(self.nodes, (MQTT_PORT, REDIS_PORT), strict=True):
            wait_until(partial(listens, self.lab.b, port), node.log.read_text, limit_s=_START_S)

    def _start(self, host: Host, name: str, words: Sequence[str], settings: Mapping[str, str] | None = None) -> Node:
        log = self._folder / f"{len(self.nodes)}-{name}.log"
        environment = self._environment | {f"MASKCAST_{key}": value for key, value in (settings or {}).items()}
        with log.open("wb") as output:
            process = host.start(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
            )
        self.nodes.append(Node(host, process, log))
        return self.nodes[-1]


def wait_until(holds: Callable[[], bool], why: Callable[[], str], *, limit_s: float) -> None:
    """Call `holds` until it is true; ConfigError with what `why` says by then when that takes too long."""
    deadline_s = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline_s:
            raise ConfigError(f"nothing after {limit_s:g} s; {why()[-6000:]}")
        time.sleep(_POLL_S)


def listens(host: Host, port: int) -> bool:
    """Whether something listens on a TCP port of the host's loopback."""
    with suppress(OSError), host.entered(), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _program(name: str) -> str:
    path = shutil.which(name, path=_SEARCH_PATH)
    if path is None:
        raise ConfigError(f"{name} is not installed: apt-get install {name}")
    return path
