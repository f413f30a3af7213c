"""Offsets of the classes' logits: they raise the mean IoU of what they were fitted to, and touch nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

from pipeline.accuracy import VOID, confusion, mean_iou
from pipeline.class_offsets import as_taught, fit_offsets, offsets_of
from pipeline.datasets import Labelled, camvid
from pipeline.models.split_segmenter import levels_like
from pipeline.training import load_trained

CLASSES = 4


def miou(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    return mean_iou(confusion(labels, logits.argmax(0).astype(np.uint8), len(logits)))


@pytest.fixture
def noisy() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits (K, N) of a good guess, and labels (N,) of which the last class has few."""
    draw = np.random.default_rng(0)
    labels = draw.choice(CLASSES, 20_000, p=(0.5, 0.3, 0.15, 0.05)).astype(np.uint8)
    logits = draw.normal(0, 1, (CLASSES, labels.size)).astype(np.float32)
    logits[labels, np.arange(labels.size)] += 3.0
    return logits, labels


def test_a_bias_of_one_class_is_taken_back(noisy: tuple[NDArray[np.float32], NDArray[np.uint8]]) -> None:
    logits, labels = noisy
    biased = logits.copy()
    biased[3] += 1.2
    offsets = fit_offsets(biased, labels)
    assert offsets.dtype == np.float32
    assert miou(biased + offsets[:, None], labels) > miou(biased, labels) + 0.03
    assert offsets[3] < offsets[:3].min() - 0.5


def test_what_was_fitted_holds_for_other_pixels(noisy: tuple[NDArray[np.float32], NDArray[np.uint8]]) -> None:
    logits, labels = noisy
    biased = logits.copy()
    biased[0] += 1.0
    offsets = fit_offsets(biased[:, ::2], labels[::2])
    assert miou(biased[:, 1::2] + offsets[:, None], labels[1::2]) > miou(biased[:, 1::2], labels[1::2]) + 0.02


def test_a_perfect_guess_is_left_alone() -> None:
    labels = np.repeat(np.arange(CLASSES), 50).astype(np.uint8)
    logits = 20.0 * np.eye(CLASSES, dtype=np.float32)[labels].T
    assert not fit_offsets(logits, labels).any()


def test_void_pixels_do_not_count(noisy: tuple[NDArray[np.float32], NDArray[np.uint8]]) -> None:
    logits, labels = noisy
    more = np.concatenate([logits, 50.0 * np.ones_like(logits)], 1)
    with_void = np.concatenate([labels, np.full_like(labels, VOID)])
    assert (fit_offsets(more, with_void) == fit_offsets(logits, labels)).all()


def test_a_class_that_never_occurs_is_not_spoken_for() -> None:
    labels = np.zeros(100, np.uint8)
    labels[50:] = 1
    logits = np.zeros((3, 100), np.float32)
    logits[0, :50] = logits[1, 50:] = 2.0
    logits[2] = 1.9
    assert (logits + fit_offsets(logits, labels)[:, None]).argmax(0).max() <= 1


def test_every_level_of_a_network_gets_offsets_that_do_not_harm_it(tiny_camvid: Path, tiny_run: Path) -> None:
    network = load_trained(tiny.experiment(), tiny_run, tiny.CLASSES)
    data = camvid(tiny_camvid, "train")
    offsets = offsets_of(network, data)
    assert offsets.shape == (tiny.LEVELS, tiny.CLASSES)
    for level in range(tiny.LEVELS):
        before, after = (_tiny_miou(network, data, level, added) for added in (np.zeros_like(offsets), offsets))
        assert after >= before - 0.01


def test_labels_may_be_of_another_size_than_their_pictures(tiny_camvid: Path, tiny_run: Path) -> None:
    network, data = load_trained(tiny.experiment(), tiny_run, tiny.CLASSES), camvid(tiny_camvid, "train")
    small = replace(data, labels=tuple(labels[::2, ::2] for labels in data.labels))
    large = replace(data, labels=tuple(labels[::2, ::2].repeat(2, 0).repeat(2, 1) for labels in data.labels))
    np.testing.assert_array_equal(offsets_of(network, small), offsets_of(network, large))


def test_labels_may_be_void_altogether(tiny_camvid: Path, tiny_run: Path) -> None:
    network = load_trained(tiny.experiment(), tiny_run, tiny.CLASSES)
    data = camvid(tiny_camvid, "train")
    nothing = replace(data, labels=[np.full_like(labels, VOID) for labels in data.labels])
    assert not offsets_of(network, nothing).any()


def test_frames_are_told_what_their_teachers_hold_likeliest(tiny_camvid: Path) -> None:
    data = camvid(tiny_camvid, "train")
    soft = np.zeros((len(data) + 1, tiny.HEIGHT // 2, tiny.WIDTH // 2, tiny.CLASSES), np.uint8)
    soft[..., tiny.SKY], soft[1, 0, 3, tiny.CAR] = 100, 155
    taught = as_taught(data, soft)
    assert taught.images is data.images
    assert all(one.shape == labels.shape for one, labels in zip(taught.labels, data.labels, strict=True))
    assert not taught.labels[0].any()
    assert (taught.labels[1] == tiny.CAR).sum() == 4
    assert (taught.labels[1][:2, 6:8] == tiny.CAR).all()


@pytest.mark.parametrize("shape", [(1, 32, 48), (8, 32, 40)], ids=["too few frames", "another size"])
def test_soft_labels_of_other_frames_are_refused(tiny_camvid: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="soft labels"):
        as_taught(camvid(tiny_camvid, "train"), np.zeros((*shape, tiny.CLASSES), np.uint8))


@torch.no_grad()
def _tiny_miou(network: torch.nn.Module, data: Labelled, level: int, offsets: NDArray[np.float32]) -> float:
    matrix = np.zeros((tiny.CLASSES, tiny.CLASSES), np.int64)
    for image, labels in zip(data.images, data.labels, strict=True):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        logits = network(pixels, levels_like(pixels, level)).output[0].numpy()
        logits = logits[:, : labels.shape[0] // 4, : labels.shape[1] // 4] + offsets[level][:, None, None]
        matrix += confusion(labels[2::4, 2::4], logits.argmax(0).astype(np.uint8), tiny.CLASSES)
    return mean_iou(matrix)
