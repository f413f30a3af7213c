"""How far a bundle's masks agree with its teachers', before and after it was tuned, on real bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from pipeline.accuracy import class_iou, confusion
from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle
from pipeline.codec import Decoder, Encoder, open_decoder, open_encoder
from pipeline.errors import ConfigError, PipelineError
from pipeline.messages import Frame, FrameId


@dataclass(frozen=True, slots=True)
class Agreement:
    """One quality level: share of pixels and mean IoU (0..1) with the teachers' classes, real rate, all overhead in.

    The mean is over the classes that the teachers see, so that it is over the same ones before and after.
    """

    quality: int
    pixels: float
    miou: float
    rate_bpp: float


def agreement(bundle: Bundle, images: Sequence[NDArray[np.uint8]], maps: NDArray[np.uint8]) -> tuple[Agreement, ...]:
    """Code frames (H, W, 3) at every quality level and hold the masks against the teachers' classes (N, H, W)."""
    encoder, decoder = open_encoder(bundle, engine="onnxruntime"), open_decoder(bundle, engine="onnxruntime")
    found = []
    for level in bundle.manifest.quality_levels:
        encoder.quality = level.index
        found.append(_agreement(encoder, decoder, images, maps, classes=len(bundle.manifest.classes)))
    return tuple(found)


def _agreement(
    encoder: Encoder,
    decoder: Decoder,
    images: Sequence[NDArray[np.uint8]],
    maps: NDArray[np.uint8],
    *,
    classes: int,
) -> Agreement:
    matrix, sent_bytes = np.zeros((classes, classes), np.int64), 0
    for i, (image, seen) in enumerate(zip(images, maps, strict=True)):
        sent = pack(encoder.encode(Frame(FrameId(0, i), 0, image)))
        sent_bytes += len(sent)
        matrix += confusion(seen, _mask(decoder, sent), classes)
    return Agreement(
        quality=encoder.quality,
        pixels=float(np.diag(matrix).sum() / matrix.sum()),
        miou=float(class_iou(matrix)[matrix.any(1)].mean()),
        rate_bpp=8 * sent_bytes / matrix.sum(),
    )


def _mask(decoder: Decoder, sent: bytes) -> NDArray[np.uint8]:
    """The classes (H, W) of one packet of our own; what is wrong with it is raised."""
    (decoded,) = decoder.decode([unpack(sent)])
    if isinstance(decoded, PipelineError):
        raise decoded
    if decoded.mask is None:
        raise ConfigError("the bundle makes no masks")
    return decoded.mask.classes


def as_table(before: Sequence[Agreement], after: Sequence[Agreement], title: str) -> Table:
    """The figures for a person, in percent and bits per pixel."""
    table = Table("quality", "same class", "", "mean IoU", "", "bits per pixel", "", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for old, new in zip(before, after, strict=True):
        table.add_row(
            str(old.quality),
            *_pair(100 * old.pixels, 100 * new.pixels, digits=2),
            *_pair(100 * old.miou, 100 * new.miou, digits=2),
            *_pair(old.rate_bpp, new.rate_bpp, digits=4),
        )
    return table


def _pair(old: float, new: float, *, digits: int) -> tuple[str, str]:
    return f"{old:.{digits}f} -> {new:.{digits}f}", f"{new - old:+.{digits}f}"
