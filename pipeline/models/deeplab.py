"""DeepLabv3's head, which gives classes to a backbone's last map (Chen et al., arXiv 1706.05587)."""

from torch import Tensor, nn

from pipeline.models.aspp import ASPP
from pipeline.models.layers import conv_bn_relu

_WIDTH = 256


class DeepLabHead(nn.Module):
    """(B, C, h, w) -> logits (B, K, h, w), as torchvision's DeepLabHead builds it: ASPP, a 3x3 convolution, classes.

    The paper's dilations 6, 12, 18 are for 33 x 33 maps (513 x 513 images at stride 16). They are halved here: on maps
    of 23 x 30 (480 x 360) most of what a dilation of 18 reaches is padding. The pooled branch has a bias in place of a
    batch norm, which could not train on one picture.
    """

    def __init__(
        self, channels: int, classes: int, *, dilations: tuple[int, ...] = (3, 6, 9), dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.aspp = ASPP(channels, _WIDTH, branch=_WIDTH, dilations=dilations)
        self.dropout = nn.Dropout(dropout)
        self.mix = conv_bn_relu(_WIDTH, _WIDTH, 3)
        self.classify = nn.Conv2d(_WIDTH, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.mix(self.dropout(self.aspp(x))))
        return logits
