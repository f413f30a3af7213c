"""The learned image codec that JSDE's camera is of: it learns pictures, and what stands behind it learns masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_training import epochs

from pipeline.datasets import camvid
from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.material import Folders
from pipeline.measuring import Rebuilt, psnr_db
from pipeline.models.entropy_model import MeanScaleHyperprior
from pipeline.models.layers import short_floats
from pipeline.publish import Origin, publish, publish_whole
from pipeline.training import Progress, describe, load_trained

BLIND: dict[str, object] = {"labels": 0.0, "lovasz": 0.0, "pixels": 0.01}


def image_codec(**schedule: object) -> Experiment:
    return tiny.experiment(
        model={"decoder": "image"},
        data={"unlabelled": 0.5},
        loss=BLIND,
        schedule={"lr": 2e-3, **schedule},
    )


def frames(data: Path, home: Path) -> Folders:
    """Of a run that needs no published weights and no teacher, frames without labels among what it learns from."""
    return Folders(data=data, backbone=None, run=home / "codec", unlabelled=(tiny.pictures(home / "pictures", 4),))


def test_an_image_codec_learns_to_rebuild_pictures_better_for_fewer_bits(tiny_camvid: Path, tmp_path: Path) -> None:
    found = epochs(image_codec(epochs=12, measure_every=1), frames(tiny_camvid, tmp_path))
    assert all(one.segmentation == one.lovasz == one.distillation == 0 and one.rate_bpp > 0 for one in found)
    for first, last in zip(found[0].measured, found[-1].measured, strict=True):
        assert isinstance(first, Rebuilt)
        assert isinstance(last, Rebuilt)
        assert last.psnr_db > first.psnr_db
        assert last.rate_bpp < first.rate_bpp


def test_its_entropy_model_begins_with_what_its_transform_makes_of_frames_of_the_size_it_sees(
    tiny_camvid: Path, tmp_path: Path
) -> None:
    """Two steps that move nothing; frames of another size have other means."""
    still: dict[str, object] = {"lr": 1e-30, "backbone_lr": 1e-30, "epochs": 1}
    found = []
    for size in (None, (tiny.HEIGHT // 2, tiny.WIDTH // 2)):
        experiment, run = image_codec(**still), frames(tiny_camvid, tmp_path / str(size))
        if size is not None:
            data = experiment.data.model_copy(update={"size": size, "crop": size})
            experiment = experiment.model_copy(update={"data": data})
        epochs(experiment, run)
        network = load_trained(experiment, run.run, tiny.CLASSES)
        assert isinstance(network.prior, MeanScaleHyperprior)
        begun = network.prior.hyper_decoder.predict.bias
        assert begun is not None
        spread = begun[tiny.MODEL["latents"] :]
        assert spread[0] > spread[-1]  # brightness varies more than quick waves do
        found.append(spread)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_its_pictures_are_measured_by_level_on_what_is_held_out(tiny_camvid: Path, tmp_path: Path) -> None:
    experiment, folders = image_codec(epochs=1), frames(tiny_camvid, tmp_path)
    (found,) = epochs(experiment, folders)
    network = load_trained(experiment, folders.run, tiny.CLASSES)
    held, bits, errors = camvid(tiny_camvid, "val"), np.zeros(tiny.LEVELS), np.zeros((tiny.LEVELS, 2))
    for row, image in enumerate(held.images):
        picture = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        for level in range(tiny.LEVELS):
            with torch.no_grad(), short_floats(torch.device("cpu")):
                seen = network(picture, torch.tensor([level]))
            errors[level, row] = (seen.output.float().clamp(0, 255) - picture).square().mean()
            bits[level] += (seen.coded.y_bits + seen.coded.z_bits).item()
    expected = 10 * np.log10(255**2 / errors).mean(1)
    assert [one.psnr_db for one in found.measured] == pytest.approx(expected, rel=1e-3)
    pixels = sum(image.shape[0] * image.shape[1] for image in held.images)
    assert [one.rate_bpp for one in found.measured] == pytest.approx(bits / pixels, rel=1e-3)
    assert [(one.split, one.quality) for one in found.measured] == [("val", level) for level in range(tiny.LEVELS)]


def test_what_was_measured_is_told_in_db() -> None:
    measured = (Rebuilt("val", 0, 25.25, 0.1), Rebuilt("val", 1, 30.0, 0.25))
    told = Progress(1, 2, 0.0, 0.0, 0.0, 65.025, 0.1, 1.0, 8.0, measured)
    line, of_val = describe(told).splitlines()
    assert "PSNR 30.00 dB  rate 0.1000 bpp" in line
    assert "labels" not in line
    assert of_val.strip() == "val: PSNR 25.25 dB at 0.1000, 30.00 dB at 0.2500 bpp"


@pytest.mark.parametrize(("error", "expected"), [(255.0**2, 0.0), (65.025, 30.0), (0.0, 108.13)])
def test_psnr_is_finite_for_a_picture_without_error(error: float, expected: float) -> None:
    assert psnr_db(error) == pytest.approx(expected, abs=0.01)


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
    assert found.squared_error == 0 < found.segmentation
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
