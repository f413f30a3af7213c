"""Measuring while training: accuracy and estimated rate of whole frames, at every quality level."""

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import measuring
from pipeline.accuracy import confusion, mean_iou
from pipeline.datasets import Labelled, Stored
from pipeline.errors import ConfigError
from pipeline.measuring import measure, measure_pictures, psnr_db
from pipeline.models.entropy_model import NoBottleneck
from pipeline.models.layers import short_floats
from pipeline.models.split_segmenter import SplitSegmenter, levels_like, upsample

PALETTE = torch.from_numpy(tiny.PALETTE).float()


class Quarter(nn.Module):
    """An analysis that shows the image at a quarter of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 4) + self.nothing


class Nearest(nn.Module):
    """A decoder that knows the colours of the classes; shifted by one, it is always wrong."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, y_hat: Tensor) -> Tensor:
        apart = (y_hat[:, None] - PALETTE[None, :, :, None, None]).square().sum(2)
        return -apart.roll(self.shift, 1)


def painted(*sizes: tuple[int, int]) -> Labelled:
    """Frames of squares in the colours of their classes, each 32 pixels wide, void where the last row is."""
    rng, images, labels = np.random.default_rng(0), [], []
    for height, width in sizes:
        coarse = rng.integers(0, tiny.CLASSES, (-(-height // 32), -(-width // 32))).astype(np.uint8)
        classes = coarse.repeat(32, 0).repeat(32, 1)[:height, :width].copy()
        images.append(tiny.PALETTE[classes])
        classes[-1] = tiny.VOID
        labels.append(classes)
    return Labelled(tuple(map(str, range(len(sizes)))), tuple(images), tuple(labels))


def network(shift: int) -> SplitSegmenter:
    return SplitSegmenter(Quarter(), NoBottleneck(), Nearest(shift)).eval()


@pytest.mark.parametrize("size", [(96, 160), (160, 96), (192, 128)])
def test_frames_on_disk_are_seen_whole_and_rated_by_their_own_pixels(size: tuple[int, int]) -> None:
    data = painted((96, 128), (96, 128), (128, 96))
    stored = Stored(data.names, data.read)
    (right,), (wrong,) = (measure(network(shift), stored, "p", classes=tiny.CLASSES, size=size) for shift in (0, 1))
    assert right.miou > 0.8
    assert wrong.miou < 0.1


@pytest.mark.parametrize(("most", "counts"), [(1, [1, 1, 1, 1, 1]), (2, [2, 1, 1, 1]), (16, [3, 1, 1])])
def test_frames_of_one_size_are_seen_together_and_each_group_knows_what_it_covers(most: int, counts: list[int]) -> None:
    data = painted((96, 128), (96, 128), (96, 128), (128, 96), (96, 96))
    groups = list(measuring._groups(Stored(data.names, data.read), (96, 160), most=most))
    assert [len(group.images) for group in groups] == counts
    assert [len(group.labels) for group in groups] == counts
    frames = [frame for group in groups for frame in group.labels]
    assert all(torch.equal(one, torch.from_numpy(labels)) for one, labels in zip(frames, data.labels, strict=True))
    assert [group.shown for group in groups][-3:] == [(96, 128), (96, 72), (96, 96)]


def test_a_network_that_knows_everything_is_right_on_frames_of_any_size() -> None:
    (found,) = measure(
        network(0), painted((64, 96), (64, 96), (50, 70), (16, 16)), "all", classes=tiny.CLASSES, size=None
    )
    assert found.miou > 0.9  # edges are smoothed over four pixels
    assert (found.split, found.quality, found.rate_bpp) == ("all", 0, 0.0)


def test_pictures_are_brought_to_a_size_and_masks_back() -> None:
    data = painted((64, 96), (64, 96))
    (found,) = measure(network(0), data, "all", classes=tiny.CLASSES, size=(128, 192))
    assert found.miou > 0.8, "but for the edges of squares, whose colours are mixed"


def test_a_network_that_mistakes_every_class_is_wrong() -> None:
    (found,) = measure(network(1), painted((64, 96)), "all", classes=tiny.CLASSES, size=None)
    assert found.miou < 0.06


class Same(nn.Module):
    """An image codec's half that leaves the image as it is, but for its light."""

    def __init__(self, lighter: float = 0.0) -> None:
        super().__init__()
        self.lighter = nn.Parameter(torch.tensor(lighter))

    def forward(self, image: Tensor) -> Tensor:
        return image + self.lighter


@pytest.mark.parametrize("size", [None, (128, 192)])
def test_pictures_are_held_against_those_that_an_image_codec_sees(size: tuple[int, int] | None) -> None:
    rng = np.random.default_rng(0)
    images = tuple(rng.integers(40, 200, (*shape, 3), np.uint8) for shape in ((64, 96), (50, 70), (15, 16)))
    data = Labelled(("a", "b", "c"), images, tuple(np.zeros(image.shape[:2], np.uint8) for image in images))
    codec = SplitSegmenter(Same(), NoBottleneck(), Same(10.0)).eval()
    (found,) = measure_pictures(codec, data, "all", size=size)
    assert found.psnr_db == pytest.approx(28.13, abs=0.01)
    assert (found.split, found.quality, found.rate_bpp) == ("all", 0, 0.0)


def test_what_is_beyond_black_and_white_is_shown_as_these() -> None:
    white = Labelled(("a",), (np.full((32, 32, 3), 250, np.uint8),), (np.zeros((32, 32), np.uint8),))
    codec = SplitSegmenter(Same(), NoBottleneck(), Same(100.0)).eval()
    (found,) = measure_pictures(codec, white, "all", size=None)
    assert found.psnr_db == pytest.approx(psnr_db(25.0))


def test_labels_that_are_no_class_are_named_with_their_split() -> None:
    data = painted((64, 96), (64, 96))
    data.labels[1][3, 5] = tiny.CLASSES + 3
    with pytest.raises(ConfigError, match=r"^labels of 0006R0: 14 is none of 11 classes; take the data set's own$"):
        measure(network(0), data, "0006R0", classes=tiny.CLASSES, size=None)


def test_there_is_one_figure_per_level_and_higher_levels_cost_more(tiny_network: SplitSegmenter) -> None:
    scenes = tiny.scenes(3)
    data = Labelled(("a", "b", "c"), tuple(s.image for s in scenes), tuple(s.labels for s in scenes))
    found = measure(tiny_network, data, "val", classes=tiny.CLASSES, size=None)
    assert [(one.split, one.quality) for one in found] == [("val", level) for level in range(tiny.LEVELS)]
    assert found[0].rate_bpp < found[1].rate_bpp < found[2].rate_bpp


@pytest.mark.parametrize("level", range(tiny.LEVELS))
def test_figures_are_those_of_the_network_at_that_level(tiny_network: SplitSegmenter, level: int) -> None:
    """Accuracy over the pixels of all frames together, bits over all pixels."""
    scenes = tiny.scenes(3, seed=4)
    data = Labelled(("a", "b", "c"), tuple(s.image for s in scenes), tuple(s.labels for s in scenes))
    images = tiny.images(scenes)
    with torch.no_grad(), short_floats(torch.device("cpu")):
        seen = [tiny_network(images[i : i + 1], levels_like(images[:1], level)) for i in range(3)]
    guesses = [upsample(one.output, tiny.HEIGHT, tiny.WIDTH).argmax(1)[0].byte().numpy() for one in seen]
    matrix = sum(confusion(s.labels, guess, tiny.CLASSES) for s, guess in zip(scenes, guesses, strict=True))
    bits = sum(float(one.coded.y_bits + one.coded.z_bits) for one in seen)
    found = measure(tiny_network, data, "val", classes=tiny.CLASSES, size=None)[level]
    assert found.miou == pytest.approx(mean_iou(matrix), rel=0.02)
    assert found.rate_bpp == pytest.approx(bits / (3 * tiny.WIDTH * tiny.HEIGHT), rel=0.02)


def test_measuring_leaves_the_chance_of_the_training_alone(tiny_network: SplitSegmenter) -> None:
    before = torch.get_rng_state()
    measure(tiny_network, painted((64, 96)), "val", classes=tiny.CLASSES, size=None)
    assert torch.equal(torch.get_rng_state(), before)
