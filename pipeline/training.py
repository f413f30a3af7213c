"""The training loop: flat, resumable, readable from top to bottom."""

import ctypes
import math
import sys
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import checkpoint
from pipeline.bundle import MANIFEST, Bundle, load_bundle
from pipeline.checkpoint import Trainee
from pipeline.errors import ConfigError
from pipeline.experiment import Experiment, ScheduleSettings
from pipeline.material import Folders, Material, prepare
from pipeline.measuring import Measured, Rebuilt, measure, measure_pictures, psnr_db
from pipeline.models.assembly import IMAGE, assemble, begin_prior, load_pretrained, pretrained
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.published_weights import read_weights
from pipeline.restoring import camera_state, network_of, trainable
from pipeline.stepping import TERMS, Step, optimiser_of

_SAVE_EVERY_S = 60
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of the log: means of the loss's terms over an epoch, and what was measured after it."""

    epoch: int
    epochs: int
    segmentation: float
    lovasz: float
    distillation: float
    squared_error: float  # of an image codec; 0 of other networks
    rate_bpp: float
    gradient_norm: float
    images_per_s: float
    measured: tuple[Measured, ...] | tuple[Rebuilt, ...]


def train(experiment: Experiment, folders: Folders) -> Iterator[Progress]:
    """Train, resuming from the run's checkpoint if there is one; yields once per epoch, the last one saved.

    Raises ConfigError on wrong folders and TrainingDiverged when a gradient is not finite.
    """
    schedule = experiment.schedule
    device = _set_up(experiment)
    material = prepare(experiment, folders, device, before=partial(checkpoint.check_continued, folders.run, experiment))
    folders.run.mkdir(parents=True, exist_ok=True)
    trainee = _trainee(experiment, folders, material, device)
    step_once, batches = Step(trainee, experiment, material.class_weights), material.batches
    saved_s = time.monotonic()

    for epoch in range(checkpoint.resume(folders.run, trainee, experiment), schedule.epochs):
        began_s, sums = time.monotonic(), torch.zeros(len(TERMS), device=device)
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        for step, batch in zip(steps, batches.of(steps), strict=True):
            sums += step_once(batch, **_paces(schedule, step, batches.per_epoch * schedule.epochs))
        means = (sums / batches.per_epoch).tolist()
        step_once.settle()  # a network that is not finite must not be saved
        images_per_s = batches.per_epoch * batches.size / (time.monotonic() - began_s)
        last = epoch + 1 == schedule.epochs
        due = last or (epoch + 1) % schedule.measure_every == 0
        measured = _measure(trainee.average, material, experiment) if due else ()
        if due or time.monotonic() - saved_s > _SAVE_EVERY_S:
            checkpoint.save(folders.run, trainee, experiment, epochs_done=epoch + 1, learned=material.learned)
            saved_s = time.monotonic()
        terms = dict(zip(TERMS, means, strict=True))
        yield Progress(epoch + 1, schedule.epochs, **terms, images_per_s=images_per_s, measured=measured)


def _paces(schedule: ScheduleSettings, step: int, steps: int) -> dict[str, float]:
    """What changes from step to step: warm-up and cosine of learning, weight of the rate, decay of the average."""
    done = step / steps
    warm = min(1.0, (step + 1) / max(1, schedule.warmup_steps))
    return {
        "learning": warm * 0.5 * (1 + math.cos(math.pi * done)),
        "rise": 1.0 if done >= schedule.rate_warmup else 0.1 + 0.9 * done / schedule.rate_warmup,
        "decay": min(schedule.average_decay, (1 + step) / (10 + step)),
    }


def build(experiment: Experiment, classes: int) -> SplitSegmenter:
    """The experiment's network with fresh weights; ConfigError on an unknown name."""
    return assemble(classes, experiment.loss.levels, **experiment.model.model_dump())


def load_trained(experiment: Experiment, run: Path, classes: int) -> SplitSegmenter:
    """The averaged weights of a run's checkpoint, in eval mode; ConfigError when there is none of this experiment."""
    network = build(experiment, classes)
    checkpoint.load_average(run, network)
    checkpoint.check_learned(run, experiment)
    return network.eval()


def _set_up(experiment: Experiment) -> torch.device:
    keep_freed_memory()
    torch.manual_seed(experiment.schedule.seed)
    torch.backends.cudnn.benchmark = True  # views are all of one size
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _trainee(experiment: Experiment, folders: Folders, material: Material, device: torch.device) -> Trainee:
    network = build(experiment, len(material.class_weights))
    network = network.to(memory_format=torch.channels_last).to(device)
    if not (folders.run / checkpoint.FILE).is_file():
        _begin(network, experiment, folders, material.calibration.to(device))
    average = deepcopy(network).eval().requires_grad_(False)
    network.train()
    if experiment.schedule.trained == "decoder":
        for part in (network.analysis, network.prior):
            part.eval().requires_grad_(False)
    return Trainee(network, average, optimiser_of(network, experiment))


def _begin(network: SplitSegmenter, experiment: Experiment, folders: Folders, images: Tensor) -> None:
    """Begin with what the folders name, and with frames where nothing is named; ConfigError where chance would do."""
    if folders.start is None:
        _check_begun(network, experiment, folders)
        begin_prior(network, _at_size(images, experiment.data.size))
    if folders.backbone is not None:
        load_pretrained(network, experiment.model.backbone, _read_weights(folders.backbone), images)
    if folders.start is not None:
        if (folders.start / MANIFEST).is_file():
            _begin_with(load_bundle(folders.start), network, experiment, images)
        else:
            checkpoint.load_average(folders.start, network, experiment.loss.rate)
    if folders.camera is not None:
        lacking = _load_camera(folders.camera, network, experiment, images)
        if lacking and folders.start is None and experiment.schedule.trained == "decoder":
            raise ConfigError(
                f"camera {folders.camera}: it has no {min(lacking)}, and schedule.trained is decoder; name another"
            )


def _begin_with(bundle: Bundle, network: SplitSegmenter, experiment: Experiment, images: Tensor) -> None:
    found = trainable(bundle, experiment.model, _at_size(images.cpu(), experiment.data.size)).state_dict()
    found |= checkpoint.gains_for(experiment.loss.rate, found, network_of(bundle).rate)
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        raise ConfigError(f"bundle {bundle.path}: it has other classes than the data set; name another") from error


def _load_camera(camera: Path, network: SplitSegmenter, experiment: Experiment, images: Tensor) -> frozenset[str]:
    """Load the camera of a run or of a bundle; returns the names of what that did not have."""
    rate = experiment.loss.rate
    if not (camera / MANIFEST).is_file():
        return checkpoint.load_camera(camera, network, rate)
    bundle = load_bundle(camera)
    state, theirs = camera_state(bundle, _at_size(images.cpu(), experiment.data.size)), network_of(bundle).rate
    return checkpoint.put_camera(network, state, origin=f"bundle {camera}", theirs=theirs, ours=rate)


def _at_size(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Images (N, 3, h, w) at the size that the network sees them at."""
    return images if size is None else F.interpolate(images, size, mode="bilinear", antialias=True)


def _check_begun(network: SplitSegmenter, experiment: Experiment, folders: Folders) -> None:
    """ConfigError where a part of the backbone has no weights, or a camera that is to stay as it is has not learned."""
    if experiment.schedule.trained == "decoder" and folders.camera is None:
        raise ConfigError("schedule.trained is decoder, but nothing has trained the camera; add --camera RUN or BUNDLE")
    lacking = pretrained(network)
    if folders.camera is not None:
        cloud = set(network.decoder.modules())
        lacking = [part for part in lacking if part in cloud]
    if lacking and folders.backbone is None:
        ways = (
            "--backbone FILE, or --start" + (" or --camera" if folders.camera is None else "") + " with a run or bundle"
        )
        raise ConfigError(f"backbone {experiment.model.backbone}: no weights to begin with; add {ways}")


def keep_freed_memory() -> None:
    """Tell glibc's allocator to reuse large blocks: on two cores, handing them back took a third of a step."""
    allocator = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(allocator, "mallopt"):  # musl has none
        allocator.mallopt(_M_MMAP_MAX, 0)
        allocator.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        allocator.mallopt(_M_TOP_PAD, 2**28)


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    try:
        return read_weights(path)
    except ConfigError as error:
        raise ConfigError(f"backbone weights {path}: {error}; name the file of the backbone's weights") from error


def _measure(
    network: SplitSegmenter, material: Material, experiment: Experiment
) -> tuple[Measured, ...] | tuple[Rebuilt, ...]:
    size, held = material.size, material.held.items()
    if experiment.model.decoder == IMAGE:
        return tuple(one for name, part in held for one in measure_pictures(network, part, name, size=size))
    classes = len(material.class_weights)
    return tuple(one for name, part in held for one in measure(network, part, name, classes=classes, size=size))


def describe(progress: Progress) -> str:
    """One line for the log, and one for each split that was measured."""
    terms = f"labels {progress.segmentation:.3f}  lovasz {progress.lovasz:.3f}  teacher {progress.distillation:.3f}"
    if progress.squared_error > 0:
        terms = f"PSNR {psnr_db(progress.squared_error):.2f} dB"
    line = (
        f"epoch {progress.epoch}/{progress.epochs}  {terms}  rate {progress.rate_bpp:.4f} bpp  "
        f"gradient {progress.gradient_norm:.2f}  {progress.images_per_s:.0f} images/s"
    )
    for split in dict.fromkeys(one.split for one in progress.measured):
        of_split = [one for one in progress.measured if one.split == split]
        figures = ", ".join(f"{one.shown} at {one.rate_bpp:.4f}" for one in of_split)
        line += f"\n  {split}: {of_split[0].measure} {figures} bpp"
    return line
