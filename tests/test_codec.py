"""Frame to packet to mask: what is equal on every engine, and what a broken packet does."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import (
    Decoder,
    Encoder,
    decode_latents,
    dequantise,
    encode_latents,
    open_decoder,
    open_encoder,
    packet_of,
)
from pipeline.errors import BitstreamError, BundleMismatch, ConfigError
from pipeline.messages import Frame, FrameId, Kind, Mask, Packet, Region
from pipeline.sources import fit, open_source
from pipeline.video import sample_path

ENGINES = ("onnxruntime", "openvino")
FRAMES = 200


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle())


@pytest.fixture(scope="module")
def images(bundle: Bundle) -> list[np.ndarray]:
    """The first FRAMES pictures of the sample, at the bundle's size."""
    size = (bundle.manifest.width, bundle.manifest.height)
    with open_source(str(sample_path()), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
        return [fit(picture.image, size) for picture in itertools.islice(opened.pictures, FRAMES)]


@pytest.fixture(scope="module")
def encoders(bundle: Bundle) -> dict[str, Encoder]:
    return {engine: open_encoder(bundle, engine=engine, threads=2) for engine in ENGINES}


@pytest.fixture(scope="module")
def decoders(bundle: Bundle) -> dict[str, Decoder]:
    return {engine: open_decoder(bundle, engine=engine, threads=2) for engine in ENGINES}


def packets_of(encoder: Encoder, images: list[np.ndarray]) -> Iterator[Packet]:
    for sequence, image in enumerate(images):
        yield encoder.encode(Frame(FrameId(7, sequence), 1000 + sequence, image))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_packet_of_a_clip_gives_the_symbols_that_went_in(
    engine: str, bundle: Bundle, encoders: dict[str, Encoder], images: list[np.ndarray]
) -> None:
    assert len(images) == FRAMES
    for sequence, image in enumerate(images):
        sent = encoders[engine].latents(image)
        frame = Frame(FrameId(7, sequence), 0, image)
        packet = packet_of(frame, encode_latents(sent, bundle.tables), bundle=bundle.id, quality=0)
        read = decode_latents(unpack(pack(packet)).regions[0].body, bundle.tables, bundle.latent_size)
        np.testing.assert_array_equal(read.hyper, sent.hyper)
        np.testing.assert_array_equal(read.symbols, sent.symbols)
        np.testing.assert_array_equal(read.prediction.indexes, sent.prediction.indexes)


@pytest.mark.parametrize(("there", "here"), [ENGINES, ENGINES[::-1]], ids=" to ".join)
def test_packets_of_one_engine_are_decoded_by_the_other(
    there: str, here: str, encoders: dict[str, Encoder], decoders: dict[str, Decoder], images: list[np.ndarray]
) -> None:
    packets = list(packets_of(encoders[there], images[::10]))
    far, near = decoders[here].decode(packets), decoders[there].decode(packets)
    agreements = []
    for ours, theirs in zip(far, near, strict=True):
        assert isinstance(ours, Mask)
        assert isinstance(theirs, Mask)
        agreements.append(np.mean(ours.classes == theirs.classes))
    # The symbols are the same; float32 against bfloat16 in the decoder moves a few borders.
    assert np.mean(agreements) > 0.98


def test_latents_are_the_same_bits_whatever_decodes_them(
    bundle: Bundle, encoders: dict[str, Encoder], images: list[np.ndarray]
) -> None:
    packets = list(packets_of(encoders["openvino"], images[:40:10]))
    seen = [
        open_decoder(bundle, engine=engine, threads=threads).y_hat(packet).tobytes()
        for engine, threads in itertools.product(ENGINES, (1, 2))
        for packet in packets
    ]
    assert seen == seen[: len(packets)] * 4


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_gives_what_its_packets_give_alone(
    engine: str, encoders: dict[str, Encoder], decoders: dict[str, Decoder], images: list[np.ndarray]
) -> None:
    packets = list(packets_of(encoders[engine], images[:30:10]))
    together = decoders[engine].decode(packets)
    for packet, mask in zip(packets, together, strict=True):
        (alone,) = decoders[engine].decode([packet])
        assert isinstance(mask, Mask)
        assert isinstance(alone, Mask)
        assert mask.id == packet.id
        assert mask.captured_ms == packet.captured_ms
        assert np.mean(mask.classes == alone.classes) > 0.99


def test_a_decoder_for_batches_is_warm_for_all_their_sizes(bundle: Bundle) -> None:
    decoder = open_decoder(bundle, engine="openvino", threads=2, batch=3)
    assert sorted(decoder._session._requests) == [1, 2, 4]  # type: ignore[attr-defined]


def test_a_bad_packet_does_not_spoil_its_batch(
    bundle: Bundle, encoders: dict[str, Encoder], decoders: dict[str, Decoder], images: list[np.ndarray]
) -> None:
    good = next(packets_of(encoders["onnxruntime"], images))
    body = good.regions[0].body
    torn = replace(good, regions=(Region(Kind.KEY, 0, 0, body[:-3]),))
    foreign = replace(good, bundle=bytes(4))
    warped = replace(good, regions=(Region(Kind.WARP, 0, 1, b"flow"),))
    empty = replace(good, regions=())
    results = decoders["onnxruntime"].decode([torn, good, foreign, warped, empty])
    assert [type(result) for result in results] == [
        BitstreamError,
        Mask,
        BundleMismatch,
        BitstreamError,
        BitstreamError,
    ]
    assert decoders["onnxruntime"].decode([]) == []


def test_mutated_packets_give_a_mask_or_an_error(
    bundle: Bundle, encoders: dict[str, Encoder], images: list[np.ndarray]
) -> None:
    body = next(packets_of(encoders["onnxruntime"], images)).regions[0].body
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(10_000):
        damaged = bytearray(body)
        for at in rng.integers(len(body), size=rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        cut = bytes(damaged[: rng.integers(len(body) + 1)]) if rng.random() < 0.2 else bytes(damaged)
        try:
            y_hat = dequantise(decode_latents(cut, bundle.tables, bundle.latent_size))
            assert np.isfinite(y_hat).all()
        except BitstreamError:
            refused += 1
    assert refused > 9_000  # the coder ends in a known state; hardly anything slips through


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=600), decoded=st.booleans())
def test_any_bytes_are_latents_or_a_bitstream_error(
    bundle: Bundle, decoders: dict[str, Decoder], body: bytes, decoded: bool
) -> None:
    packet = Packet(FrameId(0, 0), 0, bundle.id, 0, 1, 1, (Region(Kind.KEY, 0, 0, body),))
    (result,) = decoders["onnxruntime"].decode([unpack(pack(packet)) if decoded else packet])
    assert isinstance(result, Mask | BitstreamError)


def test_extreme_outputs_of_a_network_are_still_coded(bundle: Bundle, encoders: dict[str, Encoder]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (360, 480, 3), np.uint8)
    for image in (np.zeros_like(noise), np.full_like(noise, 255), noise):
        latents = encoders["onnxruntime"].latents(image)
        read = decode_latents(encode_latents(latents, bundle.tables), bundle.tables, bundle.latent_size)
        np.testing.assert_array_equal(read.symbols, latents.symbols)


def test_an_image_of_another_size_is_refused(encoders: dict[str, Encoder]) -> None:
    with pytest.raises(ValueError, match="expected uint8 360x480x3"):
        encoders["onnxruntime"].encode(Frame(FrameId(0, 0), 0, np.zeros((480, 360, 3), np.uint8)))


def test_an_unknown_quality_level_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="quality 99"):
        open_encoder(bundle, engine="onnxruntime", quality=99)
