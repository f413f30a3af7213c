"""The training loop: flat, resumable, readable from top to bottom."""

import ctypes
import math
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import checkpoint, datasets, distillation, losses
from pipeline.accuracy import confusion, mean_iou
from pipeline.batches import Batch, Batches
from pipeline.checkpoint import Trainee
from pipeline.datasets import Labelled
from pipeline.errors import ConfigError, PipelineError
from pipeline.experiment import Experiment
from pipeline.models import MODELS
from pipeline.models.backbone import load_folded, unfold_batch_norm
from pipeline.models.split_segmenter import SplitSegmenter

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a run reads from and writes to."""

    data: Path
    backbone: Path
    teacher: Path | None
    run: Path
    start: Path | None = None  # the run whose averaged weights are begun with, instead of the backbone's alone


@dataclass(frozen=True, slots=True)
class Measured:
    """Accuracy and estimated rate of a network on one split."""

    split: str
    miou: float
    rate_bpp: float


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of the log: means of the loss terms over an epoch, and what was measured after it."""

    epoch: int
    epochs: int
    segmentation: float
    distillation: float
    rate_bpp: float
    gradient_norm: float
    measured: tuple[Measured, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Setup:
    batches: Batches
    held: Mapping[str, Labelled]
    class_weights: Tensor
    network: SplitSegmenter
    average: SplitSegmenter  # moving average of the network's weights: what is measured and exported
    optimiser: torch.optim.AdamW


class TrainingDiverged(PipelineError):
    """A gradient is not finite; the text names the parameter."""


def build(experiment: Experiment, classes: int) -> SplitSegmenter:
    """The experiment's network with fresh weights; ConfigError on an unknown name."""
    sizes = experiment.model.model_dump(exclude={"name"})
    if experiment.model.name not in MODELS:
        raise ConfigError(f"model.name {experiment.model.name!r} is unknown; use one of {', '.join(MODELS)}")
    return MODELS[experiment.model.name](classes, **sizes)


def train(experiment: Experiment, folders: Folders) -> Iterator[Progress]:
    """Train, resuming from the run's checkpoint if there is one; yields once per epoch, after saving.

    Raises ConfigError on wrong folders and TrainingDiverged when a gradient is not finite.
    """
    schedule = experiment.schedule
    setup = _set_up(experiment, folders)
    network, optimiser, batches = setup.network, setup.optimiser, setup.batches
    trainee = Trainee(network, setup.average, optimiser)

    for epoch in range(checkpoint.resume(folders.run, trainee, experiment), schedule.epochs):
        sums = np.zeros(4)
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        for step, batch in zip(steps, batches.of(steps), strict=True):
            terms = _losses(network.train(), batch, setup.class_weights)
            loss = (
                schedule.label_weight * terms.segmentation
                + experiment.teacher.weight * terms.distillation
                + schedule.rate_weight * terms.rate
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = _clip(network, schedule.clip_norm)
            _set_rates(optimiser, experiment, step, batches.per_epoch * schedule.epochs)
            optimiser.step()
            _update_average(setup.average, network, min(schedule.average_decay, (1 + step) / (10 + step)))
            sums += [terms.segmentation.item(), terms.distillation.item(), terms.rate.item(), norm]
        last = epoch + 1 == schedule.epochs
        due = last or (epoch + 1) % schedule.measure_every == 0
        measured = [measure(setup.average, part, name) for name, part in setup.held.items()] if due else []
        checkpoint.save(folders.run, trainee, experiment, epochs_done=epoch + 1)
        yield _progress(epoch + 1, schedule.epochs, sums / batches.per_epoch, measured)


def _progress(epoch: int, epochs: int, means: NDArray[np.float64], measured: list[Measured]) -> Progress:
    segmentation, soft, rate_bpp, norm = (float(mean) for mean in means)
    return Progress(epoch, epochs, segmentation, soft, rate_bpp, norm, tuple(measured))


def _keep_freed_memory() -> None:
    """Tell glibc's allocator to reuse large blocks: on two cores, handing them back took a third of a step."""
    allocator = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(allocator, "mallopt"):  # musl has none
        allocator.mallopt(_M_MMAP_MAX, 0)
        allocator.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        allocator.mallopt(_M_TOP_PAD, 2**28)


def _set_up(experiment: Experiment, folders: Folders) -> _Setup:
    _keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(experiment.schedule.seed)
    folders.run.mkdir(parents=True, exist_ok=True)
    described = datasets.camvid_classes(folders.data)
    classes, settings = len(described.classes), experiment.data
    data = datasets.camvid(folders.data, settings.split, without_drives=settings.without_drives)
    if len(data.images) < experiment.schedule.batch:
        raise ConfigError(f"schedule.batch {experiment.schedule.batch}: only {len(data.images)} frames; lower it")
    weights = datasets.class_weights(data.labels, classes, strength=settings.class_weighting)
    network = build(experiment, classes)
    load_folded(network.backbone, _read_weights(folders.backbone))
    unfold_batch_norm(network.backbone, _calibration_images(data))
    if folders.start is not None:
        checkpoint.load_average(folders.start, network)
    network = network.to(memory_format=torch.channels_last).to(device)
    return _Setup(
        batches=Batches(
            data=data,
            soft=_soft_labels(experiment, folders, data, described, device),
            size=experiment.schedule.batch,
            crop=settings.crop,
            augmentation=datasets.Augmentation(*settings.scale, settings.jitter),
            seed=experiment.schedule.seed,
        ),
        held={name: datasets.camvid(folders.data, name) for name in settings.choose_by},
        class_weights=torch.from_numpy(weights).to(device),
        network=network,
        average=deepcopy(network).eval().requires_grad_(False),
        optimiser=_optimiser(network, experiment),
    )


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"backbone weights {path}: {error}; name MobileNetV2's safetensors file") from error


def load_trained(experiment: Experiment, run: Path, classes: int) -> SplitSegmenter:
    """The averaged weights of a run's checkpoint, in eval mode; ConfigError when there is none."""
    network = build(experiment, classes)
    checkpoint.load_average(run, network)
    return network.eval()


@torch.no_grad()
def measure(network: SplitSegmenter, data: Labelled, split: str) -> Measured:
    """Accuracy and estimated rate of the network on frames at their own size."""
    device = next(network.parameters()).device
    classes = network.decoder.classify.out_channels // 4
    matrix, bits = np.zeros((classes, classes), np.int64), 0.0
    for image, labels in zip(data.images, data.labels, strict=True):
        x = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float()
        with torch.autocast(device.type, torch.bfloat16):
            seen = network(x.contiguous(memory_format=torch.channels_last))
        matrix += confusion(labels, seen.logits.argmax(1)[0].byte().cpu().numpy(), classes)
        bits += float(seen.coded.y_bits + seen.coded.z_bits)
    pixels = sum(label.size for label in data.labels)
    return Measured(split, mean_iou(matrix), bits / pixels)


def _losses(network: nn.Module, batch: Batch, class_weights: Tensor) -> losses.Losses:
    device = class_weights.device
    images = batch.images.to(device).float().contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        seen = network(images)
    logits = seen.logits.float()
    soft_term = logits.new_zeros(())
    if batch.soft is not None:
        soft_term = losses.distillation(logits, batch.soft.to(device).float() / 255, class_weights)
    return losses.Losses(
        segmentation=losses.segmentation(logits, batch.labels.to(device), class_weights),
        distillation=soft_term,
        rate=losses.rate_bpp(seen.coded, images.shape[-2] * images.shape[-1]),
    )


def _soft_labels(
    experiment: Experiment, folders: Folders, data: Labelled, described: datasets.Classes, device: torch.device
) -> NDArray[np.uint8] | None:
    if experiment.teacher.weight == 0:
        return None
    if folders.teacher is None:
        raise ConfigError("teacher.weight is above 0, but no teacher weights are named; add --teacher FILE")
    return distillation.soft_label_file(
        folders.run / "soft_labels.npy",
        data,
        teacher=distillation.load_teacher(folders.teacher).to(memory_format=torch.channels_last).to(device),
        target=torch.tensor(described.from_cityscapes, device=device),
        classes=len(described.classes),
        size=experiment.teacher.size,
    )


def _calibration_images(data: Labelled, count: int = 16) -> Tensor:
    """A few frames spread over the data set, cropped to a size divisible by 16: (N, 3, h, w)."""
    chosen = data.images[:: max(1, len(data.images) // count)][:count]
    height, width = (size // 16 * 16 for size in chosen[0].shape[:2])
    stacked = np.stack([image[:height, :width] for image in chosen])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float()


def _optimiser(network: SplitSegmenter, experiment: Experiment) -> torch.optim.AdamW:
    backbone = list(network.backbone.parameters())
    known = {id(p) for p in backbone}
    rest = [p for p in network.parameters() if id(p) not in known]
    groups = [{"params": backbone, "lr": 0.0}, {"params": rest, "lr": 0.0}]
    return torch.optim.AdamW(groups, weight_decay=experiment.schedule.weight_decay)


def _set_rates(optimiser: torch.optim.Optimizer, experiment: Experiment, step: int, steps: int) -> None:
    """Linear warm-up, then half a cosine down to zero."""
    schedule = experiment.schedule
    warm = min(1.0, (step + 1) / max(1, schedule.warmup_steps))
    factor = warm * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group, peak in zip(optimiser.param_groups, (schedule.backbone_lr, schedule.lr), strict=True):
        group["lr"] = peak * factor


def _clip(network: nn.Module, limit: float) -> float:
    """Scale the gradients down to the limit; their norm before that. TrainingDiverged names a bad parameter."""
    # Norm first, scaling after: scaling by a norm that is not a number would spoil every other gradient too.
    norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    if not norm.isfinite():
        bad = [n for n, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        raise TrainingDiverged(f"the gradient of {(bad or ['the norm'])[0]} is not finite; lower the learning rate")
    nn.utils.clip_grads_with_norm_(network.parameters(), limit, norm)
    return float(norm)


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(new, 1 - decay)
        else:
            mean.copy_(new)


def describe(progress: Progress) -> str:
    """One line for the log."""
    line = (
        f"epoch {progress.epoch}/{progress.epochs}  labels {progress.segmentation:.3f}  "
        f"teacher {progress.distillation:.3f}  rate {progress.rate_bpp:.4f} bpp  gradient {progress.gradient_norm:.2f}"
    )
    for one in progress.measured:
        line += f"  | {one.split}: {100 * one.miou:.2f} mIoU at {one.rate_bpp:.4f} bpp"
    return line
