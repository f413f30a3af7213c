"""What an experiment learns from: frames, labels and soft labels, on the device that trains."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import datasets, distillation, translation
from pipeline.accuracy import VOID
from pipeline.batches import Batches, ClassPixels, Pool, Resident, Streamed, class_pixels
from pipeline.datasets import Labelled, LabelledFrame, Stored
from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.layouts import LAYOUTS, network_size
from pipeline.views import Augmentation

_COUNTED = 300  # frames of a data set on disk whose pixels are counted by class


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a run reads from and writes to."""

    data: Path
    backbone: Path | None  # pretrained weights; not needed where the network has no pretrained part
    run: Path
    teachers: tuple[Path, ...] = ()
    unlabelled: tuple[Path, ...] = ()  # folders of images, or clips
    start: Path | None = None  # the run, or the bundle, whose weights are begun with, instead of the backbone's alone
    camera: Path | None = None  # the run or bundle whose camera and entropy model are begun with, no decoder
    cache: Path | None = None  # where soft labels are kept; the run's folder if not named


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Batches to learn from, frames to measure on by name, and how much each class counts (K,)."""

    batches: Batches
    size: tuple[int, int]  # height and width that the network takes frames at
    held: Mapping[str, datasets.Frames]
    class_weights: Tensor
    calibration: Tensor  # (N, 3, h, w) in 0..255: a few frames to take statistics from
    learned: str  # tells frames, labels and teachers from others


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """Frames to draw views from, and what is known of their classes: shares (K,) of all pixels, and where they lie."""

    pool: Pool
    share: NDArray[np.float64]
    pixels: ClassPixels


def prepare(
    experiment: Experiment, folders: Folders, device: torch.device, *, before: Callable[[str], object] = lambda _: None
) -> Material:
    """Read everything; ConfigError names the folder or the setting that is wrong.

    `before` is given what tells frames, labels and teachers from others before anything is written; it may refuse them.
    """
    settings, schedule = experiment.data, experiment.schedule
    _check_taught(experiment)
    layout = LAYOUTS[settings.dataset]
    described = layout.classes(folders.data)
    data = layout.frames(folders.data, settings.split, without_drives=settings.without_drives)
    held = {name: layout.frames(folders.data, name) for name in settings.choose_by}
    classes, unlabelled = len(described.classes), round(schedule.batch * settings.unlabelled)
    if unlabelled == schedule.batch:
        raise ConfigError(f"data.unlabelled {settings.unlabelled}: no frame of the data set is left; lower it")
    if len(data) < schedule.batch - unlabelled:
        raise ConfigError(f"schedule.batch {schedule.batch}: only {len(data)} frames; lower it")
    size = network_size(settings, data)
    if isinstance(data, Labelled):
        some = _spread(data)
        extra = _extra_frames(experiment, folders, _one_size(folders.data, data))
        learned = _told_apart(experiment, folders, data, [*data.images, *extra, *data.labels])
        before(learned)
        drawn = _resident(experiment, folders, data, extra, described, device)
    else:
        data = datasets.fitted(data, *size)
        some = _spread(data)
        learned = _told_apart(experiment, folders, data, [*(one.image for one in some), *(one.labels for one in some)])
        before(learned)
        drawn = _streamed(experiment, data, classes, size, device)
    batches = _batches(experiment, drawn, size, labelled=len(data), unlabelled=unlabelled, classes=classes)
    weights = datasets.class_weights(drawn.share, strength=settings.class_weighting)
    return Material(batches, size, held, torch.from_numpy(weights).to(device), _calibration(some), learned)


def _check_taught(experiment: Experiment) -> None:
    """ConfigError where there is nothing to learn from, or for a translator."""
    loss = experiment.loss
    if loss.labels + loss.lovasz + loss.pixels + experiment.teacher.weight == 0:
        raise ConfigError("loss.labels, loss.lovasz and teacher.weight are all 0: there is nothing to learn from")
    if experiment.teacher.translated and loss.labels + loss.lovasz == 0:
        raise ConfigError("teacher.translated learns from labels, but loss.labels and lovasz are 0; set it to false")


def _batches(
    experiment: Experiment, drawn: _Drawn, size: tuple[int, int], *, labelled: int, unlabelled: int, classes: int
) -> Batches:
    settings = experiment.data
    return Batches(
        pool=drawn.pool,
        labelled=labelled,
        pixels=drawn.pixels,
        levels=experiment.loss.levels,
        size=experiment.schedule.batch,
        unlabelled=unlabelled,
        balanced=settings.balanced,
        mixed=settings.mixed,
        texture=settings.texture,
        classes=classes,
        frame_size=size,
        crop=settings.crop,
        augmentation=Augmentation(*settings.scale, settings.jitter),
        seed=experiment.schedule.seed,
    )


def _one_size(root: Path, data: Labelled) -> tuple[int, ...]:
    sizes = sorted({labels.shape for labels in data.labels})
    if len(sizes) > 1:
        (rows, columns), (height, width) = sizes[0], sizes[-1]
        raise ConfigError(f"data set {root}: frames of {columns}x{rows} and {width}x{height}; use one size")
    return sizes[0]


def _told_apart(
    experiment: Experiment, folders: Folders, data: datasets.Frames, shown: Sequence[NDArray[np.uint8]]
) -> str:
    """What tells a run's frames, labels and teachers from others: names, what is shown of them, the teachers' files.

    `shown` has pixels and labels: of frames in memory all, of those on disk of some.
    """
    told = hashlib.sha256("\n".join((*data.names, distillation.digest(shown))).encode())
    for path in folders.teachers if experiment.teacher.weight > 0 else ():
        told.update(path.read_bytes() if path.is_file() else b"")
    return told.hexdigest()


def _resident(
    experiment: Experiment,
    folders: Folders,
    data: Labelled,
    extra: Sequence[NDArray[np.uint8]],
    described: datasets.Classes,
    device: torch.device,
) -> _Drawn:
    """All frames in the device's memory, those without labels behind the others."""
    classes = len(described.classes)
    images = [*data.images, *extra]
    soft = _soft_labels(experiment, folders, images, described, device, labelled=len(data))
    if soft is not None and experiment.teacher.translated:
        # Not the others': they are of elsewhere, and in a car park the translator sees sky.
        soft[: len(data)] = _translated(experiment, folders, soft[: len(data)], np.stack(data.labels), classes)
    void = np.full(data.labels[0].shape, VOID, np.uint8)
    labels = torch.from_numpy(np.stack([*data.labels, *[void] * len(extra)]))
    pool = Resident(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device),
        labels.to(device),
        None if soft is None else torch.from_numpy(soft).permute(0, 3, 1, 2).to(device),
    )
    if experiment.loss.pixels > 0:
        unseen = replace(pool, labels=torch.full_like(pool.labels, VOID))
        return _Drawn(unseen, np.full(classes, 1 / classes), ClassPixels(()))
    if soft is None or experiment.loss.labels + experiment.loss.lovasz > 0:
        return _Drawn(pool, _label_share(labels, classes), class_pixels(labels, classes))
    # Nobody's labels may be looked at: the teacher says which classes there are, and where.
    unseen = replace(pool, labels=torch.full_like(pool.labels, VOID))
    guessed = torch.from_numpy(soft[: len(data)]).argmax(3)
    return _Drawn(unseen, _soft_share(soft), class_pixels(guessed, classes))


def _streamed(
    experiment: Experiment, data: Stored, classes: int, size: tuple[int, int], device: torch.device
) -> _Drawn:
    """Frames that stay on disk; the classes' shares are those of some of them."""
    settings = experiment.data
    if experiment.teacher.weight > 0 or settings.balanced > 0 or settings.unlabelled > 0:
        raise ConfigError(f"data.dataset {settings.dataset}: teacher.weight, balanced and unlabelled must be 0")
    if experiment.loss.pixels > 0:
        raise ConfigError(
            f"data.dataset {settings.dataset}: frames are filled up with grey, and an image codec would learn that; "
            "use camvid"
        )
    some = [data.read(i).labels for i in range(0, len(data), max(1, len(data) // _COUNTED))]
    share = _label_share(torch.from_numpy(np.stack(some)), classes)
    return _Drawn(Streamed(data, size, device), share, ClassPixels(()))


def _extra_frames(experiment: Experiment, folders: Folders, size: tuple[int, ...]) -> list[NDArray[np.uint8]]:
    """Frames without labels, their middle cut to the shape of the labelled ones and brought to their size."""
    if experiment.data.unlabelled == 0:
        return []
    if not folders.unlabelled:
        raise ConfigError("data.unlabelled is above 0, but no frames are named; add --unlabelled FOLDER")
    if experiment.teacher.weight + experiment.loss.pixels == 0:
        raise ConfigError("data.unlabelled is above 0, but teacher.weight is 0: nothing would be learned from them")
    found = [image for path in folders.unlabelled for image in datasets.unlabelled_frames(path)]
    return [_middle(image, size[0], size[1]) for image in found]


def _middle(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    rows, columns = image.shape[:2]
    scale = min(rows / height, columns / width)
    tall, wide = round(height * scale), round(width * scale)
    top, left = (rows - tall) // 2, (columns - wide) // 2
    cut = image[top : top + tall, left : left + wide]
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _soft_labels(
    experiment: Experiment,
    folders: Folders,
    images: Sequence[NDArray[np.uint8]],
    described: datasets.Classes,
    device: torch.device,
    *,
    labelled: int,
) -> NDArray[np.uint8] | None:
    """(N, h, w, K) in 1/255, or None where no teacher is asked for; the first `labelled` images are of the data set."""
    settings = experiment.teacher
    if settings.weight == 0:
        return None
    if not folders.teachers:
        raise ConfigError("teacher.weight is above 0, but no teacher weights are named; add --teacher FILE")
    teacher = distillation.load_teachers(
        folders.teachers,
        size=settings.size,
        mirrored=settings.mirrored,
        scales=settings.scales,
        described=described,
        device=device,
    )
    if settings.acquaintance > 0:
        teacher = teacher.acquainted(images[:labelled], share=settings.acquaintance)
    return distillation.soft_label_file(folders.cache or folders.run, images, teacher, run=folders.run)


def _translated(
    experiment: Experiment, folders: Folders, soft: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int
) -> NDArray[np.uint8]:
    """The soft labels of the data set's frames in the words of its labels."""
    share = _label_share(torch.from_numpy(labels), classes)
    weights = datasets.class_weights(share, strength=experiment.data.class_weighting)
    return translation.translated_file((folders.cache or folders.run) / "translated_labels.npy", soft, labels, weights)


def _label_share(labels: Tensor, classes: int) -> NDArray[np.float64]:
    """Pixels of each class (K,), as shares of all that have one; ConfigError on what is neither a class nor void."""
    counts = torch.bincount(labels.flatten().long(), minlength=VOID + 1).double().numpy()
    strange = np.flatnonzero(counts[classes:VOID])
    if strange.size:
        raise ConfigError(f"labels: {classes + strange[0]} is none of {classes} classes; take the data set's own")
    share: NDArray[np.float64] = counts[:classes] / counts[:classes].sum()
    return share


def _soft_share(soft: NDArray[np.uint8]) -> NDArray[np.float64]:
    counts = soft.sum((0, 1, 2), dtype=np.float64)
    share: NDArray[np.float64] = counts / counts.sum()
    return share


def _spread(data: datasets.Frames, count: int = 16) -> list[LabelledFrame]:
    """A few frames spread over the data set."""
    return [data.read(i) for i in range(0, len(data), max(1, len(data) // count))[:count]]


def _calibration(frames: Sequence[LabelledFrame]) -> Tensor:
    """Their pictures, cropped to a size divisible by 16: (N, 3, h, w)."""
    height, width = (side // 16 * 16 for side in frames[0].labels.shape)
    stacked = np.stack([frame.image[:height, :width] for frame in frames])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float()
