"""Defenses: training of robust models."""

from reidguard.defenses.base import DEFENSES, Defense
from reidguard.defenses.blur import Blur
from reidguard.defenses.free import FreePerturbation
from reidguard.defenses.goat import GOAT, GuideSampling
from reidguard.defenses.presets import (
    MART,
    TRADES,
    FreeTraining,
    MetaDefense,
    MixedTraining,
    ReleasedMetaDefense,
)
from reidguard.defenses.training import AdversarialTraining
from reidguard.defenses.triplets import ACT, HM, CollapsePairs, RaiseHardness

__all__ = [
    "ACT",
    "DEFENSES",
    "GOAT",
    "HM",
    "MART",
    "TRADES",
    "AdversarialTraining",
    "Blur",
    "CollapsePairs",
    "Defense",
    "FreePerturbation",
    "FreeTraining",
    "GuideSampling",
    "MetaDefense",
    "MixedTraining",
    "RaiseHardness",
    "ReleasedMetaDefense",
]
