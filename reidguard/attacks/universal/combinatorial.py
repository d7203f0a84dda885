"""Colour and delta together (Eq. 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reidguard.attacks.base import budget_or_default, register_attack
from reidguard.attacks.universal.base import UniversalAttack
from reidguard.attacks.universal.color import ColorAttack
from reidguard.attacks.universal.delta import DeltaAttack
from reidguard.schema import checked
from reidguard.types import Budget, check_images

__all__ = ["CombinatorialAttack"]


@register_attack("combinatorial")
class CombinatorialAttack(UniversalAttack):
    """Recolours an image and then adds δ: ``x̃ = f(x) + δ`` (Eq. 4).

    Joint (the default) bounds the whole by one ε, as the paper says: each stage may use all of
    it, and their sum is clipped to the ball. The gradient through that clip is the true one: a
    pixel beyond the ball moves neither stage, so each learns where the other leaves room. (A
    straight-through gradient is weaker; see ``docs/departures.rst``.)

    Stacked is what the paper's released code does: each stage may use all of ε, so that the result
    may be 2ε from the image, and ``budget`` is 2ε. Compare it only with others at that budget.

    Args:
        budget: The ball: of the whole when joint, of each stage when stacked.
        resolution: Nodes along each axis of the colour grid; 1 is a tint.
        size: Height and width of δ in pixels.
        stacked: Give each stage the whole of ``budget``.
        basis: Of δ: "pixels", "blocks", "bilinear" or "dct", as for :class:`DeltaAttack`.
        grid: Rows and columns of δ's coefficients, for the other bases.

    Example:
        >>> CombinatorialAttack(Budget(8 / 255)).budget.levels
        8
        >>> CombinatorialAttack(Budget(8 / 255), stacked=True).budget.levels
        16
    """

    def __init__(
        self,
        budget: Budget | None = None,
        resolution: int = 25,
        size: tuple[int, int] = (256, 128),
        stacked: bool = False,
        basis: str = "pixels",
        grid: tuple[int, int] = (16, 8),
    ) -> None:
        stage = budget_or_default(budget)
        super().__init__(Budget(min(2 * stage.eps, 1.0)) if stacked else stage)
        self.stacked = checked(bool, "stacked", stacked)
        self.color = ColorAttack(stage, resolution)
        self.delta = DeltaAttack(stage, size, basis, grid)
        self.resolution, self.size = self.color.resolution, self.delta.size
        self.basis, self.grid = self.delta.basis, self.delta.grid

    def perturb(self, x: Tensor) -> Tensor:
        """Return f(x) + δ; stacked, each stage is projected by itself."""
        if self.stacked:
            stacked: Tensor = self.delta(self.color(x))
            return stacked
        return self.color.perturb(x) + self.delta.resized(x.shape[2], x.shape[3])

    def stage_sizes(self, x: Tensor) -> tuple[float, float]:
        """Return how much each stage does: means of ``|f(x) − x|`` and ``|δ|``, in [0, 1] units.

        Args:
            x: (N, 3, H, W) images in [0, 1].
        """
        check_images(x)
        with torch.no_grad():
            recoloured = (self.color(x) - x).abs().mean()
            added = self.delta.resized(x.shape[2], x.shape[3]).abs().mean()
        return float(recoloured), float(added)

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments; ``eps`` is that of one stage."""
        return {**super().config(), "eps": self.color.budget.eps}

    @torch.no_grad()
    def clip_parameters(self) -> None:
        """Keep each stage within its own ball."""
        self.color.clip_parameters()
        self.delta.clip_parameters()
