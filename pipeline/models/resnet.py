"""ResNet-50 for the paper's systems, cut at stride 16: up to `layer3` on the camera, `layer4` behind the cut.

He et al. 2016, as torchvision builds it (the stride of a bottleneck in its 3x3 convolution), with `layer4` dilated
instead of strided: DeepLabv3 at output stride 16 (Chen et al. 2017). Where the paper cuts is not published; the last
stage before the dilated one is ours: latents and maps then have one stride, and the ratio of cloud parameters to be
reproduced (9.8 to 11.59 %) leaves the joint decoder a width that fits the task: tests/models/test_paper_scale.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from pipeline.errors import ConfigError
from pipeline.models.backbone import FeatureSpec

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0..1


_DILATED = (False, False, True)  # of layer2, layer3 and layer4


class ResNet50(nn.Module):
    """ResNet-50 up to its last stage at stride 16; its parts are named as in torchvision."""

    features = (FeatureSpec(256, 4), FeatureSpec(512, 8), FeatureSpec(1024, 16))
    mean: Tensor  # (1, 3, 1, 1), as is deviation
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        whole = resnet50(weights=None, replace_stride_with_dilation=_DILATED)
        self.conv1, self.bn1, self.relu, self.maxpool = whole.conv1, whole.bn1, whole.relu, whole.maxpool
        self.layer1, self.layer2, self.layer3 = whole.layer1, whole.layer2, whole.layer3
        self.register_buffer("mean", 255 * torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", 255 * torch.tensor(_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RGB (B, 3, H, W) in 0..255 -> features at strides 4, 8 and 16."""
        x = self.relu(self.bn1(self.conv1((image - self.mean) / self.deviation)))  # (B, 64, H/2, W/2)
        x4 = self.layer1(self.maxpool(x))  # (B, 256, H/4, W/4)
        x8 = self.layer2(x4)  # (B, 512, H/8, W/8)
        return x4, x8, self.to_16(x8)  # (B, 1024, H/16, W/16)

    @property
    def to_16(self) -> nn.Module:
        """What leads from the map at stride 8 to the one at stride 16."""
        stage: nn.Module = self.layer3
        return stage


class ResNet50Tail(nn.Module):
    """The last stage of ResNet-50, dilated: what the task network has between the cut and its head."""

    out_channels = 2048

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = resnet50(weights=None, replace_stride_with_dilation=_DILATED).layer4

    def forward(self, x: Tensor) -> Tensor:
        """The map at the cut (B, 1024, h, w) -> (B, 2048, h, w)."""
        y: Tensor = self.layer4(x)
        return y


def load_torchvision(part: ResNet50 | ResNet50Tail, weights: Mapping[str, Tensor]) -> None:
    """Take the part's tensors out of a torchvision ResNet-50 state.

    Raises ConfigError, and leaves the part as it was, when one is missing or of another shape.
    """
    own = {name: value for name, value in part.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, value in own.items():
        if name not in weights or weights[name].shape != value.shape:
            wanted = f"{name} of shape {tuple(value.shape)}"
            raise ConfigError(f"backbone weights: there is no {wanted}; name a file of torchvision's ResNet-50")
    part.load_state_dict({name: weights[name] for name in own})
