"""Square Attack: a black-box attack that needs only features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reidguard.attacks.base import register_attack
from reidguard.attacks.instance.base import InstanceAttack, Objective, Target, squared_distance
from reidguard.objectives import normalized_features
from reidguard.schema import MAX_SEED, MAX_STEPS, checked
from reidguard.types import Budget

__all__ = ["SquareAttack"]

# Steps, of 10,000, after which the squares' area is halved (Andriushchenko et al., 2020).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@register_attack("square")
class SquareAttack(InstanceAttack):
    """Random search with squares of ±ε that keeps those that raise a score; uses no gradient.

    Square Attack (Andriushchenko et al., 2020) on a retrieval score. It starts with vertical
    stripes of ±ε per channel. Each step sets a square at a random place to +ε or −ε per channel,
    and keeps it where the score rises. The side shrinks on the schedule of the paper.

    Bound without guides, the score is the self-metric's ``|φ(x̃) − φ(x)|²``. Bound with guides, it
    is the margin that decides rank-1: the squared distance to the nearest guide of the own
    identity, less that to the nearest guide of any other (distractors included).

    Cost in passes of the target model, per image: ``steps + 2`` forward (clean, stripes, steps),
    none backward.

    Args:
        budget: The L∞ ball; 8/255 by default.
        steps: Squares tried.
        area: Fraction of the image that the first squares cover. Large ones do best on features
            (see the page on instance attacks); a side never exceeds the image's shorter one.
        seed: Fixes stripes, places and signs.

    Example:
        >>> import torch
        >>> from reidguard.attacks import Guides
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import Budget, InputSpec
        >>> model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(8, 4)))
        >>> x = torch.rand(4, 3, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> attack = SquareAttack(Budget(8 / 255), steps=5).bind(model)
        >>> round(255 * float((attack(x) - x).abs().max()))
        8
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        steps: int = 1000,
        area: float = 0.8,
        seed: int = 0,
    ) -> None:
        super().__init__(budget)
        self.steps = checked(int, "steps", steps, low=1, high=MAX_STEPS)
        self.area = checked(float, "area", area, above=0, high=1)
        self.seed = checked(int, "seed", seed, low=0, high=MAX_SEED)

    @torch.no_grad()
    def search(self, x: Tensor, clean: Tensor, target: Target) -> Tensor:
        """Try squares one after another, on all images in parallel."""
        height, width = x.shape[2:]
        score = _score(clean, target)
        stripes = self._signs(self.uniform(x, "stripes", (3, 1, width)))
        best = (x + stripes).clamp(0, 1)
        best_value = score(normalized_features(target.model, best))
        draws = self.uniform(x, "squares", (self.steps, 5))
        rows = torch.arange(height, device=x.device)[:, None]
        columns = torch.arange(width, device=x.device)[None, :]
        for step in range(self.steps):
            side = self._side(step, height, width)
            top = (draws[:, step, 0] * (height - side + 1)).floor()[:, None, None]
            left = (draws[:, step, 1] * (width - side + 1)).floor()[:, None, None]
            inside = (rows >= top) & (rows < top + side) & (columns >= left)
            inside = (inside & (columns < left + side))[:, None]
            signs = self._signs(draws[:, step, 2:, None, None])
            tried = torch.where(inside, (x + signs).clamp(0, 1), best)
            value = score(normalized_features(target.model, tried))
            better = value > best_value
            best = torch.where(better[:, None, None, None], tried, best)
            best_value = torch.where(better, value, best_value)
        return best

    def _side(self, step: int, height: int, width: int) -> int:
        halvings = sum(10_000 * step > mark * self.steps for mark in _HALVINGS)
        side = round(math.sqrt(self.area / 2**halvings * height * width))
        return max(1, min(side, height, width))

    def _signs(self, uniform: Tensor) -> Tensor:
        return torch.where(uniform < 0.5, -self.budget.eps, self.budget.eps).to(uniform.dtype)


def _score(clean: Tensor, target: Target) -> Objective:
    prototypes = target.prototypes
    if prototypes is None:
        return lambda features: squared_distance(features, clean)
    prototypes.need_two("SquareAttack with guides")
    own = target.identities(clean)
    same = prototypes.index == own[:, None]
    alone = ~same.any(1)  # no guide of this identity: the clean feature is used in their place

    places = prototypes.features.to(clean.dtype)

    def margin(features: Tensor) -> Tensor:
        # |f|² is in both distances and cancels.
        distance = prototypes.squares - 2 * features @ places.T
        to_clean = (clean * clean).sum(1) - 2 * (features * clean).sum(1)
        nearest = torch.where(alone, to_clean, distance.masked_fill(~same, torch.inf).amin(1))
        return nearest - distance.masked_fill(same, torch.inf).amin(1)

    return margin
