"""Defenses: training of robust models."""

from reidguard.defenses.base import DEFENSES, Defense
from reidguard.defenses.goat import GOAT, GuideSampling
from reidguard.defenses.training import (
    AdversarialTraining,
    MetaDefense,
    MixedTraining,
    ReleasedMetaDefense,
)

__all__ = [
    "DEFENSES",
    "GOAT",
    "AdversarialTraining",
    "Defense",
    "GuideSampling",
    "MetaDefense",
    "MixedTraining",
    "ReleasedMetaDefense",
]
