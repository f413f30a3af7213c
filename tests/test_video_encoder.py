"""KEY or WARP: what is due, what is worth it, and that nothing is left to chance when the stream breaks."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.codec import Encoder, packet_of
from pipeline.delta import split
from pipeline.errors import ConfigError
from pipeline.messages import Frame, FrameId, Kind, Packet, Region
from pipeline.regions import Grid
from pipeline.streets import render_street
from pipeline.video_encoder import (
    EVERY_FRAME,
    LONGEST_AGE,
    Candidate,
    KeyPolicy,
    VideoEncoder,
    at_interval,
    at_threshold,
    key_policy,
    linear_agreement,
)

HEIGHT, WIDTH = 96, 128
BUNDLE = SimpleNamespace(manifest=SimpleNamespace(height=HEIGHT, width=WIDTH), id=b"abcd")
K, W, D = Kind.KEY, Kind.WARP, Kind.DELTA


class FixedEncoder(Encoder):
    """Stands in for a network: every KEY has a body of so many bytes."""

    def __init__(self, body_bytes: int = 800) -> None:
        self.quality, self.body_bytes, self.encoded = 3, body_bytes, 0

    def encode(self, frame: Frame) -> Packet:
        self.encoded += 1
        if frame.image.shape != (HEIGHT, WIDTH, 3):
            raise ValueError("another size")
        return packet_of(frame, bytes(self.body_bytes), bundle=BUNDLE.id, quality=self.quality)

    def body(self, image: np.ndarray, quality: int) -> bytes:
        return bytes(self.body_bytes // 2)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """A second of a moving camera."""
    return [frame.image for frame in render_street(3, width=WIDTH, height=HEIGHT, frames=25, fps=10)][13:]


def video_encoder(policy: KeyPolicy, encoder: Encoder | None = None) -> VideoEncoder:
    return VideoEncoder(encoder or FixedEncoder(), BUNDLE, policy=policy)  # type: ignore[arg-type]


def frames_of(images: Sequence[np.ndarray], *, epoch: int = 7, first: int = 0) -> list[Frame]:
    return [Frame(FrameId(epoch, first + at), 40 * at, image) for at, image in enumerate(images)]


def region_of(packet: Packet) -> Region:
    (region,) = packet.regions
    return region


def kinds(packets: Sequence[Packet]) -> list[Kind]:
    return [region_of(packet).kind for packet in packets]


def test_unless_told_otherwise_every_packet_is_what_the_plain_encoder_gives(images: list[np.ndarray]) -> None:
    coded, plain = VideoEncoder(FixedEncoder(), BUNDLE), FixedEncoder()  # type: ignore[arg-type]
    for frame in frames_of(images):
        assert coded.encode(frame) == plain.encode(frame)


@pytest.mark.parametrize("interval", [1, 2, 5, 256])
def test_a_fixed_interval_makes_one_frame_in_so_many_a_key(interval: int, images: list[np.ndarray]) -> None:
    encoder = video_encoder(at_interval(interval))
    for sequence, packet in enumerate(map(encoder.encode, frames_of(images))):
        age = sequence % interval
        assert (region_of(packet).kind, region_of(packet).age) == (K if age == 0 else W, age)
        assert packet.captured_ms == 40 * sequence
        assert (packet.bundle, packet.quality, packet.rows, packet.columns) == (b"abcd", 3, 1, 1)


def test_a_still_picture_takes_a_few_bytes_and_no_network(images: list[np.ndarray]) -> None:
    plain = FixedEncoder()
    encoder = video_encoder(at_threshold(98), plain)
    packets = [encoder.encode(frame) for frame in frames_of([images[0]] * 6)]
    assert kinds(packets) == [K, W, W, W, W, W]
    assert max(len(region_of(packet).body) for packet in packets[1:]) <= 6
    assert plain.encoded == 1


def test_a_key_never_gets_older_than_the_policy_allows(images: list[np.ndarray]) -> None:
    encoder = video_encoder(at_threshold(0, longest_age=3))
    assert kinds([encoder.encode(frame) for frame in frames_of([images[0]] * 9)]) == [K, W, W, W, K, W, W, W, K]
    assert at_threshold(90).longest_age == LONGEST_AGE


def test_a_threshold_makes_keys_where_the_picture_changes(images: list[np.ndarray]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, images[0].shape, np.uint8)
    encoder = video_encoder(at_threshold(90))
    packets = [encoder.encode(frame) for frame in frames_of([images[0], images[0], noise, noise])]
    assert kinds(packets) == [K, W, K, W]


def test_a_higher_threshold_makes_more_keys(images: list[np.ndarray]) -> None:
    counts = []
    for threshold in (0, 94, 97, 100):
        encoder = video_encoder(at_threshold(threshold))
        counts.append(kinds([encoder.encode(frame) for frame in frames_of(images)]).count(K))
    assert counts == sorted(counts)
    assert counts[0] == 1 and counts[-1] == len(images)


@pytest.mark.parametrize(("said", "kind"), [(80.0, W), (79.9, K), (float("nan"), K)])
def test_the_decision_is_the_predictors(said: float, kind: Kind, images: list[np.ndarray]) -> None:
    asked: list[Candidate] = []

    def predict(candidate: Candidate) -> float:
        asked.append(candidate)
        return said

    encoder = video_encoder(at_threshold(80, predict=predict))
    first, second = (encoder.encode(frame) for frame in frames_of(images[:2]))
    assert kinds([first, second]) == [K, kind]
    (candidate,) = asked
    assert candidate.age == 1
    if kind is W:
        assert region_of(second).body == candidate.body


def test_a_warp_that_saves_little_is_sent_as_a_key(images: list[np.ndarray]) -> None:
    frames = frames_of(images[:4])
    bodies = [len(region_of(packet).body) for packet in map(video_encoder(at_interval(9)).encode, frames)]
    for body_bytes, kind in ((bodies[1], K), (4 * bodies[1], W)):
        encoder = video_encoder(at_interval(9), FixedEncoder(body_bytes))
        assert region_of([encoder.encode(frame) for frame in frames[:2]][1]).kind is kind


def test_a_key_that_was_asked_for_is_the_next_packet(images: list[np.ndarray]) -> None:
    encoder = video_encoder(at_interval(100))
    frames = frames_of(images)
    before = [encoder.encode(frame) for frame in frames[:3]]
    encoder.request_key()
    after = [encoder.encode(frame) for frame in frames[3:6]]
    assert kinds(before + after) == [K, W, W, K, W, W]
    assert [region_of(packet).age for packet in after] == [0, 1, 2]


def test_a_key_asked_for_of_a_region_that_is_not_there_changes_nothing(images: list[np.ndarray]) -> None:
    encoder = video_encoder(at_interval(100))
    frames = frames_of(images)
    encoder.encode(frames[0])
    encoder.request_key([1, 63])
    assert kinds([encoder.encode(frame) for frame in frames[1:3]]) == [W, W]
    encoder.request_key([0, 1])
    assert kinds([encoder.encode(frame) for frame in frames[3:5]]) == [K, W]


def test_the_first_frame_of_another_quality_is_a_key(images: list[np.ndarray]) -> None:
    encoder, packets = video_encoder(at_interval(100)), []
    for frame, quality in zip(frames_of(images), (3, 3, 5, 5, 3), strict=False):
        encoder.quality = quality
        packets.append(encoder.encode(frame))
    assert kinds(packets) == [K, W, K, W, K]
    assert [packet.quality for packet in packets] == [3, 3, 5, 5, 3]


def test_a_source_that_begins_again_begins_with_a_key(images: list[np.ndarray]) -> None:
    encoder = video_encoder(at_interval(100))
    frames = frames_of(images[:2]) + frames_of(images[2:4], epoch=8) + frames_of(images[4:6], epoch=8, first=2)
    assert kinds([encoder.encode(frame) for frame in frames]) == [K, W, K, W, W, W]


@pytest.mark.parametrize("sequence", [3, 2, 300])
def test_a_frame_repeated_from_before_the_key_or_far_after_it_is_a_key(sequence: int, images: list[np.ndarray]) -> None:
    encoder = video_encoder(at_interval(256))
    encoder.encode(Frame(FrameId(7, 3), 0, images[0]))
    assert region_of(encoder.encode(Frame(FrameId(7, sequence), 0, images[1]))).kind is K


def test_ages_count_sequences_also_where_some_are_missing(images: list[np.ndarray]) -> None:
    encoder = video_encoder(at_interval(256))
    sequences = (0xFFFFFFFE, 0xFFFFFFFF, 3, 4)
    packets = [encoder.encode(Frame(FrameId(7, s), 0, image)) for s, image in zip(sequences, images, strict=False)]
    assert [region_of(packet).age for packet in packets] == [0, 1, 5, 6]


def test_a_picture_of_another_size_is_refused_and_changes_nothing(images: list[np.ndarray]) -> None:
    encoder, frames = video_encoder(at_interval(9)), frames_of(images)
    for at in (0, 1):
        with pytest.raises(ValueError):
            encoder.encode(replace(frames[at], image=images[0][:-1]))
        assert region_of(encoder.encode(frames[at])).kind is (K, W)[at]


def test_the_plain_guess_falls_with_motion_and_change_and_is_a_percentage(images: list[np.ndarray]) -> None:
    said: list[float] = []

    def predict(candidate: Candidate) -> float:
        said.append(linear_agreement(candidate))
        return 100.0

    still, moving = [images[0]] * 3, images[:3]
    for shown in (still, moving, [images[0], np.zeros_like(images[0]), 255 - images[0]]):
        encoder = video_encoder(at_threshold(50, predict=predict))
        for frame in frames_of(shown):
            encoder.encode(frame)
    calm, calmer_before, moved, moved_on, *changed = said
    assert 98 < calmer_before < calm <= 100
    assert moved_on < moved < calm
    assert 0 <= max(changed) < 75


def test_an_interval_bounds_the_age_and_a_threshold_makes_keys_sooner() -> None:
    assert key_policy(key_interval=None, threshold=None) == EVERY_FRAME
    assert key_policy(key_interval=1, threshold=90) == at_threshold(90, longest_age=0)
    assert key_policy(key_interval=7, threshold=None) == at_interval(7)
    assert key_policy(key_interval=None, threshold=90) == at_threshold(90)
    assert key_policy(key_interval=7, threshold=90) == at_threshold(90, longest_age=6)
    for interval, threshold in ((0, None), (0, 90), (7, 101)):
        with pytest.raises(ConfigError):
            key_policy(key_interval=interval, threshold=threshold)


@pytest.mark.parametrize("wrong", [0, -1, 257])
def test_an_interval_that_no_age_can_tell_is_refused(wrong: int) -> None:
    with pytest.raises(ConfigError, match=f"key interval {wrong}"):
        at_interval(wrong)


@pytest.mark.parametrize("wrong", [-0.1, 100.1, float("nan")])
def test_a_threshold_that_is_no_percentage_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        at_threshold(wrong)


def test_a_longest_age_that_the_wire_cannot_carry_is_refused() -> None:
    for wrong in (-1, 256):
        with pytest.raises(ConfigError, match="longest key age"):
            at_threshold(90, longest_age=wrong)


def test_every_policy_is_a_plain_value() -> None:
    assert at_interval(1) == EVERY_FRAME
    policies = [EVERY_FRAME, at_interval(5), at_threshold(90), at_threshold(91)]
    assert all(one != other for one, other in itertools.combinations(policies, 2))


@pytest.mark.parametrize(("said", "kind"), [(80.0, W), (79.9, D), (78.0, D), (77.9, K), (float("nan"), K)])
def test_what_is_nearly_good_enough_becomes_a_delta_where_the_policy_has_one(
    said: float, kind: Kind, images: list[np.ndarray]
) -> None:
    plain = FixedEncoder()
    encoder = video_encoder(at_threshold(80, predict=lambda _: said, delta_level=1), plain)
    packets = [encoder.encode(frame) for frame in frames_of(images[:2])]
    assert kinds(packets) == [K, kind]
    if kind is D:
        parts = split(region_of(packets[1]).body)
        assert (parts.level, parts.latents) == (1, bytes(400))
        assert packets[1].quality == plain.quality


def test_after_a_delta_the_key_is_the_one_before_it(images: list[np.ndarray]) -> None:
    said = iter([79.0, 90.0, 79.0])
    encoder = video_encoder(at_threshold(80, predict=lambda _: next(said), delta_level=1))
    packets = [encoder.encode(frame) for frame in frames_of(images[:4])]
    assert [(region_of(one).kind, region_of(one).age) for one in packets] == [(K, 0), (D, 1), (W, 2), (D, 3)]


def test_a_delta_that_is_no_smaller_than_a_key_is_one(images: list[np.ndarray]) -> None:
    encoder = video_encoder(at_threshold(80, predict=lambda _: 79.0, delta_level=1), FixedEncoder(20))
    assert kinds([encoder.encode(frame) for frame in frames_of(images[:3])]) == [K, K, K]


@pytest.mark.parametrize("margin", [-1.0, 101.0, float("nan")])
def test_a_margin_that_is_no_percentage_is_refused(margin: float) -> None:
    with pytest.raises(ConfigError, match="margin"):
        KeyPolicy(9, 90, delta_margin=margin)


class RegionsEncoder(FixedEncoder):
    """A network for a 1x2 grid: notes which regions it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[int] | None] = []

    def encode(self, frame: Frame, regions: Iterable[int] | None = None) -> Packet:
        self.asked.append(None if regions is None else list(regions))
        packet = super().encode(frame)
        keys = tuple(replace(packet.regions[0], index=index) for index in self.asked[-1] or (0, 1))
        return replace(packet, columns=2, regions=keys)


def halves(policy: KeyPolicy, encoder: RegionsEncoder) -> VideoEncoder:
    return VideoEncoder(encoder, BUNDLE, policy=policy, grid=Grid(1, 2, HEIGHT, WIDTH))  # type: ignore[arg-type]


def shown(packets: Sequence[Packet]) -> list[str]:
    """Kind and age of each region, in the order of the packet, which must be that of their indexes."""
    assert all([one.index for one in packet.regions] == [0, 1] for packet in packets)
    assert {(packet.rows, packet.columns) for packet in packets} == {(1, 2)}
    return [" ".join(f"{one.kind.name[0]}{one.age}" for one in packet.regions) for packet in packets]


def test_every_packet_has_every_region_of_the_grid(images: list[np.ndarray]) -> None:
    encoder = RegionsEncoder()
    coded = halves(at_interval(3), encoder)
    assert shown([coded.encode(frame) for frame in frames_of(images[:4])]) == ["K0 K0", "W1 W1", "W2 W2", "K0 K0"]
    assert encoder.asked == [None, None]


def test_a_key_that_was_asked_for_is_that_of_its_region_alone(images: list[np.ndarray]) -> None:
    encoder = RegionsEncoder()
    coded, frames = halves(at_interval(9), encoder), frames_of(images[:5])
    packets = [coded.encode(frames[0])]
    coded.request_key([1])
    packets += [coded.encode(frame) for frame in frames[1:3]]
    coded.request_key([0, 5])
    packets += [coded.encode(frame) for frame in frames[3:]]
    assert shown(packets) == ["K0 K0", "W1 K0", "W2 W1", "K0 W2", "W1 W3"]
    assert encoder.asked == [None, [1], [0]]
    coded.request_key()
    assert shown([coded.encode(Frame(FrameId(7, 5), 0, images[5]))]) == ["K0 K0"]


def test_a_threshold_makes_a_key_of_the_region_that_changes(images: list[np.ndarray]) -> None:
    changed = images[0].copy()
    changed[:, WIDTH // 2 + 32 :] = np.random.default_rng(0).integers(0, 256, changed[:, WIDTH // 2 + 32 :].shape)
    policy = at_threshold(90, predict=lambda one: 100 - float(one.motion.residual.max()))
    coded = halves(policy, RegionsEncoder())
    pictures = [images[0], images[0], changed, changed]
    assert shown([coded.encode(frame) for frame in frames_of(pictures)]) == ["K0 K0", "W1 W1", "W2 K0", "W3 W1"]


def test_a_region_of_several_is_never_a_delta(images: list[np.ndarray]) -> None:
    coded = halves(at_threshold(80, predict=lambda _: 79.0, delta_level=1), RegionsEncoder())
    assert shown([coded.encode(frame) for frame in frames_of(images[:3])]) == ["K0 K0"] * 3
