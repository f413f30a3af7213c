"""Teachers: segmentation networks from files, alone or several together, that tell our classes in a picture.

frame -- at the size it knows -- network -- our classes -+
  |                             -- network -- our classes -+- mean
  +- mirrored ------------------- the same --- mirrored ---+
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.datasets import Classes
from pipeline.errors import ConfigError
from pipeline.models.mininetv2 import MiniNetV2
from pipeline.models.teacher import FDDWNet, group_classes, normalise
from pipeline.published_weights import read_weights
from pipeline.segmentation_graph import SegmentationGraph

BATCH = 4  # pictures that a teacher is shown at once
_ACQUAINTANCE = 48  # pictures that statistics are taken from

# The networks known by name, each under the tensor of its own that has one entry per class.
NETWORKS: Mapping[str, type[FDDWNet | MiniNetV2]] = {
    "layer31.up_conv.0.bias": FDDWNet,
    "output.up_conv.0.bias": MiniNetV2,
}


class Teacher(Protocol):
    """Something that tells our classes in a picture."""

    @property
    def made_of(self) -> str:
        """All that its answers depend on, in one line: weights, size, classes, views."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its pictures must lie."""
        ...

    def probabilities(self, images: Tensor) -> Tensor:
        """RGB uint8 (B, 3, H, W) -> probabilities of our classes (B, K, H, W)."""
        ...

    def acquainted(self, images: Sequence[NDArray[np.uint8]], *, share: float) -> Self:
        """The teacher with this share of its batch norms' statistics taken from the frames (H, W, 3), unlabelled.

        A graph, whose batch norms are not to be had, stays as it is. (Li et al., arXiv 1603.04779; Schneider et
        al., NeurIPS 2020, for the share.)
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """How a network sees a frame, and what its classes are to us."""

    size: tuple[int, int]  # width and height that it looks at
    target: Tensor  # (C,) the class of ours that each of its classes counts as
    classes: int

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]} {self.target.tolist()}"

    def of(self, images: Tensor) -> Tensor:
        """RGB uint8 (B, 3, H, W) -> RGB (B, 3, h, w) in 0..255 at the network's size."""
        return _resize(images.float(), (self.size[1], self.size[0]), "bicubic").clamp(0, 255)

    def probabilities(self, logits: Tensor, height: int, width: int) -> Tensor:
        """The network's logits (B, C, h', w') -> probabilities of our classes (B, K, height, width)."""
        return _resize(group_classes(logits.softmax(1), self.target, self.classes), (height, width), "bilinear")


@dataclass(frozen=True, eq=False)  # no slots: the network is kept in one
class NetworkTeacher:
    """A network of NETWORKS, made when it is first asked: its answers may be on disk already."""

    make: Callable[[], nn.Module]
    view: View
    made_of: str

    @cached_property
    def network(self) -> nn.Module:
        """In eval mode, on the view's device."""
        return self.make()

    @property
    def device(self) -> torch.device:
        return self.view.target.device

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        return self.view.probabilities(self._logits(self.network, images), *images.shape[2:])

    def acquainted(self, images: Sequence[NDArray[np.uint8]], *, share: float) -> Self:
        chosen = images[:: max(1, len(images) // _ACQUAINTANCE)]
        made_of = f"{self.made_of} {share} of {digest(chosen)}"
        return replace(self, make=partial(self._acquainted, chosen, share), made_of=made_of)

    @torch.no_grad()
    def _acquainted(self, images: Sequence[NDArray[np.uint8]], share: float) -> nn.Module:
        seen, mixed = deepcopy(self.network).train(), deepcopy(self.network)
        for module in seen.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # the plain mean over batches
        batches = max(1, len(images) // BATCH)
        for first in range(batches):  # each of them spread over all frames
            self._logits(seen, stacked(images[first::batches], self.device))
        for (name, own), taken in zip(mixed.state_dict().items(), seen.state_dict().values(), strict=True):
            if name.endswith(("running_mean", "running_var")):
                own.lerp_(taken, share)
        return mixed

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        x = normalise(self.view.of(images)).contiguous(memory_format=torch.channels_last)
        y: Tensor = network(x)
        return y


@dataclass(frozen=True, slots=True, eq=False)
class GraphTeacher:
    """Any segmentation network as an ONNX graph."""

    graph: SegmentationGraph
    view: View
    made_of: str

    @property
    def device(self) -> torch.device:
        return self.view.target.device

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        logits = torch.from_numpy(self.graph.logits(self.view.of(images).cpu().numpy())).to(self.device)
        return self.view.probabilities(logits, *images.shape[2:])

    def acquainted(self, images: Sequence[NDArray[np.uint8]], *, share: float) -> Self:
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """The mean of several teachers, and of what they see in the mirror if `mirrored`."""

    members: tuple[Teacher, ...]
    mirrored: bool

    @property
    def made_of(self) -> str:
        return " + ".join(member.made_of for member in self.members) + (" mirrored" if self.mirrored else "")

    @property
    def device(self) -> torch.device:
        return self.members[0].device

    def probabilities(self, images: Tensor) -> Tensor:
        views = [member.probabilities(images) for member in self.members]
        if self.mirrored:
            views += [member.probabilities(images.flip(3)).flip(3) for member in self.members]
        return torch.stack(views).mean(0)

    def acquainted(self, images: Sequence[NDArray[np.uint8]], *, share: float) -> Self:
        return replace(self, members=tuple(member.acquainted(images, share=share) for member in self.members))


def _resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    # Without a filter wider than a pixel, making small would skip pixels.
    return F.interpolate(x, size, mode=mode, antialias=size[0] < x.shape[2] or size[1] < x.shape[3])


def stacked(images: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Frames (H, W, 3) of one size -> uint8 (B, 3, H, W)."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)


def digest(images: Sequence[NDArray[np.uint8]]) -> str:
    """SHA-256 of the frames' sizes and pixels, in hexadecimal."""
    total = hashlib.sha256()
    for image in images:
        total.update(str(image.shape).encode())
        total.update(np.ascontiguousarray(image).data)
    return total.hexdigest()


def load_teachers(
    paths: Sequence[Path],
    *,
    size: tuple[int, int],
    mirrored: bool,
    described: Classes,
    device: torch.device,
    scales: Sequence[float] = (1.0,),
) -> Teacher:
    """The mean of the networks in the files, each looking at pictures of `size` (width, height) times each scale.

    A file is an ONNX graph or the weights of a network in NETWORKS. Its classes are ours if they are as many,
    else Cityscapes' 19. Raises ConfigError that names the file.
    """
    if not paths:
        raise ConfigError("no teacher is named; add --teacher FILE, once for each network")
    sizes = [(round(size[0] * scale), round(size[1] * scale)) for scale in scales]
    for width, height in sizes:
        if min(width, height) <= 0 or width % 8 or height % 8:
            raise ConfigError(f"teacher.size {width}x{height}: width and height must be divisible by 8, at each scale")
    members = tuple(_load(path, one, described, device) for path in paths for one in sizes)
    return Ensemble(members, mirrored) if mirrored or len(members) > 1 else members[0]


def _load(path: Path, size: tuple[int, int], described: Classes, device: torch.device) -> Teacher:
    if not path.is_file():
        raise ConfigError(f"teacher {path}: no such file; name the weights of a known network or an ONNX graph")
    made_of = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix == ".onnx":
        graph = SegmentationGraph(path, size=size)
        view = View(graph.size, _target(path, graph.classes, described).to(device), len(described.classes))
        return GraphTeacher(graph, view, f"{made_of} {view}")
    network, classes = _load_known(path)
    view = View(size, _target(path, classes, described).to(device), len(described.classes))
    network = network.to(memory_format=torch.channels_last).to(device)
    return NetworkTeacher(lambda: network, view, f"{made_of} {view}")


def _load_known(path: Path) -> tuple[nn.Module, int]:
    """The network of NETWORKS whose tensors the file holds, in eval mode, and how many classes it has."""
    known = " or ".join(build.__name__ for build in NETWORKS.values())
    try:
        stored = read_weights(path)
    except ConfigError as error:
        raise ConfigError(f"teacher {path}: {error}; name the weights of {known}, or an ONNX graph") from error
    try:
        last = next(name for name in NETWORKS if name in stored and stored[name].ndim == 1)
        network = NETWORKS[last](len(stored[last]))
        network.load_state_dict(stored, strict=True)
    except (RuntimeError, StopIteration) as error:
        raise ConfigError(f"teacher {path}: not the weights of {known}; export other networks to ONNX") from error
    return network.eval().requires_grad_(False), len(stored[last])


def _target(path: Path, theirs: int, described: Classes) -> Tensor:
    """The class of ours that each of the teacher's counts as (C,)."""
    if theirs == len(described.classes):
        return torch.arange(theirs)
    if theirs == len(described.from_cityscapes):
        return torch.tensor(described.from_cityscapes)
    raise ConfigError(
        f"teacher {path}: has {theirs} classes, neither the data set's {len(described.classes)} nor Cityscapes' 19"
    )
