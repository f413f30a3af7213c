"""What a bundle is worth, measured with the encoder and decoder that the nodes run, on real bytes."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline import context
from pipeline.accuracy import VOID, LabelAccuracy, class_iou, confusion, label_accuracy, mean_iou, shares_of
from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle, QualityLevel, Tables
from pipeline.codec import Decoder, Encoder, open_decoder, open_encoder, packet_of
from pipeline.datasets import Frames, Labelled, Placed, classes_at
from pipeline.errors import ConfigError, PipelineError
from pipeline.latent_coding import Latents, decode_latents, dequantise, encode_latents, quantise
from pipeline.messages import Frame, FrameId

_T = TypeVar("_T")

STAGES = ("analysis", "entropy_encode", "entropy_decode", "synthesis")


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """One bundle on one split: accuracies 0..1, real rate with all overhead, medians of milliseconds per stage."""

    split: str
    engine: str
    quality: int
    frames: int
    miou: float
    unrounded_miou: float  # of the same network with its latents not rounded: what coding costs, training apart
    class_iou: NDArray[np.float64]  # (K,), NaN where a class does not occur
    rate_bpp: float  # bits per pixel of the data set's frames, whatever size the bundle brings them to
    payload_bpp: float  # without packet and region headers
    estimated_bpp: float  # by the float formula of the contexts: Laplace, means and scales not rounded
    stage_ms: dict[str, float]
    frame_bytes: float  # of a packet, on average

    @property
    def drift(self) -> float:
        """By which share of the estimate the payload is larger; NaN where nothing is to be sent."""
        return self.payload_bpp / self.estimated_bpp - 1 if self.estimated_bpp else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class LabelEvaluation:
    """What one bundle says is in the pictures of one split, against the labels; real rate with all overhead."""

    split: str
    engine: str
    quality: int
    frames: int
    accuracy: LabelAccuracy
    rate_bpp: float  # bits per pixel of the data set's frames


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """All that a bundle can do at one quality level: None for masks or labels that it does not make."""

    masks: Evaluation | None
    labels: LabelEvaluation | None


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    matrix: NDArray[np.int64]
    unrounded: NDArray[np.int64]
    pixels: int  # of the data set's frame
    packet_bytes: int
    payload_bytes: int
    estimated_bits: float


def measure(
    bundle: Bundle,
    data: Frames,
    *,
    split: str,
    engine: str = "auto",
    quality: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Evaluate masks and labels, those of them that the bundle makes; ConfigError as `evaluate` raises it."""
    return Measured(
        evaluate(bundle, data, split=split, engine=engine, quality=quality, progress=progress)
        if bundle.has_graph("decode")
        else None,
        evaluate_labels(bundle, data, split=split, engine=engine, quality=quality, progress=progress)
        if bundle.has_graph("labels")
        else None,
    )


def evaluate(
    bundle: Bundle,
    data: Frames,
    *,
    split: str,
    engine: str = "auto",
    quality: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Encode, pack, unpack and decode every frame; ConfigError on labels of no class.

    Frames of another size than the bundle's are brought to it, as a camera does, and their masks back; those of data
    sets on disk whole, as they were for training.
    """
    check_labels(bundle, data)
    encoder = open_encoder(bundle, engine=engine, quality=quality)
    decoder = open_decoder(bundle, engine=engine)
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    found: list[_Scores] = []
    for one in _scores(encoder, decoder, bundle, data, times):
        found.append(one)
        progress(len(found))
    matrix = np.sum([one.matrix for one in found], axis=0)
    pixels = sum(one.pixels for one in found)
    return Evaluation(
        split=split,
        engine=engine,
        quality=encoder.quality,
        frames=len(data),
        miou=mean_iou(matrix),
        unrounded_miou=mean_iou(np.sum([one.unrounded for one in found], axis=0)),
        class_iou=class_iou(matrix),
        rate_bpp=8 * sum(one.packet_bytes for one in found) / pixels,
        payload_bpp=8 * sum(one.payload_bytes for one in found) / pixels,
        estimated_bpp=sum(one.estimated_bits for one in found) / pixels,
        stage_ms={stage: float(np.median(ms)) for stage, ms in times.items()},
        frame_bytes=sum(one.packet_bytes for one in found) / len(found),
    )


def measured_levels(
    bundle: Bundle, data: Frames, *, split: str, tell: Callable[[str], None] = lambda _: None
) -> list[Evaluation]:
    """Each of its levels, measured with onnxruntime; `tell` is told how many are done.

    Masks are made as workers on this machine make them (`codec.decode_graph`). ConfigError as `evaluate` raises it.
    """
    found: list[Evaluation] = []
    for level in bundle.manifest.quality_levels:
        found.append(evaluate(bundle, data, split=split, engine="onnxruntime", quality=level.index))
        tell(f"quality levels measured: {len(found)}")
    return found


def as_claimed(bundle: Bundle, measured: Sequence[Evaluation]) -> list[QualityLevel]:
    """What a manifest says of its levels, by what was measured of each; the default is the one that it has.

    Rates are in bits per pixel of the bundle's own frames.
    """
    pixels = bundle.manifest.width * bundle.manifest.height
    return [
        level.model_copy(update={"rate_bpp": 8 * one.frame_bytes / pixels, "miou": one.miou})
        for level, one in zip(bundle.manifest.quality_levels, measured, strict=True)
    ]


def _scores(
    encoder: Encoder, decoder: Decoder, bundle: Bundle, data: Frames, times: dict[str, list[float]]
) -> Iterator[_Scores]:
    tables, levels = bundle.tables, np.array([encoder.quality])
    for i in range(len(data)):
        labels, placed = _shown(bundle, data, i)
        frame = Frame(FrameId(0, i), 0, placed.image)
        y, latents = _timed(times["analysis"], partial(_analysed, encoder, frame.image, tables))
        body = _timed(times["entropy_encode"], partial(encode_latents, latents, tables, encoder.quality))
        sent = pack(packet_of(frame, body, bundle=bundle.id, quality=encoder.quality))
        region = unpack(sent).regions[0]
        received = partial(decode_latents, region.body, tables, bundle.latent_size, encoder.quality)
        read = _timed(times["entropy_decode"], received)
        (mask,) = _timed(times["synthesis"], partial(decoder.class_maps, dequantise(read)[None], levels))
        (ideal,) = decoder.class_maps(y[None], levels)
        matrix, unrounded = (
            confusion(labels, classes_at(one[: placed.rows, : placed.columns], labels.shape), len(bundle.palette))
            for one in (mask, ideal)
        )
        bits = estimated_bits(latents, tables, encoder.quality)
        yield _Scores(matrix, unrounded, labels.size, len(sent), len(body), bits)


def _shown(bundle: Bundle, data: Frames, index: int) -> tuple[NDArray[np.uint8], Placed]:
    """The labels (H, W) of a frame, and its picture as the bundle takes it."""
    frame = data.read(index)
    return frame.labels, data.placed(frame.image, (bundle.manifest.height, bundle.manifest.width))


def _analysed(encoder: Encoder, image: NDArray[np.uint8], tables: Tables) -> tuple[NDArray[np.float32], Latents]:
    """The latents (C, h, w) of a frame, and the integers that they are rounded to."""
    y, z = encoder.analysed(image, encoder.quality)
    return y, quantise(y, z, tables, encoder.quality)


def evaluate_labels(
    bundle: Bundle,
    data: Frames,
    *,
    split: str,
    engine: str = "auto",
    quality: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> LabelEvaluation:
    """Encode, pack, unpack and decode every frame, and hold the scores against what its labels show.

    ConfigError when the bundle gives no scores, and on labels of no class. Frames are brought to the bundle's size.
    """
    least_share, classes = bundle.manifest.presence_share, len(bundle.manifest.classes)
    if least_share is None or not bundle.has_graph("labels"):
        raise ConfigError(f"bundle {bundle.path}: it does not say which classes are in a picture; use another")
    check_labels(bundle, data)
    encoder, decoder = open_encoder(bundle, engine=engine, quality=quality), open_decoder(bundle, engine=engine)
    scores, truth, total_bytes, pixels = [], [], 0, 0
    for i in range(len(data)):
        labels, placed = _shown(bundle, data, i)
        sent = pack(encoder.encode(Frame(FrameId(0, i), 0, placed.image)))
        total_bytes, pixels = total_bytes + len(sent), pixels + labels.size
        scores.append(_scores_of(decoder, sent))
        truth.append(shares_of(labels, classes) >= least_share)
        progress(i + 1)
    return LabelEvaluation(
        split=split,
        engine=engine,
        quality=encoder.quality,
        frames=len(data),
        accuracy=label_accuracy(np.stack(truth), np.stack(scores)),
        rate_bpp=8 * total_bytes / pixels,
    )


def _scores_of(decoder: Decoder, sent: bytes) -> NDArray[np.float32]:
    """The scores (K,) of one packet of our own; what is wrong with it is raised."""
    (decoded,) = decoder.decode([unpack(sent)])
    if isinstance(decoded, PipelineError):
        raise decoded
    if decoded.scores is None:
        raise ConfigError("the decoder was opened without labels")
    return decoded.scores.values


def measured_on(split: str, shown: Frames, learned: Frames) -> str:
    """What a manifest says of where its figures come from; those of frames that it learned from flatter it."""
    known = len({*shown.names} & {*learned.names})
    told = f"rates and mIoU measured on {split}"
    if not known:
        return told
    which = "which" if known == len(shown) else f"{known} of whose {len(shown)} frames"
    return f"{told}, {which} it learned from"


def check_measurable(data: Frames) -> None:
    """ConfigError where each label is void: there is nothing to measure by."""
    if all((data.read(index).labels == VOID).all() for index in range(len(data))):
        raise ConfigError(f"labels of {data.names[0]} and all others are void; measure on a split that has labels")


def check_labels(bundle: Bundle, data: Frames) -> None:
    """ConfigError where labels are none of the bundle's classes, or there are none to measure by."""
    classes, ours = len(bundle.manifest.classes), tuple(one.name for one in bundle.manifest.classes)
    if data.classes and data.classes != ours:
        raise ConfigError(
            f"bundle {bundle.path}: its classes are {', '.join(ours)}, those of the data {', '.join(data.classes)}; "
            "measure on what has the same"
        )
    check_measurable(data)
    known = zip(data.names, data.labels, strict=True) if isinstance(data, Labelled) else ()  # others' are by a table
    for name, labels in known:
        strange = labels[(labels >= classes) & (labels != VOID)]
        if strange.size:
            raise ConfigError(f"labels of {name}: {strange[0]} is none of {classes} classes; take the data set's own")


def _timed(times: list[float], work: Callable[[], _T]) -> _T:
    start = time.perf_counter()
    result = work()
    times.append(1000 * (time.perf_counter() - start))
    return result


def estimated_bits(latents: Latents, tables: Tables, quality: int) -> float:
    """Bits of one frame by the float formula of the contexts, with no table, no rounding and no end to pay for."""
    hints = None if tables.prior is None else latents.prediction
    bits = context.estimated_bits(latents.symbols, tables.latent[quality], hints)
    return bits + (context.estimated_bits(latents.hyper, tables.hyper[quality]) if tables.hyper else 0.0)


def as_json(result: Evaluation, bundle: Bundle) -> dict[str, object]:
    """The figures as plain values for a JSON file; classes that do not occur are null."""
    figures = {f.name: getattr(result, f.name) for f in fields(result)}
    return {"bundle": bundle.manifest.hash, **figures, "class_iou": _by_class(result.class_iou, bundle)}


def as_text(result: Evaluation, bundle: Bundle) -> str:
    """The figures for a person."""
    lines = [
        f"{_title(result, bundle)}, quality {result.quality}",
        f"mIoU           {100 * result.miou:.2f} %, {100 * result.unrounded_miou:.2f} % if latents were not rounded",
        f"rate           {result.rate_bpp:.4f} bits per pixel, all overhead in; {result.frame_bytes:.0f} bytes a frame",
        f"payload        {result.payload_bpp:.4f} bits per pixel, {_signed(result.drift)} of the estimate",
        *(f"{stage:<14} {ms:.2f} ms (median)" for stage, ms in result.stage_ms.items()),
        *(f"IoU {name:<12} {100 * iou:5.1f} %" for name, iou in zip(_names(bundle), result.class_iou, strict=True)),
    ]
    return "\n".join(lines)


def labels_as_json(result: LabelEvaluation, bundle: Bundle) -> dict[str, object]:
    """The figures as plain values for a JSON file; null for classes that never occur."""
    figures, varied = result.accuracy, result.accuracy.varied_precision
    return {
        "bundle": bundle.manifest.hash,
        **{name: getattr(result, name) for name in ("split", "engine", "quality", "frames", "rate_bpp")},
        "presence_share": bundle.manifest.presence_share,
        "map": figures.mean_precision,
        "map_varied": None if math.isnan(varied) else varied,
        "micro_f1": figures.f1,
        "class_precision": _by_class(figures.class_precision, bundle),
        "prevalence": _by_class(figures.prevalence, bundle),
    }


def labels_as_text(result: LabelEvaluation, bundle: Bundle) -> str:
    """The figures for a person."""
    figures = result.accuracy
    rows = zip(_names(bundle), figures.class_precision, figures.prevalence, strict=True)
    lines = [
        f"{_title(result, bundle)}, quality {result.quality}, labels",
        f"mAP            {100 * figures.mean_precision:.2f} % over the classes that occur",
        f"mAP            {100 * figures.varied_precision:.2f} % over those of them that not every frame shows",
        f"micro F1       {100 * figures.f1:.2f} % at a score of one half",
        f"rate           {result.rate_bpp:.4f} bits per pixel, all overhead in",
        *(f"AP {name:<12} {100 * ap:5.1f} %, in {100 * share:5.1f} % of the frames" for name, ap, share in rows),
    ]
    return "\n".join(lines)


def measured_as_json(measured: Measured, bundle: Bundle) -> dict[str, object]:
    """The figures of one level as plain values for a JSON file."""
    figures = {} if measured.masks is None else as_json(measured.masks, bundle)
    return figures if measured.labels is None else {**figures, "labels": labels_as_json(measured.labels, bundle)}


def measured_as_text(measured: Measured, bundle: Bundle) -> str:
    """The figures of one level for a person."""
    texts = [] if measured.masks is None else [as_text(measured.masks, bundle)]
    return "\n".join(texts if measured.labels is None else [*texts, labels_as_text(measured.labels, bundle)])


def levels_as_text(measured: Sequence[Measured], bundle: Bundle) -> str:
    """One line per quality level, for a person."""
    masks = [one.masks for one in measured if one.masks is not None]
    labels = [one.labels for one in measured if one.labels is not None]
    lines: list[str] = []
    if masks:
        lines += [_title(masks[0], bundle), "level  rate bpp  payload bpp  of the estimate     mIoU  unrounded"]
    for mask in masks:
        payload = f"{mask.payload_bpp:11.4f}  {_signed(mask.drift):>15}"
        accuracy = f"{100 * mask.miou:5.2f} %    {100 * mask.unrounded_miou:5.2f} %"
        lines.append(f"{mask.quality:5}  {mask.rate_bpp:8.4f}  {payload}  {accuracy}")
    if labels:
        lines += [f"{_title(labels[0], bundle)}, labels", "level  rate bpp      mAP  micro F1"]
    for label in labels:
        precision = f"{100 * label.accuracy.mean_precision:5.2f} %  {100 * label.accuracy.f1:6.2f} %"
        lines.append(f"{label.quality:5}  {label.rate_bpp:8.4f}  {precision}")
    return "\n".join(lines)


def _names(bundle: Bundle) -> list[str]:
    return [one.name for one in bundle.manifest.classes]


def _by_class(values: NDArray[np.float64], bundle: Bundle) -> dict[str, float | None]:
    """Values (K,) by the name of the class; NaN, of a class that does not occur, becomes None."""
    return {n: None if math.isnan(v) else float(v) for n, v in zip(_names(bundle), values, strict=True)}


def _signed(share: float) -> str:
    """In percent, with its sign; a hyphen where it is not known."""
    return "-" if math.isnan(share) else f"{100 * share:+.2f} %"


def _title(result: Evaluation | LabelEvaluation, bundle: Bundle) -> str:
    return f"{bundle.manifest.name} on {result.split}: {result.frames} frames, engine {result.engine}"
