"""A bundle back to the network that it was made from, as far as it holds it, so that it can be trained further.

encode.onnx, decode.onnx   convolutions with the batch norms folded in, gains   -+
tables.safetensors         the integer hyper decoder                            -+-> network, batch norms gone
nowhere                    the density of z, needed in training alone           -+
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.bundle import MANIFEST, Bundle, Network
from pipeline.errors import ConfigError
from pipeline.experiment import ModelSettings
from pipeline.export import fold_batch_norms
from pipeline.integer_prior import ACTIVATION_UNITS, IntegerPrior
from pipeline.models.assembly import assemble
from pipeline.models.backbone import mean_of, unfold_batch_norm, variance_of
from pipeline.models.entropy_model import WEIGHT_UNITS, MeanScaleHyperprior
from pipeline.models.layers import normed
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.onnx_storage import stored_weights
from pipeline.smoothing import SHARP

_HYPER_LAYERS = ("up_2", "up_1", "predict")
_DECODER, _DENSITY = "decoder.", "prior.factorised."
_HYPER = ("prior.hyper_encoder.", "prior.hyper_decoder.", "prior.gains.log_hyper")
_STEPS, _FRAMES, _LEARNING_RATE = 300, 8, 0.02  # of fitting what is fresh
_LOOKUPS = frozenset({"Gather", "GatherND", "Unsqueeze"})  # between a table and the product or sum it goes into


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """A network in eval mode, and the names of the parameters that the bundle does not hold, which are fresh."""

    network: SplitSegmenter
    fresh: frozenset[str]


@torch.no_grad()
def restore(bundle: Bundle) -> Restored:
    """Build the network that a bundle was exported from; ConfigError when the bundle does not say which.

    Fresh is the density of z, and all of the prior but its gains where the bundle sends no z.
    """
    network = fold_batch_norms(_assembled(bundle))
    parameters, held = dict(network.named_parameters()), _held(bundle)
    fresh = frozenset(parameters) - held.keys()
    may_miss = (_DENSITY,) if bundle.tables.hyper else (_DENSITY, *_HYPER)
    strange = sorted(name for name in fresh if not name.startswith(may_miss))
    strange += [name for name in parameters.keys() & held.keys() if parameters[name].shape != held[name].shape]
    if strange:
        raise ConfigError(
            f"bundle {bundle.path}: its graphs do not give back {strange[0]} of the network in {MANIFEST}, as those of "
            "resnet50 and latent_task never do; begin with its run"
        )
    for name in parameters.keys() - fresh:
        parameters[name].copy_(held[name])
    return Restored(network, fresh)


def class_offsets(bundle: Bundle) -> NDArray[np.float32]:
    """What the bundle's decoder adds to the classes' logits (L, K); nothing, in bundles that are older than offsets."""
    graph = onnx.load(bundle.graph("decode")).graph
    makers = _makers(graph)
    held = _table(graph, makers.get(SHARP, makers.get("logits")), "Add")
    nothing = np.zeros((bundle.tables.levels, len(bundle.manifest.classes)), np.float32)
    return nothing if held is None else held.astype(np.float32).reshape(nothing.shape)


def fit_fresh(restored: Restored, images: Sequence[NDArray[np.uint8]], *, steps: int = _STEPS) -> None:
    """Fit in place what the bundle did not hold to frames (H, W, 3), all else standing still."""
    network, device = restored.network, next(restored.network.parameters()).device
    prior = network.prior
    if not isinstance(prior, MeanScaleHyperprior):
        raise ConfigError("the network codes nothing, so that there is nothing to fit")
    with torch.no_grad():
        pixels = (torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() for image in images)
        latents = torch.cat([network.encode(one) for one in pixels])  # (N, C, h, w)
    chosen = [p for name, p in network.named_parameters() if name in restored.fresh and p.requires_grad]
    optimiser = torch.optim.Adam(chosen, lr=_LEARNING_RATE)
    draw = np.random.default_rng(0)
    prior.train()
    for step in range(steps):
        some = torch.from_numpy(draw.integers(len(latents), size=_FRAMES)).to(device)
        coded = prior(latents[some], (torch.arange(_FRAMES, device=device) + step) % network.levels)
        network.zero_grad(set_to_none=True)
        (coded.y_bits + coded.z_bits).mean().backward()
        optimiser.step()
    network.zero_grad(set_to_none=True)
    prior.eval()


def trainable(bundle: Bundle, settings: ModelSettings, images: Tensor) -> SplitSegmenter:
    """The network of a bundle, its batch norms back in it, as one that is trained from the beginning has them.

    They get the statistics of images (N, 3, h, w) in 0..255, sizes divisible by 16; in eval mode the network is that of
    the bundle, without the offsets of its classes, with its levels. What the bundle did not hold is fitted to the same
    images. ConfigError where the bundle is not of these settings, or its branches were merged.
    """
    theirs = model_settings(bundle)
    other = [name for name, value in theirs if getattr(settings, name) != value]
    if other:
        raise ConfigError(f"bundle {bundle.path}: it has another model.{other[0]} than the experiment; name another")
    if settings.over_parameters > 0:
        raise ConfigError(
            f"bundle {bundle.path}: its branches were merged; start with a run, or model.over_parameters 0"
        )
    return _unfolded(bundle, images)


def camera_state(bundle: Bundle, images: Tensor) -> dict[str, Tensor]:
    """What stands in front of the cloud, as `trainable` gives it, by the names of a SplitSegmenter's state.

    A bundle whose decoder's branches were merged has that too.
    """
    state = _unfolded(bundle, images).state_dict()
    return {name: value for name, value in state.items() if not name.startswith(_DECODER)}


def _unfolded(bundle: Bundle, images: Tensor) -> SplitSegmenter:
    """The network with its batch norms back in it, and one branch where it had several."""
    restored = restore(bundle)
    fit_fresh(restored, [image.byte().permute(1, 2, 0).numpy() for image in images])
    network, folded = _assembled(bundle, over_parameters=0), restored.network.state_dict()
    with torch.no_grad():
        for name, _, norm in normed(network):
            norm.bias.copy_(folded[f"{name}.bias"])
            nn.init.constant_(variance_of(norm), 1 - norm.eps)  # x + bias
    own = network.state_dict()
    network.load_state_dict({**own, **{name: value for name, value in folded.items() if name in own}})
    unfold_batch_norm(network.analysis, images)
    with torch.no_grad():
        some = network.eval().encode(images)
        unfold_batch_norm(network.decoder, network.prior(some, torch.arange(len(some)) % network.levels).y_hat)
        for _, conv, norm in normed(network):
            _normalise(conv, norm)
    return network


def _normalise(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Give each filter the size that fresh ones have (He et al., ICCV 2015), which the batch norm takes back.

    Folding multiplied it by what the batch norm did, often to a hundredth: steps of Adam, which are of one size for
    all weights, would tear such a filter apart.
    """
    wanted = (2 / conv.weight[0].numel()) ** 0.5
    factor = wanted / conv.weight.square().mean((1, 2, 3)).sqrt().clamp_min(1e-8)  # (C,)
    conv.weight.mul_(factor[:, None, None, None])
    mean_of(norm).mul_(factor)
    # gamma / sqrt(var + eps) is to shrink by the factor: a plain quotient would not be exact for small variances.
    variance = variance_of(norm)
    before = (variance + norm.eps).sqrt()
    variance.mul_(factor.square())
    norm.weight.mul_((variance + norm.eps).sqrt() / before / factor)


def network_of(bundle: Bundle) -> Network:
    """What the manifest says of the network; ConfigError where that is nothing."""
    if bundle.manifest.network is None:
        raise ConfigError(f"bundle {bundle.path}: {MANIFEST} does not say which network it is of; export it again")
    return bundle.manifest.network


def model_settings(bundle: Bundle) -> ModelSettings:
    """The settings of the network; ConfigError names the one that is wrong."""
    try:
        return ModelSettings.model_validate(network_of(bundle).model)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in ("network", "model", *first["loc"]))
        raise ConfigError(f"bundle {bundle.path}: {MANIFEST}: {field}: {first['msg']}; export it again") from error


def _assembled(bundle: Bundle, **changed: int) -> SplitSegmenter:
    """The network with fresh weights, some of its settings changed."""
    levels = len(network_of(bundle).rate)
    if levels != bundle.tables.levels:
        raise ConfigError(
            f"bundle {bundle.path}: {MANIFEST}: network.rate has {levels} levels, the tables have "
            f"{bundle.tables.levels}; export it again"
        )
    return assemble(len(bundle.manifest.classes), levels, **{**model_settings(bundle).model_dump(), **changed})


def _held(bundle: Bundle) -> Mapping[str, Tensor]:
    """All that the bundle holds, by the names that the network gives it."""
    encode, decode = (onnx.load(bundle.graph(name)).graph for name in ("encode", "decode"))
    weights = stored_weights(encode) | stored_weights(decode)
    held: dict[str, NDArray[np.generic]] = {name.removeprefix("network."): array for name, array in weights.items()}
    factors = {
        "prior.gains.log_gain": _table(encode, _makers(encode).get("y"), "Mul"),
        "prior.gains.log_inverse": _table(decode, next((n for n in decode.node if "y_hat" in n.input), None), "Mul"),
    }
    if bundle.tables.prior is not None:
        factors["prior.gains.log_hyper"] = _table(encode, _makers(encode).get("z"), "Mul")
        held |= _hyper_decoder(bundle.tables.prior)
    held |= {name: np.log(array.astype(np.float32)) for name, array in factors.items() if array is not None}
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in held.items()}


def _makers(graph: GraphProto) -> dict[str, NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def _table(graph: GraphProto, node: NodeProto | None, kind: str) -> NDArray[np.generic] | None:
    """The table (L, C) that a node of a kind looks its row up in; None where there is no such node or table."""
    weights, makers = stored_weights(graph), _makers(graph)
    for name in [] if node is None else node.input:
        while name not in weights and name in makers and makers[name].op_type in _LOOKUPS:
            name = makers[name].input[0]
        if name in weights and node is not None and node.op_type == kind:
            return weights[name]
    return None


def _hyper_decoder(prior: IntegerPrior) -> dict[str, NDArray[np.generic]]:
    """The integers as the real numbers that round to them."""
    held: dict[str, NDArray[np.generic]] = {}
    for name, layer in zip(_HYPER_LAYERS, prior.layers, strict=True):
        kernel = (layer.kernel, layer.kernel)
        weight = layer.matrix.T.reshape(len(layer.bias), -1, *kernel)
        held[f"prior.hyper_decoder.{name}.weight"] = weight / WEIGHT_UNITS
        held[f"prior.hyper_decoder.{name}.bias"] = layer.bias / (ACTIVATION_UNITS * WEIGHT_UNITS)
    return held
