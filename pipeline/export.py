"""From trained network to bundle: merge, fold, trace the graphs, fit the tables, write the folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor, nn

from pipeline.bundle import (
    MANIFEST,
    TABLES,
    Bundle,
    ClassInfo,
    Manifest,
    Network,
    QualityLevel,
    Tables,
    content_hash,
    load_bundle,
)
from pipeline.context_fitting import DEFAULT_EFFORT, Effort, LevelLatents, fit_tables
from pipeline.errors import ConfigError
from pipeline.integer_prior import load_prior
from pipeline.models.entropy_model import HYPER_LIMIT, SCALE_LEVELS, FrozenPrior, MeanScaleHyperprior, freeze
from pipeline.models.layers import fuse, normed
from pipeline.models.over_parameterised import merge_branches
from pipeline.models.split_segmenter import SplitSegmenter, levels_like
from pipeline.tracing import trace

_GRAPHS = {"encode": "encode.onnx", "decode": "decode.onnx"}
_FITTED_ON = 240  # frames, spread over those that were trained on


@dataclass(frozen=True, slots=True)
class Description:
    """What a manifest says that the network does not know."""

    name: str
    created_by: str
    dataset: str
    classes: tuple[ClassInfo, ...]
    width: int
    height: int
    licence: str
    network: Network | None = None


class EncodeGraph(nn.Module):
    """uint8 RGB (B, H, W, 3) and levels (B,) -> y (B, C, h, w) and z (B, Z, h/4, w/4), scaled and not rounded.

    Without `hyper` there is no z: the bundle codes y by its own neighbours alone.
    """

    def __init__(self, network: SplitSegmenter, prior: MeanScaleHyperprior, *, hyper: bool) -> None:
        super().__init__()
        self.network = network
        self.prior = prior
        self.hyper = hyper

    def forward(self, image: Tensor, quality: Tensor) -> tuple[Tensor, ...]:
        y, z = self.prior.analyse(self.network.encode(image.permute(0, 3, 1, 2).float()), quality)
        return (y, z) if self.hyper else (y,)


class DecodeGraph(nn.Module):
    """y_hat (B, C, h, w) as coded and levels (B,) -> logits (B, K, 4h, 4w), the classes' offsets (L, K) added."""

    class_offsets: Tensor

    def __init__(self, prior: MeanScaleHyperprior, decoder: nn.Module, class_offsets: Tensor) -> None:
        super().__init__()
        self.gains = prior.gains
        self.decoder = decoder
        self.register_buffer("class_offsets", class_offsets)

    def forward(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.gains.unscale(y_hat, quality))
        return logits + self.class_offsets[quality][:, :, None, None]


class WholeGraph(nn.Module):
    """uint8 RGB (B, H, W, 3) -> logits (B, K, 4h, 4w) from latents that are neither rounded nor coded, for comparisons.

    A bottleneck's gains stay, those of its highest level; the offsets (L, K) are that level's too.
    """

    class_offsets: Tensor
    gains: Tensor

    def __init__(self, network: SplitSegmenter, class_offsets: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("class_offsets", class_offsets[-1][:, None, None])
        self.register_buffer("gains", _gains_of(network.prior))

    def forward(self, image: Tensor) -> Tensor:
        y = self.network.encode(image.permute(0, 3, 1, 2).float())
        logits: Tensor = self.network.decoder(y * self.gains)
        return logits + self.class_offsets


def _gains_of(prior: nn.Module) -> Tensor:
    """What the highest level makes of latents that are not rounded (C, 1, 1); 1 where nothing would be coded."""
    if not isinstance(prior, MeanScaleHyperprior):
        return torch.ones(1, 1, 1)
    return (prior.gains.log_gain[-1] + prior.gains.log_inverse[-1]).detach().exp()[:, None, None]


def fold_batch_norms(network: SplitSegmenter) -> SplitSegmenter:
    """A copy in which branches, and convolutions with a batch norm behind, are one convolution; equal in eval mode."""
    folded = merge_branches(network).eval()
    for name, conv, norm in list(normed(folded)):
        weight, bias = fuse(conv, norm)
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        parent, _, place = name.rpartition(".")
        setattr(folded.get_submodule(parent), str(int(place) + 1), nn.Identity())  # so that nothing else moves
    return folded


def export(
    network: SplitSegmenter,
    described: Description,
    folder: Path,
    *,
    frames: Sequence[NDArray[np.uint8]],
    hyper: bool = True,
    class_offsets: NDArray[np.float32] | None = None,
    effort: Effort = DEFAULT_EFFORT,
    start: Tables | None = None,
) -> Bundle:
    """Write the bundle of a trained network and load it again, which checks it; rate and accuracy are not known yet.

    The tables are fitted to `frames`, RGB (H, W, 3), which must be frames of training, beginning with those of `start`
    where a bundle is made of another. Without `hyper` no hyper latent is sent (Ahuja et al., CVPR 2023: the rate
    estimator is for training only). `class_offsets` (L, K) are added to the logits. Raises ConfigError where the
    network codes nothing.
    """
    prior = network.prior
    if not isinstance(prior, MeanScaleHyperprior):
        raise ConfigError("the network has no bottleneck, so it has no packets either; export it with --whole")
    folder.mkdir(parents=True, exist_ok=True)
    folded = fold_batch_norms(network.cpu())
    offsets = np.zeros((network.levels, len(described.classes))) if class_offsets is None else class_offsets
    encode = EncodeGraph(folded, prior, hyper=hyper)
    decode = DecodeGraph(prior, folded.decoder, torch.from_numpy(offsets).float())
    _write_graphs(encode, decode, folder, size=(described.height, described.width))
    stored = _stored_prior(freeze(prior)) if hyper else {}
    integer = load_prior(stored, hyper_limit=HYPER_LIMIT, scale_levels=SCALE_LEVELS) if hyper else None
    fitted = fit_tables(list(_latents(encode, frames)), integer, hyper_limit=HYPER_LIMIT, effort=effort, start=start)
    # Arrays in another order than C's would be written as if they were in it.
    tables = {name: np.ascontiguousarray(array) for name, array in {**fitted, **stored}.items()}
    (folder / TABLES).write_bytes(save(tables))  # save_file would keep others from reading it
    unmeasured = [QualityLevel(index=i, rate_bpp=0.0, miou=0.0, default=i == 0) for i in range(network.levels)]
    write_manifest(folder, described, unmeasured)
    return load_bundle(folder)


@torch.no_grad()
def _write_graphs(encode: EncodeGraph, decode: DecodeGraph, folder: Path, *, size: tuple[int, int]) -> None:
    image = torch.zeros(1, *size, 3, dtype=torch.uint8)
    level = levels_like(image, 0)
    y, *_ = encode(image, level)
    outputs = ["y", "z"] if encode.hyper else ["y"]
    trace(encode, (image, level), folder / _GRAPHS["encode"], inputs=["image", "quality"], outputs=outputs)
    trace(decode, (y, level), folder / _GRAPHS["decode"], inputs=["y_hat", "quality"], outputs=["logits"])


def export_whole(
    network: SplitSegmenter, path: Path, *, width: int, height: int, class_offsets: NDArray[np.float32]
) -> None:
    """Write a network as one graph, from image to logits: what it would do if its latents were not coded.

    `class_offsets` (L, K) are added to the logits, those of the highest level.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    graph = WholeGraph(fold_batch_norms(network.cpu()), torch.from_numpy(class_offsets))
    trace(graph, (image,), path, inputs=["image"], outputs=["logits"])


def write_manifest(folder: Path, described: Description, levels: Sequence[QualityLevel]) -> Manifest:
    """Write the manifest of the graphs and tables that lie in the folder."""
    manifest = Manifest(
        name=described.name,
        hash=content_hash(folder, sorted([TABLES, *_GRAPHS.values()])),
        created_by=described.created_by,
        dataset=described.dataset,
        classes=described.classes,
        width=described.width,
        height=described.height,
        grid="1x1",
        quality_levels=tuple(levels),
        graphs=_GRAPHS,
        precision="weights float16, sums float32 or bfloat16 by engine; entropy model integer",
        licence=described.licence,
        network=described.network,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


@torch.no_grad()
def _latents(encode: EncodeGraph, frames: Sequence[NDArray[np.uint8]]) -> Iterator[LevelLatents]:
    """What the encode graph gives for some of the frames, level by level."""
    chosen = frames[:: max(1, len(frames) // _FITTED_ON)]
    ys = [encode.network.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float()) for image in chosen]
    for level in range(encode.prior.gains.levels):
        scaled, hyper = zip(*(encode.prior.analyse(y, levels_like(y, level)) for y in ys), strict=True)
        z = torch.cat(hyper).numpy()
        yield LevelLatents(torch.cat(scaled).numpy(), z if encode.hyper else z[:, :0])


def _stored_prior(frozen: FrozenPrior) -> dict[str, NDArray[np.generic]]:
    stored: dict[str, NDArray[np.generic]] = {}
    for i, (weight, bias) in enumerate(zip(frozen.weights, frozen.biases, strict=True)):
        stored[f"weight_{i}"], stored[f"bias_{i}"] = weight, bias
    return stored
