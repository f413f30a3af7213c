"""Training of an outline network, without labels: by the edges of the masks that a bundle makes of frames.

Frames are looked at once, each at a level drawn for it; their latents fit into memory, so that training takes minutes.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from pipeline.decide_samples import Worker
from pipeline.errors import PipelineError
from pipeline.experiment import OutlineSettings
from pipeline.models.outline import OutlineNetwork, settle_outline

FILE = "outline.safetensors"
_TOLD_EVERY = 1000  # steps
_WARM_UP = 0.1  # share of the steps in which the learning rate rises


@dataclass(frozen=True, slots=True, eq=False)
class Outlined:
    """N frames: latents y (N, C, h, w) of levels (N,), and the share of each place at an edge of the mask (N, h, w)."""

    y: NDArray[np.float32]
    quality: NDArray[np.int64]
    edges: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.quality)


def outlined(worker: Worker, images: Sequence[NDArray[np.uint8]], *, most: int, rng: np.random.Generator) -> Outlined:
    """So many of the images (H, W, 3) at most, one at least, spread evenly, each at a random level."""
    chosen = images[:: -(-len(images) // most)]
    levels = [one.index for one in worker.bundle.manifest.quality_levels]
    quality = rng.choice(levels, len(chosen))
    found = [worker.edges(image, int(level)) for image, level in zip(chosen, quality, strict=True)]
    y, edges = (np.stack(column) for column in zip(*found, strict=True))
    return Outlined(y, quality.astype(np.int64), edges)


def train_outline(
    settings: OutlineSettings, parts: Sequence[Outlined], run: Path, *, levels: int, seed: int
) -> Generator[str, None, OutlineNetwork]:
    """Learn from all frames alike, and save; yields how far it is. PipelineError when the loss is not finite."""
    y = torch.from_numpy(np.concatenate([part.y for part in parts]))
    quality = torch.from_numpy(np.concatenate([part.quality for part in parts]))
    edges = torch.from_numpy(np.concatenate([part.edges for part in parts]))
    torch.manual_seed(seed)
    network = OutlineNetwork(y.shape[1], levels, width=settings.width)
    settle_outline(network, y, quality)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    for step in range(settings.steps):
        rows = torch.randint(len(y), (settings.batch,))
        optimiser.param_groups[0]["lr"] = settings.lr * _rate(step / settings.steps)
        loss = F.binary_cross_entropy_with_logits(network.logits(y[rows], quality[rows]), edges[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if (step + 1) % _TOLD_EVERY and step + 1 < settings.steps:
            continue
        if not loss.isfinite():
            raise PipelineError("the loss of the outline network is not finite; lower outline.lr")
        yield f"edges: step {step + 1} of {settings.steps}, loss {loss.item():.3f}"
    network.eval()
    run.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), run / FILE)
    return network


def _rate(done: float) -> float:
    """The learning rate after this share of the steps, as a share of its peak."""
    return done / _WARM_UP if done < _WARM_UP else 0.5 * (1 + cos(pi * (done - _WARM_UP) / (1 - _WARM_UP)))


@torch.no_grad()
def correlation(network: OutlineNetwork, part: Outlined) -> float:
    """Between what the network says of the places of frames and what they are; 0 where there is no edge at all."""
    said: Tensor = network(torch.from_numpy(part.y), torch.from_numpy(part.quality))
    if part.edges.std() == 0:
        return 0.0
    return float(np.corrcoef(said.numpy().ravel(), part.edges.ravel())[0, 1])


def describe_outline(network: OutlineNetwork, video: str, part: Outlined) -> str:
    """One line for the log, of frames that were not learned from."""
    return f"{video}, held out: edges where they are with a correlation of {correlation(network, part):.2f}"
