"""From trained network to bundle: fold batch norms, trace the graphs, freeze the prior, write the folder."""

import logging
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
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
    QualityLevel,
    content_hash,
    load_bundle,
)
from pipeline.entropy import FrequencyTables, build_tables, gaussian_tables
from pipeline.models.entropy_model import HYPER_LIMIT, FrozenPrior, freeze
from pipeline.models.layers import fuse
from pipeline.models.split_segmenter import SplitSegmenter

_GRAPHS = {"encode": "encode.onnx", "decode": "decode.onnx"}
_HALVED_FROM = 256  # weights; smaller tensors, all biases among them, stay float32


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


class EncodeGraph(nn.Module):
    """uint8 RGB (B, H, W, 3) -> y (B, C, h, w) and z (B, Z, h/4, w/4), neither of them rounded."""

    def __init__(self, network: SplitSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        y = self.network.encode(image.permute(0, 3, 1, 2).float())
        return y, self.network.prior.hyper_encoder(y)


def fold_batch_norms(network: SplitSegmenter) -> SplitSegmenter:
    """A copy in which each convolution followed by a batch norm is one convolution; equal in eval mode."""
    folded = deepcopy(network).eval()
    for module in folded.modules():
        if isinstance(module, nn.Sequential):
            _fold_pairs(module)
    return folded


def _fold_pairs(layers: nn.Sequential) -> None:
    """Fold in place; the batch norm's place is taken by an identity, so that nothing else moves."""
    for i in range(len(layers) - 1):
        conv, norm = layers[i], layers[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            weight, bias = fuse(conv, norm)
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            layers[i + 1] = nn.Identity()


def export(network: SplitSegmenter, described: Description, folder: Path) -> Bundle:
    """Write the bundle of a trained network and load it again, which checks it; rate and accuracy are not known yet."""
    folder.mkdir(parents=True, exist_ok=True)
    frozen = freeze(network.prior)
    folded = fold_batch_norms(network)
    image = torch.zeros(1, described.height, described.width, 3, dtype=torch.uint8)
    with torch.no_grad():
        y, _ = EncodeGraph(folded)(image)
    _trace(EncodeGraph(folded), image, folder / _GRAPHS["encode"], inputs="image", outputs=["y", "z"])
    _trace(folded.decoder, y, folder / _GRAPHS["decode"], inputs="y_hat", outputs=["logits"])
    (folder / TABLES).write_bytes(save(_stored_tables(frozen)))  # save_file would keep others from reading it
    unmeasured = QualityLevel(index=0, rate_bpp=0.0, miou=0.0, default=True)
    write_manifest(folder, described, (unmeasured,))
    return load_bundle(folder)


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
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _trace(network: nn.Module, example: Tensor, path: Path, *, inputs: str, outputs: list[str]) -> None:
    """Write an ONNX graph with an open batch size and its larger weights stored as float16."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            (torch.cat([example, example]),),
            input_names=[inputs],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter gave no graph")
    model = halve_weights(program.model_proto)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def halve_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose larger float32 weights are stored as float16 and cast back where the graph begins."""
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph, casts = halved.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _HALVED_FROM:
            continue
        name = tensor.name
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return halved


def _stored_tables(frozen: FrozenPrior) -> dict[str, NDArray[np.generic]]:
    latent = gaussian_tables(frozen.scales)
    hyper = _hyper_tables(frozen.hyper_pmf)
    stored: dict[str, NDArray[np.generic]] = {
        "latent_cumulative": latent.cumulative,
        "latent_sizes": latent.sizes,
        "latent_offsets": latent.offsets,
        "hyper_cumulative": hyper.cumulative,
        "hyper_sizes": hyper.sizes,
        "hyper_offsets": hyper.offsets,
        "latent_scales": frozen.scales,
        "hyper_limit": np.array([HYPER_LIMIT], np.int32),
    }
    for i, (weight, bias) in enumerate(zip(frozen.weights, frozen.biases, strict=True)):
        stored[f"weight_{i}"], stored[f"bias_{i}"] = weight, bias
    return stored


def _hyper_tables(pmf: NDArray[np.float64], tail: float = 2.0**-16) -> FrequencyTables:
    """Probabilities (Z, 2L + 1) of z = -L..L -> one table per channel, improbable ends left to the escape."""
    tables, offsets = [], []
    for row in pmf:
        kept = np.flatnonzero(row > tail)
        first, last = (kept[0], kept[-1] + 1) if kept.size else (row.argmax(), row.argmax() + 1)
        inside = row[first:last]
        tables.append(np.append(inside, max(1 - inside.sum(), 0.0)))
        offsets.append(int(first) - len(row) // 2)
    return build_tables(tables, offsets)
