"""torchreid's MobileNetV2 (Sandler et al., CVPR 2018).

timm's has other widths than torchreid's where 1.4 times a number is none of eighths, and no
pointwise convolution in the first block.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models.architectures.published import PublishedModel
from reidguard.models.base import image_size
from reidguard.models.factory import register_model
from reidguard.models.layers import ConvBN, initialise
from reidguard.types import InputSpec

__all__ = ["MobileNetV2"]

FEATURES = 1280
# (blocks, output channels at width 1, stride of the first, expansion) of conv2 to conv8
STAGES = (
    *((1, 16, 1, 1), (2, 24, 2, 6), (3, 32, 2, 6), (4, 64, 2, 6)),
    *((3, 96, 1, 6), (3, 160, 2, 6), (1, 320, 1, 6)),
)


class _Bottleneck(nn.Module):
    """An inverted residual: wide inside, linear at its end."""

    def __init__(self, inside: int, outside: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inside * expansion
        self.residual = stride == 1 and inside == outside
        self.conv1 = ConvBN(inside, middle, activation=F.relu6)
        self.dwconv2 = ConvBN(middle, middle, 3, stride, groups=middle, activation=F.relu6)
        self.conv3 = nn.Sequential(
            nn.Conv2d(middle, outside, 1, bias=False), nn.BatchNorm2d(outside)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(self.dwconv2(self.conv1(x)))
        return x + y if self.residual else y


class MobileNetV2(PublishedModel):
    """MobileNetV2 with its pooled feature, compared by Euclidean distance.

    Args:
        width: Multiplier of the channels. torchreid publishes 1 and 1.4, with features of 1280 and
            1792 numbers, registered as "mobilenetv2_x1_0" and "mobilenetv2_x1_4".
        num_classes: Training identities, one number or one per domain.
        size: Height and width that images are resized to.
    """

    def __init__(
        self,
        width: float,
        *,
        num_classes: int | Mapping[str, int] | None = None,
        size: tuple[int, int] = (256, 128),
    ) -> None:
        spec = InputSpec(size=image_size(size))
        super().__init__(input_spec=spec, metric="euclidean", num_classes=num_classes)
        channels, features = int(32 * width), int(FEATURES * max(width, 1))
        layers: list[nn.Module] = [ConvBN(3, channels, 3, stride=2, activation=F.relu6)]
        for blocks, at_width_1, stride, expansion in STAGES:
            stage = nn.Sequential()
            for number in range(blocks):
                outside = int(at_width_1 * width)
                stage.append(_Bottleneck(channels, outside, 1 if number else stride, expansion))
                channels = outside
            layers.append(stage)
        layers.append(ConvBN(channels, features, activation=F.relu6))
        for number, layer in enumerate(layers, 1):
            self.add_module(f"conv{number}", layer)
        self.depth = len(layers)
        initialise(self)
        self.build_classifiers(features)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the pooled features."""
        x = inputs
        for number in range(1, self.depth + 1):
            x = self.get_submodule(f"conv{number}")(x)
        return x.mean((2, 3))


def _register(name: str, width: float) -> None:
    @register_model(name)
    def mobilenetv2(
        num_classes: int | Mapping[str, int] | None = None, size: tuple[int, int] = (256, 128)
    ) -> MobileNetV2:
        """MobileNetV2 as torchreid has it, compared by Euclidean distance."""
        return MobileNetV2(width, num_classes=num_classes, size=size)


_register("mobilenetv2_x1_0", 1.0)
_register("mobilenetv2_x1_4", 1.4)
