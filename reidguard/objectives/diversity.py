"""Input diversity (Xie et al., CVPR 2019): random shrinking and shifting of adversarial images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["diverse"]


def diverse(images: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Shrink some images to 0.9 to 1 of their size and shift them at random on a black background.

    Args:
        images: (N, 3, H, W).
        draws: (N, 4) in [0, 1): whether an image is chosen, how far it is shrunk, and where it is
            shifted, across and down.
        probability: With which an image is chosen.

    Returns:
        (N, 3, H, W), with a gradient to ``images``.
    """
    coin, size, right, down = draws.unbind(1)
    scale = torch.where(coin < probability, 0.9 + 0.1 * size, 1.0)
    room = (1 - scale) / scale
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, 0, 2] = (2 * right - 1) * room
    theta[:, 1, 2] = (2 * down - 1) * room
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
