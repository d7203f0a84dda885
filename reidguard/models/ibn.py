"""IBN-a: instance norm beside batch norm in the first three stages of a ResNet from timm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reidguard.errors import InputError

__all__ = ["IBN", "IBN_SUFFIX", "add_ibn"]

#: Ends the name of a backbone, such as "resnet50_ibn_a".
IBN_SUFFIX = "_ibn_a"


class IBN(nn.Module):
    """Instance norm of the first half of the channels, batch norm of the second.

    Source: Pan et al., *Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net*,
    ECCV 2018. Parameter names are those of the published weights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) of the same shape."""
        half = self.IN.num_features
        return torch.cat([self.IN(x[:, :half]), self.BN(x[:, half:])], 1)


def add_ibn(network: nn.Module, name: str) -> None:
    """Make an IBN-a network of a ResNet, in place: the first norm of each block of stages 1 to 3.

    Raises:
        InputError: If the network has no such norms.
    """
    for number in (1, 2, 3):
        for block in getattr(network, f"layer{number}", nn.Sequential(nn.Identity())):
            norm = getattr(block, "bn1", None)
            if type(norm) is not nn.BatchNorm2d:
                raise InputError(
                    f"{name!r} is not possible: IBN replaces the first batch norm of a ResNet's "
                    "blocks, which this network lacks; choose one such as 'resnet50_ibn_a'"
                )
            block.bn1 = IBN(norm.num_features)
