"""Training of a label decoder: it learns, and the network before it does not."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from pipeline.errors import ConfigError, PipelineError
from pipeline.experiment import LabelExperiment, LabelSchedule
from pipeline.labelling import Labeller, describe_labels, load_labels, train_labels, trained_network
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
