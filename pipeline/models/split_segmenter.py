"""The whole network of a split segmenter, as trained: image to latents to mask logits."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.backbone import MobileNetV2
from pipeline.models.entropy_model import Coded, MeanScaleHyperprior
from pipeline.models.joint_decoder import JointDecoder
from pipeline.models.source_encoder import SourceEncoder


@dataclass(frozen=True, slots=True)
class Segmented:
    """Logits (B, K, H, W) at the image's size, and what the latents cost."""

    logits: Tensor
    coded: Coded


class SplitSegmenter(nn.Module):
    """Backbone, source encoder, entropy model and joint decoder, trained end to end."""

    stride = 16

    def __init__(
        self,
        classes: int,
        *,
        latents: int,
        hyper_latents: int,
        encoder_width: int,
        prior_width: int,
        decoder_width: int,
        branch: int,
        dilations: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.backbone = MobileNetV2()
        self.source_encoder = SourceEncoder(MobileNetV2.features, width=encoder_width, latents=latents)
        self.prior = MeanScaleHyperprior(latents, hyper_latents, width=prior_width)
        self.decoder = JointDecoder(latents, classes, width=decoder_width, branch=branch, dilations=dilations)

    def encode(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, any size -> y (B, C, ceil(H/16), ceil(W/16))."""
        y: Tensor = self.source_encoder(self.backbone(pad_to_stride(image, self.stride)))
        return y

    def forward(self, image: Tensor) -> Segmented:
        """RGB (B, 3, H, W) in 0..255 -> logits at the same size, and bits."""
        coded = self.prior(self.encode(image))
        logits = self.decoder(coded.y_hat)  # (B, K, H'/4, W'/4), H' the padded height
        return Segmented(upsample(logits, image.shape[-2], image.shape[-1]), coded)


def pad_to_stride(image: Tensor, stride: int) -> Tensor:
    """Repeat the last row and column (B, 3, H, W) until both sizes are divisible by the stride."""
    bottom, right = -image.shape[-2] % stride, -image.shape[-1] % stride
    return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image


def upsample(logits: Tensor, height: int, width: int) -> Tensor:
    """Logits (B, K, h, w) at stride 4 -> (B, K, height, width), bilinear, the padding cut off."""
    full = F.interpolate(logits.float(), scale_factor=4, mode="bilinear", align_corners=False)
    return full[..., :height, :width]
