"""Training of a label decoder: which classes are in the picture, by the latents that are sent for its masks.

The camera's half of a trained segmentation network, analysis and prior, stays as it is: a camera goes on running one
encoder, and each of its packets serves both tasks. Trained end to end the labels would need an encoder and packets of
their own, which costs more than it can gain. What is trained here is small and ready in minutes on two cores.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.accuracy import LabelAccuracy, label_accuracy
from pipeline.datasets import Frames
from pipeline.errors import ConfigError, PipelineError
from pipeline.experiment import Experiment, LabelExperiment
from pipeline.losses import class_shares, label_loss, presence
from pipeline.material import Folders, Material, prepare
from pipeline.models.label_decoder import LabelDecoder
from pipeline.models.layers import short_floats
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.training import load_trained
from pipeline.views import Batch

FILE = "labels.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class LabelMeasured:
    """Accuracy on one split at one quality level."""

    split: str
    quality: int
    accuracy: LabelAccuracy


@dataclass(frozen=True, slots=True)
class LabelProgress:
    """One line of the log: the mean loss of the labels in an epoch, and after the last one what was measured."""

    epoch: int
    epochs: int
    loss: float
    measured: tuple[LabelMeasured, ...]


class Labeller(nn.Module):
    """The camera's half of a segmentation network, which is never trained here, and a label decoder behind it."""

    def __init__(self, network: SplitSegmenter, decoder: LabelDecoder) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.decoder = decoder

    def train(self, mode: bool = True) -> "Labeller":
        """Only the label decoder changes its mode: the network's batch norms must not learn."""
        self.decoder.train(mode)
        return self

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in 0..255 -> y (B, C, h, w)."""
        with short_floats(image.device):
            return self.network.encode(image.contiguous(memory_format=torch.channels_last))

    def evidence(self, y: Tensor, quality: Tensor) -> Tensor:
        """y (B, C, h, w) and levels (B,) -> logits (B, K, h, w) of each place's share of the classes."""
        with torch.no_grad():
            y_hat = self.network.prior(y, quality).y_hat
        with short_floats(y.device):
            return self.decoder.evidence(y_hat).float()


def train_labels(settings: LabelExperiment, base: Experiment, folders: Folders) -> Iterator[LabelProgress]:
    """Train behind the network of experiment `base` and run `folders.start`; yields once per epoch, the last one saved.

    Beside the labels it learns what share of each place the classes have: of that there is much more to learn from.

    Raises ConfigError on wrong folders and on a data.size that is not the network's, PipelineError when a loss is not
    finite.
    """
    schedule = settings.schedule
    if settings.data.size != base.data.size:
        raise ConfigError(f"experiment {settings.name}: data.size is not that of {base.name}; write the same")
    torch.manual_seed(schedule.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    material = prepare(_as_experiment(settings, base), folders, device)
    network = trained_network(base, folders.start, len(material.class_weights))
    decoder = LabelDecoder(base.model.latents, len(material.class_weights), width=settings.width)
    labeller = Labeller(network, decoder).to(device)
    optimiser = torch.optim.AdamW(labeller.decoder.parameters(), weight_decay=schedule.weight_decay)
    folders.run.mkdir(parents=True, exist_ok=True)

    per_epoch = material.batches.per_epoch
    for epoch in range(schedule.epochs):
        steps, total = range(epoch * per_epoch, (epoch + 1) * per_epoch), torch.zeros((), device=device)
        for step, batch in zip(steps, material.batches.of(steps), strict=True):
            done = step / (per_epoch * schedule.epochs)
            learning = min(1.0, (step + 1) / max(1, schedule.warmup_steps)) * 0.5 * (1 + math.cos(math.pi * done))
            optimiser.param_groups[0]["lr"] = schedule.lr * learning
            total += _step(labeller.train(), optimiser, batch, settings)
        if not total.isfinite():
            raise PipelineError(f"the loss of epoch {epoch + 1} is not finite; lower schedule.lr")
        measured: tuple[LabelMeasured, ...] = ()
        if epoch + 1 == schedule.epochs:
            save_file(labeller.decoder.state_dict(), folders.run / FILE)
            measured = _measure(labeller, material, settings.least_share)
        yield LabelProgress(epoch + 1, schedule.epochs, float(total) / per_epoch, measured)


def _step(labeller: Labeller, optimiser: torch.optim.Optimizer, batch: Batch, settings: LabelExperiment) -> Tensor:
    """One step of the label decoder; returns the loss of its labels."""
    evidence = labeller.evidence(labeller.encode(batch.images), batch.quality)
    shares = class_shares(batch.labels, evidence.shape[1], (evidence.shape[2], evidence.shape[3]))
    targets = presence(batch.labels, evidence.shape[1], least_share=settings.least_share)
    labels = label_loss(labeller.decoder.pool(evidence), targets)
    loss = labels + settings.places * label_loss(evidence, shares)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(labeller.decoder.parameters(), settings.schedule.clip_norm)
    optimiser.step()
    return labels.detach()


def _measure(labeller: Labeller, material: Material, least_share: float) -> tuple[LabelMeasured, ...]:
    size, held = material.size, material.held.items()
    return tuple(
        one for name, part in held for one in measure_labels(labeller, part, name, size=size, least_share=least_share)
    )


@torch.no_grad()
def measure_labels(
    labeller: Labeller, data: Frames, split: str, *, size: tuple[int, int], least_share: float
) -> list[LabelMeasured]:
    """Accuracy on whole frames, brought to the network's `size` (height, width); one entry per quality level."""
    device = next(labeller.parameters()).device
    labeller.eval()
    levels = torch.arange(labeller.network.levels, device=device)
    scores, truth = [], []
    for index in range(len(data)):
        frame = data.read(index)
        shown = data.placed(frame.image, size).image
        image = torch.from_numpy(shown).permute(2, 0, 1)[None].float().to(device)
        y = labeller.encode(image)
        evidence = labeller.evidence(y.expand(len(levels), -1, -1, -1), levels)  # (L, K, h, w)
        scores.append(labeller.decoder.pool(evidence).sigmoid().cpu().numpy())
        targets = presence(torch.from_numpy(frame.labels)[None], evidence.shape[1], least_share=least_share)
        truth.append(targets[0].bool().numpy())
    by_level = np.stack(scores, 1)  # (L, N, K)
    return [LabelMeasured(split, level, label_accuracy(np.stack(truth), s)) for level, s in enumerate(by_level)]


def trained_network(base: Experiment, run: Path | None, classes: int) -> SplitSegmenter:
    """The network of a run, in eval mode; ConfigError where it codes nothing, so that there are no packets to label."""
    if base.model.bottleneck == "none":
        raise ConfigError(f"experiment {base.name}: model.bottleneck is none, nothing is sent; label another network")
    if run is None:
        raise ConfigError("no run of a trained network is named; add --network RUN")
    return load_trained(base, run, classes)


def load_labels(run: Path, decoder: LabelDecoder) -> LabelDecoder:
    """The same decoder with the weights of a run, in eval mode; ConfigError when there are none, or another's."""
    try:
        decoder.load_state_dict(load_file(run / FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"run {run}: no {FILE} of this experiment in it; name another run") from error
    return decoder.eval()


def _as_experiment(settings: LabelExperiment, base: Experiment) -> Experiment:
    """What material is prepared from: the labels alone, at all quality levels of the network."""
    schedule = {"seed": settings.schedule.seed, "batch": settings.schedule.batch}
    return base.model_copy(
        update={
            "data": settings.data,
            "teacher": base.teacher.model_copy(update={"weight": 0.0}),
            "loss": base.loss.model_copy(update={"labels": 1.0, "pixels": 0.0}),
            "schedule": base.schedule.model_copy(update=schedule),
        }
    )


def describe_labels(progress: LabelProgress) -> str:
    """One line for the log, and one for each split and level that was measured."""
    line = f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.4f}"
    for one in progress.measured:
        figures = one.accuracy
        line += (
            f"\n  {one.split}, quality {one.quality}: mAP {100 * figures.mean_precision:.2f}, of classes that come and "
            f"go {100 * figures.varied_precision:.2f}, micro F1 {100 * figures.f1:.2f}"
        )
    return line
