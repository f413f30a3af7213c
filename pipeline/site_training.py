"""The steps that tune a restored network to one site: distillation and rate, for so many minutes."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from pipeline import datasets
from pipeline.accuracy import VOID
from pipeline.batches import Batches, Resident, class_pixels
from pipeline.bundle import MANIFEST, Bundle
from pipeline.checkpoint import Trainee
from pipeline.datasets import Image
from pipeline.errors import ConfigError
from pipeline.experiment import (
    DataSettings,
    Experiment,
    LossSettings,
    ScheduleSettings,
    TeacherSettings,
    first_fault,
)
from pipeline.models.entropy_model import MeanScaleHyperprior
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.restoring import model_settings, network_of
from pipeline.stepping import TERMS, Step
from pipeline.training import keep_freed_memory
from pipeline.views import Augmentation

SEED = 0  # of all that is drawn at random
ACQUAINTANCE = 0.45  # share of the teachers' batch statistics that is taken from the site
_STRIDE = 16
# No batch norm is left to hold the scale of things, so that steps are small. But the hyper decoder must keep up:
# latents that moved away from the means it tells took twice the bits at the higher levels.
_CAMERA_LR, _LR, _HYPER_LR = 2e-5, 2e-4, 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """Frames (H, W, 3) of one size, and what teachers say of them: probabilities (N, K, h, w) in 1/255."""

    images: list[Image]
    soft: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Steps:
    """How long: so many minutes of the clock, and `most` steps at most; `tell` may ask for a line after each."""

    minutes: float
    most: int
    clock: Callable[[], float]
    tell: Callable[[Callable[[], str]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The moving average of the weights, in eval mode, and the steps it took."""

    network: SplitSegmenter
    steps: int


def experiment_of(bundle: Bundle, *, frames: int) -> Experiment:
    """How the steps are taken: distillation and the bundle's own weights of the rate.

    ConfigError where the manifest's settings of the network are none.
    """
    manifest = bundle.manifest
    height, width = (-(-length // _STRIDE) * _STRIDE for length in (manifest.height, manifest.width))
    return Experiment(
        name="adapt",
        model=model_settings(bundle),
        data=DataSettings(
            dataset="camvid",  # not looked at, like the split: the frames are the site's
            split="site",
            without_drives=(),
            choose_by=(),
            crop=(height, width),
            scale=(0.8, 1.6),
            jitter=0.3,
            class_weighting=1.12,
            balanced=0.3,
            texture=0.0,
            mixed=0.0,
            unlabelled=0.0,
        ),
        teacher=TeacherSettings(
            size=(manifest.width, manifest.height),
            scales=(1.0,),
            mirrored=False,
            acquaintance=ACQUAINTANCE,
            sharpness=1.0,
            weight=1.0,
        ),
        loss=_loss(bundle),
        schedule=_schedule(frames),
    )


def _loss(bundle: Bundle) -> LossSettings:
    try:
        return LossSettings(labels=0.0, lovasz=0.0, rate=network_of(bundle).rate)
    except ValidationError as error:
        raise ConfigError(f"bundle {bundle.path}: {MANIFEST}: network.{first_fault(error)}; export it again") from error


def _schedule(frames: int) -> ScheduleSettings:
    return ScheduleSettings(
        seed=SEED,
        epochs=1,
        batch=min(8, frames),
        backbone_lr=_CAMERA_LR,
        lr=_LR,
        warmup_steps=10,
        rate_warmup=0.0,
        weight_decay=0.0,
        clip_norm=5.0,
        average_decay=0.98,
        measure_every=1,
        trained="all",
    )


def tune(network: SplitSegmenter, experiment: Experiment, taught: Taught, steps: Steps) -> Tuned:
    """Train a restored network in place and average its weights over the steps."""
    keep_freed_memory()
    torch.manual_seed(experiment.schedule.seed)
    device = next(network.parameters()).device
    share = taught.soft.sum((0, 2, 3), dtype=np.float64)
    weights = datasets.class_weights(share / share.sum(), strength=experiment.data.class_weighting)
    average = deepcopy(network).eval().requires_grad_(False)
    trainee = Trainee(network.train(), average, optimiser_of(network))
    step_once = Step(trainee, experiment, torch.from_numpy(weights).to(device))
    began_s, taken = steps.clock(), 0
    for batch in _batches(experiment, taught, device).of(range(steps.most)):
        done = max(taken / steps.most, (steps.clock() - began_s) / (60 * steps.minutes))
        if done >= 1:
            break
        logged = step_once(
            batch,
            learning=min(1.0, (taken + 1) / experiment.schedule.warmup_steps) * 0.5 * (1 + math.cos(math.pi * done)),
            rise=1.0,
            decay=min(experiment.schedule.average_decay, (1 + taken) / (10 + taken)),
        )
        taken += 1
        steps.tell(partial(_line, taken, done, logged))
    step_once.settle()  # a network that is not finite must not be exported
    return Tuned(trainee.average, taken)


def optimiser_of(network: SplitSegmenter) -> torch.optim.AdamW:
    """AdamW without decay, for what is begun with is good already; ConfigError where nothing is coded."""
    prior = network.prior
    if not isinstance(prior, MeanScaleHyperprior):
        raise ConfigError("the network codes nothing, so that there is no bundle to tune")
    device = next(network.parameters()).device
    camera, hyper = list(network.analysis.parameters()), list(prior.hyper_decoder.parameters())
    apart = {id(p) for p in (*camera, *hyper)}
    others = [p for p in network.parameters() if id(p) not in apart and p.requires_grad]
    groups = [
        {"params": chosen, "peak": peak, "lr": torch.zeros((), device=device)}
        for chosen, peak in ((camera, _CAMERA_LR), (others, _LR), (hyper, _HYPER_LR))
    ]
    on_gpu = device.type == "cuda"
    return torch.optim.AdamW(groups, weight_decay=0.0, fused=on_gpu, capturable=on_gpu)


def _line(step: int, done: float, logged: Tensor) -> str:
    terms = dict(zip(TERMS, logged.tolist(), strict=True))
    return f"step {step}, {done:.0%}: teacher {terms['distillation']:.3f}, rate {terms['rate_bpp']:.4f} bits per pixel"


def _batches(experiment: Experiment, taught: Taught, device: torch.device) -> Batches:
    settings = experiment.data
    images = torch.from_numpy(np.stack(taught.images)).permute(0, 3, 1, 2)
    soft = torch.from_numpy(taught.soft)
    void = torch.full((len(images), *images.shape[2:]), VOID, dtype=torch.uint8)
    classes = soft.shape[1]
    return Batches(
        pool=Resident(images.to(device), void.to(device), soft.to(device)),
        labelled=len(images),
        pixels=class_pixels(soft.argmax(1), classes),
        levels=experiment.loss.levels,
        size=experiment.schedule.batch,
        unlabelled=0,
        balanced=settings.balanced,
        mixed=settings.mixed,
        texture=settings.texture,
        classes=classes,
        frame_size=(images.shape[2], images.shape[3]),
        crop=settings.crop,
        augmentation=Augmentation(*settings.scale, settings.jitter),
        seed=experiment.schedule.seed,
    )
