"""KEY or WARP: what is due, what is worth it, and that nothing is left to chance when the stream breaks."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.codec import Encoder, packet_of
from pipeline.deciding import Candidate, linear_agreement
from pipeline.errors import ConfigError
from pipeline.key_policies import LONGEST_AGE, KeyPolicy, at_interval, at_price, at_threshold
from pipeline.messages import Frame, FrameId, Kind, Packet, Region
from pipeline.regions import Grid
from pipeline.streets import render_street
from pipeline.video_encoder import VideoEncoder

HEIGHT, WIDTH = 96, 128
BUNDLE = SimpleNamespace(manifest=SimpleNamespace(height=HEIGHT, width=WIDTH), id=b"abcd")
K, W = Kind.KEY, Kind.WARP


class FixedEncoder(Encoder):
    """Stands in for a network: every KEY has a body of so many bytes."""

    def __init__(self, body_bytes: int = 800) -> None:
        self.quality, self.body_bytes, self.encoded = 3, body_bytes, 0
        self.outline: np.ndarray | None = None

    def encode(self, frame: Frame) -> Packet:
        self.encoded += 1
        if frame.image.shape != (HEIGHT, WIDTH, 3):
            raise ValueError("another size")
        return packet_of(frame, bytes(self.body_bytes), bundle=BUNDLE.id, quality=self.quality)


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
        assert len(region_of(second).body) == candidate.flow_bytes


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


class FixedDecider:
    """Stands in for a graph: what a key of each level is worth, and by how much its age lessens that."""

    def __init__(self, by_level: Sequence[float], fall: float) -> None:
        self.by_level, self.fall = by_level, fall

    def compare(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return np.array([self.by_level[one.key_quality] - self.fall * one.age for one in candidates], np.float32)


def priced(price: float, decider: object, encoder: Encoder | None = None) -> VideoEncoder:
    levels = [SimpleNamespace(index=index, rate_bpp=0.1 * (index + 1)) for index in range(4)]
    manifest = SimpleNamespace(height=HEIGHT, width=WIDTH, name="tiny", quality_levels=levels)
    bundle = SimpleNamespace(manifest=manifest, id=BUNDLE.id, tables=SimpleNamespace(levels=4))
    return VideoEncoder(encoder or FixedEncoder(), bundle, policy=at_price(price), decider=decider)  # type: ignore[arg-type]


def test_the_dearer_bytes_are_the_longer_keys_live_and_the_cheaper_they_are(images: list[np.ndarray]) -> None:
    sent = []
    for price in (1.0, 100.0):
        encoder = priced(price, FixedDecider([80, 90, 98, 100], fall=2))
        sent.append([encoder.encode(frame) for frame in frames_of(images)])
    cheap, dear = sent
    assert kinds(cheap).count(K) > kinds(dear).count(K)
    assert {packet.quality for packet in cheap} == {3}
    assert min(packet.quality for packet in dear) < 3


def test_a_level_that_the_trigger_chose_lasts_and_one_that_is_asked_for_is_the_highest(
    images: list[np.ndarray],
) -> None:
    encoder = priced(100.0, FixedDecider([80, 90, 98, 100], fall=2))
    packets = [encoder.encode(frame) for frame in frames_of(images)]
    for key, after in itertools.pairwise(packets):
        assert region_of(after).kind is K or after.quality == key.quality
    assert encoder.quality == 3
    encoder.quality = 1
    later = [encoder.encode(frame) for frame in frames_of(images, first=len(images))]
    assert kinds(later)[0] is K
    assert max(packet.quality for packet in later) == 1


def test_a_level_asked_for_that_the_trigger_chose_before_begins_with_a_key_too(images: list[np.ndarray]) -> None:
    network = FixedEncoder()
    encoder = priced(100.0, FixedDecider([80, 90, 98, 100], fall=2), network)
    packets, sequence = [], 0
    while not packets or packets[-1].quality == 3 or region_of(packets[-1]).kind is K:  # until a WARP of a lower level
        packets.append(encoder.encode(Frame(FrameId(7, sequence), 0, images[sequence % 2])))
        sequence += 1
    encoder.quality = lower = network.quality
    later = [encoder.encode(Frame(FrameId(7, sequence + at), 0, images[at % 2])) for at in range(6)]
    assert kinds(later)[0] is K
    assert max(packet.quality for packet in later) == lower < 3


def test_a_moving_threshold_falls_with_each_key(images: list[np.ndarray]) -> None:
    fixed, moving = (
        list(map(video_encoder(policy).encode, frames_of(images)))
        for policy in (at_threshold(90, predict=lambda _: 88.5), at_threshold(90, predict=lambda _: 88.5, moving=True))
    )
    assert set(kinds(fixed)) == {K}
    assert kinds(moving)[:3] == [K, K, W]


def test_a_price_needs_a_graph_to_decide_by() -> None:
    with pytest.raises(ConfigError, match="train-decide"):
        priced(1.0, None)


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


def test_each_region_knows_the_edges_of_its_own_window(images: list[np.ndarray]) -> None:
    encoder, seen = RegionsEncoder(), list[np.ndarray | None]()
    encoder.outline = np.zeros((HEIGHT // 16, WIDTH // 16), np.float32)
    encoder.outline[:, 6:] = 0.5  # from 96 px on, where the left window ends

    def predict(one: Candidate) -> float:
        seen.append(one.motion.outline)
        return 90.0

    coded = halves(at_threshold(50, predict=predict), encoder)
    for frame in frames_of(images[:1] * 2):
        coded.encode(frame)
    left, right = seen
    assert left is not None and right is not None
    assert left.max() == 0
    assert right.max() == pytest.approx(0.5)
