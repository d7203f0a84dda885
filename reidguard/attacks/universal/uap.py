"""UAP-Retrieval: one perturbation, learned by the losses of image retrieval."""

from __future__ import annotations

import torch
from torch import Tensor

from reidguard.attacks.base import register_attack
from reidguard.attacks.learned import FitDefaults
from reidguard.attacks.universal.delta import DeltaAttack
from reidguard.types import Budget

__all__ = ["UAPRetrieval"]

SATURATED = 0.5  # fraction of values at ±ε above which a δ that stands still is halved
STILL = 1e-5  # largest change of that fraction in an epoch of a δ that stands still


@register_attack("uap")
class UAPRetrieval(DeltaAttack):
    """UAP-Retrieval (Li et al., ICCV 2019): δ learned from centroids, with momentum 1.

    The perturbation is :class:`DeltaAttack`'s. Only :meth:`fit` differs: by default it minimises
    the loss "pairwise" ("labelwise" and "listwise" are the other two of the paper, "self_metric"
    makes it the row "UAP w/ SMA"), and with momentum 1. Once an epoch a saturated δ is halved, so
    that signs can change again: when more than half of its values are at ±ε and that fraction has
    moved by less than 1e-5 since the epoch before.

    Args:
        budget: The ball; 8/255 by default.
        size: Height and width of δ in pixels.
        basis: Of δ, as for :class:`DeltaAttack`.
        grid: Rows and columns of coefficients, for the other bases.

    Example:
        >>> attack = UAPRetrieval(Budget(8 / 255), size=(4, 2))
        >>> attack.fit_defaults.objective, attack.fit_defaults.momentum
        ('pairwise', 1.0)
        >>> _ = attack.delta.data.fill_(1.0)
        >>> for _ in range(2):  # saturated, and twice the same
        ...     attack.clip_parameters()
        ...     attack.start_epoch()
        >>> round(float(attack.delta.detach().max()) * 255, 3)
        4.0
    """

    fit_defaults = FitDefaults(momentum=1.0, objective="pairwise")

    saturation: Tensor
    """Fraction of δ that was at ±ε when the newest epoch began."""

    def __init__(
        self,
        budget: Budget | None = None,
        size: tuple[int, int] = (256, 128),
        basis: str = "pixels",
        grid: tuple[int, int] = (16, 8),
    ) -> None:
        super().__init__(budget, size, basis, grid)
        # A buffer, so that it is saved in checkpoints.
        self.register_buffer("saturation", torch.zeros(()))

    @torch.no_grad()
    def start_epoch(self) -> None:
        """Halve δ if it is saturated and stands still."""
        fraction = (self.delta.abs() >= self.bound).to(self.saturation.dtype).mean()
        still = (fraction - self.saturation).abs() < STILL
        self.delta.mul_(torch.where((fraction > SATURATED) & still, 0.5, 1.0))
        self.saturation.copy_(fraction)
