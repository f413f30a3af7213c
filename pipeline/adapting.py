"""A bundle tuned to one site's own video, without labels: teachers say what is there, held-out frames what it gave.

video -> shots -+- learned --- soft labels -+
bundle ---- network ------------------------+-> steps -> export -> bundle
                +- held out -- class maps -------> agreement and bits, before and after
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.agreement import Agreement, agreement
from pipeline.bundle import Bundle, QualityLevel, load_bundle, seal
from pipeline.context_fitting import Effort
from pipeline.datasets import Classes, Image, LabelledClass
from pipeline.distillation import STRIDE as SOFT_STRIDE
from pipeline.errors import ConfigError
from pipeline.export import Description, export
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.refining import refine
from pipeline.restoring import class_offsets, fit_fresh, network_of, restore
from pipeline.site_frames import class_maps, opinions, read_shots, soft_labels, split_in_time
from pipeline.site_training import ACQUAINTANCE, SEED, Steps, Taught, experiment_of, tune
from pipeline.teachers import load_teachers

_SAY_EVERY_S = 5.0
_NOISE, _DEARER = 0.002, 0.02  # of the pixels that agree; of the rate, as a share of it
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

    @property
    def fault(self) -> str | None:
        """Why the new bundle is no better than the old one at its default level, or None."""
        default = self.bundle.manifest.default_quality
        old, new = (next(one for one in levels if one.quality == default) for levels in (self.before, self.after))
        return None if is_better(old, new) else _in_words(old, new)


def is_better(old: Agreement, new: Agreement) -> bool:
    """Whether agreement rose or bits fell, and what the other lost is within the noise or well paid for."""
    gained, dearer = new.pixels - old.pixels, new.rate_bpp / old.rate_bpp - 1
    if dearer > _DEARER:
        return gained > _NOISE
    return gained >= -_NOISE and (gained > 0 or dearer < 0)


def _in_words(old: Agreement, new: Agreement) -> str:
    return (
        f"at quality {new.quality} {100 * new.pixels:.2f} % of the pixels agree with the teachers, before "
        f"{100 * old.pixels:.2f} %, for {new.rate_bpp:.4f} bits per pixel, before {old.rate_bpp:.4f}"
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Material:
    """Frames to learn from, and frames to measure on with the teachers' classes (N, H, W)."""

    taught: Taught
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
    tell: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Adapted:
    """Tune a bundle and write the new one; `tell` is told in lines what goes on.

    Raises ConfigError when the bundle cannot be restored, or video or teachers cannot be used.
    """
    bundle, teller = load_bundle(site.bundle), _Teller(tell, clock)
    if site.output.resolve() == site.bundle.resolve():
        raise ConfigError(f"output {site.output}: that is the bundle itself; name another folder")
    torch.manual_seed(SEED)
    restored, device = restore(bundle), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    material = _material(site, bundle, device, teller)
    if bundle.has_graph("labels"):
        teller.tell("the labels graph is left out: it was trained on other latents")
    if bundle.has_graph("outline") or bundle.has_graph("decide"):
        teller.tell("what a camera decides by is left out, as it is of other latents; maskcast train-decide makes it")
    learned = material.taught.images
    experiment = experiment_of(bundle, frames=len(learned))
    site.output.mkdir(parents=True, exist_ok=True)
    before = agreement(bundle, material.held, material.maps)
    restored.network.to(memory_format=torch.channels_last).to(device)
    fit_fresh(restored, learned)
    steps = Steps(minutes=budget.minutes, most=budget.steps, clock=clock, tell=teller.now_and_then)
    tuned = tune(restored.network, experiment, material.taught, steps)
    teller.tell(f"{tuned.steps} steps; fitting tables and writing the bundle")
    traced = _exported(tuned.network, site, bundle, frames=learned, effort=budget.tables)
    made = refine(traced, learned, site.output, smoothing=bundle.manifest.smoothing, tell=teller.tell).bundle
    after = agreement(made, material.held, material.maps)
    measured = {"quality_levels": tuple(_levels(bundle, after))}
    made = seal(made.manifest.model_copy(update=measured), site.output)
    return Adapted(made, len(learned), len(material.held), tuned.steps, before, after)


def _exported(network: SplitSegmenter, site: Site, bundle: Bundle, *, frames: list[Image], effort: Effort) -> Bundle:
    """The tuned network as a bundle; what is not tuned is as it was in the old one."""
    return export(
        network,
        _described(site, bundle),
        site.output,
        frames=frames,
        hyper=bool(bundle.tables.hyper),
        class_offsets=class_offsets(bundle),
        effort=effort,
        start=bundle.tables,
    )


def as_json(result: Adapted) -> dict[str, object]:
    """The figures as plain values for a JSON file."""
    return {
        "bundle": result.bundle.manifest.hash,
        "frames_learned": result.learned,
        "frames_held_out": result.held,
        "steps": result.steps,
        "fault": result.fault,
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
    teacher = teacher.acquainted([shot.shown for shot in learned], share=ACQUAINTANCE)

    def told(done: int) -> None:
        teller.now_and_then(lambda: f"seen by the teachers: {done} frames")

    coarse = (manifest.height // SOFT_STRIDE, manifest.width // SOFT_STRIDE)
    return _Material(
        taught=Taught([shot.coded for shot in learned], soft_labels(opinions(teacher, learned, coarse, told))),
        held=[shot.coded for shot in held],
        maps=class_maps(opinions(teacher, held, (manifest.height, manifest.width), told)),
    )


def _classes(bundle: Bundle) -> Classes:
    """The classes of a bundle, and which of them Cityscapes' count as; ConfigError where one is none."""
    classes, table = bundle.manifest.classes, network_of(bundle).from_cityscapes
    if not all(0 <= one < len(classes) for one in table):
        raise ConfigError(f"bundle {bundle.path}: network.from_cityscapes names classes that it has not; export again")
    return Classes(tuple(LabelledClass(one.name, one.colour) for one in classes), table)


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
