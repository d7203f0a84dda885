"""The self-metric loss: away from the own clean feature, without labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from reidguard.objectives.base import ATTACK_LOSSES, AttackLoss

__all__ = ["SelfMetricLoss"]


@ATTACK_LOSSES.register("self_metric")
class SelfMetricLoss(AttackLoss):
    """Mean cosine similarity of adversarial and clean features: "UAP w/ SMA" of Table 5.

    ``L = mean(cos(φ(x̃), φ(x)))``. Needs no labels. Its gradient is zero at the clean image, so
    ``fit`` takes one random step first.

    Example:
        >>> import torch
        >>> right, up = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> float(SelfMetricLoss()(up, right, torch.tensor([0])))
        0.0
    """

    flat_at_clean = True

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean similarity; labels are not used. See :class:`AttackLoss`."""
        return F.cosine_similarity(adversarial, clean.detach()).mean()
