"""Experiments are complete, checked and frozen; a wrong one is named in one sentence."""

from pathlib import Path

import pytest
import tiny
import yaml
from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.experiment import Experiment, load_decide_experiment, load_experiment, load_label_experiment

TRAIN = Path(__file__).parent.parent / "configs" / "train"


def written(folder: Path, changed: dict[str, dict[str, object]]) -> Path:
    """The tiny experiment as YAML, with keys changed, added, or (where None) left out."""
    settings = tiny.experiment().model_dump(mode="json")
    for section, values in changed.items():
        merged = {**settings[section], **values}
        settings[section] = {key: value for key, value in merged.items() if value is not None}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def complaint(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


LABEL_FILES = sorted(TRAIN.rglob("*-labels.yaml"))
DECIDE_FILES = sorted(TRAIN.rglob("*-decide.yaml"))
FILES = sorted(set(TRAIN.rglob("*.yaml")) - {*LABEL_FILES, *DECIDE_FILES})


def name_of(path: Path) -> str:
    """Its folders below configs/train and its own name: compare/task.yaml is compare-task."""
    return "-".join(path.relative_to(TRAIN).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_experiment_of_the_repository_is_valid_and_named_as_its_file(path: Path) -> None:
    assert load_experiment(path).name == name_of(path)


@pytest.mark.parametrize("path", DECIDE_FILES, ids=lambda path: path.stem)
def test_each_experiment_that_decides_is_valid_and_named_as_its_file(path: Path) -> None:
    assert load_decide_experiment(path).name == name_of(path)


def test_experiments_to_compare_differ_in_what_is_compared_alone() -> None:
    """The same data, teachers, losses and steps; `trained` is for those that hold the camera still.

    There are three comparisons: of systems, of the number of kernels, and of one rate with many. The image codec is in
    none: what stands behind its camera is.
    """
    compared: dict[str, list[Experiment]] = {"decoder": [], "sharing": [], "image": [], "": []}
    for path in (path for path in FILES if path.parent.name == "compare"):
        kind = "sharing" if path.stem.startswith(("shared", "single")) else path.stem
        compared[next(one for one in compared if kind.startswith(one))].append(load_experiment(path))
    rates = sorted((one.loss.rate for one in compared["sharing"]), key=len)
    assert all(len(rate) == 1 and rate[0] in rates[-1] for rate in rates[:-1])
    assert {one.model.decoder for one in compared[""]} == {"joint", "source_task", "task", "latent_task"}
    assert {one.model.over_parameters for one in compared["decoder"]} == {0, 3}
    (codec,), (behind,) = compared["image"], [one for one in compared[""] if one.model.decoder == "latent_task"]
    assert codec.loss.rate == behind.loss.rate
    for part in ("dataset", "split", "without_drives", "choose_by", "size"):
        assert getattr(codec.data, part) == getattr(behind.data, part)
    for part in ("bottleneck", "latents", "hyper_latents", "encoder_width", "prior_width"):
        assert getattr(codec.model, part) == getattr(behind.model, part)
    for group in compared.values():
        shared = [
            (
                one.data,
                one.teacher,
                one.loss.model_copy(update={"rate": ()}),
                one.schedule.model_copy(update={"trained": "all"}),
            )
            for one in group
        ]
        assert shared == [shared[0]] * len(group)


@pytest.mark.parametrize("path", LABEL_FILES, ids=lambda path: path.stem)
def test_each_experiment_on_labels_is_valid_and_names_the_experiment_of_its_network(path: Path) -> None:
    settings = load_label_experiment(path)
    assert settings.name == path.stem
    assert (path.parent / settings.network).is_file()


def test_an_experiment_on_labels_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(LABEL_FILES[0].read_text().replace("least_share: 0.001", "least_share: 1.5"))
    with pytest.raises(ConfigError, match=r"wrong\.yaml: least_share: "):
        load_label_experiment(path)


def test_repository_holds_an_experiment() -> None:
    assert list(TRAIN.glob("*.yaml"))


def test_experiment_survives_writing_and_reading(tmp_path: Path) -> None:
    assert load_experiment(written(tmp_path, {})) == tiny.experiment()


def test_there_are_as_many_levels_as_weights_of_the_rate() -> None:
    assert tiny.experiment(loss={"rate": (9.0, 3.0, 1.0, 0.3)}).loss.levels == 4


def test_levels_may_weigh_the_same() -> None:
    assert tiny.experiment(loss={"rate": (2.0, 2.0, 0.0)}).loss.rate == (2.0, 2.0, 0.0)


def test_another_seed_is_all_that_is_changed() -> None:
    experiment = tiny.experiment()
    changed = experiment.with_seed(7)
    assert changed == tiny.experiment(schedule={"seed": 7})
    assert experiment.schedule.seed == 1


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("loss", {"rate": [1.0, 2.0]}, "loss.rate: level 0 is the cheapest and weighs most, but 1.0 comes before 2.0"),
        ("data", {"scale": [2.0, 0.5]}, "data.scale: the smallest comes first, but 2.0 is above 0.5"),
        (
            "teacher",
            {"lovasz": 0.5, "weight": 0.0},
            "teacher: lovasz is 0.5, but weight 0: there is no teacher",
        ),
        (
            "teacher",
            {"translated": True, "weight": 0.0},
            "teacher: translated is true, but weight 0: there is no teacher",
        ),
        ("loss", {"pixels": 0.01}, "loss.pixels is for model.decoder image, and above 0 there"),
        ("model", {"decoder": "image"}, "loss.pixels is for model.decoder image, and above 0 there"),
    ],
)
def test_what_does_not_fit_together_is_said(tmp_path: Path, section: str, values: dict[str, object], said: str) -> None:
    assert complaint(written(tmp_path, {section: values})).endswith(said)


BLIND: dict[str, object] = {"labels": 0.0, "lovasz": 0.0, "pixels": 0.01}


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("loss", {**BLIND, "labels": 0.5}, "knows no classes, but loss.labels is 0.5; set it to 0"),
        ("loss", {**BLIND, "lovasz": 0.5}, "knows no classes, but loss.lovasz is 0.5; set it to 0"),
        ("teacher", {"weight": 1.0}, "knows no classes, but teacher.weight is 1.0; set it to 0"),
        ("data", {"balanced": 0.3}, "knows no classes, but data.balanced is 0.3; set it to 0"),
        ("data", {"mixed": 0.3}, "knows no classes, but data.mixed is 0.3; set it to 0"),
        ("model", {"decoder": "image", "bottleneck": "none"}, "set bottleneck hyperprior, trained all"),
        ("schedule", {"trained": "decoder"}, "set bottleneck hyperprior, trained all"),
        (
            "loss",
            {**BLIND, "rate": [1.0, 0.0]},
            "loss.rate is what errors are divided by; set it above 0 at each level",
        ),
    ],
)
def test_an_image_codec_learns_from_pictures_alone(
    tmp_path: Path, section: str, values: dict[str, object], said: str
) -> None:
    codec: dict[str, dict[str, object]] = {"model": {"decoder": "image"}, "loss": BLIND}
    assert complaint(written(tmp_path, codec | {section: values})).endswith(said)


@pytest.mark.parametrize("section", ["model", "data", "teacher", "loss", "schedule"])
def test_a_section_that_is_missing_is_named(tmp_path: Path, section: str) -> None:
    path = written(tmp_path, {})
    settings = yaml.safe_load(path.read_text())
    del settings[section]
    path.write_text(yaml.safe_dump(settings))
    assert f" {section}: " in complaint(path)


def test_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        tiny.experiment().schedule.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("schedule", {"epoch": 3}, "schedule.epoch"),
        ("schedule", {"epochs": 0}, "schedule.epochs"),
        ("schedule", {"lr": "fast"}, "schedule.lr"),
        ("schedule", {"lr": None}, "schedule.lr"),
        ("schedule", {"clip_norm": float("inf")}, "schedule.clip_norm"),
        ("schedule", {"average_decay": 1.0}, "schedule.average_decay"),
        ("schedule", {"rate_warmup": 1.5}, "schedule.rate_warmup"),
        ("schedule", {"seed": -1}, "schedule.seed"),
        ("schedule", {"trained": "camera"}, "schedule.trained"),
        ("data", {"crop": [32]}, "data.crop"),
        ("data", {"crop": [32, 40]}, "data.crop.1"),
        ("data", {"crop": [0, 32]}, "data.crop.0"),
        ("data", {"scale": [0.0, 1.0]}, "data.scale.0"),
        ("data", {"dataset": "kitti"}, "data.dataset"),
        ("data", {"class_weighting": 1.0}, "data.class_weighting"),
        ("data", {"balanced": 1.1}, "data.balanced"),
        ("data", {"unlabelled": -0.1}, "data.unlabelled"),
        ("teacher", {"scales": []}, "teacher.scales"),
        ("teacher", {"sharpness": 0.0}, "teacher.sharpness"),
        ("teacher", {"lovasz": -0.1}, "teacher.lovasz"),
        ("loss", {"labels": -1.0}, "loss.labels"),
        ("loss", {"rate": []}, "loss.rate"),
        ("loss", {"rate": [1.0, "a"]}, "loss.rate.1"),
        ("loss", {"rate": [1.0, -1.0]}, "loss.rate.1"),
        ("model", {"prior_width": 49}, "model.prior_width"),
        ("model", {"decoder_width": 5}, "model.decoder_width"),
        ("model", {"bottleneck": "narrow"}, "model.bottleneck"),
        ("model", {"over_parameters": 9}, "model.over_parameters"),
        ("model", {"dilations": [3, 0]}, "model.dilations.1"),
    ],
)
def test_wrong_key_is_named(tmp_path: Path, section: str, values: dict[str, object], named: str) -> None:
    assert f" {named}" in complaint(written(tmp_path, {section: values}))


@pytest.mark.parametrize("name", ["../elsewhere", "Camvid", "", "a b"])
def test_name_that_is_no_folder_name_is_rejected(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, {})
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "name": name}))
    assert " name: " in complaint(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert "cannot be read" in complaint(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"model: [", "not YAML"), (b"", "the file"), (b"- a\n", "the file"), (b"\xff\xfe\x00", "cannot be read")],
    ids=["broken", "empty", "a list", "not text"],
)
def test_file_that_is_no_experiment_is_rejected(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    assert said in complaint(path)
