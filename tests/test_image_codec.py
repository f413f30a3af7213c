"""The learned image codec that JSDE's camera is of: it learns pictures, and what stands behind it learns masks."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from test_training import epochs

from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.material import Folders
from pipeline.publish import Origin, publish, publish_whole
from pipeline.training import load_trained

BLIND: dict[str, object] = {"labels": 0.0, "lovasz": 0.0, "pixels": 0.01}


def image_codec(**schedule: object) -> Experiment:
    return tiny.experiment(
        model={"decoder": "image"},
        data={"choose_by": (), "unlabelled": 0.5},
        loss=BLIND,
        schedule={"lr": 2e-3, **schedule},
    )


def frames(data: Path, home: Path) -> Folders:
    """Of a run that needs no published weights and no teacher, frames without labels among what it learns from."""
    return Folders(data=data, backbone=None, run=home / "codec", unlabelled=(tiny.pictures(home / "pictures", 4),))


def test_an_image_codec_learns_to_rebuild_pictures(tiny_camvid: Path, tmp_path: Path) -> None:
    found = epochs(image_codec(epochs=12), frames(tiny_camvid, tmp_path))
    assert found[-1].pixels < 0.5 * found[0].pixels
    assert all(one.segmentation == one.lovasz == one.distillation == 0 and one.rate_bpp > 0 for one in found)
    assert all(one.measured == () for one in found)


def test_its_labels_are_not_looked_at(tiny_camvid: Path, tmp_path: Path) -> None:
    experiment, folders = image_codec(epochs=1), frames(tiny_camvid, tmp_path)
    other = replace(folders, data=tiny.with_other_labels(tiny_camvid, tmp_path / "other"), run=tmp_path / "run")
    runs = []
    for one in (folders, other):
        epochs(experiment, one)
        runs.append(load_trained(experiment, one.run, tiny.CLASSES).state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_jsde_learns_behind_its_camera_which_stays_as_it_is(tiny_camvid: Path, tmp_path: Path) -> None:
    codec, folders = image_codec(epochs=1), frames(tiny_camvid, tmp_path)
    epochs(codec, folders)
    experiment = tiny.experiment(model={"decoder": "latent_task"}, schedule={"epochs": 1, "trained": "decoder"})
    behind = replace(tiny.folders(tiny_camvid, tmp_path / "behind"), camera=folders.run)
    (found,) = epochs(experiment, behind)
    assert found.pixels == 0 < found.segmentation
    assert len(found.measured) == tiny.LEVELS
    state = load_trained(experiment, behind.run, tiny.CLASSES).state_dict()
    camera = load_trained(codec, folders.run, tiny.CLASSES).state_dict()
    kept = [name for name in camera if not name.startswith("decoder.")]
    assert {name.split(".")[0] for name in kept} == {"analysis", "prior"}
    assert all(torch.equal(state[name], camera[name]) for name in kept)


def test_an_image_codec_has_no_bundle(tiny_camvid: Path, tmp_path: Path) -> None:
    made = Origin(image_codec(), data=tiny_camvid, run=tmp_path, licence="none", command="maskcast export")
    with pytest.raises(ConfigError, match="makes no masks; export what was trained behind its camera"):
        publish(made, tmp_path / "bundle", split="test")
    with pytest.raises(ConfigError, match="makes no masks"):
        publish_whole(made, tmp_path / "whole.onnx")
    assert list(tmp_path.iterdir()) == []
