"""The contract suite of attacks.

Each check takes a factory ``make(budget) -> Attack`` and raises an AssertionError with an example
that breaks it. They use hypothesis, which ``pip install reidguard[testing]`` brings::

    @pytest.mark.parametrize("check", ATTACK_CHECKS)
    def test_my_attack(check):
        check(lambda budget: MyAttack(budget))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from reidguard.attacks import Attack
from reidguard.types import Budget

__all__ = ["ATTACK_CHECKS", "AttackFactory", "check_identity"]

AttackFactory = Callable[[Budget], Attack]

_DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
_HOSTILE = st.sampled_from([0.0, 1e-8, 0.01, 0.5, 1e4, 3e38, math.inf, -math.inf, math.nan])
_SETTINGS = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], database=None
)


@st.composite
def _images(draw: st.DrawFn) -> Tensor:
    """8-bit images of any small size, divided by 255, in any float dtype."""
    shape = (draw(st.integers(1, 3)), 3, draw(st.integers(1, 40)), draw(st.integers(1, 24)))
    elements = st.integers(0, 255)
    pixels = torch.from_numpy(draw(hnp.arrays("uint8", shape, elements=elements)))
    return (pixels.double() / 255).to(draw(_DTYPES))


@st.composite
def _budgets(draw: st.DrawFn) -> Budget:
    return Budget(draw(st.one_of(st.sampled_from([0.0, 8 / 255, 7.5 / 255, 1.0]), st.floats(0, 1))))


def _make_hostile(attack: Attack, seed: int, scale: float) -> Attack:
    """Fill the parameters with values that no optimiser would leave there."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attack.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * scale)  # inf · 0 also gives NaN here and there
    return attack


def _hostile(check: Callable[[Attack, Tensor], None]) -> Callable[[AttackFactory], None]:
    def run(make: AttackFactory) -> None:
        @_SETTINGS
        @given(x=_images(), budget=_budgets(), seed=st.integers(0, 99), scale=_HOSTILE)
        @torch.no_grad()
        def property_holds(x: Tensor, budget: Budget, seed: int, scale: float) -> None:
            check(_make_hostile(make(budget), seed, scale), x)

        property_holds()

    run.__name__ = check.__name__
    run.__doc__ = check.__doc__
    return run


@_hostile
def check_ball(attack: Attack, x: Tensor) -> None:
    """Inside the ε-ball and [0, 1], with the shape, dtype and device of the image."""
    y = attack(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.device == x.device
    distance = float((y.double() - x.double()).abs().max())
    assert distance <= attack.budget.eps + 1e-6, f"moved by {distance}, ε is {attack.budget.eps}"
    assert float(y.min()) >= 0, "below 0"
    assert float(y.max()) <= 1, "above 1"


@_hostile
def check_projection(attack: Attack, x: Tensor) -> None:
    """Projecting an adversarial image again changes nothing."""
    y = attack(x)
    assert torch.equal(attack.budget.project(y, x), y)


@_hostile
def check_eight_bit(attack: Attack, x: Tensor) -> None:
    """The image a person could save is inside the budget too."""
    original = (x.double() * 255).round().int()
    saved = attack.budget.quantize(attack(x), x)
    moved = int((saved.int() - original).abs().max())
    assert moved <= attack.budget.levels, f"{moved} grey levels, {attack.budget.levels} allowed"


@_hostile
def check_determinism(attack: Attack, x: Tensor) -> None:
    """The same images give the same bits, and the images stay unchanged."""
    before = x.clone()
    assert torch.equal(attack(x), attack(x))
    assert torch.equal(x, before)


def check_identity(make: AttackFactory) -> None:
    """An attack that has learnt nothing changes nothing, in half precision too.

    For families that start at the identity, as Algorithm 1 does.

    Example:
        >>> from reidguard import DeltaAttack
        >>> check_identity(lambda budget: DeltaAttack(budget, size=(4, 2)))
    """

    @_SETTINGS
    @given(x=_images(), budget=_budgets())
    @torch.no_grad()
    def property_holds(x: Tensor, budget: Budget) -> None:
        assert torch.equal(make(budget)(x), x)

    property_holds()


ATTACK_CHECKS: tuple[Callable[[AttackFactory], Any], ...] = (
    check_ball,
    check_projection,
    check_eight_bit,
    check_determinism,
)
"""The checks that hold for every attack."""
