"""What a bundle is worth, measured with the encoder and decoder that the nodes run, on real bytes."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.accuracy import class_iou, confusion, mean_iou
from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle, Tables
from pipeline.codec import (
    Decoder,
    Encoder,
    Latents,
    decode_latents,
    dequantise,
    encode_latents,
    open_decoder,
    open_encoder,
    packet_of,
)
from pipeline.datasets import Labelled
from pipeline.entropy import ideal_bits
from pipeline.errors import ConfigError
from pipeline.messages import Frame, FrameId

_T = TypeVar("_T")

STAGES = ("analysis", "entropy_encode", "entropy_decode", "synthesis")


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """One bundle on one split: accuracies 0..1, real rate with all overhead, medians of milliseconds per stage."""

    split: str
    engine: str
    frames: int
    miou: float
    class_iou: NDArray[np.float64]  # (K,), NaN where a class does not occur
    rate_bpp: float
    payload_bpp: float  # without packet and region headers
    estimated_bpp: float  # by the formula of training: Gaussian y given z, z by its tables
    stage_ms: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    matrix: NDArray[np.int64]
    packet_bytes: int
    payload_bytes: int
    estimated_bits: float


def evaluate(
    bundle: Bundle,
    data: Labelled,
    *,
    split: str,
    engine: str = "auto",
    quality: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Encode, pack, unpack and decode every frame; ConfigError when the frames are not of the bundle's size."""
    size = (bundle.manifest.height, bundle.manifest.width)
    wrong = next((i for i, image in enumerate(data.images) if image.shape[:2] != size), None)
    if wrong is not None:
        shape = data.images[wrong].shape
        raise ConfigError(f"frame {data.names[wrong]} is {shape[1]}x{shape[0]}; the bundle takes {size[1]}x{size[0]}")
    encoder = open_encoder(bundle, engine=engine, quality=quality)
    decoder = open_decoder(bundle, engine=engine)
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    total = _Scores(np.zeros((len(bundle.palette),) * 2, np.int64), 0, 0, 0.0)
    for i, one in enumerate(_scores(encoder, decoder, bundle, data, times), start=1):
        total = _Scores(
            total.matrix + one.matrix,
            total.packet_bytes + one.packet_bytes,
            total.payload_bytes + one.payload_bytes,
            total.estimated_bits + one.estimated_bits,
        )
        progress(i)
    pixels = len(data.images) * size[0] * size[1]
    return Evaluation(
        split=split,
        engine=engine,
        frames=len(data.images),
        miou=mean_iou(total.matrix),
        class_iou=class_iou(total.matrix),
        rate_bpp=8 * total.packet_bytes / pixels,
        payload_bpp=8 * total.payload_bytes / pixels,
        estimated_bpp=total.estimated_bits / pixels,
        stage_ms={stage: float(np.median(ms)) for stage, ms in times.items()},
    )


def _scores(
    encoder: Encoder, decoder: Decoder, bundle: Bundle, data: Labelled, times: dict[str, list[float]]
) -> Iterator[_Scores]:
    tables = bundle.tables
    for i, (image, labels) in enumerate(zip(data.images, data.labels, strict=True)):
        frame = Frame(FrameId(0, i), 0, image)
        latents = _timed(times["analysis"], partial(encoder.latents, image))
        body = _timed(times["entropy_encode"], partial(encode_latents, latents, tables))
        sent = pack(packet_of(frame, body, bundle=bundle.id, quality=encoder.quality))
        region = unpack(sent).regions[0]
        received = partial(decode_latents, region.body, tables, bundle.latent_size)
        read = _timed(times["entropy_decode"], received)
        (mask,) = _timed(times["synthesis"], partial(decoder.class_maps, dequantise(read)[None]))
        matrix = confusion(labels, mask, len(bundle.palette))
        yield _Scores(matrix, len(sent), len(body), estimated_bits(latents, tables))


def _timed(times: list[float], work: Callable[[], _T]) -> _T:
    start = time.perf_counter()
    result = work()
    times.append(1000 * (time.perf_counter() - start))
    return result


def estimated_bits(latents: Latents, tables: Tables) -> float:
    """Bits of one frame by the training formula: the Gaussian mass of each symbol's unit, and z by its tables."""
    scales = tables.scales[latents.prediction.indexes]  # (C, h, w)
    edges = np.abs(latents.symbols.astype(np.float64)) + np.array([-0.5, 0.5])[:, None, None, None]
    below, above = _normal(-edges / scales)  # taken in the lower tail, where small differences are exact
    mass = np.maximum(below - above, 2.0**-24)
    channels = np.repeat(np.arange(len(latents.hyper), dtype=np.uint8), latents.hyper[0].size)
    return float(-np.log2(mass).sum()) + ideal_bits(latents.hyper.ravel(), channels, tables.hyper)


def as_json(result: Evaluation, bundle: Bundle) -> dict[str, object]:
    """The figures as plain values for a JSON file; classes that do not occur are null."""
    names = [one.name for one in bundle.manifest.classes]
    per_class = {n: None if math.isnan(v) else float(v) for n, v in zip(names, result.class_iou, strict=True)}
    figures = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "class_iou"}
    return {"bundle": bundle.manifest.hash, **figures, "class_iou": per_class}


def as_text(result: Evaluation, bundle: Bundle) -> str:
    """The figures for a person."""
    names = [one.name for one in bundle.manifest.classes]
    drift = 100 * (result.payload_bpp / result.estimated_bpp - 1)
    lines = [
        f"{bundle.manifest.name} on {result.split}: {result.frames} frames, engine {result.engine}",
        f"mIoU           {100 * result.miou:.2f} %",
        f"rate           {result.rate_bpp:.4f} bits per pixel, all overhead in",
        f"payload        {result.payload_bpp:.4f} bits per pixel, {drift:+.2f} % of the estimate",
        *(f"{stage:<14} {ms:.2f} ms (median)" for stage, ms in result.stage_ms.items()),
        *(f"IoU {name:<12} {100 * iou:5.1f} %" for name, iou in zip(names, result.class_iou, strict=True)),
    ]
    return "\n".join(lines)


def _normal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normal distribution function."""
    doubled: NDArray[np.float64] = np.frompyfunc(math.erfc, 1, 1)(-x / math.sqrt(2)).astype(np.float64)
    return doubled / 2
