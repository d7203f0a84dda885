"""MLFN: a multi-level factorisation net (Chang et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models.architectures.published import PublishedModel
from reidguard.models.base import image_size
from reidguard.models.factory import register_model
from reidguard.models.layers import initialise
from reidguard.types import InputSpec

__all__ = ["MLFN"]

FACTORS = 32
FEATURES = 1024
# (blocks, output channels, stride of the first, channels inside the selection)
STAGES = (
    (3, 256, 1, (128, 64)),
    (4, 512, 2, (256, 128)),
    (6, 1024, 2, (512, 128)),
    (3, 2048, 2, (512, 128)),
)


def _conv(
    inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)


class _Block(nn.Module):
    """A bottleneck of 32 factors, and the selection that weighs them by what is in the image."""

    def __init__(self, inside: int, outside: int, stride: int, selection: tuple[int, int]) -> None:
        super().__init__()
        middle = outside // 2
        self.fm_conv1 = _conv(inside, middle)
        self.fm_bn1 = nn.BatchNorm2d(middle)
        self.fm_conv2 = _conv(middle, middle, 3, stride, FACTORS)
        self.fm_bn2 = nn.BatchNorm2d(middle)
        self.fm_conv3 = _conv(middle, outside)
        self.fm_bn3 = nn.BatchNorm2d(outside)
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)]
        widths = (inside, *selection, FACTORS)
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU()]
        layers[-1] = nn.Sigmoid()
        self.fsm = nn.Sequential(*layers)
        self.downsample: nn.Module = nn.Identity()
        if inside != outside or stride > 1:
            self.downsample = nn.Sequential(
                _conv(inside, outside, stride=stride), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps and the (N, 32, 1, 1) weights of the factors."""
        weights = self.fsm(x)
        y = F.relu(self.fm_bn1(self.fm_conv1(x)))
        y = F.relu(self.fm_bn2(self.fm_conv2(y)))
        y = y * weights.repeat_interleave(y.shape[1] // FACTORS, 1)
        y = F.relu(self.fm_bn3(self.fm_conv3(y)))
        return F.relu(self.downsample(x) + y), weights


@register_model("mlfn")
class MLFN(PublishedModel):
    """MLFN: the mean of a projection of the last maps and one of the weights of all factors.

    The feature has 1024 numbers, compared by Euclidean distance.

    Args:
        num_classes: Training identities, one number or one per domain.
        size: Height and width that images are resized to.
    """

    def __init__(
        self,
        *,
        num_classes: int | Mapping[str, int] | None = None,
        size: tuple[int, int] = (256, 128),
    ) -> None:
        spec = InputSpec(size=image_size(size))
        super().__init__(input_spec=spec, metric="euclidean", num_classes=num_classes)
        channels = 64
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.feature = nn.ModuleList()
        for blocks, outside, stride, selection in STAGES:
            for number in range(blocks):
                self.feature.append(_Block(channels, outside, 1 if number else stride, selection))
                channels = outside
        self.fc_x = _projection(channels)
        self.fc_s = _projection(FACTORS * len(self.feature))
        initialise(self)
        self.build_classifiers(FEATURES)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 1024) features."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(inputs))))
        factors = []
        for block in self.feature:
            x, weights = block(x)
            factors.append(weights)
        pooled = self.fc_x(x.mean((2, 3), keepdim=True))
        features: Tensor = (pooled + self.fc_s(torch.cat(factors, 1))).flatten(1) / 2
        return features


def _projection(inside: int) -> nn.Sequential:
    return nn.Sequential(_conv(inside, FEATURES), nn.BatchNorm2d(FEATURES), nn.ReLU())
