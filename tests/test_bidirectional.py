"""Frames between two KEYs: which packets leave when, and that what leaves is each frame once, in order, and right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
import street
import test_region_decoder as see_through
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_video_encoder import BUNDLE, FixedEncoder, frames_of, video_encoder
from test_video_encoder import images as images  # a fixture

from pipeline import motion
from pipeline.bidirectional import BidirectionalEncoder, open_stream_encoder
from pipeline.bitstream import pack, unpack
from pipeline.codec import Decoder, Encoder, open_encoder
from pipeline.deciding import Candidate
from pipeline.errors import ConfigError
from pipeline.flow_coding import decode_flow, grid_of, node_flow
from pipeline.key_policies import EVERY_FRAME, KeyPolicy, at_interval, at_price, at_threshold
from pipeline.messages import Decoded, Frame, FrameId, Kind, Packet
from pipeline.video_encoder import VideoEncoder

Images = list[NDArray[np.uint8]]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    motion.warm_up_tracking()
    motion.warm_up_warping()


def bidirectional(policy: KeyPolicy, *, lookahead: int = 3, encoder: Encoder | None = None) -> BidirectionalEncoder:
    return BidirectionalEncoder(encoder or FixedEncoder(), BUNDLE, policy=policy, lookahead=lookahead)  # type: ignore[arg-type]


def told(packets: Sequence[Packet]) -> list[str]:
    """Of each packet the sequence, then kind and age of its regions, such as 1 K3 W1 B3."""
    parts = [" ".join(f"{one.kind.name[0]}{one.age}" for one in packet.regions) for packet in packets]
    return [f"{packet.id.sequence} {part}" for packet, part in zip(packets, parts, strict=True)]


def leaving(encoder: BidirectionalEncoder, frames: Sequence[Frame]) -> list[list[str]]:
    """What leaves with each frame."""
    return [told(encoder.packets(frame)) for frame in frames]


def every(encoder: BidirectionalEncoder, frames: Sequence[Frame]) -> list[Packet]:
    return [*(packet for frame in frames for packet in encoder.packets(frame)), *encoder.flush()]


def test_frames_wait_for_the_key_after_them_which_leaves_with_the_first_of_them(images: Images) -> None:
    encoder = bidirectional(at_interval(4))
    assert leaving(encoder, frames_of(images[:9])) == [
        ["0 K0"], [], [], [],
        ["1 K3 W1 B3", "2 W2 B2", "3 W3 B1", "4 B0"], [], [], [],
        ["5 K3 W1 B3", "6 W2 B2", "7 W3 B1", "8 B0"],
    ]  # fmt: skip
    assert encoder.flush() == ()


def test_the_packets_are_those_of_their_frames(images: Images) -> None:
    network = FixedEncoder(700)
    packets = every(bidirectional(at_interval(4), encoder=network), frames_of(images[:10]))
    assert [(packet.id, packet.captured_ms) for packet in packets] == [(FrameId(7, at), 40 * at) for at in range(10)]
    assert {(packet.bundle, packet.quality, packet.rows, packet.columns) for packet in packets} == {(b"abcd", 3, 1, 1)}
    assert [len(one.body) for packet in packets for one in packet.regions if one.kind is Kind.KEY] == [700] * 3
    assert network.encoded == 3
    assert packets[4].regions[0].body == b""
    assert [unpack(pack(packet)) for packet in packets] == packets
    assert [pack(packet)[1] for packet in packets] == [2, *[3] * 8, 2]


@pytest.mark.parametrize("lookahead", [4, 30])
def test_more_frames_than_there_are_to_the_next_key_do_not_wait(lookahead: int, images: Images) -> None:
    encoder = bidirectional(at_interval(3), lookahead=lookahead)
    assert [len(one) for one in leaving(encoder, frames_of(images[:7]))] == [1, 0, 0, 3, 0, 0, 3]


def test_where_fewer_may_wait_the_older_ones_leave_as_plain_warps(images: Images) -> None:
    encoder = bidirectional(at_interval(4), lookahead=1)
    frames = frames_of(images[:9])
    assert leaving(encoder, frames) == [
        ["0 K0"], [], ["1 W1"], ["2 W2"], ["3 K1 W3 B1", "4 B0"],
        [], ["5 W1"], ["6 W2"], ["7 K1 W3 B1", "8 B0"],
    ]  # fmt: skip


def test_a_plain_warp_is_what_it_is_without_a_lookahead(images: Images) -> None:
    plain = list(map(video_encoder(at_interval(4)).encode, frames_of(images[:8])))
    packets = every(bidirectional(at_interval(4), lookahead=1), frames_of(images[:8]))
    for at in (0, 1, 2, 5, 6, 7):
        assert packets[at] == (plain[at] if at else plain[0])
        assert pack(packets[at])[1] == 2


def test_what_waits_at_the_end_leaves_as_plain_warps(images: Images) -> None:
    encoder = bidirectional(at_interval(9), lookahead=5)
    assert leaving(encoder, frames_of(images[:4])) == [["0 K0"], [], [], []]
    assert told(encoder.flush()) == ["1 W1", "2 W2", "3 W3"]
    assert encoder.flush() == ()
    assert leaving(encoder, frames_of(images[4:10], first=4)) == [
        [], [], [], [], [], ["4 K5 W4 B5", "5 W5 B4", "6 W6 B3", "7 W7 B2", "8 W8 B1", "9 B0"],
    ]  # fmt: skip


def test_a_key_that_was_asked_for_is_the_next_frame_and_those_that_wait_refer_to_it(images: Images) -> None:
    encoder, frames = bidirectional(at_interval(100), lookahead=9), frames_of(images)
    assert leaving(encoder, frames[:3]) == [["0 K0"], [], []]
    assert not encoder.key_asked
    encoder.request_key()
    assert encoder.key_asked
    assert leaving(encoder, frames[3:5]) == [["1 K2 W1 B2", "2 W2 B1", "3 B0"], []]
    assert not encoder.key_asked
    encoder.request_key([0, 5])
    assert leaving(encoder, frames[5:6]) == [["4 K1 W1 B1", "5 B0"]]
    encoder.request_key()
    assert leaving(encoder, frames[6:7]) == [["6 K0"]]


def test_a_key_of_a_region_that_is_not_there_changes_nothing(images: Images) -> None:
    encoder = bidirectional(at_interval(100))
    encoder.packets(frames_of(images)[0])
    encoder.request_key([1, 63])
    assert not encoder.key_asked
    assert leaving(encoder, frames_of(images)[1:3]) == [[], []]


def test_another_level_begins_with_a_key_whose_level_those_have_that_waited(images: Images) -> None:
    encoder, frames = bidirectional(at_interval(100), lookahead=2), frames_of(images)
    packets = [packet for frame in frames[:4] for packet in encoder.packets(frame)]
    encoder.quality = 5
    assert (encoder.quality, encoder.key_asked) == (5, True)
    packets += encoder.packets(frames[4])
    assert told(packets) == ["0 K0", "1 W1", "2 K2 W2 B2", "3 W3 B1", "4 B0"]
    assert [packet.quality for packet in packets] == [3, 3, 5, 5, 5]
    encoder.quality = 5
    assert not encoder.key_asked
    packets = [*encoder.packets(frames[5]), *encoder.flush()]
    assert (told(packets), packets[0].quality) == (["5 W1"], 5)


def test_a_level_that_was_to_come_with_the_next_key_may_be_asked_for_at_once(images: Images) -> None:
    encoder, frames = bidirectional(at_interval(9)), frames_of(images[:3])
    packets = list(encoder.packets(frames[0]))
    encoder.code_keys_at(1)
    encoder.quality = 1
    packets += encoder.packets(frames[1])
    assert (told(packets), [packet.quality for packet in packets]) == (["0 K0", "1 K0"], [3, 1])


def test_a_frame_that_is_not_newer_than_one_that_waits_is_a_key(images: Images) -> None:
    encoder, frames = bidirectional(at_interval(9)), frames_of(images[:3])
    assert leaving(encoder, [frames[0], frames[1], frames[1]]) == [["0 K0"], [], ["1 W1", "1 K0"]]


def test_a_picture_of_another_size_takes_nothing_with_it(images: Images) -> None:
    encoder, frames = bidirectional(at_interval(9)), frames_of(images[:2])
    assert leaving(encoder, frames) == [["0 K0"], []]
    with pytest.raises(ValueError, match="expected"):
        encoder.packets(replace(frames[1], id=FrameId(8, 0), image=frames[1].image[:-16]))
    assert told(encoder.flush()) == ["1 W1"]


def test_keys_of_another_level_come_when_they_are_due(images: Images) -> None:
    encoder, frames = bidirectional(at_interval(3)), frames_of(images[:7])
    packets = list(encoder.packets(frames[0]))
    encoder.code_keys_at(1)
    assert (encoder.quality, encoder.key_asked) == (1, False)
    packets += every(encoder, frames[1:])
    assert told(packets) == ["0 K0", "1 K2 W1 B2", "2 W2 B1", "3 B0", "4 K2 W1 B2", "5 W2 B1", "6 B0"]
    assert [packet.quality for packet in packets] == [3, *[1] * 6]


def test_before_a_source_begins_again_what_waits_of_the_old_one_leaves(images: Images) -> None:
    encoder = bidirectional(at_interval(9), lookahead=5)
    assert leaving(encoder, frames_of(images[:3])) == [["0 K0"], [], []]
    packets = encoder.packets(frames_of(images[3:4], epoch=8)[0])
    assert told(packets) == ["1 W1", "2 W2", "0 K0"]
    assert [packet.id.epoch for packet in packets] == [7, 7, 8]
    assert leaving(encoder, frames_of(images[4:5], epoch=8, first=1)) == [[]]
    assert [(one.id.epoch, one.id.sequence) for one in encoder.flush()] == [(8, 1)]


@pytest.mark.parametrize("sequence", [3, 2, 300])
def test_what_can_refer_to_no_key_is_one_after_what_waited(sequence: int, images: Images) -> None:
    encoder = bidirectional(at_interval(256), lookahead=9)
    found = leaving(encoder, [Frame(FrameId(7, at), 0, images[0]) for at in (3, 4, sequence)])
    assert found == [["3 K0"], [], ["4 W1", f"{sequence} K0"]]


def test_ages_count_sequences_also_where_some_are_missing(images: Images) -> None:
    encoder = bidirectional(at_interval(12), lookahead=9)
    sequences = (0xFFFFFFFE, 0xFFFFFFFF, 3, 4, 11)
    frames = [Frame(FrameId(7, at), 0, image) for at, image in zip(sequences, images, strict=False)]
    assert leaving(encoder, frames)[-1] == ["4294967295 K12 W1 B12", "3 W5 B8", "4 W6 B7", "11 B0"]


def test_a_threshold_makes_keys_and_what_it_was_told_can_be_asked(images: Images) -> None:
    predicted, asked = iter([99.0, 99.0, 50.0, 88.5, 88.5]), list[Candidate]()

    def predict(candidate: Candidate) -> float:
        asked.append(candidate)
        return next(predicted)

    encoder, frames = bidirectional(at_threshold(80, predict=predict)), frames_of(images)
    assert leaving(encoder, frames[:1]) == [["0 K0"]]
    assert encoder.tried == ()
    assert leaving(encoder, frames[1:4]) == [[], [], ["1 K2 W1 B2", "2 W2 B1", "3 B0"]]
    assert [(one.age, one.key_bytes) for one in asked] == [(1, 800), (2, 800), (3, 800)]
    assert [(one.age, one.predicted) for one in encoder.tried] == [(3, 50.0)]
    assert leaving(encoder, frames[4:5]) == [[]]
    encoder.threshold = 90
    assert encoder.threshold == 90
    assert leaving(encoder, frames[5:6]) == [["4 K1 W1 B1", "5 B0"]]
    with pytest.raises(ConfigError, match="threshold"):
        encoder.threshold = 101
    encoder.request_key()
    encoder.packets(frames[6])
    assert encoder.tried == ()


def test_a_still_picture_takes_a_few_bytes_and_a_network_for_keys_alone(images: Images) -> None:
    network = FixedEncoder()
    packets = every(bidirectional(at_interval(4), encoder=network), frames_of([images[0]] * 9))
    sizes = [len(one.body) for packet in packets for one in packet.regions if one.kind is not Kind.KEY]
    assert len(sizes) == 14
    assert max(sizes) <= 6
    assert network.encoded == 3


def test_a_frame_whose_motion_takes_nearly_as_much_as_a_key_is_one(images: Images) -> None:
    frames = frames_of(images[:4])
    bodies = [len(packet.regions[0].body) for packet in map(video_encoder(at_interval(9)).encode, frames)]
    found = leaving(bidirectional(at_interval(9), encoder=FixedEncoder(bodies[1])), frames[:2])
    assert found == [["0 K0"], ["1 K0"]]


def test_a_picture_of_another_size_is_refused_and_changes_nothing(images: Images) -> None:
    encoder, frames = bidirectional(at_interval(4)), frames_of(images)
    for at in range(5):
        with pytest.raises(ValueError):
            encoder.packets(replace(frames[at], image=images[0][:-1]))
        found = told(encoder.packets(frames[at]))
    assert found == ["1 K3 W1 B3", "2 W2 B2", "3 W3 B1", "4 B0"]


def test_motion_that_goes_on_evenly_is_told_once(images: Images) -> None:
    """By the side whose key is nearer; the other one has next to nothing to add."""
    wide = cv2.resize(images[0], (256, 96))
    seen = [np.ascontiguousarray(wide[:, 4 * at : 4 * at + 128]) for at in range(5)]
    packets, grid = every(bidirectional(at_interval(4)), frames_of(seen)), grid_of(96, 128)
    for packet, moved_px in zip(packets[1:4], (4, 8, -4), strict=True):
        warp, back = packet.regions[-2:]
        near, far = (warp, back) if warp.age <= back.age else (back, warp)
        flow = node_flow(decode_flow(near.body, grid), grid)
        assert np.median(flow[0]) == pytest.approx(moved_px, abs=1)
        assert np.median(node_flow(decode_flow(far.body, grid), grid)[0]) == pytest.approx(0, abs=1)
        assert len(far.body) <= len(near.body)


@pytest.mark.parametrize(
    ("policy", "lookahead", "said"),
    [
        (at_interval(4), 0, "lookahead 0: must be 1 to 30 frames, or 0 for none"),
        (at_interval(4), -1, "lookahead -1: must be"),
        (at_interval(4), 31, "lookahead 31: must be 1 to 30 frames, or 0 for none"),
        (EVERY_FRAME, 3, "lookahead 3: every frame is a KEY"),
        (at_threshold(90, longest_age=0), 3, "lookahead 3: every frame is a KEY"),
    ],
)
def test_settings_that_frames_cannot_wait_with_are_refused(policy: KeyPolicy, lookahead: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bidirectional(policy, lookahead=lookahead)
    if lookahead:
        with pytest.raises(ConfigError, match=said):
            open_stream_encoder(street.bundle(), policy=policy, lookahead=lookahead)


@pytest.mark.parametrize("policy", [at_threshold(97), at_price(4)], ids=["threshold", "price"])
def test_the_keys_are_those_of_a_camera_that_lets_no_frame_wait(policy: KeyPolicy) -> None:
    """And of the same levels, which a price chooses."""
    found = []
    for lookahead in (0, 3):
        encoder = open_stream_encoder(
            street.bundle(), engine="onnxruntime", threads=1, quality=5, policy=policy, lookahead=lookahead
        )
        frames = frames_of(street.pictures()[:8])
        packets = [*(packet for frame in frames for packet in encoder.packets(frame)), *encoder.flush()]
        keys = [packet for packet in packets if packet.regions[-1].shows is Kind.KEY]
        found.append([(packet.id.sequence, packet.quality) for packet in keys])
    assert found[0] == found[1]
    assert len(found[0]) > 1


def test_a_price_weighs_a_level_that_is_to_come_at_once() -> None:
    encoder = open_stream_encoder(
        street.bundle(), engine="onnxruntime", threads=1, quality=5, policy=at_price(20), lookahead=3
    )
    encoder.packets(frames_of(street.pictures())[0])
    encoder.code_keys_at(2)
    assert (encoder.quality, encoder.key_asked) == (2, True)


def test_with_a_lookahead_frames_are_whole() -> None:
    with pytest.raises(ConfigError, match="grid 2x2: with a lookahead frames are whole; use 1x1"):
        open_stream_encoder(street.bundle(), policy=at_interval(4), grid="2x2", lookahead=3)


def test_a_lookahead_opens_an_encoder_whose_frames_wait() -> None:
    opened = [
        open_stream_encoder(
            street.bundle(), engine="onnxruntime", threads=1, policy=at_interval(4), lookahead=lookahead
        )
        for lookahead in (0, 3)
    ]
    assert [type(one) for one in opened] == [VideoEncoder, BidirectionalEncoder]
    frames = frames_of(street.pictures()[:2])
    assert [[len(one.packets(frame)) for frame in frames] for one in opened] == [[1, 1], [1, 0]]
    assert [len(one.flush()) for one in opened] == [0, 1]


SIDE = 2 * see_through.HEIGHT


def scene() -> NDArray[np.uint8]:
    """RGB (2 H, 2 W, 3): classes as see_through.picture has them in red, something to hold on to in green and blue."""
    rng = np.random.default_rng(6)
    image = cv2.GaussianBlur(rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.float32), (0, 0), 4)
    image = ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)
    classes = rng.integers(0, see_through.CLASSES, (SIDE // 16, SIDE // 16))
    image[..., 0] = classes.repeat(16, axis=0).repeat(16, axis=1)
    return image


SCENE = scene()


@dataclass(frozen=True, slots=True)
class Step:
    """What happens before a frame, by how much its sequence rises, and where the camera looks then."""

    event: str
    gap: int
    place: int


EVENTS = (*[""] * 12, "request", "epoch", "quality", "level", "flush", "threshold")
steps = st.builds(Step, st.sampled_from(EVENTS), st.sampled_from([*[1] * 12, 2, 5, 250, 300]), st.integers(0, 4))


def played(encoder: BidirectionalEncoder, story: Sequence[Step]) -> Iterator[tuple[Frame, tuple[Packet, ...]]]:
    """The frames of a story, and what leaves with each."""
    epoch, sequence = 7, (1 << 32) - 4  # so that sequences begin again on the way
    for number, step in enumerate(story):
        epoch, sequence = epoch + (step.event == "epoch"), (sequence + step.gap) % (1 << 32)
        image = np.ascontiguousarray(SCENE[: SIDE // 2, 4 * step.place :][:, : SIDE // 2])
        frame = Frame(FrameId(epoch, sequence), 40 * number, image)
        before: tuple[Packet, ...] = ()
        if step.event == "request":
            encoder.request_key()
        elif step.event == "quality":
            encoder.quality = (encoder.quality + 1) % 3
        elif step.event == "level":
            encoder.code_keys_at((encoder.quality + 1) % 3)
        elif step.event == "threshold":
            encoder.threshold = 97 - encoder.threshold
        elif step.event == "flush":
            before = encoder.flush()
        yield frame, (*before, *encoder.packets(frame))


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 7), st.integers(1, 5), st.lists(steps, min_size=1, max_size=14))
def test_each_frame_has_one_packet_in_order_and_all_can_be_decoded(
    interval: int, lookahead: int, story: list[Step]
) -> None:
    network = Encoder(see_through.BUNDLE, see_through.LatentsOfPicture(), quality=2)  # type: ignore[arg-type]
    encoder = BidirectionalEncoder(
        network,
        see_through.BUNDLE,  # type: ignore[arg-type]
        policy=at_interval(interval),
        lookahead=lookahead,
    )
    frames: list[Frame] = []
    packets: list[Packet] = []
    for frame, left in played(encoder, story):
        frames.append(frame)
        packets += left
        assert len(frames) - len(packets) <= lookahead
    packets += encoder.flush()
    assert [(one.id, one.captured_ms) for one in packets] == [(one.id, one.captured_ms) for one in frames]
    worker = Decoder(see_through.BUNDLE, see_through.ClassOfLatents())  # type: ignore[arg-type]
    for frame, packet in zip(frames, packets, strict=True):
        assert all(one.age < interval for one in packet.regions if one.kind is Kind.WARP)
        assert worker.missing([packet], [""]) == [()]
        (result,) = worker.decode([unpack(pack(packet))])
        assert isinstance(result, Decoded) and result.mask is not None
        assert (result.missing, result.mask.id) == ((), frame.id)
        if result.mask.kinds == (Kind.KEY,):
            network.quality = packet.quality
            (fresh,) = Decoder(see_through.BUNDLE, see_through.ClassOfLatents()).decode([network.encode(frame)])  # type: ignore[arg-type]
            assert isinstance(fresh, Decoded) and fresh.mask is not None
            np.testing.assert_array_equal(result.mask.classes, fresh.mask.classes)


def test_masks_between_two_keys_are_nearer_to_fresh_ones_than_those_of_plain_warps() -> None:
    """On the sample's street, with the bundle of this repository and the same frames KEY."""
    network = open_encoder(street.bundle(), engine="onnxruntime", threads=1, outlines=True)
    frames = frames_of(street.pictures(), epoch=street.EPOCH)
    policy = at_interval(street.INTERVAL)
    plain = VideoEncoder(network, street.bundle(), policy=policy)
    both = BidirectionalEncoder(network, street.bundle(), policy=policy, lookahead=street.INTERVAL - 1)
    fresh = street.classes_of(list(map(network.encode, frames)))
    agreements = []
    for packets in (list(map(plain.encode, frames)), every(both, frames)):
        assert [packet.id.sequence for packet in packets] == list(range(len(frames)))
        masks = street.classes_of(packets)
        agreements.append(np.array([(masks[at] == fresh[at]).mean() for at in range(len(frames))]))
    warps, between = agreements
    np.testing.assert_array_equal(between[:: street.INTERVAL], 1.0)
    assert between.sum() >= warps.sum()
    assert between[: 2 * street.INTERVAL].sum() > warps[: 2 * street.INTERVAL].sum()
