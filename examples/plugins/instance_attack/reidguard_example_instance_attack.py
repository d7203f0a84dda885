"""An attack that optimises each image on a target model, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from reidguard import Budget, InstanceAttack
from reidguard.attacks import Target
from reidguard.objectives import normalized_features


class TrialsAttack(InstanceAttack):
    """Tries random patterns, and keeps for each image the one that moves its feature furthest.

    Args:
        budget: The L∞ ball around every image.
        trials: Patterns for each image; each takes one forward pass.
        seed: Fixes the patterns.
    """

    def __init__(self, budget: Budget | None = None, trials: int = 8, seed: int = 0) -> None:
        super().__init__(budget)
        self.trials, self.seed = trials, seed

    @torch.no_grad()
    def search(self, x: Tensor, clean: Tensor, target: Target) -> Tensor:
        """Return the best of the patterns; the base class projects it into the budget."""
        best, furthest = x, torch.zeros(len(x)).to(x)
        for trial in range(self.trials):
            # Draws depend on the seed and the image alone, not on its place in the batch.
            signs = 2 * self.uniform(x, f"trial {trial}", tuple(x.shape[1:])).round() - 1
            images = self.budget.project(x + self.budget.eps * signs, x)
            moved = ((normalized_features(target.model, images) - clean) ** 2).sum(1)
            further = moved > furthest
            best = torch.where(further[:, None, None, None], images, best)
            furthest = torch.where(further, moved, furthest)
        return best
