"""Agreement of a bundle's masks with given class maps, at every level, on the bytes that are sent."""

import io

import numpy as np
import pytest
import tiny
from rich.console import Console

from pipeline.accuracy import class_iou, confusion
from pipeline.agreement import Agreement, agreement, as_table
from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle
from pipeline.codec import open_decoder, open_encoder
from pipeline.messages import Decoded, Frame, FrameId

SCENES = tiny.scenes(3, seed=5)
IMAGES = [one.image for one in SCENES]


def masks(bundle: Bundle, quality: int) -> list[np.ndarray]:
    encoder = open_encoder(bundle, engine="onnxruntime", quality=quality)
    sent = [unpack(pack(encoder.encode(Frame(FrameId(0, i), 0, image)))) for i, image in enumerate(IMAGES)]
    decoded = open_decoder(bundle, engine="onnxruntime").decode(sent)
    assert all(isinstance(one, Decoded) for one in decoded)
    return [one.mask.classes for one in decoded]


def test_a_bundle_agrees_wholly_with_its_own_masks_and_levels_differ(tiny_bundle: Bundle) -> None:
    top = tiny.LEVELS - 1
    found = agreement(tiny_bundle, IMAGES, np.stack(masks(tiny_bundle, top)))
    assert [one.quality for one in found] == list(range(tiny.LEVELS))
    assert found[top].pixels == found[top].miou == 1.0
    assert found[0].pixels < 1.0


def test_rates_are_those_of_whole_packets(tiny_bundle: Bundle) -> None:
    found = agreement(tiny_bundle, IMAGES, np.zeros((3, tiny.HEIGHT, tiny.WIDTH), np.uint8))
    for one in found:
        encoder = open_encoder(tiny_bundle, engine="onnxruntime", quality=one.quality)
        sent = [pack(encoder.encode(Frame(FrameId(0, i), 0, image))) for i, image in enumerate(IMAGES)]
        assert one.rate_bpp == pytest.approx(8 * sum(map(len, sent)) / (3 * tiny.WIDTH * tiny.HEIGHT))
    assert found[0].rate_bpp < found[-1].rate_bpp


def test_classes_that_the_teachers_do_not_see_do_not_count_in_the_mean(tiny_bundle: Bundle) -> None:
    maps = np.stack([np.where(one.labels == tiny.SKY, tiny.SKY, tiny.ROAD) for one in SCENES]).astype(np.uint8)
    (low, *_) = agreement(tiny_bundle, IMAGES, maps)
    matrix = sum(confusion(*pair, tiny.CLASSES) for pair in zip(maps, masks(tiny_bundle, 0), strict=True))
    assert low.miou == pytest.approx(class_iou(matrix)[[tiny.SKY, tiny.ROAD]].mean())
    assert low.pixels == pytest.approx(np.diag(matrix).sum() / maps.size)


def test_the_table_shows_each_level_before_and_after_and_what_changed() -> None:
    before = [Agreement(0, 0.9, 0.5, 0.012), Agreement(1, 0.91, 0.55, 0.05)]
    after = [Agreement(0, 0.95, 0.6, 0.0115), Agreement(1, 0.93, 0.5, 0.06)]
    console = Console(width=120, file=io.StringIO())
    console.print(as_table(before, after, "a site"))
    shown = console.file.getvalue()
    assert "a site" in shown
    assert "90.00 -> 95.00" in shown
    assert "+10.00" in shown
    assert "0.0120 -> 0.0115" in shown
    assert "-0.0005" in shown
    assert "-5.00" in shown
