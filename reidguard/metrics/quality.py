"""Image quality per image: PSNR, SSIM, MS-SSIM and the achieved L∞."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.errors import InputError
from reidguard.types import check_images

__all__ = ["achieved_linf", "ms_ssim", "psnr", "ssim"]

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def pair_of(x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as float32, or as float64 if one is.

    Raises:
        InputError: If they are no images, or of different shapes.
    """
    check_images(x_adv)
    check_images(x)
    if x_adv.shape != x.shape:
        raise InputError(
            f"images to compare have shapes {tuple(x_adv.shape)} and {tuple(x.shape)}; "
            "they must be equal"
        )
    wide = torch.float64 if torch.float64 in (x.dtype, x_adv.dtype) else torch.float32
    return x_adv.to(wide), x.to(wide)


@torch.no_grad()
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


@torch.no_grad()
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


@torch.no_grad()
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
    return torch.cat([_ssim(*next(_scales(*pair)))[0] for pair in _chunks(x_adv, x)])


def ms_ssim(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return the multi-scale structural similarity, (N,) (Wang et al., 2003).

    Contrast and structure at every scale, luminance at the coarsest, each to the power of its
    weight. Of the five scales those are used at which the window of :func:`ssim` still fits (four
    for 256×128 images), and their weights are divided by their sum. Differentiable, unlike the
    other measures; a negative similarity at a scale counts as nearly zero, since it has no power.

    Raises:
        InputError: If the images are smaller than the window.

    Example:
        >>> x = torch.rand(2, 3, 32, 16)
        >>> ms_ssim(x, x)
        tensor([1., 1.])
    """
    return _combine([_ssim(*scale) for scale in _scales(*pair_of(x_adv, x))])


@torch.no_grad()
def ssim_and_ms_ssim(x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both (N,), at the cost of the second."""
    fine, multi_scale = [], []
    for pair in _chunks(x_adv, x):
        similarities = [_ssim(*scale) for scale in _scales(*pair)]
        fine.append(similarities[0][0])
        multi_scale.append(_combine(similarities))
    return torch.cat(fine), torch.cat(multi_scale)


def _chunks(x_adv: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    x_adv, x = pair_of(x_adv, x)
    step = 2 if x.device.type == "cpu" else max(1, len(x))  # two images fit a CPU's cache
    yield from zip(torch.split(x_adv, step), torch.split(x, step), strict=True)


def _scales(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images, then their halves, as long as the window fits and there is a weight."""
    if min(a.shape[2:]) < WINDOW:
        raise InputError(
            f"SSIM looks at windows of {WINDOW}x{WINDOW} pixels, the images have "
            f"{a.shape[2]}x{a.shape[3]}; use larger ones"
        )
    for _ in SCALE_WEIGHTS:
        if min(a.shape[2:]) < WINDOW:
            break
        yield a, b
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)


def _combine(similarities: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return MS-SSIM (N,) of the result of :func:`_ssim` at each scale, the finest first."""
    weights = SCALE_WEIGHTS[: len(similarities)]
    product = torch.ones_like(similarities[0][0])
    for scale, ((full, structure), weight) in enumerate(zip(similarities, weights, strict=True), 1):
        factor = full if scale == len(similarities) else structure
        product = product * factor.clamp(min=1e-6) ** (weight / sum(weights))
    return product


def _ssim(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return SSIM, and its contrast and structure alone: (N,) means over positions and channels."""
    maps = _blur(torch.cat((a, b, a * a, b * b, a * b), 1))
    mean_a, mean_b, square_a, square_b, product = torch.split(maps, a.shape[1], 1)
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a**2 + square_b - mean_b**2
    structure = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return (luminance * structure).mean((1, 2, 3)), structure.mean((1, 2, 3))


def _blur(maps: Tensor) -> Tensor:
    """Blur with the window, one axis after the other, only where it lies inside the image.

    Shifted sums are faster than convolutions here, and no setting turns them into TF32.
    """
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = (-(offsets**2) / (2 * SIGMA**2)).exp()
    taps = (weights / weights.sum()).tolist()
    for axis in (2, 3):
        size = maps.shape[axis] - WINDOW + 1
        total = maps.narrow(axis, 0, size) * taps[0]
        for k in range(1, WINDOW):
            total = total.add_(maps.narrow(axis, k, size), alpha=taps[k])
        maps = total
    return maps
