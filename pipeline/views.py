"""Augmented views of frames, made in batches on the device that trains: cut, scaled, mirrored, in other light."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.accuracy import VOID

_GREY = 128.0  # outside the picture
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a view may differ from its frame: scale range, and jitter of light and colour as fractions."""

    scale_min: float
    scale_max: float
    jitter: float


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """B frames: images (B, 3, H, W), labels (B, H, W), soft labels (B, K, H', W') in 1/255 or None; all uint8."""

    images: Tensor
    labels: Tensor
    soft: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B views: RGB (B, 3, h, w) in 0..255, labels uint8 (B, h, w), soft labels (B, K, h/s, w/s) or None, levels (B,).

    Soft labels have the stride s of the frames' own; they sum to one inside the picture and are zero outside.
    """

    images: Tensor
    labels: Tensor
    soft: Tensor | None
    quality: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Where views lie in their frames, each row one view: their share of the frame's sides, and their centres.

    Coordinates are x, y from -1 to 1 over the frame; a mirrored view has a negative width.
    """

    share: Tensor  # (B, 2)
    centre: Tensor  # (B, 2)


def draw_cut(
    frame: tuple[int, int],
    view: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    around: Sequence[tuple[float, float] | None],
) -> Cut:
    """A cut per entry of `around`: a point x, y in -1..1 that the view must hold, or None for anywhere.

    Frame and view are (height, width). A view larger than its frame lies anywhere around it.
    """
    count = len(around)
    low, high = np.log(augmentation.scale_min), np.log(augmentation.scale_max)
    scale = np.exp(rng.uniform(low, high, count))
    share = np.array([[view[1] / frame[1], view[0] / frame[0]]]) / scale[:, None]  # (B, 2)
    room = np.abs(1 - share)
    centre = rng.uniform(-1, 1, (count, 2)) * room
    wish = rng.uniform(-0.5, 0.5, (count, 2)) * share
    for i, point in enumerate(around):
        if point is not None:
            centre[i] = np.clip(np.array(point) + wish[i], -room[i], room[i])
    share[rng.random(count) < 0.5, 0] *= -1
    return Cut(_tensor(share), _tensor(centre))


def cut_views(frames: Frames, cut: Cut, size: tuple[int, int], quality: Tensor) -> Batch:
    """The views of size (h, w) that a cut takes from its frames; class indexes are never mixed.

    Height and width must be divisible by the soft labels' stride.
    """
    height, width = size
    images = _sampled(frames.images.float() - _GREY, cut, size, "bilinear") + _GREY
    void_first = (VOID - frames.labels)[:, None].float()  # outside is zero, and so is void
    labels = VOID - _sampled(void_first, cut, size, "nearest")[:, 0].round().byte()
    soft = None
    if frames.soft is not None:
        stride = frames.images.shape[2] // frames.soft.shape[2]
        soft = _sampled(frames.soft.float() / 255, cut, (height // stride, width // stride), "bilinear")
    return Batch(images, labels, soft, quality)


def _sampled(pixels: Tensor, cut: Cut, size: tuple[int, int], mode: str) -> Tensor:
    """(B, C, H, W) -> (B, C, h, w), zero outside the picture."""
    share, centre = cut.share.to(pixels.device), cut.centre.to(pixels.device)
    theta = torch.stack([torch.diag_embed(share)[:, :, 0], torch.diag_embed(share)[:, :, 1], centre], 2)  # (B, 2, 3)
    grid = F.affine_grid(theta, [len(pixels), pixels.shape[1], *size], align_corners=False)
    return F.grid_sample(pixels, grid, mode=mode, padding_mode="zeros", align_corners=False)


def draw_light(count: int, jitter: float, rng: np.random.Generator) -> Tensor:
    """Changes of light and colour by up to `jitter`: rows (B, 11) of a colour matrix (3, 3), contrast and gamma."""
    rows = np.empty((count, 11), np.float32)
    for row in rows:
        brightness, row[9], saturation = 1 + jitter * rng.uniform(-1, 1, 3)
        gains = 1 + jitter / 4 * rng.uniform(-1, 1, 3)
        mix = saturation * np.eye(3) + (1 - saturation) * np.array(_LUMA)
        row[:9] = (brightness * gains[:, None] * mix).ravel()
        row[10] = np.exp(jitter * rng.uniform(-1, 1))
    return torch.from_numpy(rows)


def change_light(images: Tensor, light: Tensor) -> Tensor:
    """RGB (B, 3, h, w) in 0..255 as under another light, from draw_light.

    Contrast is about each picture's own mean: about middle grey, a picture taken at dusk would turn black.
    """
    light = light.to(images.device)
    contrast, gamma = light[:, 9:, None, None, None].unbind(1)  # each (B, 1, 1, 1)
    mixed = torch.einsum("bij,bjhw->bihw", light[:, :9].unflatten(1, (3, 3)), images)
    mixed = torch.lerp(mixed.mean((1, 2, 3), keepdim=True), mixed, contrast)
    return 255 * (mixed.clamp(0, 255) / 255) ** gamma


def draw_texture(count: int, strength: float, rng: np.random.Generator) -> Tensor:
    """Changes as by another lens and sensor: rows (B, 4) of blur or sharpening, noise, light across and down."""
    rows = rng.uniform((-0.5, 0, -1, -1), (1, 0.06, 1, 1), (count, 4)) * strength
    return _tensor(rows)


def change_texture(images: Tensor, texture: Tensor, *, seed: int) -> Tensor:
    """RGB (B, 3, h, w) in 0..255 as through another lens and sensor, from draw_texture; the seed is of the noise."""
    blur, noise, across, down = texture.to(images.device)[:, :, None, None, None].unbind(1)  # each (B, 1, 1, 1)
    height, width = images.shape[-2:]
    x = torch.linspace(-1, 1, width, device=images.device)
    y = torch.linspace(-1, 1, height, device=images.device)[:, None]
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    seen = torch.lerp(images, soft, blur) * (1 + across * x + down * y).clamp(0.2, 2)
    # Its own generator: torch's is also drawn from by the training step, while views are made ahead.
    chance = torch.Generator(images.device).manual_seed(seed)
    grain = torch.randn(images.shape, generator=chance, device=images.device)
    return (seen + 255 * noise * grain).clamp(0, 255)


def mix_classes(batch: Batch, kept: NDArray[np.bool_]) -> Batch:
    """Each view keeps the pixels of the classes kept (B, K); the rest shows the view before it in the batch.

    ClassMix (Olsson et al., WACV 2021), with the teacher's opinion where there are no labels.
    """
    shown = batch.labels.long()
    if batch.soft is not None:
        guess = F.interpolate(batch.soft, shown.shape[-2:], mode="nearest-exact").argmax(1)
        shown = torch.where(batch.labels == VOID, guess, shown)
    table = torch.ones(len(kept), VOID + 1, dtype=torch.bool)
    table[:, : kept.shape[1]] = torch.from_numpy(kept)
    mask = table.to(shown.device).gather(1, shown.flatten(1)).view_as(shown)  # (B, h, w)
    soft = batch.soft
    if soft is not None:
        stride = shown.shape[-1] // soft.shape[-1]
        soft = torch.where(mask[:, None, ::stride, ::stride], soft, soft.roll(1, 0))
    return Batch(
        torch.where(mask[:, None], batch.images, batch.images.roll(1, 0)),
        torch.where(mask, batch.labels, batch.labels.roll(1, 0)),
        soft,
        batch.quality,
    )


def _tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
