"""What every network must do, whatever its parts are; and how published weights get into them."""

from collections.abc import Mapping

import pytest
import tiny
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from pipeline.errors import ConfigError
from pipeline.models.alternatives import ImageAnalysis, ImageSynthesis
from pipeline.models.assembly import BACKBONES, DECODERS, IMAGE, assemble, load_pretrained, pretrained
from pipeline.models.backbone import MobileNetV2, MobileNetV2Tail, load_folded
from pipeline.models.split_segmenter import Segmented, SplitSegmenter

SIZES = [(64, 96), (70, 50), (15, 100)]
LEVELS = 3
SMALL = {**tiny.MODEL, "latents": 8}
NETWORKS: Mapping[str, Mapping[str, object]] = {
    "joint": {},
    "joint, over-parameterised": {"over_parameters": 2},
    "joint behind Edge TPU": {"backbone": "mobilenet_edgetpu"},
    "joint behind ResNet": {"backbone": "resnet50"},
    "joint, nothing coded": {"bottleneck": "none"},
    "source_task": {"decoder": "source_task"},
    "task": {"decoder": "task", "bottleneck": "none"},
    "latent_task": {"decoder": "latent_task"},
    "latent_task of ResNet": {"decoder": "latent_task", "backbone": "resnet50"},
    "image codec": {"decoder": IMAGE},
}
NOT_LEARNED = {"prior.factorised.quantiles"}  # compressai's own tables are not used


def made(**changed: object) -> SplitSegmenter:
    torch.manual_seed(0)
    return assemble(tiny.CLASSES, LEVELS, **{**SMALL, **changed})


def pictures(size: tuple[int, int], count: int) -> Tensor:
    """Noise over a gradient: RGB (count, 3, H, W) in 0..255."""
    generator = torch.Generator().manual_seed(size[0])
    ramp = torch.linspace(0, 200, size[1]) * torch.rand(count, 3, 1, 1, generator=generator)
    return ramp + 55 * torch.rand(count, 3, *size, generator=generator)


@pytest.fixture(params=NETWORKS, scope="module")
def network(request: pytest.FixtureRequest) -> SplitSegmenter:
    """In eval mode, with settled batch norms and latents that are not all zero: y and z do not fade."""
    built = made(**NETWORKS[request.param])
    tiny.settle_batch_norms(built, pictures((64, 96), 6))
    if built.levels > 1:
        with torch.no_grad():
            built.prior.gains.log_gain += torch.log(3 / built.encode(pictures((64, 96), 6)).std())
            built.prior.hyper_encoder.down[-1].weight.mul_(50)
    return built.eval()


def test_every_decoder_is_tried() -> None:
    assert {changed.get("decoder", "joint") for changed in NETWORKS.values()} == set(DECODERS)


def levels_of(network: SplitSegmenter, count: int) -> Tensor:
    return torch.arange(count) % network.levels


@torch.no_grad()
def seen(network: SplitSegmenter, images: Tensor) -> Segmented:
    return network(images, levels_of(network, len(images)))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_are_at_stride_4_to_the_padded_image_whatever_its_size_and_pictures_are_that_image(
    network: SplitSegmenter, size: tuple[int, int]
) -> None:
    rows, columns = -(-size[0] // 16), -(-size[1] // 16)
    found = seen(network, pictures(size, 2))
    rebuilds = isinstance(network.decoder, ImageSynthesis)
    shape = (3, 16 * rows, 16 * columns) if rebuilds else (tiny.CLASSES, 4 * rows, 4 * columns)
    assert found.output.shape == (2, *shape)
    assert found.coded.y_hat.shape[2:] == (rows, columns)
    assert found.coded.y_bits.shape == found.coded.z_bits.shape == (2,)
    assert (found.coded.y_bits > 0).all() == (network.levels > 1)


def test_everything_is_finite(network: SplitSegmenter) -> None:
    for images in (pictures((64, 96), 2), torch.zeros(2, 3, 32, 32), torch.full((2, 3, 32, 32), 255.0)):
        found = seen(network, images)
        assert all(t.isfinite().all() for t in (found.output, found.coded.y_bits, found.coded.z_bits))


def test_gradient_reaches_every_parameter(network: SplitSegmenter) -> None:
    for part in (network.analysis, network.decoder):
        if isinstance(part, ImageAnalysis | ImageSynthesis):
            nn.init.normal_(part.add.weight, std=0.01)  # it begins with nothing, and lets nothing through to the others
    found = network.train()(pictures((64, 96), 6), levels_of(network, 6))
    (found.output.square().mean() + 1e-3 * (found.coded.y_bits + found.coded.z_bits).mean()).backward()
    dead = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    spoilt = {n for n, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()}
    network.zero_grad()
    network.eval()
    assert dead <= NOT_LEARNED
    assert not spoilt


def test_segmentation_alone_reaches_the_first_layer_through_the_rounding(network: SplitSegmenter) -> None:
    seen_by_all = network(pictures((64, 96), 2), levels_of(network, 2))
    seen_by_all.output.square().mean().backward()
    gradient = next(p for p in network.analysis.parameters() if p.ndim == 4).grad
    network.zero_grad()
    assert gradient.abs().max() > 0


def test_an_image_is_seen_the_same_alone_and_in_a_batch(network: SplitSegmenter) -> None:
    images = pictures((33, 50), 3)
    with torch.no_grad():
        together = network.encode(images)
        for i in range(3):
            assert torch.allclose(together[i], network.encode(images[i : i + 1])[0], atol=1e-3)
        logits = network.decoder(together)
        assert torch.allclose(logits[1], network.decoder(together[1:2])[0], atol=1e-3)


def test_image_is_left_as_it_was(network: SplitSegmenter) -> None:
    images = pictures((64, 96), 1)
    before = images.clone()
    seen(network, images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_state_survives_saving(name: str) -> None:
    one, other = made(**NETWORKS[name]).eval(), assemble(tiny.CLASSES, LEVELS, **{**SMALL, **NETWORKS[name]}).eval()
    other.load_state_dict(one.state_dict())
    images = pictures((32, 48), 2)
    assert torch.equal(seen(other, images).output, seen(one, images).output)


def test_a_network_has_the_levels_that_were_asked_for() -> None:
    for levels in (1, 5):
        assert assemble(tiny.CLASSES, levels, **SMALL).levels == levels


@pytest.mark.parametrize("key", ["backbone", "decoder"])
def test_an_unknown_part_is_named_with_those_that_there_are(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**{key: "vgg"})
    assert str(caught.value).startswith(f"model.{key} 'vgg' is unknown; use one of ")
    assert all(name in str(caught.value) for name in (BACKBONES if key == "backbone" else DECODERS))


def test_untouched_features_cannot_be_coded() -> None:
    with pytest.raises(ConfigError, match=r"model\.bottleneck must be none"):
        made(decoder="task")


def folded() -> dict[str, Tensor]:
    """Made-up weights of MobileNetV2, all of it."""
    return {**tiny.folded_weights(MobileNetV2()), **tiny.folded_weights(MobileNetV2Tail(), seed=1)}


def alone(part: MobileNetV2 | MobileNetV2Tail) -> nn.Module:
    load_folded(part, folded())
    return part.eval()


def close(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, atol=1e-3 * float(other.abs().max())))


@torch.no_grad()
@pytest.mark.parametrize("name", ["joint", "source_task", "task", "latent_task"])
def test_published_weights_get_into_every_part_that_has_them_and_keep_their_function(name: str) -> None:
    network, images = made(**NETWORKS[name]), pictures((64, 96), 4)
    load_pretrained(network, "mobilenet_v2", folded(), images)
    network.eval()
    features = alone(MobileNetV2())(images)
    if name == "latent_task":
        assert close(network.decoder.stages(features[1]), features[2])
    else:
        assert all(close(*pair) for pair in zip(network.analysis.backbone(images), features, strict=True))
    if name != "joint":
        task = network.decoder if name == "task" else network.decoder.task_decoder
        assert close(task.tail(features[2]), alone(MobileNetV2Tail())(features[2]))


@pytest.mark.parametrize("decoder", ["source_task", "latent_task"])
def test_published_weights_of_resnet_get_in_as_they_are(decoder: str) -> None:
    network, whole = made(decoder=decoder, backbone="resnet50"), resnet50(weights=None).state_dict()
    load_pretrained(network, "resnet50", whole, pictures((32, 48), 2))
    first = network.analysis.backbone if decoder == "source_task" else network.decoder.stages
    loaded = [("" if decoder == "source_task" else "layer3.", first), ("", network.decoder.task_decoder.tail)]
    for prefix, part in loaded:
        assert all(torch.equal(value, whole[prefix + name]) for name, value in part.state_dict().items())


@torch.no_grad()
def test_loaded_batch_norms_have_the_statistics_of_the_images() -> None:
    """A network in training mode sees what it sees in eval mode, at first: the variances differ by N / (N - 1)."""
    network, images = made(), pictures((64, 96), 8)
    load_pretrained(network, "mobilenet_v2", folded(), images)
    settled = network.eval().analysis.backbone(images)[2]
    trained = network.train().analysis.backbone(images)[2]
    assert (trained - settled).abs().max() < 0.02 * settled.abs().max()


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_of_another_network_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        load_pretrained(made(backbone=name), name, {"weight": torch.zeros(3)}, pictures((32, 48), 1))


@pytest.mark.parametrize(("name", "parts"), [("joint", 1), ("source_task", 2), ("task", 2), ("latent_task", 2)])
def test_pretrained_parts_are_those_that_weights_are_loaded_into(name: str, parts: int) -> None:
    network = made(**NETWORKS[name])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_pretrained(network, "mobilenet_v2", folded(), pictures((32, 48), 2))
    changed = {key for key, value in network.named_parameters() if not torch.equal(value, before[key])}
    found = pretrained(network)
    owned = {id(p) for part in found for p in part.parameters()}
    assert len(found) == parts
    assert changed == {key for key, p in network.named_parameters() if id(p) in owned}
