"""The networks of MisRank: a generator, a discriminator at three scales, and a mask head."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["Discriminator", "Generator", "MaskHead", "top_k_mask"]

SCALES = 3
BLOCKS = 6


def _normed(layer: nn.Module) -> list[nn.Module]:
    """Return a layer with spectral norm, and the batch norm that replaces its bias."""
    channels = layer.out_channels
    assert isinstance(channels, int)
    return [spectral_norm(layer), nn.BatchNorm2d(channels)]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normed(nn.Conv2d(width, width, 3, bias=False)),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            *_normed(nn.Conv2d(width, width, 3, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.body(x))


class Generator(nn.Module):
    """Encoder-decoder that maps images (N, 3, H, W) in [-1, 1] to changes in [-1, 1].

    H and W are multiples of 4. A 7×7 convolution, two convolutions of stride 2, six residual
    blocks, two transposed convolutions, a 7×7 convolution and tanh.

    Args:
        width: Filters of the first convolution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(3), *_normed(nn.Conv2d(3, width, 7, bias=False)), nn.ReLU()]
        for w in (width, 2 * width):
            down = nn.Conv2d(w, 2 * w, 3, stride=2, padding=1, bias=False)
            layers += [*_normed(down), nn.ReLU()]
        layers += [_Residual(4 * width) for _ in range(BLOCKS)]
        for w in (4 * width, 2 * width):
            up = nn.ConvTranspose2d(w, w // 2, 3, stride=2, padding=1, output_padding=1, bias=False)
            layers += [*_normed(up), nn.ReLU()]
        self.layers = nn.Sequential(
            *layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 3, H, W) in [-1, 1]."""
        return cast(Tensor, self.layers(x))


class _SamePadding(nn.Module):
    """Zeros around, so that a convolution gives size / stride, rounded up."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = [kernel] * 2, [stride] * 2

    def forward(self, x: Tensor) -> Tensor:
        from timm.layers.padding import pad_same  # here, since timm is slow to import

        return cast(Tensor, pad_same(x, self.kernel, self.stride))


class Discriminator(nn.Module):
    """Judges pairs of images, (N, 6, H, W) in [-1, 1], at three scales, patch by patch.

    Args:
        width: Filters of the first convolution at each scale; then 2, 4 and 8 times that.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(self._scale(width) for _ in range(SCALES))

    @staticmethod
    def _scale(width: int) -> nn.ModuleList:
        first = spectral_norm(nn.Conv2d(6, width, 4, stride=2))
        layers = [nn.Sequential(_SamePadding(4, 2), first, nn.LeakyReLU(0.2))]
        for w, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layer = _normed(nn.Conv2d(w, 2 * w, 4, stride=stride, bias=False))
            layers.append(nn.Sequential(_SamePadding(4, stride), *layer, nn.LeakyReLU(0.2)))
        layers.append(nn.Sequential(_SamePadding(4, 1), nn.Conv2d(8 * width, 1, 4)))
        return nn.ModuleList(layers)

    def features(self, pair: Tensor) -> list[list[Tensor]]:
        """Return what every layer gives at every scale, the finest scale first."""
        features = []
        for scale in self.scales:
            layers = [pair]
            for layer in cast(nn.ModuleList, scale):
                layers.append(layer(layers[-1]))
            features.append(layers[1:])
            pair = F.avg_pool2d(pair, 3, stride=2, padding=1, count_include_pad=False)
        return features

    def forward(self, pair: Tensor) -> list[Tensor]:
        """Return the scores at every scale: 1 for a real pair, 0 for an attacked image."""
        return [layers[-1] for layers in self.features(pair)]


class _Merge(nn.Module):
    """Brings coarse features up to finer ones and adds the two."""

    def __init__(self, coarse: int, fine: int, out: int) -> None:
        super().__init__()
        self.aside = nn.Sequential(
            *_normed(nn.Conv2d(fine, coarse, 1, bias=False)), nn.LeakyReLU(0.2)
        )
        self.out = nn.Sequential(
            *_normed(nn.Conv2d(coarse, out, 3, padding=1, bias=False)), nn.LeakyReLU(0.2)
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        up = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
        return cast(Tensor, self.out(self.aside(fine) + up))


class MaskHead(nn.Module):
    """From the features of a :class:`Discriminator` to a logit for every pixel, (N, 1, H, W).

    Args:
        width: That of the discriminator.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.merge = nn.ModuleList(
            _Merge(coarse * width, fine * width, out * width)
            for coarse, fine, out in ((8, 8, 8), (8, 8, 4), (4, 2, 2))
        )
        up: list[nn.Module] = []
        for _ in range(2):
            deconvolution = nn.ConvTranspose2d(2 * width, 2 * width, 2, stride=2)
            up += [spectral_norm(deconvolution), nn.LeakyReLU(0.2)]
        self.up = nn.Sequential(*up, nn.Conv2d(2 * width, 1, 1))

    def forward(self, features: list[list[Tensor]]) -> Tensor:
        """Return the logits of what :meth:`Discriminator.features` gave."""
        x = features[2][3]
        finer = (features[1][3], features[0][3], features[0][1])
        for merge, fine in zip(self.merge, finer, strict=True):
            x = merge(x, fine)
        return cast(Tensor, self.up(x))


def top_k_mask(logits: Tensor, k: int, *, noise: bool) -> Tensor:
    """Return which k of the logits are the highest; its gradient is the softmax's.

    Args:
        logits: (N, P).
        k: How many ones each row gets.
        noise: Add Gumbel noise first, so that the k are drawn and not taken (torch's global
            generator).

    Returns:
        (N, P), exactly 0 and 1.

    Example:
        >>> top_k_mask(torch.tensor([[0.5, 2.0, 1.0]]), 2, noise=False)
        tensor([[0., 1., 1.]])
    """
    if noise:
        logits = logits - torch.empty_like(logits).exponential_().log()
    soft = logits.softmax(1)
    hard = torch.zeros_like(soft).scatter(1, logits.topk(k, dim=1).indices, 1.0)
    # The difference is zero to the last bit, unlike (hard − soft) + soft.
    return hard + (soft - soft.detach())
