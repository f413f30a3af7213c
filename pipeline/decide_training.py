"""Training of a decision network, without labels: by how well warped masks agree with fresh ones in videos.

What is learned from is gathered once: looking at it again takes no time, so that training is a matter of seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.decide_samples import Samples
from pipeline.deciding import FACTS, MAPS
from pipeline.errors import ConfigError, PipelineError
from pipeline.experiment import DecideExperiment
from pipeline.models.temporal import Committee, DecisionNetwork, settle

FILE = "decide.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """The warps of one video, which is learned from, as much as it weighs, or held out."""

    video: str
    held: bool
    samples: Samples
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class DecideMeasured:
    """What the network says of one video: its mean error in percent of the pixels, and its rank correlation."""

    video: str
    held: bool
    error: float
    correlation: float


def train_decision(
    settings: DecideExperiment, videos: Sequence[Gathered], run: Path
) -> tuple[Committee, tuple[DecideMeasured, ...]]:
    """Learn from the videos that are not held out, each as much as it weighs, and save; measured on all of them.

    Raises ConfigError where there is nothing to learn from and PipelineError when the loss is not finite.
    """
    learned = [one for one in videos if len(one.samples) and not one.held]
    if not learned:
        raise ConfigError("no warps to learn from; name a longer --source, or streets in the experiment")
    first = settings.schedule.seed
    network = Committee([_member(settings, learned, first + number) for number in range(settings.members)]).eval()
    run.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), run / FILE)
    return network, tuple(measure_decision(network, one) for one in videos if len(one.samples))


def _member(settings: DecideExperiment, learned: Sequence[Gathered], seed: int) -> DecisionNetwork:
    schedule = settings.schedule
    torch.manual_seed(seed)
    maps, facts, agreement = (
        torch.cat(column) for column in zip(*(_tensors(one.samples) for one in learned), strict=True)
    )
    weights = torch.cat([torch.full((len(one.samples),), one.weight / len(one.samples)) for one in learned])
    network = DecisionNetwork(MAPS, FACTS, width=settings.width)
    settle(network, maps, facts)
    optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    steps = schedule.epochs * max(1, len(maps) // schedule.batch)
    for step in range(steps):
        rows = torch.multinomial(weights, schedule.batch, replacement=True)
        optimiser.param_groups[0]["lr"] = schedule.lr * 0.5 * (1 + cos(pi * step / steps))
        mirrored = maps[rows].flip(3) if step % 2 else maps[rows]
        loss = decision_loss(network(mirrored, facts[rows])[:, 0], agreement[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    if not loss.isfinite():
        raise PipelineError("the loss of the decision network is not finite; lower schedule.lr")
    return network


def decision_loss(said: Tensor, agreement: Tensor) -> Tensor:
    """Mean squared error (B,) of the logarithm of what disagrees, in percent and one more: so that 2 for 1 counts as
    much as 5 for 3. With plain errors the hardest videos are all that is learned, and good levels are told apart badly.
    """
    return F.mse_loss(torch.log1p(100 - said), torch.log1p(100 - agreement))


@torch.no_grad()
def measure_decision(network: Committee, video: Gathered) -> DecideMeasured:
    """How far off the network is on one video."""
    maps, facts, agreement = _tensors(video.samples)
    said = network(maps, facts)[:, 0]
    ranks = np.stack([_ranks(said.numpy()), _ranks(agreement.numpy())])
    correlation = float(np.corrcoef(ranks)[0, 1]) if len(said) > 2 else 0.0
    return DecideMeasured(video.video, video.held, float((said - agreement).abs().mean()), correlation)


def load_decision(run: Path, settings: DecideExperiment) -> Committee:
    """What a run of the experiment learned, in eval mode; ConfigError when there is nothing, or another's."""
    network = Committee([DecisionNetwork(MAPS, FACTS, width=settings.width) for _ in range(settings.members)])
    try:
        network.load_state_dict(load_file(run / FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"run {run}: no {FILE} of this experiment in it; name another run") from error
    return network.eval()


def _tensors(samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(samples.maps), torch.from_numpy(samples.facts), torch.from_numpy(samples.agreement)


def _ranks(values: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(values))


def describe_decision(measured: DecideMeasured) -> str:
    """One line for the log."""
    how = "held out" if measured.held else "learned from"
    return (
        f"{measured.video}, {how}: {measured.error:.2f} % of the pixels off on average, "
        f"rank correlation {measured.correlation:.2f}"
    )
