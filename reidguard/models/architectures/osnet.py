"""OSNet: omni-scale feature learning (Zhou et al., ICCV 2019), in its four published widths.

Parameter names are those of the published checkpoints, so these load without conversion.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models.base import ReIDModel, image_size
from reidguard.models.checkpoint_formats import head_rule, rename
from reidguard.models.factory import register_model
from reidguard.schema import checked
from reidguard.types import InputSpec

__all__ = ["OSNet"]

FEATURES = 512
WIDTHS = (64, 256, 384, 512)  # channels after the stem and the three stages, at width 1


class _ConvBN(nn.Module):
    """Convolution and batch norm, with a ReLU unless ``linear``."""

    def __init__(
        self, inside: int, outside: int, kernel: int = 1, stride: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inside, outside, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(outside)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y if self.linear else F.relu(y)


class _Lite3x3(nn.Module):
    """A 3×3 convolution factored into a pointwise and a depthwise one (the paper's Lite 3×3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv2(self.conv1(x))))


class _Gate(nn.Module):
    """The unified aggregation gate: weighs the channels of each stream by what is in it."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * weights


class _OmniScaleBlock(nn.Module):
    """A residual bottleneck of four streams that see 3, 5, 7 and 9 pixels, under one gate."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        middle = outside // 4
        self.conv1 = _ConvBN(inside, middle)
        self.conv2a = _Lite3x3(middle)
        self.conv2b = nn.Sequential(*(_Lite3x3(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(_Lite3x3(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(_Lite3x3(middle) for _ in range(4)))
        self.gate = _Gate(middle)
        self.conv3 = _ConvBN(middle, outside, linear=True)
        self.downsample = _ConvBN(inside, outside, linear=True) if inside != outside else None

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv1(x)
        streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        mixed: Tensor = sum(self.gate(stream(reduced)) for stream in streams)
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv3(mixed) + shortcut)


def _stage(inside: int, outside: int, *, shrink: bool) -> nn.Sequential:
    blocks: list[nn.Module] = [
        _OmniScaleBlock(inside, outside),
        _OmniScaleBlock(outside, outside),
    ]
    if shrink:
        blocks.append(nn.Sequential(_ConvBN(outside, outside), nn.AvgPool2d(2, stride=2)))
    return nn.Sequential(*blocks)


class OSNet(ReIDModel):
    """OSNet with a 512-d feature, compared by cosine.

    Args:
        width: Multiplier of the channels. 1, 0.75, 0.5 and 0.25 are published, with 2.2, 1.3, 0.6
            and 0.2 million parameters, and registered as "osnet_x1_0" to "osnet_x0_25".
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
        width = checked(float, "width", width, low=0.05, high=16)
        spec = InputSpec(size=image_size(size))
        super().__init__(input_spec=spec, metric="cosine", num_classes=num_classes)
        stem, first, second, third = (int(channels * width) for channels in WIDTHS)
        self.conv1 = _ConvBN(3, stem, kernel=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(stem, first, shrink=True)
        self.conv3 = _stage(first, second, shrink=True)
        self.conv4 = _stage(second, third, shrink=False)
        self.conv5 = _ConvBN(third, third)
        dense = nn.Linear(third, FEATURES)
        self.fc = nn.Sequential(dense, nn.BatchNorm1d(FEATURES), nn.ReLU())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(dense.weight, std=0.01)
        nn.init.zeros_(dense.bias)
        self.build_classifiers(FEATURES)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 512) features."""
        x = self.conv4(self.conv3(self.conv2(self.maxpool(self.conv1(inputs)))))
        pooled = self.conv5(x).mean((2, 3))
        features: Tensor = self.fc(pooled)
        return features

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the one classifier of a published file to the one domain of this model."""
        return rename(state, head_rule(r"classifier\.(?=(weight|bias)$)", self.num_classes))


def _register(name: str, width: float) -> None:
    @register_model(name)
    def osnet(
        num_classes: int | Mapping[str, int] | None = None, size: tuple[int, int] = (256, 128)
    ) -> OSNet:
        return OSNet(width, num_classes=num_classes, size=size)


_register("osnet_x1_0", 1.0)
_register("osnet_x0_75", 0.75)
_register("osnet_x0_5", 0.5)
_register("osnet_x0_25", 0.25)
