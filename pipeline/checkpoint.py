"""The state of a training run on disk: everything that resuming needs to equal not having stopped."""

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.experiment import Experiment, ScheduleSettings
from pipeline.models.split_segmenter import SplitSegmenter

FILE = "checkpoint.pt"
_GONE = "prior.gaussian."  # buffers that runs had once, and that nothing learned
_CAMERA, _GAINS, _CLOUD = "analysis.", "prior.gains.", "decoder."  # of a SplitSegmenter
_LEARNED_BY = ("model", "data", "teacher", "loss")  # sections of an experiment; a schedule may be cut short or repeated


@dataclass(frozen=True, slots=True, eq=False)
class Trainee:
    """What changes while training: the network, the moving average of its weights, the optimiser."""

    network: SplitSegmenter
    average: SplitSegmenter
    optimiser: torch.optim.Optimizer


def save(run: Path, trainee: Trainee, experiment: Experiment, *, epochs_done: int, learned: str = "") -> None:
    """Replace the run's checkpoint; a process that dies meanwhile leaves the old one.

    `learned` tells its frames, labels and teachers from others (Material.learned).
    """
    state: Mapping[str, object] = {
        "network": trainee.network.state_dict(),
        "average": trainee.average.state_dict(),
        "optimiser": trainee.optimiser.state_dict(),
        "experiment": experiment.model_dump(mode="json"),
        "learned": learned,
        "epochs_done": epochs_done,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all(),  # empty where there is no GPU
    }
    torch.save(state, run / f"{FILE}.new")
    (run / f"{FILE}.new").replace(run / FILE)


def check_continued(run: Path, experiment: Experiment, learned: str) -> None:
    """ConfigError where the run's checkpoint is of another experiment, or of other frames, labels or teachers."""
    if not (run / FILE).is_file():
        return
    state = _read(run, torch.device("cpu"))
    _check_experiment(run, state, experiment)
    if state.get("learned", "") not in ("", learned):  # runs of before do not say
        raise ConfigError(
            f"run {run}: it learned from other frames, labels or teachers; name those it had, or an empty folder"
        )


def _check_experiment(run: Path, state: Mapping[str, Any], experiment: Experiment) -> None:
    if _experiment_of(run, state) != experiment:
        raise ConfigError(f"run {run}: its checkpoint is of another experiment; name an empty folder")


def resume(run: Path, trainee: Trainee, experiment: Experiment) -> int:
    """Load the run's checkpoint, if there is one; the epochs it has done.

    ConfigError on another experiment's, or on one of a network that is another now.
    """
    if not (run / FILE).is_file():
        return 0
    # On the network's device: a learning rate on the CPU would be recorded into the GPU's graph as a constant.
    device = next(trainee.network.parameters()).device
    state = _read(run, device)
    _check_experiment(run, state, experiment)
    try:
        trainee.network.load_state_dict(state["network"])
        trainee.average.load_state_dict(state["average"])
    except RuntimeError as error:
        raise ConfigError(f"run {run}: its checkpoint is of another version; name an empty folder") from error
    for group in state["optimiser"]["param_groups"]:  # as on the device that it goes on on, not the one it began on
        group["capturable"] = group["fused"] = device.type == "cuda"
    trainee.optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"].cpu())
    torch.cuda.set_rng_state_all([one.cpu() for one in state["random_cuda"]])
    return int(state["epochs_done"])


def load_average(run: Path, network: nn.Module, rate: Sequence[float] | None = None) -> None:
    """Load the averaged weights of a run; ConfigError when there are none or they are another network's.

    With `rate`, what bits weigh by level, the run may have other levels, as for `load_camera`.
    """
    state = _state(run)
    found = dict(state["average"])
    if rate is not None:
        found |= gains_for(rate, found, state["experiment"]["loss"]["rate"])
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        raise ConfigError(
            f"run {run}: its checkpoint is not of this experiment, or of another version; name another run"
        ) from error


def check_learned(run: Path, experiment: Experiment) -> None:
    """ConfigError where a run learned from other data or by another loss than the experiment says.

    Weights alone do not tell: experiments that go on from one another have one network. Settings that are newer than
    the run are taken to have had their defaults.
    """
    theirs, ours = _experiment_of(run, _state(run)).model_dump(), experiment.model_dump()
    for section in _LEARNED_BY:
        other = [key for key, value in theirs[section].items() if ours[section][key] != value]
        if other:
            raise ConfigError(f"run {run}: not of this experiment, it had another {section}.{other[0]}; name its own")


def schedule_of(run: Path) -> tuple[ScheduleSettings, int]:
    """How a run was to learn, and how many of its epochs are done; ConfigError where there is none."""
    state = _state(run)
    return _experiment_of(run, state).schedule, int(state["epochs_done"])


def load_camera(run: Path, network: SplitSegmenter, rate: Sequence[float]) -> frozenset[str]:
    """Load what a run learned in front of the cloud, as far as the network has it: the decoder is left as it is.

    A network that sends features as they are has the backbone of it, and no more. `rate` is what bits weigh by level:
    where a run had more or fewer levels, each begins with the gains of the one whose bits weighed about as much there.
    Returns the names of what the run did not have, which stays as it was. ConfigError where its camera has nothing that
    fits.
    """
    state = _state(run)
    theirs = state["experiment"]["loss"]["rate"]
    return put_camera(network, state["average"], origin=f"run {run}", theirs=theirs, ours=rate)


def put_camera(
    network: nn.Module, state: Mapping[str, Tensor], *, origin: str, theirs: Sequence[float], ours: Sequence[float]
) -> frozenset[str]:
    """The same from the state of a network whose bits weighed `theirs`; `origin` is what a refusal names."""
    own = network.state_dict()
    found = {name: value for name, value in state.items() if name in own and not name.startswith(_CLOUD)}
    if not any(name.startswith(_CAMERA) for name in found):
        raise ConfigError(f"{origin}: its camera has nothing that this experiment's has; name another")
    found |= gains_for(ours, found, theirs)
    strange = next((name for name, value in found.items() if value.shape != own[name].shape), None)
    if strange:
        raise ConfigError(f"{origin}: its {strange} is of another size than this experiment's; name another")
    network.load_state_dict({**own, **found})
    return frozenset(name for name in own if not name.startswith(_CLOUD)) - found.keys()


def gains_for(ours: Sequence[float], found: Mapping[str, Tensor], theirs: Sequence[float]) -> dict[str, Tensor]:
    """The gains in a network's state for as many levels as we have.

    Level by level where there are as many, else each of the one whose bits weighed about as much. `ours` and `theirs`:
    what bits weigh by level, here and where the state comes from.
    """
    gains = {name: value for name, value in found.items() if name.startswith(_GAINS)}
    if len(theirs) == len(ours):
        return gains
    rows = [_nearest(weight, theirs) for weight in ours]
    return {name: value[rows] for name, value in gains.items()}


def _nearest(weight: float, weights: Sequence[float]) -> int:
    """The place of the weight that is least apart by its ratio; a weight may be 0."""
    apart = [abs(math.log((one + 1e-9) / (weight + 1e-9))) for one in weights]
    return apart.index(min(apart))


def _experiment_of(run: Path, state: Mapping[str, Any]) -> Experiment:
    """What a checkpoint says that it was trained by; ConfigError where that is no experiment as they are now."""
    try:
        return Experiment.model_validate(state.get("experiment"))
    except ValidationError as error:
        raise ConfigError(f"run {run}: its checkpoint is of no experiment of this version; train anew") from error


def _state(run: Path) -> dict[str, Any]:
    if not (run / FILE).is_file():
        raise ConfigError(f"run {run}: no {FILE} in it; train first, or name another")
    return _read(run, torch.device("cpu"))


def _read(run: Path, device: torch.device) -> dict[str, Any]:
    """What a run saved, less what networks have no more; ConfigError where it cannot be read."""
    try:
        state: dict[str, Any] = torch.load(run / FILE, map_location=device, weights_only=True)
        kept = (state["network"], state["average"])
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise ConfigError(f"run {run}: its {FILE} is damaged or cannot be read; train anew, or name another") from error
    for weights in kept:
        for name in [name for name in weights if name.startswith(_GONE)]:
            del weights[name]
    return state
