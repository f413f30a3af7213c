"""Engines: the same graph gives the same numbers on each, and what cannot be opened is said."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.bundle import default_bundle, load_bundle
from pipeline.errors import ConfigError
from pipeline.runtime import OnnxruntimeSession, OpenvinoSession, batch_sizes, open_session


@pytest.fixture(scope="module")
def graph() -> Path:
    return load_bundle(default_bundle()).graph("decode")


@pytest.mark.parametrize("batch", [1, 3])
def test_engines_agree(graph: Path, batch: int) -> None:
    y_hat = np.random.default_rng(0).normal(size=(batch, 64, 23, 30)).astype(np.float32).round()
    (exact,) = open_session(graph, engine="onnxruntime", threads=1).run(y_hat)
    (other,) = open_session(graph, engine="openvino", threads=1).run(y_hat)
    assert exact.shape == other.shape == (batch, 11, 92, 120)
    # OpenVINO takes bfloat16 where the processor has it: 8 bits of mantissa.
    assert np.abs(exact - other).max() < 0.05 * np.abs(exact).max()


def test_openvino_compiles_for_powers_of_two_only(graph: Path) -> None:
    session = open_session(graph, engine="openvino", threads=1)
    assert isinstance(session, OpenvinoSession)
    y_hat = np.random.default_rng(0).normal(size=(4, 64, 23, 30)).astype(np.float32).round()
    (whole,) = session.run(y_hat)
    for count in (3, 2, 1):
        (part,) = session.run(y_hat[:count])
        assert part.shape == (count, 11, 92, 120)
        assert np.abs(part - whole[:count]).max() < 0.05 * np.abs(whole).max()
    assert sorted(session._requests) == [1, 2, 4]


def test_sizes_of_batches_are_powers_of_two_that_hold_each_of_them() -> None:
    assert {most: batch_sizes(most) for most in (1, 2, 3, 5, 8)} == {
        1: [1], 2: [1, 2], 3: [1, 2, 4], 5: [1, 2, 4, 8], 8: [1, 2, 4, 8],
    }  # fmt: skip


def test_results_outlive_the_next_run(graph: Path) -> None:
    session = open_session(graph, engine="openvino")
    (first,) = session.run(np.zeros((1, 64, 23, 30), np.float32))
    kept = first.copy()
    session.run(np.ones((1, 64, 23, 30), np.float32))
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
