"""What every process needs: orderly stop, logging, health page, lanes to compute on."""

import asyncio
import errno
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TextIO, TypeVar, cast

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from structlog.typing import Processor

from pipeline import metrics
from pipeline.config import NodeSettings
from pipeline.errors import BundleMismatch, ConfigError, PipelineError, SourceError, TransportError
from pipeline.transport import Channel

STOP_TIMEOUT_S = 8.0  # container engines kill after 10
_LEAVE_S = 1.0
_SLOW_S = 4.0
_STDERR = 2  # whatever stands for it in Python
_CONNECT_POLL_S = 60.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WRONG_CALL = (ConfigError, SourceError, BundleMismatch)

S = TypeVar("S", bound=NodeSettings)
R = TypeVar("R")

log = structlog.get_logger()


def run(main: Callable[[S], Coroutine[Any, Any, None]], settings: S, *, debug: bool = False) -> int:
    """Run a node until it ends or is told to stop; returns the exit code, after a sentence if not 0."""
    set_up_logging(level=settings.log.level, format=settings.log.format)
    with ExitStack() as left:
        left.callback(faulthandler.cancel_dump_traceback_later)
        try:
            return asyncio.run(_ended(main(settings), left, debug=debug))
        except KeyboardInterrupt:
            return 1


def set_up_logging(*, level: str, format: Literal["auto", "console", "json"]) -> None:
    """Write lines to stderr: coloured ones for a person at a terminal, JSON for everything else."""
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    plain = structlog.dev.plain_traceback  # others show the values of variables too, such as passwords
    colours = structlog.dev.ConsoleRenderer(exception_formatter=plain)
    last = colours if console else structlog.processors.JSONRenderer()
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*first, last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lasting(sys.stderr))),
    )
    libraries = logging.StreamHandler(sys.stderr)  # whose lines look as ours do
    unlike = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[unlike, last], foreign_pre_chain=[*first, structlog.stdlib.add_logger_name]
    )
    libraries.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[libraries])


class _Lasting:
    """A stream that nobody may read any more: what a node says of its work must not end it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


class Lane:
    """One thread, so what is run here never overlaps and the event loop never computes."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def __aenter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, compute: Callable[..., R], *args: object) -> R:
        """The result of compute(*args), once the thread has got to it."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, compute, *args)


@contextmanager
def told_if_slow(what: str) -> Iterator[None]:
    """Say what is being opened where that takes a while; entered and left on the event loop's thread."""
    note = "at the first start on a machine inner loops become machine code, which takes up to half a minute"
    slow = asyncio.get_running_loop().call_later(_SLOW_S, partial(log.info, "still opening", what=what, note=note))
    try:
        yield
    finally:
        slow.cancel()


class Health:
    """Whether the node can work: each need is a question whose answer is a reason, or None when it is met."""

    def __init__(self) -> None:
        self._needs: list[Callable[[], str | None]] = []
        self._complete = False

    def complete(self) -> None:
        """Say that every need is known: until then the node is still starting."""
        self._complete = True

    def need(self, question: Callable[[], str | None]) -> None:
        """Ask this too from now on."""
        self._needs.append(question)

    def need_broker(self, channel: Channel, called: str = "the broker") -> None:
        """Ask whether the channel is connected to the broker, or to what stands for it."""
        self.need(lambda: None if channel.connected else f"waiting for {called}")

    def reasons(self) -> list[str]:
        """Why the node cannot work right now; empty when it can."""
        starting = [] if self._complete else ["starting"]
        return starting + [reason for question in self._needs if (reason := question()) is not None]


@asynccontextmanager
async def health_page(health: Health, *, host: str, port: int) -> AsyncIterator[int]:
    """Serve health_routes until the context is left; gives the port, 0 for none.

    A port that another program holds is a warning only: the node's work does not need the page. Raises ConfigError
    when the address cannot be listened on at all.
    """
    if port == 0:
        yield 0
        return
    app = web.Application()
    app.add_routes(health_routes(health))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        yield port if await _listen(runner, host=host, port=port) else 0
    finally:
        await runner.cleanup()


def health_routes(health: Health) -> list[web.RouteDef]:
    """What every node answers about itself: /healthz, /readyz and /metrics."""
    return [web.get("/healthz", _alive), web.get("/readyz", _ready(health)), web.get("/metrics", _metrics)]


async def until_connected(channel: Channel) -> None:
    """Wait for the broker, as long as it takes."""
    while not channel.connected:
        try:
            await channel.wait_connected(_CONNECT_POLL_S)
        except TransportError:
            await asyncio.sleep(0.1)  # for channels that say at once that waiting is of no use


def now_ms() -> int:
    """The wall clock, in ms since 1970."""
    return time.time_ns() // 1_000_000


async def _ended(work: Coroutine[Any, Any, None], left: ExitStack, *, debug: bool) -> int:
    """Wait for the work's end and return the exit code, after a sentence if not 0; `left` is closed after asyncio."""
    code = 0
    try:
        await _until_stopped(work)
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        code = _report(error)
    leaving = threading.Timer(_LEAVE_S, _leave, (code,))
    leaving.daemon = True
    left.callback(leaving.cancel)
    leaving.start()
    return code


async def _until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Wait for the work's end; a signal cancels it, and a second one is left to Python."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    for number in _SIGNALS:
        loop.remove_signal_handler(number)
    if not working.done():
        log.info("stopping")
        # Where the event loop itself is held up nothing else can say by what.
        faulthandler.dump_traceback_later(STOP_TIMEOUT_S + _LEAVE_S / 2, exit=True, file=_STDERR)
        working.cancel()
        await asyncio.wait({working}, timeout=STOP_TIMEOUT_S)
    if not working.done():
        log.error("did not stop in time, leaving as it is", timeout_s=STOP_TIMEOUT_S)
        os._exit(1)  # a thread that hangs would hold up every other way out
    if not working.cancelled():
        working.result()


def _leave(code: int) -> None:
    """End the process, all being done, where a name lookup holds up asyncio: nothing can end that one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _report(error: Exception) -> int:
    """Tell the operator in one sentence, and return the exit code."""
    leaves = list(_leaves(error))
    expected = next((leaf for leaf in leaves if isinstance(leaf, PipelineError)), None)
    if expected is not None:
        sys.stderr.write(f"maskcast: {expected}\n")
        return 2 if isinstance(expected, _WRONG_CALL) else 1
    first = f"{type(leaves[0]).__name__}: {leaves[0]}"
    sys.stderr.write(f"maskcast: unexpected {first}; --debug shows where, please report it\n")
    return 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


async def _listen(runner: web.AppRunner, *, host: str, port: int) -> bool:
    """Listen; false where the port is taken."""
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            log.warning("no health page: the port is taken; give health.port another, or 0", address=f"{host}:{port}")
            return False
        raise ConfigError(
            f"health page: cannot listen on {host}:{port} ({error.strerror}); give another health.host, or port 0"
        ) from error
    return True


async def _alive(request: web.Request) -> web.Response:
    return web.Response(text="alive\n")


def _ready(health: Health) -> Callable[[web.Request], Coroutine[Any, Any, web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        reasons = health.reasons()
        return web.Response(status=503 if reasons else 200, text="; ".join(reasons or ["ready"]) + "\n")

    return answer


async def _metrics(request: web.Request) -> web.Response:
    metrics.TASKS.set(len(asyncio.all_tasks()))
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
