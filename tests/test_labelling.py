"""Training of a label decoder: it learns, and the network before it does not."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_layouts
import tiny
import torch
from torch import Tensor

from pipeline.datasets import Labelled, Stored, at_size
from pipeline.errors import ConfigError, PipelineError
from pipeline.experiment import LabelExperiment, LabelSchedule
from pipeline.labelling import Labeller, describe_labels, load_labels, measure_labels, train_labels, trained_network
from pipeline.layouts import LAYOUTS
from pipeline.material import Folders
from pipeline.models.label_decoder import LabelDecoder
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.training import train

LATENTS = tiny.experiment().model.latents


def settings(**schedule: float) -> LabelExperiment:
    steps = {"seed": 1, "epochs": 2, "batch": 4, "lr": 0.03, "warmup_steps": 1, "weight_decay": 0.0, "clip_norm": 5.0}
    return LabelExperiment(
        name="tiny-labels",
        network="tiny.yaml",
        width=8,
        places=1.0,
        least_share=0.01,
        data=tiny.experiment().data,
        schedule=LabelSchedule.model_validate({**steps, **schedule}),
    )


@pytest.fixture
def folders(tiny_camvid: Path, tiny_run: Path, tmp_path: Path) -> Folders:
    return Folders(data=tiny_camvid, backbone=None, run=tmp_path / "labels", start=tiny_run)


def decoder() -> LabelDecoder:
    return LabelDecoder(LATENTS, tiny.CLASSES, width=8)


def test_it_learns_what_is_in_the_pictures(folders: Folders) -> None:
    steps = list(train_labels(settings(epochs=25), tiny.experiment(), folders))
    assert [step.epoch for step in steps] == list(range(1, 26))
    assert steps[-1].loss < 0.5 * steps[0].loss
    assert {(one.split, one.quality) for one in steps[-1].measured} == {
        (split, level) for split in tiny.experiment().data.choose_by for level in range(tiny.experiment().loss.levels)
    }
    assert all(one.accuracy.f1 > 0.9 for one in steps[-1].measured)
    assert "mAP" in describe_labels(steps[-1])


def test_labels_are_learned_behind_an_image_codec_too(tiny_camvid: Path, folders: Folders, tmp_path: Path) -> None:
    loss = {"labels": 0.0, "lovasz": 0.0, "pixels": 0.01}
    codec = tiny.experiment(model={"decoder": "image"}, loss=loss, schedule={"epochs": 1})
    behind = replace(folders, run=tmp_path / "codec", start=None)
    list(train(codec, behind))
    balanced = settings(epochs=8)
    balanced = balanced.model_copy(update={"data": balanced.data.model_copy(update={"balanced": 0.5})})
    steps = list(train_labels(balanced, codec, replace(folders, start=behind.run)))
    assert steps[-1].loss < 0.9 * steps[0].loss
    assert all(one.accuracy.f1 > 0.5 for one in steps[-1].measured)  # nothing is not what it says


def test_its_weights_are_those_of_the_run(folders: Folders) -> None:
    list(train_labels(settings(epochs=1), tiny.experiment(), folders))
    one, two = load_labels(folders.run, decoder()), load_labels(folders.run, decoder())
    y_hat = torch.randn(2, LATENTS, 4, 6)
    assert torch.equal(one(y_hat), two(y_hat))
    assert not one.training
    with pytest.raises(ConfigError, match=r"no labels\.safetensors of this experiment"):
        load_labels(folders.run, LabelDecoder(LATENTS, tiny.CLASSES, width=9))
    with pytest.raises(ConfigError, match=r"no labels\.safetensors"):
        load_labels(folders.run / "none", decoder())


def test_the_same_seed_gives_the_same_losses(folders: Folders, tmp_path: Path) -> None:
    runs = [replace(folders, run=tmp_path / name) for name in ("one", "two")]
    one, two = ([step.loss for step in train_labels(settings(epochs=2), tiny.experiment(), run)] for run in runs)
    assert one == two


def test_the_network_before_it_does_not_change(tiny_network: SplitSegmenter) -> None:
    before = {name: value.clone() for name, value in tiny_network.state_dict().items()}
    trained = {name: p.requires_grad for name, p in tiny_network.named_parameters()}
    try:
        labeller = Labeller(tiny_network, decoder()).train()
        images = tiny.images(tiny.scenes(2))
        evidence = labeller.evidence(labeller.encode(images), torch.zeros(2, dtype=torch.int64))
        labeller.decoder.pool(evidence).sum().backward()
        assert all(p.grad is None for p in labeller.network.parameters())
        assert all(p.grad is not None for p in labeller.decoder.parameters())
        assert labeller.decoder.training
        assert all(torch.equal(value, before[name]) for name, value in tiny_network.state_dict().items())
    finally:  # the fixture is shared
        for name, p in tiny_network.named_parameters():
            p.requires_grad_(trained[name])


def test_a_loss_that_is_not_finite_ends_it(folders: Folders) -> None:
    with pytest.raises(PipelineError, match=r"not finite; lower schedule\.lr"):
        list(train_labels(settings(lr=1e30, warmup_steps=0), tiny.experiment(), folders))


def test_frames_must_be_of_the_size_that_the_network_takes(folders: Folders) -> None:
    larger = tiny.experiment(data={"size": (2 * tiny.HEIGHT, 2 * tiny.WIDTH)})
    with pytest.raises(ConfigError, match=r"data\.size is not that of tiny"):
        list(train_labels(settings(), larger, folders))


def test_a_network_that_sends_nothing_cannot_be_labelled(folders: Folders) -> None:
    base = tiny.experiment()
    silent = base.model_copy(update={"model": base.model.model_copy(update={"bottleneck": "none"})})
    with pytest.raises(ConfigError, match="nothing is sent"):
        trained_network(silent, folders.start, tiny.CLASSES)
    with pytest.raises(ConfigError, match="add --network"):
        trained_network(base, None, tiny.CLASSES)


class Looking(Labeller):
    """Keeps the pictures that it is shown (1, 3, H, W)."""

    def __init__(self, network: SplitSegmenter) -> None:
        super().__init__(deepcopy(network), decoder())
        self.shown: list[Tensor] = []

    def encode(self, image: Tensor) -> Tensor:
        self.shown.append(image)
        return super().encode(image)


def test_frames_on_disk_are_measured_whole_and_those_in_memory_as_a_camera_brings_them(
    tiny_network: SplitSegmenter,
) -> None:
    size, rng = (tiny.HEIGHT, tiny.WIDTH), np.random.default_rng(0)
    names, images = ("wide", "tall"), tuple(rng.integers(0, 256, (*s, 3), np.uint8) for s in ((32, 80), (96, 64)))
    held = Labelled(names, images, tuple(np.zeros(image.shape[:2], np.uint8) for image in images))
    stored = Stored(names, held.read)
    for data, expected in (
        (stored, [stored.placed(image, size).image for image in images]),
        (held, [at_size(image, size) for image in images]),
    ):
        labeller = Looking(tiny_network)
        found = measure_labels(labeller, data, "val", size=size, least_share=0.01)
        assert [(one.split, one.quality) for one in found] == [("val", level) for level in range(tiny.LEVELS)]
        assert [one.numpy().tolist() for one in labeller.shown] == [
            image.transpose(2, 0, 1)[None].astype(float).tolist() for image in expected
        ]


def test_without_a_size_frames_on_disk_are_measured_at_that_of_their_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LAYOUTS, "coco", replace(LAYOUTS["coco"], size=(64, 96)))
    root = test_layouts.coco(tmp_path / "coco")
    base = tiny.experiment(data={"dataset": "coco", "choose_by": ("train",)}, schedule={"epochs": 1, "batch": 2})
    behind = tiny.folders(root, tmp_path / "home")
    list(train(base, behind))
    looked, encode = set(), Labeller.encode

    def looking(self: Labeller, image: Tensor) -> Tensor:
        looked.add(tuple(image.shape))
        return encode(self, image)

    monkeypatch.setattr(Labeller, "encode", looking)
    on_disk = settings(epochs=1, batch=2).model_copy(update={"data": base.data})
    list(train_labels(on_disk, base, Folders(data=root, backbone=None, run=tmp_path / "labels", start=behind.run)))
    assert looked == {(2, 3, 32, 48), (1, 3, 64, 96)}, "views of training, and whole frames"
