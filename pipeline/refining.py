"""What a traced network still lacks to be the bundle that is shipped, fitted to frames without labels.

bundle, frames -> masks that flicker less (smoothing) -> how thriftily y is rounded (rdoq_fitting)
               -> an 8-bit decode graph (int8) -> bundle

No training, and no torch: bundles of before get both by `maskcast refine`.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import evaluation, rdoq_fitting
from pipeline.bundle import Bundle, copy_content, seal
from pipeline.codec import Encoder, open_encoder
from pipeline.datasets import Labelled, Stored, in_memory
from pipeline.errors import ConfigError
from pipeline.int8 import add_int8
from pipeline.latent_coding import dequantise
from pipeline.rdoq_fitting import Fitted
from pipeline.smoothing import smooth

_ROUNDED, _CALIBRATED = 48, 16  # frames at most, spread over those that are given


@dataclass(frozen=True, slots=True)
class Refined:
    """The new bundle; how each quality level is rounded; the share (0..1) of pixels that 8-bit integers change.

    The last is None where the network has no convolutions for them. Where it is too much, the bundle goes without.
    """

    bundle: Bundle
    levels: tuple[Fitted, ...]
    int8_moved: float | None


def refine(
    bundle: Bundle,
    images: Sequence[NDArray[np.uint8]],
    folder: Path,
    *,
    smoothing: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Refined:
    """Write the refined bundle to a folder, which may be its own.

    `images`, RGB (H, W, 3) of the bundle's size, are such as it was trained on. `smoothing` is that of its logits
    (smoothing.smooth), None for as it is. `tell` is told in lines what goes on. What the manifest says of rates and
    accuracies is that of before. ConfigError where there are no images, or the bundle makes no masks.
    """
    if not images:
        raise ConfigError("no images to refine by; name frames that it was trained on")
    some = _spread(images, _ROUNDED)
    fewer = _spread(images, _CALIBRATED)
    if smoothing is not None:
        encoder = open_encoder(bundle, engine="onnxruntime")
        bundle = smooth(bundle, smoothing, _latents(bundle, encoder, fewer), folder)
    fitted = tuple(rdoq_fitting.fit(bundle, some, progress=lambda n: tell(f"quality levels fitted: {n}")))
    thrifty = rdoq_fitting.write(bundle, fitted, folder)
    encoder = open_encoder(thrifty, engine="onnxruntime")
    made, moved = add_int8(thrifty, list(_latents(thrifty, encoder, fewer)), folder)
    return Refined(made, fitted, moved)


def refine_and_measure(
    bundle: Bundle,
    learned: Labelled | Stored,
    shown: Labelled | Stored,
    folder: Path,
    *,
    split: str,
    smoothing: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Refined:
    """Refine a bundle by frames it was trained on, and measure what its manifest says on others, those of `split`.

    The folder, which may be the bundle's own, gets the new one at the end, or nothing. `tell` is told in lines what
    goes on. ConfigError as `refine` raises it, and on labels that are none of the bundle's classes.
    """
    evaluation.check_labels(bundle, shown)
    images = in_memory(learned, (bundle.manifest.height, bundle.manifest.width)).images
    with tempfile.TemporaryDirectory() as scratch:
        made = refine(bundle, images, Path(scratch), smoothing=smoothing, tell=tell)
        measured = evaluation.measured_levels(made.bundle, shown, split=split, tell=tell)
        copy_content(made.bundle, folder)
    trained_on, _, before = bundle.manifest.dataset.partition("; ")
    measured_on = evaluation.measured_on(split, shown, learned)
    if before.startswith(f"{measured_on}, "):  # it learned from more than it is fitted to now
        measured_on = before
    levels = tuple(evaluation.as_claimed(made.bundle, measured))
    changed = {"quality_levels": levels, "dataset": f"{trained_on}; {measured_on}"}
    manifest = made.bundle.manifest.model_copy(update=changed)
    return replace(made, bundle=seal(manifest, folder))


def _latents(
    bundle: Bundle, encoder: Encoder, images: Sequence[NDArray[np.uint8]]
) -> Iterator[tuple[NDArray[np.float32], int]]:
    """What workers read of the images at every level, and the level."""
    for image in images:
        for level in range(bundle.tables.levels):
            encoder.quality = level
            yield dequantise(encoder.latents(image)), level


def _spread(images: Sequence[NDArray[np.uint8]], most: int) -> Sequence[NDArray[np.uint8]]:
    return images[:: -(-len(images) // most)] if len(images) > most else images
