"""MetaAttack: virtual-guided meta-learning of a universal attack (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from typing_extensions import Self, Unpack

from reidguard.attacks.base import create_attack, register_attack
from reidguard.attacks.learned import FitDefaults, LearnedAttack
from reidguard.attacks.universal.base import UniversalAttack
from reidguard.data import ReIDDataset
from reidguard.errors import InputError
from reidguard.learners import LEARNERS
from reidguard.models import ReIDModel
from reidguard.options import AttackOptions
from reidguard.types import Budget

__all__ = ["MetaAttack"]

# Each departure of the released code is an option of a learner, of fit, or of the perturbation.
PRESETS = {
    "paper": FitDefaults(learner="maml", epochs=10),
    "released": FitDefaults(
        learner="first_order",
        learner_options={
            "inner": "sign",
            "inner_momentum": 0.0,
            "from_buffer": False,
            "keep_temporary": True,
        },
        epochs=5,
        momentum=1.0,
        clip=False,
    ),
    "transfer": FitDefaults(ensemble="gradient"),
}
# Of each preset, the perturbation and its own defaults.
PERTURBATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("combinatorial", {}),
    "released": ("combinatorial", {"stacked": True}),
    "transfer": ("delta", {"basis": "blocks", "grid": (16, 8)}),
}


@register_attack("meta")
class MetaAttack(LearnedAttack):
    """The paper's attack: a perturbation learnt so that a step on one domain helps on another.

    It is the perturbation of that name, learnt by Algorithm 1: :meth:`fit` takes two
    datasets, the source (meta-train) and another, such as virtual people (meta-test), and
    differentiates the meta-test loss through an inner step on the source (Eqs. 6-9).

    Args:
        perturbation: Registered name of a universal attack; by default the preset's,
            "combinatorial" or, of "transfer", "delta".
        budget: The ball; 8/255 by default. That of the perturbation.
        learner: Registered name of the learner; by default the preset's, such as "maml".
        preset: "paper" is Algorithm 1 under one joint budget. "released" is what the paper's code
            does instead: stages of ε each (so 2ε in all), an inner sign step through which no
            gradient flows and without momentum, an outer step from the temporary parameters, no
            clipping of parameters, 5 epochs. "transfer", not the paper's, is for networks that
            it has not seen: a δ of 16 × 8 blocks, learnt by "plain" without a second dataset; of
            several surrogates the gradients count alike (see ``docs/learners.rst``).
        options: For the perturbation, such as ``size=(128, 64)``.

    Example:
        >>> attack = MetaAttack("delta", size=(64, 32))
        >>> attack.fit_defaults.learner, attack.budget.levels
        ('maml', 8)
        >>> MetaAttack(preset="released").budget.levels  # 2ε: its stages are stacked
        16
        >>> MetaAttack(preset="transfer").attack.delta.shape
        torch.Size([1, 3, 16, 8])
    """

    def __init__(
        self,
        perturbation: str | None = None,
        budget: Budget | None = None,
        *,
        learner: str | None = None,
        preset: str = "paper",
        **options: Any,
    ) -> None:
        if preset not in PRESETS:
            raise InputError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
        if learner is not None:
            LEARNERS.get(learner)
        usual, own = PERTURBATIONS[preset]
        perturbation = perturbation or usual
        if perturbation == usual:
            options = {**own, **options}
        attack = create_attack(perturbation, budget=budget, **options)
        if not isinstance(attack, UniversalAttack):
            raise InputError(f"{perturbation!r} is no perturbation that MetaAttack can learn")
        super().__init__(attack.budget)
        self.perturbation = perturbation
        self.learner = learner
        self.preset = preset
        self.attack = attack
        self.fit_defaults = PRESETS[preset]
        if learner not in (None, self.fit_defaults.learner):
            self.fit_defaults = replace(self.fit_defaults, learner=learner, learner_options={})
        attack.fit_defaults = self.fit_defaults

    def perturb(self, x: Tensor) -> Tensor:
        """Return the images changed by the perturbation."""
        return self.attack.perturb(x)

    def fit(
        self,
        model: ReIDModel | Sequence[ReIDModel],
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
        **options: Unpack[AttackOptions],
    ) -> Self:
        """Learn the perturbation; arguments are those of :meth:`UniversalAttack.fit`."""
        self.attack.fit(model, meta_train, meta_test, **options)
        self.provenance = self.attack.provenance
        return self

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments; ``eps`` is that of the perturbation."""
        own = {"perturbation": self.perturbation, "learner": self.learner, "preset": self.preset}
        return {**self.attack.config(), **own}
