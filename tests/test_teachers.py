"""Teachers from files: which network it is, what its classes count as, and what several of them say together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import light_meter
from safetensors.torch import load_file, save_file
from tiny import CLASSES, COLOURS, FROM_CITYSCAPES, HEIGHT, ROAD, SKY, WIDTH, scenes
from torch import Tensor, nn

from pipeline.datasets import Classes, LabelledClass
from pipeline.errors import ConfigError
from pipeline.models.mininetv2 import MiniNetV2
from pipeline.models.teacher import FDDWNet, group_classes, normalise
from pipeline.teachers import NETWORKS, NetworkTeacher, Teacher, load_teachers, stacked

OURS = Classes(tuple(LabelledClass(n, c) for n, c in COLOURS.items()), FROM_CITYSCAPES)
SIZE = (2 * WIDTH, 2 * HEIGHT)
CPU = torch.device("cpu")
FRAMES = [one.image for one in scenes(6)]
CITYSCAPES_ROAD, CITYSCAPES_SKY = 0, 10


def stored(path: Path, network: nn.Module, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 4:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    save_file(network.state_dict(), path)
    return path


def load(*paths: Path, mirrored: bool = False, size: tuple[int, int] = SIZE) -> Teacher:
    return load_teachers(paths, size=size, mirrored=mirrored, described=OURS, device=CPU)


def said(teacher: Teacher, count: int = 2) -> Tensor:
    return teacher.probabilities(stacked(FRAMES[:count], CPU))


def half_bright() -> Tensor:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, WIDTH // 2 :] = 255
    return stacked([image], CPU)


@pytest.mark.parametrize("build", [FDDWNet, MiniNetV2])
def test_network_is_recognised_by_its_tensors(tmp_path: Path, build: type[FDDWNet | MiniNetV2]) -> None:
    network = build().eval()
    teacher = load(stored(tmp_path / "teacher.safetensors", network))
    image = nn.functional.interpolate(
        stacked(FRAMES[:1], CPU).float(), (SIZE[1], SIZE[0]), mode="bicubic", align_corners=False
    ).clamp(0, 255)
    with torch.no_grad():
        theirs = network(normalise(image)).softmax(1)
    expected = nn.functional.avg_pool2d(group_classes(theirs, torch.tensor(FROM_CITYSCAPES), CLASSES), 2)
    seen = said(teacher, 1)
    assert seen.shape == (1, CLASSES, HEIGHT, WIDTH)
    assert torch.allclose(seen.sum(1), torch.ones(1, HEIGHT, WIDTH), atol=1e-5)
    # The filter that makes small is a triangle two pixels wide, not a box.
    assert (seen - expected).abs().mean() < 0.02


def test_network_of_our_classes_needs_no_table(tmp_path: Path) -> None:
    network = MiniNetV2(classes=CLASSES).eval()
    seen = said(load(stored(tmp_path / "own.safetensors", network)), 1)
    assert seen.shape == (1, CLASSES, HEIGHT, WIDTH)


@pytest.mark.parametrize("classes", [3, 20])
def test_other_numbers_of_classes_are_named(tmp_path: Path, classes: int) -> None:
    path = stored(tmp_path / "odd.safetensors", MiniNetV2(classes=classes))
    with pytest.raises(ConfigError, match=rf"odd\.safetensors: has {classes} classes"):
        load(path)


def test_graph_with_cityscapes_classes_counts_as_ours(tmp_path: Path) -> None:
    path = light_meter(tmp_path / "g.onnx", 19, bright=CITYSCAPES_ROAD, dark=CITYSCAPES_SKY)
    seen = load(path).probabilities(half_bright())
    assert seen.shape == (1, CLASSES, HEIGHT, WIDTH)
    assert (seen[:, ROAD, :, WIDTH // 2 + 4 :] > 0.99).all()
    assert (seen[:, SKY, :, : WIDTH // 2 - 4] > 0.99).all()


def test_graph_with_our_classes_keeps_them(tmp_path: Path) -> None:
    seen = load(light_meter(tmp_path / "g.onnx", CLASSES, bright=4, dark=7)).probabilities(half_bright())
    assert (seen.argmax(1)[0, 0, [0, -1]] == torch.tensor([7, 4])).all()


def test_several_teachers_say_the_mean(tmp_path: Path) -> None:
    first = stored(tmp_path / "f.safetensors", FDDWNet(), seed=1)
    second = stored(tmp_path / "m.safetensors", MiniNetV2(), seed=2)
    both = load(first, second)
    assert torch.allclose(said(both), (said(load(first)) + said(load(second))) / 2, atol=1e-6)


def test_teacher_of_two_scales_says_the_mean_over_both(tmp_path: Path) -> None:
    path = stored(tmp_path / "m.safetensors", MiniNetV2())
    both = load_teachers([path], size=SIZE, scales=(1, 0.5), mirrored=False, described=OURS, device=CPU)
    small = load(path, size=(WIDTH, HEIGHT))
    assert torch.allclose(said(both), (said(load(path)) + said(small)) / 2, atol=1e-6)


def test_mirrored_teacher_says_the_same_of_a_mirrored_picture(tmp_path: Path) -> None:
    path, images = stored(tmp_path / "f.safetensors", FDDWNet()), stacked(FRAMES[:1], CPU)
    plain, mirrored = load(path), load(path, mirrored=True)
    turned = plain.probabilities(images.flip(3)).flip(3)
    assert not torch.allclose(turned, plain.probabilities(images), atol=1e-4)
    assert torch.allclose(mirrored.probabilities(images), (plain.probabilities(images) + turned) / 2, atol=1e-6)
    assert torch.allclose(mirrored.probabilities(images.flip(3)).flip(3), mirrored.probabilities(images), atol=1e-5)


def test_what_a_teacher_is_made_of_tells_weights_size_and_views_apart(tmp_path: Path) -> None:
    first = stored(tmp_path / "1.safetensors", MiniNetV2(), seed=1)
    second = stored(tmp_path / "2.safetensors", MiniNetV2(), seed=2)
    teachers: Sequence[Teacher] = (
        load(first),
        load(second),
        load(first, second),
        load(first, mirrored=True),
        load(first, size=(WIDTH, HEIGHT)),
        load(first).acquainted(FRAMES, share=0.5),
        load(first).acquainted(FRAMES, share=0.4),
        load(first).acquainted(FRAMES[1:], share=0.5),
    )
    assert len({teacher.made_of for teacher in teachers}) == len(teachers)
    assert load(first).made_of == teachers[0].made_of


def test_acquainted_teacher_has_taken_a_share_of_the_frames_statistics(tmp_path: Path) -> None:
    path = stored(tmp_path / "m.safetensors", MiniNetV2())
    teacher, before = load(path), said(load(path))
    none, whole = teacher.acquainted(FRAMES[:4], share=0.0), teacher.acquainted(FRAMES[:4], share=1.0)
    assert torch.equal(said(none), before)
    assert torch.equal(said(teacher), before)  # and itself is as it was
    x = nn.functional.interpolate(stacked(FRAMES[:4], CPU).float(), (SIZE[1], SIZE[0]), mode="bicubic").clamp(0, 255)
    first = load_file(path)["d1_2.0.conv.0.weight"]
    mean = nn.functional.conv2d(normalise(x), first, stride=2, padding=1).mean((0, 2, 3))
    taken = whole.network.get_submodule("d1_2.0.conv.1").running_mean
    assert torch.allclose(taken, mean, atol=1e-4)


def test_acquaintance_waits_until_the_teacher_is_asked(tmp_path: Path) -> None:
    def gone() -> nn.Module:
        raise AssertionError("asked for its network")

    teacher = load(stored(tmp_path / "m.safetensors", MiniNetV2()))
    assert isinstance(teacher, NetworkTeacher)
    polite = replace(teacher, make=gone).acquainted(FRAMES, share=0.5)
    assert polite.made_of == teacher.acquainted(FRAMES, share=0.5).made_of
    with pytest.raises(AssertionError, match="asked"):
        said(polite)


def test_acquaintance_is_made_once(tmp_path: Path) -> None:
    teacher = load(stored(tmp_path / "m.safetensors", MiniNetV2())).acquainted(FRAMES, share=0.5)
    assert isinstance(teacher, NetworkTeacher)
    made = []

    def make() -> nn.Module:
        made.append(teacher.network)
        return teacher.network

    counted = replace(teacher, make=make)
    assert torch.equal(said(counted), said(counted))
    assert len(made) == 1


def test_ensemble_is_acquainted_through_its_members_and_graphs_stay(tmp_path: Path) -> None:
    network = stored(tmp_path / "m.safetensors", MiniNetV2())
    graph = light_meter(tmp_path / "g.onnx", CLASSES, bright=4, dark=7)
    both = load(network, graph, mirrored=True).acquainted(FRAMES, share=0.5)
    alone = load(network).acquainted(FRAMES, share=0.5)
    assert both.made_of == f"{alone.made_of} + {load(graph).made_of} mirrored"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.safetensors: no such file"):
        load(tmp_path / "none.safetensors")


def test_no_file_at_all_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--teacher"):
        load()


@pytest.mark.parametrize("size", [(100, 64), (96, 60), (0, 64), (-8, 64)])
def test_size_that_8_does_not_divide_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"{size[0]}x{size[1]}"):
        load(stored(tmp_path / "m.safetensors", MiniNetV2()), size=size)


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for state in ({"weight": torch.zeros(3)}, {**FDDWNet().state_dict(), "extra": torch.zeros(1)}):
        save_file(state, path)
        with pytest.raises(ConfigError, match=r"other\.safetensors: .* FDDWNet or MiniNetV2") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_weights_whose_last_tensor_has_no_classes_are_those_of_another_network(tmp_path: Path) -> None:
    last = next(iter(NETWORKS))
    for shape in ((), (19, 1)):
        save_file({**FDDWNet().state_dict(), last: torch.zeros(shape)}, tmp_path / "odd.safetensors")
        with pytest.raises(ConfigError, match=r"odd\.safetensors: not the weights of FDDWNet or MiniNetV2"):
            load(tmp_path / "odd.safetensors")


def test_what_is_wrong_with_a_file_is_passed_on(tmp_path: Path) -> None:
    torch.save({"weights": MiniNetV2().state_dict(), "more": Path("a")}, tmp_path / "more.pth")
    said = r"more\.pth: it holds more than weights, or is damaged; save its state dict alone; name the weights of"
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "more.pth")


def test_file_that_holds_no_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(b"not weights at all")
    with pytest.raises(ConfigError, match=r"noise\.safetensors"):
        load(path)
