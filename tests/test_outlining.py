"""What a camera knows of the edges of its masks: what an edge is, and the graph that tells of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import outlining
from pipeline.bundle import Bundle, load_bundle
from pipeline.codec import open_encoder
from pipeline.decide_export import add_outline
from pipeline.errors import ConfigError
from pipeline.messages import Frame, FrameId
from pipeline.models.outline import OutlineNetwork
from pipeline.outlining import edges_of
from pipeline.streets import render_street
from pipeline.tracing import trace


def logits_of(classes: np.ndarray) -> np.ndarray:
    """(K, H, W) by which each place has its class."""
    return (classes == np.arange(classes.max() + 1)[:, None, None]).astype(np.float32)


def test_an_edge_is_where_another_class_is_beside_above_or_below() -> None:
    classes = np.zeros((8, 12), int)
    assert (edges_of(logits_of(classes)) == 0).all()
    classes[:, 5:] = 1  # between the fourth and fifth place, both in the second of three cells
    np.testing.assert_allclose(edges_of(logits_of(classes)), [[0, 0.5, 0], [0, 0.5, 0]])
    classes[:, 4:] = 1
    np.testing.assert_allclose(edges_of(logits_of(classes)), [[0.25, 0.25, 0], [0.25, 0.25, 0]])
    one = np.zeros((8, 8), int)
    one[0, 0] = 1
    np.testing.assert_allclose(edges_of(logits_of(one)), [[3 / 16, 0], [0, 0]])


@pytest.fixture(scope="module")
def outlining_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with a graph that says where masks have edges, untrained."""
    torch.manual_seed(3)
    network = OutlineNetwork(tiny_bundle.tables.latents, tiny_bundle.tables.levels, width=8)
    return add_outline(tiny_bundle, network, tmp_path_factory.mktemp("outlining") / "bundle")


def test_a_camera_knows_the_edges_of_each_frame_that_it_encodes(tiny_bundle: Bundle, outlining_bundle: Bundle) -> None:
    manifest = outlining_bundle.manifest
    (street,) = render_street(3, width=manifest.width, height=manifest.height, frames=1)
    frame = Frame(FrameId(0, 0), 0, street.image)
    plain = open_encoder(outlining_bundle, engine="onnxruntime", threads=1)
    telling = open_encoder(outlining_bundle, engine="onnxruntime", threads=1, outlines=True)
    assert telling.encode(frame) == plain.encode(frame)
    assert plain.outline is None
    assert telling.outline is not None
    assert telling.outline.shape == outlining_bundle.latent_size
    assert ((telling.outline > 0) & (telling.outline < 1)).all()
    unable = open_encoder(tiny_bundle, engine="onnxruntime", threads=1, outlines=True)
    unable.encode(frame)
    assert unable.outline is None


def test_a_graph_of_outlines_of_another_kind_is_refused(outlining_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(outlining_bundle.path, tmp_path / "bundle")
    made = load_bundle(tmp_path / "bundle")

    class Mean(torch.nn.Module):
        def forward(self, y: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
            return y.mean((1, 2, 3)) + quality

    class Other(torch.nn.Module):
        def forward(self, y: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
            return y[:, 0] + quality[:, None, None]

    latents, size = made.tables.latents, made.latent_size
    examples = torch.zeros(1, latents, *size), torch.zeros(1, dtype=torch.long)
    trace(Mean(), examples, made.graph(outlining.GRAPH), inputs=["y", "quality"], outputs=["outline"])
    with pytest.raises(ConfigError, match="not one number per place"):
        outlining.open_outliner(made)
    examples = torch.zeros(1, latents + 1, *size), torch.zeros(1, dtype=torch.long)
    trace(Other(), examples, made.graph(outlining.GRAPH), inputs=["y", "quality"], outputs=["outline"])
    with pytest.raises(ConfigError, match="which the graph does not take; train it again"):
        outlining.open_outliner(made)
