"""What reads a source on a thread of its own, picture by picture, and lays each that is wanted into a mailbox.

open (-> fewer) -> wait until due -> resize (-> less noise) -> Mailbox (one place)
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline.errors import ConfigError, SourceError
from pipeline.noise_reduction import picture_filter
from pipeline.source_addresses import kind_of
from pipeline.sources import Opened, Origin, Picture, damage_of, fit, open_source
from pipeline.thinning import Thinning

_BEHIND_S, _AHEAD_S = 1.0, 10.0  # beyond, the machine slept or time stamps jumped: go on from here
_RETRY_FIRST_S = 0.5

# The rate of a stream that does not say it is counted over its newest pictures.
_SETTLED_S = 1.0  # after the first one: what had waited comes at once
_LEAST, _LEAST_S = 10, 2.0  # pictures and seconds without which it cannot be told
_MOST, _WINDOW_S = 10_000, 10.0  # pictures and seconds that are looked back at
_LOOK_S, _MOVED = 5.0, 0.1  # between two looks, and as a share of the rate: a smaller change is none

Rotation = Literal[0, 90, 180, 270]  # degrees clockwise
_TURNS = {0: None, 90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}

log = structlog.get_logger()


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


@dataclass(frozen=True, slots=True)
class Reading:
    """How a source is read, in the names of the settings; `name` is what logs and errors call it."""

    name: str
    width: int
    height: int
    loop: bool = False
    fast: bool = False
    fps: float = 25.0
    start_s: float = 0.0
    rotate: Rotation = 0
    mirror: bool = False
    noise_reduction: bool = False
    timeout_s: float = 5.0
    retry_max_s: float = 30.0
    decode_threads: int = 1


class Fitting:
    """Makes pictures what is wanted of them; a new one each time a source is opened: noise reduction looks back."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._filter = picture_filter(noise_reduction=reading.noise_reduction)

    def fitted(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) at the source's size -> (height, width, 3): turned, mirrored, with less noise."""
        how = self._reading
        size, turn = (how.width, how.height), _TURNS[how.rotate]
        image = fit(image, size if how.rotate in (0, 180) else size[::-1])
        if turn is not None:
            image = cv2.rotate(image, turn).astype(np.uint8, copy=False)
        return self._filter(np.ascontiguousarray(image[:, ::-1]) if how.mirror else image)


class Counting:
    """How many pictures a second come, by when they come: over the last seconds, and looked at every few."""

    def __init__(self) -> None:
        self.fps: float | None = None  # None: not known yet
        self._times_s: deque[float] = deque(maxlen=_MOST)
        self._look_s: float | None = None

    def came(self, now_s: float) -> None:
        """Count a picture; `fps` changes only where it moved by more than a tenth."""
        if self._look_s is None:
            self._look_s = now_s + _SETTLED_S
        if not self._times_s and now_s < self._look_s:
            return
        times_s = self._times_s
        times_s.append(now_s)
        while len(times_s) > _LEAST + 1 and now_s - times_s[0] > _WINDOW_S:
            times_s.popleft()
        over_s = now_s - times_s[0]
        if len(times_s) <= _LEAST or over_s < _LEAST_S or now_s < self._look_s:
            return
        self._look_s = now_s + _LOOK_S
        fps = (len(times_s) - 1) / over_s
        if self.fps is None or abs(fps - self.fps) > _MOVED * self.fps:
            self.fps = float(f"{fps:.3g}")


class Reader:
    """Reads one source into a mailbox. Others may look at its attributes, and set `max_fps`, from their threads."""

    def __init__(
        self,
        reading: Reading,
        *,
        max_fps: float | None,
        rng: random.Random,
        clock: Callable[[], float],
        now_ms: Callable[[], int],
    ) -> None:
        self.max_fps = max_fps  # pictures a second that are taken at most; None: all
        self.origin: Origin | None = None  # known once the source was opened
        self.lost: str | None = None  # why nothing comes from a live source, until something does
        self.damage: str | None = None  # of a file, once it was read to its end: what to say of what is missing
        self._reading, self._rng, self._clock, self._now_ms = reading, rng, clock, now_ms
        self._epoch = -1

    def read(self, url: str, mailbox: Mailbox, opened: Callable[[], object]) -> None:
        """Lay down pictures until the mailbox is closed, or a file has ended; says each time that it was opened.

        SourceError where the source cannot be read, or a file not any further; ConfigError where it is the wrong one.
        """
        if kind_of(url) in ("server", "device"):
            self._read_live(url, mailbox, opened)
        else:
            self._read_file(url, mailbox, opened)

    def _read_file(self, url: str, mailbox: Mailbox, opened: Callable[[], object]) -> None:
        """Play a file or directory once, or again and again."""
        how, thinning = self._reading, Thinning()
        ahead_s = max(_AHEAD_S, 2 / how.fps)  # of a slow directory each picture is due long after the one before it
        pace, begin_s, skip_s = Pace(self._clock, ahead_s=ahead_s), 0.0, how.start_s
        self._begin_epoch()
        while True:
            end_s, fitting = 0.0, Fitting(how)
            with self._open(url) as source:
                opened()
                mailbox.wait_wanted()  # a file begins when somebody looks, and is seen from its start
                for picture in source.pictures:
                    end_s = picture.time_s + 1 / (source.origin.fps or how.fps)
                    if picture.time_s < skip_s:
                        continue
                    time_s = begin_s + picture.time_s
                    if how.fast:
                        mailbox.wait_empty()
                    else:
                        mailbox.wait_closed(pace.delay_s(time_s))
                    taken = thinning.takes(time_s, self.max_fps)
                    if mailbox.closed or (taken and not self._show(picture, fitting, mailbox)):
                        return
                if self.damage is None and (found := damage_of(how.name, source)) is not None:
                    self.damage = found
                    log.warning("pictures are missing", reason=found)
            if end_s <= skip_s:
                raise SourceError(f"{how.name} has no picture after {skip_s:g} s; name another source")
            if not how.loop:
                return
            begin_s, skip_s = begin_s + end_s, 0.0

    def _read_live(self, url: str, mailbox: Mailbox, opened: Callable[[], object]) -> None:
        """Show pictures as they come; open the source again when it is lost."""
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                with self._open(url) as source:
                    opened()
                    self._begin_epoch()
                    for _ in self._shown(source, mailbox):
                        retry_s = _RETRY_FIRST_S
                if mailbox.closed:
                    return
                self.lost = "it ended"
            except SourceError as error:
                if self.origin is None and kind_of(url) == "device":
                    raise
                self.lost = str(error)
            except ConfigError as error:
                if self.origin is None:
                    raise
                self.lost = str(error)  # as while a camera starts, and gives a page for its stream
            wait_s = retry_s * self._rng.uniform(0.5, 1.0)
            log.warning("source lost", source=self._reading.name, reason=self.lost, again_in_s=round(wait_s, 1))
            if mailbox.wait_closed(wait_s):
                return
            retry_s = min(2 * retry_s, self._reading.retry_max_s)

    def _shown(self, source: Opened, mailbox: Mailbox) -> Iterator[Picture]:
        """The pictures of a live source, each once it was shown, or passed over; until the mailbox is closed."""
        thinning, fitting, counting = Thinning(), Fitting(self._reading), Counting()
        for picture in source.pictures:
            now_s = self._clock()
            self._found()
            if source.origin.fps is None:
                counting.came(now_s)
                self.origin = replace(source.origin, fps=counting.fps)
            taken = thinning.takes(now_s, self.max_fps)
            if mailbox.closed or (taken and not self._show(picture, fitting, mailbox)):
                return
            yield picture

    def _found(self) -> None:
        if self.lost is not None:
            self.lost = None
            log.info("source found", source=self._reading.name)

    @contextmanager
    def _open(self, url: str) -> Iterator[Opened]:
        how = self._reading
        with open_source(url, fps=how.fps, timeout_s=how.timeout_s, decode_threads=how.decode_threads) as source:
            source = replace(source, origin=_turned(source.origin, how.rotate))
            self.origin = source.origin
            yield source

    def _begin_epoch(self) -> None:
        epoch = self._rng.randrange(1 << 16)
        self._epoch = epoch if epoch != self._epoch else (epoch + 1) % (1 << 16)

    def _show(self, picture: Picture, fitting: Fitting, mailbox: Mailbox) -> bool:
        """Put a picture into the mailbox; false when that was closed."""
        captured_ms = self._now_ms()
        mailbox.put(Shot(self._epoch, captured_ms, fitting.fitted(picture.image)))
        return not mailbox.closed


def _turned(origin: Origin, rotate: Rotation) -> Origin:
    """What the source gives once its pictures are turned."""
    return origin if rotate in (0, 180) else replace(origin, width=origin.height, height=origin.width)
