"""The JSON of the labels topic: what workers write is what the viewer reads."""

import json

import numpy as np
import pytest

from nodes.reports import Labels, read_report
from pipeline.label_report import pack_labels
from pipeline.messages import FrameId, Scores


def scores_of(*values: float) -> Scores:
    return Scores(FrameId(7, 5), 1_000_000, bytes.fromhex("0a0b0c0d"), np.array(values, np.float32))


def test_scores_stand_under_their_names_in_the_order_of_the_classes() -> None:
    said = json.loads(pack_labels(scores_of(0.25, 1.0, 0.123456), ["sky", "road", "car"]))
    assert said == {
        "epoch": 7,
        "sequence": 5,
        "captured_ms": 1_000_000,
        "bundle": "0a0b0c0d",
        "labels": [
            {"name": "sky", "score": 0.25}, {"name": "road", "score": 1.0}, {"name": "car", "score": 0.1235},
        ],
    }  # fmt: skip


def test_what_is_written_is_read() -> None:
    read = read_report(Labels, pack_labels(scores_of(0.0, 0.99999), ["sky", "road"]))
    assert (read.epoch, read.sequence, read.captured_ms, read.bundle) == (7, 5, 1_000_000, "0a0b0c0d")
    assert [label.name for label in read.present()] == ["road"]


def test_scores_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        pack_labels(scores_of(0.5), ["sky", "road"])
