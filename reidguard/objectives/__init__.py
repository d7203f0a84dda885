"""What attacks and models learn for."""

from reidguard.objectives.base import (
    ATTACK_LOSSES,
    AttackLoss,
    FeatureObjective,
    comparable_features,
)
from reidguard.objectives.misranking import MisrankingTriplet

__all__ = [
    "ATTACK_LOSSES",
    "AttackLoss",
    "FeatureObjective",
    "MisrankingTriplet",
    "comparable_features",
]
