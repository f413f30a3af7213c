"""A source's pictures -> Frames at the bundle's size, paced; the newest frame wins.

reader's thread: open (-> fewer) -> wait until due -> resize (-> less noise) -> Mailbox (one place)
                 -> `async for frame in video`
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.messages import SEQUENCES, Frame, FrameId
from pipeline.noise_reduction import compile_loops, picture_filter
from pipeline.sources import Kind, Opened, Origin, Picture, damage_of, fit, kind_of, open_source, shown
from pipeline.thinning import Thinning

SAMPLE = "sample"  # as a source's address: the clip that comes with maskcast
_BEHIND_S, _AHEAD_S = 1.0, 10.0  # beyond, the machine slept or time stamps jumped: go on from here
_RETRY_FIRST_S = 0.5
_LEAVE_S = 2.0  # for the reader's thread to end; one that hangs in a source does not hold up the node

log = structlog.get_logger()


def sample_path() -> Path:
    """The clip that comes with maskcast, beside the repository's code or the installed package's."""
    root = Path(__file__).resolve().parent.parent
    places = [root / "samples" / "street.mp4", root / "maskcast_data" / "samples" / "street.mp4"]
    for place in places:
        if place.is_file():
            return place
    raise SourceError(f"the sample clip is not at {places[0]}; name another source")


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A picture at the bundle's size, on its way between the threads."""

    epoch: int
    captured_ms: int
    image: NDArray[np.uint8]


class Mailbox:
    """One place between the reader's thread and the event loop; a new shot replaces one not yet taken."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.skipped = 0
        self._wake = wake  # called after each put
        self._changed = threading.Condition()
        self._shot: Shot | None = None
        self._wanted = self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nobody will take a shot any more."""
        return self._closed

    def put(self, shot: Shot) -> None:
        """Lay down a shot; the one it replaces is counted."""
        with self._changed:
            self.skipped += self._shot is not None
            self._shot = shot
        self._wake()

    def take(self) -> Shot | None:
        """Take the shot away, if there is one; never blocks."""
        with self._changed:
            shot, self._shot = self._shot, None
            self._wanted = True
            self._changed.notify_all()
        return shot

    def wait_wanted(self) -> None:
        """Block until a shot was asked for the first time, or the mailbox was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._closed)

    def wait_empty(self) -> None:
        """Block until the last shot was taken or the mailbox was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._shot is None or self._closed)

    def wait_closed(self, timeout_s: float) -> bool:
        """Sleep that long; true as soon as the mailbox is closed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, timeout_s)

    def close(self) -> None:
        """End every wait, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Pace:
    """When the picture of a time is due; counted from one fixed moment, so it does not drift."""

    def __init__(self, clock: Callable[[], float], *, ahead_s: float = _AHEAD_S) -> None:
        self._clock, self._ahead_s = clock, ahead_s
        self._zero_s: float | None = None

    def delay_s(self, time_s: float) -> float:
        """Seconds to wait until a picture of `time_s` is due."""
        now_s = self._clock()
        if self._zero_s is None or not -_BEHIND_S < self._zero_s + time_s - now_s < self._ahead_s:
            self._zero_s = now_s - time_s
        return max(0.0, self._zero_s + time_s - now_s)


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
        mirror: bool = False,
        noise_reduction: bool = False,
        timeout_s: float = 5.0,
        retry_max_s: float = 30.0,
        decode_threads: int = 1,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.max_fps = None if fast else max_fps  # may be set anew at any time, where it is not fast
        self.lost: str | None = None  # why nothing comes from a live source that was open before, until it comes again
        self.damage: str | None = None  # of a file, once it was read to its end: what to say of what is missing
        self._url, self._width, self._height = url, width, height
        self._loop, self._fast, self._start_s, self._mirror = loop, fast, start_s, mirror
        self._noise_reduction = noise_reduction
        self._fps, self._timeout_s, self._threads = fps, timeout_s, decode_threads
        self._retry_max_s = retry_max_s
        self._rng, self._clock, self._now_ms = rng or random.SystemRandom(), clock, now_ms
        self._origin: Origin | None = None
        self._last = FrameId(-1, -1)
        self._epoch = -1  # of the pictures being read; the reader's thread alone writes it

    @property
    def origin(self) -> Origin | None:
        """What the source gives, as far as it is taken; known once the source was opened."""
        if self._origin is None or self.max_fps is None:
            return self._origin
        return replace(self._origin, fps=min(self._origin.fps, self.max_fps))

    @property
    def skipped(self) -> int:
        """Frames that a newer one replaced before they were taken."""
        return self._mailbox.skipped

    async def __aenter__(self) -> Self:
        if self._noise_reduction:
            await asyncio.to_thread(compile_loops)  # first: it is not what a source may take `timeout_s` for
        running = asyncio.get_running_loop()
        self._filled, self._opened = asyncio.Event(), asyncio.Event()
        self._mailbox = Mailbox(lambda: running.call_soon_threadsafe(self._filled.set))
        kind = kind_of(self._url)
        self._reading = running.create_future()
        # A daemon: where opening or reading hangs, nothing can end the thread, and the process must end without it.
        threading.Thread(target=self._read, args=(kind, running), name="video", daemon=True).start()
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
        await asyncio.wait({self._reading}, timeout=_LEAVE_S)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        while (shot := self._mailbox.take()) is None:
            if self._reading.done():
                self._reading.result()
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
            async with asyncio.timeout(self._timeout_s):
                await self._opened.wait()
        except TimeoutError as error:
            raise SourceError(
                f"cannot open {shown(self._url)}: nothing came from it in {self._timeout_s:g} s; "
                "see that it is written or free, or give source.timeout_s more"
            ) from error
        if self._reading.done():
            self._reading.result()

    def _read(self, kind: Kind, loop: asyncio.AbstractEventLoop) -> None:
        """What the reader's thread runs; its end, and what ended it, goes to the event loop."""
        failure: Exception | None = None
        try:
            read = self._read_live if kind in ("server", "device") else self._read_file
            read(lambda: loop.call_soon_threadsafe(self._opened.set))
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended, nobody asks any more
            loop.call_soon_threadsafe(self._finish, failure)

    def _finish(self, failure: Exception | None) -> None:
        if failure is None:
            self._reading.set_result(None)
        else:
            self._reading.set_exception(failure)
            self._reading.exception()  # marks it as seen: after leaving nobody else looks
        self._opened.set()
        self._filled.set()

    def _read_file(self, opened: Callable[[], object]) -> None:
        """Play a file or directory once, or again and again; runs on the reader's thread."""
        ahead_s = max(_AHEAD_S, 2 / self._fps)  # of a slow directory each picture is due long after the one before it
        pace, begin_s, skip_s = Pace(self._clock, ahead_s=ahead_s), 0.0, self._start_s
        thinning = Thinning()
        self._begin_epoch()
        while True:
            end_s = 0.0
            with self._open() as source:
                opened()
                self._mailbox.wait_wanted()  # a file begins when somebody looks, and is seen from its start
                for picture in source.pictures:
                    end_s = picture.time_s + 1 / source.origin.fps
                    if picture.time_s < skip_s:
                        continue
                    time_s = begin_s + picture.time_s
                    if self._fast:
                        self._mailbox.wait_empty()
                    else:
                        self._mailbox.wait_closed(pace.delay_s(time_s))
                    taken = thinning.takes(time_s, self.max_fps)
                    if self._mailbox.closed or (taken and not self._show(picture)):
                        return
                if self.damage is None and (found := damage_of(self._url, source)) is not None:
                    self.damage = found
                    log.warning("pictures are missing", reason=found)
            if end_s <= skip_s:
                raise SourceError(f"{shown(self._url)} has no picture after {skip_s:g} s; name another source")
            if not self._loop:
                return
            begin_s, skip_s = begin_s + end_s, 0.0

    def _read_live(self, opened: Callable[[], object]) -> None:
        """Show pictures as they come; open the source again when it is lost; runs on the reader's thread."""
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                with self._open() as source:
                    opened()
                    self._begin_epoch()
                    thinning = Thinning()
                    for picture in source.pictures:
                        retry_s = _RETRY_FIRST_S
                        self._found()
                        taken = thinning.takes(self._clock(), self.max_fps)
                        if self._mailbox.closed or (taken and not self._show(picture)):
                            return
                reason = "it ended"
            except SourceError as error:
                if self._origin is None and kind_of(self._url) == "device":
                    raise
                reason = str(error)
            if self._origin is not None:
                self.lost = reason
            wait_s = retry_s * self._rng.uniform(0.5, 1.0)
            log.warning("source lost", source=shown(self._url), reason=reason, again_in_s=round(wait_s, 1))
            if self._mailbox.wait_closed(wait_s):
                return
            retry_s = min(2 * retry_s, self._retry_max_s)

    def _found(self) -> None:
        if self.lost is not None:
            self.lost = None
            log.info("source found again", source=shown(self._url))

    @contextmanager
    def _open(self) -> Iterator[Opened]:
        address = str(sample_path()) if self._url == SAMPLE else self._url
        with open_source(address, fps=self._fps, timeout_s=self._timeout_s, decode_threads=self._threads) as source:
            self._origin = source.origin
            self._filter = picture_filter(noise_reduction=self._noise_reduction)  # the reader's thread alone has it
            yield source

    def _begin_epoch(self) -> None:
        epoch = self._rng.randrange(1 << 16)
        self._epoch = epoch if epoch != self._epoch else (epoch + 1) % (1 << 16)

    def _show(self, picture: Picture) -> bool:
        """Put a picture into the mailbox; false when that was closed."""
        captured_ms = self._now_ms()
        self._mailbox.put(Shot(self._epoch, captured_ms, self._filter(self._resized(picture.image))))
        return not self._mailbox.closed

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) at the source's size -> (height, width, 3)."""
        image = fit(image, (self._width, self._height))
        return np.ascontiguousarray(image[:, ::-1]) if self._mirror else image
