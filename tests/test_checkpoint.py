"""Checkpoints: saved whole, loaded exactly, refused when they are another experiment's."""

from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from pipeline.checkpoint import FILE, Trainee, load_average, resume, save
from pipeline.errors import ConfigError


def trainee() -> Trainee:
    """A layer, its average and an optimiser that has taken a step."""
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(network.parameters(), lr=torch.tensor(0.25))
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return Trainee(network, average, optimiser)


def test_everything_comes_back(tmp_path: Path) -> None:
    before, after = trainee(), trainee()
    before.optimiser.param_groups[0]["lr"].fill_(0.5)
    save(tmp_path, before, tiny.experiment(), epochs_done=3)
    expected = torch.rand(4)
    assert resume(tmp_path, after, tiny.experiment()) == 3
    torch.testing.assert_close(torch.rand(4), expected)
    assert torch.equal(after.network.weight, before.network.weight)
    assert torch.equal(after.average.weight, before.average.weight)
    one, other = before.optimiser.state_dict(), after.optimiser.state_dict()
    assert torch.equal(one["state"][0]["exp_avg"], other["state"][0]["exp_avg"])
    assert torch.equal(one["state"][0]["step"], other["state"][0]["step"])
    assert other["param_groups"][0]["lr"] == 0.5


def test_the_optimiser_goes_on_with_the_networks_own_parameters(tmp_path: Path) -> None:
    saved, loaded = trainee(), trainee()
    save(tmp_path, saved, tiny.experiment(), epochs_done=1)
    resume(tmp_path, loaded, tiny.experiment())
    for one in (saved, loaded):
        one.optimiser.zero_grad()
        one.network(torch.ones(1, 3)).square().sum().backward()
        one.optimiser.step()
    assert torch.equal(loaded.network.weight, saved.network.weight)


def test_a_folder_without_checkpoint_starts_at_nothing(tmp_path: Path) -> None:
    assert resume(tmp_path, trainee(), tiny.experiment()) == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"schedule": {"lr": 0.5}},
        {"loss": {"rate": (8.0, 2.0)}},
        {"teacher": {"sharpness": 2.0}},
        {"data": {"texture": 0.1}},
        {"model": {"over_parameters": 1}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_any_changed_setting_makes_it_another_experiment(tmp_path: Path, changed: dict[str, dict[str, object]]) -> None:
    save(tmp_path, trainee(), tiny.experiment(), epochs_done=1)
    with pytest.raises(ConfigError, match="another experiment"):
        resume(tmp_path, trainee(), tiny.experiment(**changed))


def test_a_new_checkpoint_takes_the_place_of_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    for done in (1, 2):
        save(tmp_path, trainee(), tiny.experiment(), epochs_done=done)
    assert resume(tmp_path, trainee(), tiny.experiment()) == 2
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_average_is_what_is_loaded_for_use(tmp_path: Path) -> None:
    saved, network = trainee(), nn.Linear(3, 2)
    save(tmp_path, saved, tiny.experiment(), epochs_done=1)
    load_average(tmp_path, network)
    assert torch.equal(network.weight, saved.average.weight)
    with pytest.raises(ConfigError, match="not of this experiment") as caught:
        load_average(tmp_path, nn.Linear(4, 2))
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=FILE):
        load_average(tmp_path, nn.Linear(3, 2))
