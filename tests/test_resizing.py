"""A bundle for pictures of another size: what it codes and shows, what it keeps, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from test_restoring import described

from pipeline import deciding, outlining
from pipeline.bundle import Bundle, load_bundle
from pipeline.codec import open_decoder, open_encoder
from pipeline.context_fitting import Effort
from pipeline.datasets import Labelled
from pipeline.decide_export import add_decision, add_outline
from pipeline.errors import ConfigError
from pipeline.label_export import add_labels, check_same_network
from pipeline.messages import Decoded, Frame, FrameId
from pipeline.models.label_decoder import LabelDecoder
from pipeline.models.outline import OutlineNetwork
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.models.temporal import DecisionNetwork
from pipeline.resizing import check_size, resize, resize_and_measure
from pipeline.sources import fit

WIDER = tiny.WIDTH + 64, tiny.HEIGHT
EFFORT = Effort(steps=2, batch=2, learning_rate=0.001, penalty=0.05)


@pytest.fixture(scope="module")
def plain(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle, which says which network it is of."""
    return load_bundle(described(tiny_bundle, tmp_path_factory.mktemp("plain") / "bundle"))


@pytest.fixture(scope="module")
def whole(plain: Bundle, tiny_network: SplitSegmenter, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same with every graph that one can have, none of them trained."""
    home, tables = tmp_path_factory.mktemp("whole"), plain.tables
    torch.manual_seed(3)
    labels = LabelDecoder(tables.latents, tiny.CLASSES, width=8).eval()
    made = add_labels(plain, tiny_network, labels, home / "labelled", least_share=0.01)
    made = add_outline(made, OutlineNetwork(tables.latents, tables.levels, width=8), home / "outlining")
    return add_decision(made, DecisionNetwork(deciding.MAPS, deciding.FACTS, width=8), home / "bundle")


def wider(count: int) -> list[NDArray[np.uint8]]:
    return [fit(one.image, WIDER) for one in tiny.scenes(count)]


def labelled(count: int, seed: int) -> Labelled:
    scenes = tiny.scenes(count, seed)
    names = tuple(f"{seed}-{index}" for index in range(count))
    return Labelled(names, tuple(one.image for one in scenes), tuple(one.labels for one in scenes))


@pytest.fixture(scope="module")
def resized(whole: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return resize(whole, WIDER, wider(4), tmp_path_factory.mktemp("resized"), effort=EFFORT)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_pictures_of_the_new_size_become_masks_of_it(resized: Bundle, engine: str) -> None:
    encoder = open_encoder(resized, engine=engine, outlines=True)
    decoder = open_decoder(resized, engine=engine)
    packet = encoder.encode(Frame(FrameId(0, 0), 0, wider(1)[0]))
    (decoded,) = decoder.decode([packet])
    assert isinstance(decoded, Decoded)
    assert decoded.mask is not None and decoded.mask.classes.shape == WIDER[::-1]
    assert decoded.scores is not None and decoded.scores.values.shape == (tiny.CLASSES,)
    assert encoder.outline is not None and encoder.outline.shape == resized.latent_size


def test_the_network_is_the_same_and_so_is_all_that_the_manifest_says_of_it(
    whole: Bundle, resized: Bundle, tiny_network: SplitSegmenter
) -> None:
    check_same_network(resized, tiny_network)
    old, new = whole.manifest, resized.manifest
    assert (new.width, new.height) == WIDER
    assert new.hash != old.hash
    for field in ("name", "classes", "licence", "network", "presence_share", "dataset", "grid", "graphs"):
        assert getattr(new, field) == getattr(old, field)
    assert new.created_by == f"{old.created_by}; brought to 160x64 by maskcast resize"
    assert resized.graph(deciding.GRAPH).read_bytes() == whole.graph(deciding.GRAPH).read_bytes()
    assert resized.graph(outlining.GRAPH).read_bytes() != whole.graph(outlining.GRAPH).read_bytes()


def test_the_new_bundle_is_refined_and_measured(plain: Bundle, tmp_path: Path) -> None:
    said: list[str] = []
    made = resize_and_measure(
        plain,
        WIDER,
        labelled(3, 1),
        labelled(2, 2),
        tmp_path / "made",
        split="dusk",
        effort=EFFORT,
        tell=said.append,
    )
    manifest = load_bundle(tmp_path / "made").manifest
    assert manifest == made.bundle.manifest
    assert manifest.dataset.endswith("; rates and mIoU measured on dusk")
    assert all(level.rate_bpp > 0 for level in manifest.quality_levels)
    assert manifest.default_quality == plain.manifest.default_quality
    assert said[0] == "fitting tables to 3 frames of 160x64"


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((tiny.WIDTH, tiny.HEIGHT), r"^size 96x64: the bundle is of that size; name another one$"),
        (
            (tiny.WIDTH + 32, tiny.HEIGHT),
            r"^size 128x64: .* the bundle's 96x64 by multiples of 64, such as 160x64$",
        ),
        ((tiny.WIDTH, 0), r"^size 96x0: .* multiples of 64"),
        ((-32, tiny.HEIGHT), r"^size -32x64: .* multiples of 64"),
    ],
)
def test_sizes_at_which_the_network_would_not_know_its_borders_are_refused(
    tiny_bundle: Bundle, size: tuple[int, int], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_size(tiny_bundle, size)


def test_a_bundle_is_not_written_over_itself(tiny_bundle: Bundle) -> None:
    before = tiny_bundle.manifest
    with pytest.raises(ConfigError, match="that is the bundle itself; name another folder"):
        resize_and_measure(tiny_bundle, WIDER, labelled(1, 1), labelled(1, 2), tiny_bundle.path, split="dusk")
    assert load_bundle(tiny_bundle.path).manifest == before
