"""A traced bundle becomes the one that is shipped: rounded thriftily, with a decode graph in 8-bit integers."""

from pathlib import Path

import tiny

from pipeline.bundle import Bundle
from pipeline.int8 import DECODE_INT8
from pipeline.refining import refine


def test_both_are_fitted_and_the_bundle_may_be_refined_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    images = [one.image for one in tiny.scenes(5)]
    told: list[int] = []
    made, fitted = refine(tiny_bundle, images, tmp_path, progress=told.append)
    assert told == [1, 2, 3]
    assert made.has_graph(DECODE_INT8)
    assert made.tables.rdoq_lambda == tuple(one.chosen.weight for one in fitted)
    again, _ = refine(made, images, tmp_path)
    assert again.id == made.id
