"""HACNN: a harmonious attention network (Li et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models.base import ReIDModel, ReIDOutput, image_size
from reidguard.models.checkpoint_formats import head_rule, rename
from reidguard.models.factory import register_model
from reidguard.models.layers import ConvBN, dense_layer
from reidguard.types import InputSpec

__all__ = ["HACNN"]

FEATURES = 512  # of each branch
CHANNELS = (128, 256, 384)
REGIONS = 4
REGION_HEIGHT = 0.25  # of the maps
REGION_SIZES = ((24, 28), (12, 14), (6, 7))  # to which regions are resized before each level


def _layer(inside: int, outside: int, kernel: int = 1, stride: int = 1) -> ConvBN:
    return ConvBN(inside, outside, kernel, stride, bias=True)


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


class _InceptionA(nn.Module):
    """Four streams at full resolution."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        width = outside // 4
        self.stream1 = nn.Sequential(_layer(inside, width), _layer(width, width, 3))
        self.stream2 = nn.Sequential(_layer(inside, width), _layer(width, width, 3))
        self.stream3 = nn.Sequential(_layer(inside, width), _layer(width, width, 3))
        self.stream4 = nn.Sequential(nn.AvgPool2d(3, 1, 1), _layer(inside, width))

    def forward(self, x: Tensor) -> Tensor:
        streams = (self.stream1, self.stream2, self.stream3, self.stream4)
        return torch.cat([stream(x) for stream in streams], 1)


class _InceptionB(nn.Module):
    """Three streams that halve the resolution."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        width = outside // 4
        self.stream1 = nn.Sequential(_layer(inside, width), _layer(width, width, 3, 2))
        self.stream2 = nn.Sequential(
            _layer(inside, width), _layer(width, width, 3), _layer(width, width, 3, 2)
        )
        self.stream3 = nn.Sequential(nn.MaxPool2d(3, 2, 1), _layer(inside, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([stream(x) for stream in (self.stream1, self.stream2, self.stream3)], 1)


class _SpatialAttention(nn.Module):
    """One weight for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _layer(1, 1, 3, 2)
        self.conv2 = _layer(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        small = self.conv1(x.mean(1, keepdim=True))
        full = F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=True)
        y: Tensor = self.conv2(full)
        return y


class _ChannelAttention(nn.Module):
    """One weight for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _layer(channels, channels // 16)
        self.conv2 = _layer(channels // 16, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(_mean(x)))
        return y


class _SoftAttention(nn.Module):
    """One weight in [0, 1] for each value of the maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial_attn = _SpatialAttention()
        self.channel_attn = _ChannelAttention(channels)
        self.conv = _layer(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(self.spatial_attn(x) * self.channel_attn(x)))


class _HardAttention(nn.Module):
    """Where the four regions lie: (N, 4, 2) centres as (x, y) in [-1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, REGIONS * 2)
        nn.init.zeros_(self.fc.weight)
        with torch.no_grad():  # one below the other
            self.fc.bias.copy_(torch.tensor([0, -0.75, 0, -0.25, 0, 0.25, 0, 0.75]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(_mean(x).flatten(1))).view(-1, REGIONS, 2)


class _Attention(nn.Module):
    """Harmonious attention: soft on values, hard on regions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.soft_attn = _SoftAttention(channels)
        self.hard_attn = _HardAttention(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted maps and the centres of regions."""
        return x * self.soft_attn(x), self.hard_attn(x)


@register_model("hacnn")
class HACNN(ReIDModel):
    """HACNN: a global branch, and a local one that looks at four regions.

    The feature is 512 numbers of each branch, each half of length 1, compared by Euclidean
    distance. In training :class:`ReIDOutput` has embeddings and logits of both branches.

    Args:
        num_classes: Training identities, one number or one per domain.
        size: Height and width that images are resized to.
        align_corners: How regions are cut out of the maps, as in
            :func:`torch.nn.functional.grid_sample`. False is what torchreid's code computes today,
            True what it did with torch before 1.3, when torchreid's published files were learnt.
    """

    head_prefixes: tuple[str, ...] = ("classifier.", "classifier_global.", "classifier_local.")

    def __init__(
        self,
        *,
        num_classes: int | Mapping[str, int] | None = None,
        size: tuple[int, int] = (160, 64),
        align_corners: bool = False,
    ) -> None:
        spec = InputSpec(size=image_size(size))
        super().__init__(input_spec=spec, metric="euclidean", num_classes=num_classes)
        self.align_corners = align_corners
        inside, (first, second, third) = 32, CHANNELS
        self.conv = _layer(3, inside, 3, 2)
        self.inception1 = nn.Sequential(_InceptionA(inside, first), _InceptionB(first, first))
        self.ha1 = _Attention(first)
        self.inception2 = nn.Sequential(_InceptionA(first, second), _InceptionB(second, second))
        self.ha2 = _Attention(second)
        self.inception3 = nn.Sequential(_InceptionA(second, third), _InceptionB(third, third))
        self.ha3 = _Attention(third)
        self.fc_global = dense_layer(third, FEATURES)
        self.local_conv1 = _InceptionB(inside, first)
        self.local_conv2 = _InceptionB(first, second)
        self.local_conv3 = _InceptionB(second, third)
        self.fc_local = dense_layer(REGIONS * third, FEATURES)
        self.build_part_classifiers([FEATURES, FEATURES])

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 1024) features."""
        return self._joined(*self._branches(inputs))

    def forward(self, x: Tensor, domain: str | None = None) -> ReIDOutput:
        """Return features, and embeddings and logits of the global and of the local branch.

        See :meth:`ReIDModel.forward`.
        """
        chosen = self.resolve_domain(domain)
        branches = self._branches(self.prepare(x))
        logits = self.part_logits(branches, chosen)
        return ReIDOutput(self._joined(*branches), list(branches), logits)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the two classifiers of torchreid's files to the one domain of this model."""
        heads = self.num_classes
        return rename(
            state,
            [
                *head_rule(r"classifier_global\.", heads, "0."),
                *head_rule(r"classifier_local\.", heads, "1."),
            ],
        )

    @staticmethod
    def _joined(whole: Tensor, local: Tensor) -> Tensor:
        return torch.cat([F.normalize(whole), F.normalize(local)], 1)

    def _branches(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (N, 512) embeddings of the global and of the local branch."""
        x = self.conv(inputs)
        regions: list[Tensor] = []
        levels = (
            (self.inception1, self.ha1, self.local_conv1),
            (self.inception2, self.ha2, self.local_conv2),
            (self.inception3, self.ha3, self.local_conv3),
        )
        for (inception, attention, local_conv), size in zip(levels, REGION_SIZES, strict=True):
            maps, centres = attention(inception(x))
            cut = [self._cut(x, centres[:, i], size) for i in range(REGIONS)]
            if regions:
                cut = [new + old for new, old in zip(cut, regions, strict=True)]
            regions = [local_conv(region) for region in cut]
            x = maps
        local = torch.cat([region.mean((2, 3)) for region in regions], 1)
        return self.fc_global(x.mean((2, 3))), self.fc_local(local)

    def _cut(self, maps: Tensor, centre: Tensor, size: tuple[int, int]) -> Tensor:
        """Cut out a region of full width and resize it; what lies outside of the maps is zero."""
        scale = maps.new_zeros(2, 2)
        scale[0, 0], scale[1, 1] = 1, REGION_HEIGHT
        transform = torch.cat([scale.expand(len(maps), 2, 2), centre.unsqueeze(2)], 2)
        grid = F.affine_grid(transform, list(maps.shape), align_corners=self.align_corners)
        region = F.grid_sample(maps, grid, align_corners=self.align_corners)
        return F.interpolate(region, size, mode="bilinear", align_corners=True)
