"""Presets of adversarial training: the paper's defenses, TRADES, MART and free training."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from reidguard.attacks import SMA, Attack
from reidguard.defenses.base import DEFENSES
from reidguard.defenses.crafting import Crafter
from reidguard.defenses.free import FreePerturbation
from reidguard.defenses.training import AdversarialTraining
from reidguard.errors import InputError
from reidguard.learners import MetaLearner, Objective, PlainLearner
from reidguard.objectives.consistency import Divergence
from reidguard.objectives.defense import DefenseBatch, DefenseObjective, Regularizer
from reidguard.objectives.reid import Loss
from reidguard.types import BatchShard

__all__ = ["MART", "TRADES", "FreeTraining", "MetaDefense", "MixedTraining", "ReleasedMetaDefense"]


@DEFENSES.register("meta")
@dataclass(frozen=True, eq=False)
class MetaDefense(AdversarialTraining):
    """The paper's defense (Algorithm 2): robust after a step on one domain, tested on another.

    Meta-train takes Eq. 12 on the source domain and an inner step from w to w'; meta-test takes
    Eq. 13 on the other domain at w'; the model moves along the gradient of their sum at w
    (Eq. 14), through the inner step. See :class:`AdversarialTraining` for the arguments.

    Example:
        >>> from reidguard.attacks import SMA
        >>> MetaDefense(SMA()).needs_meta_test
        True
        >>> defense = MetaDefense(attack)  # doctest: +SKIP
        >>> robust = defense.fit(model, market, virtual)  # doctest: +SKIP
    """

    _: KW_ONLY
    learner: MetaLearner | str = "maml"


@DEFENSES.register("mixed")
@dataclass(frozen=True, eq=False)
class MixedTraining(AdversarialTraining):
    """Adversarial training on two domains at once, without meta-learning: Table 17's No. 3.

    See :class:`AdversarialTraining` for the arguments.

    Example:
        >>> MixedTraining.learner
        'joint'
    """

    _: KW_ONLY
    learner: MetaLearner | str = "joint"


@DEFENSES.register("meta_released")
@dataclass(frozen=True, eq=False)
class ReleasedMetaDefense(MetaDefense):
    """MetaDefense with those choices of the released code that can be reproduced.

    Triplet loss only, learning rate 2e-4, and an inner step by the gradient's sign, which is what
    a first step of Adam is; it has no derivative, so the learner is "first_order". Its errors
    are not repeated: ``docs/defenses.rst`` lists them.

    Example:
        >>> ReleasedMetaDefense.losses
        ('triplet',)
    """

    _: KW_ONLY
    learner: MetaLearner | str = "first_order"
    inner: str = "sign"
    losses: tuple[Loss, ...] = ("triplet",)

    default_lr: ClassVar[float] = 2e-4


@DEFENSES.register("trades")
@dataclass(frozen=True, eq=False)
class TRADES(AdversarialTraining):
    """TRADES on features (Zhang et al., ICML 2019): clean losses + β · distance to the clean image.

    The regulariser is ``divergence``: the squared distance of the features as the model's retrieval
    compares them, which is what :class:`~reidguard.SMA` maximises, or "kl" as in the paper, of the
    classifier's probabilities. See :class:`AdversarialTraining` for the other arguments.

    Example:
        >>> TRADES().regularizer, TRADES(beta=1.0, divergence="kl").beta
        ('trades', 1.0)
    """

    attack: Attack = field(default_factory=lambda: SMA(steps=7, step_size=2 / 255))
    _: KW_ONLY
    regularizer: Regularizer | None = "trades"
    adversarial: float = 1.0


@DEFENSES.register("mart")
@dataclass(frozen=True, eq=False)
class MART(AdversarialTraining):
    """MART on features (Wang et al., ICLR 2020), which weighs misclassified images more.

    The triplet loss of all images, the boosted cross-entropy of the adversarial ones, and the
    regulariser, weighted by the probability of a wrong identity of each clean image. See
    :class:`~reidguard.objectives.defense.DefenseObjective` and :class:`AdversarialTraining`.

    Example:
        >>> MART().divergence, MART().beta
        ('kl', 5.0)
    """

    attack: Attack = field(default_factory=lambda: SMA(steps=7, step_size=2 / 255))
    _: KW_ONLY
    regularizer: Regularizer | None = "mart"
    beta: float = 5.0
    divergence: Divergence = "kl"
    adversarial: float = 1.0


@DEFENSES.register("free")
@dataclass(frozen=True, eq=False)
class FreeTraining(AdversarialTraining):
    """Free adversarial training (Shafahi et al., NeurIPS 2019): no passes for the attack.

    Each batch is used for ``replays`` steps in a row, and the backward pass of each step also moves
    the perturbations of its images (:class:`~reidguard.defenses.FreePerturbation`). The number of
    steps stays what ``fit`` is given, so that it sees each image ``replays`` times less often in
    other crops. See :class:`AdversarialTraining` for the other arguments.

    Example:
        >>> FreeTraining().replays, FreeTraining().clean
        (4, False)
    """

    attack: Attack = field(default_factory=FreePerturbation)
    _: KW_ONLY
    replays: int = 4
    adversarial: float = 1.0
    clean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attack, FreePerturbation) or self.adversarial == 0:
            raise InputError("free training makes its own images: leave attack and adversarial out")
        if self.make_learner().needs_meta_test or not isinstance(self.make_learner(), PlainLearner):
            raise InputError(
                "free training moves images by the gradients of the learner 'plain': leave learner "
                "out, or take an instance attack such as SMA(steps=1) and another defense"
            )

    def test_attack(self) -> Attack:
        """Return SMA with the same budget: the attack of the training has no other images."""
        return SMA(self.attack.budget)

    def _of_parts(self, objective: DefenseObjective, crafter: Crafter) -> Objective:
        plain, attack = (
            super()._of_parts(objective, crafter),
            cast(FreePerturbation, crafter.attack),
        )

        def loss(parts: Any, batch: DefenseBatch) -> Tensor:
            images, first = batch.images.detach().requires_grad_(), len(batch) - batch.adversarial
            shard = batch.shard
            if shard is not None:  # of the attacked images, the last of the joint batch
                assert attack.delta is not None
                number = len(attack.delta)
                shard = BatchShard(shard.rows[first:] - (shard.total - number), number)
            images.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: attack.update(gradient[first:], shard)
            )
            return plain(parts, replace(batch, images=images))

        return loss

    def _state(self, crafter: Crafter, values: dict[str, Any]) -> dict[str, nn.Module]:
        number = values["identities"] * values["images_per_identity"]
        device = next(crafter.model.parameters()).device
        size = (round(self.adversarial * number), 3, *values["image_size"])
        attack = cast(FreePerturbation, crafter.attack)
        return {"attack": attack.start(torch.zeros(size, device=device))}
