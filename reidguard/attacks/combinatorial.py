"""Colour and delta together (Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from reidguard.attacks.base import register_attack
from reidguard.attacks.color import ColorAttack
from reidguard.attacks.delta import DeltaAttack
from reidguard.attacks.universal import UniversalAttack
from reidguard.types import Budget

__all__ = ["CombinatorialAttack"]


@register_attack("combinatorial")
class CombinatorialAttack(UniversalAttack):
    """``x̃ = f(x) + δ`` (Eq. 4)."""

    def __init__(
        self,
        budget: Budget | None = None,
        resolution: int = 25,
        size: tuple[int, int] = (256, 128),
        stacked: bool = False,
    ) -> None:
        stage = budget if budget is not None else Budget()
        super().__init__(Budget(2 * stage.eps) if stacked else stage)
        self.resolution = resolution
        self.size = size
        self.stacked = stacked
        self.color = ColorAttack(stage, resolution)
        self.delta = DeltaAttack(stage, size)

    def perturb(self, x: Tensor) -> Tensor:
        if self.stacked:
            return self.delta(self.color(x))
        return self.color.perturb(x) + self.delta.resized(*x.shape[2:])

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments; ``eps`` is that of one stage."""
        return {**super().config(), "eps": self.color.budget.eps}

    @torch.no_grad()
    def clip_parameters(self) -> None:
        self.color.clip_parameters()
        self.delta.clip_parameters()
