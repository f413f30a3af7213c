"""One more graph into a bundle that is there already."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from pipeline.bundle import Bundle, copy_content, seal
from pipeline.tracing import trace


def add_graph(
    bundle: Bundle,
    name: str,
    network: nn.Module,
    examples: Sequence[Tensor],
    folder: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    **told: float,
) -> Bundle:
    """Write the bundle with a graph of this name, new or another one, to a folder, which may be its own; load it again.

    `examples` are inputs of the network, each a batch of one; `told` is what the manifest says besides. Packets of the
    old bundle are not the new one's: the hash covers all graphs.
    """
    copy_content(bundle, folder)
    file = f"{name}.onnx"
    trace(network, examples, folder / file, inputs=inputs, outputs=outputs)
    graphs = {**bundle.manifest.graphs, name: file}
    return seal(bundle.manifest.model_copy(update={"graphs": graphs, **told}), folder)
