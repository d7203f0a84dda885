"""OSNet-AIN: OSNet with instance norms at the places that a search found (Zhou et al., TPAMI 2021).

Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models.architectures.osnet import (
    FEATURES,
    WIDTHS,
    Gate,
    Lite3x3,
    instance_norm,
    shrinking,
)
from reidguard.models.architectures.published import PublishedModel
from reidguard.models.base import image_size
from reidguard.models.factory import register_model
from reidguard.models.layers import ConvBN, dense_layer, initialise
from reidguard.types import InputSpec

__all__ = ["OSNetAIN"]


class _Stream(nn.Module):
    """``depth`` light convolutions in a row."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Lite3x3(channels) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class _Block(nn.Module):
    """OSNet's block; with ``instance``, its last norm is an instance norm inside the branch."""

    def __init__(self, inside: int, outside: int, *, instance: bool) -> None:
        super().__init__()
        middle = outside // 4
        self.conv1 = ConvBN(inside, middle)
        self.conv2 = nn.ModuleList(_Stream(middle, depth) for depth in (1, 2, 3, 4))
        self.gate = Gate(middle)
        self.conv3 = ConvBN(
            middle, outside, norm=nn.Identity if instance else nn.BatchNorm2d, activation=None
        )
        self.downsample = ConvBN(inside, outside, activation=None) if inside != outside else None
        self.IN = instance_norm(outside) if instance else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv1(x)
        mixed: Tensor = sum(self.gate(stream(reduced)) for stream in self.conv2)
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.IN(self.conv3(mixed)) + shortcut)


def _stage(inside: int, outside: int, instance: tuple[bool, bool]) -> nn.Sequential:
    first, second = instance
    return nn.Sequential(
        _Block(inside, outside, instance=first), _Block(outside, outside, instance=second)
    )


class OSNetAIN(PublishedModel):
    """OSNet-AIN with a 512-d feature, compared by cosine.

    Args:
        width: Multiplier of the channels. 1, 0.75, 0.5 and 0.25 are published, and registered as
            "osnet_ain_x1_0" to "osnet_ain_x0_25".
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
        super().__init__(input_spec=spec, metric="cosine", num_classes=num_classes)
        stem, first, second, third = (int(channels * width) for channels in WIDTHS)
        self.conv1 = ConvBN(3, stem, kernel=7, stride=2, norm=instance_norm)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(stem, first, (True, True))
        self.pool2 = shrinking(first)
        self.conv3 = _stage(first, second, (False, True))
        self.pool3 = shrinking(second)
        self.conv4 = _stage(second, third, (True, False))
        self.conv5 = ConvBN(third, third)
        self.fc = dense_layer(third, FEATURES)
        initialise(self)
        self.build_classifiers(FEATURES)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 512) features."""
        x = self.pool2(self.conv2(self.maxpool(self.conv1(inputs))))
        x = self.conv4(self.pool3(self.conv3(x)))
        features: Tensor = self.fc(self.conv5(x).mean((2, 3)))
        return features


def _register(name: str, width: float) -> None:
    @register_model(name)
    def osnet_ain(
        num_classes: int | Mapping[str, int] | None = None, size: tuple[int, int] = (256, 128)
    ) -> OSNetAIN:
        """OSNet-AIN, with instance norms in some of the blocks, compared by cosine."""
        return OSNetAIN(width, num_classes=num_classes, size=size)


_register("osnet_ain_x1_0", 1.0)
_register("osnet_ain_x0_75", 0.75)
_register("osnet_ain_x0_5", 0.5)
_register("osnet_ain_x0_25", 0.25)
