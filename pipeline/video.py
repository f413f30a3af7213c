"""A source's pictures -> Frames at the bundle's size, paced; the newest frame wins.

reader's thread: Reader -> Mailbox (one place) -> `async for frame in video`
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import SourceError
from pipeline.messages import SEQUENCES, Frame, FrameId
from pipeline.noise_reduction import compile_loops
from pipeline.source_addresses import kind_of, shown
from pipeline.sources import Origin
from pipeline.video_reader import Mailbox, Reader, Reading, Rotation

SAMPLE = "sample"  # as a source's address: the clip that comes with maskcast
_LEAVE_S = 2.0  # for the reader's thread to end; one that hangs in a source does not hold up the node


def sample_path() -> Path:
    """The clip that comes with maskcast, beside the repository's code or the installed package's."""
    root = Path(__file__).resolve().parent.parent
    places = [root / "samples" / "street.mp4", root / "maskcast_data" / "samples" / "street.mp4"]
    for place in places:
        if place.is_file():
            return place
    raise SourceError(f"the sample clip is not at {places[0]}; name another source")


class Video:
    """The frames of one source; an async context manager, and an iterator that ends with a file's end.

    Entering raises SourceError when a file, directory or device cannot be opened within `timeout_s`, reading when it
    is damaged; a server is waited for. `fast` gives every frame of a file or directory, as fast as they are
    taken. Else of a source with more than `max_fps` frames a second those between are passed over, as if it had none.
    """

    def __init__(
        self,
        url: str,
        *,
        width: int,
        height: int,
        loop: bool = False,
        fast: bool = False,
        fps: float = 25.0,
        max_fps: float | None = None,
        start_s: float = 0.0,
        rotate: Rotation = 0,
        mirror: bool = False,
        noise_reduction: bool = False,
        timeout_s: float = 5.0,
        retry_max_s: float = 30.0,
        decode_threads: int = 1,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        reading = Reading(
            shown(url),
            width,
            height,
            loop=loop,
            fast=fast,
            fps=fps,
            start_s=start_s,
            rotate=rotate,
            mirror=mirror,
            noise_reduction=noise_reduction,
            timeout_s=timeout_s,
            retry_max_s=retry_max_s,
            decode_threads=decode_threads,
        )
        rng = rng or random.SystemRandom()
        self._url, self._reading = url, reading
        self._reader = Reader(reading, max_fps=None if fast else max_fps, rng=rng, clock=clock, now_ms=now_ms)
        self._last = FrameId(-1, -1)

    @property
    def max_fps(self) -> float | None:
        """Frames a second taken of the source at most; None: all. May be set anew at any time, if it is not fast."""
        return self._reader.max_fps

    @max_fps.setter
    def max_fps(self, max_fps: float | None) -> None:
        self._reader.max_fps = max_fps

    @property
    def origin(self) -> Origin | None:
        """What the source gives, as far as it is taken; known once the source was opened."""
        origin, most = self._reader.origin, self.max_fps
        if origin is None or origin.fps is None or most is None:
            return origin
        return replace(origin, fps=min(origin.fps, most))

    @property
    def lost(self) -> str | None:
        """Why nothing comes from a live source, until something does."""
        return self._reader.lost

    @property
    def damage(self) -> str | None:
        """Of a file, once it was read to its end: what to say of what is missing."""
        return self._reader.damage

    @property
    def skipped(self) -> int:
        """Frames that a newer one replaced before they were taken."""
        return self._mailbox.skipped

    async def __aenter__(self) -> Self:
        if self._reading.noise_reduction:
            await asyncio.to_thread(compile_loops)  # first: it is not what a source may take `timeout_s` for
        running = asyncio.get_running_loop()
        self._filled, self._opened = asyncio.Event(), asyncio.Event()
        self._mailbox = Mailbox(lambda: running.call_soon_threadsafe(self._filled.set))
        url = str(sample_path()) if self._url == SAMPLE else self._url
        kind = kind_of(url)
        self._ended = running.create_future()
        # A daemon: where opening or reading hangs, nothing can end the thread, and the process must end without it.
        threading.Thread(target=self._read, args=(url, running), name="video", daemon=True).start()
        try:
            if kind != "server":
                await self._until_opened()
        except BaseException:
            self._mailbox.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mailbox.close()
        await asyncio.wait({self._ended}, timeout=_LEAVE_S)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        while (shot := self._mailbox.take()) is None:
            if self._ended.done():
                self._ended.result()
                raise StopAsyncIteration
            self._filled.clear()
            await self._filled.wait()
        sequence = (self._last.sequence + 1) % SEQUENCES if shot.epoch == self._last.epoch else 0
        self._last = FrameId(shot.epoch, sequence)
        return Frame(self._last, shot.captured_ms, shot.image)

    def pass_over(self) -> None:
        """The frame that was given last will not be sent: the next one gets its number, so that none is missing."""
        self._last = FrameId(self._last.epoch, (self._last.sequence - 1) % SEQUENCES)

    async def opened(self) -> Origin | None:
        """Wait until the source was opened for the first time; None when it never was."""
        await self._opened.wait()
        return self.origin

    async def _until_opened(self) -> None:
        try:
            async with asyncio.timeout(self._reading.timeout_s):
                await self._opened.wait()
        except TimeoutError as error:
            raise SourceError(
                f"cannot open {self._reading.name}: nothing came from it in {self._reading.timeout_s:g} s; "
                "see that it is written or free, or give source.timeout_s more"
            ) from error
        if self._ended.done():
            self._ended.result()

    def _read(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        """What the reader's thread runs; its end, and what ended it, goes to the event loop."""
        failure: Exception | None = None
        try:
            self._reader.read(url, self._mailbox, lambda: loop.call_soon_threadsafe(self._opened.set))
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended, nobody asks any more
            loop.call_soon_threadsafe(self._finish, failure)

    def _finish(self, failure: Exception | None) -> None:
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)
            self._ended.exception()  # marks it as seen: after leaving nobody else looks
        self._opened.set()
        self._filled.set()
