"""Soft labels: the teacher's classes summed into ours, made once and kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tiny import CLASSES, FROM_CITYSCAPES, HEIGHT, WIDTH, scenes
from torch import Tensor, nn

from pipeline.datasets import Labelled
from pipeline.distillation import load_teacher, soft_label_file, soft_labels
from pipeline.errors import ConfigError
from pipeline.models.teacher import FDDWNet

TARGET = torch.tensor(FROM_CITYSCAPES)
SIZE = (2 * WIDTH, 2 * HEIGHT)


class LightMeter(nn.Module):
    """A teacher that is sure of road where the picture is bright and of sky where it is dark; it counts its looks."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def forward(self, x: Tensor) -> Tensor:
        self.looks += 1
        assert x.shape == (1, 3, SIZE[1], SIZE[0])
        logits = x.new_zeros(1, 19, *x.shape[2:])
        logits[:, 0] = 40 * x.mean(1)  # road is Cityscapes' class 0
        logits[:, 10] = -40 * x.mean(1)  # sky is its class 10
        return logits


def half_bright() -> NDArray[np.uint8]:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, WIDTH // 2 :] = 255
    return image


def pictures(count: int) -> list[NDArray[np.uint8]]:
    return [one.image for one in scenes(count)]


def made(
    path: Path, images: Sequence[NDArray[np.uint8]], teacher: nn.Module, *, size: tuple[int, int] = SIZE
) -> NDArray[np.uint8]:
    names = tuple(f"frame-{i}-{int(image.sum())}" for i, image in enumerate(images))
    data = Labelled(names, tuple(images), tuple(image[..., 0] for image in images))
    return soft_label_file(path, data, teacher=teacher, target=TARGET, classes=CLASSES, size=size)


def test_soft_labels_have_the_pictures_size_and_our_classes() -> None:
    soft = soft_labels(LightMeter(), half_bright(), target=TARGET, classes=CLASSES, size=SIZE)
    assert soft.shape == (HEIGHT, WIDTH, CLASSES)
    assert soft.dtype == np.uint8
    assert (soft[:, : WIDTH // 2 - 4].argmax(-1) == FROM_CITYSCAPES[10]).all()
    assert (soft[:, WIDTH // 2 + 4 :].argmax(-1) == FROM_CITYSCAPES[0]).all()


def test_soft_labels_of_a_pixel_sum_to_one() -> None:
    soft = soft_labels(FDDWNet().eval(), pictures(1)[0], target=TARGET, classes=CLASSES, size=SIZE)
    assert np.abs(soft.astype(int).sum(-1) - 255).max() <= CLASSES // 2  # each of them is rounded


def test_soft_labels_are_made_once_and_then_read(tmp_path: Path) -> None:
    teacher, path = LightMeter(), tmp_path / "soft.npy"
    first = np.array(made(path, pictures(3), teacher))
    assert teacher.looks == 3
    assert np.array_equal(made(path, pictures(3), teacher), first)
    assert teacher.looks == 3
    expected = soft_labels(LightMeter(), pictures(3)[1], target=TARGET, classes=CLASSES, size=SIZE)
    assert np.array_equal(first[1], expected)


def test_soft_labels_of_other_frames_are_made_again(tmp_path: Path) -> None:
    teacher, path = LightMeter(), tmp_path / "soft.npy"
    made(path, pictures(2), teacher)
    assert made(path, pictures(3), teacher).shape == (3, HEIGHT, WIDTH, CLASSES)
    assert teacher.looks == 5
    made(path, pictures(3), teacher)
    assert teacher.looks == 5


def test_interrupted_work_leaves_no_soft_labels(tmp_path: Path) -> None:
    path = tmp_path / "soft.npy"
    with pytest.raises(AssertionError):
        made(path, pictures(2), LightMeter(), size=(SIZE[0] + 8, SIZE[1]))
    assert not path.exists()


def test_teacher_is_loaded_in_eval_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stored = FDDWNet().state_dict()
    save_file(stored, tmp_path / "teacher.safetensors")
    teacher = load_teacher(tmp_path / "teacher.safetensors")
    assert not teacher.training
    assert all(torch.equal(value, stored[name]) for name, value in teacher.state_dict().items())


def test_missing_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.safetensors"):
        load_teacher(tmp_path / "none.safetensors")


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(FDDWNet(classes=11).state_dict(), path)
    with pytest.raises(ConfigError, match=r"other\.safetensors") as caught:
        load_teacher(path)
    assert "\n" not in str(caught.value)


def test_file_that_holds_no_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(b"not weights at all")
    with pytest.raises(ConfigError, match=r"noise\.safetensors"):
        load_teacher(path)


def test_soft_labels_of_another_teacher_are_made_again(tmp_path: Path) -> None:
    path, first, second = tmp_path / "soft.npy", LightMeter(), LightMeter()
    second.register_buffer("mood", torch.ones(1))
    made(path, pictures(2), first)
    made(path, pictures(2), second)
    assert (first.looks, second.looks) == (2, 2)
