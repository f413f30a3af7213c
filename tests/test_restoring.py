"""A network from its bundle: what the graphs say, to the last integer of the prior, and exported to the same bytes."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file

from pipeline.bundle import MANIFEST, TABLES, Bundle, Network, load_bundle
from pipeline.codec import open_decoder, open_encoder
from pipeline.context_fitting import Effort
from pipeline.errors import ConfigError
from pipeline.export import export
from pipeline.latent_coding import dequantise, encode_latents
from pipeline.models.entropy_model import freeze
from pipeline.models.layers import normed
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.restoring import Restored, fit_fresh, restore, trainable
from pipeline.runtime import Precision, open_session

FRAMES = [one.image for one in tiny.scenes(6, seed=3)]
DENSITY = "prior.factorised."


def described(bundle: Bundle, folder: Path, **changed: object) -> Path:
    """A copy of a bundle whose manifest says which network it is of."""
    network = {"model": tiny.MODEL, "rate": tiny.RATE, "from_cityscapes": tiny.FROM_CITYSCAPES, **changed}
    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "network": network}))
    return folder


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(described(tiny_bundle, tmp_path_factory.mktemp("described") / "bundle"))


@pytest.fixture(scope="module")
def silent(tiny_network: SplitSegmenter, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that sends no hyper latent."""
    home = tmp_path_factory.mktemp("silent")
    return load_bundle(described(tiny.bundle(tiny_network, home / "made", hyper=False), home / "bundle"))


@pytest.fixture(scope="module")
def restored(bundle: Bundle) -> Restored:
    return restore(bundle)


def test_latents_are_those_of_the_encode_graph_at_every_level(bundle: Bundle, restored: Restored) -> None:
    session = open_session(bundle.graph("encode"), engine="onnxruntime", threads=1, precision=Precision.FLOAT32)
    quality = np.arange(tiny.LEVELS).repeat(2)
    expected = session.run(np.stack(FRAMES), quality)
    images = torch.from_numpy(np.stack(FRAMES)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        found = restored.network.prior.analyse(restored.network.encode(images), torch.from_numpy(quality))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-3 * theirs.std())


def test_a_restored_network_finds_the_same_latents_while_it_learns(bundle: Bundle, restored: Restored) -> None:
    torch.manual_seed(0)
    analysis, image = restored.network.analysis, torch.rand(1, 3, bundle.manifest.height, bundle.manifest.width) * 255
    still, learning = analysis.eval()(image), analysis.train()(image)
    analysis.eval()
    torch.testing.assert_close(learning, still, atol=1e-3, rtol=1e-3)


def test_logits_are_those_of_the_decode_graph_at_every_level(bundle: Bundle, restored: Restored) -> None:
    session = open_session(bundle.graph("decode"), engine="onnxruntime", threads=1)
    rows, columns = bundle.latent_size
    y_hat = np.random.default_rng(0).normal(0, 3, (tiny.LEVELS, bundle.tables.latents, rows, columns))
    quality, y_hat = np.arange(tiny.LEVELS), y_hat.round().astype(np.float32)
    (expected,) = session.run(y_hat, quality)
    with torch.no_grad():
        unscaled = restored.network.prior.gains.unscale(torch.from_numpy(y_hat), torch.from_numpy(quality))
        found = restored.network.decoder(unscaled)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3 * expected.std())


def test_the_integer_prior_is_the_same_to_the_last_integer(bundle: Bundle, restored: Restored) -> None:
    stored, frozen = load_file(bundle.path / TABLES), freeze(restored.network.prior)
    for i, (weight, bias) in enumerate(zip(frozen.weights, frozen.biases, strict=True)):
        np.testing.assert_array_equal(weight, stored[f"weight_{i}"])
        np.testing.assert_array_equal(bias, stored[f"bias_{i}"])


def test_only_the_density_of_z_is_fresh(restored: Restored) -> None:
    assert restored.fresh
    assert all(name.startswith(DENSITY) for name in restored.fresh)


def test_exported_again_it_codes_frames_to_the_same_bytes_and_masks(
    bundle: Bundle, restored: Restored, tmp_path: Path
) -> None:
    """In another order of memory, as networks have it that were trained."""
    network = deepcopy(restored.network).to(memory_format=torch.channels_last)
    frames, none = [one.image for one in tiny.scenes(12)], Effort(steps=0)
    again = export(network, tiny.description(), tmp_path, frames=frames, effort=none, start=bundle.tables)
    stored, before = load_file(again.path / TABLES), load_file(bundle.path / TABLES)
    assert stored.keys() == before.keys()
    for name, array in stored.items():
        np.testing.assert_array_equal(array, before[name])
    for level in range(tiny.LEVELS):
        assert said(again, level) == said(bundle, level)


def said(bundle: Bundle, quality: int) -> list[tuple[bytes, bytes]]:
    """Each frame's body and mask."""
    encoder = open_encoder(bundle, engine="onnxruntime", threads=1, quality=quality)
    decoder = open_decoder(bundle, engine="onnxruntime", threads=1)
    latents = [encoder.latents(image) for image in FRAMES]
    bodies = [encode_latents(one, bundle.tables, quality) for one in latents]
    maps = decoder.class_maps(np.stack([dequantise(one) for one in latents]), np.full(len(latents), quality))
    return [(body, classes.tobytes()) for body, classes in zip(bodies, maps, strict=True)]


def test_branches_of_training_are_merged_in_a_bundle_and_stay_so(
    bundle: Bundle, restored: Restored, tmp_path: Path
) -> None:
    branched = restore(load_bundle(described(bundle, tmp_path / "K", model={**tiny.MODEL, "over_parameters": 3})))
    assert branched.fresh == restored.fresh
    with torch.no_grad():
        y_hat = torch.randn(1, bundle.tables.latents, 4, 6)
        assert torch.equal(branched.network.decoder(y_hat), restored.network.decoder(y_hat))


def test_without_a_hyper_latent_the_prior_but_its_gains_is_fresh(silent: Bundle, tiny_network: SplitSegmenter) -> None:
    found = restore(silent)
    assert "prior.hyper_encoder.down.0.weight" in found.fresh
    assert "prior.hyper_decoder.predict.weight" in found.fresh
    assert all(name.startswith("prior.") for name in found.fresh)
    with torch.no_grad():
        for name in ("log_gain", "log_inverse"):
            ours, trained = (getattr(n.prior.gains, name) for n in (found.network, tiny_network))
            torch.testing.assert_close(ours, trained, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("kind", "left"), [("bundle", 0.99), ("silent", 0.8)])
def test_what_is_fresh_is_fitted_to_the_frames_and_nothing_else_moves(
    kind: str, left: float, request: pytest.FixtureRequest
) -> None:
    """Of the density alone the smaller part of the bits is."""
    found = restore(request.getfixturevalue(kind))
    before, begun = deepcopy(found.network.state_dict()), bits(found.network)
    fit_fresh(found, FRAMES, steps=60)
    moved = {name for name, p in found.network.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert moved <= found.fresh
    assert bits(found.network) < left * begun
    assert not found.network.training
    assert all(p.grad is None for p in found.network.parameters())


@torch.no_grad()
def bits(network: SplitSegmenter) -> float:
    """Estimated, of all frames at the middle level."""
    images = torch.from_numpy(np.stack(FRAMES)).permute(0, 3, 1, 2).float()
    coded = network(images, torch.ones(len(images), dtype=torch.int64)).coded
    return float((coded.y_bits + coded.z_bits).sum())


IMAGES = torch.from_numpy(np.stack(FRAMES)).permute(0, 3, 1, 2).float()


@pytest.fixture(scope="module")
def unfolded(bundle: Bundle) -> SplitSegmenter:
    return trainable(bundle, tiny.experiment().model, IMAGES)


@torch.no_grad()
def test_with_its_batch_norms_back_a_network_is_that_of_the_bundle(
    restored: Restored, unfolded: SplitSegmenter
) -> None:
    quality = torch.arange(len(IMAGES)) % tiny.LEVELS
    ours, theirs = unfolded(IMAGES, quality), restored.network(IMAGES, quality)
    torch.testing.assert_close(ours.output, theirs.output, atol=1e-3 * float(theirs.output.std()), rtol=0)
    torch.testing.assert_close(ours.coded.y_bits, theirs.coded.y_bits, atol=0, rtol=1e-3)


@torch.no_grad()
def test_filters_are_as_large_as_fresh_ones_and_batch_norms_know_the_frames(unfolded: SplitSegmenter) -> None:
    """So a network in training mode, which takes statistics of the frames at hand, begins nearly as it is."""
    convolutions = [conv for _, conv, _ in normed(unfolded)]
    assert len(convolutions) > 20
    for conv in convolutions:
        sizes = conv.weight.square().mean((1, 2, 3)) * conv.weight[0].numel()
        torch.testing.assert_close(sizes, torch.full_like(sizes, 2.0), atol=1e-3, rtol=0)
    quality = torch.arange(len(IMAGES)) % tiny.LEVELS
    still, training = unfolded(IMAGES, quality), deepcopy(unfolded).train()(IMAGES, quality)
    apart = (training.output - still.output).abs().mean()
    assert apart < 0.2 * still.output.std()


def test_a_bundle_of_another_experiment_is_not_trained_on(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"it has another model\.latents"):
        trainable(bundle, tiny.experiment(model={"latents": 24}).model, IMAGES)


def test_a_bundle_whose_branches_were_merged_is_not_trained_on(bundle: Bundle, tmp_path: Path) -> None:
    branched = load_bundle(described(bundle, tmp_path / "K", model={**tiny.MODEL, "over_parameters": 3}))
    with pytest.raises(ConfigError, match="its branches were merged; start with a run"):
        trainable(branched, tiny.experiment(model={"over_parameters": 3}).model, IMAGES)


def test_a_bundle_that_does_not_say_its_network_is_refused(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.manifest.network is None
    with pytest.raises(ConfigError, match="does not say which network it is of; export it again"):
        restore(tiny_bundle)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": {**tiny.MODEL, "latents": 8}}, "its graphs do not give back"),
        ({"model": {**tiny.MODEL, "dilations": (1, 2, 3)}}, r"its graphs do not give back decoder\.aspp"),
        ({"model": {**tiny.MODEL, "latents": 0}}, r"network\.model\.latents"),
        ({"model": {**tiny.MODEL, "backbone": "vgg"}}, "vgg"),
        ({"model": {}}, r"network\.model\.backbone: Field required"),
        ({"rate": (1.0, 2.0)}, r"network\.rate has 2 levels, the tables have 3"),
    ],
)
def test_a_manifest_of_another_network_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        restore(load_bundle(described(tiny_bundle, tmp_path / "other", **changed)))


def test_the_manifests_network_outlives_its_json(bundle: Bundle) -> None:
    network = bundle.manifest.network
    assert network == Network(
        model=json.loads(json.dumps(tiny.MODEL)), rate=tiny.RATE, from_cityscapes=tiny.FROM_CITYSCAPES
    )
