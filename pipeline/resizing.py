"""A bundle for pictures of another size: the same network, traced anew, its tables fitted to frames of that size.

Nothing is trained. What is finer in larger pictures takes more bits and time, and masks are better for it.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline import deciding, outlining
from pipeline.bundle import Bundle, seal
from pipeline.context_fitting import Effort
from pipeline.datasets import Labelled, Stored, in_memory
from pipeline.errors import ConfigError
from pipeline.export import Description, export
from pipeline.refining import Refined, refine_and_measure
from pipeline.restoring import class_offsets, restore

_STEP = 64  # pixels of a hyper latent: where the last one of a row is cut as it was in training, the network knows it
_LABELS = "labels"
_EFFORT = Effort(steps=100, batch=8, learning_rate=0.001, penalty=0.05)


def check_size(bundle: Bundle, size: tuple[int, int]) -> None:
    """ConfigError unless a size (width, height) is one that the bundle can be brought to."""
    manifest = bundle.manifest
    old = manifest.width, manifest.height
    if size == old:
        raise ConfigError(f"size {size[0]}x{size[1]}: the bundle is of that size; name another one")
    if min(size) < _STEP or any((new - before) % _STEP for new, before in zip(size, old, strict=True)):
        raise ConfigError(
            f"size {size[0]}x{size[1]}: width and height have to differ from the bundle's {old[0]}x{old[1]} by "
            f"multiples of {_STEP}, such as {old[0] + _STEP}x{old[1]}"
        )


def resize_and_measure(
    bundle: Bundle,
    size: tuple[int, int],
    learned: Labelled | Stored,
    shown: Labelled | Stored,
    folder: Path,
    *,
    split: str,
    effort: Effort = _EFFORT,
    tell: Callable[[str], None] = lambda _: None,
) -> Refined:
    """Resize a bundle by frames it was trained on, refine it, and measure what its manifest says on those of `split`.

    The folder, which may not be the bundle's own, gets the new one at the end, or nothing. ConfigError as `resize` and
    `refine_and_measure` raise it.
    """
    check_size(bundle, size)
    if folder.resolve() == bundle.path.resolve():
        raise ConfigError(f"output {folder}: that is the bundle itself; name another folder")
    images = in_memory(learned, (size[1], size[0])).images
    with tempfile.TemporaryDirectory() as scratch:
        made = resize(bundle, size, images, Path(scratch), effort=effort, tell=tell)
        smoothing = bundle.manifest.smoothing
        return refine_and_measure(made, learned, shown, folder, split=split, smoothing=smoothing, tell=tell)


def resize(
    bundle: Bundle,
    size: tuple[int, int],
    images: Sequence[NDArray[np.uint8]],
    folder: Path,
    *,
    effort: Effort = _EFFORT,
    tell: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Write the bundle of a size (width, height) to a folder; rates, accuracies and rounding are not known yet.

    `images`, RGB (H, W, 3) of that size, are such as it was trained on. ConfigError where the size does not fit, or
    the bundle cannot be restored.
    """
    check_size(bundle, size)
    manifest = bundle.manifest
    tell(f"fitting tables to {len(images)} frames of {size[0]}x{size[1]}")
    made = export(
        restore(bundle).network,
        Description(
            name=manifest.name,
            created_by=f"{manifest.created_by}; brought to {size[0]}x{size[1]} by maskcast resize",
            dataset=manifest.dataset,
            classes=manifest.classes,
            width=size[0],
            height=size[1],
            licence=manifest.licence,
            network=manifest.network,
        ),
        folder,
        frames=images,
        hyper=bool(bundle.tables.hyper),
        class_offsets=class_offsets(bundle),
        effort=effort,
        start=bundle.tables,
    )
    return _with_further_graphs(made, bundle)


def _with_further_graphs(made: Bundle, old: Bundle) -> Bundle:
    """What export does not write: the graphs fitted to the old bundle's network, and what its manifest says of it."""
    graphs = dict(made.manifest.graphs)
    for name in (_LABELS, outlining.GRAPH, deciding.GRAPH):
        if old.has_graph(name):
            graphs[name] = f"{name}.onnx"
            graph = _of_size(old.graph(name), old.latent_size, made.latent_size)
            (made.path / graphs[name]).write_bytes(graph)
    before = old.manifest
    kept = {"graphs": graphs, "presence_share": before.presence_share, "quality_levels": before.quality_levels}
    return seal(made.manifest.model_copy(update=kept), made.path)


def _of_size(path: Path, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    """A graph that convolves latents, and takes means over them, for another number of rows and columns.

    One that is not of latents is the same for all sizes.
    """
    model = onnx.load(path)
    shapes = [value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.output)]
    of_latents = [dims for dims in shapes if len(dims) > 2 and (dims[-2].dim_value, dims[-1].dim_value) == old]
    if not of_latents:
        return path.read_bytes()
    del model.graph.value_info[:]
    for dims in of_latents:
        dims[-2].dim_value, dims[-1].dim_value = new
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content
