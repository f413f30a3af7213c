"""The translator: at the start it says what it is told, and what it learns may depend on the surroundings."""

import torch

from pipeline.models.translator import Translator

CLASSES = 3


def test_a_translator_that_has_learned_nothing_says_what_it_is_told() -> None:
    shares = torch.rand(2, CLASSES, 24, 32).softmax(1)
    said = Translator(CLASSES, width=4)(shares)
    assert said.shape == shares.shape
    assert torch.equal(said.argmax(1), shares.argmax(1))


def test_a_place_is_judged_with_its_surroundings() -> None:
    torch.manual_seed(0)
    translator = Translator(CLASSES, width=4).eval()
    torch.nn.init.normal_(translator.amend.weight)
    even = torch.full((1, CLASSES, 24, 32), 1 / CLASSES)
    said = translator(even)
    even[..., 12, 20] = torch.tensor([1.0, 0.0, 0.0])
    moved = (translator(even) - said).abs().amax((0, 1)) > 0
    assert moved[12, 20]
    assert moved[12, 13]
    assert not moved[12, 12], "seven pixels away at most"
