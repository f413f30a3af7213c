"""Time of each stage of a frame's way, per engine, beside plain torch float32 in the same run.

    python benchmarks/stages.py [--bundle B] [--source CLIP] [--frames N] [--threads 2] [--level 0 ...] [--json FILE]

Whole paths are timed, bytes in to bytes out. Encode: image in, packet out. Decode: packet in, class map out. Entropy
coding is a part of both: from integers to bytes and back, the integer prior with it each time. Without --level the
default level is measured, the lowest and the highest; limits hold at the default one and below.
The torch row is the same network with fresh weights (time does not depend on them), eager, float32, its parallel
branches merged as they are in the bundle.
Engines take turns, ten frames each, so that a busy machine slows all of them alike; the first three of a turn are left
out: a camera and a worker run one engine frame after frame, and find in the caches what the frame before left there.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.class_map import class_map
from pipeline.codec import open_decoder, open_encoder, packet_of
from pipeline.errors import PipelineError
from pipeline.experiment import load_experiment
from pipeline.export import DecodeGraph, EncodeGraph
from pipeline.latent_coding import Latents, decode_latents, dequantise, encode_latents, quantise
from pipeline.messages import Frame, FrameId, Packet
from pipeline.models.entropy_model import MeanScaleHyperprior
from pipeline.models.over_parameterised import merge_branches
from pipeline.options import JsonFile
from pipeline.sources import fit, open_source
from pipeline.training import build
from pipeline.video import sample_path

ENGINES = ("openvino", "onnxruntime")
TORCH = "torch float32"
LIMITS_MS = {"encode": 15.0, "decode": 8.0, "entropy encode": 1.0, "entropy decode": 1.0}
TURN, SETTLED = 10, 3  # frames of one engine in a row, and from which on they count
Times = dict[str, dict[str, list[float]]]
Medians = dict[str, dict[str, float]]


class TorchCodec:
    """The experiment's network in plain torch, with the bundle's entropy coding around it."""

    def __init__(self, bundle: Bundle, experiment: Path) -> None:
        network = merge_branches(build(load_experiment(experiment), len(bundle.palette))).eval()
        if not isinstance(network.prior, MeanScaleHyperprior):
            raise typer.BadParameter(f"{experiment}: its network codes nothing; name the bundle's own experiment")
        if network.levels != bundle.tables.levels:
            told = f"{network.levels} levels, the bundle's {bundle.tables.levels}"
            raise typer.BadParameter(f"{experiment}: its network has {told}; name the bundle's own with --experiment")
        self._bundle = bundle
        self._encode = EncodeGraph(network, network.prior, hyper=bool(bundle.tables.hyper))
        self._decode = DecodeGraph(network.prior, network.decoder, torch.zeros(network.levels, len(bundle.palette)))
        self.quality = bundle.manifest.default_quality

    @torch.no_grad()
    def encode(self, frame: Frame) -> Packet:
        y, *z = self._encode(torch.from_numpy(frame.image)[None], torch.tensor([self.quality]))
        hyper = z[0][0].numpy() if z else np.zeros((0, -(-y.shape[2] // 4), -(-y.shape[3] // 4)), np.float32)
        latents = quantise(y[0].numpy(), hyper, self._bundle.tables, self.quality)
        body = encode_latents(latents, self._bundle.tables, self.quality)
        return packet_of(frame, body, bundle=self._bundle.id, quality=self.quality)

    @torch.no_grad()
    def decode(self, packets: list[Packet]) -> list[Any]:
        quality, body = packets[0].quality, packets[0].regions[0].body
        y_hat = dequantise(decode_latents(body, self._bundle.tables, self._bundle.latent_size, quality))
        logits = self._decode(torch.from_numpy(y_hat)[None], torch.tensor([quality]))[0].numpy()
        return [class_map(logits, self._bundle.manifest.height, self._bundle.manifest.width)]


@dataclass(frozen=True, slots=True)
class Codecs:
    """An encoder and a decoder of each engine, and of torch."""

    encoders: Mapping[str, Any]
    decoders: Mapping[str, Any]


def open_codecs(bundle: Bundle, *, experiment: Path, threads: int) -> Codecs:
    plain = TorchCodec(bundle, experiment)
    return Codecs(
        {**{e: open_encoder(bundle, engine=e, threads=threads) for e in ENGINES}, TORCH: plain},
        {**{e: open_decoder(bundle, engine=e, threads=threads, labels=False) for e in ENGINES}, TORCH: plain},
    )


def timed(times: list[float], work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    times.append(1000 * (time.perf_counter() - start))
    return result


def images_of(source: Path, bundle: Bundle, count: int) -> list[np.ndarray]:
    size = (bundle.manifest.width, bundle.manifest.height)
    with open_source(str(source), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
        return [fit(picture.image, size) for picture, _ in zip(opened.pictures, range(count), strict=False)]


def measure(bundle: Bundle, codecs: Codecs, images: list[np.ndarray], quality: int) -> Times:
    """Milliseconds of each stage by engine, of all frames but the first ones of each turn."""
    times: Times = {e: {stage: [] for stage in LIMITS_MS} for e in codecs.encoders}
    for encoder in codecs.encoders.values():
        encoder.quality = quality
    for first in range(0, len(images), TURN):
        for engine, settled in times.items():
            encoder, decoder = codecs.encoders[engine], codecs.decoders[engine]
            for turn, image in enumerate(images[first : first + TURN]):
                row = settled if turn >= SETTLED else {stage: [] for stage in LIMITS_MS}
                frame = Frame(FrameId(0, first + turn), 0, image)
                data = timed(row["encode"], partial(encoded, encoder, frame))
                (result,) = timed(row["decode"], partial(decoded, decoder, data))
                if isinstance(result, PipelineError):
                    raise result
                if engine in ENGINES:
                    measure_coding(row, bundle, encoder.latents(image), quality)
    return times


def encoded(encoder: Any, frame: Frame) -> bytes:
    return pack(encoder.encode(frame))


def decoded(decoder: Any, data: bytes) -> list[Any]:
    found: list[Any] = decoder.decode([unpack(data)])
    return found


def measure_coding(row: dict[str, list[float]], bundle: Bundle, latents: Latents, quality: int) -> None:
    tables, size = bundle.tables, bundle.latent_size

    def encode() -> bytes:
        if tables.prior is not None:  # the encoder's is within `latents`
            tables.prior.predict(latents.hyper, size)
        return encode_latents(latents, tables, quality)

    body = timed(row["entropy encode"], encode)
    timed(row["entropy decode"], lambda: decode_latents(body, tables, size, quality))


def levels_of(bundle: Bundle) -> list[int]:
    """The default level, that of the lowest rate and that of the highest."""
    ranked = sorted(bundle.manifest.quality_levels, key=lambda level: level.rate_bpp)
    return list(dict.fromkeys([bundle.manifest.default_quality, ranked[0].index, ranked[-1].index]))


def table_of(medians: Medians, title: str) -> Table:
    table = Table("stage", *medians, "limit", title=title)
    for stage, limit in LIMITS_MS.items():
        base = medians[TORCH].get(stage)
        cells = [
            "" if stage not in row else f"{row[stage]:.2f}" + (f"  ({base / row[stage]:.1f}x)" if base else "")
            for row in medians.values()
        ]
        table.add_row(stage, *cells, f"{limit:.0f}")
    return table


def main(
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    source: Annotated[Path | None, typer.Option(help="clip, or directory of images")] = None,
    experiment: Annotated[Path, typer.Option(help="the bundle's experiment")] = Path("configs/train/camvid.yaml"),
    frames: Annotated[int, typer.Option(min=8)] = 100,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    level: Annotated[list[int] | None, typer.Option(help="quality level; may be given more than once")] = None,
    json_file: JsonFile = None,
) -> None:
    torch.set_num_threads(threads)
    try:
        loaded = load_bundle(bundle or default_bundle())
        images = images_of(source or sample_path(), loaded, frames)
        codecs = open_codecs(loaded, experiment=experiment, threads=threads)
    except PipelineError as error:
        raise SystemExit(str(error)) from error
    size = f"{loaded.manifest.width}x{loaded.manifest.height}, {threads} threads, {len(images)} frames"
    known = [one.index for one in loaded.manifest.quality_levels]
    if unknown := set(level or ()) - set(known):
        raise typer.BadParameter(f"level {min(unknown)}: the bundle has {', '.join(map(str, known))}")
    found: dict[str, Medians] = {}
    for quality in level or levels_of(loaded):
        times = measure(loaded, codecs, images, quality)
        medians = {e: {stage: statistics.median(ms) for stage, ms in row.items() if ms} for e, row in times.items()}
        mark = ", the default" if quality == loaded.manifest.default_quality else ""
        Console(width=110).print(table_of(medians, f"level {quality}{mark}: median ms, {size}"))
        found[str(quality)] = medians
    print("(n x): times faster than plain torch float32 in this run; the limits are for openvino on two cores")
    if json_file is not None:
        json_file.write_text(json.dumps({"bundle": loaded.manifest.hash, "levels": found}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
