"""FDDWNet, a Cityscapes segmentation network used as a teacher (Liu et al., arXiv 1911.00632).

Written to load the weights of zh320/realtime-semantic-segmentation-pytorch strictly; the key names are theirs.
"""

import torch
from torch import Tensor, nn

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Down(nn.Module):
    """(B, a, H, W) -> (B, b, H/2, W/2): a strided convolution beside a max pooling."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(c_in, c_out - c_in, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(c_out - c_in),
            nn.ReLU(inplace=True),
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.pool(x)], 1)


def _factor(channels: int, kernel: tuple[int, int], *, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    padding = (dilation * (kernel[0] - 1) // 2, dilation * (kernel[1] - 1) // 2)
    conv = nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class EERM(nn.Module):
    """Extremely efficient residual module: two factorised depthwise convolutions, the second one dilated."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _factor(channels, (3, 1), groups=channels),
            _factor(channels, (1, 3), groups=channels),
            nn.Sequential(*_factor(channels, (1, 1)), nn.ReLU(inplace=True)),
            _factor(channels, (3, 1), dilation=dilation, groups=channels),
            _factor(channels, (1, 3), dilation=dilation, groups=channels),
            _factor(channels, (1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Up(nn.Module):
    """(B, a, H, W) -> (B, b, 2H, 2W): transposed convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.up_conv = nn.Sequential(
            nn.ConvTranspose2d(c_in, c_out, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up_conv(x)
        return y


def _residual(channels: int, dilations: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(*(EERM(channels, d) for d in dilations))


class FDDWNet(nn.Module):
    """RGB normalised (B, 3, H, W), H and W multiples of 8 -> logits (B, classes, H, W), none below zero."""

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        self.layer1 = Down(3, 16)
        self.layer2 = Down(16, 64)
        self.layer3_7 = _residual(64, (1, 1, 1, 1, 1))
        self.layer8 = Down(64, 128)
        self.layer9_16 = _residual(128, (1, 2, 5, 9, 1, 2, 5, 9))
        self.layer17_24 = _residual(128, (2, 5, 9, 17, 2, 5, 9, 17))
        self.layer25 = Up(128, 64)
        self.layer26_27 = _residual(64, (1, 1))
        self.layer28 = Up(64, 16)
        self.layer29_30 = _residual(16, (1, 1))
        self.layer31 = Up(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        quarter = self.layer3_7(self.layer2(self.layer1(x)))  # (B, 64, H/4, W/4)
        x = self.layer17_24(self.layer9_16(self.layer8(quarter)))  # (B, 128, H/8, W/8)
        x = self.layer26_27(self.layer25(x)) + quarter
        y: Tensor = self.layer31(self.layer29_30(self.layer28(x)))
        return y


def normalise(image: Tensor) -> Tensor:
    """RGB (B, 3, H, W) in 0..255 -> the teacher's input."""
    mean = torch.tensor(_MEAN, device=image.device)[:, None, None]
    std = torch.tensor(_STD, device=image.device)[:, None, None]
    return (image / 255 - mean) / std


def group_classes(probabilities: Tensor, target: Tensor, classes: int) -> Tensor:
    """Probabilities (B, 19, H, W) summed into (B, classes, H, W) by `target` (19,), the class each one counts as."""
    shape = (probabilities.shape[0], classes, *probabilities.shape[2:])
    return probabilities.new_zeros(shape).index_add_(1, target, probabilities)
