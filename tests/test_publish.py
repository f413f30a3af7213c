"""From a finished run to a bundle whose manifest says what was measured, level by level."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_layouts
import tiny
import torch

from pipeline import publish as module
from pipeline.bundle import Bundle, QualityLevel, load_bundle
from pipeline.class_offsets import as_taught, offsets_of
from pipeline.datasets import Labelled, camvid
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluate
from pipeline.export import Description
from pipeline.layouts import LAYOUTS
from pipeline.models.split_segmenter import levels_like
from pipeline.publish import Origin, mark_default, publish, publish_whole
from pipeline.refining import refine_and_measure
from pipeline.restoring import class_offsets
from pipeline.runtime import open_session
from pipeline.training import load_trained, train

COMMAND = "maskcast export --run tiny"


def origin(data: Path, run: Path) -> Origin:
    return Origin(tiny.experiment(), data=data, run=run, licence="CC0-1.0", command=COMMAND)


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What was said while it was made."""
    return []


@pytest.fixture(scope="module")
def published(tiny_camvid: Path, tiny_run: Path, told: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("published") / "bundle"
    return publish(origin(tiny_camvid, tiny_run), folder, split="test", effort=tiny.SHORT, tell=told.append)


@pytest.mark.parametrize("level", range(tiny.LEVELS))
def test_manifest_claims_what_is_measured_on_the_split(published: Bundle, tiny_camvid: Path, level: int) -> None:
    claimed = published.manifest.quality_levels[level]
    measured = evaluate(published, camvid(tiny_camvid, "test"), split="test", engine="onnxruntime", quality=level)
    assert claimed.index == level
    assert claimed.rate_bpp == pytest.approx(measured.rate_bpp)
    assert claimed.miou == pytest.approx(measured.miou)
    assert claimed.rate_bpp > 0


def test_every_level_is_claimed_and_one_is_the_default(published: Bundle, told: list[str]) -> None:
    levels = published.manifest.quality_levels
    assert [level.index for level in levels] == list(range(tiny.LEVELS))
    assert [level.default for level in levels].count(True) == 1
    assert list(levels) == mark_default(levels, [level.rate_bpp for level in levels])
    steps = [f"quality levels {done}: {count}" for done in ("fitted", "measured") for count in (1, 2, 3)]
    assert told == steps


def test_manifest_describes_run_and_data(published: Bundle) -> None:
    manifest = published.manifest
    assert (manifest.name, manifest.licence) == ("tiny", "CC0-1.0")
    assert manifest.created_by == COMMAND
    assert manifest.dataset == "camvid (train); rates and mIoU measured on test"
    assert (manifest.width, manifest.height) == (tiny.WIDTH, tiny.HEIGHT)
    assert [(one.name, one.colour) for one in manifest.classes] == list(tiny.COLOURS.items())


def test_manifest_says_how_the_network_is_built_again(published: Bundle, tiny_run: Path) -> None:
    network = published.manifest.network
    assert network is not None
    experiment = tiny.experiment(model=network.model, loss={"rate": network.rate})
    assert experiment == tiny.experiment()
    assert network.from_cityscapes == tiny.FROM_CITYSCAPES


def test_decoder_adds_the_offsets_that_were_fitted_level_by_level(
    published: Bundle, tiny_camvid: Path, tiny_run: Path
) -> None:
    network = load_trained(tiny.experiment(), tiny_run, tiny.CLASSES)
    offsets = offsets_of(network, camvid(tiny_camvid, "train"))
    assert np.allclose(class_offsets(published), offsets, atol=1e-5)
    rows, columns = published.latent_size
    y_hat = np.random.default_rng(0).normal(0, 1, (1, published.tables.latents, rows, columns)).astype(np.float32)
    for level in range(tiny.LEVELS):
        quality = np.array([level], np.int64)
        (logits,) = open_session(published.graph("decode"), engine="onnxruntime").run(y_hat, quality)
        with torch.no_grad():
            plain = network.decoder(network.prior.gains.unscale(torch.from_numpy(y_hat), torch.from_numpy(quality)))
        added = (logits - plain.numpy()).mean((0, 2, 3))
        assert np.allclose(added, offsets[level], atol=0.02)


def label_free(data: Path, run: Path) -> Origin:
    """The run, as if it had looked at no labels."""
    blind = tiny.experiment(loss={"labels": 0.0, "lovasz": 0.0}, teacher={"weight": 1.0})
    return replace(origin(data, run), experiment=blind)


def test_offsets_of_a_run_without_labels_are_by_what_its_teachers_said(
    tiny_camvid: Path, tiny_run: Path, tmp_path: Path
) -> None:
    network, data = load_trained(tiny.experiment(), tiny_run, tiny.CLASSES), camvid(tiny_camvid, "train")
    void = replace(data, labels=tuple(np.full_like(labels, tiny.VOID) for labels in data.labels))
    blind = replace(label_free(tiny_camvid, tmp_path / "run"), cache=tmp_path / "cache")
    one_hot = np.eye(tiny.CLASSES, dtype=np.uint8)
    opinions = np.stack([one_hot[labels[::2, ::2] % tiny.CLASSES] for labels in data.labels])
    of_frames_beside = opinions[::-1]
    for folder, note in (("run", "learned_soft_labels.txt"), ("cache", "soft_labels.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / note).write_text("of these\n")
    np.save(tmp_path / "cache" / "soft_labels.npy", np.concatenate([opinions, of_frames_beside]))
    offsets = module._offsets(blind, network, void)
    assert np.array_equal(offsets, offsets_of(network, as_taught(data, opinions)))
    assert offsets.any()


def test_a_run_without_labels_needs_its_soft_labels(tiny_camvid: Path, tiny_run: Path, tmp_path: Path) -> None:
    network = load_trained(tiny.experiment(), tiny_run, tiny.CLASSES)
    with pytest.raises(ConfigError, match="soft_labels"):
        module._offsets(label_free(tiny_camvid, tmp_path), network, camvid(tiny_camvid, "train"))


def test_published_bundle_loads(published: Bundle) -> None:
    assert load_bundle(published.path).manifest == published.manifest


@torch.no_grad()
def test_graph_holds_the_averaged_weights_of_the_run(published: Bundle, tiny_camvid: Path, tiny_run: Path) -> None:
    network = load_trained(tiny.experiment(), tiny_run, tiny.CLASSES)
    image = camvid(tiny_camvid, "test").images[0]
    y, _ = open_session(published.graph("encode"), engine="onnxruntime").run(image[None], np.zeros(1, np.int64))
    shown = tiny.images([tiny.Scene(image, image)])
    own = network.prior.analyse(network.encode(shown), levels_like(shown, 0))[0].numpy()
    assert np.abs(y - own).max() < 0.05 * np.abs(own).max()


class Enough(Exception):
    """Ends a publication before its bundle is made."""


def asked_of_export(
    monkeypatch: pytest.MonkeyPatch, made: Origin, folder: Path, *, split: str
) -> tuple[Description, list[np.ndarray]]:
    """What export is told, and the frames that it is to fit the tables to."""
    seen = []

    def look(_: object, described: Description, __: Path, *, frames: list[np.ndarray], **___: object) -> None:
        seen.append((described, list(frames)))
        raise Enough

    def fit(_: object, data: Labelled) -> None:
        fitted_to.append(data)

    fitted_to: list[Labelled] = []
    monkeypatch.setattr(module, "export", look)
    monkeypatch.setattr(module, "offsets_of", fit)
    monkeypatch.setattr(module, "load_trained", lambda *_: None)
    with pytest.raises(Enough):
        publish(made, folder, split=split)
    (described, frames), (data,) = seen[0], fitted_to
    assert all(np.array_equal(one, other) for one, other in zip(frames, data.images, strict=True))
    return described, frames


def test_tables_are_fitted_to_frames_of_training_alone_and_held_out_drives_are_said(
    tiny_camvid: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = tiny.experiment(data={"without_drives": ("0006R0",)})
    made = replace(origin(tiny_camvid, tiny_run), experiment=held_out)
    described, frames = asked_of_export(monkeypatch, made, tmp_path / "bundle", split="0006R0")
    expected = camvid(tiny_camvid, "train", without_drives=("0006R0",)).images
    assert len(frames) == len(expected) == 4
    assert all(np.array_equal(one, other) for one, other in zip(frames, expected, strict=True))
    assert described.dataset == "camvid (train, without 0006R0); rates and mIoU measured on 0006R0"


def levels(*figures: tuple[float, float]) -> list[QualityLevel]:
    return [QualityLevel(index=i, rate_bpp=rate, miou=miou, default=False) for i, (rate, miou) in enumerate(figures)]


@pytest.mark.parametrize(
    ("figures", "chosen"),
    [
        ([(0.01, 0.6), (0.03, 0.65), (0.2, 0.7)], 1),
        ([(0.01, 0.66), (0.03, 0.65)], 0),
        ([(0.05, 0.66), (0.01, 0.65)], 0),
        ([(0.1, 0.7), (0.06, 0.6)], 1),
        ([(0.2, 0.5)], 0),
    ],
    ids=["best of the cheap", "cheaper and better", "just cheap enough", "none cheap", "alone"],
)
def test_default_is_the_most_accurate_of_the_cheap_levels(figures: list[tuple[float, float]], chosen: int) -> None:
    marked = mark_default(levels(*figures), [rate_bpp for rate_bpp, _ in figures])
    assert [level.index for level in marked if level.default] == [chosen]
    assert [(level.rate_bpp, level.miou) for level in marked] == figures


def test_a_larger_bundle_has_the_default_that_is_cheap_for_the_frames_it_is_given() -> None:
    marked = mark_default(levels((0.01, 0.6), (0.03, 0.65), (0.04, 0.7)), [0.0144, 0.0432, 0.0576])
    assert [level.index for level in marked if level.default] == [1]


def test_a_network_may_take_frames_larger_than_they_are(tiny_camvid: Path, tmp_path: Path) -> None:
    large = (2 * tiny.HEIGHT, 2 * tiny.WIDTH)
    experiment = tiny.experiment(data={"size": large}, schedule={"epochs": 1})
    folders = tiny.folders(tiny_camvid, tmp_path / "home")
    list(train(experiment, folders))
    made = replace(origin(tiny_camvid, folders.run), experiment=experiment)
    bundle = publish(made, tmp_path / "bundle", split="test", effort=tiny.SHORT)
    assert (bundle.manifest.height, bundle.manifest.width) == large
    found = evaluate(bundle, camvid(tiny_camvid, "test"), split="test", engine="onnxruntime", quality=0)
    assert found.rate_bpp == pytest.approx(4 * bundle.manifest.quality_levels[0].rate_bpp), (
        "of pixels four times as many"
    )


def test_a_network_without_bottleneck_is_published_whole(tiny_camvid: Path, tmp_path: Path) -> None:
    experiment = tiny.experiment(model={"bottleneck": "none"}, loss={"rate": (0.0,)}, schedule={"epochs": 1})
    folders = tiny.folders(tiny_camvid, tmp_path / "home")
    list(train(experiment, folders))
    made = replace(origin(tiny_camvid, folders.run), experiment=experiment)
    publish_whole(made, tmp_path / "whole.onnx")
    image = camvid(tiny_camvid, "test").images[0]
    (logits,) = open_session(tmp_path / "whole.onnx", engine="onnxruntime").run(image[None])
    assert logits.shape == (1, tiny.CLASSES, tiny.HEIGHT // 4, tiny.WIDTH // 4)
    with pytest.raises(ConfigError, match="--whole"):
        publish(made, tmp_path / "bundle", split="test")
    assert not (tmp_path / "bundle").exists()


def test_run_that_is_not_there_leaves_no_bundle(tiny_camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none"):
        publish(origin(tiny_camvid, tmp_path / "none"), tmp_path / "bundle", split="test")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["cityscapes", "coco"])
def test_a_run_on_frames_that_stay_on_disk_becomes_a_bundle_like_any_other(tmp_path: Path, name: str) -> None:
    made = {"cityscapes": test_layouts.cityscapes, "coco": test_layouts.coco}[name](tmp_path / name)
    experiment = tiny.experiment(
        data={"dataset": name, "size": (64, 96), "choose_by": ("train",)}, schedule={"epochs": 1, "batch": 2}
    )
    folders = tiny.folders(made, tmp_path / "home")
    list(train(experiment, folders))
    of = Origin(experiment, data=made, run=folders.run, licence="CC0-1.0", command=COMMAND)
    bundle = publish(of, tmp_path / "bundle", split="train", effort=tiny.SHORT)
    layout = LAYOUTS[name]
    assert (bundle.manifest.height, bundle.manifest.width) == (64, 96)
    assert [one.name for one in bundle.manifest.classes] == [one.name for one in layout.classes(made).classes]
    assert bundle.manifest.dataset.startswith(f"{name} (train)")
    data = layout.frames(made, "train")
    for level in bundle.manifest.quality_levels:
        found = evaluate(bundle, data, split="train", engine="onnxruntime", quality=level.index)
        assert level.miou == pytest.approx(found.miou)
        assert level.rate_bpp == pytest.approx(8 * found.frame_bytes / (64 * 96))
        assert found.rate_bpp == pytest.approx(8 * found.frame_bytes / data.read(0).labels.size)
    measured = [evaluate(bundle, data, split="train", engine="onnxruntime", quality=i) for i in range(tiny.LEVELS)]
    marked = mark_default(bundle.manifest.quality_levels, [one.rate_bpp for one in measured])
    assert bundle.manifest.quality_levels == tuple(marked)
    refined = refine_and_measure(bundle, data, data, tmp_path / "refined", split="train").bundle
    assert len(refined.manifest.quality_levels) == tiny.LEVELS
