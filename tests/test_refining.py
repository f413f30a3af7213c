"""A traced bundle becomes the one that is shipped: rounded thriftily, with a decode graph in 8-bit integers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from pipeline import int8, rdoq_fitting
from pipeline.bundle import Bundle, load_bundle
from pipeline.codec import DECODE_INT8
from pipeline.datasets import Labelled
from pipeline.errors import ConfigError
from pipeline.refining import refine, refine_and_measure

IMAGES = [one.image for one in tiny.scenes(5)]


@pytest.fixture
def bold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the masks of a network that was never trained, it gets both."""
    monkeypatch.setattr(rdoq_fitting, "PLAIN_LEVELS", 0)
    monkeypatch.setattr(rdoq_fitting, "pays", lambda *_: True)
    monkeypatch.setattr(rdoq_fitting.fit, "__kwdefaults__", {**rdoq_fitting.fit.__kwdefaults__, "tolerance": 9.0})
    monkeypatch.setattr(int8.add_int8, "__kwdefaults__", {"tolerance": 1.0})


def labelled(count: int, seed: int, *, wrong: bool = False) -> Labelled:
    scenes = tiny.scenes(count, seed)
    labels = tuple(np.full_like(one.labels, 77) if wrong else one.labels for one in scenes)
    return Labelled(tuple(f"{seed}-{index}" for index in range(count)), tuple(one.image for one in scenes), labels)


@pytest.mark.usefixtures("bold")
def test_both_are_fitted_and_a_second_time_gives_the_same(tiny_bundle: Bundle, tmp_path: Path) -> None:
    told: list[str] = []
    made = refine(tiny_bundle, IMAGES, tmp_path, tell=told.append)
    assert told == [f"quality levels fitted: {count}" for count in (1, 2, 3)]
    assert made.bundle.has_graph(DECODE_INT8)
    assert made.int8_moved is not None and 0 < made.int8_moved < 1
    assert made.bundle.tables.rdoq_lambda == pytest.approx([one.chosen.rdoq_lambda for one in made.levels])
    assert made.bundle.tables.rdoq_lambda[0] == 0 < min(made.bundle.tables.rdoq_lambda[1:])
    again = refine(made.bundle, IMAGES, tmp_path)
    assert again.bundle.id == made.bundle.id
    assert again.levels == made.levels


def test_where_integers_change_too_much_the_bundle_goes_without_and_loses_what_it_had(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8.add_int8, "__kwdefaults__", {"tolerance": 1.0})
    assert refine(tiny_bundle, IMAGES, tmp_path).bundle.has_graph(DECODE_INT8)
    monkeypatch.setattr(int8.add_int8, "__kwdefaults__", {"tolerance": 0.0})
    without = refine(load_bundle(tmp_path), IMAGES, tmp_path).bundle
    assert without.manifest.graphs == tiny_bundle.manifest.graphs
    assert without.manifest.precision == tiny_bundle.manifest.precision
    assert not (tmp_path / "decode_int8.onnx").exists()


def test_a_bundle_that_learned_from_what_it_is_measured_on_still_says_so(tiny_bundle: Bundle, tmp_path: Path) -> None:
    told = "tiny (all); rates and mIoU measured on dusk, which it learned from"
    known = replace(tiny_bundle, manifest=tiny_bundle.manifest.model_copy(update={"dataset": told}))
    made = refine_and_measure(known, labelled(3, 1), labelled(2, 2), tmp_path, split="dusk")
    assert made.bundle.manifest.dataset == told
    elsewhere = refine_and_measure(made.bundle, labelled(3, 1), labelled(2, 2), tmp_path, split="dawn")
    assert elsewhere.bundle.manifest.dataset == "tiny (all); rates and mIoU measured on dawn"


@pytest.mark.usefixtures("bold")
def test_the_manifest_says_what_was_measured_and_where(tiny_bundle: Bundle, tmp_path: Path) -> None:
    said: list[str] = []
    made = refine_and_measure(
        tiny_bundle, labelled(3, 1), labelled(2, 2), tmp_path / "made", split="dusk", tell=said.append
    )
    manifest = load_bundle(tmp_path / "made").manifest
    assert manifest == made.bundle.manifest
    assert manifest.dataset.endswith("; rates and mIoU measured on dusk")
    assert manifest.dataset.count("rates and mIoU") == 1
    assert manifest.precision.endswith("decode_int8: large convolutions in 8-bit integers")
    assert all(level.rate_bpp > 0 for level in manifest.quality_levels)
    assert said == [
        *(f"quality levels fitted: {count}" for count in (1, 2, 3)),
        *(f"quality levels measured: {count}" for count in (1, 2, 3)),
    ]


def test_a_bundle_is_not_touched_where_the_labels_are_not_of_its_classes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="77 is none of 11 classes"):
        refine_and_measure(tiny_bundle, labelled(3, 1), labelled(2, 2, wrong=True), tmp_path, split="dusk")
    assert not list(tmp_path.iterdir())
