"""The things in the street: made of panels with the labels they should have, the same for the same seed."""

from collections.abc import Callable

import numpy as np
import pytest

from pipeline import street_objects as things
from pipeline.street_objects import Panel, Texture

MAKERS: dict[str, tuple[Callable[[np.random.Generator], list[Panel]], set[int]]] = {
    "backdrop": (things.backdrop, {things.SKY, things.TREE}),
    "building": (lambda rng: things.building(rng, 1, length=12.0), {things.BUILDING}),
    "fence": (lambda _: things.fence(-1, length=6.0), {things.FENCE}),
    "tree": (things.tree, {things.TREE}),
    "lamp": (lambda _: things.lamp(1), {things.POLE}),
    "sign": (things.sign, {things.POLE, things.SIGN}),
    "car": (lambda rng: things.car(rng, 1), {things.CAR}),
    "person": (lambda rng: things.person(rng, (0.0, 0.0, 1.0)), {things.PEDESTRIAN}),
    "cyclist": (things.cyclist, {things.BICYCLIST}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_each_thing_has_the_labels_of_its_kind(name: str) -> None:
    make, labels = MAKERS[name]
    found = {panel.label for panel in make(np.random.default_rng(1))}
    assert found - {things.DECAL} == labels


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_makes_the_same_thing(name: str) -> None:
    make, _ = MAKERS[name]
    one, other = make(np.random.default_rng(4)), make(np.random.default_rng(4))
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.corner, b.corner)
        np.testing.assert_array_equal(a.texture.rgba, b.texture.rgba)


@pytest.mark.parametrize("name", MAKERS)
def test_panels_have_an_area_and_a_picture(name: str) -> None:
    make, _ = MAKERS[name]
    for panel in make(np.random.default_rng(2)):
        assert np.linalg.norm(np.cross(panel.right, panel.down)) > 0
        assert panel.texture.rgba.ndim == 3
        assert panel.texture.rgba.shape[2] == 4


def test_a_texture_halves_along_either_axis_and_never_vanishes() -> None:
    texture = Texture(np.full((8, 16, 4), 200, np.uint8))
    assert texture.level(1, 2).shape == (2, 8, 4)
    assert texture.level(20, 20).shape == (1, 1, 4)
    assert (texture.level(3, 0) == 200).all()
