"""How visible a perturbation is: PSNR, SSIM, MS-SSIM and the achieved L∞, per image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.metrics.similarity import scales_of, similarity, weigh_scales
from reidguard.types import check_images

__all__ = ["achieved_linf", "ms_ssim", "psnr", "ssim"]


def pair_of(x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as float32, or float64 where one is, if they may be compared."""
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
    x_adv, x = pair_of(x_adv, x)
    return (x_adv - x).abs().amax((1, 2, 3))


def psnr(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, (N,): ``-10 log10(mean squared error)``.

    Identical images have infinite PSNR.

    Example:
        >>> x = torch.zeros(1, 3, 4, 4)
        >>> psnr(x + 0.1, x)
        tensor([20.])
    """
    x_adv, x = pair_of(x_adv, x)
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
    return torch.cat([similarity(*next(scales_of(*part)))[0] for part in _parts(x_adv, x)])


def ms_ssim(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return the multi-scale structural similarity, (N,).

    Wang et al. 2003, of five scales those at which the window of :func:`ssim` fits (four for
    256x128 images), with their weights divided by their sum.

    Raises:
        InputError: If the images are smaller than the window.

    Example:
        >>> x = torch.rand(2, 3, 32, 16)
        >>> ms_ssim(x, x)
        tensor([1., 1.])
    """
    return ssim_and_ms_ssim(x_adv, x)[1]


def ssim_and_ms_ssim(x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both, for the work of one."""
    fine, all_scales = [], []
    for part in _parts(x_adv, x):
        found = [similarity(*scale) for scale in scales_of(*part)]
        fine.append(found[0][0])
        all_scales.append(weigh_scales(found))
    return torch.cat(fine), torch.cat(all_scales)


def _parts(x_adv: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    x_adv, x = pair_of(x_adv, x)
    step = 2 if x.device.type == "cpu" else max(1, len(x))  # two images fit a CPU's cache
    yield from zip(torch.split(x_adv, step), torch.split(x, step), strict=True)
