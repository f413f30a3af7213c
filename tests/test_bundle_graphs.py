"""A graph more in a bundle: covered by its hash, beside the others, and in place of an older one of its name."""

from pathlib import Path

import numpy as np
import torch

from pipeline.bundle import Bundle, load_bundle
from pipeline.bundle_graphs import add_graph
from pipeline.runtime import open_session


class Times(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def added(bundle: Bundle, factor: float, folder: Path) -> Bundle:
    example = torch.zeros(1, 3)
    return add_graph(
        bundle, "times", Times(factor), (example,), folder, inputs=["x"], outputs=["y"], presence_share=0.25
    )


def test_a_graph_is_added_or_replaced_and_the_hash_tells(tiny_bundle: Bundle, tmp_path: Path) -> None:
    made = added(tiny_bundle, 2.0, tmp_path / "made")
    assert set(made.manifest.graphs) == {*tiny_bundle.manifest.graphs, "times"}
    assert made.manifest.presence_share == 0.25
    assert made.graph("decode").read_bytes() == tiny_bundle.graph("decode").read_bytes()
    again = added(load_bundle(tmp_path / "made"), 3.0, tmp_path / "made")
    assert len({tiny_bundle.id, made.id, again.id}) == 3
    (found,) = open_session(again.graph("times"), engine="onnxruntime").run(np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found, np.full((2, 3), 3, np.float32))
