"""The additive attack: one learned perturbation for all images (Eq. 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.attacks.base import register_attack
from reidguard.attacks.universal.base import UniversalAttack
from reidguard.attacks.universal.bases import bound, check_basis, expand
from reidguard.schema import MAX_SIDE, checked
from reidguard.types import Budget

__all__ = ["DeltaAttack"]


@register_attack("delta")
class DeltaAttack(UniversalAttack):
    """Adds the same δ to every image: ``x̃ = x + δ`` (Eq. 1).

    δ is resized bilinearly to images of another size. The gradient through the clip to the ball
    and to [0, 1] is the true one: zero where a pixel is clipped.

    In place of its pixels, δ may be given by few coefficients, which suit other networks better
    (see ``docs/universal_attacks.rst``): constant blocks, bilinear interpolation between nodes, or
    the lowest frequencies of the discrete cosine transform. They make a δ of the images' own size.

    Args:
        budget: The ball; 8/255 by default.
        size: Height and width of δ in pixels, for the basis "pixels".
        basis: "pixels", "blocks", "bilinear" or "dct".
        grid: Rows and columns of coefficients, for the other bases.

    Raises:
        InputError: If an option has a wrong value.

    Example:
        >>> attack = DeltaAttack(Budget(8 / 255), size=(4, 2))
        >>> _ = attack.delta.data.fill_(1.0)  # hostile: far outside the budget
        >>> x = torch.full((1, 3, 8, 4), 0.5)
        >>> round(float((attack(x) - x).detach().max()) * 255, 3)
        8.0
        >>> DeltaAttack(basis="blocks", grid=(16, 8)).delta.shape
        torch.Size([1, 3, 16, 8])
    """

    delta: nn.Parameter
    """(1, 3, H, W): what is added, in [0, 1] pixel units; or (1, 3, rows, columns) coefficients."""

    def __init__(
        self,
        budget: Budget | None = None,
        size: tuple[int, int] = (256, 128),
        basis: str = "pixels",
        grid: tuple[int, int] = (16, 8),
    ) -> None:
        super().__init__(budget)
        self.size = checked(tuple[int, int], "size", size, low=1, high=MAX_SIDE)
        self.basis = check_basis(basis)
        self.grid = checked(tuple[int, int], "grid", grid, low=1, high=MAX_SIDE)
        shape = self.size if basis == "pixels" else self.grid
        self.delta = nn.Parameter(torch.zeros(1, 3, *shape))

    @property
    def bound(self) -> float:
        """Largest value of a coefficient; of pixels, blocks and bilinear nodes it is ε."""
        return bound(self.basis, self.grid, self.budget.eps)

    def resized(self, height: int, width: int) -> Tensor:
        """Return δ for images of this size, (1, 3, height, width); cosines may add up beyond ±ε."""
        if self.basis != "pixels":
            return expand(self.delta, self.basis, height, width)
        if (height, width) == self.size:
            return self.delta
        return F.interpolate(self.delta, (height, width), mode="bilinear", align_corners=True)

    def perturb(self, x: Tensor) -> Tensor:
        """Return x + δ, computed in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.to(wide) + self.resized(x.shape[2], x.shape[3]).to(wide)

    @torch.no_grad()
    def clip_parameters(self) -> None:
        """Clamp δ, or its coefficients, to their bound."""
        self.delta.clamp_(-self.bound, self.bound)
