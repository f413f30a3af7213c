"""The float form of `pipeline/context.py`: what is known about a latent from its symbols already coded, as trained.

Scale and mean of a symbol are linear in the symbols before it and in what the hyper decoder says of it; the symbol is
Laplace distributed. Trained after the network, on rounded latents.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

PLACES = ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1))  # as in pipeline/context.py: from a symbol to those it speaks for
MAGNITUDE_LIMIT, VALUE_LIMIT = 4, 8
SCALE_MIN, SCALE_MAX, SCALE_COUNT = 0.04, 16.0, 64
SCALE_STEP = float(np.log(SCALE_MAX / SCALE_MIN)) / (SCALE_COUNT - 1)
SCALE_UNITS, MEAN_UNITS, HINT_UNITS = 16, 128, 32
_LEAST_HINTED_SCALE = 0.11 / math.sqrt(2)
INDEX_STEP = float(np.log(64.0 / 0.11)) / 63  # nats of one step of the hyper decoder's scale index
# Sums of 16 bits: what bias, hint and all that is spread to one symbol may come to.
_BIAS_LIMIT, _HINT_LIMIT, _SPREAD_LIMIT = 8000, 8000, 16000
_LARGEST_HINTS = (255, 511)


@dataclass(frozen=True, slots=True, eq=False)
class Hints:
    """What the hyper decoder says: scale indexes and means (B, C, h, w), the means in steps of the latent."""

    indexes: Tensor
    means: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class FrozenContext:
    """Integer weights as a bundle stores them, of the same shapes as those of `pipeline/context.py`."""

    bias: NDArray[np.int16]
    hint: NDArray[np.int16]
    spread: NDArray[np.int16]


class ContextModel(nn.Module):
    """Bits of symbols (B, C, h, w) of one quality level; two of everything: for the log scale in nats, for the mean."""

    causal: Tensor

    def __init__(self, channels: int, rows: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2, channels, rows))
        self.hint = nn.Parameter(torch.zeros(2, channels))
        self.spread = nn.Parameter(torch.zeros(2, channels, len(PLACES), channels))  # to, place, from
        causal = torch.ones(channels, len(PLACES), channels)
        causal[:, 0] = torch.tril(causal[:, 0], -1)
        self.register_buffer("causal", causal, persistent=False)

    @torch.no_grad()
    def start_from(self, symbols: Tensor, *, hinted: bool) -> None:
        """Begin with each channel's mean and spread over symbols (B, C, h, w), or with those of the hyper decoder."""
        self.bias[0] = math.log(_LEAST_HINTED_SCALE / SCALE_MIN)
        self.hint[0] = INDEX_STEP
        if not hinted:
            means = symbols.mean((0, 2, 3))
            deviations = (symbols - means[:, None, None]).abs().mean((0, 2, 3))
            self.bias[0] = (deviations.clamp_min(2 * SCALE_MIN) / SCALE_MIN).log()[:, None]
            self.bias[1] = means[:, None]

    @torch.no_grad()
    def resume_from(self, frozen: FrozenContext, places: NDArray[np.int64]) -> None:
        """Begin with a frozen context's weights, whose channels have these places here: the inverse of `freeze`."""
        at = torch.from_numpy(places).to(self.bias.device)
        units = torch.tensor([SCALE_UNITS / SCALE_STEP, MEAN_UNITS])[:, None]
        bias, hint, spread = (torch.from_numpy(w.astype(np.float32)) for w in (frozen.bias, frozen.hint, frozen.spread))
        hint[1] *= 16
        self.bias[:, at] = (bias.transpose(1, 2) / units[..., None]).to(self.bias.device)
        self.hint[:, at] = (hint / units / HINT_UNITS).to(self.hint.device)
        weights = (spread / units[..., None, None]).permute(0, 3, 1, 2)  # (2, to, from, place)
        for kind in range(2):
            self.spread[kind][at[:, None], :, at] = weights[kind].to(self.spread.device)

    def forward(self, symbols: Tensor, hints: Hints | None = None) -> Tensor:
        """Integer symbols (B, C, h, w) -> bits, same shape."""
        scales, means = self.expect(symbols, hints)
        return laplace_bits(symbols - means, scales)

    def expect(self, symbols: Tensor, hints: Hints | None = None) -> tuple[Tensor, Tensor]:
        """Scale and mean of each symbol, both (B, C, h, w)."""
        features = (symbols.abs().clamp_max(MAGNITUDE_LIMIT), symbols.clamp(-VALUE_LIMIT, VALUE_LIMIT))
        nats, means = (self._sums(feature, kind) for kind, feature in enumerate(features))
        if hints is not None:
            nats = nats + self.hint[0][:, None, None] * hints.indexes
            means = means + self.hint[1][:, None, None] * hints.means
        return SCALE_MIN * torch.exp(nats.clamp(0, SCALE_STEP * (SCALE_COUNT - 1))), means

    def _sums(self, feature: Tensor, kind: int) -> Tensor:
        height, width = feature.shape[-2:]
        padded = F.pad(feature, (1, 1, 1, 0))
        seen = [padded[..., 1 - i : 1 - i + height, 1 - j : 1 - j + width] for i, j in PLACES]
        weight = (self.spread[kind] * self.causal).flatten(1)  # (C, PLACES * C)
        total: Tensor = weight @ torch.cat(seen, 1).flatten(2)
        return total.view(feature.shape) + self.bias[kind][:, :, None]

    @torch.no_grad()
    def freeze(self) -> FrozenContext:
        """The integers to code with; weights so large that sums might leave 16 bits are cut or shrunk."""
        units = torch.tensor([SCALE_UNITS / SCALE_STEP, MEAN_UNITS], device=self.bias.device)[:, None, None]
        bias = (self.bias * units).clamp(-_BIAS_LIMIT, _BIAS_LIMIT)  # (2, C, rows)
        hint = self.hint * units[..., 0] * HINT_UNITS  # (2, C)
        hint[1] /= 16  # its means are in sixteenths
        largest = _HINT_LIMIT * HINT_UNITS / torch.tensor(_LARGEST_HINTS, device=hint.device)[:, None]
        spread = self.spread * self.causal * units[..., None]  # (2, to, place, from)
        limits = torch.tensor([MAGNITUDE_LIMIT, VALUE_LIMIT], device=spread.device)[:, None]
        reached = (spread.abs() + 0.5).sum((2, 3)) * limits  # (2, to)
        spread = spread * (_SPREAD_LIMIT / reached.clamp_min(_SPREAD_LIMIT))[..., None, None]
        return FrozenContext(
            bias=_whole(bias.transpose(1, 2)),
            hint=_whole(torch.minimum(torch.maximum(hint, -largest), largest)),
            spread=_whole(spread.permute(0, 3, 2, 1)),
        )


def _whole(weights: Tensor) -> NDArray[np.int16]:
    return weights.round().cpu().numpy().astype(np.int16)


def laplace_bits(distances: Tensor, scales: Tensor) -> Tensor:
    """Information in the unit around each distance from the mean of Laplace distributions; its slope never ends."""
    near = distances.abs() - 0.5
    inside = 2 - torch.exp(near.clamp_max(0) / scales) - torch.exp(-(distances.abs() + 0.5) / scales)
    tail = near.clamp_min(0) / scales - torch.log(-torch.expm1(-1 / scales))  # nats, for a mass beyond the centre
    nats = torch.where(near < 0, -inside.clamp_min(1e-12).log(), tail)
    return nats / math.log(2) + 1
