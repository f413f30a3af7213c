"""A training run to a finished bundle: export, then measure what its manifest claims, level by level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import evaluation
from pipeline.bundle import Bundle, ClassInfo, Network, QualityLevel, seal
from pipeline.class_offsets import as_taught, offsets_of
from pipeline.context_fitting import DEFAULT_EFFORT, Effort
from pipeline.datasets import Classes, Labelled, Stored, in_memory
from pipeline.distillation import learned_soft_labels
from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.export import Description, export, export_whole
from pipeline.layouts import LAYOUTS, network_size
from pipeline.models.assembly import IMAGE
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.refining import refine
from pipeline.training import load_trained

_DEFAULT_BPP = 0.05  # what the default level may cost, in bits per pixel of the data set's frames


@dataclass(frozen=True, slots=True)
class Origin:
    """A training run, and what its bundle is to say of it."""

    experiment: Experiment
    data: Path
    run: Path
    licence: str
    command: str
    cache: Path | None = None  # where the run kept its soft labels; its own folder if not named


def publish(
    origin: Origin,
    folder: Path,
    *,
    split: str,
    hyper: bool = True,
    effort: Effort = DEFAULT_EFFORT,
    tell: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Write the bundle of a run, its manifest's rates and accuracies measured on a split with onnxruntime.

    `tell` is told in lines what goes on. Raises ConfigError where run, data and experiment do not fit.
    """
    described = LAYOUTS[origin.experiment.data.dataset].classes(origin.data)
    network = _network(origin, described)
    shown, learned = _frames(origin, split), _learned(origin)
    evaluation.check_measurable(shown)
    measured_on = evaluation.measured_on(split, shown, _frames(origin, origin.experiment.data.split))
    description = _description(origin, described, learned.images[0].shape, measured_on)
    offsets = _offsets(origin, network, learned)
    traced = export(
        network, description, folder, frames=learned.images, hyper=hyper, class_offsets=offsets, effort=effort
    )
    smoothing = origin.experiment.smoothing or None
    bundle = refine(traced, learned.images, folder, smoothing=smoothing, tell=tell).bundle
    measured = evaluation.measured_levels(bundle, shown, split=split, tell=tell)
    levels = mark_default(evaluation.as_claimed(bundle, measured), [one.rate_bpp for one in measured])
    return seal(bundle.manifest.model_copy(update={"quality_levels": tuple(levels)}), folder)


def _network(origin: Origin, described: Classes) -> SplitSegmenter:
    if origin.experiment.model.decoder == IMAGE:
        raise ConfigError("model.decoder image makes no masks; export what was trained behind its camera")
    return load_trained(origin.experiment, origin.run, len(described.classes))


def _description(origin: Origin, described: Classes, size: tuple[int, ...], measured_on: str) -> Description:
    return Description(
        name=origin.experiment.name,
        created_by=origin.command,
        dataset=f"{origin.experiment.data.dataset} ({_trained_on(origin)}); {measured_on}",
        classes=tuple(ClassInfo(name=one.name, colour=one.colour) for one in described.classes),
        width=size[1],
        height=size[0],
        licence=origin.licence,
        network=Network(
            model=origin.experiment.model.model_dump(mode="json"),
            rate=origin.experiment.loss.rate,
            from_cityscapes=described.from_cityscapes,
        ),
    )


def publish_whole(origin: Origin, path: Path) -> None:
    """Write the network of a run as one graph, from image to logits, in which nothing is coded."""
    described = LAYOUTS[origin.experiment.data.dataset].classes(origin.data)
    network = _network(origin, described)
    learned = _learned(origin)
    height, width, _ = learned.images[0].shape
    offsets = _offsets(origin, network, learned)
    export_whole(network, path, width=width, height=height, class_offsets=offsets)


def _offsets(origin: Origin, network: SplitSegmenter, learned: Labelled) -> NDArray[np.float32]:
    """What is added to the classes' logits (L, K), by the labels, or by the teachers where labels were not looked at.

    ConfigError where the soft labels of a run without labels are gone.
    """
    loss = origin.experiment.loss
    if loss.labels + loss.lovasz == 0:
        learned = as_taught(learned, learned_soft_labels(origin.cache or origin.run, origin.run))
    return offsets_of(network, learned)


def mark_default(levels: Sequence[QualityLevel], rates: Sequence[float]) -> list[QualityLevel]:
    """The same levels; the default is the most accurate that costs at most 0.05 bits per pixel.

    `rates` are in bits per pixel of the data set's frames, whatever the bundle's own size.
    """
    cheap = [level for level, rate_bpp in zip(levels, rates, strict=True) if rate_bpp <= _DEFAULT_BPP]
    chosen = max(cheap, key=lambda level: level.miou) if cheap else min(levels, key=lambda level: level.rate_bpp)
    return [level.model_copy(update={"default": level is chosen}) for level in levels]


def _learned(origin: Origin) -> Labelled:
    """The frames that were trained on, at the size that the network takes them; of those on disk some."""
    settings = origin.experiment.data
    data = _frames(origin, settings.split)
    return in_memory(data, network_size(settings, data))


def _frames(origin: Origin, split: str) -> Labelled | Stored:
    """One split; without the drives that the experiment holds out, if it is what was trained on."""
    settings = origin.experiment.data
    left_out = settings.without_drives if split == settings.split else ()
    return LAYOUTS[settings.dataset].frames(origin.data, split, without_drives=left_out)


def _trained_on(origin: Origin) -> str:
    settings = origin.experiment.data
    return settings.split + "".join(f", without {drive}" for drive in settings.without_drives)
