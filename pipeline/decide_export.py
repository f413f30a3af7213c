"""What a camera decides by, into a bundle: a graph for where masks have edges, and one that judges WARPs by it."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import outlining
from pipeline.bundle import Bundle, copy_content, load_bundle, seal
from pipeline.codec import open_encoder
from pipeline.decide_samples import Video, Worker, check_sources, read_video, render_video, watch
from pipeline.decide_training import Gathered, describe_decision, load_decision, train_decision
from pipeline.deciding import FACTS, GRAPH, MAPS, PLACES
from pipeline.experiment import DecideExperiment, load_decide_experiment
from pipeline.models.outline import OutlineNetwork
from pipeline.models.split_segmenter import levels_like
from pipeline.models.temporal import DecisionNetwork
from pipeline.outline_training import Outlined, correlation, load_outline, outlined, train_outline
from pipeline.runtime import open_session
from pipeline.tracing import trace


@dataclass(frozen=True, slots=True)
class Watched:
    """Videos, as files or folders: those to learn from, and those only to measure on; and folders of pictures that
    follow no order, which edges alone are learned from."""

    sources: tuple[Path, ...]
    held: tuple[Path, ...]
    pictures: tuple[Path, ...] = ()

    @property
    def pictured(self) -> list[tuple[Path, bool]]:
        """All that edges are learned from or measured on, and whether it is held out."""
        return [*((one, False) for one in (*self.sources, *self.pictures)), *((one, True) for one in self.held)]


def add_outline(bundle: Bundle, network: OutlineNetwork, folder: Path) -> Bundle:
    """Write the bundle with a graph that says where masks have edges to a folder, which may be its own; loaded again.

    Packets of the old bundle are not the new one's: the hash covers all graphs.
    """
    y = torch.zeros(1, bundle.tables.latents, *bundle.latent_size)
    examples = y, levels_like(y, 0)
    return _add(bundle, network, examples, outlining.GRAPH, folder, inputs=["y", "quality"], outputs=["outline"])


def add_decision(bundle: Bundle, network: DecisionNetwork, folder: Path) -> Bundle:
    """The same for a graph that decides."""
    examples = torch.zeros(1, MAPS, *PLACES), torch.zeros(1, FACTS)
    return _add(bundle, network, examples, GRAPH, folder, inputs=["maps", "facts"], outputs=["agreement"])


def _add(
    bundle: Bundle,
    network: nn.Module,
    examples: Sequence[Tensor],
    graph: str,
    folder: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> Bundle:
    copy_content(bundle, folder)
    file = f"{graph}.onnx"
    trace(network.eval(), examples, folder / file, inputs=inputs, outputs=outputs)
    graphs = {**bundle.manifest.graphs, graph: file}
    return seal(bundle.manifest.model_copy(update={"graphs": graphs}), folder)


def train_into_bundle(config: Path, watched: Watched, *, run: Path, bundle: Path, output: Path | None) -> Iterator[str]:
    """Train by a file of configs/train/ on videos, into the bundle that masks them; yields what to tell a person.

    Raises ConfigError and SourceError on wrong files.
    """
    settings, loaded = load_decide_experiment(config), load_bundle(bundle)
    check_sources((*watched.sources, *watched.held, *watched.pictures))
    folder = output or bundle
    loaded = yield from _outline_into(settings, watched, loaded, run, folder)
    worker = _worker(loaded)
    gathered: list[Gathered] = []
    for video, out in _videos(settings, watched, _size(loaded)):
        rng = np.random.default_rng((settings.schedule.seed, len(gathered)))
        samples = watch(worker, video, settings.samples, rng)
        gathered.append(Gathered(video.name, out, samples))
        yield f"{video.name}: {len(samples)} warps in {len(video.images)} frames"
    _, measured = train_decision(settings, gathered, run)
    yield from map(describe_decision, measured)
    network = load_decision(run, DecisionNetwork(MAPS, FACTS, width=settings.width))
    made = add_decision(loaded, network, folder)
    yield f"bundle {made.path}: {made.manifest.hash}, decides between KEY and WARP"


def _outline_into(
    settings: DecideExperiment, watched: Watched, bundle: Bundle, run: Path, folder: Path
) -> Generator[str, None, Bundle]:
    """Train what says where masks have edges; the bundle that has it. Rendered streets are left out: real pictures
    have other edges, and enough of them."""
    worker, size, schedule = _worker(bundle), _size(bundle), settings.outline
    learned: list[Outlined] = []
    held: list[tuple[str, Outlined]] = []
    for number, (source, out) in enumerate(watched.pictured):
        video, rng = read_video(source, size), np.random.default_rng((settings.schedule.seed, number))
        most = len(video.images) if source in watched.pictures else schedule.frames
        found = outlined(worker, video.images, most=most, rng=rng)
        if out:
            held.append((video.name, found))
        else:
            learned.append(found)
    yield f"edges: {sum(map(len, learned))} frames to learn from"
    train_outline(schedule, learned, run, levels=bundle.tables.levels, seed=settings.schedule.seed)
    network = load_outline(run, OutlineNetwork(bundle.tables.latents, bundle.tables.levels, width=schedule.width))
    for name, part in held:
        yield f"{name}, held out: edges where they are with a correlation of {correlation(network, part):.2f}"
    return add_outline(bundle, network, folder)


def _worker(bundle: Bundle) -> Worker:
    decode, outliner = open_session(bundle.graph("decode")), outlining.open_outliner(bundle)
    return Worker(bundle, open_encoder(bundle), decode, outliner=outliner)


def _size(bundle: Bundle) -> tuple[int, int]:
    return bundle.manifest.width, bundle.manifest.height


def _videos(settings: DecideExperiment, watched: Watched, size: tuple[int, int]) -> Iterator[tuple[Video, bool]]:
    """Each video, one at a time in memory, and whether it is held out."""
    for street in settings.streets:
        yield render_video(street, size), False
    for sources, out in ((watched.sources, False), (watched.held, True)):
        for source in sources:
            yield read_video(source, size), out
