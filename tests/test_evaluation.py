"""Evaluation: real bytes, the estimate beside them, figures that add up."""

import itertools
import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.bitstream import pack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import open_decoder, open_encoder
from pipeline.datasets import Labelled, LabelledFrame, Stored
from pipeline.errors import ConfigError
from pipeline.evaluation import (
    STAGES,
    Evaluation,
    Measured,
    as_json,
    as_text,
    check_labels,
    estimated_bits,
    evaluate,
    levels_as_text,
    measure,
    measured_as_json,
    measured_on,
)
from pipeline.latent_coding import encode_latents
from pipeline.messages import Decoded, Frame, FrameId
from pipeline.sources import fit
from pipeline.streets import render_street


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle())


@pytest.fixture(scope="module")
def streets(bundle: Bundle) -> Labelled:
    """Frames of the bundle's own size."""
    size = {"width": bundle.manifest.width, "height": bundle.manifest.height}
    frames = list(itertools.islice(render_street(5, **size, frames=8), 8))
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


def test_the_rate_has_all_overhead_in(evaluation: Evaluation, streets: Labelled) -> None:
    header_bpp = 8 * (26 + 4) / streets.labels[0].size
    assert evaluation.rate_bpp == pytest.approx(evaluation.payload_bpp + header_bpp, rel=1e-3)


def test_estimate_and_bytes_agree_within_two_percent_at_every_level(bundle: Bundle, streets: Labelled) -> None:
    encoder, tables = open_encoder(bundle, engine="onnxruntime"), bundle.tables
    drifts = {}
    for level in bundle.manifest.quality_levels:
        encoder.quality = level.index
        latents = [encoder.latents(image) for image in streets.images]
        estimate = sum(estimated_bits(one, tables, level.index) for one in latents)
        drifts[level.index] = 8 * sum(len(encode_latents(one, tables, level.index)) for one in latents) / estimate - 1
    assert {level: drift for level, drift in drifts.items() if abs(drift) > 0.02} == {}, drifts


def test_figures_are_complete_and_serialisable(evaluation: Evaluation, bundle: Bundle) -> None:
    figures = json.loads(json.dumps(as_json(evaluation, bundle)))
    assert figures["frames"] == 8
    assert figures["quality"] == bundle.manifest.default_quality
    assert set(figures["stage_ms"]) == set(STAGES)
    assert set(figures["class_iou"]) == {one.name for one in bundle.manifest.classes}
    known = [iou for iou in evaluation.class_iou if not math.isnan(iou)]
    assert evaluation.miou == pytest.approx(np.mean(known))
    assert "bits per pixel, all overhead in" in as_text(evaluation, bundle)


def test_at_the_default_level_rounding_costs_little(evaluation: Evaluation, bundle: Bundle) -> None:
    assert abs(evaluation.miou - evaluation.unrounded_miou) < 0.03  # eight frames only
    assert f"{100 * evaluation.unrounded_miou:.2f} % if latents were not rounded" in as_text(evaluation, bundle)


@pytest.mark.parametrize(
    ("shown", "learned", "said"),
    [
        ("ab", "cd", ""),
        ("ab", "abc", ", which it learned from"),
        ("abc", "cdb", ", 2 of whose 3 frames it learned from"),
    ],
)
def test_where_figures_come_from_is_said(shown: str, learned: str, said: str) -> None:
    frames, others = (Labelled(tuple(names), (), ()) for names in (shown, learned))
    assert measured_on("dusk", frames, others) == f"rates and mIoU measured on dusk{said}"


def test_a_table_of_levels_has_a_row_for_each(evaluation: Evaluation, bundle: Bundle) -> None:
    levels = [Measured(replace(evaluation, quality=level), None) for level in range(3)]
    title, names, *rows = levels_as_text(levels, bundle).splitlines()
    assert bundle.manifest.name in title
    assert "mIoU" in names
    assert [int(row.split()[0]) for row in rows] == [0, 1, 2]
    assert f"{100 * evaluation.drift:+.2f} %" in rows[0]


def test_where_nothing_was_to_be_sent_no_estimate_is_missed(evaluation: Evaluation, bundle: Bundle) -> None:
    silent = replace(evaluation, payload_bpp=0.0, estimated_bpp=0.0)
    assert math.isnan(silent.drift)
    assert "payload        0.0000 bits per pixel, - of the estimate" in as_text(silent, bundle)


def test_what_a_bundle_does_not_make_is_not_measured(bundle: Bundle, streets: Labelled) -> None:
    few = Labelled(streets.names[:1], streets.images[:1], streets.labels[:1])
    measured = measure(bundle, few, split="streets", engine="onnxruntime", quality=1)
    assert measured.masks is not None
    assert measured.masks.quality == 1
    assert (measured.labels is not None) == bundle.has_graph("labels")
    assert ("labels" in measured_as_json(measured, bundle)) == bundle.has_graph("labels")


@pytest.mark.parametrize("strange", [32, 254])
def test_labels_that_are_no_class_are_refused(bundle: Bundle, streets: Labelled, strange: int) -> None:
    labels = np.where(streets.labels[0] == streets.labels[0][0, 0], np.uint8(strange), streets.labels[0])
    odd = Labelled(("odd",), streets.images[:1], (labels,))
    with pytest.raises(ConfigError, match=f"labels of odd: {strange} is none of 11 classes"):
        evaluate(bundle, odd, split="odd", engine="onnxruntime")


def test_frames_of_another_size_are_coded_at_the_bundles_and_rated_by_their_own(
    bundle: Bundle, streets: Labelled
) -> None:
    """Labels that are the mask itself, made smaller, say that all of it is right."""
    size = (bundle.manifest.width, bundle.manifest.height)
    small = cv2.resize(streets.images[0], (240, 180), interpolation=cv2.INTER_AREA).astype(np.uint8)
    packet = open_encoder(bundle, engine="onnxruntime").encode(Frame(FrameId(0, 0), 0, fit(small, size)))
    (decoded,) = open_decoder(bundle, engine="onnxruntime", labels=False).decode([packet])
    assert isinstance(decoded, Decoded) and decoded.mask is not None
    labels = cv2.resize(decoded.mask.classes, (240, 180), interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8)
    found = evaluate(bundle, Labelled(("small",), (small,), (labels,)), split="small", engine="onnxruntime")
    assert found.miou == 1
    assert found.rate_bpp == pytest.approx(8 * len(pack(packet)) / (240 * 180))


@pytest.mark.parametrize(("height", "width"), [(90, 240), (300, 100)])
def test_frames_on_disk_are_coded_whole_and_their_masks_cut_out_again(
    bundle: Bundle, streets: Labelled, height: int, width: int
) -> None:
    """Labels that are the mask itself, where the picture lies in it, say that all of it is right."""
    size = (bundle.manifest.height, bundle.manifest.width)
    other = cv2.resize(streets.images[0], (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    placed = Stored((), lambda _: LabelledFrame(other, other[..., 0])).placed(other, size)
    packet = open_encoder(bundle, engine="onnxruntime").encode(Frame(FrameId(0, 0), 0, placed.image))
    (decoded,) = open_decoder(bundle, engine="onnxruntime", labels=False).decode([packet])
    assert isinstance(decoded, Decoded) and decoded.mask is not None
    shown = decoded.mask.classes[: placed.rows, : placed.columns]
    assert shown.shape in ((size[0], round(size[0] * width / height)), (round(size[1] * height / width), size[1]))
    labels = cv2.resize(shown, (width, height), interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8)
    stored = Stored(("other",), lambda _: LabelledFrame(other, labels))
    found = evaluate(bundle, stored, split="other", engine="onnxruntime")
    assert found.miou == 1
    assert found.rate_bpp == pytest.approx(8 * len(pack(packet)) / (height * width))


def test_a_bundle_of_other_classes_and_labels_that_are_all_void_are_refused(bundle: Bundle, streets: Labelled) -> None:
    ours = tuple(one.name for one in bundle.manifest.classes)
    check_labels(bundle, replace(streets, classes=ours))
    with pytest.raises(ConfigError, match=r"those of the data bicyclist, .*; measure on what has the same"):
        check_labels(bundle, replace(streets, classes=ours[::-1]))
    void = tuple(np.full_like(labels, 255) for labels in streets.labels)
    with pytest.raises(ConfigError, match=r"all others are void; measure on a split that has labels"):
        check_labels(bundle, replace(streets, labels=void))
