"""Attacks that need only the image's own clean feature: SMA and ODFA."""

from __future__ import annotations

from torch import Tensor

from reidguard.attacks.base import register_attack
from reidguard.attacks.instance.base import Objective, Target, squared_distance
from reidguard.attacks.instance.pgd import GradientAttack

__all__ = ["ODFA", "SMA"]


@register_attack("sma")
class SMA(GradientAttack):
    """Self-metric attack: away from the image's own clean feature.

    Maximises ``|φ(x̃) − φ(x)|²`` by PGD (Bouniot et al., 2020), between features as the target model
    compares them: on the unit sphere if its metric is cosine. It starts at random, since the
    gradient at the image itself is zero. Arguments and cost are :class:`GradientAttack`'s; by
    default 15 steps of 1/255, that is 16 forward and 15 backward passes.

    Example:
        >>> import torch
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=None))
        >>> x = torch.full((1, 3, 8, 4), 0.5)
        >>> x_adv = SMA(restarts=2).bind(model)(x)
        >>> round(float((x_adv - x).abs().max()) * 255, 3)
        8.0
    """

    def objective(self, clean: Tensor, target: Target) -> Objective:
        """Return the squared distance to the clean features."""
        return lambda features: squared_distance(features, clean)


@register_attack("odfa")
class ODFA(GradientAttack):
    """Opposite-direction feature attack: towards the negative of the clean feature.

    Minimises ``|φ(x̃) + φ(x)|²`` (Zheng et al., 2018), between features as the target model compares
    them. The released code has the sign reversed; this is the paper's. It starts at random: with
    the cosine metric the gradient at the image itself is zero, as φ(x) is the feature furthest
    from −φ(x). Arguments and cost are :class:`GradientAttack`'s; by default 15 steps of 1/255.

    Example:
        >>> import torch
        >>> from reidguard.attacks import Guides
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import Budget, InputSpec
        >>> model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(8, 4)))
        >>> x = torch.rand(4, 3, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> attack = ODFA(Budget(8 / 255)).bind(model)
        >>> round(255 * float((attack(x) - x).abs().max()))
        8
    """

    def objective(self, clean: Tensor, target: Target) -> Objective:
        """Return minus the squared distance to the opposite features."""
        return lambda features: -squared_distance(features, -clean)
