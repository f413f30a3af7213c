"""The training loop on a dozen small frames: it runs, resumes as if it had not stopped, and says what went wrong."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import test_layouts
import tiny
import torch
from graphs import light_meter
from test_restoring import described
from torch import Tensor

from pipeline import checkpoint, training
from pipeline.bundle import Bundle, load_bundle
from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.layouts import LAYOUTS
from pipeline.material import Folders
from pipeline.measuring import Measured
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.restoring import restore, trainable
from pipeline.stepping import TrainingDiverged
from pipeline.training import Progress, build, describe, load_trained, train

SPOILT = "decoder.lift.0.weight"
LATENTS = "analysis.source_encoder.mix.2.weight"
FROZEN = {"lr": 1e-30, "backbone_lr": 1e-30, "weight_decay": 0.0}


def weights_of(run: Path, experiment: Experiment | None = None) -> dict[str, Tensor]:
    return load_trained(experiment or tiny.experiment(), run, tiny.CLASSES).state_dict()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def epochs(experiment: Experiment, folders: Folders) -> list[Progress]:
    return list(train(experiment, folders))


@pytest.fixture
def everything(tiny_camvid: Path, tmp_path: Path) -> tuple[Experiment, Folders]:
    """All that views, teachers and frames without labels can do, and where it is read from."""
    experiment = tiny.experiment(
        data={"balanced": 0.5, "texture": 0.3, "mixed": 0.5, "unlabelled": 0.5},
        teacher={"weight": 0.7, "mirrored": True, "scales": (1.0, 0.5), "sharpness": 1.3},
        schedule={"epochs": 2, "rate_warmup": 0.5},
    )
    teacher = light_meter(tmp_path / "teacher.onnx", tiny.CLASSES, bright=tiny.ROAD, dark=tiny.SKY)
    more = tiny.pictures(tmp_path / "more", 3)
    folders = replace(tiny.folders(tiny_camvid, tmp_path / "home"), teachers=(teacher,), unlabelled=(more,))
    return experiment, folders


def test_two_epochs_run_and_report_finite_terms(tiny_camvid: Path, tmp_path: Path) -> None:
    found = epochs(tiny.experiment(), tiny.folders(tiny_camvid, tmp_path))
    assert [(p.epoch, p.epochs) for p in found] == [(1, 2), (2, 2)]
    for p in found:
        assert all(map(math.isfinite, (p.segmentation, p.lovasz, p.rate_bpp, p.gradient_norm)))
        assert min(p.segmentation, p.lovasz, p.rate_bpp, p.gradient_norm, p.images_per_s) > 0
        assert p.distillation == 0
        assert [(one.split, one.quality) for one in p.measured] == [("val", level) for level in range(tiny.LEVELS)]


def test_loss_falls_on_frames_seen_often(tiny_camvid: Path, tmp_path: Path) -> None:
    plain = {"scale": (1.0, 1.0), "jitter": 0.0}
    longer = tiny.experiment(data=plain, schedule={"epochs": 10, "lr": 1e-2, "measure_every": 10})
    found = epochs(longer, tiny.folders(tiny_camvid, tmp_path))
    assert found[-1].segmentation < 0.85 * found[0].segmentation
    assert found[-1].lovasz < found[0].lovasz
    assert found[-1].rate_bpp < 0.8 * found[0].rate_bpp


def test_the_gains_of_a_level_fall_where_its_rate_weighs_more(tiny_camvid: Path, tmp_path: Path) -> None:
    gains = []
    for number, weights in enumerate(((32.0, 4.0, 0.5), (0.5, 0.5, 0.5), (32.0, 32.0, 32.0))):
        experiment = tiny.experiment(
            loss={"rate": weights}, schedule={"epochs": 6, "lr": 1e-2, "measure_every": 6, "average_decay": 0.5}
        )
        folders = tiny.folders(tiny_camvid, tmp_path / str(number))
        (*_, last) = train(experiment, folders)
        rates = [one.rate_bpp for one in last.measured]
        assert rates == sorted(rates)
        gains.append(weights_of(folders.run, experiment)["prior.gains.log_gain"].mean(1))
    falling, light, heavy = gains
    assert falling[0] < light[0] - 0.005
    assert falling[2] > heavy[2] + 0.005


@pytest.mark.parametrize("every", [1, 2, 5])
def test_measured_when_due_and_after_the_last_epoch(tiny_camvid: Path, tmp_path: Path, every: int) -> None:
    found = epochs(tiny.experiment(schedule={"epochs": 3, "measure_every": every}), tiny.folders(tiny_camvid, tmp_path))
    assert [bool(p.measured) for p in found] == [every == 1, every <= 2, True]


def test_without_a_size_frames_on_disk_are_measured_at_that_of_their_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LAYOUTS, "coco", replace(LAYOUTS["coco"], size=(64, 96)))
    root, found = test_layouts.coco(tmp_path / "coco"), []
    for number, size in enumerate((None, (64, 96))):
        data = {"dataset": "coco", "choose_by": ("train",), "size": size}
        experiment = tiny.experiment(data=data, schedule={"epochs": 1, "batch": 2})
        found += epochs(experiment, tiny.folders(root, tmp_path / str(number)))
    without, told = (one.measured for one in found)
    assert without == told
    assert len(told) == tiny.LEVELS


def interrupted(experiment: Experiment, folders: Folders) -> int:
    """Train for one epoch, then go on; the epochs of the second part."""
    stopped = train(experiment, folders)
    assert next(stopped).epoch == 1
    assert isinstance(stopped, Iterator)
    del stopped
    torch.manual_seed(99)  # whatever happened in between
    return len(epochs(experiment, folders))


def test_resuming_equals_not_having_stopped(tiny_camvid: Path, tiny_run: Path, tmp_path: Path) -> None:
    folders = tiny.folders(tiny_camvid, tmp_path)
    assert interrupted(tiny.experiment(), folders) == 1
    assert equal(weights_of(folders.run), weights_of(tiny_run))


def test_resuming_equals_not_having_stopped_with_everything_on(everything: tuple[Experiment, Folders]) -> None:
    experiment, folders = everything
    whole = replace(folders, run=folders.run.with_name("whole"))
    epochs(experiment, whole)
    assert interrupted(experiment, folders) == 1
    assert equal(weights_of(folders.run, experiment), weights_of(whole.run, experiment))


def test_a_run_that_stopped_before_its_first_checkpoint_begins_again(tiny_camvid: Path, tmp_path: Path) -> None:
    experiment, folders = tiny.experiment(schedule={"measure_every": 5}), tiny.folders(tiny_camvid, tmp_path)
    next(train(experiment, folders))
    assert not (folders.run / checkpoint.FILE).exists()
    assert [p.epoch for p in epochs(experiment, folders)] == [1, 2]


def test_a_long_epoch_is_saved_without_being_measured(
    tiny_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_SAVE_EVERY_S", -1)
    experiment, folders = tiny.experiment(schedule={"measure_every": 5}), tiny.folders(tiny_camvid, tmp_path)
    assert not next(train(experiment, folders)).measured
    assert [p.epoch for p in epochs(experiment, folders)] == [2]


def test_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny_camvid: Path, tiny_run: Path, tmp_path: Path
) -> None:
    for seed in (1, 2):
        folders, experiment = tiny.folders(tiny_camvid, tmp_path / str(seed)), tiny.experiment(schedule={"seed": seed})
        epochs(experiment, folders)
        assert equal(weights_of(folders.run, experiment), weights_of(tiny_run)) == (seed == 1)


def test_finished_run_is_not_trained_again(tiny_camvid: Path, tiny_run: Path, tmp_path: Path) -> None:
    folders = replace(tiny.folders(tiny_camvid, tmp_path), run=tiny_run)
    before = (tiny_run / checkpoint.FILE).read_bytes()
    assert epochs(tiny.experiment(), folders) == []
    assert (tiny_run / checkpoint.FILE).read_bytes() == before


def test_average_is_kept_and_differs_from_the_newest_weights(tiny_run: Path) -> None:
    state = torch.load(tiny_run / checkpoint.FILE, weights_only=True)
    assert not torch.equal(state["average"][LATENTS], state["network"][LATENTS])
    assert torch.equal(weights_of(tiny_run)[LATENTS], state["average"][LATENTS])


def test_what_is_measured_is_the_average(tiny_camvid: Path, tmp_path: Path) -> None:
    """An average that hardly moves measures what the network began with."""
    folders = tiny.folders(tiny_camvid, tmp_path)
    schedule = {"epochs": 1, "average_decay": 0.0}
    (moved,) = epochs(tiny.experiment(schedule={**schedule, "lr": 0.1}), folders)
    begun = replace(folders, run=tmp_path / "still")
    (still,) = epochs(tiny.experiment(schedule={**schedule, **FROZEN}), begun)
    assert [m.rate_bpp for m in moved.measured] != pytest.approx([m.rate_bpp for m in still.measured], rel=0.05)


def test_trained_network_is_in_eval_mode_and_has_its_levels(tiny_run: Path) -> None:
    network = load_trained(tiny.experiment(), tiny_run, tiny.CLASSES)
    assert not any(m.training for m in network.modules())
    assert network.levels == tiny.LEVELS


def test_held_out_drives_are_not_learned_from(tiny_camvid: Path, tmp_path: Path) -> None:
    """Their frames may be any: the weights are the same."""
    data = shutil.copytree(tiny_camvid, tmp_path / "data")
    for path in [*data.glob("images/*/0006R0*"), *data.glob("labels/*/0006R0*")]:
        assert cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[::-1])
    experiment = tiny.experiment(data={"without_drives": ("0006R0",), "choose_by": ("0006R0", "val")})
    found = []
    for name, root in (("one", tiny_camvid), ("other", data)):
        folders = tiny.folders(root, tmp_path / name)
        last = epochs(experiment, folders)[-1]
        assert [one.split for one in last.measured] == ["0006R0"] * tiny.LEVELS + ["val"] * tiny.LEVELS
        state = torch.load(folders.run / checkpoint.FILE, weights_only=True)
        assert {int(one["step"]) for one in state["optimiser"]["state"].values()} == {2}  # half of the frames
        found.append((weights_of(folders.run, experiment), [one.rate_bpp for one in last.measured]))
    assert equal(found[0][0], found[1][0])
    assert found[0][1][: tiny.LEVELS] != found[1][1][: tiny.LEVELS]  # but they are measured


@pytest.mark.parametrize("labels", [0.0, 0.5], ids=["label-free", "with labels"])
def test_label_free_training_never_looks_at_the_labels(
    everything: tuple[Experiment, Folders], tmp_path: Path, labels: float
) -> None:
    experiment, folders = everything
    loss = experiment.loss.model_copy(update={"labels": labels, "lovasz": 0.0})
    experiment = experiment.model_copy(update={"loss": loss})
    runs = []
    for data in (folders.data, tiny.with_other_labels(folders.data, tmp_path / "other")):
        one = replace(folders, data=data, run=tmp_path / f"run-of-{data.name}")
        assert epochs(experiment, one)[-1].distillation > 0
        runs.append(weights_of(one.run, experiment))
    assert equal(runs[0], runs[1]) == (labels == 0)


def test_teacher_gives_a_distillation_term_and_its_labels_are_kept(everything: tuple[Experiment, Folders]) -> None:
    experiment, folders = everything
    found = epochs(experiment, folders)
    assert all(p.distillation > 0 for p in found)
    assert (folders.run / "soft_labels.npy").is_file()


def test_teacher_that_is_not_named_is_asked_for_and_leaves_no_folder(tiny_camvid: Path, tmp_path: Path) -> None:
    folders = tiny.folders(tiny_camvid, tmp_path)
    with pytest.raises(ConfigError, match="--teacher"):
        epochs(tiny.experiment(teacher={"weight": 0.5}), folders)
    assert not folders.run.exists()


def test_frames_without_labels_that_are_not_named_are_asked_for(everything: tuple[Experiment, Folders]) -> None:
    experiment, folders = everything
    with pytest.raises(ConfigError, match="--unlabelled"):
        epochs(experiment, replace(folders, unlabelled=()))


def begun_with(bundle: Bundle, data: Path, run: Path, rate: Sequence[float]) -> dict[str, Tensor]:
    """The weights after one epoch that changes none of them."""
    experiment = tiny.experiment(schedule={**FROZEN, "epochs": 1}, loss={"rate": rate})
    folders = replace(tiny.folders(data, run), start=bundle.path, backbone=None)
    assert len(epochs(experiment, folders)) == 1
    return weights_of(folders.run, experiment)


def test_a_run_may_begin_with_a_bundle(tiny_camvid: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = load_bundle(described(tiny_bundle, tmp_path / "bundle"))
    begun = trainable(bundle, tiny.experiment().model, tiny.images(tiny.scenes(2)))
    found = begun_with(bundle, tiny_camvid, tmp_path / "run", tiny.RATE)
    kernels = {name for name, value in begun.named_parameters() if value.ndim == 4}
    assert len(kernels) > 20
    for name in kernels:
        torch.testing.assert_close(found[name], begun.state_dict()[name])


def test_a_bundle_of_many_rates_begins_a_run_for_one_of_them(
    tiny_camvid: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = load_bundle(described(tiny_bundle, tmp_path / "bundle"))
    theirs = restore(bundle).network.state_dict()
    for level, weight in enumerate(tiny.RATE):
        ours = begun_with(bundle, tiny_camvid, tmp_path / f"run-{level}", (1.1 * weight,))
        gains = {name for name in ours if name.startswith("prior.gains.")}
        assert gains
        for name in gains:
            torch.testing.assert_close(ours[name], theirs[name][level : level + 1])


@pytest.mark.parametrize("levels", [(5.0,), (9.0, 6.0, 3.0, 1.0, 0.5)], ids=len)
def test_networks_of_any_number_of_levels_are_trained(tiny_camvid: Path, tmp_path: Path, levels: tuple[float]) -> None:
    (found,) = epochs(
        tiny.experiment(loss={"rate": levels}, schedule={"epochs": 1}), tiny.folders(tiny_camvid, tmp_path)
    )
    assert [one.quality for one in found.measured] == list(range(len(levels)))


@pytest.mark.parametrize(
    "model",
    [{"bottleneck": "none"}, {"over_parameters": 2}, {"decoder": "source_task"}, {"backbone": "mobilenet_edgetpu"}],
    ids=lambda model: next(iter(model.values())),
)
def test_other_networks_are_trained_by_the_same_code(
    tiny_camvid: Path, tmp_path: Path, model: dict[str, object]
) -> None:
    experiment = tiny.experiment(model=model, schedule={"epochs": 1})
    weights = tiny.backbone_weights(tmp_path / "backbone.safetensors", experiment.model.backbone)
    folders = Folders(data=tiny_camvid, backbone=weights, run=tmp_path / "run")
    (found,) = epochs(experiment, folders)
    assert math.isfinite(found.segmentation)
    assert (found.rate_bpp == 0) == (model.get("bottleneck") == "none")
    assert load_trained(experiment, folders.run, tiny.CLASSES).levels == len({one.quality for one in found.measured})


def test_gradient_that_is_not_finite_names_its_parameter(
    tiny_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(experiment: Experiment, classes: int) -> SplitSegmenter:
        network = build(experiment, classes)
        network.get_parameter(SPOILT).register_hook(lambda gradient: gradient * float("nan"))
        return network

    monkeypatch.setattr(training, "build", spoilt)
    folders = tiny.folders(tiny_camvid, tmp_path)
    with pytest.raises(TrainingDiverged, match=SPOILT):
        epochs(tiny.experiment(), folders)
    assert not (folders.run / checkpoint.FILE).exists()


def test_unknown_model_is_named(tiny_camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'vgg'.*mobilenet_v2"):
        epochs(tiny.experiment(model={"backbone": "vgg"}), tiny.folders(tiny_camvid, tmp_path))


def test_fewer_frames_than_a_batch_are_an_error(tiny_camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch"):
        epochs(tiny.experiment(schedule={"batch": 9}), tiny.folders(tiny_camvid, tmp_path))


def test_run_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_trained(tiny.experiment(), tmp_path, tiny.CLASSES)


def test_run_of_another_experiment_is_named(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match=str(tiny_run)) as caught:
        load_trained(tiny.experiment(model={"latents": 8}), tiny_run, tiny.CLASSES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"loss": {"rate": (9.0, 2.0, 0.5)}}, "loss.rate"),
        ({"data": {"without_drives": ("0006R0",)}}, "data.without_drives"),
    ],
    ids=["rate", "drives"],
)
def test_a_run_that_learned_otherwise_is_not_taken_for_this_experiments(
    tiny_run: Path, changed: dict[str, dict[str, object]], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"{tiny_run}: not of this experiment, it had another {named}"):
        load_trained(tiny.experiment(**changed), tiny_run, tiny.CLASSES)


def test_a_run_with_other_steps_is_still_of_this_experiment(tiny_run: Path) -> None:
    longer = tiny.experiment(schedule={"epochs": 7, "seed": 3})
    assert load_trained(longer, tiny_run, tiny.CLASSES).levels == tiny.LEVELS


def test_run_of_another_experiment_is_not_resumed(tiny_camvid: Path, tiny_run: Path, tmp_path: Path) -> None:
    folders = replace(tiny.folders(tiny_camvid, tmp_path), run=tiny_run)
    with pytest.raises(ConfigError, match=str(tiny_run)):
        epochs(tiny.experiment(loss={"lovasz": 0.1}), folders)


def test_run_of_other_frames_is_refused_before_anything_of_it_is_touched(tiny_camvid: Path, tmp_path: Path) -> None:
    teacher = light_meter(tmp_path / "teacher.onnx", tiny.CLASSES, bright=tiny.ROAD, dark=tiny.SKY)
    other_teacher = light_meter(tmp_path / "other.onnx", tiny.CLASSES, bright=tiny.CAR, dark=tiny.SKY)
    blind = tiny.experiment(loss={"labels": 0.0, "lovasz": 0.0}, teacher={"weight": 1.0}, schedule={"epochs": 1})
    others = tiny.camvid(tmp_path / "others")
    first = next((others / "images" / "train").iterdir())
    first.write_bytes((tiny_camvid / "images" / "val" / "0001TP_val0.png").read_bytes())
    folders = replace(tiny.folders(tiny_camvid, tmp_path / "home"), teachers=(teacher,))
    epochs(blind, folders)
    before = {path: path.read_bytes() for path in folders.run.iterdir()}
    for changed in ({"data": others}, {"teachers": (other_teacher,)}):
        with pytest.raises(ConfigError, match="it learned from other frames, labels or teachers"):
            epochs(blind, replace(folders, **changed))
        assert {path: path.read_bytes() for path in folders.run.iterdir()} == before
    epochs(blind, folders)


def progress(*measured: Measured) -> Progress:
    return Progress(
        epoch=3,
        epochs=70,
        segmentation=1.0,
        lovasz=0.5,
        distillation=0.25,
        squared_error=0.0,
        rate_bpp=0.123,
        gradient_norm=2.0,
        images_per_s=88.2,
        measured=measured,
    )


def test_line_of_the_log_names_epoch_and_terms() -> None:
    line = describe(progress())
    assert "\n" not in line
    terms = ("3/70", "labels 1.000", "lovasz 0.500", "teacher 0.250", "0.1230 bpp", "2.00", "88 images/s")
    assert all(part in line for part in terms)


def test_each_split_that_was_measured_has_a_line_of_its_levels() -> None:
    measured = (Measured("val", 0, 0.5, 0.1), Measured("val", 1, 0.625, 0.2), Measured("0006R0", 0, 0.25, 0.3))
    _, first, second = describe(progress(*measured)).splitlines()
    assert first.strip() == "val: mIoU 50.00 at 0.1000, 62.50 at 0.2000 bpp"
    assert second.strip() == "0006R0: mIoU 25.00 at 0.3000 bpp"
