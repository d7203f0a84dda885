"""Attacks: what perturbs images within a budget."""

from reidguard.attacks.base import ATTACKS, Attack, create_attack, load_attack, register_attack
from reidguard.attacks.color import ColorAttack
from reidguard.attacks.combinatorial import CombinatorialAttack
from reidguard.attacks.delta import DeltaAttack
from reidguard.attacks.universal import UniversalAttack

__all__ = [
    "ATTACKS",
    "Attack",
    "ColorAttack",
    "CombinatorialAttack",
    "DeltaAttack",
    "UniversalAttack",
    "create_attack",
    "load_attack",
    "register_attack",
]
