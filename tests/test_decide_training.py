"""The decision network's training: it learns what can be learned, from what is not held out, the same each time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.decide_samples import Samples
from pipeline.decide_training import Gathered, decision_loss, describe_decision, load_decision, train_decision
from pipeline.deciding import FACTS, MAPS, PLACES
from pipeline.errors import ConfigError
from pipeline.experiment import DecideExperiment, DecideSamples, DecideSchedule, OutlineSettings

SETTINGS = DecideExperiment(
    name="tiny-decide",
    width=8,
    outline=OutlineSettings(width=8, frames=4, steps=1, batch=1, lr=0.01, weight_decay=0.0),
    streets=(),
    samples=DecideSamples(keys=1, longest_age=5, share=1.0, steps=1, fresh=0, cheaper=0.0),
    schedule=DecideSchedule(seed=1, epochs=40, batch=32, lr=0.01, weight_decay=0.01),
)


def made(name: str, seed: int, *, held: bool = False, count: int = 200, shift: float = 0.0) -> Gathered:
    """Warps whose agreement falls with the first map and the first fact."""
    rng = np.random.default_rng(seed)
    maps = rng.random((count, MAPS, *PLACES), np.float32) * rng.random((count, 1, 1, 1), np.float32)
    facts = rng.random((count, FACTS), np.float32)
    agreement = 98 - 20 * maps[:, 0].mean((1, 2)) - 10 * facts[:, 0] - shift
    return Gathered(name, held, Samples(maps, facts, agreement.astype(np.float32)))


def test_it_learns_and_says_how_well_of_each_video(tmp_path: Path) -> None:
    videos = [made("road", 0), made("park", 1), made("other", 2, held=True)]
    _, measured = train_decision(SETTINGS, videos, tmp_path)
    assert [(one.video, one.held) for one in measured] == [("road", False), ("park", False), ("other", True)]
    assert all(one.error < 1.5 and one.correlation > 0.9 for one in measured)
    assert "other, held out" in describe_decision(measured[2])


def test_a_video_held_out_changes_nothing(tmp_path: Path) -> None:
    alone, _ = train_decision(SETTINGS, [made("road", 0)], tmp_path / "a")
    beside, _ = train_decision(SETTINGS, [made("road", 0), made("other", 2, held=True, shift=50)], tmp_path / "b")
    for one, other in zip(alone.parameters(), beside.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_short_video_weighs_as_much_as_a_long_one(tmp_path: Path) -> None:
    long, short = made("long", 0, count=400), made("short", 0, count=400, shift=20)
    part = Samples(short.samples.maps[:40], short.samples.facts[:40], short.samples.agreement[:40])
    network, _ = train_decision(SETTINGS, [long, Gathered("short", False, part)], tmp_path)
    with torch.no_grad():
        said = network(torch.from_numpy(part.maps), torch.from_numpy(part.facts)).mean()
    both = (long.samples.agreement.mean() + part.agreement.mean()) / 2
    assert float(said) < both + 3


def test_the_weights_of_a_run_are_loaded_again(tmp_path: Path) -> None:
    network, _ = train_decision(SETTINGS, [made("road", 0)], tmp_path)
    loaded = load_decision(tmp_path, SETTINGS)
    maps, facts = torch.randn(3, MAPS, *PLACES), torch.randn(3, FACTS)
    torch.testing.assert_close(loaded(maps, facts), network(maps, facts))
    with pytest.raises(ConfigError, match=r"no decide\.safetensors of this experiment"):
        load_decision(tmp_path, SETTINGS.model_copy(update={"width": 4}))
    with pytest.raises(ConfigError, match=r"no decide\.safetensors of this experiment"):
        load_decision(tmp_path, SETTINGS.model_copy(update={"members": 2}))
    with pytest.raises(ConfigError, match=r"no decide\.safetensors of this experiment"):
        load_decision(tmp_path / "none", SETTINGS)


def test_of_several_members_each_begins_otherwise_and_their_mean_counts(tmp_path: Path) -> None:
    brief = SETTINGS.model_copy(update={"members": 3, "schedule": SETTINGS.schedule.model_copy(update={"epochs": 2})})
    committee, _ = train_decision(brief, [made("road", 0)], tmp_path)
    alone, _ = train_decision(brief.model_copy(update={"members": 1}), [made("road", 0)], tmp_path / "alone")
    maps, facts = torch.randn(3, MAPS, *PLACES), torch.randn(3, FACTS)
    said = [member(maps, facts) for member in committee.members]
    torch.testing.assert_close(said[0], alone(maps, facts))
    assert not torch.allclose(said[0], said[1])
    torch.testing.assert_close(committee(maps, facts), torch.stack(said).mean(0))


def test_a_video_counts_as_much_as_it_weighs(tmp_path: Path) -> None:
    easy, hard = made("easy", 0), made("hard", 0, shift=20)
    said = []
    for weight in (0.05, 1.0):
        network, _ = train_decision(SETTINGS, [easy, replace(hard, weight=weight)], tmp_path)
        with torch.no_grad():
            found = network(torch.from_numpy(easy.samples.maps), torch.from_numpy(easy.samples.facts))
        said.append(float(found.mean()))
    assert said[0] > said[1] + 3


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no warps to learn from"):
        train_decision(SETTINGS, [made("road", 0, count=0), made("other", 1, held=True)], tmp_path)


def test_what_disagrees_is_told_apart_where_it_is_little() -> None:
    good, bad = torch.tensor([99.0]), torch.tensor([60.0])
    assert decision_loss(good - 2, good) > 20 * decision_loss(bad - 2, bad)
    assert decision_loss(good, good) == 0
