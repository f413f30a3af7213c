"""Translator: what a teacher calls a place -> what the data set's labels call it, judged with its surroundings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DILATIONS = (1, 2, 4)
LEAST = 0.02  # added to probabilities: below it, differences say nothing


class Translator(nn.Module):
    """Probabilities of K classes -> logits of K classes; at the start it says what it is told.

    It sees the teacher's opinion only, never the picture: what it learns is how two people label one street, and that
    is the same in streets it has not seen.
    """

    def __init__(self, classes: int, *, width: int) -> None:
        super().__init__()
        self.rename = nn.Conv2d(classes, classes, 1)
        channels = [classes, *[width] * len(DILATIONS)]
        self.look = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=d, dilation=d, bias=False), nn.BatchNorm2d(b))
            for a, b, d in zip(channels, channels[1:], DILATIONS, strict=False)
        )
        self.amend = nn.Conv2d(width, classes, 1)
        with torch.no_grad():
            self.rename.weight.copy_(torch.eye(classes)[:, :, None, None])
            for parameter in (self.rename.bias, self.amend.weight, self.amend.bias):
                if parameter is not None:
                    parameter.zero_()

    def forward(self, probabilities: Tensor) -> Tensor:
        """(B, K, h, w) that sum to one -> logits (B, K, h, w)."""
        told = x = (probabilities + LEAST).log()
        for layers in self.look:
            x = F.relu(layers(x))
        y: Tensor = self.rename(told) + self.amend(x)
        return y
