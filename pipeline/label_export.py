"""A label decoder into the bundle of the network that it was trained behind: one more graph, one more thing to say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.bundle import Bundle, load_bundle
from pipeline.bundle_graphs import add_graph
from pipeline.codec import open_encoder
from pipeline.errors import ConfigError
from pipeline.experiment import load_experiment, load_label_experiment
from pipeline.labelling import describe_labels, load_labels, train_labels, trained_network
from pipeline.latent_coding import dequantise
from pipeline.material import Folders
from pipeline.models.entropy_model import MeanScaleHyperprior, NoBottleneck
from pipeline.models.label_decoder import LabelDecoder
from pipeline.models.split_segmenter import SplitSegmenter, levels_like

GRAPH = "labels"
_PATCH = 24  # pixels, so that edges lie anywhere between latents
_AGREEMENT = 0.98  # of latents; encoders in float16 and in float32 round a few in another way


class LabelGraph(nn.Module):
    """y_hat (B, C, h, w) as coded and levels (B,) -> scores (B, K) in 0..1."""

    def __init__(self, prior: MeanScaleHyperprior | NoBottleneck, decoder: LabelDecoder) -> None:
        super().__init__()
        self.gains = _coding(prior).gains
        self.decoder = decoder

    def forward(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        scores: Tensor = self.decoder(self.gains.unscale(y_hat, quality)).sigmoid()
        return scores


def add_labels(
    bundle: Bundle, network: SplitSegmenter, decoder: LabelDecoder, folder: Path, *, least_share: float
) -> Bundle:
    """Write the bundle with a graph for labels; see add_graph. ConfigError when the bundle is of another network."""
    check_same_network(bundle, network)
    rows, columns = bundle.latent_size
    y_hat = torch.zeros(1, bundle.tables.latents, rows, columns)
    graph = LabelGraph(network.prior, decoder).cpu().eval()
    examples, inputs = (y_hat, levels_like(y_hat, 0)), ["y_hat", "quality"]
    return add_graph(
        bundle, GRAPH, graph, examples, folder, inputs=inputs, outputs=["scores"], presence_share=least_share
    )


@torch.no_grad()
def check_same_network(bundle: Bundle, network: SplitSegmenter) -> None:
    """ConfigError unless the bundle's encoder gives the latents that the network gives, but for rounding."""
    levels = bundle.tables.levels
    if levels != network.levels:
        raise ConfigError(f"bundle {bundle.path}: {levels} quality levels, the run has {network.levels}; use its own")
    top = max(level.index for level in bundle.manifest.quality_levels)
    picture = _patches(bundle.manifest.height, bundle.manifest.width)
    coded = dequantise(open_encoder(bundle, engine="onnxruntime", quality=top).latents(picture))
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    y, _ = _coding(network.prior).analyse(network.encode(image), levels_like(image, top))
    channels = bundle.tables.latent[top].channels  # the others are not sent
    near = np.abs(y[0].numpy() - coded)[channels] <= 0.5 + 1 / 16
    if near.mean() < _AGREEMENT:
        raise ConfigError(
            f"bundle {bundle.path}: its encoder is not that of the run ({near.mean():.0%} of the latents agree); "
            "use the bundle that was exported from the run"
        )


def _patches(height: int, width: int) -> NDArray[np.uint8]:
    """A picture (H, W, 3) of coloured squares."""
    colours = np.random.default_rng(0).integers(0, 256, (-(-height // _PATCH), -(-width // _PATCH), 3), np.uint8)
    return colours.repeat(_PATCH, 0).repeat(_PATCH, 1)[:height, :width].copy()


def _coding(prior: MeanScaleHyperprior | NoBottleneck) -> MeanScaleHyperprior:
    if isinstance(prior, NoBottleneck):
        raise ConfigError("the network sends nothing, so that there is nothing to label; name another run")
    return prior


def train_into_bundle(
    config: Path, *, data: Path, network: Path, run: Path, bundle: Path, output: Path | None
) -> Iterator[str]:
    """Train by a file of configs/train/ behind the network of a run, into its bundle; yields what to tell a person."""
    settings, loaded = load_label_experiment(config), load_bundle(bundle)
    base, classes = load_experiment(config.parent / settings.network), len(loaded.manifest.classes)
    trained = trained_network(base, network, classes)
    check_same_network(loaded, trained)
    folders = Folders(data=data, backbone=None, run=run, start=network)
    yield from map(describe_labels, train_labels(settings, base, folders))
    decoder = load_labels(run, LabelDecoder(base.model.latents, classes, width=settings.width))
    made = add_labels(loaded, trained, decoder, output or bundle, least_share=settings.least_share)
    yield f"bundle {made.path}: {made.manifest.hash}, with labels"
