"""A training run to a finished bundle: export, then measure what its manifest claims."""

from pathlib import Path

from pipeline import datasets, evaluation
from pipeline.bundle import Bundle, ClassInfo, QualityLevel, load_bundle
from pipeline.experiment import Experiment
from pipeline.export import Description, export, write_manifest
from pipeline.training import load_trained


def publish(
    experiment: Experiment, *, data: Path, run: Path, folder: Path, split: str, licence: str, command: str
) -> Bundle:
    """Write the bundle of a run, its manifest's rate and accuracy measured on a split with onnxruntime."""
    described = datasets.camvid_classes(data)
    frames = datasets.camvid(data, split)
    height, width = frames.labels[0].shape
    description = Description(
        name=experiment.name,
        created_by=command,
        dataset=f"camvid ({experiment.data.split}); rate and mIoU measured on {split}",
        classes=tuple(ClassInfo(name=one.name, colour=one.colour) for one in described.classes),
        width=width,
        height=height,
        licence=licence,
    )
    bundle = export(load_trained(experiment, run, len(described.classes)), description, folder)
    result = evaluation.evaluate(bundle, frames, split=split, engine="onnxruntime")
    level = QualityLevel(index=0, rate_bpp=result.rate_bpp, miou=result.miou, default=True)
    write_manifest(folder, description, (level,))
    return load_bundle(folder)
