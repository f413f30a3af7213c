"""Real servers for tests: each is one process on a free port of this machine, in a folder of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

START_LIMIT_S = 15.0
STOP_LIMIT_S = 10.0
# Debian installs mosquitto where only the administrator's PATH looks.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


class Server:
    """One server process, a context manager; it can be killed and started again on its port."""

    def __init__(self, command: list[str], port: int, log: Path, answers: Callable[[int], bool]) -> None:
        self.port = port
        self._command = command
        self._log = log
        self._answers = answers
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers; raises AssertionError with its log if it does not."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"{self._command[0]} does not answer:\n{self._log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the process in order, or by force when that takes too long."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """End the process at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_LIMIT_S)
            self._process = None


def redis_server(folder: Path, *, durable: bool = False) -> Server:
    """Return a redis-server, not started; a durable one writes each command to disk before it answers."""
    port = free_port()
    command = [find_program("redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", str(port)]
    command += ["--dir", str(folder), "--save", "", "--appendonly", "yes" if durable else "no"]
    command += ["--appendfsync", "always"]
    return Server(command, port, folder / "redis.log", _redis_answers)


def mosquitto(folder: Path, *, user: str | None = None, password: str = "") -> Server:
    """Return a mosquitto broker, not started; open to all, or only to the user given."""
    port, settings = free_port(), folder / "mosquitto.conf"
    lines = [f"listener {port} 127.0.0.1", "persistence false", "set_tcp_nodelay true"]
    if os.geteuid() == 0:
        lines.append("user root")  # else it gives up the rights to read its own folder
    if user is None:
        lines.append("allow_anonymous true")
    else:
        logins = folder / "logins"
        program = find_program("mosquitto_passwd", "mosquitto")
        subprocess.run([program, "-b", "-c", str(logins), user, password], check=True, capture_output=True)
        lines += ["allow_anonymous false", f"password_file {logins}"]
    settings.write_text("\n".join(lines) + "\n")
    command = [find_program("mosquitto", "mosquitto"), "-c", str(settings)]
    return Server(command, port, folder / "mosquitto.log", accepts)


def find_program(name: str, package: str) -> str:
    """Return the path of a program; raises AssertionError that says how to get it."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise AssertionError(f"{name} is not installed, and these tests need it: apt-get install {package}")
    return path


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Whether something listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
