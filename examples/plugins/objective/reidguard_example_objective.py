"""A loss that learned attacks minimise, computed from features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from reidguard import AttackLoss


class OppositeFeatures(AttackLoss):
    """Turns each adversarial feature towards the opposite of its clean one.

    ``L = mean(cos(φ(x̃), φ(x)))``, from -1 (opposite) to 1 (unchanged).
    """

    flat_at_clean = True  # the cosine is greatest there: the first step goes anywhere

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean cosine of (N, D) adversarial and clean features."""
        return F.cosine_similarity(adversarial, clean.detach()).mean()
