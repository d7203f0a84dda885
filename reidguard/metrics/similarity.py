"""How alike two images look, as something to learn from: multi-scale SSIM."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.errors import InputError

__all__ = ["ms_ssim", "scales_of", "similarity", "weigh_scales"]

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of each pair of images (Wang et al., 2003).

    Contrast and structure at every scale, luminance at the coarsest, each to the power of its
    weight. Of the five scales those are used at which the 11×11 window still fits (four for
    256×128 images), and their weights are divided by their sum. Differentiable; a scale of negative
    similarity counts as nearly zero, since it has no power.

    Args:
        a: (N, C, H, W) in [0, 1].
        b: The images to compare with, of the same shape.

    Returns:
        (N,), 1 for equal images.

    Raises:
        InputError: If shapes differ, or a side is below 11 pixels.

    Example:
        >>> x = torch.rand(2, 3, 64, 32)
        >>> ms_ssim(x, x)
        tensor([1., 1.])
    """
    if a.shape != b.shape or a.dim() != 4:
        raise InputError(
            f"ms_ssim compares two (N, C, H, W), not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return weigh_scales([similarity(*pair) for pair in scales_of(a, b)])


def scales_of(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images, then their halves, as long as the window fits and there is a weight.

    Raises:
        InputError: If a side is below 11 pixels.
    """
    if min(a.shape[2:]) < WINDOW:
        raise InputError(
            f"SSIM looks at windows of {WINDOW}x{WINDOW} pixels, the images have "
            f"{a.shape[2]}x{a.shape[3]}; use larger ones"
        )
    for _ in WEIGHTS:
        if min(a.shape[2:]) < WINDOW:
            break
        yield a, b
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)


def weigh_scales(found: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return MS-SSIM (N,) of what :func:`similarity` gave for each scale, the finest first."""
    weights = WEIGHTS[: len(found)]
    result = torch.ones_like(found[0][0])
    for scale, ((whole, structure), weight) in enumerate(zip(found, weights, strict=True), 1):
        part = whole if scale == len(found) else structure
        result = result * part.clamp(min=1e-6) ** (weight / sum(weights))
    return result


def similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return SSIM, and its contrast and structure alone: (N,) means over positions and channels."""
    channels = a.shape[1]
    maps = _blur(torch.cat((a, b, a * a, b * b, a * b), 1))
    mean_a, mean_b, square_a, square_b, product = torch.split(maps, channels, 1)
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
