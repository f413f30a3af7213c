"""Smoothed logits: what the Gaussian and the biases are, that classes keep their shares, and that it can be undone."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

from pipeline import int8
from pipeline.bundle import Bundle, copy_content, load_bundle, seal
from pipeline.codec import open_encoder
from pipeline.errors import ConfigError
from pipeline.int8 import DECODE_INT8, add_int8
from pipeline.latent_coding import dequantise
from pipeline.refining import refine
from pipeline.restoring import class_offsets
from pipeline.runtime import open_session
from pipeline.smoothing import MAX_SMOOTHING, smooth

SIGMA = 0.8
APART = {"onnxruntime": 0.002, "openvino": 0.1}  # logits of up to 12; bfloat16, where there is such, has 8 bits
Logits = NDArray[np.float32]


def latents(bundle: Bundle, seed: int) -> Iterator[tuple[NDArray[np.float32], int]]:
    encoder = open_encoder(bundle, engine="onnxruntime")
    for one in tiny.scenes(3, seed):
        for encoder.quality in range(bundle.tables.levels):
            yield dequantise(encoder.latents(one.image)), encoder.quality


@pytest.fixture(scope="module")
def made(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return smooth(tiny_bundle, SIGMA, latents(tiny_bundle, 0), tmp_path_factory.mktemp("smooth"))


def logits_of(bundle: Bundle, seed: int, *, engine: str = "onnxruntime", graph: str = "decode") -> list[list[Logits]]:
    """Of some frames, level by level (K, h, w)."""
    session = open_session(bundle.graph(graph), engine=engine)
    found: list[list[Logits]] = [[] for _ in range(bundle.tables.levels)]
    for y_hat, level in latents(bundle, seed):
        found[level].append(session.run(y_hat[None], np.array([level], np.int64))[0][0])
    return found


def blurred(logits: Logits, sigma: float) -> Logits:
    side = 2 * int(np.ceil(3 * sigma)) + 1
    blur = [cv2.GaussianBlur(one, (side, side), sigma, borderType=cv2.BORDER_REPLICATE) for one in logits]
    return np.stack(blur).astype(np.float32)


def shares(logits: list[Logits]) -> NDArray[np.float64]:
    found = np.concatenate([one.reshape(len(one), -1) for one in logits], 1).argmax(0)
    return np.bincount(found, minlength=tiny.CLASSES) / found.size


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_each_class_is_blurred_by_itself_and_moved_as_a_whole(tiny_bundle: Bundle, made: Bundle, engine: str) -> None:
    assert made.manifest.smoothing == SIGMA
    sharp, smoothed = (logits_of(bundle, 1, engine=engine) for bundle in (tiny_bundle, made))
    for before, after in zip(sharp, smoothed, strict=True):
        moved = np.stack([one - blurred(other, SIGMA) for one, other in zip(after, before, strict=True)])
        bias = np.median(moved, axis=(0, 2, 3))
        assert np.abs(moved - bias[None, :, None, None]).max() < APART[engine]
        assert abs(np.median(bias)) < 0.05


def test_classes_keep_their_shares_at_every_level_which_without_biases_they_would_not(
    tiny_bundle: Bundle, made: Bundle
) -> None:
    sharp, smoothed = (logits_of(bundle, 0) for bundle in (tiny_bundle, made))
    for before, after in zip(sharp, smoothed, strict=True):
        kept = np.abs(shares(after) - shares(before)).max()
        lost = np.abs(shares([blurred(one, SIGMA) for one in before]) - shares(before)).max()
        assert kept < 0.01
        assert kept < lost or lost < 0.002


def test_the_widest_is_what_both_engines_can_do(tiny_bundle: Bundle, tmp_path: Path) -> None:
    widest = smooth(tiny_bundle, MAX_SMOOTHING, latents(tiny_bundle, 0), tmp_path)
    assert load_bundle(tmp_path).manifest.smoothing == MAX_SMOOTHING
    sharp = logits_of(tiny_bundle, 1)
    for engine in APART:
        for before, after in zip(sharp, logits_of(widest, 1, engine=engine), strict=True):
            for one, other in zip(before, after, strict=True):
                moved = other - blurred(one, MAX_SMOOTHING)
                bias = np.median(moved, axis=(1, 2), keepdims=True)
                assert np.abs(moved - bias).max() < 2 * APART[engine]


def test_it_is_not_done_twice_and_can_be_taken_out(tiny_bundle: Bundle, made: Bundle, tmp_path: Path) -> None:
    again = smooth(made, SIGMA, latents(made, 0), tmp_path / "again")
    assert again.id == made.id
    wider = smooth(made, 2 * SIGMA, latents(made, 0), tmp_path / "wider")
    assert wider.id == smooth(tiny_bundle, 2 * SIGMA, latents(tiny_bundle, 0), tmp_path / "other").id
    out = smooth(made, 0, latents(made, 0), tmp_path / "out")
    assert out.manifest.smoothing is None
    for one, other in zip(logits_of(out, 1), logits_of(tiny_bundle, 1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_graph_of_8_bit_integers_is_smoothed_too(tiny_bundle: Bundle, tmp_path: Path) -> None:
    whole, _ = add_int8(tiny_bundle, list(latents(tiny_bundle, 0)), tmp_path / "int8", tolerance=1.0)
    both = smooth(whole, SIGMA, latents(whole, 0), tmp_path / "smooth")
    sharp, smoothed = (logits_of(bundle, 1, graph=DECODE_INT8) for bundle in (whole, both))
    plain = [logits_of(bundle, 1) for bundle in (whole, both)]
    for level in range(tiny.LEVELS):
        bias = np.median(plain[1][level][0] - blurred(plain[0][level][0], SIGMA), axis=(1, 2))[:, None, None]
        np.testing.assert_allclose(smoothed[level][0], blurred(sharp[level][0], SIGMA) + bias, atol=0.01)


def test_refining_smooths_before_all_else_and_leaves_it_where_it_is_not_told(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8.add_int8, "__kwdefaults__", {"tolerance": 1.0})
    images = [one.image for one in tiny.scenes(4)]
    made = refine(tiny_bundle, images, tmp_path, smoothing=SIGMA).bundle
    assert (made.manifest.smoothing, made.has_graph(DECODE_INT8)) == (SIGMA, True)
    plain, integers = logits_of(made, 1), logits_of(made, 1, graph=DECODE_INT8)
    assert np.mean(np.argmax(plain, 2) != np.argmax(integers, 2)) < 0.2
    assert refine(made, images, tmp_path).bundle.id == made.id
    out = refine(made, images, tmp_path, smoothing=0).bundle
    assert out.manifest.smoothing is None
    assert load_bundle(tmp_path).id == out.id


def test_a_network_that_is_tuned_gets_the_offsets_of_before(tiny_bundle: Bundle, made: Bundle) -> None:
    np.testing.assert_array_equal(class_offsets(made), class_offsets(tiny_bundle))


@pytest.mark.parametrize("sigma", [-0.1, 2.1])
def test_out_of_range_is_refused_before_anything_is_written(tiny_bundle: Bundle, tmp_path: Path, sigma: float) -> None:
    with pytest.raises(ConfigError, match="must be 0 to 2 logits"):
        smooth(tiny_bundle, sigma, [], tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_bundle_stays_as_it_is_where_there_is_nothing_to_refine_by(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy_content(tiny_bundle, tmp_path)
    own = seal(tiny_bundle.manifest, tmp_path)
    with pytest.raises(ConfigError, match="no images"):
        refine(own, [], tmp_path, smoothing=1.0)
    assert load_bundle(tmp_path).id == own.id
    graphs = {name: file for name, file in own.manifest.graphs.items() if name != "decode"}
    (tmp_path / "decode.onnx").rename(tmp_path / "labels.onnx")
    labels = seal(own.manifest.model_copy(update={"graphs": {**graphs, "labels": "labels.onnx"}}), tmp_path)
    with pytest.raises(ConfigError, match="decode"):
        smooth(labels, 1.0, latents(tiny_bundle, 0), tmp_path)
