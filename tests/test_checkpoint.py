"""Checkpoints: saved whole, loaded exactly, refused when they are another experiment's."""

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from pipeline.checkpoint import FILE, Trainee, check_continued, check_learned, load_average, load_camera, resume, save
from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.training import build


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


def test_a_run_that_began_on_a_gpu_goes_on_on_a_cpu(tmp_path: Path) -> None:
    saved, loaded = trainee(), trainee()
    for group in saved.optimiser.param_groups:
        group["capturable"] = group["fused"] = True
    save(tmp_path, saved, tiny.experiment(), epochs_done=1)
    resume(tmp_path, loaded, tiny.experiment())
    assert [(group["capturable"], group["fused"]) for group in loaded.optimiser.param_groups] == [(False, False)]


def test_a_run_from_before_a_part_that_learned_nothing_was_left_out_still_loads(tmp_path: Path) -> None:
    saved, loaded = trainee(), trainee()
    save(tmp_path, saved, tiny.experiment(), epochs_done=2)
    state = torch.load(tmp_path / FILE, weights_only=True)
    for weights in (state["network"], state["average"]):
        weights["prior.gaussian.scale_table"] = torch.zeros(0)
    torch.save(state, tmp_path / FILE)
    assert resume(tmp_path, loaded, tiny.experiment()) == 2
    assert torch.equal(loaded.network.weight, saved.network.weight)
    load_average(tmp_path, loaded.average)
    assert torch.equal(loaded.average.weight, saved.average.weight)


def test_a_run_goes_on_with_the_frames_it_had(tmp_path: Path) -> None:
    save(tmp_path, trainee(), tiny.experiment(), epochs_done=1, learned="these")
    check_continued(tmp_path, tiny.experiment(), "these")
    with pytest.raises(ConfigError, match="it learned from other frames, labels or teachers; name those it had"):
        check_continued(tmp_path, tiny.experiment(), "others")
    with pytest.raises(ConfigError, match="of another experiment"):
        check_continued(tmp_path, tiny.experiment(loss={"lovasz": 0.1}), "these")
    check_continued(tmp_path / "empty", tiny.experiment(), "these")


def test_a_run_from_before_frames_were_told_apart_goes_on_with_any(tmp_path: Path) -> None:
    save(tmp_path, trainee(), tiny.experiment(), epochs_done=1)
    state = torch.load(tmp_path / FILE, weights_only=True)
    del state["learned"]
    torch.save(state, tmp_path / FILE)
    check_continued(tmp_path, tiny.experiment(), "these")


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


@pytest.mark.parametrize("theirs", [None, {"name": "tiny"}], ids=["none", "part"])
def test_a_checkpoint_of_no_experiment_is_named(tmp_path: Path, theirs: dict[str, str] | None) -> None:
    save(tmp_path, trainee(), tiny.experiment(), epochs_done=1)
    state = torch.load(tmp_path / FILE, weights_only=True)
    torch.save({**state, "experiment": theirs}, tmp_path / FILE)
    with pytest.raises(ConfigError, match="of no experiment of this version"):
        resume(tmp_path, trainee(), tiny.experiment())
    with pytest.raises(ConfigError, match="of no experiment of this version"):
        check_learned(tmp_path, tiny.experiment())


def test_settings_newer_than_a_checkpoint_had_their_defaults(tmp_path: Path) -> None:
    save(tmp_path, trainee(), tiny.experiment(), epochs_done=1)
    state = torch.load(tmp_path / FILE, weights_only=True)
    del state["experiment"]["data"]["size"]
    torch.save(state, tmp_path / FILE)
    assert resume(tmp_path, trainee(), tiny.experiment()) == 1
    with pytest.raises(ConfigError, match=r"another data\.size"):
        check_learned(tmp_path, tiny.experiment(data={"size": (64, 96)}))


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


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])  # cut at each of these torch raises another error
def test_a_checkpoint_cut_short_is_named(tmp_path: Path, share: float) -> None:
    save(tmp_path, trainee(), tiny.experiment(), epochs_done=1)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ConfigError, match="is damaged or cannot be read; train anew"):
        load_average(tmp_path, nn.Linear(3, 2))


def test_a_file_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a checkpoint, but a text of some length")
    with pytest.raises(ConfigError, match="is damaged or cannot be read; train anew"):
        load_average(tmp_path, nn.Linear(3, 2))


def fresh(experiment: Experiment, seed: int) -> SplitSegmenter:
    """A network of this experiment, all of its tensors other than those of another seed."""
    torch.manual_seed(seed)
    network = build(experiment, tiny.CLASSES)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.01 * seed)
    return network


@pytest.mark.parametrize(
    ("theirs", "ours", "lacking"),
    [
        ({}, {"decoder": "source_task"}, ()),
        ({"bottleneck": "none"}, {}, ("prior.",)),
        ({"decoder": "task", "bottleneck": "none"}, {}, ("analysis.source_encoder.", "prior.")),
    ],
    ids=["nothing", "a run that codes nothing", "a run of untouched features"],
)
def test_what_a_run_s_camera_has_not_is_told(
    tmp_path: Path, theirs: dict[str, object], ours: dict[str, object], lacking: tuple[str, ...]
) -> None:
    experiment, network = tiny.experiment(model=theirs), fresh(tiny.experiment(model=theirs), seed=1)
    save(tmp_path, Trainee(network, network, torch.optim.AdamW(network.parameters())), experiment, epochs_done=1)
    mine = fresh(tiny.experiment(model=ours), seed=2)
    told = load_camera(tmp_path, mine, tiny.RATE)
    assert told == {name for name in mine.state_dict() if lacking and name.startswith(lacking)}


def begun(run: Path, experiment: Experiment) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a network of this experiment before and after it took the run's camera."""
    network = fresh(experiment, seed=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_camera(run, network, experiment.loss.rate)
    return before, network.state_dict()


@pytest.fixture
def joint_run(tmp_path: Path) -> Path:
    """A run whose average is fresh(tiny.experiment(), seed=1)."""
    network = fresh(tiny.experiment(), seed=1)
    optimiser = torch.optim.AdamW(network.parameters())
    save(tmp_path, Trainee(network, network, optimiser), tiny.experiment(), epochs_done=1)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        ({"decoder": "source_task"}, ("analysis.", "prior.")),
        ({"over_parameters": 3}, ("analysis.", "prior.")),
        ({"bottleneck": "none"}, ("analysis.",)),
        ({"decoder": "task", "bottleneck": "none"}, ("analysis.backbone.",)),
    ],
    ids=["another decoder", "over-parameterised", "uncoded", "untouched"],
)
def test_a_camera_is_taken_as_far_as_the_network_has_it_and_the_decoder_left(
    joint_run: Path, model: dict[str, object], taken: tuple[str, ...]
) -> None:
    before, after = begun(joint_run, tiny.experiment(model=model))
    theirs = fresh(tiny.experiment(), seed=1).state_dict()
    for name, value in after.items():
        if name.startswith("decoder."):
            assert torch.equal(value, before[name]), name
        else:
            assert name.startswith(taken)
            assert torch.equal(value, theirs[name]), name
    floats = [name for name, value in before.items() if value.is_floating_point() and value.numel() > 0]
    assert not any(torch.equal(before[name], theirs[name]) for name in floats if not name.startswith("decoder."))


def test_levels_begin_with_the_gains_of_those_that_weighed_as_much(joint_run: Path) -> None:
    """The run has levels at 8, 2 and 0.5."""
    gains = fresh(tiny.experiment(), seed=1).prior.gains
    for rate, rows in (((1.7,), [1]), ((30.0, 9.0, 0.6, 0.0), [0, 0, 2, 2]), ((3.0, 2.0, 1.0), [0, 1, 2])):
        _, after = begun(joint_run, tiny.experiment(loss={"rate": rate}))
        for name, value in gains.state_dict().items():
            assert torch.equal(after[f"prior.gains.{name}"], value[rows]), rate


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"decoder": "latent_task"}, "its camera has nothing that this experiment's has"),
        ({"latents": 8}, "its analysis.source_encoder.mix.2.weight is of another size than this experiment's"),
        ({"backbone": "mobilenet_edgetpu"}, "is of another size than this experiment's"),
    ],
    ids=["image codec", "fewer latents", "another backbone"],
)
def test_a_camera_that_does_not_fit_is_refused_in_one_sentence(
    joint_run: Path, model: dict[str, object], said: str
) -> None:
    network = fresh(tiny.experiment(model=model), seed=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError, match=f"run {joint_run}: .*; name another") as caught:
        load_camera(joint_run, network, tiny.RATE)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_run_of_many_rates_is_a_start_for_one_of_them(joint_run: Path) -> None:
    many = load_state(joint_run)
    for level, weight in enumerate(tiny.RATE):
        loss = tiny.experiment().loss.model_copy(update={"rate": (weight,)})
        experiment = tiny.experiment().model_copy(update={"loss": loss})
        network = fresh(experiment, seed=2)
        load_average(joint_run, network, experiment.loss.rate)
        for name, value in network.state_dict().items():
            expected = many[name][level : level + 1] if name.startswith("prior.gains.") else many[name]
            assert torch.equal(value, expected), name


def load_state(run: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(run / FILE, weights_only=True)["average"]
    return state


def test_a_camera_of_a_run_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"run {tmp_path}: no {FILE} in it"):
        load_camera(tmp_path, fresh(tiny.experiment(), seed=2), tiny.RATE)
