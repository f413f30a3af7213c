"""The network lab: what its link does to packets, exactly by a made-up clock, nearly so between two real hosts."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, wait_until

from benchmarks.netlab import Counts, Host, Netlab, Way
from benchmarks.netlab_link import Direction
from pipeline.errors import ConfigError

pytestmark = pytest.mark.root

PACKET = bytes(1000)
HEADERS = 28  # of IP and UDP
NAMES = Path("/run/netns")


def direction(**fields: float) -> Direction:
    return Direction(replace(Way(), **fields), random.Random(0))


def arrivals(way: Direction, until_s: float) -> list[float]:
    """When packets arrive, looked at each millisecond."""
    times = [ms / 1000 + 1e-6 for ms in range(round(until_s * 1000) + 1)]
    return [round(now_s, 3) for now_s in times for _ in way.due(now_s)]


# The link's arithmetic


def test_packets_leave_at_the_rate_and_arrive_after_the_delay() -> None:
    way = direction(rate_kbit_s=800, delay_ms=50)
    for _ in range(3):
        way.offer(PACKET, 0.0)  # of 10 ms each
    assert arrivals(way, 1.0) == pytest.approx([0.06, 0.07, 0.08])


def test_an_idle_wire_takes_a_packet_at_once() -> None:
    way = direction(rate_kbit_s=800)
    for offered_s in (0.0, 0.1):
        way.offer(PACKET, offered_s)
    assert arrivals(way, 1.0) == pytest.approx([0.01, 0.11])


def test_a_link_that_is_looked_at_late_has_lost_no_time() -> None:
    way = direction(rate_kbit_s=800)
    for _ in range(10):
        way.offer(PACKET, 0.0)
    assert len(way.due(0.0999)) == 9
    assert len(way.due(0.1001)) == 1


def test_what_waits_goes_on_at_a_new_rate() -> None:
    way = direction(rate_kbit_s=800)
    for _ in range(3):
        way.offer(PACKET, 0.0)
    way.change(Way(rate_kbit_s=80), 0.005)  # half of the first packet is left: 50 ms now
    assert arrivals(way, 1.0) == pytest.approx([0.055, 0.155, 0.255])


def test_a_link_that_loses_its_limit_sends_at_once_what_waited() -> None:
    way = direction(rate_kbit_s=8)
    for _ in range(3):
        way.offer(PACKET, 0.0)
    way.change(Way(), 0.5)
    assert len(way.due(0.5)) == 3


def test_a_full_queue_refuses_the_newest_and_counts_it() -> None:
    way = direction(rate_kbit_s=800, queue_kib=4)
    for number in range(10):
        way.offer(bytes([number]) + PACKET[1:], 0.0)
    assert way.counts.refused == 6
    assert way.counts.waiting_bytes == 4000
    assert [packet[0] for packet in way.due(1.0)] == [0, 1, 2, 3]


def test_a_packet_larger_than_the_queue_passes_alone() -> None:
    way = direction(rate_kbit_s=800, queue_kib=0)
    way.offer(PACKET, 0.0)
    way.offer(PACKET, 0.0)
    assert (len(way.due(1.0)), way.counts.refused) == (1, 1)


def test_lost_packets_take_their_time_on_the_wire_and_are_counted() -> None:
    way = direction(rate_kbit_s=800, loss=0.5, queue_kib=2000)
    for _ in range(1000):
        way.offer(PACKET, 0.0)
    seen = arrivals(way, 10.0)
    assert 430 < len(seen) < 570
    assert way.counts.lost == 1000 - len(seen)
    assert way.counts.carried_bytes == 1_000_000
    assert seen[-1] == pytest.approx(10.0, abs=0.2)


def test_order_is_kept_without_jitter_and_not_with() -> None:
    def order(way: Direction) -> list[int]:
        for number in range(100):
            way.offer(bytes([number]), 0.0001 * number)
        return [packet[0] for packet in way.due(10.0)]

    assert order(direction(delay_ms=50)) == list(range(100))
    jittered = order(direction(delay_ms=50, jitter_ms=20))
    assert jittered != list(range(100))
    assert sorted(jittered) == list(range(100))


def test_jitter_is_around_the_delay_and_never_ahead_of_time() -> None:
    way = direction(delay_ms=50, jitter_ms=20)
    for _ in range(500):
        way.offer(PACKET, 0.0)
    seen = np.array(arrivals(way, 1.0))
    assert seen.min() >= 0.030
    assert seen.max() <= 0.071
    assert seen.mean() == pytest.approx(0.050, abs=0.003)
    early = direction(delay_ms=0, jitter_ms=20)
    early.offer(PACKET, 1.0)
    assert not early.due(0.999)


def test_a_cut_loses_what_is_offered_and_what_is_under_way() -> None:
    way = direction(delay_ms=50)
    way.offer(PACKET, 0.0)
    way.change(replace(way.way, cut=True), 0.01)
    way.offer(PACKET, 0.02)
    assert arrivals(way, 0.2) == []
    way.change(replace(way.way, cut=False), 0.2)
    way.offer(PACKET, 0.2)
    assert len(way.due(0.25)) == 1
    assert way.counts.lost == 2


# Two hosts


@pytest.fixture
def lab() -> Iterator[Netlab]:
    with Netlab() as made:
        yield made


def bound(host: Host) -> socket.socket:
    """A UDP socket of a host, on port 9000."""
    with host.entered():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
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
