"""GOAT: adversarial training against guide sampling, an attack by randomly drawn guides."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from reidguard.attacks import Attack, GradientAttack
from reidguard.attacks.instance.base import Objective, Target, squared_distance
from reidguard.defenses.base import DEFENSES
from reidguard.defenses.crafting import AttackMode
from reidguard.defenses.training import AdversarialTraining
from reidguard.schema import checked
from reidguard.types import Budget

__all__ = ["GOAT", "GuideSampling"]


class GuideSampling(GradientAttack):
    """Away from some guides of its own identity, towards one of another (Bouniot et al., 2020).

    Maximises ``mean_p |φ(x̃) − φ(p)|² − |φ(x̃) − φ(n)|²`` by PGD, like
    :class:`~reidguard.attacks.FNA`, over ``push`` guides p of the image's identity and one guide n
    of any other, drawn anew for each image and batch, with replacement. The image itself may be
    among the p.

    Args:
        budget: The L∞ ball; 8/255 by default.
        push: Guides of the own identity.
        steps: Iterations.
        step_size: Length of a step in [0, 1] pixel units.
        seed: Fixes start and guides, with the content of the image.

    Example:
        >>> attack = GuideSampling(push=2, steps=5)
        >>> attack.needs_guides
        True
    """

    needs_guides: ClassVar[bool] = True

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        push: int = 4,
        steps: int = 7,
        step_size: float = 1 / 255,
        seed: int = 0,
    ) -> None:
        super().__init__(budget, steps=steps, step_size=step_size, seed=seed)
        self.push = checked(int, "push", push, low=1, high=10**4)

    def search(self, x: Tensor, clean: Tensor, target: Target) -> Tensor:
        """Draw the guides of each image and run PGD."""
        prototypes = target.prototypes
        assert prototypes is not None
        prototypes.need_two("GuideSampling")
        draws = self.uniform(x, "guides", (self.push + 1,)).to(clean.dtype)
        same = prototypes.index == target.identities(clean)[:, None]
        other = (prototypes.index >= 0) & ~same
        features = prototypes.features.to(clean.dtype)
        # For an identity without guides the clean feature is used in their place.
        own = features[_choose(same, draws[:, :-1])].mean(1)
        self._push = torch.where(same.any(1)[:, None], own, clean)
        self._pull = features[_choose(other, draws[:, -1:])].mean(1)
        try:
            return super().search(x, clean, target)
        finally:
            del self._push, self._pull

    def objective(self, clean: Tensor, target: Target) -> Objective:
        """Return squared distance to the pushing guides, less that to the pulling one."""
        push, pull = self._push, self._pull
        return lambda features: squared_distance(features, push) - squared_distance(features, pull)


def _choose(allowed: Tensor, draws: Tensor) -> Tensor:
    """Return (N, K) columns of an (N, G) mask: the draws in [0, 1) go over the allowed ones."""
    counts = allowed.sum(1, keepdim=True)
    places = (draws * counts).long().clamp(max=(counts - 1).clamp(min=0))
    # Allowed columns first, in their order.
    order = torch.sort(allowed.int(), dim=1, descending=True, stable=True).indices
    return order.gather(1, places)


@DEFENSES.register("goat")
@dataclass(frozen=True, eq=False)
class GOAT(AdversarialTraining):
    """Guide-sampling adversarial training (Bouniot et al., 2020), with ε in pixels.

    Every image of a batch is adversarial: :class:`GuideSampling`, 7 steps
    of 1/255 against guides of the batch, on the model in train mode. ``attack_mode="eval"`` attacks
    what will be tested. See :class:`AdversarialTraining` for the other arguments.

    Example:
        >>> defense = GOAT()
        >>> type(defense.attack).__name__, defense.adversarial
        ('GuideSampling', 1.0)
    """

    attack: Attack = field(default_factory=GuideSampling)
    _: KW_ONLY
    adversarial: float = 1.0
    clean: bool = False
    attack_mode: AttackMode = "train"
