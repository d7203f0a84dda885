"""The paper's misranking triplet (Eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.objectives.base import ATTACK_LOSSES, AttackLoss
from reidguard.schema import checked

__all__ = ["MisrankingTriplet", "row_distance"]


@ATTACK_LOSSES.register("misranking")
@dataclass(eq=False)
class MisrankingTriplet(AttackLoss):
    """Pull each adversarial feature to its furthest negative, push it from its furthest positive.

    Eq. 5, averaged over the batch as in Eq. 6: with x_n the clean image of another identity that
    is furthest from the clean x, and x_p the clean image of the same identity that is furthest,
    ``L = mean(max(0, ‖φ(x_n) − φ(x̃)‖₂ − ‖φ(x_p) − φ(x̃)‖₂ + margin))``.

    Args:
        margin: m of Eq. 5; the paper uses 0.5.

    Example:
        >>> features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
        >>> loss = MisrankingTriplet(margin=0.5)
        >>> float(loss(features, features, torch.tensor([0, 0, 1])))  # (3.5 + 2.5 + 4.5) / 3
        3.5
    """

    margin: float = 0.5

    def __post_init__(self) -> None:
        self.margin = checked(float, "margin", self.margin, low=0, high=1e6)

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean loss; see :class:`AttackLoss` for the arguments.

        Raises:
            InputError: If the batch shows one identity only, so that there is no negative.
        """
        same = pids[:, None] == pids[None, :]
        if pids.device.type == "cpu" and bool(same.all()):
            raise InputError("a batch needs at least two identities for its negatives")
        clean = clean.detach()
        # Only the order matters here, so squared distances up to |x|² do.
        squared = (clean * clean).sum(1)
        order = squared[None, :] - 2 * clean @ clean.T
        negative = order.masked_fill(same, -torch.inf).argmax(1)
        positive = order.masked_fill(~same, -torch.inf).argmax(1)
        pull = row_distance(adversarial, clean[negative])
        push = row_distance(adversarial, clean[positive])
        return (pull - push + self.margin).clamp(min=0).mean()


def row_distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance along the last axis whose gradient at distance zero is zero, not NaN."""
    squared = ((a - b) ** 2).sum(-1)
    zero = squared == 0
    return torch.where(zero, 1.0, squared).sqrt().masked_fill(zero, 0.0)
