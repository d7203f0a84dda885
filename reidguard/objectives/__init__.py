"""Objectives: losses of attacks, of re-ID models and of defenses."""

from reidguard.objectives.base import (
    ATTACK_LOSSES,
    AttackLoss,
    FeatureObjective,
    normalized_features,
)
from reidguard.objectives.ensemble import EnsembleLoss, LogitEnsembleLoss
from reidguard.objectives.feature_level import (
    DispersionLoss,
    FeatureImportanceLoss,
    NeuronAttributionLoss,
)
from reidguard.objectives.inputs import InputCopies
from reidguard.objectives.misranking import MisrankingTriplet
from reidguard.objectives.retrieval import (
    LabelWiseLoss,
    ListWiseLoss,
    PairWiseLoss,
    SelfMetricLoss,
)

__all__ = [
    "ATTACK_LOSSES",
    "AttackLoss",
    "DispersionLoss",
    "EnsembleLoss",
    "FeatureImportanceLoss",
    "FeatureObjective",
    "InputCopies",
    "LabelWiseLoss",
    "ListWiseLoss",
    "LogitEnsembleLoss",
    "MisrankingTriplet",
    "NeuronAttributionLoss",
    "PairWiseLoss",
    "SelfMetricLoss",
    "normalized_features",
]
