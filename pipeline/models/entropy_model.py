"""Entropy model: a mean-scale hyperprior whose decoder is an integer network.

Balle et al. 2018 (scale hyperprior), Minnen et al. 2018 (means), Balle et al. 2019 (integer networks): camera and
worker must find the same scale for every symbol, so the hyper decoder is trained as the integer arithmetic that
both of them run (`pipeline/integer_prior.py`), with gradients straight through the rounding.

Fixed point: activations are integers 0..255 in units of 1/16, weights are integers -127..127 in units of 1/128,
so that every sum stays below 2**24 and is exact in float32 too.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from compressai.entropy_models import EntropyBottleneck
from compressai.ops.bound_ops import LowerBoundFunction
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.models.gains import Gains
from pipeline.models.layers import round_through
from pipeline.models.source_encoder import HyperEncoder

ACTIVATION_UNITS = 16
WEIGHT_UNITS = 128
SCALE_LEVELS = 64
SCALE_MIN, SCALE_MAX = 0.11, 64.0
_CHANCE = 0.3
MOST_BITS = 24  # of one symbol, where bits are estimated
HYPER_LIMIT = 63  # |z| beyond this is clamped by the encoder


@dataclass(frozen=True, slots=True)
class Coded:
    """What the bottleneck gives: y_hat (B, C, h, w), and the bits of y and z per image (B,)."""

    y_hat: Tensor
    y_bits: Tensor
    z_bits: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class FrozenPrior:
    """The hyper decoder as integers: three layers of weights and biases.

    weights[i] is int8 (C_out, C_in, k, k); biases[i] is int32 (C_out,), in units of 1/2048.
    """

    weights: tuple[NDArray[np.int8], ...]
    biases: tuple[NDArray[np.int32], ...]


def scale_table() -> NDArray[np.float64]:
    """The SCALE_LEVELS standard deviations that a scale index can name, geometrically spaced."""
    return np.geomspace(SCALE_MIN, SCALE_MAX, SCALE_LEVELS)


class IntegerConv(nn.Conv2d):
    """Convolution of integers with integer weights, its sum shifted back to units of 1/16.

    Parameters are kept as real numbers and rounded on use; the gradient goes straight through.
    """

    def integer_weight(self) -> Tensor:
        return round_through((self.weight * WEIGHT_UNITS).clamp(-127, 127))

    def integer_bias(self) -> Tensor:
        return round_through(self.real_bias() * (ACTIVATION_UNITS * WEIGHT_UNITS))

    def real_bias(self) -> Tensor:
        if self.bias is None:
            raise ValueError("an integer convolution needs a bias")
        return self.bias

    def forward(self, x: Tensor) -> Tensor:
        total = F.conv2d(x, self.integer_weight(), self.integer_bias(), padding=self.padding)
        return round_through(total / WEIGHT_UNITS)


class IntegerHyperDecoder(nn.Module):
    """Integer z (B, Z, h/4, w/4) -> means in 1/16 and scale indexes, both integer-valued (B, C, h, w)."""

    def __init__(self, latents: int, hyper_latents: int, width: int) -> None:
        super().__init__()
        self.up_2 = IntegerConv(hyper_latents, 4 * width, 3, padding=1)
        self.up_1 = IntegerConv(width, 4 * width, 3, padding=1)
        self.predict = IntegerConv(width, 2 * latents, 1)
        with torch.no_grad():
            # z counts in ones, activations in sixteenths: start where z = 1 gives an activation of one.
            self.up_2.weight.mul_(ACTIVATION_UNITS / 4)
            self.predict.real_bias()[latents:] = 1.0

    def forward(self, z_hat: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Integer z and the size (h, w) of y -> means and scale indexes."""
        h, w = size
        x = F.pixel_shuffle(self.up_2(z_hat).clamp(0, 255), 2)[..., : -(-h // 2), : -(-w // 2)]
        x = F.pixel_shuffle(self.up_1(x).clamp(0, 255), 2)[..., :h, :w]
        mean, index = self.predict(x).chunk(2, 1)
        # Out of bounds a gradient that leads back goes through: what is zero at one level may be large at the next.
        return mean, _at_most(_at_least(index, 0), SCALE_LEVELS - 1)


class MeanScaleHyperprior(nn.Module):
    """y -> y_hat and its cost, at any of several quality levels: y is Gaussian given z, z is fully factorised."""

    log_scales: Tensor  # (SCALE_LEVELS,)

    def __init__(self, latents: int, hyper_latents: int, *, width: int, levels: int = 1) -> None:
        super().__init__()
        self.gains = Gains(levels, latents, hyper_latents)
        self.hyper_encoder = HyperEncoder(latents, hyper_latents)
        self.hyper_decoder = IntegerHyperDecoder(latents, hyper_latents, width)
        self.factorised = EntropyBottleneck(hyper_latents)
        self.factorised.quantiles.requires_grad_(False)  # compressai's own tables are not used
        self.register_buffer("log_scales", torch.from_numpy(np.log(scale_table())).float(), persistent=False)

    @torch.no_grad()
    def begin_with(self, y: Tensor) -> None:
        """Begin with the means and scales that y (B, C, h, w) has by channel, at a level in the lower half.

        Scales that are alike in all channels take thousands of steps to come apart: an index is a sixteenth of a bias.
        What z adds is chance at first, and begins smaller than it would.
        """
        level = torch.full((len(y),), self.gains.levels // 3, device=y.device)
        scaled = self.gains.scale(y, level)
        log_scale = scaled.std((0, 2, 3)).clamp(SCALE_MIN, SCALE_MAX).log()
        index = (log_scale - self.log_scales[0]) / (self.log_scales[1] - self.log_scales[0])
        predict = self.hyper_decoder.predict
        predict.real_bias().copy_(torch.cat([scaled.mean((0, 2, 3)), index / ACTIVATION_UNITS]))
        predict.weight.mul_(_CHANCE)

    def analyse(self, y: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """y (B, C, h, w) and levels (B,) -> y and z in units of the quantiser's step: the camera rounds these."""
        scaled = self.gains.scale(y, quality)
        return scaled, self.hyper_encoder(scaled) * self.gains.hyper(quality)

    def forward(self, y: Tensor, quality: Tensor) -> Coded:
        """y (B, C, h, w) -> y_hat and bits at the levels quality (B,).

        The bits are those of the rounded values, and so the densities learn from what is coded. Rounding has no
        gradient: y and z are moved by that of the bits with uniform noise in its place (Balle et al. 2017).
        """
        y, z = self.analyse(y, quality)
        with torch.autocast(y.device.type, enabled=False):
            y, z = y.float(), z.float()
            z_hat = round_through(z.clamp(-HYPER_LIMIT, HYPER_LIMIT))
            mean, index = self.hyper_decoder(z_hat, y.shape[-2:])
            mean = mean / ACTIVATION_UNITS
            y_hat = round_through(y - mean) + mean
            scale = self._scale(index)
            y_bits = _gaussian_bits(y_hat.detach(), scale, mean)
            z_bits = _bits(self._hyper_likelihood(z_hat.detach(), self.gains.hyper(quality)))
            if self.training:
                gain = self.gains.hyper(quality).detach()
                y_bits = y_bits + _slope(_gaussian_bits(y + _noise(y), scale.detach(), mean.detach()))
                z_bits = z_bits + _slope(_bits(self._hyper_likelihood(z + _noise(z), gain)))
        return Coded(self.gains.unscale(y_hat, quality), y_bits, z_bits)

    def _scale(self, index: Tensor) -> Tensor:
        step = self.log_scales[1] - self.log_scales[0]
        return torch.exp(self.log_scales[0] + index * step)

    def _hyper_likelihood(self, z: Tensor, gain: Tensor) -> Tensor:
        """(B, Z, h, w) -> likelihoods, same shape: one density for all levels, cut into steps of 1 / gain."""
        below, above = (self._hyper_logits((z + half) / gain) for half in (-0.5, 0.5))
        sign = -torch.sign(below + above).detach()  # both taken in the lower tail, where small differences are exact
        return (torch.sigmoid(sign * above) - torch.sigmoid(sign * below)).abs()

    def _hyper_logits(self, z: Tensor) -> Tensor:
        """(B, Z, h, w) -> logits of the distribution function; compressai's density wants (Z, 1, N)."""
        flat = z.transpose(0, 1).flatten(1).unsqueeze(1)
        logits: Tensor = self.factorised._logits_cumulative(flat, stop_gradient=False)
        shape = (z.shape[1], z.shape[0], *z.shape[2:])
        return logits.reshape(shape).transpose(0, 1)


class NoBottleneck(nn.Module):
    """The place of a prior in a network whose latents are not coded: the ceiling that coded ones are held against."""

    def forward(self, y: Tensor, quality: Tensor) -> Coded:
        """y (B, C, h, w) -> the same, for no bits."""
        nothing = y.new_zeros(len(quality), dtype=torch.float32)
        return Coded(y, nothing, nothing)


def _at_least(x: Tensor, bound: float) -> Tensor:
    held: Tensor = LowerBoundFunction.apply(x, x.new_full((1,), bound))
    return held


def _at_most(x: Tensor, bound: float) -> Tensor:
    return -_at_least(-x, -bound)


def _noise(x: Tensor) -> Tensor:
    return torch.rand_like(x) - 0.5


def _bits(likelihood: Tensor) -> Tensor:
    """Likelihoods (B, ...) -> bits per image (B,)."""
    return -likelihood.clamp_min(2**-MOST_BITS).log2().flatten(1).sum(1)


def _gaussian_bits(y: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
    """Symbols y (B, C, h, w) under Gaussians cut into steps of one -> bits per image (B,).

    A symbol counts MOST_BITS at most, but one further away still wants to come nearer, and to have a larger scale. Else
    symbols that were all zero a moment ago would cost nothing more and run away. The slope there is that of MOST_BITS
    times the logarithm of a Gaussian's bits, which goes on about where that inside ends; with those bits' own, which
    grows on and on, a few symbols would be all that is learned.
    """
    distance = (y - mean).abs()
    # Both taken in a tail, where erfc is exact in float32; a distribution function made of erf knows none.
    upper, lower = (0.5 * torch.erfc((distance - half) / (scale * math.sqrt(2))) for half in (0.5, -0.5))
    likelihood = upper - lower
    far = likelihood.detach() <= 2**-MOST_BITS
    outside = (distance - 0.5).clamp_min(0.1)  # of what is not far the logarithm must be finite too
    beyond = 2 * MOST_BITS * (outside / scale).log()
    return _bits(likelihood) + _slope(torch.where(far, beyond, 0.0).flatten(1).sum(1))


def _slope(bits: Tensor) -> Tensor:
    """The gradient of the bits (B,) with none of their value."""
    return bits - bits.detach()


@torch.no_grad()
def freeze(prior: MeanScaleHyperprior) -> FrozenPrior:
    """The integers that camera and worker compute with; the trained prior is left untouched."""
    decoder = prior.hyper_decoder
    layers = (decoder.up_2, decoder.up_1, decoder.predict)
    return FrozenPrior(
        weights=tuple(layer.integer_weight().cpu().numpy().astype(np.int8) for layer in layers),
        biases=tuple(layer.integer_bias().cpu().numpy().astype(np.int32) for layer in layers),
    )
