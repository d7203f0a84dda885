"""OSNet: omni-scale feature learning (Zhou et al., ICCV 2019), in its four published widths.

OSNet-IBN is the same network with instance norms in its first layers.

Parameter names are those of the published checkpoints, so these load without conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models.architectures.published import PublishedModel
from reidguard.models.base import image_size
from reidguard.models.factory import register_model
from reidguard.models.layers import ConvBN, dense_layer, initialise
from reidguard.schema import checked
from reidguard.types import InputSpec

__all__ = ["OSNet"]

FEATURES = 512
WIDTHS = (64, 256, 384, 512)  # channels after the stem and the three stages, at width 1


class Lite3x3(nn.Module):
    """A 3×3 convolution factored into a pointwise and a depthwise one (the paper's Lite 3×3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv2(self.conv1(x))))


class Gate(nn.Module):
    """The unified aggregation gate: weighs the channels of each stream by what is in it."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * weights


class OmniScaleBlock(nn.Module):
    """A residual bottleneck of four streams that see 3, 5, 7 and 9 pixels, under one gate.

    ``norm``, if any, is applied to the sum of the two branches.
    """

    def __init__(
        self, inside: int, outside: int, norm: Callable[[int], nn.Module] | None = None
    ) -> None:
        super().__init__()
        middle = outside // 4
        self.conv1 = ConvBN(inside, middle)
        self.conv2a = Lite3x3(middle)
        self.conv2b = nn.Sequential(*(Lite3x3(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(Lite3x3(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(Lite3x3(middle) for _ in range(4)))
        self.gate = Gate(middle)
        self.conv3 = ConvBN(middle, outside, activation=None)
        self.downsample = ConvBN(inside, outside, activation=None) if inside != outside else None
        self.IN = None if norm is None else norm(outside)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv1(x)
        streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        mixed: Tensor = sum(self.gate(stream(reduced)) for stream in streams)
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.conv3(mixed) + shortcut
        return F.relu(y if self.IN is None else self.IN(y))


def shrinking(channels: int) -> nn.Sequential:
    """Return the layers between two stages, which halve the resolution."""
    return nn.Sequential(ConvBN(channels, channels), nn.AvgPool2d(2, stride=2))


def instance_norm(channels: int) -> nn.Module:
    """Return an instance norm with learnt weights."""
    return nn.InstanceNorm2d(channels, affine=True)


class OSNet(PublishedModel):
    """OSNet with a 512-d feature, compared by cosine.

    Args:
        width: Multiplier of the channels. 1, 0.75, 0.5 and 0.25 are published, with 2.2, 1.3, 0.6
            and 0.2 million parameters, and registered as "osnet_x1_0" to "osnet_x0_25".
        num_classes: Training identities, one number or one per domain.
        size: Height and width that images are resized to.
        ibn: Whether the first convolution and the first stage have instance norms, for images of
            other cameras than those of the training set. OSNet-IBN of width 1 is published, and
            registered as "osnet_ibn_x1_0"; its features are compared by Euclidean distance.

    Example:
        >>> model = OSNet(0.25).eval()
        >>> model.features(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        width: float,
        *,
        num_classes: int | Mapping[str, int] | None = None,
        size: tuple[int, int] = (256, 128),
        ibn: bool = False,
    ) -> None:
        width = checked(float, "width", width, low=0.05, high=16)
        super().__init__(
            input_spec=InputSpec(size=image_size(size)),
            metric="euclidean" if ibn else "cosine",
            num_classes=num_classes,
        )
        stem, first, second, third = (int(channels * width) for channels in WIDTHS)
        norm = instance_norm if ibn else None
        self.conv1 = ConvBN(3, stem, kernel=7, stride=2, norm=norm or nn.BatchNorm2d)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(
            OmniScaleBlock(stem, first, norm), OmniScaleBlock(first, first, norm), shrinking(first)
        )
        self.conv3 = nn.Sequential(
            OmniScaleBlock(first, second), OmniScaleBlock(second, second), shrinking(second)
        )
        self.conv4 = nn.Sequential(OmniScaleBlock(second, third), OmniScaleBlock(third, third))
        self.conv5 = ConvBN(third, third)
        self.fc = dense_layer(third, FEATURES)
        initialise(self)
        self.build_classifiers(FEATURES)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 512) features."""
        x = self.conv4(self.conv3(self.conv2(self.maxpool(self.conv1(inputs)))))
        pooled = self.conv5(x).mean((2, 3))
        features: Tensor = self.fc(pooled)
        return features


def _register(name: str, width: float, **options: bool) -> None:
    @register_model(name)
    def osnet(
        num_classes: int | Mapping[str, int] | None = None, size: tuple[int, int] = (256, 128)
    ) -> OSNet:
        """OSNet in one of its published widths, with a feature of 512 numbers."""
        return OSNet(width, num_classes=num_classes, size=size, **options)


_register("osnet_x1_0", 1.0)
_register("osnet_x0_75", 0.75)
_register("osnet_x0_5", 0.5)
_register("osnet_x0_25", 0.25)
_register("osnet_ibn_x1_0", 1.0, ibn=True)
