"""The network lab: what its link does to packets between two real hosts, and what is left of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from processes import ROOT, wait_until

from benchmarks.netlab import Counts, Host, Netlab
from pipeline.errors import ConfigError

pytestmark = pytest.mark.root

HEADERS = 28  # of IP and UDP
SO_RCVBUFFORCE = 33  # Linux: a buffer as large as asked for; the module socket does not name it
NAMES = Path("/run/netns")


@pytest.fixture
def lab() -> Iterator[Netlab]:
    with Netlab() as made:
        yield made


def bound(host: Host) -> socket.socket:
    """A UDP socket of a host, on port 9000."""
    with host.entered():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)  # what a test sends may all wait there
    made.bind((host.address, 9000))
    made.settimeout(5.0)
    return made


def send(sender: socket.socket, to: Host, *, number: int = 0, size: int = 1000) -> None:
    sender.sendto(number.to_bytes(4, "big") + bytes(size - HEADERS - 4), (to.address, 9000))


def received(receiver: socket.socket, *, quiet_s: float = 0.5) -> tuple[list[int], list[float]]:
    """The numbers of all datagrams that come until none does for a while, and when each came."""
    receiver.settimeout(quiet_s)
    numbers, times = [], []
    while True:
        try:
            numbers.append(int.from_bytes(receiver.recv(2000)[:4], "big"))
        except TimeoutError:
            return numbers, times
        times.append(time.monotonic())


def test_the_rate_is_right_within_five_percent(lab: Netlab) -> None:
    lab.change(rate_kbit_s=2000, queue_kib=256)
    with bound(lab.a) as sender, bound(lab.b) as receiver:
        for number in range(250):
            send(sender, lab.b, number=number)
        numbers, times = received(receiver)
    assert numbers == list(range(250))
    assert 249 * 8 / (times[-1] - times[0]) == pytest.approx(2000, rel=0.05)
    up, down = lab.counts()
    assert (up.packets, up.bytes, up.lost, up.refused) == (250, 250_000, 0, 0)
    assert down.packets == 0


def test_the_delay_is_right_within_two_ms_each_way(lab: Netlab) -> None:
    lab.change_ways(replace(lab.up, delay_ms=40), replace(lab.down, delay_ms=10))
    took_ms: dict[str, list[float]] = {"up": [], "down": []}
    with bound(lab.a) as near, bound(lab.b) as far:
        for name, one, other, to in (("up", near, far, lab.b), ("down", far, near, lab.a)):
            for _ in range(20):
                sent_s = time.monotonic()
                send(one, to)
                other.recv(2000)
                took_ms[name].append(1000 * (time.monotonic() - sent_s))
    # A busy machine makes some later; none is early.
    assert 40 <= min(took_ms["up"]) < 42
    assert 10 <= min(took_ms["down"]) < 12


def test_loss_is_as_frequent_as_it_should_be(lab: Netlab) -> None:
    lab.change(loss=0.1)
    with bound(lab.a) as sender, bound(lab.b) as receiver:
        for number in range(1500):
            send(sender, lab.b, number=number, size=100)
        numbers, _ = received(receiver)
    lost = lab.counts()[0].lost
    assert lost == 1500 - len(numbers)
    assert 1500 * 0.1 - 50 < lost < 1500 * 0.1 + 50  # more than four standard deviations
    assert numbers == sorted(numbers)


def test_a_machine_that_stalls_loses_nothing(lab: Netlab) -> None:
    with bound(lab.a) as sender, bound(lab.b) as receiver:
        lab._process.send_signal(signal.SIGSTOP)
        for number in range(1500):
            send(sender, lab.b, number=number, size=100)
        lab._process.send_signal(signal.SIGCONT)
        numbers, _ = received(receiver)
    assert numbers == list(range(1500))


def test_a_queue_is_bounded(lab: Netlab) -> None:
    lab.change(rate_kbit_s=400, queue_kib=16)
    with bound(lab.a) as sender, bound(lab.b) as receiver:
        for number in range(50):
            send(sender, lab.b, number=number)
        wait_until(lambda: lab.counts()[0].refused > 30, limit_s=2, message="nothing was refused")
        assert 0 < lab.queue_ms() <= 16 * 1024 * 8 / 400
        numbers, _ = received(receiver)
    assert 16 <= len(numbers) <= 18
    assert lab.counts()[0].refused == 50 - len(numbers)
    assert lab.queue_ms() == 0


def test_a_cut_link_carries_nothing_until_it_is_whole_again(lab: Netlab) -> None:
    with bound(lab.a) as sender, bound(lab.b) as receiver:
        lab.change(cut=True)
        send(sender, lab.b, number=1)
        assert received(receiver, quiet_s=0.2)[0] == []
        lab.change(cut=False)
        send(sender, lab.b, number=2)
        assert received(receiver, quiet_s=0.2)[0] == [2]
    assert lab.counts()[0].lost == 1


def test_a_program_runs_on_its_host_and_sees_only_the_other(lab: Netlab) -> None:
    script = "import os, socket; print(os.getpid(), [name for _, name in socket.if_nameindex()])"
    process = lab.a.start([sys.executable, "-c", script], stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=20)
    pid, interfaces = out.decode().split(maxsplit=1)
    assert int(pid) == process.pid
    assert "link0" in interfaces
    assert "eth" not in interfaces


def test_the_kind_of_tcp_is_that_of_the_lab_alone(lab: Netlab) -> None:
    here = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    before = here.read_text()
    lab.use_congestion("reno")  # every kernel has it
    assert lab.congestion == "reno"
    assert here.read_text() == before
    with pytest.raises(ConfigError, match=r"these are: .*reno"):
        lab.use_congestion("no-such-thing")


def test_labs_do_not_meet() -> None:
    with Netlab() as one, Netlab() as other, bound(one.a) as sender, bound(one.b) as near, bound(other.b) as far:
        send(sender, one.b, number=7)
        assert received(near, quiet_s=0.2)[0] == [7]
        assert received(far, quiet_s=0.2)[0] == []


def hosts() -> set[str]:
    return {path.name for path in NAMES.glob("mklab-*")}


def test_nothing_is_left_of_a_lab() -> None:
    with Netlab() as lab:
        assert hosts() >= {lab.a.name, lab.b.name}
        process = lab.b.start(["sleep", "60"])
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", limit_s=5, message="no sleep")
    assert not hosts() & {lab.a.name, lab.b.name}
    assert process.wait(5) == -signal.SIGKILL


def test_nothing_is_left_when_the_owner_of_a_lab_is_killed() -> None:
    script = "from benchmarks.netlab import Netlab\nwith Netlab() as lab: print(lab.a.name, flush=True); input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdin and owner.stdout
    with owner.stdin, owner.stdout:
        name = owner.stdout.readline().strip()
        assert name in hosts()
        owner.kill()
        owner.wait(5)
    wait_until(lambda: not hosts() & {name, f"{name[:-1]}b"}, limit_s=10, message="its hosts are still there")


def test_hosts_that_the_dead_left_behind_are_removed_by_the_next_lab() -> None:
    process = subprocess.Popen(["true"])
    process.wait(5)
    dead, living = (f"mklab-{pid}-0a1b2c-a" for pid in (process.pid, os.getpid()))
    with ExitStack() as after:
        for name in (dead, living):
            subprocess.run(["ip", "netns", "add", name], check=True)
            after.callback(subprocess.run, ["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)
        with Netlab():
            assert dead not in hosts()
            assert living in hosts()


def test_a_link_that_is_gone_is_told(lab: Netlab) -> None:
    lab._process.kill()
    with pytest.raises(ConfigError, match="root, /dev/net/tun"):
        lab.change(rate_kbit_s=10)


def test_who_may_not_make_a_lab_is_told_what_is_needed() -> None:
    script = """
import os
from benchmarks.netlab import Netlab
from pipeline.errors import ConfigError
os.setresuid(65534, 65534, 65534)
try:
    Netlab().__enter__()
except ConfigError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert "needs root" in ran.stdout, ran.stderr
    assert "lacks root" in ran.stdout


def test_orders_and_counts_are_lines_of_json() -> None:
    """As `netlab_link` says of itself; what asks it need not be Netlab."""
    names = [f"mklab-{os.getpid()}-ffffff-{end}" for end in "ab"]
    link = ROOT / "benchmarks" / "netlab_link.py"
    asked = 2 * (json.dumps({"up": {"rate_kbit_s": 8}}) + "\n")
    ran = subprocess.run(
        [sys.executable, "-I", str(link), *names, "0"], input=asked, capture_output=True, text=True, timeout=30
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, ran.stderr
    assert [set(each) for each in lines[0]] == 2 * [set(Counts.__slots__)]
    assert len(lines) == 3
