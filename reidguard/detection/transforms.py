"""Small changes of images through which gradients flow: blur, shift, JPEG compression."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.schema import MAX_SIDE, checked

__all__ = ["blur", "jpeg", "shift"]

# Quantisation of luminance and of colour at quality 50 (ITU-T T.81, tables K.1 and K.2).
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
COLOUR = (
    (17, 18, 24, 47, *[99] * 4),
    (18, 21, 26, 66, *[99] * 4),
    (24, 26, 56, *[99] * 5),
    (47, 66, *[99] * 6),
    *[(99,) * 8] * 4,
)
# RGB to luminance and colour differences (JFIF), the latter about 0.
TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def blur(images: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian that ends at 3 σ; images continue beyond their edges.

    Args:
        images: (N, 3, H, W).
        sigma: Standard deviation in pixels.

    Example:
        >>> float(blur(torch.full((1, 3, 8, 4), 0.25), 1.0).sub(0.25).abs().max()) < 1e-6
        True
    """
    sigma = checked(float, "sigma", sigma, above=0, high=64)
    half = math.ceil(3 * sigma)
    places = torch.arange(-half, half + 1, dtype=images.dtype, device=images.device)
    line = torch.exp(-0.5 * (places / sigma) ** 2)
    line = (line / line.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images, (half, half, half, half), mode="replicate")
    return F.conv2d(F.conv2d(padded, line, groups=3), line.transpose(2, 3), groups=3)


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """Move the content by whole pixels; what enters repeats the edge.

    Args:
        images: (N, 3, H, W).
        down: Pixels downwards; below 0 upwards.
        right: Pixels to the right; below 0 to the left.

    Example:
        >>> row = torch.tensor([0.1, 0.2, 0.3]).expand(1, 3, 2, 3)
        >>> shift(row, 0, 1)[0, 0, 0]
        tensor([0.1000, 0.1000, 0.2000])
    """
    down = checked(int, "down", down, low=-MAX_SIDE, high=MAX_SIDE)
    right = checked(int, "right", right, low=-MAX_SIDE, high=MAX_SIDE)
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp(0, width - 1)
    return images[:, :, rows][:, :, :, columns]


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compress and decompress by JPEG, colours at full resolution.

    Roundings pass gradients as if they did nothing (straight through).

    Args:
        images: (N, 3, H, W) in [0, 1].
        quality: From 1 to 100, as in libjpeg.

    Returns:
        Whole grey levels divided by 255; float32 or wider.

    Example:
        >>> images = torch.rand(1, 3, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> rough, fine = ((jpeg(images, q) - images).abs().mean() for q in (10, 95))
        >>> bool(rough > fine)
        True
    """
    quality = checked(int, "quality", quality, low=1, high=100)
    x = 255 * images.to(torch.promote_types(images.dtype, torch.float32))
    height, width = x.shape[2:]
    x = F.pad(_round(x), (0, -width % 8, 0, -height % 8), mode="replicate")
    x = _round(torch.einsum("ij,njhw->nihw", x.new_tensor(TO_YCC), x))
    x = torch.cat((x[:, :1] - 128, x[:, 1:]), 1)
    n, _, rows, columns = x.shape
    blocks = x.view(n, 3, rows // 8, 8, columns // 8, 8)
    basis = _cosines().to(x)
    table = _tables(quality).to(x).view(1, 3, 1, 8, 1, 8)
    waves = torch.einsum("ai,nchiwj,bj->nchawb", basis, blocks, basis)
    waves = _round(waves / table) * table
    x = torch.einsum("ai,nchawb,bj->nchiwj", basis, waves, basis).reshape(n, 3, rows, columns)
    x = torch.cat((x[:, :1] + 128, x[:, 1:]), 1)
    x = torch.einsum("ij,njhw->nihw", x.new_tensor(TO_RGB), _round(x))
    return _round(x).clamp(0, 255)[:, :, :height, :width] / 255


def _round(x: Tensor) -> Tensor:
    """Round, with the gradient of the identity."""
    return x + (x.round() - x).detach()


def _cosines() -> Tensor:
    """Return the orthonormal (8, 8) matrix of the discrete cosine transform."""
    places = torch.arange(8, dtype=torch.float64)
    basis = torch.cos(math.pi / 8 * torch.outer(places, places + 0.5)) / 2
    basis[0] /= math.sqrt(2)
    return basis


def _tables(quality: int) -> Tensor:
    """Return the (3, 8, 8) steps of quantisation, scaled as libjpeg does."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor([LUMINANCE, COLOUR, COLOUR], dtype=torch.int64)
    return ((base * scale + 50) // 100).clamp(1, 255).double()
