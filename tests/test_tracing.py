"""A traced network: the same answers for any batch size, by the names that were given, in half the bytes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from pipeline.engine_libraries import import_onnxruntime
from pipeline.tracing import trace


class Scaled(nn.Module):
    """x (B, 8, h, w) and levels (B,) -> (B, 32): a convolution, its mean times the level's factor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 32, 3, padding=1)
        self.factors = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]))

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        mean: Tensor = self.conv(x).mean((2, 3)) * self.factors[quality][:, None]
        return mean


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traced") / "graph.onnx"
    examples = torch.zeros(1, 8, 5, 6), torch.zeros(1, dtype=torch.int64)
    trace(Scaled(), examples, path, inputs=["x", "quality"], outputs=["scaled"])
    return path


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_batch_of_any_size_gives_what_torch_gives(graph: Path, batch: int) -> None:
    session = import_onnxruntime().InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    x, quality = torch.randn(batch, 8, 5, 6), torch.arange(batch) % 3
    (found,) = session.run(["scaled"], {"x": x.numpy(), "quality": quality.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, Scaled()(x, quality).numpy(), atol=2e-3)


def test_large_weights_are_stored_in_half_and_small_ones_are_not(graph: Path) -> None:
    kinds = {tensor.data_type for tensor in onnx.load(graph).graph.initializer if np.prod(tensor.dims) >= 256}
    assert kinds == {onnx.TensorProto.FLOAT16}
    small = [tensor for tensor in onnx.load(graph).graph.initializer if np.prod(tensor.dims) == 32]
    assert {tensor.data_type for tensor in small} == {onnx.TensorProto.FLOAT}


def test_a_graph_does_not_tell_where_it_was_made(graph: Path) -> None:
    content = graph.read_bytes()
    for place in (Path(__file__).parents[1], Path(torch.__file__).parent):
        assert str(place).encode() not in content
    assert not any(node.metadata_props or node.doc_string for node in onnx.load(graph).graph.node)


def test_names_of_inputs_and_outputs_are_those_given(graph: Path) -> None:
    traced = onnx.load(graph).graph
    assert [one.name for one in traced.input] == ["x", "quality"]
    assert [one.name for one in traced.output] == ["scaled"]
