"""Where masks have edges is learned from latents of every level, the same each time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.bundle import Bundle
from pipeline.codec import open_encoder
from pipeline.decide_samples import Worker, render_video
from pipeline.errors import PipelineError
from pipeline.experiment import OutlineSettings, Street
from pipeline.models.outline import OutlineNetwork
from pipeline.outline_training import FILE, Outlined, correlation, describe_outline, outlined, train_outline
from pipeline.outlining import edges_of
from pipeline.runtime import open_session

SETTINGS = OutlineSettings(width=8, frames=10, steps=150, batch=8, lr=0.01, weight_decay=0.0)
LEVELS, LATENTS, SIZE = 3, 5, (6, 8)
GAINS = np.array([0.1, 1.0, 10.0], np.float32)


def made(seed: int, count: int = 40) -> Outlined:
    """Latents of three levels, of which the first channel says where edges are."""
    rng = np.random.default_rng(seed)
    quality = rng.integers(0, LEVELS, count)
    y = rng.normal(0, 1, (count, LATENTS, *SIZE)).astype(np.float32)
    edges = np.clip(0.2 + 0.2 * y[:, 0], 0, 1)
    return Outlined(y * GAINS[quality][:, None, None, None], quality, edges.astype(np.float32))


def trained(parts: list[Outlined], run: Path) -> tuple[OutlineNetwork, list[str]]:
    """The network, and what was said meanwhile."""
    training, said = train_outline(SETTINGS, parts, run, levels=LEVELS, seed=1), list[str]()
    while True:
        try:
            said.append(next(training))
        except StopIteration as end:
            return end.value, said


def test_it_learns_where_edges_are_at_levels_of_any_gain(tmp_path: Path) -> None:
    network, said = trained([made(0), made(1)], tmp_path)
    assert said == ["edges: step 150 of 150, loss " + said[0][-5:]]
    other = made(2)
    assert correlation(network, other) > 0.9
    for level in range(LEVELS):
        of_level = other.quality == level
        part = Outlined(other.y[of_level], other.quality[of_level], other.edges[of_level])
        assert correlation(network, part) > 0.85


def test_the_same_seed_gives_the_same_network_and_a_run_keeps_it(tmp_path: Path) -> None:
    (first, _), (again, _) = (trained([made(0)], tmp_path / name) for name in ("first", "again"))
    kept = OutlineNetwork(LATENTS, LEVELS, width=8)
    kept.load_state_dict(load_file(tmp_path / "first" / FILE))
    y, quality = torch.randn(2, LATENTS, *SIZE), torch.tensor([0, 2])
    torch.testing.assert_close(first(y, quality), again(y, quality))
    torch.testing.assert_close(kept(y, quality), first(y, quality))


def test_a_loss_that_is_not_finite_is_said(tmp_path: Path) -> None:
    broken = made(0)
    broken.y[:] = np.inf
    with pytest.raises(PipelineError, match=r"not finite; lower outline\.lr"):
        trained([broken], tmp_path)
    assert not (tmp_path / FILE).exists()


def test_frames_without_any_edge_have_no_correlation(tmp_path: Path) -> None:
    network, _ = trained([made(0)], tmp_path)
    plain = made(1)
    plain.edges[:] = 0
    assert describe_outline(network, "wall", plain) == "wall, held out: edges where they are with a correlation of 0.00"


def test_frames_are_looked_at_as_a_camera_codes_them(tiny_bundle: Bundle) -> None:
    encoder = open_encoder(tiny_bundle, engine="onnxruntime", threads=1)
    decode = open_session(tiny_bundle.graph("decode"), engine="onnxruntime", threads=1)
    worker, size = Worker(tiny_bundle, encoder, decode), (tiny_bundle.manifest.width, tiny_bundle.manifest.height)
    images = render_video(Street(seed=3, frames=8, fps=12.0, light=1.0), size).images
    found = outlined(worker, images, most=5, rng=np.random.default_rng(0))
    assert len(found) == 4  # every second one
    assert found.y.shape == (4, tiny_bundle.tables.latents, *tiny_bundle.latent_size)
    assert found.edges.shape == (4, *tiny_bundle.latent_size)
    level = int(found.quality[1])
    y, edges = worker.edges(images[2], level)
    np.testing.assert_array_equal(found.y[1], y)
    np.testing.assert_array_equal(found.edges[1], edges)
    np.testing.assert_array_equal(edges, edges_of(worker.fresh(images[2], level).logits))
