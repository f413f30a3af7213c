"""What is learned from: frames with labels and without, soft labels; and what an experiment must not ask for."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest
import test_coco
import tiny
import torch
from graphs import light_meter
from torch import Tensor

from pipeline import coco, datasets, distillation, material
from pipeline.accuracy import VOID
from pipeline.batches import Resident, Streamed
from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.layouts import LAYOUTS
from pipeline.material import Folders, Material

CPU = torch.device("cpu")
FRAMES = 8  # of the tiny data set's split train


def prepare(data: Path, run: Path, experiment: Experiment | None = None, **folders: object) -> Material:
    run.mkdir(exist_ok=True)
    settings = experiment or tiny.experiment()
    return material.prepare(settings, Folders(data=data, backbone=None, run=run, **folders), CPU)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A graph that takes what is bright for road and what is dark for sky."""
    return light_meter(tmp_path / "teacher.onnx", tiny.CLASSES, bright=tiny.ROAD, dark=tiny.SKY)


TAUGHT = {"teacher": {"weight": 1.0}}
LABEL_FREE = {**TAUGHT, "loss": {"labels": 0.0, "lovasz": 0.0}}


def resident(made: Material) -> Resident:
    assert isinstance(made.batches.pool, Resident)
    return made.batches.pool


def test_frames_and_labels_are_those_of_the_split(tiny_camvid: Path, tmp_path: Path) -> None:
    made, data = prepare(tiny_camvid, tmp_path / "run"), datasets.camvid(tiny_camvid, "train")
    pool = resident(made)
    assert torch.equal(pool.images, torch.from_numpy(np.stack(data.images)).permute(0, 3, 1, 2))
    assert torch.equal(pool.labels, torch.from_numpy(np.stack(data.labels)))
    assert pool.soft is None
    assert made.batches.labelled == FRAMES


def test_batches_are_those_of_the_settings(tiny_camvid: Path, tmp_path: Path) -> None:
    experiment = tiny.experiment(
        data={"crop": (48, 64), "balanced": 0.3, "mixed": 0.2, "texture": 0.1, "scale": (0.5, 1.0), "jitter": 0.4},
        schedule={"batch": 3, "seed": 9},
    )
    batches = prepare(tiny_camvid, tmp_path / "run", experiment).batches
    assert (batches.crop, batches.balanced, batches.mixed, batches.texture) == ((48, 64), 0.3, 0.2, 0.1)
    assert (batches.size, batches.seed, batches.levels, batches.classes) == (3, 9, tiny.LEVELS, tiny.CLASSES)
    augmentation = batches.augmentation
    assert (augmentation.scale_min, augmentation.scale_max, augmentation.jitter) == (0.5, 1.0, 0.4)
    assert batches.at(0).images.shape == (3, 3, 48, 64)


def test_what_is_measured_on_is_held_by_name(tiny_camvid: Path, tmp_path: Path) -> None:
    experiment = tiny.experiment(
        data={"without_drives": ("0006R0",), "choose_by": ("0006R0", "val")}, schedule={"batch": 2}
    )
    made = prepare(tiny_camvid, tmp_path / "run", experiment)
    assert {name: len(frames) for name, frames in made.held.items()} == {"0006R0": 4, "val": 2}
    learned = datasets.camvid(tiny_camvid, "train", without_drives=("0006R0",))
    assert torch.equal(resident(made).labels, torch.from_numpy(np.stack(learned.labels)))


def test_class_weights_are_those_of_the_labels_void_apart(tiny_camvid: Path, tmp_path: Path) -> None:
    labels = np.stack(datasets.camvid(tiny_camvid, "train").labels)
    counts = np.array([(labels == k).sum() for k in range(tiny.CLASSES)])
    expected = datasets.class_weights(counts / counts.sum(), strength=1.12)
    assert prepare(tiny_camvid, tmp_path / "run").class_weights.numpy() == pytest.approx(expected)


def test_statistics_are_taken_from_whole_frames_of_a_size_that_16_divides(tiny_camvid: Path, tmp_path: Path) -> None:
    found = prepare(tiny_camvid, tmp_path / "run").calibration
    assert found.shape == (FRAMES, 3, tiny.HEIGHT, tiny.WIDTH)
    assert found.dtype == torch.float32
    assert found.max() > 1


def test_soft_labels_lie_beside_each_frame_at_half_size(tiny_camvid: Path, tmp_path: Path, teacher: Path) -> None:
    made = prepare(tiny_camvid, tmp_path / "run", tiny.experiment(**TAUGHT), teachers=(teacher,))
    soft = resident(made).soft
    assert soft is not None
    assert soft.shape == (FRAMES, tiny.CLASSES, tiny.HEIGHT // 2, tiny.WIDTH // 2)
    assert (tmp_path / "run" / "soft_labels.npy").is_file()
    described, images = datasets.camvid_classes(tiny_camvid), datasets.camvid(tiny_camvid, "train").images
    asked = distillation.load_teachers(
        [teacher], size=(tiny.WIDTH, tiny.HEIGHT), mirrored=False, described=described, device=CPU
    )
    expected = torch.from_numpy(np.concatenate(list(distillation.soft_labels(asked, images)))).permute(0, 3, 1, 2)
    assert torch.equal(soft, expected)
    assert set(soft.argmax(1).unique().tolist()) >= {tiny.ROAD, tiny.SKY}
    assert (resident(made).labels != VOID).any()  # the labels count too


def test_teachers_can_be_put_into_the_words_of_the_labels(tiny_camvid: Path, tmp_path: Path, teacher: Path) -> None:
    said = tiny.experiment(teacher={"weight": 1.0, "translated": True})
    pool = resident(prepare(tiny_camvid, tmp_path / "run", said, teachers=(teacher,)))
    plain = resident(prepare(tiny_camvid, tmp_path / "plain", tiny.experiment(**TAUGHT), teachers=(teacher,)))
    assert pool.soft is not None
    assert plain.soft is not None
    labels = pool.labels[:, 1::2, 1::2]
    agreed, before = ((soft.argmax(1) == labels).float().mean() for soft in (pool.soft, plain.soft))
    assert agreed > before + 0.2, "a teacher of two words learns the others"


def test_an_image_codec_is_not_shown_frames_filled_up_with_grey(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.dataset coco: frames are filled up with grey"):
        streaming(tmp_path, **IMAGE_CODEC)


def test_labels_that_must_not_be_looked_at_translate_nothing(tiny_camvid: Path, tmp_path: Path, teacher: Path) -> None:
    wrong = tiny.experiment(teacher={"weight": 1.0, "translated": True}, loss={"labels": 0.0, "lovasz": 0.0})
    with pytest.raises(ConfigError, match="translated learns from labels"):
        prepare(tiny_camvid, tmp_path / "run", wrong, teachers=(teacher,))


def test_at_scale_one_a_view_is_a_frame_at_the_size_asked_for(tiny_camvid: Path, tmp_path: Path) -> None:
    size = (2 * tiny.HEIGHT, 2 * tiny.WIDTH)
    exact = {"size": size, "crop": size, "scale": (1.0, 1.0), "jitter": 0.0, "balanced": 0.0}
    made = prepare(tiny_camvid, tmp_path / "run", tiny.experiment(data=exact))
    (view, *_) = made.batches.at(0).labels
    whole = resident(made).labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert any(torch.equal(view, one) or torch.equal(view, one.flip(1)) for one in whole)


def test_soft_labels_can_be_kept_for_several_runs(tiny_camvid: Path, tmp_path: Path, teacher: Path) -> None:
    stored, made_at = tmp_path / "cache" / "soft_labels.npy", []
    for run in ("one", "two"):
        folders = {"teachers": (teacher,), "cache": tmp_path / "cache"}
        prepare(tiny_camvid, tmp_path / run, tiny.experiment(**TAUGHT), **folders)
        made_at.append(stored.stat().st_mtime_ns)
        assert not (tmp_path / run / "soft_labels.npy").exists()
    assert made_at[0] == made_at[1]


def unlabelled(*sources: Path, data: Path, run: Path, teacher: Path, **changed: dict[str, object]) -> Material:
    experiment = tiny.experiment(**{**TAUGHT, **changed, "data": {"unlabelled": 0.25}})
    return prepare(data, run, experiment, teachers=(teacher,), unlabelled=sources)


def test_frames_without_labels_lie_behind_the_others(tiny_camvid: Path, tmp_path: Path, teacher: Path) -> None:
    folder = tiny.pictures(tmp_path / "more", 3)
    pool = resident(made := unlabelled(folder, data=tiny_camvid, run=tmp_path / "run", teacher=teacher))
    assert len(pool) == FRAMES + 3
    assert torch.equal(pool.images[FRAMES:], tiny.images(tiny.scenes(3, seed=7)).byte())
    assert (pool.labels[FRAMES:] == VOID).all()
    assert pool.soft is not None
    assert len(pool.soft) == len(pool)
    assert (made.batches.labelled, made.batches.unlabelled) == (FRAMES, 1)


def test_frames_without_labels_stay_in_the_teachers_words(tiny_camvid: Path, tmp_path: Path, teacher: Path) -> None:
    folder, pools = tiny.pictures(tmp_path / "more", 3), []
    for translated in (False, True):
        said = tiny.experiment(teacher={"weight": 1.0, "translated": translated}, data={"unlabelled": 0.25})
        run = tmp_path / f"run-{translated}"
        pools.append(resident(prepare(tiny_camvid, run, said, teachers=(teacher,), unlabelled=(folder,))))
    (plain, put), labelled = (pool.soft for pool in pools), slice(None, FRAMES)
    assert plain is not None and put is not None
    assert torch.equal(plain[FRAMES:], put[FRAMES:])
    assert not torch.equal(plain[labelled], put[labelled])


def test_frames_without_labels_change_no_class_weight(tiny_camvid: Path, tmp_path: Path, teacher: Path) -> None:
    plain = prepare(tiny_camvid, tmp_path / "plain").class_weights
    folder = tiny.pictures(tmp_path / "more", 3)
    found = unlabelled(folder, data=tiny_camvid, run=tmp_path / "run", teacher=teacher).class_weights
    assert torch.equal(found, plain)


@pytest.mark.parametrize("shape", [(128, 288), (160, 192), (32, 48)], ids=["wider", "higher", "smaller"])
def test_frames_of_another_shape_are_cut_in_the_middle_and_brought_to_size(
    tiny_camvid: Path, tmp_path: Path, teacher: Path, shape: tuple[int, int]
) -> None:
    """A red frame with a blue square in its middle, half as large as what is left of it."""
    picture = np.full((*shape, 3), (0, 0, 255), np.uint8)
    scale = min(shape[0] / tiny.HEIGHT, shape[1] / tiny.WIDTH)
    tall, wide = (int(scale * side / 2) for side in (tiny.HEIGHT, tiny.WIDTH))
    top, left = (shape[0] - tall) // 2, (shape[1] - wide) // 2
    picture[top : top + tall, left : left + wide] = (255, 0, 0)
    (tmp_path / "more").mkdir()
    assert cv2.imwrite(str(tmp_path / "more" / "a.png"), picture)
    pool = resident(unlabelled(tmp_path / "more", data=tiny_camvid, run=tmp_path / "run", teacher=teacher))
    expected = torch.zeros(3, tiny.HEIGHT, tiny.WIDTH)
    expected[0] = 255
    rows, columns = slice(tiny.HEIGHT // 4, -tiny.HEIGHT // 4), slice(tiny.WIDTH // 4, -tiny.WIDTH // 4)
    expected[:, rows, columns] = torch.tensor([0, 0, 255.0])[:, None, None]
    assert (pool.images[FRAMES].float() - expected).abs().mean() < 2


def test_a_clip_gives_two_frames_a_second(tiny_camvid: Path, tmp_path: Path, teacher: Path) -> None:
    clip = clips.write_clip(tmp_path / "clip.mp4", frames=25, fps=10, width=96, height=64)
    folder = tiny.pictures(tmp_path / "more", 2)
    pool = resident(unlabelled(clip, folder, data=tiny_camvid, run=tmp_path / "run", teacher=teacher))
    shown = [clips.number_of(image.permute(1, 2, 0).numpy()) for image in pool.images[FRAMES:-2]]
    assert shown == [0, 5, 10, 15, 20]
    assert torch.equal(pool.images[-2:], tiny.images(tiny.scenes(2, seed=7)).byte())


def test_a_folder_in_which_nothing_is_to_be_seen_is_named(tiny_camvid: Path, tmp_path: Path, teacher: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: no images and no clip"):
        unlabelled(tmp_path / "empty", data=tiny_camvid, run=tmp_path / "run", teacher=teacher)


def drawn(made: Material) -> list[Tensor]:
    batches = [made.batches.at(step) for step in range(4)]
    return [part for one in batches for part in (one.images, one.labels, one.soft, one.quality) if part is not None]


def test_label_free_material_does_not_depend_on_the_labels(tiny_camvid: Path, tmp_path: Path, teacher: Path) -> None:
    experiment = tiny.experiment(**LABEL_FREE, data={"balanced": 0.5, "mixed": 0.5, "texture": 0.1})
    one = prepare(tiny_camvid, tmp_path / "one", experiment, teachers=(teacher,))
    other_data = tiny.with_other_labels(tiny_camvid, tmp_path / "data")
    other = prepare(other_data, tmp_path / "other", experiment, teachers=(teacher,))
    assert torch.equal(one.class_weights, other.class_weights)
    assert all(torch.equal(a, b) for a, b in zip(drawn(one), drawn(other), strict=True))
    assert (resident(one).labels == VOID).all()
    with_labels = tiny.experiment(**TAUGHT, data={"balanced": 0.5, "mixed": 0.5, "texture": 0.1})
    seen = [prepare(d, tmp_path / d.name, with_labels, teachers=(teacher,)) for d in (tiny_camvid, other_data)]
    assert not torch.equal(seen[0].class_weights, seen[1].class_weights)


IMAGE_CODEC: dict[str, dict[str, object]] = {
    "model": {"decoder": "image"},
    "loss": {"labels": 0.0, "lovasz": 0.0, "pixels": 0.01},
}


def test_an_image_codecs_material_does_not_depend_on_the_labels(tiny_camvid: Path, tmp_path: Path) -> None:
    experiment = tiny.experiment(**IMAGE_CODEC)
    other_data = tiny.with_other_labels(tiny_camvid, tmp_path / "data")
    one, other = (prepare(data, tmp_path / "run", experiment) for data in (tiny_camvid, other_data))
    assert torch.equal(one.class_weights, other.class_weights)
    assert all(torch.equal(a, b) for a, b in zip(drawn(one), drawn(other), strict=True))
    assert (resident(one).labels == VOID).all()
    assert one.batches.pixels.rows == ()


def test_label_free_views_are_balanced_by_what_the_teacher_sees(
    tiny_camvid: Path, tmp_path: Path, teacher: Path
) -> None:
    experiment = tiny.experiment(**LABEL_FREE, data={"balanced": 1.0})
    made = prepare(tiny_camvid, tmp_path / "run", experiment, teachers=(teacher,))
    soft = resident(made).soft
    assert soft is not None
    counts = soft.sum((0, 2, 3), dtype=torch.int64).numpy()
    expected = datasets.class_weights(counts / counts.sum(), strength=1.12)
    assert made.class_weights.numpy() == pytest.approx(expected)
    assert len(made.batches.pixels.rows) == len(soft[:FRAMES].argmax(1).unique())


def streaming(tmp_path: Path, *, images: int = 3, columns: int = 30, **changed: dict[str, object]) -> Material:
    """Of a small COCO, whose frames stay on disk."""
    crowds = (test_coco.crowd(i + 1, test_coco.CAR, columns) for i in range(images))
    root = test_coco.write(tmp_path / "coco", "train", *crowds, images=images)
    data = {"dataset": "coco", "choose_by": (), **changed.pop("data", {})}
    return prepare(root, tmp_path / "run", tiny.experiment(data=data, schedule={"batch": 2}, **changed))


def test_frames_on_disk_are_brought_to_one_size_and_read_again_and_again(tmp_path: Path) -> None:
    made = streaming(tmp_path)
    assert isinstance(made.batches.pool, Streamed)
    assert (made.batches.pool.size, len(made.batches.pool)) == (LAYOUTS["coco"].size, 3)
    batch = made.batches.at(0)
    assert batch.images.shape == (2, 3, 32, 48)
    assert batch.soft is None
    classes = len(LAYOUTS["coco"].classes(tmp_path).classes)
    assert made.class_weights.shape == (classes,)
    labels = np.stack([made.batches.pool.source.read(i).labels for i in range(3)])
    counts = np.array([(labels == k).sum() for k in range(classes)])
    expected = datasets.class_weights(counts / counts.sum(), strength=1.12)
    assert made.class_weights.numpy() == pytest.approx(expected, rel=1e-5)


def test_frames_on_disk_may_be_brought_to_another_size_than_that_of_their_layout(tmp_path: Path) -> None:
    made = streaming(tmp_path, data={"size": (64, 96), "choose_by": ("train",)})
    assert made.size == made.batches.pool.size == made.batches.frame_size == (64, 96)
    assert made.held["train"].read(0).labels.shape == (60, 80)  # measured on as they are


@pytest.mark.parametrize(
    "changed",
    [{"teacher": {"weight": 1.0}}, {"data": {"balanced": 0.5}}, {"data": {"unlabelled": 0.5}}],
    ids=["teacher", "balanced", "unlabelled"],
)
def test_what_needs_all_frames_in_memory_is_refused_for_those_on_disk(
    tmp_path: Path, changed: dict[str, dict[str, object]]
) -> None:
    with pytest.raises(ConfigError, match=r"data\.dataset coco: teacher\.weight, balanced and unlabelled must be 0"):
        streaming(tmp_path, **changed)


def test_frames_are_told_from_others_by_what_they_show_and_how_many_they_are(tiny_camvid: Path, tmp_path: Path) -> None:
    splits = ("train", "trainval", "test", "train", "0001TP")
    trained = [tiny.experiment(data={"split": split}, schedule={"batch": 2}) for split in splits]
    told = [prepare(tiny_camvid, tmp_path / "run", experiment).learned for experiment in trained]
    assert told[0] == told[3]
    assert len(set(told)) == 4


def test_other_frames_without_labels_and_other_teachers_are_told_too(
    tiny_camvid: Path, tmp_path: Path, teacher: Path
) -> None:
    said = tiny.experiment(**TAUGHT, data={"unlabelled": 0.5})
    other = light_meter(tmp_path / "other.onnx", tiny.CLASSES, bright=tiny.CAR, dark=tiny.SKY)
    few, more = tiny.pictures(tmp_path / "few", 4), tiny.pictures(tmp_path / "more", 5)
    told = [
        prepare(tiny_camvid, tmp_path / "run", said, teachers=(by,), unlabelled=(shown,)).learned
        for by, shown in ((teacher, few), (teacher, more), (other, few), (teacher, few))
    ]
    assert len(set(told)) == 3
    assert told[0] == told[3]


def test_other_labels_are_told_too_also_of_frames_on_disk(tiny_camvid: Path, tmp_path: Path) -> None:
    other_data = tiny.with_other_labels(tiny_camvid, tmp_path / "data")
    one, other = (prepare(data, tmp_path / "run").learned for data in (tiny_camvid, other_data))
    assert one != other
    told = [streaming(tmp_path / str(i), columns=columns).learned for i, columns in enumerate((30, 31, 30))]
    assert told[0] != told[1]
    assert told[0] == told[2]


def test_of_frames_on_disk_sixteen_are_read_beside_those_whose_classes_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()

    def counted(path: Path) -> np.ndarray:
        read[path.name] += 1
        return datasets.read_image(path)

    monkeypatch.setattr(coco, "read_image", counted)
    made = streaming(tmp_path, images=31)
    assert len(made.calibration) == 16
    assert sorted(read.values()) == [1] * 15 + [2] * 16


def test_labels_that_are_no_class_are_named(tiny_camvid: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_camvid, tmp_path / "data")
    strange = np.full((tiny.HEIGHT, tiny.WIDTH), tiny.CLASSES + 3, np.uint8)
    assert cv2.imwrite(str(next((data / "labels" / "train").iterdir())), strange)
    with pytest.raises(ConfigError, match="labels: 14 is none of 11 classes"):
        prepare(data, tmp_path / "run")


def test_frames_of_several_sizes_are_refused(tiny_camvid: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_camvid, tmp_path / "data")
    for kind in ("images", "labels"):
        assert cv2.imwrite(str(data / kind / "train" / "0001TP_train2.png"), np.zeros((32, 48), np.uint8))
    with pytest.raises(ConfigError, match="frames of 48x32 and 96x64"):
        prepare(data, tmp_path / "run")


@pytest.mark.parametrize("dataset", ["camvid", "coco"])
def test_nothing_to_learn_from_is_an_error(tiny_camvid: Path, tmp_path: Path, dataset: str) -> None:
    nothing = {"labels": 0.0, "lovasz": 0.0}
    with pytest.raises(ConfigError, match="nothing to learn from"):
        if dataset == "coco":
            streaming(tmp_path, loss=nothing)
        else:
            prepare(tiny_camvid, tmp_path / "run", tiny.experiment(loss=nothing))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schedule": {"batch": 9}}, r"schedule\.batch 9: only 8 frames"),
        ({"data": {"split": "nightly"}}, "'nightly'"),
        ({"data": {"choose_by": ("0099XX",)}}, "'0099XX'"),
        ({"teacher": {"weight": 0.5}}, "--teacher"),
        ({"data": {"unlabelled": 0.25}, "teacher": {"weight": 1.0}}, "--unlabelled"),
        ({"data": {"unlabelled": 0.25}}, r"teacher\.weight is 0"),
        ({"data": {"unlabelled": 1.0}, "teacher": {"weight": 1.0}}, r"data\.unlabelled 1\.0: no frame"),
    ],
    ids=["batch", "split", "held out", "no teacher", "no frames", "no one to ask", "no labelled frame"],
)
def test_what_cannot_be_is_said_in_one_sentence(
    tiny_camvid: Path, tmp_path: Path, changed: dict[str, dict[str, object]], said: str
) -> None:
    sources = () if said == "--unlabelled" else (tiny.pictures(tmp_path / "more", 1),)
    with pytest.raises(ConfigError, match=said) as caught:
        prepare(tiny_camvid, tmp_path / "run", tiny.experiment(**changed), unlabelled=sources)
    assert "\n" not in str(caught.value)


def test_only_labelled_frames_acquaint_the_teacher(
    tiny_camvid: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = []

    class Polite:
        made_of, device = "polite", CPU

        def probabilities(self, images: Tensor) -> Tensor:
            return torch.full((len(images), tiny.CLASSES, *images.shape[2:]), 1 / tiny.CLASSES)

        def acquainted(self, images: list[np.ndarray], *, share: float) -> "Polite":
            met.append((len(images), share))
            return self

    monkeypatch.setattr(material.distillation, "load_teachers", lambda *_, **__: Polite())
    experiment = tiny.experiment(teacher={"weight": 1.0, "acquaintance": 0.4}, data={"unlabelled": 0.25})
    folders = Folders(data=tiny_camvid, backbone=None, run=tmp_path, teachers=(teacher,))
    made = material.prepare(experiment, replace(folders, unlabelled=(tiny.pictures(tmp_path / "more", 2),)), CPU)
    assert met == [(FRAMES, 0.4)]
    assert len(made.batches.pool) == FRAMES + 2
