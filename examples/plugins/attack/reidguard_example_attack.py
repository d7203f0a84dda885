"""An attack that learns nothing and uses no model: the same noise for every image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard import Attack, Budget


class NoiseAttack(Attack):
    """Adds squares of noise that a seed fixes.

    Args:
        budget: The L∞ ball around every image.
        square: Side of the squares, in pixels.
        seed: Fixes the noise.
    """

    def __init__(self, budget: Budget | None = None, square: int = 4, seed: int = 0) -> None:
        super().__init__(budget)
        self.square, self.seed = square, seed  # under the arguments' names: a file remembers them

    def perturb(self, x: Tensor) -> Tensor:
        """Return any values: the base class projects them into the budget."""
        height, width = x.shape[-2:]
        rows, columns = -(-height // self.square), -(-width // self.square)
        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randn(1, 3, rows, columns, generator=generator).sign()
        noise = F.interpolate(signs, scale_factor=self.square)[..., :height, :width]
        return x + self.budget.eps * noise.to(x)
