"""Attacks that need guides: FNA and the metric FGSM family."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from reidguard.attacks.base import budget_or_default, register_attack
from reidguard.attacks.instance.base import Objective, Target, squared_distance
from reidguard.attacks.instance.pgd import GradientAttack
from reidguard.schema import checked
from reidguard.types import Budget

__all__ = ["FNA", "MetricFGSM", "MetricIFGSM", "MetricMIFGSM"]


@register_attack("fna")
class FNA(GradientAttack):
    """Furthest-negative attack: away from the own identity, towards the furthest one.

    Maximises ``mean_p |φ(x̃) − φ(p)|² − |φ(x̃) − mean_n φ(n)|²`` by PGD (Bouniot et al., 2020),
    where p are the guides of the image's identity and n those of the identity whose mean feature
    is furthest from the clean φ(x). Push and pull weigh the same, however many guides there are.
    Features are those that the target model compares: on the unit sphere if its metric is cosine.

    The image's identity is given by :meth:`with_labels`, else that of its nearest guide. Arguments
    and cost are :class:`GradientAttack`'s; by default 15 steps of 1/255. The guides cost nothing
    in the loop, whose means are taken once.

    Example:
        >>> import torch
        >>> from reidguard.attacks import Guides
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import Budget, InputSpec
        >>> model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(8, 4)))
        >>> x = torch.rand(4, 3, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> attack = FNA(Budget(8 / 255)).bind(model, Guides(model.features(x), [1, 1, 2, 2]))
        >>> round(255 * float((attack(x) - x).abs().max()))
        8
    """

    needs_guides: ClassVar[bool] = True

    def objective(self, clean: Tensor, target: Target) -> Objective:
        """Return squared distance to the own mean, less that to the furthest identity's."""
        prototypes = target.prototypes
        assert prototypes is not None
        prototypes.need_two("FNA")
        own = target.identities(clean)
        push = prototypes.mean_of(own, clean)
        pull = prototypes.mean_of(prototypes.furthest_identity(clean, own), clean)
        return lambda features: squared_distance(features, push) - squared_distance(features, pull)


class _MetricAttack(GradientAttack):
    """The objective of the metric attacks, which start at the image itself."""

    needs_guides: ClassVar[bool] = True
    random_start: ClassVar[bool] = False
    targeted: bool

    def objective(self, clean: Tensor, target: Target) -> Objective:
        """Return plus or minus the mean squared distance to the guides, up to a constant."""
        prototypes = target.prototypes
        assert prototypes is not None
        if self.targeted:
            own = None if target.pids is None else target.identities(clean)
            pull = prototypes.mean_of(prototypes.furthest_identity(clean, own), clean)
            return lambda features: -squared_distance(features, pull)
        push = prototypes.mean_of(target.identities(clean), clean)
        return lambda features: squared_distance(features, push)


@register_attack("metric_ifgsm")
class MetricIFGSM(_MetricAttack):
    """Metric I-FGSM: away from the guides of the own identity, or towards a target's.

    Not targeted, it maximises ``mean_g |φ(x̃) − φ(g)|²`` over the guides g of the image's own
    identity: given by :meth:`with_labels`, else that of its nearest guide. Targeted, it
    minimises the same over the guides of the identity furthest from the clean image: bind guides
    of one identity to choose the target. (Bai et al., 2019.) Features are those that the target
    model compares: normalised if its metric is cosine, where theirs always are.

    They perturb the gallery. Here either side can be perturbed: pass queries with guides from the
    gallery, or gallery images with guides from the queries.

    Arguments and cost are :class:`GradientAttack`'s; the first restart starts at the image.

    Args:
        budget: The L∞ ball; 8/255 by default.
        targeted: Towards a target rather than away from the own identity.
        steps: Iterations; None is min(ε + 4, 1.25 ε) with ε in grey levels: 10 at 8/255.
        step_size: Length of a step in [0, 1] pixel units; None adapts it.
        restarts: Ascents from different starts.
        momentum: Decay of MI; None is 0 for I-FGSM and 1 for MI-FGSM.
        diversity: Probability of DI.
        translation: Width of TI's kernel.
        seed: Fixes starts and diversity.

    Example:
        >>> import torch
        >>> from reidguard.attacks import Guides
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import Budget, InputSpec
        >>> model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(8, 4)))
        >>> x = torch.rand(4, 3, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> guides = Guides(model.features(x), [1, 1, 2, 2])
        >>> attack = MetricIFGSM(Budget(8 / 255)).bind(model, guides)
        >>> round(255 * float((attack(x) - x).abs().max()))
        8
    """

    usual_momentum: ClassVar[float] = 0.0
    """The momentum that None stands for."""

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        targeted: bool = False,
        steps: int | None = None,
        step_size: float | None = 1 / 255,
        restarts: int = 1,
        momentum: float | None = None,
        diversity: float = 0.0,
        translation: int = 0,
        seed: int = 0,
    ) -> None:
        levels = 255 * budget_or_default(budget).eps
        super().__init__(
            budget,
            # Rounded up, so that the ball's surface can be reached; 8.0000005 is 8 all the same.
            steps=max(1, math.ceil(min(levels + 4, 1.25 * levels) - 1e-6))
            if steps is None
            else steps,
            step_size=step_size,
            restarts=restarts,
            momentum=self.usual_momentum if momentum is None else momentum,
            diversity=diversity,
            translation=translation,
            seed=seed,
        )
        self.targeted = checked(bool, "targeted", targeted)


@register_attack("metric_mifgsm")
class MetricMIFGSM(MetricIFGSM):
    """Metric MI-FGSM: :class:`MetricIFGSM` with momentum 1, for transfer.

    Example:
        >>> attack = MetricMIFGSM(Budget(8 / 255), steps=3)
        >>> attack.momentum, attack.steps
        (1.0, 3)
    """

    usual_momentum: ClassVar[float] = 1.0


@register_attack("metric_fgsm")
class MetricFGSM(_MetricAttack):
    """Metric FGSM: the objective of :class:`MetricIFGSM` by one step of length ε.

    Two forward passes and one backward.

    Args:
        budget: The L∞ ball; 8/255 by default.
        targeted: Towards a target rather than away from the own identity.
        diversity: Probability of DI.
        translation: Width of TI's kernel.
        seed: Fixes diversity.

    Example:
        >>> import torch
        >>> from reidguard.attacks import Guides
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(8, 4)))
        >>> x = torch.rand(4, 3, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> guides = Guides(model.features(x), torch.tensor([0, 0, 1, 1]))
        >>> attack = MetricFGSM(Budget(8 / 255)).bind(model, guides=guides)
        >>> round(255 * float((attack(x) - x).abs().max()))
        8
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        targeted: bool = False,
        diversity: float = 0.0,
        translation: int = 0,
        seed: int = 0,
    ) -> None:
        budget = budget_or_default(budget)
        super().__init__(
            budget,
            steps=1,
            step_size=budget.eps or 1 / 255,  # the clip makes it 0
            diversity=diversity,
            translation=translation,
            seed=seed,
        )
        self.targeted = checked(bool, "targeted", targeted)
