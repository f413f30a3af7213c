"""Steps on a site's frames: they end in time, move what they should at the rates they should, and give an average."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_restoring import described

from pipeline import site_training as module
from pipeline.bundle import Bundle, load_bundle
from pipeline.errors import ConfigError
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.restoring import restore
from pipeline.site_training import Steps, Taught, experiment_of, optimiser_of, tune
from pipeline.stepping import TERMS, Step

SCENES = tiny.scenes(5)
SAID = np.stack([np.eye(tiny.CLASSES, dtype=np.uint8)[one.labels % tiny.CLASSES] * 255 for one in SCENES])  # void: sky
TAUGHT = Taught([one.image for one in SCENES], SAID[:, ::2, ::2].transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(described(tiny_bundle, tmp_path_factory.mktemp("described") / "bundle"))


@pytest.fixture
def network(bundle: Bundle) -> SplitSegmenter:
    return restore(bundle).network


def steps(*, minutes: float, most: int, seconds: float, told: list[str] | None = None) -> Steps:
    """On a clock that goes on by so many seconds whenever it is read."""
    times = itertools.count(100.0, seconds)

    def tell(line: Callable[[], str]) -> None:
        if told is not None:
            told.append(line())

    return Steps(minutes=minutes, most=most, clock=lambda: next(times), tell=tell)


def test_steps_end_with_the_minutes(bundle: Bundle, network: SplitSegmenter) -> None:
    tuned = tune(network, experiment_of(bundle, frames=5), TAUGHT, steps(minutes=1, most=1000, seconds=15))
    assert tuned.steps == 3  # the clock is read before each step, and once at the start


def test_steps_end_with_their_number_and_each_is_told(bundle: Bundle, network: SplitSegmenter) -> None:
    told: list[str] = []
    tuned = tune(network, experiment_of(bundle, frames=5), TAUGHT, steps(minutes=1, most=2, seconds=1, told=told))
    assert tuned.steps == 2
    assert [line.split(":")[0] for line in told] == ["step 1, 2%", "step 2, 50%"]


def test_a_line_has_the_terms_by_their_names() -> None:
    logged = torch.tensor([{"distillation": 0.25, "rate_bpp": 0.125}.get(name, 9.0) for name in TERMS])
    assert module._line(3, 0.5, logged) == "step 3, 50%: teacher 0.250, rate 0.1250 bits per pixel"


def test_what_comes_of_it_is_an_average_to_be_exported(bundle: Bundle, network: SplitSegmenter) -> None:
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    tuned = tune(network, experiment_of(bundle, frames=5), TAUGHT, steps(minutes=1, most=4, seconds=1)).network
    assert tuned is not network
    assert not tuned.training
    now, mean = dict(network.named_parameters()), dict(tuned.named_parameters())
    moved = {name.split(".")[0] for name, old in before.items() if not torch.equal(old, mean[name])}
    assert moved == {"analysis", "prior", "decoder"}
    name = "decoder.widen.0.weight"
    assert not torch.equal(mean[name], now[name])


def test_the_last_steps_are_looked_at_before_anything_is_made_of_them(
    bundle: Bundle, network: SplitSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU norms are looked at some steps later."""
    settled: list[bool] = []

    class Watched(Step):
        def settle(self) -> None:
            settled.append(True)
            super().settle()

    monkeypatch.setattr(module, "Step", Watched)
    tune(network, experiment_of(bundle, frames=5), TAUGHT, steps(minutes=1, most=1, seconds=1))
    assert settled == [True]


def test_every_weight_has_one_rate_and_the_hyper_decoder_the_highest(network: SplitSegmenter) -> None:
    groups = optimiser_of(network).param_groups
    learned = [id(p) for group in groups for p in group["params"]]
    assert len(learned) == len(set(learned))
    assert set(learned) == {id(p) for p in network.parameters() if p.requires_grad}
    peaks = {id(p): group["peak"] for group in groups for p in group["params"]}
    hyper = {peaks[id(p)] for p in network.prior.hyper_decoder.parameters()}
    camera = {peaks[id(p)] for p in network.analysis.parameters()}
    decoder = {peaks[id(p)] for p in network.decoder.parameters()}
    assert max(camera) < min(decoder) < min(hyper)


def test_the_bits_weigh_what_they_weighed_when_the_bundle_was_trained(bundle: Bundle) -> None:
    experiment = experiment_of(bundle, frames=5)
    assert experiment.loss.rate == tiny.RATE
    assert experiment.loss.labels == experiment.loss.lovasz == 0
    assert experiment.schedule.batch == 5
    assert experiment_of(bundle, frames=100).schedule.batch == 8


def test_weights_of_the_bits_that_are_none_are_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    made = load_bundle(described(tiny_bundle, tmp_path / "bundle", rate=(0.5, 2.0, 8.0)))
    with pytest.raises(ConfigError, match=r"network\.rate: level 0 is the cheapest .*; export it again"):
        experiment_of(made, frames=5)


def test_views_cover_a_frame_whose_sides_16_does_not_divide(tiny_bundle: Bundle, tmp_path: Path) -> None:
    made = load_bundle(described(tiny_bundle, tmp_path / "bundle"))
    taller = made.manifest.model_copy(update={"height": 57})
    resized = Bundle(made.path, taller, made.tables)
    assert experiment_of(resized, frames=5).data.crop == (64, tiny.WIDTH)


def test_a_network_that_codes_nothing_cannot_be_tuned() -> None:
    with pytest.raises(ConfigError, match="codes nothing"):
        optimiser_of(tiny.network(bottleneck="none"))
