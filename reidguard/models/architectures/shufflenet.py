"""ShuffleNet with three groups (Zhang et al., CVPR 2018), as torchreid has it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models.architectures.published import PublishedModel
from reidguard.models.base import image_size
from reidguard.models.factory import register_model
from reidguard.models.layers import initialise
from reidguard.types import InputSpec

__all__ = ["ShuffleNet"]

GROUPS = 3
STAGES = ((4, 240), (8, 480), (4, 960))  # blocks and output channels of stage2 to stage4


class _Bottleneck(nn.Module):
    """Grouped convolutions with a shuffle between them; with ``shrink``, beside average pooling."""

    def __init__(self, inside: int, outside: int, *, shrink: bool, groups: int) -> None:
        super().__init__()
        middle = outside // 4
        own = outside - inside if shrink else outside  # the pooled input has the other channels
        self.shrink = shrink
        self.conv1 = nn.Conv2d(inside, middle, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        stride = 2 if shrink else 1
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, own, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(own)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        n, channels, height, width = y.shape
        y = y.view(n, GROUPS, channels // GROUPS, height, width).transpose(1, 2).flatten(1, 2)
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        if self.shrink:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, stride=2, padding=1), y], 1))
        return F.relu(x + y)


@register_model("shufflenet")
class ShuffleNet(PublishedModel):
    """ShuffleNet with its pooled feature of 960 numbers, compared by Euclidean distance.

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
        channels = 24
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages: list[nn.Module] = []
        for blocks, outside in STAGES:
            # The first convolution of all, on few channels, has no groups.
            groups = GROUPS if stages else 1
            stage = nn.Sequential(_Bottleneck(channels, outside, shrink=True, groups=groups))
            for _ in range(1, blocks):
                stage.append(_Bottleneck(outside, outside, shrink=False, groups=GROUPS))
            stages.append(stage)
            channels = outside
        self.stage2, self.stage3, self.stage4 = stages
        initialise(self)
        self.build_classifiers(channels)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 960) features."""
        maps: Tensor = self.stage4(self.stage3(self.stage2(self.conv1(inputs))))
        return maps.mean((2, 3))
