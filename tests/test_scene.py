"""Frames that show nothing new are dropped, small things that move are seen; simple scenes are told from busy ones."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.scene import SceneGate, SimpleScenes
from pipeline.streets import render_street

HEIGHT, WIDTH = 180, 240
FPS = 25.0
Image = NDArray[np.uint8]


def picture(seed: int = 0) -> Image:
    """A still scene with structure of all sizes."""
    rng = np.random.default_rng(seed)
    rough = cv2.resize(rng.uniform(40, 200, (24, 32, 3)).astype(np.float32), (WIDTH, HEIGHT))
    return np.clip(rough + rng.normal(0, 8, rough.shape), 0, 255).astype(np.uint8)


def noisy(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    return np.clip(image + rng.normal(0, deviation, image.shape), 0, 255).astype(np.uint8)


def sent(gate: SceneGate, images: Sequence[Image]) -> list[bool]:
    return [gate.changed(image, at / FPS) for at, image in enumerate(images)]


def test_the_first_frame_is_new() -> None:
    assert SceneGate().changed(picture(), 0.0)


def test_a_still_picture_is_sent_once_a_second() -> None:
    assert sum(sent(SceneGate(), [picture()] * 75)) == 3


def test_the_noise_of_a_sensor_is_no_news() -> None:
    rng = np.random.default_rng(1)
    for deviation in (1.0, 3.0, 5.0):
        gate = SceneGate()
        assert sum(sent(gate, [noisy(picture(), deviation, rng) for _ in range(75)])) <= 4


def test_a_small_thing_that_moves_is_news_also_in_noise() -> None:
    rng, images = np.random.default_rng(2), []
    for at in range(50):
        image = picture().copy()
        if at >= 25:
            image[100:116, 20 + 4 * at : 28 + 4 * at] = (230, 230, 230)  # a person far away
        images.append(noisy(image, 3.0, rng))
    found = sent(SceneGate(), images)
    assert sum(found[:25]) <= 2
    assert sum(found[25:]) >= 22


def test_slow_motion_adds_up_until_it_is_news() -> None:
    images = []
    for at in range(50):
        shift = np.array([[1, 0, 0.1 * at], [0, 1, 0]], np.float64)
        images.append(cv2.warpAffine(picture(), shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT).astype(np.uint8))
    assert 3 <= sum(sent(SceneGate(), images)) < 50


def test_a_little_more_light_is_no_news_and_much_is() -> None:
    gate, image = SceneGate(), picture()
    assert gate.changed(image, 0.0)
    assert not gate.changed(np.clip(image.astype(np.int64) + 4, 0, 255).astype(np.uint8), 0.04)
    assert gate.changed(np.clip(image.astype(np.int64) + 40, 0, 255).astype(np.uint8), 0.08)


def test_a_picture_of_another_size_is_new() -> None:
    gate = SceneGate()
    gate.changed(picture(), 0.0)
    assert gate.changed(picture()[:90], 0.04)


def test_no_frame_of_a_moving_street_is_dropped() -> None:
    frames = [frame.image for frame in render_street(3, width=192, height=144, frames=90)][70:]
    assert all(sent(SceneGate(), frames))


def test_motion_does_not_pass_for_noise() -> None:
    gate, rng = SceneGate(), np.random.default_rng(3)
    for at in range(50):
        gate.changed(noisy(picture(at), 2.0, rng), at / FPS)
    assert gate.threshold_grey <= 6.0


def test_a_scene_is_simple_while_its_keys_take_few_bytes_for_their_level() -> None:
    scenes = SimpleScenes({3: 500.0, 5: 1000.0}, quality=3)
    scenes.keyed(5, 200)
    assert scenes.level(5) == 5
    for _ in range(20):
        scenes.keyed(5, 800)
    assert (scenes.level(5), scenes.level(2)) == (3, 2)
    for _ in range(20):
        scenes.keyed(3, 450)
    assert scenes.level(5) == 3
    for _ in range(20):
        scenes.keyed(3, 500)
    assert scenes.level(5) == 5
