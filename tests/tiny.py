"""The smallest things the tests of training and coding run on: scenes, a data set, a network and its bundle.

Nothing here is random from run to run: the same seed gives the same bytes on one machine.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from pipeline.bundle import Bundle, ClassInfo
from pipeline.context_fitting import Effort
from pipeline.experiment import Experiment
from pipeline.export import Description, export
from pipeline.material import Folders
from pipeline.models.assembly import BACKBONES, assemble
from pipeline.models.backbone import Folded
from pipeline.models.entropy_model import MeanScaleHyperprior
from pipeline.models.split_segmenter import SplitSegmenter, levels_like

torch.set_num_threads(1)  # these networks are too small to share out; waiting for a busy core costs more

WIDTH, HEIGHT = 96, 64
COLOURS = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign_symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
CLASSES = len(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.uint8)
FROM_CITYSCAPES = (3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10)
SKY, BUILDING, ROAD, CAR, VOID = 0, 1, 3, 8, 255

MODEL: dict[str, object] = {
    "backbone": "mobilenet_v2",
    "decoder": "joint",
    "bottleneck": "hyperprior",
    "latents": 16,
    "hyper_latents": 4,
    "encoder_width": 8,
    "prior_width": 4,
    "decoder_width": 8,
    "branch": 4,
    "dilations": (1, 2),
    "over_parameters": 0,
}
RATE = (8.0, 2.0, 0.5)
LEVELS = len(RATE)
SHORT = Effort(steps=20, batch=4)
# Drive, split and number of frames.
DRIVES = (("0001TP", "train", 4), ("0006R0", "train", 4), ("0001TP", "val", 2), ("0006R0", "test", 2))


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """RGB (H, W, 3) and its classes (H, W)."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def scene(rng: np.random.Generator) -> Scene:
    """Sky above road, a few buildings and cars in their colours, some noise, and a void strip at the bottom."""
    labels = np.full((HEIGHT, WIDTH), SKY, np.uint8)
    horizon = int(rng.integers(24, 36))
    labels[horizon:] = ROAD
    for _ in range(3):
        left, top = int(rng.integers(0, 80)), int(rng.integers(4, 20))
        labels[top:horizon, left : left + 14] = BUILDING
    left = int(rng.integers(0, 70))
    labels[horizon + 4 : horizon + 14, left : left + 20] = CAR
    labels[-2:] = VOID
    colours = np.vstack([PALETTE, np.zeros((256 - CLASSES, 3), np.uint8)])
    noisy = colours[labels] + rng.normal(0, 12, (HEIGHT, WIDTH, 3))
    return Scene(noisy.clip(0, 255).astype(np.uint8), labels)


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [scene(rng) for _ in range(count)]


def camvid(root: Path) -> Path:
    """Write a dozen frames of two drives in CamVid's layout; returns the folder."""
    (root / "splits").mkdir(parents=True)
    described = {
        "classes": [{"id": i, "name": n, "color": list(c)} for i, (n, c) in enumerate(COLOURS.items())],
        "cityscapes_train_id_to_camvid": {str(i): c for i, c in enumerate(FROM_CITYSCAPES)},
    }
    (root / "classes.json").write_text(json.dumps(described))
    made = iter(scenes(sum(count for *_, count in DRIVES)))
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for drive, split, count in DRIVES:
        for number in range(count):
            image, label = (f"{kind}/{split}/{drive}_{split}{number}.png" for kind in ("images", "labels"))
            one = next(made)
            _write(root / image, one.image[..., ::-1])
            _write(root / label, one.labels)
            lines[split].append(f"{image} {label}")
    for split, listed in {**lines, "trainval": lines["train"] + lines["val"]}.items():
        (root / "splits" / f"{split}.txt").write_text("\n".join(listed) + "\n")
    return root


def pictures(folder: Path, count: int, seed: int = 7) -> Path:
    """Write frames without labels, as a folder of images; returns the folder."""
    for number, one in enumerate(scenes(count, seed)):
        _write(folder / f"{number:03}.png", one.image[..., ::-1])
    return folder


def with_other_labels(data: Path, copy: Path) -> Path:
    """Copy a data set, its training labels made noise; returns the copy."""
    shutil.copytree(data, copy)
    rng = np.random.default_rng(0)
    for path in sorted((copy / "labels" / "train").iterdir()):
        _write(path, rng.integers(0, CLASSES, (HEIGHT, WIDTH)).astype(np.uint8))
    return copy


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"{path} was not written")


def backbone_weights(path: Path, name: str = "mobilenet_v2") -> Path:
    """Write made-up ImageNet weights, batch norms folded in, under the names that the real ones have."""
    parts = BACKBONES[name]
    save_file({**folded_weights(parts.head()), **folded_weights(parts.tail(), seed=1)}, path)
    return path


def folded_weights(network: Folded, seed: int = 0) -> dict[str, Tensor]:
    """Made-up weights of a network whose batch norms are folded in."""
    generator = torch.Generator().manual_seed(seed)
    stored: dict[str, Tensor] = {}
    for name, unit in network.units().items():
        shape = unit[0].weight.shape
        gain = (2 / shape[1:].numel()) ** 0.5
        stored[f"{network.prefix}.{name}.weight"] = gain * torch.randn(shape, generator=generator)
        stored[f"{network.prefix}.{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return stored


def experiment(**changed: dict[str, object]) -> Experiment:
    """Two epochs of two steps; `changed` holds what a test wants otherwise, by section."""
    settings: dict[str, dict[str, object]] = {
        "model": MODEL,
        "data": {
            "dataset": "camvid",
            "split": "train",
            "without_drives": (),
            "choose_by": ("val",),
            "crop": (32, 48),
            "scale": (0.75, 1.5),
            "jitter": 0.2,
            "class_weighting": 1.12,
            "balanced": 0.0,
            "texture": 0.0,
            "mixed": 0.0,
            "unlabelled": 0.0,
        },
        "teacher": {
            "size": (WIDTH, HEIGHT),
            "scales": (1.0,),
            "mirrored": False,
            "acquaintance": 0.0,
            "sharpness": 1.0,
            "weight": 0.0,
        },
        "loss": {"labels": 1.0, "lovasz": 0.5, "rate": RATE},
        "schedule": {
            "seed": 1,
            "epochs": 2,
            "batch": 4,
            "backbone_lr": 1e-4,
            "lr": 1e-3,
            "warmup_steps": 1,
            "rate_warmup": 0.0,
            "weight_decay": 1e-4,
            "clip_norm": 5.0,
            "average_decay": 0.9,
            "measure_every": 1,
            "trained": "all",
        },
    }
    merged = {section: {**values, **changed.get(section, {})} for section, values in settings.items()}
    return Experiment.model_validate({"name": "tiny", **merged})


def folders(data: Path, home: Path) -> Folders:
    """A run in `home`, from made-up backbone weights."""
    home.mkdir(parents=True, exist_ok=True)
    return Folders(data=data, backbone=backbone_weights(home / "backbone.safetensors"), run=home / "run")


def description() -> Description:
    """What the manifest of the tiny bundle says."""
    return Description(
        name="tiny",
        created_by="tests/tiny.py",
        dataset="made-up scenes",
        classes=tuple(ClassInfo(name=name, colour=colour) for name, colour in COLOURS.items()),
        width=WIDTH,
        height=HEIGHT,
        licence="none",
    )


def images(made: list[Scene]) -> Tensor:
    """Scenes -> RGB (B, 3, H, W) in 0..255."""
    return torch.from_numpy(np.stack([one.image for one in made])).permute(0, 3, 1, 2).float()


def network(seed: int = 0, **changed: object) -> SplitSegmenter:
    """Untrained but for its prior, in eval mode; its latents spread over some units, as a trained one's do."""
    torch.manual_seed(seed)
    made = assemble(CLASSES, LEVELS, **{**MODEL, **changed})
    seen = images(scenes(12))
    settle_batch_norms(made, seen)
    if isinstance(made.prior, MeanScaleHyperprior):
        with torch.no_grad():
            made.analysis.source_encoder.mix[-1].weight.mul_(3 / made.encode(seen).std())
            y = made.encode(seen)
            _, z = made.prior.analyse(y, levels_like(y, LEVELS - 1))
            made.prior.hyper_encoder.down[-1].weight.mul_(4 / z.std())
        _fit_prior(made.prior, y)
    return made.eval()


def settle_batch_norms(made: SplitSegmenter, seen: Tensor) -> None:
    """Give each batch norm the statistics of what it sees; otherwise the latents fade with depth."""
    norms = [m for m in made.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        made.train()(seen, levels_like(seen, made.levels - 1))
    for norm in norms:
        norm.momentum = 0.1
    made.eval()


@torch.enable_grad()
def _fit_prior(prior: MeanScaleHyperprior, y: Tensor, steps: int = 100) -> None:
    """Teach the prior y (B, C, h, w) at all levels in turn; the encoders and gains stay."""
    learning = [*prior.hyper_decoder.parameters(), *prior.factorised.parameters()]
    optimiser = torch.optim.Adam([p for p in learning if p.requires_grad], lr=0.01)
    for step in range(steps):
        coded = prior.train()(y, (torch.arange(len(y)) + step) % LEVELS)
        optimiser.zero_grad()
        (coded.y_bits + coded.z_bits).mean().backward()
        optimiser.step()
    prior.zero_grad()


def bundle(made: SplitSegmenter, folder: Path, *, hyper: bool = True) -> Bundle:
    """Export the network."""
    frames = [one.image for one in scenes(12)]
    return export(made, description(), folder, frames=frames, hyper=hyper, effort=SHORT)
