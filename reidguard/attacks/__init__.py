"""Attacks: perturbations of images within a budget."""

from importlib import import_module
from pkgutil import iter_modules

from reidguard.attacks import universal as _universal
from reidguard.attacks.base import ATTACKS, Attack, create_attack, load_attack, register_attack
from reidguard.attacks.instance.base import Guides, InstanceAttack, Target
from reidguard.attacks.instance.metric import FNA, MetricFGSM, MetricIFGSM, MetricMIFGSM
from reidguard.attacks.instance.pgd import GradientAttack
from reidguard.attacks.instance.self_metric import ODFA, SMA
from reidguard.attacks.instance.square import SquareAttack
from reidguard.attacks.learned import FitDefaults, LearnedAttack
from reidguard.attacks.misrank.attack import MisRank
from reidguard.attacks.pattern import PatternAttack, fixed_patterns
from reidguard.attacks.universal.base import UniversalAttack
from reidguard.attacks.universal.color import ColorAttack
from reidguard.attacks.universal.combinatorial import CombinatorialAttack
from reidguard.attacks.universal.delta import DeltaAttack
from reidguard.attacks.universal.meta import MetaAttack
from reidguard.attacks.universal.square import UniversalSquare
from reidguard.attacks.universal.uap import UAPRetrieval

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
    "LearnedAttack",
    "MetaAttack",
    "MetricFGSM",
    "MetricIFGSM",
    "MetricMIFGSM",
    "MisRank",
    "PatternAttack",
    "SquareAttack",
    "Target",
    "UAPRetrieval",
    "UniversalAttack",
    "UniversalSquare",
    "create_attack",
    "fixed_patterns",
    "load_attack",
    "register_attack",
]

# The other modules of this folder register themselves.
for _module in iter_modules(_universal.__path__):
    import_module(f"{_universal.__name__}.{_module.name}")
