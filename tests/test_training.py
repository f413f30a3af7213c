"""The training loop on a dozen small frames: it runs, resumes as if it had not stopped, and says what went wrong."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline import training
from pipeline.datasets import camvid
from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.models import MODELS
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.models.teacher import FDDWNet
from pipeline.training import Folders, Progress, TrainingDiverged, load_trained, measure, train

SPOILT = "decoder.lift.0.weight"


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_trained(tiny.experiment(), run, tiny.CLASSES).state_dict()


def epochs(experiment: Experiment, folders: Folders) -> list[Progress]:
    return list(train(experiment, folders))


def test_two_epochs_run_and_report_finite_terms(tiny_camvid: Path, tmp_path: Path) -> None:
    found = epochs(tiny.experiment(), tiny.folders(tiny_camvid, tmp_path))
    assert [(p.epoch, p.epochs) for p in found] == [(1, 2), (2, 2)]
    for p in found:
        assert all(map(math.isfinite, (p.segmentation, p.rate_bpp, p.gradient_norm)))
        assert p.segmentation > 0
        assert p.rate_bpp > 0
        assert p.distillation == 0
        assert [one.split for one in p.measured] == ["val"]


def test_loss_falls_on_frames_seen_often(tiny_camvid: Path, tmp_path: Path) -> None:
    plain = {"scale": (1.0, 1.0), "jitter": 0.0}
    longer = tiny.experiment(data=plain, schedule={"epochs": 8, "lr": 1e-2, "measure_every": 8})
    found = epochs(longer, tiny.folders(tiny_camvid, tmp_path))
    assert found[-1].segmentation < 0.92 * found[0].segmentation
    assert found[-1].rate_bpp < 0.9 * found[0].rate_bpp


@pytest.mark.parametrize("every", [1, 2, 5])
def test_measured_when_due_and_after_the_last_epoch(tiny_camvid: Path, tmp_path: Path, every: int) -> None:
    found = epochs(tiny.experiment(schedule={"epochs": 3, "measure_every": every}), tiny.folders(tiny_camvid, tmp_path))
    assert [bool(p.measured) for p in found] == [every == 1, every <= 2, True]


def test_resuming_equals_not_having_stopped(tiny_camvid: Path, tiny_run: Path, tmp_path: Path) -> None:
    folders = tiny.folders(tiny_camvid, tmp_path)
    stopped = train(tiny.experiment(), folders)
    assert next(stopped).epoch == 1
    assert isinstance(stopped, Iterator)
    del stopped
    torch.manual_seed(99)  # whatever happened in between
    resumed = epochs(tiny.experiment(), folders)
    assert [p.epoch for p in resumed] == [2]
    expected, found = weights_of(tiny_run), weights_of(folders.run)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny_camvid: Path, tiny_run: Path, tmp_path: Path
) -> None:
    name = "source_encoder.mix.2.weight"
    for seed in (1, 2):
        folders = tiny.folders(tiny_camvid, tmp_path / str(seed))
        epochs(tiny.experiment(schedule={"seed": seed}), folders)
        assert torch.equal(weights_of(folders.run)[name], weights_of(tiny_run)[name]) == (seed == 1)


def test_finished_run_is_not_trained_again(tiny_camvid: Path, tiny_run: Path, tmp_path: Path) -> None:
    folders = replace(tiny.folders(tiny_camvid, tmp_path), run=tiny_run)
    before = (tiny_run / "checkpoint.pt").read_bytes()
    assert epochs(tiny.experiment(), folders) == []
    assert (tiny_run / "checkpoint.pt").read_bytes() == before


def test_average_is_kept_and_differs_from_the_newest_weights(tiny_run: Path) -> None:
    state = torch.load(tiny_run / "checkpoint.pt", weights_only=True)
    name = "source_encoder.mix.2.weight"
    assert not torch.equal(state["average"][name], state["network"][name])
    assert torch.equal(weights_of(tiny_run)[name], state["average"][name])


def test_trained_network_is_in_eval_mode(tiny_run: Path) -> None:
    assert not any(m.training for m in load_trained(tiny.experiment(), tiny_run, tiny.CLASSES).modules())


def test_held_out_drives_are_not_learned_from(tiny_camvid: Path, tmp_path: Path) -> None:
    """Half of the frames: half of the steps, seen by the optimiser's count."""
    folders = tiny.folders(tiny_camvid, tmp_path)
    data = {"without_drives": ("0006R0",), "choose_by": ("0006R0", "val")}
    found = epochs(tiny.experiment(data=data), folders)
    assert [one.split for one in found[-1].measured] == ["0006R0", "val"]
    state = torch.load(folders.run / "checkpoint.pt", weights_only=True)
    assert {int(one["step"]) for one in state["optimiser"]["state"].values()} == {2}


def test_teacher_gives_a_distillation_term_and_its_labels_are_kept(tiny_camvid: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(FDDWNet().state_dict(), tmp_path / "teacher.safetensors")
    folders = replace(tiny.folders(tiny_camvid, tmp_path), teacher=tmp_path / "teacher.safetensors")
    found = epochs(tiny.experiment(teacher={"weight": 0.5}, schedule={"epochs": 1}), folders)
    assert found[0].distillation > 0
    assert (folders.run / "soft_labels.npy").is_file()


def test_teacher_that_is_not_named_is_asked_for(tiny_camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--teacher"):
        epochs(tiny.experiment(teacher={"weight": 0.5}), tiny.folders(tiny_camvid, tmp_path))


def with_spoilt_gradient(classes: int, **sizes: int) -> SplitSegmenter:
    """A network whose gradient is not a number at one place, halfway through."""
    network = SplitSegmenter(classes, **sizes)
    network.get_parameter(SPOILT).register_hook(lambda gradient: gradient * float("nan"))
    return network


def test_gradient_that_is_not_finite_names_its_parameter(
    tiny_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "spoilt", with_spoilt_gradient)
    folders = tiny.folders(tiny_camvid, tmp_path)
    with pytest.raises(TrainingDiverged, match=SPOILT):
        epochs(tiny.experiment(model={"name": "spoilt"}), folders)
    assert not (folders.run / "checkpoint.pt").exists()


def test_unknown_model_is_named(tiny_camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'resnet'.*joint_mobilenet_v2"):
        epochs(tiny.experiment(model={"name": "resnet"}), tiny.folders(tiny_camvid, tmp_path))


def test_fewer_frames_than_a_batch_are_an_error(tiny_camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch"):
        epochs(tiny.experiment(schedule={"batch": 9}), tiny.folders(tiny_camvid, tmp_path))


def test_run_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_trained(tiny.experiment(), tmp_path, tiny.CLASSES)


def test_run_of_another_experiment_is_named(tiny_run: Path) -> None:
    other = tiny.experiment(model={"latents": 16})
    with pytest.raises(ConfigError, match=str(tiny_run)) as caught:
        load_trained(other, tiny_run, tiny.CLASSES)
    assert "\n" not in str(caught.value)


def test_run_of_another_experiment_is_not_resumed(tiny_camvid: Path, tiny_run: Path, tmp_path: Path) -> None:
    folders = replace(tiny.folders(tiny_camvid, tmp_path), run=tiny_run)
    with pytest.raises(ConfigError, match=str(tiny_run)):
        epochs(tiny.experiment(model={"latents": 16}), folders)


def test_measured_rate_is_that_of_all_pixels(tiny_network: SplitSegmenter, tiny_camvid: Path) -> None:
    data = camvid(tiny_camvid, "val")
    found = measure(tiny_network, data, "val")
    with torch.no_grad():
        coded = tiny_network(torch.cat([tiny.images([tiny.Scene(i, i)]) for i in data.images])).coded
    expected = float((coded.y_bits + coded.z_bits).sum()) / (2 * tiny.WIDTH * tiny.HEIGHT)
    assert found.split == "val"
    assert found.rate_bpp == pytest.approx(expected, rel=0.05)  # measured with bfloat16 sums
    assert 0 <= found.miou <= 1


def test_line_of_the_log_names_epoch_terms_and_measurements() -> None:
    measured = (training.Measured("val", 0.5, 0.1),)
    line = training.describe(Progress(3, 70, 1.0, 0.5, 0.123, 2.0, measured))
    assert "\n" not in line
    assert all(part in line for part in ("3/70", "0.1230 bpp", "val: 50.00 mIoU"))
