"""What every node shares: exit codes and sentences, the orderly stop, lanes, the health page."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from servers import free_port

from nodes.service import Health, Lane, health_page, run, set_up_logging, told_if_slow, until_connected
from pipeline import metrics
from pipeline.config import LogSection, NodeSettings
from pipeline.errors import (
    BitstreamError,
    BundleMismatch,
    ConfigError,
    PipelineError,
    SourceError,
    TransportError,
)
from pipeline.transport.memory import MemoryBroker, MemoryChannel

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Any:
    yield
    structlog.reset_defaults()


def ended(work: Coroutine[Any, Any, None], **options: bool) -> int:
    async def main(settings: NodeSettings) -> None:
        await work

    return run(main, NodeSettings(), **options)


async def fail(error: BaseException) -> None:
    raise error


async def fail_in_a_group(error: Exception) -> None:
    async with asyncio.TaskGroup() as outer:
        async with asyncio.TaskGroup() as inner:
            inner.create_task(fail(error))
        outer.create_task(asyncio.sleep(10))


def test_a_node_that_ends_has_code_0() -> None:
    assert ended(asyncio.sleep(0)) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("the key is wrong"), 2),
        (SourceError("the clip is gone"), 2),
        (BundleMismatch("another bundle"), 2),
        (TransportError("the peer is gone"), 1),
        (BitstreamError("not a packet"), 1),
    ],
)
@pytest.mark.parametrize("raised", [fail, fail_in_a_group])
def test_an_expected_error_is_one_sentence_and_its_code(
    raised: Any, error: PipelineError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raised(error)) == code
    assert capsys.readouterr().err == f"maskcast: {error}\n"


def test_an_unexpected_error_is_one_sentence_and_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(fail(ZeroDivisionError("by nothing"))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("maskcast: ")
    assert "ZeroDivisionError: by nothing" in line
    assert "--debug" in line


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(fail(ConfigError("the key is wrong")), debug=True) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_node_in_order_with_code_0(number: int) -> None:
    # In a process of its own: this one has the threads of every native library the tests loaded.
    script = f"""
import asyncio, os, sys
from nodes import service
from pipeline.config import NodeSettings

async def work(settings):
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), {number})
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.05)
        print("closed")

sys.exit(service.run(work, NodeSettings()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "closed\n"


def test_a_node_that_does_not_stop_is_left_within_a_bound() -> None:
    script = """
import asyncio, os, signal
from nodes import service
from pipeline.config import NodeSettings
service.STOP_TIMEOUT_S = 0.2

async def main(settings):
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

service.run(main, NodeSettings())
"""
    began_s = time.monotonic()
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert "did not stop in time" in result.stderr
    assert time.monotonic() - began_s < 20


def test_a_name_lookup_that_hangs_does_not_hold_up_a_node_that_is_done() -> None:
    script = """
import asyncio, os, signal, time
from nodes import service
from pipeline.config import NodeSettings

async def main(settings):
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    try:
        await asyncio.sleep(60)
    finally:
        print("closed")

service.run(main, NodeSettings())
"""
    began_s = time.monotonic()
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=80)
    assert (result.returncode, result.stdout) == (0, "closed\n")
    assert time.monotonic() - began_s < 20


@pytest.mark.parametrize(("error", "code"), [("ConfigError", 2), ("TransportError", 1)])
def test_a_name_lookup_that_hangs_does_not_hold_up_a_node_that_failed(error: str, code: int) -> None:
    script = f"""
import asyncio, sys, time
from nodes import service
from pipeline import errors
from pipeline.config import NodeSettings

async def main(settings):
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    raise errors.{error}("it is so")

sys.exit(service.run(main, NodeSettings()))
"""
    began_s = time.monotonic()
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=80)
    assert (result.returncode, result.stderr) == (code, "maskcast: it is so\n")
    assert time.monotonic() - began_s < 20


def test_logs_are_json_where_no_person_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", format="auto")
    log = structlog.get_logger()
    log.debug("too small")
    log.warning("lost", camera="cam-1", seq=4)
    (line,) = capsys.readouterr().err.splitlines()
    facts = json.loads(line)
    assert facts.pop("timestamp")
    assert facts == {"event": "lost", "level": "warning", "camera": "cam-1", "seq": 4}


def test_logs_are_lines_for_a_person_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="debug", format="console")
    structlog.get_logger().debug("small", camera="cam-1")
    assert "cam-1" in capsys.readouterr().err


def test_settings_of_the_log_are_those_of_the_node() -> None:
    assert NodeSettings().log == LogSection()


async def test_a_lane_is_one_thread_and_never_the_event_loops() -> None:
    async with Lane("test") as lane:
        threads = await asyncio.gather(*(lane.run(threading.get_ident) for _ in range(5)))
        assert await lane.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await lane.run(divmod, 1, 0)
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_a_lane_leaves_the_event_loop_free() -> None:
    async with Lane("test") as lane, asyncio.timeout(5):
        computing = asyncio.create_task(lane.run(time.sleep, 0.2))
        await asyncio.sleep(0.01)
        assert not computing.done()
        await computing


async def test_a_node_that_waits_says_for_whom() -> None:
    health, channel = Health(), MemoryChannel(MemoryBroker())
    health.complete()
    health.need_broker(channel)
    health.need_broker(channel, "the gateway")
    assert health.reasons() == ["waiting for the broker", "waiting for the gateway"]
    async with channel:
        assert not health.reasons()


def tasks_of(page: str) -> float:
    """How many tasks a node says that it has."""
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith("maskcast_tasks "))


async def test_the_health_page_says_why_a_node_is_not_ready() -> None:
    health, missing = Health(), ["waiting for the broker"]
    health.need(lambda: missing[0] if missing else None)
    port = free_port()
    async with health_page(health, host="127.0.0.1", port=port), aiohttp.ClientSession() as client:

        async def get(path: str) -> tuple[int, str]:
            async with client.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text()

        assert await get("/healthz") == (200, "alive\n")
        assert await get("/readyz") == (503, "starting; waiting for the broker\n")
        health.complete()
        assert await get("/readyz") == (503, "waiting for the broker\n")
        missing.clear()
        metrics.drop("camera", "test")
        assert await get("/readyz") == (200, "ready\n")
        status, page = await get("/metrics")
        assert status == 200
        assert "# TYPE maskcast_drops_total counter" in page
        sleeping = [asyncio.create_task(asyncio.sleep(60)) for _ in range(5)]
        assert tasks_of((await get("/metrics"))[1]) == tasks_of(page) + 5
        for task in sleeping:
            task.cancel()


async def test_a_second_node_on_a_host_goes_on_without_its_page_and_says_so() -> None:
    port = free_port()
    with structlog.testing.capture_logs() as logs:
        first = health_page(Health(), host="127.0.0.1", port=port)
        async with first, health_page(Health(), host="127.0.0.1", port=port) as given:
            assert given == 0
    (warning,) = logs
    assert (warning["log_level"], warning["address"]) == ("warning", f"127.0.0.1:{port}")
    assert "health.port" in warning["event"]


async def test_an_address_that_is_not_this_hosts_is_one_sentence_that_names_the_field() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:8080.*health\.host"):
        async with health_page(Health(), host="192.0.2.1", port=8080):
            raise AssertionError("entered")


async def test_port_0_is_no_page() -> None:
    async with health_page(Health(), host="127.0.0.1", port=0) as port:
        assert port == 0


async def test_waiting_for_a_broker_that_is_there_takes_no_time() -> None:
    async with MemoryChannel(MemoryBroker()) as channel, asyncio.timeout(1):
        await until_connected(channel)


async def test_opening_that_takes_a_while_is_told_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.service._SLOW_S", 0.05)
    with structlog.testing.capture_logs() as lines:
        with told_if_slow("bundle quick"):
            pass
        with told_if_slow("bundle slow"):
            await asyncio.sleep(0.2)
    assert [(line["event"], line["what"]) for line in lines] == [("still opening", "bundle slow")]


def test_a_reader_of_the_log_that_goes_away_does_not_end_a_node() -> None:
    script = """
import asyncio, os, sys
import structlog
from nodes.service import run
from pipeline.config import NodeSettings

async def main(settings):
    for number in range(3):
        structlog.get_logger().info("line", number=number)
        await asyncio.sleep(0.1)
    os.write(1, b"done")

sys.exit(run(main, NodeSettings()))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as node:
        assert node.stdout is not None and node.stderr is not None
        node.stderr.readline()
        node.stderr.close()
        assert node.stdout.read() == b"done"
    assert node.returncode == 0


@pytest.mark.parametrize("format", ["json", "console"])
def test_tracebacks_are_whole_and_show_no_values(format: str) -> None:
    script = f"""
import logging, structlog
from nodes.service import set_up_logging
set_up_logging(level="info", format="{format}")
for log in (logging.getLogger("mqtt"), structlog.get_logger()):
    token = "".join(["se", "cret"])
    try:
        len(token) / 0
    except ZeroDivisionError:
        log.exception("failed")
"""
    run_out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert run_out.stderr.count("Traceback (most recent call last)") == 2
    assert run_out.stderr.count("ZeroDivisionError: division by zero") == 2
    assert "secret" not in run_out.stderr
    if format == "json":
        assert all("Traceback" in json.loads(line)["exception"] for line in run_out.stderr.splitlines())


def test_what_libraries_log_looks_as_what_nodes_do() -> None:
    script = """
import logging
from nodes.service import set_up_logging
set_up_logging(level="info", format="json")
logging.getLogger("mqtt").error("failed to receive on %s", "socket")
logging.getLogger("mqtt").info("not told")
"""
    run_out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    line = json.loads(run_out.stderr)
    assert (line["event"], line["level"], line["logger"]) == ("failed to receive on socket", "error", "mqtt")
    assert "timestamp" in line
