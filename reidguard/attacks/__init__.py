"""Attacks: what perturbs images within a budget."""

from reidguard.attacks.base import ATTACKS, Attack, create_attack, load_attack, register_attack
from reidguard.attacks.color import ColorAttack
from reidguard.attacks.combinatorial import CombinatorialAttack
from reidguard.attacks.delta import DeltaAttack
from reidguard.attacks.guided import FNA, MetricFGSM, MetricIFGSM, MetricMIFGSM
from reidguard.attacks.instance import Guides, InstanceAttack
from reidguard.attacks.meta import MetaAttack
from reidguard.attacks.misrank import MisRank
from reidguard.attacks.pgd import GradientAttack
from reidguard.attacks.selfmetric import ODFA, SMA
from reidguard.attacks.square import SquareAttack
from reidguard.attacks.uap import UAPRetrieval
from reidguard.attacks.universal import FitDefaults, UniversalAttack

__all__ = [
    "ATTACKS",
    "FNA",
    "ODFA",
    "SMA",
    "Attack",
    "ColorAttack",
    "CombinatorialAttack",
    "DeltaAttack",
    "FitDefaults",
    "GradientAttack",
    "Guides",
    "InstanceAttack",
    "MetaAttack",
    "MetricFGSM",
    "MetricIFGSM",
    "MetricMIFGSM",
    "MisRank",
    "SquareAttack",
    "UAPRetrieval",
    "UniversalAttack",
    "create_attack",
    "load_attack",
    "register_attack",
]
