"""ONNX segmentation networks: what a graph is shown, what it answers, and what is refused by name."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import flat, light_meter

from pipeline.errors import ConfigError
from pipeline.segmentation_graph import SegmentationGraph

SIZE = (48, 32)


def grey(level: int, *, count: int = 1) -> np.ndarray:
    return np.full((count, 3, SIZE[1], SIZE[0]), level, np.float32)


def test_graph_tells_its_classes_and_answers_for_each_picture(tmp_path: Path) -> None:
    graph = SegmentationGraph(light_meter(tmp_path / "g.onnx", 7, bright=2, dark=5), size=SIZE)
    assert (graph.classes, graph.size) == (7, SIZE)
    logits = graph.logits(np.concatenate([grey(255), grey(0), grey(255)]))
    assert logits.shape == (3, 7, SIZE[1] // 2, SIZE[0] // 2)
    assert logits.dtype == np.float32
    assert logits.argmax(1)[:, 0, 0].tolist() == [2, 5, 2]


def test_pictures_are_normalised_with_imagenets_mean_unless_the_graph_names_another(tmp_path: Path) -> None:
    settings = {"mean": "[0.9, 0.9, 0.9]", "std": "[0.5, 0.5, 0.5]"}
    usual = SegmentationGraph(light_meter(tmp_path / "a.onnx", 3, bright=0, dark=1), size=SIZE)
    other = SegmentationGraph(light_meter(tmp_path / "b.onnx", 3, bright=0, dark=1, metadata=settings), size=SIZE)
    # 0.6 lies above ImageNet's mean and below 0.9; the weights of bright are 20 for each colour.
    expected = 20 * sum((0.6 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225)))
    assert usual.logits(grey(153))[0, 0] == pytest.approx(expected, rel=1e-4)
    assert other.logits(grey(153))[0, 0] == pytest.approx(20 * 3 * (0.6 - 0.9) / 0.5, rel=1e-4)


def test_graph_of_a_fixed_size_keeps_it(tmp_path: Path) -> None:
    graph = SegmentationGraph(light_meter(tmp_path / "g.onnx", 3, bright=0, dark=1, size=(64, 16)), size=SIZE)
    assert graph.size == (64, 16)


@pytest.mark.parametrize("mean", ["0.5", "[0.5, 0.5]", "half", '{"r": 1}'])
def test_metadata_that_is_not_three_numbers_is_named(tmp_path: Path, mean: str) -> None:
    path = light_meter(tmp_path / "odd.onnx", 3, bright=0, dark=1, metadata={"mean": mean})
    with pytest.raises(ConfigError, match=r"odd\.onnx: metadata mean"):
        SegmentationGraph(path, size=SIZE)


def test_file_that_holds_no_graph_is_named(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"not a graph at all")
    with pytest.raises(ConfigError, match=r"noise\.onnx") as caught:
        SegmentationGraph(path, size=SIZE)
    assert "\n" not in str(caught.value)


def test_graph_that_gives_no_logits_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"flat\.onnx: not RGB"):
        SegmentationGraph(flat(tmp_path / "flat.onnx"), size=SIZE)


def test_graph_that_takes_other_pictures_is_named(tmp_path: Path) -> None:
    path = light_meter(tmp_path / "depth.onnx", 3, bright=0, dark=1, colours=4)
    with pytest.raises(ConfigError, match=r"depth\.onnx: not RGB") as caught:
        SegmentationGraph(path, size=SIZE)
    assert "\n" not in str(caught.value)


def test_graph_that_takes_more_than_a_picture_is_named(tmp_path: Path) -> None:
    path = light_meter(tmp_path / "two.onnx", 3, bright=0, dark=1)
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("quality", onnx.TensorProto.INT64, [1]))
    onnx.save(model, path)
    with pytest.raises(ConfigError, match=r"two\.onnx: not RGB .* 2 inputs, quality among them"):
        SegmentationGraph(path, size=SIZE)


def test_without_onnxruntime_the_teachers_load_and_a_graph_says_what_is_missing(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path\n"
        "from pipeline.errors import ConfigError\n"
        "from pipeline.segmentation_graph import SegmentationGraph\n"
        "try: SegmentationGraph(Path('some.onnx'), size=(8, 8))\n"
        "except ConfigError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "teacher some.onnx: needs onnxruntime; install it, or name a file of weights\n"
