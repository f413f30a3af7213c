"""What a training run begins with: published weights, another run's, or its camera alone; and what then learns."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_restoring import described
from test_training import FROZEN, LATENTS, epochs, equal, interrupted
from torch import Tensor

from pipeline.bundle import Bundle, load_bundle
from pipeline.checkpoint import FILE
from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.material import Folders
from pipeline.models.entropy_model import MeanScaleHyperprior
from pipeline.runtime import Precision, open_session
from pipeline.training import load_trained, train

NO_WEIGHTS = "backbone mobilenet_v2: no weights to begin with; add --backbone FILE, or --start with a run or bundle"
HELD_STILL = {"trained": "decoder"}


def state_of(run: Path, experiment: Experiment) -> dict[str, Tensor]:
    return load_trained(experiment, run, tiny.CLASSES).state_dict()


def in_front(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a camera runs and codes with, statistics of batch norms and all."""
    return {name: value for name, value in state.items() if not name.startswith("decoder.")}


def parameters_of(run: Path, experiment: Experiment) -> dict[str, Tensor]:
    return dict(load_trained(experiment, run, tiny.CLASSES).named_parameters())


@pytest.fixture
def behind(tiny_camvid: Path, tiny_run: Path, tmp_path: Path) -> Callable[[str], Folders]:
    """Folders of a run of this name that begins with the camera of tiny_run."""
    return lambda name: Folders(data=tiny_camvid, backbone=None, run=tmp_path / name, camera=tiny_run)


def test_a_run_can_begin_with_the_weights_of_another(tiny_camvid: Path, tiny_run: Path, tmp_path: Path) -> None:
    folders = replace(tiny.folders(tiny_camvid, tmp_path), start=tiny_run, backbone=None)
    frozen = tiny.experiment(schedule={"epochs": 1, **FROZEN})
    epochs(frozen, folders)
    found, expected = parameters_of(folders.run, frozen), parameters_of(tiny_run, tiny.experiment())
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in found.items())


def test_a_run_cannot_begin_with_the_weights_of_another_network(
    tiny_camvid: Path, tiny_run: Path, tmp_path: Path
) -> None:
    folders = replace(tiny.folders(tiny_camvid, tmp_path), start=tiny_run)
    with pytest.raises(ConfigError, match=str(tiny_run)):
        epochs(tiny.experiment(model={"latents": 8}), folders)


@pytest.mark.parametrize("content", [None, b"no weights"], ids=["missing", "damaged"])
def test_backbone_that_cannot_be_read_is_named(tiny_camvid: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"backbone weights {path}") as caught:
        epochs(tiny.experiment(), replace(tiny.folders(tiny_camvid, tmp_path), backbone=path))
    assert "\n" not in str(caught.value)


def refused(experiment: Experiment, folders: Folders) -> str:
    with pytest.raises(ConfigError) as caught:
        epochs(experiment, folders)
    assert not (folders.run / FILE).exists()
    return str(caught.value)


@pytest.mark.parametrize("decoder", ["joint", "latent_task"])
def test_a_backbone_does_not_begin_with_chance(tiny_camvid: Path, tmp_path: Path, decoder: str) -> None:
    folders = replace(tiny.folders(tiny_camvid, tmp_path), backbone=None)
    said = refused(tiny.experiment(model={"decoder": decoder}), folders)
    assert said == NO_WEIGHTS.replace("--start", "--start or --camera")


def test_the_cloud_s_part_of_a_backbone_is_in_no_camera(behind: Callable[[str], Folders]) -> None:
    assert refused(tiny.experiment(model={"decoder": "source_task"}), behind("run")) == NO_WEIGHTS


def test_a_camera_that_has_not_learned_is_not_held_still(tiny_camvid: Path, tmp_path: Path) -> None:
    said = refused(tiny.experiment(schedule=HELD_STILL), tiny.folders(tiny_camvid, tmp_path))
    assert said == "schedule.trained is decoder, but nothing has trained the camera; add --camera RUN or BUNDLE"


def test_a_camera_of_which_a_part_has_not_learned_is_not_held_still(tiny_camvid: Path, tmp_path: Path) -> None:
    uncoded = replace(tiny.folders(tiny_camvid, tmp_path), run=tmp_path / "uncoded")
    epochs(tiny.experiment(model={"bottleneck": "none"}, schedule={"epochs": 1}), uncoded)
    said = refused(tiny.experiment(schedule=HELD_STILL), replace(uncoded, run=tmp_path / "run", camera=uncoded.run))
    assert said.startswith(f"camera {uncoded.run}: it has no prior.")


def test_a_run_that_goes_on_needs_nothing_to_begin_with(tiny_camvid: Path, tmp_path: Path) -> None:
    folders = tiny.folders(tiny_camvid, tmp_path)
    next(train(tiny.experiment(), folders))
    assert [p.epoch for p in epochs(tiny.experiment(), replace(folders, backbone=None))] == [2]


@pytest.mark.parametrize("copies", [0, 3], ids="K = {}".format)
def test_a_camera_held_still_stays_as_it_was_while_the_decoder_learns(
    behind: Callable[[str], Folders], tiny_run: Path, copies: int
) -> None:
    experiment, folders = tiny.experiment(model={"over_parameters": copies}, schedule=HELD_STILL), behind("run")
    epochs(experiment, folders)
    stored = torch.load(folders.run / FILE, weights_only=True)
    before = in_front(state_of(tiny_run, tiny.experiment()))
    assert any("running_mean" in name for name in before)
    assert equal(in_front(stored["network"]), before)
    assert equal(in_front(stored["average"]), before)
    learned = [name for name in parameters_of(folders.run, experiment) if name.startswith("decoder.")]
    assert not any(torch.equal(stored["network"][name], stored["average"][name]) for name in learned)


def test_the_camera_of_a_bundle_stays_as_it_was_too(tiny_camvid: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = load_bundle(described(tiny_bundle, tmp_path / "bundle"))
    experiment = tiny.experiment(model={"decoder_width": 12}, schedule=HELD_STILL)
    folders = Folders(data=tiny_camvid, backbone=None, run=tmp_path / "run", camera=bundle.path)
    epochs(experiment, folders)
    network = load_trained(experiment, folders.run, tiny.CLASSES)
    assert isinstance(network.prior, MeanScaleHyperprior)
    image, level = tiny.scenes(1, seed=3)[0].image, np.array([1])
    session = open_session(bundle.graph("encode"), engine="onnxruntime", threads=1, precision=Precision.FLOAT32)
    with torch.no_grad():
        seen = network.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float())
        latents = network.prior.analyse(seen, torch.from_numpy(level))
    for found, expected in zip(latents, session.run(image[None], level), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, atol=0.02 * np.abs(expected).max())


def test_a_run_behind_the_camera_of_a_bundle_goes_on_as_it_was(
    tiny_camvid: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = load_bundle(described(tiny_bundle, tmp_path / "bundle"))
    folders = Folders(data=tiny_camvid, backbone=None, run=tmp_path / "run", camera=bundle.path)
    next(train(tiny.experiment(schedule=HELD_STILL), folders))
    bundle.graph("encode").write_bytes(b"no graph")  # what is not read is not missed
    assert [p.epoch for p in epochs(tiny.experiment(schedule=HELD_STILL), folders)] == [2]


@pytest.mark.parametrize("named", ["start", "camera"])
def test_a_run_that_goes_on_reads_nothing_that_it_began_with(
    tiny_camvid: Path, tiny_run: Path, tmp_path: Path, named: str
) -> None:
    first = Path(shutil.copytree(tiny_run, tmp_path / "first"))
    folders = replace(tiny.folders(tiny_camvid, tmp_path), **{named: first})
    next(train(tiny.experiment(), folders))
    shutil.rmtree(first)
    assert [p.epoch for p in epochs(tiny.experiment(), folders)] == [2]


def test_a_camera_of_a_bundle_whose_branches_were_merged(
    tiny_camvid: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    merged = described(tiny_bundle, tmp_path / "K", model={**tiny.MODEL, "over_parameters": 3})
    folders = Folders(data=tiny_camvid, backbone=None, run=tmp_path / "run", camera=merged)
    assert len(epochs(tiny.experiment(schedule=HELD_STILL), folders)) == 2


def test_decoders_behind_one_camera_have_the_same_rates(behind: Callable[[str], Folders]) -> None:
    rates = []
    for copies in (0, 3):
        experiment = tiny.experiment(model={"over_parameters": copies}, schedule=HELD_STILL)
        rates.append([[one.rate_bpp for one in p.measured] for p in epochs(experiment, behind(f"K{copies}"))])
    assert rates[0] == rates[1]
    assert rates[0][0] == rates[0][1]
    assert rates[0][0][0] < rates[0][0][-1]


def test_resuming_a_decoder_alone_equals_not_having_stopped(behind: Callable[[str], Folders]) -> None:
    experiment = tiny.experiment(schedule=HELD_STILL)
    epochs(experiment, behind("whole"))
    assert interrupted(experiment, behind("stopped")) == 1
    whole, stopped = (state_of(behind(name).run, experiment) for name in ("whole", "stopped"))
    assert equal(whole, stopped)


def test_behind_another_runs_camera_all_can_learn(behind: Callable[[str], Folders], tiny_run: Path) -> None:
    """The camera is begun with, and moves."""
    found = []
    for name, schedule in (("still", FROZEN), ("moved", {})):
        experiment = tiny.experiment(schedule={"epochs": 1, **schedule})
        epochs(experiment, behind(name))
        found.append(parameters_of(behind(name).run, experiment)[LATENTS])
    expected = parameters_of(tiny_run, tiny.experiment())[LATENTS]
    assert torch.allclose(found[0], expected, atol=1e-6)
    assert not torch.allclose(found[1], expected, atol=1e-6)
