"""What a camera's state topic says: its source as far as it is known, and what holds of all that it was told.

Told by what it is like every quarter of a second, so that whatever changes it need not know of the topic.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Protocol

import structlog

from nodes.control import InForce
from nodes.presence import Presence
from nodes.service import now_ms
from pipeline.bundle import Bundle
from pipeline.sources import Origin
from pipeline.zones import Polygon

_LOOK_S = 0.25  # from one look to the next
_LAG_S = 1.0  # half of what a worker lets pass, unless it is told otherwise

log = structlog.get_logger()


class Source(Protocol):
    """A video, as far as a camera's state goes."""

    @property
    def origin(self) -> Origin | None:
        """What the source gives, once it was opened."""
        ...

    @property
    def lost(self) -> str | None:
        """Why nothing comes from it now."""
        ...


class Described(Protocol):
    """A camera, as far as its state goes."""

    @property
    def video(self) -> Source: ...

    @property
    def in_force(self) -> InForce:
        """What holds now of all that it can be told."""
        ...

    @property
    def refused(self) -> str | None:
        """Why it did not do what it was told last."""
        ...


def presence_of(
    name: str, *, bundle: Bundle, video: Source, transport: str, zones: Mapping[str, Polygon] | None = None
) -> Presence:
    """What the camera says of itself, as far as it is known now."""
    manifest = bundle.manifest
    presence = Presence(
        topic=f"{name}/state",
        transport=transport,
        since=now_ms(),
        bundle=manifest.hash,
        width=manifest.width,
        height=manifest.height,
        source="waiting",
        zones=zones,
    )
    return _with_source(presence, video)


def described(presence: Presence, camera: Described) -> Presence:
    """The same, with what holds in the camera now."""
    return _with_source(replace(presence, control=camera.in_force, refused=camera.refused), camera.video)


async def keep_described(
    said: Presence, camera: Described, renew: Callable[[Presence], Awaitable[None]], *, lag_frames: int
) -> None:
    """Say what the camera is whenever that is no longer as it was said; never returns.

    Logged is what the source's rate makes of `lag_frames`, those that wait for others, once it is known.
    """
    warned = False
    while True:
        if not warned and said.fps is not None and lag_frames > _LAG_S * said.fps:
            _warn_of_lag(said.topic.partition("/")[0], said.fps, lag_frames)
            warned = True
        await asyncio.sleep(_LOOK_S)
        if (now := described(said, camera)) != said:
            said = now
            await renew(said)


def _with_source(presence: Presence, video: Source) -> Presence:
    """The same, with what the source gives, or gave until it was lost."""
    if (origin := video.origin) is None:
        return presence
    return replace(
        presence,
        fps=origin.fps,
        source_width=origin.width,
        source_height=origin.height,
        source="ok" if video.lost is None else "lost",
    )


def _warn_of_lag(camera: str, fps: float, lag_frames: int) -> None:
    log.warning(
        "masks come late: frames wait for those after them, and workers drop what is older than their deadline_ms",
        camera=camera,
        up_to_s=round(lag_frames / fps, 1),
        lookahead=lag_frames,
        fps=fps,
    )
