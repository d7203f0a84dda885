"""How visible a perturbation is: PSNR, SSIM and the achieved L∞, per image."""

from __future__ import annotations

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.types import check_images

__all__ = ["achieved_linf", "psnr", "ssim"]

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def _pair(x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    check_images(x_adv)
    check_images(x)
    if x_adv.shape != x.shape:
        raise InputError(
            f"images to compare have shapes {tuple(x_adv.shape)} and {tuple(x.shape)}; "
            "they must be equal"
        )
    wide = torch.float64 if torch.float64 in (x.dtype, x_adv.dtype) else torch.float32
    return x_adv.detach().to(wide), x.detach().to(wide)


def achieved_linf(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return the largest change of any channel of any pixel, (N,), in [0, 1] units.

    Example:
        >>> x = torch.zeros(1, 3, 4, 4)
        >>> y = x.clone()
        >>> y[0, 2, 1, 1] = 0.5
        >>> achieved_linf(y, x)
        tensor([0.5000])
    """
    x_adv, x = _pair(x_adv, x)
    return (x_adv - x).abs().amax((1, 2, 3))


def psnr(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, (N,): ``-10 log10(mean squared error)``.

    Identical images have infinite PSNR.

    Example:
        >>> x = torch.zeros(1, 3, 4, 4)
        >>> psnr(x + 0.1, x)
        tensor([20.])
    """
    x_adv, x = _pair(x_adv, x)
    return -10 * (x_adv - x).square().mean((1, 2, 3)).log10()


def ssim(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return the structural similarity, (N,), averaged over positions and RGB channels.

    Wang et al. 2004: Gaussian window 11×11 with σ = 1.5, K1 = 0.01, K2 = 0.03, data range 1, only
    positions where the window lies inside the image.

    Raises:
        InputError: If the images are smaller than the window.

    Example:
        >>> x = torch.rand(2, 3, 32, 16)
        >>> ssim(x, x)
        tensor([1., 1.])
    """
    x_adv, x = _pair(x_adv, x)
    if min(x.shape[2:]) < _WINDOW:
        raise InputError(
            f"SSIM looks at windows of {_WINDOW}x{_WINDOW} pixels, the images have "
            f"{x.shape[2]}x{x.shape[3]}; use larger ones"
        )
    step = 4 if x.device.type == "cpu" else max(1, len(x))  # a few images fit a CPU's cache
    parts = [
        _ssim(a, b) for a, b in zip(torch.split(x_adv, step), torch.split(x, step), strict=True)
    ]
    return torch.cat(parts)


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    channels = a.shape[1]
    blurred = _blur(torch.cat([a, b, a * a, b * b, a * b], dim=1))
    mean_a, mean_b, square_a, square_b, product = torch.split(blurred, channels, dim=1)
    mean_aa, mean_bb, mean_ab = mean_a * mean_a, mean_b * mean_b, mean_a * mean_b
    top = (2 * mean_ab + _C1) * (2 * (product - mean_ab) + _C2)
    bottom = (mean_aa + mean_bb + _C1) * (square_a - mean_aa + square_b - mean_bb + _C2)
    similarity: Tensor = (top / bottom).mean((1, 2, 3))
    return similarity


def _blur(maps: Tensor) -> Tensor:
    """Blur with the window, one axis after the other.

    Shifted sums are as fast as a convolution here, and no setting turns them into TF32.
    """
    offsets = [i - _WINDOW // 2 for i in range(_WINDOW)]
    weights = torch.tensor([-(i * i) / (2 * _SIGMA**2) for i in offsets], dtype=torch.float64).exp()
    taps = (weights / weights.sum()).tolist()
    for axis in (2, 3):
        size = maps.shape[axis] - _WINDOW + 1
        total = maps.narrow(axis, 0, size) * taps[0]
        for k in range(1, _WINDOW):
            total.add_(maps.narrow(axis, k, size), alpha=taps[k])
        maps = total
    return maps
