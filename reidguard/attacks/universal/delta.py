"""The additive attack: one learned perturbation for all images (Eq. 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.attacks.base import register_attack
from reidguard.attacks.universal.base import UniversalAttack
from reidguard.schema import MAX_SIDE, checked
from reidguard.types import Budget

__all__ = ["DeltaAttack"]


@register_attack("delta")
class DeltaAttack(UniversalAttack):
    """Adds the same δ to every image: ``x̃ = x + δ`` (Eq. 1).

    δ is resized bilinearly to images of another size. The gradient through the clip to [0, 1] is
    the true one: zero where a pixel is clipped.

    Args:
        budget: The ball; 8/255 by default.
        size: Height and width of δ in pixels.

    Example:
        >>> attack = DeltaAttack(Budget(8 / 255), size=(4, 2))
        >>> _ = attack.delta.data.fill_(1.0)  # hostile: far outside the budget
        >>> x = torch.full((1, 3, 8, 4), 0.5)
        >>> round(float((attack(x) - x).detach().max()) * 255, 3)
        8.0
    """

    delta: nn.Parameter
    """(1, 3, H, W): what is added, in [0, 1] pixel units."""

    def __init__(self, budget: Budget | None = None, size: tuple[int, int] = (256, 128)) -> None:
        super().__init__(budget)
        self.size = checked(tuple[int, int], "size", size, low=1, high=MAX_SIDE)
        self.delta = nn.Parameter(torch.zeros(1, 3, *self.size))

    def resized(self, height: int, width: int) -> Tensor:
        """Return δ resized to (1, 3, height, width)."""
        if (height, width) == self.size:
            return self.delta
        return F.interpolate(self.delta, (height, width), mode="bilinear", align_corners=True)

    def perturb(self, x: Tensor) -> Tensor:
        """Return x + δ, computed in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.to(wide) + self.resized(x.shape[2], x.shape[3]).to(wide)

    @torch.no_grad()
    def clip_parameters(self) -> None:
        """Clamp δ to ±ε."""
        self.delta.clamp_(-self.budget.eps, self.budget.eps)
