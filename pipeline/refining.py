"""What a traced network still lacks to be the bundle that is shipped, fitted to frames without labels.

bundle, frames -> how thriftily y is rounded (rdoq_fitting) -> an 8-bit decode graph (int8) -> bundle

No training, and no torch: bundles of before get both by `maskcast refine`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import rdoq_fitting
from pipeline.bundle import Bundle
from pipeline.codec import Encoder, open_encoder
from pipeline.int8 import add_int8
from pipeline.latent_coding import dequantise
from pipeline.rdoq_fitting import Fitted

_ROUNDED, _CALIBRATED = 48, 16  # frames, spread over those that are given


def refine(
    bundle: Bundle,
    images: Sequence[NDArray[np.uint8]],
    folder: Path,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Bundle, list[Fitted]]:
    """Write the refined bundle to a folder, which may be its own; it, and what each quality level gained.

    `images`, RGB (H, W, 3) of the bundle's size, are such as it was trained on. `progress` is told how many levels are
    done. What the manifest says of rates and accuracies is that of before. ConfigError where there are no images.
    """
    fitted = list(rdoq_fitting.fit(bundle, _spread(images, _ROUNDED), progress=progress))
    thrifty = rdoq_fitting.write(bundle, fitted, folder)
    encoder = open_encoder(thrifty, engine="onnxruntime")
    return add_int8(thrifty, _latents(thrifty, encoder, _spread(images, _CALIBRATED)), folder), fitted


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
