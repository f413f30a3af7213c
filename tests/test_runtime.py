"""Engines: the same graph gives the same numbers on each, and what cannot be opened is said."""

import platform
from pathlib import Path

import numpy as np
import pytest

from pipeline import runtime
from pipeline.bundle import default_bundle, load_bundle
from pipeline.engine_libraries import import_onnxruntime
from pipeline.errors import ConfigError
from pipeline.runtime import (
    OnnxruntimeSession,
    OpenvinoSession,
    Precision,
    batch_sizes,
    is_quick_at_int8,
    open_session,
)

ROWS, COLUMNS = load_bundle(default_bundle()).latent_size


@pytest.fixture(scope="module")
def graph() -> Path:
    return load_bundle(default_bundle()).graph("decode")


def latents(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Made-up latents (B, C, h, w) and their levels (B,), a level for each."""
    y_hat = np.random.default_rng(0).normal(size=(batch, 64, ROWS, COLUMNS)).astype(np.float32).round()
    return y_hat, np.arange(batch, dtype=np.int64)


@pytest.mark.parametrize("batch", [1, 3])
def test_engines_agree(graph: Path, batch: int) -> None:
    (exact,) = open_session(graph, engine="onnxruntime", threads=1).run(*latents(batch))
    (other,) = open_session(graph, engine="openvino", threads=1).run(*latents(batch))
    assert exact.shape == other.shape == (batch, 11, 4 * ROWS, 4 * COLUMNS)
    # OpenVINO takes bfloat16 where the processor has it: 8 bits of mantissa.
    assert np.abs(exact - other).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_each_row_of_a_batch_is_of_its_own_level(graph: Path, engine: str) -> None:
    session = open_session(graph, engine=engine, threads=1)
    y_hat = np.repeat(latents(1)[0], 3, axis=0)
    (together,) = session.run(y_hat, np.array([0, 2, 0]))
    for row, level in enumerate((0, 2, 0)):
        (alone,) = session.run(y_hat[:1], np.array([level]))
        assert np.abs(together[row] - alone[0]).max() < 0.05 * np.abs(alone).max()
    assert np.abs(together[0] - together[1]).max() > 0.2 * np.abs(together[0]).max()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_inputs_of_another_size_than_the_graph_takes_are_refused(graph: Path, engine: str) -> None:
    session, (y_hat, quality) = open_session(graph, engine=engine, threads=1), latents(1)
    for inputs in ((y_hat[:, 1:], quality), (y_hat[0], quality)):
        with pytest.raises(ValueError, match=r"inputs of \[.*\], which the graph does not take"):
            session.run(*inputs)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_another_number_of_inputs_than_the_graph_takes_is_refused(graph: Path, engine: str) -> None:
    session, (y_hat, quality) = open_session(graph, engine=engine, threads=1), latents(1)
    for inputs in ((y_hat,), (y_hat, quality, quality)):
        with pytest.raises(ValueError, match="inputs; the graph takes 2"):
            session.run(*inputs)


def test_openvino_compiles_for_powers_of_two_only(graph: Path) -> None:
    session = open_session(graph, engine="openvino", threads=1)
    assert isinstance(session, OpenvinoSession)
    y_hat, quality = latents(4)
    (whole,) = session.run(y_hat, quality)
    for count in (3, 2, 1):
        (part,) = session.run(y_hat[:count], quality[:count])
        assert part.shape == (count, 11, 4 * ROWS, 4 * COLUMNS)
        assert np.abs(part - whole[:count]).max() < 0.05 * np.abs(whole).max()
    assert sorted(session._requests) == [1, 2, 4]


@pytest.fixture(scope="module")
def picture() -> tuple[np.ndarray, np.ndarray]:
    """A made-up picture (1, H, W, 3) of the bundle's size, and a level."""
    manifest = load_bundle(default_bundle()).manifest
    shape = (1, manifest.height, manifest.width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), np.array([4])


def encoded(picture: tuple[np.ndarray, np.ndarray], precision: Precision) -> tuple[np.ndarray, OpenvinoSession]:
    """Latents y by OpenVINO, and the session that found them."""
    graph = load_bundle(default_bundle()).graph("encode")
    session = open_session(graph, engine="openvino", threads=1, precision=precision)
    assert isinstance(session, OpenvinoSession)
    return session.run(*picture)[0], session


def test_the_ends_of_an_encoder_are_computed_in_float32(picture: tuple[np.ndarray, np.ndarray]) -> None:
    exact, _ = encoded(picture, Precision.FLOAT32)
    short, _ = encoded(picture, Precision.SHORT)
    careful, session = encoded(picture, Precision.ENDS)
    if np.array_equal(careful, exact):  # the processor is quickest at float32, or OpenVINO does not mix types here
        assert np.array_equal(short, exact) or "INFERENCE_PRECISION_HINT" in session._options
        return
    (request,) = session._requests.values()
    in_float32 = runtime.float32_nodes(request.get_compiled_model())
    assert len(session._in_float32) == 5  # three from the picture on, and those of y and z
    assert session._in_float32 <= in_float32
    assert np.abs(careful - exact).mean() < 0.8 * np.abs(short - exact).mean()


def test_where_a_node_is_not_computed_in_float32_as_asked_all_are(picture: tuple[np.ndarray, np.ndarray]) -> None:
    exact, _ = encoded(picture, Precision.FLOAT32)
    _, session = encoded(picture, Precision.SHORT)
    asked = OpenvinoSession(session._core, session._model, session._options, in_float32=frozenset({"no such node"}))
    np.testing.assert_array_equal(asked.run(*picture)[0], exact)
    assert asked._options["INFERENCE_PRECISION_HINT"] == "f32"


def test_sizes_of_batches_are_powers_of_two_that_hold_each_of_them() -> None:
    assert {most: batch_sizes(most) for most in (1, 2, 3, 5, 8)} == {
        1: [1], 2: [1, 2], 3: [1, 2, 4], 5: [1, 2, 4, 8], 8: [1, 2, 4, 8],
    }  # fmt: skip


def test_results_outlive_the_next_run(graph: Path) -> None:
    session = open_session(graph, engine="openvino")
    y_hat, quality = latents(1)
    (first,) = session.run(y_hat, quality)
    kept = first.copy()
    session.run(y_hat + 1, quality)
    np.testing.assert_array_equal(first, kept)


def test_auto_takes_openvino_where_it_is_installed(graph: Path) -> None:
    assert isinstance(open_session(graph), OpenvinoSession)
    assert isinstance(open_session(graph, engine="onnxruntime"), OnnxruntimeSession)


def test_an_unknown_engine_is_refused(graph: Path) -> None:
    with pytest.raises(ConfigError, match="engine 'tpu' is unknown"):
        open_session(graph, engine="tpu")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_graph_is_named(tmp_path: Path, engine: str) -> None:
    broken = tmp_path / "decode.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(ConfigError, match=r"decode\.onnx: .* cannot load it"):
        open_session(broken, engine=engine)


def test_integers_are_quick_on_x86_unless_a_gpu_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert is_quick_at_int8("openvino")
    onnxruntime = import_onnxruntime()
    for providers, quick in ((["CPUExecutionProvider"], True), (["CUDAExecutionProvider"], False)):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda providers=providers: providers)
        assert is_quick_at_int8("onnxruntime") is quick
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not is_quick_at_int8("openvino")
