"""Universal attacks: learnt once on training images, then applied to any image."""

from reidguard.attacks.universal.base import UniversalAttack
from reidguard.attacks.universal.color import ColorAttack
from reidguard.attacks.universal.combinatorial import CombinatorialAttack
from reidguard.attacks.universal.delta import DeltaAttack
from reidguard.attacks.universal.meta import MetaAttack
from reidguard.attacks.universal.uap import UAPRetrieval

__all__ = [
    "ColorAttack",
    "CombinatorialAttack",
    "DeltaAttack",
    "MetaAttack",
    "UAPRetrieval",
    "UniversalAttack",
]
