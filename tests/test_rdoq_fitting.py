"""How thriftily levels are rounded: as much as masks bear, and only where the level below does not do as well."""

from pathlib import Path

import numpy as np
import pytest
import tiny

from pipeline import rdoq_fitting as module
from pipeline.bundle import Bundle, load_bundle
from pipeline.codec import open_encoder
from pipeline.errors import ConfigError
from pipeline.int8 import add_int8
from pipeline.latent_coding import dequantise
from pipeline.rdoq_fitting import LAMBDAS, Fitted, Rounding, as_table, fit, pays, write

IMAGES = [one.image for one in tiny.scenes(4, 3)]


def test_the_chosen_lambda_is_the_largest_within_the_tolerance(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLAIN_LEVELS", 0)
    monkeypatch.setattr(module, "pays", lambda *_: True)
    told: list[int] = []
    fitted = list(fit(tiny_bundle, IMAGES, tolerance=0.5, progress=told.append))
    assert told == [1, 2, 3]
    assert fitted[0].chosen == fitted[0].nearest  # nothing is below it
    for one in fitted[1:]:
        assert one.nearest.rdoq_lambda == 0
        assert one.chosen.rdoq_lambda in (0, *LAMBDAS)
        assert one.chosen.moved <= 1.5 * one.nearest.moved
        assert one.chosen.frame_bytes <= one.nearest.frame_bytes
    bolder = list(fit(tiny_bundle, IMAGES, tolerance=100.0))
    assert [one.chosen.rdoq_lambda for one in bolder[1:]] == [LAMBDAS[-1]] * 2
    assert all(one.chosen.frame_bytes < one.nearest.frame_bytes for one in bolder[1:])


def test_the_highest_levels_are_rounded_to_the_nearest(tiny_bundle: Bundle) -> None:
    fitted = list(fit(tiny_bundle, IMAGES, tolerance=100.0))
    assert [one.quality for one in fitted] == [0, 1, 2]
    assert [one.chosen.rdoq_lambda for one in fitted] == [0, 0, 0]  # of three levels: none below, and two at the top


@pytest.mark.parametrize(
    ("moved", "does"),
    [(0.0200, True), (0.0204, True), (0.0208, False), (0.0220, False)],
)
def test_thrift_pays_where_a_mixture_with_the_level_below_is_worse(moved: float, does: bool) -> None:
    # Half the bytes, twice the pixels: at 0.96 of the bytes a mixture moves 1 / 0.96 of them.
    nearest, below = Rounding(0, 500, 0.02), Rounding(0, 250, 0.04)
    assert pays(Rounding(0.01, 480, moved), nearest, below) is does


@pytest.mark.parametrize("below", [Rounding(0, 500, 0.04), Rounding(0, 250, 0.02), Rounding(0, 250, 0.01)])
def test_nothing_pays_beside_a_level_that_is_no_cheaper_or_no_worse(below: Rounding) -> None:
    assert not pays(Rounding(0.01, 100, 0.02), Rounding(0, 500, 0.02), below)


def test_lambdas_are_written_and_packets_shrink(tiny_bundle: Bundle, tmp_path: Path) -> None:
    one = Rounding(0.08, 1.0, 0.0)
    made = write(tiny_bundle, [Fitted(level, one, one) for level in range(tiny.LEVELS)], tmp_path / "made")
    assert made.tables.rdoq_lambda == pytest.approx([0.08] * tiny.LEVELS)
    assert load_bundle(tmp_path / "made").id == made.id != tiny_bundle.id
    assert made.manifest.quality_levels == tiny_bundle.manifest.quality_levels
    nonzero = [
        sum(np.count_nonzero(encoder.latents(image).symbols) for image in IMAGES)
        for encoder in (open_encoder(each, engine="onnxruntime", quality=2) for each in (tiny_bundle, made))
    ]
    assert nonzero[1] < nonzero[0]


def test_what_is_fitted_does_not_depend_on_the_graph_that_is_quick_here(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLAIN_LEVELS", 0)
    encoder = open_encoder(tiny_bundle, engine="onnxruntime")
    latents = [(dequantise(encoder.latents(image)), 0) for image in IMAGES]
    with_int8, _ = add_int8(tiny_bundle, latents, tmp_path, tolerance=1.0)
    assert list(fit(with_int8, IMAGES[:2])) == list(fit(tiny_bundle, IMAGES[:2]))


def test_no_images_are_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="no images"):
        list(fit(tiny_bundle, []))


def test_the_table_has_a_row_for_each_level() -> None:
    table = as_table([Fitted(3, Rounding(0, 320.0, 0.02), Rounding(0.015, 300.0, 0.0208))])
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["3", "0.015", "320", "300", "2.00 %", "2.08 %"]
