"""Nodes as processes, as an operator runs them, for the tests that go over real servers."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundle import default_bundle

ROOT = Path(__file__).parent.parent
STOP_LIMIT_S = 15.0


@dataclass(frozen=True, slots=True)
class Node:
    """One running node and the file its output goes to."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def resident_mb(self) -> float:
        """Resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found, "the process is gone"
        return int(found[1]) / 1024

    @property
    def mapped(self) -> str:
        """The files that are mapped into the process."""
        return Path(f"/proc/{self.process.pid}/maps").read_text()

    def kill(self) -> None:
        """End the process at once, as a crash does."""
        self.process.kill()
        self.process.wait(STOP_LIMIT_S)

    def stop(self) -> int:
        """Ask the process to stop, and wait until it has; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_LIMIT_S)


class Site:
    """Starts nodes that share one broker and one queue, and stops what is left of them."""

    def __init__(self, folder: Path, *, mqtt_url: str, redis_url: str) -> None:
        self._folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MASKCAST_")},
            "PYTHONPATH": str(ROOT),
            "MASKCAST_BUNDLE": str(default_bundle()),
            "MASKCAST_MQTT_URL": mqtt_url,
            "MASKCAST_REDIS_URL": redis_url,
            "MASKCAST_HEALTH__PORT": "0",
        }
        self.nodes: list[Node] = []

    def start(self, *words: str, **settings: str) -> Node:
        """Start `maskcast WORDS`, with settings such as WORKER__ID="a"."""
        log = self._folder / f"{len(self.nodes)}-{words[0]}.log"
        environment = self._environment | {f"MASKCAST_{name}": value for name, value in settings.items()}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        node = Node(process, log)
        self.nodes.append(node)
        return node

    def logs(self) -> str:
        """What all nodes wrote, for the message of a failed assertion."""
        return "\n".join(f"== {node.log.name}\n{node.log.read_text()}" for node in self.nodes)


@contextmanager
def site(folder: Path, *, mqtt_url: str, redis_url: str) -> Iterator[Site]:
    """A site whose nodes are gone when it is left."""
    here = Site(folder, mqtt_url=mqtt_url, redis_url=redis_url)
    try:
        yield here
    finally:
        for node in here.nodes:
            if node.process.poll() is None:
                node.kill()


def wait_until(holds: object, *, limit_s: float, message: str) -> None:
    """Call `holds` until it is true; AssertionError with the message when that takes too long."""
    assert callable(holds)
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, message
        time.sleep(0.02)
