"""Renders moving street scenes with exact labels and exact optical flow, the same for the same seed.

Every surface is a flat panel, so a homography takes its texture to the screen, and the homographies of two moments
give the motion of every pixel in closed form:

  panel (u, v, 1) -- H(t) --> screen (x, y, 1) / inverse depth        flow: H(t - dt) H(t)^-1 (x, y) - (x, y)
"""

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import street_objects as objects
from pipeline.errors import ConfigError
from pipeline.street_objects import DECAL, KERB_M, LOOP_S, PAVEMENT, PERIOD_M, SKY, ZEBRA_M, Panel, Texture

SAMPLE_SEED = 7
_CLIP_FPS, _X264 = 25, {"crf": "23", "preset": "veryslow", "threads": "1"}  # one thread: the same bytes again

_NEAR_M, _FAR_M, _BEHIND_M = 0.4, 190.0, 80.0
_REST_S = 1.0  # how long the camera stands still at the start of each loop
_HAZE_M, _HAZE = 260.0, np.array((212, 222, 232), np.float32)
_LEAST_PX = 4.0  # what is smaller is not drawn
_CORNERS = np.array([(0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1.0)])

Homographies = NDArray[np.float64]
_Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True, eq=False)
class StreetFrame:
    """One rendered picture and the truth about it.

    image uint8 (H, W, 3) RGB; labels uint8 (H, W), CamVid's 11 classes, 0 to 10; flow float32 (H, W, 2), backward: the
    point seen at (x, y) was at (x, y) + flow one frame earlier, (dx, dy) in pixels; visible bool (H, W): that point was
    seen in the previous frame too, neither hidden nor outside. In a clip's first frame nothing is.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    flow: NDArray[np.float32]
    visible: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Actor:
    """Panels that move together: from `place` with `velocity` (m/s), or, where `ahead_s` is set, with the camera.

    `ahead_s` is by how many seconds the actor runs ahead of the camera's own travel.
    """

    panels: Sequence[Panel]
    place: NDArray[np.float64]
    velocity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    ahead_s: float | None = None


def _build(rng: np.random.Generator) -> list[Actor]:
    """One period of the street: everything that stands, drives and walks there."""
    sides = [actor for side in (-1, 1) for actor in (*_houses(rng, side), *_kerbside(rng, side))]
    sky, ground = Actor(objects.backdrop(rng), np.zeros(3), ahead_s=0.0), Actor(objects.ground(rng), np.zeros(3))
    return [sky, ground, *sides, *_moving(rng)]


def _houses(rng: np.random.Generator, side: int) -> Iterator[Actor]:
    """Buildings, and gardens between them, along one side: -1 left, 1 right."""
    z = 0.0
    while z < PERIOD_M:
        length = float(rng.uniform(8, 13))
        if PERIOD_M - z - length < 8:
            length = PERIOD_M - z
        if rng.random() < 0.28:
            yield Actor(objects.fence(side, length=length), np.array((0, 0, z)))
            for at in np.arange(2, length, 4):
                yield Actor(objects.tree(rng), np.array((side * rng.uniform(11, 16), -0.1, z + at)))
        else:
            yield Actor(objects.building(rng, side, length=length), np.array((0, 0, z)))
        z += length


def _kerbside(rng: np.random.Generator, side: int) -> Iterator[Actor]:
    """Lamps, trees and signs on one pavement, and the cars parked beside it."""
    kerb = side * (KERB_M + 0.5)
    for z in np.arange(9.0 + 6 * side, PERIOD_M, 24):
        yield Actor(objects.lamp(side), np.array((kerb, -0.12, z)))
        yield Actor(objects.tree(rng), np.array((kerb + 0.3 * side, -0.12, z + rng.uniform(10, 14))))
    for z in rng.permutation(np.arange(4.0, PERIOD_M, 7))[:4]:
        yield Actor(objects.sign(rng), np.array((kerb, -0.12, z)))
    for z in rng.permutation(np.arange(3.0, PERIOD_M, 6.2))[: 3 + (side > 0)]:
        yield Actor(objects.car(rng, -side), np.array((side * 4.35, 0, z)))


def _moving(rng: np.random.Generator) -> Iterator[Actor]:
    """Cars, cyclists, people on both pavements, and one who crosses the street."""
    for z, speed in ((45, 7.0), (62, 7.0), (108, 8.0)):
        yield Actor(objects.car(rng, -1), np.array((1.75, 0, z)), np.array((0, 0, -speed)))
    yield Actor(objects.car(rng, 1), np.array((-1.7, 0, 19)), ahead_s=0.35)
    yield Actor(objects.cyclist(rng), np.array((-2.95, 0, 11)), np.array((0, 0, 3.6)))
    yield Actor(objects.cyclist(rng), np.array((3.0, 0, 40)), np.array((0, 0, -4.5)))
    for z in np.arange(6.0, PERIOD_M, 9):
        way, side = float(rng.choice((-1, 1))), float(rng.choice((-1, 1)))
        place = np.array((side * rng.uniform(6.7, 8.2), -0.12, z + rng.uniform(-3, 3)))
        yield Actor(objects.person(rng, (0, 0, way)), place, np.array((0, 0, way * rng.uniform(1.1, 1.5))))
    yield Actor(objects.person(rng, (1, 0, 0)), np.array((-9.5, 0, ZEBRA_M + 1.5)), np.array((1.3, 0, 0)))


def travel_m(t: float) -> float:
    """How far the camera has come after t seconds: it rests, starts gently, and slows down to rest again."""
    loops, within = divmod(t, LOOP_S)
    part = max(within - _REST_S, 0.0) / (LOOP_S - _REST_S)
    return PERIOD_M * (loops + part - math.sin(2 * math.pi * part) / (2 * math.pi))


@dataclass(frozen=True, slots=True)
class _Camera:
    """A pinhole camera in the left lane, which sways, nods and turns a little on its way."""

    width: int
    height: int

    def matrix(self, t: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Intrinsics times rotation (3, 3), and position (3,) in metres."""
        way = 2 * np.pi * travel_m(t) / PERIOD_M
        angles = (0.012 + 0.004 * np.sin(11 * way), -0.03 * np.sin(2 * way), 0.006 * np.sin(5 * way))
        turn = cv2.Rodrigues(np.array(angles))[0]
        focal = 0.92 * max(self.width, self.height * 4 / 3)
        lens = np.array([[focal, 0, (self.width - 1) / 2], [0, focal, (self.height - 1) / 2], [0, 0, 1.0]])
        return lens @ turn, np.array((-1.7 + 0.3 * np.sin(way), -1.45 + 0.015 * np.sin(17 * way), travel_m(t)))


def _layer(panel: Panel) -> int:
    """Sky and ground first, then what lies on the ground, then all that stands."""
    level = panel.right[1] == 0 and panel.down[1] == 0
    return 1 if panel.label == DECAL else 0 if level or panel.label in (SKY, PAVEMENT) else 2


class _Stage:
    """All panels of the street as arrays, and where their copies in each period are at a given time."""

    def __init__(self, actors: Sequence[Actor]) -> None:
        self.actors = actors
        self.panels = [panel for actor in actors for panel in actor.panels]
        self.owner = np.repeat(np.arange(len(actors)), [len(actor.panels) for actor in actors])
        columns = [(panel.right, panel.down, panel.corner) for panel in self.panels]
        self.shapes = np.array(columns).transpose(0, 2, 1)  # (N, 3, 3), columns right, down, corner
        self.sways = np.array([panel.sway for panel in self.panels])
        self.beats = np.array([panel.beats for panel in self.panels])
        self.phases = np.array([panel.phase for panel in self.panels])
        self.labels = np.array([panel.label for panel in self.panels])
        self.layers = np.array([_layer(panel) for panel in self.panels])

    def copies(self, t: float) -> NDArray[np.int64]:
        """(N, 2): panel and number of each copy within sight at time t."""
        sights = [self._numbers(actor, t) for actor in self.actors]
        return np.array([(panel, number) for panel, owner in enumerate(self.owner) for number in sights[owner]])

    def _numbers(self, actor: Actor, t: float) -> range:
        """The copies within sight; they are one period and one loop apart."""
        if actor.ahead_s is not None:
            return range(1)
        spacing, start = PERIOD_M - actor.velocity[2] * LOOP_S, actor.place[2] + actor.velocity[2] * t
        first, last = sorted((travel_m(t) + edge - start) / spacing for edge in (-_BEHIND_M, _FAR_M))
        return range(math.ceil(first), math.floor(last) + 1)

    def project(self, copies: NDArray[np.int64], camera: _Camera, t: float) -> Homographies:
        """Homographies (N, 3, 3) from panels (u, v, 1) to the screen (x, y, 1) times depth."""
        panels, numbers = copies.T
        lens, eye = camera.matrix(t)
        start = np.array([actor.place for actor in self.actors])
        velocity = np.array([actor.velocity for actor in self.actors])
        start[:, 2] += [0.0 if actor.ahead_s is None else travel_m(t + actor.ahead_s) for actor in self.actors]
        owner, shapes = self.owner[panels], self.shapes[panels]
        shapes[:, :, 2] += start[owner] + velocity[owner] * (t - LOOP_S * numbers[:, None]) - eye
        shapes[:, 2, 2] += PERIOD_M * numbers
        swing = np.sin(2 * np.pi * (self.beats[panels] * (t / LOOP_S) + self.phases[panels]))
        shapes[:, :, 1] += self.sways[panels] * swing[:, None]
        return np.asarray(lens @ shapes)


class _Canvas:
    """The picture in the making: colours, inverse depth, and per pixel the index of the panel seen there."""

    def __init__(self, camera: _Camera) -> None:
        self.colours = np.zeros((camera.height, camera.width, 3), np.float32)
        self.nearness = np.zeros((camera.height, camera.width), np.float32)
        self.index = np.zeros((camera.height, camera.width), np.int32)
        self._xs = np.arange(camera.width, dtype=np.float32)
        self._ys = np.arange(camera.height, dtype=np.float32)[:, None]

    def draw(self, index: int, *, texture: Texture, view: "_View", decal: bool) -> None:
        """Paint one panel where nothing nearer is; a decal colours the ground and leaves no other trace."""
        to_screen, to_panel, planes = view.now[index], view.back[index], view.planes[index]
        for near, far in _slices(to_screen):
            outline = _outline(to_screen, near, far)
            if len(outline) < 3:
                continue
            left, top = np.maximum(np.floor(outline.min(axis=0)), 0).astype(int)
            right, bottom = np.minimum(np.ceil(outline.max(axis=0)) + 1, self.index.shape[::-1]).astype(int)
            if left >= right or top >= bottom:
                continue
            window = (slice(top, bottom), slice(left, right))
            nearness, *edges = self._evaluate(planes, window)
            inside = np.minimum(np.minimum(edges[0], edges[1]), np.minimum(edges[2], edges[3]))
            cover = np.clip(inside + 1, 0, 1) * ((nearness <= 1 / near) & (nearness > 1 / far))
            if not decal:
                cover *= nearness > self.nearness[window]
            middle = np.clip(outline, (left, top), (right - 1, bottom - 1)).mean(axis=0)
            ink = _sample(texture, to_panel, middle, window)
            self.colours[window] *= 1 - ink[..., 3:] * (cover[..., None] * np.float32(1 / 255))
            self.colours[window] += ink[..., :3] * cover[..., None]
            if not decal:
                solid = (cover > 0) & (inside >= -1e-3) & (ink[..., 3] >= 128)
                np.copyto(self.nearness[window], nearness, where=solid)
                self.index[window][solid] = index

    def _evaluate(self, planes: NDArray[np.float32], window: _Window) -> NDArray[np.float32]:
        """Linear functions (n, 3) over the window (n, h, w)."""
        a, b, c = planes.T[:, :, None, None]
        return np.asarray(a * self._xs[window[1]] + (b * self._ys[window[0]] + c))


def _slices(to_screen: Homographies) -> Iterator[tuple[float, float]]:
    """Ranges of depth, each narrow enough for one texture size, that together hold the panel."""
    depths = [float(to_screen[2] @ corner) for corner in _CORNERS]
    near, far = max(min(depths), _NEAR_M), max(depths)
    count = max(math.ceil(math.log(far / near, 1.6)), 1)
    bounds = [_NEAR_M, *(near * (far / near) ** (step / count) for step in range(1, count)), math.inf]
    return itertools.pairwise(bounds)


def _outline(to_screen: Homographies, near: float, far: float) -> NDArray[np.float64]:
    """The outline (n, 2) on the screen of the part of the unit square that lies between two depths."""
    corners = list(_CORNERS @ to_screen.T)
    for sign, limit in ((1.0, near), (-1.0, min(far, 1e6))):
        kept = []
        for at, to in itertools.pairwise([*corners, *corners[:1]]):
            here, there = sign * (at[2] - limit), sign * (to[2] - limit)
            if here >= 0:
                kept.append(at)
            if here * there < 0:
                kept.append(at + (to - at) * (here / (here - there)))
        corners = kept
    points = np.array(corners).reshape(-1, 3)
    return np.asarray(points[:, :2] / points[:, 2:])


def _sample(
    texture: Texture, to_panel: Homographies, middle: NDArray[np.float64], window: _Window
) -> NDArray[np.float32]:
    """The texture's colours (h, w, 4) in the window, from the size that has about one texel per pixel at `middle`."""
    u, v, nearness = to_panel @ (*middle, 1.0)
    u, v = u / nearness, v / nearness
    (height, width), (across, down) = texture.rgba.shape[:2], texture.repeats
    place, texels = np.array(((u,), (v,))), (width * across, height * down)
    steps = np.linalg.norm(to_panel[:2, :2] - place * to_panel[2, :2], axis=1) / nearness * texels
    picture = texture.level(*(round(math.log2(max(step, 1e-9)) - 0.2) for step in steps))
    height, width = picture.shape[:2]
    tiled = texture.repeats != (1.0, 1.0)
    whole = (np.floor(u * across) * width if tiled else 0, np.floor(v * down) * height if tiled else 0)
    to_texels = np.array([[width * across, 0, -0.5 - whole[0]], [0, height * down, -0.5 - whole[1]], [0, 0, 1]])
    shift = np.array([[1, 0, window[1].start], [0, 1, window[0].start], [0, 0, 1.0]])
    size = (window[1].stop - window[1].start, window[0].stop - window[0].start)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_WRAP if tiled else cv2.BORDER_REPLICATE
    ink = cv2.warpPerspective(picture, to_texels @ to_panel @ shift, size, flags=flags, borderMode=border)
    return ink.astype(np.float32)


def _in_view(to_screen: Homographies, camera: _Camera) -> NDArray[np.bool_]:
    """Which panels (N,) may be seen: before the camera, turned to it, on the screen, not tiny."""
    points = to_screen @ _CORNERS.T  # (N, 3, 4)
    depth = points[:, 2]
    front = depth.min(axis=1) > _NEAR_M
    screen = points[:, :2] / np.maximum(depth, _NEAR_M)[:, None]
    low, high = screen.min(axis=2), screen.max(axis=2)
    on, size = ((high > 0) & (low < (camera.width, camera.height))).all(axis=1), high - low
    on &= (size.max(axis=1) > _LEAST_PX) & (size.min(axis=1) > _LEAST_PX / 10)
    faces = np.linalg.det(to_screen) > 1e-6 * np.prod(np.linalg.norm(to_screen, axis=1), axis=1)
    return np.asarray(faces & (depth.max(axis=1) > _NEAR_M) & (on | ~front), np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """The N panels in view at one moment, in the order of painting.

    copies (N, 2): panel and number; now, before (N, 3, 3): to the screen, and to that of one frame earlier; back: from
    the screen; planes (N, 5, 3), linear over the screen: inverse depth, and pixels from each of the four edges.
    """

    copies: NDArray[np.int64]
    now: Homographies
    before: Homographies
    back: Homographies
    planes: NDArray[np.float32]


def _look(stage: _Stage, camera: _Camera, t: float, dt: float) -> _View:
    """The panels in view, in the order of painting: sky and ground, what lies on the ground, then far to near."""
    copies = stage.copies(t)
    now = stage.project(copies, camera, t)
    seen = _in_view(now, camera)
    copies, now = copies[seen], now[seen]
    order = np.lexsort((-(now @ (0.5, 0.5, 1.0))[:, 2], stage.layers[copies[:, 0]]))
    copies, now = copies[order], now[order]
    back = np.linalg.inv(now)  # its last row is the inverse depth, linear over the screen
    across, down, nearness = back.transpose(1, 0, 2)
    edges = np.stack([across, down, nearness - across, nearness - down], axis=1)
    edges /= np.maximum(np.hypot(edges[..., 0], edges[..., 1]), 1e-12)[..., None]
    planes = np.concatenate([nearness[:, None], edges], axis=1).astype(np.float32)
    return _View(copies, now, stage.project(copies, camera, t - dt), back, planes)


def _flow(view: _View, index: NDArray[np.int32]) -> NDArray[np.float32]:
    """Backward flow (H, W, 2) in pixels."""
    height, width = index.shape
    back = (view.before @ view.back).astype(np.float32)[index]  # (H, W, 3, 3)
    xs, ys = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    x, y, depth = (back[..., row, 0] * xs + back[..., row, 1] * ys + back[..., row, 2] for row in range(3))
    return np.stack([x / np.maximum(depth, 1e-6) - xs, y / np.maximum(depth, 1e-6) - ys], axis=2)


def _was_seen(flow: NDArray[np.float32], names: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the previous frame shows the same panel at the place (H, W) the flow points to."""
    height, width = names.shape
    x = np.rint(np.clip(flow[..., 0] + np.arange(width), -1, width)).astype(int)
    y = np.rint(np.clip(flow[..., 1] + np.arange(height)[:, None], -1, height)).astype(int)
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.asarray(within & (before[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)] == names))


def _expose(canvas: _Canvas, labels: NDArray[np.uint8], noise: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The canvas as a camera would see it: haze, a soft lens, sensor noise."""
    clear = np.where(labels == SKY, np.float32(1), np.exp(-1 / (_HAZE_M * np.maximum(canvas.nearness, 1e-6))))
    image = canvas.colours * clear[..., None] + _HAZE * (1 - clear[..., None])
    image = cv2.GaussianBlur(image, (0, 0), 0.55) + noise[..., None]
    return np.asarray(np.clip(image + 0.5, 0, 255).astype(np.uint8))


def render_street(
    seed: int, *, width: int = 480, height: int = 360, frames: int, fps: float = 25.0
) -> Iterator[StreetFrame]:
    """Yield `frames` pictures of the street that belongs to `seed`; the street comes round after 12 s.

    Labels, flow and colours depend on the arguments alone. Raises ConfigError where a size is not positive.
    """
    if min(width, height, frames) < 1 or fps <= 0:
        raise ConfigError(f"street of {frames} frames, {width}x{height} at {fps} fps: all must be positive")
    rng = np.random.default_rng(seed)
    stage, camera = _Stage(_build(rng)), _Camera(width, height)
    noise = rng.normal(0, 1.3, (2 * height, 2 * width)).astype(np.float32)
    before = np.full((height, width), -1, np.int64)
    for number in range(frames):
        view, canvas = _look(stage, camera, number / fps, 1 / fps), _Canvas(camera)
        for index, panel in enumerate(stage.panels[which] for which in view.copies[:, 0]):
            canvas.draw(index, texture=panel.texture, view=view, decal=panel.label == DECAL)
        names = (view.copies[:, 0] * 2**32 + view.copies[:, 1])[canvas.index]
        labels = stage.labels[view.copies[:, 0]][canvas.index].astype(np.uint8)
        flow, top, left = _flow(view, canvas.index), rng.integers(height), rng.integers(width)
        image = _expose(canvas, labels, noise[top : top + height, left : left + width])
        yield StreetFrame(image, labels, flow, _was_seen(flow, names, before))
        before = names


def write_clip(path: Path, seed: int = SAMPLE_SEED, *, width: int = 480, height: int = 360, frames: int = 300) -> None:
    """Write the street as an H.264 clip of 25 frames per second. Raises ConfigError."""
    if width % 2 or height % 2:
        raise ConfigError(f"clip of {width}x{height}: H.264 needs an even width and height")
    try:
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=_CLIP_FPS, options=_X264)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            container.start_encoding()
            for frame in render_street(seed, width=width, height=height, frames=frames, fps=_CLIP_FPS):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; choose a writable .mp4 file") from error


def main(arguments: Sequence[str]) -> None:
    """Write the sample clip to the one path given."""
    if len(arguments) != 1:
        raise SystemExit("give one file to write: python -m pipeline.streets samples/street.mp4")
    try:
        write_clip(Path(arguments[0]))
    except ConfigError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(sys.argv[1:])
