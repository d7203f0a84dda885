"""MetaAttack: virtual-guided meta-learning of a universal attack (Algorithm 1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from reidguard.attacks.base import Attack, create_attack, register_attack
from reidguard.attacks.universal.base import FitDefaults, UniversalAttack
from reidguard.errors import InputError
from reidguard.learners import LEARNERS
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
}


@register_attack("meta")
class MetaAttack(UniversalAttack):
    """The paper's attack: a perturbation learnt so that a step on one domain helps on another.

    It is the perturbation of its name, with Algorithm 1 for a recipe: :meth:`fit` takes two
    datasets, the source (meta-train) and another, such as virtual people (meta-test), and
    differentiates the meta-test loss through an inner step on the source (Eqs. 6-9).

    Args:
        perturbation: Registered name of a universal attack.
        budget: The ball; 8/255 by default. Given to the perturbation.
        learner: Registered name of the learner; by default the preset's, "maml".
        preset: "paper" is Algorithm 1 under one joint budget. "released" is what the paper's code
            does instead: stages of ε each (so 2ε in all), an inner sign step through which no
            gradient flows and without momentum, an outer step from the temporary parameters, no
            clipping of parameters, 5 epochs.
        options: For the perturbation, such as ``size=(128, 64)``.

    Example:
        >>> attack = MetaAttack("delta", size=(64, 32))
        >>> attack.fit_defaults.learner, attack.budget.levels
        ('maml', 8)
        >>> MetaAttack(preset="released").budget.levels  # 2ε: its stages are stacked
        16
    """

    def __init__(
        self,
        perturbation: str = "combinatorial",
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
        if perturbation == "combinatorial" and preset == "released":
            options = {"stacked": True, **options}
        made = create_attack(perturbation, budget=budget, **options)
        if (
            not isinstance(made, UniversalAttack)
            or isinstance(made, MetaAttack)
            or made.fit_defaults.learners  # it can't be learnt by just any learner
        ):
            raise InputError(f"{perturbation!r} is no perturbation that MetaAttack can learn")
        super().__init__(made.budget)
        self.perturbation = perturbation
        self.learner = learner
        self.preset = preset
        self.options = options
        self.attack = made

    @property
    def fit_defaults(self) -> FitDefaults:
        """The preset's recipe, with the learner that was asked for."""
        defaults = PRESETS[self.preset]
        if self.learner is None or self.learner == defaults.learner:
            return defaults
        return replace(defaults, learner=self.learner, learner_options={})

    def perturb(self, x: Tensor) -> Tensor:
        """Perturb as the perturbation does."""
        return self.attack.perturb(x)

    def clip_parameters(self) -> None:
        """Clip as the perturbation does."""
        self.attack.clip_parameters()

    def start_epoch(self) -> None:
        """Do what the perturbation does."""
        self.attack.start_epoch()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the perturbation's groups."""
        return self.attack.parameter_groups(lr)

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments; ``eps`` is what the perturbation was given."""
        inner = self.attack.config()
        own = {"perturbation": self.perturbation, "learner": self.learner, "preset": self.preset}
        return {**inner, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Attack:
        """Rebuild what :meth:`config` described."""
        arguments = dict(config)
        return cls(budget=Budget(arguments.pop("eps")), **arguments)
