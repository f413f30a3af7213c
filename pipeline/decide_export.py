"""A decision network into a bundle: one more graph, for the camera."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.bundle import Bundle, copy_content, load_bundle, seal
from pipeline.codec import open_encoder
from pipeline.decide_samples import Video, Worker, check_sources, read_video, render_video, watch
from pipeline.decide_training import Gathered, describe_decision, load_decision, train_decision
from pipeline.deciding import FACTS, GRAPH, MAPS, PLACES
from pipeline.experiment import DecideExperiment, load_decide_experiment
from pipeline.models.temporal import DecisionNetwork
from pipeline.runtime import open_session
from pipeline.tracing import trace

_FILE = "decide.onnx"


@dataclass(frozen=True, slots=True)
class Watched:
    """Videos, as files or folders: those to learn from, and those only to measure on."""

    sources: tuple[Path, ...]
    held: tuple[Path, ...]


def add_decision(bundle: Bundle, network: DecisionNetwork, folder: Path) -> Bundle:
    """Write the bundle with a graph that decides to a folder, which may be its own, and load it again.

    Packets of the old bundle are not the new one's: the hash covers all graphs.
    """
    copy_content(bundle, folder)
    examples = torch.zeros(1, MAPS, *PLACES), torch.zeros(1, FACTS)
    trace(network.eval(), examples, folder / _FILE, inputs=["maps", "facts"], outputs=["agreement"])
    graphs = {**bundle.manifest.graphs, GRAPH: _FILE}
    return seal(bundle.manifest.model_copy(update={"graphs": graphs}), folder)


def train_into_bundle(config: Path, watched: Watched, *, run: Path, bundle: Path, output: Path | None) -> Iterator[str]:
    """Train by a file of configs/train/ on videos, into the bundle that masks them; yields what to tell a person.

    Raises ConfigError and SourceError on wrong files.
    """
    settings, loaded = load_decide_experiment(config), load_bundle(bundle)
    check_sources((*watched.sources, *watched.held))
    worker = Worker(loaded, open_encoder(loaded), open_session(loaded.graph("decode")))
    gathered: list[Gathered] = []
    for video, out in _videos(settings, watched, (loaded.manifest.width, loaded.manifest.height)):
        rng = np.random.default_rng((settings.schedule.seed, len(gathered)))
        samples = watch(worker, video, settings.samples, rng)
        gathered.append(Gathered(video.name, out, samples))
        yield f"{video.name}: {len(samples)} warps in {len(video.images)} frames"
    _, measured = train_decision(settings, gathered, run)
    yield from map(describe_decision, measured)
    network = load_decision(run, DecisionNetwork(MAPS, FACTS, width=settings.width))
    made = add_decision(loaded, network, output or bundle)
    yield f"bundle {made.path}: {made.manifest.hash}, decides between KEY and WARP"


def _videos(settings: DecideExperiment, watched: Watched, size: tuple[int, int]) -> Iterator[tuple[Video, bool]]:
    """Each video, one at a time in memory, and whether it is held out."""
    for street in settings.streets:
        yield render_video(street, size), False
    for sources, out in ((watched.sources, False), (watched.held, True)):
        for source in sources:
            yield read_video(source, size), out
