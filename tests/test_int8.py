"""The 8-bit decode graph: which convolutions are in integers, and that masks stay what they were."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from numpy.typing import NDArray

from pipeline import int8 as module
from pipeline.bundle import Bundle, copy_content, default_bundle, load_bundle, seal
from pipeline.class_map import class_map
from pipeline.codec import open_encoder
from pipeline.int8 import DECODE_INT8, add_int8, large_convolutions
from pipeline.latent_coding import dequantise
from pipeline.runtime import open_session
from pipeline.sources import fit, open_source
from pipeline.video import sample_path


def latents(bundle: Bundle, seed: int) -> Iterator[tuple[NDArray[np.float32], int]]:
    encoder = open_encoder(bundle, engine="onnxruntime")
    for one in tiny.scenes(3, seed):
        for encoder.quality in range(bundle.tables.levels):
            yield dequantise(encoder.latents(one.image)), encoder.quality


def calibration(bundle: Bundle) -> list[tuple[NDArray[np.float32], int]]:
    """Enough of them that few values of other frames lie beyond: with half as many one frame in nine was 1 % off."""
    return [one for seed in (0, 2, 3, 4, 5, 6) for one in latents(bundle, seed)]


@pytest.fixture(scope="module")
def made(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made, moved = add_int8(tiny_bundle, calibration(tiny_bundle), tmp_path_factory.mktemp("int8"), tolerance=1.0)
    assert moved is not None and 0 < moved < 0.2
    return made


def test_latents_that_are_too_many_to_keep_at_once_are_counted_in_parts(
    tiny_bundle: Bundle, made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Histograms of parts are put together: the ranges are nearly those of all at once, and so are the masks."""
    seen = calibration(tiny_bundle)
    assert module._together(seen) is None
    monkeypatch.setattr(module, "_TOGETHER", seen[0][0][0].size * 13)
    assert module._together(seen) == 9  # of 54
    in_parts, _ = add_int8(tiny_bundle, seen, tmp_path / "parts", tolerance=1.0)
    graphs = [open_session(one.graph(DECODE_INT8), engine="onnxruntime") for one in (made, in_parts)]
    for y_hat, level in seen[::7]:
        logits, again = (graph.run(y_hat[None], np.array([level], np.int64))[0] for graph in graphs)
        assert np.mean(logits.argmax(1) != again.argmax(1)) < 0.02


def test_the_bundle_has_one_graph_more_and_its_hash_tells(made: Bundle, tiny_bundle: Bundle) -> None:
    assert set(made.manifest.graphs) == {*tiny_bundle.manifest.graphs, DECODE_INT8}
    assert made.graph("decode").read_bytes() == tiny_bundle.graph("decode").read_bytes()
    assert made.id != tiny_bundle.id
    assert load_bundle(made.path).id == made.id


def test_large_convolutions_but_the_first_have_weights_of_seven_bits(made: Bundle) -> None:
    large = large_convolutions(onnx.load(made.graph("decode")))
    assert len(large) >= 2
    stored = onnx.load(made.graph(DECODE_INT8)).graph.initializer
    weights = [onnx.numpy_helper.to_array(one) for one in stored if one.data_type == onnx.TensorProto.INT8]
    kernels = [one for one in weights if one.ndim == 4]
    assert len(kernels) == len(large)
    assert all(one.shape[2:] == (3, 3) and np.abs(one.astype(int)).max() <= 64 for one in kernels)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_masks_of_the_shipped_bundle_are_the_same_but_for_one_pixel_in_two_hundred(engine: str) -> None:
    bundle = load_bundle(default_bundle())
    size = bundle.manifest.width, bundle.manifest.height
    encoder = open_encoder(bundle, engine=engine)
    plain, short = (open_session(bundle.graph(name), engine=engine) for name in ("decode", DECODE_INT8))
    with open_source(str(sample_path()), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
        for level, picture in enumerate(itertools.islice(opened.pictures, bundle.tables.levels)):
            encoder.quality = level
            y_hat = dequantise(encoder.latents(fit(picture.image, size)))[None]
            masks = [class_map(one.run(y_hat, np.array([level]))[0][0], *size[::-1]) for one in (plain, short)]
            assert np.mean(masks[0] != masks[1]) < 0.005


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_logits_are_near_what_they_were_on_frames_not_calibrated_on(made: Bundle, engine: str) -> None:
    plain, short = (open_session(made.graph(name), engine=engine) for name in ("decode", DECODE_INT8))
    for y_hat, level in (*latents(made, 1), *latents(made, 7)):
        logits = [one.run(y_hat[None], np.array([level]))[0][0] for one in (plain, short)]
        assert np.abs(logits[1] - logits[0]).mean() < 0.005 * np.ptp(logits[0])


def test_a_batch_gives_what_its_rows_give_alone(made: Bundle) -> None:
    session = open_session(made.graph(DECODE_INT8), engine="onnxruntime")
    rows = list(latents(made, 2))
    (together,) = session.run(np.stack([y_hat for y_hat, _ in rows]), np.array([level for _, level in rows]))
    for (y_hat, level), found in zip(rows, together, strict=True):
        (alone,) = session.run(y_hat[None], np.array([level]))
        np.testing.assert_allclose(found, alone[0], atol=1e-4)


def test_nothing_tells_where_it_was_made_and_nothing_is_printed(
    made: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    again, _ = add_int8(made, calibration(made), tmp_path, tolerance=1.0)
    assert capsys.readouterr().out == ""
    assert not caplog.records
    content = again.graph(DECODE_INT8).read_bytes()
    assert content == made.graph(DECODE_INT8).read_bytes()
    for place in (tmp_path, Path(onnx.__file__).parent, Path(__file__).parents[1]):
        assert str(place).encode() not in content


def test_a_network_without_large_convolutions_stays_as_it_is(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy_content(tiny_bundle, tmp_path)
    model = onnx.load(tiny_bundle.graph("decode"))
    _, *others = [node for node in model.graph.node if node.op_type == "Conv"]
    for node in others:
        next(one for one in node.attribute if one.name == "kernel_shape").ints[:] = [1, 1]
    onnx.save(model, str(tmp_path / "decode.onnx"))
    plain = seal(tiny_bundle.manifest, tmp_path)
    made, moved = add_int8(plain, [], tmp_path / "made")
    assert (made.id, made.manifest, moved) == (plain.id, plain.manifest, None)


def test_depthwise_convolutions_are_left_in_floats() -> None:
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["y"], name=name, kernel_shape=[3, 3], **group)
        for name, group in (("first", {}), ("plain", {}), ("one", {"group": 1}), ("depthwise", {"group": 8}))
    ]
    graph = onnx.helper.make_graph(nodes, "some", [], [])
    assert large_convolutions(onnx.helper.make_model(graph)) == ["plain", "one"]
