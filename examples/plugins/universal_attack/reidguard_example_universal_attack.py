"""An attack that learns one colour."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reidguard import Budget, UniversalAttack


class TintAttack(UniversalAttack):
    """Adds one colour to the whole of every image.

    Args:
        budget: The L∞ ball around every image.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        super().__init__(budget)
        self.tint = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def perturb(self, x: Tensor) -> Tensor:
        """Return any values: the base class projects them into the budget."""
        return x + self.tint.to(x.dtype)

    @torch.no_grad()
    def clip_parameters(self) -> None:
        """Bring the colour back into the budget after each step."""
        self.tint.clamp_(-self.budget.eps, self.budget.eps)
