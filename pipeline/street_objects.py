"""What stands and moves in the rendered street, each thing as a list of flat textured panels.

World axes in metres: x right, y down, z along the street; the road is the plane y = 0, traffic keeps left.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

PERIOD_M, LOOP_S = 72.0, 12.0  # the street repeats in space and in time, so that a clip of one loop closes
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
DECAL = -1  # colours the ground, and has no label of its own
KERB_M, WALL_M = 5.5, 8.8  # where pavement and buildings begin, from the middle of the road
ZEBRA_M, _TEXELS = 50.0, 48  # where the crossing begins; texels per metre

Colour = Sequence[int]
Picture = NDArray[np.uint8]
Vector = NDArray[np.float64]

_WORDS = ("BAKERY", "BOOKS", "CAFE", "BANK", "SHOES", "PHARMACY", "THE CROWN", "FLOWERS")
_WALLS = ((150, 104, 82), (176, 150, 116), (196, 188, 170), (132, 92, 76), (164, 142, 122), (206, 198, 188))
_PAINTS = ((178, 182, 186), (62, 66, 74), (134, 28, 34), (36, 58, 108), (206, 206, 202), (48, 84, 66))
_GLASS = (50, 58, 66)
_CLOTHES = ((42, 44, 52), (98, 40, 44), (54, 66, 96), (112, 104, 92), (70, 84, 62), (150, 120, 80))
# From rear to front: (z, height, half width) in metres at belt, roof, roof, belt and the bonnet's end.
_Profile = tuple[tuple[float, float, float], ...]
_PROFILES: tuple[_Profile, ...] = (
    ((-2.05, 0.92, 0.86), (-1.75, 1.43, 0.66), (0.3, 1.46, 0.66), (1.05, 0.98, 0.86), (2.0, 0.76, 0.86)),
    ((-2.35, 1.05, 0.95), (-2.25, 2.05, 0.85), (1.3, 2.05, 0.85), (1.8, 1.15, 0.95), (2.35, 0.95, 0.95)),
)


@dataclass(frozen=True, slots=True, eq=False)
class Texture:
    """A premultiplied RGBA picture (h, w, 4), and copies of it halved along either axis for far and slanted views."""

    rgba: Picture
    repeats: tuple[float, float] = (1.0, 1.0)
    _levels: dict[tuple[int, int], Picture] = field(default_factory=dict)

    def level(self, across: int, down: int) -> Picture:
        """The picture halved `across` times in width and `down` times in height, never below one texel."""
        height, width = self.rgba.shape[:2]
        size = (max(width >> max(across, 0), 1), max(height >> max(down, 0), 1))
        if size not in self._levels:
            self._levels[size] = cv2.resize(self.rgba, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        return self._levels[size]


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A textured parallelogram: `corner` is the texture's top left, `right` and `down` are its edges, in metres.

    It is seen from the side from which `right` x `down` points away. `sway` is added to `down`, times
    sin(2 pi (beats t / LOOP_S + phase)): a leg that walks, a tree in the wind.
    """

    texture: Texture
    label: int
    corner: Vector
    right: Vector
    down: Vector
    sway: Vector = field(default_factory=lambda: np.zeros(3))
    beats: int = 0
    phase: float = 0.0


def _vector(x: float, y: float, z: float) -> Vector:
    return np.array([x, y, z], np.float64)


def _upright(texture: Texture, label: int, left_foot: ArrayLike, *, size: tuple[float, float]) -> Panel:
    """A panel (width, height) that faces the camera's way, standing on `left_foot`."""
    corner = np.asarray(left_foot, np.float64) - (0, size[1], 0)
    return Panel(texture, label, corner, _vector(size[0], 0, 0), _vector(0, size[1], 0))


def _flat(texture: Texture, label: int, near_left: ArrayLike, *, size: tuple[float, float]) -> Panel:
    """A level panel (width, length) whose texture's bottom lies near."""
    corner = np.asarray(near_left, np.float64) + _vector(0, 0, size[1])
    return Panel(texture, label, corner, _vector(size[0], 0, 0), _vector(0, 0, -size[1]))


def _blank(width: float, height: float, fill: Colour | None = None) -> Picture:
    """A picture of width x height metres, transparent or filled."""
    picture = np.zeros((max(round(height * _TEXELS), 2), max(round(width * _TEXELS), 2), 4), np.uint8)
    picture[:] = 0 if fill is None else (*fill, 255)
    return picture


def _clouds(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> NDArray[np.float32]:
    """Smooth noise (h, w), mean 0 and deviation about 1, without a seam between opposite edges."""
    total = np.zeros(shape, np.float32)
    for octave in range(4):
        count = np.minimum(cells << octave, shape)
        small = np.pad(rng.standard_normal(count).astype(np.float32), 2, mode="wrap")
        move = np.array([[count[1] / shape[1], 0, 2], [0, count[0] / shape[0], 2]])
        total += cv2.warpAffine(small, move, shape[::-1], flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP) * 0.5**octave
    return total / max(float(total.std()), 1e-6)


def _shade(picture: Picture, light: ArrayLike) -> Picture:
    """The picture with its colours multiplied by `light`, one value or a coarse grid of them; its alpha stays."""
    lit = cv2.resize(
        np.atleast_2d(np.asarray(light, np.float32)), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST
    )
    colours = np.minimum(picture[..., :3] * lit[..., None], picture[..., 3:])
    return np.concatenate([np.clip(colours, 0, 255).astype(np.uint8), picture[..., 3:]], axis=2)


def _grain(rng: np.random.Generator, picture: Picture, amount: float) -> Picture:
    fine, height, width = rng.standard_normal(picture.shape[:2]), *picture.shape[:2]
    return _shade(picture, 1 + amount * (0.7 * fine + 0.8 * _clouds(rng, (height, width), 4)))


def _box(picture: Picture, colour: Colour, box: tuple[float, float, float, float]) -> None:
    """Fill the rectangle (left, top, right, bottom), in metres."""
    left, top, right, bottom = (max(round(edge * _TEXELS), 0) for edge in box)
    picture[top:bottom, left:right] = (*colour, 255)


def _shape(picture: Picture, colour: Colour, points: ArrayLike) -> None:
    """Fill the polygon (n, 2), in metres."""
    corners = np.round(np.asarray(points, np.float64) * _TEXELS * 16).astype(np.int32)
    cv2.fillPoly(picture, [corners], (*colour, 255), cv2.LINE_AA, 4)


def _disc(picture: Picture, colour: Colour, middle: tuple[float, float], radii: tuple[float, float]) -> None:
    centre, axes = ([round(value * _TEXELS) for value in pair] for pair in (middle, radii))
    cv2.ellipse(picture, centre, axes, 0, 0, 360, (*colour, 255), -1, cv2.LINE_AA)


def _colour(rng: np.random.Generator, choices: Sequence[Colour]) -> Colour:
    colour: list[int] = np.clip(rng.choice(np.array(choices)) + rng.integers(-10, 11), 0, 255).tolist()
    return colour


def backdrop(rng: np.random.Generator) -> list[Panel]:
    """The sky and the wood at the end of the street, too far away for the camera ever to come nearer."""
    height = np.linspace(1, 0, 384)[:, None, None] ** 0.8
    cloud = np.clip(0.55 * _clouds(rng, (384, 768), 6)[..., None] + 0.3, 0, 1)
    blue = np.array((222, 230, 238)) * (1 - height) + np.array((140, 182, 228)) * height
    sky = np.full((384, 768, 4), 255, np.uint8)
    sky[..., :3] = blue * (1 - cloud) + 245 * cloud
    wood = np.zeros((84, 780, 4), np.uint8)
    for x in rng.uniform(0, 780, 110):
        axes = (int(rng.uniform(10, 22)), int(rng.uniform(22, 58)))
        cv2.ellipse(wood, (int(x), 84), axes, 0, 0, 360, (*_colour(rng, [(72, 80, 56)]), 255), -1, cv2.LINE_AA)
    return [
        _upright(Texture(sky), SKY, (-1000, 150, 900), size=(2000, 900)),
        _upright(Texture(_grain(rng, wood, 0.15)), TREE, (-65, 1, 180), size=(130, 14)),
    ]


def ground(rng: np.random.Generator) -> list[Panel]:
    """Road, kerbs, pavements and the grass behind them, one period long, from tiles of 12 m; a zebra crossing."""
    tile, times, road_m, path_m = 12.0, PERIOD_M / 12, 2 * KERB_M, WALL_M + 0.6 - KERB_M
    road = _grain(rng, _blank(road_m, tile, (84, 85, 88)), 0.07)
    road = _shade(road, 1 + 0.05 * np.cos(np.linspace(-KERB_M, KERB_M, road.shape[1]) * np.pi / 0.85)[None])
    lines = [(5.43, top, 0.14, 3) for top in (1.0, 7.0)] + [(x, 0, 0.09, tile) for x in (0.25, 0.45, 10.46, 10.66)]
    for x, top, wide, long in lines:
        _box(road, (214, 214, 208) if top else (178, 152, 62), (x, top, x + wide, top + long))
    slabs = _shade(_grain(rng, _blank(path_m, tile, (146, 141, 134)), 0.05), rng.normal(1, 0.05, (20, 7)))
    slabs[:: _TEXELS * 3 // 5, :, :3] = slabs[:, :: _TEXELS * 3 // 5, :3] = (104, 100, 96)
    _box(slabs, (168, 166, 160), (path_m - 0.16, 0, path_m, tile))
    zebra = _blank(road_m, 3)
    for x in np.arange(0.5, road_m - 0.6, 1.2):
        _box(zebra, (206, 206, 200), (x, 0, x + 0.6, 3))
    face = Texture(_grain(rng, _blank(tile, 0.12, (112, 110, 106)), 0.08), (times, 1))
    grass = Texture(_grain(rng, _blank(tile, tile, (84, 104, 58)), 0.16), (3, times))
    along, left, right = _vector(0, 0, PERIOD_M), Texture(slabs, (1, times)), Texture(slabs[:, ::-1].copy(), (1, times))
    return [
        _flat(Texture(_grain(rng, road, 0.05), (1, times)), ROAD, (-KERB_M, 0, 0), size=(road_m, PERIOD_M)),
        _flat(left, PAVEMENT, (-KERB_M - path_m, -0.12, 0), size=(path_m, PERIOD_M)),
        _flat(right, PAVEMENT, (KERB_M, -0.12, 0), size=(path_m, PERIOD_M)),
        Panel(face, PAVEMENT, _vector(-KERB_M, -0.12, 0), along, _vector(0, 0.12, 0)),
        Panel(face, PAVEMENT, _vector(KERB_M, -0.12, PERIOD_M), -along, _vector(0, 0.12, 0)),
        *(_flat(grass, TREE, (x, -0.1, 0), size=(36, PERIOD_M)) for x in (-45, 9)),
        _flat(Texture(zebra), DECAL, (-KERB_M, 0, ZEBRA_M), size=(road_m, 3)),
    ]


def _shadow(width: float, length: float) -> Panel:
    """A dark, soft-edged patch on the ground, its middle at the origin."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    cv2.ellipse(rgba, (32, 32), (24, 26), 0, 0, 360, (0, 0, 0, 135), -1)
    rgba = cv2.GaussianBlur(rgba, (0, 0), 4).astype(np.uint8)
    return _flat(Texture(rgba), DECAL, (-0.55 * width, 0, -length / 2), size=(width, length))


def _facade(rng: np.random.Generator, wall: Colour, *, size: tuple[float, float]) -> Picture:
    """A front of (length, height) metres: brickwork, rows of windows and, below, a shop or a door."""
    length, height = size
    bricks = rng.normal(1, 0.07, (round(height * 10), round(length * 4)))
    picture = _shade(_grain(rng, _blank(length, height, wall), 0.06), bricks)
    bays, shop = max(round(length / 2.7), 2), rng.random() < 0.6
    for floor in range(int(shop), round(height / 3.1)):
        base = height - 3.1 * floor
        for bay in range(bays):
            middle, sill = (bay + 0.5) * length / bays, 0.0 if floor == 0 and bay == bays // 2 else 0.8
            _window(rng, picture, (middle - 0.6, base - 2.5, middle + 0.6, base - sill))
    if shop:
        fascia = _colour(rng, [(40, 70, 52), (96, 34, 34), (36, 48, 82), (52, 50, 48), (146, 118, 60)])
        _box(picture, fascia, (0, height - 3.1, length, height))
        for left in np.arange(0.3, length - 1.6, 2.2):
            _window(rng, picture, (left, height - 2.4, min(left + 1.9, length - 0.2), height - 0.5))
        word, where = _WORDS[rng.integers(len(_WORDS))], (int(_TEXELS * length / 4), int(_TEXELS * (height - 2.62)))
        cv2.putText(picture, word, where, cv2.FONT_HERSHEY_DUPLEX, 0.8, (232, 222, 196, 255), 2, cv2.LINE_AA)
    _box(picture, (188, 182, 172), (0, 0, length, 0.3))
    return _shade(picture, np.linspace(1.04, 0.9, picture.shape[0])[:, None])


def _window(rng: np.random.Generator, picture: Picture, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    middle, frame, glass = (left + right) / 2, (204, 200, 192), int(rng.integers(28, 74))
    sky, horizon = glass + int(rng.integers(20, 60)), top + (bottom - top) * rng.uniform(0.2, 0.6)
    _box(picture, frame, (left - 0.08, top - 0.12, right + 0.08, bottom + 0.1))
    _box(picture, (glass, glass + 6, glass + 12), box)
    _box(picture, (sky, sky + 6, sky + 12), (left, top, right, horizon))
    _box(picture, frame, (middle - 0.03, top, middle + 0.03, bottom))
    _box(picture, frame, (left, (top + bottom) / 2 - 0.03, right, (top + bottom) / 2 + 0.03))


def building(rng: np.random.Generator, side: int, *, length: float) -> list[Panel]:
    """A house: front, the end wall that looks at the camera, roof, and on the right its shadow on the street."""
    height, ridge = 3.1 * int(rng.integers(2, 5)) + 0.4, 2.6
    wall, light = _colour(rng, _WALLS), 1.08 if side < 0 else 0.66
    front, tall = _shade(_facade(rng, wall, size=(length, height)), light), height + ridge
    end, gable = _grain(rng, _blank(8, tall, wall), 0.08), _blank(8, tall)
    _shape(gable, (255, 255, 255), [(0, ridge), (4, 0), (8, ridge), (8, tall), (0, tall)])
    tiles = _grain(rng, _blank(length, 5, _colour(rng, [(98, 70, 60), (78, 78, 84)])), 0.1)
    tiles[::16, :, :3] //= 2
    x, z, along = side * WALL_M, 0 if side < 0 else length, _vector(0, 0, -side * length)
    end_x, roof = min(x, x + side * 8), Texture(_shade(tiles, light))
    panels = [
        Panel(Texture(front), BUILDING, _vector(x, -height, z), along, _vector(0, height, 0)),
        _upright(Texture(_shade(np.minimum(end, gable), 0.74)), BUILDING, (end_x, 0, 0), size=(8, tall)),
        Panel(roof, BUILDING, _vector(x + side * 4, -tall, z), along, _vector(-side * 4, ridge, 0)),
    ]
    if side > 0:
        dark, cast = np.full((2, 2, 4), (0, 0, 0, 120), np.uint8), _vector(-0.55 * height, 0, 1.5)
        panels.append(Panel(Texture(dark), DECAL, _vector(x, 0, 0), cast, _vector(0, 0, length)))
    return panels


def fence(side: int, *, length: float) -> list[Panel]:
    """Railings along the pavement."""
    picture, corner = _blank(length, 1.5), _vector(side * (WALL_M + 0.1), -1.62, 0 if side < 0 else length)
    for x in np.arange(0, length, 0.16):
        _box(picture, (46, 50, 52), (x, 0.05, x + 0.07, 1.5))
    for y in (0.15, 0.6, 1.3):
        _box(picture, (46, 50, 52), (0, y, length, y + 0.09))
    return [Panel(Texture(picture), FENCE, corner, _vector(0, 0, -side * length), _vector(0, 1.5, 0))]


def tree(rng: np.random.Generator) -> list[Panel]:
    """A trunk and three layers of leaves, one behind another, that move a little in the wind."""
    size, panels = float(rng.uniform(0.85, 1.25)), [_shadow(4.5, 3.0)]
    green = np.array(_colour(rng, [(84, 106, 52), (98, 112, 60), (74, 96, 58)]))
    for z in (0.7, 0.0, -0.7):
        crown = _blank(4.6, 6.4)
        if z == 0:
            _shape(crown, (82, 70, 58), [(2.18, 6.4), (2.24, 2), (2.42, 2), (2.5, 6.4)])
        twigs = rng.normal((2.3, 2.2), (0.75, 0.85), (30, 1, 2))
        for x, y in (twigs + rng.normal(0, 0.3, (30, 40, 2))).reshape(-1, 2):
            light = np.clip(0.95 + 0.16 * (x - 2.3) - 0.2 * (y - 2.2) + rng.normal(0, 0.14), 0.4, 1.7)
            _disc(
                crown, (green * light).astype(int).tolist(), (x, y), (rng.uniform(0.04, 0.09), rng.uniform(0.02, 0.07))
            )
        # Upside down, so that the sway moves the crown and not the root.
        texture, root, up = Texture(crown[::-1, ::-1].copy()), _vector(2.3 * size, 0, z), _vector(0, -6.4 * size, 0)
        wind, across = _vector(0.05, 0, 0), _vector(-4.6 * size, 0, 0)
        panels.append(Panel(texture, TREE, root, across, up, wind, 5, rng.random()))
    return panels


def lamp(side: int) -> list[Panel]:
    """A lamp post whose arm reaches over the road."""
    post, arm = _blank(0.17, 7.4, (126, 130, 132)), _blank(1.9, 0.5)
    _shape(arm, (126, 130, 132), [(0, 0.18), (0, 0.3), (1.9, 0.16), (1.9, 0.06)])
    _box(arm, (196, 196, 190), (0, 0.14, 0.6, 0.3))
    return [
        _upright(Texture(_shade(post, np.linspace(0.6, 1.2, 8)[None])), POLE, (-0.085, 0, 0), size=(0.17, 7.4)),
        _upright(Texture(arm[:, ::side].copy()), POLE, (min(0, -1.9 * side), -7.1, 0), size=(1.9, 0.5)),
    ]


def sign(rng: np.random.Generator) -> list[Panel]:
    """A traffic sign or a traffic light on its post."""
    face, kind, height = _blank(0.8, 0.8), int(rng.integers(3)), 2.7 + 0.3 * rng.random()
    if kind < 2:
        _disc(face, ((190, 28, 34), (24, 74, 158))[kind], (0.4, 0.4), (0.39, 0.39))
        _disc(face, ((236, 236, 232), (40, 92, 176))[kind], (0.4, 0.4), (0.3, 0.3))
        text, ink = (("30", (20, 20, 20, 255)), ("P", (236, 236, 236, 255)))[kind]
        cv2.putText(face, text, (8 + 4 * kind, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.65, ink, 2, cv2.LINE_AA)
    else:
        _box(face, (34, 36, 36), (0.25, 0, 0.55, 0.8))
        for row, tint in enumerate([(70, 24, 22), (78, 60, 20), (60, 226, 130)]):
            _disc(face, tint, (0.4, 0.15 + 0.25 * row), (0.1, 0.1))
    return [
        _upright(Texture(_blank(0.1, height, (112, 114, 114))), POLE, (-0.05, 0, 0), size=(0.1, height)),
        _upright(Texture(face), SIGN, (-0.4, 0.7 - height, -0.06), size=(0.8, 0.8)),
    ]


def car(rng: np.random.Generator, heading: int) -> list[Panel]:
    """A car or van about the origin, driving with (+1) or against (-1) the camera."""
    profile, paint = _PROFILES[int(rng.random() < 0.15)], _colour(rng, _PAINTS)
    belt, roof, nose = profile[0], profile[2], profile[4]
    ring = ((belt[0] - 0.05, 0.0, belt[2]), *profile, (nose[0] + 0.05, 0.0, nose[2]))
    panels = [_shadow(2.7, 5.6)]
    for index, (start, end) in enumerate(itertools.pairwise(ring)):
        upper, lower = (end, start) if index < 3 else (start, end)
        half, facing = max(upper[2], lower[2]), heading if index < 3 else -heading
        down = _vector(0, upper[1] - lower[1], heading * (lower[0] - upper[0]))
        picture = _car_face(paint, index, upper=upper[2], lower=lower[2], slant=float(np.linalg.norm(down)))
        corner = _vector(-half * facing, -upper[1], heading * upper[0])
        panels.append(Panel(Texture(picture), CAR, corner, _vector(2 * half * facing, 0, 0), down))
    for side in (-1, 1):
        pictures = _car_side(paint, profile, light=0.95 if side > 0 else 0.7)
        body, cabin = (Texture(picture[:, :: side * heading].copy()) for picture in pictures)
        z, along = heading * (belt if side == heading else nose)[0], _vector(0, 0, side * (nose[0] - belt[0]))
        x, lean, high = side * belt[2], side * (belt[2] - roof[2]), belt[1] + 0.08
        panels.append(Panel(body, CAR, _vector(x, -high, z), along, _vector(0, high, 0)))
        panels.append(Panel(cabin, CAR, _vector(x - lean, -roof[1], z), along, _vector(lean, roof[1] - belt[1], 0)))
    return panels


def _car_face(paint: Colour, index: int, *, upper: float, lower: float, slant: float) -> Picture:
    """One face across the car: tail, rear window, roof, windscreen, bonnet, front (index 0 to 5)."""
    half = max(upper, lower)
    picture = _blank(2 * half, slant)
    corners = np.array([(half - upper, 0), (half + upper, 0), (half + lower, slant), (half - lower, slant)])
    if index in (1, 2, 3, 4):
        _shape(picture, paint, corners)
        if index % 2:
            _shape(picture, _GLASS, (corners - (half, slant / 2)) * (0.88, 0.8) + (half, slant / 2))
        return _shade(picture, np.linspace(1.4, 1.05, 9)[:, None])
    lights, plate = ((176, 22, 26), (206, 178, 60)) if index == 0 else ((232, 232, 226), (220, 220, 214))
    _box(picture, paint, (0, 0, 2 * half, slant - 0.22))
    for left in (0.05, 2 * half - 0.3):
        _box(picture, (20, 20, 22), (left, slant - 0.22, left + 0.25, slant))
        _box(picture, lights, (left, 0.1, left + 0.25, 0.3))
    _box(picture, plate, (half - 0.26, slant - 0.5, half + 0.26, slant - 0.38))
    return _shade(picture, 0.85)


def _car_side(paint: Colour, profile: _Profile, *, light: float) -> tuple[Picture, Picture]:
    """The side of the body below the belt line, with wheels, and that of the cabin above it."""
    points = np.array(profile)[:, :2] - (profile[0][0], 0)
    length, belt, top, high = points[4, 0], points[0, 1], points[2, 1], points[0, 1] + 0.08
    body, cabin = _blank(length, high), _blank(length, top - belt)
    edge = [(0, 0.03), (points[3, 0], high - points[3, 1] - 0.03), (length, high - points[4, 1])]
    _shape(body, paint, [*edge, (length, high - 0.25), (0, high - 0.25)])
    for x in (length * 0.19, length * 0.82):
        _disc(body, (16, 16, 18), (x, high - 0.34), (0.37, 0.37))
        _disc(body, (120, 122, 124), (x, high - 0.31), (0.19, 0.19))
    corners = points[:4] * (1, -1) + (0, top)
    _shape(cabin, paint, corners)
    _shape(cabin, _GLASS, (corners - corners.mean(axis=0)) * (0.9, 0.74) + corners.mean(axis=0))
    _box(cabin, paint, (length * 0.42, 0.05, length * 0.45, top - belt))
    return _shade(body, light), _shade(cabin, light * 1.1)


def person(rng: np.random.Generator, way: ArrayLike, label: int = PEDESTRIAN) -> list[Panel]:
    """Someone about 1.75 m tall who walks along `way`, a unit vector (x, y, z)."""
    body, leg, skin = _blank(0.64, 1.0), _blank(0.18, 0.86), (206, 160, 132)
    coat, trousers = _colour(rng, _CLOTHES), _colour(rng, [(44, 48, 62), (30, 30, 34), (84, 76, 66)])
    for x in (0.1, 0.54):
        _shape(body, coat, [(x - 0.06, 0.36), (x + 0.06, 0.3), (x + 0.08, 0.86), (x - 0.07, 0.86)])
        _disc(body, skin, (x, 0.89), (0.045, 0.06))
    body = _shade(body, 0.8)
    _shape(body, coat, [(0.13, 0.34), (0.22, 0.27), (0.42, 0.27), (0.51, 0.34), (0.48, 0.98), (0.16, 0.98)])
    _disc(body, skin, (0.32, 0.15), (0.1, 0.13))
    _disc(body, _colour(rng, [(52, 38, 30), (98, 72, 44), (30, 28, 28)]), (0.32, 0.11), (0.11, 0.105))
    _shape(leg, trousers, [(0.02, 0), (0.17, 0), (0.14, 0.8), (0.04, 0.8)])
    _disc(leg, (26, 24, 24), (0.09, 0.81), (0.08, 0.045))
    body = _shade(body, np.linspace(0.75, 1.15, 30)[None])
    torso = _upright(Texture(body), label, (-0.32, -0.76, 0), size=(0.64, 1.0))
    stride, beats = 0.28 * np.asarray(way, np.float64), int(rng.integers(10, 13))
    legs = (_upright(Texture(leg), label, (x, 0, -x / 9), size=(0.18, 0.86)) for x in (-0.15, -0.03))
    walk = (replace(one, sway=stride, beats=beats, phase=half / 2) for half, one in enumerate(legs))
    return [_shadow(1.2, 0.7), torso, *walk]


def cyclist(rng: np.random.Generator) -> list[Panel]:
    """Someone on a bicycle, seen along the street."""
    bike, lift = _blank(0.6, 1.1), np.array((0, 0.08, 0))
    _disc(bike, (22, 22, 24), (0.3, 0.75), (0.045, 0.34))
    _box(bike, (150, 40, 40), (0.27, 0.12, 0.33, 0.5))
    _box(bike, (40, 40, 42), (0.04, 0.06, 0.56, 0.1))
    _, torso, *legs = person(rng, (0, 0, 1), BICYCLIST)
    pedals = (replace(leg, corner=leg.corner - lift, down=leg.down - 3 * lift, sway=lift, beats=14) for leg in legs)
    frame = _upright(Texture(bike), BICYCLIST, (-0.3, 0, 0.02), size=(0.6, 1.1))
    return [_shadow(1.0, 1.9), frame, replace(torso, corner=torso.corner - lift), *pedals]
