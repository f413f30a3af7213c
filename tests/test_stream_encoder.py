"""What a camera that fits its link changes while it runs: the level of the keys to come, and the threshold."""

import numpy as np
import pytest
from test_video_encoder import FixedDecider, K, RegionsEncoder, W, frames_of, halves, kinds, priced, video_encoder
from test_video_encoder import images as images  # a fixture

from pipeline.errors import ConfigError
from pipeline.key_policies import at_interval, at_threshold


def test_keys_of_another_level_come_when_they_are_due(images: list[np.ndarray]) -> None:
    encoder, frames = video_encoder(at_interval(3)), frames_of(images[:7])
    packets = [encoder.encode(frames[0])]
    encoder.code_keys_at(1)
    assert encoder.quality == 1
    packets += map(encoder.encode, frames[1:])
    assert kinds(packets) == [K, W, W, K, W, W, K]
    assert [packet.quality for packet in packets] == [3, 3, 3, 1, 1, 1, 1]


def test_a_key_that_a_threshold_or_a_worker_asks_for_is_of_the_new_level(images: list[np.ndarray]) -> None:
    predicted = iter([99.0, 50.0, 99.0])
    encoder, frames = video_encoder(at_threshold(90, predict=lambda _: next(predicted))), frames_of(images[:6])
    packets = [encoder.encode(frames[0])]
    encoder.code_keys_at(1)
    packets += map(encoder.encode, frames[1:3])
    encoder.code_keys_at(2)
    packets.append(encoder.encode(frames[3]))
    encoder.request_key()
    packets.append(encoder.encode(frames[4]))
    assert kinds(packets) == [K, W, K, W, K]
    assert [packet.quality for packet in packets] == [3, 3, 1, 1, 2]


def test_a_level_that_is_asked_for_at_once_gives_a_key_even_where_it_was_to_come(images: list[np.ndarray]) -> None:
    encoder, frames = video_encoder(at_interval(9)), frames_of(images[:3])
    packets = [encoder.encode(frames[0])]
    encoder.code_keys_at(1)
    encoder.quality = 1
    packets += map(encoder.encode, frames[1:])
    assert kinds(packets) == [K, K, W]
    assert [packet.quality for packet in packets] == [3, 1, 1]


def test_in_a_grid_all_regions_begin_anew_at_another_level(images: list[np.ndarray]) -> None:
    encoder, frames = halves(at_interval(9), RegionsEncoder()), frames_of(images[:3])
    packets = [encoder.encode(frames[0])]
    encoder.code_keys_at(1)
    packets += map(encoder.encode, frames[1:])
    assert [[region.kind for region in packet.regions] for packet in packets] == [[K, K], [K, K], [W, W]]
    assert [packet.quality for packet in packets] == [3, 1, 1]


def test_under_a_price_a_lower_level_begins_at_once(images: list[np.ndarray]) -> None:
    encoder, frames = priced(1.0, FixedDecider([80, 90, 98, 100], fall=0.1)), frames_of(images[:4])
    encoder.encode(frames[0])
    encoder.code_keys_at(1)
    later = [encoder.encode(frame) for frame in frames[1:]]
    assert kinds(later)[0] is K
    assert max(packet.quality for packet in later) <= 1


def test_a_threshold_may_change_from_one_frame_to_the_next(images: list[np.ndarray]) -> None:
    encoder, frames = video_encoder(at_threshold(80, predict=lambda _: 88.5)), frames_of(images[:5])
    packets = [encoder.encode(frame) for frame in frames[:2]]
    encoder.threshold = 90
    assert encoder.threshold == 90
    packets += [encoder.encode(frame) for frame in frames[2:4]]
    encoder.threshold = 0
    packets.append(encoder.encode(frames[4]))
    assert kinds(packets) == [K, W, K, K, W]


def test_a_threshold_out_of_range_or_beside_a_price_is_refused(images: list[np.ndarray]) -> None:
    encoder = video_encoder(at_threshold(80, predict=lambda _: 88.5))
    for wrong in (-1, 101, float("nan")):
        with pytest.raises(ConfigError, match="threshold"):
            encoder.threshold = wrong
    with pytest.raises(ConfigError, match="only one of the two"):
        priced(1.0, FixedDecider([80, 90, 98, 100], fall=2)).threshold = 90
    assert kinds([encoder.encode(frame) for frame in frames_of(images[:2])]) == [K, W]


def moving(picture: np.ndarray, count: int) -> list[np.ndarray]:
    """The picture seen by a camera that turns by 4 pixels a frame."""
    return [np.roll(picture, 4 * at, axis=1) for at in range(count)]


def test_it_tells_what_the_warps_of_a_frame_are_like_sent_or_not(images: list[np.ndarray]) -> None:
    predicted = iter([99.0, 50.0])
    encoder = video_encoder(at_threshold(90, predict=lambda _: next(predicted)))
    packets, tried = [], []
    frames = frames_of(moving(images[0], 4))
    for frame in frames[:3]:
        packets.append(encoder.encode(frame))
        tried.append(encoder.tried)
    assert kinds(packets) == [K, W, K]
    assert tried[0] == ()
    assert [(one.age, one.predicted) for (one,) in tried[1:]] == [(1, 99.0), (2, 50.0)]
    assert [round(one.flow_px) for (one,) in tried[1:]] == [4, 8]
    encoder.request_key()
    encoder.encode(frames[3])
    assert encoder.tried == ()


def test_where_nothing_predicts_only_the_motion_is_told(images: list[np.ndarray]) -> None:
    encoder = video_encoder(at_interval(9))
    for frame in frames_of(moving(images[0], 2)):
        encoder.encode(frame)
    (tried,) = encoder.tried
    assert (tried.predicted, round(tried.flow_px)) == (None, 4)
