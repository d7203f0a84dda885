"""The perturbations of free adversarial training, which are state of the training itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reidguard.defenses.crafting import ShardedAttack
from reidguard.distributed import gather
from reidguard.errors import InputError
from reidguard.types import BatchShard, Budget

__all__ = ["FreePerturbation"]


class FreePerturbation(ShardedAttack):
    """One perturbation for each place of a batch, moved by the gradients of the training itself.

    After each backward pass of the training, ``δ ← clip(δ + ε sign ∇_x L, −ε, ε)`` (Shafahi et al.,
    NeurIPS 2019). The perturbations start at zero and are never reset: those of one batch are where
    the next one starts. It is used by :class:`~reidguard.defenses.FreeTraining` alone. If several
    processes share a batch, each holds the perturbations of the joint one.

    Args:
        budget: The L∞ ball; 8/255 by default.

    Example:
        >>> attack = FreePerturbation(Budget(8 / 255)).start(torch.zeros(1, 3, 2, 2))
        >>> attack.update(torch.ones(1, 3, 2, 2))
        >>> round(255 * float(attack(torch.full((1, 3, 2, 2), 0.5)).max()), 1)
        135.5
    """

    delta: Tensor | None

    def __init__(self, budget: Budget | None = None) -> None:
        super().__init__(budget)
        self.register_buffer("delta", None)

    def start(self, like: Tensor) -> FreePerturbation:
        """Set all perturbations to zero, and return the attack itself.

        Args:
            like: (N, 3, H, W), of the shape and device of the images that are attacked in a batch.
        """
        self.delta = torch.zeros_like(like)
        return self

    def perturb(self, x: Tensor) -> Tensor:
        """Return the images with the perturbations of their places added."""
        delta = self.delta
        if delta is not None and self.shard is not None:
            delta = delta[self.shard.rows.to(delta.device)]
        if delta is None or delta.shape != x.shape:
            raise InputError(
                "FreePerturbation has a perturbation for each image of a training batch, and none "
                "for others: take SMA to attack a model"
            )
        return x + delta.to(x.dtype)

    @torch.no_grad()
    def update(self, gradient: Tensor, shard: BatchShard | None = None) -> None:
        """Move the perturbations along the sign of the loss's gradient by the attacked images.

        Args:
            gradient: (n, 3, H, W), by the images of this process.
            shard: Which of all attacked images these are; then the call is collective.
        """
        assert self.delta is not None
        eps = self.budget.eps
        self.delta.add_(gather(gradient.sign(), shard), alpha=eps).clamp_(-eps, eps)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"eps": self.budget.eps}
