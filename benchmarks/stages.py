"""Time of each stage of a frame's way, per engine, beside plain torch float32 in the same run.

    python benchmarks/stages.py [--bundle B] [--source CLIP] [--frames N] [--threads 2] [--json FILE]

Whole paths are timed, bytes in to bytes out. Encode: image in, packet out. Decode: packet in, class map out.
The torch row is the same network with fresh weights (time does not depend on them), eager, float32.
Engines take turns frame by frame, so that a busy machine slows all of them alike.
"""

import json
import statistics
import time
from collections.abc import Callable
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
from pipeline.codec import decode_latents, dequantise, encode_latents, open_decoder, open_encoder, packet_of, quantise
from pipeline.experiment import load_experiment
from pipeline.messages import Frame, FrameId, Packet
from pipeline.sources import fit, open_source
from pipeline.training import build
from pipeline.video import sample_path

ENGINES = ("openvino", "onnxruntime")
LIMITS_MS = {"encode": 15.0, "decode": 8.0, "entropy encode": 1.0, "entropy decode": 1.0}
Times = dict[str, dict[str, list[float]]]


class TorchCodec:
    """The experiment's network in plain torch, with the bundle's entropy coding around it."""

    def __init__(self, bundle: Bundle, experiment: Path) -> None:
        self._bundle = bundle
        self._network = build(load_experiment(experiment), len(bundle.palette)).eval()

    @torch.no_grad()
    def encode(self, frame: Frame) -> Packet:
        image = torch.from_numpy(frame.image).permute(2, 0, 1)[None].float()
        y = self._network.encode(image)
        z = self._network.prior.hyper_encoder(y)
        latents = quantise(y[0].numpy(), z[0].numpy(), self._bundle.tables)
        body = encode_latents(latents, self._bundle.tables)
        return packet_of(frame, body, bundle=self._bundle.id, quality=0)

    @torch.no_grad()
    def decode(self, packets: list[Packet]) -> list[Any]:
        body = packets[0].regions[0].body
        y_hat = dequantise(decode_latents(body, self._bundle.tables, self._bundle.latent_size))
        logits = self._network.decoder(torch.from_numpy(y_hat)[None])[0].numpy()
        return [class_map(logits, self._bundle.manifest.height, self._bundle.manifest.width)]


def timed(times: list[float], work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    times.append(1000 * (time.perf_counter() - start))
    return result


def images_of(source: Path, bundle: Bundle, count: int) -> list[np.ndarray]:
    size = (bundle.manifest.width, bundle.manifest.height)
    with open_source(str(source), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
        return [fit(picture.image, size) for picture, _ in zip(opened.pictures, range(count), strict=False)]


def measure(bundle: Bundle, images: list[np.ndarray], *, experiment: Path, threads: int) -> Times:
    """Milliseconds of each stage by engine; the first frames, which warm caches, are left out."""
    encoders: dict[str, Any] = {e: open_encoder(bundle, engine=e, threads=threads) for e in ENGINES}
    decoders: dict[str, Any] = {e: open_decoder(bundle, engine=e, threads=threads) for e in ENGINES}
    encoders["torch float32"] = decoders["torch float32"] = TorchCodec(bundle, experiment)
    times: Times = {e: {stage: [] for stage in LIMITS_MS} for e in encoders}
    for sequence, image in enumerate(images):
        frame = Frame(FrameId(0, sequence), 0, image)
        for engine, row in times.items():
            data = timed(row["encode"], lambda encoder=encoders[engine], frame=frame: pack(encoder.encode(frame)))
            timed(row["decode"], lambda decoder=decoders[engine], data=data: decoder.decode([unpack(data)]))
            if engine in ENGINES:
                latents = encoders[engine].latents(image)
                body = timed(row["entropy encode"], lambda latents=latents: encode_latents(latents, bundle.tables))
                timed(
                    row["entropy decode"],
                    lambda body=body: decode_latents(body, bundle.tables, bundle.latent_size),
                )
    warm = min(5, len(images) // 4)
    return {engine: {stage: ms[warm:] for stage, ms in row.items()} for engine, row in times.items()}


def main(
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained model")] = None,
    source: Annotated[Path | None, typer.Option(help="clip, or directory of images")] = None,
    experiment: Annotated[Path, typer.Option(help="the bundle's experiment")] = Path("configs/train/camvid.yaml"),
    frames: Annotated[int, typer.Option(min=8)] = 100,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    torch.set_num_threads(threads)
    loaded = load_bundle(bundle or default_bundle())
    images = images_of(source or sample_path(), loaded, frames)
    times = measure(loaded, images, experiment=experiment, threads=threads)
    medians = {
        engine: {stage: statistics.median(ms) for stage, ms in row.items() if ms} for engine, row in times.items()
    }
    size = f"{loaded.manifest.width}x{loaded.manifest.height}"
    table = Table("stage", *medians, "limit", title=f"median ms, {size}, {threads} threads, {len(images)} frames")
    for stage, limit in LIMITS_MS.items():
        base = medians["torch float32"].get(stage)
        cells = [
            "" if stage not in row else f"{row[stage]:.2f}" + (f"  ({base / row[stage]:.1f}x)" if base else "")
            for row in medians.values()
        ]
        table.add_row(stage, *cells, f"{limit:.0f}")
    Console(width=110).print(table)
    print("(n x): times faster than plain torch float32 in this run; the limits are for openvino on two cores")
    if json_file is not None:
        json_file.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
