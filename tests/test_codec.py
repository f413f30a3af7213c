"""Frame to packet to mask: what is equal on every engine, and what a broken packet does."""

import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import coding
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import ROOT

from pipeline import codec
from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle, default_bundle, load_bundle, tables_from
from pipeline.codec import DECODE_INT8, Decoder, Encoder, open_decoder, open_encoder, packet_of
from pipeline.entropy import Writer
from pipeline.errors import BitstreamError, BundleMismatch, ConfigError, MissingKey, PipelineError
from pipeline.flow_coding import decode_flow, encode_flow, grid_of
from pipeline.key_policies import at_interval
from pipeline.keys import GENERATIONS, KeyBuffers
from pipeline.latent_coding import decode_latents, dequantise, encode_latents, quantise
from pipeline.messages import Decoded, Frame, FrameId, Kind, Mask, Packet, Region
from pipeline.region_decoder import HeldKey
from pipeline.runtime import open_session
from pipeline.sources import fit, open_source
from pipeline.video import sample_path
from pipeline.video_encoder import VideoEncoder

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


@pytest.fixture
def encoder_of(bundle: Bundle, encoders: dict[str, Encoder]) -> Iterator[Callable[[str], Encoder]]:
    """Encoders whose level a test may change."""
    yield encoders.__getitem__
    for encoder in encoders.values():
        encoder.quality = bundle.manifest.default_quality


@pytest.fixture(scope="module")
def decoders(bundle: Bundle) -> dict[str, Decoder]:
    return {engine: open_decoder(bundle, engine=engine, threads=2) for engine in ENGINES}


def packets_of(encoder: Encoder, images: list[np.ndarray]) -> Iterator[Packet]:
    for sequence, image in enumerate(images):
        yield encoder.encode(Frame(FrameId(7, sequence), 1000 + sequence, image))


def mask_of(result: Decoded | PipelineError) -> Mask:
    assert isinstance(result, Decoded)
    assert result.mask is not None
    return result.mask


def levels_of(bundle: Bundle) -> list[int]:
    return [level.index for level in bundle.manifest.quality_levels]


def packets_at(encoder: Encoder, images: list[np.ndarray], levels: Iterable[int]) -> Iterator[Packet]:
    """One encoder, told another level between frames."""
    for sequence, (image, level) in enumerate(zip(images, levels, strict=True)):
        encoder.quality = level
        yield encoder.encode(Frame(FrameId(7, sequence), 1000 + sequence, image))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_packet_of_a_clip_gives_the_symbols_that_went_in_at_every_level(
    engine: str, bundle: Bundle, encoder_of: Callable[[str], Encoder], images: list[np.ndarray]
) -> None:
    encoder, levels, tables = encoder_of(engine), itertools.cycle(levels_of(bundle)), bundle.tables
    assert len(images) == FRAMES
    for sequence, (image, level) in enumerate(zip(images, levels, strict=False)):
        encoder.quality = level
        sent = encoder.latents(image)
        frame = Frame(FrameId(7, sequence), 0, image)
        packet = packet_of(frame, encode_latents(sent, tables, level), bundle=bundle.id, quality=level)
        received = unpack(pack(packet))
        assert received.quality == level
        read = decode_latents(received.regions[0].body, tables, bundle.latent_size, received.quality)
        np.testing.assert_array_equal(read.hyper, sent.hyper)
        np.testing.assert_array_equal(read.symbols, sent.symbols)
        np.testing.assert_array_equal(read.prediction.indexes, sent.prediction.indexes)
        np.testing.assert_array_equal(dequantise(read), dequantise(sent))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_encoder_told_another_level_codes_as_one_opened_for_it(
    engine: str, bundle: Bundle, encoder_of: Callable[[str], Encoder], images: list[np.ndarray]
) -> None:
    levels = levels_of(bundle)[::3]
    switched = packets_at(encoder_of(engine), [images[0]] * len(levels), levels)
    for level, packet in zip(levels, switched, strict=True):
        opened = open_encoder(bundle, engine=engine, threads=2, quality=level)
        assert packet.quality == opened.quality == level
        assert packet.regions == opened.encode(Frame(packet.id, packet.captured_ms, images[0])).regions


@pytest.mark.parametrize("engine", ENGINES)
def test_packets_of_several_levels_and_cameras_are_decoded_in_one_batch(
    engine: str, bundle: Bundle, encoder_of: Callable[[str], Encoder], decoders: dict[str, Decoder],
    images: list[np.ndarray],
) -> None:  # fmt: skip
    levels = levels_of(bundle)[::-1]
    packets = list(packets_at(encoder_of(engine), images[: 20 * len(levels) : 20], levels))
    # Two cameras take turns, each with an epoch of its own.
    packets = [replace(packet, id=FrameId(at % 2, packet.id.sequence)) for at, packet in enumerate(packets)]
    for packet, decoded in zip(packets, decoders[engine].decode(packets), strict=True):
        mask, (alone,) = mask_of(decoded), decoders[engine].decode([packet])
        assert mask.id == packet.id
        assert np.mean(mask.classes == mask_of(alone).classes) > 0.99


def test_a_higher_level_takes_more_bytes(
    bundle: Bundle, encoder_of: Callable[[str], Encoder], images: list[np.ndarray]
) -> None:
    encoder, seen = encoder_of("openvino"), images[::20]
    rates = [
        np.mean([len(pack(packet)) for packet in packets_at(encoder, seen, [level] * len(seen))])
        for level in levels_of(bundle)
    ]
    assert rates == sorted(rates)
    assert rates[-1] > 10 * rates[0]


def test_a_packet_of_a_level_that_the_bundle_lacks_is_a_bitstream_error(
    bundle: Bundle, encoders: dict[str, Encoder], decoders: dict[str, Decoder], images: list[np.ndarray]
) -> None:
    good = next(packets_of(encoders["onnxruntime"], images))
    for level in (bundle.tables.levels, 255):
        unknown, known = decoders["onnxruntime"].decode([replace(good, quality=level), good])
        assert isinstance(unknown, BitstreamError)
        assert f"quality {level}" in str(unknown)
        assert isinstance(known, Decoded)


@pytest.mark.parametrize(("there", "here"), [ENGINES, ENGINES[::-1]], ids=" to ".join)
def test_packets_of_one_engine_are_decoded_by_the_other(
    there: str, here: str, encoders: dict[str, Encoder], decoders: dict[str, Decoder], images: list[np.ndarray]
) -> None:
    packets = list(packets_of(encoders[there], images[::10]))
    far, near = decoders[here].decode(packets), decoders[there].decode(packets)
    agreements = []
    for ours, theirs in zip(far, near, strict=True):
        agreements.append(np.mean(mask_of(ours).classes == mask_of(theirs).classes))
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
    for packet, decoded in zip(packets, together, strict=True):
        mask, (alone,) = mask_of(decoded), decoders[engine].decode([packet])
        assert mask.id == packet.id
        assert mask.captured_ms == packet.captured_ms
        assert np.mean(mask.classes == mask_of(alone).classes) > 0.99


def test_masks_are_held_to_those_before_where_that_is_asked_for(
    bundle: Bundle, encoders: dict[str, Encoder], decoders: dict[str, Decoder], images: list[np.ndarray]
) -> None:
    held = open_decoder(bundle, engine="onnxruntime", threads=2, hysteresis=0.5)
    packets = list(packets_of(encoders["onnxruntime"], images))
    plain, steady = ([mask_of(one).classes for one in each.decode(packets)] for each in (decoders["onnxruntime"], held))
    np.testing.assert_array_equal(steady[0], plain[0])
    changed = [sum(np.mean(one != other) for one, other in itertools.pairwise(masks)) for masks in (plain, steady)]
    assert 0 < changed[1] < 0.9 * changed[0]


def test_a_decoder_for_batches_is_warm_for_all_their_sizes(bundle: Bundle) -> None:
    decoder = open_decoder(bundle, engine="openvino", threads=2, batch=3)
    assert sorted(decoder._session._requests) == [1, 2, 4]  # type: ignore[attr-defined]


def test_a_bad_packet_does_not_spoil_its_batch(
    bundle: Bundle, encoders: dict[str, Encoder], decoders: dict[str, Decoder], images: list[np.ndarray]
) -> None:
    good = next(packets_of(encoders["onnxruntime"], images))
    body = good.regions[0].body
    longer = replace(good, regions=(Region(Kind.KEY, 0, 0, body + b"\0"),))
    foreign = replace(good, bundle=bytes(4))
    warped = replace(good, regions=(Region(Kind.WARP, 0, 1, b"flow"),))
    empty = replace(good, regions=())
    results = decoders["onnxruntime"].decode([longer, good, foreign, warped, empty])
    assert [type(result) for result in results] == [
        BitstreamError,
        Decoded,
        BundleMismatch,
        BitstreamError,
        Decoded,
    ]
    assert decoders["onnxruntime"].decode([]) == []


def test_mutated_packets_give_a_mask_or_an_error(
    bundle: Bundle, encoders: dict[str, Encoder], images: list[np.ndarray]
) -> None:
    packet = next(packets_of(encoders["onnxruntime"], images))
    body, rng = packet.regions[0].body, np.random.default_rng(3)
    refused = 0
    for _ in range(10_000):
        damaged = bytearray(body)
        for at in rng.integers(len(body), size=rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        cut = bytes(damaged[: rng.integers(len(body) + 1)]) if rng.random() < 0.2 else bytes(damaged)
        try:
            y_hat = dequantise(decode_latents(cut, bundle.tables, bundle.latent_size, packet.quality))
            assert np.isfinite(y_hat).all()
        except BitstreamError:
            refused += 1
    assert refused > 2_700  # of what is wrong, the end mark lets one in sixteen slip through; the checksum is outside


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=600), quality=st.integers(0, 10), decoded=st.booleans())
def test_any_bytes_are_latents_or_a_bitstream_error(
    bundle: Bundle, decoders: dict[str, Decoder], body: bytes, quality: int, decoded: bool
) -> None:
    packet = Packet(FrameId(0, 0), 0, bundle.id, quality, 1, 1, (Region(Kind.KEY, 0, 0, body),))
    (result,) = decoders["onnxruntime"].decode([unpack(pack(packet)) if decoded else packet])
    assert isinstance(result, Decoded | BitstreamError)


def test_extreme_outputs_of_a_network_are_still_coded(bundle: Bundle, encoder_of: Callable[[str], Encoder]) -> None:
    encoder, tables = encoder_of("onnxruntime"), bundle.tables
    noise = np.random.default_rng(0).integers(0, 256, (bundle.manifest.height, bundle.manifest.width, 3), np.uint8)
    for image, level in itertools.product((np.zeros_like(noise), np.full_like(noise, 255), noise), levels_of(bundle)):
        encoder.quality = level
        latents = encoder.latents(image)
        read = decode_latents(encode_latents(latents, tables, level), tables, bundle.latent_size, level)
        np.testing.assert_array_equal(read.symbols, latents.symbols)


@pytest.mark.parametrize("prior", [False, True], ids=["without a prior", "with a prior"])
@pytest.mark.parametrize("quality", range(coding.LEVELS))
def test_each_level_codes_what_its_tables_allow(quality: int, prior: bool) -> None:
    tables, rng = tables_from(coding.stored_tables(prior=prior)), np.random.default_rng(quality)
    for width in (1, 4, 9):
        y = rng.normal(0, 2, (coding.LATENTS, coding.ROWS, width)).astype(np.float32)
        z = rng.normal(0, 40, (coding.HYPER * prior, 2, -(-width // 4))).astype(np.float32)
        latents = quantise(y, z, tables, quality)
        read = decode_latents(encode_latents(latents, tables, quality), tables, (coding.ROWS, width), quality)
        np.testing.assert_array_equal(read.hyper, latents.hyper)
        np.testing.assert_array_equal(read.symbols, latents.symbols)
        np.testing.assert_array_equal(dequantise(read), dequantise(latents))
        coded = tables.latent[quality].channels
        assert np.abs(dequantise(read) - y)[coded].max() <= 0.5
        assert not np.delete(read.symbols, coded, 0).any()


def test_values_that_cannot_be_sent_are_clamped() -> None:
    tables = tables_from(coding.stored_tables(prior=True))
    for far in (1e9, -1e9):
        y = np.full((coding.LATENTS, coding.ROWS, 4), far, np.float32)
        latents = quantise(y, np.full((coding.HYPER, 2, 1), far, np.float32), tables, 2)
        assert np.abs(latents.hyper).max() == tables.hyper_limit
        read = decode_latents(encode_latents(latents, tables, 2), tables, (coding.ROWS, 4), 2)
        np.testing.assert_array_equal(read.symbols, latents.symbols)


def test_a_hyper_latent_beyond_its_limit_is_a_bitstream_error() -> None:
    """As no encoder of ours sends it."""
    tables = tables_from(coding.stored_tables(prior=True))
    writer = Writer(100)
    writer.put(np.full((coding.HYPER, 2, 1), tables.hyper_limit + 1, np.int16), tables.hyper[0], tables.frequencies)
    with pytest.raises(BitstreamError, match="64 is beyond 63"):
        decode_latents(writer.finish(), tables, (coding.ROWS, 4), 0)


@pytest.mark.parametrize("quality", [-1, coding.LEVELS])
def test_a_level_without_tables_is_refused(quality: int) -> None:
    tables = tables_from(coding.stored_tables(prior=False))
    y, z = np.zeros((coding.LATENTS, coding.ROWS, 4), np.float32), np.zeros((0, 2, 1), np.float32)
    latents = quantise(y, z, tables, 0)
    with pytest.raises(ValueError, match="levels 0 to 2"):
        quantise(y, z, tables, quality)
    with pytest.raises(ValueError, match="levels 0 to 2"):
        encode_latents(latents, tables, quality)
    with pytest.raises(BitstreamError, match="levels 0 to 2"):
        decode_latents(b"", tables, (coding.ROWS, 4), quality)


def test_an_image_of_another_size_is_refused(bundle: Bundle, encoders: dict[str, Encoder]) -> None:
    height, width = bundle.manifest.height, bundle.manifest.width
    with pytest.raises(ValueError, match=f"expected uint8 {height}x{width}x3"):
        encoders["onnxruntime"].encode(Frame(FrameId(0, 0), 0, np.zeros((width, height, 3), np.uint8)))


def test_an_unknown_quality_level_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="quality 99"):
        open_encoder(bundle, engine="onnxruntime", quality=99)


GOLDEN = Path(__file__).parent / "golden"
INTERVAL = 4


@pytest.fixture(scope="module")
def stream(bundle: Bundle, encoders: dict[str, Encoder], images: list[np.ndarray]) -> list[Packet]:
    """Nine packets of a moving camera, every fourth a KEY, through their bytes."""
    encoder = VideoEncoder(encoders["onnxruntime"], bundle, policy=at_interval(INTERVAL))
    return [unpack(pack(packet)) for packet in packets_of(encoder, images[60:87:3])]


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> object:
    return open_session(bundle.graph("decode"), engine="onnxruntime", threads=2)


@pytest.fixture
def worker(bundle: Bundle, session: object) -> Decoder:
    """A decoder that has seen nothing yet."""
    return Decoder(bundle, session)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def masks(bundle: Bundle, session: object, stream: list[Packet]) -> list[np.ndarray]:
    """The classes of the stream's packets, decoded in order."""
    decoder = Decoder(bundle, session)  # type: ignore[arg-type]
    return [mask_of(decoder.decode([packet])[0]).classes for packet in stream]


def types_of(results: Sequence[Decoded | PipelineError]) -> list[type]:
    return [type(result) for result in results]


def test_a_still_camera_sends_a_few_bytes_and_gets_the_same_mask(
    bundle: Bundle, encoders: dict[str, Encoder], images: list[np.ndarray], worker: Decoder
) -> None:
    encoder = VideoEncoder(encoders["onnxruntime"], bundle, policy=at_interval(9))
    packets = list(packets_of(encoder, [images[60]] * 3))
    assert [packet.regions[0].kind for packet in packets] == [Kind.KEY, Kind.WARP, Kind.WARP]
    assert max(len(pack(packet)) for packet in packets[1:]) <= 26 + 3 + 6
    first, *others = (mask_of(result) for result in worker.decode(packets))
    for packet, mask in zip(packets[1:], others, strict=True):
        assert (mask.id, mask.captured_ms, mask.bundle) == (packet.id, packet.captured_ms, bundle.id)
        np.testing.assert_array_equal(mask.classes, first.classes)


def test_a_warped_mask_follows_the_motion(
    bundle: Bundle, encoders: dict[str, Encoder], images: list[np.ndarray], stream: list[Packet],
    masks: list[np.ndarray], worker: Decoder,
) -> None:  # fmt: skip
    fresh = [mask_of(worker.decode([one])[0]).classes for one in packets_of(encoders["onnxruntime"], images[60:87:3])]
    warped, repeated = [], []
    for at, packet in enumerate(stream):
        age = packet.regions[0].age
        assert age == at % INTERVAL
        if age:
            warped.append(np.mean(masks[at] == fresh[at]))
            repeated.append(np.mean(fresh[at - age] == fresh[at]))
    assert np.mean(warped) > 0.9
    assert np.mean(warped) > np.mean(repeated) + 0.01


def test_a_key_and_what_refers_to_it_may_come_in_one_batch(
    stream: list[Packet], masks: list[np.ndarray], worker: Decoder
) -> None:
    for result, classes in zip(worker.decode(stream), masks, strict=True):
        assert np.mean(mask_of(result).classes == classes) > 0.99


def test_the_keys_that_a_batch_will_miss_are_told_before_it_is_decoded(stream: list[Packet], worker: Decoder) -> None:
    assert [each.kind for packet in stream[:5] for each in packet.regions] == [Kind.KEY, *[Kind.WARP] * 3, Kind.KEY]
    key, warp, later = stream[0], stream[1], stream[5]
    cameras = ["north"] * 3 + ["south"]
    assert worker.missing([warp, key, warp, warp], cameras) == [warp.regions, (), (), warp.regions]
    assert worker.missing([key, later, replace(warp, bundle=b"othr")], cameras[:3]) == [(), later.regions, ()]
    worker.decode([key], ["north"])
    assert worker.missing([warp, warp], ["north", "south"]) == [(), warp.regions]


def test_until_the_next_key_a_lost_one_is_missing(stream: list[Packet], worker: Decoder) -> None:
    results = [worker.decode([packet])[0] for packet in stream if packet is not stream[4]]
    assert types_of(results) == [Decoded] * 4 + [MissingKey] * 3 + [Decoded]
    assert "sequence 4" in str(results[4])


def test_a_key_after_its_warp_is_too_late_for_it_in_a_batch_too(stream: list[Packet], worker: Decoder) -> None:
    assert types_of(worker.decode([stream[1], stream[0], stream[1]])) == [MissingKey, Decoded, Decoded]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"id": FrameId(8, 1)}, MissingKey),
        ({"id": FrameId(7, 2)}, MissingKey),
        ({"id": FrameId(7, 0xFFFFFFFF)}, MissingKey),
        ({"bundle": b"abcd"}, BundleMismatch),
        ({"quality": 200}, BitstreamError),
        ({"rows": 2}, BitstreamError),
    ],
    ids=["another epoch", "another age", "before the key", "another bundle", "an unknown level", "another grid"],
)
def test_no_warp_is_made_of_a_key_that_it_does_not_name(
    changed: dict[str, object], error: type, stream: list[Packet], worker: Decoder
) -> None:
    foreign = replace(stream[1], **changed)  # type: ignore[arg-type]
    assert types_of(worker.decode([stream[0], foreign, stream[1]])) == [Decoded, error, Decoded]


def test_a_camera_that_starts_again_has_no_key_left(stream: list[Packet], worker: Decoder) -> None:
    worker.decode(stream[:4])
    again = [replace(packet, id=FrameId(8, packet.id.sequence)) for packet in stream[:2]]
    assert types_of(worker.decode([again[1], again[0], again[1]])) == [MissingKey, Decoded, Decoded]
    assert types_of(worker.decode([stream[1]])) == [Decoded]  # still under way when it started again


def test_cameras_do_not_share_keys(stream: list[Packet], worker: Decoder) -> None:
    packets, cameras = [stream[0], stream[1], stream[1], stream[0]], ["north", "south", "north", "south"]
    assert types_of(worker.decode(packets, cameras)) == [Decoded, MissingKey, Decoded, Decoded]
    assert types_of(worker.decode([stream[1]] * 2, ["south", "east"])) == [Decoded, MissingKey]


@pytest.mark.parametrize("seed", range(3))
def test_repeated_late_and_lost_packets_give_the_right_mask_or_none(
    seed: int, stream: list[Packet], masks: list[np.ndarray], worker: Decoder
) -> None:
    rng = random.Random(seed)
    come = [stream[min(max(round(at + rng.gauss(0, 2)), 0), len(stream) - 1)] for at in range(len(stream))]
    missing = 0
    for packet in come:
        (result,) = worker.decode([packet])
        if isinstance(result, MissingKey):
            missing += 1
        else:
            np.testing.assert_array_equal(mask_of(result).classes, masks[packet.id.sequence])
    assert missing < len(come)


def test_a_damaged_warp_is_some_warp_or_an_error_and_its_key_stays(
    stream: list[Packet], masks: list[np.ndarray], worker: Decoder
) -> None:
    body = stream[3].regions[0].body
    bodies = [body[:size] for size in range(len(body))] + [body + b"\1"]
    for at in range(len(body)):
        bodies += [body[:at] + bytes([body[at] ^ flip]) + body[at + 1 :] for flip in (1, 128, 255)]
    damaged = [replace(stream[3], regions=(replace(stream[3].regions[0], body=one),)) for one in bodies]
    worker.decode(stream[:1])
    results = [worker.decode([unpack(pack(one))])[0] for one in damaged]
    assert set(types_of(results)) <= {Decoded, BitstreamError}
    assert types_of(results).count(BitstreamError) > len(results) / 2
    np.testing.assert_array_equal(mask_of(worker.decode([stream[3]])[0]).classes, masks[3])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60), kind=st.sampled_from([Kind.WARP, Kind.DELTA]))
def test_any_bytes_are_a_mask_or_a_bitstream_error(
    stream: list[Packet], worker: Decoder, body: bytes, kind: Kind
) -> None:
    results = worker.decode([stream[0], replace(stream[1], regions=(Region(kind, 0, 1, body),))])
    assert isinstance(results[0], Decoded)
    assert isinstance(results[1], Decoded | BitstreamError)


def test_a_delta_which_no_camera_sends_is_refused(stream: list[Packet], worker: Decoder) -> None:
    delta = replace(stream[1], regions=(replace(stream[1].regions[0], kind=Kind.DELTA),))
    first, second = worker.decode([stream[0], delta])
    assert isinstance(first, Decoded)
    assert isinstance(second, BitstreamError)
    assert "DELTA" in str(second)


def test_what_is_kept_of_keys_is_bounded(bundle: Bundle, session: object, stream: list[Packet]) -> None:
    keys = KeyBuffers[HeldKey](cameras=3)
    worker = Decoder(bundle, session, keys=keys)  # type: ignore[arg-type]
    cameras = [f"camera-{number}" for number in range(4)]
    for camera in cameras:
        keyed = [replace(stream[0], id=FrameId(7, sequence)) for sequence in range(GENERATIONS + 2)]
        worker.decode(keyed, [camera] * len(keyed))
    assert len(keys) == 3
    held = keys.of("camera-3")
    assert len(held) == GENERATIONS
    newest = held.newest(stream[0], 0)
    assert newest is not None and newest.value.outputs.logits is not None
    assert newest.value.outputs.logits.base is None  # not a view that keeps the batch it was part of


class OneScore:
    """Stands in for a graph of labels: the scores tell the number of the run."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, y_hat: np.ndarray, quality: np.ndarray) -> list[np.ndarray]:
        self.runs += 1
        return [np.full((len(y_hat), 11), self.runs / 10, np.float32)]


@pytest.mark.parametrize("masked", [True, False], ids=["beside masks", "alone"])
def test_scores_of_a_warp_are_those_of_its_key(
    masked: bool, bundle: Bundle, session: object, stream: list[Packet]
) -> None:
    worker = Decoder(bundle, session if masked else None, labels=OneScore())  # type: ignore[arg-type]
    worker.decode(stream[:1])
    worker.decode(stream[4:5])
    for at, score in ((1, 0.1), (5, 0.2)):
        (result,) = worker.decode(stream[at : at + 1])
        assert isinstance(result, Decoded) and result.scores is not None
        assert result.scores.id == stream[at].id
        np.testing.assert_allclose(result.scores.values, score)
        assert (result.mask is not None) == masked


def test_the_golden_warp_keeps_its_meaning() -> None:
    grid = grid_of(360, 480)
    coefficients = np.zeros((2, grid.coefficients), np.int16)
    coefficients[:, :6] = [(5, -3, 1, 0, 2, -1), (2, 1, -4, 0, 0, 3)]
    coefficients[:, 6:26:3] = [(1, 0, -1, 2, 0, 0, 1), (0, 0, 1, -1, 0, 3, 0)]
    coefficients[0, 100], coefficients[1, 300] = -2, 1
    (region,) = unpack((GOLDEN / "warp.bin").read_bytes()).regions
    np.testing.assert_array_equal(decode_flow(region.body, grid), coefficients)
    assert encode_flow(coefficients, grid) == region.body


@pytest.mark.parametrize("quick", [True, False])
def test_masks_come_of_the_graph_that_is_quick_here(
    bundle: Bundle, tiny_bundle: Bundle, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(codec, "is_quick_at_int8", lambda _: quick)
    monkeypatch.setattr(codec, "open_session", lambda path, **how: opened.append(path) or open_session(path, **how))
    open_decoder(bundle, labels=False)
    open_decoder(tiny_bundle, labels=False)  # which has no other than `decode`
    assert opened == [bundle.graph(DECODE_INT8 if quick else "decode"), tiny_bundle.graph("decode")]


def test_an_encoder_that_goes_to_a_level_with_thrifty_rounding_compiles_nothing_then() -> None:
    script = """
import numpy as np
from pipeline.bundle import default_bundle, load_bundle
from pipeline.codec import open_encoder
from pipeline.symbol_loops import choose_symbols
bundle = load_bundle(default_bundle())
thrifty = next(level for level, one in enumerate(bundle.tables.rdoq_lambda) if one)
encoder = open_encoder(bundle, quality=0)
before = list(choose_symbols.signatures)
encoder.quality = thrifty
encoder.latents(np.full((bundle.manifest.height, bundle.manifest.width, 3), 128, np.uint8))
assert before and choose_symbols.signatures == before
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
