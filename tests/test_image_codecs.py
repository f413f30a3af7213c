"""Image codecs: what comes out is the picture, what is counted is what a receiver needs."""

import itertools

import numpy as np
import pytest

from benchmarks import image_codecs
from benchmarks.image_codecs import ImageCodec, Setting, open_codecs, settings
from pipeline.streets import render_street

CODECS = open_codecs()
SIZE = (180, 240)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return next(iter(render_street(3, width=SIZE[1], height=SIZE[0], frames=1))).image


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def test_all_four_families_are_there() -> None:
    assert list(CODECS) == ["JPEG", "WebP", "HEVC intra", "AV1 intra"]


@each_codec
def test_the_finest_quality_gives_the_picture_back(codec: ImageCodec, image: np.ndarray) -> None:
    seen = codec.decode(codec.encode(image, codec.qualities[-1]))
    assert seen.shape == image.shape
    assert seen.dtype == np.uint8
    assert psnr(seen, image) > 34
    assert np.abs(seen.astype(float).mean((0, 1)) - image.mean((0, 1))).max() < 1  # no colour is shifted


@each_codec
def test_a_higher_quality_costs_more_and_errs_less(codec: ImageCodec, image: np.ndarray) -> None:
    for half in (True, False):
        sweep = [setting for setting in settings(codec) if setting.half is half]
        sizes, errors = [], []
        for setting in (sweep[0], sweep[len(sweep) // 2], sweep[-1]):
            data = setting.encode(image)
            sizes.append(len(data))
            errors.append(psnr(setting.decode(data, SIZE), image))
        assert all(a < b for a, b in itertools.pairwise(sizes))
        assert all(a < b for a, b in itertools.pairwise(errors))


@each_codec
def test_half_size_comes_back_at_full_size_with_fewer_bytes(codec: ImageCodec, image: np.ndarray) -> None:
    quality = codec.half_qualities[len(codec.half_qualities) // 2]
    data = Setting(codec, quality, True).encode(image)
    assert Setting(codec, quality, True).decode(data, SIZE).shape == image.shape
    assert len(data) < len(Setting(codec, quality, False).encode(image))


@each_codec
def test_the_same_picture_gives_the_same_bytes(codec: ImageCodec, image: np.ndarray) -> None:
    assert codec.encode(image, codec.qualities[0]) == codec.encode(image, codec.qualities[0])


@each_codec
def test_bytes_sent_once_are_the_same_whatever_the_picture(codec: ImageCodec, image: np.ndarray) -> None:
    once = [codec.once_bytes(codec.encode(one, codec.qualities[1])) for one in (image, image[::-1].copy())]
    assert once[0] == once[1] < 120


def test_hevc_is_parameter_sets_and_one_picture_without_sei(image: np.ndarray) -> None:
    data = CODECS["HEVC intra"].encode(image, 32)
    kinds = [unit[0] >> 1 for unit in data.split(b"\0\0\1")[1:]]
    assert kinds[:3] == [32, 33, 34]
    assert len(kinds) == 4
    assert 16 <= kinds[3] <= 21
    slice_bytes = len(data[data.rindex(b"\0\0\1") :])
    assert image_codecs.hevc_parameter_bytes(data) + slice_bytes == pytest.approx(len(data), abs=4)


def test_av1_is_a_sequence_header_and_one_picture_without_container(image: np.ndarray) -> None:
    units = image_codecs._open_bitstream_units(CODECS["AV1 intra"].encode(image, 35))
    assert [kind for kind, _ in units] == [1, 6]


def test_jpeg_keeps_the_smaller_of_baseline_and_progressive(image: np.ndarray) -> None:
    kinds = {image_codecs._encode_jpeg(image, quality).find(b"\xff\xc2") > 0 for quality in (1, 30, 95)}
    assert True in kinds  # progressive is smaller for all but tiny files


def test_svt_av1_serves_where_pillow_has_no_avif(monkeypatch: pytest.MonkeyPatch, image: np.ndarray) -> None:
    real = image_codecs.features.check
    monkeypatch.setattr(image_codecs.features, "check", lambda name: name != "avif" and real(name))
    codec = open_codecs()["AV1 intra"]
    assert "libsvtav1" in codec.encoder
    assert psnr(codec.decode(codec.encode(image, codec.qualities[-1])), image) > 34
