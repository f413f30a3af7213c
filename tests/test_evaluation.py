"""Evaluation: real bytes, the estimate beside them, figures that add up."""

import itertools
import json
import math

import numpy as np
import pytest

from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import open_encoder
from pipeline.datasets import Labelled
from pipeline.entropy import ideal_bits
from pipeline.errors import ConfigError
from pipeline.evaluation import STAGES, Evaluation, as_json, as_text, estimated_bits, evaluate
from pipeline.streets import render_street


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle())


@pytest.fixture(scope="module")
def streets() -> Labelled:
    frames = list(itertools.islice(render_street(5, frames=8), 8))
    return Labelled(
        tuple(f"f{i}" for i in range(len(frames))),
        tuple(frame.image for frame in frames),
        tuple(frame.labels for frame in frames),
    )


@pytest.fixture(scope="module")
def evaluation(bundle: Bundle, streets: Labelled) -> Evaluation:
    return evaluate(bundle, streets, split="streets", engine="onnxruntime")


def test_estimated_and_real_rate_agree_within_two_percent(evaluation: Evaluation) -> None:
    assert evaluation.payload_bpp == pytest.approx(evaluation.estimated_bpp, rel=0.02)


def test_the_rate_has_all_overhead_in(evaluation: Evaluation) -> None:
    header_bits = 8 * (26 + 4)
    assert evaluation.rate_bpp == pytest.approx(evaluation.payload_bpp + header_bits / (360 * 480), rel=1e-3)


def test_the_estimate_is_the_information_under_the_integer_tables(bundle: Bundle, streets: Labelled) -> None:
    tables = bundle.tables
    latents = open_encoder(bundle, engine="onnxruntime").latents(streets.images[0])
    channels = np.repeat(np.arange(len(latents.hyper), dtype=np.uint8), latents.hyper[0].size)
    coded = ideal_bits(latents.symbols.ravel(), latents.prediction.indexes.ravel(), tables.latent)
    coded += ideal_bits(latents.hyper.ravel(), channels, tables.hyper)
    assert estimated_bits(latents, tables) == pytest.approx(coded, rel=0.02)


def test_figures_are_complete_and_serialisable(evaluation: Evaluation, bundle: Bundle) -> None:
    figures = json.loads(json.dumps(as_json(evaluation, bundle)))
    assert figures["frames"] == 8
    assert set(figures["stage_ms"]) == set(STAGES)
    assert set(figures["class_iou"]) == {one.name for one in bundle.manifest.classes}
    known = [iou for iou in evaluation.class_iou if not math.isnan(iou)]
    assert evaluation.miou == pytest.approx(np.mean(known))
    assert "bits per pixel, all overhead in" in as_text(evaluation, bundle)


def test_frames_of_another_size_are_refused(bundle: Bundle, streets: Labelled) -> None:
    small = Labelled(("odd",), (streets.images[0][:100],), (streets.labels[0][:100],))
    with pytest.raises(ConfigError, match="frame odd is 480x100; the bundle takes 480x360"):
        evaluate(bundle, small, split="small", engine="onnxruntime")
