"""Layers and initial weights that several architectures share."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvBN", "dense_layer", "initialise"]


class ConvBN(nn.Module):
    """Convolution, norm and activation, under the names that torchreid's networks use.

    Args:
        inside: Channels of the input.
        outside: Channels of the output.
        kernel: Its size; the padding keeps the resolution.
        stride: Step of the convolution.
        groups: Blocks of channels that do not mix.
        bias: Whether the convolution has one.
        norm: The norm's class; its parameters are called ``bn`` also if it is an instance norm.
        activation: The function after it; None for a linear layer.
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        activation: Callable[[Tensor], Tensor] | None = F.relu,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inside, outside, kernel, stride, padding=kernel // 2, groups=groups, bias=bias
        )
        self.bn = norm(outside)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps."""
        y: Tensor = self.bn(self.conv(x))
        return y if self.activation is None else self.activation(y)


def dense_layer(inside: int, outside: int) -> nn.Sequential:
    """Return a linear layer, batch norm and ReLU, torchreid's way from pooled maps to features."""
    return nn.Sequential(nn.Linear(inside, outside), nn.BatchNorm1d(outside), nn.ReLU())


def initialise(network: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers as torchreid does; biases are zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
