"""A whole split network, as trained: image to latents to mask logits, or of an image codec to the image again."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.entropy_model import Coded, MeanScaleHyperprior, NoBottleneck


@dataclass(frozen=True, slots=True)
class Segmented:
    """What the decoder gives, logits (B, K, H'/4, W'/4) at stride 4 to the padded image, and what the latents cost.

    An image codec gives the padded image, RGB (B, 3, H', W').
    """

    output: Tensor
    coded: Coded


class FeatureEncoder(nn.Module):
    """The camera's half with a pretrained backbone: image -> features -> y."""

    def __init__(self, backbone: nn.Module, source_encoder: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.source_encoder = source_encoder

    def forward(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, sizes divisible by 16 -> y (B, C, H/16, W/16)."""
        y: Tensor = self.source_encoder(self.backbone(image))
        return y


class SplitSegmenter(nn.Module):
    """Analysis on the camera, prior between the two, decoder in the cloud; trained end to end."""

    stride = 16

    def __init__(self, analysis: nn.Module, prior: MeanScaleHyperprior | NoBottleneck, decoder: nn.Module) -> None:
        super().__init__()
        self.analysis = analysis
        self.prior = prior
        self.decoder = decoder

    @property
    def levels(self) -> int:
        """Quality levels of the prior; 1 where nothing is coded."""
        return self.prior.gains.levels if isinstance(self.prior, MeanScaleHyperprior) else 1

    def encode(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, any size -> y (B, C, ceil(H/16), ceil(W/16)), before any level's gain."""
        y: Tensor = self.analysis(pad_to_stride(image, self.stride))
        return y

    def forward(self, image: Tensor, quality: Tensor) -> Segmented:
        """RGB (B, 3, H, W) in 0..255 and levels (B,) -> what the decoder makes of it, and bits."""
        coded = self.prior(self.encode(image), quality)
        return Segmented(self.decoder(coded.y_hat), coded)


def levels_like(image: Tensor, level: int) -> Tensor:
    """One quality level for each image of a batch: int64 (B,)."""
    return torch.full((len(image),), level, dtype=torch.int64, device=image.device)


def pad_to_stride(image: Tensor, stride: int) -> Tensor:
    """Repeat the last row and column (B, 3, H, W) until both sizes are divisible by the stride."""
    bottom, right = -image.shape[-2] % stride, -image.shape[-1] % stride
    return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image


def upsample(logits: Tensor, height: int, width: int) -> Tensor:
    """Logits (B, K, h, w) at stride 4 -> (B, K, height, width), bilinear, the padding cut off."""
    full = F.interpolate(logits.float(), scale_factor=4, mode="bilinear", align_corners=False)
    return full[..., :height, :width]
