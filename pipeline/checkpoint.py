"""The state of a training run on disk: everything that resuming needs to equal not having stopped."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.models.split_segmenter import SplitSegmenter

FILE = "checkpoint.pt"


@dataclass(frozen=True, slots=True, eq=False)
class Trainee:
    """What changes while training: the network, the moving average of its weights, the optimiser."""

    network: SplitSegmenter
    average: SplitSegmenter
    optimiser: torch.optim.Optimizer


def save(run: Path, trainee: Trainee, experiment: Experiment, *, epochs_done: int) -> None:
    """Replace the run's checkpoint; a process that dies meanwhile leaves the old one."""
    state: Mapping[str, object] = {
        "network": trainee.network.state_dict(),
        "average": trainee.average.state_dict(),
        "optimiser": trainee.optimiser.state_dict(),
        "experiment": experiment.model_dump(mode="json"),
        "epochs_done": epochs_done,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all(),  # empty where there is no GPU
    }
    torch.save(state, run / f"{FILE}.new")
    (run / f"{FILE}.new").replace(run / FILE)


def resume(run: Path, trainee: Trainee, experiment: Experiment) -> int:
    """Load the run's checkpoint, if there is one; the epochs it has done. ConfigError on another experiment's."""
    if not (run / FILE).is_file():
        return 0
    # On the network's device: a learning rate on the CPU would be recorded into the GPU's graph as a constant.
    device = next(trainee.network.parameters()).device
    state = torch.load(run / FILE, map_location=device, weights_only=True)
    if state.get("experiment") != experiment.model_dump(mode="json"):
        raise ConfigError(f"run {run}: its checkpoint is of another experiment; name an empty folder")
    trainee.network.load_state_dict(state["network"])
    trainee.average.load_state_dict(state["average"])
    trainee.optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"].cpu())
    torch.cuda.set_rng_state_all([one.cpu() for one in state["random_cuda"]])
    return int(state["epochs_done"])


def load_average(run: Path, network: nn.Module) -> None:
    """Load the averaged weights of a run; ConfigError when there are none or they are another network's."""
    if not (run / FILE).is_file():
        raise ConfigError(f"run {run}: no {FILE} in it; train first, or name another run")
    state = torch.load(run / FILE, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(state["average"])
    except RuntimeError as error:
        raise ConfigError(f"run {run}: its checkpoint is not of this experiment; name another run") from error
