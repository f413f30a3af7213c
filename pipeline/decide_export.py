"""What a camera decides by, into a bundle: a graph for where masks have edges, and one that judges WARPs by it."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline import outlining
from pipeline.bundle import Bundle, load_bundle
from pipeline.bundle_graphs import add_graph
from pipeline.codec import decode_graph, open_encoder
from pipeline.decide_samples import Video, Worker, check_sources, read_video, render_video, watch, watch_approaches
from pipeline.decide_training import Gathered, describe_decision, load_decision, train_decision
from pipeline.deciding import FACTS, GRAPH, MAPS, PLACES
from pipeline.errors import ConfigError
from pipeline.experiment import DecideExperiment, load_decide_experiment
from pipeline.models.outline import OutlineNetwork
from pipeline.models.split_segmenter import levels_like
from pipeline.outline_training import Outlined, describe_outline, outlined, train_outline
from pipeline.runtime import open_session

_OUTLINED = "outlined"  # folder in the run: the bundle with one of its two graphs


@dataclass(frozen=True, slots=True)
class Watched:
    """Videos, as files or folders: those to learn from, and those only to measure on; and folders of pictures.

    Pictures follow no order: edges are learned from them, and from videos made of them. ConfigError where a file or
    folder is named twice.
    """

    sources: tuple[Path, ...]
    held: tuple[Path, ...]
    pictures: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        seen = set[Path]()
        for path in self.all:
            if path.resolve() in seen:
                raise ConfigError(f"source {path}: named twice; name it once, to learn from or to measure on")
            seen.add(path.resolve())

    @property
    def all(self) -> tuple[Path, ...]:
        """Everything that is looked at."""
        return (*self.sources, *self.pictures, *self.held)


def add_outline(bundle: Bundle, network: OutlineNetwork, folder: Path) -> Bundle:
    """Write the bundle with a graph that says where masks have edges; see add_graph."""
    y = torch.zeros(1, bundle.tables.latents, *bundle.latent_size)
    examples, inputs = (y, levels_like(y, 0)), ["y", "quality"]
    return add_graph(bundle, outlining.GRAPH, network, examples, folder, inputs=inputs, outputs=["outline"])


def add_decision(bundle: Bundle, network: nn.Module, folder: Path) -> Bundle:
    """Write the bundle with a graph that decides; see add_graph."""
    examples, inputs = (torch.zeros(1, MAPS, *PLACES), torch.zeros(1, FACTS)), ["maps", "facts"]
    return add_graph(bundle, GRAPH, network, examples, folder, inputs=inputs, outputs=["agreement"])


def train_into_bundle(config: Path, watched: Watched, *, run: Path, bundle: Path, output: Path | None) -> Iterator[str]:
    """Train by a file of configs/train/ on videos, into the bundle that masks them; yields what to tell a person.

    The bundle gets both graphs at the end, or none. Raises ConfigError and SourceError on wrong files.
    """
    settings, loaded = load_decide_experiment(config), load_bundle(bundle)
    check_sources(watched.all)
    with_outline = yield from _with_outline(settings, watched, loaded, run)
    outliner = outlining.open_outliner(with_outline)
    worker = Worker(loaded, open_encoder(loaded), open_session(decode_graph(loaded)), outliner=outliner)
    gathered: list[Gathered] = []
    for video, out in _videos(settings, watched, _size(loaded)):
        rng = np.random.default_rng((settings.schedule.seed, len(gathered)))
        samples = watch(worker, video, settings.samples, rng)
        weight = settings.rendered if len(gathered) < len(settings.streets) else 1.0  # streets come first
        gathered.append(Gathered(video.name, out, samples, weight))
        yield f"{video.name}: {len(samples)} warps in {len(video.images)} frames"
    yield from _approached(settings, watched, worker, gathered)
    _, measured = train_decision(settings, gathered, run)
    yield from map(describe_decision, measured)
    made = add_decision(with_outline, load_decision(run, settings), output or bundle)
    yield f"bundle {made.path}: {made.manifest.hash}, knows where masks have edges and decides between KEY and WARP"


def _approached(
    settings: DecideExperiment, watched: Watched, worker: Worker, gathered: list[Gathered]
) -> Iterator[str]:
    """Gather what is learned from pictures that a camera comes nearer to; yields what to tell a person."""
    if settings.approaches is None:
        return
    for source in watched.pictures:
        pictures = read_video(source, _size(worker.bundle))
        rng = np.random.default_rng((settings.schedule.seed, len(gathered)))
        samples = watch_approaches(worker, pictures, settings.approaches, settings.samples, rng)
        gathered.append(Gathered(f"{pictures.name}, approached", False, samples))
        yield f"{pictures.name}, approached: {len(samples)} warps"


def _with_outline(
    settings: DecideExperiment, watched: Watched, bundle: Bundle, run: Path
) -> Generator[str, None, Bundle]:
    """The bundle, in the run's folder, with a graph that says where masks have edges.

    Rendered streets are left out: real pictures have other edges, and enough of them.
    """
    worker, seed, few = _plain_worker(bundle), settings.schedule.seed, settings.outline.frames
    learned, held = list[Outlined](), list[tuple[str, Outlined]]()
    for number, source in enumerate(watched.all):
        video, rng = read_video(source, _size(bundle)), np.random.default_rng((seed, number))
        most = len(video.images) if source in watched.pictures else few
        found = outlined(worker, video.images, most=most, rng=rng)
        yield f"{video.name}: the edges of {len(found)} frames"
        if source in watched.held:
            held.append((video.name, found))
        else:
            learned.append(found)
    network = yield from train_outline(settings.outline, learned, run, levels=bundle.tables.levels, seed=seed)
    yield from (describe_outline(network, name, part) for name, part in held)
    return add_outline(bundle, network, run / _OUTLINED)


def _plain_worker(bundle: Bundle) -> Worker:
    """One that needs no outlines: it shows what they are."""
    return Worker(bundle, open_encoder(bundle), open_session(decode_graph(bundle)))


def _size(bundle: Bundle) -> tuple[int, int]:
    return bundle.manifest.width, bundle.manifest.height


def _videos(settings: DecideExperiment, watched: Watched, size: tuple[int, int]) -> Iterator[tuple[Video, bool]]:
    """Each video, one at a time in memory, and whether it is held out."""
    for street in settings.streets:
        yield render_video(street, size), False
    for sources, out in ((watched.sources, False), (watched.held, True)):
        for source in sources:
            yield read_video(source, size), out
