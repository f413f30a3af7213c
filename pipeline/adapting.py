"""A bundle tuned to one site's own video, without labels: teachers say what is there, held-out frames what it gave.

video -> shots -+- learned --- soft labels -+
bundle ---- network ------------------------+-> steps -> export -> bundle
                +- held out -- class maps -------> agreement and bits, before and after
"""

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import datasets
from pipeline.accuracy import VOID
from pipeline.agreement import Agreement, agreement
from pipeline.batches import Batches, Resident, class_pixels
from pipeline.bundle import Bundle, QualityLevel, load_bundle
from pipeline.checkpoint import Trainee
from pipeline.context_fitting import Effort
from pipeline.datasets import Classes, Image, LabelledClass
from pipeline.distillation import STRIDE as SOFT_STRIDE
from pipeline.errors import ConfigError
from pipeline.experiment import DataSettings, Experiment, LossSettings, ScheduleSettings, TeacherSettings
from pipeline.export import Description, export, write_manifest
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.restoring import fit_fresh, model_settings, network_of, restore
from pipeline.site_frames import class_maps, opinions, read_shots, soft_labels, split_in_time
from pipeline.stepping import Step, optimiser_of
from pipeline.teachers import load_teachers
from pipeline.training import keep_freed_memory
from pipeline.views import Augmentation

_ACQUAINTANCE = 0.45  # share of the teachers' batch statistics that is taken from the site
_STRIDE = 16
_SAY_EVERY_S = 5.0
_TABLES = Effort(steps=100, batch=8, learning_rate=0.001, penalty=0.05)


@dataclass(frozen=True, slots=True)
class Site:
    """What is tuned to what: a bundle, a clip or images in the order of time, teachers' files, the new folder."""

    bundle: Path
    source: Path
    teachers: tuple[Path, ...]
    output: Path


@dataclass(frozen=True, slots=True)
class Budget:
    """Training ends after so many minutes or steps, whichever comes first; `tables` is how long those are fitted."""

    minutes: float = 10.0
    steps: int = 4000
    tables: Effort = _TABLES


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """The new bundle, the frames and steps it took, and each quality level before and after on frames held out."""

    bundle: Bundle
    learned: int
    held: int
    steps: int
    before: tuple[Agreement, ...]
    after: tuple[Agreement, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Material:
    """Frames to learn from with soft labels (N, K, h, w), and frames to measure on with the teachers' classes."""

    learned: list[Image]
    soft: NDArray[np.uint8]
    held: list[Image]
    maps: NDArray[np.uint8]


class _Teller:
    """Passes on lines, those that only count not too often."""

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float]) -> None:
        self.tell, self._clock, self._last_s = tell, clock, clock()

    def now_and_then(self, line: Callable[[], str]) -> None:
        if self._clock() - self._last_s >= _SAY_EVERY_S:
            self._last_s = self._clock()
            self.tell(line())


def adapt(
    site: Site,
    *,
    budget: Budget,
    progress: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Adapted:
    """Tune a bundle and write the new one; `progress` is told in lines what goes on.

    Raises ConfigError when the bundle cannot be restored, or video or teachers cannot be used.
    """
    bundle, teller = load_bundle(site.bundle), _Teller(progress, clock)
    if site.output.resolve() == site.bundle.resolve():
        raise ConfigError(f"output {site.output}: that is the bundle itself; name another folder")
    restored, device = restore(bundle), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    material = _material(site, bundle, device, teller)
    site.output.mkdir(parents=True, exist_ok=True)
    before = agreement(bundle, material.held, material.maps)
    restored.network.to(memory_format=torch.channels_last).to(device)
    fit_fresh(restored, material.learned)
    experiment = _experiment(bundle, len(material.learned))
    steps, network = _train(restored.network, experiment, material, budget, clock, teller)
    teller.tell(f"{steps} steps; fitting tables and writing the bundle")
    described = _described(site, bundle)
    made = export(
        network,
        described,
        site.output,
        frames=material.learned,
        hyper=bool(bundle.tables.hyper),
        effort=budget.tables,
        start=bundle.tables,
    )
    after = agreement(made, material.held, material.maps)
    write_manifest(site.output, described, _levels(bundle, after))
    return Adapted(load_bundle(site.output), len(material.learned), len(material.held), steps, before, after)


def as_json(result: Adapted) -> dict[str, object]:
    """The figures as plain values for a JSON file."""
    return {
        "bundle": result.bundle.manifest.hash,
        "frames_learned": result.learned,
        "frames_held_out": result.held,
        "steps": result.steps,
        "before": [asdict(level) for level in result.before],
        "after": [asdict(level) for level in result.after],
    }


def _material(site: Site, bundle: Bundle, device: torch.device, teller: _Teller) -> _Material:
    manifest, described = bundle.manifest, _classes(bundle)
    shots = read_shots(site.source, (manifest.width, manifest.height))
    split = split_in_time(len(shots))
    learned, held = [shots[i] for i in split.learned], [shots[i] for i in split.held]
    height, width, _ = shots[0].shown.shape
    teacher = load_teachers(site.teachers, size=(width, height), mirrored=False, described=described, device=device)
    teller.tell(f"{len(learned)} frames to learn from, {len(held)} of other times to measure on")
    teacher = teacher.acquainted([shot.shown for shot in learned], share=_ACQUAINTANCE)

    def told(done: int) -> None:
        teller.now_and_then(lambda: f"seen by the teachers: {done} frames")

    coarse = (manifest.height // SOFT_STRIDE, manifest.width // SOFT_STRIDE)
    return _Material(
        learned=[shot.coded for shot in learned],
        soft=soft_labels(opinions(teacher, learned, coarse, told)),
        held=[shot.coded for shot in held],
        maps=class_maps(opinions(teacher, held, (manifest.height, manifest.width), told)),
    )


def _classes(bundle: Bundle) -> Classes:
    """The classes of a bundle, and which of them Cityscapes' count as; ConfigError where one is none."""
    classes, table = bundle.manifest.classes, network_of(bundle).from_cityscapes
    if not all(0 <= one < len(classes) for one in table):
        raise ConfigError(f"bundle {bundle.path}: network.from_cityscapes names classes that it has not; export again")
    return Classes(tuple(LabelledClass(one.name, one.colour) for one in classes), table)


def _experiment(bundle: Bundle, frames: int) -> Experiment:
    """How the steps are taken: distillation and the bundle's own weights of the rate."""
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
            acquaintance=_ACQUAINTANCE,
            sharpness=1.0,
            weight=1.0,
        ),
        loss=LossSettings(labels=0.0, lovasz=0.0, rate=network_of(bundle).rate),
        schedule=_schedule(frames),
    )


def _schedule(frames: int) -> ScheduleSettings:
    """No batch norm is left to hold the scale of things: learning rates are a tenth of those from scratch."""
    return ScheduleSettings(
        seed=0,
        epochs=1,
        batch=min(8, frames),
        backbone_lr=2e-5,
        lr=1e-4,
        warmup_steps=10,
        rate_warmup=0.0,
        weight_decay=1e-4,
        clip_norm=5.0,
        average_decay=0.98,
        measure_every=1,
    )


def _train(
    network: SplitSegmenter,
    experiment: Experiment,
    material: _Material,
    budget: Budget,
    clock: Callable[[], float],
    teller: _Teller,
) -> tuple[int, SplitSegmenter]:
    """Steps taken, and the moving average of the weights over them, in eval mode."""
    keep_freed_memory()
    torch.manual_seed(experiment.schedule.seed)
    device = next(network.parameters()).device
    share = material.soft.sum((0, 2, 3), dtype=np.float64)
    weights = datasets.class_weights(share / share.sum(), strength=experiment.data.class_weighting)
    average = deepcopy(network).eval().requires_grad_(False)
    trainee = Trainee(network.train(), average, optimiser_of(network, experiment))
    step_once = Step(trainee, experiment, torch.from_numpy(weights).to(device))
    began_s, taken = clock(), 0
    for batch in _batches(experiment, material, device).of(range(budget.steps)):
        done = max(taken / budget.steps, (clock() - began_s) / (60 * budget.minutes))
        if done >= 1:
            break
        logged = step_once(
            batch,
            learning=min(1.0, (taken + 1) / experiment.schedule.warmup_steps) * 0.5 * (1 + math.cos(math.pi * done)),
            rise=1.0,
            decay=min(experiment.schedule.average_decay, (1 + taken) / (10 + taken)),
        )
        taken += 1
        teller.now_and_then(partial(_line, taken, done, logged))
    return taken, trainee.average


def _line(step: int, done: float, logged: Tensor) -> str:
    _, _, distillation, rate_bpp, _ = logged.tolist()
    return f"step {step}, {done:.0%}: teacher {distillation:.3f}, rate {rate_bpp:.4f} bits per pixel"


def _batches(experiment: Experiment, material: _Material, device: torch.device) -> Batches:
    settings = experiment.data
    images = torch.from_numpy(np.stack(material.learned)).permute(0, 3, 1, 2)
    soft = torch.from_numpy(material.soft)
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
        crop=settings.crop,
        augmentation=Augmentation(*settings.scale, settings.jitter),
        seed=experiment.schedule.seed,
    )


def _described(site: Site, bundle: Bundle) -> Description:
    """What the new manifest says; names of files, but not where they lay."""
    manifest = bundle.manifest
    teachers = ", ".join(path.name for path in site.teachers)
    return Description(
        name=f"{manifest.name}-{site.source.stem}",
        created_by=f"maskcast adapt from {manifest.name} {manifest.hash[:8]} with teacher {teachers}",
        dataset=(
            f"{manifest.dataset.split('; rates and mIoU')[0]}; tuned to {site.source.name} without labels; "
            "rates and mIoU, the teachers' classes taken for true, measured on its frames held out"
        ),
        classes=manifest.classes,
        width=manifest.width,
        height=manifest.height,
        licence=f"{manifest.licence}; tuned with {teachers} on {site.source.name}, whose terms hold too",
        network=manifest.network,
    )


def _levels(bundle: Bundle, after: Sequence[Agreement]) -> list[QualityLevel]:
    """The levels as measured; the default stays what it was, so that nobody's link is suddenly too thin."""
    return [
        QualityLevel(
            index=one.quality,
            rate_bpp=one.rate_bpp,
            miou=one.miou,
            default=one.quality == bundle.manifest.default_quality,
        )
        for one in after
    ]
